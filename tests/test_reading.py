"""What a stranger's text and JSON may not do: be waited for, take all memory, end in a traceback."""

import os
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

import reading
from reading import open_regular, parse_json, read_json, read_jsonl, read_text, typed
from tests.helpers import ROOT
from utils import BadInput


@pytest.mark.parametrize("read", [read_text, read_json, read_jsonl])
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: os.mkfifo(path), "a pipe or a device, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "a pipe or a device, not a file"),
        (lambda path: path.mkdir(), "is a folder, not a"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
        (lambda path: path.write_bytes(b"a\xff"), "not UTF-8 text .byte 1."),
    ],
    ids=["pipe", "device", "folder", "loop", "nowhere", "bytes"],
)
def test_what_is_no_text_file(tmp_path, read, make, sentence):
    make(tmp_path / "a")
    with pytest.raises(BadInput, match=rf"{tmp_path}/a: .*{sentence}.*; mend it$"):
        read(tmp_path / "a", "mend it")


def test_a_file_is_opened_and_ends_of_line_are_one(tmp_path):
    (tmp_path / "a").write_bytes(b"one\r\ntwo\rthree\n")
    with open_regular(tmp_path / "a") as file:
        assert file.read(3) == b"one"
    assert read_text(tmp_path / "a", "mend it") == (tmp_path / "a").read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("[1, " + "9" * 5000 + "]", "a number of too many digits"),
        ('{"a": [1,\n2', "line 2: "),
        ("", "line 1: "),
    ],
    ids=["lists", "objects", "digits", "cut", "empty"],
)
def test_json_that_is_none_or_does_harm(tmp_path, text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)
    (tmp_path / "a").write_text(text)
    with pytest.raises(BadInput, match=rf"a: not JSON, or cut short \({reason}.*\); mend it"):
        read_json(tmp_path / "a", "mend it")
    if text and "\n" not in text:
        with pytest.raises(BadInput, match=r"line 1 is not JSON, or cut short"):
            read_jsonl(tmp_path / "a", "mend it")


@pytest.mark.parametrize("item", ["[]", '{"a":1}', '{"a":{}}', '"ab"', "[[]]"])
def test_json_takes_no_more_memory_than_stated(item, monkeypatch):
    """By what Python says of its memory; and what would take more is refused before it is parsed."""
    text = f"[{','.join([item] * 30_000)}]"
    code = "import tracemalloc, reading; tracemalloc.start(); before = tracemalloc.get_traced_memory()[0]\n"
    code += f"text = '[' + ','.join([{item!r}] * 30_000) + ']'; made = tracemalloc.get_traced_memory()[0]\n"
    code += "value = reading.parse_json(text); print(tracemalloc.get_traced_memory()[0] - made)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    taken = int(done.stdout)
    monkeypatch.setattr(reading, "MAX_JSON_MEMORY", taken - 1)
    with pytest.raises(ValueError, match=r"too large to be read whole, .* save it as JSON lines"):
        parse_json(text)
    monkeypatch.setattr(reading, "MAX_JSON_MEMORY", 4 * taken)
    assert len(parse_json(text)) == 30_000


@dataclass(frozen=True)
class _Row:
    names: tuple[str, ...]
    size: float
    more: dict[str, int] = field(default_factory=dict)
    about: str | None = None


def test_tables_become_dataclasses():
    assert typed(_Row, {"names": ["a"], "size": 2, "about": "x"}) == _Row(("a",), 2, {}, "x")


@pytest.mark.parametrize(
    "table",
    [
        {"names": ["a"]},
        {"names": ["a"], "size": 1, "other": 1},
        {"names": "a", "size": 1},
        {"names": [1], "size": 1},
        {"names": [], "size": float("nan")},
        {"names": [], "size": True},
        {"names": [], "size": 1, "more": {"a": "1"}},
        {"names": [], "size": 1, "more": [1]},
        {"names": [], "size": 1, "about": 3},
    ],
)
def test_tables_of_other_types_do_not(table):
    with pytest.raises(TypeError):
        typed(_Row, table)

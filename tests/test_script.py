"""How scripts end: a sentence for what goes wrong, and within a second of Ctrl-C or SIGTERM."""

import importlib
import re
import subprocess
import sys

import pytest

from script import missing_package
from tests.helpers import ROOT, call


def test_a_python_without_the_packages_hears_where_they_are(tmp_path):
    """Without site-packages, as a system's Python is."""
    done = subprocess.run([sys.executable, "-S", "train.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(
        r"train.py: .+ has no torch; call .*source .venv/bin/activate, or else pip install -r requirements.txt\n",
        done.stderr,
    )


def test_packages_are_known_by_their_modules():
    for module, file in (("PIL.Image", "requirements.txt"), ("starlette", "requirements-search.txt")):
        assert (missing_package(module) or "").endswith(file)
    assert "scikit-learn" in (missing_package("sklearn") or "")
    assert missing_package("features.nothing") is None, "that is an error of ours"


@pytest.mark.parametrize(
    ("script", "args", "said"),
    [
        ("eval", ["--format", "jsno"], "argument --format: invalid choice: 'jsno'"),
        (
            "search",
            ["find", "x.index", "a dog", "--at-least", "50%"],
            "argument --at-least: invalid float value: '50%'",
        ),
        ("search", [], "the following arguments are required: COMMAND"),
        ("prep", ["--crops", "3"], "argument --crops: invalid choice: 3"),
        ("train", ["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
        ("app", ["x.index", "--port", "a"], "argument --port: invalid int value: 'a'"),
    ],
)
def test_what_a_parser_cannot_read_is_one_sentence_too(script, args, said, monkeypatch, capsys):
    assert call(monkeypatch, importlib.import_module(script), *args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{script}.py: {said}")
    assert line.endswith(f"; {script}.py{' find' if 'find' in args else ''} --help says what it takes")

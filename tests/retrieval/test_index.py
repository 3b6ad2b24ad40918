"""An index that a stranger made: it is refused in a sentence or does no harm, and no file outside of it is read."""

import json
import os

import numpy as np
import pytest

from retrieval.build import build_index
from retrieval.index import Strings, write_strings
from retrieval.searcher import Searcher
from tests.helpers import FakeRun
from utils import BadInput


@pytest.fixture
def index(tmp_path):
    """The folder of an index, and a function that opens it with its run."""
    run = FakeRun(tmp_path)
    build_index(run, [run.prepare(tmp_path, 12)], tmp_path / "index")
    return tmp_path / "index", lambda: Searcher.open(tmp_path / "index", run)


def change(folder, **facts):
    table = json.loads((folder / "meta.json").read_text())
    for name, value in facts.items():
        table[name] = value(table[name]) if callable(value) else value
    (folder / "meta.json").write_text(json.dumps(table))


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"files": lambda files: files | {"ids": "../secret.bin"}}, id="a file beside the folder"),
        pytest.param({"files": lambda files: files | {"paths": "/etc/passwd"}}, id="a file elsewhere"),
        pytest.param({"files": lambda files: files | {"embeddings": files["ids"]}}, id="the file of another column"),
        {"files": {}},
        {"files": []},
        {"similarity": "c/sine"},
        {"dim": 10**12},
        {"dim": "24"},
        {"images": -1},
        {"packs": [-1]},
        {"packs": ["../../x"]},
        {"generation": None},
        {"approximate": {"search": "other", "effort": 1}},
        {"approximate": {"search": "hnsw", "effort": 10**9}},
        {"approximate": {"search": ["hnsw"], "effort": "x"}},
        {"correction": 3},
        {"run": 1},
    ],
    ids=str,
)
def test_a_meta_that_says_what_no_index_does(index, facts):
    folder, open_it = index
    change(folder, **facts)
    with pytest.raises(BadInput, match=r"not the meta\.json of an index of this version; build it again"):
        open_it()


@pytest.mark.parametrize("column", ["ids", "paths", "embeddings", "pack"])
def test_a_link_out_of_the_folder_is_not_followed(index, tmp_path, column):
    folder, open_it = index
    file = next(folder.glob(f"{column}-*"))
    (tmp_path / "elsewhere").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match=rf"damaged \({file.name} is a link out of the folder\)"):
        open_it()
    file.unlink()
    (folder / "beside").write_bytes((tmp_path / "elsewhere").read_bytes())
    file.symlink_to("beside")
    assert len(open_it().index) == 12, "one within it is"


def test_a_pipe_in_place_of_a_file_is_not_waited_for(index):
    folder, open_it = index
    for pattern in ("embeddings-*", "ids-*", "meta.json"):
        file = next(folder.glob(pattern))
        content = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        with pytest.raises(BadInput):
            open_it()
        file.unlink()
        file.write_bytes(content)


def test_rows_that_point_anywhere_do_no_harm(index):
    folder, open_it = index
    rows = np.load(file := next(folder.glob("files-*")))
    rows["pack"], rows["start"], rows["length"] = 7, -5, 2**31 - 1
    rows["pack"][0] = 1
    np.save(file, rows)
    np.save(next(folder.glob("known_rows-*")), np.full(len(open_it().index.known), 10**12))
    searcher = open_it()
    assert [searcher.index.thumbnail(row) for row in range(1, 12)] == [None] * 11
    assert len(searcher.index.thumbnail(0)) <= file.with_name("pack-000001.bin").stat().st_size
    assert searcher.ask("picture 3 of a dog").positions == {}


def test_ids_that_are_no_unicode_are_read_somehow(tmp_path):
    write_strings(tmp_path / "strings.bin", ["one", "two"])
    damaged = (tmp_path / "strings.bin").read_bytes().replace(b"two", b"t\xffo")
    assert list(Strings(damaged)) == ["one", "t\ufffdo"]

"""Formats: what each version left is read or refused in a sentence, and a newer one always refused."""

import contextlib
import doctest
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import prep
import search
import train
from features import format as formats
from features.format import check_format
from features.images.store import FeatureStore
from features.prepared import Prepared
from features.text.store import POOLINGS, TextStore
from features.text.vocabulary import Vocabulary
from retrieval.index import Index
from retrieval.searcher import Searcher
from tests.helpers import call
from tests.make_formats import FORMATS, SMALL, rows
from training.run import Run, read_run_config
from utils import BadInput

OPEN: dict[str, Callable[[Path], Any]] = {
    "prepared": Prepared,
    "prepared/vocabulary.json": Vocabulary.load,
    "prepared/made-up.h5": FeatureStore.open,
    "prepared/made-up.text.h5": TextStore.open,
    "run": Run.open,
    "index": Index.open,
}
HEADS = {"prepared": "dataset.json", "run": "recipe.toml", "index": "meta.json"}
FORMAT = re.compile(r'(\bformat"? ?[:=] )\d+')
VERSIONS = sorted(FORMATS.iterdir(), key=lambda folder: int(folder.name))


def set_format(path, number):
    """Let a file say that it is of another format."""
    path = path / HEADS[path.name] if path.is_dir() else path
    if path.suffix == ".h5":
        with h5py.File(path, "a") as file:
            file.attrs["format"] = number
    else:
        text = path.read_text()
        assert len(FORMAT.findall(text)) >= 1
        path.write_text(FORMAT.sub(rf"\g<1>{number}", text, count=1))


@pytest.fixture
def newest(tmp_path):
    """A copy of what the formats of today left."""
    return shutil.copytree(VERSIONS[-1], tmp_path / "newest")


def test_examples():
    assert doctest.testmod(formats).failed == 0


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", OPEN)
def test_what_each_version_left_is_read_or_refused_in_a_sentence(folder, name):
    if folder == VERSIONS[-1]:  # python -m tests.make_formats writes what the formats of today are
        assert OPEN[name](folder / name)
    else:
        with contextlib.suppress(BadInput):
            OPEN[name](folder / name)


def test_what_is_read_is_what_was_written(newest):
    data = Prepared(newest / "prepared")
    assert [len(data.split(split, ["made-up"], False).images) for split in ("train", "val", "test")] == [3, 1, 1]
    store = FeatureStore.open(newest / "prepared/made-up.h5")
    np.testing.assert_array_equal(store.read(store.rows(store.ids)), rows(5, 4))
    for pooling in POOLINGS:
        np.testing.assert_array_equal(data.text_store("made-up").read(data.rows, pooling), rows(10, 3))
    run = Run.open(newest / "run")
    embeddings = run.embed_features(data.split("test", ["made-up"], run.settings.image.normalize).features)
    searcher = Searcher.open(newest / "index", run)
    np.testing.assert_allclose(searcher.index.embedding(searcher.row_of("white.jpg")), embeddings, atol=1e-6)
    assert searcher.true_images("white snow") == ["white.jpg"]


def test_a_run_of_each_version_is_gone_on_with(newest, monkeypatch):
    settings, info = read_run_config(newest / "run")
    run = (newest / "run").rename(newest / info.run_name(settings))
    before = {name: (run / name).read_bytes() for name in ("log.jsonl", "model.safetensors", "bank.safetensors")}
    (run / "result.json").unlink()
    (run / "bank.safetensors").unlink()
    assert call(monkeypatch, train, "strong", "--data", newest / "prepared", "--runs", newest, "--set", *SMALL) == 0
    assert {name: (run / name).read_bytes() for name in before} == before, "no epoch is repeated"


@pytest.mark.parametrize("name", OPEN)
def test_a_newer_format_is_refused_in_a_sentence(newest, name):
    set_format(newest / name, 7)
    with pytest.raises(BadInput, match=r"has format 7, this program reads format \d+; update the program, or [^\n]+$"):
        OPEN[name](newest / name)


@pytest.mark.parametrize("name", [name for name in OPEN if name != "run"])
def test_an_older_format_or_none_is_made_again(newest, name):
    set_format(newest / name, 0)
    with pytest.raises(BadInput, match=r"has format 0, this program reads format \d+; (?!update)[^\n]+$"):
        OPEN[name](newest / name)


def test_what_is_no_number_is_no_format(tmp_path):
    for odd in ("1" * 10**6, "one\ntwo", [1], None, 1.5):
        with pytest.raises(BadInput, match="format") as refusal:
            check_format(tmp_path / "a.json", odd, 1, "make it again")
        assert len(str(refusal.value)) < 300
        assert "\n" not in str(refusal.value)
        assert "update" not in str(refusal.value)


def test_a_run_that_says_no_format_is_of_the_first(newest):
    path = newest / "run/recipe.toml"
    text = path.read_text()
    assert text.count("[run]\nformat = 1\n") == 1
    path.write_text(text.replace("[run]\nformat = 1\n", "[run]\n"))
    assert Run.open(newest / "run").info == Run.open(VERSIONS[-1] / "run").info


def test_nothing_is_written_over_a_newer_format(newest, monkeypatch, capsys):
    """Scripts that would go on with a folder refuse it, and leave it as it is."""
    settings, info = read_run_config(newest / "run")
    (newest / "run").rename(newest / info.run_name(settings))
    run = next(newest.glob("strong-*"))
    (newest / "captions.csv").write_text("image,caption,split\na.jpg,a dog,train\nb.jpg,a dog,val\nc.jpg,a dog,test\n")
    np.save(newest / "rows.npy", rows(3, 4))
    head = json.loads((newest / "prepared/dataset.json").read_text())
    (newest / "prepared/dataset.json").write_text(json.dumps({**head, "dataset": "folder"}))
    captions, features = ["--captions", newest / "captions.csv"], ["--precomputed", newest / "rows.npy"]
    commands = {
        newest / "prepared": (prep, "folder", *captions, *features, "--data", newest, "--name", "prepared"),
        newest / "index": (search, "index", newest / "prepared", "--run", run, "--out", newest / "index"),
        run / "recipe.toml": (train, "strong", "--data", newest / "prepared", "--runs", newest, "--set", *SMALL),
    }
    for path, command in commands.items():
        kept = path.read_bytes() if path.is_file() else (path / HEADS[path.name]).read_bytes()
        set_format(path, 7)
        before = {file: file.read_bytes() for file in newest.rglob("*") if file.is_file()}
        capsys.readouterr()
        assert call(monkeypatch, *command) == 2
        said = capsys.readouterr().err
        assert "has format 7, this program reads format 1; update the program, or " in said
        assert {file: file.read_bytes() for file in newest.rglob("*") if file.is_file()} == before
        (path if path.is_file() else path / HEADS[path.name]).write_bytes(kept)

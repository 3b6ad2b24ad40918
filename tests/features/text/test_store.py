"""Sentence features on disk: continued after a kill, joined by image, number and text, refused where need be."""

import itertools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from features import hdf5
from features.text import store as text_store
from features.text.store import POOLINGS, TextStore, caption_digest, keys_of, update_text_store
from tests.helpers import make_tiny_encoder
from utils import BadInput

pytest.importorskip("transformers")

from features.text.encoders import POOLINGS as FUNCTIONS
from features.text.encoders import SentenceEncoder, load_sentence_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return load_sentence_encoder(make_tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny"))


def make_rows(images: int = 30) -> list[dict[str, Any]]:
    """Lines of captions.jsonl: one to four captions an image, some of them the same sentence."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "two", "dog", "dogs", "run", "red", "blue", "car", "grass", "man", "jump"]

    def caption() -> str:
        return " ".join(rng.choice(words, rng.integers(1, 12)))

    rows: list[dict[str, Any]] = [
        {"image": f"im {number} é.jpg", "split": "train", "captions": [caption() for _ in range(rng.integers(1, 5))]}
        for number in range(images)
    ]
    rows[3]["captions"] = ["a dog", "a dog"]
    rows[4]["captions"] = ["a dog"]
    return rows


def contents(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        return {name: file[name][:].tolist() for name in file} | dict(file.attrs)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_store, "ROWS_PER_BLOCK", 8)


@pytest.fixture
def seen(encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The captions that the encoder is given, block by block."""
    given: list[list[str]] = []
    features = SentenceEncoder.features

    def counted(self: SentenceEncoder, sentences: list[str], progress: bool = False) -> dict[str, np.ndarray]:
        given.append(list(sentences))
        return features(self, sentences, progress)

    monkeypatch.setattr(SentenceEncoder, "features", counted)
    return given


def test_the_poolings_are_those_of_the_encoders() -> None:
    assert tuple(FUNCTIONS) == POOLINGS


@pytest.mark.usefixtures("small_blocks")
def test_what_is_kept_is_what_the_encoder_gives(tmp_path: Path, encoder: SentenceEncoder) -> None:
    rows = make_rows()
    path = tmp_path / "tiny.text.h5"
    captions = [caption for row in rows for caption in row["captions"]]
    distinct = list(dict.fromkeys(captions))
    assert update_text_store(path, rows, encoder) == len(distinct) < len(captions)
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.text.h5"]
    store = TextStore.open(path)
    assert (len(store), store.size) == (len(captions), 32)
    assert store.attributes == {**encoder.attributes, "format": text_store.FORMAT}
    blocks = [encoder.features(distinct[start : start + 8]) for start in range(0, len(distinct), 8)]
    place = [distinct.index(caption) for caption in captions]
    for pooling in POOLINGS:
        read = store.read(rows, pooling)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, np.concatenate([block[pooling] for block in blocks])[place])
        np.testing.assert_allclose(read, encoder.features(captions)[pooling], atol=4e-3)
    with h5py.File(path) as file:
        assert all(file[pooling].dtype == np.float16 for pooling in POOLINGS)
        assert file["digest"].asstr()[0] == caption_digest(captions[0])
        assert file["image"].asstr()[0] == rows[0]["image"]
        assert file["caption"][: len(rows[0]["captions"])].tolist() == list(range(len(rows[0]["captions"])))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("height", [1, 5, 10**6])
def test_rows_are_joined_by_id_never_by_position(
    tmp_path: Path, encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch, height: int
) -> None:
    rows = make_rows()
    update_text_store(tmp_path / "tiny.text.h5", rows, encoder)
    store = TextStore.open(tmp_path / "tiny.text.h5")
    whole = store.read(rows, "mean")
    starts = np.cumsum([0, *(len(row["captions"]) for row in rows)])
    monkeypatch.setattr(hdf5, "BLOCK_BYTES", height * 64)
    order = np.random.default_rng(1).permutation(len(rows))[:20]
    expected = np.concatenate([whole[starts[place] : starts[place + 1]] for place in order])
    np.testing.assert_array_equal(store.read([rows[place] for place in order], "mean"), expected)
    twice = [rows[3], rows[3], {"image": rows[4]["image"], "captions": rows[4]["captions"]}]
    assert store.read(twice, "cls").shape == (5, 32)
    assert store.read([], "cls").shape == (0, 32)
    assert store.read_keys(store.keys, "last", "float16").dtype == np.float16


def killed_after(blocks: int, features: Callable) -> Callable:
    calls = iter(range(blocks))

    def wrapped(self: SentenceEncoder, sentences: list[str], progress: bool = False) -> dict[str, np.ndarray]:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return features(self, sentences, progress)

    return wrapped


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("blocks", [0, 1, 4])
def test_a_kill_costs_a_block_and_changes_no_bit(tmp_path: Path, encoder: SentenceEncoder, blocks: int) -> None:
    rows = make_rows()
    update_text_store(tmp_path / "whole.text.h5", rows, encoder)
    path = tmp_path / "tiny.text.h5"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceEncoder, "features", killed_after(blocks, SentenceEncoder.features))
        with pytest.raises(KeyboardInterrupt):
            update_text_store(path, rows, encoder)
    assert not path.exists()
    assert len(list((tmp_path / "tiny.text.h5.part").glob("block-*.npz"))) == blocks
    if blocks == 4:  # a block cut short by a full disk elsewhere is done again
        whole = (tmp_path / "tiny.text.h5.part/block-000002.npz").read_bytes()
        (tmp_path / "tiny.text.h5.part/block-000002.npz").write_bytes(whole[:100])
    total = len({caption for row in rows for caption in row["captions"]})
    assert update_text_store(path, rows, encoder) == total - 8 * min(blocks, 3)
    assert path.read_bytes() == (tmp_path / "whole.text.h5").read_bytes()
    assert not (tmp_path / "tiny.text.h5.part").exists()


def test_a_link_in_place_of_the_blocks_is_not_followed(tmp_path: Path, encoder: SentenceEncoder) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("precious")
    (tmp_path / "tiny.text.h5.part").symlink_to(tmp_path / "precious")
    for fresh in (False, True):
        with pytest.raises(BadInput, match=r"tiny\.text\.h5\.part: is a symbolic link"):
            update_text_store(tmp_path / "tiny.text.h5", make_rows(), encoder, fresh=fresh)
    assert [file.name for file in (tmp_path / "precious").iterdir()] == ["file"]


def test_two_programs_do_not_fill_one_text_store(tmp_path: Path, encoder: SentenceEncoder) -> None:
    path = tmp_path / "tiny.text.h5"

    def features(self: SentenceEncoder, sentences: list[str], progress: bool = False) -> dict[str, np.ndarray]:
        with pytest.raises(BadInput, match=r"tiny\.text\.h5\.part: process \d+ .* is at work in it"):
            update_text_store(path, make_rows(), encoder)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceEncoder, "features", features)
        with pytest.raises(KeyboardInterrupt):
            update_text_store(path, make_rows(), encoder)
    assert update_text_store(path, make_rows(), encoder) > 0


@pytest.mark.usefixtures("small_blocks")
def test_only_what_is_new_or_changed_is_computed(
    tmp_path: Path, encoder: SentenceEncoder, seen: list[list[str]]
) -> None:
    rows = make_rows()
    path = tmp_path / "tiny.text.h5"
    update_text_store(path, rows, encoder)
    before = TextStore.open(path)
    old = {key: row for key, row in zip(before.keys, before.read(rows, "mean"), strict=True)}
    stamp = path.stat().st_mtime_ns
    seen.clear()
    assert update_text_store(path, rows, encoder) == 0
    assert (seen, path.stat().st_mtime_ns) == ([], stamp)
    rows[2]["captions"][0] = "a red dog"
    rows.append({"image": "new.jpg", "split": "val", "captions": ["the blue car"]})
    rows[7]["captions"].append("the man")
    del rows[10], rows[12]["captions"][1:]
    rows[0], rows[1] = rows[1], rows[0]
    assert update_text_store(path, rows, encoder) == 3
    assert sorted(itertools.chain.from_iterable(seen)) == ["a red dog", "the blue car", "the man"]
    store = TextStore.open(path)
    assert store.keys == keys_of(rows)
    for key, row in zip(store.keys, store.read(rows, "mean"), strict=True):
        if key in old:
            np.testing.assert_array_equal(row, old[key])


def test_a_caption_that_is_missing_or_has_changed_is_told(tmp_path: Path, encoder: SentenceEncoder) -> None:
    rows = make_rows()
    path = tmp_path / "tiny.text.h5"
    update_text_store(path, rows, encoder)
    store = TextStore.open(path, "python prep.py folder --text-encoder tiny")
    changed = [*rows[:5], {**rows[5], "captions": ["something else", *rows[5]["captions"][1:]]}]
    sentence = (
        rf"1 of \d+ captions .* image {rows[5]['image']} \(its caption 1\); .*prep\.py folder --text-encoder tiny"
    )
    with pytest.raises(BadInput, match=sentence):
        store.read(changed, "mean")
    with pytest.raises(BadInput, match="first of image other"):
        store.read([{"image": "other", "captions": ["a dog"]}], "mean")
    with pytest.raises(BadInput, match="no pooling 'max'; take one of cls, last, mean"):
        store.read(rows, "max")


@pytest.mark.usefixtures("small_blocks")
def test_other_weights_are_refused(tmp_path: Path, encoder: SentenceEncoder) -> None:
    rows = make_rows()
    path = tmp_path / "tiny.text.h5"
    other = load_sentence_encoder(make_tiny_encoder(tmp_path / "encoder/tiny", seed=1))
    update_text_store(path, rows, encoder)
    before = path.read_bytes()
    with pytest.raises(BadInput, match=r"tiny\.text\.h5: was made by .*tiny with other weights .*`fresh`"):
        update_text_store(path, rows, other)
    assert path.read_bytes() == before
    update_text_store(path, rows, other, fresh=True)
    assert TextStore.open(path).attributes["digest"] == other.digest
    path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SentenceEncoder, "features", killed_after(1, SentenceEncoder.features))
        with pytest.raises(KeyboardInterrupt):
            update_text_store(path, rows, encoder)
    with pytest.raises(BadInput, match=r"part: was made by .*`fresh`"):
        update_text_store(path, rows, other)
    with pytest.raises(BadInput, match="there is no caption"):
        update_text_store(tmp_path / "none.text.h5", [], encoder)


def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, encoder: SentenceEncoder) -> None:
    path = tmp_path / "tiny.text.h5"
    with pytest.raises(BadInput, match=r"no such sentence features; make them with: prep\.py"):
        TextStore.open(path)
    update_text_store(path, make_rows(), encoder)
    whole = path.read_bytes()
    path.write_bytes(whole[:3000])
    with pytest.raises(BadInput, match="not an HDF5 file, or damaged"):
        TextStore.open(path)

    def spoilt(spoil: Callable[[h5py.File], None]) -> Path:
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            spoil(file)
        return path

    def without_mean(file: h5py.File) -> None:
        del file["mean"]

    def shorter(file: h5py.File) -> None:
        caption = file["caption"][:-1]
        del file["caption"]
        file["caption"] = caption

    for spoil, sentence in (
        (without_mean, "has no dataset 'mean'"),
        (lambda file: file.attrs.update(format=9), "has format 9, this program reads format 1"),
        (shorter, "captions for features of shape"),
    ):
        with pytest.raises(BadInput, match=sentence):
            TextStore.open(spoilt(spoil))


def test_a_full_disk_leaves_the_old_store(
    tmp_path: Path, encoder: SentenceEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.text.h5"
    update_text_store(path, make_rows(5), encoder)
    before = path.read_bytes()
    asked = []

    def full(descriptor: int, start: int, size: int) -> None:
        asked.append(size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadInput, match=r"tiny\.text\.h5: cannot be written \(No space left on device\); .*disk"):
        update_text_store(path, make_rows(300), encoder)
    assert path.read_bytes() == before
    monkeypatch.undo()
    monkeypatch.setattr(SentenceEncoder, "features", None)
    update_text_store(path, make_rows(300), encoder)  # what was computed has been kept
    assert path.stat().st_size <= asked[0]
    shutil.rmtree(tmp_path)

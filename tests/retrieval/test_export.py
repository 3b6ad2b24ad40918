"""An index as clip-retrieval's folder: read by embedding-reader, and back again by prep.py."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import search
from features.datasets.precomputed import load_precomputed
from features.datasets.readers import read
from retrieval import export
from retrieval.build import build_index
from retrieval.export import ExportReport, export_index
from retrieval.index import Index
from retrieval.searcher import Searcher
from tests.helpers import FakeRun, call, paint
from utils import BadInput

pytest.importorskip("pyarrow")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(export, "ROWS_PER_BLOCK", 3)
    monkeypatch.setattr(export, "ROWS_PER_PART", 7)


def rows_of(folder, name, columns):
    """All rows of a folder, by the library that clip-retrieval's own indexes are built with."""
    embedding_reader = pytest.importorskip("embedding_reader")
    reader = embedding_reader.EmbeddingReader(
        str(folder / name),
        file_format="parquet_npy",
        metadata_folder=str(folder / "metadata"),
        meta_columns=columns,
    )
    batches = list(reader(batch_size=4, start=0, end=reader.count))
    meta = {column: [text for batch in batches for text in batch[1][column]] for column in columns}
    return np.concatenate([batch[0] for batch in batches]), meta


def searcher_of(run, *images, folder, **more):
    build_index(run, images, folder, **more)
    return Searcher(Index.open(folder), run)


def test_a_prepared_folder_comes_back_as_it_was(tmp_path):
    run = FakeRun(tmp_path)
    prepared = run.prepare(tmp_path, 10)
    searcher = searcher_of(run, prepared, folder=tmp_path / "index")
    out = tmp_path / "out"
    assert export_index(searcher, out) == ExportReport(rows=12, images=10, captions=True)
    assert sorted(path.name for path in (out / "img_emb").iterdir()) == ["img_emb_0.npy", "img_emb_1.npy"]
    images, meta = rows_of(out, "img_emb", ["image_path", "image_id", "caption"])
    texts, same = rows_of(out, "text_emb", ["caption"])
    assert same["caption"] == meta["caption"]
    index = searcher.index
    np.testing.assert_array_equal(images, [index.embeddings[index.row_of(image)] for image in meta["image_id"]])
    np.testing.assert_array_equal(texts, run.embed_sentences(meta["caption"]))
    assert meta["image_path"] == [str(tmp_path / "images" / image) for image in meta["image_id"]]
    dataset = read("folder", out, None, split_ratio=(1, 1, 1))
    captions = {image.id: set(image.captions) for image in dataset.images}
    assert captions["9.png"] == {"picture 9 of a dog", "two pictures of one caption"}
    assert len(captions) == 10
    blocks = np.concatenate(list(load_precomputed(out, dataset).blocks()))
    np.testing.assert_array_equal(blocks, [index.embeddings[index.row_of(image.id)] for image in dataset.images])


def test_images_without_captions_have_a_row_each(tmp_path):
    run = FakeRun(tmp_path)
    names = ["a.png", "b c.png", os.fsdecode(b"no-unicode-\xff.png")]
    for number, name in enumerate(names):
        paint(tmp_path / "images" / name, number)
    searcher = searcher_of(run, tmp_path / "images", folder=tmp_path / "index")
    assert export_index(searcher, tmp_path / "out") == ExportReport(rows=3, images=3, captions=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["img_emb", "metadata"]
    images, meta = rows_of(tmp_path / "out", "img_emb", ["image_id"])
    np.testing.assert_array_equal(images, searcher.index.embeddings)
    assert meta["image_id"] == ["a.png", "b c.png", "no-unicode-\\udcff.png"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    run = FakeRun(tmp_path)
    searcher = searcher_of(run, run.prepare(tmp_path, 10), folder=tmp_path / "index")
    embed = run.embed_sentences

    def killed(sentences):
        if "picture 7 of a dog" in sentences:
            raise KeyboardInterrupt
        return embed(sentences)

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(run, "embed_sentences", killed)
    with pytest.raises(KeyboardInterrupt):
        export_index(searcher, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == before
    monkeypatch.setattr(run, "embed_sentences", embed)
    (tmp_path / ".out.part").mkdir()
    (tmp_path / ".out.part/left").touch()
    (tmp_path / "out").mkdir()
    export_index(searcher, tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["img_emb", "metadata", "text_emb"]
    for name, sentence in (("out", "is there already"), ("data", "is there already")):
        with pytest.raises(BadInput, match=sentence):
            export_index(searcher, tmp_path / name)
    (tmp_path / ".link.part").symlink_to(tmp_path / "out")
    with pytest.raises(BadInput, match="symbolic link"):
        export_index(searcher, tmp_path / "link")
    assert sorted(os.listdir(tmp_path / "out")) == ["img_emb", "metadata", "text_emb"]


def test_scores_that_are_no_inner_products_are_refused(tmp_path):
    run = FakeRun(tmp_path, similarity="order")
    searcher = searcher_of(run, run.prepare(tmp_path, 10), folder=tmp_path / "index")
    with pytest.raises(BadInput, match="order similarity is no inner product"):
        export_index(searcher, tmp_path / "out")


def test_the_command_writes_a_corrected_index_without_its_biases(page_folder, tmp_path, monkeypatch, capsys):
    index, out = tmp_path / "index", tmp_path / "embeddings"
    run = next(path for path in (page_folder / "runs").iterdir())
    images = page_folder / "data/folder"
    assert call(monkeypatch, search, "index", images, "--run", run, "--out", index, "--correction", "nnn") == 0
    assert call(monkeypatch, search, "export", index, "--out", out) == 0
    assert f"{out}: 48 rows, one for each caption, of 24 images" in capsys.readouterr().out
    rows, meta = rows_of(out, "img_emb", ["image_id"])
    opened: Any = Index.open(index)
    assert opened.embeddings.shape[1] == rows.shape[1] + 1
    np.testing.assert_array_equal(rows, [opened.embedding(opened.row_of(image))[0] for image in meta["image_id"]])
    assert call(monkeypatch, search, "export", index, "--out", out) == 2
    assert "is there already; name a folder that is not with --out" in capsys.readouterr().err
    assert Path(out).is_dir()

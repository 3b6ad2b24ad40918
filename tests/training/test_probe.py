"""The probe ranks what a prepared folder holds, and says why it cannot."""

import numpy as np
import pytest

import train
from features.datasets.dataset import Dataset, Image
from features.images.store import write_store
from features.prepared import Prepared, write_prepared
from features.text.encoders import load_sentence_encoder
from features.text.store import update_text_store
from features.text.vocabulary import Vocabulary
from metrics.alignment import cka, mutual_knn
from metrics.table import as_text
from tests.helpers import call, make_tiny_encoder
from training.probe import probe
from utils import BadInput, NotPrepared

WORDS = ["red", "blue", "dog", "car", "man", "grass"]
COUNT = 40


def prepare(folder, count=COUNT, stores=("near", "far")):
    """Images that see the words of their captions ("near"), or noise ("far"), as vectors or as maps."""
    rng = np.random.default_rng(0)
    chosen = [rng.choice(len(WORDS), 2, replace=False) for _ in range(count)]
    captions = [(f"a {WORDS[a]} {WORDS[b]}", "the two dogs") for a, b in chosen]
    images = tuple(
        Image(f"{n}.png", folder / f"{n}.png", "val" if n == 0 else "train", c) for n, c in enumerate(captions)
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_prepared(folder, Dataset("drawn", images), folder, Vocabulary.build(c for cs in captions for c in cs))
    near = np.zeros((count, len(WORDS)), np.float32)
    for row, words in zip(near, chosen, strict=True):
        row[words] = 1
    near += 0.1 * rng.normal(size=near.shape)
    kinds = {"near": near, "far": rng.normal(size=(count, 5)).astype(np.float32)}
    kinds["near.map"] = np.stack([near - 0.5, near + 0.5], axis=1)[:, :, None]  # (N, 2, 1, C)
    for name in stores:
        shape, ids = kinds[name].shape[1:], [image.id for image in images]
        attributes = {"backbone": name, "layer": "end", "digest": name, "transform": "none", "engine": "torch"}
        write_store(folder / f"{name}.h5", ids, shape, "float32", attributes, [kinds[name].astype(np.float32)])
    return folder


def test_without_a_text_encoder_stems_alone_are_ranked(tmp_path):
    table = probe(prepare(tmp_path / "data"))
    assert [row[:2] for row in table.rows] == [("near", "stems"), ("far", "stems")]
    near, far = (float(row[2]) for row in table.rows)
    assert near > 2 * far
    assert table.best == {(0, 2), (0, 3)}
    assert "39 training pairs" in table.title
    assert "26.3 by chance" in as_text(table)


def test_figures_are_those_of_the_first_captions_of_training_images(tmp_path):
    prepared = Prepared(prepare(tmp_path / "data"))
    train_rows = [row for row in prepared.rows if row["split"] == "train"]
    x = prepared.features_of([row["image"] for row in train_rows], ["near"], True)
    assert isinstance(x, np.ndarray)
    words = [row["captions"][0].split()[1:] for row in train_rows]
    y = np.array([[0.5 * (w in pair) for w in WORDS] for pair in words])
    y = np.concatenate([y, np.full((len(y), 1), 1 / 3)], axis=1)  # "a"
    y[:, :-1] *= 2 / 3
    row = next(row for row in probe(prepared.folder).rows if row[0] == "near")
    assert row[2:] == (f"{100 * mutual_knn(x, y, 10):.1f}", f"{cka(x, y):.3f}")


def test_encoders_joined_features_and_maps_are_ranked_too(tmp_path):
    folder = prepare(tmp_path / "data", stores=("near", "far", "near.map"))
    encoder = load_sentence_encoder(make_tiny_encoder(tmp_path / "tiny-bert"))
    update_text_store(folder / "tiny-bert.text.h5", Prepared(folder).rows, encoder)
    rows = probe(folder, [["near", "far"], ["far", "far"]]).rows
    texts = {"stems", *(f"tiny-bert, {pooling}" for pooling in ("cls", "last", "mean"))}
    assert {row[:2] for row in rows} == {(f, t) for f in ("near", "far", "near.map", "near+far") for t in texts}
    assert len(rows) == 16
    figures = {row[:2]: row[2:] for row in rows}
    near, maps = figures["near", "stems"], figures["near.map", "stems"]
    assert float(maps[1]) == pytest.approx(float(near[1]), abs=0.1), "the mean of a map is the vector"
    mutual = [float(row[2]) for row in rows]
    assert mutual == sorted(mutual, reverse=True)


def test_fewer_pairs_are_spread_over_the_split(tmp_path):
    assert "25 training pairs" in probe(prepare(tmp_path / "data"), pairs=25).title


def test_what_cannot_be_ranked_is_said(tmp_path, monkeypatch, capsys):
    with pytest.raises(BadInput, match="19 training images, too few"):
        probe(prepare(tmp_path / "few", count=20))
    with pytest.raises(NotPrepared, match="has no features"):
        probe(prepare(tmp_path / "none", stores=()))
    folder = prepare(tmp_path / "data")
    assert call(monkeypatch, train, "--probe", "--data", folder, "--features", "neer") == 2
    assert "did you mean near" in capsys.readouterr().err
    assert call(monkeypatch, train, "--probe", "--data", folder) == 0
    assert "mutual 10-NN" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "few", "none"], "nothing is trained"

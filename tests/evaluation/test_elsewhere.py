"""Runs on data that they were not trained on: what is said of it, which images they know, and what is refused."""

import csv
import io
import json
import shutil
from typing import Any

import numpy as np
import pytest

import eval as evaluation
import train
from evaluation import elsewhere
from evaluation.elsewhere import rows_alike, training_images
from features.prepared import Prepared
from tests.helpers import QUICK, call, copy_of, made_up_data, made_up_folder
from training.run import Run


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A prepared folder, and runs of two seeds trained on it."""
    root = tmp_path_factory.mktemp("elsewhere")
    made_up_folder(root / "data/home")
    with pytest.MonkeyPatch.context() as patch:
        where = ["--data", root / "data/home", "--runs", root / "runs", "--seeds", 0, 1]
        assert call(patch, train, "strong", *where, *QUICK) == 0
    return root


def rows_of(monkeypatch, capsys, *args):
    capsys.readouterr()
    assert call(monkeypatch, evaluation, *args, "--format", "json") == 0
    said = capsys.readouterr()
    return json.loads(said.out), said.err


def test_a_run_on_another_dataset_says_so(home, monkeypatch, capsys, tmp_path):
    other = made_up_folder(tmp_path / "other", "coco", prefix="new-")
    runs = f"{home}/runs/*"
    (plain,), _ = rows_of(monkeypatch, capsys, runs)
    assert "trained_on" not in plain
    (row, corrected), err = rows_of(monkeypatch, capsys, runs, "--data", other, "--correction", "nnn")
    assert (row["row"], row["trained_on"], row["dataset"]) == ("strong, trained on home", "home", "coco")
    assert corrected["row"] == "strong, trained on home + nnn (inductive)", "by the parameters that the run keeps"
    assert row["seeds"] == [0, 1]
    assert row["rsum"] == plain["rsum"], "the same images and captions under other names"
    assert "trained on" not in err, "no image of training is among them"
    moved = shutil.copytree(home / "data/home", tmp_path / "moved")
    (row,), _ = rows_of(monkeypatch, capsys, runs, "--data", moved)
    assert (row["row"], "trained_on" in row) == ("strong", False), "a folder that has moved is no other dataset"
    assert call(monkeypatch, evaluation, runs, "--data", other, "--format", "csv") == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert line["trained_on"] == "home"


def test_training_images_among_those_measured_are_counted(home, monkeypatch, capsys, tmp_path):
    """The test split of the other folder holds what was for training, one of them another image of that name."""
    splits = {"train": "val", "val": "val", "test": "train"}
    other = made_up_folder(tmp_path / "other", splits=splits, others=["train7"])
    trained = made_up_data()["train"].images
    (run, *_) = sorted((home / "runs").iterdir())
    data = Prepared(other)
    split = data.split("test", ["one"])
    assert training_images(Run.open(run), data, split) == [image for image in trained if image != "train7"]
    renamed = Prepared(made_up_folder(tmp_path / "renamed", prefix="one.parquet/0/", splits=splits))
    seen = training_images(Run.open(run), renamed, renamed.split("test", ["one"]))
    assert seen == [f"one.parquet/0/{image}" for image in trained], "the same images by other names"
    _, err = rows_of(monkeypatch, capsys, run, "--data", other)
    assert f"59 of 60 images of the test split of {other}, such as train0, were trained on" in err
    alone = copy_of(run, tmp_path / "alone", data=str(tmp_path / "gone"))
    _, err = rows_of(monkeypatch, capsys, alone, "--data", other)
    assert "60 of 60 images" in err, "known by the names in its bank alone"


class Rows:
    """A prepared folder as far as features are read from it; an id is the number of a row."""

    def __init__(self, features):
        self.features = features

    def features_of(self, ids, names, normalize):
        return self.features[[int(image) for image in ids]]


@pytest.mark.parametrize("rows", [7, 256])
def test_images_are_alike_as_a_plain_loop_finds_them(home, monkeypatch, rows):
    """Twins within SAME of their length, in any order, and images that are nearly twins."""
    monkeypatch.setattr(elsewhere, "ROWS_PER_BLOCK", rows)
    monkeypatch.setattr(elsewhere, "SKETCHED", 4)
    run, random = Run.open(next((home / "runs").iterdir())), np.random.default_rng(0)
    trained = random.normal(size=(40, 12)).astype(np.float32)
    shift = random.normal(size=(30, 12)).astype(np.float32)
    shift *= np.linalg.norm(trained[5:35], axis=1, keepdims=True) / np.linalg.norm(shift, axis=1, keepdims=True)
    measured = (trained[5:35] + shift * random.choice([0, 0.008, 0.012, 0.3], size=(30, 1)))[random.permutation(30)]
    plain = []
    for row, one in enumerate(measured):
        gaps = [np.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True))) for other in trained]
        if min(gaps) <= 0.01 * np.sqrt(sum(a**2 for a in one)):
            plain.append(row)
    assert 0 < len(plain) < 30
    sides: Any = [(Rows(side), [str(row) for row in range(len(side))]) for side in (measured, trained)]
    assert rows_alike(run, *sides) == plain


def test_two_datasets_are_two_tables(home, monkeypatch, capsys, tmp_path):
    other = made_up_folder(tmp_path / "other", "coco", prefix="new-")
    assert call(monkeypatch, train, "strong", "--data", other, "--runs", tmp_path / "runs", *QUICK) == 0
    both = [f"{home}/runs/*", f"{tmp_path}/runs/*"]
    rows, _ = rows_of(monkeypatch, capsys, *both)
    assert [(row["dataset"], row["row"]) for row in rows] == [("folder", "strong"), ("coco", "strong")]
    assert call(monkeypatch, evaluation, *both) == 0
    out = capsys.readouterr().out
    assert out.index("home, test 20 (20 images") < out.index("other, test 20 (20 images")
    rows, _ = rows_of(monkeypatch, capsys, *both, "--data", other)
    assert [row["row"] for row in rows] == ["strong, trained on home", "strong, trained on other"]
    assert [row.get("trained_on") for row in rows] == ["home", None]
    assert call(monkeypatch, evaluation, *both, "--plots", tmp_path / "plots") == 2
    assert "--plots shows one dataset, and the runs are of 2" in capsys.readouterr().err


def test_two_folders_of_one_dataset_are_two_tables_by_their_names(home, monkeypatch, capsys, tmp_path):
    """Both are called `folder`, and the second has less images in its test split than there are rows in the first."""
    small = made_up_folder(tmp_path / "small", prefix="new-", count={"test": 8})
    assert call(monkeypatch, train, "strong", "--data", small, "--runs", tmp_path / "runs", *QUICK) == 0
    both = [f"{home}/runs/*", f"{tmp_path}/runs/*"]
    for runs, names in ((both, ["home", "small"]), (both[::-1], ["small", "home"])):
        rows, _ = rows_of(monkeypatch, capsys, *runs)
        assert [(row["dataset"], row["folder"]) for row in rows] == [("folder", name) for name in names]
        assert [row["images"] for row in rows] == [{"home": 20, "small": 8}[name] for name in names]
    assert call(monkeypatch, evaluation, *both) == 0
    out = capsys.readouterr().out
    assert out.index("home, test 20 (20 images") < out.index("small, test 8 (8 images")
    named = made_up_folder(tmp_path / "named/folder")
    (row,), _ = rows_of(monkeypatch, capsys, both[0], "--data", named)
    assert "folder" not in row, "a folder of the dataset's name says nothing more"


def test_features_of_other_weights_are_refused(home, monkeypatch, capsys, tmp_path):
    other = made_up_folder(tmp_path / "other", digest="2")
    assert call(monkeypatch, evaluation, f"{home}/runs/*", "--data", other) == 2
    assert "one.h5: not the features that" in capsys.readouterr().err

"""The three scripts in order on a handful of images, with the trained weights that come with the install, and what
they say about bad input: one sentence that names the file or the flag, status 2, no traceback, nothing lost."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import eval as evaluation
import prep
import train
from features.prepared import Prepared
from tests.helpers import QUICK, ROOT, call, copy_of, draw_images, prep_args


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder and one trained run, made once."""
    folder = tmp_path_factory.mktemp("pipeline")
    draw_images(folder)
    with pytest.MonkeyPatch.context() as patch:
        assert call(patch, prep, *prep_args(folder)) == 0
        assert call(patch, train, "strong", "--data", folder / "data/folder", "--runs", folder / "runs", *QUICK) == 0
    return folder


def test_prep_leaves_what_the_contract_says(prepared):
    rows = [json.loads(line) for line in (prepared / "data/folder/captions.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    assert set(rows[0]) == {"image", "split", "captions"}
    assert all(len(row["captions"]) == 2 for row in rows)
    words = json.loads((prepared / "data/folder/vocabulary.json").read_text())
    counts = {row["word"]: row["count"] for row in words["words"]}
    assert counts["a"] == 24, "twelve training images, two captions each: val and test are not counted"
    assert not (prepared / "data/folder/efficientnet_lite0.h5.part").exists()


def test_eval_reports_both_directions(prepared, monkeypatch, capsys):
    assert call(monkeypatch, evaluation, "--runs", prepared / "runs", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["dataset"], row["split"], row["protocol"]) == ("folder", "test", "test 6")
    assert (row["images"], row["captions"]) == (6, 12)
    recalls = [row[way][f"R@{k}"] for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    assert row["rsum"] == pytest.approx(sum(recalls))
    assert call(monkeypatch, evaluation, "--runs", prepared / "runs", "--folds", 2, "--split", "val") == 0
    assert "val 3, 2 folds (6 images, 12 captions)" in capsys.readouterr().out


def test_the_epochs_of_runs_as_csv(prepared, monkeypatch, capsys, tmp_path):
    (run,) = (prepared / "runs").iterdir()
    assert call(monkeypatch, evaluation, run, "--logs", tmp_path / "logs/epochs.csv") == 0
    with open(tmp_path / "logs/epochs.csv") as file:
        lines = list(csv.DictReader(file))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["run"] for line in lines] == [run.name] * 2
    assert [(int(line["epoch"]), float(line["loss"]), float(line["rsum"])) for line in lines] == [
        (row["epoch"], row["loss"], row["rsum"]) for row in rows
    ]
    recalls = [float(line["text_to_image R@5"]) for line in lines]
    assert recalls == [row["val"]["text_to_image"]["R@5"] for row in rows]
    log = copy_of(run, tmp_path / "run") / "log.jsonl"
    log.unlink()
    assert call(monkeypatch, evaluation, tmp_path / "run", "--logs", tmp_path / "epochs.csv") == 2
    assert "keeps no log of its training, as runs that are shared do not; leave --logs out" in capsys.readouterr().err


def test_a_row_of_one_run_is_called_after_the_run(prepared, monkeypatch, capsys):
    (run,) = (prepared / "runs").iterdir()
    assert call(monkeypatch, evaluation, run, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["run"], row["row"], row["runs"], row["seeds"]) == (run.name, "strong", [run.name], [0])
    assert "std" not in row
    low, high = row["interval"]["rsum"]
    assert low <= row["rsum"] <= high
    assert call(monkeypatch, evaluation, run) == 0
    assert f"strong: {run.name}" in capsys.readouterr().out.splitlines()


def test_captions_per_image(prepared, monkeypatch, capsys):
    args = ["--runs", prepared / "runs", "--format", "json", "--captions-per-image"]
    for kept, captions, name in (
        (1, 6, "test 6, 1 caption an image"),
        (0, 12, "test 6"),
        (2, 12, "test 6, 2 captions"),
    ):
        assert call(monkeypatch, evaluation, *args, kept) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["protocol"].startswith(name)
        assert row["captions"] == captions


def test_what_can_stand_in_one_table(prepared, monkeypatch, capsys, tmp_path):
    (run,) = (prepared / "runs").iterdir()
    twice = copy_of(run, tmp_path / "twice")
    assert call(monkeypatch, evaluation, run, twice) == 2
    assert "are the same run" in capsys.readouterr().err
    # a prepared folder of the same dataset and name whose test split lacks an image
    lines = (prepared / "data/folder/captions.jsonl").read_text().splitlines()
    assert '"test"' in lines.pop(3)
    less = tmp_path / "folder"
    less.mkdir()
    for path in (prepared / "data/folder").iterdir():
        (less / path.name).write_bytes(path.read_bytes())
    (less / "captions.jsonl").write_text("\n".join(lines))
    captions = Prepared(less).digest()  # as if they had been trained on it
    elsewhere = copy_of(run, tmp_path / "elsewhere", seed=1, data=str(less), captions=captions)
    for runs in ((run, elsewhere), (elsewhere, run)):
        assert call(monkeypatch, evaluation, *runs, "--format", "json") == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["run"]: (row["images"], row["seeds"]) for row in rows} == {
            run.name: (6, [0]),
            "elsewhere": (5, [1]),
        }, "a table each, whatever comes first"
    both = [copy_of(run, tmp_path / name, seed=seed, captions=captions) for seed, name in enumerate(("zero", "one"))]
    assert call(monkeypatch, evaluation, *both, "--data", less, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["images"], row["seeds"], row["std"]["rsum"]) == (5, [0, 1], 0)


def test_features_of_several_runs_are_read_once(prepared, monkeypatch, tmp_path):
    (run,) = (prepared / "runs").iterdir()
    for seed in range(1, 4):
        copy_of(run, tmp_path / f"copy{seed}", seed=seed)
    read = []
    split = Prepared.split

    def counted(self, *args):
        read.append(args)
        return split(self, *args)

    monkeypatch.setattr(Prepared, "split", counted)
    assert call(monkeypatch, evaluation, f"{tmp_path}/*") == 0
    assert read == [("test", ("efficientnet_lite0",), True)]


def test_eval_on_val_says_what_training_said(prepared, monkeypatch, capsys):
    (run,) = (prepared / "runs").iterdir()
    assert call(monkeypatch, evaluation, run, "--split", "val", "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    result = json.loads((run / "result.json").read_text())
    assert {key: row[key] for key in ("rsum", "image_to_text", "text_to_image")} == {
        key: result[key] for key in ("rsum", "image_to_text", "text_to_image")
    }


def test_repeating_does_nothing_again(prepared, monkeypatch):
    def times():
        files = [path for path in prepared.rglob("*") if path.suffix in (".h5", ".safetensors", ".pt", ".jsonl")]
        return {path: path.stat().st_mtime_ns for path in files if path.name != "captions.jsonl"}

    before = times()
    assert call(monkeypatch, prep, *prep_args(prepared)) == 0
    assert (
        call(monkeypatch, train, "strong", "--data", prepared / "data/folder", "--runs", prepared / "runs", *QUICK) == 0
    )
    assert times() == before


def test_several_recipes_seeds_and_values_in_one_command(prepared, monkeypatch, tmp_path, capsys):
    where = ["--data", prepared / "data/folder", "--features", "efficientnet_lite0", "--runs", tmp_path]
    sweep = ["two_branch", "vsepp", "--seeds", "0", "1", *where]
    small = [
        "--set",
        "training.epochs=1",
        "embed_dim=8",
        "text.word_dim=4",
        "training.batch_size=8",
        "loss.margin=0.1,0.2",
    ]
    assert call(monkeypatch, train, *sweep, *small) == 0
    assert len(list(tmp_path.glob("*/result.json"))) == 8
    capsys.readouterr()
    assert call(monkeypatch, evaluation, f"{tmp_path}/*", "--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["row"] for row in rows] == [
        *("two_branch loss.margin=0.1", "two_branch loss.margin=0.2"),
        *("vsepp loss.margin=0.1", "vsepp"),
    ]
    assert all(row["seeds"] == [0, 1] and row["run"] == row["row"] for row in rows)
    singles = []
    for run in rows[0]["runs"]:
        assert call(monkeypatch, evaluation, tmp_path / run, "--format", "json") == 0
        singles += json.loads(capsys.readouterr().out)
    for way in ("image_to_text", "text_to_image"):
        for column, value in rows[0][way].items():
            pair = [row[way][column] for row in singles]
            assert value == pytest.approx(sum(pair) / 2)
            assert rows[0]["std"][way][column] == pytest.approx(abs(pair[0] - pair[1]) / 2**0.5)
    # what is compared, in every format; published figures of this dataset there are none
    for form in ("text", "markdown", "latex", "csv", "json"):
        against = ["--against", "vsepp", "--paper", "--format", form]
        assert call(monkeypatch, evaluation, f"{tmp_path}/*", *against) == 0
        said = capsys.readouterr()
        assert "nothing published is known for folder, test 6" in said.err
        assert "vsepp" in said.out.replace("\\_", "_")
    assert sum("against" in row for row in json.loads(said.out)) == 3
    for wanted, sentence in (("vsep", "did you mean vsepp"), ("two*", "stands for several rows")):
        assert call(monkeypatch, evaluation, f"{tmp_path}/*", "--against", wanted) == 2
        assert sentence in capsys.readouterr().err
    # a half-finished run beside finished ones
    (tmp_path / rows[3]["runs"][1] / "result.json").unlink()
    assert call(monkeypatch, evaluation, f"{tmp_path}/*", "--format", "json") == 0
    said = capsys.readouterr()
    assert f"left out: {tmp_path / rows[3]['runs'][1]}: its training has not finished" in said.err
    assert [row["seeds"] for row in json.loads(said.out)] == [[0, 1], [0, 1], [0, 1], [0]]


def test_joined_features_and_precomputed_ones(prepared, monkeypatch, tmp_path):
    rows = [json.loads(line) for line in (prepared / "data/folder/captions.jsonl").read_text().splitlines()]
    features = tmp_path / "mine.npy"
    np.save(features, np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32))
    ids = tmp_path / "ids.txt"
    ids.write_text("\n".join(row["image"] for row in rows))
    assert call(monkeypatch, prep, *prep_args(prepared, "--precomputed", features, "--ids", ids)) == 0
    joined = ["--features", "efficientnet_lite0", "mine", "--data", prepared / "data/folder", "--runs", tmp_path]
    assert call(monkeypatch, train, *joined, *QUICK) == 0
    (run,) = tmp_path.glob("strong-*")
    assert "efficientnet_lite0+mine" in run.name
    assert call(monkeypatch, evaluation, run) == 0
    np.save(features, np.ones((24, 5), np.float32))
    assert call(monkeypatch, prep, *prep_args(prepared, "--precomputed", features, "--ids", ids)) == 2, "another file"
    assert call(monkeypatch, prep, *prep_args(prepared, "--precomputed", features, "--ids", ids, "--fresh")) == 0
    assert call(monkeypatch, evaluation, run) == 2, "not the features the run was trained on"
    assert call(monkeypatch, train, *joined, *QUICK) == 2
    (prepared / "data/folder/mine.h5").unlink()


def test_unreadable_images_are_named_and_the_rest_is_kept(monkeypatch, tmp_path, capsys):
    draw_images(tmp_path)
    good = (tmp_path / "images/5.png").read_bytes()
    (tmp_path / "images/5.png").write_bytes(good[:60])
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "cannot be read: 5.png" in said
    assert "--skip-unreadable" in said
    assert (tmp_path / "data/folder/efficientnet_lite0.h5.part").is_dir(), "what was done is kept"
    (tmp_path / "images/5.png").write_bytes(good)
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    (tmp_path / "images/5.png").write_bytes(good[:60])
    assert call(monkeypatch, prep, *prep_args(tmp_path, "--skip-unreadable", "--fresh")) == 0
    assert len((tmp_path / "data/folder/captions.jsonl").read_text().splitlines()) == 23


def test_a_listed_image_that_is_missing_is_left_out_with_the_unreadable_ones(monkeypatch, tmp_path, capsys):
    draw_images(tmp_path)
    (tmp_path / "images/5.png").unlink()
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 2
    said = capsys.readouterr().err
    assert "1 listed images are not there, the first 5.png; point --images" in said
    assert "or go on without them with --skip-unreadable" in said
    assert call(monkeypatch, prep, *prep_args(tmp_path, "--skip-unreadable")) == 0
    said = capsys.readouterr().err.splitlines()
    assert "cannot be read: 5.png: no such file" in said
    assert "1 images that cannot be read left out" in said
    assert len(Prepared(tmp_path / "data/folder").rows) == 23
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / "images").mkdir()
    assert call(monkeypatch, prep, *prep_args(tmp_path, "--skip-unreadable")) == 2, "all of them: the wrong folder"
    assert "24 listed images are not there" in capsys.readouterr().err


def test_other_images_do_not_replace_a_prepared_folder_unasked(monkeypatch, tmp_path, capsys):
    draw_images(tmp_path)
    draw_images(tmp_path / "other")
    text = (tmp_path / "captions.csv").read_text()
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    before = (tmp_path / "data/folder/captions.jsonl").read_bytes()
    captions = (tmp_path / "other/captions.csv", text.replace("a ", "another "))
    captions[0].write_text(captions[1])
    other = ["folder", "--images", tmp_path / "other/images", "--captions", captions[0], "--data", tmp_path / "data"]
    other += ["--workers", 0]
    capsys.readouterr()
    assert call(monkeypatch, prep, *other) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"data/folder: holds 24 other images from {tmp_path}/images, whose captions and features would be lost" in last
    )
    assert "--name, or replace those with --fresh" in last
    assert (tmp_path / "data/folder/captions.jsonl").read_bytes() == before
    assert call(monkeypatch, prep, *other, "--name", "other") == 0
    assert call(monkeypatch, prep, *other, "--fresh") == 0
    assert (tmp_path / "data/folder/captions.jsonl").read_bytes() != before
    # what is still the same dataset: new captions of the same images, a folder that has moved, more of it
    captions[0].write_text(text.replace("a ", "one "))
    assert call(monkeypatch, prep, *other) == 0
    (tmp_path / "other/images").rename(tmp_path / "moved")
    other[2] = tmp_path / "moved"
    assert call(monkeypatch, prep, *other) == 0
    captions[0].write_text("\n".join(captions[0].read_text().splitlines()[:33]) + "\n")
    assert call(monkeypatch, prep, *other) == 0


BAD_PREP = [
    (["flickr9k"], "did you mean flickr8k"),
    (["folder"], "--captions is missing"),
    (["folder", "--captions", "{captions}"], "--images is missing"),
    (["folder", "--captions", "{captions}", "--images", "{root}/nowhere"], "nowhere: no such folder"),
    (["folder", "--captions", "{root}/none.csv", "--images", "{images}"], "none.csv: no such file"),
    (["folder", "--captions", "{images}/0.png", "--images", "{images}"], "0.png"),
    (["flickr8k", "--captions", "{captions}", "--images", "{root}"], "24 listed images are not there, the first 0.png"),
    (["folder", "--captions", "{captions}", "--images", "{images}", "--backbone", "inception"], "inception"),
    (["folder", "--captions", "{captions}", "--images", "{images}", "--weights", "{captions}"], "captions.csv"),
    (["folder", "--captions", "{captions}", "--images", "{images}", "--language", "klingon"], "--language klingon"),
    (["folder", "--captions", "{captions}", "--images", "{images}", "--data", "{captions}/x"], "--data"),
    (["folder", "--captions", "{captions}", "--precomputed", "{root}/none.npy"], "none.npy"),
    (["--images", "{images}"], "--images goes with a dataset of yours"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--workers", "-1"], "--workers -1"),
    (["--name", "../x"], "--name ../x"),
    (
        ["folder", "--captions", "{captions}", "--precomputed", "{captions}", "--layer", "x"],
        "--layer goes with a backbone",
    ),
]
BAD_TRAIN = [
    (["stronk"], "did you mean strong"),
    (["strong", "--set", "loss.margn=1"], "did you mean loss.margin"),
    (["strong", "--features", "vgg19"], "--backbone vgg19"),
    (["strong", "--seeds", "-1"], "--seeds -1"),
    (["strong", "--threads", "0"], "--threads 0"),
    (["strong", "--threads", "99999999999"], "--threads 99999999999: takes a number from 1 to 1,024"),
    (["strong", "--set", "loss.margin="], "--set loss.margin takes a number, not ''"),
    (["strong", "--set", "embed_dim=999999999999"], "dim"),
    (["strong", "--data", "{root}/images"], "not a prepared folder"),
    (["strong", "--data", "{root}/data/foldr"], "/data/folder?"),
    (["strong", "--runs", "{captions}/x"], "--runs"),
]
BAD_EVAL = [
    (["nosuchrun"], "nosuchrun: no such run folder"),
    (["{root}/images"], "not a run folder"),
    (["--folds", "4"], "--folds 4"),
    (["--captions-per-image", "-1"], "--captions-per-image -1"),
    (["no*such*run"], "no*such*run: no run matches; looked for folders of that pattern"),
    (["--against", "stronk"], "--against stronk: no such row in this table; did you mean strong"),
    (["--data", "{root}/images"], "not a prepared folder"),
]
BAD = [(m, a, s) for m, cases in ((prep, BAD_PREP), (train, BAD_TRAIN), (evaluation, BAD_EVAL)) for a, s in cases]


@pytest.mark.parametrize(("module", "args", "sentence"), BAD, ids=[f"{m.__name__} {' '.join(a)}" for m, a, _ in BAD])
def test_bad_input_is_one_sentence_and_status_2(prepared, monkeypatch, capsys, module, args, sentence):
    places = {"root": prepared, "images": prepared / "images", "captions": prepared / "captions.csv"}
    args = [arg.format(**places) for arg in args]
    defaults = {
        prep: {"--data": prepared / "other"},
        train: {"--data": prepared / "data/folder", "--runs": prepared / "other_runs"},
        evaluation: {"--runs": prepared / "runs"},
    }[module]
    args += [str(word) for flag, value in defaults.items() if flag not in args for word in (flag, value)]
    assert call(monkeypatch, module, *args) == 2
    said = capsys.readouterr()
    assert sentence in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert said.out == ""


def test_a_run_belongs_to_its_captions_and_splits(monkeypatch, tmp_path, capsys):
    """Another dataset in a folder of the same name, or other splits, is told, in training and in evaluation."""
    draw_images(tmp_path)
    runs = ["--runs", tmp_path / "runs"]
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    assert call(monkeypatch, train, "--data", tmp_path / "data/folder", *runs, *QUICK) == 0
    text = (tmp_path / "captions.csv").read_text()
    swapped = {",train": ",val", ",val": ",train"}
    lines = [
        f"{line.rsplit(',', 1)[0]}{swapped.get(',' + line.rsplit(',', 1)[1], ',' + line.rsplit(',', 1)[1])}"
        for line in text.splitlines()
    ]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    capsys.readouterr()
    assert call(monkeypatch, train, "--data", tmp_path / "data/folder", *runs, *QUICK) == 2
    assert "other captions or splits" in capsys.readouterr().err
    assert call(monkeypatch, evaluation, *runs) == 2
    assert "other captions or splits" in capsys.readouterr().err


def test_a_damaged_vocabulary_is_built_again(monkeypatch, tmp_path, capsys):
    draw_images(tmp_path)
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    path = tmp_path / "data/folder/vocabulary.json"
    whole = path.read_text()
    path.write_text(whole[:50])
    assert call(monkeypatch, train, "--data", tmp_path / "data/folder", "--runs", tmp_path / "runs", *QUICK) == 2
    assert "prepare the dataset again" in capsys.readouterr().err
    assert call(monkeypatch, prep, *prep_args(tmp_path)) == 0
    assert path.read_text() == whole


def test_a_run_that_is_half_finished_is_named(prepared, monkeypatch, capsys, tmp_path):
    (run,) = (prepared / "runs").iterdir()
    copy = tmp_path / run.name
    copy.mkdir()
    for name in ("recipe.toml", "vocabulary.json", "last.pt", "log.jsonl"):
        (copy / name).write_bytes((run / name).read_bytes())
    assert call(monkeypatch, evaluation, copy) == 2
    assert "has not finished" in capsys.readouterr().err


def test_weights_of_a_run_cut_short_are_named(prepared, monkeypatch, capsys, tmp_path):
    (run,) = (prepared / "runs").iterdir()
    copy = tmp_path / run.name
    copy.mkdir()
    for path in run.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "model.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:1000])
    assert call(monkeypatch, evaluation, copy) == 2
    assert "model.safetensors: cut short" in capsys.readouterr().err


def test_as_a_command(prepared):
    """For real: a process of its own, its status and its streams."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "eval.py", "--runs", prepared / "runs"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert "folder, test 6 (6 images, 12 captions)" in done.stdout
    done = subprocess.run([*command, "none"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("eval.py: none: no such run folder")
    assert len(done.stderr.splitlines()) == 1

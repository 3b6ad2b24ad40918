"""Sweeps: one after the other or side by side, the same runs; what is stopped anywhere continues to the same table."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch

from features.datasets.dataset import Dataset, Image
from features.images.store import write_store
from features.prepared import Prepared, write_prepared
from features.text.vocabulary import Vocabulary
from settings import Settings, override
from tests.helpers import MADE_UP_WORDS, ROOT, made_up_data
from training import sweep as sweeping
from training.plan import parse_changes, plan_run
from utils import BadInput

SMALL = ["embed_dim=8", "text.word_dim=4", "training.batch_size=16", "training.epochs=4", "training.lr=0.01"]
SWEEP = ["vse0", "two_branch", "--seeds", "0", "1", "--set", *SMALL]
RUNS = 4


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder with two stores of features that say something about the captions."""
    folder = tmp_path_factory.mktemp("sweep") / "data" / "made_up"
    folder.mkdir(parents=True)
    images, ids, rows = [], [], []
    for name, split in {**made_up_data(), "test": made_up_data()["val"]}.items():
        for number, image in enumerate(split.images):
            captions = [c for c, row in zip(split.captions, split.image_of_caption, strict=True) if row == number]
            images.append(Image(f"{name}-{image}", None, name, tuple(captions)))
            ids.append(f"{name}-{image}")
            rows.append(split.features[number])
    dataset = Dataset("folder", tuple(images), ())
    write_prepared(folder, dataset, None, Vocabulary.build(MADE_UP_WORDS, "english"))
    about: dict[str, str | int] = {
        "backbone": "one",
        "layer": "precomputed",
        "digest": "1",
        "transform": "",
        "weights": "",
        "map": 0,
        "crops": 1,
    }
    for name, features in (("one", np.stack(rows)), ("two", np.stack(rows)[:, ::-1] ** 2)):
        write_store(folder / f"{name}.h5", ids, (12,), "float32", {**about, "backbone": name}, [features])
    return folder


def command(prepared, runs, *more):
    where = ["--data", str(prepared), "--runs", str(runs), "--features", "one"]
    return [sys.executable, "train.py", *SWEEP, *where, *more]


def train(prepared, runs, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(prepared, runs, *more), cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


def table(runs, prepared):
    done = subprocess.run(
        [sys.executable, "eval.py", f"{runs}/*", "--format", "json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def weights(runs):
    return {folder.name: safetensors.torch.load_file(folder / "model.safetensors") for folder in sorted(runs.iterdir())}


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert all((a[key] == b[key]).all() for a, b in zip(one.values(), other.values(), strict=True) for key in a)


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed") / "runs"
    done = train(prepared, runs)
    assert done.returncode == 0, done.stderr
    assert len(list(runs.iterdir())) == RUNS
    left = re.findall(r"^(\d) of 4 runs left, about \d+ s$", done.stderr, re.MULTILINE)
    assert left == ["3", "2", "1"], "after every run but the last"
    assert "\r" not in done.stderr, "no bar in a redirected log"
    return runs


def test_side_by_side_gives_the_same_runs(prepared, undisturbed, tmp_path):
    done = train(prepared, tmp_path / "runs", "--jobs", "3")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"runs left, about \d+ s$", done.stderr, re.MULTILINE)) == RUNS - 1
    assert_same(undisturbed, tmp_path / "runs")
    again = train(prepared, tmp_path / "runs", "--jobs", "3")
    assert f"{RUNS} of {RUNS} runs finished" in again.stderr
    assert "epoch" not in again.stderr, "a second time, nothing is trained"


@pytest.mark.parametrize(("jobs", "after"), [("1", 6), ("2", 9)])
def test_a_sweep_killed_anywhere_gives_the_same_table(prepared, undisturbed, tmp_path, jobs, after):
    """Killed without warning once `after` epochs were logged, then the command is repeated."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(prepared, tmp_path / "runs", "--jobs", jobs),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    epochs = 0
    assert process.stderr is not None
    for line in process.stderr:
        epochs += "val rsum" in line
        if epochs == after:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    for _ in range(20):  # processes side by side notice the end of their parent within a second
        done = train(prepared, tmp_path / "runs", "--jobs", jobs)
        if "another program" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    assert_same(undisturbed, tmp_path / "runs")

    def figures(runs):
        return [{k: v for k, v in row.items() if k != "against"} for row in table(runs, prepared)]

    assert figures(tmp_path / "runs") == figures(undisturbed)


def test_several_sets_of_features_are_runs_of_their_own(prepared, undisturbed, tmp_path):
    """Two runs of each set on three processes: the next set is read while the first two runs are trained."""
    sets = ["--features", "two", "--features", "one", "two", "--seeds", "0"]
    for jobs in ("1", "3"):
        done = train(prepared, tmp_path / jobs, *sets, "--jobs", jobs)
        assert done.returncode == 0, done.stderr
    names = [folder.name.split("-")[2] for folder in (tmp_path / "3").iterdir()]
    assert sorted(names) == ["one", "one", "one+two", "one+two", "two", "two"]
    assert_same(tmp_path / "1", tmp_path / "3")
    trained, expected = weights(tmp_path / "3"), weights(undisturbed)
    ours = [name for name in trained if name in expected]
    assert len(ours) == 2
    assert all((trained[name][key] == expected[name][key]).all() for name in ours for key in expected[name])
    one, two = (trained[next(name for name in trained if f"-{kind}-" in name)] for kind in ("one", "two"))
    assert any((one[key] != two[key]).any() for key in one), "or features could be mistaken for others unseen"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_features_that_cannot_be_read_do_not_keep_the_others_from_theirs(prepared, tmp_path, jobs):
    """They come second, while runs of the first are trained, and before the third."""
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    shutil.copy(data / "one.h5", data / "three.h5")
    two = Prepared(data).store("two")
    rows = two.read(np.arange(len(two.ids)))
    write_store(data / "two.h5", two.ids[1:], two.shape, two.dtype, two.attributes, [rows[1:]])
    done = train(data, tmp_path / "runs", "--features", "two", "--features", "three", "--jobs", jobs)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2
    assert f"{RUNS} of {3 * RUNS} runs could not be trained, all others are finished" in last
    assert "Traceback" not in done.stderr
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 2 * RUNS
    arguments = command(data, tmp_path / "alone", "--jobs", jobs)
    arguments[arguments.index("--features") + 1] = "two"
    alone = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    last = alone.stderr.strip().splitlines()[-1]
    assert alone.returncode == 2
    assert "Traceback" not in alone.stderr
    assert last.startswith(f"train.py: {data}/two.h5: "), "what keeps all of them from it is said once, by itself"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_fails_does_not_keep_the_others_from_theirs(prepared, undisturbed, tmp_path, jobs):
    shutil.copytree(undisturbed, tmp_path / "runs")
    folders = sorted((tmp_path / "runs").iterdir())
    for folder in folders[:3]:
        (folder / "result.json").unlink()
    for folder in folders[:2]:
        (folder / "last.pt").write_bytes(b"damaged")
    done = train(prepared, tmp_path / "runs", "--jobs", jobs)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert f"2 of {RUNS} runs could not be trained, all others are finished" in last
    assert all(folder.name in last for folder in folders[:2])
    assert (folders[2] / "result.json").is_file()
    assert "Traceback" not in done.stderr


def test_a_killed_process_of_a_sweep_is_named(tmp_path, monkeypatch, prepared):
    data = Prepared(prepared)
    settings = override(Settings(), {"embed_dim": 8, "training.epochs": 1})
    plans = [plan_run(data, settings, recipe="vse0", features=["one"], seed=n, root=tmp_path) for n in range(3)]
    train = sweeping.train

    def deadly(plan, *rest, **more):
        if plan.info.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return train(plan, *rest, **more)

    monkeypatch.setattr(sweeping, "train", deadly)
    with pytest.raises(BadInput, match=r"1 of 3 runs could not be trained.*want of memory"):
        sweeping.sweep(plans, data, jobs=2)
    assert [(plan.folder / "result.json").is_file() for plan in plans] == [True, False, True]


def test_a_full_disk_is_a_sentence_of_a_sweeps_processes_too(tmp_path, monkeypatch, prepared, capfd):
    data, settings = Prepared(prepared), override(Settings(), {"embed_dim": 8, "training.epochs": 1})
    plans = [plan_run(data, settings, recipe="vse0", features=["one"], seed=n, root=tmp_path) for n in range(2)]

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"2 of 2 runs .*: /.*/vocabulary.json: No space left on device; check that"):
        sweeping.sweep(plans, data, jobs=2)
    assert "Traceback" not in capfd.readouterr().err


def test_how_long_a_sweep_goes_on(tmp_path, prepared, monkeypatch, capsys):
    """Of the seconds that its processes had for each epoch until now, those of a run in turn."""
    data, settings = Prepared(prepared), override(Settings(), {"training.epochs": 10})
    plans = [plan_run(data, settings, recipe="a", features=["one"], seed=n, root=tmp_path) for n in range(3)]
    alone, two = (sweeping.Sweep(plans, sweeping.SplitCache(data), sweeping.train, jobs) for jobs in (1, 2))
    assert alone.time_left(5.0) == "", "before the first epoch nobody knows"
    for runs in (alone, two):
        runs.on_epoch(plans[0], 4, "continues after epoch 4")
        runs.on_epoch(plans[0], 5, "an epoch")
    alone.trained = two.trained = 5
    assert alone.time_left(5.0) == ", about 25 s", "25 epochs of a second"
    assert two.time_left(5.0) == ", about 25 s", "of two seconds, two at a time"
    two.left = {plans[0].folder: 1, plans[1].folder: 9}
    assert two.time_left(5.0) == ", about 18 s", "nine of them one after the other"


def test_quiet_says_warnings_errors_and_the_result_alone(prepared, tmp_path):
    done = train(prepared, tmp_path / "runs", "--quiet")
    folders = sorted((tmp_path / "runs").iterdir())
    results = [(folder.name, json.loads((folder / "result.json").read_text())) for folder in folders]
    lines = [f"{name}: val rsum {r['rsum']:.1f} (epoch {r['best_epoch']} of {r['epochs']})" for name, r in results]
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, lines)
    why = "its answers get no probabilities: val has 20 images, and a curve over fewer than 50 says little"
    remedy = "prepare more images, or a larger val, and train again"
    assert sorted(done.stderr.splitlines()) == [f"{folder.name}: {why}; {remedy}" for folder in folders], "a warning"
    (folder, *_) = folders
    (folder / "result.json").unlink()
    (folder / "last.pt").write_bytes(b"damaged")
    done = train(prepared, tmp_path / "runs", "--quiet")
    assert done.returncode == 2
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == [folder.name, "train.py"]


def test_changes_multiply():
    assert parse_changes([]) == [{}]
    changes = parse_changes(["loss.margin=0.1,0.2", "text.stem=true", "similarity=cosine,order"])
    assert len(changes) == 4
    assert changes[0] == {"loss.margin": 0.1, "text.stem": True, "similarity": "cosine"}
    assert changes[3] == {"loss.margin": 0.2, "text.stem": True, "similarity": "order"}


def test_a_value_may_be_empty():
    assert parse_changes(["text.encoder="]) == [{"text.encoder": ""}]


@pytest.mark.parametrize("words", [["loss.margin"], ["embed_dim=1", "embed_dim=2"]])
def test_changes_that_cannot_be_read(words):
    with pytest.raises(BadInput, match="`set`"):
        parse_changes(words)


def test_starting_over_goes_through_no_link(prepared, undisturbed, tmp_path):
    """What a run folder links to is somebody's: its result stays."""
    shutil.copytree(undisturbed, tmp_path / "kept")
    (tmp_path / "runs").mkdir()
    for folder in (tmp_path / "kept").iterdir():
        (tmp_path / "runs" / folder.name).symlink_to(folder)
    done = train(prepared, tmp_path / "runs", "--fresh")
    assert done.returncode == 2
    assert "is a symbolic link in place of a folder; remove it and repeat the command" in done.stderr
    assert "Traceback" not in done.stderr
    assert_same(undisturbed, tmp_path / "kept")

"""Training: every caption once, exact resume after a kill, the best on val kept, collapse noticed, stops in time."""

import doctest
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from features.images.views import FeatureViews
from losses import hinge
from metrics import similarity
from metrics.ranks import metrics_of, ranks_by_block
from metrics.similarity import exact_cosine_scores
from model import InputDims, TwoBranch
from settings import Settings, override
from tests.helpers import ROOT, interrupted, made_up_data, plan_small, train_small
from training import sweep
from training import trainer as training
from training.run import Run
from training.schedule import batch_size_for, busy_hint, epoch_batches, epochs_of, out_of_patience, rate_at
from training.steps import draw_mixup, structure_loss
from training.sweep import train
from training.trainer import Trainer, chance_rsum, collapse, loss_of_epoch, new_optimizer, summary
from utils import BadInput, lock_folder


def files(folder):
    """Everything a run leaves that does not tell the time."""
    checkpoint = torch.load(folder / "last.pt", weights_only=True)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rows == checkpoint["log"], "log.jsonl has every epoch"
    log = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    return safetensors.torch.load_file(folder / "model.safetensors"), checkpoint, log, result


def assert_same_runs(one, other):
    weights, checkpoint, log, result = files(one)
    others, other_checkpoint, other_log, other_result = files(other)
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights), "best weights differ"
    for part in ("model", "optimizer", "average"):
        flat, other_flat = (json.dumps(c[part], default=lambda t: t.tolist()) for c in (checkpoint, other_checkpoint))
        assert flat == other_flat, f"{part} differs"
    assert log == other_log
    assert result == other_result
    assert (one / "bank.safetensors").read_bytes() == (other / "bank.safetensors").read_bytes()


def test_the_example_is_true():
    assert doctest.testmod(training).failed == 0


VAL = {"image_to_text": {"R@1": 10.0}, "text_to_image": {"R@1": 9.04}}
ROW = {"epoch": 3, "loss": 1.5, "rsum": 250.04, "val": VAL, "collapsed": False, "seconds": 2.04}


def test_what_is_said_of_an_epoch():
    said = "run  epoch  3/30  loss     1.500  val rsum 250.0  R@1 10.0  9.0    2.0 s"
    assert summary("run", ROW, 30) == said
    assert summary("run", {**ROW, "loss": None}, 30) == said.replace("loss     1.500  ", "")
    assert summary("run", ROW, 30, 4000.0) == f"{said}, 1 h 7 min left"


def test_how_long_a_run_goes_on(tmp_path):
    """At the pace of its last three epochs, until the last one, or until patience ends it."""
    trainer = Trainer(*plan_small(tmp_path, training__epochs=8, training__patience=2))
    assert trainer.seconds_left == 0.0, "before the first epoch nobody knows"
    for epoch, (seconds, score, left) in enumerate(((9.0, 1.0, 63.0), (3.0, 2.0, 36.0), (3.0, 1.5, 25.0)), 1):
        trainer.log.append({**ROW, "epoch": epoch, "seconds": seconds, "rsum": score})
        assert trainer.seconds_left == left
    trainer.log.append({**ROW, "epoch": 4, "rsum": 1.0})
    assert trainer.seconds_left == 0.0, "patience is at its end"
    trainer.log = [{**ROW, "loss": None}]
    assert trainer.seconds_left == 0.0, "a closed form is over at once"


def test_a_run_keeps_its_threads(tmp_path, monkeypatch):
    """Recorded for every epoch, taken up again, and changed where others are asked for."""
    plan, data = plan_small(tmp_path / "run", text__branch="onehot", training__epochs=6)
    steps = len(Trainer(plan, data).batches())
    with interrupted(monkeypatch, 2 * steps):
        train(plan, data, threads=2)
    assert torch.get_num_threads() == 1, "as before"
    with interrupted(monkeypatch, steps):
        train(plan, data)
    lines = []
    train(plan, data, threads=1, on_epoch=lambda epochs, line, *_: lines.append(line))
    assert lines[0] == "run: continues after epoch 3 with other threads, 1 for 2: no longer to the same bits"
    rows = [json.loads(line) for line in (plan.folder / "log.jsonl").read_text().splitlines()]
    assert [row["threads"] for row in rows] == [2, 2, 2, 1, 1, 1]


def test_a_slow_epoch_on_a_busy_machine_has_a_hint(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    loads = iter([6.0, 5.9, 9.0, 9.0])
    monkeypatch.setattr(os, "getloadavg", lambda: (next(loads), 0, 0))
    assert busy_hint(10.0, 2).startswith("this machine is busy (load 6.0 on 4 cores)")
    assert [busy_hint(10.0, 2), busy_hint(9.9, 2), busy_hint(10.0, 1)] == [""] * 3
    monkeypatch.setattr(training, "busy_hint", lambda seconds, threads: f"hint {threads}")
    lines = []
    train_small(tmp_path / "run", text__branch="onehot", on_epoch=lambda epochs, line: lines.append((epochs, line)))
    assert [said for said in lines if "hint" in said[1]] == [(1, "hint 1")], "once"


def test_what_is_said_of_a_collapse():
    def said(lr, **changes):
        settings = override(Settings(), {name.replace("__", "."): value for name, value in changes.items()})
        return collapse("run", ROW, settings, lr)

    def ways(**changes):
        return said(None, **changes).partition(" Try ")[2]

    assert said(0.01).endswith(" Training begins anew, with a rate of 0.01.")
    assert said(0.01, loss__negatives="hardest").endswith("0.01 and with one more epoch of the sum over negatives.")
    warm_up = "a warm-up with `loss.warmup_epochs`=1 or more, or a smaller `training.lr`"
    assert ways() == "a smaller `training.lr`."
    assert ways(loss__negatives="hardest") == f"{warm_up}."
    assert ways(loss__negatives="semihard", image__normalize=False) == f"{warm_up}, or `image.normalize`=true."


def test_patience_counts_from_the_first_of_equals():
    log = [{"rsum": score} for score in [1.0, 3.0, 2.0, 3.0]]
    assert [out_of_patience(log, patience) for patience in (0, 1, 2, 3)] == [False, True, True, False]
    assert not out_of_patience([], 2)


def test_chance_and_epochs_by_hand():
    assert chance_rsum(4) == 2 * (25 + 100 + 100)
    closed = override(Settings(), {"loss.name": "cca", "text.branch": "onehot", "text.bias": True})
    assert (epochs_of(closed), epochs_of(Settings())) == (1, 30)


def test_a_transformer_has_a_share_of_the_rate():
    model: Any = torch.nn.ModuleDict(
        {"transformer": torch.nn.Linear(2, 3), "linear": torch.nn.Linear(3, 2, bias=False)}
    )
    settings = override(Settings(), {"training.lr": 0.01, "text.finetune_lr": 0.002, "training.weight_decay": 0.5})
    rest, inner = new_optimizer(model, settings).param_groups
    assert [*map(id, rest["params"])] == [*map(id, model["linear"].parameters())]
    assert [*map(id, inner["params"])] == [*map(id, model["transformer"].parameters())]
    assert (inner["share"], inner["weight_decay"], rest["lr"]) == (pytest.approx(0.2), 0.5, 0.01)
    assert len(new_optimizer(model["linear"], settings).param_groups) == 1
    decoupled = override(settings, {"training.optimizer": "adamw"})
    assert isinstance(new_optimizer(model["linear"], decoupled), torch.optim.AdamW)
    assert not isinstance(new_optimizer(model["linear"], settings), torch.optim.AdamW)


def test_an_epoch_sets_seed_mode_and_rate_of_every_step(tmp_path, monkeypatch, capsys):
    seen: list[float] = []
    seeds: list[int] = []
    trainer = Trainer(*plan_small(tmp_path, seed=3, training__schedule="cosine"))

    def step(self, rows):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return 6.0

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    trainer.optimizer.param_groups[0]["share"] = 0.5
    trainer.model.eval()
    trainer.log = [ROW]
    assert trainer.train_epoch() == 6.0
    assert trainer.model.training
    trainer.validate()
    assert not trainer.model.training
    assert seeds == [3_000_011]  # 3 x 1,000,003, and 1 + 1 epochs: those that docs/RESULTS.md was measured with
    steps = len(trainer.batches())
    rates = [0.01 * (1 + math.cos(math.pi * (1 + step / steps) / 4)) / 2 for step in range(steps)]
    assert seen == pytest.approx([0.5 * rate for rate in rates])
    assert capsys.readouterr().err == "", "no bar unless one is asked for"
    trainer.progress = True
    trainer.train_epoch()
    assert capsys.readouterr().err == "", "nor where nobody watches"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    trainer.train_epoch()
    bar = capsys.readouterr().err
    assert "epoch 2/4" in bar
    assert bar.endswith("\r"), "the bar goes when the epoch is done"


@pytest.mark.parametrize(("negatives", "calls"), [("random", 2), ("hardest", 1)])
def test_random_negatives_are_drawn_twice_a_step(tmp_path, monkeypatch, negatives, calls):
    """What is drawn after a step decides what dropout does in the next one."""
    trainer = Trainer(*plan_small(tmp_path, loss__negatives=negatives))
    loss, given = trainer.loss, []

    def counted(scores, *more):
        given.append(scores)
        return loss(scores, *more)

    monkeypatch.setattr(trainer, "loss", counted)
    trainer.train_step(np.arange(8))
    assert len(given) == calls
    assert calls == 1 or not given[1].any()


@pytest.mark.parametrize("branch", ["gru", "onehot"])
def test_batches_are_of_like_length_where_padding_costs(tmp_path, branch):
    trainer = Trainer(*plan_small(tmp_path, seed=2, text__branch=branch))
    trainer.log = [ROW]
    words = trainer.data.sentences["train"]
    lengths = words.lengths if branch == "gru" else None
    expected = epoch_batches(len(words), 16, np.random.default_rng([2, 1]), lengths)
    assert [rows.tolist() for rows in trainer.batches()] == [rows.tolist() for rows in expected]


def test_collapse_is_equal_scores_near_chance(tmp_path, monkeypatch):
    trainer, chance = Trainer(*plan_small(tmp_path)), chance_rsum(20)
    assert not trainer.collapsed(0.0), "scores of first weights differ"
    cosine = similarity.TRAINING["cosine"]
    for spread, collapsed in ((0.009, True), (0.011, False)):

        def squeezed(images, captions, spread=spread):
            scores = cosine(images, captions)
            return 0.9 + spread * scores / scores.std()

        monkeypatch.setitem(similarity.TRAINING, "cosine", squeezed)
        assert trainer.collapsed(1.99 * chance) is collapsed
        assert not trainer.collapsed(2 * chance)


def test_the_row_of_an_epoch(tmp_path, monkeypatch):
    told, saved = [], []
    plan, data = plan_small(tmp_path)
    trainer = Trainer(plan, data, on_epoch=lambda epochs, line, *_: told.append(epochs))
    clock, scores = iter([101.2345, 103.4567] * 3), iter([10.0, 10.0, 11.0])
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(training, "rsum", lambda metrics: next(scores))
    monkeypatch.setattr(training, "save_model", lambda *args: saved.append(len(trainer.log) + 1))
    trainer.end_epoch(100.0, None)
    trainer.end_epoch(100.0, 1.0)
    monkeypatch.setattr(trainer, "collapsed", lambda *args: True)
    trainer.end_epoch(100.0, 1.0)
    columns = ("epoch", "loss", "rate", "rsum", "collapsed", "seconds", "seconds_training")
    assert [tuple(row[column] for column in columns) for row in trainer.log] == [
        (1, None, 0.0, 10.0, False, 3.46, 1.23),
        (2, 1.0, 0.01, 10.0, False, 3.46, 1.23),
        (3, 1.0, 0.01, 11.0, True, 3.46, 1.23),
    ]
    assert told == [1, 2, 3, 3], "and once more for the collapse"
    assert trainer.rate(0.0) == 0.005, "after a collapse half of it"
    assert saved == [1, 3], "the first of equals stays"
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3, "the log is there while a run goes on"


def test_the_result_is_that_of_the_best_epoch(tmp_path):
    trainer = Trainer(*plan_small(tmp_path))
    training.save_model(tmp_path / "model.safetensors", trainer.model)
    trainer.log = [{**ROW, "epoch": 1, "rsum": 1.0}, {**ROW, "epoch": 2}, {**ROW, "epoch": 3}]
    trainer.finish()
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]
    captions = len(trainer.data.splits["val"].captions)
    counts = {"best_epoch": 2, "epochs": 3, "images": 20, "captions": captions, "seconds": 6.1, "collapsed": False}
    assert json.loads((tmp_path / "result.json").read_text()) == {"split": "val", "rsum": 250.04, **VAL, **counts}


def test_starting_over_and_going_on(tmp_path, monkeypatch, capsys):
    plan, data = plan_small(tmp_path / "run", text__branch="onehot")
    result = plan.folder / "result.json"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(plan, data, fresh=True)  # nothing to throw away
    assert "epoch 1/4" in capsys.readouterr().err, "a bar is what one gets"
    (plan.folder / "note").touch()
    train(plan, data)
    assert (plan.folder / "note").exists(), "and a finished run is left as it is"
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "clear", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(plan, data, fresh=True)
    assert not result.exists(), "a kill while a run is thrown away leaves none that is finished"
    train(plan, data)
    result.unlink()
    lines = []
    train(plan, data, on_epoch=lambda *said: lines.append(said))
    assert lines == [(4, "run: continues after epoch 4")]
    result.unlink()
    train(plan, data, fresh=True)
    assert not (plan.folder / "note").exists()


BRANCHES = [
    {"text__branch": "onehot", "loss__negatives": "random", "training__weight_average": 0.9},
    {"text__branch": "gru", "similarity": "order", "loss__margin": 0.05, "text__word_dropout": 0.2},
    {"text__branch": "gru", "loss__negatives": "hardest", "loss__warmup_epochs": 1, "training__schedule": "cosine"},
    {
        "text__branch": "onehot",
        "loss__name": "infonce",
        "loss__positives": "image",
        "loss__structure": 1.0,
        "training__captions_per_image": 2,
        "training__mixup": 1.0,
        "training__optimizer": "adamw",
    },
]


@pytest.mark.parametrize("changes", BRANCHES, ids=["onehot random", "gru order", "gru hardest cosine", "onehot mixup"])
@pytest.mark.parametrize("stop", [0, 1, 3])
def test_going_on_after_a_stop_is_exact(tmp_path, monkeypatch, changes, stop):
    train_small(tmp_path / "whole", **changes)
    with interrupted(monkeypatch, 8 * stop + 3):  # in the middle of an epoch
        train_small(tmp_path / "stopped", **changes)
    assert not (tmp_path / "stopped" / "result.json").exists()
    train_small(tmp_path / "stopped", **changes)
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def with_views(folder, parts=None):
    """A plan, and data whose images have views: their features with noise, or whatever `parts` makes of features."""
    plan, data = plan_small(folder, seed=3)
    noise = np.random.default_rng(0)
    parts = parts or (lambda x: [(x[:, None] + noise.normal(size=(len(x), 5, x.shape[1]))).astype(np.float16)])
    splits = {n: replace(s, features=FeatureViews(parts(s.features), False)) for n, s in data.splits.items()}
    return plan, replace(data, splits=splits)


def train_views(folder, parts=None):
    plan, data = with_views(folder, parts)
    train(plan, data, progress=False)


@pytest.mark.parametrize("stop", [0, 2])
def test_views_are_drawn_again_after_a_stop(tmp_path, monkeypatch, stop):
    train_views(tmp_path / "whole")
    with interrupted(monkeypatch, 8 * stop + 3):  # in the middle of an epoch
        train_views(tmp_path / "stopped")
    train_views(tmp_path / "stopped")
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_drawing_views_disturbs_no_other_draw(tmp_path):
    """One view, or the same one several times: the weights are those of plain features, to the bit."""
    plan, data = plan_small(tmp_path / "plain", seed=3)
    train(plan, data, progress=False)
    for count in (1, 2):  # the mean of two equal numbers is that number
        train_views(tmp_path / str(count), lambda x, count=count: [x[:, None].repeat(count, axis=1)])
        assert_same_runs(tmp_path / "plain", tmp_path / str(count))


def test_training_sees_a_view_of_each_image_and_validation_their_mean(tmp_path, monkeypatch):
    trainer = Trainer(*with_views(tmp_path))
    seen: list[np.ndarray] = []
    embed = trainer.model.embed_images

    def watching(features):
        seen.append(features.numpy().copy())
        return embed(features)

    monkeypatch.setattr(trainer.model, "embed_images", watching)
    epochs = []
    for _ in range(2):
        seen.clear()
        trainer.train_epoch()
        epochs.append(list(seen))
        trainer.log.append(ROW)
    trainer.log.clear()
    split, val = (trainer.data.splits[name] for name in ("train", "val"))
    assert isinstance(split.features, FeatureViews)
    assert isinstance(val.features, FeatureViews)
    views = split.features.parts[0].astype(np.float32)
    numbers = []
    for batches in epochs:
        drawn: dict[int, Any] = {}
        for rows, batch in zip(trainer.batches(), batches, strict=True):
            for row, feature in zip(rows, batch, strict=True):
                image = split.image_of_caption[row]
                (drawn[row],) = np.flatnonzero((views[image] == feature).all(axis=1))
        numbers.append([drawn[row] for row in range(len(drawn))])
        trainer.log.append(ROW)
    assert numbers[0] != numbers[1], "another epoch draws others"
    for counts in (np.bincount(views_of_epoch) for views_of_epoch in numbers):
        assert len(counts) == 5
        assert counts.min() > len(numbers[0]) / 5 / 2
    seen.clear()
    trainer.validate()
    (mean,) = seen
    part = val.features.parts[0].astype(np.float32)
    np.testing.assert_allclose(mean, [np.mean(image, axis=0) for image in part], atol=1e-6)


WRITES = [("save_model", 1), ("save_checkpoint", 2), ("save_checkpoint", 4), ("write_jsonl", 2), ("write_jsonl", 5)]


@pytest.mark.parametrize(("name", "call"), [*WRITES, ("save_bank", 1), ("write_json", 1)])
def test_going_on_after_a_stop_between_two_files_is_exact(tmp_path, monkeypatch, name, call):
    """Stopped after any one file of an epoch was written, and before the next."""
    train_small(tmp_path / "whole")
    write, calls = getattr(training, name), {"done": 0}

    def stopping(*args):
        write(*args)
        calls["done"] += 1
        if calls["done"] >= call:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, name, stopping)
        with pytest.raises(KeyboardInterrupt):
            train_small(tmp_path / "stopped")
    train_small(tmp_path / "stopped")
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


def test_a_killed_process_goes_on_exactly(tmp_path):
    """The same with SIGKILL, which no handler sees."""
    train_small(tmp_path / "whole", text__branch="onehot")
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "import tests.conftest\n"  # as many threads as there: the log notes them
        "from training import trainer\n"
        "from tests.helpers import ROOT, train_small\n"
        "save = trainer.save_checkpoint\n"
        "def kill(path, model, optimizer, log, *more):\n"
        "    save(path, model, optimizer, log, *more)\n"
        "    if len(log) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.save_checkpoint = kill\n"
        f"train_small(Path({str(tmp_path / 'killed')!r}), text__branch='onehot')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -9
    train_small(tmp_path / "killed", text__branch="onehot")
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


def test_it_learns_and_keeps_the_best(tmp_path):
    result = train_small(tmp_path / "run", text__branch="onehot", training__epochs=12)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert result["rsum"] == max(row["rsum"] for row in log)
    assert result["rsum"] > 2.5 * chance_rsum(20)
    split = made_up_data()["val"]
    opened = Run.open(tmp_path / "run")
    images = torch.from_numpy(opened.embed_features(split.features))
    captions = torch.from_numpy(opened.embed_sentences(split.captions))
    metrics = metrics_of(ranks_by_block(exact_cosine_scores, images, captions, split.image_of_caption))
    assert metrics == {"image_to_text": result["image_to_text"], "text_to_image": result["text_to_image"]}


def test_seeds_differ_and_repeat(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_small(tmp_path / folder, seed=seed)
    assert_same_runs(tmp_path / "a", tmp_path / "b")
    a, c = (safetensors.torch.load_file(tmp_path / f / "model.safetensors") for f in ("a", "c"))
    assert not torch.equal(a["image.1.weight"], c["image.1.weight"])


def test_a_finished_run_is_left_alone_unless_fresh(tmp_path):
    train_small(tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    train_small(tmp_path / "run")
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    train_small(tmp_path / "run", fresh=True)
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns > before["result.json"]


def test_a_run_of_other_features_or_settings_is_not_continued(tmp_path):
    train_small(tmp_path / "run")
    with pytest.raises(BadInput, match="other weights"):
        train_small(tmp_path / "run", digest="other")
    with pytest.raises(BadInput, match="other settings"):
        train_small(tmp_path / "run", embed_dim=8)


@pytest.mark.parametrize("negatives", ["hardest", "semihard"])
def test_collapse_is_noticed_and_said(tmp_path, monkeypatch, negatives):
    zero = similarity.TRAINING["cosine"]
    monkeypatch.setitem(similarity.TRAINING, "cosine", lambda a, b: 0 * zero(a, b))
    monkeypatch.setitem(similarity.RANKING, "cosine", lambda a, b: 0 * zero(a, b))
    lines = []
    result = train_small(
        tmp_path / "run", loss__negatives=negatives, on_epoch=lambda epochs, line, *_: lines.append(line)
    )
    assert result["collapsed"]
    assert result["rsum"] == 0
    assert result["epochs"] == 3 + 4, "three new beginnings, then all epochs"
    told = [line for line in lines if "collapsed" in line]
    assert ["begins anew" in line for line in told] == [True] * 3 + [False] * 4
    assert "loss.warmup_epochs" in told[-1]


@pytest.mark.parametrize("stop", [0, 1, 2, 4])
def test_a_collapse_is_recovered_from_and_resumed(tmp_path, monkeypatch, stop):
    """Scores are equal until training has begun anew twice; a stop after any epoch changes nothing."""
    settings = {"text__branch": "onehot", "loss__negatives": "hardest", "training__epochs": 3}
    folders, zero = [tmp_path / "straight", tmp_path / "stopped"], similarity.TRAINING["cosine"]
    for folder in folders:
        folder.mkdir()
        trainer = Trainer(*plan_small(folder, **settings))
        first = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        with monkeypatch.context() as patch:
            patch.setitem(similarity.TRAINING, "cosine", lambda a, b: 0 * zero(a, b))
            patch.setattr(training, "rsum", lambda metrics: 0.0)
            for epochs in (1, 2):
                trainer.end_epoch(0.0, trainer.train_epoch())
                assert all(torch.equal(weight, first[name]) for name, weight in trainer.model.state_dict().items())
                assert not trainer.optimizer.state
                assert (trainer.restarts, trainer.epoch) == (epochs, 0)
                if folder == folders[1] and stop == epochs:
                    trainer = Trainer(*plan_small(folder, **settings))
        for epochs in (3, 4):
            trainer.end_epoch(0.0, trainer.train_epoch())
            if folder == folders[1] and stop == epochs:
                trainer = Trainer(*plan_small(folder, **settings))
        trainer.fit()
    assert [row["collapsed"] for row in trainer.log] == [True, True, False, False, False]
    assert [row["rate"] for row in trainer.log] == [0.01, 0.005, 0.0025, 0.0025, 0.0025]
    assert_same_runs(*folders)
    assert trainer.log[-1]["rsum"] > 1.5 * chance_rsum(20)


def test_each_collapse_adds_an_epoch_of_the_sum(tmp_path):
    trainer = Trainer(*plan_small(tmp_path, loss__negatives="hardest", loss__warmup_epochs=1))
    scores, images = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    kinds = []
    for collapsed in (False, True, False, False, False):
        trainer.log.append({"epoch": len(trainer.log) + 1, "collapsed": collapsed})
        kinds.append(
            next(n for n in ("sum", "hardest") if trainer.loss(scores, images, scores) == hinge(scores, images, 0.2, n))
        )
    assert kinds == ["hardest", "sum", "sum", "hardest", "hardest"]


def test_a_run_that_learns_is_not_called_collapsed(tmp_path):
    lines = []
    result = train_small(tmp_path / "run", text__branch="onehot", on_epoch=lambda *said: lines.append(said))
    assert not result["collapsed"]
    assert [epochs for epochs, _ in lines] == [1, 2, 3, 4]
    assert not any("collapsed" in line for _, line in lines)


def test_two_programs_do_not_train_one_run(tmp_path):
    (tmp_path / "run").mkdir()
    with lock_folder(tmp_path / "run"), pytest.raises(BadInput, match="is at work in it"):
        train_small(tmp_path / "run")
    train_small(tmp_path / "run")
    with lock_folder(tmp_path / "run"), pytest.raises(BadInput, match="is at work in it"):
        train_small(tmp_path / "run", fresh=True)
    assert (tmp_path / "run" / "result.json").is_file(), "nothing is thrown away before it is ours"


def test_starting_over_lets_nobody_in_between(tmp_path, monkeypatch):
    train_small(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("of the old run")
    clear = sweep.clear

    def clear_and_knock(folder):
        assert not (folder / "result.json").exists()
        assert not (folder / "last.pt").exists()
        clear(folder)
        with pytest.raises(BadInput, match="is at work in it"), lock_folder(folder):
            pass

    monkeypatch.setattr(sweep, "clear", clear_and_knock)
    train_small(tmp_path / "run", fresh=True)
    assert not (tmp_path / "run" / "notes.txt").exists()


def test_patience_stops_early(tmp_path, monkeypatch):
    scores = iter([10.0, 30.0, 20.0, 30.0, 29.0, 50.0])
    monkeypatch.setattr(training, "rsum", lambda metrics: next(scores))
    result = train_small(tmp_path / "run", training__epochs=6, training__patience=3)
    assert result["epochs"] == 5
    assert result["best_epoch"] == 2  # the first of equals


@pytest.mark.parametrize("lengths", [None, np.random.default_rng(1).integers(1, 9, 103)])
def test_an_epoch_visits_every_caption_once(lengths):
    batches = list(epoch_batches(103, 16, np.random.default_rng(0), lengths))
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    assert sorted(map(len, batches)) == [7, 16, 16, 16, 16, 16, 16]
    other = list(epoch_batches(103, 16, np.random.default_rng(1), lengths))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=True))
    if lengths is not None:
        assert max(np.ptp(lengths[rows]) for rows in batches) <= 2
        assert len({tuple(rows) for rows in batches}) == 7
        means = [lengths[rows].mean() for rows in batches]
        assert means != sorted(means), "short ones do not come first"
    else:
        assert len(batches[-1]) == 7


def test_the_change_of_neighborhoods_is_added_to_the_loss(tmp_path):
    small = {"text__branch": "onehot", "text__dropout": 0.0, "image__dropout": 0.0}
    plain, weighted = (
        Trainer(*plan_small(tmp_path, **small, loss__structure=weight)).train_step(np.arange(8))
        for weight in (0.0, 3.0)
    )
    trainer = Trainer(*plan_small(tmp_path, **small))
    split, words = trainer.data.splits["train"], trainer.data.sentences["train"].take(np.arange(8))
    batch = torch.from_numpy(np.asarray(split.features)[split.image_of_caption[:8]])
    sides = [(batch, trainer.model.embed_images(batch)), (None, trainer.model.embed_sentences(words))]
    term = structure_loss(override(Settings(), {"loss.structure": 3.0}).loss, sides)
    assert weighted == pytest.approx(plain + float(term.detach()), rel=1e-5)
    assert weighted > plain


def test_the_neighborhoods_of_mixtures_are_those_of_mixed_features_on_both_sides(tmp_path, monkeypatch):
    seen: list[Any] = []

    def watched(_, sides):
        seen.extend(sides)
        return torch.zeros(())

    monkeypatch.setattr(training, "structure_loss", watched)
    plan, data = plan_small(tmp_path, text__branch="onehot", loss__structure=1.0, training__mixup=1.0)
    words = data.sentences["train"]
    data.sentences["train"] = words.with_features(np.random.default_rng(0).normal(size=(len(words), 5)))
    trainer = Trainer(plan, data)
    torch.manual_seed(3)
    trainer.train_step(np.arange(8))
    torch.manual_seed(3)
    mix = draw_mixup(1.0, 8)
    (images, _), (captions, _) = seen
    assert mix is not None
    frozen = torch.from_numpy(data.sentences["train"].take(np.arange(8)).features)
    torch.testing.assert_close(captions.double(), mix(frozen).double())
    assert len(images) == 4


def test_two_captions_of_an_image_come_together(tmp_path):
    trainer = Trainer(*plan_small(tmp_path, training__captions_per_image=2, training__batch_size=1000))
    (order,) = trainer.batches()
    images = trainer.data.splits["train"].image_of_caption[order]
    assert sorted(order.tolist()) == list(range(len(order)))
    apart = (images[1:] != images[:-1]).sum() + 1
    assert apart < 0.8 * len(images), "in random order nearly every caption would follow another image's"


@pytest.mark.parametrize(
    ("size", "steps", "captions", "expected"),
    [(512, 0, 100, 512), (512, 30, 6000, 200), (512, 30, 60_000, 512), (512, 30, 600, 128), (64, 30, 600, 64)],
)
def test_few_captions_come_in_smaller_batches_and_again(tmp_path, size, steps, captions, expected):
    settings = override(Settings(), {"training.batch_size": size, "training.min_steps": steps})
    assert batch_size_for(settings.training, captions) == expected
    trainer = Trainer(*plan_small(tmp_path, training__batch_size=300, training__min_steps=30))
    batches, rows = trainer.batches(), len(trainer.data.sentences["train"])
    assert max(map(len, batches)) == min(128, rows)
    times = np.bincount(np.concatenate(batches), minlength=rows)
    assert len(batches) >= 30
    assert set(times) == {math.ceil(30 / math.ceil(rows / 128))}, "each caption as often as any other"
    first, second = np.split(np.concatenate(batches)[: 2 * rows], 2)
    assert not np.array_equal(first, second), "every pass has an order of its own"


def test_rates():
    t = Settings().training
    step = override(
        Settings(), {"training.schedule": "step", "training.lr_step": 6, "training.lr": 1.0, "training.epochs": 9}
    ).training
    assert [rate_at(step, epoch, 0.5) for epoch in (0, 5, 6, 8)] == pytest.approx([1, 1, 0.1, 0.1])
    cosine = override(Settings(), {"training.schedule": "cosine", "training.lr": 1.0, "training.epochs": 10}).training
    assert [rate_at(cosine, 0, 0), rate_at(cosine, 5, 0), rate_at(cosine, 9, 1)] == pytest.approx([1, 0.5, 0])
    assert rate_at(t, 0, 0) == rate_at(t, 29, 0.9) == t.lr


@pytest.mark.parametrize("name", ["smooth", "infonce", "siglip", "cwcl", "hal"])
def test_other_losses_train_too(tmp_path, name):
    changes = {"loss__name": name, "text__branch": "onehot", "training__epochs": 12, "loss__bias": -2.0}
    changes |= {"loss__margin": 0.5} if name == "hal" else {}
    result = train_small(tmp_path / "run", **changes)
    assert result["rsum"] > 2.5 * chance_rsum(20)
    weights = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    if name in ("infonce", "siglip", "cwcl"):
        assert weights["log_scale"] != pytest.approx(-np.log(0.07)), "the temperature is learned"
    assert ("score_bias" in weights) == (name == "siglip")
    assert Run.open(tmp_path / "run").embed_sentences(["red dog"]).shape == (1, 16)


def test_bigrams_stand_in_the_run(tmp_path):
    folder, more = tmp_path / "run", tmp_path / "more"
    train_small(folder, text__branch="onehot", text__bigrams=2, training__epochs=1)
    train_small(more, text__branch="onehot", training__epochs=1)
    run, other = Run.open(folder), Run.open(more)
    weights, fewer = (safetensors.torch.load_file(f / "model.safetensors")["text.bag.weight"] for f in (folder, more))
    bigrams = run.processor.words.words[len(fewer) :]
    assert len(bigrams) == len(weights) - len(fewer) > 0
    both, swapped = run.embed_sentences([bigrams[0], " ".join(reversed(bigrams[0].split()))])
    assert not np.allclose(both, swapped), "the order of words counts"
    assert run.unknown_words(f"{bigrams[0]} zebra") == other.unknown_words(f"{bigrams[0]} zebra") == ["zebra"]


def test_cca_is_one_epoch_in_closed_form(tmp_path, capsys):
    changes = {"loss__name": "cca", "text__branch": "onehot", "text__bias": True, "embed_dim": 8}
    result = train_small(tmp_path / "run", **changes)
    assert result["epochs"] == 1
    assert result["rsum"] > 2.5 * chance_rsum(20)
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert (row["loss"], row["rate"]) == (None, 0.0)
    train_small(tmp_path / "again", **changes)
    assert_same_runs(tmp_path / "run", tmp_path / "again")
    assert train_small(tmp_path / "other", seed=5, **changes)["rsum"] == result["rsum"]


@pytest.mark.parametrize("changes", [{"text__branch": "gru"}, {"text__num_layers": 2}, {"similarity": "order"}])
def test_cca_wants_linear_branches(tmp_path, changes):
    settings = {"text__branch": "onehot", "text__bias": True, **changes}
    with pytest.raises(BadInput, match="cca"):
        train_small(tmp_path / "run", loss__name="cca", **settings)


def test_the_rate_of_the_schedule_reaches_the_optimizer(tmp_path, monkeypatch):
    seen, step = [], Trainer.train_step

    def watching(self, rows):
        seen.append(self.optimizer.param_groups[0]["lr"])
        return step(self, rows)

    monkeypatch.setattr(Trainer, "train_step", watching)
    train_small(tmp_path / "run", training__schedule="step", training__lr_step=2, training__lr_gamma=0.5)
    steps = len(seen) // 4
    assert seen == pytest.approx([0.01] * 2 * steps + [0.005] * 2 * steps)


def test_clipping_and_weight_decay_act(tmp_path, monkeypatch):
    norms, clip = [], torch.nn.utils.clip_grads_with_norm_

    def watching(parameters, most, norm):
        parameters = list(parameters)
        clip(parameters, most, norm)
        norms.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).norm().item())

    monkeypatch.setattr(torch.nn.utils, "clip_grads_with_norm_", watching)
    train_small(tmp_path / "clipped", training__grad_clip=0.01)
    assert max(norms) <= 0.0101
    train_small(tmp_path / "free", training__grad_clip=0.0, training__weight_decay=0.0)
    train_small(tmp_path / "decayed", training__grad_clip=0.0, training__weight_decay=1.0)
    free, decayed = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]["image.1.weight"].norm()
        for name in ("free", "decayed")
    )
    assert decayed < 0.9 * free


def test_the_first_epochs_take_the_sum():
    settings = override(Settings(), {"loss.negatives": "hardest", "loss.warmup_epochs": 1}).loss
    model = TwoBranch(Settings(), InputDims(image_dim=2, num_words=2))
    scores, images = torch.randn(5, 5, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    first, second = (loss_of_epoch(model, settings, epoch)(scores, images) for epoch in (0, 1))
    assert first == hinge(scores, images, settings.margin, "sum")
    assert second == hinge(scores, images, settings.margin, "hardest") != first


def test_the_weights_kept_are_those_of_the_best_epoch(tmp_path, monkeypatch):
    for best, name in ((2, "second"), (4, "last")):
        scores = iter([10.0, 30.0, 20.0, 5.0] if best == 2 else [1.0, 2.0, 3.0, 4.0])
        monkeypatch.setattr(training, "rsum", lambda metrics, scores=scores: next(scores))
        assert train_small(tmp_path / name)["best_epoch"] == best
    last = torch.load(tmp_path / "last" / "last.pt", weights_only=True)["model"]
    kept = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("second", "last")]
    assert torch.equal(kept[1]["image.1.weight"], last["image.1.weight"])
    assert not torch.equal(kept[0]["image.1.weight"], last["image.1.weight"])


def test_the_average_of_the_weights_is_what_is_validated_and_saved(tmp_path, monkeypatch):
    """Against the plain recursion over what the weights were after every step."""
    seen: list[dict[str, torch.Tensor]] = []
    step = Trainer.train_step

    def watching(self, rows):
        loss = step(self, rows)
        seen.append({name: weight.clone() for name, weight in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(Trainer, "train_step", watching)
    trainer = Trainer(*plan_small(tmp_path, text__branch="onehot", training__weight_average=0.9, training__epochs=2))
    scores = iter([1.0, 2.0])
    monkeypatch.setattr(training, "rsum", lambda metrics: next(scores))
    trainer.fit()
    mean = seen[0]
    for number, weights in enumerate(seen):
        decay = min(0.9, (1 + number) / (10 + number))
        mean = {name: decay * mean[name] + (1 - decay) * weights[name] for name in mean}
    assert trainer.average is not None
    averaged = trainer.average.state_dict()
    assert not torch.equal(averaged["image.1.weight"], seen[-1]["image.1.weight"])
    for name, weight in mean.items():
        torch.testing.assert_close(averaged[name], weight)
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], weight) for name, weight in averaged.items())
    assert trainer.validate() == trainer.log[-1]["val"]
    assert Trainer(*plan_small(tmp_path, text__branch="onehot")).average is not None, "a checkpoint brings it back"


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("step", [3, 7])  # in the middle of an epoch, and its last one
def test_what_is_not_finite_ends_training_and_the_last_epoch_stays(tmp_path, monkeypatch, what, step):
    """The step is not taken, so that what is trained next goes on from weights that are sound."""
    train_small(tmp_path / "whole", text__branch="onehot")
    loss_of, calls = Trainer.loss, iter(range(100))

    def spoilt(trainer, scores, *others):
        loss = loss_of(trainer, scores, *others)
        if next(calls) != 8 + step:
            return loss
        return loss * torch.nan if what == "loss" else loss + (scores[0, 0] * 0).sqrt()  # infinite slope, value 0

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "loss", spoilt)
        where = rf"epoch 2/4, step {step + 1} of 8: the loss is .*, the length of its gradient nan, of a batch of \d+"
        reason = r"the first of image train\d+: probably steps are too large; lower `training.lr` \(it is 0.01\)"
        with pytest.raises(BadInput, match=f"{where} captions, {reason}"):
            train_small(tmp_path / "stopped", text__branch="onehot")
    assert len((tmp_path / "stopped/log.jsonl").read_text().splitlines()) == 1
    train_small(tmp_path / "stopped", text__branch="onehot")
    assert_same_runs(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named_as_the_reason(tmp_path, value):
    plan, data = plan_small(tmp_path / "run")
    data.splits["train"].features[17, 3] = value
    with pytest.raises(
        BadInput, match=r"step \d of 8: .*: the features of image train17 are not finite; make them again"
    ):
        train(plan, data, progress=False)


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_features_of_zeros_have_no_direction_and_do_no_harm(tmp_path, similarity):
    """The image branch begins with a zero bias, so that such an image's embedding is zero, and its slope 1e12."""
    plan, data = plan_small(tmp_path / "run", similarity=similarity, training__grad_clip=0.0)
    data.splits["train"].features[:3] = 0
    result = train(plan, data, progress=False)
    assert result["rsum"] > 1.5 * chance_rsum(20)
    weights = safetensors.torch.load_file(tmp_path / "run/model.safetensors")
    assert all(weight.abs().max() < 10 for weight in weights.values())


def test_a_run_of_other_captions_is_not_continued(tmp_path):
    train_small(tmp_path / "run", captions="one")
    with pytest.raises(BadInput, match="other captions or splits"):
        train_small(tmp_path / "run", captions="two")


@pytest.mark.parametrize("content", [b"", b"PK half a file", {"model": 1}, [1]])
def test_every_damaged_checkpoint_is_named(tmp_path, content):
    train_small(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    if isinstance(content, bytes):
        (tmp_path / "run" / "last.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "run" / "last.pt")
    with pytest.raises(BadInput, match=r"last\.pt: not a checkpoint"):
        train_small(tmp_path / "run")


def test_a_checkpoint_of_a_stranger_runs_no_code(tmp_path):
    class Stranger:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    train_small(tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    torch.save({"model": Stranger()}, tmp_path / "run" / "last.pt")
    with pytest.raises(BadInput, match="not a checkpoint of this run"):
        train_small(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_recipe_are_told(tmp_path):
    train_small(tmp_path / "run")
    safetensors.torch.save_file({"image.1.weight": torch.zeros(1)}, tmp_path / "run" / "model.safetensors")
    with pytest.raises(BadInput, match="not the weights of this recipe"):
        Run.open(tmp_path / "run")

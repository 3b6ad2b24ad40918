"""Several runs as one row: the mean of their scores, by plain loops, whatever their similarities and widths."""

import json

import numpy as np
import pytest
import torch

import eval as evaluation
import train
from evaluation.groups import Correction
from evaluation.ranking import Ranked, ranks_together
from metrics.correction import Bank, Parameters, Retrieval, biases
from metrics.protocols import Protocol, folds_of
from metrics.ranks import DIRECTIONS, ranks_of
from metrics.similarity import RANKING
from tests.helpers import call, train_drawn
from training.bank import RunBank
from training.calibration import Calibration

OWNER = np.repeat(np.arange(12), 3)


def unit(rng, count, dim):
    rows = np.abs(rng.normal(size=(count, dim))).astype(np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def made(seed, similarity, dim):
    """Twelve images whose captions are near to them, and a bank."""
    rng = np.random.default_rng(seed)
    images = unit(rng, 12, dim)
    captions = torch.nn.functional.normalize(images[OWNER] + 0.7 * unit(rng, 36, dim), dim=1)
    chosen = {"train": {way: {"nnn": Parameters(k=3, alpha=0.7)} for way in DIRECTIONS}}
    sides = unit(rng, 20, dim).numpy(), unit(rng, 30, dim).numpy(), np.arange(20), np.arange(30)
    bank = RunBank(*sides, chosen, Calibration(0.0, 1.0, 1.0))
    return Ranked(similarity, images, captions, bank)


@pytest.mark.parametrize("correction", [None, Correction("nnn", "train")])
@pytest.mark.parametrize("kinds", [[("cosine", 5)], [("cosine", 5), ("order", 9), ("cosine", 3)]])
def test_ranks_are_those_of_the_mean_of_the_score_matrices(kinds, correction):
    runs = [made(seed, *kind) for seed, kind in enumerate(kinds)]
    folds = folds_of(OWNER, 12, Protocol(folds=2))
    for fold, measured in zip(folds, ranks_together(runs, folds, correction), strict=True):
        for direction in DIRECTIONS:
            flip, matrices = direction == "image_to_text", []
            for run in runs:
                images, captions = run.images[fold.start : fold.stop], run.captions[fold.captions]
                scores = RANKING[run.similarity](images, captions)
                if correction:
                    items, held = (captions, run.bank.images) if flip else (images, run.bank.captions)
                    held = torch.from_numpy(held)
                    p = run.bank.chosen["train"][direction]["nnn"]
                    bias = biases("nnn", p, Retrieval(run.similarity, direction), items, Bank(held, held))
                    scores = scores - (bias[None] if flip else bias[:, None])
                matrices.append(scores.numpy())
            mean = torch.from_numpy(np.mean(matrices, axis=0))
            expected = getattr(ranks_of(mean, fold.image_of_caption), direction)
            assert expected.tolist() == getattr(measured, direction).tolist()


def test_runs_together_are_better_than_each_where_their_errors_differ():
    """Noise of their own on the same images: the mean has less of it."""
    rng = np.random.default_rng(0)
    truth = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(60, 16)).astype(np.float32)), dim=1)

    def noisy():
        noise = torch.from_numpy(rng.normal(size=truth.shape, scale=0.35).astype(np.float32))
        return Ranked("cosine", truth, torch.nn.functional.normalize(truth + noise, dim=1))

    runs, folds = [noisy() for _ in range(4)], folds_of(np.arange(60), 60, Protocol())
    alone = [float(ranks_together([run], folds, None)[0].text_to_image.mean()) for run in runs]
    assert float(ranks_together(runs, folds, None)[0].text_to_image.mean()) < min(alone)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of a run and one of another recipe."""
    return train_drawn(tmp_path_factory.mktemp("together"), ["strong", "--seeds", 0, 1], ["stems"])


def test_a_row_for_all_runs_together(trained, monkeypatch, capsys, tmp_path):
    asked = ["--ensemble", "all", "--correction", "nnn", "--against", "stems", "--format", "json"]
    figures = ["--plots", tmp_path / "plots", "--report", tmp_path / "a.html"]
    assert call(monkeypatch, evaluation, f"{trained}/runs/*", *asked, *figures) == 0
    rows = {row["row"]: row for row in json.loads(capsys.readouterr().out)}
    alone = {"strong", "strong + nnn (inductive)", "stems", "stems + nnn (inductive)"}
    assert set(rows) == {*alone, "ensemble of 3 runs", "ensemble of 3 runs + nnn (inductive)"}
    row = rows["ensemble of 3 runs"]
    assert len(row["runs"]) == 3
    assert row["run"] == "ensemble of 3 runs"
    assert "std" not in row, "one ranking has no deviation over seeds"
    assert {"interval", "against"} <= set(row)
    assert "ensemble of 3 runs" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize("way", ["all", "seed"])
def test_one_run_is_no_ensemble(trained, monkeypatch, capsys, way):
    assert call(monkeypatch, evaluation, f"{trained}/runs/stems*", "--ensemble", way) == 2
    assert f"--ensemble {way}: " in (said := capsys.readouterr().err)
    assert "is alone, and its scores have no mean; name other runs, too" in said


def test_a_row_of_rows_together_seed_by_seed(trained, monkeypatch, capsys):
    """The one run of stems is in both of its ensembles; its figures are the mean of what each is alone."""
    folder = trained / "runs"

    def rows(*args):
        assert call(monkeypatch, evaluation, *args, "--format", "json") == 0
        return {row["row"]: row for row in json.loads(capsys.readouterr().out)}

    together = rows(f"{folder}/*", "--ensemble", "seed")["ensemble: stems + strong"]
    assert together["seeds"] == [0, 1]
    assert "std" in together
    alone = [
        rows(f"{folder}/strong-*-{seed}-*", f"{folder}/stems-*", "--ensemble", "all")["ensemble of 2 runs"]["rsum"]
        for seed in (0, 1)
    ]
    assert together["rsum"] == pytest.approx(np.mean(alone))


def test_rows_of_other_seeds_have_no_ensemble_of_each(trained, monkeypatch, capsys, tmp_path):
    data = ["--data", trained / "data/folder", "--runs", tmp_path / "runs"]
    assert call(monkeypatch, train, "cca", "--seeds", 1, 2, *data, "--set", "embed_dim=4") == 0
    assert call(monkeypatch, evaluation, f"{trained}/runs/strong*", f"{tmp_path}/runs/*", "--ensemble", "seed") == 2
    assert "has other seeds than the rest" in capsys.readouterr().err

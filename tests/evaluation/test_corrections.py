"""Corrected rows: beneath their runs, marked, never best where transductive, and by a bank that may be used."""

import csv
import io
import json
import re

import numpy as np
import pytest
import safetensors.torch
import torch

import eval as evaluation
from evaluation.groups import Correction
from evaluation.ranking import Ranked, ranks_together
from metrics.protocols import Protocol, folds_of
from metrics.ranks import ranks_of
from metrics.similarity import RANKING
from tests.helpers import call, copy_of, plan_small, train_drawn, train_small
from training.bank import BANK, keys, read_bank
from training.embed import embed_features, embed_sentences
from training.trainer import Trainer

ALL = ["inverted_softmax", "qb_norm", "nnn", "db_norm", "sinkhorn"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A prepared folder, and two seeds of a run."""
    return train_drawn(tmp_path_factory.mktemp("corrected"), ["strong", "--seeds", 0, 1])


def printed(monkeypatch, capsys, folder, *args):
    assert call(monkeypatch, evaluation, f"{folder}/runs/*", *args) == 0
    return capsys.readouterr().out


def test_rows_stand_beneath_their_run_and_say_what_they_are(trained, monkeypatch, capsys):
    asked = ["--correction", *ALL, "--bank", "train", "test", "--against", "strong"]
    rows = json.loads(printed(monkeypatch, capsys, trained, *asked, "--format", "json"))
    inductive = [f"strong + {name} (inductive)" for name in ALL[:4]]
    transductive = [f"strong + {name} (transductive)" for name in ALL]
    assert [row["row"] for row in rows] == ["strong", *inductive, transductive[-1], *transductive[:-1]]
    assert "correction" not in rows[0] and "against" not in rows[0]  # noqa: PT018
    assert {row["row"] for row in rows if row.get("transductive")} == set(transductive)
    for row in rows[1:]:
        assert row["correction"] in row["row"]
        assert row["against"]["row"] == "strong"
        assert row["seeds"] == [0, 1]
        assert {"std", "interval"} <= set(row)
    lines = list(csv.DictReader(io.StringIO(printed(monkeypatch, capsys, trained, *asked, "--format", "csv"))))
    assert [line["correction"] for line in lines] == ["", *(row["correction"] for row in rows[1:])]
    assert [line["transductive"] for line in lines] == ["", *(str(row["transductive"]) for row in rows[1:])]
    text = re.sub(r"\s+", " ", printed(monkeypatch, capsys, trained, *asked))
    assert "never the best of a column" in text


def test_folds_figures_and_report_go_on(trained, monkeypatch, capsys, tmp_path):
    more = ["--plots", tmp_path / "plots", "--report", tmp_path / "a.html", "--folds", 2, "--split", "val"]
    printed(monkeypatch, capsys, trained, "--correction", "nnn", "qb_norm", *more)
    names = {"learning_curves.png", "recall.png", "similarity.png"}
    assert {path.name for path in (tmp_path / "plots").iterdir()} == names
    assert "strong + nnn (inductive)" in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--correction", "nn"], "--correction nn: no such correction; did you mean nnn?"),
        (["--correction", "nnn", "--split", "train"], "--split train: the banks are drawn from it"),
        (["--correction", "nnn", "--against", "strong + nn (inductive)"], "did you mean strong + nnn (inductive)?"),
    ],
)
def test_bad_input_is_one_sentence(trained, monkeypatch, capsys, args, sentence):
    assert call(monkeypatch, evaluation, f"{trained}/runs/*", *args) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_the_training_split_may_correct_itself(trained, monkeypatch, capsys):
    args = ["--correction", "nnn", "--bank", "test", "--split", "train"]
    assert "strong + nnn" in printed(monkeypatch, capsys, trained, *args)


def test_a_bank_that_holds_a_test_image_or_caption_is_refused(trained, monkeypatch, capsys, tmp_path):
    test = [json.loads(line) for line in (trained / "data/folder/captions.jsonl").read_text().splitlines()]
    (image, caption), *_ = ((row["image"], row["captions"][0]) for row in test if row["split"] == "test")
    first = next(iter(sorted((trained / "runs").iterdir())))
    for column, text in (("image_keys", image), ("caption_keys", f"{image}\n{caption}")):
        run = copy_of(first, tmp_path / column / first.name)
        with safetensors.safe_open(run / BANK, "pt") as file:
            header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tensors[column][0] = int(keys([text])[0])
        (run / BANK).write_bytes(safetensors.torch.save(tensors, header))
        assert call(monkeypatch, evaluation, run, "--correction", "nnn") == 2
        assert f"holds 1 images of the test split, such as {image}" in capsys.readouterr().err
        assert call(monkeypatch, evaluation, run, "--correction", "nnn", "--bank", "test") == 0


def test_a_run_without_a_bank_is_not_corrected(trained, monkeypatch, capsys, tmp_path):
    first = next(iter(sorted((trained / "runs").iterdir())))
    run = copy_of(first, tmp_path / first.name)
    (run / BANK).unlink()
    assert call(monkeypatch, evaluation, run, "--correction", "nnn", "--format", "json") == 0
    said = capsys.readouterr()
    assert len(json.loads(said.out)) == 1
    assert f"{first.name} has no bank.safetensors" in said.err
    assert "--fresh" in said.err


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """By similarity: a run's bank, and its embeddings of val with two images that are the same."""

    def one(similarity):
        folder, changes = tmp_path_factory.mktemp("run"), {"similarity": similarity, "training__epochs": 1}
        plan, data = plan_small(folder, **changes)
        train_small(folder, **changes)
        model = Trainer(plan, data).model.eval()
        images = embed_features(model, data.splits["val"].features).clone()
        images[7] = images[3]
        return read_bank(folder), images, embed_sentences(model, data.sentences["val"]), data.splits["val"]

    return {similarity: one(similarity) for similarity in ("cosine", "order")}


@pytest.mark.parametrize("bank", ["train", "test"])
@pytest.mark.parametrize("name", ALL[:4])
@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_ranks_are_those_of_the_corrected_matrix_of_each_fold(embedded, similarity, name, bank):
    """By plain loops over items: the bias of each from its scores with the bank, taken off the matrix of the fold."""
    kept, images, captions, split = embedded[similarity]
    folds = folds_of(split.image_of_caption, 20, Protocol(folds=2))
    ranks = ranks_together([Ranked(similarity, images, captions, kept)], folds, Correction(name, bank))
    for fold, measured in zip(folds, ranks, strict=True):
        pair = images[fold.start : fold.stop], captions[fold.captions]
        scores = RANKING[similarity](*pair)
        for direction in ("text_to_image", "image_to_text"):
            flip = direction == "image_to_text"
            p = kept.chosen[bank][direction][name]
            sides = torch.from_numpy(kept.images), torch.from_numpy(kept.captions)
            queries, gallery = sides if flip else sides[::-1]
            if bank == "test":
                queries, gallery = pair if flip else pair[::-1]
            score = RANKING[similarity]
            asked = score(queries, pair[1]).T if flip else score(pair[0], queries)
            near = score(gallery, pair[1]).T if flip else score(pair[0], gallery)
            bias = torch.tensor([plain_bias(name, p, a, n) for a, n in zip(asked.numpy(), near.numpy(), strict=True)])
            of_items = (scores.T if flip else scores).double()
            gates = torch.ones(of_items.shape[1])
            if name == "qb_norm":
                hubs = {i for column in asked.T for i in range(len(column)) if column[i] == column.max()}
                best = [[i for i in range(len(c)) if c[i] == c.max()] for c in (scores.T if flip else scores).T]
                gates = torch.tensor([float(bool(hubs & set(rows))) for rows in best])
            corrected = (of_items - bias[:, None] * gates).float()
            expected = getattr(ranks_of(corrected.T if flip else corrected, fold.image_of_caption), direction)
            agree = np.mean(expected == getattr(measured, direction))
            assert agree > 0.9, "all but rounding"


def plain_bias(name, p, asked, near):
    asked, near = asked.astype(np.float64), near.astype(np.float64)
    if name == "nnn":
        return p.alpha * np.mean(sorted(asked)[-p.k :])
    soft = np.log(np.mean(np.exp(p.beta * asked))) / p.beta
    if name != "db_norm":
        return soft
    other = np.log(np.mean(np.exp(p.gallery_beta * near))) / p.gallery_beta
    return (p.beta * soft + p.gallery_beta * other) / (p.beta + p.gallery_beta)


def test_of_two_rows_one_transductive_none_is_best(trained, monkeypatch, capsys):
    out = printed(monkeypatch, capsys, trained, "--correction", "sinkhorn", "--format", "latex")
    assert "\\textbf" not in out
    out = printed(monkeypatch, capsys, trained, "--correction", "nnn", "sinkhorn", "--format", "latex")
    (line,) = [line for line in out.splitlines() if "sinkhorn (transductive)" in line.replace("\\_", "_")][:1]
    assert "\\textbf" not in line
    assert "\\textbf" in out

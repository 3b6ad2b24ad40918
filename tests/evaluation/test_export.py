"""Runs as ONNX give what they give in torch: one sentence or many, short or long."""

import json
import sys
import tomllib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import eval as evaluation
from evaluation.export import BATCH, LENGTH, bag, export_run
from features.images.views import join_features
from features.text.vocabulary import Sentences
from model import OneHotBranch
from settings import TextSettings, override, read_recipe
from tests.helpers import call, plan_small
from training.checkpoint import save_model
from training.embed import embed_sentences, new_model
from training.run import MODEL, RESULT, VOCABULARY, Run, create_run
from training.sweep import train
from utils import BadInput, write_json

SIZE, ENCODED = 12, 6  # of the features of images and of sentences
LISTS = [[3, 1, 2], [4], [0, 5, 6, 0, 1, 2, 2, 9], [0], [7, 7]]
RUNS: dict[str, dict[str, Any]] = {
    "bag": {"text.branch": "onehot", "text.bias": True, "image.standardize": True, "image.power": 0.5},
    "gru": {"similarity": "order"},
    "pooled": {"text.pooling": "gpo", "text.bidirectional": True, "text.residual": True, "image.normalize": False},
    "encoder": {"text.branch": "encoder", "text.head": "glu", "text.hidden_dim": 16, "image.branch": "residual"},
    "joined": {"text.branch": "onehot", "text.layer_norm": True, "text.weighting": "binary"},
}


def trained(folder, name):
    """A run of an epoch on made-up data, of sentence features too where the branch takes them."""
    plan, data = plan_small(folder, **{"training__epochs": 1, "training__batch_size": 64})
    changes = RUNS[name]
    made = {"backbone": "made-up", "layer": "end", "weights": "none", "transform": "resize 8", "file": "/somewhere"}
    made["dtype"] = "float32"
    plan = replace(plan, info=replace(plan.info, backbones=(made,)))
    if name in ("encoder", "joined"):
        changes = {**changes, "text.encoder": "./nowhere"}
        plan = replace(plan, info=replace(plan.info, encoder_digest="e", encoder_size=ENCODED))
        sentences = {part: each.with_features(noise(len(each))) for part, each in data.sentences.items()}
        data = replace(data, sentences=sentences)
    plan = replace(plan, settings=override(plan.settings, changes))
    train(plan, data, progress=False)
    return Run.open(folder)


def noise(count, size=ENCODED):
    return np.random.default_rng(count).normal(size=(count, size)).astype(np.float32)


def ask(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path))
    assert [each.name for each in session.get_inputs()] == list(inputs)
    return session.run(None, inputs)[0]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx")


@pytest.mark.parametrize("name", RUNS)
def test_graphs_give_what_the_run_gives(name, out):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    run = trained(out / "runs" / name, name)
    folder = out / name
    said = export_run(run.folder, folder)
    assert all((folder / file).is_file() for file in said.partition(": ")[2].split(", "))
    images = noise(BATCH + 4, SIZE)
    for rows in (images, images[:1]):
        wanted = run.embed_features(join_features([rows], run.settings.image.normalize))
        np.testing.assert_allclose(ask(folder / "images.onnx", {"features_0": rows}), wanted, atol=1e-5)
    # more sentences than were traced, longer ones and shorter ones, and one of one word alone
    for lists in (LISTS, LISTS[:2], [[4]], [[0], [8]]):
        assert max(map(len, LISTS)) > LENGTH
        sentences = Sentences.of(lists).with_features(noise(len(lists)))
        wanted = embed_sentences(run.model, sentences).numpy()
        np.testing.assert_allclose(ask(folder / "captions.onnx", inputs_of(name, sentences)), wanted, atol=1e-5)
    card = (folder / "README.md").read_text()
    for word in ("(batch, 12)", *inputs_of(name, sentences)):
        assert word in card
    assert "{{" not in card
    assert "layer `end` of `made-up`, none; its input: resize 8" in card
    assert "/somewhere" not in (folder / "recipe.toml").read_text()
    if name != "encoder":
        assert json.loads((folder / "words.json").read_text()) == run.processor.words.words
    assert (folder / VOCABULARY).read_bytes() == (run.folder / VOCABULARY).read_bytes()
    assert tomllib.loads((folder / "recipe.toml").read_text())["run"]["data"] == "data/nowhere", (
        "no path, the name of its folder"
    )


@pytest.mark.parametrize("recipe", ["image_finder", "sail"])
def test_batches_of_any_size(recipe, tmp_path):
    """Of pooled maps and of gated heads, with the weights that a model begins with."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    plan, data = plan_small(tmp_path / "run")
    small = {"embed_dim": 16, "text.encoder": "./nowhere", "text.finetune": False, "image.num_heads": 4}
    settings = override(read_recipe(recipe), small)
    maps = (2, 3) if settings.image.branch == "attention" else ()
    made = (
        {"backbone": "made-up", "layer": "end", "weights": "none", "transform": "none", "dtype": "float32", "file": ""},
    )
    info = replace(plan.info, grid=maps, encoder_digest="e", encoder_size=ENCODED, backbones=made)
    create_run(replace(plan, settings=settings, info=info), data.vocabulary)
    save_model(plan.folder / MODEL, new_model(settings, info, data.vocabulary))
    write_json(plan.folder / RESULT, {})
    run = Run.open(plan.folder)
    export_run(run.folder, tmp_path / "out")
    for batch in (1, 3, 64):
        rows = np.random.default_rng(batch).normal(size=(batch, *maps, SIZE)).astype(np.float32)
        wanted = run.embed_features(join_features([rows], settings.image.normalize))
        np.testing.assert_allclose(ask(tmp_path / "out/images.onnx", {"features_0": rows}), wanted, atol=1e-5)
        sentences = Sentences.of([[1]] * batch).with_features(noise(batch))
        wanted = embed_sentences(run.model, sentences).numpy()
        inputs = {"sentence": sentences.features}
        np.testing.assert_allclose(ask(tmp_path / "out/captions.onnx", inputs), wanted, atol=1e-5)


def inputs_of(name, sentences):
    """What the page of an exported run says that its graph takes."""
    lengths, inputs = sentences.lengths, {}
    if name != "encoder":
        inputs["words"] = np.zeros((len(lengths), lengths.max()), np.int64)
        for row, numbers in enumerate(np.split(sentences.numbers, sentences.starts[1:-1])):
            inputs["words"][row, : len(numbers)] = numbers
    if name in ("gru", "pooled"):
        inputs["lengths"] = lengths
    if name in ("encoder", "joined"):
        inputs["sentence"] = sentences.features
    return inputs


@pytest.mark.parametrize("weighting", ["mean", "count", "binary"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_padded_bags_equal_bags(weighting, num_layers):
    branch = OneHotBranch(
        10, 4, TextSettings(branch="onehot", weighting=weighting, num_layers=num_layers, hidden_dim=5)
    )
    sentences = Sentences.of(LISTS)
    padded = torch.from_numpy(inputs_of("bag", sentences)["words"])
    torch.testing.assert_close(bag(branch, padded), branch(sentences))


def test_what_cannot_be_exported_is_told(tmp_path, monkeypatch, capsys):
    run = trained(tmp_path / "runs/one", "bag")
    copy = tmp_path / "runs/two"
    copy.mkdir()
    for file in run.folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert call(monkeypatch, evaluation, run.folder, copy, "--onnx", tmp_path / "out") == 2
    assert "--onnx" in (said := capsys.readouterr().err)
    assert "takes one run, and 2 are named" in said
    pytest.importorskip("onnxscript")
    begun, runs = tmp_path / "begun", tmp_path / "runs"
    begun.mkdir()
    (begun / "recipe.toml").write_bytes((copy / "recipe.toml").read_bytes())
    before = {path: path.read_bytes() for path in copy.iterdir()}
    for out, sentence in (
        (copy, "holds other files, such as bank.safetensors"),
        (runs, "holds other files, such as one"),
        (begun, "holds a run that has been begun"),
    ):
        assert call(monkeypatch, evaluation, run.folder, "--onnx", out) == 2
        assert f"{sentence}; name a folder for the" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in copy.iterdir()} == before
    assert len(list(runs.iterdir())) == 2
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(BadInput, match="needs the packages onnx and onnxscript; pip install onnx onnxscript"):
        export_run(run.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()

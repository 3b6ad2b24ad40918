"""The five published systems from images to a table: true architectures and feature shapes, random weights."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

import eval as evaluation
import prep
import train
from features.prepared import Prepared
from features.text.sentences import frozen_encoder, sentence_encoder
from settings import read_recipe
from tests.helpers import call, draw_images, make_tiny_encoder
from training.run import Run
from utils import BadInput

pytest.importorskip("transformers")

# recipe: how prep.py makes its features, their shape, the class of its text encoder
SYSTEMS = {
    "two_branch": (["--backbone", "inception_v3"], (2048,), None),
    "order_embedding": (["--backbone", "vgg19"], (4096,), None),
    "dual_encoder": (["--backbone", "densenet201"], (1920,), "bert"),
    "image_finder": (["--backbone", "efficientnet_b0", "--map"], (7, 7, 1280), "distilbert"),
    "image2emoji": (["--backbone", "resnet18"], (512,), "albert"),
}
QUICK = ["training.epochs=1", "training.batch_size=8", "text.word_dim=8"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared folder with the features of no system yet, and a small text encoder of each class."""
    folder = tmp_path_factory.mktemp("systems")
    draw_images(folder, 8)
    for kind in ("bert", "distilbert", "albert"):
        make_tiny_encoder(folder / f"tiny-{kind}", kind)
    with pytest.MonkeyPatch.context() as patch:
        base = ["folder", "--images", folder / "images", "--captions", folder / "captions.csv"]
        where = ["--data", folder / "data", "--workers", 0]
        assert call(patch, prep, *base, *where, "--backbone", "efficientnet_lite0") == 0
    return folder


def train_args(folder, recipe, *changes):
    """A recipe as it stands, but for the hub's encoder and the length of training."""
    kind = SYSTEMS[recipe][2]
    encoder = [f"text.encoder={folder / f'tiny-{kind}'}"] if kind else []
    return [recipe, "--data", folder / "data/folder", "--runs", folder / "runs", "--set", *QUICK, *encoder, *changes]


def only_run(folder, recipe):
    (found,) = (folder / "runs").glob(f"{recipe}-*")
    return found


@pytest.mark.parametrize("recipe", SYSTEMS)
def test_a_system_from_images_to_a_table(prepared, monkeypatch, capsys, recipe):
    flags, shape, kind = SYSTEMS[recipe]
    text = ["--text-encoder", prepared / f"tiny-{kind}"] if kind else []
    # what is missing is told with the command that makes it, and that command works as it is printed
    assert call(monkeypatch, train, *train_args(prepared, recipe)) == 2
    said = capsys.readouterr().err
    command = f"python prep.py folder {' '.join(flags)} --data {prepared / 'data'}"
    assert command in said
    again = ["folder", *flags, "--data", prepared / "data", "--weights", "random", "--workers", 0]
    assert call(monkeypatch, prep, *again, *text) == 0
    store = Prepared(prepared / "data/folder").store(read_recipe(recipe).features[0])
    assert store.shape == shape
    assert store.dtype == ("float16" if len(shape) == 3 else "float32")
    assert call(monkeypatch, train, *train_args(prepared, recipe)) == 0
    capsys.readouterr()
    run = only_run(prepared, recipe)
    assert call(monkeypatch, evaluation, run, "--format", "json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["images"] == 2
    assert row["captions"] == 4
    # an image from outside, and a sentence, into the same space
    opened = Run.open(run)
    data = Prepared(prepared / "data/folder")
    split = data.split("test", opened.info.features, opened.settings.image.normalize)
    embedded = opened.embed_images([prepared / "images" / image for image in split.images])
    np.testing.assert_allclose(embedded, opened.embed_features(split.features), atol=2e-3)
    np.testing.assert_allclose(opened.embed_sentences(split.captions), opened.embed_captions(data, "test"), atol=1e-5)
    assert embedded.shape[1] == opened.settings.embed_dim


def test_sentence_features_that_are_missing_are_told_with_their_command(prepared, monkeypatch, capsys):
    args = ["image2emoji", "--data", prepared / "data/folder", "--runs", prepared / "other"]
    assert call(monkeypatch, train, *args, "--features", "efficientnet_lite0") == 2
    assert f"python prep.py folder --text-encoder albert-base-v2 --data {prepared / 'data'}" in capsys.readouterr().err


def weights_of(folder, pattern="*"):
    (found,) = folder.glob(pattern)
    return safetensors.torch.load_file(found / "model.safetensors"), found


@pytest.fixture
def with_bert(prepared, monkeypatch):
    """Arguments for train.py on lite features and the tiny BERT, whose sentence features are there."""
    encoder = prepared / "tiny-bert"
    assert call(monkeypatch, prep, "folder", "--data", prepared / "data", "--text-encoder", encoder) == 0
    return ["--data", prepared / "data/folder", "--features", "efficientnet_lite0"], f"text.encoder={encoder}"


@pytest.mark.parametrize("recipe", ["strong", "vse0"])
def test_sentence_features_are_joined_with_stems_or_words(with_bert, tmp_path, monkeypatch, recipe):
    where, encoder = with_bert
    assert call(monkeypatch, train, recipe, *where, "--runs", tmp_path, "--set", *QUICK, "embed_dim=16", encoder) == 0
    weights, run = weights_of(tmp_path)
    assert weights["text.sentence.linear.weight"].shape == (16, 32)
    assert not any("transformer" in name for name in weights), "a frozen encoder stays outside"
    assert call(monkeypatch, evaluation, run) == 0


def test_finetuning_trains_the_encoder_at_a_rate_of_its_own(with_bert, prepared, tmp_path, monkeypatch, capsys):
    where, encoder = with_bert
    original = safetensors.torch.load_file(prepared / "tiny-bert" / "model.safetensors")
    changes = ["text.finetune=true", "embed_dim=16", encoder, "training.epochs=1", "training.batch_size=4"]  # two steps
    for rate in ("0", "1e-3"):
        args = [*where, "--runs", tmp_path / rate, "--set", *changes, f"text.finetune_lr={rate}"]
        assert call(monkeypatch, train, "dual_encoder", *args) == 0
    still, _ = weights_of(tmp_path / "0")
    moved, run = weights_of(tmp_path / "1e-3")
    key = "encoder.layer.0.attention.self.query.weight"
    assert torch.equal(still[f"text.transformer.{key}"], original[key])
    assert not torch.equal(moved[f"text.transformer.{key}"], original[key])
    assert (moved[f"text.transformer.{key}"] - original[key]).abs().max() < 0.01
    assert not torch.equal(still["text.linear.weight"], moved["text.linear.weight"])
    assert call(monkeypatch, evaluation, run) == 0
    opened = Run.open(run)
    alone = np.concatenate([opened.embed_sentences([s]) for s in ("a red circle", "a square, painted blue")])
    together = opened.embed_sentences(["a red circle", "a square, painted blue"])
    np.testing.assert_allclose(alone, together, atol=1e-5)


def test_other_sentence_features_than_those_of_training_are_told(with_bert, prepared, tmp_path, monkeypatch, capsys):
    """The same folder, but another encoder in it: neither evaluation nor search takes it."""
    where, _ = with_bert
    make_tiny_encoder(tmp_path / "changing", "bert", seed=1)
    encoder = ["--set", *QUICK, f"text.encoder={tmp_path / 'changing'}"]
    texts = ["folder", "--data", prepared / "data", "--text-encoder", tmp_path / "changing"]
    assert call(monkeypatch, prep, *texts) == 0
    assert call(monkeypatch, train, "dual_encoder", *where, "--runs", tmp_path / "runs", *encoder) == 0
    make_tiny_encoder(tmp_path / "changing", "bert", seed=2)
    (run,) = (tmp_path / "runs").iterdir()
    assert call(monkeypatch, prep, *texts) == 2
    assert "--fresh" in capsys.readouterr().err
    assert call(monkeypatch, prep, *texts, "--fresh") == 0
    assert call(monkeypatch, evaluation, run) == 2
    assert "sentence features of other weights" in capsys.readouterr().err
    sentence_encoder.cache_clear()
    frozen_encoder.cache_clear()
    with pytest.raises(BadInput, match="other weights than the run was trained with"):
        Run.open(run).embed_sentences(["a red circle"])


def test_attention_wants_maps_and_the_others_do_not(prepared, monkeypatch, capsys):
    where = ["--data", prepared / "data/folder", "--runs", prepared / "other"]
    args = ["strong", *where, "--features", "efficientnet_lite0", "--set", "image.branch=attention"]
    assert call(monkeypatch, train, *args) == 2
    assert "holds no spatial maps" in capsys.readouterr().err
    lite = ["folder", "--data", prepared / "data", "--backbone", "efficientnet_lite0", "--map", "--workers", 0]
    assert call(monkeypatch, prep, *lite) == 0
    assert call(monkeypatch, train, "strong", *where, "--features", "efficientnet_lite0.map") == 2
    assert "image.branch=attention" in capsys.readouterr().err
    both = ["--features", "efficientnet_lite0.map", "efficientnet_lite0"]
    assert call(monkeypatch, train, "strong", *where, *both, "--set", "image.branch=attention") == 2
    capsys.readouterr()
    heads = ["--features", "efficientnet_lite0.map", "--set", "image.branch=attention", "image.num_heads=7"]
    assert call(monkeypatch, train, "strong", *where, *heads) == 2
    assert "image.num_heads 7" in capsys.readouterr().err

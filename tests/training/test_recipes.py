"""Every recipe trains: an epoch on made-up features, vectors or maps, with and without a sentence encoder's."""

import math
import os
import re
import subprocess
import sys
import tomllib
from typing import Any

import numpy as np
import pytest
import torch

from features.prepared import Split
from features.text.sentences import TextProcessor
from features.text.vocabulary import Vocabulary
from losses import infonce
from settings import RECIPES, known_recipes, override, read_recipe
from tests.helpers import ROOT, made_up_data, plan_small
from training.embed import embed_features
from training.recipes import recipe_table
from training.run import RunInfo, RunPlan, encoding_settings
from training.steps import Mixup, similarities
from training.sweep import train
from training.trainer import Trainer, TrainingData

TINY = {"embed_dim": 16, "image.hidden_dim": 16, "text.hidden_dim": 16, "text.word_dim": 8}
TINY |= {"training.epochs": 1, "training.batch_size": 32}
GRID, ENCODED = (2, 2), 6


def as_maps(split: Split) -> Split:
    """The same features at four positions, with noise."""
    assert isinstance(split.features, np.ndarray)
    noise = np.random.default_rng(1).normal(size=(len(split.features), *GRID, split.features.shape[1]))
    maps = (split.features[:, None, None, :] + noise).astype(np.float32)
    return Split(split.name, split.images, split.captions, split.image_of_caption, maps)


def plan_recipe(folder, name):
    """A run of a recipe on made-up data, everything small, and that data."""
    settings = override(read_recipe(name), TINY)
    untrained = settings.loss.name == "none"  # both sides come in the size of the common space
    size, encoded_size = (16, 16) if untrained else (12, ENCODED)
    text, splits = settings.text, made_up_data(size)
    maps = settings.image.branch in ("attention", "gpo")
    if maps:
        splits = {part: as_maps(split) for part, split in splits.items()}
    encoder: dict[str, Any] = {"encoder_digest": "e", "encoder_size": encoded_size} if text.encoder else {}
    grid = GRID if maps else ()
    info = RunInfo(name, "made-up", "nowhere", ("features",), ("d",), (size,), 0, "", (), grid, **encoder)
    captions = splits["train"].captions
    vocabulary = Vocabulary.build(captions).with_bigrams(captions, text.stem, text.bigrams)
    processor = TextProcessor(vocabulary, **encoding_settings(text))
    rng, sentences = np.random.default_rng(2), {}
    for part, split in splits.items():
        encoded = rng.normal(size=(len(split.captions), encoded_size)).astype(np.float32) if text.encoder else None
        sentences[part] = processor.encode(split.captions, encoded)
    return RunPlan(folder, settings, info), TrainingData(vocabulary, splits, sentences)


@pytest.mark.parametrize("name", known_recipes())
def test_every_recipe_trains_an_epoch(tmp_path, name):
    plan, data = plan_recipe(tmp_path / "run", name)
    result = train(plan, data, progress=False)
    assert result["epochs"] == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    trainer = Trainer(plan, data)
    loss = trainer.log[0]["loss"]
    assert loss is None or math.isfinite(loss)
    embedded = embed_features(trainer.model.eval(), data.splits["val"].features)
    assert embedded.shape == (len(data.splits["val"].images), 16)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(embedded)))
    assert result["rsum"] == trainer.log[0]["rsum"]


def test_a_step_mixes_both_sides_with_one_share(tmp_path):
    changes = {"text__branch": "onehot", "loss__name": "infonce", "training__mixup": 1.0}
    trainer = Trainer(*plan_small(tmp_path, **changes, text__dropout=0.0, image__dropout=0.0))
    rows = np.arange(11)
    split, sentences = trainer.data.splits["train"], trainer.data.sentences["train"]
    assert isinstance(split.features, np.ndarray)
    images = split.image_of_caption[rows]
    torch.manual_seed(5)
    mix = Mixup(float(torch.distributions.Beta(1.0, 1.0).sample()))
    model = trainer.model
    captions = model.embed_sentences(sentences.take(rows), mix)
    pixels = torch.from_numpy(split.features[images])
    scores = model.embed_images(mix.share * pixels[:5] + (1 - mix.share) * pixels[5:10]) @ captions.T
    numbers = torch.tensor([100 * a + b for a, b in zip(images[:5].tolist(), images[5:10].tolist(), strict=True)])
    expected = infonce(scores, numbers, model.scale())
    torch.manual_seed(5)
    assert trainer.train_step(rows) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_soft_targets_are_those_of_the_images_of_a_step(tmp_path, monkeypatch):
    trainer = Trainer(*plan_small(tmp_path, text__branch="onehot", loss__name="cwcl"))
    seen, loss = [], trainer.loss

    def listen(*given):
        seen.append(given)
        return loss(*given)

    monkeypatch.setattr(trainer, "loss", listen)
    rows = np.array([0, 5, 9, 1])
    trainer.train_step(rows)
    split = trainer.data.splits["train"]
    assert isinstance(split.features, np.ndarray)
    (_, images, features), expected = seen[0], split.features[split.image_of_caption[rows]]
    assert images.tolist() == split.image_of_caption[rows].tolist()
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(similarities(features, features).numpy(), unit @ unit.T, atol=1e-6)


def test_captions_of_one_image_share_a_batch(tmp_path):
    trainer = Trainer(*plan_small(tmp_path, training__captions_per_image=3, training__batch_size=1000))
    (rows,) = trainer.batches()
    images = trainer.data.splits["train"].image_of_caption[rows]
    assert len(np.flatnonzero(np.diff(images))) + 1 == 60, "all captions of an image, three at most, stand together"


@pytest.mark.parametrize("name", sorted({*known_recipes()} - {"zero_shot"}))
def test_what_a_recipe_comes_to_is_what_the_tables_say(name):
    """A row of the recipe as it is, uncorrected, with that rsum."""
    expected = tomllib.loads((RECIPES / f"{name}.toml").read_text())["expected"]
    pages = "".join((ROOT / "docs" / page).read_text() for page in ("RESULTS.md", "MODERN.md"))
    rows = re.findall(rf"^\| `{name}`(?: \(sigmoid\))? \|.*$", pages, re.MULTILINE)
    figure = re.compile(rf"\| {expected['rsum']:.1f}(?: ± \d\.\d)? \|")
    assert any(figure.search(row) for row in rows if "inverted_softmax" not in row)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_recipes_are_listed_at_once_and_fit_the_terminal(columns):
    code = "import sys; sys.argv = ['train.py', '--list']; import train; train.main()\n"
    code += "print({'torch', 'numpy', 'h5py'} & set(sys.modules), file=sys.stderr)"
    env = {**os.environ, "COLUMNS": str(columns)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=env)
    assert done.stderr.strip() == "set()", "nothing heavy is waited for"
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["recipe", "rsum"]
    assert max(map(len, lines)) <= columns
    name = ""
    listed: dict[str, str] = {}
    for line in lines[2 : lines.index("")]:
        name = name if line[0] == " " else line.split()[0]
        listed[name] = f"{listed.get(name, '')} {' '.join(line.split())}"
    assert sorted(listed) == known_recipes()
    assert all(piece in listed["dual_encoder"] for piece in ("272.9", "needs densenet201, bert-base-uncased"))
    assert "needs clip:openai/clip-vit-base-patch32; Radford" in listed["zero_shot"]
    assert "Faghri et al., 2018" in listed["vse0"]
    *figures, unmeasured = (row[1] for row in recipe_table().rows)
    assert unmeasured == "–", "zero_shot: its model has to be downloaded"
    expected = [float(figure) for figure in figures]
    assert expected == sorted(expected, reverse=True)

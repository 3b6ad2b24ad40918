"""A bag of words by NumPy alone: the embeddings of the model itself, and what else a run can do."""

import json

import numpy as np
import pytest

from tests.helpers import ROOT, train_small
from training.bag import BagRun, open_for_sentences
from training.run import Run
from utils import BadInput

SENTENCES = ["red dog", "a red, red dog and the GREEN house", "zebra", "cat zebra", "big"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text__weighting": "count", "text__stem": True},
        {"text__weighting": "binary", "similarity": "order", "loss__margin": 0.05},
        {"text__bias": True, "text__bigrams": 2},
        {"text__num_layers": 2, "text__hidden_dim": 24, "text__weighting": "count"},
        {"loss__name": "cca", "text__bias": True, "embed_dim": 8},
    ],
    ids=lambda changes: " ".join(f"{name.rpartition('_')[2]}={value}" for name, value in changes.items()) or "mean",
)
def test_sentences_are_embedded_as_by_the_model(tmp_path, changes):
    train_small(tmp_path / "run", text__branch="onehot", training__epochs=1, **changes)
    run, quick = Run.open(tmp_path / "run"), open_for_sentences(tmp_path / "run")
    assert isinstance(quick, BagRun)
    embedded = quick.embed_sentences(SENTENCES[:2])
    assert embedded.dtype == np.float32
    np.testing.assert_allclose(embedded, run.embed_sentences(SENTENCES[:2]), atol=1e-6)
    mine, its = quick.embed_sentences(SENTENCES, check=False), run.embed_sentences(SENTENCES, check=False)
    np.testing.assert_allclose(mine, its, atol=1e-6)
    assert quick.embed_sentences([]).shape == run.embed_sentences([]).shape
    assert quick.digest() == run.digest()
    features = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    np.testing.assert_array_equal(quick.embed_features(features), run.embed_features(features))


def test_a_model_that_ships(tmp_path):
    """Its weights are stored in half precision."""
    run, quick = Run.open(ROOT / "models/stems"), open_for_sentences(ROOT / "models/stems")
    sentences = ["a dog runs on the beach", "Two children's red bicycles!", "xyzzy man"]
    np.testing.assert_allclose(quick.embed_sentences(sentences), run.embed_sentences(sentences), atol=1e-6)


def test_other_runs_are_opened_as_ever(tmp_path):
    train_small(tmp_path / "run", training__epochs=1)
    assert type(open_for_sentences(tmp_path / "run")) is Run


def test_what_is_wrong_with_a_run_is_said_at_once(tmp_path):
    folder = tmp_path / "run"
    train_small(folder, text__branch="onehot", training__epochs=1)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(BadInput, match="cut short, or not the weights of this recipe"):
        open_for_sentences(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="no such file; train the run again"):
        open_for_sentences(folder)
    (folder / "result.json").unlink()
    with pytest.raises(BadInput, match="has not finished"):
        open_for_sentences(folder)


def test_weights_that_are_not_those_of_the_words(tmp_path):
    train_small(tmp_path / "run", text__branch="onehot", training__epochs=1)
    file = tmp_path / "run/vocabulary.json"
    table = json.loads(file.read_text())
    table["words"].append({"word": "more", "count": 1, "stem": "more"})
    file.write_text(json.dumps(table))
    with pytest.raises(BadInput, match=r"not the weights of this recipe \(text\.bag\.weight is \(11, 16\) and not"):
        open_for_sentences(tmp_path / "run")

"""Probabilities of pairs: a logistic curve that is right as often as it says, and the figures it is drawn over."""

import doctest

import numpy as np
import pytest

from metrics.similarity import TRAINING
from tests.helpers import plan_small, train_small
from training import calibration, fill_bank
from training.bank import read_bank
from training.calibration import ANSWERED, Calibration, calibrate, nearness_to, shuffled_sentences, spread
from training.checkpoint import load_model
from training.embed import embed_features, embed_sentences
from training.trainer import Trainer


def test_docstrings():
    assert doctest.testmod(calibration).failed == 0


def test_it_finds_the_curve_that_made_the_cases():
    """Cases are drawn so that the share of matches is a known curve of both figures; ANSWERED of them match."""
    random = np.random.default_rng(0)
    score, nearness = random.normal(0.5, 0.2, 40_000), random.normal(0.4, 0.1, 40_000)
    truth = Calibration(-4.0, 9.0, 6.0)
    matches = random.random(40_000) < truth.probabilities(score, nearness)
    fitted = calibrate(score[matches], nearness[matches], score[~matches], nearness[~matches])
    share = matches.mean()
    shift = np.log(ANSWERED / (1 - ANSWERED)) - np.log(share / (1 - share))  # more of the cases match than here
    assert fitted.score == pytest.approx(truth.score, rel=0.05)
    assert fitted.nearness == pytest.approx(truth.nearness, rel=0.1)
    assert fitted.intercept == pytest.approx(truth.intercept + shift, abs=0.3)
    weights = np.where(matches, ANSWERED / share, (1 - ANSWERED) / (1 - share))
    said = fitted.probabilities(score, nearness)
    for low in np.arange(0.1, 0.9, 0.2):
        part = (said >= low) & (said < low + 0.2)
        assert np.average(matches[part], weights=weights[part]) == pytest.approx(
            np.average(said[part], weights=weights[part]), abs=0.04
        )


def test_a_higher_score_is_never_less_likely():
    low, high = np.linspace(0, 0.4, 200), np.linspace(0.6, 1, 200)
    beside = calibrate(low, high, low + 0.01, low)  # nearness says it all, the score a little less than nothing
    assert beside.score >= 0
    assert calibrate(low, high, high, high).probabilities(np.array([0.1, 0.9]), 0.5) == pytest.approx([ANSWERED] * 2)


def test_nearness_is_the_mean_of_the_nearest_captions(monkeypatch):
    monkeypatch.setattr(calibration, "NEIGHBORS", 2)
    monkeypatch.setattr(calibration, "MAX_SENTENCES", 3)
    random = np.random.default_rng(0)
    bank, sentences = random.normal(size=(7, 4)), random.normal(size=(5, 4))
    kept = [bank[0], bank[2], bank[4]]
    for sentence, nearness in zip(sentences, nearness_to(bank, sentences), strict=True):
        plain = sorted((float(sentence @ row) for row in kept), reverse=True)
        assert float(nearness) == pytest.approx(sum(plain[:2]) / 2, abs=1e-5)
    np.testing.assert_array_equal(nearness_to(spread(bank, 3), sentences), nearness_to(bank, sentences))


def test_shuffled_sentences_are_of_the_captions_words():
    captions = ["a dog runs", "two red cars", "a very long caption of many words here"]
    made = shuffled_sentences(captions, 0)
    assert len(made) == calibration.SHUFFLED
    assert {len(sentence.split()) for sentence in made} == {3, 8}
    assert {word for sentence in made for word in sentence.split()} == set(" ".join(captions).split())
    assert made == shuffled_sentences(captions, 0) != shuffled_sentences(captions, 1)


def test_a_run_with_few_images_of_val_keeps_none_and_says_so(tmp_path, capsys):
    train_small(tmp_path / "few")
    kept = read_bank(tmp_path / "few")
    assert kept is not None
    assert kept.calibration is None
    assert kept.chosen["train"], "all else is kept"
    said = capsys.readouterr().err
    assert (
        "few: its answers get no probabilities: val has 20 images, and a curve over fewer than 50 says little" in said
    )


@pytest.mark.parametrize("similarity", ["cosine", "order"])
def test_a_run_keeps_that_of_its_val(tmp_path, similarity, monkeypatch, capsys):
    monkeypatch.setattr(fill_bank, "MIN_IMAGES", 20)
    plan, data = plan_small(tmp_path, similarity=similarity, loss__margin=0.05)
    train_small(tmp_path, similarity=similarity, loss__margin=0.05)
    trainer = Trainer(plan, data)
    load_model(tmp_path / "model.safetensors", trainer.model)
    model, kept = trainer.model.eval(), read_bank(tmp_path)
    assert kept is not None
    assert kept.calibration is not None
    images = embed_features(model, data.splits["val"].features)
    captions = embed_sentences(model, data.sentences["val"])
    best = TRAINING[similarity](images, captions).amax(dim=0).numpy()
    said = kept.calibration.probabilities(best, nearness_to(kept.captions, captions.numpy()))
    assert said.shape == best.shape
    assert ((said > 0) & (said < 1)).all()
    assert kept.calibration.score >= 0
    assert "no probabilities" not in capsys.readouterr().err

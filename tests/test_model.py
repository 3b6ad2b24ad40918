"""Branches against plain computations."""

import numpy as np
import pytest
import torch

from features.prepared import join_features
from features.vocabulary import Sentences
from model import TwoBranch
from settings import Settings, override

LISTS = [[1, 2, 2], [3], [4, 1, 0, 5, 2], [0]]
SENTENCES = Sentences.of(LISTS)


def build(**changes):
    torch.manual_seed(0)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return TwoBranch(override(Settings(), {"dim": 8, "text.words": 5, **changes}), features=6, words=7).eval()


def one_hot(words, weighting):
    x = torch.zeros(7)
    known = [word for word in words if word]
    for word in known:
        x[word] += 1
    if weighting == "binary":
        x = (x > 0).float()
    return x / max(1, len(known)) if weighting == "mean" else x


@pytest.mark.parametrize("weighting", ["mean", "binary", "count"])
@pytest.mark.parametrize("layers", [1, 2])
def test_one_hot_branch_equals_a_matrix_product(weighting, layers):
    model = build(text__branch="onehot", text__weighting=weighting, text__layers=layers, text__hidden=9)
    x = torch.stack([one_hot(words, weighting) for words in LISTS]) @ model.text.bag.weight
    if layers == 2:
        _, second = model.text.second
        x = torch.relu(x + model.text.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(model.text(SENTENCES), x)


def test_unknown_words_are_not_trained():
    model = build(text__branch="onehot").train()
    model.text(SENTENCES).sum().backward()
    assert model.text.bag.weight.grad[0].abs().max() == 0
    assert model.text.bag.weight.grad[1].abs().max() > 0


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_gru_branch_equals_one_sentence_at_a_time(pooling, bidirectional):
    model = build(text__branch="gru", text__pooling=pooling, text__bidirectional=bidirectional)
    gru = model.text.gru
    for row, words in zip(model.text(SENTENCES), LISTS, strict=True):
        states, last = gru(model.text.embedding(torch.tensor([words])))
        states = states[0].unflatten(1, (-1, 8)).mean(dim=1)  # the two directions averaged
        plain = {"last": last[:, 0].mean(dim=0), "mean": states.mean(dim=0), "max": states.amax(dim=0)}[pooling]
        torch.testing.assert_close(row, plain)


def test_image_branches():
    x = torch.randn(3, 6)
    linear = build().image
    torch.testing.assert_close(linear(x), x @ linear[1].weight.T)
    perceptron = build(image__branch="perceptron", image__hidden=11).image
    middle = torch.relu(x @ perceptron[1].weight.T + perceptron[1].bias)
    torch.testing.assert_close(perceptron(x), middle @ perceptron[4].weight.T + perceptron[4].bias)


@pytest.mark.parametrize("branch", ["gru", "onehot"])
def test_embeddings_have_unit_length_and_are_non_negative_for_order(branch):
    for similarity in ("cosine", "order"):
        model = build(similarity=similarity, text__branch=branch)
        for embedded in (model.embed_images(torch.randn(4, 6)), model.embed_sentences(Sentences.of(LISTS[:3]))):
            torch.testing.assert_close(embedded.norm(dim=1), torch.ones(len(embedded)))
            assert (embedded >= 0).all() == (similarity == "order")


def test_a_sentence_of_unknown_words_stays_finite():
    model = build(text__branch="onehot")
    assert torch.isfinite(model.embed_sentences(Sentences.of([[0]]))).all()


def test_binary_takes_every_word_once_whatever_the_order():
    model = build(text__branch="onehot", text__weighting="binary")
    a, b = model.text(Sentences.of([[3, 1, 3], [1, 3]]))
    assert torch.equal(a, b)
    assert np.array_equal(SENTENCES.numbers[:3], [1, 2, 2]), "encoding leaves its input as it is"


@pytest.mark.parametrize("branch", ["gru", "onehot"])
def test_dropout_acts_in_training_only(branch):
    model = build(text__branch=branch, text__dropout=0.5, image__dropout=0.5).train()
    x = torch.ones(200, 6)
    dropped = model.image[0](x)
    assert 0.3 < (dropped == 0).float().mean() < 0.7
    assert not torch.equal(model.text(SENTENCES), model.text(SENTENCES))
    model.eval()
    assert torch.equal(model.image[0](x), x)
    assert torch.equal(model.text(SENTENCES), model.text(SENTENCES))


def test_several_features_are_always_normalised_before_they_are_joined():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), 100 * rng.normal(size=(5, 4))
    joined = join_features([a, b], normalise=False)
    np.testing.assert_allclose(np.linalg.norm(joined[:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joined[:, 3:], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(join_features([b], normalise=False), b.astype(np.float32))
    assert (join_features([np.zeros((2, 3))], normalise=True) == 0).all()

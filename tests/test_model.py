"""Branches against plain computations."""

from typing import Any

import numpy as np
import pytest
import torch

from features.prepared import join_features
from features.text.vocabulary import Sentences
from model import InputDims, TwoBranch
from settings import Settings, override

LISTS = [[1, 2, 2], [3], [4, 1, 0, 5, 2], [0]]
SENTENCES = Sentences.of(LISTS)


def build(**changes):
    torch.manual_seed(0)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return TwoBranch(
        override(Settings(), {"embed_dim": 8, "text.word_dim": 5, **changes}), InputDims(image_dim=6, num_words=7)
    ).eval()


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
    model = build(text__branch="onehot", text__weighting=weighting, text__num_layers=layers, text__hidden_dim=9)
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


@pytest.mark.parametrize(("bidirectional", "residual"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "gpo"])
def test_gru_branch_equals_one_sentence_at_a_time(pooling, bidirectional, residual):
    changes = {"text__branch": "gru", "text__bidirectional": bidirectional, "text__residual": residual}
    model = build(text__pooling=pooling, **changes)
    gru = model.text.gru
    for row, words in zip(model.text(SENTENCES), LISTS, strict=True):
        states, last = gru(model.text.embedding(torch.tensor([words])))
        states = states[0].unflatten(1, (-1, 8)).mean(dim=1)  # the two directions averaged
        plain = {"last": last[:, 0].mean(dim=0), "mean": states.mean(dim=0), "max": states.amax(dim=0)}
        if pooling == "gpo":  # layers/ has its test
            plain["gpo"] = model.text.gpo(states[None], torch.ones(1, len(words), dtype=torch.bool))[0]
        if residual:
            known = [model.text.embedding.weight[word] for word in words if word]
            bag = torch.stack(known).mean(dim=0) if known else torch.zeros(5)
            plain[pooling] = plain[pooling] + model.text.past(bag)
        torch.testing.assert_close(row, plain[pooling])


def test_image_branches():
    x = torch.randn(3, 6)
    linear = build().image
    torch.testing.assert_close(linear(x), x @ linear[1].weight.T)
    mlp = build(image__branch="mlp", image__hidden_dim=11).image
    middle = torch.relu(x @ mlp[1].weight.T + mlp[1].bias)
    torch.testing.assert_close(mlp(x), middle @ mlp[4].weight.T + mlp[4].bias)
    for branch in ("glu", "residual"):  # layers/ has their tests
        deep = build(image__branch=branch, image__hidden_dim=11, image__num_blocks=2, image__dropout=0.5).image
        x = torch.randn(3, 6)
        torch.testing.assert_close(deep(x), torch.nn.Sequential(*deep[1:])(x))
        assert deep[0].p == (0.5 if branch == "glu" else 0), "residual blocks have their dropout within"


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


@pytest.mark.parametrize("branch", ["gru", "onehot"])
def test_word_dropout_acts_in_training_only(branch):
    model, whole = (build(text__branch=branch, text__word_dropout=share) for share in (0.5, 0.0))
    assert torch.equal(model.text(SENTENCES), whole.text(SENTENCES))
    torch.manual_seed(3)
    dropped = model.train().text(SENTENCES)
    torch.manual_seed(3)
    draws = torch.rand(len(SENTENCES.numbers)).numpy()
    torch.testing.assert_close(dropped, whole.train().text(SENTENCES.drop(draws, 0.5)))


def test_several_features_are_always_normalized_before_they_are_joined():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), 100 * rng.normal(size=(5, 4))
    joined = join_features([a, b], normalize=False)
    np.testing.assert_allclose(np.linalg.norm(joined[:, :3], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joined[:, 3:], axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(join_features([b], normalize=False), b.astype(np.float32))
    assert (join_features([np.zeros((2, 3))], normalize=True) == 0).all()


def sentences_with(features=None, tokens=None):
    return Sentences.of(LISTS[:3]).with_features(features).with_tokens(tokens)


def test_a_frozen_encoder_is_a_linear_layer_on_its_unit_features():
    settings = override(Settings(), {"embed_dim": 8, "text.branch": "encoder", "text.encoder": "name"})
    model: Any = TwoBranch(settings, InputDims(image_dim=6, num_words=7, encoder_dim=5)).eval()
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    embedded = model.embed_sentences(sentences_with(features.numpy()))
    expected = [f / f.norm() @ model.text.linear.weight.T + model.text.linear.bias for f in features]
    torch.testing.assert_close(embedded, torch.stack([row / row.norm() for row in expected]))
    normed = override(settings, {"text.layer_norm": True})
    model = TwoBranch(normed, InputDims(image_dim=6, num_words=7, encoder_dim=5)).eval()
    expected = [(f - f.mean()) / (f.var(correction=0) + 1e-5).sqrt() @ model.text.linear.weight.T for f in features]
    embedded = model.embed_sentences(sentences_with(features.numpy()))
    torch.testing.assert_close(embedded, torch.stack([row / row.norm() for row in expected]))


@pytest.mark.parametrize("branch", ["gru", "onehot"])
def test_an_encoder_joined_with_words_is_added_to_them(branch):
    changes = {"embed_dim": 8, "text.branch": branch, "text.encoder": "name", "text.word_dim": 4}
    model: Any = TwoBranch(override(Settings(), changes), InputDims(image_dim=6, num_words=7, encoder_dim=5)).eval()
    sentences = sentences_with(np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32))
    both = model.text.words(sentences) + model.text.sentence(sentences)
    torch.testing.assert_close(model.embed_sentences(sentences), torch.nn.functional.normalize(both, dim=1))


def test_attention_pooling_takes_maps():
    settings = override(Settings(), {"embed_dim": 8, "image.branch": "attention", "image.num_heads": 2})
    model: Any = TwoBranch(settings, InputDims(image_dim=6, num_words=7, grid=(2, 3))).eval()
    maps = torch.randn(4, 2, 3, 6, generator=torch.Generator().manual_seed(0))
    embedded = model.embed_images(maps)
    assert embedded.shape == (4, 8)
    assert not torch.allclose(embedded, model.embed_images(maps.flip(2))), "where things are counts"


def test_gpo_pooling_takes_maps():
    settings = override(Settings(), {"embed_dim": 8, "image.branch": "gpo"})
    model: Any = TwoBranch(settings, InputDims(image_dim=6, num_words=7, grid=(2, 3))).eval()
    maps = torch.randn(4, 2, 3, 6, generator=torch.Generator().manual_seed(0))
    embedded = model.embed_images(maps)
    assert embedded.shape == (4, 8)
    torch.testing.assert_close(embedded, model.embed_images(maps.flip(2)))  # where things are does not count


@pytest.mark.parametrize("head", ["mlp", "glu", "residual"])
def test_a_head_stands_behind_the_encoder(head):
    changes = {"embed_dim": 8, "text.branch": "encoder", "text.encoder": "name", "text.head": head}
    settings = override(Settings(), {**changes, "text.hidden_dim": 9, "text.num_blocks": 2, "text.dropout": 0.5})
    model: Any = TwoBranch(settings, InputDims(image_dim=6, num_words=7, encoder_dim=5)).eval()
    features = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.normalize(model.text.linear(torch.nn.functional.normalize(features)))
    torch.testing.assert_close(model.embed_sentences(sentences_with(features.numpy())), expected)


@pytest.mark.parametrize("weighting", ["mean", "binary", "count"])
@pytest.mark.parametrize("encoder", ["", "name"])
def test_mixed_sentences_are_mixed_bags_and_mixed_features(weighting, encoder):
    """A mixture of bags through the first layer, as the matrix product has it."""
    changes = {"embed_dim": 8, "text.branch": "onehot", "text.encoder": encoder, "text.weighting": weighting}
    settings = override(Settings(), {**changes, "text.num_layers": 2, "text.hidden_dim": 9, "text.dropout": 0.5})
    model: Any = TwoBranch(settings, InputDims(image_dim=6, num_words=7, encoder_dim=5)).eval()
    sentences = Sentences.of(LISTS)
    words = model.text.words if encoder else model.text
    bags = torch.stack([one_hot(words, weighting) for words in LISTS])
    _, second = words.second
    expected = torch.relu((0.3 * bags[:2] + 0.7 * bags[2:]) @ words.bag.weight + words.bias) @ second.weight.T
    if encoder:
        features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        sentences, unit = sentences.with_features(features.numpy()), torch.nn.functional.normalize(features)
        expected = expected + model.text.sentence.linear(0.3 * unit[:2] + 0.7 * unit[2:])
    mixed = model.embed_sentences(sentences, lambda x: 0.3 * x[:2] + 0.7 * x[2:])
    torch.testing.assert_close(mixed, torch.nn.functional.normalize(expected))


def test_sentences_take_their_features_and_tokens_along():
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    taken = sentences_with(features, Sentences.of([[1, 2], [3], [4, 5, 6]])).take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(taken.features, features[[2, 0, 2]])
    assert taken.tokens is not None
    assert taken.tokens.numbers.tolist() == [4, 5, 6, 1, 2, 4, 5, 6]

"""Branches against plain computations."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from features.prepared import join_features
from features.text.vocabulary import Sentences
from model import AttentionPool, InputDims, TwoBranch, heads_for
from settings import Settings, override
from utils import BadInput

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
    mlp = build(image__branch="mlp", image__hidden_dim=11).image
    middle = torch.relu(x @ mlp[1].weight.T + mlp[1].bias)
    torch.testing.assert_close(mlp(x), middle @ mlp[4].weight.T + mlp[4].bias)


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


def test_sentences_take_their_features_and_tokens_along():
    features = np.arange(6, dtype=np.float32).reshape(3, 2)
    taken = sentences_with(features, Sentences.of([[1, 2], [3], [4, 5, 6]])).take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(taken.features, features[[2, 0, 2]])
    assert taken.tokens is not None
    assert taken.tokens.numbers.tolist() == [4, 5, 6, 1, 2, 4, 5, 6]


# Attention pooling against nn.MultiheadAttention called plainly


def plain_pool(pool: AttentionPool, maps: Tensor) -> Tensor:
    """The definition (Radford et al., 2021, section 2.4), one token at a time where it is written so."""
    positions = [maps[:, row, column] for row in range(maps.shape[1]) for column in range(maps.shape[2])]
    tokens = torch.stack([torch.stack(positions).mean(dim=0), *positions], dim=1) + pool.positional_embedding
    return pool.attention(tokens[:, :1], tokens, tokens)[0][:, 0]


def build_pool(grid: tuple[int, int], channels: int, heads: int) -> AttentionPool:
    torch.manual_seed(0)
    pool = AttentionPool(grid, channels, heads).double()
    for name, parameter in pool.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)  # zeros would hide a bias that is left out
    return pool


@pytest.mark.parametrize(
    ("count", "grid", "channels", "heads"),
    [(3, (2, 2), 8, 1), (4, (7, 7), 12, 3), (2, (3, 5), 16, 16), (1, (1, 1), 6, 2), (5, (1, 4), 10, 5)],
)
def test_pooling_equals_plain_attention_with_its_gradients(
    count: int, grid: tuple[int, int], channels: int, heads: int
) -> None:
    pool = build_pool(grid, channels, heads)
    maps = torch.randn(count, *grid, channels, dtype=torch.float64, requires_grad=True)
    target = torch.randn(count, channels, dtype=torch.float64)
    results = []
    for pooled in (pool(maps), plain_pool(pool, maps)):
        inputs = {"maps": maps, **dict(pool.named_parameters())}
        gradients = torch.autograd.grad((pooled * target).sum(), list(inputs.values()))
        results.append((pooled, dict(zip(inputs, gradients, strict=True))))
    (ours, our_gradients), (plain, plain_gradients) = results
    assert ours.shape == (count, channels)
    torch.testing.assert_close(ours, plain)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, msg=f"gradient of {name}")
        if grid != (1, 1):  # where the mean is the only position, and the query makes no difference
            assert name.endswith("bias") or gradient.abs().max() > 1e-6, name


def test_pooling_works_on_float32_of_real_size() -> None:
    torch.manual_seed(0)
    pool = AttentionPool((7, 7), 256)
    maps = torch.rand(4, 7, 7, 256)
    torch.testing.assert_close(pool(maps), plain_pool(pool, maps), rtol=1e-4, atol=1e-5)
    assert pool(maps[:0]).shape == (0, 256)


def test_without_attention_the_mean_is_what_is_left() -> None:
    """Equal scores, no positional embedding, projections that change nothing: the mean of all positions."""
    pool = build_pool((2, 3), 4, 2)
    with torch.no_grad():
        for parameter in pool.parameters():
            parameter.zero_()
        pool.attention.in_proj_weight[8:] = torch.eye(4)
        pool.attention.out_proj.weight[:] = torch.eye(4)
    maps = torch.randn(5, 2, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(pool(maps), maps.mean(dim=(1, 2)))


def test_weights_begin_as_in_clip() -> None:
    torch.manual_seed(0)
    pool = AttentionPool((7, 7), 400, 4)
    for weight in (pool.positional_embedding, pool.attention.in_proj_weight, pool.attention.out_proj.weight):
        assert weight.std().item() == pytest.approx(400**-0.5, rel=0.03)
        assert abs(weight.mean().item()) < 0.002
    assert pool.attention.in_proj_bias.abs().max() == pool.attention.out_proj.bias.abs().max() == 0
    assert pool.positional_embedding.shape == (50, 400)


def test_the_keys_bias_is_never_trained() -> None:
    pool = build_pool((2, 2), 8, 2)
    pool(torch.randn(3, 2, 2, 8, dtype=torch.float64)).sum().backward()
    gradient = pool.attention.in_proj_bias.grad
    assert gradient is not None
    assert (gradient.unflatten(0, (3, 8)).abs().sum(dim=1) > 0).tolist() == [True, False, True]


def test_maps_of_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"maps of \(5, 3\) positions for a pooling of \(3, 5\)"):
        AttentionPool((3, 5), 8, 2)(torch.zeros(2, 5, 3, 8))


@pytest.mark.parametrize(
    ("channels", "heads", "expected"),
    [(1280, 0, 20), (2048, 0, 32), (512, 0, 8), (1000, 0, 10), (30, 0, 1), (1280, 5, 5), (7, 7, 7)],
)
def test_heads_are_one_per_64_channels_unless_said_otherwise(channels: int, heads: int, expected: int) -> None:
    assert heads_for(channels, heads) == expected


def test_heads_that_do_not_divide_the_channels_are_refused() -> None:
    with pytest.raises(
        BadInput, match=r"`image\.num_heads` 12: 1280 channels .* take 8, 10, 16 or another divisor of 1280"
    ):
        heads_for(1280, 12)
    with pytest.raises(BadInput, match=r"`image\.num_heads` 3: .*, or 0 for one per 64 channels"):
        AttentionPool((7, 7), 8, 3)

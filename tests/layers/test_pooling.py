"""Poolings against plain computations."""

import math

import pytest
import torch
from torch import Tensor

from layers.pooling import GPO, AttentionPool, GPOPool, heads_for
from utils import BadInput

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


# GPO against one dimension and one length at a time


def plain_gpo(gpo: GPO, features: Tensor, keep: Tensor) -> Tensor:
    rows = []
    for values, kept in zip(features, keep, strict=True):
        values = values[kept]
        states, _ = gpo.gru(plain_encodings(len(values)).to(values)[None])
        scores = gpo.linear((states[0, :, :32] + states[0, :, 32:]) / 2)[:, 0]
        weights = torch.softmax(scores / 0.1, dim=0)
        columns = [sorted(column, reverse=True) for column in values.T]
        rows.append(torch.stack([sum(w * v for w, v in zip(weights, column, strict=True)) for column in columns]))
    return torch.stack(rows)


def plain_encodings(count: int) -> Tensor:
    """Vaswani et al. (2017): sin(p / 10000^(2i / 32)) and cos of the same, side by side."""
    rows = []
    for position in range(count):
        angles = [position / 10000 ** (2 * i / 32) for i in range(16)]
        rows.append([wave(angle) for angle in angles for wave in (math.sin, math.cos)])
    return torch.tensor(rows, dtype=torch.float64)


KEEP = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1, 0, 1, 0, 0, 1]], dtype=torch.bool)


def build_gpo() -> GPO:
    torch.manual_seed(0)
    return GPO().double()


def test_gpo_equals_plain_loops() -> None:
    gpo = build_gpo()
    features = torch.randn(4, 6, 3, dtype=torch.float64)
    pooled = gpo(features, KEEP)
    torch.testing.assert_close(pooled, plain_gpo(gpo, features, KEEP))
    torch.testing.assert_close(pooled[2], features[2, 5])  # of one value, itself
    shuffled = torch.randperm(6)
    torch.testing.assert_close(gpo(features[:, shuffled], KEEP[:, shuffled]), pooled)  # whatever the order


def test_gradients_of_gpo_are_those_of_differences() -> None:
    gpo = build_gpo()
    features = torch.randn(4, 6, 2, dtype=torch.float64, requires_grad=True)
    names = ["linear.weight", "gru.bias_hh_l0"]
    weights = [gpo.get_parameter(name) for name in names]

    def of(features: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(gpo, dict(zip(names, weights, strict=True)), (features, KEEP))

    assert torch.autograd.gradcheck(of, (features, *weights))


def test_weights_of_gpo_add_up_to_one_and_end_with_the_values() -> None:
    weights = build_gpo().weights(torch.tensor([3, 1, 3, 5]))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4, dtype=torch.float64))
    assert (weights > 0).sum(dim=1).tolist() == [3, 1, 3, 5]


def test_a_map_is_projected_and_pooled_and_loses_positions_in_training_only() -> None:
    torch.manual_seed(0)
    pool = GPOPool(5, 3, dropout=0.5)
    maps = torch.randn(4, 2, 3, 5)
    projected = maps.flatten(1, 2) @ pool.linear.weight.T + pool.linear.bias
    torch.manual_seed(1)
    pooled = pool(maps)
    torch.manual_seed(1)
    draws = torch.rand(4, 6)
    keep = draws >= 0.5
    keep[torch.arange(4), draws.argmax(dim=1)] = True
    assert 0 < keep.sum() < keep.numel()
    torch.testing.assert_close(pooled, pool.gpo(projected, keep))
    torch.testing.assert_close(pool.eval()(maps), pool.gpo(projected, torch.ones_like(keep)))
    assert torch.isfinite(GPOPool(5, 3, dropout=0.99)(maps)).all(), "one position stays"

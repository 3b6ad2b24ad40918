"""Attention pooling against nn.MultiheadAttention called plainly."""

import pytest
import torch
from torch import Tensor

from model import AttentionPool, heads_for
from utils import BadInput


def plain_pool(pool: AttentionPool, maps: Tensor) -> Tensor:
    """The definition (Radford et al., 2021, section 2.4), one token at a time where it is written so."""
    positions = [maps[:, row, column] for row in range(maps.shape[1]) for column in range(maps.shape[2])]
    tokens = torch.stack([torch.stack(positions).mean(dim=0), *positions], dim=1) + pool.places
    return pool.attention(tokens[:, :1], tokens, tokens)[0][:, 0]


def build(grid: tuple[int, int], channels: int, heads: int) -> AttentionPool:
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
    pool = build(grid, channels, heads)
    maps = torch.randn(count, *grid, channels, dtype=torch.float64, requires_grad=True)
    target = torch.randn(count, channels, dtype=torch.float64)
    found = []
    for pooled in (pool(maps), plain_pool(pool, maps)):
        inputs = {"maps": maps, **dict(pool.named_parameters())}
        gradients = torch.autograd.grad((pooled * target).sum(), list(inputs.values()))
        found.append((pooled, dict(zip(inputs, gradients, strict=True))))
    (ours, our_gradients), (plain, plain_gradients) = found
    assert ours.shape == (count, channels)
    torch.testing.assert_close(ours, plain)
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, msg=f"gradient of {name}")
        if grid != (1, 1):  # there the mean is the only position, and what they are asked makes no difference
            assert name.endswith("bias") or gradient.abs().max() > 1e-6, name


def test_pooling_works_on_float32_of_real_size() -> None:
    torch.manual_seed(0)
    pool = AttentionPool((7, 7), 256, heads_for(256))
    maps = torch.rand(4, 7, 7, 256)
    torch.testing.assert_close(pool(maps), plain_pool(pool, maps), rtol=1e-4, atol=1e-5)
    assert pool(maps[:0]).shape == (0, 256)


def test_without_attention_the_mean_is_what_is_left() -> None:
    """Equal scores, no embedding of place, projections that change nothing: the mean of all positions."""
    pool = build((2, 3), 4, 2)
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
    for weight in (pool.places, pool.attention.in_proj_weight, pool.attention.out_proj.weight):
        assert weight.std().item() == pytest.approx(400**-0.5, rel=0.03)
        assert abs(weight.mean().item()) < 0.002
    assert pool.attention.in_proj_bias.abs().max() == pool.attention.out_proj.bias.abs().max() == 0
    assert pool.places.shape == (50, 400)


def test_the_keys_bias_is_never_trained() -> None:
    pool = build((2, 2), 8, 2)
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
    with pytest.raises(BadInput, match=r"image\.heads 12: 1280 channels .* take 8, 10, 16 or another divisor of 1280"):
        heads_for(1280, 12)
    with pytest.raises(BadInput, match=r"image\.heads 3: .*, or 0 for one per 64 channels"):
        AttentionPool((7, 7), 8, 3)

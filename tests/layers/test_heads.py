"""Heads against plain matrix products, and their gradients."""

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm

from layers.heads import GatedLinearUnit, ResidualBlock, head_layers


def build(kind, dropout=0.0, blocks=2):
    torch.manual_seed(0)
    layers = head_layers(kind, 5, 3, hidden_dim=7, num_blocks=blocks, dropout=dropout)
    head = nn.Sequential(*layers).double()
    for name, parameter in head.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)  # zeros would hide a bias that is left out
    return head


def affine(layer, x):
    """One row at a time, one number at a time."""
    rows = [[sum(w * v for w, v in zip(weights, row, strict=True)) for weights in layer.weight] for row in x]
    return torch.stack([torch.stack(row) for row in rows]) + layer.bias


def plain_head(kind, head, x):
    if kind == "linear":
        return affine(head[0], x)
    if kind == "mlp":
        return affine(head[3], affine(head[0], x).clamp(min=0))
    if kind == "glu":
        x = layer_norm(x, (5,), head[0].weight, head[0].bias)
        return affine(head[3], affine(head[1].gate, x).clamp(min=0) * affine(head[1].value, x))
    *blocks, norm, last = head
    for block in blocks:
        inner = block.layers
        x = x + affine(inner[4], gelu(affine(inner[1], layer_norm(x, (5,), inner[0].weight, inner[0].bias))))
    return affine(last, layer_norm(x, (5,), norm.weight, norm.bias))


KINDS = ("linear", "mlp", "glu", "residual")


@pytest.mark.parametrize("kind", KINDS)
def test_heads_equal_plain_loops(kind):
    head, x = build(kind), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(head(x), plain_head(kind, head, x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind):
    head, x = build(kind), torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    names, weights = zip(*head.named_parameters(), strict=True)

    def of(x, *weights):
        return torch.func.functional_call(head, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(of, (x, *weights))


@pytest.mark.parametrize("kind", KINDS[1:])
def test_dropout_acts_within_and_in_training_only(kind):
    head, x = build(kind, dropout=0.5), torch.randn(4, 5, dtype=torch.float64)
    assert not torch.equal(head(x), head(x))
    torch.testing.assert_close(head.eval()(x), plain_head(kind, head, x))


def test_a_shut_gate_and_a_block_of_zeros():
    gated = GatedLinearUnit(5, 7)
    with torch.no_grad():
        gated.gate.bias.fill_(-100.0)
    assert not gated(torch.rand(2, 5)).any()
    block, x = ResidualBlock(5, 7, 0.0), torch.randn(2, 5)
    torch.nn.init.zeros_(block.get_parameter("layers.4.weight"))
    assert torch.equal(block(x), x), "what a block adds to is its input"


def test_residual_heads_have_as_many_blocks_as_asked_for():
    assert [len(build("residual", blocks=count)) for count in (1, 4)] == [3, 6]

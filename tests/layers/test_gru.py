"""The GRU of layers/gru.py against torch's own: outputs and every gradient."""

import doctest
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from layers import gru as room
from layers.gru import gru_states

NAMES = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")


def test_docstrings():
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize("lengths", [[5, 5, 5], [6, 4, 4, 1], [1, 1], [3]])
def test_outputs_and_gradients_are_torchs(lengths):
    torch.manual_seed(0)
    gru = nn.GRU(7, 9, batch_first=True)
    padded = torch.randn(len(lengths), max(lengths), 7)
    packed = pack_padded_sequence(padded, torch.tensor(lengths), batch_first=True)
    index = torch.randint(4, (len(packed.data),))
    distinct, weight = torch.randn(4, 7), torch.randn(len(packed.data), 9)
    results = []
    for ours in (False, True):
        x = distinct.clone().requires_grad_()
        counts = packed.batch_sizes.tolist()
        states = gru_states(gru, x, index, counts) if ours else gru(packed._replace(data=x[index]))[0].data
        results.append([states.detach(), *torch.autograd.grad((states * weight).sum(), [x, *gru.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    gru = nn.GRU(3, 4, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    index = torch.tensor([0, 1, 1, 0, 3, 2])

    def states(x, *weights):
        parameters: Any = SimpleNamespace(**dict(zip(NAMES, weights, strict=True)))
        return gru_states(parameters, x, index, [3, 2, 1])

    assert torch.autograd.gradcheck(states, (x, *(getattr(gru, name) for name in NAMES)))

"""A GRU over sentences of any lengths, quicker on a CPU than torch's own, with its parameters and its results."""

from typing import Any

import torch
from torch import Tensor, nn


def gru_states(gru: nn.GRU, x: Tensor, index: Tensor, counts: list[int]) -> Tensor:
    """Return the states of all steps, packed: (N, hidden_size). The first state is zero.

    gru: of one layer and one direction, whose parameters are used. x: (U, input_size), the distinct inputs; index: (N,)
    which of them each input is, packed as torch packs them: first those of step 0 of all sentences, the longest
    sentence first, then those of step 1 of the sentences that are longer than one, and so on. counts: sentences in each
    step, falling.

    What does not depend on the step before is one matrix product over all steps: the projection of the distinct inputs,
    of which a batch of captions has a third or a quarter of its words, and, in the backward pass, the gradients of both
    weights and of the inputs. The state before the first step is zero, so that its products are left out.

    >>> index = torch.tensor([0, 0, 2, 1, 3])  # three sentences, of two, two and one word
    >>> gru_states(nn.GRU(3, 4), torch.rand(4, 3), index, [3, 2]).shape
    torch.Size([5, 4])
    """
    weights = gru.weight_ih_l0, gru.weight_hh_l0, gru.bias_ih_l0, gru.bias_hh_l0
    return _GRU.apply(x, *weights, index, counts)


class _GRU(torch.autograd.Function):
    """Gates stand as in torch: reset, update, new. h = (1 - z) n + z h', n = tanh(W x + r (U h'))."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_in: Tensor,
        w_hidden: Tensor,
        b_in: Tensor,
        b_hidden: Tensor,
        index: Tensor,
        counts: list[int],
    ) -> Tensor:
        size, total = w_hidden.shape[1], len(index)
        to_gates = w_hidden.T.contiguous()  # a copy for all steps, which the products are quicker with
        gates = torch.addmm(b_in, x, w_in.T)[index]  # (N, 3 size): what is added to it below makes r, z and n of it
        lifted = x.new_empty(total, size)  # U h' of the new gate, which r multiplies
        states = x.new_empty(total, size)
        start = before = 0
        for count in counts:
            now = slice(start, start + count)
            r, z, n = gates[now].split(size, dim=1)
            if start:
                last = states[before : before + count]
                hidden = torch.addmm(b_hidden, last, to_gates)
            else:
                last, hidden = None, b_hidden.expand(count, -1)
            gates[now, : 2 * size].add_(hidden[:, : 2 * size]).sigmoid_()
            lifted[now] = hidden[:, 2 * size :]
            n.addcmul_(r, lifted[now]).tanh_()
            state = states[now]
            if last is None:
                torch.addcmul(n, z, n, value=-1, out=state)
            else:
                torch.lerp(n, last, z, out=state)
            before, start = start, start + count
        ctx.save_for_backward(x, w_in, w_hidden, index, gates, lifted, states)
        ctx.counts = counts
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_hidden, index, gates, lifted, states = ctx.saved_tensors
        counts, size = ctx.counts, w_hidden.shape[1]
        starts = [sum(counts[:step]) for step in range(len(counts))]
        to_input, to_hidden = torch.empty_like(gates), torch.empty_like(gates)  # gradients of W x + b and of U h' + b
        carried = gradient.new_zeros(0, size)  # the gradient of the states of this step by the steps after it
        for start, count, before in reversed(list(zip(starts, counts, [None, *starts[:-1]], strict=True))):
            now = slice(start, start + count)
            r, z, n = gates[now].split(size, dim=1)
            d_r, d_z, d_n = to_input[now].split(size, dim=1)
            d_state = gradient[now].clone()
            d_state[: len(carried)] += carried
            last = None if before is None else states[before : before + count]
            torch.sub(d_state, d_state * z, out=d_n)
            d_n.mul_(torch.addcmul(torch.ones_like(n), n, n, value=-1))  # through tanh
            torch.mul(d_n, lifted[now], out=d_r).mul_(r).mul_(1 - r)  # through the sigmoids
            torch.mul(d_state, -n if last is None else last - n, out=d_z).mul_(z).mul_(1 - z)
            to_hidden[now, : 2 * size] = to_input[now, : 2 * size]
            torch.mul(d_n, r, out=to_hidden[now, 2 * size :])
            if before is not None:
                carried = d_state.mul_(z).addmm_(to_hidden[now], w_hidden)
        # states before each step but the first: those of step t - 1 whose sentences go on, which are its first ones
        later = [states[start : start + count] for start, count in zip(starts, counts[1:], strict=False)]
        d_hidden = to_hidden[counts[0] :].T @ torch.cat(later) if later else torch.zeros_like(w_hidden)
        of_distinct = gates.new_zeros(len(x), 3 * size).index_add_(0, index, to_input)
        return of_distinct @ w_in, of_distinct.T @ x, d_hidden, of_distinct.sum(0), to_hidden.sum(0), None, None

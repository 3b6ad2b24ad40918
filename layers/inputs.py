"""What frozen features go through before a branch sees them."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Take frozen features to zero mean and, each backbone's by one number, to a unit mean square.

    Features that have passed a ReLU are positive: any two of them are alike in what they share, cosines begin between
    0.8 and 1, and a loss that compares them with a margin starts where all scores are equal. Mean and scale are those
    of the training split (`fit`); within a backbone's features the ratios of lengths stay. Before that, features are
    raised to `power`, signs kept (power normalization, Perronnin et al., 2010): a half evens out what a few large
    activations would decide.

    sizes: of the features joined, one for each backbone.

    >>> features = np.array([[4.0, 9.0, 1.0], [0.0, 1.0, 9.0]], np.float32)
    >>> inputs = Standardize((2, 1), power=0.5)
    >>> inputs.fit([features])
    >>> inputs(torch.from_numpy(features))
    tensor([[ 0.7071,  0.7071, -1.0000],
            [-0.7071, -0.7071,  1.0000]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Sequence[int], power: float = 1.0):
        super().__init__()
        self.sizes, self.power = tuple(sizes), power
        self.register_buffer("mean", torch.zeros(sum(sizes)))
        self.register_buffer("scale", torch.ones(sum(sizes)))

    def fit(self, blocks: Iterable[np.ndarray]) -> None:
        """Take mean and scale from features that come in blocks (B, …, D); summed up in float64."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for block in blocks:
            rows = self._powered(torch.from_numpy(np.asarray(block, np.float32))).flatten(0, -2).double()
            count, total, squares = count + len(rows), total + rows.sum(0), squares + rows.square().sum(0)
        mean, variance = total / count, squares / count - (total / count) ** 2
        parts = [part.sum().clamp(min=1e-12).expand(len(part)) for part in variance.split(list(self.sizes))]
        self.mean.copy_(mean)
        self.scale.copy_(torch.cat(parts).rsqrt())

    def forward(self, x: Tensor) -> Tensor:
        """(B, …, D) → (B, …, D)."""
        return (self._powered(x) - self.mean) * self.scale

    def _powered(self, x: Tensor) -> Tensor:
        return x if self.power == 1 else x.sign() * x.abs() ** self.power

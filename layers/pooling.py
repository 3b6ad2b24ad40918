"""Poolings: from the positions of a map, or the states of words, to one vector."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from layers.heads import Linear
from utils import BadInput

GPO_DIM = 32  # of its positional encodings and of its GRU, and
GPO_TEMPERATURE = 0.1  # what its scores are divided by, as VSE∞ has them
HEAD_CHANNELS = 64  # where the setting leaves it open, as in CLIP


def heads_for(channels: int, num_heads: int = 0) -> int:
    """Return the number of heads that `image.num_heads` means for maps of `channels`; 0 is CLIP's: one per 64 channels.

    Where 64 does not divide the channels, 0 is the largest number of equal heads of at least 64 channels, or one.
    Raises BadInput if the channels do not split into `num_heads` equal parts.

    >>> heads_for(1280), heads_for(1000), heads_for(1280, 8)
    (20, 10, 8)
    """
    divisors = [count for count in range(1, channels + 1) if channels % count == 0]
    if not num_heads:
        return max(count for count in divisors if count <= max(1, channels // HEAD_CHANNELS))
    if num_heads not in divisors:
        near = sorted(sorted(divisors, key=lambda count: abs(count - num_heads))[:3])
        raise BadInput(
            f"`image.num_heads` {num_heads}: {channels} channels do not split into {num_heads} equal heads; take "
            f"{', '.join(map(str, near))} or another divisor of {channels}, or 0 for one per {HEAD_CHANNELS} channels"
        )
    return num_heads


class AttentionPool(nn.Module):
    """Multi-head attention over the positions of a map, asked by their mean (Radford et al., 2021, section 2.4).

    The H·W positions x_t and, before them, their mean x_0 are 1 + H·W tokens, each with its learned positional
    embedding. Token 0 alone is the query; all tokens are keys and values. Weights begin as in CLIP: normal, with a
    standard deviation of C**-0.5; biases begin at zero.

    The parameters are those of nn.MultiheadAttention, and so are the results, but keys and values of the tokens are
    never computed. With one query q, a head's score q · (K x_t + k) / √d is (Kᵀ q) · x_t / √d but for a term that is
    the same for all t and drops out of the softmax (so the key's bias k has no gradient); and as a head's weights a_t
    add up to 1, Σ a_t (V x_t + v) = V (Σ a_t x_t) + v. Every projection is taken once for an image, not once for a
    token: for 20 heads on 7 x 7 x 1280 that is 14 times fewer multiplications and, forward and backward on a CPU,
    about 9 times quicker (benchmarks/attention_pooling.py).

    grid: (H, W). channels: C. num_heads: as for `heads_for`. Raises BadInput if they do not divide the channels.

    >>> AttentionPool((7, 7), 1280)(torch.zeros(2, 7, 7, 1280)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, grid: tuple[int, ...], channels: int, num_heads: int = 0):
        super().__init__()
        self.grid, self.num_heads = grid, heads_for(channels, num_heads)
        self.positional_embedding = nn.Parameter(torch.empty(1 + grid[0] * grid[1], channels))
        self.attention = nn.MultiheadAttention(channels, self.num_heads, batch_first=True)  # for its parameters
        for weight in (self.positional_embedding, self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.normal_(weight, std=channels**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) float32 → (B, C)."""
        if tuple(maps.shape[1:3]) != self.grid:
            raise ValueError(f"maps of {tuple(maps.shape[1:3])} positions for a pooling of {self.grid}")
        embedding, maps = self.positional_embedding, maps.flatten(1, 2)  # (1 + H·W, C); (B, H·W, C), a view
        count, positions, channels = maps.shape
        weights = self.attention.in_proj_weight.unflatten(0, (3, self.num_heads, -1))
        biases = self.attention.in_proj_bias.unflatten(0, (3, self.num_heads, -1))
        (to_query, to_key, to_value), (bias, _, value_bias) = weights, biases  # (heads, d, C), (heads, d)

        mean = maps.mean(dim=1)  # (B, C)
        query = (mean + embedding[0]) @ to_query.flatten(0, 1).T + bias.flatten()
        query = query.unflatten(1, (self.num_heads, -1)) * (channels // self.num_heads) ** -0.5  # (B, heads, d)
        query = torch.einsum("bhd,hdc->bhc", query, to_key)  # Kᵀ q

        # Tokens are a position of the map plus its embedding. A sum over the two parts does without a second copy of
        # all maps, and the mean's score is the mean of scores.
        scores = query @ maps.mT  # (B, heads, H·W)
        scores = torch.cat([scores.mean(dim=2, keepdim=True), scores], dim=2) + query @ embedding.T
        weights = scores.softmax(dim=2)  # (B, heads, 1 + H·W)
        pooled = (weights[:, :, 1:] + weights[:, :, :1] / positions) @ maps + weights @ embedding  # (B, heads, C)
        values = torch.einsum("bhc,hdc->bhd", pooled, to_value) + value_bias
        return F.linear(values.reshape(count, channels), self.attention.out_proj.weight, self.attention.out_proj.bias)


class GPO(nn.Module):
    """The generalized pooling operator (Chen et al., 2021, VSE∞): a learned mean over each dimension's sorted values.

    The k-th largest value of every dimension has weight θ_k, which a small bidirectional GRU over sine and cosine
    encodings of 1 … K gives; so the mean, the maximum, and the mean of the largest few are among what it can be. The
    weights depend on the number of values alone.

    >>> GPO()(torch.rand(2, 49, 1024), torch.ones(2, 49, dtype=torch.bool)).shape
    torch.Size([2, 1024])
    """

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(GPO_DIM, GPO_DIM, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(GPO_DIM, 1, bias=False)

    def weights(self, counts: Tensor) -> Tensor:
        """Return the weights (B, K) of sorted values where `counts` (B,) are there, K of them at most; zero beyond."""
        distinct, index = counts.unique(return_inverse=True)  # batches have few numbers of values
        encodings = positional_encodings(int(distinct[-1]), self.linear.weight)
        repeated = encodings.expand(len(distinct), -1, -1)
        packed = pack_padded_sequence(repeated, distinct.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return self.weights_of(states, distinct)[index]

    def weights_of(self, states: Tensor, counts: Tensor) -> Tensor:
        """Return the weights (B, K) of `counts` (B,) sorted values by the GRU's states (B, K, 2 x GPO_DIM)."""
        scores = self.linear(states.unflatten(2, (2, -1)).mean(dim=2)).squeeze(2) / GPO_TEMPERATURE
        beyond = torch.arange(scores.shape[1], device=counts.device) >= counts[:, None]
        return scores.masked_fill(beyond, -torch.inf).softmax(dim=1)

    def forward(self, features: Tensor, keep: Tensor) -> Tensor:
        """(B, N, D), and which of the N count (B, N), one at least → (B, D)."""
        return self.weighted(features, keep, self.weights(keep.sum(dim=1)))

    def weighted(self, features: Tensor, keep: Tensor, weights: Tensor) -> Tensor:
        """(B, N, D), which of the N count, and the weights (B, K) of the K largest → (B, D)."""
        values = features.masked_fill(~keep[:, :, None], -torch.inf).mT  # (B, D, N): sorted along memory
        values = values.sort(dim=2, descending=True).values[:, :, : weights.shape[1]]
        return torch.einsum("bdk,bk->bd", values.masked_fill(values.isneginf(), 0), weights)


def positional_encodings(count: int, like: Tensor) -> Tensor:
    """Return sines and cosines of 0 … count - 1 at GPO_DIM / 2 wavelengths (Vaswani et al., 2017): (count, GPO_DIM)."""
    rates = torch.exp(torch.arange(0, GPO_DIM, 2).to(like) * (-math.log(10000.0) / GPO_DIM))
    angles = torch.arange(count).to(like)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class GPOPool(nn.Module):
    """Every position of a map through one linear layer, and GPO over the positions (Chen et al., 2021).

    dropout: share of the positions that are left out in training, so that it learns for any number of them ("size
    augmentation"); one stays.
    """

    def __init__(self, channels: int, embed_dim: int, dropout: float):
        super().__init__()
        self.linear, self.gpo, self.share = Linear(channels, embed_dim), GPO(), dropout

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) float32 → (B, embed_dim)."""
        x = self.linear(maps.flatten(1, 2))  # (B, H·W, embed_dim)
        draws = (
            torch.rand(x.shape[:2], device=x.device) if self.training and self.share else torch.ones_like(x[:, :, 0])
        )
        return self.gpo(x, draws >= draws.amax(dim=1, keepdim=True).clamp(max=self.share))

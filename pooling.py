"""Attention pooling: a spatial map becomes one vector, a weighted mean of its positions, as in CLIP's ResNets."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import BadInput

PER_HEAD = 64  # channels of a head where the setting leaves it open, as in CLIP


def heads_for(channels: int, heads: int = 0) -> int:
    """The number of heads that `image.heads` means for maps of `channels`; 0 is CLIP's: one per 64 channels.

    Where 64 does not divide the channels, 0 is the largest number of equal heads of at least 64 channels, or one.
    Raises BadInput if the channels do not split into `heads` equal parts.

    >>> heads_for(1280), heads_for(1000), heads_for(1280, 8)
    (20, 10, 8)
    """
    equal = [count for count in range(1, channels + 1) if channels % count == 0]
    if not heads:
        return max(count for count in equal if count <= max(1, channels // PER_HEAD))
    if heads not in equal:
        near = sorted(sorted(equal, key=lambda count: abs(count - heads))[:3])
        raise BadInput(
            f"image.heads {heads}: {channels} channels do not split into {heads} equal heads; take "
            f"{', '.join(map(str, near))} or another divisor of {channels}, or 0 for one per {PER_HEAD} channels"
        )
    return heads


class AttentionPool(nn.Module):
    """Multi-head attention over the positions of a map, asked by their mean (Radford et al., 2021, section 2.4).

    The H·W positions x_t and, before them, their mean x_0 are 1 + H·W tokens, each with its learnt embedding of place.
    Token 0 alone is the query; all tokens are keys and values. Weights begin as in CLIP: normal, with a standard
    deviation of C**-0.5; biases begin at zero.

    The parameters are those of nn.MultiheadAttention, and so are the results, but keys and values of the tokens are
    never computed. With one query q, a head's score q · (K x_t + k) / √d is (Kᵀ q) · x_t / √d but for a term that is
    the same for all t and drops out of the softmax (so the key's bias k has no gradient); and as a head's weights a_t
    add up to 1, Σ a_t (V x_t + v) = V (Σ a_t x_t) + v. Every projection is taken once for an image, not once for a
    token: for 20 heads on 7 x 7 x 1280 that is 14 times fewer multiplications and, forward and backward on a CPU,
    about 9 times quicker (benchmarks/attention_pooling.py).

    grid: (H, W). channels: C. heads: as `heads_for` gives them. Raises BadInput if they do not divide the channels.

    >>> AttentionPool((7, 7), 1280, heads_for(1280))(torch.zeros(2, 7, 7, 1280)).shape
    torch.Size([2, 1280])
    """

    def __init__(self, grid: tuple[int, int], channels: int, heads: int):
        super().__init__()
        self.grid, self.heads = grid, heads_for(channels, heads)
        self.places = nn.Parameter(torch.empty(1 + grid[0] * grid[1], channels))
        self.attention = nn.MultiheadAttention(channels, self.heads, batch_first=True)  # for its parameters
        for weight in (self.places, self.attention.in_proj_weight, self.attention.out_proj.weight):
            nn.init.normal_(weight, std=channels**-0.5)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, H, W, C) float32 → (B, C)."""
        if tuple(maps.shape[1:3]) != self.grid:
            raise ValueError(f"maps of {tuple(maps.shape[1:3])} positions for a pooling of {self.grid}")
        maps = maps.flatten(1, 2)  # (B, H·W, C), a view
        count, positions, channels = maps.shape
        weights = self.attention.in_proj_weight.unflatten(0, (3, self.heads, -1))
        biases = self.attention.in_proj_bias.unflatten(0, (3, self.heads, -1))
        (to_query, to_key, to_value), (bias, _, value_bias) = weights, biases  # (heads, d, C), (heads, d)

        mean = maps.mean(dim=1)  # (B, C)
        query = (mean + self.places[0]) @ to_query.flatten(0, 1).T + bias.flatten()
        query = query.unflatten(1, (self.heads, -1)) * (channels // self.heads) ** -0.5  # (B, heads, d)
        asked = torch.einsum("bhd,hdc->bhc", query, to_key)  # Kᵀ q

        # Tokens are a position of the map plus its place. A sum over the two parts does without a second copy of all
        # maps, and the mean's score is the mean of scores.
        scores = asked @ maps.mT  # (B, heads, H·W)
        scores = torch.cat([scores.mean(dim=2, keepdim=True), scores], dim=2) + asked @ self.places.T
        shares = scores.softmax(dim=2)  # (B, heads, 1 + H·W)
        pooled = (shares[:, :, 1:] + shares[:, :, :1] / positions) @ maps + shares @ self.places  # (B, heads, C)
        values = torch.einsum("bhc,hdc->bhd", pooled, to_value) + value_bias
        return F.linear(values.reshape(count, channels), self.attention.out_proj.weight, self.attention.out_proj.bias)

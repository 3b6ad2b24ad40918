"""Heads: from a frozen feature to the common space. One layer, two, a gated linear unit, or residual blocks."""

from torch import Tensor, nn


class Linear(nn.Linear):
    """A fully connected layer with Glorot's uniform weights and a zero bias, as VSE++ begins."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class GatedLinearUnit(nn.Module):
    """ReLU(V x) ∘ W x, `hidden_dim` wide: one linear map opens the other (Dauphin et al., 2017; Zhang et al., 2025)."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.gate, self.value = Linear(dim, hidden_dim), Linear(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) → (B, hidden_dim)."""
        return self.gate(x).relu() * self.value(x)


class ResidualBlock(nn.Module):
    """x + W GELU(V LN(x)): a perceptron of one hidden layer beside the identity, its input normalized (Vouitsis et al.,
    2024)."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float):
        super().__init__()
        first, second = Linear(dim, hidden_dim), Linear(hidden_dim, dim)
        self.layers = nn.Sequential(nn.LayerNorm(dim), first, nn.GELU(), nn.Dropout(dropout), second)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) → (B, dim)."""
        return x + self.layers(x)


def head_layers(
    kind: str, dim: int, embed_dim: int, *, hidden_dim: int, num_blocks: int, dropout: float
) -> list[nn.Module]:
    """Return the layers of a head (B, dim) → (B, embed_dim), one after the other.

    kind: "linear"; "mlp", two layers; "glu", a gated linear unit behind a layer norm (SAIL, Zhang et al., 2025);
    "residual", `num_blocks` residual blocks and a layer norm (FuseMix, Vouitsis et al., 2024). hidden_dim: the width
    within; dropout: the share of it that is dropped in training.

    >>> import torch
    >>> layers = head_layers("glu", 1280, 512, hidden_dim=2048, num_blocks=0, dropout=0.5)
    >>> nn.Sequential(*layers)(torch.rand(3, 1280)).shape
    torch.Size([3, 512])
    """
    if kind == "linear":
        return [Linear(dim, embed_dim)]
    if kind == "mlp":
        first, second = Linear(dim, hidden_dim), Linear(hidden_dim, embed_dim)
        return [first, nn.ReLU(), nn.Dropout(dropout), second]
    if kind == "glu":
        unit = GatedLinearUnit(dim, hidden_dim)
        return [nn.LayerNorm(dim), unit, nn.Dropout(dropout), Linear(hidden_dim, embed_dim)]
    blocks = [ResidualBlock(dim, hidden_dim, dropout) for _ in range(num_blocks)]
    return [*blocks, nn.LayerNorm(dim), Linear(dim, embed_dim)]

"""The parameters of corrections, by themselves: a bank is read with them and without torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameters:
    """What a correction is chosen by. beta: inverse temperature of the soft maximum over the queries of a bank;
    gallery_beta: the same over its gallery items; k, alpha: how many scores NNN averages, and the weight of the mean.
    """

    beta: float = 0.0
    gallery_beta: float = 0.0
    k: int = 0
    alpha: float = 0.0

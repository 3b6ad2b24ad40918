"""Metrics from ranks: recall@K, median and mean rank, rsum, as the papers of this field define them."""

import numpy as np

from retrieval.ranks import Ranks

CUTOFFS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
COLUMNS = (*(f"R@{k}" for k in CUTOFFS), "median_rank", "mean_rank")


def recall_at(k: int, ranks: np.ndarray) -> float:
    """The percentage of queries with rank ≤ k: a query counts once, however many of its captions are found."""
    return 100.0 * float(np.mean(ranks <= k))


def median_rank(ranks: np.ndarray) -> float:
    """⌊median of zero-based ranks⌋ + 1, as the papers' code counts it.

    >>> median_rank(np.array([1, 2]))
    1.0
    """
    return float(np.floor(np.median(ranks - 1)) + 1)


def mean_rank(ranks: np.ndarray) -> float:
    return float(np.mean(ranks))


def one_way(ranks: np.ndarray) -> dict[str, float]:
    """The five figures of one direction, under the names of COLUMNS."""
    recalls = {f"R@{k}": recall_at(k, ranks) for k in CUTOFFS}
    return {**recalls, "median_rank": median_rank(ranks), "mean_rank": mean_rank(ranks)}


def metrics_of(ranks: Ranks) -> dict[str, dict[str, float]]:
    """Both directions: {"image_to_text": {"R@1": …}, "text_to_image": {…}}."""
    return {direction: one_way(getattr(ranks, direction)) for direction in DIRECTIONS}


def mean_of(metrics: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Every metric averaged, over folds or over seeds."""
    return {
        direction: {column: float(np.mean([m[direction][column] for m in metrics])) for column in metrics[0][direction]}
        for direction in DIRECTIONS
    }


def rsum(metrics: dict[str, dict[str, float]]) -> float:
    """The sum of the six recalls; 600 is perfect."""
    return sum(metrics[direction][f"R@{k}"] for direction in DIRECTIONS for k in CUTOFFS)

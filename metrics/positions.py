"""Where the true items of a query stand in its ranking, however many there are, and what is measured of them.

Positions start at 1 and ties count against the model: of equal scores, those of items that are not true stand first.
The k-th best true item stands at k + the number of other items that score at least as much. They are counted by
comparison, block by block; nothing is sorted but the true scores of a query.

R@K is the field's recall@K, a hit: whether any true item stands among the first K. recall@K is the share of the true
items that stand there. With one true item they are the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from metrics.similarity import Scores

COMPARISONS_PER_BLOCK = 2**24  # of true scores with those of a gallery, held at a time
NDCG_CUTOFF = 10


@dataclass(frozen=True)
class Truth:
    """Which pairs of a gallery are true. image_to_text, text_to_image: (P, 2) int64, rows of an image and a caption.

    Most ground truths are the same both ways; ECCV Caption's is not. A query without a true item is not asked, and is
    in the gallery of the other direction all the same.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray

    @classmethod
    def of(cls, image_of_caption: np.ndarray) -> "Truth":
        """Return the truth of captions that belong to one image each; (M,) rows of images.

        >>> Truth.of(np.array([0, 0, 1])).image_to_text.tolist()
        [[0, 0], [0, 1], [1, 2]]
        """
        pairs = np.stack([image_of_caption, np.arange(len(image_of_caption))], axis=1)
        return cls(pairs, pairs)

    def within(self, start: int, stop: int, captions: np.ndarray) -> "Truth":
        """Return the truth of a part of the gallery: images `start` to `stop` and the captions (m,), counted anew."""
        row_of = np.full(1 + max(captions.max(initial=-1), *(p[:, 1].max(initial=-1) for p in self.both)), -1)
        row_of[captions] = np.arange(len(captions))

        def part(pairs: np.ndarray) -> np.ndarray:
            kept = (pairs[:, 0] >= start) & (pairs[:, 0] < stop) & (row_of[pairs[:, 1]] >= 0)
            return np.stack([pairs[kept, 0] - start, row_of[pairs[kept, 1]]], axis=1)

        return Truth(*map(part, self.both))

    @property
    def both(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of both directions."""
        return self.image_to_text, self.text_to_image


@dataclass(frozen=True)
class Positions:
    """Positions of all true items in one direction.

    queries: (Q,) rows of the queries that have one, rising; query: (P,) which of these an item belongs to, rising;
    position: (P,) int64, rising within a query.
    """

    queries: np.ndarray
    query: np.ndarray
    position: np.ndarray

    @property
    def count(self) -> np.ndarray:
        """Return (Q,): how many true items each query has, R."""
        return np.bincount(self.query, minlength=len(self.queries))

    @property
    def number(self) -> np.ndarray:
        """Return (P,): 1 for the best true item of a query, 2 for the second, …"""
        return 1 + np.arange(len(self.query)) - np.searchsorted(self.query, self.query)

    @property
    def first(self) -> np.ndarray:
        """Return (Q,): the rank of each query, at which its best true item stands."""
        return self.position[np.searchsorted(self.query, np.arange(len(self.queries)))]

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return (Q,) sums of values (P,) over the true items of each query."""
        return np.bincount(self.query, values, len(self.queries))


def positions_by_block(
    similarity: Scores, images: Tensor, captions: Tensor, truth: Truth, block: int = 1024
) -> dict[str, Positions]:
    """Return the positions of both directions, forming scores of `block` images at a time, each block twice.

    images: (N, D), captions: (M, D). Not-a-number counts as the worst case on both sides.

    >>> truth = Truth.of(np.array([0, 0, 1]))
    >>> both = positions_by_block(lambda a, b: a @ b.T, torch.eye(2), torch.eye(2)[[0, 1, 1]], truth)
    >>> both["image_to_text"].position.tolist(), both["text_to_image"].position.tolist()
    ([1, 3, 2], [1, 2, 1])
    """
    sides = [torch.from_numpy(np.ascontiguousarray(pairs.T)).to(images.device) for pairs in truth.both]
    true: list[Tensor] = []
    for start in range(0, len(images), block):
        scores = similarity(images[start : start + block], captions)
        true = true or [scores.new_empty(side.shape[1]) for side in sides]
        for side, values in zip(sides, true, strict=True):
            inside = ((side[0] >= start) & (side[0] < start + block)).nonzero().squeeze(1)
            values[inside] = scores[side[0, inside] - start, side[1, inside]]
    below = [torch.zeros(side.shape[1], dtype=torch.int64, device=images.device) for side in sides]
    for start in range(0, len(images), block):
        scores = similarity(images[start : start + block], captions)
        inside = ((sides[0][0] >= start) & (sides[0][0] < start + block)).nonzero().squeeze(1)
        for part in _parts(inside, scores.shape[1]):
            below[0][part] = (scores[sides[0][0, part] - start] < true[0][part, None]).sum(dim=1)
        for part in _parts(torch.arange(sides[1].shape[1], device=images.device), len(scores)):
            below[1][part] += (scores[:, sides[1][1, part]] < true[1][None, part]).sum(dim=0)
    sizes = {"image_to_text": len(captions), "text_to_image": len(images)}
    # "not below" rather than "at least": it holds for not-a-number, too
    return {
        direction: _positions(pairs[:, column], values.cpu().numpy(), size - counts.cpu().numpy(), size)
        for column, ((direction, size), pairs, values, counts) in enumerate(
            zip(sizes.items(), truth.both, true, below, strict=True)
        )
    }


def _parts(pairs: Tensor, gallery: int) -> Iterator[Tensor]:
    yield from pairs.split(max(1, COMPARISONS_PER_BLOCK // max(1, gallery)))


def _positions(query_rows: np.ndarray, scores: np.ndarray, at_least: np.ndarray, gallery: int) -> Positions:
    """query_rows, scores: (P,) of true items; at_least: (P,) how many items, true ones too, do not score below them."""
    unknown = np.isnan(scores)
    scores = np.where(unknown, -np.inf, scores)
    at_least = np.where(unknown, gallery, at_least)
    order = np.lexsort((-scores, query_rows))
    queries, query = np.unique(query_rows[order], return_inverse=True)
    sorted_scores, unknown = scores[order], unknown[order]
    ordered = Positions(queries, query, at_least[order])
    # of the true items that do not score below one, the last equal to it tells the number
    differs = (query[1:] != query[:-1]) | (sorted_scores[1:] != sorted_scores[:-1])
    ends = np.append(np.flatnonzero(differs), len(query) - 1)
    last_equal = ordered.number[ends[np.searchsorted(ends, np.arange(len(query)))]]
    worse = np.where(sorted_scores == -np.inf, 0, ordered.total(unknown)[query]).astype(np.int64)
    return Positions(queries, query, ordered.number + at_least[order] - last_equal - worse)


def recall_at_k(positions: Positions, k: int) -> np.ndarray:
    """Return recall@K (Q,): the share of a query's true items that stand among the first K.

    >>> recall_at_k(Positions(np.array([0]), np.array([0, 0]), np.array([1, 7])), 5).tolist()
    [0.5]
    """
    return positions.total(positions.position <= k) / positions.count


def ndcg(positions: Positions, k: int = NDCG_CUTOFF) -> np.ndarray:
    """Return nDCG@K (Q,): the discounted gain 1 / log2(1 + position) of the true items among the first K, over that of
    a ranking with all of them in front (Järvelin and Kekäläinen, 2002); a true item gains 1.

    >>> ndcg(Positions(np.array([0]), np.array([0, 0]), np.array([1, 3]))).round(4).tolist()
    [0.9197]
    """
    gains = np.where(positions.position <= k, 1 / np.log2(1 + positions.position), 0.0)
    ideal = np.cumsum(1 / np.log2(1 + np.arange(1, k + 1)))
    return positions.total(gains) / ideal[np.minimum(positions.count, k) - 1]


def map_at_r(positions: Positions) -> np.ndarray:
    """Return mAP@R (Q,): the mean over the first R positions of the precision at those that hold a true item, R being
    how many the query has (Musgrave, Belongie, Lim, 2020; Chun et al., 2022).

    >>> map_at_r(Positions(np.array([0]), np.array([0, 0]), np.array([2, 3]))).tolist()
    [0.25]
    """
    count = positions.count
    precision = np.where(positions.position <= count[positions.query], positions.number / positions.position, 0.0)
    return positions.total(precision) / count


def r_precision(positions: Positions) -> np.ndarray:
    """Return R-precision (Q,): the share of true items among the first R.

    >>> r_precision(Positions(np.array([0]), np.array([0, 0]), np.array([2, 3]))).tolist()
    [0.5]
    """
    count = positions.count
    return positions.total(positions.position <= count[positions.query]) / count


# What may be asked for → its columns, and each column's values (Q,) of positions.
METRICS: Mapping[str, Mapping[str, Callable[[Positions], np.ndarray]]] = {
    "recall": {f"recall@{k}": partial(recall_at_k, k=k) for k in (1, 5, 10)},
    "ndcg": {f"nDCG@{NDCG_CUTOFF}": ndcg},
    "map": {"mAP@R": map_at_r},
    "rprecision": {"R-precision": r_precision},
}


def metric_columns(names: Sequence[str]) -> dict[str, Callable[[Positions], np.ndarray]]:
    """Return the columns of the metrics asked for, each with what computes it.

    >>> list(metric_columns(["recall", "map"]))
    ['recall@1', 'recall@5', 'recall@10', 'mAP@R']
    """
    return {column: metric for name in dict.fromkeys(names) for column, metric in METRICS[name].items()}

"""The rows of a matrix nearest to a query, exactly, block by block over a memory map.

The matrix may be larger than the memory. Scores are those of metrics.similarity; equal scores stand in row order.

A block is scored quickly in float32, and what could be among the best is scored again in float64 and rounded: a product
of matrices may give equal rows scores that differ in the last bit, and a tie would be decided by where a row stands.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from metrics.pairs import pair_scores
from utils import BadInput

BLOCK_BYTES = 2**24  # of rows scored at a time
QUERIES_PER_BLOCK = 64  # scored at a time: queries x rows of a block are held, never queries x all rows


@dataclass(frozen=True)
class Measure:
    """A similarity, seen from the query. Order is not symmetric: the query is the caption, or else the image."""

    similarity: str
    caption_asks: bool = True

    def quick(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Score queries (Q, D) with rows (B, D), float32 → (Q, B); not-a-number counts as the worst score."""
        scores = queries @ rows.T if self.similarity == "cosine" else self._quick_order(queries, rows)
        return np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=np.inf, neginf=-np.inf)

    def _quick_order(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        import torch  # late: cosine needs NumPy alone, whose import takes a tenth of the time

        from metrics.similarity import order_scores_by_block

        # torch warns of arrays that cannot be written, though nobody writes
        writable = rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows)
        asking, asked = torch.from_numpy(queries), torch.from_numpy(writable)
        if self.caption_asks:
            return order_scores_by_block(asked, asking, by_image=False).T.numpy()
        return order_scores_by_block(asking, asked).numpy()

    def exact(self, queries: np.ndarray, rows: np.ndarray, of_query: np.ndarray, of_row: np.ndarray) -> np.ndarray:
        """Score pairs of a query and a row, (C,) float32: equal rows score equal, wherever they stand."""
        if self.caption_asks:
            scores = pair_scores(self.similarity, rows, queries, of_row, of_query)
        else:
            scores = pair_scores(self.similarity, queries, rows, of_query, of_row)
        return np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)


COSINE, CAPTION_TO_IMAGE, IMAGE_TO_CAPTION = Measure("cosine"), Measure("order"), Measure("order", False)
TEXT_QUERY = {"cosine": COSINE, "order": CAPTION_TO_IMAGE}  # similarity of a run → a sentence against images
IMAGE_QUERY = {"cosine": COSINE, "order": IMAGE_TO_CAPTION}  # an image against captions


def check_k(k: int) -> None:
    """Raise BadInput unless at least one answer is asked for."""
    if k < 1:
        raise BadInput(f"`k` {k}: at least one answer must be asked for; choose 1 or more")


def exact_nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, measure: Measure, block: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows for each query, best first, equal scores by row: (Q, k) int64, and scores (Q, k) float32.

    queries: (Q, D), rows: (N, D), both float32 and of unit length, but for a bias (retrieval/correction.py); rows may
    be a memory map. block: bytes of rows read at a time. There are N columns where k is larger.

    >>> best, _ = exact_nearest(np.eye(2, 3), np.array([[0.6, 0.8, 0], [1, 0, 0]], np.float32), 1, COSINE)
    >>> best.tolist()
    [[1], [0]]
    """
    k = min(k, len(rows))
    best, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        batch = slice(start, start + QUERIES_PER_BLOCK)
        best[batch], scores[batch] = _nearest(as_float32(queries[batch]), rows, k, measure, block)
    return best, scores


def _nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, measure: Measure, block: int
) -> tuple[np.ndarray, np.ndarray]:
    best = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    if k == 0:
        return best, scores
    slack = slack_of(rows.shape[1])
    for start, part, quick in _scored(queries, rows, measure, block):
        least = np.partition(quick, -k, axis=1)[:, -k] if len(part) >= k else -np.inf
        bound = np.maximum(least, scores[:, -1]).astype(np.float32) - np.float32(slack)
        of_query, of_row = np.nonzero(quick >= bound[:, None])
        exact = measure.exact(queries, part, of_query, of_row)
        cuts = np.searchsorted(of_query, np.arange(len(queries) + 1))
        for query, (a, b) in enumerate(pairwise(cuts)):
            if a < b:
                all_scores = np.concatenate([scores[query], exact[a:b]])
                all_rows = np.concatenate([best[query], of_row[a:b] + start])
                # what is not known yet is row -1 and must stand behind a row whose score is minus infinity
                order = np.lexsort((all_rows, all_rows < 0, -all_scores))[:k]
                scores[query], best[query] = all_scores[order], all_rows[order]
    return best, scores


def positions(
    query: np.ndarray, rows: np.ndarray, wanted: Sequence[int], measure: Measure, block: int = BLOCK_BYTES
) -> list[int]:
    """Return where the rows `wanted` stand in the list that exact_nearest gives for a query (D,), from 1.

    >>> positions(np.array([0, 1]), np.array([[1, 0], [0, 1]], np.float32), [0, 1], COSINE)
    [2, 1]
    """
    queries, targets = as_float32(query[None]), np.asarray(wanted, np.int64)
    slack = slack_of(rows.shape[1])
    scores = measure.exact(queries, rows, np.zeros_like(targets), targets)
    better = [0] * len(targets)
    for start, part, quick in _scored(queries, rows, measure, block):
        for index, (row, score) in enumerate(zip(targets.tolist(), scores.tolist(), strict=True)):
            surely = quick[0] > score + slack
            near = np.flatnonzero((quick[0] >= score - slack) & ~surely)
            exact = measure.exact(queries, part, np.zeros_like(near), near)
            ahead = (exact > score) | ((exact == score) & (near + start < row))
            better[index] += int(surely.sum()) + int(ahead.sum())
    return [count + 1 for count in better]


def slack_of(dim: int) -> float:
    """Return by how much a quick score of unit vectors, with a bias or without, may differ from the exact one, twice.

    There are `dim` roundings of sums of at most 1, or 2 with a bias.
    """
    return (dim + 8) * 2.0**-22


def _scored(
    queries: np.ndarray, rows: np.ndarray, measure: Measure, block: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Start, rows and quick scores (Q, B) of every block."""
    height = max(1, block // (4 * max(1, rows.shape[1])))
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        yield start, part, measure.quick(queries, part)


def as_float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)

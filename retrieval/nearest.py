"""The rows of a matrix nearest to a query: exactly, block by block over a memory map, or nearly, by a graph of FAISS.

The matrix may be larger than the memory. Scores are those of metrics.similarity; equal scores stand in row order.

A block is scored quickly in float32, and what could be among the best is scored again in float64 and rounded: a product
of matrices may give equal rows scores that differ in the last bit, and a tie would be decided by where a row stands.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from metrics.pairs import pair_scores
from utils import BadInput, atomic_write

BLOCK_BYTES = 2**24  # of rows scored at a time
RECALL_QUERIES = 500  # queries that recall is measured with, at most
QUERIES_PER_BLOCK = 64  # scored at a time: queries x rows of a block are held, never queries x all rows
NEIGHBORS, EF_CONSTRUCTION = 32, 100  # of the graph: neighbors of a vector; how many are looked at to find them
MIN_RECALL, MIN_EF, MAX_EF = 0.95, 16, 4096  # efSearch begins at MIN_EF and doubles until recall@10 is MIN_RECALL


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
        best[batch], scores[batch] = _nearest(_float32(queries[batch]), rows, k, measure, block)
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
    queries, targets = _float32(query[None]), np.asarray(wanted, np.int64)
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


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def import_faiss() -> Any:
    """Import FAISS, which only approximate search needs. Raises BadInput where it is missing."""
    try:
        import faiss
    except ImportError:
        raise BadInput(
            "`approximate`: FAISS is not installed; run pip install faiss-cpu, or search exactly with `exact`"
        ) from None
    return faiss


class Graph:
    """FAISS's HNSW graph (Malkov and Yashunin, 2018) of the rows of a matrix, for cosine.

    ef: how many candidates a query keeps, more of them find more and take longer. rows: the matrix, (N, D).
    """

    def __init__(self, graph: Any, rows: np.ndarray, ef: int):
        self.graph, self.rows, self.ef = graph, rows, ef

    @classmethod
    def build(cls, rows: np.ndarray, path: Path, block: int = BLOCK_BYTES) -> "Graph":
        """Build the graph and write it, whole. It holds a copy of the rows; the build keeps all of it in memory."""
        faiss = import_faiss()
        graph = faiss.IndexHNSWFlat(rows.shape[1], NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = EF_CONSTRUCTION
        height = max(1, block // (4 * rows.shape[1]))
        for start in range(0, len(rows), height):
            graph.add(_float32(rows[start : start + height]))
        with atomic_write(path, "wb") as file:
            faiss.write_index(graph, faiss.PyCallbackIOWriter(file.write))
        return cls(graph, rows, MIN_EF)

    @classmethod
    def open(cls, path: Path, rows: np.ndarray, ef: int) -> "Graph":
        """Open a graph by memory map. Raises BadInput if the file is damaged."""
        faiss = import_faiss()
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            raise BadInput(f"{path}: missing or damaged; build the index again with `fresh`") from None
        if (graph.ntotal, graph.d) != rows.shape:
            raise BadInput(f"{path}: not the graph of this index; build the index again with `fresh`")
        return cls(graph, rows, ef)

    def nearest(self, queries: np.ndarray, k: int, ef: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Do as exact_nearest with COSINE; where the graph finds nothing, the row is -1 and its score -inf."""
        faiss = import_faiss()
        k = min(k, len(self.rows))
        queries = _float32(queries)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        options = faiss.SearchParametersHNSW(efSearch=max(self.ef if ef is None else ef, k))
        _, rows = self.graph.search(queries, k, params=options)
        of_query, of_column = np.nonzero(rows >= 0)
        scores = np.full(rows.shape, -np.inf, np.float32)
        scores[of_query, of_column] = COSINE.exact(queries, self.rows, of_query, rows[of_query, of_column])
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def tune(self, queries: np.ndarray, target: float = MIN_RECALL, k: int = 10) -> float:
        """Double `ef` until recall@k on held-out queries (Q, D) reaches `target`, or cannot; return the recall."""
        _, exact = exact_nearest(queries, self.rows, k, COSINE)
        self.ef = MIN_EF
        while (recall := recall_of(self.nearest(queries, k)[1], exact)) < target and self.ef < MAX_EF:
            self.ef *= 2
        return recall


def recall_of(scores: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of scores (Q, k) that belong to the best k, by exact scores (Q, k) of the same queries.

    Where several rows score the same as the last of the best, each of them is as good.

    >>> recall_of(np.array([[0.9, 0.4]]), np.array([[0.9, 0.5]]))
    0.5
    """
    return float((scores >= exact[:, -1:]).mean()) if exact.size else 1.0


def drawn_queries(rows: np.ndarray, noise: float) -> np.ndarray:
    """Draw RECALL_QUERIES of the rows (N, D) at most, of unit length. noise: the length of what is added to each.

    >>> drawn_queries(np.eye(4, dtype=np.float32), noise=0).sum()
    np.float32(4.0)
    """
    rng = np.random.default_rng(0)
    drawn = rows[np.sort(rng.permutation(len(rows))[:RECALL_QUERIES])]
    if not noise:
        return drawn
    noisy = drawn + rng.normal(size=drawn.shape, scale=noise * rows.shape[1] ** -0.5).astype(np.float32)
    return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def write_graph(rows: np.ndarray, queries: np.ndarray, path: Path) -> dict[str, Any]:
    """Build a graph of rows (N, D), measure it on held-out queries (Q, D), and return what was measured."""
    began = time.perf_counter()
    graph = Graph.build(rows, path)
    seconds = time.perf_counter() - began
    graph.tune(queries[::2])  # chosen on one half, measured on the other
    held_out = queries[1::2] if len(queries) > 1 else queries
    recall = recall_of(graph.nearest(held_out, 10)[1], exact_nearest(held_out, rows, 10, COSINE)[1])
    return {"seconds": round(seconds, 1), "efSearch": graph.ef, "recall@10": round(recall, 4), "queries": len(held_out)}

"""The rows of a matrix nearest to a query: exactly, block by block over a memory map, or nearly, by a graph of FAISS.

The matrix may be larger than the memory. Scores are those of similarity.py; equal scores stand in the order of rows.

A block is scored quickly in float32, and what could be among the best is scored again in float64 and rounded: a product
of matrices may give equal rows scores that differ in the last bit, and a tie would be decided by where a row stands.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils import BadInput, atomic_write

BLOCK_BYTES = 2**24  # bytes of rows scored at a time
QUERIES_PER_BLOCK = 64  # scored at a time: queries x rows of a block are held, never queries x all rows
CACHE_BYTES = 2**21  # bytes of rows that order scores are formed of at a time: they stay in the processor's cache
PAIRS_PER_BLOCK = 2**12  # of query and row, scored again at a time
M, CONSTRUCTION = 32, 100  # of the graph: neighbors of a vector, and how many are looked at to find them
RECALL, EF, MAX_EF = 0.95, 16, 4096  # efSearch begins at EF and doubles until recall@10 is RECALL


@dataclass(frozen=True)
class Measure:
    """A similarity, seen from the query.

    quick: queries (Q, D), rows (B, D) float32 → (Q, B) float32. exact: (C, D), (C, D) float64 → (C,), pair by pair.
    """

    quick: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _cosine(queries: Tensor, rows: Tensor) -> Tensor:
    return queries @ rows.T


def _order(captions_minus_images: Callable[..., Tensor], queries: Tensor, rows: Tensor) -> Tensor:
    """One query and as many rows as the cache holds at a time: nothing of queries x rows x dimensions is formed."""
    scores = rows.new_empty(len(queries), len(rows))
    height = max(1, CACHE_BYTES // (4 * rows.shape[1]))
    buffer = rows.new_empty(min(height, len(rows)), rows.shape[1])
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        violation = buffer[: len(part)]
        for number, query in enumerate(queries):
            captions_minus_images(query, part, out=violation).clamp_(min=0)
            torch.linalg.vector_norm(violation, dim=1, out=scores[number, start : start + height])
    return scores.square_().neg_()


def _caption_query(query: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    return torch.sub(query, rows, out=out)


def _image_query(query: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    return torch.sub(rows, query, out=out)


COSINE = Measure(_cosine, lambda queries, rows: (queries * rows).sum(1))
# Order scores are not symmetric: what is asked for decides which side is the caption.
CAPTION_TO_IMAGE = Measure(
    lambda queries, rows: _order(_caption_query, queries, rows),
    lambda queries, rows: -np.square(np.maximum(queries - rows, 0)).sum(1),
)
IMAGE_TO_CAPTION = Measure(
    lambda queries, rows: _order(_image_query, queries, rows),
    lambda queries, rows: -np.square(np.maximum(rows - queries, 0)).sum(1),
)
TEXT_QUERY = {"cosine": COSINE, "order": CAPTION_TO_IMAGE}  # similarity of a run → a sentence against images
IMAGE_QUERY = {"cosine": COSINE, "order": IMAGE_TO_CAPTION}  # an image against captions


def exact_nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, measure: Measure, block: int = BLOCK_BYTES
) -> tuple[np.ndarray, np.ndarray]:
    """The k best rows for each query, best first, equal scores by row: places (Q, k) int64 and scores (Q, k) float32.

    queries: (Q, D), rows: (N, D), both float32 and of unit length; rows may be a memory map. block: bytes of rows read
    at a time. There are N columns where k is larger.
    """
    k = min(k, len(rows))
    places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), QUERIES_PER_BLOCK):
        some = slice(start, start + QUERIES_PER_BLOCK)
        places[some], scores[some] = _nearest(_float32(queries[some]), rows, k, measure, block)
    return places, scores


def _nearest(
    queries: np.ndarray, rows: np.ndarray, k: int, measure: Measure, block: int
) -> tuple[np.ndarray, np.ndarray]:
    places = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    if k == 0:
        return places, scores
    slack = slack_of(rows.shape[1])
    for start, part, quick in _scored(queries, rows, measure, block):
        least = quick.topk(min(k, len(part)), dim=1).values[:, -1].numpy() if len(part) >= k else -np.inf
        bound = torch.from_numpy(np.maximum(least, scores[:, -1]).astype(np.float32) - slack)
        hit_queries, hit_rows = (found.numpy() for found in (quick >= bound[:, None]).nonzero(as_tuple=True))
        exact = _exact_pairs(queries, part, hit_queries, hit_rows, measure)
        cuts = np.searchsorted(hit_queries, np.arange(len(queries) + 1))
        for query, (a, b) in enumerate(pairwise(cuts)):
            if a < b:
                all_scores = np.concatenate([scores[query], exact[a:b]])
                all_places = np.concatenate([places[query], hit_rows[a:b] + start])
                # what is not there yet has place -1 and must stand behind a row whose score is minus infinity
                best = np.lexsort((all_places, all_places < 0, -all_scores))[:k]
                scores[query], places[query] = all_scores[best], all_places[best]
    return places, scores


def positions(
    query: np.ndarray, rows: np.ndarray, wanted: Sequence[int], measure: Measure, block: int = BLOCK_BYTES
) -> list[int]:
    """Where the rows `wanted` stand in the list that exact_nearest gives for a query (D,), from 1, in one reading."""
    queries, some = _float32(query[None]), np.asarray(wanted, np.int64)
    slack = slack_of(rows.shape[1])
    scores = _exact_pairs(queries, rows, np.zeros_like(some), some, measure)
    better = [0] * len(some)
    for start, part, quick in _scored(queries, rows, measure, block):
        for place, (row, own) in enumerate(zip(some.tolist(), scores.tolist(), strict=True)):
            surely = quick[0] > own + slack
            near = ((quick[0] >= own - slack) & ~surely).nonzero().squeeze(1).numpy()
            exact = _exact_pairs(queries, part, np.zeros_like(near), near, measure)
            ahead = (exact > own) | ((exact == own) & (near + start < row))
            better[place] += int(surely.sum()) + int(ahead.sum())
    return [count + 1 for count in better]


def slack_of(dim: int) -> float:
    """By how much a quick score of unit vectors may lie beside the exact one, twice: a sum of `dim` roundings."""
    return (dim + 8) * 2.0**-23


def _scored(
    queries: np.ndarray, rows: np.ndarray, measure: Measure, block: int
) -> Iterator[tuple[int, np.ndarray, Tensor]]:
    """Start, rows and quick scores (Q, B) of every block; not-a-number counts as the worst score."""
    height = max(1, block // (4 * max(1, rows.shape[1])))
    asked = torch.from_numpy(queries)
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        yield start, part, measure.quick(asked, _tensor(part)).nan_to_num_(nan=-torch.inf)


def _exact_pairs(
    queries: np.ndarray, rows: np.ndarray, of_query: np.ndarray, of_row: np.ndarray, measure: Measure
) -> np.ndarray:
    """The scores of pairs, (C,) float32: equal rows score equal, wherever they stand."""
    scores = np.empty(len(of_row), np.float32)
    for start in range(0, len(of_row), PAIRS_PER_BLOCK):
        some = slice(start, start + PAIRS_PER_BLOCK)
        pairs = queries[of_query[some]].astype(np.float64), rows[of_row[some]].astype(np.float64)
        scores[some] = measure.exact(*pairs)
    return np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _tensor(rows: np.ndarray) -> Tensor:
    """Without a copy where torch does not mind: it warns of arrays that cannot be written, though nobody writes."""
    return torch.from_numpy(rows if rows.flags.writeable and rows.flags.c_contiguous else np.array(rows))


def import_faiss() -> Any:
    """FAISS, which only approximate search needs."""
    try:
        import faiss
    except ImportError:
        raise BadInput(
            "--approximate: FAISS is not installed; run pip install faiss-cpu, or search exactly with --exact"
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
        graph = faiss.IndexHNSWFlat(rows.shape[1], M, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = CONSTRUCTION
        height = max(1, block // (4 * rows.shape[1]))
        for start in range(0, len(rows), height):
            graph.add(_float32(rows[start : start + height]))
        with atomic_write(path, "wb") as file:
            faiss.write_index(graph, faiss.PyCallbackIOWriter(file.write))
        return cls(graph, rows, EF)

    @classmethod
    def open(cls, path: Path, rows: np.ndarray, ef: int) -> "Graph":
        """By memory map. Raises BadInput if the file is damaged."""
        faiss = import_faiss()
        try:
            graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError:
            raise BadInput(f"{path}: missing or damaged; build the index again with --fresh") from None
        if (graph.ntotal, graph.d) != rows.shape:
            raise BadInput(f"{path}: not the graph of this index; build the index again with --fresh")
        return cls(graph, rows, ef)

    def nearest(self, queries: np.ndarray, k: int, ef: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Like exact_nearest with COSINE, but for rows that the graph does not find: there, place -1 and -inf."""
        faiss = import_faiss()
        k = min(k, len(self.rows))
        queries = _float32(queries)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        options = faiss.SearchParametersHNSW(efSearch=max(self.ef if ef is None else ef, k))
        _, places = self.graph.search(queries, k, params=options)
        of_query, of_column = np.nonzero(places >= 0)
        scores = np.full(places.shape, -np.inf, np.float32)
        of_row = places[of_query, of_column]
        scores[of_query, of_column] = _exact_pairs(queries, self.rows, of_query, of_row, COSINE)
        best = np.lexsort((places, -scores), axis=1)
        return np.take_along_axis(places, best, 1), np.take_along_axis(scores, best, 1)

    def tune(self, queries: np.ndarray, target: float = RECALL, k: int = 10) -> float:
        """Double `ef` until recall@k on held-out queries (Q, D) reaches `target`, or cannot; returns the recall."""
        _, exact = exact_nearest(queries, self.rows, k, COSINE)
        self.ef = EF
        while (recall := recall_of(self.nearest(queries, k)[1], exact)) < target and self.ef < MAX_EF:
            self.ef *= 2
        return recall


def recall_of(found: np.ndarray, exact: np.ndarray) -> float:
    """The share of found scores (Q, k) that belong to the best k, by exact scores (Q, k) of the same queries.

    Where several rows score the same as the last of the best, each of them is as good.
    """
    return float((found >= exact[:, -1:]).mean()) if exact.size else 1.0


def write_graph(rows: np.ndarray, queries: np.ndarray, path: Path) -> dict[str, Any]:
    """Build a graph of rows (N, D), measure it on held-out queries (Q, D), and say what was measured."""
    began = time.perf_counter()
    graph = Graph.build(rows, path)
    seconds = time.perf_counter() - began
    graph.tune(queries[::2])  # chosen on one half, measured on the other
    held_out = queries[1::2] if len(queries) > 1 else queries
    recall = recall_of(graph.nearest(held_out, 10)[1], exact_nearest(held_out, rows, 10, COSINE)[1])
    return {"seconds": round(seconds, 1), "efSearch": graph.ef, "recall@10": round(recall, 4), "queries": len(held_out)}

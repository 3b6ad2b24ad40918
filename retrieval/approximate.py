"""Nearly all of the nearest rows, sooner than all of them: by an index of FAISS beside the matrix, for cosine.

It, or a collection of Milvus (retrieval/milvus.py), gives candidates; their exact scores, from the matrix, decide, as
in `exact_nearest`. How much it looks at for them is doubled until recall on held-out sentences is enough.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval.nearest import BLOCK_BYTES, COSINE, as_float32, exact_nearest
from utils import BadInput, atomic_write, did_you_mean

NEIGHBORS, EF_CONSTRUCTION = 32, 100  # of HNSW: neighbors of a vector; how many are looked at to find them
LIST_ROWS = 64  # rows that each of IVF's lists is trained on
PQ_DIMENSIONS, PQ_ROWS = 8, 10_000  # dimensions that one byte stands for; rows that these bytes are trained on at least
PQ_CANDIDATES = 16  # for one answer at least: quantized rows are scored coarsely
MIN_RECALL = 0.95  # at 10, until which effort is doubled
RECALL_QUERIES = 500  # queries that recall is measured with, at most


class Kind(NamedTuple):
    """A kind of index. options: effort and number of candidates → what a search takes. candidates: effort → how many
    there are for one answer. empty: rows (N, D) → an index of FAISS that is trained on them and holds none.
    """

    options: Callable[[int, int], Any]
    candidates: Callable[[int], int]
    first: int
    last: int = 4096
    empty: Callable[[np.ndarray], Any] | None = None


def _hnsw(rows: np.ndarray) -> Any:
    """A graph (Malkov and Yashunin, 2018) with a copy of the rows; all of it is in memory while it is built."""
    faiss = import_faiss()
    graph = faiss.IndexHNSWFlat(rows.shape[1], NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = EF_CONSTRUCTION
    return graph


def _ivf_pq(rows: np.ndarray) -> Any:
    """Inverted lists of product-quantized rows (Jégou et al., 2011)."""
    count, dim = rows.shape
    if count < PQ_ROWS:
        raise BadInput(f"`search` ivf_pq: wants {PQ_ROWS:,} images at least, and there are {count:,}; leave it out")
    faiss, lists, codes = import_faiss(), min(int(4 * count**0.5), count // LIST_ROWS), -(-dim // PQ_DIMENSIONS)
    layout = f"Pad{codes * PQ_DIMENSIONS},IVF{lists},PQ{codes}x8"
    index = faiss.index_factory(dim, layout, faiss.METRIC_INNER_PRODUCT)
    index.train(as_float32(rows[:: max(1, count // max(PQ_ROWS, LIST_ROWS * lists))]))
    return index


def _graph_options(effort: int, candidates: int) -> Any:
    return import_faiss().SearchParametersHNSW(efSearch=max(effort, candidates))


def _list_options(effort: int, candidates: int) -> Any:
    faiss = import_faiss()
    return faiss.SearchParametersPreTransform(index_params=faiss.SearchParametersIVF(nprobe=effort))


KINDS = {
    "hnsw": Kind(_graph_options, lambda ef: 1, first=16, empty=_hnsw),
    "ivf_pq": Kind(_list_options, lambda nprobe: max(PQ_CANDIDATES, nprobe), first=1, empty=_ivf_pq),
}
EXACT = "exact"
SEARCHES = (EXACT, *KINDS)
MOST_IMAGES = {EXACT: 50_000, "hnsw": 10_000_000}  # that are searched so, unless `search` says otherwise; else by lists


def search_for(images: int) -> str:
    """Return how so many images are searched.

    >>> search_for(50_000), search_for(50_001), search_for(20_000_000)
    ('exact', 'hnsw', 'ivf_pq')
    """
    return next((name for name, most in MOST_IMAGES.items() if images <= most), "ivf_pq")


def check_search(search: str | None, similarity: str) -> None:
    """Raise BadInput for a way to search that there is not, or not for this similarity, or not without FAISS."""
    if search is None or search == EXACT:
        return
    if search not in SEARCHES:
        raise BadInput(f"`search` {search}: no such way to search; {did_you_mean(search, SEARCHES)}")
    if similarity == "order":
        raise BadInput(f"`search` {search}: order similarity is no inner product, its search is exact; leave it out")
    import_faiss()  # before hours of work


def import_faiss() -> Any:
    """Import FAISS, which only approximate search needs. Raises BadInput where it is missing."""
    try:
        import faiss
    except ImportError:
        raise BadInput(
            "`search`: FAISS is not installed; run pip install faiss-cpu, or search exactly with `exact`"
        ) from None
    return faiss


class Approximate:
    """An index of the rows (N, D) of a matrix. effort: efSearch of a graph, nprobe of lists; None: the least.

    index: adds rows and searches as those of FAISS do.
    """

    def __init__(self, kind: Kind, index: Any, rows: np.ndarray, effort: int | None = None):
        self.kind, self.index, self.rows, self.effort = kind, index, rows, effort or kind.first

    @classmethod
    def build(cls, kind: str, rows: np.ndarray, path: Path, block: int = BLOCK_BYTES) -> "Approximate":
        """Build the index of the rows, a block at a time, and write it, whole."""
        faiss, empty = import_faiss(), KINDS[kind].empty
        assert empty is not None
        built = cls(KINDS[kind], empty(rows), rows)
        built.add_rows(block)
        with atomic_write(path, "wb") as file:
            faiss.write_index(built.index, faiss.PyCallbackIOWriter(file.write))
        return built

    def add_rows(self, block: int = BLOCK_BYTES) -> None:
        """Add all rows to the index, so many bytes of them at a time."""
        height = max(1, block // (4 * self.rows.shape[1]))
        for start in range(0, len(self.rows), height):
            self.index.add(as_float32(self.rows[start : start + height]))

    @classmethod
    def open(cls, kind: str, path: Path, rows: np.ndarray, effort: int) -> "Approximate":
        """Open an index by memory map. Raises BadInput if the file is damaged."""
        faiss = import_faiss()
        if hasattr(faiss, "set_deserialization_vector_byte_limit"):  # newer ones: tables are larger than the file
            faiss.set_deserialization_vector_byte_limit(16 * path.stat().st_size)
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except (RuntimeError, MemoryError):
            raise BadInput(f"{path}: missing or damaged; build the index again with `fresh`") from None
        if (index.ntotal, index.d) != rows.shape:
            raise BadInput(f"{path}: not of the rows of this index; build the index again with `fresh`")
        return cls(KINDS[kind], index, rows, effort)

    def nearest(self, queries: np.ndarray, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Do as exact_nearest with COSINE; where nothing more was come upon, the row is -1 and its score -inf."""
        k = min(k, len(self.rows))
        queries = as_float32(queries)
        if k == 0 or len(queries) == 0:
            return np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        effort = self.effort if effort is None else effort
        count = min(k * self.kind.candidates(effort), len(self.rows))
        _, rows = self.index.search(queries, count, params=self.kind.options(effort, count))
        of_query, of_column = np.nonzero(rows >= 0)
        scores = np.full(rows.shape, -np.inf, np.float32)
        scores[of_query, of_column] = COSINE.exact(queries, self.rows, of_query, rows[of_query, of_column])
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)

    def tune(self, queries: np.ndarray, target: float = MIN_RECALL, k: int = 10) -> float:
        """Double `effort` until recall@k on queries (Q, D) reaches `target`, or cannot; return the recall."""
        _, exact = exact_nearest(queries, self.rows, k, COSINE)
        self.effort = self.kind.first
        while (recall := recall_of(self.nearest(queries, k)[1], exact)) < target and self.effort < self.kind.last:
            self.effort *= 2
        return recall


def recall_of(scores: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of scores (Q, k) that belong to the best k, by exact scores (Q, k) of the same queries.

    Where several rows score the same as the last of the best, each of them is as good.

    >>> recall_of(np.array([[0.9, 0.4]]), np.array([[0.9, 0.5]]))
    0.5
    """
    return float((scores >= exact[:, -1:]).mean()) if exact.size else 1.0


def drawn_queries(rows: np.ndarray) -> np.ndarray:
    """Return RECALL_QUERIES of the rows (N, D) at most, drawn."""
    drawn = np.random.default_rng(0).permutation(len(rows))[:RECALL_QUERIES]
    return as_float32(rows[np.sort(drawn)])


def write_approximate(kind: str, rows: np.ndarray, queries: np.ndarray, path: Path) -> dict[str, Any]:
    """Build the index of rows (N, D), measure it on held-out queries (Q, D), and return what was measured."""
    began = time.perf_counter()
    built = Approximate.build(kind, rows, path)
    seconds = round(time.perf_counter() - began, 1)
    return {"search": kind, **tuned(built, queries), "seconds": seconds}


def tuned(built: Approximate, queries: np.ndarray) -> dict[str, Any]:
    """Choose effort by one half of held-out queries (Q, D), and return it and the recall of the other half."""
    built.tune(queries[::2])
    held_out = queries[1::2] if len(queries) > 1 else queries
    recall = recall_of(built.nearest(held_out, 10)[1], exact_nearest(held_out, built.rows, 10, COSINE)[1])
    return {"effort": built.effort, "recall@10": round(recall, 4), "queries": len(held_out)}

"""A collection of Milvus where an index of FAISS would be: a server holds the vectors, or a file of milvus-lite.

The index folder keeps its rows, by which candidates are scored exactly, and the name of the collection. Where Milvus
is it does not say, but whoever asks: an index of somebody else's sends nothing anywhere.
"""

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.approximate import EF_CONSTRUCTION, NEIGHBORS, Approximate, Kind, tuned
from utils import BadInput, atomic_write, log

MILVUS = "milvus"  # the way to search
ADDRESS = "INDEX_URL"  # the environment variable that says where Milvus is
NAME = re.compile(r"images_[0-9a-f]{16}")  # of a collection: drawn, so that no two builds have the same
ROW, VECTOR = "row", "embedding"  # its fields
MAX_ANSWERS = 16_384  # of one query, Milvus's own limit
ROWS_PER_INSERT = 1000
GRAPH = Kind(lambda ef, candidates: {"ef": max(ef, candidates)}, lambda ef: 1, first=16)


def address_of(index_url: str | None, about: dict[str, Any]) -> str:
    """Return where Milvus is: as given, or as the environment says. about: the index's approximate search.

    Raises BadInput where neither says so.
    """
    if url := index_url or os.environ.get(ADDRESS):
        return url
    raise BadInput(
        f"this index is searched in Milvus (collection {about.get('collection')}); say where that is with `index_url`, "
        f"or in the environment as {ADDRESS}, or search another way: find with `exact`, index with `search`"
    )


class Collection:
    """A collection, open: it adds rows and searches them as an index of FAISS does.

    Raises BadInput where the package is missing or Milvus cannot be reached, as all that it does.
    """

    def __init__(self, url: str, name: Any):
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # it notes on the terminal what it reconnects
        try:
            from pymilvus import MilvusClient
        except ImportError:
            raise BadInput(
                "`index_url`: pymilvus is not installed; run pip install pymilvus (for a file: pymilvus milvus-lite)"
            ) from None
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise BadInput(f"{str(name)[:80]}: no collection of an index; build the index again with `fresh`")
        for library in ("pymilvus", "milvus_lite", "grpc"):  # which print tracebacks of what they raise, too
            logging.getLogger(library).setLevel(logging.CRITICAL)
        self.shown, self.name, self.added = re.sub("//[^/]*@", "//", url), name, 0  # a password is not shown
        with self._speaking():
            self.client = MilvusClient(url)

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say what Milvus says in one sentence."""
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, ValueError) as error:
            said = (getattr(error, "message", "") or str(error)).strip().splitlines()[0][:200]
            remedy = "see that this is Milvus, that it runs, and that no other program has its file"
            raise BadInput(f"`index_url` {self.shown}: {said}; {remedy}") from error

    def create(self, dim: int) -> None:
        """Make the collection, of vectors of `dim` numbers, which must not be there yet."""
        from pymilvus import DataType

        with self._speaking():
            schema = self.client.create_schema(auto_id=False)
            schema.add_field(ROW, DataType.INT64, is_primary=True)
            schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
            self.client.create_collection(self.name, schema=schema, consistency_level="Strong")

    def build(self) -> None:
        """Build the graph of all vectors that were added, and open the collection for searches."""
        with self._speaking():
            self.client.flush(self.name)
            graph = self.client.prepare_index_params()
            sizes = {"M": NEIGHBORS, "efConstruction": EF_CONSTRUCTION}
            graph.add_index(VECTOR, index_type="HNSW", metric_type="IP", params=sizes)
            self.client.create_index(self.name, graph)  # waits for it
        self.load()

    def load(self) -> None:
        """Have Milvus take it into memory, which it may have left since."""
        with self._speaking():
            self.client.load_collection(self.name)

    def add(self, rows: np.ndarray) -> None:
        """Add rows (N, dim) behind those that were added before."""
        with self._speaking():
            for start in range(0, len(rows), ROWS_PER_INSERT):
                part = rows[start : start + ROWS_PER_INSERT]
                self.client.insert(self.name, [{ROW: self.added + n, VECTOR: row} for n, row in enumerate(part)])
                self.added += len(part)

    def search(self, queries: np.ndarray, count: int, params: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows (Q, count) of the nearest, best first; behind the last of them -inf and -1."""
        scores = np.full((len(queries), count), -np.inf, np.float32)
        rows = np.full((len(queries), count), -1, np.int64)
        options = {"metric_type": "IP", "params": params}
        with self._speaking():
            most = min(count, MAX_ANSWERS)
            answers = self.client.search(self.name, queries, limit=most, search_params=options, output_fields=[ROW])
        for query, hits in enumerate(answers):
            rows[query, : len(hits)] = [hit[ROW] for hit in hits]
            scores[query, : len(hits)] = [hit["distance"] for hit in hits]
        return scores, rows

    def __len__(self) -> int:
        with self._speaking():
            return int(self.client.get_collection_stats(self.name)["row_count"])

    def is_there(self) -> bool:
        """Return whether Milvus has it."""
        with self._speaking():
            return bool(self.client.has_collection(self.name))

    def holds(self, count: int) -> bool:
        """Return whether Milvus has it, of so many rows."""
        return self.is_there() and len(self) == count

    def drop(self) -> None:
        """Remove it from Milvus, if it is there."""
        with self._speaking():
            self.client.drop_collection(self.name)


def check_address(url: str | None, search: str | None, similarity: str) -> None:
    """Raise BadInput for what cannot be searched in Milvus, and where Milvus cannot be reached."""
    if not url:
        return
    if search:
        raise BadInput(
            f"`search` {search}, `index_url`: Milvus is a way to search of its own; leave one of the two out"
        )
    if similarity == "order":
        raise BadInput("`index_url`: order similarity is no inner product, its search is exact; leave it out")
    Collection(url, f"images_{0:016x}").is_there()


def url_for(url: str | None, search: str | None, about: dict[str, Any] | None) -> str | None:
    """Return where an index shall be searched in Milvus, None for nowhere: it stays where it is, as `about` says.

    Raises BadInput if it is there, and nobody says where that is, or which other way to search it.
    """
    if about is None or about["search"] != MILVUS or search:
        return url
    return address_of(url, about)


def drop_replaced(url: str | None, before: dict[str, Any] | None, now: dict[str, Any] | None) -> None:
    """Drop the collection that searched an index before, if another way does now."""
    name = (before or {}).get("collection")
    if not name or name == (now or {}).get("collection"):
        return
    if url:
        Collection(url, name).drop()
    else:
        log(f"collection {name} stays in Milvus: nobody says where that is")


def write_collection(url: str, rows: np.ndarray, queries: np.ndarray, note: Path) -> dict[str, Any]:
    """Put rows (N, D) into a new collection, measure it on held-out queries (Q, D), and return what was measured.

    note: a file with the name of the collection that is being made: that of a build that was killed is dropped.
    """
    if note.exists():
        Collection(url, note.read_text()).drop()
    name = f"images_{secrets.token_hex(8)}"
    with atomic_write(note) as file:
        file.write(name)
    began = time.perf_counter()
    built = Approximate(GRAPH, Collection(url, name), rows)
    built.index.create(rows.shape[1])
    built.add_rows()
    built.index.build()
    seconds = round(time.perf_counter() - began, 1)
    return {"search": MILVUS, **tuned(built, queries), "seconds": seconds, "collection": name}


def open_collection(url: str, about: dict[str, Any], rows: np.ndarray) -> Approximate:
    """Open the collection of rows (N, D). about: what `write_collection` returned.

    Raises BadInput if Milvus has no such collection of so many rows.
    """
    if "://" not in url and not Path(url).exists():  # milvus-lite would make it
        raise BadInput(f"`index_url` {url}: no such file; name the one it was built with, or build the index again")
    collection = Collection(url, about.get("collection"))
    if not collection.holds(len(rows)):
        raise BadInput(
            f"`index_url` {collection.shown}: has no collection {collection.name} of the {len(rows):,} rows of this "
            f"index; build the index again with `index_url`"
        )
    collection.load()
    return Approximate(GRAPH, collection, rows, about["effort"])

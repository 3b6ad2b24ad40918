"""Parquet files, read and written in blocks of rows by pyarrow, an optional package."""

import bisect
import functools
import importlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from utils import BadInput

ROWS_PER_BLOCK = 8192  # rows of text that are read at once
CELLS_PER_BLOCK = 16  # rows of images that are read at once
OPEN_COLUMNS = 4  # of images, that are kept open


def import_arrow(module: str, path: Path) -> Any:
    """Import a module of pyarrow, such as "parquet". Raises BadInput, for the sake of `path`, if it is missing."""
    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError:
        raise BadInput(f"{path}: Parquet and Arrow files need a package; pip install pyarrow") from None


def parquet_columns(path: Path) -> list[str]:
    """Return the names of the columns of a Parquet file. Raises BadInput if it is none, or cut short."""
    metadata = _metadata(path)
    try:
        return list(metadata.schema.to_arrow_schema().names)
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None


def parquet_rows(path: Path) -> int:
    """Return the number of rows of a Parquet file. Raises BadInput if it is none, or cut short."""
    return _metadata(path).num_rows


def _metadata(path: Path) -> Any:
    parquet = import_arrow("parquet", path)
    try:
        return parquet.read_metadata(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are of these
        raise damaged(path, error) from None


def parquet_blocks(path: Path, columns: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """Yield blocks of rows: the values of each of `columns`. Raises BadInput if the file is damaged."""
    parquet = import_arrow("parquet", path)
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_PER_BLOCK, columns=list(columns)):
                yield {name: batch.column(name).to_pylist() for name in columns}
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> BadInput:
    """Return the error of a file that pyarrow cannot read."""
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return BadInput(f"{path}: cannot be read, or cut short ({reason}); get it again, or leave it out")


def write_parquet(file: IO[bytes], path: Path, columns: Sequence[str], blocks: Iterable[Mapping[str, Any]]) -> None:
    """Write columns of text as blocks bring their rows; `path` is named if pyarrow is missing."""
    parquet, arrow = import_arrow("parquet", path), importlib.import_module("pyarrow")
    schema = arrow.schema([(name, arrow.string()) for name in columns])
    with parquet.ParquetWriter(file, schema) as writer:
        for block in blocks:
            writer.write_table(arrow.table({name: block[name] for name in columns}, schema))


def read_cell(path: Path, column: str, row: int) -> bytes | None:
    """Read the bytes in a row of a column, None where there are none: quick where rows are asked for in their order.

    Raises OSError if there is no such row, or the file is damaged.
    """
    with _lock:
        try:
            return _open_column(path, column, os.stat(path).st_mtime_ns).cell(row)
        except (OSError, ValueError, LookupError) as error:
            raise OSError(" ".join(str(error).split())[:120] or "its file is damaged") from None


_lock = threading.Lock()  # a column is read by one thread at a time


@functools.lru_cache(OPEN_COLUMNS)
def _open_column(path: Path, column: str, _: int) -> "_Column":
    return _Column(path, column)


class _Column:
    """A column of bytes, read forward: what lies before a row in its row group is read, too, but not kept."""

    def __init__(self, path: Path, column: str):
        parquet = import_arrow("parquet", path)
        self.file, self.column = parquet.ParquetFile(path, memory_map=True, pre_buffer=False), column
        counts = [self.file.metadata.row_group(number).num_rows for number in range(self.file.num_row_groups)]
        self.starts = [sum(counts[:number]) for number in range(len(counts) + 1)]
        self.group, self.start = -1, 0  # the first row of the block that is held
        self.block: list[bytes | None] = []
        self.blocks: Iterator[Any] = iter(())

    def cell(self, row: int) -> bytes | None:
        group = bisect.bisect_right(self.starts, row) - 1
        if not 0 <= group < len(self.starts) - 1:
            raise IndexError(f"it has no row {row:,}")
        if group != self.group or row < self.start:
            self.group, self.start, self.block = group, self.starts[group], []
            self.blocks = self.file.iter_batches(CELLS_PER_BLOCK, [group], [self.column], use_threads=False)
        while row >= self.start + len(self.block):
            self.start += len(self.block)
            (array,) = next(self.blocks).columns
            self.block = (array.field("bytes") if hasattr(array, "field") else array).to_pylist()
        return self.block[row - self.start]

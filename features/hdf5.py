"""HDF5 files of rows: written whole or not at all, and read in any order, block by block.

They are read by another process (features/apart.py): no file, damaged or made to do harm, ends or stops this one.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from features.apart import ask
from utils import BadInput, atomic_file

CHUNK_BYTES = 2**20  # bytes of a chunk of the file
BLOCK_BYTES = 2**25  # bytes that are read at once


@contextlib.contextmanager
def atomic_hdf5(path: Path, size: int) -> Iterator[h5py.File]:
    """Open an HDF5 file of at most `size` bytes that appears under its name when it is complete.

    The room is reserved first: HDF5 does not survive a full disk. Raises BadInput if the disk does not take it.
    """
    try:
        with atomic_file(path) as scratch:
            with open(scratch, "wb") as reserved:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(reserved.fileno(), 0, size)
            with h5py.File(scratch, "w", locking=False) as file:  # atomic_file has locked it
                yield file
    except (OSError, RuntimeError) as error:  # HDF5 tells of its troubles in either, over several lines
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error).splitlines()[0]
        raise BadInput(
            f"{path}: cannot be written ({reason}); check that the disk is not full and that you may write there"
        ) from error


def rows_bytes(count: int, shape: tuple[int, ...], dtype: str) -> int:
    """Return the most bytes that `count` rows of `shape` take in a file, its last chunk included."""
    return (count + _chunk_rows(count, shape, dtype)) * _row_bytes(shape, dtype)


def write_rows(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]) -> None:
    """Write the dataset `name` of `shape`, (N, …), as `blocks` bring its rows; whole rows lie in each chunk."""
    count, *row = shape
    dataset = file.create_dataset(name, shape, dtype, chunks=(_chunk_rows(count, tuple(row), dtype), *row))
    done = 0
    for block in blocks:
        dataset[done : done + len(block)] = block
        done += len(block)


@dataclass(frozen=True)
class Head:
    """What an HDF5 file holds. arrays: name → shape and dtype; texts: the values of those that were asked for."""

    attributes: dict[str, str | int]
    arrays: dict[str, tuple[tuple[int, ...], np.dtype | str]]
    texts: dict[str, list[Any]]

    def numbers(self, name: str) -> tuple[tuple[int, ...], np.dtype] | None:
        """Return shape and dtype of an array of numbers; None if there is none of this name."""
        shape, dtype = self.arrays.get(name, ((), ""))
        return (shape, dtype) if isinstance(dtype, np.dtype) else None


def read_head(path: Path, *names: str) -> Head:
    """Read what a file says of itself, and the values, text or numbers, in its arrays `names`, as far as it has them.

    Raises OSError if the file is none of HDF5, is damaged, or has arrays that lie in other files.
    """
    value, _ = ask(path, "head", names)
    arrays = {n: (tuple(shape), np.dtype(d) if d[0] in "<>|" else d) for n, (shape, d) in value["arrays"].items()}
    return Head(value["attributes"], arrays, value["texts"])


def read_rows(path: Path, name: str, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Read `rows` (any order, repeats allowed) of the dataset `name`, (len(rows), …) in `dtype`, block by block.

    Nothing is held but the result and one block of the file. Raises OSError if the file is damaged.
    """
    numbers = read_head(path).numbers(name)
    if numbers is None:
        raise OSError(f"it has no numbers {name!r}")
    shape, stored = numbers
    out = np.empty((len(rows), *shape[1:]), dtype)
    height = max(1, BLOCK_BYTES // max(1, _row_bytes(shape[1:], stored)))
    order = np.argsort(rows, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(rows[order] // height)) + 1):
        if len(part):
            out[part] = read_sorted(path, name, rows[part], dtype)
    return out


def read_sorted(
    path: Path, name: str, rows: np.ndarray, dtype: str | None = None, columns: tuple[int, int] | None = None
) -> np.ndarray:
    """Read `rows`, one at least, which do not decrease, at once; of a matrix perhaps a range of columns alone.

    dtype: None for that of the file. Raises OSError if the file is damaged, or there is no such row.
    """
    return ask(path, "rows", name, dtype, columns, data=rows.astype(np.int64).tobytes())[1]


def _row_bytes(shape: tuple[int, ...], dtype: str | np.dtype) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _chunk_rows(count: int, shape: tuple[int, ...], dtype: str) -> int:
    return max(1, min(count, CHUNK_BYTES // max(1, _row_bytes(shape, dtype))))

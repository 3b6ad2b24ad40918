"""HDF5 files of rows: written whole or not at all, and read in any order, block by block."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import h5py
import numpy as np

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


def read_rows(path: Path, name: str, rows: np.ndarray, dtype: str) -> np.ndarray:
    """Read `rows` (any order, repeats allowed) of the dataset `name`, (len(rows), …) in `dtype`, block by block.

    Nothing is held but the result and one block of the file. Raises OSError or KeyError if the file is damaged.
    """
    with h5py.File(path, "r") as file:
        dataset = file[name]
        out = np.empty((len(rows), *dataset.shape[1:]), dtype)
        height = max(1, BLOCK_BYTES // max(1, _row_bytes(dataset.shape[1:], dataset.dtype)))
        order = np.argsort(rows, kind="stable")
        for part in np.split(order, np.flatnonzero(np.diff(rows[order] // height)) + 1):
            if len(part):
                out[part] = _read_sorted(dataset, rows[part])
    return out


def plain_attributes(file: h5py.File) -> dict[str, str | int]:
    """Return the attributes of a file as text and numbers of Python's own."""
    return {name: _plain(value) for name, value in file.attrs.items()}


def _row_bytes(shape: tuple[int, ...], dtype: str | np.dtype) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize


def _chunk_rows(count: int, shape: tuple[int, ...], dtype: str) -> int:
    return max(1, min(count, CHUNK_BYTES // max(1, _row_bytes(shape, dtype))))


def _read_sorted(dataset: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Read `rows`, which do not decrease. HDF5 is slow with lists: a slice, unless most of it would be thrown away."""
    first, last = int(rows[0]), int(rows[-1])
    distinct, back = np.unique(rows, return_inverse=True)
    if last - first + 1 <= 4 * len(distinct):
        return dataset[first : last + 1][rows - first]
    return dataset[distinct][back]


def _plain(value: object) -> str | int:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, np.integer | int) else str(value)

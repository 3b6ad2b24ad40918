"""Spatial maps on demand: training asks for a batch at a time and never holds all of them as float32.

The maps of a split stay as the store has them (float16) in memory if they fit into `MEMORY` bytes, and in the file if
they do not: Flickr8k's 6,000 of training, 7 x 7 x 1280 each, are 0.75 GB, COCO's 123,000 are 15 GB.
"""

import os
import weakref
from typing import Any

import numpy as np
import torch

from features.apart import ask
from features.hdf5 import read_head
from features.images.store import FeatureStore
from features.progress import progress_bar
from utils import BadInput

MEMORY = 2**30  # bytes of maps that are kept as stored, for each split
PIECE = 2**15 - 2**6  # numbers converted at a time: torch takes threads from 2**15 on, and they do not survive a fork


class FeatureMaps:
    """The maps of some rows of a store, in the order of `rows`: like an array (N, H, W, C) float32 that is read.

    store: of maps, its rows of shape (H, W, C). rows: (N,) row numbers of the store, any order, repeats allowed.
    normalize: L2-normalize the C numbers of each position; zeros stay zeros. memory: bytes that may be kept.

    What fits into `memory` is read at once and kept as stored. Larger ones are read each time they are asked for, and
    nothing is held but what a call returns and one map. They are read past HDF5, which would fetch a whole chunk
    for a row: rows lie in the file as they are, and where each begins is all that HDF5 is asked, once. 256 of 8,000
    maps of 7 x 7 x 1280 take about 30 ms of one core, and 40 ms of waiting where they come from a disk, against 1.7 s
    through FeatureStore.read.

    May be used in forked processes, which share what was kept, and pickled; an unpickled one reads for itself.
    Raises BadInput if the store holds no maps or the file cannot be read.

    >>> maps = FeatureMaps(store, store.rows(ids))  # doctest: +SKIP
    >>> maps.take(np.array([5, 0, 5])).shape, maps[:100].shape  # doctest: +SKIP
    ((3, 7, 7, 1280), (100, 7, 7, 1280))
    """

    def __init__(self, store: FeatureStore, rows: np.ndarray, normalize: bool = False, memory: int = MEMORY):
        if not store.grid:
            raise BadInput(f"{store.path}: holds no spatial maps; make them with prep.py and `map`")
        self.store, self.rows, self.normalize = store, np.asarray(rows, dtype=np.int64), normalize
        _check_rows(self.rows, len(store))
        self.shape = (len(self.rows), *store.shape)
        self.fits = int(np.prod(self.shape)) * np.dtype(store.dtype).itemsize <= memory
        self.kept: np.ndarray | None = None
        self._file: _RowFile | None = None
        self._keep()  # now, so that processes forked later share it

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        """Read consecutive maps, (n, H, W, C) float32."""
        return self.take(np.arange(len(self))[part])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the maps numbered `rows` (0 to N - 1, any order, repeats allowed), (len(rows), H, W, C) float32."""
        rows = np.asarray(rows, dtype=np.int64)
        _check_rows(rows, len(self))
        out = np.empty((len(rows), *self.shape[1:]), np.float32)
        if not len(rows):
            return out
        self._keep()
        if self.kept is not None:
            for i, row in enumerate(rows):
                self._finish(self.kept[row], out[i])
        else:
            self._read(self.rows[rows], out)
        return out

    def _keep(self) -> None:
        if self.kept is not None or not self.fits:
            return
        file, kept = _RowFile(self.store), np.empty(self.shape, self.store.dtype)
        order = np.argsort(self.rows, kind="stable")  # as they lie in the file
        for i in progress_bar(order, f"read {self.store.path.name}", unit=" maps", delay=2, leave=False):
            file.read(self.rows[i], kept[i])
        self.kept = kept

    def _read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read `rows` of the store into `out`."""
        if self._file is None:
            self._file = _RowFile(self.store)
        self._file.announce(np.unique(rows))
        stored = np.empty(self.shape[1:], self.store.dtype)
        for i in np.argsort(rows, kind="stable"):
            self._file.read(rows[i], stored)
            self._finish(stored, out[i])

    def _finish(self, stored: np.ndarray, out: np.ndarray) -> None:
        """Convert one map as stored into `out` (H, W, C) float32. A single one stays in the processor's cache."""
        pieces = (torch.from_numpy(array).view(-1).split(PIECE) for array in (out, stored))
        for piece, source in zip(*pieces, strict=True):
            piece.copy_(source)  # several times as quick as numpy's conversion of float16
        if self.normalize:
            out /= np.maximum(np.sqrt(np.einsum("hwc,hwc->hw", out, out)), 1e-12)[:, :, None]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": None, "_file": None}


def _check_rows(rows: np.ndarray, count: int) -> None:
    if len(rows) and (rows.min() < 0 or rows.max() >= count):
        raise IndexError(f"rows {rows.min()}..{rows.max()} of {count} maps")


class _RowFile:
    """A store's file, open for reading rows where they lie. It has no position that moves, so a fork may share it."""

    def __init__(self, store: FeatureStore):
        self.path = store.path
        self.bytes = int(np.prod(store.shape)) * np.dtype(store.dtype).itemsize  # of a row
        try:
            self.starts = _starts(store)
            self.descriptor = os.open(store.path, os.O_RDONLY)
        except OSError as error:
            raise self._unreadable(error) from error
        weakref.finalize(self, os.close, self.descriptor)

    def announce(self, rows: np.ndarray) -> None:
        """Let the system fetch `rows` all at once: from a disk, three times as quick as one after the other."""
        if hasattr(os, "posix_fadvise"):
            for start in self.starts[rows].tolist():
                os.posix_fadvise(self.descriptor, start, self.bytes, os.POSIX_FADV_WILLNEED)

    def read(self, row: int, out: np.ndarray) -> None:
        """Read one row of the store into `out`, as stored."""
        try:
            count = os.preadv(self.descriptor, [out.data], int(self.starts[row]))
        except OSError as error:
            raise self._unreadable(error) from error
        if count != self.bytes:
            raise self._unreadable("cut short")

    def _unreadable(self, reason: object) -> BadInput:
        return BadInput(f"{self.path}: cannot be read ({reason}); make it again with prep.py and `fresh`")


def _starts(store: FeatureStore) -> np.ndarray:
    """Return the byte of the file at which each row begins, (N,) int64.

    Raises BadInput if rows do not lie there as write_store leaves them: a tool may have packed them since.
    """
    if read_head(store.path).numbers("features") != ((len(store), *store.shape), np.dtype(store.dtype)):
        raise BadInput(f"{store.path}: was made anew while it was in use; repeat the command")
    layout, begins = ask(store.path, "starts", "features")
    if layout["chunks"] is None or layout["chunks"][1:] != list(store.shape) or layout["filters"]:
        raise BadInput(
            f"{store.path}: is packed or laid out otherwise than prep.py does, so that maps cannot be read one by one; "
            f"make it again with prep.py and `fresh`"
        )
    rows, height = np.arange(len(store)), layout["chunks"][0]
    return begins[rows // height] + rows % height * (int(np.prod(store.shape)) * np.dtype(store.dtype).itemsize)

"""The process that opens HDF5 and MATLAB files, so that what these libraries crash on or hang in ends it alone.

It is run as a script by features/apart.py, imports no other room, and answers requests on its standard input until that
is closed. A request is a line of JSON, [path, seconds, call, arguments, bytes], and so many bytes; an answer is a line
of JSON, {"value", "shape", "dtype"} or {"error"}, and the bytes of an array where it has a shape.

Only what lies in the file itself is read: never through a link to another file, external storage or a virtual dataset.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import h5py
import numpy as np

MAX_MEMORY = 2**31  # bytes that this process may take, and twice those of an array that it holds whole, besides
MAX_RATIO, MAX_FREE = 100, 2**28  # an array may claim so many times the bytes of its file, and so many more
MAX_HELD = 2**33  # bytes of an array of a MATLAB file up to v7, which is held whole
NOT_NUMBERS = ("char", "cell", "struct", "object", "sparse", "function", "opaque", "logical", "unknown")

Answer = tuple[Any, np.ndarray | None]


def head(path: str, names: list[str]) -> Answer:
    """Read {"attributes", "arrays": {name: [shape, dtype]}, "texts": {name: values}}; texts: of those `names`."""
    with h5py.File(path, "r") as file:
        arrays = {name: dataset for name, dataset in _datasets(file) if dataset.shape is not None}
        for dataset in arrays.values():
            check_size(path, dataset.nbytes)  # before anybody makes room for it
        texts = {name: _values(arrays[name]) for name in names if name in arrays}
        shapes = {name: [dataset.shape, _dtype(dataset.dtype)] for name, dataset in arrays.items()}
        return {"attributes": {n: _plain(v) for n, v in file.attrs.items()}, "arrays": shapes, "texts": texts}, None


def rows(path: str, name: str, dtype: str | None, columns: list[int] | None, data: bytes) -> Answer:
    """Read rows that do not decrease, int64 numbers, of a dataset; of a matrix perhaps a range of columns alone."""
    with h5py.File(path, "r") as file:
        read = _read_sorted(_dataset(path, file, name), np.frombuffer(data, np.int64), columns)
        with np.errstate(over="ignore"):
            return None, np.ascontiguousarray(read, dtype)


def starts(path: str, name: str) -> Answer:
    """Read chunks (None if there are none), the number of filters, and the byte at which each chunk of rows begins."""
    with h5py.File(path, "r") as file:
        dataset = _dataset(path, file, name)
        facts = {"chunks": dataset.chunks, "filters": dataset.id.get_create_plist().get_nfilters()}
        if dataset.chunks is None or dataset.chunks[1:] != dataset.shape[1:]:
            return facts, np.empty(0, np.int64)
        corner, step = (0,) * (dataset.ndim - 1), dataset.chunks[0]
        infos = (dataset.id.get_chunk_info_by_coord((row, *corner)) for row in range(0, len(dataset), step))
        return facts, np.array([info.byte_offset for info in infos], np.int64)


def matrices(path: str) -> Answer:
    """Read {name: shape} of the matrices of numbers in a MATLAB file; None for one of v7.3, which is HDF5."""
    import scipy.io

    if h5py.is_hdf5(path):
        return None, None
    listed = scipy.io.whosmat(path)
    return {name: shape for name, shape, kind in listed if len(shape) == 2 and kind not in NOT_NUMBERS}, None


def matrix(path: str, name: str) -> Answer:
    """Read a matrix of a MATLAB file up to v7, transposed: (N, D) of D×N."""
    import scipy.io

    shape = matrices(path)[0][name]
    size = 8 * int(np.prod([float(side) for side in shape]))
    check_size(path, size)
    if size > MAX_HELD:
        raise ValueError(f"{size:,} bytes are more than are held in memory, save it as v7.3 or .npy")
    _limit_memory(MAX_MEMORY + 2 * size)
    return None, np.ascontiguousarray(np.asarray(scipy.io.loadmat(path, variable_names=[name])[name]).T)


CALLS: dict[str, Callable[..., Answer]] = {call.__name__: call for call in (head, rows, starts, matrices, matrix)}


def _datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    """Datasets that lie in the file itself, but for MATLAB's own, #refs#."""
    names: list[str] = []
    file.visit(names.append)  # follows no link but a hard one
    for name in names:
        item = file[name]
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):
            if item.external or item.is_virtual:
                raise ValueError(f"{name!r} lies in other files")
            yield name, item


def _dataset(path: str, file: h5py.File, name: str) -> h5py.Dataset:
    dataset = dict(_datasets(file))[name]
    if dataset.dtype.kind not in "fiu":
        raise ValueError(f"{name!r} holds {dataset.dtype}, not numbers")
    check_size(path, dataset.nbytes)
    return dataset


def check_size(path: str | os.PathLike, size: int) -> None:
    """Make sure that an array of so many bytes can lie in a file, packed or not. Raises ValueError."""
    held = os.stat(path).st_size
    if size > MAX_RATIO * held + MAX_FREE:
        raise ValueError(f"it claims an array of {size:,} bytes in a file of {held:,}")


def _read_sorted(dataset: h5py.Dataset, rows: np.ndarray, columns: list[int] | None) -> np.ndarray:
    """Read `rows`, which do not decrease. HDF5 is slow with lists: a slice, unless most of it would be thrown away."""
    first, last = int(rows[0]), int(rows[-1])
    rest = (slice(*columns),) if columns else ()
    distinct, back = np.unique(rows, return_inverse=True)
    if last - first + 1 <= 4 * len(distinct):
        return dataset[(slice(first, last + 1), *rest)][rows - first]
    return dataset[(distinct, *rest)][back]


def _values(dataset: h5py.Dataset) -> list[Any]:
    return [_plain(value) for value in np.asarray(dataset[()]).ravel().tolist()]


def _dtype(dtype: np.dtype) -> str:
    return dtype.str if dtype.kind in "fiu" else dtype.name


def _plain(value: object) -> str | int:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, np.integer | int) else str(value)


def _limit_memory(size: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # where the system knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _answer(line: bytes) -> Answer:
    path, seconds, call, arguments, size = json.loads(line)
    data = [sys.stdin.buffer.read(size)] if size else []
    _limit_memory(MAX_MEMORY)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of computing, however busy the machine is; then SIGPROF ends it
    try:
        return CALLS[call](path, *arguments, *data)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def serve() -> None:
    """Answer requests until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is heard by the process that asks
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    for line in iter(sys.stdin.buffer.readline, b""):
        data: bytes | memoryview = b""
        try:
            value, array = _answer(line)
            shape = {} if array is None else {"shape": array.shape, "dtype": array.dtype.str}
            answer = json.dumps({"value": value, **shape})
            if array is not None:
                data = array.reshape(-1).view(np.uint8).data
        except Exception as error:  # what the libraries raise on a damaged file is almost anything
            reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
            answer = json.dumps({"error": reason})
        out.write(answer.encode() + b"\n")
        out.write(data)
        out.flush()


if __name__ == "__main__":
    serve()

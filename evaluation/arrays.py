"""Scores and embeddings that somebody else computed: .npy, .npz, .h5 and .safetensors files, read a block at a time.

A .npy is mapped, .h5 and .safetensors are read where they are asked; an .npz is an archive, and is read whole. Nothing
is unpickled.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import Tensor

from features.datasets.vsepp import open_npy
from features.hdf5 import read_head, read_sorted
from features.npz import read_npz
from features.progress import progress_bar
from metrics.similarity import Scores
from utils import BadInput, did_you_mean

VALUES_PER_BLOCK = 2**23
LARGEST = float(np.finfo(np.float32).max)
REAL_KINDS = ("f", "i", "u")  # of numpy
REAL = re.compile("B?F16|F(32|64)|[IU](8|16|32|64)")  # types of safetensors that are read
# What an array of a file with several is called, and the ids of its rows, or of its columns.
NAMES = {
    "scores": ("scores", "similarity", "similarities", "sims"),
    "images": ("images", "image_embeddings", "image_embeds", "image_features", "embeddings", "features"),
    "captions": ("captions", "caption_embeddings", "text_embeddings", "text_embeds", "text_features", "texts"),
}
NAMES["captions"] += ("embeddings", "features")
ID_NAMES = {"images": ("image_ids", "images", "image"), "captions": ("caption_ids", "captions", "caption")}


Read = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


@dataclass(frozen=True)
class ArrayFile:
    """A matrix in a file. read: returns the block of rows, numbers that do not decrease, and of a range of columns;
    ids: those that the file has of images and of captions.
    """

    path: Path
    shape: tuple[int, int]
    read: Read
    ids: Mapping[str, list[str]] = field(default_factory=dict)

    def blocks(self, what: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each block of whole rows with the number of its first. Raises BadInput if a value is not finite."""
        rows, columns = self.shape
        step = max(1, VALUES_PER_BLOCK // columns)
        bar = progress_bar(range(0, rows, step), f"read {what}", unit=" blocks", leave=False, disable=rows <= step)
        for start in bar:
            block = _floats(self.read(np.arange(start, min(start + step, rows)), (0, columns)))
            finite = np.isfinite(block)
            if not finite.all():
                row, column = np.argwhere(~finite)[0].tolist()
                raise BadInput(
                    f"{self.path}: row {start + row}, column {column} is {block[row, column]}; {what} must be finite "
                    f"numbers, so compute them again"
                )
            yield start, block

    def taken(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the values (r, c) of rows (r,) and columns (c,), in any order; what is consecutive is read at once."""
        first, last = int(columns.min()), int(columns.max()) + 1
        order = np.argsort(rows, kind="stable")
        whole = np.empty_like(block := _floats(self.read(rows[order], (first, last))))
        whole[order] = block
        consecutive = len(columns) == last - first and bool((np.diff(columns) == 1).all())
        return whole if consecutive else whole[:, columns - first]


def _floats(block: np.ndarray) -> np.ndarray:
    """Return float32 of what fits into it, float64 of what does not: rounding would make ties."""
    return np.asarray(block, np.float32 if block.dtype.itemsize <= 2 or block.dtype == np.float32 else np.float64)


def open_array(path: Path, kind: str) -> ArrayFile:
    """Open the matrix of a file. kind: "scores", (images, captions), or embeddings of "images" or "captions".

    Raises BadInput if there is no such file, or it holds no matrix of numbers, or several of none of the usual names.
    """
    suffix = path.suffix.casefold()
    if suffix not in OPENERS:
        raise BadInput(f"{path}: {kind} cannot be read from {suffix or 'this'}; {did_you_mean(suffix, OPENERS)}")
    if not path.is_file():
        raise BadInput(f"{path}: no such file; check the path of the {kind}")
    return OPENERS[suffix](path, kind)


def _open_npy(path: Path, kind: str) -> ArrayFile:
    array = open_npy(path)
    return _file(path, kind, {kind: (array.shape, _kind(array.dtype))}, lambda name: _reader(array), {})


def _open_npz(path: Path, kind: str) -> ArrayFile:
    try:
        arrays = read_npz(path)
    except Exception as error:  # a damaged archive raises almost anything
        raise BadInput(
            f"{path}: not an .npz archive of plain arrays, or cut short ({_reason(error)}); save it again, and ids as "
            f"text rather than as Python objects"
        ) from None
    shapes = {name: (array.shape, _kind(array.dtype)) for name, array in arrays.items()}
    texts = {name: array.tolist() for name, array in arrays.items() if array.ndim == 1}
    return _file(path, kind, shapes, lambda name: _reader(arrays[name]), texts)


def _open_h5(path: Path, kind: str) -> ArrayFile:
    ids = [name for names in ID_NAMES.values() for name in names]
    try:
        head = read_head(path, *dict.fromkeys([*ids, "ids"]))
    except OSError as error:
        raise BadInput(f"{path}: not an HDF5 file, or cut short ({error}); save it again") from None
    shapes = {n: (shape, d if isinstance(d, str) else _kind(d)) for n, (shape, d) in head.arrays.items() if shape}
    texts = {name: values for name, values in head.texts.items() if len(head.arrays[name][0]) == 1}

    def reader(name: str) -> Read:
        def read(rows: np.ndarray, columns: tuple[int, int]) -> np.ndarray:
            try:
                return read_sorted(path, name, rows, columns=columns)
            except OSError as error:
                raise BadInput(f"{path}: cannot be read ({error}); save it again") from None

        return read

    return _file(path, kind, shapes, reader, texts)


def _reader(array: np.ndarray) -> Read:
    return lambda rows, columns: array[_as_slice(rows), slice(*columns)]


def _as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Return the slice of consecutive rows, which is read at once, or else the rows."""
    first, last = int(rows[0]), int(rows[-1])
    consecutive = last - first + 1 == len(rows) and bool((np.diff(rows) == 1).all())
    return slice(first, last + 1) if consecutive else rows


def _open_safetensors(path: Path, kind: str) -> ArrayFile:
    try:
        file = safetensors.safe_open(path, "pt")
        names = file.keys()
        tensors = {name: file.get_slice(name) for name in names}
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path}: not a safetensors file, or cut short ({_reason(error)}); save it again") from None
    types = {name: str(tensor.get_dtype()) for name, tensor in tensors.items()}
    kinds = {name: "f" if REAL.fullmatch(known) else known for name, known in types.items()}
    shapes = {name: (tuple(tensor.get_shape()), kinds[name]) for name, tensor in tensors.items()}

    def reader(name: str) -> Read:
        def read(rows: np.ndarray, columns: tuple[int, int]) -> np.ndarray:
            runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
            parts = [tensors[name][int(run[0]) : int(run[-1]) + 1, slice(*columns)] for run in runs]
            block = torch.cat(parts) if len(parts) > 1 else parts[0]
            return (block.float() if block.dtype == torch.bfloat16 else block).numpy()  # numpy has no bfloat16

        return read

    return _file(path, kind, shapes, reader, {})


def _file(
    path: Path,
    kind: str,
    shapes: Mapping[str, tuple[tuple[int, ...], str]],
    reader: Callable[[str], Read],
    texts: Mapping[str, list[Any]],
) -> ArrayFile:
    """shapes: name of an array → its shape and the kind of its numbers, of REAL_KINDS, or else what it holds instead;
    texts: name of a column → what it holds."""
    matrices = [name for name, (shape, number) in shapes.items() if len(shape) == 2 and number in REAL_KINDS]
    name = next((name for name in NAMES[kind] if name in matrices), None)
    if name is None and len(matrices) != 1:
        odd = {name: "" if number in REAL_KINDS else f" of {number}" for name, (_, number) in shapes.items()}
        held = ", ".join(f"{name} {shape}{odd[name]}" for name, (shape, _) in list(shapes.items())[:6]) or "nothing"
        raise BadInput(
            f"{path}: holds {held}; {kind} are one matrix of numbers (float16 to float64, or whole), "
            f"called {NAMES[kind][0]!r} if not alone"
        )
    name = name or matrices[0]
    (rows, columns), _ = shapes[name]
    if not rows or not columns:
        raise BadInput(f"{path}: {kind} of the shape {rows} x {columns} are empty; save them again")
    sides = {"images": rows, "captions": columns} if kind == "scores" else {kind: rows}
    ids = {}
    for side, count in sides.items():
        known = next((texts[name] for name in (*ID_NAMES[side], "ids") if name in texts), None)
        if known is not None and len(known) != count:
            raise BadInput(f"{path}: has {len(known):,} ids for {count:,} {side}; save one for each, or none")
        if known is not None:
            ids[side] = [one.decode("utf-8", "replace") if isinstance(one, bytes) else str(one) for one in known]
    return ArrayFile(path, (rows, columns), reader(name), ids)


def _kind(dtype: np.dtype) -> str:
    return dtype.kind if dtype.kind in REAL_KINDS else dtype.name


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


OPENERS: Mapping[str, Callable[[Path, str], ArrayFile]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".h5": _open_h5,
    ".hdf5": _open_h5,
    ".safetensors": _open_safetensors,
}


def read_embeddings(file: ArrayFile, kind: str, similarity: str) -> Tensor:
    """Read embeddings (N, D) as float32: of unit length, for "order" without their signs; for "dot" as they are.

    Raises BadInput for a value that is not finite, as float32 for "dot", and for a row without a direction.
    """
    out = np.empty(file.shape, np.float32)
    for start, block in file.blocks(f"embeddings of {kind}"):
        if similarity != "dot":
            # scaled by a power of two, which rounds nothing: squares neither overflow nor vanish
            exponents = np.frexp(np.abs(block).max(axis=1, keepdims=True))[1]
            block = np.ldexp(block.astype(np.float64), -exponents)
            lengths = np.linalg.norm(block, axis=1, keepdims=True)
            if not lengths.all():
                row = start + int(np.argmin(lengths))
                raise BadInput(f"{file.path}: row {row} is zero, and has no {similarity} with anything; embed it again")
            block = block / lengths
        elif (large := np.abs(block).max()) > LARGEST:
            raise BadInput(
                f"{file.path}: holds values up to {large:.0e}, beyond float32, in which dot products are compared; "
                f"divide all rows by one number"
            )
        out[start : start + len(block)] = np.abs(block) if similarity == "order" else block
    return torch.from_numpy(out)


def looked_up(taken: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Scores:
    """Return what scores rows of a matrix of scores against its columns, in place of embeddings: the first column of
    these is their number in the matrix, and what a further one adds is their product, as of embeddings with a bias.

    >>> score = looked_up(lambda rows, columns: np.array([[0.1, 0.2], [0.3, 0.4]])[rows][:, columns])
    >>> score(torch.tensor([[1.0, -0.5]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])).numpy().round(2).tolist()
    [[-0.2, -0.1]]
    """

    def score(images: Tensor, captions: Tensor) -> Tensor:
        rows, columns = (side[:, 0].long().numpy() for side in (images, captions))
        scores = torch.from_numpy(np.array(taken(rows, columns)))  # a copy: a map of a file cannot be written to
        if images.shape[1] == 1:
            return scores
        return scores.double() + images[:, 1:].double() @ captions[:, 1:].double().T

    return score


def numbered(count: int) -> Tensor:
    """Return the column (count, 1) that stands for embeddings where scores are looked up."""
    return torch.arange(count, dtype=torch.float64)[:, None]

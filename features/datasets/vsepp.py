"""The folders that VSE++ trains from: train_ims.npy and train_caps.txt, the same for dev and test; no images."""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from features.datasets.dataset import Dataset, Image, check
from features.datasets.line_files import AGAIN, read_text
from reading import open_regular
from utils import BadInput

BLOCK_BYTES = 1 << 24
PARTS = {"train": "train", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Part:
    """One split. rows: the array on disk, (N, D) or (N, H, W, C). first: image i is row `first[i]`."""

    file: Path
    split: str
    rows: np.ndarray
    first: np.ndarray
    captions: list[list[str]]

    @property
    def ids(self) -> list[str]:
        return [f"{self.split}-{number:06d}" for number in range(len(self.first))]


def read_vsepp(name: str, folder: Path) -> Dataset:
    """Read a VSE++ folder: ids `train-000000` and so on, no paths. Raises BadInput if its files do not match."""
    notes, images = [], []
    for part in open_parts(folder):
        repeats = len(part.rows) - len(part.first)
        if repeats:
            notes.append(f"{part.file.name} repeats features once per caption: {len(part.first):,} images in it")
        captions = map(tuple, part.captions)
        images += [Image(key, None, part.split, sentences) for key, sentences in zip(part.ids, captions, strict=True)]
        if part.file.name.startswith("testall"):
            notes.append("testall_ims.npy is the test split, as for 5K tables; test_ims.npy is not read")
    ids = tuple(image.id for image in images)
    return check(Dataset(name, tuple(images), tuple(notes), ids), folder)


def open_parts(folder: Path) -> list[Part]:
    """Open the three splits in dataset order; features stay on disk. Raises BadInput if a file is missing or odd."""
    parts = []
    for prefix, split in PARTS.items():
        if prefix == "test" and (folder / "testall_ims.npy").is_file():
            prefix = "testall"  # COCO's whole test split, of which test_ims.npy is the first fold
        parts.append(_open_part(folder, prefix, split))
    shapes = {part.rows.shape[1:] for part in parts}
    if len(shapes) > 1:
        raise BadInput(f"{folder}: its three _ims.npy files have features of different shapes; {AGAIN}")
    return parts


def _open_part(folder: Path, prefix: str, split: str) -> Part:
    file, text = folder / f"{prefix}_ims.npy", folder / f"{prefix}_caps.txt"
    for path in (file, text):
        if not path.is_file():
            raise BadInput(f"{path}: no such file; a VSE++ folder holds _ims.npy and _caps.txt of train, dev and test")
    rows = open_npy(file)
    captions = read_text(text).replace("\r\n", "\n").removesuffix("\n").split("\n")  # blank lines hold their place
    if rows.ndim not in (2, 4) or not len(rows) or len(captions) % len(rows):
        what = f"has the shape {rows.shape}, but {text.name} has {len(captions):,} captions"
        raise BadInput(f"{file}: {what}; there must be one row (D, or H, W, C) an image, or one a caption: {AGAIN}")
    first = starts_of_runs(rows) if len(rows) == len(captions) else np.arange(len(rows))
    bounds = np.append(first, len(rows)) * (len(captions) // len(rows))
    return Part(file, split, rows, first, [captions[start:end] for start, end in itertools.pairwise(bounds)])


def open_npy(file: Path, mode: Literal["r", "c"] = "r") -> np.ndarray:
    """Open a .npy file by memory map, "c": copied where it is written to.

    Raises BadInput if it is none, is cut short or holds Python objects.
    """
    try:
        open_regular(file).close()
        return np.lib.format.open_memmap(file, mode=mode)
    except FileNotFoundError:
        raise BadInput(f"{file}: no such file; check the path given") from None
    except Exception as error:  # a damaged header raises almost anything
        reason = str(error).splitlines()[0] if str(error) else "it cannot be read"
        raise BadInput(f"{file}: not a .npy array, or cut short ({reason}); save or get the file again") from None


def block_rows(row: tuple[int, ...], itemsize: int) -> int:
    """Return how many rows of this shape make a block of about 16 MiB."""
    return max(1, BLOCK_BYTES // max(1, int(np.prod(row)) * itemsize))


def starts_of_runs(rows: np.ndarray) -> np.ndarray:
    """Return where runs of identical consecutive rows begin (int64), reading blocks that overlap by one row."""
    flat = rows.reshape(len(rows), -1)
    step = block_rows(rows.shape[1:], rows.dtype.itemsize)
    starts = [np.zeros(1, dtype=np.int64)]
    for begin in range(1, len(rows), step):
        block = flat[begin - 1 : begin + step]
        starts.append(np.flatnonzero((block[1:] != block[:-1]).any(axis=1)) + begin)
    return np.concatenate(starts)

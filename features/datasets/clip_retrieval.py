"""clip-retrieval's folder: rows of img_emb/, text_emb/ and metadata/ belong together, part by part; no images."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from features.datasets.dataset import Dataset, clean_caption
from features.datasets.line_files import Source, image_id
from features.datasets.vsepp import open_npy
from features.parquet import parquet_blocks, parquet_columns, parquet_rows
from utils import BadInput

IMAGES, TEXTS, METADATA = "img_emb", "text_emb", "metadata"
PATH, ID, CAPTION, SPLIT = "image_path", "image_id", "caption", "split"  # columns; image_id where search.py wrote it
ROWS_PER_BLOCK = 4096  # sentence features that are read at once
_NUMBER = re.compile(r".*?(\d+)")


@dataclass(frozen=True)
class ClipFolder:
    """An opened folder of N rows; arrays stay on disk. texts: empty where there is no text_emb/.

    columns: of METADATA, (N,) each, as far as it has them.
    """

    path: Path
    images: list[np.ndarray]
    texts: list[np.ndarray]
    columns: dict[str, list[Any]] = field(repr=False)

    @cached_property
    def ids(self) -> list[str]:
        """The image id of each row: its own, or its path below the folder that holds all of them.

        Raises BadInput if a row has none.
        """
        names = self.columns.get(ID) or self.columns.get(PATH)
        if names is None:
            raise BadInput(f"{self.path / METADATA}: has no column {PATH}; make the folder again with images")
        if names and all(isinstance(name, str) and os.path.isabs(name) for name in names):
            root = os.path.commonpath(list(map(os.path.dirname, names)))
            names = [os.path.relpath(name, root) for name in names]
        return [image_id(self.path, f"row {number}", name) for number, name in enumerate(names, 1)]

    @property
    def captions(self) -> list[Any]:
        """The caption of each row, None where there is none."""
        return self.columns.get(CAPTION, [None] * len(self.ids))

    def source(self) -> Source:
        """Return ids, captions and splits. Raises BadInput if there is no caption, or one is no text."""
        if not any(self.captions):
            raise BadInput(f"{self.path / METADATA}: has no {CAPTION}; name a caption file, and this by `precomputed`")
        source, splits = Source(self.path), self.columns.get(SPLIT, [None] * len(self.ids))
        for number, (image, caption, split) in enumerate(zip(self.ids, self.captions, splits, strict=True), 1):
            captions = [] if caption is None else [caption]
            source.add_json(f"row {number}", {"image": image, "captions": captions, "split": split})
        return source

    def sentence_features(self, dataset: Dataset) -> Iterator[np.ndarray]:
        """Yield the features (…, D) float16 of all captions of a dataset that was read here, in its order, by blocks.

        Raises BadInput if one is not finite.
        """
        of_image: dict[str, list[int]] = {}
        for number, (image, caption) in enumerate(zip(self.ids, self.captions, strict=True)):
            if clean_caption(caption or ""):  # a blank one is no caption of the dataset
                of_image.setdefault(image, []).append(number)
        wanted = np.array([number for image in dataset.images for number in of_image[image.id]])
        for start in range(0, len(wanted), ROWS_PER_BLOCK):
            block = take_rows(self.texts, wanted[start : start + ROWS_PER_BLOCK]).astype(np.float16)
            if not np.isfinite(block).all():
                row = int(wanted[start + int(np.argmin(np.isfinite(block).all(axis=1)))]) + 1
                raise BadInput(f"{self.path}: row {row} of {TEXTS} is not finite in float16; compute it again")
            yield block


def take_rows(parts: list[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Read rows of arrays that stand end to end.

    >>> take_rows([np.array([[1.0], [2.0]]), np.array([[3.0]])], np.array([2, 0])).tolist()
    [[3.0], [1.0]]
    """
    starts = np.cumsum([0, *map(len, parts)])
    out = np.empty((len(index), *parts[0].shape[1:]), np.result_type(*(part.dtype for part in parts)))
    for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
        inside = (index >= start) & (index < end)
        out[inside] = part[index[inside] - start]
    return out


def open_clip_folder(folder: Path) -> ClipFolder:
    """Open a folder as clip-retrieval writes it. Raises BadInput if its parts do not match, or one is damaged."""
    tables = _files(folder / METADATA, ".parquet")
    held = [set(parquet_columns(file)) for file in tables.values()]
    columns: dict[str, list[Any]] = {name: [] for name in set.intersection(*held) & {PATH, ID, CAPTION, SPLIT}}
    counts = {}
    for number, file in tables.items():
        counts[number] = parquet_rows(file)
        for block in parquet_blocks(file, list(columns)):
            for name, values in block.items():
                columns[name] += values
    images = _arrays(folder / IMAGES, counts)
    texts = _arrays(folder / TEXTS, counts) if (folder / TEXTS).is_dir() else []
    return ClipFolder(folder, images, texts, columns)


def files_of(folder: Path) -> list[Path]:
    """Return the files of a folder that decide what is read of it, in a fixed order."""
    return sorted(path for name in (IMAGES, TEXTS, METADATA) for path in (folder / name).glob("*.*"))


def _files(folder: Path, suffix: str) -> dict[int, Path]:
    """The parts of a folder by their number, in its order."""
    parts = {int(match[1]): path for path in folder.glob(f"*{suffix}") if (match := _NUMBER.fullmatch(path.stem))}
    if not parts:
        raise BadInput(f"{folder}: holds no {folder.name}_0{suffix}; name a folder that clip-retrieval has written")
    return dict(sorted(parts.items()))


def _arrays(folder: Path, counts: dict[int, int]) -> list[np.ndarray]:
    parts = _files(folder, ".npy")
    if parts.keys() != counts.keys():
        number = min(parts.keys() ^ counts.keys())
        raise BadInput(f"{folder}: part {number} is not in both, it and {METADATA}; get the folder again")
    arrays = []
    for number, path in parts.items():
        array = open_npy(path)
        if array.ndim != 2 or len(array) != counts[number] or array.dtype.kind != "f" or not array.shape[1]:
            what = f"holds {array.shape} {array.dtype} for {counts[number]:,} rows of {METADATA}"
            raise BadInput(f"{path}: {what}; there must be one row of floats (N, D) for each")
        arrays.append(array)
    if len({array.shape[1] for array in arrays}) > 1:
        raise BadInput(f"{folder}: its parts have rows of different size; get the folder again")
    return arrays

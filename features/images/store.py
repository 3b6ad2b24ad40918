"""The HDF5 file of features: one row per image, joined by id, and where the rows come from."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from utils import BadInput, fsync_folder

FORMAT = 1
DTYPES = ("float16", "float32")
CHUNK_BYTES = 2**20  # bytes of a chunk of the file
BLOCK_BYTES = 2**25  # bytes that are read at once


def store_name(backbone: str, layer: str | None, map: bool, crops: int) -> str:
    """The stem of a store's file: "inception_v3", "vgg19.crops10", "efficientnet_lite0.map", "resnet50.layer3".

    `layer` is None for the backbone's own layer. What a file system may not like (`timm:`) becomes a hyphen.
    """
    parts = [backbone, layer, "map" if map else None, f"crops{crops}" if crops != 1 else None]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(part for part in parts if part))


def write_store(
    path: Path | str,
    ids: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
    attributes: dict[str, str | int],
    blocks: Iterable[np.ndarray],
) -> None:
    """Write rows of `shape`, one per id in the order of `ids`, as `blocks` bring them; the file appears when complete.

    Raises BadInput if there is no row, ids repeat, the rows are not as many as the ids or of another shape, one is not
    finite, or the disk does not take them.
    """
    path = Path(path)
    if dtype not in DTYPES:
        raise BadInput(f"{path}: features are kept as float16 or float32, not {dtype}; choose one of them")
    if not ids:
        raise BadInput(f"{path}: there is no image to keep features of; check --images and --captions")
    if len(set(ids)) != len(ids):
        twice = next(image for place, image in enumerate(ids) if image in ids[:place])
        raise BadInput(f"{path}: image {twice} stands twice in the list of ids; give every row an id of its own")
    chunk, row = _chunk(len(ids), shape, dtype)
    size = (len(ids) + chunk) * row + sum(len(image.encode()) + 64 for image in ids) + 2**16
    with atomic_hdf5(path, size) as file:
        _write(file, path, ids, shape, dtype, attributes, blocks)


@contextlib.contextmanager
def atomic_hdf5(path: Path, size: int) -> Iterator[h5py.File]:
    """An HDF5 file of at most `size` bytes that appears under its name when it is complete.

    The room is reserved first: HDF5 does not survive a full disk. Raises BadInput if the disk does not take it.
    """
    scratch = path.with_name(f".{path.name}.tmp")  # one fixed name, so that a killed run leaves no more than one
    try:
        with open(scratch, "wb") as reserved:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(reserved.fileno(), 0, size)
        with h5py.File(scratch, "w") as file:
            yield file
        with open(scratch, "rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, path)
        fsync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # HDF5 tells of its troubles in either, over several lines
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else str(error).splitlines()[0]
        raise BadInput(
            f"{path}: cannot be written ({reason}); check that the disk is not full and that you may write there"
        ) from error
    finally:
        scratch.unlink(missing_ok=True)


def _chunk(count: int, shape: tuple[int, ...], dtype: str) -> tuple[int, int]:
    """Rows in a chunk of the file, and bytes in a row."""
    row = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return max(1, min(count, CHUNK_BYTES // max(1, row))), row


def _write(
    file: h5py.File,
    path: Path,
    ids: Sequence[str],
    shape: tuple[int, ...],
    dtype: str,
    attributes: dict[str, str | int],
    blocks: Iterable[np.ndarray],
) -> None:
    chunk, _ = _chunk(len(ids), shape, dtype)
    features = file.create_dataset("features", (len(ids), *shape), dtype, chunks=(chunk, *shape))
    done = 0
    for block in blocks:
        if block.shape[1:] != shape or done + len(block) > len(ids):
            raise BadInput(
                f"{path}: features of shape {block.shape} at row {done} do not fit {len(ids)} images with rows of "
                f"{shape}; check that features and ids belong together"
            )
        with np.errstate(over="ignore"):
            block = block.astype(dtype, copy=False)
        sound = np.isfinite(block.reshape(len(block), -1)).all(axis=1)
        if not sound.all():
            image = ids[done + int(np.argmin(sound))]
            raise BadInput(
                f"{path}: the feature of image {image} is not finite in {dtype}; "
                f"check the weights, or keep the features as float32"
            )
        features[done : done + len(block)] = block
        done += len(block)
    if done != len(ids):
        raise BadInput(f"{path}: {done} rows for {len(ids)} images; check that features and ids belong together")
    file.create_dataset("image", data=list(ids), dtype=h5py.string_dtype("utf-8"))
    file.attrs.update({**attributes, "format": FORMAT})


@dataclass(frozen=True)
class FeatureStore:
    """A complete store, opened for reading; the file is open only while rows are read.

    shape: of one row. dtype: as stored. attributes: backbone, layer, digest, transform, …, format.
    """

    path: Path
    ids: list[str]
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, str | int]
    _row: dict[str, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureStore":
        """Raises BadInput if the file is missing, not HDF5, of another format, or incomplete."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such feature store; make it with prep.py")
        try:
            with h5py.File(path, "r") as file:
                return cls._read_head(path, file)
        except OSError as error:
            raise BadInput(
                f"{path}: not an HDF5 file, or damaged ({error}); make it again with prep.py --fresh"
            ) from error

    @classmethod
    def _read_head(cls, path: Path, file: h5py.File) -> "FeatureStore":
        for name in ("features", "image"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise BadInput(f"{path}: has no dataset {name!r}, so it is no feature store; make one with prep.py")
        version = file.attrs.get("format")
        if version != FORMAT:
            raise BadInput(
                f"{path}: has format {version}, this program reads format {FORMAT}; make it again with prep.py --fresh"
            )
        features, ids = file["features"], [str(image) for image in file["image"].asstr()[:]]
        row = {image: place for place, image in enumerate(ids)}
        if features.ndim < 2 or len(ids) != features.shape[0] or len(row) != len(ids):
            raise BadInput(
                f"{path}: {len(row)} image ids for features of shape {features.shape}; "
                f"make it again with prep.py --fresh"
            )
        attributes = {name: plain_attribute(value) for name, value in file.attrs.items()}
        return cls(path, ids, features.shape[1:], str(features.dtype), attributes, row)

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image: object) -> bool:
        return image in self._row

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """The row numbers of `ids`, (N,) int64. Raises BadInput that names the first id that is not in the store."""
        missing = [image for image in ids if image not in self._row]
        if missing:
            raise BadInput(
                f"{self.path}: has no feature of {len(missing):,} of {len(ids):,} images, the first {missing[0]}; "
                f"make the features of this dataset with prep.py"
            )
        return np.array([self._row[image] for image in ids], dtype=np.int64)

    def read(self, rows: np.ndarray | Sequence[int], dtype: str = "float32") -> np.ndarray:
        """The features in `rows` (any order, repeats allowed), (N, *shape) in `dtype`, read block by block."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {len(self)}")
        out = np.empty((len(rows), *self.shape), dtype)
        order = np.argsort(rows, kind="stable")
        try:
            with h5py.File(self.path, "r") as file:
                for places in self._blocks(rows, order):
                    out[places] = _read_sorted(file["features"], rows[places])
        except (OSError, KeyError) as error:
            raise BadInput(f"{self.path}: cannot be read ({error}); make it again with prep.py --fresh") from error
        return out

    def _blocks(self, rows: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
        """Split `order` (places, sorted by the row they ask for): each part lies within one block of the file."""
        height = max(1, BLOCK_BYTES // max(1, int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize))
        cuts = np.flatnonzero(np.diff(rows[order] // height)) + 1
        return (places for places in np.split(order, cuts) if len(places))


def _read_sorted(features: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """`rows` do not decrease. HDF5 is slow with lists: read a slice, unless most of it would be thrown away."""
    first, last = int(rows[0]), int(rows[-1])
    distinct, back = np.unique(rows, return_inverse=True)
    if last - first + 1 <= 4 * len(distinct):
        return features[first : last + 1][rows - first]
    return features[distinct][back]


def plain_attribute(value: object) -> str | int:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return int(value) if isinstance(value, np.integer | int) else str(value)

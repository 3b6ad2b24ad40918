"""The HDF5 file of features: one row per image, joined by id, and where the rows come from."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from features.format import check_format
from features.hdf5 import Head, atomic_hdf5, read_head, read_rows, rows_bytes, write_rows
from utils import BadInput

FORMAT = 1
DTYPES = ("float16", "float32")
AGAIN = "make it again with prep.py and `fresh`"


def store_name(backbone: str, layer: str | None, map: bool, crops: int, views: int = 1, size: int | None = None) -> str:
    """Return the stem of a store's file; what a file system may not like becomes a hyphen.

    layer, size: None for the layer that the backbone is cut at by default, and for its published input size.

    >>> store_name("vgg19", None, False, 10), store_name("timm:vit", "norm", True, 1)
    ('vgg19.crops10', 'timm-vit.norm.map')
    >>> store_name("efficientnet_lite0", None, False, 1, views=6, size=288)
    'efficientnet_lite0.size288.views6'
    """
    parts = [backbone, layer, f"size{size}" if size else None, "map" if map else None]
    parts += [f"crops{crops}" if crops != 1 else None, f"views{views}" if views != 1 else None]
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", ".".join(part for part in parts if part))


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
        raise BadInput(f"{path}: there is no image to keep features of; check `images` and `captions`")
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise BadInput(f"{path}: image {twice} stands twice in the list of ids; give every row an id of its own")
    size = rows_bytes(len(ids), shape, dtype) + sum(len(image.encode()) + 64 for image in ids) + 2**16
    with atomic_hdf5(path, size) as file:
        write_rows(file, "features", (len(ids), *shape), dtype, _sound_blocks(path, ids, shape, dtype, blocks))
        file.create_dataset("image", data=list(ids), dtype=h5py.string_dtype("utf-8"))
        file.attrs.update({**attributes, "format": FORMAT})


def _sound_blocks(
    path: Path, ids: Sequence[str], shape: tuple[int, ...], dtype: str, blocks: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """Yield `blocks` in `dtype`. Raises BadInput if they do not fit the ids, or a row is not finite."""
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
        yield block
        done += len(block)
    if done != len(ids):
        raise BadInput(f"{path}: {done} rows for {len(ids)} images; check that features and ids belong together")


def is_store(head: Head) -> bool:
    """Return whether a file is a store of features, which says what made them."""
    about = {"backbone", "layer", "digest", "transform", "weights", "map", "crops"}
    return head.attributes.get("format") == FORMAT and about <= head.attributes.keys()


@dataclass(frozen=True)
class FeatureStore:
    """A complete store, opened for reading; the file is open only while rows are read.

    shape: of one row: (D,) of a vector, (views, D) of several views, (H, W, C) of a spatial map. dtype: as stored.
    attributes: backbone, layer, digest, transform, …, format.
    """

    path: Path
    ids: list[str]
    shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, str | int]
    _row: dict[str, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str) -> "FeatureStore":
        """Open a store. Raises BadInput if the file is missing, not HDF5, of another format, or incomplete."""
        path = Path(path)
        if not path.is_file():
            raise BadInput(f"{path}: no such feature store; make it with prep.py")
        try:
            head = read_head(path, "image")
        except OSError as error:
            raise BadInput(f"{path}: not an HDF5 file, or damaged ({error}); {AGAIN}") from error
        check_format(path, head.attributes.get("format"), FORMAT, AGAIN)
        features, ids = head.numbers("features"), list(map(str, head.texts.get("image", [])))
        if features is None or "image" not in head.texts:
            name = "features" if features is None else "image"
            raise BadInput(f"{path}: has no dataset {name!r}, so it is no feature store; make one with prep.py")
        row = {image: number for number, image in enumerate(ids)}
        shape, dtype = features
        if len(shape) not in (2, 3, 4) or len(ids) != shape[0] or len(row) != len(ids):
            raise BadInput(f"{path}: {len(row)} image ids for features of shape {shape}; {AGAIN}")
        return cls(path, ids, shape[1:], str(dtype), head.attributes, row)

    @property
    def digest(self) -> str:
        """What tells the weights that made it from others. Raises BadInput if it does not say so."""
        if "digest" not in self.attributes:
            raise BadInput(f"{self.path}: does not say which weights made it; {AGAIN}")
        return str(self.attributes["digest"])

    @property
    def views(self) -> int:
        """The number of views that it holds of an image."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def grid(self) -> tuple[int, ...]:
        """(H, W) of its spatial maps; () if it holds vectors."""
        return self.shape[:-1] if len(self.shape) == 3 else ()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image: object) -> bool:
        return image in self._row

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Return the row numbers of `ids`, (N,) int64. Raises BadInput that names the first id the store lacks."""
        missing = [image for image in ids if image not in self._row]
        if missing:
            raise BadInput(
                f"{self.path}: has no feature of {len(missing):,} of {len(ids):,} images, the first {missing[0]}; "
                f"make the features of this dataset with prep.py"
            )
        return np.array([self._row[image] for image in ids], dtype=np.int64)

    def read(self, rows: np.ndarray | Sequence[int], dtype: str = "float32") -> np.ndarray:
        """Read the features in `rows` (any order, repeats allowed), (N, *shape) in `dtype`, block by block."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of a store of {len(self)}")
        try:
            return read_rows(self.path, "features", rows, dtype)
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be read ({error}); {AGAIN}") from error

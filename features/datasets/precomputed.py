"""Features that somebody else computed (.npy, .npz, .h5, .mat, VSE++ folders), joined to a dataset by id."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

from features.datasets.dataset import Dataset
from features.datasets.line_files import numbered_lines, read_text
from features.datasets.readers import finder
from features.datasets.vsepp import PARTS, block_rows, open_npy, open_parts
from utils import BadInput, did_you_mean

IDS = "give a list of the image ids of its rows with --ids"

Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Precomputed:
    """One row for each image of the dataset, in dataset order.

    `shape` is that of a row, (D,) or (H, W, C); `dtype` float16 or float32; `digest` the SHA-256 of the file, and of
    the id list where one was given. `blocks()` reads the rows anew, about 16 MiB at a time, and raises BadInput if a
    value is not finite.
    """

    ids: list[str]
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterator[np.ndarray]]
    digest: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """An opened file: `rows` reads those at an array of indices; `ids` are the file's own, if it has some."""

    rows: Rows
    shape: tuple[int, ...]
    dtype: np.dtype
    ids: list[str] | None = None


def load_precomputed(file: Path, dataset: Dataset, ids: Path | None = None) -> Precomputed:
    """The features in `file`, (N, D) or (N, H, W, C), or D×N for .mat, for the images of `dataset`.

    Rows belong to the ids of `ids` (a text file, one a line, or a JSON list) or of the file itself; without either they
    are in the dataset's order or in that of its caption file, one an image or the same one for each caption, which
    their count tells. Raises BadInput if they do not match or an image has no row.
    """
    file = Path(file)
    table = _open(file)
    if len(table.shape) not in (2, 4) or 0 in table.shape:
        raise BadInput(f"{file}: has the shape {table.shape}; features must be (N, D) or (N, H, W, C)")
    if table.dtype.kind not in "fiu":
        raise BadInput(f"{file}: holds {table.dtype}, not numbers; save features as float16 or float32")
    owners, notes = _owners(file, table, dataset, ids)
    first: dict[str, int] = {}
    for row, owner in enumerate(owners):
        first.setdefault(owner, row)
    if len(first) < len(owners):
        _check_repeats(file, table, np.array([first[owner] for owner in owners]), owners)
        notes.append(f"{file.name} repeats rows: {len(owners):,} of them for {len(first):,} images, one each is kept")
    wanted, chosen = _choose(file, dataset, first)
    if len(first) > len(wanted):
        notes.append(f"{len(first) - len(wanted):,} images in {file.name} that are not in the dataset left out")
    dtype = "float16" if table.dtype == np.float16 else "float32"

    def blocks() -> Iterator[np.ndarray]:
        step = block_rows(table.shape[1:], table.dtype.itemsize)
        for start in range(0, len(chosen), step):
            with np.errstate(over="ignore"):  # what overflows float32 is caught as not finite
                block = table.rows(chosen[start : start + step]).astype(dtype)
            finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
            if not finite.all():
                raise BadInput(
                    f"{file}: the features of {wanted[start + int(np.argmin(finite))]} are not all finite (NaN, or too "
                    f"large for {dtype}); compute that row again, or leave the image out"
                )
            yield block

    return Precomputed(wanted, table.shape[1:], dtype, blocks, _digest(file, ids), tuple(notes))


def _owners(file: Path, table: Table, dataset: Dataset, ids: Path | None) -> tuple[list[str], list[str]]:
    """The image id of every row, and what to say about it."""
    count = table.shape[0]
    own = read_ids(ids) if ids is not None else table.ids
    if own is not None:
        if len(own) != count:
            raise BadInput(f"{ids or file}: {len(own):,} ids for the {count:,} rows of {file.name}; they must match")
        return own, []
    ours = [image.id for image in dataset.images]
    orders = {
        "in the dataset's order": ours,
        "in the order of the caption file": list(dataset.source_ids),
        "one a caption, in the dataset's order": [image.id for image in dataset.images for _ in image.captions],
    }
    if file.suffix.casefold() == ".mat":  # lies beside Karpathy's file, whatever --splits made of the dataset's order
        orders = {"in the order of the caption file": orders["in the order of the caption file"]} | orders
    for order, owners in orders.items():
        if len(owners) == count:
            return owners, [f"{file.name} has no ids: its {count:,} rows are taken {order}, the first as {owners[0]}"]
    counts = [f"{len(ours):,} images", f"{sum(len(image.captions) for image in dataset.images):,} captions"]
    if len(dataset.source_ids) not in (0, len(ours)):
        counts.insert(1, f"{len(dataset.source_ids):,} in its caption file")
    raise BadInput(f"{file}: has {count:,} rows, but the dataset has {', '.join(counts)}; {IDS}")


def _choose(file: Path, dataset: Dataset, first: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """The ids of the dataset and the row of each, or BadInput that says how many have none."""
    find = finder(first)
    wanted = [image.id for image in dataset.images]
    found = [find(key) for key in wanted]
    missing = [key for key, owner in zip(wanted, found, strict=True) if owner is None]
    if missing:
        raise BadInput(f"{file}: has no row for {len(missing):,} images of the dataset, the first {missing[0]}; {IDS}")
    return wanted, np.array([first[owner] for owner in found if owner is not None])


def _check_repeats(file: Path, table: Table, first: np.ndarray, owners: list[str]) -> None:
    step = block_rows(table.shape[1:], table.dtype.itemsize)
    again = np.flatnonzero(first != np.arange(len(first)))
    for start in range(0, len(again), step):
        rows = again[start : start + step]
        here, there = table.rows(rows), table.rows(first[rows])
        # NaN is unequal to itself; leave it to the check that names it.
        same = ((here == there) | ((here != here) & (there != there))).reshape(len(rows), -1).all(axis=1)
        if not same.all():
            row = int(rows[np.argmin(same)])
            raise BadInput(
                f"{file}: row {row + 1} differs from row {first[row] + 1}, though both are {owners[row]}; "
                f"features may be repeated only unchanged: {IDS}"
            )


def read_ids(path: Path) -> list[str]:
    """Image ids from a text file, one a line, or from a JSON list. Raises BadInput."""
    text = read_text(Path(path))
    if Path(path).suffix != ".json":
        return [line.strip() for _, line in numbered_lines(text)]
    try:
        ids = json.loads(text)
    except (ValueError, RecursionError):
        raise BadInput(f"{path}: not JSON, or cut short; give a list of image ids") from None
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise BadInput(f"{path}: is not a JSON list of strings; give a list of image ids")
    return ids


# Opening: each function takes the path and returns a Table; the numbers stay on disk where the format allows it.


def _open(file: Path) -> Table:
    if file.is_dir():
        return _open_vsepp(file)
    suffix = file.suffix.casefold()
    if suffix not in OPENERS:
        raise BadInput(f"{file}: features cannot be read from {file.suffix or 'this'}; {did_you_mean(suffix, OPENERS)}")
    if not file.is_file():
        raise BadInput(f"{file}: no such file; check the path of the features")
    return OPENERS[suffix](file)


def _in_memory(array: np.ndarray, ids: list[str] | None = None) -> Table:
    return Table(lambda index: array[index], array.shape, array.dtype, ids)


def _open_npy(file: Path) -> Table:
    return _in_memory(open_npy(file))


def _open_npz(file: Path) -> Table:
    with _reading(file, ".npz archive"), np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    names = [name for name in ("image", "ids") if name in arrays]
    ids = [_text(key) for key in arrays[names[0]].ravel().tolist()] if names else None
    key = _only(file, [name for name in arrays if name not in ("image", "ids")], "features")
    return _in_memory(arrays[key], ids)


def _open_h5(file: Path) -> Table:
    with _h5(file) as store:
        found = _datasets(store)
        key = _only(file, [name for name in found if name not in ("image", "ids")], "features")
        names = [name for name in ("image", "ids") if name in found]
        ids = [_text(value) for value in np.asarray(found[names[0]][()]).ravel().tolist()] if names else None
        shape, dtype = found[key].shape, found[key].dtype
    return Table(_h5_rows(file, key), shape, dtype, ids)


def _open_mat(file: Path) -> Table:
    """MATLAB: D×N in files up to v7; v7.3 is HDF5, which shows the same matrix as N×D."""
    if h5py.is_hdf5(file):
        with _h5(file) as store:
            found = {
                name: item for name, item in _datasets(store).items() if item.ndim == 2 and item.dtype.kind in "fiu"
            }
            key = _only(file, list(found), "feats")
            shape, dtype = found[key].shape, found[key].dtype
        return Table(_h5_rows(file, key), shape, dtype)
    with _reading(file, "MATLAB file"):
        names = [name for name, shape, kind in scipy.io.whosmat(file) if len(shape) == 2 and kind not in _NOT_NUMBERS]
        key = _only(file, names, "feats")
        feats = np.asarray(scipy.io.loadmat(file, variable_names=[key])[key])
    return _in_memory(feats.T)


_NOT_NUMBERS = ("char", "cell", "struct", "object", "sparse", "function", "opaque", "logical", "unknown")


def _open_vsepp(folder: Path) -> Table:
    """The three parts of a VSE++ folder as one table, repeats left out, with the ids that its reader gives."""
    if not (folder / "train_ims.npy").is_file():
        raise BadInput(f"{folder}: is a folder without train_ims.npy; name a file of features in it")
    parts = open_parts(folder)
    starts = np.cumsum([0] + [len(part.first) for part in parts])
    dtype = np.result_type(*(part.rows.dtype for part in parts))

    def rows(index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *parts[0].rows.shape[1:]), dtype)
        for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
            here = (index >= start) & (index < end)
            out[here] = part.rows[part.first[index[here] - start]]
        return out

    ids = [key for part in parts for key in part.ids]
    return Table(rows, (len(ids), *parts[0].rows.shape[1:]), dtype, ids)


OPENERS: dict[str, Callable[[Path], Table]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".h5": _open_h5,
    ".hdf5": _open_h5,
    ".mat": _open_mat,
}


@contextlib.contextmanager
def _h5(file: Path) -> Iterator[h5py.File]:
    with _reading(file, "HDF5 file"), h5py.File(file, "r") as store:
        yield store


@contextlib.contextmanager
def _reading(file: Path, kind: str) -> Iterator[None]:
    """What the readers of these formats raise on a damaged file is almost anything: all of it means just that."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise BadInput(f"{file}: not a {kind}, or cut short ({reason}); save or get the file again") from None


def _datasets(store: h5py.File) -> dict[str, h5py.Dataset]:
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("#"):  # #refs# is MATLAB's own
            found[name] = item

    store.visititems(visit)
    return found


def _h5_rows(file: Path, key: str) -> Rows:
    """Rows by index. HDF5 is quick at ranges and slow at lists: read in ascending order, each run as one range."""

    def rows(index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        ascending = index[order]
        runs = np.split(ascending, np.flatnonzero(np.diff(ascending) != 1) + 1)
        with _h5(file) as store:
            read = np.concatenate([store[key][run[0] : run[-1] + 1] for run in runs])
        out = np.empty_like(read)
        out[order] = read
        return out

    return rows


def _only(file: Path, names: list[str], usual: str) -> str:
    """The array called as usual, or the only one. Raises BadInput that names what there is."""
    if usual in names:
        return usual
    if len(names) != 1:
        raise BadInput(
            f"{file}: holds {', '.join(names[:8]) or 'no array of features'}; name the array of features {usual!r}"
        )
    return names[0]


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _digest(file: Path, ids: Path | None) -> str:
    files = [file / f"{prefix}_ims.npy" for prefix in (*PARTS, "testall")] if file.is_dir() else [file]
    digest = hashlib.sha256()
    for path in [*files, *([Path(ids)] if ids is not None else [])]:
        if path.is_file():
            with open(path, "rb") as opened:
                while chunk := opened.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()

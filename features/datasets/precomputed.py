"""Features that somebody else computed (.npy, .npz, .h5, .mat, folders of VSE++ and clip-retrieval), joined by id."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from features.apart import ask
from features.datasets.clip_retrieval import files_of, open_clip_folder, take_rows
from features.datasets.dataset import Dataset, is_clip_retrieval
from features.datasets.line_files import numbered_lines, read_text
from features.datasets.readers import finder
from features.datasets.vsepp import PARTS, block_rows, open_npy, open_parts
from features.hdf5 import Head, read_head, read_sorted
from features.images.store import is_store
from features.npz import read_npz
from reading import parse_json
from utils import BadInput, did_you_mean

ID_ARRAYS = ("image", "ids")  # of a file, what its rows belong to
IDS = "give a list of the image ids of its rows with `ids`"

CHUNK_BYTES = 2**20  # bytes of a file read at a time

Rows = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Precomputed:
    """N features, one for each image of the dataset, in dataset order.

    shape: of a row, (D,) or (H, W, C). dtype: float16 or float32. digest: SHA-256 of the file, and of the id list where
    one was given; of a store of ours, that of the weights. about: what such a store says of its features. blocks():
    reads the rows anew, about 16 MiB at a time; raises BadInput if a value is not finite.
    """

    ids: list[str]
    shape: tuple[int, ...]
    dtype: str
    blocks: Callable[[], Iterator[np.ndarray]]
    digest: str
    notes: tuple[str, ...]
    about: Mapping[str, str | int]


@dataclass(frozen=True)
class Table:
    """An opened file of shape (N, …). rows: reads those at an array of indices. ids: the file's own, if it has some.

    about: what a store of ours says of its features.
    """

    rows: Rows
    shape: tuple[int, ...]
    dtype: np.dtype
    ids: list[str] | None = None
    about: Mapping[str, str | int] = field(default_factory=dict)


def load_precomputed(file: Path, dataset: Dataset, ids: Path | None = None) -> Precomputed:
    """Open the features in `file`, (N, D) or (N, H, W, C), or D×N for .mat, for the images of `dataset`.

    Rows belong to the ids of `ids` (a text file, one a line, or a JSON list) or of the file itself; without either they
    are in the dataset's order or in that of its caption file, one an image or the same one for each caption, which
    their count tells. Raises BadInput if they do not match or an image has no row.

    >>> import tempfile
    >>> from features.datasets.dataset import Image
    >>> images = tuple(Image(f"{number}.jpg", None, "train", ("a dog",)) for number in range(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/fc7.npy", np.ones((3, 4096), np.float32))
    ...     precomputed = load_precomputed(Path(folder, "fc7.npy"), Dataset("mine", images))
    >>> precomputed.ids, precomputed.shape
    (['0.jpg', '1.jpg', '2.jpg'], (4096,))
    """
    table = _open(file)
    if len(table.shape) not in (2, 4) or 0 in table.shape:
        raise BadInput(f"{file}: has the shape {table.shape}; features must be (N, D) or (N, H, W, C)")
    if table.dtype.kind not in "fiu":
        raise BadInput(f"{file}: holds {table.dtype}, not numbers; save features as float16 or float32")
    image_of_row, notes = _image_of_row(file, table, dataset, ids)
    first: dict[str, int] = {}
    for row, image in enumerate(image_of_row):
        first.setdefault(image, row)
    if len(first) < len(image_of_row):
        _check_repeats(file, table, np.array([first[image] for image in image_of_row]), image_of_row)
        kept = f"{len(image_of_row):,} of them for {len(first):,} images, one each is kept"
        notes.append(f"{file.name} repeats rows: {kept}")
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
                what = f"{wanted[start + int(np.argmin(finite))]} are not all finite (NaN, or too large for {dtype})"
                raise BadInput(f"{file}: the features of {what}; compute that row again, or leave the image out")
            empty = ~block.reshape(len(block), -1).any(axis=1)
            if empty.any():
                what = f"{wanted[start + int(np.argmax(empty))]} are all zero, and have no direction"
                raise BadInput(f"{file}: the features of {what}; compute that row again, or leave the image out")
            yield block

    digest = str(table.about.get("digest") or _digest(file, ids))
    return Precomputed(wanted, table.shape[1:], dtype, blocks, digest, tuple(notes), table.about)


def _image_of_row(file: Path, table: Table, dataset: Dataset, ids: Path | None) -> tuple[list[str], list[str]]:
    """The image id of every row, and notes."""
    count = table.shape[0]
    known = read_ids(ids) if ids is not None else table.ids
    if known is not None:
        if len(known) != count:
            raise BadInput(f"{ids or file}: {len(known):,} ids for the {count:,} rows of {file.name}; they must match")
        return known, []
    by_image = [image.id for image in dataset.images]
    by_caption = [image.id for image in dataset.images for _ in image.captions]
    orders = {
        "in the dataset's order": by_image,
        "in the order of the caption file": list(dataset.source_ids),
        "one a caption, in the dataset's order": by_caption,
    }
    if file.suffix.casefold() == ".mat":  # beside Karpathy's file, whatever order split lists gave the dataset
        orders = {"in the order of the caption file": list(dataset.source_ids), **orders}
    for order, images in orders.items():
        if len(images) == count:
            return images, [f"{file.name} has no ids: its {count:,} rows are taken {order}, the first as {images[0]}"]
    counts = [f"{len(by_image):,} images", f"{len(by_caption):,} captions"]
    if len(dataset.source_ids) not in (0, len(by_image)):
        counts.insert(1, f"{len(dataset.source_ids):,} in its caption file")
    raise BadInput(f"{file}: has {count:,} rows, but the dataset has {', '.join(counts)}; {IDS}")


def _choose(file: Path, dataset: Dataset, first: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """The ids of the dataset and the row of each. Raises BadInput that says how many have none."""
    find = finder(first)
    wanted = [image.id for image in dataset.images]
    matches = [find(key) for key in wanted]
    missing = [key for key, match in zip(wanted, matches, strict=True) if match is None]
    if missing:
        raise BadInput(f"{file}: has no row for {len(missing):,} images of the dataset, the first {missing[0]}; {IDS}")
    return wanted, np.array([first[match] for match in matches if match is not None])


def _check_repeats(file: Path, table: Table, first: np.ndarray, image_of_row: list[str]) -> None:
    """Raise BadInput if a row differs from the first one of its image, `first[row]`."""
    step = block_rows(table.shape[1:], table.dtype.itemsize)
    repeats = np.flatnonzero(first != np.arange(len(first)))
    for start in range(0, len(repeats), step):
        rows = repeats[start : start + step]
        a, b = table.rows(rows), table.rows(first[rows])
        # NaN is unequal to itself; leave it to the check that names it.
        same = ((a == b) | ((a != a) & (b != b))).reshape(len(rows), -1).all(axis=1)
        if not same.all():
            row = int(rows[np.argmin(same)])
            what = f"row {row + 1} differs from row {first[row] + 1}, though both are {image_of_row[row]}"
            raise BadInput(f"{file}: {what}; features may be repeated only unchanged: {IDS}")


def read_ids(path: Path) -> list[str]:
    """Read image ids from a text file, one a line, or from a JSON list. Raises BadInput if they are none."""
    text = read_text(path)
    if path.suffix != ".json":
        return [line.strip() for _, line in numbered_lines(text)]
    try:
        ids = parse_json(text)
    except ValueError as error:
        raise BadInput(f"{path}: not JSON, or cut short ({error}); give a list of image ids") from None
    if not isinstance(ids, list) or not all(isinstance(key, str) for key in ids):
        raise BadInput(f"{path}: is not a JSON list of strings; give a list of image ids")
    return ids


# Opening: each function takes the path and returns a Table; the numbers stay on disk where the format allows it.


def _open(file: Path) -> Table:
    if file.is_dir():
        return _open_clip_retrieval(file) if is_clip_retrieval(file) else _open_vsepp(file)
    suffix = file.suffix.casefold()
    if suffix not in OPENERS:
        raise BadInput(f"{file}: features cannot be read from {file.suffix or 'this'}; {did_you_mean(suffix, OPENERS)}")
    if not file.is_file():
        raise BadInput(f"{file}: no such file; check the path of the features")
    return OPENERS[suffix](file)


def _in_memory(array: np.ndarray, ids: list[str] | None = None) -> Table:
    return Table(lambda index: array[index], array.shape, array.dtype, ids)


def _open_npz(file: Path) -> Table:
    with _reading(file, ".npz archive"):
        arrays = read_npz(file)
    key, ids = _features_and_ids(file, arrays)
    return _in_memory(arrays[key], ids)


def _open_h5(file: Path) -> Table:
    with _reading(file, "HDF5 file"):
        head = read_head(file, *ID_ARRAYS)
    key = _only(file, [name for name in head.arrays if name not in ID_ARRAYS], "features")
    ids = next((head.texts[name] for name in ID_ARRAYS if name in head.texts), None)
    about = head.attributes if is_store(head) else {}
    return Table(_h5_rows(file, key), *_numbers(file, head, key), None if ids is None else list(map(str, ids)), about)


def _features_and_ids(file: Path, arrays: Mapping[str, Any]) -> tuple[str, list[str] | None]:
    """The name of the array of features, and the ids in an array "image" or "ids"."""
    key = _only(file, [name for name in arrays if name not in ID_ARRAYS], "features")
    for name in ID_ARRAYS:
        if name in arrays:
            return key, [_text(value) for value in arrays[name].ravel().tolist()]
    return key, None


def _open_mat(file: Path) -> Table:
    """MATLAB: D×N in files up to v7; v7.3 is HDF5, which shows the same matrix as N×D."""
    with _reading(file, "MATLAB file"):
        shapes, _ = ask(file, "matrices")
        if shapes is not None:
            return _in_memory(ask(file, "matrix", _only(file, list(shapes), "feats"))[1])
        head = read_head(file)
    matrices = [name for name in head.arrays if (numbers := head.numbers(name)) and len(numbers[0]) == 2]
    key = _only(file, matrices, "feats")
    return Table(_h5_rows(file, key), *_numbers(file, head, key))


def _numbers(file: Path, head: Head, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array. Raises BadInput if it holds something else than numbers."""
    if (numbers := head.numbers(key)) is None:
        raise BadInput(f"{file}: holds {head.arrays[key][1]}, not numbers; save features as float16 or float32")
    return numbers


def _open_vsepp(folder: Path) -> Table:
    """The three parts of a VSE++ folder as one table, repeats left out, with the ids that its reader gives."""
    if not (folder / "train_ims.npy").is_file():
        raise BadInput(f"{folder}: is a folder without train_ims.npy or img_emb/; name a file of features in it")
    parts = open_parts(folder)
    starts = np.cumsum([0] + [len(part.first) for part in parts])
    dtype = np.result_type(*(part.rows.dtype for part in parts))

    def rows(index: np.ndarray) -> np.ndarray:
        out = np.empty((len(index), *parts[0].rows.shape[1:]), dtype)
        for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True):
            inside = (index >= start) & (index < end)
            out[inside] = part.rows[part.first[index[inside] - start]]
        return out

    ids = [key for part in parts for key in part.ids]
    return Table(rows, (len(ids), *parts[0].rows.shape[1:]), dtype, ids)


def _open_clip_retrieval(folder: Path) -> Table:
    """The image features of clip-retrieval's folder, with the id of each row: an image has one for each caption."""
    clip = open_clip_folder(folder)
    shape, dtype = (len(clip.ids), *clip.images[0].shape[1:]), np.result_type(*(part.dtype for part in clip.images))
    return Table(lambda index: take_rows(clip.images, index), shape, dtype, clip.ids)


OPENERS = {
    ".npy": lambda file: _in_memory(open_npy(file)),
    ".npz": _open_npz,
    ".h5": _open_h5,
    ".hdf5": _open_h5,
    ".mat": _open_mat,
}


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


def _h5_rows(file: Path, key: str) -> Rows:
    """Rows by index, in ascending order as they lie in the file."""

    def rows(index: np.ndarray) -> np.ndarray:
        order = np.argsort(index, kind="stable")
        with _reading(file, "HDF5 file"):
            read = read_sorted(file, key, index[order])
        out = np.empty_like(read)
        out[order] = read
        return out

    return rows


def _only(file: Path, names: list[str], usual: str) -> str:
    """The array called as usual, or the only one. Raises BadInput that names what there is."""
    if usual in names or len(names) == 1:
        return usual if usual in names else names[0]
    held = ", ".join(names[:8]) or "no array of features"
    raise BadInput(f"{file}: holds {held}; name the array of features {usual!r}")


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _digest(file: Path, ids: Path | None) -> str:
    files = [file / f"{prefix}_ims.npy" for prefix in (*PARTS, "testall")] if file.is_dir() else [file]
    files = files_of(file) if is_clip_retrieval(file) else files
    digest = hashlib.sha256()
    for path in [*files, ids]:
        if path is not None and path.is_file():
            with open(path, "rb") as opened:
                while chunk := opened.read(CHUNK_BYTES):
                    digest.update(chunk)
    return digest.hexdigest()

"""The HDF5 file of a frozen sentence encoder: one row per caption and pooling, joined by image, number and text."""

import functools
import itertools
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

from features.images.store import atomic_hdf5, plain_attribute
from utils import BadInput, atomic_write, digest_text, make_folder, read_json, write_json

if TYPE_CHECKING:
    from features.text.encoders import SentenceEncoder

FORMAT = 1
SUFFIX = ".text.h5"
POOLINGS = ("cls", "last", "mean")  # of features.text_encoders, which is not imported here: it takes torch along
ROWS_PER_BLOCK = 1024  # captions in a finished block: what a kill may cost
CHUNK_BYTES = 2**20  # bytes of a chunk of the file
BLOCK_BYTES = 2**25  # bytes that are read at once
IDENTITY_KEYS = ("digest", "longest", "format")  # rows that differ in one do not mix


class Key(NamedTuple):
    """What a row belongs to: caption `number` of `image`, and the digest of its text."""

    image: str
    number: int
    digest: str


def caption_digest(caption: str) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a caption."""
    return digest_text(caption)[:16]


def keys_of(rows: Sequence[dict[str, Any]]) -> list[Key]:
    """A key for each caption of lines of captions.jsonl, in their order."""
    return [
        Key(row["image"], number, caption_digest(caption))
        for row in rows
        for number, caption in enumerate(row["captions"])
    ]


@dataclass(frozen=True)
class TextStore:
    """A complete store, opened for reading; the file is open only while rows are read.

    attributes: encoder, digest, size, longest, format. command: what brings it up to date, for its errors.
    """

    path: Path
    keys: list[Key]
    attributes: dict[str, str | int]
    command: str
    _row: dict[Key, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str, command: str = "") -> "TextStore":
        """Raises BadInput if the file is missing, not HDF5, of another format, or incomplete."""
        path = Path(path)
        command = command or "prep.py --text-encoder NAME"
        if not path.is_file():
            raise BadInput(f"{path}: no such sentence features; make them with: {command}")
        try:
            with h5py.File(path, "r") as file:
                return cls._read_head(path, file, command)
        except (OSError, KeyError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise BadInput(
                f"{path}: not an HDF5 file, or damaged ({reason}); make it again with: {command} --fresh"
            ) from error

    @classmethod
    def _read_head(cls, path: Path, file: h5py.File, command: str) -> "TextStore":
        again = f"make it again with: {command} --fresh"
        for name in (*POOLINGS, "image", "caption", "digest"):
            if not isinstance(file.get(name), h5py.Dataset):
                raise BadInput(f"{path}: has no dataset {name!r}, so it holds no sentence features; {again}")
        attributes = {name: plain_attribute(value) for name, value in file.attrs.items()}
        if attributes.get("format") != FORMAT:
            version = attributes.get("format")
            raise BadInput(f"{path}: has format {version}, this program reads format {FORMAT}; {again}")
        parts = file["image"].asstr()[:], file["caption"][:].tolist(), file["digest"].asstr()[:]
        lengths = {len(part) for part in parts}
        keys = [Key(*key) for key in zip(*parts, strict=False)]  # a shorter one is told below
        row = {key: place for place, key in enumerate(keys)}
        shapes = {file[pooling].shape for pooling in POOLINGS}
        if len(lengths) > 1 or len(row) != len(keys) or shapes != {(len(keys), attributes.get("size"))}:
            raise BadInput(f"{path}: {len(row)} captions for features of shape {sorted(shapes)[0]}; {again}")
        return cls(path, keys, attributes, command, row)

    @property
    def size(self) -> int:
        return int(self.attributes["size"])

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def read(self, rows: Sequence[dict[str, Any]], pooling: str) -> np.ndarray:
        """The features (M, size) float32 of all captions of lines of captions.jsonl, in their order.

        Raises BadInput if there is no such pooling, or a caption is missing or has changed since; it names its image.
        """
        return self.read_keys(keys_of(rows), pooling)

    def read_keys(self, keys: Sequence[Key], pooling: str, dtype: str = "float32") -> np.ndarray:
        """The features (M, size) of captions in any order, in `dtype`, read slice by slice: nothing else is held."""
        if pooling not in POOLINGS:
            raise BadInput(f"{self.path}: has no pooling {pooling!r}; take one of {', '.join(POOLINGS)}")
        missing = [key for key in keys if key not in self._row]
        if missing:
            raise BadInput(
                f"{self.path}: {len(missing):,} of {len(keys):,} captions are missing or have changed since, the first "
                f"of image {missing[0].image} (its caption {missing[0].number + 1}); bring it up to date with: "
                f"{self.command}"
            )
        rows = np.fromiter((self._row[key] for key in keys), np.int64, len(keys))
        out = np.empty((len(rows), self.size), dtype)
        order = np.argsort(rows, kind="stable")
        height = max(1, BLOCK_BYTES // (2 * self.size))
        cuts = np.flatnonzero(np.diff(rows[order] // height)) + 1
        try:
            with h5py.File(self.path, "r") as file:
                for places in np.split(order, cuts):
                    if len(places):  # HDF5 is slow with lists: read a slice
                        first, last = rows[places[0]], rows[places[-1]]
                        out[places] = file[pooling][first : last + 1][rows[places] - first]
        except (OSError, KeyError) as error:
            raise BadInput(
                f"{self.path}: cannot be read ({error}); make it again with: {self.command} --fresh"
            ) from error
        return out


def update_text_store(
    path: Path | str,
    rows: Sequence[dict[str, Any]],
    encoder: "SentenceEncoder",
    *,
    fresh: bool = False,
    progress: bool = False,
) -> int:
    """Bring the store at `path` to hold the captions of `rows`, lines of captions.jsonl; how many were computed.

    Finished blocks lie in `path`.part until all is there: a second run goes on from them, and from the rows of an
    earlier store whose image, number and text agree. The store appears when it is complete. `fresh` throws away what
    is there first. A block's rows depend on its captions alone, not on where a run was interrupted.
    Raises BadInput if what is there was made by another encoder, or a feature is not finite in float16.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    if fresh:
        path.unlink(missing_ok=True)
        shutil.rmtree(part, ignore_errors=True)
    keys = keys_of(rows)
    if not keys:
        raise BadInput(f"{path}: there is no caption to keep features of; check --captions")
    captions = dict(zip(keys, (caption for row in rows for caption in row["captions"]), strict=True))
    earlier = _earlier(path, encoder)
    if earlier is not None and earlier.keys == keys:
        shutil.rmtree(part, ignore_errors=True)  # a run was killed between its last two steps
        return 0
    missing = [key for key in keys if earlier is None or key not in earlier]
    _open_part(part, encoder)
    done = _finished(part)
    groups = [
        [key for key in missing[start : start + ROWS_PER_BLOCK] if key not in done]
        for start in range(0, len(missing), ROWS_PER_BLOCK)
    ]
    count = sum(map(len, groups))
    with tqdm(
        total=len(keys),
        initial=len(keys) - count,
        unit=" captions",
        desc=path.name.removesuffix(SUFFIX),
        mininterval=1,
        disable=not progress,
    ) as bar:
        numbers = itertools.count(_next_number(part))
        for number, group in zip(numbers, filter(None, groups), strict=False):
            file = part / f"block-{number:06d}.npz"
            _write_block(file, group, encoder.features([captions[key] for key in group]))
            done.update({key: (file, place) for place, key in enumerate(group)})
            bar.update(len(group))
    _assemble(path, keys, earlier, done, encoder)
    shutil.rmtree(part, ignore_errors=True)
    return count


def _earlier(path: Path, encoder: "SentenceEncoder") -> TextStore | None:
    if not path.exists():
        return None
    store = TextStore.open(path, f"prep.py --text-encoder {encoder.name}")
    _check_same(path, store.attributes, encoder)
    return store


def _check_same(path: Path, attributes: dict[str, Any], encoder: "SentenceEncoder") -> None:
    """Raises BadInput if rows made under `attributes` and rows of `encoder` do not mix."""
    here: dict[str, Any] = {**encoder.attributes, "format": FORMAT}
    for name in IDENTITY_KEYS:
        if attributes.get(name) != here[name]:
            what = "weights" if name == "digest" else name
            raise BadInput(
                f"{path}: was made by {attributes.get('encoder')} with another {what} "
                f"({str(attributes.get(name))[:16]}, not {str(here[name])[:16]}); repeat with --text-encoder and "
                f"--fresh, without --backbone, to make it again, or with the encoder it was made with"
            )


def _open_part(part: Path, encoder: "SentenceEncoder") -> None:
    """Make the folder of blocks, or make sure that it belongs to this encoder."""
    make_folder(part, "--data")
    meta = part / "meta.json"
    if meta.exists():
        _check_same(part, read_json(meta, "repeat with --fresh"), encoder)
    else:
        write_json(meta, {**encoder.attributes, "format": FORMAT})


def _write_block(file: Path, keys: list[Key], features: dict[str, np.ndarray]) -> None:
    names, numbers, digests = zip(*keys, strict=True)
    arrays: dict[str, Any] = {pooling: features[pooling].astype(np.float16) for pooling in POOLINGS}
    with atomic_write(file, "wb") as stream:
        np.savez(stream, image=np.array(names), caption=np.array(numbers), digest=np.array(digests), **arrays)


def _next_number(part: Path) -> int:
    return max((int(file.stem.removeprefix("block-")) for file in part.glob("block-*.npz")), default=-1) + 1


def _finished(part: Path) -> dict[Key, tuple[Path, int]]:
    """Where the row of each caption that is done lies: block and place. A block that cannot be read is done again."""
    done = {}
    for file in sorted(part.glob("block-*.npz")):
        try:
            with np.load(file) as block:
                parts = [block[name].tolist() for name in ("image", "caption", "digest")]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            file.unlink()
            continue
        done.update({Key(*key): (file, row) for row, key in enumerate(zip(*parts, strict=True))})
    return done


def _assemble(
    path: Path,
    keys: list[Key],
    earlier: TextStore | None,
    done: dict[Key, tuple[Path, int]],
    encoder: "SentenceEncoder",
) -> None:
    """Write the store in the order of `keys`; it appears when it is complete."""

    @functools.lru_cache(maxsize=4)
    def features(file: Path, pooling: str) -> np.ndarray:
        with np.load(file) as block:
            return block[pooling]

    def rows_of(some: list[Key], pooling: str) -> np.ndarray:
        rows = np.empty((len(some), encoder.size), np.float16)
        kept = [place for place, key in enumerate(some) if key not in done]
        if kept and earlier is not None:
            rows[kept] = earlier.read_keys([some[place] for place in kept], pooling, "float16")
        for place, key in enumerate(some):
            if key in done:
                file, row = done[key]
                rows[place] = features(file, pooling)[row]
        return rows

    row_bytes = 2 * encoder.size
    chunk = max(1, min(len(keys), CHUNK_BYTES // row_bytes))
    size = 3 * (len(keys) + chunk) * row_bytes + sum(len(key.image.encode()) + 128 for key in keys) + 2**16
    with atomic_hdf5(path, size) as file:
        for pooling in POOLINGS:
            shape = (len(keys), encoder.size)
            dataset = file.create_dataset(pooling, shape, "float16", chunks=(chunk, encoder.size))
            for start in range(0, len(keys), ROWS_PER_BLOCK):
                dataset[start : start + ROWS_PER_BLOCK] = rows_of(keys[start : start + ROWS_PER_BLOCK], pooling)
        text = h5py.string_dtype("utf-8")
        file.create_dataset("image", data=[key.image for key in keys], dtype=text)
        file.create_dataset("caption", data=np.array([key.number for key in keys], np.int32))
        file.create_dataset("digest", data=[key.digest for key in keys], dtype=h5py.string_dtype("ascii", 16))
        file.attrs.update({**encoder.attributes, "format": FORMAT})

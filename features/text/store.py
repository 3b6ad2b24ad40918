"""The HDF5 file of a frozen sentence encoder: one row per caption and pooling, joined by image, number and text.

Of a transformer it holds each of POOLINGS in float16; of a dual encoder its own projected embedding, in float32.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import h5py
import numpy as np

from features.blocks import (
    AUTO,
    MADE_WITH,
    Blocks,
    Identity,
    Work,
    as_before,
    clear,
    hand_out,
    lock_part,
    part_attributes,
)
from features.distributed import from_all
from features.format import check_format
from features.hdf5 import atomic_hdf5, read_head, read_rows, rows_bytes, write_rows
from features.progress import progress_bar
from utils import BadInput, command_line, digest_text

if TYPE_CHECKING:
    from features.dual_encoders import DualSentences
    from features.text.encoders import SentenceEncoder

FORMAT = 1
SUFFIX = ".text.h5"
PRECOMPUTED = "precomputed:"  # begins the name of an encoder whose features somebody else computed
POOLINGS = ("cls", "last", "mean")  # of features.text.encoders, which is not imported here: it takes torch along
PROJECTED = "projected"  # of a dual encoder, or precomputed: one feature, whichever pooling is asked for
ROWS_PER_BLOCK = 1024  # captions in a finished block: what a kill may cost
IDENTITY_KEYS = ("digest", "longest", "format", "engine", "precision")  # rows that differ in one do not mix
REMEDY = (
    "repeat with `text_encoder` and `fresh`, without `backbone`, to make it again, or with the encoder it was made with"
)


class Key(NamedTuple):
    """What a row belongs to: caption `number` of `image`, and the digest of its text."""

    image: str
    number: int
    digest: str


def caption_digest(caption: str) -> str:
    """Return sixteen hexadecimal digits of the SHA-256 of a caption."""
    return digest_text(caption)[:16]


def keys_of(rows: Sequence[dict[str, Any]]) -> list[Key]:
    """Return a key for each caption of lines of captions.jsonl, in their order.

    >>> keys_of([{"image": "a.jpg", "captions": ["a dog", "a cat"]}])[1]
    Key(image='a.jpg', number=1, digest='51e4674156077982')
    """
    return [
        Key(row["image"], number, caption_digest(caption))
        for row in rows
        for number, caption in enumerate(row["captions"])
    ]


@dataclass(frozen=True)
class TextStore:
    """A complete store, opened for reading; the file is open only while rows are read.

    attributes: encoder, digest, size, longest, format. command: what brings it up to date, for its errors. poolings:
    what it holds, POOLINGS or PROJECTED alone.
    """

    path: Path
    keys: list[Key]
    attributes: dict[str, str | int]
    command: str
    poolings: tuple[str, ...]
    _row: dict[Key, int] = field(repr=False)

    @classmethod
    def open(cls, path: Path | str, command: str = "") -> "TextStore":
        """Open a store. Raises BadInput if the file is missing, not HDF5, of another format, or incomplete."""
        path = Path(path)
        command = command or "prep.py, with `text_encoder`"
        if not path.is_file():
            raise BadInput(f"{path}: no such sentence features; make them with: {command}")
        again = f"make it again with: {command}, and `fresh`"
        try:
            head = read_head(path, "image", "caption", "digest")
        except OSError as error:
            raise BadInput(f"{path}: not an HDF5 file, or damaged ({error}); {again}") from error
        check_format(path, head.attributes.get("format"), FORMAT, again)
        attributes, poolings = head.attributes, (PROJECTED,) if PROJECTED in head.arrays else POOLINGS
        for name in (*poolings, "image", "caption", "digest"):
            if name not in head.arrays:
                raise BadInput(f"{path}: has no dataset {name!r}, so it holds no sentence features; {again}")
        if not {"encoder", "digest", "size"} <= attributes.keys():
            raise BadInput(f"{path}: does not say which encoder made it; {again}")
        parts = [head.texts[name] for name in ("image", "caption", "digest")]
        lengths = {len(part) for part in parts}
        keys = [Key(*key) for key in zip(*parts, strict=False)]  # if one is shorter: see below
        row = {key: number for number, key in enumerate(keys)}
        shapes = {head.arrays[pooling][0] for pooling in poolings}
        if len(lengths) > 1 or len(row) != len(keys) or shapes != {(len(keys), attributes.get("size"))}:
            raise BadInput(f"{path}: {len(row)} captions for features of shape {sorted(shapes)[0]}; {again}")
        return cls(path, keys, attributes, command, poolings, row)

    @property
    def size(self) -> int:
        return int(self.attributes["size"])

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._row

    def read(self, rows: Sequence[dict[str, Any]], pooling: str) -> np.ndarray:
        """Read the features (M, size) float32 of all captions of lines of captions.jsonl, in their order.

        Raises BadInput if there is no such pooling, or a caption is missing or has changed since; it names its image.
        """
        return self.read_keys(keys_of(rows), pooling)

    def read_keys(self, keys: Sequence[Key], pooling: str, dtype: str = "float32") -> np.ndarray:
        """Read the features (M, size) of captions in any order, in `dtype`, block by block."""
        if pooling not in (*POOLINGS, *self.poolings):
            raise BadInput(f"{self.path}: has no pooling {pooling!r}; take one of {', '.join(POOLINGS)}")
        kept = pooling if pooling in self.poolings else PROJECTED
        missing = [key for key in keys if key not in self._row]
        if missing:
            raise BadInput(
                f"{self.path}: {len(missing):,} of {len(keys):,} captions are missing or have changed since, the first "
                f"of image {missing[0].image} (its caption {missing[0].number + 1}); bring it up to date with: "
                f"{self.command}"
            )
        rows = np.fromiter((self._row[key] for key in keys), np.int64, len(keys))
        try:
            return read_rows(self.path, kept, rows, dtype)
        except OSError as error:
            raise BadInput(
                f"{self.path}: cannot be read ({error}); make it again with: {self.command}, and `fresh`"
            ) from error


def update_text_store(
    path: Path | str,
    rows: Sequence[dict[str, Any]],
    encoder: "SentenceEncoder | DualSentences",
    *,
    fresh: bool = False,
    progress: bool = False,
    engine: str = AUTO,
    precision: str | None = None,
) -> int:
    """Bring the store at `path` to hold the captions of `rows`, lines of captions.jsonl; return how many were computed.

    Finished blocks lie in `path`.part until all is done: a second run goes on from them, and from the rows of an
    earlier store whose image, number and text agree. Captions of the same text are computed once. The store appears
    when it is complete. `fresh` throws away earlier features first. A block's rows depend on its captions alone, not on
    where a run was interrupted. engine, precision: AUTO and None go on with those of earlier features, and begin with
    the quicker one, and float32.
    Raises BadInput if earlier features were made by another encoder or engine, one is not finite in float16, or another
    program fills the same store.
    """
    path = Path(path)
    keys = keys_of(rows)
    if not keys:
        raise BadInput(f"{path}: there is no caption to keep features of; check `captions`")
    captions = {key.digest: caption for key, caption in zip(keys, _captions(rows), strict=True)}
    with lock_part(path, fresh) as part:
        store = None
        if path.exists():
            store = TextStore.open(path, command_line("prep.py", {"text_encoder": encoder.name}))
        earlier = store.attributes if store else part_attributes(part)
        made_with = dict(zip(MADE_WITH, as_before(engine, precision, earlier), strict=True))
        if not encoder.any_engine:
            made_with = MADE_WITH
        if earlier:
            _identity({**encoder.attributes, **made_with}, REMEDY).check(path if store else part, earlier)
        if store is not None and store.keys == keys:
            clear(part)  # a run was killed between its last two steps
            return 0
        missing = list(dict.fromkeys(key.digest for key in keys if store is None or key not in store))
        encoder = encoder.with_engine(**made_with, count=len(missing))
        identity = _identity(encoder.attributes, REMEDY)
        blocks, texts = Blocks(part, identity), [captions[digest] for digest in missing]
        groups = blocks.missing(missing, ROWS_PER_BLOCK)
        hand_out(path.name, blocks, identity, missing, texts, groups)
        count = sum(map(len, groups))
        name, initial = path.name.removesuffix(SUFFIX), len(keys) - count
        with progress_bar(
            name=name, total=len(keys), initial=initial, unit=" captions", mininterval=1, disable=not progress
        ) as bar:
            _fill(blocks, missing, texts, groups, encoder, bar)
        blocks.scan_others()
        _assemble(path, keys, store, blocks, encoder)
        clear(part)
    return count


def encode_share(work: Work, encoder: "SentenceEncoder | DualSentences") -> None:
    """Compute this process's share of what the first one encodes, with the engine that it has chosen.

    Raises BadInput if the encoder is another, or the engine cannot be had here.
    """
    made_with = {key: str(work.attributes[key]) for key in MADE_WITH}
    identity = _identity({**encoder.attributes, **made_with}, "give all processes the same encoder")
    identity.check(Path(work.part), work.attributes)
    encoder = encoder.with_engine(**made_with, count=len(work.keys))
    with progress_bar(disable=True) as bar:
        _fill(work.blocks(), work.keys, work.sources, work.groups, encoder, bar)


def _identity(attributes: Mapping[str, str | int], remedy: str) -> Identity:
    return Identity({**attributes, "format": FORMAT}, IDENTITY_KEYS, remedy)


def _captions(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    return (caption for row in rows for caption in row["captions"])


def _fill(
    blocks: Blocks,
    digests: Sequence[str],
    texts: Sequence[str],
    groups: list[list[int]],
    encoder: "SentenceEncoder | DualSentences",
    bar: Any,
) -> None:
    """Write a block of each of the groups that this process gets."""
    for group in blocks.deal(groups, bar.update):
        features = encoder.features([texts[i] for i in group])
        arrays = {pooling: features[pooling].astype(dtype) for pooling, dtype in encoder.kept.items()}
        blocks.write([digests[i] for i in group], **arrays)
        bar.update(len(group))
    from_all(None)  # wait for all


def _assemble(
    path: Path,
    keys: list[Key],
    store: TextStore | None,
    blocks: Blocks,
    encoder: "SentenceEncoder | DualSentences",
) -> None:
    """Write the store in the order of `keys`; it appears when it is complete. Rows of an earlier store stay."""

    def rows_of(pooling: str, dtype: str) -> Iterator[np.ndarray]:
        def earlier(numbers: list[int]) -> np.ndarray:
            assert store is not None
            return store.read_keys([keys[number] for number in numbers], pooling, dtype)

        digests = ["" if store is not None and key in store else key.digest for key in keys]
        return blocks.assemble(digests, pooling, np.dtype((dtype, (encoder.size,))), ROWS_PER_BLOCK, earlier)

    blocks_of = {pooling: rows_of(pooling, dtype) for pooling, dtype in encoder.kept.items()}
    write_text_store(path, keys, encoder.attributes, encoder.kept, blocks_of)


def write_text_store(
    path: Path,
    keys: list[Key],
    attributes: dict[str, str | int],
    kept: Mapping[str, str],
    blocks: Mapping[str, Iterable[np.ndarray]],
) -> None:
    """Write the store of `keys` as blocks bring the rows (…, size) of each pooling; it appears when complete.

    kept: POOLINGS, or PROJECTED alone, and the dtype of each.
    """
    width = int(attributes["size"])
    size = sum(rows_bytes(len(keys), (width,), dtype) for dtype in kept.values())
    with atomic_hdf5(path, size + sum(len(key.image.encode()) + 128 for key in keys) + 2**16) as file:
        for pooling, dtype in kept.items():
            write_rows(file, pooling, (len(keys), width), dtype, blocks[pooling])
        file.create_dataset("image", data=[key.image for key in keys], dtype=h5py.string_dtype("utf-8"))
        file.create_dataset("caption", data=np.array([key.number for key in keys], np.int32))
        file.create_dataset("digest", data=[key.digest for key in keys], dtype=h5py.string_dtype("ascii", 16))
        file.attrs.update({**attributes, "format": FORMAT})

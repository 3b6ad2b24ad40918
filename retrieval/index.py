"""The index folder: what search.py index leaves, read by memory map; opening it reads nothing that grows with images.

meta.json             which file holds which column; it is renamed into place last, so the folder holds the old index or
                      the new one
embeddings-000001.npy (N, dim) float32, rows in the order of the ids; one column more where scores are corrected
ids-…, paths-….bin    of every row; a path is empty where the image has no file, FILE#bytes=START+LENGTH inside one
files-….npy           of every row: digest of the content, size and time of the file, where its thumbnail lies
pack-….bin            thumbnails, JPEG, end to end; later builds add packs and leave those before as they are
captions-….bin        distinct captions to search from images, sorted; caption_embeddings-….npy, their rows
known-….bin           every caption of an indexed dataset, sorted; known_rows-….npy, its image
approximate-….faiss   for approximate search, where there is one; meta.json names the collection where Milvus searches
part-DIGEST/          a build under way: what is finished of it, for the run of that digest

Numbers count generations. A reader of an old one keeps its files open, so that taking them away does not disturb it.
"""

import bisect
import hashlib
import mmap
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np

from features.datasets.vsepp import open_npy
from features.format import check_format
from features.images.files import ImageFile, image_file
from reading import open_regular, read_json, typed
from retrieval.approximate import KINDS, Approximate
from retrieval.milvus import MILVUS, address_of, open_collection
from settings import LARGE
from utils import BadInput, atomic_write, write_json

FORMAT = 1
META, PART = "meta.json", "part-"
INDEX_SUFFIX = ".index"  # of its folder, behind the name of the folder of images
ROW = np.dtype(
    [
        ("digest", "u1", (32,)),  # SHA-256 of the content
        ("size", "<i8"),
        ("mtime", "<i8"),  # nanoseconds; 0 where it cannot be relied on
        ("pack", "<i4"),
        ("start", "<i8"),
        ("length", "<i4"),  # of the thumbnail; 0 for none
    ]
)
SUFFIX = {"ids": "bin", "paths": "bin", "captions": "bin", "known": "bin", "pack": "bin", "approximate": "faiss"}
_COLUMN = rf"(?:{re.escape(META)}|[a-z_]+-(\d{{6,}})\.(?:npy|bin|faiss))"
INDEX_FILE = re.compile(rf"{_COLUMN}|\.{_COLUMN}\.\d+\.tmp|{PART}[0-9a-f]+")  # its first group: the generation
REMEDY = "build it again with search.py index and `fresh`"


@dataclass(frozen=True)
class Meta:
    """meta.json. files: column → name of its file. approximate: what was measured of such search; None for exact.

    correction: by which a column of biases stands behind the embeddings, if any (retrieval/correction.py).
    """

    generation: int
    run: str  # its folder
    digest: str  # of the run
    similarity: str
    dim: int
    images: int
    captions: int
    captions_from: str
    captions_digest: str
    known_digest: str
    files: dict[str, str]
    packs: list[int]
    approximate: dict[str, Any] | None = None
    correction: str | None = None
    format: int = FORMAT

    @property
    def width(self) -> int:
        """Return how many columns the embeddings have."""
        return self.dim + (self.correction is not None)

    @classmethod
    def read(cls, folder: Path) -> "Meta":
        """Read meta.json. Raises BadInput if `folder` holds no index, or one of another format."""
        path = folder / META
        if not path.is_file():
            raise BadInput(f"{folder}: not an index (no {META}); build one with search.py index")
        table = read_json(path, REMEDY)
        if not isinstance(table, dict) or "format" not in table:
            raise BadInput(f"{path}: not the {META} of an index; name a folder that search.py index has written")
        check_format(path, table["format"], FORMAT, REMEDY)
        try:
            meta = typed(cls, table)
            meta.check()
        except (TypeError, ValueError):
            raise BadInput(f"{path}: not the {META} of an index of this version; {REMEDY}") from None
        return meta

    def check(self) -> None:
        """Raise ValueError if it says what no index does, or names a file that is not one of an index."""
        named = all(re.fullmatch(rf"{column}-\d{{6,}}\.(?:npy|bin|faiss)", name) for column, name in self.files.items())
        about, needed = self.approximate, {"embeddings", "files", "ids", "paths"} if self.images else set()
        if about and (about.get("search") not in (*KINDS, MILVUS) or not 1 <= int(about.get("effort", 0)) <= 2**20):
            raise ValueError("a search that no index has")
        needed |= {"approximate"} if about and about["search"] in KINDS else set()
        numbers = (self.generation, self.dim, *(n + 1 for n in (self.images, self.captions, *self.packs)))
        if not named or not needed <= self.files.keys() or self.similarity not in ("cosine", "order"):
            raise ValueError("files or a similarity that no index has")
        if self.dim > LARGE or min(numbers) < 1:
            raise ValueError("impossible numbers")

    def write(self, folder: Path) -> None:
        write_json(folder / META, asdict(self))

    def names(self) -> set[str]:
        """Return the name of every file that belongs to this generation."""
        return {META, *self.files.values(), *(file_name("pack", number) for number in self.packs)}


def approximate_of(folder: Path) -> dict[str, Any] | None:
    """Return what meta.json says of approximate search; None if it cannot be read."""
    try:
        return Meta.read(folder).approximate
    except BadInput:
        return None


def file_name(column: str, generation: int) -> str:
    """Return the name of a column's file.

    >>> file_name("embeddings", 3)
    'embeddings-000003.npy'
    """
    return f"{column}-{generation:06d}.{SUFFIX.get(column, 'npy')}"


class Strings(Sequence[str]):
    """Many strings in one file, read where they lie: their count, where each starts, and all of them end to end.

    Any string will do, half a surrogate pair (a file name that is not UTF-8) too. Sorted ones are found by bisection:
    UTF-8 sorts as Python does.
    """

    def __init__(self, data: Any):
        self.data = memoryview(data)
        (count,) = np.frombuffer(data, "<i8", 1)
        self.starts = np.frombuffer(data, "<i8", int(count) + 1, offset=8)
        self.base = 8 * (int(count) + 2)
        if self.starts[0] != 0 or self.base + int(self.starts[-1]) != len(self.data):
            raise ValueError("cut short")

    @classmethod
    def empty(cls) -> "Strings":
        return cls(np.zeros(2, "<i8").tobytes())

    def __len__(self) -> int:
        return len(self.starts) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        start, stop = self.base + int(self.starts[row]), self.base + int(self.starts[row + 1])
        text = bytes(self.data[start:stop])
        try:
            return text.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # a damaged one is none that anybody asks for
            return text.decode("utf-8", "replace")

    def rows_of(self, text: str) -> range:
        """Return the rows of `text` among sorted strings; an empty range if there is none."""
        return range(bisect.bisect_left(self, text), bisect.bisect_right(self, text))


def write_strings(path: Path, strings: Sequence[str]) -> None:
    """Write `strings` as `Strings` reads them."""
    parts = [text.encode("utf-8", "surrogatepass") for text in strings]
    starts = np.zeros(len(parts) + 1, "<i8")
    np.cumsum([len(part) for part in parts], out=starts[1:])
    with atomic_write(path, "wb") as file:
        file.write(np.int64(len(parts)).astype("<i8").tobytes())
        file.write(starts.tobytes())
        file.writelines(parts)


def write_rows(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> None:
    """Write a .npy of float32 rows, (N, D), as blocks bring them: never all of them in memory."""
    with atomic_write(path, "wb") as file:
        head = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, head)
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").tobytes())


def write_array(path: Path, array: np.ndarray) -> None:
    """Write a .npy that appears when it is complete."""
    with atomic_write(path, "wb") as file:
        np.save(file, array)


def digest_strings(strings: Iterable[str]) -> str:
    """Return sixteen hexadecimal digits that differ when a string or their order differs."""
    total = hashlib.sha256()
    for text in strings:
        data = text.encode("utf-8", "surrogatepass")
        total.update(b"%d " % len(data) + data)
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Index:
    """An index, open. Row i of ids, paths, rows and embeddings is one image; ids are sorted, so ties stand by id."""

    folder: Path
    meta: Meta
    embeddings: np.ndarray  # (N, width) float32
    rows: np.ndarray  # (N,) of ROW
    ids: Strings
    paths: Strings
    captions: Strings
    caption_embeddings: np.ndarray  # (M, width) float32
    known: Strings
    known_rows: np.ndarray  # (captions of the dataset,) int64
    approximate: Approximate | None
    packs: dict[int, Any] = field(repr=False)  # number → its bytes

    @classmethod
    def open(cls, folder: Path | str, exact: bool = False, index_url: str | None = None) -> "Index":
        """Open an index; exact: not what searches approximately. Raises BadInput if it holds none, or is damaged.

        index_url: where Milvus is, for an index that is searched there; None: as the environment says.
        """
        folder = Path(folder)
        while True:
            meta = Meta.read(folder)
            try:
                return cls._open(folder, meta, exact, index_url)
            except (OSError, ValueError, EOFError) as error:
                if Meta.read(folder).generation != meta.generation:
                    continue  # a build has put a new generation into its place just now
                raise BadInput(f"{folder}: damaged ({error}); {REMEDY}") from None

    @classmethod
    def _open(cls, folder: Path, meta: Meta, exact: bool, index_url: str | None) -> "Index":
        def array(column: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            if column not in meta.files:
                return np.empty((0, *shape[1:]), dtype)
            # copy on write: nobody writes, but torch warns of arrays that cannot be written
            try:
                rows = open_npy(inside(folder, meta.files[column]), "c")
            except BadInput as error:
                raise ValueError(str(error).removeprefix(f"{folder}/").partition(";")[0]) from None
            if rows.dtype != dtype or rows.shape != shape:
                raise ValueError(f"{meta.files[column]} has {rows.shape} {rows.dtype}")
            return rows.view(np.ndarray)  # an array over the same map: np.memmap is slower to slice

        def strings(column: str, count: int | None = None) -> Strings:
            texts = Strings(map_file(inside(folder, meta.files[column]))) if column in meta.files else Strings.empty()
            if count is not None and len(texts) != count:
                raise ValueError(f"{meta.files[column]} holds {len(texts)} strings")
            return texts

        count, known = meta.images, strings("known")
        embeddings = array("embeddings", (count, meta.width), np.float32)
        approximate, about = None, meta.approximate
        if about and not exact and about["search"] == MILVUS:
            approximate = open_collection(address_of(index_url, about), about, embeddings)
        elif about and not exact:
            path = inside(folder, meta.files["approximate"])
            approximate = Approximate.open(about["search"], path, embeddings, about["effort"])
        return cls(
            folder,
            meta,
            embeddings,
            array("files", (count,), ROW),
            strings("ids", count),
            strings("paths", count),
            strings("captions", meta.captions),
            array("caption_embeddings", (meta.captions, meta.width), np.float32),
            known,
            array("known_rows", (len(known),), np.int64),
            approximate,
            {number: map_file(inside(folder, file_name("pack", number))) for number in meta.packs},
        )

    def __repr__(self) -> str:
        meta = self.meta
        counts = f"{meta.images:,} images, {meta.captions:,} captions"
        return f"Index({str(self.folder)!r}: {counts}, {meta.dim:,} dimensions, {meta.similarity}, by {meta.run})"

    def __len__(self) -> int:
        return len(self.ids)

    def row_of(self, image: str) -> int | None:
        """Return the row of an image id; None if it is not in the index."""
        rows = self.ids.rows_of(image)
        return rows[0] if rows else None

    def row_of_file(self, path: Path | str) -> int | None:
        """Return the row of a file: the one that was indexed, or the first of the same content; None without any."""
        names = {os.path.abspath(path), os.path.realpath(path)}
        rows = [row for row, name in enumerate(self.paths) if name in names]
        if not rows:
            try:
                with open(path, "rb") as file:
                    rows = self.rows_of_content(hashlib.file_digest(file, "sha256").digest())
            except (OSError, ValueError):  # ValueError: a zero byte in its name
                return None
        return rows[0] if rows else None

    def rows_of_content(self, digest: bytes) -> list[int]:
        """Return the rows of the files whose SHA-256 begins with `digest`; those of cached features have none."""
        start = np.frombuffer(digest, np.uint8)
        rows: list[int] = np.flatnonzero((self.rows["digest"][:, : len(start)] == start).all(axis=1)).tolist()
        return rows

    def embedding(self, row: int) -> np.ndarray:
        """Return the embedding (1, dim) of the image of a row."""
        return self.embeddings[row : row + 1, : self.meta.dim]

    def path(self, row: int) -> ImageFile | None:
        """Return where the image of a row lay when it was indexed."""
        text = self.paths[row]
        return image_file(text) if text else None

    def thumbnail(self, row: int) -> bytes | None:
        """Return the image of a row, small, as a JPEG; None where there was no file."""
        pack, start, length = (int(self.rows[row][name]) for name in ("pack", "start", "length"))
        return bytes(self.packs[pack][start : start + length]) if length and pack in self.packs else None

    def true_rows(self, caption: str) -> list[int]:
        """Return the rows of the images that the indexed dataset has this very caption for."""
        rows = self.known.rows_of(caption)
        return sorted({int(row) for row in self.known_rows[rows.start : rows.stop] if 0 <= row < len(self)})


def index_folder(images: Sequence[Path]) -> Path:
    """Return the folder of an index of these images, beside the one folder among them; the links in its path stay.

    Raises BadInput unless there is exactly one folder.

    >>> index_folder([Path(__file__).parent]).name
    'retrieval.index'
    """
    folders = [path for path in images if path.is_dir()]
    if len(folders) != 1:
        raise BadInput("index: of files, or of several folders, has no name of its own; name it with `out`")
    folder = folders[0] if folders[0].name not in ("", "..") else folders[0].resolve()
    return folder.with_name(folder.name + INDEX_SUFFIX)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of an index. Raises OSError if a link leads out of the folder, to anybody's file."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OSError(f"{name} is a link out of the folder")
    return path


def map_file(path: Path) -> Any:
    with open_regular(path) as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def last_generation(folder: Path) -> int:
    """Return the highest number that a file of the index bears; 0 where there is none."""
    matches = (INDEX_FILE.fullmatch(path.name) for path in folder.iterdir())
    return max((int(match[1]) for match in matches if match and match[1]), default=0)


def clean_up(folder: Path, keep: set[str]) -> None:
    """Remove what no longer belongs to the index. Other files stay, and nothing is removed through a link."""
    for path in sorted(folder.iterdir()):
        if path.name in keep or not INDEX_FILE.fullmatch(path.name):
            continue
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        elif path.name.startswith(PART):
            shutil.rmtree(path)


def foreign_file(folder: Path) -> str | None:
    """Return the name of a file that no index writes; hidden ones, which desktops leave everywhere, do not count."""
    names = sorted(path.name for path in folder.iterdir())
    return next((name for name in names if not name.startswith(".") and not INDEX_FILE.fullmatch(name)), None)

"""What an index is made of: folders of images, files, tars and tables of them, or the images of a prepared folder."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from features.datasets.dataset import clean_caption
from features.images.decode import IMAGE_SUFFIXES
from features.images.files import ImageFile, file_on_disk, open_image_file, size_of
from features.images.tables import ARROW, PARQUET, table_images
from features.images.tars import SUFFIX as TAR
from features.images.tars import members
from features.images.views import join_features
from features.prepared import CAPTIONS, DATASET, Prepared
from features.progress import progress_bar
from reading import read_text
from retrieval.approximate import RECALL_QUERIES, drawn_queries
from retrieval.correction import asking
from training.bank import read_bank
from training.run import Run
from utils import BadInput, log

ROWS_PER_BLOCK = 256  # rows of cached features read at a time
CONTAINERS = (TAR, ARROW, PARQUET)  # files that hold images
CHUNK_BYTES = 2**20  # bytes of a file read at a time


class Entry(NamedTuple):
    """An image to be indexed. path: None where features came precomputed."""

    id: str
    path: ImageFile | None


class Source:
    """Images to be indexed, sorted by id, each once.

    known: (caption, image id) of an indexed dataset. notes: what to tell the user. failed: (folder, reason) of folders
    that cannot be listed. features: the rows of a prepared folder, where they are those of the run.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        known: Sequence[tuple[str, str]] = (),
        features: "CachedFeatures | None" = None,
        notes: Sequence[str] = (),
        failed: Sequence[tuple[str, str]] = (),
    ):
        self.entries = sorted(entries, key=lambda entry: entry.id)
        self.known, self.features, self.notes, self.failed = known, features, notes, failed

    def stamp(self, entry: Entry) -> tuple[int, int] | None:
        """Return size and time of last change, in nanoseconds: where both are as before, the content is not read.

        None where they say nothing: the content is read.
        """
        if self.features is not None or entry.path is None:
            return None
        try:
            status = os.stat(file_on_disk(entry.path))
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def digests(self, entries: Sequence[Entry]) -> Iterator[bytes | str]:
        """Yield for every entry in turn the SHA-256 of its content, or why it cannot be read.

        The content of an image with cached features are these, and the size of its file for the thumbnail.
        """
        if self.features is None:
            yield from (_digest_of(entry.path) for entry in entries)
            return
        for group, rows in self._blocks(entries):
            for entry, row in zip(group, rows, strict=True):
                yield hashlib.sha256(row.tobytes() + str(_size_of(entry.path)).encode()).digest()

    def embed(self, run: Run, entries: Sequence[Entry], batch: int, workers: int) -> Iterator[np.ndarray | str]:
        """Yield for every entry in turn its embedding (dim,), or why it cannot be read."""
        if self.features is not None:
            for _, rows in self._blocks(entries):
                yield from run.embed_features(rows)
            return
        paths = [entry.path for entry in entries if entry.path is not None]
        results = run.embed_readable(paths, batch=batch, workers=workers)
        for entry in entries:
            yield "has no file" if entry.path is None else next(results)[1]

    def _blocks(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], np.ndarray]]:
        assert self.features is not None
        for start in range(0, len(entries), ROWS_PER_BLOCK):
            group = entries[start : start + ROWS_PER_BLOCK]
            yield group, self.features.read([entry.id for entry in group])


class CachedFeatures:
    """The joined features of a prepared folder, as a run wants them."""

    def __init__(self, prepared: Prepared, run: Run):
        self.stores = [prepared.store(name) for name in run.info.features]
        self.normalize = run.settings.image.normalize

    @classmethod
    def fitting(cls, prepared: Prepared, run: Run) -> "CachedFeatures | None":
        """Open the features that the run was trained on; None unless the folder holds them for all of its images."""
        if not set(run.info.features) <= set(prepared.stores()):
            return None
        cached = cls(prepared, run)
        fits = all(
            store.attributes.get("digest") == digest
            and (*store.grid, store.shape[-1]) == (*run.info.grid, size)
            and all(row["image"] in store for row in prepared.rows)
            for store, digest, size in zip(cached.stores, run.info.digests, run.info.sizes, strict=True)
        )
        return cached if fits else None

    def read(self, ids: Sequence[str]) -> np.ndarray:
        """Read features, (N, D) float32, or (N, H, W, C) of spatial maps."""
        return join_features([store.read(store.rows(ids)) for store in self.stores], self.normalize)


def gather(named: Sequence[Path], run: Run) -> Source:
    """Collect the images of what was named. Raises BadInput if it does not exist, or holds no image at all."""
    check_there(named)
    prepared = [path for path in named if is_prepared(path)]
    if prepared and len(named) > 1:
        raise BadInput(f"{prepared[0]}: a prepared folder is indexed by itself; leave the others out, or index apart")
    if prepared:
        return from_prepared(Prepared(prepared[0]), run)
    failed: list[tuple[str, str]] = []
    entries = list(_numbered(named, failed))
    if not entries:
        remedy = f"{failed[0][0]}: {failed[0][1]}" if failed else "name another folder"
        raise BadInput(
            f"{', '.join(map(str, named))}: no image found ({', '.join((*IMAGE_SUFFIXES, *CONTAINERS))}); {remedy}"
        )
    return Source(entries, failed=failed)


def check_there(named: Sequence[Path]) -> None:
    """Raise BadInput for what does not exist."""
    for path in named:
        if not path.exists():
            raise BadInput(f"{path}: no such file or folder; name images, folders of images, or one prepared folder")


def captions_of(run: Run, file: Path | None, source: Source) -> tuple[list[str], str]:
    """Return the distinct captions to search from images, sorted, and where they come from.

    Those of a file, else those that the run was trained on, else those of the indexed dataset; none if there are none
    of these. Left out is what the run knows no word of.
    """
    if file is not None:
        return known_captions(run, read_captions(file), file), str(file.resolve())
    try:
        rows = Prepared(run.info.data).rows
        captions = {clean_caption(caption) for row in rows if row["split"] == "train" for caption in row["captions"]}
        origin = str(Path(run.info.data).resolve())
    except BadInput:
        captions, origin = {caption for caption, _ in source.known}, "the images"
    texts = [text for text in sorted(captions - {""}) if run.knows(text)]
    return texts, origin if texts else ""


def embed_run_captions(run: Run, captions: Sequence[str]) -> np.ndarray | None:
    """Embed captions of the run's training split, (N, dim), from the cached features of its frozen sentence encoder.

    None if it has no such encoder, or its features are gone: then the captions are read again.
    """
    if not run.settings.text.encoder or run.settings.text.finetune:
        return None
    try:
        data = Prepared(run.info.data)
        embedded = run.embed_captions(data, "train")
    except BadInput:
        return None
    texts = (clean_caption(text) for row in data.rows if row["split"] == "train" for text in row["captions"])
    row_of = {text: row for row, text in enumerate(texts)}
    return embedded[[row_of[text] for text in captions]]


def recall_queries(run: Run, embedded: Path | None, corrected: bool) -> np.ndarray:
    """Return embeddings of sentences that recall is measured with: images ask otherwise than sentences do.

    embedded: the file of those of the index's captions, if it has any. corrected: with their biases behind them.
    """
    if embedded:
        rows = np.load(embedded, mmap_mode="c")[:, : run.settings.embed_dim]
    elif bank := read_bank(run.folder):
        rows = bank.captions
    else:
        rows = run.embed_sentences([*run.processor.vocabulary.counts][:RECALL_QUERIES])
    queries = drawn_queries(rows)
    return asking(run.settings.similarity, "text_to_image", queries) if corrected else queries


def read_captions(file: Path) -> list[str]:
    """Read the distinct lines of a text file, sorted. Raises BadInput if it has none, or is no text."""
    wants = "`captions` wants a text file, one caption a line"
    lines = read_text(file, wants, encoding="utf-8-sig").splitlines()
    captions = sorted({clean_caption(line) for line in lines} - {""})
    if not captions:
        raise BadInput(f"{file}: holds no caption; {wants}")
    return captions


def known_captions(run: Run, captions: Sequence[str], file: Path) -> list[str]:
    """Return the captions that the run knows a word of, and log how many are not among them.

    Raises BadInput if none is.
    """
    known = [text for text in captions if run.knows(text)]
    if not known:
        raise BadInput(f"{file}: the run knows no word of its captions, such as {captions[0]!r}; name other `captions`")
    if len(known) < len(captions):
        log(f"{file}: {len(captions) - len(known):,} captions left out, of which the run knows no word")
    return known


def is_prepared(path: Path) -> bool:
    """Return whether a folder is one that prep.py has left."""
    return (path / CAPTIONS).is_file() and (path / DATASET).is_file()


def from_prepared(prepared: Prepared, run: Run) -> Source:
    """Collect all splits of a prepared folder; its image files are read where its features are not those of the run."""
    entries = [Entry(row["image"], prepared.path_of(row)) for row in prepared.rows]
    known = [(clean_caption(caption), row["image"]) for row in prepared.rows for caption in row["captions"]]
    features = CachedFeatures.fitting(prepared, run)
    note = f"{prepared.folder}: has not the features that the run was trained on; its image files are read"
    return Source(entries, known, features, [note] if features is None else [])


def _numbered(named: Sequence[Path], failed: list[tuple[str, str]]) -> Iterator[Entry]:
    """Yield entries. Ids are paths below the folder named; where two folders have the same one, the whole paths."""
    ids: dict[str, str] = {}  # path → id
    seen: set[tuple[int, int]] = set()
    for path in named:
        root = os.path.abspath(path)
        if os.path.isdir(root):
            for file in files_below(root, failed, seen):
                ids.setdefault(file, os.path.relpath(file, root).replace(os.sep, "/"))
        else:
            ids.setdefault(root, os.path.basename(root))
    first: dict[str, str] = {}
    named_files = {os.path.abspath(path) for path in named}
    clashing = {image for file, image in ids.items() if first.setdefault(image, file) != file}
    for file, image in progress_bar(ids.items(), "list", unit=" files", delay=2, leave=False):
        name = file if image in clashing else image
        if not file.lower().endswith(CONTAINERS):
            yield Entry(name, Path(file))
        elif file in named_files or not _lists_a_tar(file):
            yield from _inside(Path(file), name, failed)


def _lists_a_tar(file: str) -> bool:
    """Return whether a table is the one that img2dataset writes beside a tar, of what lies in that."""
    return file.lower().endswith(PARQUET) and os.path.isfile(f"{file[: -len(PARQUET)]}{TAR}")


def _inside(file: Path, name: str, failed: list[tuple[str, str]]) -> Iterator[Entry]:
    """Yield the images in a tar or a table, with their names there behind its own; if it is damaged, those before."""
    seen = set()
    try:
        for member, inside, reason in _in_tar(file) if file.suffix.lower() == TAR else _in_table(file):
            image = f"{name}/{member}"
            if inside is None or image in seen:
                failed.append((image, reason or "its name stands in the file twice"))
            else:
                seen.add(image)
                yield Entry(image, inside)
    except BadInput as error:
        failed.append((name, str(error).removeprefix(f"{file}: ")))


def _in_tar(file: Path) -> Iterator[tuple[str, ImageFile | None, str]]:
    for member in members(file):
        if member.name.lower().endswith(IMAGE_SUFFIXES):
            yield member.name, member.span, member.reason


def _in_table(file: Path) -> Iterator[tuple[str, ImageFile | None, str]]:
    for name, inside in table_images(file):
        yield name, inside, "its bytes are not in the file"


def files_below(root: str, failed: list[tuple[str, str]], seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield images, tars and tables by their suffix, not hidden ones. Links are followed, after all in `root` itself.

    So an image has its path through a link only where it has no other. seen: folders, of which none is entered twice.
    """

    def note(error: OSError) -> None:
        failed.append((str(error.filename), error.strerror or str(error)))

    roots = [root]
    for start in roots:  # grows by links on the way
        for folder, folders, files in os.walk(start, onerror=note):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            below = [os.path.join(folder, name) for name in folders]
            roots += [path for path in below if os.path.islink(path)]
            for name in sorted(files):
                if name.lower().endswith((*IMAGE_SUFFIXES, *CONTAINERS)) and not name.startswith("."):
                    yield os.path.join(folder, name)


def _digest_of(path: ImageFile | None) -> bytes | str:
    if path is None:
        return "has no file"
    total = hashlib.sha256()
    try:
        with open_image_file(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                total.update(chunk)
    except OSError as error:
        return error.strerror or str(error)
    return total.digest()


def _size_of(path: ImageFile | None) -> int:
    try:
        return -1 if path is None else size_of(path)
    except OSError:
        return -1

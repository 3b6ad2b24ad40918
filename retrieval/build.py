"""Build an index, or bring one up to date: what is known by its content is not embedded again, nor after a kill.

A build writes finished blocks into part-DIGEST/ of the index folder, then the columns of a new generation under names
of their own, then meta.json. Until that moment, the old index is what everybody reads.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from retrieval import index as files
from retrieval.blocks import FRESH, Blocks
from retrieval.index import META, PART, ROW, Index, Meta, file_name, write_array, write_rows, write_strings
from retrieval.nearest import import_faiss, write_graph
from retrieval.sources import Entry, Source, captions_of, embed_run_captions, gather
from training.run import Run
from utils import BadInput, atomic_write, lock_folder, make_folder

ROWS_PER_BLOCK = 256  # images in a finished block: what a kill may cost
EXACT_MAX_IMAGES = 50_000  # images, beyond which cosine is searched approximately unless told otherwise
RECALL_QUERIES = 500  # captions that recall is measured with
MAX_PACKS = 32  # of thumbnails; if there are more, or one is mostly waste, they are written again
UNRELIABLE_NS = 2 * 10**9  # a file changed less than this ago may change again without a sign


@dataclass
class BuildReport:
    """What a build did. unreadable: (image, reason); graph: what was measured of it; notes: what is to be said."""

    new: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    kept: int = 0
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0
    captions: int = 0
    graph: dict[str, Any] | None = None

    def counts(self) -> str:
        """
        >>> BuildReport(new=3, moved=1, kept=7995).counts()
        '3 new, 0 changed, 1 moved, 0 removed, 7,995 kept'
        """
        parts = ("new", "changed", "moved", "removed", "kept")
        return ", ".join(f"{getattr(self, name):,} {name}" for name in parts)


def build_index(
    run: Run,
    images: Sequence[Path],
    folder: Path,
    *,
    captions: Path | None = None,
    fresh: bool = False,
    approximate: bool | None = None,
    batch: int = 16,
    workers: int = 0,
) -> BuildReport:
    """Make `folder` the index of exactly the images named: folders, files, or one prepared folder.

    captions: a text file, one a line; otherwise those of the run's training split. approximate: None leaves it to
    EXACT_MAX_IMAGES.
    Raises BadInput if there is no image, or the folder holds the index of another run or other files.
    """
    if approximate and run.settings.similarity == "order":
        raise BadInput("--approximate: order similarity is not an inner product, its search is exact; leave it out")
    if approximate:
        import_faiss()  # before hours of work
    if folder.is_dir() and (other := files.foreign_file(folder)):
        raise BadInput(f"{folder}: holds other files, such as {other}; name a folder for the index alone with --out")
    digest = run.digest()
    check_run(folder, digest, fresh)
    source = gather(images, run)
    texts, origin = captions_of(run, captions)
    make_folder(folder, "--out")
    with lock_folder(folder):
        blocks = Blocks(folder / f"{PART}{digest}", run.settings.embed_dim)
        if fresh:
            blocks.start_over()
        old = Index.open(folder, approximate=False) if check_run(folder, digest, fresh) else None
        return _Build(run, digest, source, folder, old, blocks, texts, origin, approximate, batch, workers).finish()


def check_run(folder: Path, digest: str, fresh: bool) -> bool:
    """Whether there is an index to bring up to date. Raises BadInput if it is that of another run."""
    if fresh or not (folder / META).is_file() or (folder / f"{PART}{digest}" / FRESH).is_file():
        return False
    meta = Meta.read(folder)
    if meta.digest != digest:
        raise BadInput(
            f"{folder}: is the index of another run ({meta.run}, or its weights before it was trained again); "
            f"build it anew with --fresh, or name another folder with --out"
        )
    return True


class _Build:
    """One build. `rows` and `origin` go with `entries`; origin: the row of the old index, -1 for a finished block."""

    def __init__(
        self,
        run: Run,
        digest: str,
        source: Source,
        folder: Path,
        old: Index | None,
        blocks: Blocks,
        captions: list[str],
        captions_from: str,
        approximate: bool | None,
        batch: int,
        workers: int,
    ):
        self.run, self.digest, self.source, self.folder, self.old = run, digest, source, folder, old
        self.captions, self.captions_from, self.approximate = captions, captions_from, approximate
        self.captions_given = captions_from != str(Path(run.info.data).resolve())
        self.blocks, self.batch, self.workers = blocks, batch, workers
        self.built = BuildReport(notes=list(source.notes), unreadable=list(source.failed), captions=len(captions))
        numbers = [
            int(path.stem.rpartition("-")[2]) for path in folder.glob("*-*[0-9].*") if files.OWN.match(path.name)
        ]
        self.generation = 1 + max(numbers, default=0)  # a name that no reader may have open
        self.entries: list[Entry] = source.entries
        self.rows = np.zeros(len(self.entries), ROW)
        self.origin = np.full(len(self.entries), -1, np.int64)

    def finish(self) -> BuildReport:
        self.look()
        self.embed()
        if not self.entries:
            raise BadInput(f"{self.folder}: none of its images can be read; name others")
        meta = self.write()
        if self.old is None or meta != self.old.meta:
            meta.write(self.folder)
        files.clean_up(self.folder, meta.names())
        self.built.images, self.built.graph = meta.images, meta.graph
        if not self.captions:
            self.built.notes.append(
                f"no captions to search from images: {self.run.info.data} is not there; name some with --captions"
            )
        return self.built

    def look(self) -> None:
        """Find out what each image is: kept, moved, or to be embedded. Size and time first, then the content."""
        old = self.old
        was = {} if old is None else {image: row for row, image in enumerate(old.ids)}
        doubtful, now = [], time.time_ns()
        for place, entry in enumerate(self.entries):
            row = was.get(entry.id)
            stamp = self.source.stamp(entry)
            if stamp is not None:
                size, mtime = stamp
                self.rows[place]["size"] = size
                self.rows[place]["mtime"] = mtime if abs(now - mtime) > UNRELIABLE_NS else 0
                if row is not None and old is not None and self._as_before(old, row, entry, size, mtime):
                    self.rows[place]["digest"] = old.rows[row]["digest"]
                    self.origin[place] = row
                    continue
            doubtful.append(place)
        reasons: dict[int, str] = {}
        found = self.source.digests([self.entries[place] for place in doubtful])
        for place, digest in zip(
            doubtful, tqdm(found, "look", len(doubtful), unit=" images", leave=False), strict=True
        ):
            if isinstance(digest, str):
                reasons[place] = digest
            else:
                self.rows[place]["digest"] = np.frombuffer(digest, np.uint8)
        self._leave_out(reasons)
        self._recognize(was)

    @staticmethod
    def _as_before(old: Index, row: int, entry: Entry, size: int, mtime: int) -> bool:
        known = old.rows[row]
        return (known["size"], known["mtime"]) == (size, mtime) and old.paths[row] == str(entry.path)

    def _recognize(self, was: dict[str, int]) -> None:
        """Tell the new from the changed and the moved; whatever content the old index has is taken from there."""
        old, built = self.old, self.built
        contents = {} if old is None else {row["digest"].tobytes(): place for place, row in enumerate(old.rows)}
        gone = set(was) - {entry.id for entry in self.entries} - {image for image, _ in built.unreadable}
        old_rows_gone = {contents_key(old, was[image]) for image in gone} if old is not None else set()
        moved = 0
        for place, entry in enumerate(self.entries):
            content = self.rows[place]["digest"].tobytes()
            row = was.get(entry.id)
            same = row is not None and old is not None and contents_key(old, row) == content
            if same and row is not None:
                self.origin[place] = row
                built.kept += 1
            else:
                self.origin[place] = contents.get(content, -1)
                if row is not None:
                    built.changed += 1
                elif content in old_rows_gone and moved < len(gone):
                    built.moved += 1
                    moved += 1
                else:
                    built.new += 1
        built.removed = len(set(was) - {entry.id for entry in self.entries}) - moved

    def _leave_out(self, reasons: dict[int, str]) -> None:
        """Drop entries that cannot be read, by their place."""
        if reasons:
            self.built.unreadable += [(self.entries[place].id, reason) for place, reason in reasons.items()]
            keep = [place for place in range(len(self.entries)) if place not in reasons]
            self.entries = [self.entries[place] for place in keep]
            self.rows, self.origin = self.rows[keep], self.origin[keep]

    def embed(self) -> None:
        """Embed every content that neither the old index nor a finished block has, once."""
        todo: dict[bytes, Entry] = {}
        for entry, row, origin in zip(self.entries, self.rows, self.origin, strict=True):
            content = row["digest"].tobytes()
            if origin < 0 and content not in self.blocks:
                todo.setdefault(content, entry)
        found = zip(
            todo.items(), self.source.embed(self.run, list(todo.values()), self.batch, self.workers), strict=True
        )
        failed: dict[bytes, str] = {}
        with tqdm(total=len(todo), desc="embed", unit=" images", disable=not todo, mininterval=1) as progress:
            while group := list(islice(found, ROWS_PER_BLOCK)):
                sound = []
                for (content, entry), result in group:
                    if isinstance(result, str):
                        failed[content] = result
                    else:
                        sound.append((content, entry, result))
                self.blocks.add(sound)
                progress.update(len(group))
        places = enumerate(zip(self.rows["digest"], self.origin, strict=True))
        reasons = {at: failed[row.tobytes()] for at, (row, origin) in places if origin < 0 and row.tobytes() in failed}
        for place in reasons:  # counted as new or changed when they were looked at
            known = self.old is not None and self.old.row_of(self.entries[place].id) is not None
            self.built.changed -= known
            self.built.removed += known
            self.built.new -= not known
        self._leave_out(reasons)

    def write(self) -> Meta:
        """Write the columns that differ from the old index; returns what meta.json is to say."""
        old, dim = self.old, self.run.settings.embed_dim
        ids = [entry.id for entry in self.entries]
        paths = ["" if entry.path is None else str(entry.path) for entry in self.entries]
        columns = dict(old.meta.files) if old is not None else {}
        same_rows = old is not None and np.array_equal(self.origin, np.arange(len(old)))
        if not same_rows:
            blocks = (self._embeddings(start) for start in range(0, len(ids), ROWS_PER_BLOCK))
            columns["embeddings"] = self._name("embeddings")
            write_rows(self.folder / columns["embeddings"], (len(ids), dim), blocks)
        packs = self._write_thumbnails()
        if old is None or not same_rows or not np.array_equal(self.rows, old.rows):
            columns["files"] = self._name("files")
            write_array(self.folder / columns["files"], self.rows)
        for column, strings in (("ids", ids), ("paths", paths)):
            if old is None or strings != list(getattr(old, column)):
                columns[column] = self._name(column)
                write_strings(self.folder / columns[column], strings)
        known_digest = self._write_known(columns, ids)
        captions_digest = self._write_captions(columns)
        graph = old.meta.graph if old is not None and same_rows else None
        meta = Meta(
            generation=self.generation,
            run=str(self.run.folder.resolve()),
            digest=self.digest,
            similarity=self.run.settings.similarity,
            dim=dim,
            images=len(ids),
            captions=len(self.captions),
            captions_from=self.captions_from,
            captions_digest=captions_digest,
            known_digest=known_digest,
            files=columns,
            packs=packs,
            graph=self._write_graph(columns, graph),
        )
        if old is not None and meta == replace(old.meta, generation=meta.generation):
            return old.meta
        return meta

    def _name(self, column: str) -> str:
        return file_name(column, self.generation)

    def _embeddings(self, start: int) -> np.ndarray:
        """The embeddings of ROWS_PER_BLOCK images from `start` on, each from the old index or from its block."""
        origin = self.origin[start : start + ROWS_PER_BLOCK]
        out = np.empty((len(origin), self.run.settings.embed_dim), np.float32)
        if self.old is not None:
            out[origin >= 0] = self.old.embeddings[origin[origin >= 0]]
        for at in np.flatnonzero(origin < 0):
            out[at] = self.blocks.embedding(self.rows[start + at]["digest"].tobytes())
        return out

    def _write_thumbnails(self) -> list[int]:
        """A pack of the thumbnails that are new, or lie in a pack that is mostly waste; returns all packs in use."""
        old, kept = self.old, self.origin >= 0
        if old is not None:
            for column in ("pack", "start", "length"):
                self.rows[column][kept] = old.rows[column][self.origin[kept]]
        used: dict[int, int] = {}
        for pack, _, length in {(int(r["pack"]), int(r["start"]), int(r["length"])) for r in self.rows[kept]}:
            used[pack] = used.get(pack, 0) + length
        waste = {
            pack for pack, bytes_ in used.items() if old and pack in old.packs and 2 * bytes_ < len(old.packs[pack])
        }
        again = set(used) if len(used) > MAX_PACKS else waste
        new = ~kept | np.isin(self.rows["pack"], list(again))
        place: dict[bytes, tuple[int, int]] = {}  # content → where its thumbnail begins, and its length
        end = 0
        with contextlib.ExitStack() as stack:
            pack_file = None
            for row, origin in zip(np.flatnonzero(new), self.origin[new], strict=True):
                content = self.rows[row]["digest"].tobytes()
                if content not in place:
                    known = old is not None and origin >= 0
                    jpeg = (old.thumbnail(origin) or b"") if known and old else self.blocks.thumbnail(content)
                    place[content] = (end, len(jpeg))
                    end += len(jpeg)
                    if jpeg:
                        path = self.folder / self._name("pack")
                        pack_file = pack_file or stack.enter_context(atomic_write(path, "wb"))
                        pack_file.write(jpeg)
                self.rows["start"][row], self.rows["length"][row] = place[content]
                self.rows["pack"][row] = self.generation
        return sorted({int(pack) for pack in self.rows["pack"][self.rows["length"] > 0]})

    def _write_known(self, columns: dict[str, str], ids: list[str]) -> str:
        """The captions of an indexed dataset, and the row of the image of each."""
        rows = {image: row for row, image in enumerate(ids)}
        known = sorted((caption, rows[image]) for caption, image in self.source.known if image in rows)
        digest = files.digest_strings(f"{caption}\n{row}" for caption, row in known)
        if self.old is not None and self.old.meta.known_digest == digest:
            return digest
        for column in ("known", "known_rows"):
            columns.pop(column, None)
        if known:
            columns["known"], columns["known_rows"] = self._name("known"), self._name("known_rows")
            write_strings(self.folder / columns["known"], [caption for caption, _ in known])
            write_array(self.folder / columns["known_rows"], np.array([row for _, row in known], np.int64))
        return digest

    def _write_captions(self, columns: dict[str, str]) -> str:
        digest = files.digest_strings(self.captions)
        if self.old is not None and self.old.meta.captions_digest == digest:
            return digest
        for column in ("captions", "caption_embeddings"):
            columns.pop(column, None)
        if self.captions:
            columns["captions"] = self._name("captions")
            columns["caption_embeddings"] = self._name("caption_embeddings")
            write_strings(self.folder / columns["captions"], self.captions)
            cached = None if self.captions_given else embed_run_captions(self.run, self.captions)
            blocks = self.blocks.captions(self.run, self.captions, digest) if cached is None else [cached]
            shape = (len(self.captions), self.run.settings.embed_dim)
            write_rows(self.folder / columns["caption_embeddings"], shape, blocks)
        return digest

    def _write_graph(self, columns: dict[str, str], old: dict[str, Any] | None) -> dict[str, Any] | None:
        """The graph for approximate search, if there is to be one; `old`: that of the same rows."""
        automatic = self.run.settings.similarity == "cosine" and len(self.entries) > EXACT_MAX_IMAGES
        wanted = automatic if self.approximate is None else self.approximate
        if not wanted or old is None:
            columns.pop("graph", None)
        if not wanted or old is not None:
            return old if wanted else None
        columns["graph"] = self._name("graph")
        rows = np.load(self.folder / columns["embeddings"], mmap_mode="c").view(np.ndarray)
        return write_graph(rows, self._queries(columns, rows), self.folder / columns["graph"])

    def _queries(self, columns: dict[str, str], rows: np.ndarray) -> np.ndarray:
        """Captions are queries that the graph has not seen. Without any, images with noise stand for them."""
        rng = np.random.default_rng(0)
        if "caption_embeddings" in columns:
            captions = np.load(self.folder / columns["caption_embeddings"], mmap_mode="c").view(np.ndarray)
            return captions[np.sort(rng.permutation(len(captions))[:RECALL_QUERIES])]
        some = rows[np.sort(rng.permutation(len(rows))[:RECALL_QUERIES])]
        noisy = some + rng.normal(size=some.shape, scale=0.5 * some.shape[1] ** -0.5).astype(np.float32)
        return noisy / np.linalg.norm(noisy, axis=1, keepdims=True)


def contents_key(index: Index | None, row: int) -> bytes:
    assert index is not None
    return index.rows[row]["digest"].tobytes()

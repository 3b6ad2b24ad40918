"""Build an index, or bring one up to date: what is known by its content is not embedded again, nor after a kill.

A build writes finished blocks into part-DIGEST/ of the index folder, then the columns of a new generation under names
of their own, then meta.json. Until that moment, the old index is what everybody reads.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from features.blocks import Blocks, clear, refuse_link
from features.images.decode import jpeg_bytes, thumbnail
from features.images.files import ImageFile
from features.progress import progress_bar
from retrieval import index as files
from retrieval.approximate import EXACT, check_search, search_for, write_approximate
from retrieval.build_report import BuildReport
from retrieval.correction import NONE, Corrector, check_correction
from retrieval.index import META, PART, ROW, Index, Meta, file_name, write_array, write_rows, write_strings
from retrieval.milvus import MILVUS, Collection, check_address, drop_replaced, url_for, write_collection
from retrieval.sources import Entry, Source, captions_of, embed_run_captions, gather, recall_queries
from training.run import Run
from utils import BadInput, atomic_write, lock_folder, make_folder

ROWS_PER_BLOCK = 256  # images in a finished block: what a kill may cost
CAPTIONS_PER_BLOCK = 8192  # captions in a finished block
THUMBNAIL_PIXELS = 256  # of a thumbnail, the longer side
FRESH = "fresh"  # a file of part-DIGEST/: this build starts over, whatever the old index holds
MAX_PACKS = 32  # of thumbnails; if there are more, or one is mostly waste, they are written again
UNRELIABLE_NS = 2 * 10**9  # a file changed less than this ago may change again without a sign


def build_index(  # noqa: PLR0913 (its options, keyword-only)
    run: Run,
    images: Sequence[Path],
    folder: Path,
    *,
    captions: Path | None = None,
    fresh: bool = False,
    search: str | None = None,
    index_url: str | None = None,
    correction: str | None = None,
    batch: int = 16,
    workers: int = 0,
) -> BuildReport:
    """Make `folder` the index of exactly the images named: folders, files, or one prepared folder.

    captions: a text file, one a line; otherwise those of the run's training split. search: one of SEARCHES; None
    leaves it to the number of images, or to Milvus where that searches the index already. index_url: where Milvus is,
    which searches then. fresh: embed everything again. batch, workers: images at a time through the backbone, and
    processes that decode. correction: one of BY_A_BIAS, or NONE; None keeps what the index has.
    Raises BadInput if there is no image, the folder holds the index of another run, of other images altogether, or
    other files, another program is at work in it, or the run has no bank to correct by.
    """
    check_search(search, run.settings.similarity)  # before hours of work
    check_correction(correction)
    check_address(index_url, search, run.settings.similarity)
    if folder.is_dir() and (other := files.foreign_file(folder)):
        raise BadInput(f"{folder}: holds other files, such as {other}; name a folder for the index alone with `out`")
    digest = run.digest()
    check_run(folder, digest, fresh)
    source = gather(images, run)
    texts, captions_from = captions_of(run, captions, source)
    with lock_folder(make_folder(folder, "out")):
        part = folder / f"{PART}{digest}"
        refuse_link(part)
        part.mkdir(exist_ok=True)
        if fresh:
            clear(part)
            (part / FRESH).touch()  # a kill does not bring the old index back
        old = Index.open(folder, exact=True) if check_run(folder, digest, fresh) else None
        name = correction or (old.meta.correction if old else None)
        corrector = Corrector.of_run(run, name) if name and name != NONE else None
        ways = search, url_for(index_url, search, old.meta.approximate if old else None), corrector
        build = _Build(run, digest, source, folder, old, Blocks(part), texts, captions_from, *ways)
        build.look()
        build.embed(batch, workers)
        return build.finish()


def check_run(folder: Path, digest: str, fresh: bool) -> bool:
    """Return whether there is an index to bring up to date. Raises BadInput if it is that of another run."""
    if fresh or not (folder / META).is_file() or (folder / f"{PART}{digest}" / FRESH).is_file():
        return False
    meta = Meta.read(folder)
    if meta.digest != digest:
        raise BadInput(
            f"{folder}: is the index of another run ({meta.run}, or its weights before it was trained again); "
            f"build it anew with `fresh`, or name another folder with `out`"
        )
    return True


@dataclass
class _Build:
    """One build. `rows` and `origin` go with `entries`; origin: the row of the old index, -1 for a finished block."""

    run: Run
    digest: str
    source: Source
    folder: Path
    old: Index | None
    blocks: Blocks
    captions: list[str]
    captions_from: str
    search: str | None
    index_url: str | None
    corrector: Corrector | None

    def __post_init__(self) -> None:
        self.report = BuildReport(unreadable=list(self.source.failed), notes=list(self.source.notes))
        self.report.captions = len(self.captions)
        self.dim = self.run.settings.embed_dim
        self.row = np.dtype((np.float32, (self.dim,)))
        self.generation = 1 + files.last_generation(self.folder)  # a name that no reader may have open
        self.entries: list[Entry] = self.source.entries
        self.rows = np.zeros(len(self.entries), ROW)
        self.origin = np.full(len(self.entries), -1, np.int64)
        self.old_rows = {} if self.old is None else {image: row for row, image in enumerate(self.old.ids)}

    def finish(self) -> BuildReport:
        """Write the new generation, and remove what no longer belongs to the index."""
        if not self.entries:
            raise BadInput(f"{self.folder}: none of its images can be read; name others")
        meta, before = self.write(), files.approximate_of(self.folder)
        if self.old is None or meta != self.old.meta:
            meta.write(self.folder)
        drop_replaced(self.index_url, before, meta.approximate)
        files.clean_up(self.folder, meta.names())
        self.report.images, self.report.correction = meta.images, meta.correction
        self.report.approximate = meta.approximate
        return self.report

    def look(self) -> None:
        """Find out what each image is: kept, moved, or to be embedded. Size and time first, then the content."""
        old, doubtful, now = self.old, [], time.time_ns()
        for i, entry in enumerate(self.entries):
            row = self.old_rows.get(entry.id)
            stamp = self.source.stamp(entry)
            if stamp is not None:
                size, mtime = stamp
                self.rows[i]["size"] = size
                self.rows[i]["mtime"] = mtime if abs(now - mtime) > UNRELIABLE_NS else 0
                if row is not None and old is not None:
                    before = old.rows[row]
                    if (before["size"], before["mtime"]) == stamp and old.paths[row] == str(entry.path):
                        self.rows[i]["digest"] = before["digest"]
                        continue
            doubtful.append(i)
        reasons: dict[int, str] = {}
        digests = self.source.digests([self.entries[i] for i in doubtful])
        looked = progress_bar(digests, "look", total=len(doubtful), unit=" images", leave=False)
        for i, digest in zip(doubtful, looked, strict=True):
            if isinstance(digest, str):
                reasons[i] = digest
            else:
                self.rows[i]["digest"] = np.frombuffer(digest, np.uint8)
        self._leave_out(reasons)
        self._recognize()
        if self.old is not None and self.entries and not self._continues(self.old):
            others = f"is the index of {len(self.old):,} other images, such as {self.old.ids[0]}"
            raise BadInput(f"{self.folder}: {others}; name another with `out`, or start over with `fresh`")

    def _continues(self, old: Index) -> bool:
        """Return whether one of the images is in the old index, or one of another content at the same place."""
        before = set(zip(old.ids, old.paths, strict=True))
        return bool((self.origin >= 0).any()) or any((e.id, str(e.path or "")) in before for e in self.entries)

    def _recognize(self) -> None:
        """Tell the new from the changed and the moved; whatever content the old index has is taken from it."""
        report, images = self.report, {entry.id for entry in self.entries}
        old_contents = [] if self.old is None else [_content(row) for row in self.old.rows]
        row_of = {content: row for row, content in enumerate(old_contents)}
        gone = set(self.old_rows) - images - {image for image, _ in report.unreadable}
        contents_gone = {old_contents[self.old_rows[image]] for image in gone}
        for i, entry in enumerate(self.entries):
            content, row = _content(self.rows[i]), self.old_rows.get(entry.id)
            if row is not None and old_contents[row] == content:
                self.origin[i] = row
                report.kept += 1
                continue
            self.origin[i] = row_of.get(content, -1)
            if row is not None:
                report.changed += 1
            elif content in contents_gone and report.moved < len(gone):
                report.moved += 1
            else:
                report.new += 1
        report.removed = len(set(self.old_rows) - images) - report.moved

    def _leave_out(self, reasons: dict[int, str]) -> None:
        """Drop entries that cannot be read, by their number."""
        if reasons:
            self.report.unreadable += [(self.entries[i].id, reason) for i, reason in reasons.items()]
            kept = [i for i in range(len(self.entries)) if i not in reasons]
            self.entries = [self.entries[i] for i in kept]
            self.rows, self.origin = self.rows[kept], self.origin[kept]

    def embed(self, batch: int, workers: int) -> None:
        """Embed every content that neither the old index nor a finished block has, once."""
        keys = self._keys()
        todo: dict[str, Entry] = {}
        for key, entry in zip(keys, self.entries, strict=True):
            if key and key not in self.blocks:
                todo.setdefault(key, entry)
        embeddings = self.source.embed(self.run, list(todo.values()), batch, workers)
        results = zip(todo.items(), embeddings, strict=True)
        failed: dict[str, str] = {}
        with progress_bar(name="embed", total=len(todo), unit=" images", disable=not todo, mininterval=1) as progress:
            while group := list(islice(results, ROWS_PER_BLOCK)):
                failed |= {key: result for (key, _), result in group if isinstance(result, str)}
                self._write_block([(key, entry, row) for (key, entry), row in group if not isinstance(row, str)])
                progress.update(len(group))
        reasons = {i: failed[key] for i, key in enumerate(keys) if key in failed}
        for i in reasons:  # counted as new or changed when they were looked at
            known = self.entries[i].id in self.old_rows
            self.report.changed -= known
            self.report.removed += known
            self.report.new -= not known
        self._leave_out(reasons)

    def _keys(self) -> list[str]:
        """Return the key of each image in the blocks; "" where its embedding comes from the old index."""
        return ["" if i >= 0 else _content(row) for i, row in zip(self.origin, self.rows, strict=True)]

    def _write_block(self, group: list[tuple[str, Entry, np.ndarray]]) -> None:
        if group:
            with ThreadPoolExecutor(2) as pool:  # Pillow decodes without holding Python's lock
                thumbnails = list(pool.map(_jpeg_thumbnail, [entry.path for _, entry, _ in group]))
            embeddings = np.stack([row for _, _, row in group]).astype(np.float32)
            # Arrays of bytes lose zeros at their ends: a JPEG ends in FF D9.
            self.blocks.write([key for key, _, _ in group], embeddings=embeddings, thumbnails=np.array(thumbnails))

    def write(self) -> Meta:
        """Write the columns that differ from the old index; return what meta.json is to say."""
        old = self.old
        ids = [entry.id for entry in self.entries]
        paths = ["" if entry.path is None else str(entry.path) for entry in self.entries]
        columns = dict(old.meta.files) if old is not None else {}
        same_correction = old is not None and old.meta.correction == self._correction()
        same_rows = same_correction and np.array_equal(self.origin, np.arange(len(self.old_rows)))
        if not same_rows:
            columns["embeddings"] = self._name("embeddings")
            embeddings = self.blocks.assemble(self._keys(), "embeddings", self.row, ROWS_PER_BLOCK, self._earlier)
            self._write_rows(columns["embeddings"], len(ids), embeddings, "text_to_image")
        packs = self._write_thumbnails()
        if old is None or not same_rows or not np.array_equal(self.rows, old.rows):
            columns["files"] = self._name("files")
            write_array(self.folder / columns["files"], self.rows)
        for column, strings in (("ids", ids), ("paths", paths)):
            if old is None or strings != list(getattr(old, column)):
                columns[column] = self._name(column)
                write_strings(self.folder / columns[column], strings)
        approximate = old.meta.approximate if old is not None and same_rows else None
        meta = Meta(
            generation=self.generation,
            run=str(self.run.folder.resolve()),
            digest=self.digest,
            similarity=self.run.settings.similarity,
            dim=self.dim,
            correction=self._correction(),
            images=len(ids),
            captions=len(self.captions),
            captions_from=self.captions_from,
            captions_digest=self._write_captions(columns),
            known_digest=self._write_known(columns, ids),
            files=columns,
            packs=packs,
            approximate=self._write_approximate(columns, approximate),
        )
        if old is not None and meta == replace(old.meta, generation=meta.generation):
            return old.meta
        return meta

    def _name(self, column: str) -> str:
        return file_name(column, self.generation)

    def _earlier(self, numbers: list[int]) -> np.ndarray:
        assert self.old is not None
        return self.old.embeddings[self.origin[numbers], : self.dim]

    def _correction(self) -> str | None:
        return self.corrector.name if self.corrector else None

    def _write_rows(self, name: str, count: int, blocks: Iterable[np.ndarray], direction: str) -> None:
        """Write embeddings, (count, dim) in blocks, as the items that a direction of retrieval ranks."""
        corrector, width = self.corrector, self.dim
        if corrector:
            blocks, width = (corrector.rows(block, direction) for block in blocks), self.dim + 1
        write_rows(self.folder / name, (count, width), blocks)

    def _write_thumbnails(self) -> list[int]:
        """Write a pack of the thumbnails that are new or in a pack that is mostly waste; return all packs in use."""
        old, kept = self.old, self.origin >= 0
        if old is not None:
            for column in ("pack", "start", "length"):
                self.rows[column][kept] = old.rows[column][self.origin[kept]]
        used: dict[int, int] = {}
        for pack, _, length in {(int(r["pack"]), int(r["start"]), int(r["length"])) for r in self.rows[kept]}:
            used[pack] = used.get(pack, 0) + length
        waste = {pack for pack, size in used.items() if old and pack in old.packs and 2 * size < len(old.packs[pack])}
        again = set(used) if len(used) > MAX_PACKS else waste
        new = np.flatnonzero(~kept | np.isin(self.rows["pack"], list(again)))
        written: dict[str, tuple[int, int]] = {}  # content → where its thumbnail begins, and its length
        end = 0
        with contextlib.ExitStack() as stack:
            file = None
            for i in new:
                content = _content(self.rows[i])
                if content not in written:
                    if old is not None and self.origin[i] >= 0:
                        jpeg = old.thumbnail(self.origin[i]) or b""
                    else:
                        jpeg = bytes(self.blocks.row(content, "thumbnails"))
                    written[content] = (end, len(jpeg))
                    end += len(jpeg)
                    if jpeg:
                        file = file or stack.enter_context(atomic_write(self.folder / self._name("pack"), "wb"))
                        file.write(jpeg)
                self.rows["start"][i], self.rows["length"][i] = written[content]
                self.rows["pack"][i] = self.generation
        return sorted({int(pack) for pack in self.rows["pack"][self.rows["length"] > 0]})

    def _write_known(self, columns: dict[str, str], ids: list[str]) -> str:
        """Write the captions of an indexed dataset, and the row of the image of each; return their digest."""
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
        """Write the captions to search from images, and their embeddings; return their digest."""
        digest = files.digest_strings(self.captions)
        before = self.old.meta if self.old is not None else None
        if before and (before.captions_digest, before.correction) == (digest, self._correction()):
            return digest
        for column in ("captions", "caption_embeddings"):
            columns.pop(column, None)
        if self.captions:
            columns["captions"] = self._name("captions")
            columns["caption_embeddings"] = self._name("caption_embeddings")
            write_strings(self.folder / columns["captions"], self.captions)
            of_run = self.captions_from == str(Path(self.run.info.data).resolve())
            cached = embed_run_captions(self.run, self.captions) if of_run else None
            blocks = self._caption_embeddings() if cached is None else [cached]
            self._write_rows(columns["caption_embeddings"], len(self.captions), blocks, "image_to_text")
        return digest

    def _caption_embeddings(self) -> Iterator[np.ndarray]:
        """Embed the captions block by block, and give them back in order."""
        keys = [files.digest_strings([caption]) for caption in self.captions]
        groups = self.blocks.missing(keys, CAPTIONS_PER_BLOCK)
        for group in progress_bar(groups, "captions", unit=" blocks", leave=False, disable=len(groups) <= 1):
            embeddings = self.run.embed_sentences([self.captions[i] for i in group])
            self.blocks.write([keys[i] for i in group], embeddings=embeddings)
        return self.blocks.assemble(keys, "embeddings", self.row, CAPTIONS_PER_BLOCK, self._earlier)

    def _write_approximate(self, columns: dict[str, str], old: dict[str, Any] | None) -> dict[str, Any] | None:
        """Write what searches approximately, if that is wanted; old: what was measured of that of the same rows."""
        cosine = self.run.settings.similarity == "cosine"
        url = self.index_url
        kind = MILVUS if url else self.search or (search_for(len(self.entries)) if cosine else EXACT)
        if old and old["search"] == kind and (not url or Collection(url, old.get("collection")).holds(len(self.rows))):
            return old
        columns.pop("approximate", None)
        if kind == EXACT:
            return None
        rows = np.load(self.folder / columns["embeddings"], mmap_mode="c").view(np.ndarray)
        captions = columns.get("caption_embeddings")
        queries = recall_queries(self.run, self.folder / captions if captions else None, bool(self.corrector))
        if url:
            return write_collection(url, rows, queries, self.blocks.folder / "collection")
        columns["approximate"] = self._name("approximate")
        return write_approximate(kind, rows, queries, self.folder / columns["approximate"])


def _content(row: np.void) -> str:
    """Return the digest of the content of a row, in hexadecimal."""
    return row["digest"].tobytes().hex()


def _jpeg_thumbnail(path: ImageFile | None) -> bytes:
    """Return an image as a small JPEG; nothing if it cannot be read."""
    small = thumbnail(path, THUMBNAIL_PIXELS)
    return b"" if small is None else jpeg_bytes(small, THUMBNAIL_PIXELS)

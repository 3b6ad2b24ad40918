"""An index for other tools: clip-retrieval's folder of embeddings and metadata, which `prep.py` reads, too."""

import contextlib
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from features.datasets.clip_retrieval import CAPTION, ID, IMAGES, METADATA, PATH, TEXTS
from features.parquet import import_arrow, write_parquet
from features.progress import progress_bar
from retrieval.index import write_rows
from retrieval.searcher import Searcher
from utils import BadInput, atomic_write, make_folder

ROWS_PER_BLOCK = 1024  # rows that are embedded and written at once
ROWS_PER_PART = 1_000_000  # rows of a file, as clip-retrieval has them


@dataclass(frozen=True)
class ExportReport:
    """What was written: rows of a dataset of `images`, and whether their captions are among them."""

    rows: int
    images: int
    captions: bool


def export_index(searcher: Searcher, out: Path) -> ExportReport:
    """Write img_emb/, metadata/ and, where every image of an indexed dataset has captions, text_emb/.

    There is a row (image, caption) for each caption of the indexed dataset, else one for each image: float32, of unit
    length, without correction. The folder appears when it is complete. Raises BadInput if it is there already, or the
    run's similarity is no inner product, as clip-retrieval takes all to be.
    """
    import_arrow("parquet", out)
    if searcher.similarity != "cosine":
        raise BadInput(f"{searcher.index.folder}: order similarity is no inner product, by which other tools search")
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise BadInput(f"{out}: is there already; name a folder that is not with `out`")
    rows = _Rows(searcher)
    scratch = out.with_name(f".{out.name}.part")
    if scratch.is_symlink():
        raise BadInput(f"{scratch}: is a symbolic link; remove it and repeat the command")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for name in (IMAGES, METADATA, *([TEXTS] if rows.captions else [])):
            make_folder(scratch / name, "out")
        rows.write(scratch)
        with contextlib.suppress(FileNotFoundError):
            out.rmdir()  # an empty one
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return ExportReport(len(rows.images), len(searcher.index), bool(rows.captions))


class _Rows:
    """The rows of an export, of the images of an index by their rows there, and of their captions."""

    def __init__(self, searcher: Searcher):
        self.searcher, index = searcher, searcher.index
        self.captions = len(np.unique(index.known_rows)) == len(index)  # of every image
        # Captions of an index are sorted by text: those of one image stand together here.
        self.of_captions = np.argsort(index.known_rows, kind="stable") if self.captions else np.empty(0, np.int64)
        self.images = index.known_rows[self.of_captions] if self.captions else np.arange(len(index))

    @cached_property
    def columns(self) -> list[str]:
        return [PATH, ID, *([CAPTION] if self.captions else [])]

    def write(self, folder: Path) -> None:
        starts = range(0, len(self.images), ROWS_PER_PART)
        digits = len(str(len(starts) - 1))
        for number, start in enumerate(starts):
            self._write_part(folder, f"{number:0{digits}}", slice(start, min(start + ROWS_PER_PART, len(self.images))))

    def _write_part(self, folder: Path, number: str, part: slice) -> None:
        index, run = self.searcher.index, self.searcher.run
        starts = range(part.start, part.stop, ROWS_PER_BLOCK)
        blocks = [slice(start, min(start + ROWS_PER_BLOCK, part.stop)) for start in starts]
        shape = (part.stop - part.start, index.meta.dim)
        images = (index.embeddings[self.images[block], : index.meta.dim] for block in blocks)
        write_rows(folder / IMAGES / f"img_emb_{number}.npy", shape, images)
        metadata = folder / METADATA / f"metadata_{number}.parquet"
        with atomic_write(metadata, "wb") as file:
            write_parquet(file, metadata, self.columns, map(self._metadata, blocks))
        if self.captions:
            bar = progress_bar(blocks, "captions", unit=" blocks", delay=2, leave=False)
            texts = (run.embed_sentences(self._captions(block)) for block in bar)
            write_rows(folder / TEXTS / f"text_emb_{number}.npy", shape, texts)

    def _metadata(self, block: slice) -> dict[str, list[str]]:
        index, images = self.searcher.index, self.images[block].tolist()
        ids = [index.ids[row] for row in images]
        paths = [index.paths[row] or image for row, image in zip(images, ids, strict=True)]
        return {PATH: list(map(_unicode, paths)), ID: list(map(_unicode, ids)), CAPTION: self._captions(block)}

    def _captions(self, block: slice) -> list[str]:
        return [self.searcher.index.known[row] for row in self.of_captions[block].tolist()]


def _unicode(name: str) -> str:
    """Write a file name that is not Unicode in a way that is.

    >>> _unicode("a\\udcff.jpg"), _unicode("ü.jpg")
    ('a\\\\udcff.jpg', 'ü.jpg')
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")

"""Finished blocks of an index that is being built: what is in them is not embedded again after a kill."""

import functools
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from features.images.decode import jpeg_bytes, thumbnail
from retrieval.index import write_array
from retrieval.sources import Entry
from training.run import Run
from utils import atomic_write

CAPTIONS_PER_BLOCK = 8192  # captions in a finished block
THUMBNAIL_PIXELS = 256  # of a thumbnail, the longer one, in pixels
FRESH = "fresh"  # a file: this build starts over, whatever index there is


def jpeg_thumbnail(path: Path | None) -> bytes:
    """Return an image as a JPEG of at most THUMBNAIL_PIXELS pixels a side; nothing if it cannot be read."""
    small = thumbnail(path, THUMBNAIL_PIXELS)
    return b"" if small is None else jpeg_bytes(small, THUMBNAIL_PIXELS)


class Blocks:
    """Finished blocks of a build under way, found by content: whatever has been embedded is not embedded again."""

    def __init__(self, folder: Path, dim: int):
        self.folder, self.dim = folder, dim
        self.where: dict[bytes, tuple[Path, int]] = {}
        self.read = functools.lru_cache(maxsize=4)(self._read)
        for path in sorted(folder.glob("block-*.npz")):
            try:
                contents = self._read(path)["digest"]
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                path.unlink()
            else:
                self.where.update({row.tobytes(): (path, at) for at, row in enumerate(contents)})
        self.number = 1 + max(
            (int(path.stem.removeprefix("block-")) for path in folder.glob("block-*.npz")), default=-1
        )

    def _read(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path) as block:
            found = {name: block[name] for name in ("digest", "embeddings", "thumbnails", "ends")}
        if found["embeddings"].shape != (len(found["digest"]), self.dim):
            raise ValueError("of another size")
        return found

    def start_over(self) -> None:
        """Forget what is finished, and remember over kills that the old index does not count either."""
        for path in self.folder.glob("*"):
            path.unlink()
        self.where.clear()
        self.number = 0
        self.folder.mkdir(exist_ok=True)
        (self.folder / FRESH).touch()

    def __contains__(self, content: bytes) -> bool:
        return content in self.where

    def add(self, rows: Sequence[tuple[bytes, Entry, np.ndarray]]) -> None:
        """Write a block: content, image, and embedding (dim,) of each; thumbnails are made here."""
        if not rows:
            return
        with ThreadPoolExecutor(2) as pool:  # Pillow decodes without holding Python's lock
            thumbnails = list(pool.map(jpeg_thumbnail, [entry.path for _, entry, _ in rows]))
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"block-{self.number:06d}.npz"
        with atomic_write(path, "wb") as file:
            np.savez(
                file,
                digest=np.frombuffer(b"".join(content for content, _, _ in rows), np.uint8).reshape(-1, 32),
                embeddings=np.stack([embedding for _, _, embedding in rows]).astype(np.float32),
                thumbnails=np.frombuffer(b"".join(thumbnails), np.uint8),
                ends=np.cumsum([len(jpeg) for jpeg in thumbnails]),
            )
        self.number += 1
        self.where.update({content: (path, at) for at, (content, _, _) in enumerate(rows)})

    def embedding(self, content: bytes) -> np.ndarray:
        path, at = self.where[content]
        return self.read(path)["embeddings"][at]

    def thumbnail(self, content: bytes) -> bytes:
        path, at = self.where[content]
        block = self.read(path)
        start = int(block["ends"][at - 1]) if at else 0
        return block["thumbnails"][start : int(block["ends"][at])].tobytes()

    def captions(self, run: Run, captions: Sequence[str], digest: str) -> Iterator[np.ndarray]:
        """The embeddings of captions, block by block; digest: of all of them, so that others are not taken for them."""
        self.folder.mkdir(exist_ok=True)
        starts = range(0, len(captions), CAPTIONS_PER_BLOCK)
        for start in tqdm(starts, "captions", unit=f" x {CAPTIONS_PER_BLOCK:,}", leave=False, disable=len(starts) == 1):
            path = self.folder / f"captions-{digest}-{start:09d}.npy"
            try:
                found = np.load(path)
            except (OSError, ValueError, EOFError):
                found = run.embed_sentences(captions[start : start + CAPTIONS_PER_BLOCK])
                write_array(path, found)
            yield found

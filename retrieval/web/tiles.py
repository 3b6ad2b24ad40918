"""What the page shows of an image besides the image: its proportions, a caption, and what it is a copy of."""

import io
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image as PILImage

from retrieval.correction import asking
from retrieval.nearest import IMAGE_QUERY, exact_nearest
from retrieval.searcher import Searcher

MAX_CAPTIONS = 100_000  # of an index, beyond which the nearest one is not looked up for every image shown
REMEMBERED = 10_000  # images whose facts are kept
COPY_COSINE = 0.5  # of the embeddings of copies, at least, and
COPY_PIXELS = 0.97  # of their small pixels less their mean
SMALL = 16  # pixels a side


class Tiles:
    """Facts about the images of an index; those of the last images are kept."""

    def __init__(self, searcher: Searcher):
        self.searcher, self.index = searcher, searcher.index
        self.captions: dict[int, str | None] = {}
        self.size = lru_cache(REMEMBERED)(self._size)
        self.small = lru_cache(REMEMBERED)(self._small)

    def _size(self, row: int) -> tuple[int, int] | None:
        """Return width and height of a thumbnail; None where there is none."""
        jpeg = self.index.thumbnail(row)
        return None if jpeg is None else PILImage.open(io.BytesIO(jpeg)).size

    def _small(self, row: int) -> np.ndarray | None:
        """Return an image as few pixels less their mean, (768,), of unit length; None where there is no thumbnail."""
        jpeg = self.index.thumbnail(row)
        if jpeg is None:
            return None
        image = PILImage.open(io.BytesIO(jpeg))
        image.draft("RGB", (2 * SMALL, 2 * SMALL))  # decodes no more than that
        small = image.convert("RGB").resize((SMALL, SMALL), PILImage.Resampling.BOX)
        pixels = np.asarray(small, np.float32).ravel()
        pixels -= pixels.mean()
        return pixels / (np.linalg.norm(pixels) + 1e-6)

    def describe(self, rows: Sequence[int]) -> list[str | None]:
        """Return for each row a caption: of the indexed dataset, or the nearest one of the index; None without any."""
        if len(self.captions) > REMEMBERED:
            self.captions.clear()
        for row in dict.fromkeys(rows):
            if row not in self.captions:
                known = np.flatnonzero(self.index.known_rows == row)[:1]
                self.captions[row] = self.index.known[int(known[0])] if len(known) else None
        unknown = [row for row in dict.fromkeys(rows) if self.captions[row] is None]
        if unknown and 0 < len(self.index.captions) <= MAX_CAPTIONS:
            queries = np.ascontiguousarray(self.index.embeddings[unknown, : self.index.meta.dim])
            if self.searcher.correction:
                queries = asking(self.searcher.similarity, "image_to_text", queries)
            nearest, _ = exact_nearest(queries, self.index.caption_embeddings, 1, IMAGE_QUERY[self.searcher.similarity])
            for row, caption in zip(unknown, nearest[:, 0].tolist(), strict=True):
                self.captions[row] = f"perhaps {self.index.captions[caption]}"
        return [self.captions[row] for row in rows]

    def originals(self, rows: Sequence[int]) -> list[int | None]:
        """Return for each row the first of those before it that it is a copy of; None where it is none.

        Copies have the same content, or embeddings and small pixels that hardly differ.
        """
        images = np.asarray(self.index.embeddings[list(rows), : self.index.meta.dim])
        near = images @ images.T >= COPY_COSINE
        originals: list[int | None] = []
        for rank, row in enumerate(rows):
            firsts = (rows[n] for n in range(rank) if near[rank, n] and originals[n] is None)
            originals.append(next((first for first in firsts if self.is_copy(row, first)), None))
        return originals

    def is_copy(self, row: int, other: int) -> bool:
        """Return whether two images have the same content, or nearly the same pixels."""
        digests = self.index.rows["digest"]
        if (digests[row] == digests[other]).all():
            return True
        one, two = self.small(row), self.small(other)
        return one is not None and two is not None and float(one @ two) >= COPY_PIXELS

"""Search an index: a sentence finds images, an image finds captions and similar images.

searcher = Searcher.open("photographs.index")
searcher.search("a dog runs on the beach", k=20)  # [(id, score), …], best first; equal scores stand by id
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pictures
from PIL import ImageOps

from features.datasets.dataset import clean_caption
from retrieval.index import Index
from retrieval.nearest import COSINE, IMAGE_QUERY, TEXT_QUERY, exact_nearest, positions
from training.run import Run
from utils import BadInput

MAX_QUERY_CHARS = 5000  # letters of a query; a recurrent network reads one word after the other
MAX_TRUE_SHOWN = 20  # true images of a caption whose positions are said
ScoredIds = list[tuple[str, float]]
Image = str | Path | Pictures.Image  # a file, or a picture that is open already


@dataclass(frozen=True)
class Hit:
    """An image of an answer, and its place in it. true: the indexed dataset has the sentence for it.

    below: it is the best true image, none is among the k best, and `rank` is its place in the list of all images.
    """

    rank: int
    score: float
    image: str
    true: bool = False
    below: bool = False


@dataclass(frozen=True)
class Answer:
    """What `ask` finds. positions: of every true image in the exact list of all images, the best first."""

    hits: list[Hit]
    positions: dict[str, int]


class Searcher:
    """An index and its run, both open: a query costs one sentence through the text branch and one search.

    exact: also where the index has a graph for approximate search. Scores are those of the run's similarity, but for
    `similar`, which is cosine always.
    """

    def __init__(self, index: Index, run: Run, exact: bool = False):
        self.index, self.run, self.exact = index, run, exact
        self.similarity = index.meta.similarity

    @classmethod
    def open(cls, folder: Path | str, run: Run | Path | str | None = None, exact: bool = False) -> "Searcher":
        """run: where the run lies, if it has moved since, or the run itself.

        Raises BadInput if `folder` holds no index, or the run is not the one whose embeddings are in it.
        """
        index = Index.open(folder, approximate=not exact)
        if run is None or isinstance(run, str | Path):
            run = _open_run(index, run)
        if run.digest() != index.meta.digest:
            raise BadInput(
                f"{index.folder}: is the index of another run than {run.folder}, or the run was trained again; "
                f"name its run with --run, or build the index again with --fresh"
            )
        return cls(index, run, exact)

    def search(self, sentence: str, k: int = 20) -> ScoredIds:
        """The k images nearest to a sentence, (id, score), best first.

        Raises BadInput for k below 1 and for a sentence that is empty, too long, or of unknown words only.
        """
        _check_k(k)
        return self._images(*self.nearest_images(self.embed_sentence(sentence), k))

    def ask(self, sentence: str, k: int = 20) -> Answer:
        """As `search`; where the sentence is a caption of the indexed dataset, also where its true images stand.

        The best of them comes behind the k images if none is among these.
        """
        _check_k(k)
        query = self.embed_sentence(sentence)
        found = self._images(*self.nearest_images(query, k))
        true = self.true_images(sentence)
        hits = [Hit(rank, score, image, image in true) for rank, (image, score) in enumerate(found, 1)]
        ranks = zip(true, self._ranks(query, true), strict=True)
        places = dict(sorted(ranks, key=lambda place: place[1]))
        if true and not any(hit.true for hit in hits):
            image, rank = next(iter(places.items()))
            hits.append(Hit(rank, self._score(query, image), image, true=True, below=True))
        return Answer(hits, places)

    def search_image(self, image: Image, k: int = 20) -> ScoredIds:
        """The k captions nearest to an image, (caption, score), best first. Raises BadInput if the index has none."""
        return self.captions_of(self.embed_image(image), k)

    def similar(self, image: Image, k: int = 20) -> ScoredIds:
        """The k images most similar to an image, (id, score), by cosine. See `similar_to` for one of the index."""
        return self.similar_of(self.embed_image(image), k)

    def similar_to(self, image_id: str, k: int = 20) -> ScoredIds:
        """The k images most similar to one of the index, itself left out. Raises BadInput for an unknown id."""
        _check_k(k)
        row = self.row_of(image_id)
        places, scores = self.similar_images(self.index.embeddings[row : row + 1], k + 1)
        found = self._images(places, scores)
        return [one for one in found if one[0] != image_id][:k]

    def rank_of(self, sentence: str, image_id: str) -> int:
        """Where an image stands in the whole list of answers to a sentence, from 1; exact, equal scores by id."""
        return self._ranks(self.embed_sentence(sentence), [image_id])[0]

    def score_of(self, sentence: str, image_id: str) -> float:
        """The score of one image of the index for a sentence, as `search` gives it."""
        return self._score(self.embed_sentence(sentence), image_id)

    def true_images(self, sentence: str) -> list[str]:
        """Ids of the images that the indexed dataset has this very sentence for, as a caption."""
        return [self.index.ids[row] for row in self.index.true_rows(clean_caption(sentence))]

    def unknown_words(self, sentence: str) -> list[str]:
        """The words that the run's text branch does not know, each once: the search goes on without them."""
        return list(dict.fromkeys(self.run.unknown_words(sentence)))

    def path(self, image_id: str) -> Path | None:
        """Where an image of the index lies; None where it has no file."""
        return self.index.path(self.row_of(image_id))

    def thumbnail(self, image_id: str) -> bytes | None:
        """An image of the index as a JPEG of at most 256 pixels; None where there was no photograph."""
        return self.index.thumbnail(self.row_of(image_id))

    def row_of(self, image_id: str) -> int:
        """Raises BadInput for an id that is not in the index."""
        row = self.index.row_of(image_id)
        if row is None:
            raise BadInput(f"{self.index.folder}: has no image {image_id}; name one as search.py find lists them")
        return row

    def embed_sentence(self, sentence: str) -> np.ndarray:
        """(1, dim) float32. Raises BadInput for a sentence that is empty, too long, or of unknown words only."""
        sentence = check_query(sentence)
        if not self.run.knows(sentence):
            words = self.unknown_words(sentence)
            if not words:
                raise BadInput(
                    f"the query {_short(sentence)!r} holds no word; describe the image you look for in words"
                )
            raise BadInput(
                f"the query holds unknown words only ({_short(', '.join(words))}): none of them is in the captions "
                f"that the run was trained on; say it in other words"
            )
        return self.run.embed_sentences([sentence])

    def embed_image(self, image: Image) -> np.ndarray:
        """(1, dim) float32. Raises BadInput if the image cannot be read."""
        if not isinstance(image, Pictures.Image):
            return self.run.embed_images([Path(image)])
        buffer, picture = io.BytesIO(), ImageOps.exif_transpose(image)
        if picture.mode in ("RGBA", "LA", "L", "P", "1"):  # whatever is transparent is put on white when it is read
            picture.save(buffer, "PNG", compress_level=1)
        else:
            picture.convert("RGB").save(buffer, "BMP")  # quick, and without loss
        buffer.seek(0)
        return self.run.embed_images([buffer])

    def nearest_images(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Sentences (Q, dim) → rows (Q, k) int64 and scores (Q, k) float32 of the nearest images."""
        if self.index.graph is not None and not self.exact and self.similarity == "cosine":
            return self.index.graph.nearest(queries, k)
        return exact_nearest(queries, self.index.embeddings, k, TEXT_QUERY[self.similarity])

    def nearest_captions(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (Q, dim) → rows and scores of the nearest captions, always exact."""
        return exact_nearest(queries, self.index.caption_embeddings, k, IMAGE_QUERY[self.similarity])

    def captions_of(self, query: np.ndarray, k: int = 20, captions: Sequence[str] | None = None) -> ScoredIds:
        """The k captions nearest to an embedded image (1, dim): of the index, or of others."""
        _check_k(k)
        if captions is not None:
            places, scores = exact_nearest(query, self.run.embed_sentences(captions), k, IMAGE_QUERY[self.similarity])
        elif len(self.index.captions):
            places, scores = self.nearest_captions(query, k)
            captions = self.index.captions
        else:
            raise BadInput(f"{self.index.folder}: has no captions; build it with --captions FILE, one caption a line")
        return [(captions[row], score) for row, score in zip(places[0].tolist(), scores[0].tolist(), strict=True)]

    def similar_of(self, query: np.ndarray, k: int = 20) -> ScoredIds:
        """The k images most similar to an embedded image (1, dim)."""
        _check_k(k)
        return self._images(*self.similar_images(query, k))

    def similar_images(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Images (Q, dim) → rows and cosines of the most similar images of the index."""
        if self.index.graph is not None and not self.exact:
            return self.index.graph.nearest(queries, k)
        return exact_nearest(queries, self.index.embeddings, k, COSINE)

    def _ranks(self, query: np.ndarray, image_ids: list[str]) -> list[int]:
        rows = [self.row_of(image) for image in image_ids]
        return positions(query[0], self.index.embeddings, rows, TEXT_QUERY[self.similarity]) if rows else []

    def _score(self, query: np.ndarray, image_id: str) -> float:
        row = self.row_of(image_id)
        _, scores = exact_nearest(query, self.index.embeddings[row : row + 1], 1, TEXT_QUERY[self.similarity])
        return float(scores[0, 0])

    def _images(self, places: np.ndarray, scores: np.ndarray) -> ScoredIds:
        """Rows (1, k) and scores → ids and scores; what a graph did not find is left out."""
        pairs = zip(places[0].tolist(), scores[0].tolist(), strict=True)
        return [(self.index.ids[row], score) for row, score in pairs if row >= 0]


def check_query(sentence: str) -> str:
    """The sentence with white space folded. Raises BadInput if nothing is left of it, or it is too long."""
    sentence = clean_caption(sentence)
    if not sentence:
        raise BadInput("the query is empty; describe the image you look for in a sentence")
    if len(sentence) > MAX_QUERY_CHARS:
        raise BadInput(f"the query has {len(sentence):,} letters; say it in {MAX_QUERY_CHARS:,} at most")
    return sentence


def _open_run(index: Index, folder: Path | str | None) -> Run:
    if folder is not None:
        return Run.open(folder)
    if not Path(index.meta.run).is_dir():
        raise BadInput(f"{index.folder}: its run is not at {index.meta.run} any more; say where it is with --run")
    return Run.open(index.meta.run)


def _check_k(k: int) -> None:
    if k < 1:
        raise BadInput(f"-k {k}: at least one answer must be asked for; choose 1 or more")


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def plain(value: Any) -> str:
    """Text for a terminal or a picture: file names may hold line breaks, control characters and bytes of no encoding.

    >>> plain("a\\nb\\udcff")
    'a\\\\nb\\\\xff'
    """
    letters = []
    for letter in str(value):
        if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
            letters.append(f"\\x{ord(letter) - 0xDC00:02x}")
        elif letter.isprintable():
            letters.append(letter)
        else:
            letters.append(letter.encode("unicode_escape").decode("ascii"))
    return "".join(letters)

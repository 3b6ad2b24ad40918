"""Search an index: a sentence finds images, an image finds captions and similar images."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.datasets.dataset import clean_caption
from features.images.files import ImageFile
from metrics.pairs import pair_scores
from retrieval.combination import add_up
from retrieval.index import Index
from retrieval.nearest import COSINE, IMAGE_QUERY, TEXT_QUERY, check_k, exact_nearest, positions
from retrieval.words import MendedQuery, WordNeighbors, check_query
from training.bag import open_for_sentences
from training.bank import RunBank, read_bank
from training.calibration import nearness_to
from training.run import MAX_QUOTED_CHARS, Run
from utils import BadInput

if TYPE_CHECKING:
    from features.images.decode import ImageSource

MAX_TRUE_SHOWN = 20  # true images of a caption whose positions are shown
LIKELY = 0.5  # the probability from which on an image is taken for an answer
ScoredIds = list[tuple[str, float]]


@dataclass(frozen=True)
class Hit:
    """An image of an answer, and its rank. true: the indexed dataset has the sentence for it.

    probability: that it and the sentence belong together (training/calibration.py); None where that is not known.
    below: it is the best true image, none is among the k best, and `rank` is its position in the list of all images.
    """

    rank: int
    score: float
    image: str
    true: bool = False
    below: bool = False
    probability: float | None = None

    def __repr__(self) -> str:
        likely = "" if self.probability is None else f", probability={self.probability:.2f}"
        marks = "".join(f", {name}=True" for name in ("true", "below") if getattr(self, name))
        return f"Hit(rank={self.rank}, image={self.image!r}, score={self.score:.4f}{likely}{marks})"


@dataclass(frozen=True)
class Answer:
    """What `ask` finds. positions: of every true image in the exact list of all images, the best first.

    likeliest: the largest probability among the k nearest images, those that were left out too. query: as it was
    embedded, and what became of its unknown words.
    """

    hits: list[Hit]
    positions: dict[str, int]
    likeliest: float | None
    query: MendedQuery

    def __repr__(self) -> str:
        return "\n".join([f"Answer: {len(self.hits)} images", *(f"  {hit}" for hit in self.hits), *self.notes()])

    def notes(self, at_least: float | None = None) -> list[str]:
        """Return what is to be said beside the images: `doubts`, and what unknown words were taken as."""
        return [*self.doubts(at_least), *self.query.notes()]

    def doubts(self, at_least: float | None = None) -> list[str]:
        """Return a sentence that says so if no image matches, with a probability of LIKELY or `at_least`; or none.

        It says so, too, where nothing of the query is known that describes an image; there are no probabilities then.
        """
        if self.query.empty:
            return ["Nothing here can match: of the words of the query, the run knows none that describes an image."]
        if self.likeliest is None or self.likeliest >= max(LIKELY, at_least or 0):
            return []
        return [f"Nothing here matches: the likeliest image has a probability of {self.likeliest:.2f}."]


class Searcher:
    """An index and its run, both open: a query costs one sentence through the text branch and one search.

    exact: also where the index is made for approximate search. Scores are those of the run's similarity, less the
    bias of the image or caption that is found if the index is corrected, but for `similar`, which is cosine always.
    Whatever takes k raises BadInput for less than 1.

    >>> searcher = Searcher.open("photos.index")  # doctest: +SKIP
    >>> searcher.search("a dog runs on the beach", k=2)  # doctest: +SKIP
    [('beach.jpg', 0.61), ('dogs/7.jpg', 0.58)]
    """

    def __init__(self, index: Index, run: Run, exact: bool = False):
        self.index, self.run, self.exact = index, run, exact
        self.similarity, self.correction = index.meta.similarity, index.meta.correction

    def __repr__(self) -> str:
        return f"Searcher({self.index}, {self.run})"

    @classmethod
    def open(
        cls,
        folder: Path | str,
        run: Run | Path | str | None = None,
        exact: bool = False,
        index_url: str | None = None,
    ) -> "Searcher":
        """Open the index in a folder. run: where its run lies, if it has moved since, or the run itself.

        index_url: see `Index.open`.
        Raises BadInput if `folder` holds no index, or the run is not the one whose embeddings are in it.
        """
        index = Index.open(folder, exact, index_url)
        if run is None:
            run = index.meta.run
            if not Path(run).is_dir():
                raise BadInput(f"{index.folder}: its run is not at {run} any more; say where it is with `run`")
        if isinstance(run, str | Path):
            run = open_for_sentences(run)
        if run.digest() != index.meta.digest:
            raise BadInput(
                f"{index.folder}: is the index of another run than {run.folder}, or the run was trained again; "
                f"name its run with `run`, or build the index again with `fresh`"
            )
        return cls(index, run, exact)

    def search(self, sentence: str, k: int = 20) -> ScoredIds:
        """Return the k images nearest to a sentence, (id, score), best first; equal scores stand by id.

        Raises BadInput for a sentence that is empty, too long, or of unknown words only.

        >>> searcher.search("two children play", k=1)  # doctest: +SKIP
        [('garden.jpg', 0.57)]
        """
        check_k(k)
        return self._scored_ids(*self.nearest_images(self.embed_sentence(sentence), k))

    def ask(self, sentence: str, k: int = 20, at_least: float | None = None) -> Answer:
        """Do the same as `search`; where the sentence is a caption of the indexed dataset, rank its true images, too.

        The best of them comes behind the k images if none is among these. at_least: leave out what is less probable.

        >>> searcher.ask("A dog chews on a stick .", k=1).positions  # doctest: +SKIP
        {'1007129816.jpg': 3}
        """
        check_k(k)
        if at_least is not None and not 0 <= at_least <= 1:
            raise BadInput(f"`at_least` {at_least:g}: a probability is a number from 0 to 1")
        mended = self.mended(sentence)
        query = self._embed(mended)
        rows, scores = self.nearest_images(query, k)
        likely = self.probabilities(query, rows[0][rows[0] >= 0])
        if at_least is not None and likely is None:
            raise BadInput(f"`at_least`: {self.run.folder} keeps nothing that makes probabilities; leave it out")
        if mended.empty:
            likely = None
        true = self.true_images(sentence)
        each = zip(self._scored_ids(rows, scores), [None] * k if likely is None else likely.tolist(), strict=False)
        hits = [Hit(n, score, image, image in true, probability=p) for n, ((image, score), p) in enumerate(each, 1)]
        likeliest = max((hit.probability for hit in hits if hit.probability is not None), default=None)
        hits = [hit for hit in hits if (hit.probability or 0) >= (at_least or 0)]
        positions = dict(sorted(zip(true, self._ranks(query, true), strict=True), key=lambda pair: pair[1]))
        if true and not any(hit.true for hit in hits):
            image, rank = next(iter(positions.items()))
            hits.append(Hit(rank, self._score(query, image), image, true=True, below=True))
        return Answer(hits, positions, likeliest, mended)

    def probabilities(self, query: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """Return how likely a sentence (1, dim) and images of the index belong together, (k,); None without a bank.

        Those of scores as they are, whether or not the index is corrected.
        """
        if self.bank is None or self.bank.calibration is None:
            return None
        images = np.ascontiguousarray(self.index.embeddings[rows, : self.index.meta.dim])
        scores = pair_scores(self.similarity, images, query, np.arange(len(rows)), np.zeros(len(rows), np.int64))
        nearness = nearness_to(self.bank.captions, query)
        return self.bank.calibration.probabilities(scores, float(nearness[0]))

    @cached_property
    def bank(self) -> RunBank | None:
        """The bank of the run, read when the first sentence comes."""
        return read_bank(self.run.folder)

    def search_image(self, image: "ImageSource", k: int = 20) -> ScoredIds:
        """Return the k captions nearest to an image, (caption, score), best first.

        Raises BadInput if the index has none, or the image cannot be read.

        >>> searcher.search_image("beach.jpg", k=1)  # doctest: +SKIP
        [('a dog runs along the beach', 0.61)]
        """
        return self.captions_of(self.embed_image(image), k)

    def similar(self, image: "ImageSource", k: int = 20) -> ScoredIds:
        """Return the k images most similar to an image, (id, score), by cosine; `similar_to`: to one of the index.

        >>> searcher.similar("beach.jpg", k=1)  # doctest: +SKIP
        [('beach.jpg', 1.0)]
        """
        return self.similar_of(self.embed_image(image), k)

    def similar_to(self, image_id: str, k: int = 20) -> ScoredIds:
        """Return the k images most similar to one of the index, without itself. Raises BadInput for an unknown id.

        >>> searcher.similar_to("beach.jpg", k=1)  # doctest: +SKIP
        [('sea.jpg', 0.83)]
        """
        check_k(k)
        row = self.row_of(image_id)
        images = self.similar_of(self.index.embedding(row), k + 1)
        return [(other, score) for other, score in images if other != image_id][:k]

    def combined(
        self,
        sentence: str = "",
        *,
        like: "ImageSource | np.ndarray | None" = None,
        minus: Sequence[str] = (),
        k: int = 20,
    ) -> ScoredIds:
        """Return the k images nearest to a sentence and an image added up, less the sentences of `minus`, by cosine.

        like: an id or a file, which is left out if it is in the index, an image, or an embedding (1, dim). Raises
        BadInput if only something is to be taken away, or if the run's similarity is not cosine.

        >>> searcher.combined("in the snow", like="beach.jpg", minus=["people"], k=1)  # doctest: +SKIP
        [('dogs/9.jpg', 0.52)]
        """
        check_k(k)
        row = self.index.row_of(like) if isinstance(like, str) else None
        if row is None and isinstance(like, str | Path):
            row = self.index.row_of_file(like)
        plus = [self.embed_sentence(sentence)] if sentence.strip() else []
        if row is not None:
            plus.append(self.index.embedding(row))
        elif like is not None:
            plus.append(like if isinstance(like, np.ndarray) else self.embed_image(like))
        query = add_up(self.similarity, plus, [self.embed_sentence(text) for text in minus])
        nearest = self.nearest_images if like is None else self.similar_images  # a correction is one of sentences
        images = self._scored_ids(*nearest(query, k + 1))
        return [(image, score) for image, score in images if row is None or image != self.index.ids[row]][:k]

    def rank_of(self, sentence: str, image_id: str) -> int:
        """Return the rank of an image in the whole list of answers to a sentence; exact, equal scores by id."""
        return self._ranks(self.embed_sentence(sentence), [image_id])[0]

    def score_of(self, sentence: str, image_id: str) -> float:
        """Return the score of one image of the index for a sentence, as `search` gives it."""
        return self._score(self.embed_sentence(sentence), image_id)

    def true_images(self, sentence: str) -> list[str]:
        """Return the ids of the images that the indexed dataset has this very sentence for, as a caption."""
        return [self.index.ids[row] for row in self.index.true_rows(clean_caption(sentence))]

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words that the text branch does not know, each once, and no known one is near to."""
        return list(self.mended(sentence).left_out)

    def mended(self, sentence: str) -> MendedQuery:
        """Return a query as it is embedded: its unknown words replaced by the known ones they are taken as."""
        return self.words.mend(check_query(sentence))

    @cached_property
    def words(self) -> WordNeighbors:
        """The words that the run knows."""
        return WordNeighbors(self.run.processor)

    def path(self, image_id: str) -> ImageFile | None:
        """Return where an image of the index lies; None where it has no file."""
        return self.index.path(self.row_of(image_id))

    def thumbnail(self, image_id: str) -> bytes | None:
        """Return an image of the index as a JPEG of at most 256 pixels; None where it had no file."""
        return self.index.thumbnail(self.row_of(image_id))

    def row_of(self, image_id: str) -> int:
        """Return the row of an id. Raises BadInput for one that is not in the index."""
        row = self.index.row_of(image_id)
        if row is None:
            raise BadInput(f"{self.index.folder}: has no image {image_id}; name one as search.py find lists them")
        return row

    def embed_sentence(self, sentence: str) -> np.ndarray:
        """Embed a query, (1, dim) float32. Raises BadInput if it is empty, too long, or of unknown words only."""
        return self._embed(self.mended(sentence))

    def _embed(self, query: MendedQuery) -> np.ndarray:
        if self.run.knows(query.text):
            return self.run.embed_sentences([query.text])
        words = ", ".join(query.left_out)
        if not words:
            raise BadInput(f"the query {_short(query.text)!r} holds no word; describe the image you look for in words")
        raise BadInput(
            f"the query holds unknown words only ({_short(words)}): none of them is in the captions that the run was "
            f"trained on, nor near to one that is; say it in other words"
        )

    def embed_image(self, image: "ImageSource") -> np.ndarray:
        """Embed an image, (1, dim) float32. Raises BadInput if it cannot be read, or there are several."""
        rows = self.run.embed_images(image)
        if len(rows) != 1:
            raise BadInput(f"{len(rows)} images: a query is one; ask with each of them by itself")
        return rows

    def nearest_images(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows (Q, k) int64 and scores (Q, k) float32 of the images nearest to sentences (Q, dim)."""
        queries = self._asking("text_to_image", queries)
        if self.similarity == "cosine":
            return self._by_inner_product(queries, k)
        rows, scores = exact_nearest(queries, self.index.embeddings, k, TEXT_QUERY[self.similarity])
        return rows, self._score_of(scores)

    def similar_images(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return rows and cosines of the images of the index that are most similar to images (Q, dim)."""
        if self.correction:
            from retrieval.correction import not_asking

            queries = not_asking(queries)
        return self._by_inner_product(queries, k)

    def _by_inner_product(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.index.approximate is not None and not self.exact:
            return self.index.approximate.nearest(queries, k)
        return exact_nearest(queries, self.index.embeddings, k, COSINE)

    def _asking(self, direction: str, queries: np.ndarray) -> np.ndarray:
        if not self.correction:
            return queries
        from retrieval.correction import asking  # late: with torch, which a corrected index alone needs

        return asking(self.similarity, direction, queries)

    def _score_of(self, scores: np.ndarray) -> np.ndarray:
        """Return scores as they are shown: corrected ones of order come less 1 (`with_bias`)."""
        return scores + np.float32(1) if self.correction and self.similarity == "order" else scores

    def captions_of(self, query: np.ndarray, k: int = 20, captions: Sequence[str] | None = None) -> ScoredIds:
        """Return the k captions nearest to an embedded image (1, dim): of the index, or of others. Always exact."""
        check_k(k)
        embedded = self.index.caption_embeddings
        if captions is not None:
            embedded = self.run.embed_sentences(captions)
            if self.correction:
                from retrieval.correction import Corrector

                embedded = Corrector.of_run(self.run, self.correction).rows(embedded, "image_to_text")
        elif not len(captions := self.index.captions):
            raise BadInput(f"{self.index.folder}: has no captions; build it with `captions`, one a line of a file")
        query = self._asking("image_to_text", query)
        rows, scores = exact_nearest(query, embedded, k, IMAGE_QUERY[self.similarity])
        scores = self._score_of(scores)
        return [(captions[row], score) for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)]

    def similar_of(self, query: np.ndarray, k: int = 20) -> ScoredIds:
        """Return the k images most similar to an embedded image (1, dim)."""
        check_k(k)
        return self._scored_ids(*self.similar_images(query, k))

    def _ranks(self, query: np.ndarray, image_ids: list[str]) -> list[int]:
        rows = [self.row_of(image) for image in image_ids]
        query = self._asking("text_to_image", query)
        return positions(query[0], self.index.embeddings, rows, TEXT_QUERY[self.similarity]) if rows else []

    def _score(self, query: np.ndarray, image_id: str) -> float:
        row, query = self.row_of(image_id), self._asking("text_to_image", query)
        _, scores = exact_nearest(query, self.index.embeddings[row : row + 1], 1, TEXT_QUERY[self.similarity])
        return float(self._score_of(scores)[0, 0])

    def _scored_ids(self, rows: np.ndarray, scores: np.ndarray) -> ScoredIds:
        """Rows (1, k) and scores → ids and scores; what was not come upon is left out."""
        pairs = zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        return [(self.index.ids[row], score) for row, score in pairs if row >= 0]


def _short(text: str) -> str:
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[:MAX_QUOTED_CHARS]}…"


def plain(value: object) -> str:
    """Return text for a terminal or an image: file names may hold line breaks and bytes of no encoding.

    >>> plain("a\\nb\\udcff")
    'a\\\\nb\\\\xff'
    """

    def escaped(character: str) -> str:
        if character.isprintable():
            return character
        byte = ord(character) - 0xDC00  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else character.encode("unicode_escape").decode("ascii")

    return "".join(map(escaped, str(value)))

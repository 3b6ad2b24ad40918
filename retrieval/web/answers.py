"""The answers of the web page, as dictionaries ready for JSON: images of a sentence, and what an image finds.

An answer has `query`, `status` (one line: how many of how many, and how long it took), `notes` (sentences), `images`,
`captions` and `emoji`: rows with `rank` and `score` each. It names no file of this machine, only ids.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image as PILImage

from retrieval.emoji import FLAG, EmojiSpace, all_emoji, embed_emoji, rank_emoji
from retrieval.searcher import MAX_TRUE_SHOWN, Hit, ScoredIds, Searcher, plain
from utils import BadInput

MAX_K = 200  # images of one answer
MAX_CAPTIONS = 10  # captions and emoji of one answer
NAMES_PER_TURN = 64  # names of emoji read at a time while others may be waiting
EXAMPLES, MIN_EXAMPLE_CHARS, MAX_EXAMPLE_CHARS = 3, 12, 60
Row = dict[str, Any]


class Answers:
    """The answers of a searcher; each takes one thread and no other at the same time."""

    def __init__(self, searcher: Searcher):
        self.searcher, self.index = searcher, searcher.index
        self.emoji: EmojiSpace | None = None
        self.no_emoji = "The emoji are not read yet; ask again in a moment."
        self.emoji_done = threading.Event()

    def read_emoji(self, in_turn: Callable[..., Any]) -> None:
        """Embed the emoji; meant for a thread of its own. in_turn(f, …) calls f when it is its turn.

        Where there are none, `no_emoji` says why.
        """
        try:
            self.emoji = embed_emoji(_InTurn(self.searcher.run, in_turn))
        except BadInput as error:
            self.no_emoji = f"The emoji are left out ({error})."
        finally:
            self.emoji_done.set()

    def of_sentence(self, sentence: str, k: int) -> Row:
        """Find the k best images, and behind them the best true one if it is not there.

        Raises BadInput for a sentence that is empty, too long, or of unknown words only.
        """
        start = time.perf_counter()
        answer = self.searcher.ask(sentence, k)
        notes = [plain(note) for note in answer.notes()]
        if answer.positions:
            notes.append(self._true_note(list(answer.positions.values())))
        images = [self.image_row(hit, k) for hit in answer.hits]
        counts = [f"{sum(not hit.below for hit in answer.hits):,} of {_many(len(self.index), 'image')}"]
        head = {"query": sentence, "status": _status(counts, start), "notes": notes}
        return head | {"images": images, "captions": [], "emoji": []}

    def of_upload(self, image: PILImage.Image, k: int) -> Row:
        """Find captions, similar images and emoji of an image that was sent."""
        start = time.perf_counter()
        query = self.searcher.embed_image(image)
        return self._of_embedding("", query, self.searcher.similar_of(query, k), start, k)

    def of_image(self, image_id: str, k: int) -> Row:
        """Find the same of an image of the index, but not that image. Raises BadInput if it is unknown."""
        start = time.perf_counter()
        row = self.searcher.row_of(image_id)
        similar = self.searcher.similar_to(image_id, k)
        return self._of_embedding(image_id, self.index.embedding(row), similar, start, k)

    def _of_embedding(self, image_id: str, query: np.ndarray, similar: ScoredIds, start: float, k: int) -> Row:
        notes: list[str] = []
        images = [self.image_row(Hit(rank, score, other), k) for rank, (other, score) in enumerate(similar, 1)]
        counts = [f"{len(images):,} of {_many(len(self.index), 'image')}"]
        captions: list[Row] = []
        if len(self.index.captions):
            best = self.searcher.captions_of(query, min(k, MAX_CAPTIONS))
            captions = [
                {"rank": rank, "score": score, "caption": caption, "search": address(k, q=caption)}
                for rank, (caption, score) in enumerate(best, 1)
            ]
            counts.append(f"{len(captions):,} of {_many(len(self.index.captions), 'caption')}")
        else:
            notes.append("The index has no captions: it was built without any.")
        emoji: list[Row] = []
        if self.emoji is not None:
            (hits,) = rank_emoji(self.emoji, query, self.searcher.similarity, min(k, MAX_CAPTIONS))
            emoji = [{"rank": hit.rank, "score": hit.score, **hit.emoji.row()} for hit in hits]
            counts.append(f"{len(emoji)} emoji")
        else:
            notes.append(self.no_emoji)
        head = {"query": image_id, "status": _status(counts, start), "notes": notes}
        return head | {"images": images, "captions": captions, "emoji": emoji}

    def _true_note(self, positions: list[int]) -> str:
        """Return a sentence such as "A caption of the dataset; its image stands at position 37 of 8,000."."""
        numbers = ", ".join(f"{position:,}" for position in positions[:MAX_TRUE_SHOWN])
        more = f" and {len(positions) - MAX_TRUE_SHOWN:,} more" if len(positions) > MAX_TRUE_SHOWN else ""
        stand = "images stand at positions" if len(positions) > 1 else "image stands at position"
        return f"A caption of the dataset; its {stand} {numbers}{more} of {len(self.index):,}."

    def image_row(self, hit: Hit, k: int) -> Row:
        """Return an image of an answer, with its addresses."""
        row = self.searcher.row_of(hit.image)
        thumbnail = f"/thumbnail/{row}" if self.index.rows[row]["length"] else None
        return asdict(hit) | {"thumbnail": thumbnail, "view": f"/image/{row}", "similar": address(k, similar=hit.image)}

    def examples(self) -> list[str]:
        """Return a few captions to begin with, far from each other in the alphabet and not long."""
        captions, chosen = self.index.captions, []
        for part in range(EXAMPLES if len(captions) >= EXAMPLES else 0):
            start = (2 * part + 1) * len(captions) // (2 * EXAMPLES)
            near = captions[start : start + 50]
            chosen += [text for text in near if MIN_EXAMPLE_CHARS <= len(text) <= MAX_EXAMPLE_CHARS][:1]
        return chosen


class _InTurn:
    """A run as `embed_emoji` needs it, that does a little at a time and lets others go between."""

    def __init__(self, run: Any, in_turn: Callable[..., Any]):
        self.run, self.in_turn, self.folder = run, in_turn, run.folder
        self.known: dict[str, bool] = {}
        for names in _turns([name.removeprefix(FLAG) for emoji in all_emoji() for name in emoji.names]):
            self.known |= zip(names, in_turn(list, map(run.knows, names)), strict=True)

    def knows(self, name: str) -> bool:
        return self.known[name]

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        return np.concatenate([self.in_turn(self.run.embed_sentences, batch) for batch in _turns(sentences)])


def _turns(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + NAMES_PER_TURN] for start in range(0, len(texts), NAMES_PER_TURN)]


def address(k: int, **asked: str) -> str:
    """Return the page's address of a query. Any id goes through, half a surrogate pair (a name not in UTF-8) too.

    >>> address(20, similar="a b/c%.jpg")
    '/?similar=a+b%2Fc%25.jpg&k=20'
    """
    return f"/?{urlencode({**asked, 'k': k}, encoding='utf-8', errors='surrogatepass')}"


def _status(counts: list[str], start: float) -> str:
    return f"{', '.join(counts)} in {1000 * (time.perf_counter() - start):,.0f} ms"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

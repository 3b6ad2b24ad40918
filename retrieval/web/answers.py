"""What the web page is told, as dictionaries ready for JSON: images of a sentence, and what an image finds.

An answer has `query`, `status` (one line that says how many of how many, and how long it took), `notes` (sentences),
`images`, `captions` and `emoji`: rows with `rank` and `score` each. It names no file of this machine, only ids.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image as Pictures

from retrieval.emoji import FLAG, EmojiSpace, all_emoji, embed_emoji, rank_emoji
from retrieval.searcher import MAX_TRUE_SHOWN, Hit, ScoredIds, Searcher, plain
from utils import BadInput

MAX_K = 200  # images of one answer
MAX_CAPTIONS = 10  # captions and emoji of one answer
PIECE = 64  # names of emoji read at a time while others may be waiting
Row = dict[str, Any]


class Answers:
    """Everything that the page asks of a searcher; each answer takes one thread and no other at the same time."""

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
        """The k best images, and behind them the best true one if it is not there.

        Raises BadInput for a sentence that is empty, too long, or of unknown words only.
        """
        start = time.perf_counter()
        answer = self.searcher.ask(sentence, k)
        notes = []
        if unknown := self.searcher.unknown_words(sentence):
            notes.append(f"Not known: {', '.join(map(plain, unknown))}.")
        if answer.positions:
            notes.append(self._true_note(list(answer.positions.values())))
        asked_for = sum(not hit.below for hit in answer.hits)
        counts = [f"{asked_for:,} of {_many(len(self.index), 'image')}"]
        return self._answer(sentence, start, counts, notes, images=[self.image_row(hit, k) for hit in answer.hits])

    def of_picture(self, picture: Pictures.Image, k: int) -> Row:
        """Captions, similar images and emoji of an image that was sent."""
        start = time.perf_counter()
        query = self.searcher.embed_image(picture)
        return self._of_embedding("", query, self.searcher.similar_of(query, k), start, k)

    def of_image(self, image: str, k: int) -> Row:
        """The same of an image of the index; among the similar ones it is left out. Raises BadInput if unknown."""
        start = time.perf_counter()
        row = self.searcher.row_of(image)
        similar = self.searcher.similar_to(image, k)
        return self._of_embedding(image, self.index.embeddings[row : row + 1], similar, start, k)

    def _of_embedding(self, asked: str, query: np.ndarray, similar: ScoredIds, start: float, k: int) -> Row:
        notes: list[str] = []
        captions: list[Row] = []
        if len(self.index.captions):
            captions = [self.caption_row(rank, *hit, k) for rank, hit in enumerate(self._captions(query, k), 1)]
        else:
            notes.append("The index has no captions: it was built without any.")
        emoji: list[Row] = []
        if self.emoji is None:
            notes.append(self.no_emoji)
        else:
            (hits,) = rank_emoji(self.emoji, query, self.searcher.similarity, min(k, MAX_CAPTIONS))
            emoji = [
                {"rank": hit.rank, "score": hit.score, "emoji": hit.emoji.text, "name": hit.emoji.name} for hit in hits
            ]
        images = [self.image_row(Hit(rank, score, image), k) for rank, (image, score) in enumerate(similar, 1)]
        counts = [f"{len(images):,} of {_many(len(self.index), 'image')}"]
        if captions:
            counts.append(f"{len(captions):,} of {_many(len(self.index.captions), 'caption')}")
        if emoji:
            counts.append(f"{len(emoji)} emoji")
        return self._answer(asked, start, counts, notes, images=images, captions=captions, emoji=emoji)

    def _captions(self, query: np.ndarray, k: int) -> ScoredIds:
        return self.searcher.captions_of(query, min(k, MAX_CAPTIONS))

    def _true_note(self, places: list[int]) -> str:
        """
        "A caption of the dataset; its image stands at position 37 of 8,000."
        """
        numbers = ", ".join(f"{place:,}" for place in places[:MAX_TRUE_SHOWN])
        more = f" and {len(places) - MAX_TRUE_SHOWN:,} more" if len(places) > MAX_TRUE_SHOWN else ""
        stand = "images stand at positions" if len(places) > 1 else "image stands at position"
        return f"A caption of the dataset; its {stand} {numbers}{more} of {len(self.index):,}."

    @staticmethod
    def _answer(asked: str, start: float, counts: list[str], notes: list[str], **found: list[Row]) -> Row:
        took = 1000 * (time.perf_counter() - start)
        empty: dict[str, list[Row]] = {"images": [], "captions": [], "emoji": []}
        return {"query": asked, "status": f"{', '.join(counts)} in {took:,.0f} ms", "notes": notes, **empty, **found}

    def image_row(self, hit: Hit, k: int) -> Row:
        row = self.searcher.row_of(hit.image)
        return {
            "rank": hit.rank,
            "score": hit.score,
            "image": hit.image,
            "true": hit.true,
            "below": hit.below,
            "thumbnail": f"/thumbnail/{row}" if self.index.rows[row]["length"] else None,
            "view": f"/image/{row}",
            "similar": address(k, similar=hit.image),
        }

    @staticmethod
    def caption_row(rank: int, caption: str, score: float, k: int) -> Row:
        return {"rank": rank, "score": score, "caption": caption, "search": address(k, q=caption)}

    def examples(self, count: int = 3) -> list[str]:
        """A few captions to begin with, far from each other in the alphabet and not long."""
        captions, found = self.index.captions, []
        for part in range(count if len(captions) >= count else 0):
            start = (2 * part + 1) * len(captions) // (2 * count)
            short = (text for text in captions[start : start + 50] if 12 <= len(text) <= 60)
            found += [text for text in [next(short, "")] if text]
        return found


class _InTurn:
    """A run as `embed_emoji` needs it, that does a little at a time and lets others go between."""

    def __init__(self, run: Any, in_turn: Callable[..., Any]):
        self.run, self.in_turn, self.folder = run, in_turn, run.folder
        self.known: dict[str, bool] = {}
        for names in pieces([name.removeprefix(FLAG) for emoji in all_emoji() for name in emoji.names]):
            self.known |= zip(names, in_turn(list, map(run.knows, names)), strict=True)

    def knows(self, name: str) -> bool:
        return self.known[name]

    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray:
        return np.concatenate([self.in_turn(self.run.embed_sentences, some) for some in pieces(sentences)])


def pieces(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + PIECE] for start in range(0, len(texts), PIECE)]


def address(k: int, **asked: str) -> str:
    """The page's address of a query. Any id goes through, half a surrogate pair (a name that is not UTF-8) too.

    >>> address(20, similar="a b/c%.jpg")
    '/?similar=a+b%2Fc%25.jpg&k=20'
    """
    return f"/?{urlencode({**asked, 'k': k}, encoding='utf-8', errors='surrogatepass')}"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

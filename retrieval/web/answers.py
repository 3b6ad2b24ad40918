"""The answers of the web page, as dictionaries ready for JSON: images of a sentence, and what an image finds.

An answer has `query`, `status` (one line: how many of how many, and how long it took), `notes` and `asides` (sentences,
to be read before the images and behind them), `images`, `captions` and `emoji`: rows with `rank` and `score` each. It
names no file of this machine, only ids.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image as PILImage

from retrieval.emoji import FLAG, EmojiSpace, all_emoji, embed_emoji, rank_emoji
from retrieval.searcher import MAX_TRUE_SHOWN, Hit, ScoredIds, Searcher, plain
from retrieval.web.query import Query
from retrieval.web.tiles import Tiles
from retrieval.web.uploads import Upload, Uploads
from retrieval.world import world_note
from utils import BadInput

MAX_CAPTIONS = 10  # captions and emoji of one answer
NAMES_PER_TURN = 64  # names of emoji read at a time while others may be waiting
Row = dict[str, Any]


class Answers:
    """The answers of a searcher; each takes one thread and no other at the same time."""

    def __init__(self, searcher: Searcher):
        self.searcher, self.index = searcher, searcher.index
        self.tiles, self.uploads = Tiles(searcher), Uploads()
        world = world_note(searcher.index, searcher.run.info, searcher.bank)
        self.warnings = [world] if world else []
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

    def of(self, query: Query) -> Row:
        """Answer a question: a sentence, an image, or both with what is to be taken away.

        Raises BadInput for what cannot be asked, such as a sentence that is empty, too long, or of unknown words only.
        """
        start = time.perf_counter()
        if query.only_sentence:
            answer = self.of_sentence(query.sentence, query.k)
        elif query.only_image:
            answer = self.of_image(query)
        else:
            answer = self.of_sum(query)
        counts = f"{sum(not row['below'] for row in answer['images']):,} of {_many(len(self.index), 'image')}"
        status = f"{counts} in {1000 * (time.perf_counter() - start):,.0f} ms"
        head = {"query": query.sentence or query.like, "status": status, "notes": self.warnings}
        return {**head, "asides": [], "captions": [], "emoji": []} | answer

    def of_sentence(self, sentence: str, k: int) -> Row:
        """Find the k best images, and behind them the best true one if it is not there."""
        answer = self.searcher.ask(sentence, k)
        notes = [f"{doubt} Other words may, or fewer of them." for doubt in answer.doubts()]
        notes += map(plain, answer.query.notes())
        asides = [self._true_note(list(answer.positions.values()))] if answer.positions else []
        return {"notes": notes + self.warnings, "asides": asides, "images": self.image_rows(answer.hits)}

    def of_image(self, query: Query) -> Row:
        """Find similar images, captions and emoji of an image: one that was sent, or one of the index, not itself."""
        if like := self.id_of(query):
            embedding = self.index.embedding(self.searcher.row_of(like))
            similar = self.searcher.similar_to(like, query.k)
        else:
            embedding = self.uploads.get(query.upload).embedding
            similar = self.searcher.similar_of(embedding, query.k)
        asides, captions, emoji = [], [], []
        if len(self.index.captions):
            best = self.searcher.captions_of(embedding, min(query.k, MAX_CAPTIONS))
            captions = [
                {"rank": rank, "score": score, "caption": caption, "search": Query(caption).address()}
                for rank, (caption, score) in enumerate(best, 1)
            ]
        else:
            asides.append("The index has no captions: search.py index takes a file of some by --captions.")
        if self.emoji is not None:
            (hits,) = rank_emoji(self.emoji, embedding, self.searcher.similarity, min(query.k, MAX_CAPTIONS))
            emoji = [{"rank": hit.rank, "score": hit.score, **hit.emoji.row()} for hit in hits]
        else:
            asides.append(self.no_emoji)
        return {"asides": asides, "images": self.image_rows(_hits(similar)), "captions": captions, "emoji": emoji}

    def of_sum(self, query: Query) -> Row:
        """Find the images nearest to sentence and image added up, less what is taken away."""
        sentences = [text for text in (query.sentence, *query.minus) if text.strip()]
        like = self.id_of(query) or (self.uploads.get(query.upload).embedding if query.upload else None)
        pairs = self.searcher.combined(query.sentence, like=like, minus=query.minus, k=query.k)
        notes = [plain(note) for text in sentences for note in self.searcher.mended(text).notes()]
        return {"notes": notes + self.warnings, "images": self.image_rows(_hits(pairs))}

    def id_of(self, query: Query) -> str:
        """Return the id of the image that asks: also of one that was sent, if the index has the same file."""
        if query.upload:
            self.uploads.get(query.upload)  # an error if it is not kept any more
            rows = self.index.rows_of_content(bytes.fromhex(query.upload))
            return self.index.ids[rows[0]] if rows else ""
        return query.like

    def keep_upload(self, data: bytes, image: PILImage.Image, jpeg: bytes) -> str:
        """Embed an image that was sent, and keep it; return its digest."""
        return self.uploads.keep(data, Upload(self.searcher.embed_image(image), jpeg))

    def image_rows(self, hits: Sequence[Hit]) -> list[Row]:
        """Return images of an answer, with their addresses and what the page shows of them.

        copy_of: the rank of an image before it that it is a near-duplicate of, or None; a true image stands by itself.
        """
        rows = [self.searcher.row_of(hit.image) for hit in hits]
        rank_of: dict[int | None, int] = {row: hit.rank for row, hit in zip(rows, hits, strict=True)}
        originals = [rank_of.get(row) for row in self.tiles.originals(rows)]
        tiles = self.image_tiles(rows)
        return [
            {**tile, **asdict(hit), "copy_of": None if hit.true else original}
            for hit, tile, original in zip(hits, tiles, originals, strict=True)
        ]

    def image_tiles(self, rows: Sequence[int]) -> list[Row]:
        """Return of images of the index what the page shows of any: id, addresses, proportions, a caption."""
        tiles = []
        for row, caption in zip(rows, self.tiles.describe(rows), strict=True):
            width, height = self.tiles.size(row) or (None, None)
            thumbnail = f"/thumbnail/{row}" if width else None
            tile = {"image": self.index.ids[row], "thumbnail": thumbnail, "width": width, "height": height}
            similar = Query(like=self.index.ids[row]).address()
            unranked = {"rank": None, "probability": None, "true": False}
            tiles.append({**unranked, **tile, "caption": caption, "view": f"/image/{row}", "similar": similar})
        return tiles

    def _true_note(self, positions: list[int]) -> str:
        """Return a sentence such as "A caption of the dataset; its image stands at position 37 of 8,000."."""
        numbers = ", ".join(f"{position:,}" for position in positions[:MAX_TRUE_SHOWN])
        more = f" and {len(positions) - MAX_TRUE_SHOWN:,} more" if len(positions) > MAX_TRUE_SHOWN else ""
        stand = "images stand at positions" if len(positions) > 1 else "image stands at position"
        return f"A caption of the dataset; its {stand} {numbers}{more} of {len(self.index):,}."


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


def _hits(pairs: ScoredIds) -> list[Hit]:
    return [Hit(rank, score, image) for rank, (image, score) in enumerate(pairs, 1)]


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"

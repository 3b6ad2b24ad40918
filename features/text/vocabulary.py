"""Words and stems: how a caption is cut, and which words the training split holds.

The tokenizer and the stemmer are NLTK's and need no NLTK download. The vocabulary keeps every word of the training
split with its count and its stem; whether stems or words are used, and from which count on, is up to the text branch.
"""

import contextlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import regex

from features.format import check_format
from features.options import LANGUAGES
from features.progress import progress_bar
from reading import read_json, typed
from utils import BadInput, did_you_mean, write_json


@contextlib.contextmanager
def _without(*packages: str) -> Iterator[None]:
    """Let imports of packages that are not loaded yet fail."""
    blocked = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in blocked:
            del sys.modules[name]


def _import_nltk() -> tuple[Any, Any]:
    """Import NLTK's stemmer and tokenizer, which takes 0.3 s: sentences of plain known words need neither.

    `import nltk` imports its classifiers and metrics too, and they SciPy and scikit-learn where these are installed:
    1.4 s more, for rooms that nothing here enters. NLTK does without where the import fails.
    """
    with _without("scipy", "scipy.stats", "sklearn"):
        from nltk.stem.snowball import SnowballStemmer
        from nltk.tokenize import TweetTokenizer
    return SnowballStemmer, TweetTokenizer


@cache
def _tokenizer() -> Any:
    return _import_nltk()[1](preserve_case=True)


FORMAT = 1
TOKENIZER = (
    "nltk.TweetTokenizer; NFC, lower case; Han and kana cut into characters; tokens without letter or digit dropped"
)
UNKNOWN = 0  # the number of every word that the vocabulary does not hold

# Scripts written without blanks; a whole clause would otherwise be one word that never comes again.
_UNSPACED = regex.compile(r"([\p{Han}\p{Hiragana}\p{Katakana}])")
_WORD = regex.compile(r"[\p{L}\p{N}]")
# So long a run without a blank is no word: the tokenizer would take the square of its length, or more. And it gives up
# after 5 seconds, so that a caption as long as a book is cut in parts.
_NO_WORD, _PART = regex.compile(r"\S{256}"), regex.compile(r"(?s).{1,4096}(?=\s|$)")
# Letters, and full stops and commas by themselves: cutting these at blanks gives the tokenizer's words, sooner.
PLAIN = regex.compile(r"(?:[a-z]+(?= |$)|[.,](?= |$)| )*+")


def tokenize(sentence: str) -> list[str]:
    """Cut a sentence into words, lower case, punctuation left out.

    >>> tokenize("Two dogs' frisbee, here.")
    ['two', 'dogs', 'frisbee', 'here']
    """
    if PLAIN.fullmatch(plain := sentence.lower()):
        return [word for word in plain.split() if word not in ".,"]
    sentence = _UNSPACED.sub(r" \1 ", unicodedata.normalize("NFC", sentence).lower())
    parts = _PART.findall(_NO_WORD.sub(r"\g<0> ", sentence))
    return [token for part in parts for token in _tokenizer().tokenize(part) if _WORD.search(token)]


def make_stemmer(language: str) -> Any:
    """Return a function from word to stem; for "none", the word itself. Raises BadInput for a language Snowball lacks.

    >>> make_stemmer("english")("running")
    'run'
    """
    if language == "none":
        return lambda word: word
    if language not in LANGUAGES:
        raise BadInput(f"`language` {language}: no stemmer for it; {did_you_mean(language, LANGUAGES)}")
    return _import_nltk()[0](language).stem


@dataclass(frozen=True)
class Vocabulary:
    """Every word of the training split: `counts[word]` and `stems[word]`, most frequent first.

    bigrams: counts of two words (or stems) in a row, "two dog", where a text branch wants them.
    """

    language: str
    counts: dict[str, int]
    stems: dict[str, str]
    bigrams: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self.counts):,} words, {len(set(self.stems.values())):,} stems, {self.language})"

    @classmethod
    def build(cls, captions: Iterable[str], language: str = "english", progress: bool = False) -> "Vocabulary":
        """Count and stem the words of captions. Raises BadInput for a language that has no stemmer.

        >>> Vocabulary.build(["Two dogs run.", "A dog runs!"]).stems["dogs"]
        'dog'
        """
        stem = make_stemmer(language)
        counter = Counter(
            word
            for caption in progress_bar(captions, "vocabulary", unit=" captions", disable=not progress)
            for word in tokenize(caption)
        )
        words = sorted(counter, key=lambda word: (-counter[word], word))
        return cls(language, {word: counter[word] for word in words}, {word: stem(word) for word in words})

    def with_bigrams(self, captions: Iterable[str], stem: bool, min_count: int) -> "Vocabulary":
        """Add the bigrams of training captions, of words or of stems, that come `min_count` times; 0 adds none.

        >>> Vocabulary.build(captions := ["Two dogs run.", "Two dogs!"]).with_bigrams(captions, True, 2).bigrams
        {'two dog': 2}
        """
        if not min_count:
            return self
        forms = self.stems if stem else {word: word for word in self.stems}
        counter = Counter(
            f"{first} {second}"
            for caption in captions
            for first, second in pairwise(forms[word] for word in tokenize(caption))
        )
        kept = sorted((pair for pair, n in counter.items() if n >= min_count), key=lambda pair: (-counter[pair], pair))
        return replace(self, bigrams={pair: counter[pair] for pair in kept})

    def union(self, other: "Vocabulary") -> "Vocabulary":
        """Return the words of both, of one language, each with the larger of its counts.

        >>> Vocabulary.build(["a dog", "a dog"]).union(Vocabulary.build(["a cat"])).counts
        {'a': 2, 'dog': 2, 'cat': 1}
        """

        def larger(one: dict[str, int], two: dict[str, int]) -> dict[str, int]:
            counts = {word: max(one.get(word, 0), two.get(word, 0)) for word in one | two}
            return {word: counts[word] for word in sorted(counts, key=lambda word: (-counts[word], word))}

        counts, bigrams = larger(self.counts, other.counts), larger(self.bigrams, other.bigrams)
        return Vocabulary(self.language, counts, other.stems | self.stems, bigrams)

    def save(self, path: Path) -> None:
        """Write vocabulary.json."""
        stemmer = "none" if self.language == "none" else "nltk.SnowballStemmer"
        words = [{"word": word, "count": self.counts[word], "stem": self.stems[word]} for word in self.counts]
        head = {"format": FORMAT, "tokenizer": TOKENIZER, "stemmer": stemmer, "language": self.language}
        write_json(path, {**head, "words": words, **({"bigrams": self.bigrams} if self.bigrams else {})})

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocabulary.json. Raises BadInput if it is missing, damaged or of another version."""
        remedy = "prepare the dataset again with prep.py"
        table = read_json(path, remedy)
        try:
            check_format(path, table["format"], FORMAT, remedy)
            if table["tokenizer"] != TOKENIZER:
                raise BadInput(f"{path}: cut into words by other rules than this program's; {remedy}")
            words = table["words"]
            counts = {row["word"]: row["count"] for row in words}
            stems = {row["word"]: row["stem"] for row in words}
            facts = {"language": table["language"], "counts": counts, "stems": stems}
            return typed(cls, {**facts, "bigrams": table.get("bigrams", {})})
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{path}: not a vocabulary of this project; {remedy}") from None


class WordIndex:
    """From sentences to word numbers, as one text branch wants them: words or stems, from `min_count` on.

    Number 0 is every unknown word; the others follow by falling count, and the vocabulary's bigrams after them.
    """

    def __init__(self, vocabulary: Vocabulary, stem: bool, min_count: int):
        self._language, self._stemmed = vocabulary.language, stem
        self._stems = dict(vocabulary.stems) if stem else {}
        counter: Counter[str] = Counter()
        for word, count in vocabulary.counts.items():
            counter[self._stems[word] if stem else word] += count
        kept = sorted((w for w, n in counter.items() if n >= min_count), key=lambda w: (-counter[w], w))
        self.words = ["<unknown>", *kept, *vocabulary.bigrams]
        self.numbers = {word: number for number, word in enumerate(self.words) if number != UNKNOWN}
        self._bigrams = bool(vocabulary.bigrams)

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: str) -> list[int]:
        """Return one number a word, then one for each known bigram.

        A word the training split never held is stemmed too: its stem may be known.
        """
        forms = [self.form(word) for word in tokenize(sentence)]
        numbers = [self.numbers.get(form, UNKNOWN) for form in forms]
        if self._bigrams:
            pairs = (self.numbers.get(f"{first} {second}", UNKNOWN) for first, second in pairwise(forms))
            numbers += [number for number in pairs if number != UNKNOWN]
        return numbers

    def unknown_words(self, sentence: str) -> list[str]:
        """Return the words of a sentence that have no number."""
        return [word for word in tokenize(sentence) if self.form(word) not in self.numbers]

    @cached_property
    def _stem(self) -> Any:
        return make_stemmer(self._language)

    def form(self, word: str) -> str:
        """Return what stands for a word in `words`: itself, or its stem."""
        if not self._stemmed:
            return word
        if word not in self._stems:
            self._stems[word] = self._stem(word)
        return self._stems[word]


@dataclass(frozen=True)
class Sentences:
    """Encoded sentences, end to end: sentence i is `numbers[starts[i] : starts[i + 1]]` (int64).

    features: (M, D) float32, a frozen sentence encoder's; tokens: what an encoder that is trained too takes.
    """

    numbers: np.ndarray
    starts: np.ndarray
    features: np.ndarray | None = None
    tokens: "Sentences | None" = None

    @classmethod
    def encode(cls, sentences: Iterable[str], encoder: WordIndex, progress: bool = False) -> "Sentences":
        """Encode sentences. One without a single word becomes one unknown word, so that every sentence has a length."""
        bar = progress_bar(sentences, "encode", unit=" captions", disable=not progress, leave=False)
        return cls.of([encoder.encode(sentence) or [UNKNOWN] for sentence in bar])

    @classmethod
    def of(cls, lists: list[list[int]]) -> "Sentences":
        starts = np.zeros(len(lists) + 1, np.int64)
        np.cumsum([len(numbers) for numbers in lists], out=starts[1:])
        return cls(np.fromiter((n for numbers in lists for n in numbers), np.int64, count=int(starts[-1])), starts)

    def with_features(self, features: np.ndarray) -> "Sentences":
        return replace(self, features=features)

    def with_tokens(self, tokens: "Sentences") -> "Sentences":
        return replace(self, tokens=tokens)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.starts)

    def drop(self, draws: np.ndarray, share: float) -> "Sentences":
        """Drop the words whose draw (len(numbers),) is below `share`; a sentence keeps that of its largest at least.

        >>> Sentences.of([[5, 6, 7], [8, 9]]).drop(np.array([0.1, 0.9, 0.6, 0.1, 0.2]), 0.5).numbers.tolist()
        [6, 7, 9]
        """
        largest = np.maximum.reduceat(draws, self.starts[:-1]) if len(self) else draws
        keep = draws >= np.minimum(share, np.repeat(largest, self.lengths))
        starts = np.concatenate([[0], np.cumsum(keep)])[self.starts]
        return replace(self, numbers=self.numbers[keep], starts=starts)

    def take(self, rows: np.ndarray) -> "Sentences":
        """Return the sentences `rows` (any order, repeats allowed)."""
        lengths = self.lengths[rows]
        starts = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=starts[1:])
        # Position k of the result lies `k - starts[i]` words into its sentence i.
        positions = np.repeat(self.starts[:-1][rows] - starts[:-1], lengths) + np.arange(starts[-1])
        features = None if self.features is None else self.features[rows]
        tokens = None if self.tokens is None else self.tokens.take(rows)
        return Sentences(self.numbers[positions], starts, features, tokens)

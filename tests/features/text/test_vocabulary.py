"""Tokens, stems, counts, and sentences as numbers."""

import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from features.text import vocabulary
from features.text.vocabulary import UNKNOWN, Sentences, Vocabulary, WordIndex, make_stemmer, tokenize
from tests.helpers import ROOT
from utils import BadInput

CAPTIONS = ["A dog runs.", "Two dogs run, running fast!", "The cat isn't running"]


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Two dogs, here. And there", ["two", "dogs", "here", "and", "there"]),
        ("a T-shirt; don't!", ["a", "t-shirt", "don't"]),
        ("Ein Mädchen läuft über die Straße.", ["ein", "mädchen", "läuft", "über", "die", "straße"]),
        ("cafe\u0301", ["café"]),
        ("एक कुत्ता खेल रहा है।", ["एक", "कुत्ता", "खेल", "रहा", "है"]),
        ("一只狗", ["一", "只", "狗"]),
        ("كلب يجري", ["كلب", "يجري"]),
        (" . !? 🐶 ", []),
        ("", []),
    ],
)
def test_tokens(sentence, words):
    assert tokenize(sentence) == words


def test_plain_sentences_are_cut_as_the_tokenizer_cuts_them(monkeypatch):
    """Letters, blanks, full stops and commas in any order, with what looks like addresses and faces among them."""
    random = np.random.default_rng(0)
    pieces = ["a", "dog", "xd", "D", "http", "www", "com", " ", " ", " ", ".", ",", " . ", " , ", "K", "é", "\n"]
    sentences = ["".join(random.choice(pieces, size)) for size in random.integers(0, 12, 3000)]
    quick = [tokenize(sentence) for sentence in sentences]
    plain = sum(vocabulary.PLAIN.fullmatch(sentence.lower()) is not None for sentence in sentences)
    assert 300 < plain < 2700, "both ways are taken"
    monkeypatch.setattr(vocabulary, "PLAIN", re.compile("(?!)"))
    assert [tokenize(sentence) for sentence in sentences] == quick


def test_counts_and_stems(tmp_path):
    vocabulary = Vocabulary.build(CAPTIONS)
    assert vocabulary.counts["running"] == 2
    assert vocabulary.stems["running"] == vocabulary.stems["runs"] == "run"
    assert list(vocabulary.counts.values()) == sorted(vocabulary.counts.values(), reverse=True)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    head = json.loads((tmp_path / "vocabulary.json").read_text())
    assert head["tokenizer"].startswith("nltk.TweetTokenizer")
    assert (head["stemmer"], head["language"]) == ("nltk.SnowballStemmer", "english")


def test_encoder_joins_the_counts_of_one_stem_and_stems_words_never_seen():
    vocabulary = Vocabulary.build(CAPTIONS)
    stems = WordIndex(vocabulary, stem=True, min_count=1)
    assert stems.words[1] == "run"  # runs + run + running + running: the most frequent
    assert stems.encode("runner runnings") == [UNKNOWN, 1]
    assert stems.unknown_words("the runner") == ["runner"]
    often = WordIndex(vocabulary, stem=True, min_count=2)
    assert set(often.words) == {"<unknown>", "run", "dog"}
    words = WordIndex(vocabulary, stem=False, min_count=1)
    assert words.encode("runs") != words.encode("run")
    assert words.encode("zebra") == [UNKNOWN]


def test_bigrams_are_words_more(tmp_path):
    plain = Vocabulary.build(CAPTIONS)
    assert plain.with_bigrams(CAPTIONS, stem=True, min_count=0) == plain
    assert plain.with_bigrams(CAPTIONS, stem=False, min_count=2).bigrams == {}
    vocabulary = plain.with_bigrams(CAPTIONS, stem=True, min_count=2)
    assert vocabulary.bigrams == {"dog run": 2}
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary
    plain.save(tmp_path / "plain.json")
    assert "bigrams" not in json.loads((tmp_path / "plain.json").read_text())
    index, words = (WordIndex(v, stem=True, min_count=1) for v in (vocabulary, plain))
    assert index.words == [*words.words, "dog run"]
    run, dog, pair = (index.numbers[form] for form in ("run", "dog", "dog run"))
    assert index.encode("Dogs running, dogs run") == [dog, run, dog, run, pair, pair]
    assert index.encode("run dogs") == [run, dog], "a pair that is not known is none"
    assert index.encode("zebra dog zebra run") == [UNKNOWN, dog, UNKNOWN, run]
    assert index.unknown_words("a zebra's dog run") == ["zebra's"], "of words alone"


def test_words_are_dropped_but_for_one():
    lists = [[5, 6, 7], [8], [9, 9, 9, 9], [1, 2]]
    for seed in range(20):
        draws = np.random.default_rng(seed).random(10)
        plain, position = [], 0
        for words in lists:
            drawn = draws[position : position + len(words)]
            position += len(words)
            kept = [word for word, draw in zip(words, drawn, strict=True) if draw >= 0.6]
            plain.append(kept or [words[int(np.argmax(drawn))]])
        dropped = Sentences.of(lists).drop(draws, 0.6)
        assert np.array_equal(dropped.numbers, Sentences.of(plain).numbers)
        assert np.array_equal(dropped.starts, Sentences.of(plain).starts)
    assert len(Sentences.of([]).drop(np.array([]), 0.6)) == 0


def test_languages(tmp_path):
    assert make_stemmer("german")("Häuser") == make_stemmer("german")("Haus")
    assert make_stemmer("none")("running") == "running"
    with pytest.raises(BadInput, match="did you mean german"):
        make_stemmer("germn")


def test_a_vocabulary_cut_short_or_foreign_is_refused(tmp_path):
    path = tmp_path / "vocabulary.json"
    Vocabulary.build(CAPTIONS).save(path)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BadInput, match="cut short"):
        Vocabulary.load(path)
    path.write_text('{"a": 1}')
    with pytest.raises(BadInput, match="not a vocabulary"):
        Vocabulary.load(path)
    with pytest.raises(BadInput, match="no such file"):
        Vocabulary.load(tmp_path / "none.json")


def test_sentences_take_any_rows():
    lists = [[5, 6], [7], [1, 2, 3], [0]]
    sentences = Sentences.of(lists)
    rows = np.array([2, 0, 2, 3])
    taken = sentences.take(rows)
    assert [taken.numbers[a:b].tolist() for a, b in zip(taken.starts[:-1], taken.starts[1:], strict=True)] == [
        lists[row] for row in rows
    ]
    assert len(sentences.take(np.array([], np.int64))) == 0
    encoder = WordIndex(Vocabulary.build(CAPTIONS), stem=True, min_count=1)
    assert Sentences.encode(["", "run"], encoder).lengths.tolist() == [1, 1]


@pytest.mark.parametrize("first", ["", "import scipy.stats", "import sklearn"])
def test_words_come_without_statistics_and_learning(first):
    """NLTK would import both for rooms of its own that are not used here: a second of every command."""
    code = f"""
import sys
{first}
before = {{name for name in ("scipy.stats", "sklearn") if name in sys.modules}}
import features.text.vocabulary as vocabulary
assert {{name for name in ("scipy.stats", "sklearn") if name in sys.modules}} == before, "loaded, or left blocked"
assert "nltk" not in sys.modules, "plain known words need none of it"
assert vocabulary.make_stemmer("english")("running") == "run"
assert vocabulary.tokenize("It's") == ["it's"]
assert {{name for name in ("scipy.stats", "sklearn") if name in sys.modules}} == before, "loaded, or left blocked"
import scipy.stats, sklearn
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize(
    "text",
    ["1" * 10**6, "1-" * 50_000, "a" * 10**6, "1 " * 10_000, "(" * 10**5, "é" * 10**5, "A dog runs. " * 10_000],
    ids=["digits", "numbers", "letter", "ones", "parentheses", "accents", "book"],
)
def test_captions_of_any_length_are_cut_in_a_moment(text):
    """NLTK's tokenizer gives up on 100,000 digits, after half a minute."""
    began = time.process_time()
    words = tokenize(text)
    assert time.process_time() - began < 5
    assert sum(sign.isalnum() for word in words for sign in word) == sum(sign.isalnum() for sign in text)


@pytest.mark.parametrize(
    "change",
    [
        {"language": 3},
        {"words": [{"word": "a", "count": "1", "stem": "a"}]},
        {"words": [{"word": ["a"], "count": 1, "stem": "a"}]},
        {"words": [{"word": "a", "count": 1, "stem": None}]},
        {"words": "a"},
        {"bigrams": {"a b": "x"}},
        {"bigrams": 1},
    ],
    ids=str,
)
def test_a_vocabulary_of_other_types_is_refused(tmp_path, change):
    Vocabulary.build(["a dog"]).save(tmp_path / "vocabulary.json")
    table = json.loads((tmp_path / "vocabulary.json").read_text())
    (tmp_path / "vocabulary.json").write_text(json.dumps(table | change))
    with pytest.raises(BadInput, match="not a vocabulary of this project"):
        Vocabulary.load(tmp_path / "vocabulary.json")

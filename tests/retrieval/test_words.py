"""What unknown words are taken as: by their spelling against a plain loop, by their meaning with a made-up encoder."""

import doctest
import json
from types import SimpleNamespace

import numpy as np
import pytest

import search
from features.text.sentences import TextProcessor
from features.text.vocabulary import Vocabulary
from retrieval import words
from retrieval.searcher import Searcher
from retrieval.web.answers import Answers
from retrieval.words import WordNeighbors, one_letter_away
from tests.helpers import ROOT, call, train_drawn
from training.run import Run
from utils import BadInput

CAPTIONS = [
    f"a {word} runs" for word in ("labrador", "dog", "dogs", "puppy", "horse", "woman", "women") for _ in range(5)
]
CAPTIONS += ["a terrier"] * 4 + ["one dock"]
MEANINGS = {
    "labrador": [1.0, 0.1],
    "labradoodle": [1.0, 0.0],
    "puppy": [0.6, 0.8],
    "dog": [0.7, 0.7],
    "dock": [0.0, 1.0],
}
KNOWN, OTHER = set(" ".join(CAPTIONS).split()), {True: [-1.0, 0.0], False: [0.0, -1.0]}


def test_docstrings():
    assert doctest.testmod(words).failed == 0


def plain_distance(a, b):
    """Optimal string alignment, by its textbook recursion."""
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if not i or not j:
                table[i, j] = i + j
                continue
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (a[i - 1] != b[j - 1]))
            if i > 1 and j > 1 and (a[i - 1], a[i - 2]) == (b[j - 2], b[j - 1]):
                table[i, j] = min(table[i, j], table[i - 2, j - 2] + 1)
    return table[-1, -1]


def test_one_letter_away_is_a_distance_of_one():
    known = [*Vocabulary.load(ROOT / "models/stems/vocabulary.json").counts][::20]
    for word in ("wmoan", "hrose", "labradoodle", "xyzzy", "snwo", "chlid", "ünder"):
        assert one_letter_away(word) & set(known) == {other for other in known if plain_distance(word, other) == 1} - {
            word
        }


def processor(language="english", encoder="", **more):
    return TextProcessor(Vocabulary.build(CAPTIONS, language), stem=language != "none", encoder=encoder, **more)


@pytest.fixture
def encoder(monkeypatch):
    """Two dimensions of meaning, and the words that a transformer has whole; counts what it is asked to read."""
    read = []

    def features(texts, progress=False):
        read.extend(texts)
        return {"mean": np.array([MEANINGS.get(text, OTHER[text in KNOWN]) for text in texts], np.float32)}

    made = SimpleNamespace(features=features, tokenizer=SimpleNamespace(get_vocab=lambda: {"house": 1, "hose": 2}))
    monkeypatch.setattr(words, "sentence_encoder", lambda name: made)
    made.read = read
    return made


def test_a_query_of_unknown_words_holds_nobody_up(encoder, monkeypatch):
    """A few of them are looked up, however many there are, and none of thousands of letters."""
    neighbors = WordNeighbors(processor())
    neighbors.mend("labradoodle")
    encoder.read.clear()
    unknown = [f"{first}zq{last}" for first in "abcdefgh" for last in "klmnop"]
    query = neighbors.mend(" ".join([*unknown, "labradoodle"]))
    assert (encoder.read, query.taken) == (unknown[: words.MAX_MENDED], {})
    assert set(query.left_out) == {*unknown, "labradoodle"}
    monkeypatch.setattr(words, "one_letter_away", None)
    assert neighbors.neighbor("a" * 5000) is None
    assert len(encoder.read) == words.MAX_MENDED


def test_a_slip_of_the_pen_is_the_most_frequent_word_a_letter_away(encoder):
    neighbors = WordNeighbors(processor())
    assert neighbors.neighbor("wmoan") == "woman"
    assert neighbors.neighbor("hrose") == "horse"
    assert neighbors.neighbor("womn") == "woman", "as frequent as women, and before it in the alphabet"
    assert neighbors.neighbor("hose") is None, "the encoder's vocabulary has it: it is no slip of horse"
    assert neighbors.neighbor("dgo") == "dog", "two letters changed"
    assert neighbors.neighbor("dox") is None, "too short"
    assert neighbors.neighbor("puppies") is None, "its stem is known: nobody asks"
    mended = neighbors.mend("A WMOAN and two puppies; the wmoan's hrose")
    assert mended.taken == {"wmoan": "woman", "hrose": "horse"}
    assert mended.text == "A woman and two puppies; the woman's horse"


def test_a_word_of_like_meaning_is_taken_where_the_run_has_no_encoder(encoder):
    neighbors = WordNeighbors(processor())
    assert neighbors.mend("a labradoodle").text == "a labrador"
    assert "dock" not in encoder.read, "it stands once in the captions: too seldom"
    assert "dogs" not in encoder.read, "a stem is asked by its most frequent word"
    encoder.read.clear()
    assert neighbors.neighbor("xyzzyx") is None
    assert encoder.read == ["xyzzyx"], "known words are read once"
    assert WordNeighbors(processor(), min_cosine=1.01).neighbor("labradoodle") is None
    own = WordNeighbors(processor(encoder="package:own"))
    assert own.neighbor("labradoodle") is None, "it reads the word itself"
    assert own.mend("a labradoodle and a wmoan").text == "a labradoodle and a woman"
    assert own.mend("a labradoodle").left_out == ()
    assert own.mend("a labradoodle").notes() == ["Unknown words, read by the sentence encoder alone: labradoodle."]
    assert WordNeighbors(processor(encoder="clip:own")).mend("a labradoodle").notes() == []
    other = WordNeighbors(processor(language="none"))
    assert other.encoder is None, "English is not its language, as far as it knows"
    assert other.mend("hose labradoodle").text == "horse labradoodle"


def test_without_the_encoder_spelling_is_left(monkeypatch):
    def missing(name):
        raise BadInput(f"{name}: no such package")

    monkeypatch.setattr(words, "sentence_encoder", missing)
    neighbors = WordNeighbors(processor())
    assert neighbors.mend("one labradoodle runs a wmoan").notes() == [
        "Unknown words: wmoan, taken as woman.",
        "Unknown words, left out: labradoodle.",
    ]


def test_every_answer_says_what_a_word_was_taken_as(tmp_path, monkeypatch, capsys):
    folder = train_drawn(tmp_path, ["strong"])
    run = next((folder / "runs").iterdir())
    assert call(monkeypatch, search, "index", folder / "images", "--run", run, "--out", folder / "x.index") == 0
    searcher = Searcher.open(folder / "x.index", Run.open(run))
    searcher.words.__dict__["encoder"] = None  # as where it is not installed
    wrong, right = searcher.ask("a redd sqaure xyzzy", 3), searcher.ask("a red square xyzzy", 3)
    assert [hit.score for hit in wrong.hits] == [hit.score for hit in right.hits]
    assert searcher.search("a redd sqaure xyzzy", 3) == [(hit.image, hit.score) for hit in right.hits]
    notes = ["Unknown words: redd, taken as red; sqaure, taken as square.", "Unknown words, left out: xyzzy."]
    assert wrong.notes()[-2:] == notes
    assert wrong.query.text == "a red square xyzzy"
    assert "taken as square" in repr(wrong)
    assert searcher.unknown_words("a sqaure xyzzy") == ["xyzzy"]
    assert set(notes) <= set(Answers(searcher).of_sentence("a redd sqaure xyzzy", 3)["notes"])
    with pytest.raises(BadInput, match=r"unknown words only \(xyzzy\): .*, nor near to one that is; say it in other"):
        searcher.search("xyzzy")
    monkeypatch.setattr(WordNeighbors, "encoder", None)
    capsys.readouterr()
    assert call(monkeypatch, search, "find", folder / "x.index", "sqaure xyzzy", "--format", "jsonl") == 0
    said = capsys.readouterr()
    assert "Unknown words: sqaure, taken as square.\nUnknown words, left out: xyzzy.\n" in said.err
    assert all(json.loads(line) for line in said.out.splitlines()[1:])

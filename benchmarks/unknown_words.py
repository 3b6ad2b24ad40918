"""What is an unknown word best taken as: nothing, a word of like spelling, or one of like meaning?

    python benchmarks/unknown_words.py models/stems data/flickr8k

Val's images are searched with its captions: those with a word that the run does not know, those with a word of which it
is made not to know the stem (every tenth of the rarer ones), and any with one letter wrong in one word. The last three
columns are by how far a neighbor in meaning may lie (MIN_COSINE of retrieval/words.py), for runs without an encoder.
"""

import argparse
import string
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from features.prepared import Prepared, Split
from features.text.sentences import TextProcessor
from features.text.vocabulary import Vocabulary, tokenize
from metrics.ranks import recall_at
from metrics.similarity import TRAINING
from metrics.table import Table, as_markdown
from retrieval import words
from script import run_script
from training.calibration import spread
from training.embed import embed_sentences
from training.run import VOCABULARY, Run, encoding_settings

MAX_CAPTIONS = 600  # of a row of the table
COMMON = 100  # stems that are never hidden
COSINES = (0.5, 0.6, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("data", type=Path, help="a prepared folder with the features of the run")
    args = parser.parse_args()
    print(as_markdown(table(Run.open(args.run), Prepared(args.data))))


def table(run: Run, prepared: Prepared) -> Table:
    """Return text → image R@10 by kind of query and by what its unknown words are taken as."""
    val = prepared.split("val", run.info.features, run.settings.image.normalize)
    images = torch.from_numpy(run.embed_features(val.features))
    plain, hiding = run.processor, hide(run)
    known = {processor: words.WordNeighbors(processor) for processor in (plain, hiding)}
    wrong = [with_a_slip(text, row) for row, text in enumerate(val.captions)]
    queries = {
        "with an unknown word": (plain, val.captions, unknown_rows(plain, val.captions)),
        "with a hidden word": (hiding, val.captions, unknown_rows(hiding, val.captions)),
        "with a letter wrong": (plain, wrong, np.arange(len(wrong))),
    }
    body = []
    for kind, (processor, texts, rows) in queries.items():
        rows = spread(rows, MAX_CAPTIONS)
        asked = [texts[row] for row in rows]
        figures = [recall(run, processor, images, val, rows, each) for each in (asked, *taken(known[processor], asked))]
        body.append([kind, f"{len(rows):,}", *(f"{figure:.1f}" for figure in figures)])
    heads = ["captions", "number", "left out", "spelling", *(f"and meaning, {cosine:g}" for cosine in COSINES)]
    return Table("", heads[: len(body[0])], body)


def taken(neighbors: words.WordNeighbors, asked: Sequence[str]) -> Iterator[list[str]]:
    """Yield queries with neighbors in spelling in the place of unknown words, then with those in meaning, if any."""
    for cosine in (1.1, *(() if neighbors.processor.encoder else COSINES)):
        neighbors.min_cosine = cosine
        yield [neighbors.mend(text).text for text in asked]


def recall(
    run: Run, processor: TextProcessor, images: torch.Tensor, val: Split, rows: np.ndarray, texts: Sequence[str]
) -> float:
    """Return text → image R@10 of texts that stand for captions `rows` of val; not a number if there is none."""
    if not texts:
        return float("nan")
    scores = TRAINING[run.settings.similarity](images, embed_sentences(run.model, processor.encode(texts)))
    true = scores[torch.from_numpy(val.image_of_caption[rows]), torch.arange(len(rows))]
    return recall_at(10, (scores >= true).sum(dim=0).numpy())


def unknown_rows(processor: TextProcessor, captions: Sequence[str]) -> np.ndarray:
    return np.flatnonzero([bool(processor.words.unknown_words(text)) for text in captions])


def hide(run: Run) -> TextProcessor:
    """Return the run's processor without numbers for every tenth of its rarer words or stems."""
    vocabulary = Vocabulary.load(run.folder / VOCABULARY)
    processor = TextProcessor(vocabulary, **encoding_settings(run.settings.text), digest=run.info.encoder_digest)
    for form in processor.words.words[1 + COMMON :: 10]:
        del processor.words.numbers[form]
    return processor


def with_a_slip(text: str, seed: int) -> str:
    """Return a caption with a letter more, less or another, or two changed, in one of its words of four or more."""
    random, tokens = np.random.default_rng(seed), tokenize(text)
    if long := [number for number, word in enumerate(tokens) if len(word) >= words.MIN_LETTERS]:
        number = int(random.choice(long))
        made = sorted(words.one_letter_away(tokens[number]) - {tokens[number]})
        made = [word for word in made if word[0] == tokens[number][0] and set(word) <= set(string.ascii_lowercase)]
        tokens[number] = str(random.choice(made)) if made else tokens[number]
    return " ".join(tokens)


if __name__ == "__main__":
    run_script(main)

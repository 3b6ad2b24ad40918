"""What the page shows before anything is asked: a wall of the index's images, what answers, and examples."""

import contextlib
from typing import Any

import numpy as np

from retrieval.searcher import LIKELY
from retrieval.web.answers import Answers
from retrieval.web.query import Query
from retrieval.world import trained_on
from utils import BadInput

WALL = 60  # images
EXAMPLES, MIN_EXAMPLE_CHARS, MAX_EXAMPLE_CHARS = 4, 12, 60
NEUTRAL = (  # what people have photographs of; those that match something here are offered
    "a dog running in the grass",
    "children playing together",
    "people walking on the street",
    "water and sky",
    "a person in the mountains",
    "something red",
    "a car on the road",
    "snow on the trees",
)


class Home:
    """The page before a question. wall: image tiles; name: of the index; examples: sentences and their addresses."""

    def __init__(self, answers: Answers):
        searcher, index = answers.searcher, answers.index
        rows = np.linspace(0, len(index) - 1, min(WALL, len(index))).astype(np.int64).tolist()
        self.wall: list[dict[str, Any]] = answers.image_tiles(rows)
        self.name, self.images = index.folder.resolve().name.removesuffix(".index"), len(index)
        self.run, self.trained_on = searcher.run.folder.name, trained_on(searcher.run.info)
        self.warnings = answers.warnings
        self.examples = [(text, Query(text).address()) for text in example_sentences(answers, self.wall)]


def example_sentences(answers: Answers, wall: list[dict[str, Any]]) -> list[str]:
    """Return a few sentences that suit an index: captions of its dataset, captions near to it, or neutral ones."""
    captions: list[str] = [tile["caption"].removeprefix("perhaps ").rstrip(" .") for tile in wall if tile["caption"]]
    short = [text for text in dict.fromkeys(captions) if MIN_EXAMPLE_CHARS <= len(text) <= MAX_EXAMPLE_CHARS]
    if len(short) >= EXAMPLES:
        return short[:: len(short) // EXAMPLES][:EXAMPLES]
    likely = {}
    for text in NEUTRAL:
        with contextlib.suppress(BadInput):  # this run knows no such word
            if not answers.searcher.unknown_words(text):
                likely[text] = answers.searcher.ask(text, 1).likeliest or LIKELY
    return sorted(likely, key=lambda text: -likely[text])[:EXAMPLES]

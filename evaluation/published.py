"""Figures as papers and their authors' code report them: facts in published.json, each with its source."""

from pathlib import Path
from typing import Any

from evaluation.comparison import ResultRow
from metrics.ranks import RECALLS, rsum
from reading import read_json

PUBLISHED = Path(__file__).with_name("published.json")


def published_rows(dataset: str, protocol: str) -> list[ResultRow]:
    """Return the results published on `dataset` by `protocol` ("test 1000", "1K, 5 folds", "5K"); [] if none is known.

    `images` and `captions` of a row are None, `rsum` too where one of its recalls was not published.
    """
    facts = read_json(PUBLISHED, "take it from the project again")
    return [_row(fact) for fact in facts if (fact["dataset"], fact["protocol"]) == (dataset, protocol)]


def _row(fact: dict[str, Any]) -> ResultRow:
    return ResultRow(
        run=fact["model"],
        row=f"{fact['model']}, {fact['image_features']}",
        dataset=fact["dataset"],
        split="test",
        protocol=fact["protocol"],
        images=None,
        captions=None,
        image_to_text=fact["image_to_text"],
        text_to_image=fact["text_to_image"],
        rsum=rsum(fact) if all(column in fact[direction] for direction, column in RECALLS) else None,
        published=True,
        image_features=fact["image_features"],
        source=fact["source"],
    )

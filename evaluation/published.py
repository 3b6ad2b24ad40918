"""Figures as papers and their authors' code report them: facts in published.json, each with its source."""

from pathlib import Path
from typing import Any

from metrics.ranks import CUTOFFS, DIRECTIONS, rsum
from utils import read_json

PUBLISHED = Path(__file__).with_name("published.json")


def published_rows(dataset: str, protocol: str) -> list[dict[str, Any]]:
    """Rows of a table for the results published on `dataset` by `protocol` ("test 1000", "1K, 5 folds", "5K").

    A row has the keys of a table's rows; `images` and `captions` are None, rsum too where one of its recalls was not
    published. In addition: `published` (True), `image_features`, `source`. Empty where nothing is known.
    """
    found = read_json(PUBLISHED, "take it from the project again")
    return [_row(fact) for fact in found if (fact["dataset"], fact["protocol"]) == (dataset, protocol)]


def _row(fact: dict[str, Any]) -> dict[str, Any]:
    complete = all(f"R@{k}" in fact[direction] for direction in DIRECTIONS for k in CUTOFFS)
    return {
        "run": fact["model"],
        "row": f"{fact['model']}, {fact['image_features']}",
        "dataset": fact["dataset"],
        "split": "test",
        "protocol": fact["protocol"],
        "images": None,
        "captions": None,
        **{direction: fact[direction] for direction in DIRECTIONS},
        "rsum": rsum(fact) if complete else None,
        "published": True,
        "image_features": fact["image_features"],
        "source": fact["source"],
    }

"""The images of an answer as a table for spreadsheets, in which no cell is a formula."""

import csv
import io
from collections.abc import Callable, Iterable
from typing import Any

from metrics.table import no_formula
from retrieval.searcher import plain

HEADS = ("rank", "path", "score", "probability")


def results_csv(rows: Iterable[dict[str, Any]], path_of: Callable[[str], str]) -> str:
    """Return rows of an answer as CSV. path_of: what stands in the table for an id.

    >>> results_csv([{"rank": 1, "image": "=a.jpg", "score": 0.5, "probability": None}], str).splitlines()
    ['rank,path,score,probability', "1,'=a.jpg,0.500000,"]
    """
    buffer = io.StringIO()
    table = csv.writer(buffer)
    table.writerow(HEADS)
    for row in rows:
        likely = "" if row["probability"] is None else f"{row['probability']:.4f}"
        table.writerow([row["rank"], no_formula(plain(path_of(row["image"]))), f"{row['score']:.6f}", likely])
    return buffer.getvalue()

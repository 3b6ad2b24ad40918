"""One HTML file that holds a whole comparison: tables, figures, recipes, and the best and worst queries with images.

Everything is inside the file, styles and images too: it can be sent by mail and opened without a network, and its
content policy forbids every request. It follows the reader's light or dark setting and fits a telephone's width.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evaluation.plots import Drawn
from evaluation.queries import Query
from features.images.decode import jpeg_bytes, thumbnail
from features.images.files import ImageFile
from metrics.ranks import TITLES
from metrics.table import Table
from utils import atomic_write

THUMBNAIL_PIXELS = 160


@dataclass(frozen=True)
class Report:
    """What a report holds; a part that is empty is left out.

    notes: sentences below the tables; figures: title → its PNGs; queries: name of a row → what find_queries found;
    among: what those were ranked among; paths: where each of their images lies; recipes: name of a row → its TOML.
    """

    title: str
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    figures: Mapping[str, Drawn] = field(default_factory=dict)
    queries: Mapping[str, Sequence[Query]] = field(default_factory=dict)
    among: str = ""
    paths: Mapping[str, ImageFile | None] = field(default_factory=dict)
    recipes: Mapping[str, str] = field(default_factory=dict)


def write_report(path: Path | str, report: Report) -> None:
    """Write a report. Images that are missing or cannot be read become a gray box with the image's id."""
    from jinja2 import Environment, FileSystemLoader  # a table needs none of it

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "thumbnail": lambda path: thumbnail(path, THUMBNAIL_PIXELS),
        "jpeg": lambda image: _data_url("jpeg", jpeg_bytes(image, THUMBNAIL_PIXELS, optimize=True)),
        "png": lambda png: _data_url("png", png),
    }
    parts = {
        "Results": report.tables or report.notes,
        "Figures": report.figures,
        "Queries": any(report.queries.values()),
        "Recipes": report.recipes,
    }
    page = environment.get_template("report.html").render(report=report, parts=list(parts.items()), titles=TITLES)
    with atomic_write(path) as file:
        file.write(page.lstrip())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"

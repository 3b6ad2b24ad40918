"""Tables of results: the same rows as aligned text, Markdown, LaTeX, CSV or JSON.

A row is a dict with run, dataset, split, protocol, images, captions, rsum, and per direction the metrics of COLUMNS.
"""

import csv
import io
import json
from collections.abc import Callable
from typing import Any

from retrieval.metrics import COLUMNS, DIRECTIONS

Row = dict[str, Any]
HEADS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "median", "mean_rank": "mean"}
TITLES = {"image_to_text": "image → text", "text_to_image": "text → image"}


def _cells(row: Row) -> list[str]:
    """What stands in one line: the run, five figures a direction, rsum."""
    figures = [(column, row[direction].get(column)) for direction in DIRECTIONS for column in COLUMNS]
    return [row["run"], *(_figure(column, value) for column, value in figures), _figure("rsum", row.get("rsum"))]


def _figure(column: str, value: float | None) -> str:
    """One decimal, as the papers print them; ranks that are whole stay whole. A figure that is not known is a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if column == "median_rank" and value == int(value) else f"{value:.1f}"


def _groups(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """Rows under a caption each, those of one dataset and protocol together, in the order they came."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['dataset']}, {row['protocol']} ({row['images']:,} images, {row['captions']:,} captions)"
        groups.setdefault(title, []).append(row)
    return list(groups.items())


def text_table(rows: list[Row]) -> str:
    """Aligned columns for a terminal, the directions named above them."""
    tables = []
    for title, members in _groups(rows):
        lines = [["run", *(HEADS[c] for _ in DIRECTIONS for c in COLUMNS), "rsum"], *map(_cells, members)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        half = len(COLUMNS)
        spans = [sum(widths[1 + half * i : 1 + half * (i + 1)]) + 2 * (half - 1) for i in range(len(DIRECTIONS))]
        above = "  ".join(
            [" " * widths[0], *(f" {TITLES[d]} ".center(s, "─") for d, s in zip(DIRECTIONS, spans, strict=True))]
        )
        body = [
            "  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines
        ]
        rule = "─" * len(body[0])
        tables.append("\n".join([title, above.rstrip(), body[0], rule, *body[1:]]))
    return "\n\n".join(tables)


def markdown_table(rows: list[Row]) -> str:
    tables = []
    for title, members in _groups(rows):
        head = ["run", *(f"{TITLES[d].replace(' ', '')} {HEADS[c]}" for d in DIRECTIONS for c in COLUMNS), "rsum"]
        lines = [head, *([f"`{cells[0]}`", *cells[1:]] for cells in map(_cells, members))]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        body = [
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        tables.append("\n".join([f"{title}\n", *(f"| {' | '.join(line)} |" for line in [body[0], rule, *body[1:]])]))
    return "\n\n".join(tables)


def latex_table(rows: list[Row]) -> str:
    """A booktabs tabular per dataset and protocol; \\usepackage{booktabs} is all it needs."""
    tables = []
    for title, members in _groups(rows):
        half = len(COLUMNS)
        names = {"image_to_text": "Image to text", "text_to_image": "Text to image"}
        spans = " & ".join(rf"\multicolumn{{{half}}}{{c}}{{{names[d]}}}" for d in DIRECTIONS)
        rules = " ".join(rf"\cmidrule(lr){{{2 + half * i}-{1 + half * (i + 1)}}}" for i in range(len(DIRECTIONS)))
        head = " & ".join(["Run", *(_latex(HEADS[c]) for _ in DIRECTIONS for c in COLUMNS), "rsum"])
        body = [
            " & ".join([_latex(cells[0]), *(c.replace("–", "--") for c in cells[1:])]) + r" \\"
            for cells in map(_cells, members)
        ]
        lines = [
            f"% {title}",
            rf"\begin{{tabular}}{{l{'r' * (2 * half + 1)}}}",
            r"\toprule",
            rf" & {spans} & \\",
            rules,
            rf"{head} \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
        ]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "_&%#${}" else c) for c in text)


def csv_table(rows: list[Row]) -> str:
    """One line a row, all digits kept; the columns of a direction are called "image_to_text R@1" and so on."""
    facts = ["run", "dataset", "split", "protocol", "images", "captions"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*facts, *(f"{d} {c}" for d in DIRECTIONS for c in COLUMNS), "rsum"])
    for row in rows:
        figures = [row[d].get(c) for d in DIRECTIONS for c in COLUMNS]
        writer.writerow([*(row[fact] for fact in facts), *figures, row["rsum"]])
    return out.getvalue().rstrip("\n")


def json_table(rows: list[Row]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1)


FORMATS: dict[str, Callable[[list[Row]], str]] = {
    "text": text_table,
    "markdown": markdown_table,
    "latex": latex_table,
    "csv": csv_table,
    "json": json_table,
}

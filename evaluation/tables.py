"""Tables of results: the same rows as aligned text, Markdown, LaTeX, CSV or JSON.

A row is a dict with run, dataset, split, protocol, images, captions, rsum, and per direction the metrics of COLUMNS.
retrieval/comparison.py says what a row of several runs has in addition (row, runs, seeds, features, std, interval,
against), retrieval/published.py what a published one has. Whatever a row lacks is left blank, or is a dash.
"""

import csv
import io
import json
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from metrics.bootstrap import ALPHA, LEVEL
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS

Row = dict[str, Any]
HEADS = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "median", "mean_rank": "mean"}
TITLES = {"image_to_text": "image → text", "text_to_image": "text → image"}
FIGURES = [(direction, column) for direction in DIRECTIONS for column in COLUMNS]
RECALLS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in CUTOFFS]
WIDTH = 120  # of a terminal
NAME = 36  # a longer name goes on in the next line

SPREAD = "±: standard deviation over seeds."
INTERVAL = (
    f"{LEVEL} %: bootstrap interval of rsum over images with all their captions, seeds averaged: what other images "
    f"would change, not what other seeds would."
)
TEST = (
    f"p: sign-flip test over images, both directions together, seeds averaged, each row by itself; below {ALPHA:g} is "
    f"taken for more than noise{{star}}. It, too, says nothing of other seeds."
)
PUBLISHED = (
    "Published rows are as printed: ties are not counted against the model, one seed, no interval, and image features "
    "of their own, which stand behind the name."
)


def label_of(row: Row) -> str:
    return str(row.get("row", row["run"]))


def _figures(row: Row) -> list[str]:
    """Five figures a direction and rsum, as printed."""
    return [*(_figure(c, row[d].get(c)) for d, c in FIGURES), _figure("rsum", row.get("rsum"))]


def _figure(column: str, value: float | None) -> str:
    """One decimal, as the papers print them; ranks that are whole stay whole. A figure that is not known is a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if column == "median_rank" and value == int(value) else f"{value:.1f}"


def _spreads(row: Row) -> list[str]:
    """The standard deviations that belong to `_figures`; blanks for a single run."""
    std = row.get("std")
    return [f"±{v:.1f}" for v in (*(std[d][c] for d, c in FIGURES), std["rsum"])] if std else [""] * (len(FIGURES) + 1)


def _interval(row: Row) -> str:
    return "{:.1f}–{:.1f}".format(*row["interval"]["rsum"]) if "interval" in row else ""


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _difference(row: Row) -> list[str]:
    """Difference of rsum, its interval, and p; blanks in the row that the others are held against."""
    found = row.get("against")
    if not found:
        return ["", "", ""]
    return [_signed(found["difference"]), " to ".join(map(_signed, found["interval"])), _p(found["p"])]


def _base(rows: list[Row]) -> str | None:
    """The row that the others are held against, if any."""
    return next((row["against"]["row"] for row in rows if "against" in row), None)


def parts_of(rows: list[Row]) -> list[tuple[str, list[Row], list[Row]]]:
    """Own and published rows under a title each, those of one dataset and protocol together, in the order they came."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["dataset"], row["protocol"]), []).append(row)
    parts = []
    for members in groups.values():
        own = [row for row in members if not row.get("published")]
        parts.append((_title((own or members)[0], own), own, [row for row in members if row.get("published")]))
    return parts


def _title(row: Row, own: list[Row]) -> str:
    title = f"{row['dataset']}, {row['protocol']}"
    if row["images"] is not None:
        title += f" ({row['images']:,} images, {row['captions']:,} captions)"
    features = {"+".join(r.get("features", ())) for r in own}
    return title + "".join(f", {name}" for name in features if name and len(features) == 1)


def notes_of(own: list[Row], published: list[Row], star: str = "") -> list[str]:
    """What a reader must know to read the table right, and the sources of what is not measured here."""
    notes = [SPREAD] if any("std" in row for row in own) else []
    notes += [INTERVAL] if any("interval" in row for row in own) else []
    notes += [TEST.format(star=star)] if _base(own) else []
    if published:
        sources: dict[str, list[str]] = {}
        for row in published:
            sources.setdefault(row["source"], []).append(row["run"])
        where = (f"{', '.join(dict.fromkeys(names))}: {source}" for source, names in sources.items())
        notes += [PUBLISHED, f"Sources. {'; '.join(where)}."]
    return notes


def text_table(rows: list[Row]) -> str:
    """Aligned columns for a terminal, the directions named above them. Deviations stand under what they belong to."""
    return "\n\n".join(_text(*group) for group in parts_of(rows))


def _text(title: str, own: list[Row], published: list[Row]) -> str:
    several = any("std" in row for row in own)
    intervals = any("interval" in row for row in own)
    head = ["row" if any("row" in row for row in own) else "run", *(HEADS[c] for _, c in FIGURES), "rsum"]
    head += [f"{LEVEL} %"] if intervals else []
    above, below = ([line for row in part for line in _lines(row, several, intervals)] for part in (own, published))
    widths = [max(len(line[i]) for line in (head, *above, *below)) for i in range(len(head))]
    half = len(COLUMNS)
    spans = [sum(widths[1 + half * i : 1 + half * (i + 1)]) + half - 1 for i in range(len(DIRECTIONS))]
    ways = [f" {TITLES[d]} ".center(span, "─") for d, span in zip(DIRECTIONS, spans, strict=True)]
    body = [_aligned(line, widths) for line in (head, *above)]
    rule = "─" * len(body[0])
    lines = [title, "  ".join([" " * widths[0], *ways]), body[0], rule, *(line.rstrip() for line in body[1:])]
    if published:
        lines += [rule, *(_aligned(line, widths).rstrip() for line in below)]
    if all(len(row.get("runs", ())) == 1 and row["row"] != row["run"] for row in own):
        lines += ["", *(f"{row['row']}: {row['run']}" for row in own)]
    if _base(own):
        lines += ["", *_against_lines(own)]
    notes = [textwrap.wrap(n, WIDTH, break_on_hyphens=False) for n in notes_of(own, published)]
    return "\n".join([*lines, *([""] if notes else []), *(line for note in notes for line in note)])


def _aligned(cells: list[str], widths: list[int]) -> str:
    """Figures of a direction a blank apart, everything else two."""
    wide = {1 + len(COLUMNS) * i for i in range(len(DIRECTIONS) + 1)} | {len(FIGURES) + 2}
    line = cells[0].ljust(widths[0])
    for i, (cell, width) in enumerate(zip(cells[1:], widths[1:], strict=True), 1):
        line += (2 if i in wide else 1) * " " + cell.rjust(width)
    return line


def _lines(row: Row, seeds: bool, intervals: bool) -> list[list[str]]:
    """The lines of a row: its figures, under them the deviations, and its name beside both for as long as it is."""
    names = textwrap.wrap(label_of(row), NAME, subsequent_indent="  ", break_on_hyphens=False)
    if seeds and row.get("seeds"):
        names.append(f"  {_seeds(row['seeds'])}")
    cells = [[*_figures(row), *([_interval(row)] if intervals else [])]]
    if "std" in row:
        cells.append([*_spreads(row), *([""] if intervals else [])])
    blank = [""] * len(cells[0])
    lines = max(len(names), len(cells))
    names, cells = names + [""] * (lines - len(names)), cells + [blank] * (lines - len(cells))
    return [[name, *line] for name, line in zip(names, cells, strict=True)]


def _seeds(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {' '.join(map(str, seeds))}" if len(seeds) <= 8 else f"{len(seeds)} seeds"


def _against_lines(own: list[Row]) -> list[str]:
    """A line per row: how far its rsum lies from that of the row it is held against."""
    lines = [["rsum against " + str(_base(own)), "difference", f"{LEVEL} %", "p", ""]]
    lines += [[label_of(row), *_difference(row), row["against"]["verdict"]] for row in own if "against" in row]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    found = []
    for line in lines:
        figures = [cell.rjust(width) for cell, width in zip(line[1:4], widths[1:4], strict=True)]
        found.append("  ".join([line[0].ljust(widths[0]), *figures, line[4]]).rstrip())
    return [found[0], "─" * max(map(len, found)), *found[1:]]


def markdown_table(rows: list[Row]) -> str:
    tables = []
    for title, own, published in parts_of(rows):
        head, body = wide_cells(own, published, "{} ± {}", "*")
        head = ["run", *(f"{TITLES[d].replace(' ', '')} {HEADS[c]}" for d, c in FIGURES), *head[len(FIGURES) + 1 :]]
        lines = [head]
        for row, cells in zip([*own, *published], body, strict=True):
            if published and row is published[0]:
                lines.append(["*published*", *[""] * (len(head) - 1)])
            lines.append([label_of(row) if row.get("published") else f"`{label_of(row)}`", *cells])
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        aligned = [
            [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]
            for line in lines
        ]
        table = [f"{title}\n", *(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])]
        notes = notes_of(own, published, r" (\*)")
        tables.append("\n".join([*table, *([f"\n{' '.join(notes)}"] if notes else [])]))
    return "\n\n".join(tables)


def wide_cells(own: list[Row], published: list[Row], spread: str, star: str) -> tuple[list[str], list[list[str]]]:
    """Heads, and the cells of every row but its name, where width is free: deviations beside their figures, and the
    row's difference from the one it is held against, with a star where it is more than noise.
    """
    everything = [*own, *published]
    head = ["Run", *(HEADS[c] for _, c in FIGURES), "rsum"]
    body = [
        [spread.format(f, s[1:]) if s else f for f, s in zip(_figures(row), _spreads(row), strict=True)]
        for row in everything
    ]
    if any("interval" in row for row in own):
        head.append(f"{LEVEL} %")
        body = [[*cells, _interval(row)] for row, cells in zip(everything, body, strict=True)]
    if base := _base(own):
        head += [f"against {base}", "p"]
        for row, cells in zip(everything, body, strict=True):
            difference, ends, p = _difference(row)
            mark = star if "against" in row and row["against"]["verdict"] in ("higher", "lower") else ""
            cells += [f"{difference}{mark} ({ends})" if ends else "", p]
    return head, body


def latex_table(rows: list[Row]) -> str:
    """A booktabs tabular per dataset and protocol; \\usepackage{booktabs} is all it needs. The best of a column is
    bold, published rows left out: they rest on other features.
    """
    return "\n\n".join(_latex_table(*group) for group in parts_of(rows))


def _latex_table(title: str, own: list[Row], published: list[Row]) -> str:
    half = len(COLUMNS)
    head, body = wide_cells(own, published, r"{} {{\scriptsize±{}}}", "*")
    for row, column in best_cells(own):
        figure, *spread = body[row][column].split(" ", 1)
        body[row][column] = " ".join([rf"\textbf{{{figure}}}", *spread])
    names = {"image_to_text": "Image to text", "text_to_image": "Text to image"}
    spans = " & ".join(rf"\multicolumn{{{half}}}{{c}}{{{names[d]}}}" for d in DIRECTIONS)
    rules = " ".join(rf"\cmidrule(lr){{{2 + half * i}-{1 + half * (i + 1)}}}" for i in range(len(DIRECTIONS)))
    lines = [
        " & ".join([_latex(label_of(row)), *map(_latex_cell, cells)]) + r" \\"
        for row, cells in zip([*own, *published], body, strict=True)
    ]
    bold = ["Bold: the best of each column, published rows left out."] if len(own) > 1 else []
    return "\n".join(
        [
            f"% {title}",
            *(f"% {note}" for note in notes_of(own, published, " (*)") + bold),
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            rf" & {spans} {'& ' * (len(head) - 1 - 2 * half)}\\",
            rules,
            " & ".join(map(_latex, head)) + r" \\",
            r"\midrule",
            *lines[: len(own)],
            *([r"\midrule"] if published else []),
            *lines[len(own) :],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def best_cells(own: list[Row]) -> Iterable[tuple[int, int]]:
    """(row, column) of the best figures, all that are printed alike; none in a table of one row. Ranks: the lowest."""
    if len(own) < 2:
        return
    printed = [_figures(row) for row in own]
    for column, (_, name) in enumerate([*FIGURES, ("", "rsum")]):
        figures = [float(cells[column].replace("–", "nan")) for cells in printed]
        known = [figure for figure in figures if figure == figure]
        best = (min if name.endswith("rank") else max)(known, default=None)
        yield from ((row, column) for row, figure in enumerate(figures) if figure == best)


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "_&%#${}" else c) for c in text)


def _latex_cell(text: str) -> str:
    """A cell of figures: its signs as LaTeX writes them."""
    for sign, written in {"–": "--", "±": r"$\pm$", "−": "$-$", "<": "$<$"}.items():
        text = text.replace(sign, written)
    return text


def csv_table(rows: list[Row]) -> str:
    """One line a row, all digits kept; the columns of a direction are called "image_to_text R@1" and so on.

    After rsum: what a row of several runs has in addition; lists are separated by blanks.
    """
    info = ["run", "dataset", "split", "protocol", "images", "captions"]
    lists = ["features", "runs", "seeds"]
    more = ["row", *lists, *(f"{d} {c} std" for d, c in FIGURES), "rsum std"]
    more += [f"{column} {end}" for column in (*(f"{d} {c}" for d, c in RECALLS), "rsum") for end in ("low", "high")]
    more += ["against", "difference", "difference low", "difference high", "p", "verdict"]
    more += ["published", "image_features", "source"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*info, *(f"{d} {c}" for d, c in FIGURES), "rsum", *more])
    for row in rows:
        std, ends, against = row.get("std"), row.get("interval"), row.get("against")
        cells = [row[fact] for fact in info] + [row[d].get(c) for d, c in FIGURES] + [row["rsum"]]
        cells += [label_of(row), *(" ".join(map(str, row.get(key, ()))) for key in lists)]
        cells += [*(std[d][c] for d, c in FIGURES), std["rsum"]] if std else [None] * (len(FIGURES) + 1)
        pairs = [*(ends[d][c] for d, c in RECALLS), ends["rsum"]] if ends else [(None, None)] * (len(RECALLS) + 1)
        cells += [end for pair in pairs for end in pair]
        cells += (
            [against["row"], against["difference"], *against["interval"], against["p"], against["verdict"]]
            if against
            else [None] * 6
        )
        writer.writerow([*cells, row.get("published"), row.get("image_features"), row.get("source")])
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

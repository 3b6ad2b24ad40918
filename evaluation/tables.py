"""Tables of results: the same rows as aligned text, Markdown, LaTeX, CSV or JSON, the human judgements below them.

Whatever a row lacks is left blank, or is a dash.
"""

import json
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from evaluation.comparison import Estimate, Interval, ResultRow, Spread
from evaluation.judgements import note_of
from metrics.bootstrap import ALPHA, LEVEL
from metrics.ranks import COLUMNS, DIRECTIONS, RECALLS, TITLES
from metrics.table import Table, as_csv, as_latex, as_markdown, as_text, wrapped

HEADS = {"median_rank": "median", "mean_rank": "mean"}
LOWER = {"median_rank", "mean_rank"}  # is better
FIGURES = [(direction, column) for direction in DIRECTIONS for column in COLUMNS]
JUDGED = {"expert": "Expert", "crowdflower": "CrowdFlower"}
NAME_COLUMNS = 96 - 6 * len(FIGURES)  # what figures leave of a line; a longer name goes on in the next

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
BOLD = "Bold: the best of each column, published rows left out."
TRANSDUCTIVE = (
    "Transductive rows are corrected by all test queries together, which a search engine does not have; they are never "
    "the best of a column."
)
TIES = (
    "Ties count against the model: what scores as much as a true item stands before it. R@K: a true item stands among "
    "the first K."
)
METRIC_NOTES = {
    "recall@": "recall@K: the share of a query's true items among the first K.",
    "nDCG@": "nDCG@K: the gain of true items, discounted by log2(1 + position), over that of all of them in front.",
    "mAP@R": "mAP@R: the mean precision at the true items among the first R, R being how many there are.",
    "R-precision": "R-precision: the share of true items among the first R.",
}
KENDALL = "Kendall's τ × 100"


@dataclass(frozen=True)
class Part:
    """The rows of one dataset and protocol. ours: measured; base: the name of the row the others are held against."""

    ours: Sequence[ResultRow]
    published: Sequence[ResultRow]

    @property
    def rows(self) -> list[ResultRow]:
        return [*self.ours, *self.published]

    @property
    def base(self) -> str | None:
        return next((row.against.row for row in self.ours if row.against), None)

    @property
    def title(self) -> str:
        row = self.rows[0]
        title = f"{row.data}, {row.protocol}"
        if row.images is not None:
            title += f" ({row.images:,} images, {row.captions:,} captions)"
        features = {"+".join(row.features) for row in self.ours}
        return title + "".join(f", {name}" for name in features if name and len(features) == 1)

    def notes(self, star: str = "") -> list[str]:
        """Say what a reader must know to read the table right, and the sources of what is not measured here."""
        notes = [SPREAD] if any(row.std for row in self.ours) else []
        notes += [INTERVAL] if any(row.interval for row in self.ours) else []
        notes += [TEST.format(star=star)] if self.base else []
        notes += [TRANSDUCTIVE] if any(row.transductive for row in self.ours) else []
        asked = next((row.queries for row in self.ours if row.queries), None)
        if asked:
            notes.append(f"Queries: the {asked[0]:,} images and {asked[1]:,} captions that have a true pair.")
        if any(row.external or row.more for row in self.ours):
            notes.append(TIES)
        if self.published:
            sources: dict[str, dict[str, None]] = {}
            for row in self.published:
                sources.setdefault(str(row.source), {})[row.run] = None
            where = "; ".join(f"{', '.join(names)}: {source}" for source, names in sources.items())
            notes += [PUBLISHED, f"Sources. {where}."]
        return notes


def parts_of(rows: Iterable[ResultRow]) -> list[Part]:
    """Put rows of one dataset, folder and protocol together, in the order they came."""
    members: dict[tuple[str, ...], list[ResultRow]] = {}
    for row in rows:
        members.setdefault((row.dataset, row.data, row.protocol), []).append(row)
    return [
        Part([row for row in part if not row.published], [row for row in part if row.published])
        for part in members.values()
    ]


def _values(source: ResultRow | Spread | Interval, columns: Sequence[tuple[str, str]] = FIGURES) -> list[Any]:
    """List the figures of both directions, and rsum."""
    return [*(getattr(source, direction).get(column) for direction, column in columns), source.rsum]


def _figures(row: ResultRow) -> list[str]:
    """Print one decimal, as the papers do; ranks that are whole stay whole, and what is not known is a dash."""
    columns = [*(column for _, column in FIGURES), "rsum"]
    return [
        "–" if value is None else f"{value:.0f}" if c == "median_rank" and value == int(value) else f"{value:.1f}"
        for c, value in zip(columns, _values(row), strict=True)
    ]


def _spread_figures(row: ResultRow, spread: str) -> list[str]:
    """Print the figures with their deviations, if there are any, in the form `spread`."""
    if row.std is None:
        return _figures(row)
    return [spread.format(f, f"{s:.1f}") for f, s in zip(_figures(row), _values(row.std), strict=True)]


def _difference(row: ResultRow) -> list[str]:
    """Print difference of rsum, its interval, and p; blanks in the row that the others are held against."""
    if not row.against:
        return ["", "", ""]
    figures = (row.against.difference, *row.against.interval)
    difference, *ends = (f"{value:+.1f}".replace("-", "−") for value in figures)
    return [difference, " to ".join(ends), "<0.001" if row.against.p < 0.001 else f"{row.against.p:.3f}"]


def result_table(
    part: Part,
    first: str = "row",
    spread: str = "{} ± {}",
    name: Callable[[ResultRow], str] = lambda row: row.row,
    tests: bool = True,
) -> Table:
    """Return the table of a part. first: what the column of names is called; spread: a figure and its deviation; tests:
    whether the difference from the row that others are held against stands in it, starred where it is more than noise.
    """
    header = [first, *(HEADS.get(column, column) for _, column in FIGURES), "rsum"]
    body = [[name(row), *_spread_figures(row, spread)] for row in part.rows]
    if any(row.interval for row in part.ours):
        header.append(f"{LEVEL} %")
        for row, cells in zip(part.rows, body, strict=True):
            cells.append("{:.1f}–{:.1f}".format(*row.interval.rsum) if row.interval else "")
    if tests and part.base:
        header += [f"against {part.base}", "p"]
        for row, cells in zip(part.rows, body, strict=True):
            difference, ends, p = _difference(row)
            star = "*" if row.against and row.against.verdict in ("higher", "lower") else ""
            cells += [f"{difference}{star} ({ends})" if ends else "", p]
    groups = ["", *(TITLES[direction] for direction, _ in FIGURES)]
    groups += [""] * (len(header) - len(groups))
    rules = {0: "", len(part.ours): "published"} if part.published else {0: ""}
    best = frozenset((row, column + 1) for row, column in _best_cells(part.ours))
    notes = part.notes(" (*)" if tests else "")
    return Table(part.title, header, body, groups, rules=rules, best=best, notes=notes)


def _best_cells(rows: Sequence[ResultRow]) -> Iterable[tuple[int, int]]:
    """Yield (row, figure) of the best, all that are printed alike; none in a table of one row. Transductive rows are
    left out.
    """
    printed = {number: _figures(row) for number, row in enumerate(rows) if not row.transductive}
    if len(printed) < 2:
        return
    for column, (_, name) in enumerate([*FIGURES, ("", "rsum")]):
        figures = [float(cells[column].replace("–", "nan")) for cells in printed.values()]
        known = [figure for figure in figures if figure == figure]
        best = (min if name in LOWER else max)(known, default=None)
        yield from ((row, column) for row, figure in zip(printed, figures, strict=True) if figure == best)


def metric_tables(part: Part, name: Callable[[ResultRow], str] = lambda row: row.row) -> list[Table]:
    """Return the table of the metrics that were asked for besides R@K; [] where there are none."""
    rows = [(row, row.more) for row in part.ours if row.more]
    if not rows:
        return []
    columns = [(direction, column) for direction, metrics in rows[0][1].items() for column in metrics]

    def cell(one: Estimate) -> str:
        return f"{one.mean:.1f}" if one.std is None else f"{one.mean:.1f} ± {one.std:.1f}"

    body = [[name(row), *(cell(more[direction][column]) for direction, column in columns)] for row, more in rows]
    notes = [note for start, note in METRIC_NOTES.items() if any(column.startswith(start) for _, column in columns)]
    header = ["row", *(column for _, column in columns)]
    title = f"{rows[0][0].data}, {rows[0][0].protocol}, metrics in percent, averaged over queries"
    return [Table(title, header, body, ["", *(TITLES[direction] for direction, _ in columns)], notes=notes)]


def judgement_tables(rows: Sequence[ResultRow]) -> list[Table]:
    """Return the table of human judgements, a line per row whatever the protocols; [] where there are none."""
    judged = {row.row: row.judgements for row in rows if row.judgements}
    if not judged:
        return []
    several = any(len(one.taus) > 1 for measures in judged.values() for one in measures.values())
    spread = ", mean ± standard deviation over seeds" if several else ""
    body, notes = [], {}
    for name, measures in judged.items():
        ends = ["" if one.std is None else f" ± {one.std:.1f}" for one in measures.values()]
        taus = ["–" if one.tau is None else f"{one.tau:.1f}" for one in measures.values()]
        body.append([name, *(tau + end for tau, end in zip(taus, ends, strict=True))])
        notes[f"{KENDALL}{spread}: {note_of(measures)}."] = [
            f"{JUDGED[m]} τ-{one.variant}" for m, one in measures.items()
        ]
    return [Table("", ["human judgements", *next(iter(notes.values()))], body, notes=list(notes))]


def text_table(rows: Sequence[ResultRow]) -> str:
    """Print for a terminal: deviations under their figures, and the test as a table of its own."""
    parts = [
        text for part in parts_of(rows) for text in (_text(part), *map(as_text, metric_tables(part, _wrapped_name)))
    ]
    return "\n\n".join([*parts, *map(as_text, judgement_tables(rows))])


def _wrapped_name(row: ResultRow) -> str:
    return "\n".join(
        textwrap.wrap(row.row, NAME_COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    )


def _text(part: Part) -> str:
    several = any(row.std for row in part.ours)

    def name(row: ResultRow) -> str:
        return "\n".join([_wrapped_name(row), *([f"  {_seeds(row.seeds)}"] if several and row.seeds else [])])

    table = result_table(part, spread="{}\n±{}", name=name, tests=False)
    blocks = [as_text(replace(table, notes=()))]
    plain = [row for row in part.ours if row.correction is None]
    if all(len(row.runs) == 1 and row.row != row.run for row in plain):
        blocks.append("\n".join(f"{row.row}: {row.run}" for row in plain))
    if part.base:
        header = [f"rsum against {part.base}", "difference", f"{LEVEL} %", "p", ""]
        lines = [[row.row, *_difference(row), row.against.verdict] for row in part.ours if row.against]
        blocks.append(as_text(Table("", header, lines, left=frozenset({0, 4}))))
    return "\n\n".join([*blocks, *(["\n".join(wrapped(table.notes))] if table.notes else [])])


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {' '.join(map(str, seeds))}" if len(seeds) <= 8 else f"{len(seeds)} seeds"


def markdown_table(rows: Sequence[ResultRow]) -> str:
    def name(row: ResultRow) -> str:
        return row.row if row.published else f"`{row.row}`"

    tables = [
        table for part in parts_of(rows) for table in (result_table(part, "run", name=name), *metric_tables(part))
    ]
    return "\n\n".join(map(as_markdown, [*tables, *judgement_tables(rows)]))


def latex_table(rows: Sequence[ResultRow]) -> str:
    """Print a tabular per dataset and protocol. The best of a column is bold, published rows left out: they rest on
    other features.
    """
    tables = []
    for part in parts_of(rows):
        table = result_table(part, "Run", spread="{}\n±{}")
        tables.append(replace(table, notes=[*table.notes, *([BOLD] if len(part.ours) > 1 else [])]))
        tables += metric_tables(part)
    return "\n\n".join(map(as_latex, [*tables, *judgement_tables(rows)]))


def csv_table(rows: Sequence[ResultRow]) -> str:
    """Print one line a row, all digits kept; lists are separated by blanks."""
    info, lists = ["run", "dataset", "split", "protocol", "images", "captions"], ["features", "runs", "seeds"]
    figures, recalls = ([*(f"{d} {c}" for d, c in columns), "rsum"] for columns in (FIGURES, RECALLS))
    header = [*info, *figures, "row", *lists, *(f"{name} std" for name in figures)]
    header += [f"{name} {end}" for name in recalls for end in ("low", "high")]
    header += ["against", "difference", "difference low", "difference high", "p", "verdict"]
    header += ["published", "image_features", "source", "correction", "transductive", "trained_on", "folder"]
    judged = [(name, key) for name in JUDGED for key in ("tau", "std")] if any(row.judgements for row in rows) else []
    header += [f"{name} {key}" for name, key in judged]
    metrics = {(d, c): None for row in rows for d, columns in (row.more or {}).items() for c in columns}
    header += [f"{d} {c}{key}" for d, c in metrics for key in ("", " low", " high", " std")]
    body = []
    for row in rows:
        cells = [*(getattr(row, name) for name in info), *_values(row), row.row]
        cells += [" ".join(map(str, getattr(row, name))) for name in lists]
        cells += _values(row.std) if row.std else [None] * len(figures)
        ends = _values(row.interval, RECALLS) if row.interval else [(None, None)] * len(recalls)
        cells += [end for pair in ends for end in pair]
        test = row.against
        cells += [test.row, test.difference, *test.interval, test.p, test.verdict] if test else [None] * 6
        cells += [row.published or None, row.image_features, row.source, row.correction, row.transductive]
        cells += [row.trained_on, row.folder]
        cells += [getattr(row.judgements[name], key) if row.judgements else None for name, key in judged]
        for direction, column in metrics:
            one = (row.more or {}).get(direction, {}).get(column)
            cells += [one.mean, *one.interval, one.std] if one else [None] * 4
        body.append(["" if cell is None else str(cell) for cell in cells])
    return as_csv(Table("", header, body))


def as_dict(row: ResultRow) -> dict[str, Any]:
    """Return what a row has, as JSON has it; fields that it lacks are left out."""
    kept = [field.name for field in fields(row) if getattr(row, field.name) != field.default]
    values = {name: value for name, value in asdict(row).items() if name in kept}
    if row.judgements:
        values["judgements"] = {name: judgement.as_dict() for name, judgement in row.judgements.items()}
    return values


def json_table(rows: Sequence[ResultRow]) -> str:
    return json.dumps(list(map(as_dict, rows)), ensure_ascii=False, indent=1)


FORMATS: dict[str, Callable[[Sequence[ResultRow]], str]] = {
    "text": text_table,
    "markdown": markdown_table,
    "latex": latex_table,
    "csv": csv_table,
    "json": json_table,
}

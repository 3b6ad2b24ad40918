"""One table and a renderer for each format: aligned text, Markdown, LaTeX, CSV. Knows only strings."""

import csv
import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest

import regex

WIDTH = 120  # columns of a terminal, at which notes are wrapped
FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")
_WIDE = regex.compile(r"[\p{Emoji_Presentation}\p{EastAsianWidth=W}\p{EastAsianWidth=F}\uFE0F]")
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {sign: "\\" + sign for sign in "_&%#${}"}
_LATEX |= {"–": "--", "±": r"$\pm$", "−": "$-$", "<": "$<$", "τ": r"$\tau$", "→": "to"}


@dataclass(frozen=True)
class Table:
    """Cells of plain text. A further line of a cell qualifies the first, as ±0.4 a figure: text puts it below, LaTeX
    beside it in small type.

    groups: a name for each column; neighbors of one name stand under it, "" is no group. left: the columns that are
    aligned left. rules: rows that stand under a rule, and what Markdown, which has none, calls what follows ("": none).
    best: (row, column) of the cells to print bold. notes: sentences below the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    groups: Sequence[str] = ()
    left: frozenset[int] = frozenset({0})
    rules: Mapping[int, str] = field(default_factory=lambda: {0: ""})
    best: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()

    def spans(self) -> list[tuple[str, int, int]]:
        """Return name, first column and end of every group; a column without a group stands alone."""
        spans, start = [], 0
        for (name, _), members in groupby(enumerate(self.groups), lambda pair: (pair[1], pair[1] or pair[0])):
            stop = start + len(list(members))
            spans.append((name, start, stop))
            start = stop
        return spans


def as_text(table: Table) -> str:
    """Return aligned columns for a terminal: one blank between those of a group, two elsewhere.

    >>> print(as_text(Table("", ["run", "R@1", "R@5"], [["vse0", "9.0", "27.5"]], ["", "to text", "to text"])))
           to text
    run    R@1  R@5
    ───────────────
    vse0   9.0 27.5
    """
    lines = [
        (number, parts)
        for number, row in enumerate([table.header, *table.rows], -1)
        for parts in zip_longest(*(cell.split("\n") for cell in row), fillvalue="")
    ]
    cells = _padded([parts for _, parts in lines], table.left)
    widths, gaps = [_columns(cell) for cell in cells[0]], [0] + [2] * (len(table.header) - 1)
    for _, start, stop in table.spans():
        gaps[start + 1 : stop] = [1] * (stop - start - 1)
    for name, start, stop in table.spans():  # a name that is wider than its columns widens the first of them
        lack = _columns(name) + 2 - sum(widths[start:stop]) - sum(gaps[start + 1 : stop])
        if name and lack > 0:
            widths[start] += lack
            cells = [[*row[:start], " " * lack + row[start], *row[start + 1 :]] for row in cells]
    out = [table.title] if table.title else []
    if table.groups:
        sizes = [(name, sum(widths[a:b]) + sum(gaps[a + 1 : b])) for name, a, b in table.spans()]
        out.append("  ".join(f" {name} ".center(size, "─") if name else " " * size for name, size in sizes).rstrip())
    ruled = set(table.rules)
    for (number, _), row in zip(lines, cells, strict=True):
        if number in ruled:  # above the first line of the row alone
            out.append("─" * (sum(widths) + sum(gaps)))
            ruled.remove(number)
        out.append("".join(" " * gap + cell for gap, cell in zip(gaps, row, strict=True)).rstrip())
    return "\n".join([*out, *([""] if table.notes else []), *wrapped(table.notes)])


def wrapped(notes: Sequence[str]) -> list[str]:
    """Return the lines of notes, no wider than a terminal."""
    return [line for note in notes for line in textwrap.wrap(note, WIDTH, break_on_hyphens=False)]


def as_markdown(table: Table) -> str:
    """Return a pipe table; the name of a group stands in the heads of its columns.

    >>> print(as_markdown(Table("", ["run", "R@1"], [["vse0", "9.0"]])))
    | run  | R@1 |
    | ---- | --: |
    | vse0 | 9.0 |
    """
    groups = [f"{name.replace(' ', '')} " if name else "" for name in table.groups]
    lines: list[Sequence[str]] = [["".join(names) for names in zip_longest(groups, table.header, fillvalue="")]]
    for number, row in enumerate(table.rows):
        if table.rules.get(number):
            lines.append([f"*{table.rules[number]}*", *[""] * (len(row) - 1)])
        lines.append([cell.replace("\n", " ").replace("|", r"\|") for cell in row])
    cells = _padded(lines, table.left)
    ends = ["-" if column in table.left else ":" for column in range(len(table.header))]
    cells.insert(1, ["-" * (_columns(cell) - 1) + end for cell, end in zip(cells[0], ends, strict=True)])
    notes = " ".join(table.notes).replace("*", r"\*")
    out = [*([table.title, ""] if table.title else []), *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join([*out, *(["", notes] if notes else [])])


def as_latex(table: Table) -> str:
    r"""Return a tabular, its title and notes above it as comments; it needs \usepackage{booktabs} and nothing else.

    >>> print(as_latex(Table("", ["run", "R@1"], [["my_run", "9.0\n±0.4"]])).splitlines()[4])
    my\_run & 9.0 {\scriptsize$\pm$0.4} \\
    """
    out = [f"% {' '.join(line.split())}" for line in (table.title, *table.notes) if line]
    columns = "".join("l" if column in table.left else "r" for column in range(len(table.header)))
    out += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    if table.groups:
        spans = [(name and _latex(name[0].upper() + name[1:]), a, b) for name, a, b in table.spans()]
        heads = [rf"\multicolumn{{{b - a}}}{{c}}{{{name}}}" if name else "" for name, a, b in spans]
        out.append(f"{' & '.join(heads)} \\\\".replace("  ", " "))
        out.append(" ".join(rf"\cmidrule(lr){{{a + 1}-{b}}}" for name, a, b in spans if name))
    out.append(" & ".join(map(_latex, table.header)) + r" \\")
    for number, row in enumerate(table.rows):
        cells = []
        for column, cell in enumerate(row):
            first, *more = map(_latex, cell.split("\n"))
            first = rf"\textbf{{{first}}}" if (number, column) in table.best else first
            cells.append(" ".join([first, *(rf"{{\scriptsize{line}}}" for line in more)]))
        out += [r"\midrule"] * (number in table.rules) + [" & ".join(cells) + r" \\"]
    return "\n".join([*out, r"\bottomrule", r"\end{tabular}"])


def as_csv(table: Table) -> str:
    """Return header and rows as comma-separated values, in which no cell is a formula.

    >>> print(as_csv(Table("", ["run", "difference"], [["=1+1", "-0.5"]])))
    run,difference
    '=1+1,-0.5
    """
    out = io.StringIO()
    rows = [[cell if _is_number(cell) else no_formula(cell) for cell in row] for row in (table.header, *table.rows)]
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().rstrip("\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def no_formula(text: str) -> str:
    """Return a text that no spreadsheet computes: an apostrophe stands before what could begin a formula.

    >>> no_formula("=HYPERLINK(0)"), no_formula("a.jpg")
    ("'=HYPERLINK(0)", 'a.jpg')
    """
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


def _padded(rows: Sequence[Sequence[str]], left: Collection[int]) -> list[list[str]]:
    """Fill every cell up to the width of its column, on the right in the columns `left`, elsewhere on the left."""
    widths = [max(map(_columns, column)) for column in zip(*rows, strict=True)]
    blanks = [[" " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return [
        [
            cell + blank if column in left else blank + cell
            for column, (cell, blank) in enumerate(zip(*pair, strict=True))
        ]
        for pair in zip(rows, blanks, strict=True)
    ]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes; an emoji takes two, of however many code points it is."""
    return sum(2 if _WIDE.search(sign) else 1 for sign in regex.findall(r"\X", text))

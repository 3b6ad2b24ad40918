"""How far scores agree with people's judgements, as a table under the table, in every format."""

import csv
import io
import textwrap
from collections.abc import Sequence
from typing import Any

from evaluation.judgements import note_of
from evaluation.tables import WIDTH

NAMES = {"expert": "Expert", "crowdflower": "CrowdFlower"}
KENDALL = "Kendall's τ × 100"
SPREAD = ", mean ± standard deviation over seeds"


def judgement_cells(rows: Sequence[dict[str, Any]]) -> tuple[list[list[str]], list[str]]:
    """Head and lines of the human judgements, a line per row whatever the protocols, and what is to say of them."""
    judged = {row["row"]: row["judgements"] for row in rows if "judgements" in row}
    spread = SPREAD if any("std" in one for found in judged.values() for one in found.values()) else ""
    lines, notes = [], {}
    for name, found in judged.items():
        taus = [one["tau"] for one in found.values()]
        ends = [f" ± {one['std']:.1f}" if one.get("std") is not None else "" for one in found.values()]
        cells = ["–" if tau is None else f"{tau:.1f}{end}" for tau, end in zip(taus, ends, strict=True)]
        lines.append([name, *cells])
        heads = [f"{NAMES[measure]} τ-{one['variant']}" for measure, one in found.items()]
        notes[f"{KENDALL}{spread}: {note_of(found)}."] = heads
    return [["human judgements", *next(iter(notes.values()))], *lines] if lines else [], list(notes)


def with_judgements(table: str, rows: Sequence[dict[str, Any]], form: str) -> str:
    """The table with a second one under it: the human judgements, if there are any. JSON has them in its rows."""
    lines, notes = judgement_cells(rows)
    if not lines or form == "json":
        return table
    if form == "csv":
        return csv_with_judgements(table, rows)
    if form == "latex":
        return "\n\n".join([table, "\n".join([*(f"% {note}" for note in notes), latex_block(lines)])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    aligned = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    if form == "markdown":
        rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
        body = [f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]]]
        return "\n".join([table, "", *body, "", *notes])
    body = ["  ".join(line) for line in aligned]
    wrapped = [part for note in notes for part in textwrap.wrap(note, WIDTH, break_on_hyphens=False)]
    return "\n".join([table, "", body[0], "─" * len(body[0]), *body[1:], "", *wrapped])


def latex_block(lines: list[list[str]]) -> str:
    """A booktabs tabular of plain cells."""
    signs = {"_": r"\_", "%": r"\%", "&": r"\&", "±": r"$\pm$", "τ": r"$\tau$", "–": "--"}
    head, *body = [" & ".join("".join(signs.get(c, c) for c in cell) for cell in line) + r" \\" for line in lines]
    columns = rf"\begin{{tabular}}{{l{'r' * (len(lines[0]) - 1)}}}"
    return "\n".join([columns, r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"])


def csv_with_judgements(table: str, rows: Sequence[dict[str, Any]]) -> str:
    """Four columns more: tau and its deviation, Expert and CrowdFlower; a line of the table is a row of `rows`."""
    head, *lines = csv.reader(io.StringIO(table))
    more = [(name, key) for name in NAMES for key in ("tau", "std")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*head, *(f"{name} {key}" for name, key in more)])
    for line, row in zip(lines, rows, strict=True):
        writer.writerow([*line, *(row.get("judgements", {}).get(name, {}).get(key) for name, key in more)])
    return out.getvalue().rstrip("\n")

"""Which figures a comparison has, and what is in them: what is drawn is worked out in this file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evaluation.comparison import ProtocolResult, ResultRow
from evaluation.groups import Group
from evaluation.plots import Drawn, drawn, learning_curves, recall_curves, similarity_matrix, sweep_curve
from features.images.files import ImageFile
from metrics.ranks import COLUMNS, DIRECTIONS
from metrics.similarity import Scores
from metrics.table import Table, as_csv
from reading import read_jsonl
from settings import flat_table
from training.run import LOG, read_run_config
from utils import BadInput, atomic_write, make_folder

MAX_PAIRS = 32  # of the similarity matrix
LOGGED = ("epoch", "loss", "rate", "rsum", "collapsed", "seconds", "threads")  # of an epoch, besides recalls and ranks
SCORE_NAMES = {"cosine": "cosine", "order": "order score", "dot": "dot product", "score": "score"}
Figures = dict[str, tuple[str, Drawn]]  # file name → what the figure shows, and its PNGs


@dataclass(frozen=True)
class PairScores:
    """Scores (N, N) of the first N images of a run's split against the first caption of each."""

    run: str
    measure: str
    scores: np.ndarray
    captions: list[str]
    images: list[str]
    paths: list[ImageFile | None]


def first_pairs(
    similarity: Scores, images: Tensor, captions: Tensor, image_of_caption: np.ndarray, count: int = MAX_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N, N) of the first N = min(count, images) images against the first caption of each, and the
    captions' rows (N,). images: (all, D), captions: (M, D) embeddings; image_of_caption: (M,), -1 for none.
    """
    known, first = np.unique(image_of_caption, return_index=True)
    rows = first[known >= 0][:count]
    image_rows, caption_rows = (torch.from_numpy(side).to(images.device) for side in (image_of_caption[rows], rows))
    scores = similarity(images[image_rows], captions[caption_rows])
    return scores.float().cpu().numpy(), rows


def read_log(run: Path) -> list[dict[str, Any]]:
    """Read the log of a run. Raises BadInput if it is missing or empty."""
    path, remedy = run / LOG, "train the run again with `fresh`, or leave `plots`, `report` and `logs` out"
    if not path.is_file():
        raise BadInput(f"{run}: keeps no log of its training, as runs that are shared do not; leave `logs` out")
    log = read_jsonl(path, remedy)
    if not log or not all("epoch" in row and "rsum" in row for row in log):
        raise BadInput(f"{path}: not the log of a training; {remedy}")
    return log


def read_logs(groups: Sequence[Group]) -> dict[str, list[list[dict[str, Any]]]]:
    """Read the log of each run of each group; a shared run has none. Raises BadInput for one that is empty."""
    trained = [group for group in groups if group.info and group.plain]
    return {group.name: [read_log(run) for run in group.runs if (run / LOG).is_file()] for group in trained}


def write_logs(path: Path, runs: Sequence[Path]) -> None:
    """Write the epochs of several runs as CSV, a line each, all digits kept."""
    header = [
        "run",
        "recipe",
        "dataset",
        "features",
        "seed",
        *LOGGED,
        *(f"{d} {c}" for d in DIRECTIONS for c in COLUMNS),
    ]
    rows = []
    for run in runs:
        _, info = read_run_config(run)
        about = [run.name, info.recipe, info.dataset, "+".join(info.features), info.seed]
        for row in read_log(run):
            cells = [row.get(name) for name in LOGGED]
            cells += [row["val"].get(direction, {}).get(column) for direction in DIRECTIONS for column in COLUMNS]
            rows.append(["" if cell is None else str(cell) for cell in (*about, *cells)])
    make_folder(path.parent, "logs")
    with atomic_write(path) as file:
        file.write(as_csv(Table("", header, rows)) + "\n")


def draw(
    groups: Sequence[Group], results: Sequence[ProtocolResult], rows: Sequence[ResultRow], pairs: PairScores
) -> Figures:
    """Draw the figures of a comparison. rows: of all protocols; pairs: of a run of the first row.

    The first protocol's figures go by their plain names, those of another have it in their name.
    """
    plain = [group for group in groups if group.plain]
    logs = read_logs(plain)
    figures = {"learning_curves.png": ("Learning curves", drawn(learning_curves, logs))} if any(logs.values()) else {}
    sweeps = find_sweeps({g.name: _trained_with(g) for g in groups if g.settings and not g.ensemble})
    for number, result in enumerate(results):
        more = f"-{file_name(result.protocol)}" if number else ""
        recalls = drawn(recall_curves, {g.name: list(chain(*result.of(g))) for g in groups})
        figures[f"recall{more}.png"] = (f"Recall@K, {result.protocol}", recalls)
        measured = [row for row in rows if row.protocol == result.protocol and not row.published]
        ends = {row.row: (row.rsum, *row.interval.rsum) for row in measured if row.interval}
        for setting, lines in sweeps.items():
            points = {line: [(value, *ends[name]) for value, name in members] for line, members in lines.items()}
            name = f"sweep-{file_name(setting)}{more}.png"
            figures[name] = (f"rsum by {setting}, {result.protocol}", drawn(sweep_curve, setting, points))
    matrix = drawn(similarity_matrix, pairs.scores, pairs.captions, pairs.images, pairs.paths, pairs.measure)
    figures["similarity.png"] = (f"Similarity of the first pairs, {pairs.run}", matrix)
    return figures


def _trained_with(group: Group) -> dict[str, Any]:
    more = {} if group.correction is None else {"correction": group.correction.label}
    assert group.settings
    assert group.info
    more |= {"from": group.info.from_run} if group.info.from_run else {}
    return {**flat_table(group.settings), "recipe": group.info.recipe, "features": group.features, **more}


def write_figures(folder: Path, figures: Figures) -> None:
    """Write each figure into its file, on white."""
    for name, (_, figure) in figures.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(figure.light)


def find_sweeps(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[float, str]]]]:
    """Find the numeric settings in which alone some rows differ: setting → line → (value, name of the row) ….

    rows: name of a table's row → everything it was trained with, flat: `loss.margin`, `embed_dim`, … and
    `recipe` and `features`, which name the lines. A line has two values or more, in rising order.
    """
    sweeps: dict[str, dict[str, list[tuple[float, str]]]] = {}
    keys = {key: None for info in rows.values() for key in info}
    for key in keys:
        groups: dict[str, list[tuple[float, str]]] = {}
        settings_of: dict[str, Mapping[str, Any]] = {}
        for name, info in rows.items():
            value = info.get(key)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                rest = repr(sorted((k, repr(v)) for k, v in info.items() if k != key))
                groups.setdefault(rest, []).append((float(value), name))
                settings_of[rest] = info
        lines = {rest: sorted(points) for rest, points in groups.items() if len({value for value, _ in points}) > 1}
        if lines:
            names = _line_names([{k: v for k, v in settings_of[rest].items() if k != key} for rest in lines])
            sweeps[key] = dict(zip(names, lines.values(), strict=True))
    return sweeps


def _line_names(lines: list[dict[str, Any]]) -> list[str]:
    """Name each line of a sweep: its recipe and features, and what else tells it from another of that name."""

    def words(value: Any) -> str:
        return " + ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)

    heads = [
        ", ".join(words(line[key]) for key in ("recipe", "features", "correction") if line.get(key)) for line in lines
    ]
    names = []
    for head, line in zip(heads, lines, strict=True):
        same = [other for other, name in zip(lines, heads, strict=True) if name == head]
        more = [f"{key} {words(line.get(key))}" for key in line if any(other.get(key) != line[key] for other in same)]
        names.append(", ".join(filter(None, [head, *more])) or "all rows")
    return names


def file_name(text: str) -> str:
    """Return a text as (a part of) the name of a file.

    >>> file_name("1K, 5 folds")
    '1K-5-folds'
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")

"""What eval.py leaves beside its table: the pictures of a comparison, each a PNG, and the report that holds it all."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
import torch
from torch import Tensor

from evaluation.comparison import Group
from evaluation.plots import (
    find_sweeps,
    first_pairs,
    learning_curves,
    png_of,
    recall_curves,
    similarity_matrix,
    sweep_curve,
)
from evaluation.report import Query, Table, find_queries
from evaluation.tables import TITLES, Row, best_cells, label_of, notes_of, parts_of, wide_cells
from features.prepared import Prepared, Split
from metrics.ranks import COLUMNS, DIRECTIONS, Ranks
from metrics.similarity import RANKING
from settings import flat_table, to_table
from training.run import LOG, Run
from utils import BadInput, atomic_write, make_folder, read_jsonl

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIRS = 32  # of the similarity matrix
MEASURES = {"cosine": "cosine", "order": "order score"}


@dataclass(frozen=True)
class EmbeddedSplit:
    """A run's embeddings of a split, and where the photographs of its images lie. images: (N, D); captions: (M, D)."""

    run: Run
    split: Split
    images: Tensor
    captions: Tensor
    paths: list[Path | None]

    @classmethod
    def of(cls, run: Run, split: Split, prepared: Prepared) -> "EmbeddedSplit":
        paths = {row["image"]: prepared.path_of(row) for row in prepared.rows}
        images = torch.from_numpy(run.embed_features(split.features))
        captions = torch.from_numpy(run.embed_captions(prepared, split.name))
        light = replace(split, features=split.features[:0])  # a split held for each row would be a lot of features
        return cls(run, light, images, captions, [paths[image] for image in split.images])

    def similarity_matrix(self) -> "Figure":
        """The first test pairs against each other."""
        similarity = self.run.settings.similarity
        scores, rows = first_pairs(
            RANKING[similarity], self.images, self.captions, self.split.image_of_caption, min(PAIRS, len(self.images))
        )
        captions = [self.split.captions[row] for row in rows.tolist()]
        owners = self.split.image_of_caption[rows].tolist()
        images, paths = [self.split.images[i] for i in owners], [self.paths[i] for i in owners]
        return similarity_matrix(scores, captions, images, paths, MEASURES[similarity])

    def queries(self) -> list[Query]:
        return find_queries(self.images, self.captions, RANKING[self.run.settings.similarity], self.split, self.paths)


def report_path(path: Path) -> Path:
    """Raises BadInput unless a report can be written to `path`; its folder is made."""
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name an HTML file with --report, such as {path / 'report.html'}")
    make_folder(path.parent, "--report")
    return path


def draw(
    groups: Sequence[Group],
    ranks: Mapping[str, Mapping[Path, Sequence[Ranks]]],
    rows: Sequence[Row],
    shown: EmbeddedSplit,
) -> dict[str, tuple[str, bytes]]:
    """The pictures of a comparison: file name → what it shows, and its PNG.

    ranks: protocol → run folder → Ranks of each fold; rows: of all protocols; shown: a run of the first row. The first
    protocol's pictures go by their plain names, those of another have it in their name.
    """
    curves = learning_curves({group.name: _logs(group) for group in groups})
    pictures = {"learning_curves.png": ("Learning curves", png_of(curves))}
    sweeps = find_sweeps({group.name: _facts(group) for group in groups})
    for number, (protocol, found) in enumerate(ranks.items()):
        more = f"-{_file_name(protocol)}" if number else ""
        recalls = recall_curves({g.name: [one for run in g.runs for one in found[run]] for g in groups})
        pictures[f"recall{more}.png"] = (f"Recall@K, {protocol}", png_of(recalls))
        own = {row["row"]: row for row in rows if row["protocol"] == protocol and "interval" in row}
        for setting, lines in sweeps.items():
            points = {
                line: [(value, own[name]["rsum"], *own[name]["interval"]["rsum"]) for value, name in members]
                for line, members in lines.items()
            }
            name = f"sweep-{_file_name(setting)}{more}.png"
            pictures[name] = (f"rsum by {setting}, {protocol}", png_of(sweep_curve(setting, points)))
    title = f"Similarity of the first pairs, {shown.run.folder.name}"
    pictures["similarity.png"] = (title, png_of(shown.similarity_matrix()))
    return pictures


def write_pictures(folder: Path, pictures: Mapping[str, tuple[str, bytes]]) -> None:
    for name, (_, png) in pictures.items():
        with atomic_write(folder / name, "wb") as file:
            file.write(png)


def report_tables(rows: list[Row]) -> tuple[list[Table], list[str]]:
    """The tables of a report, one for each protocol, and the notes that belong under them."""
    tables: list[Table] = []
    notes: dict[str, None] = {}
    for title, own, published in parts_of(rows):
        head, body = wide_cells(own, published, "{} ± {}", "*")
        groups = [*(TITLES[direction] for direction in DIRECTIONS for _ in COLUMNS), *[""] * len(head)]
        columns = [("", "row"), *zip(groups, head[1:], strict=False)]
        cells = [[label_of(row), *line] for row, line in zip([*own, *published], body, strict=True)]
        best = frozenset((row, column + 1) for row, column in best_cells(own))
        tables.append(Table(title, columns, cells, best, len(own) if published else None))
        notes |= dict.fromkeys(notes_of(own, published, " (*)"))
    return tables, list(notes)


def recipe_of(group: Group) -> str:
    """A row's settings, resolved, as a recipe file has them."""
    return tomli_w.dumps({**to_table(group.settings), "features": list(group.info.features)})


def _logs(group: Group) -> list[list[dict[str, Any]]]:
    """The log of each run of a group. Raises BadInput for one that is missing or empty."""
    remedy = "train the run again with --fresh, or leave --plots and --report out"
    logs = []
    for run in group.runs:
        log = read_jsonl(run / LOG, remedy)
        if not log or not all("epoch" in row and "rsum" in row for row in log):
            raise BadInput(f"{run / LOG}: not the log of a training; {remedy}")
        logs.append(log)
    return logs


def _facts(group: Group) -> dict[str, Any]:
    return {**flat_table(group.settings), "recipe": group.info.recipe, "features": group.info.features}


def _file_name(text: str) -> str:
    """
    >>> _file_name("1K, 5 folds")
    '1K-5-folds'
    """
    return re.sub(r"[^\w.]+", "-", text).strip("-")

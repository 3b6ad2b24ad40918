"""Report retrieval metrics of runs: recall@K, median and mean rank, image to text and text to image.

python eval.py                                       the newest run on its test split
python eval.py RUN RUN --split val                   several runs in one table
python eval.py 'runs/*' --against vse0 --paper       one row for all seeds, tested, and the papers'
python eval.py RUN --folds 5 --format latex          averaged over five folds, ready to paste
python eval.py 'runs/*' --plots DIR --report A.html  the same with pictures, and as one HTML file
python eval.py 'runs/*' --judgements FLICKR8K_TEXT   with how far scores agree with people's judgements

Runs that differ by seed alone make one row: mean ± standard deviation over seeds, and a 95 % bootstrap interval of rsum
that draws images with all their captions.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.comparison import Group, compare, find_row, finished_runs, group_runs
from evaluation.figures import EmbeddedSplit, draw, recipe_of, report_path, report_tables, write_pictures
from evaluation.judgement_tables import KENDALL, judgement_cells, with_judgements
from evaluation.judgements import judge
from evaluation.published import published_rows
from evaluation.report import Table, write_report
from evaluation.tables import FORMATS
from features.prepared import Prepared, Split
from metrics.protocols import Fold, Protocol, folds_of, protocol_name, protocols_for, ranks_of_folds
from metrics.ranks import Ranks
from metrics.similarity import RANKING
from settings import Settings
from training.run import Run, RunInfo, newest_run
from utils import BadInput, make_folder, run_script


def main() -> None:
    args = arguments()
    folders = finished_runs(args.run, args.runs, log) if args.run else [newest_run(args.runs)]
    groups = group_runs(folders)
    against = find_row(args.against, groups) if args.against else None  # before anything slow: a typo is told at once
    inputs = Inputs(args.data, args.split)
    plots = make_folder(args.plots, "--plots") if args.plots else None
    report = report_path(args.report) if args.report else None
    judged = judge_groups(groups, inputs, args.judgements) if args.judgements else {}
    measured = measure(groups, inputs, args.folds, args.captions_per_image)
    rows = [row for protocol in measured for row in rows_of(groups, protocol, against, args.paper)]
    rows = [{**row, "judgements": judged[row["row"]]} if row.get("row") in judged else row for row in rows]
    print(with_judgements(FORMATS[args.format](rows), rows, args.format))
    if plots or report:
        shown = EmbeddedSplit.of(*inputs.opened(groups[0].runs[0]))
        pictures = draw(groups, {m.about["protocol"]: m.ranks for m in measured}, rows, shown)
    if plots:
        write_pictures(plots, pictures)
        log(f"--plots: {plots} holds {', '.join(pictures)}")
    if report:
        write_everything(report, groups, inputs, rows, dict(pictures.values()))
        log(f"--report: wrote {report}")


class Inputs:
    """The split that runs are measured on, read once for all that want the same features; one is held at a time.

    `first` is the first run with its split, features left out: every other run must have its images and captions.
    """

    def __init__(self, data: Path | None, split: str):
        self.data, self.split = data, split
        self.prepared: dict[Path, Prepared] = {}
        self.digests: dict[Path, str] = {}
        self.held: dict[tuple, Split] = {}
        self.first: tuple[Path, Split] | None = None

    def key(self, settings: Settings, info: RunInfo) -> tuple[Path, tuple[str, ...], bool]:
        return self.data or Path(info.data), info.features, settings.image.normalize

    def prepared_of(self, run: Run) -> Prepared:
        """The prepared folder of a run. Raises BadInput if its features are not those of training."""
        folder = self.key(run.settings, run.info)[0]
        if folder not in self.prepared:
            self.prepared[folder] = Prepared(folder)
            self.digests[folder] = self.prepared[folder].digest()
        check_features(run, self.prepared[folder], self.digests[folder], self.split)
        return self.prepared[folder]

    def opened(self, folder: Path) -> tuple[Run, Split, Prepared]:
        """A run, the split it is measured on, and the prepared folder of both."""
        run = Run.open(folder)
        return run, self.of(run), self.prepared_of(run)

    def of(self, run: Run) -> Split:
        """Raises BadInput if the features are not those of training, or the images not those of the other runs."""
        key = self.key(run.settings, run.info)
        data = self.prepared_of(run)
        if key not in self.held:
            self.held.clear()  # before others are read: two of them might not fit
            self.held[key] = data.split(self.split, *key[1:])
        split = self.held[key]
        if self.first is None:
            self.first = run.folder, replace(split, features=split.features[:0])
        check_same_images(run.folder, split, *self.first)
        return split


def check_features(run: Run, data: Prepared, captions: str, split: str) -> None:
    """Raises BadInput unless `data` holds the very features that the run was trained on."""
    if data.name != run.info.dataset:
        raise BadInput(
            f"{data.folder}: holds {data.name}, but {run.folder} was trained on {run.info.dataset}; mend --data"
        )
    if run.info.captions and run.info.captions != captions:
        raise BadInput(
            f"{data.folder}: holds other captions or splits than {run.folder} was trained on: its {split} split may "
            f"hold training images; name the right folder with --data, or train again"
        )
    for name, digest, size in zip(run.info.features, run.info.digests, run.info.sizes, strict=True):
        store = data.store(name)
        if store.attributes.get("digest") != digest or store.shape != (*run.info.grid, size):
            raise BadInput(
                f"{store.path}: not the features that {run.folder} was trained on (other weights or size); "
                f"name the right folder with --data, or train again"
            )


def check_same_images(folder: Path, split: Split, first: Path, other: Split) -> None:
    """Raises BadInput that names both runs unless their splits hold the same images and captions in the same order."""
    if (split.images, split.captions) == (other.images, other.captions) and np.array_equal(
        split.image_of_caption, other.image_of_caption
    ):
        return
    pairs = zip_longest(split.images, other.images, fillvalue="none")
    where = next((f"the first image {a} against {b}" for a, b in pairs if a != b), "other captions")
    raise BadInput(
        f"{folder} and {first}: their {split.name} splits are not the same ({len(split.images):,} images and "
        f"{len(split.captions):,} captions against {len(other.images):,} and {len(other.captions):,}; {where}); "
        f"measure both on one folder with --data, or apart"
    )


@dataclass(frozen=True)
class ProtocolResult:
    """What one protocol gave: its galleries, and the ranks of every run in each of them."""

    about: dict[str, Any]  # dataset, split and protocol, as rows name them
    folds: list[Fold]
    ranks: dict[Path, list[Ranks]]


def measure(groups: Sequence[Group], inputs: Inputs, folds: int | None, captions: int | None) -> list[ProtocolResult]:
    """Embed and rank every run, by every protocol. Runs of the same features come together, whatever their order."""
    todo = [(inputs.key(group.settings, group.info), folder) for group in groups for folder in group.runs]
    measured: dict[Protocol, ProtocolResult] = {}
    for _, folder in tqdm(sorted(todo, key=str), "measure", unit=" runs", leave=False, disable=len(todo) == 1):
        run = Run.open(folder)
        split = inputs.of(run)
        dataset, count, owner = run.info.dataset, len(split.images), split.image_of_caption
        try:
            protocols = protocols_for(dataset, split.name, count, folds, captions)
        except ValueError as error:
            raise BadInput(str(error)) from None
        images = torch.from_numpy(run.embed_features(split.features))
        sentences = torch.from_numpy(run.embed_captions(inputs.prepared_of(run), split.name))
        for protocol in protocols:
            if protocol not in measured:
                name = protocol_name(protocol, dataset, split.name, count)
                about = {"dataset": dataset, "split": split.name, "protocol": name}
                measured[protocol] = ProtocolResult(about, folds_of(owner, count, protocol), {})
            found = ranks_of_folds(RANKING[run.settings.similarity], images, sentences, owner, protocol)
            measured[protocol].ranks[folder] = found
    return list(measured.values())


def rows_of(
    groups: Sequence[Group], measured: ProtocolResult, against: Group | None, paper: bool
) -> list[dict[str, Any]]:
    """A row per group, and the published ones if asked for."""
    rows = compare(groups, measured.ranks, measured.folds, measured.about, against)
    if not paper:
        return rows
    dataset, protocol = measured.about["dataset"], measured.about["protocol"]
    published = published_rows(dataset, protocol)
    if not published:
        log(f"--paper: nothing published is known for {dataset}, {protocol}")
    return rows + published


def judge_groups(groups: Sequence[Group], inputs: Inputs, folder: Path) -> dict[str, dict[str, Any]]:
    """Row → what `judge` says, its tau averaged over seeds, and std, their standard deviation, with several seeds."""
    judged = {}
    for group in tqdm(groups, "judge", unit=" rows", leave=False, disable=len(groups) == 1):
        runs = [Run.open(path) for path in group.runs]
        found = [judge(run, inputs.prepared_of(run), folder) for run in runs]
        row = {}
        for name in found[0]:
            taus = [one[name]["tau"] for one in found]
            known = None not in taus
            row[name] = {**found[0][name], "tau": float(np.mean(taus)) if known else None}
            if len(taus) > 1:
                row[name]["std"] = float(np.std(taus, ddof=1)) if known else None
        judged[group.name] = row
    return judged


def write_everything(
    path: Path, groups: Sequence[Group], inputs: Inputs, rows: list[dict[str, Any]], figures: dict[str, bytes]
) -> None:
    """The report: tables, pictures, each row's recipe, and the best and worst queries of its first run."""
    tables, notes = report_tables(rows)
    lines, more = judgement_cells(rows)
    if lines:
        columns = [("", name) for name in lines[0]]
        tables.append(Table(f"Human judgements, {KENDALL}", columns, lines[1:]))
    queries, among = {}, ""
    for group in tqdm(groups, "report", unit=" rows", leave=False, disable=len(groups) == 1):
        shown = EmbeddedSplit.of(*inputs.opened(group.runs[0]))
        queries[group.name] = shown.queries()
        # whatever folds the tables average over: a query of a whole split says more than one of its fifth
        among = f"Ranked among all {len(shown.images):,} images and {len(shown.captions):,} captions of the split, "
        among += f"seed {group.seeds[0]} of each row."
    title = f"Image–text retrieval, {rows[0]['dataset']}, {rows[0]['split']} split"
    recipes = {group.name: recipe_of(group) for group in groups}
    write_report(path, title, tables, figures, recipes, queries, [*notes, *more], among)


def log(line: str) -> None:
    print(f"eval.py: {line}", file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="*", metavar="RUN", help="run folders, their names, or patterns; default: the newest"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where runs are looked for")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared folder, if it has moved since training")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--folds", type=int, metavar="N", help="average over N equal, consecutive parts of the split")
    parser.add_argument(
        "--captions-per-image",
        type=int,
        metavar="N",
        help="keep the first N captions of every image, 0 for all; default: 5 for coco, all elsewhere",
    )
    parser.add_argument("--against", metavar="ROW", help="test every row's rsum against this row or run")
    parser.add_argument("--paper", action="store_true", help="add what was published for the dataset and protocol")
    parser.add_argument(
        "--judgements", type=Path, metavar="DIR", help="Flickr8k's folder of human judgements: add Kendall's τ to them"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw the comparison into PNG files of this folder")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write all of it into one HTML file")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)

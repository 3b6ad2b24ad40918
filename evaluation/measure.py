"""Measure runs: each is opened and embedded once, and ranked, judged and searched for queries while it is open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import tomli_w
import torch
from torch import Tensor

from evaluation.comparison import (
    Correction,
    Group,
    ProtocolResult,
    ResultRow,
    by_dataset,
    compare,
    ensemble_of,
    find_row,
    finished_runs,
    group_runs,
    trained_on,
)
from evaluation.corrections import asked_corrections, check_bank, with_corrections
from evaluation.elsewhere import check_features, is_elsewhere, warn_of_training_images
from evaluation.figures import SCORE_NAMES, Figures, PairScores, draw, first_pairs, read_logs, write_figures, write_logs
from evaluation.judgements import MEASURES, Judgement, Judgements, judge
from evaluation.published import published_rows
from evaluation.queries import Query, find_queries
from evaluation.ranking import Ranked, ranks_together
from evaluation.report import Report, write_report
from evaluation.share import push_shared, share_run, write_card
from evaluation.tables import FORMATS, KENDALL, judgement_tables, parts_of, result_table
from features.prepared import Prepared, Split
from features.progress import progress_bar
from metrics.protocols import Protocol, folds_of, protocol_name, protocols_for
from metrics.similarity import RANKING, Scores, pair_scores
from settings import Settings, to_table
from training.bank import read_bank
from training.hub import check_push, is_hub
from training.run import Run, RunInfo, newest_run
from utils import BadInput, log, make_folder, warn


@dataclass(frozen=True)
class EvalOptions:
    """What to measure, and what to leave.

    run: folders, names under `runs`, or patterns, the newest run where there is none; data: the prepared folder, if not
    that of training; folds, captions_per_image: of a protocol that is not the dataset's own; against: the row that the
    others are tested against; correction: names of test-time corrections, a row for each beneath a run's; bank: what
    they correct by, "train" (inductive), "test" (transductive) or both; ensemble: a row more of runs together, of "all"
    or of each "seed"; paper: add what was published; judgements: the folder of Flickr8k's human judgements; plots: a
    folder for figures; logs: a CSV file for the epochs of training; report: an HTML file; share: a folder, or
    hub:USER/NAME, for a copy of the one run that others can take, which is then measured in its stead; format: of the
    table, one of FORMATS.
    """

    run: Sequence[str] = ()
    runs: Path = Path("runs")
    data: Path | None = None
    split: str = "test"
    folds: int | None = None
    captions_per_image: int | None = None
    against: str | None = None
    correction: Sequence[str] = ()
    bank: Sequence[str] = ("train",)
    ensemble: Literal["", "all", "seed"] = ""
    paper: bool = False
    judgements: Path | None = None
    plots: Path | None = None
    logs: Path | None = None
    report: Path | None = None
    share: Path | None = None
    format: str = "text"


@dataclass(frozen=True)
class EmbeddedSplit:
    """A run's embeddings of a split. images: (N, D); captions: (M, D)."""

    run: Run
    prepared: Prepared
    split: Split
    images: Tensor
    captions: Tensor

    @property
    def similarity(self) -> Scores:
        return RANKING[self.run.settings.similarity]

    def paths(self) -> dict[str, Path | None]:
        """Return where the images of the split lie."""
        rows = (row for row in self.prepared.rows if row["split"] == self.split.name)
        return {row["image"]: self.prepared.path_of(row) for row in rows}

    def scores_of(self, ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Return the scores (P,) of P pairs of image and caption of the prepared folder, whatever their split.

        Where the split lacks an image, all of them are embedded now, each once; and so with the captions.
        """
        images, image_rows = np.unique(ids, return_inverse=True)
        captions, caption_rows = np.unique(texts, return_inverse=True)
        embedded = self._images(images.tolist()), self._captions(captions.tolist())
        return pair_scores(self.run.settings.similarity, *embedded, image_rows, caption_rows)

    def _images(self, ids: Sequence[str]) -> np.ndarray:
        rows = {image: row for row, image in enumerate(self.split.images)}
        if all(image in rows for image in ids):
            return self.images[[rows[image] for image in ids]].numpy()
        normalize = self.run.settings.image.normalize
        return self.run.embed_features(self.prepared.features_of(ids, self.run.info.features, normalize))

    def _captions(self, texts: Sequence[str]) -> np.ndarray:
        rows = {caption: row for row, caption in enumerate(self.split.captions)}
        if all(text in rows for text in texts):
            return self.captions[[rows[text] for text in texts]].numpy()
        return self.run.embed_sentences(texts, check=False)

    def first_pairs(self) -> PairScores:
        """Score the first images of the split against the first caption of each."""
        split, paths = self.split, self.paths()
        scores, rows = first_pairs(self.similarity, self.images, self.captions, split.image_of_caption)
        captions, images = [split.captions[row] for row in rows.tolist()], split.images[: len(rows)]
        measure = SCORE_NAMES[self.run.settings.similarity]
        return PairScores(self.run.folder.name, measure, scores, captions, images, [paths[i] for i in images])


class SplitCache:
    """Reads the split that runs are measured on; the features of one set are held at a time.

    `first` is the first run with its split, features left out: every other run must have its images and captions.
    """

    def __init__(self, data: Path | None, split: str):
        self.data, self.split = data, split
        self.prepared: dict[Path, tuple[Prepared, str]] = {}  # and the digest of its captions
        self.held: dict[tuple, Split] = {}
        self.first: tuple[Path, Split] | None = None

    def key(self, settings: Settings, info: RunInfo) -> tuple[Path, tuple[str, ...], bool]:
        """Return what tells one set of features from another: prepared folder, names, normalization."""
        return self.data or Path(info.data), info.features, settings.image.normalize

    def open(self, info: RunInfo) -> tuple[Prepared, bool]:
        """Open the folder that a run is measured on; return it, and whether the run was trained on another one."""
        data = self.data or Path(info.data)
        if data not in self.prepared:
            prepared = Prepared(data)
            self.prepared[data] = prepared, prepared.digest()
        prepared, digest = self.prepared[data]
        return prepared, is_elsewhere(info, prepared, digest)

    def named(self, group: Group) -> Group:
        """Return a row that says in its name what it was trained on, if that is not what it is measured on."""
        if self.data is None or not self.open(group.info)[1]:
            return group
        name = group.name.removesuffix(trained_on(group.info)) + trained_on(group.info)
        return replace(group, name=name, trained_on=Path(group.info.data).name)

    def embed(self, folder: Path) -> EmbeddedSplit:
        """Open a run and embed its split.

        Raises BadInput if the features are not those of training, or the images not those of the other runs.
        """
        run = Run.open(folder)
        key = self.key(run.settings, run.info)
        prepared, elsewhere = self.open(run.info)
        check_features(run, prepared)
        if key not in self.held:
            self.held.clear()  # before others are read: two of them might not fit
            self.held[key] = prepared.split(self.split, run.info.features, run.settings.image.normalize)
        split = self.held[key]
        if elsewhere:
            warn_of_training_images(run, prepared, split)
        if self.first is None:
            self.first = folder, replace(split, features=split.features[:0])
        check_same_images(folder, split, *self.first)
        images = torch.from_numpy(run.embed_features(split.features))
        return EmbeddedSplit(run, prepared, split, images, torch.from_numpy(run.embed_captions(prepared, split.name)))


def check_same_images(folder: Path, split: Split, first: Path, other: Split) -> None:
    """Raise BadInput that names both runs unless their splits hold the same images and captions in the same order."""
    if (split.images, split.captions) == (other.images, other.captions) and np.array_equal(
        split.image_of_caption, other.image_of_caption
    ):
        return
    pairs = zip_longest(split.images, other.images, fillvalue="none")
    where = next((f"the first image {a} against {b}" for a, b in pairs if a != b), "other captions")
    raise BadInput(
        f"{folder} and {first}: their {split.name} splits are not the same ({len(split.images):,} images and "
        f"{len(split.captions):,} captions against {len(other.images):,} and {len(other.captions):,}; {where}); "
        f"measure both on one folder with `data`, or apart"
    )


@dataclass
class Measurements:
    """What is kept of the runs, none of it large. judged: by run; queries: by row, of its first run."""

    protocols: dict[Protocol, ProtocolResult] = field(default_factory=dict)
    judged: dict[Path, dict[str, Judgement]] = field(default_factory=dict)
    queries: dict[str, list[Query]] = field(default_factory=dict)
    pairs: PairScores | None = None  # of the first run of the first row
    paths: dict[str, Path | None] = field(default_factory=dict)
    gallery: str = ""


def evaluate(options: EvalOptions) -> str:
    """Measure runs and return their table, one for each dataset; figures and report are written where asked for.

    >>> print(evaluate(EvalOptions(["strong*"], folds=5)))  # doctest: +SKIP
    """
    if options.share and is_hub(options.share):
        where = check_push(options.share)  # before anything slow
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / where.name
            rows = asked_rows(replace(options, share=out))
            log(f"pushed to {push_shared(out, str(options.share), rows)}")
    else:
        rows = asked_rows(options)
    return FORMATS[options.format](rows)


def asked_rows(options: EvalOptions) -> list[ResultRow]:
    """Measure the runs that are asked for; return a row of each, or of each seed of one."""
    folders = finished_runs(options.run, options.runs) if options.run else [newest_run(options.runs)]
    if options.share:
        options, folders = shared(options, options.share, folders)
    if options.logs:
        write_logs(options.logs, folders)
    parts = [folders] if options.data else by_dataset(folders)
    if len(parts) > 1 and (options.plots or options.report):
        name = "plots" if options.plots else "report"
        raise BadInput(f"`{name}` shows one dataset, and the runs are of {len(parts)}; name runs of one, or `data`")
    rows = [row for part in parts for row in rows_of_runs(part, options)]
    if options.share:
        write_card(options.share, rows)
    return rows


def rows_of_runs(folders: Sequence[Path], options: EvalOptions) -> list[ResultRow]:
    """Measure runs on one dataset; return their rows. Figures and report are written where they are asked for."""
    cache = SplitCache(options.data, options.split)
    groups = [cache.named(group) for group in group_runs(folders)]
    # whatever can be wrong is found before anything slow
    groups += [ensemble_of(groups, options.ensemble)] if options.ensemble else []
    groups = with_corrections(groups, asked_corrections(options.correction, options.bank), options.split)
    against = find_row(options.against, groups) if options.against else None
    plots = make_folder(options.plots, "plots") if options.plots else None
    report = report_path(options.report) if options.report else None
    if plots or report:
        read_logs(groups)
    files = {name: read(options.judgements) for name, read in MEASURES.items()} if options.judgements else {}
    measured = measure(groups, options, files, cache)
    results = list(measured.protocols.values())
    rows = [row for result in results for row in rows_of(groups, measured, result, against, options.paper)]
    if measured.pairs:
        figures = draw(groups, results, rows, measured.pairs)
        if plots:
            write_figures(plots, figures)
            log(f"{plots} holds {', '.join(figures)}")
        if report:
            write_report(report, report_of(groups, measured, rows, figures))
            log(f"wrote {report}")
    return rows


def shared(options: EvalOptions, out: Path, folders: Sequence[Path]) -> tuple[EvalOptions, list[Path]]:
    """Share the one run there is; return the options and the folder with which what was shared is measured."""
    if len(folders) > 1:
        raise BadInput(f"`share` {out}: takes one run, and {len(folders)} are named, such as {folders[0]}; name one")
    data = share_run(folders[0], out)
    return replace(options, data=options.data or data), [out]


def report_path(path: Path) -> Path:
    """Make the folder of a report. Raises BadInput unless the report can be written."""
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name an HTML file with `report`, such as {path / 'report.html'}")
    if path.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"`report` {path}: is written as HTML; name a file that ends in .html")
    make_folder(path.parent, "report")
    return path


def measure(
    groups: Sequence[Group], options: EvalOptions, judgements: Mapping[str, Judgements], cache: SplitCache
) -> Measurements:
    """Embed every run, rank it by every protocol, and judge it. Runs of the same features come together."""
    measured = Measurements()
    plain = [group for group in groups if group.plain]
    runs = [(str((cache.key(g.settings, g.info), folder)), g, folder) for g in plain for folder in g.runs]
    runs.sort(key=lambda run: run[0])
    opened: dict[Path, Ranked] = {}  # what ensembles are made of
    for _, group, folder in progress_bar(runs, "measure", unit=" runs", leave=False, disable=len(runs) == 1):
        embedded = cache.embed(folder)
        corrections = list(dict.fromkeys(other.correction for other in groups if folder in other.runs))
        one = ranked(embedded, corrections)
        rank([one], (folder,), corrections, protocols_of(embedded, options, measured.protocols))
        opened |= {folder: one} if options.ensemble else {}
        if judgements:
            measured.judged[folder] = {
                name: judge(embedded.prepared, embedded.scores_of, pairs) for name, pairs in judgements.items()
            }
        images, captions, split = embedded.images, embedded.captions, embedded.split
        if options.report and folder == group.runs[0]:
            measured.queries[group.name] = find_queries(images, captions, embedded.similarity, split)
            measured.paths = measured.paths or embedded.paths()
        if (options.plots or options.report) and folder == groups[0].runs[0]:
            measured.pairs = embedded.first_pairs()
        measured.gallery = f"all {len(split.images):,} images and {len(split.captions):,} captions"
    for group in groups:
        for together in group.ensemble:
            members = [opened[run] for run in together]
            rank(members, together, [group.correction], list(measured.protocols.values()))
    return measured


def ranked(embedded: EmbeddedSplit, corrections: Sequence[Correction | None]) -> Ranked:
    """Return what of a run is ranked. Raises BadInput if its bank holds what is measured, and may not."""
    run, bank = embedded.run, None
    if any(corrections):
        bank = read_bank(run.folder)
        if bank and not all(one.transductive for one in corrections if one):
            check_bank(run.folder, bank, embedded.split)
    return Ranked(run.settings.similarity, embedded.images, embedded.captions, bank)


def protocols_of(
    embedded: EmbeddedSplit, options: EvalOptions, results: dict[Protocol, ProtocolResult]
) -> list[ProtocolResult]:
    """Return the result of every protocol, added to `results` by the first run."""
    split, dataset, count = embedded.split, embedded.prepared.name, len(embedded.split.images)
    try:
        protocols = protocols_for(dataset, split.name, count, options.folds, options.captions_per_image)
    except ValueError as error:
        raise BadInput(str(error)) from None
    for protocol in protocols:
        if protocol not in results:
            name = protocol_name(protocol, dataset, split.name, count)
            folds = folds_of(split.image_of_caption, count, protocol)
            results[protocol] = ProtocolResult(dataset, split.name, name, folds, {})
    return [results[protocol] for protocol in protocols]


def rank(
    together: Sequence[Ranked],
    runs: tuple[Path, ...],
    corrections: Sequence[Correction | None],
    results: Sequence[ProtocolResult],
) -> None:
    """Add the ranks of a run, or of several together, as they are (None) and corrected, to the results."""
    for result in results:
        for correction in corrections:
            result.ranks[runs, correction] = ranks_together(together, result.folds, correction)


def rows_of(
    groups: Sequence[Group], measured: Measurements, result: ProtocolResult, against: Group | None, paper: bool
) -> list[ResultRow]:
    """Return a row per group, and the published ones if asked for."""
    rows = compare(groups, result, against)
    if measured.judged:
        judged = [of_seeds([measured.judged[run] for run in g.runs]) if g.plain else None for g in groups]
        rows = [replace(row, judgements=each) for row, each in zip(rows, judged, strict=True)]
    published = published_rows(result.dataset, result.protocol) if paper else []
    if paper and not published:
        warn(f"nothing published is known for {result.dataset}, {result.protocol}")
    return rows + published


def of_seeds(judged: Sequence[Mapping[str, Judgement]]) -> dict[str, Judgement]:
    """Join what was said of the runs of a row."""
    first, *_ = judged
    return {name: replace(first[name], taus=tuple(tau for one in judged for tau in one[name].taus)) for name in first}


def report_of(groups: Sequence[Group], measured: Measurements, rows: Sequence[ResultRow], figures: Figures) -> Report:
    """Put together tables, figures, each row's recipe, and the best and worst queries of its first run."""
    plain = [group for group in groups if group.plain]
    judged = [replace(table, title=f"Human judgements, {KENDALL}") for table in judgement_tables(rows)]
    tables = [*map(result_table, parts_of(rows)), *judged]
    return Report(
        f"Image–text retrieval, {rows[0].dataset}, {rows[0].split} split",
        tables,
        list(dict.fromkeys(note for table in tables for note in table.notes)),
        dict(figures.values()),
        {group.name: measured.queries[group.name] for group in plain},
        # whatever folds the tables average over: a query of a whole split says more than one of its fifth
        f"Ranked among {measured.gallery} of the split, seed {plain[-1].seeds[0]} of each row.",
        measured.paths,
        {g.name: tomli_w.dumps({**to_table(g.settings), "features": list(g.info.features)}) for g in plain},
    )

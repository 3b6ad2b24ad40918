"""Measure runs: each is opened and embedded once, and ranked, judged and searched for queries while it is open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tomli_w
from tqdm import tqdm

from evaluation.comparison import Group, ProtocolResult, ResultRow, compare, find_row, finished_runs, group_runs
from evaluation.embedded import EmbeddedSplit, SplitCache
from evaluation.figures import Figures, PairScores, draw, read_logs, write_figures
from evaluation.judgements import MEASURES, Judgement, Judgements, judge
from evaluation.published import published_rows
from evaluation.queries import Query, find_queries
from evaluation.report import Report, write_report
from evaluation.tables import FORMATS, KENDALL, judgement_tables, parts_of, result_table
from metrics.protocols import Protocol, folds_of, protocol_name, protocols_for, ranks_of_folds
from settings import to_table
from training.run import newest_run
from utils import BadInput, log, make_folder


@dataclass(frozen=True)
class EvalOptions:
    """What to measure, and what to leave.

    run: folders, names under `runs`, or patterns, the newest run where there is none; data: the prepared folder, if not
    that of training; folds, captions_per_image: of a protocol that is not the dataset's own; against: the row that the
    others are tested against; paper: add what was published; judgements: the folder of Flickr8k's human judgements;
    plots: a folder for figures; report: an HTML file; format: of the table, one of FORMATS.
    """

    run: Sequence[str] = ()
    runs: Path = Path("runs")
    data: Path | None = None
    split: str = "test"
    folds: int | None = None
    captions_per_image: int | None = None
    against: str | None = None
    paper: bool = False
    judgements: Path | None = None
    plots: Path | None = None
    report: Path | None = None
    format: str = "text"


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
    """Measure runs and return their table; figures and report are written where they are asked for.

    >>> print(evaluate(EvalOptions(["strong*"], folds=5)))  # doctest: +SKIP
    """
    groups = group_runs(finished_runs(options.run, options.runs) if options.run else [newest_run(options.runs)])
    # whatever can be wrong is found before anything slow
    against = find_row(options.against, groups) if options.against else None
    plots = make_folder(options.plots, "`plots`") if options.plots else None
    report = report_path(options.report) if options.report else None
    if plots or report:
        read_logs(groups)
    files = {name: read(options.judgements) for name, read in MEASURES.items()} if options.judgements else {}
    measured = measure(groups, options, files)
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
    return FORMATS[options.format](rows)


def report_path(path: Path) -> Path:
    """Make the folder of a report. Raises BadInput unless the report can be written."""
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name an HTML file with `report`, such as {path / 'report.html'}")
    make_folder(path.parent, "`report`")
    return path


def measure(groups: Sequence[Group], options: EvalOptions, judgements: Mapping[str, Judgements]) -> Measurements:
    """Embed every run, rank it by every protocol, and judge it. Runs of the same features come together."""
    cache, measured = SplitCache(options.data, options.split), Measurements()
    runs = [(str((cache.key(g.settings, g.info), folder)), g, folder) for g in groups for folder in g.runs]
    runs.sort(key=lambda run: run[0])
    for _, group, folder in tqdm(runs, "measure", unit=" runs", leave=False, disable=len(runs) == 1):
        embedded = cache.embed(folder)
        rank(embedded, options, measured.protocols)
        if judgements:
            measured.judged[folder] = judge(embedded, judgements)
        images, captions, split = embedded.images, embedded.captions, embedded.split
        if options.report and folder == group.runs[0]:
            measured.queries[group.name] = find_queries(images, captions, embedded.similarity, split)
            measured.paths = measured.paths or embedded.paths()
        if (options.plots or options.report) and folder == groups[0].runs[0]:
            measured.pairs = PairScores.of(embedded)
        measured.gallery = f"all {len(split.images):,} images and {len(split.captions):,} captions"
    return measured


def rank(embedded: EmbeddedSplit, options: EvalOptions, results: dict[Protocol, ProtocolResult]) -> None:
    """Add the ranks of a run by every protocol to `results`."""
    run, split = embedded.run, embedded.split
    dataset, count = run.info.dataset, len(split.images)
    try:
        protocols = protocols_for(dataset, split.name, count, options.folds, options.captions_per_image)
    except ValueError as error:
        raise BadInput(str(error)) from None
    for protocol in protocols:
        if protocol not in results:
            name = protocol_name(protocol, dataset, split.name, count)
            folds = folds_of(split.image_of_caption, count, protocol)
            results[protocol] = ProtocolResult(dataset, split.name, name, folds, {})
        result = results[protocol]
        ranks = ranks_of_folds(embedded.similarity, embedded.images, embedded.captions, result.folds)
        result.ranks[run.folder] = ranks


def rows_of(
    groups: Sequence[Group], measured: Measurements, result: ProtocolResult, against: Group | None, paper: bool
) -> list[ResultRow]:
    """Return a row per group, and the published ones if asked for."""
    rows = compare(groups, result, against)
    if measured.judged:
        judged = [[measured.judged[run] for run in group.runs] for group in groups]
        rows = [replace(row, judgements=of_seeds(each)) for row, each in zip(rows, judged, strict=True)]
    published = published_rows(result.dataset, result.protocol) if paper else []
    if paper and not published:
        log(f"nothing published is known for {result.dataset}, {result.protocol}")
    return rows + published


def of_seeds(judged: Sequence[Mapping[str, Judgement]]) -> dict[str, Judgement]:
    """Join what was said of the runs of a row."""
    first, *_ = judged
    return {name: replace(first[name], taus=tuple(tau for one in judged for tau in one[name].taus)) for name in first}


def report_of(groups: Sequence[Group], measured: Measurements, rows: Sequence[ResultRow], figures: Figures) -> Report:
    """Put together tables, figures, each row's recipe, and the best and worst queries of its first run."""
    judged = [replace(table, title=f"Human judgements, {KENDALL}") for table in judgement_tables(rows)]
    tables = [*map(result_table, parts_of(rows)), *judged]
    return Report(
        f"Image–text retrieval, {rows[0].dataset}, {rows[0].split} split",
        tables,
        list(dict.fromkeys(note for table in tables for note in table.notes)),
        dict(figures.values()),
        {group.name: measured.queries[group.name] for group in groups},
        # whatever folds the tables average over: a query of a whole split says more than one of its fifth
        f"Ranked among {measured.gallery} of the split, seed {groups[-1].seeds[0]} of each row.",
        measured.paths,
        {g.name: tomli_w.dumps({**to_table(g.settings), "features": list(g.info.features)}) for g in groups},
    )

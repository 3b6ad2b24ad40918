"""Measure runs and models of others: each is embedded once, and ranked, judged and searched for queries while open."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import tomli_w

from evaluation.comparison import ProtocolResult, ResultRow, compare
from evaluation.corrections import asked_corrections, check_bank, with_corrections
from evaluation.external import External, gallery_of_externals, open_externals
from evaluation.figures import (
    SCORE_NAMES,
    Figures,
    PairScores,
    draw,
    file_name,
    first_pairs,
    read_logs,
    write_figures,
    write_logs,
)
from evaluation.gallery import Gallery
from evaluation.ground_truth import TITLES, USUAL_METRICS, ground_truth_folds
from evaluation.groups import Correction, Group, ensemble_of, find_row, finished_runs, group_runs
from evaluation.judgements import MEASURES, Judgement, Judgements, judge
from evaluation.pairs import read_pairs
from evaluation.published import published_rows
from evaluation.queries import Query, find_queries
from evaluation.ranking import Ranked, ranks_together
from evaluation.report import Report, write_report
from evaluation.share import push_shared, share_run, write_card
from evaluation.splits import EmbeddedSplit, SplitCache
from evaluation.tables import FORMATS, KENDALL, judgement_tables, metric_tables, parts_of, result_table
from evaluation.trec import write_qrels, write_run
from features.prepared import Prepared
from features.progress import progress_bar
from metrics.ranks import DIRECTIONS
from settings import to_table
from training.bank import read_bank
from training.hub import check_push, is_hub
from training.run import newest_run
from utils import BadInput, log, make_folder, warn


@dataclass(frozen=True)
class EvalOptions:
    """What to measure, and what to leave.

    run: folders, names under `runs`, or patterns, the newest run where there is neither one nor a model of others;
    data: the prepared folder, if not that of training; folds, captions_per_image: of a protocol that is not the
    dataset's own; against: the row that the others are tested against; correction: names of test-time corrections, a
    row for each beneath a run's; bank: what they correct by, "train" (inductive), "test" (transductive) or both;
    ensemble: a row more of runs together, of "all" or of each "seed"; paper: add what was published; judgements: the
    folder of Flickr8k's human judgements; plots: a folder for figures; logs: a CSV file for the epochs of training;
    report: an HTML file; share: a folder, or hub:USER/NAME, for a copy of the one run that others can take, which is
    then measured in its stead; format: of the table, one of FORMATS.

    Models of others: scores, a file each, or two TREC runs; embeddings, two files each; similarity: of embeddings;
    pairs: what is true of their rows, where no run and no `data` says it; bank_embeddings: training data, in the order
    of `embeddings`. metrics: of METRICS, besides R@K; ground_truth: more of COCO's; trec: a folder for runs and qrels.
    """

    run: Sequence[str] = ()
    runs: Path = Path("runs")
    data: Path | None = None
    split: str = "test"
    scores: Sequence[str] = ()
    embeddings: Sequence[Sequence[str]] = ()
    similarity: str | None = None
    pairs: Sequence[Path] = ()
    bank_embeddings: Sequence[Sequence[Path]] = ()
    folds: int | None = None
    captions_per_image: int | None = None
    metrics: Sequence[str] = ()
    ground_truth: Sequence[str] = ()
    against: str | None = None
    correction: Sequence[str] = ()
    bank: Sequence[str] = ("train",)
    ensemble: Literal["", "all", "seed"] = ""
    paper: bool = False
    judgements: Path | None = None
    plots: Path | None = None
    logs: Path | None = None
    report: Path | None = None
    trec: Path | None = None
    share: Path | None = None
    format: str = "text"


@dataclass
class Measurements:
    """What is kept of runs and models, none of it large but what ensembles are made of, `opened`.

    judged: by run; queries: by row, of its first run; pairs: of the first run of the first row.
    """

    results: list[ProtocolResult]
    judged: dict[Path, dict[str, Judgement]] = field(default_factory=dict)
    queries: dict[str, list[Query]] = field(default_factory=dict)
    pairs: PairScores | None = None
    opened: dict[Path, Ranked] = field(default_factory=dict)

    def add(
        self,
        groups: Sequence[Group],
        group: Group,
        run: Path,
        one: Ranked,
        gallery: Gallery,
        options: EvalOptions,
    ) -> None:
        """Rank a run of a row, and take from it, while it is open, whatever else is asked for."""
        rank([one], (run,), corrections_of(groups, run), self.results)
        self.opened |= {run: one} if options.ensemble else {}
        if options.trec:
            write_runs(options.trec, group, run, one, gallery)
        if options.report and run == group.runs[0] and gallery.plain and one.both_ways_alike:
            self.queries[group.name] = find_queries(one.images, one.captions, one.scorer(DIRECTIONS[0]), gallery)
        if (options.plots or options.report) and run == groups[0].runs[0]:
            self.pairs = pairs_of(group, one, gallery, options)


def evaluate(options: EvalOptions) -> str:
    """Measure runs and models of others; return their table, one for each dataset. Figures and the like are written
    where they are asked for.

    >>> print(evaluate(EvalOptions(["strong*"], folds=5)))  # doctest: +SKIP
    >>> print(evaluate(EvalOptions(scores=["clip.npy"], pairs=[Path("pairs.csv")])))  # doctest: +SKIP
    """
    check_options(options)
    if options.share and is_hub(options.share):
        where = check_push(options.share)  # before anything slow
        with TemporaryDirectory() as scratch:
            out = Path(scratch) / where.name
            rows = asked_rows(replace(options, share=out))
            log(f"pushed to {push_shared(out, str(options.share), rows)}")
    else:
        rows = asked_rows(options)
        if options.share:
            log(f"wrote {options.share}: the run, and its card")
    return FORMATS[options.format](rows)


def asked_rows(options: EvalOptions) -> list[ResultRow]:
    """Measure what is asked for; return a row of each, or of each seed of one."""
    models = open_externals(options.scores, options.embeddings, options.bank_embeddings, options.similarity or "cosine")
    folders = finished_runs(options.run, options.runs) if options.run else [] if models else [newest_run(options.runs)]
    if options.share:
        options, folders = shared(options, options.share, folders)
    if options.logs:
        write_logs(options.logs, folders)
    cache = SplitCache(options.data, options.split)
    parts = cache.by_dataset(folders) or [[]]
    one_dataset = {"plots": options.plots, "report": options.report, "trec": options.trec, "scores": models}
    if len(parts) > 1 and any(one_dataset.values()):
        name = next(name for name, given in one_dataset.items() if given)
        raise BadInput(f"`{name}` shows one dataset, and the runs are of {len(parts)}; name runs of one, or `data`")
    rows = [row for part in parts for row in rows_of_dataset(part, models, options, cache)]
    if options.share:
        write_card(options.share, rows)
    return rows


def rows_of_dataset(
    folders: Sequence[Path], models: Sequence[External], options: EvalOptions, cache: SplitCache
) -> list[ResultRow]:
    """Measure runs and models on one dataset; return their rows. Figures and the like are written where asked for."""
    groups = [cache.named(group) for group in group_runs(folders)] + [model.group for model in models]
    # whatever can be wrong is found before anything slow
    groups += [ensemble_of(groups, options.ensemble)] if options.ensemble else []
    groups = with_corrections(groups, asked_corrections(options.correction, options.bank), options.split)
    against = find_row(options.against, groups) if options.against else None
    plots = make_folder(options.plots, "plots") if options.plots else None
    trec = make_folder(options.trec, "trec") if options.trec else None
    report = report_path(options.report) if options.report else None
    if plots or report:
        read_logs(groups)
    files = {name: read(options.judgements) for name, read in MEASURES.items()} if options.judgements else {}
    gallery = find_gallery(options, groups, models)
    measured = Measurements(results_of(gallery, options))
    measure_models(groups, models, gallery, options, measured)
    measure_runs(groups, gallery, options, measured, files, cache)
    for group in groups:
        for together in group.ensemble:
            rank([measured.opened[run] for run in together], together, [group.correction], measured.results)
    rows = [row for result in measured.results for row in rows_of(groups, measured, result, against, options.paper)]
    if measured.pairs:
        figures = draw(groups, measured.results, rows, measured.pairs)
        if plots:
            write_figures(plots, figures)
            log(f"{plots} holds {', '.join(figures)}")
        if report:
            write_report(report, report_of(groups, gallery, measured, rows, figures))
            log(f"wrote {report}")
    if trec:
        write_qrels(trec, gallery)
        log(f"{trec} holds TREC runs of both directions, and their qrels")
    return rows


def check_options(options: EvalOptions) -> None:
    """Raise BadInput for options that do not go together."""
    models = bool(options.scores or options.embeddings)
    if (options.pairs or options.similarity or options.bank_embeddings) and not models:
        name = "pairs" if options.pairs else "similarity" if options.similarity else "bank_embeddings"
        raise BadInput(f"`{name}`: is of models of others; name those with `scores` or `embeddings`, or leave it out")
    if options.similarity and not options.embeddings:
        raise BadInput(f"`similarity` {options.similarity}: is of `embeddings`; `scores` are ranked as they are")
    asked = asked_corrections(options.correction, options.bank)
    if options.bank_embeddings and all(one.transductive for one in asked):
        raise BadInput(
            "`bank_embeddings`: are what inductive corrections take; name one with `correction` and `bank` train, or "
            "leave them out"
        )
    if options.pairs and (options.run or options.data):
        raise BadInput(
            f"`pairs` {options.pairs[0]}: runs and `data` have pairs of their own; give the rows of the models in the "
            f"order of that split, and leave it out"
        )
    if models and not (options.pairs or options.run or options.data):
        raise BadInput(
            "`scores` and `embeddings` are rows of numbers; say with `pairs` which captions belong to which images, or "
            "with `data` of which prepared folder they are"
        )
    for name, given in (("judgements", options.judgements), ("share", options.share), ("logs", options.logs)):
        if models and given and not options.run:
            raise BadInput(f"`{name}` {given}: takes runs of this project; name one, or leave it out")


def find_gallery(options: EvalOptions, groups: Sequence[Group], models: Sequence[External]) -> Gallery:
    """Return what is ranked: what the pairs say, or the split of the prepared folder."""
    if options.pairs:
        return gallery_of_externals(models, read_pairs(options.pairs), options.split)
    trained = [group.info for group in groups if group.info]
    return Gallery.of_prepared(Prepared(options.data or Path(trained[0].data)), options.split)


def results_of(gallery: Gallery, options: EvalOptions) -> list[ProtocolResult]:
    """Return the protocols that are measured, ranks to be added: those of the dataset, and of other ground truths."""
    metrics = tuple(dict.fromkeys(options.metrics))
    protocols = gallery.protocols(options.folds, options.captions_per_image, bool(metrics))
    results = [
        ProtocolResult(gallery.dataset, gallery.split, name, folds, {}, metrics, gallery.folder)
        for name, folds in protocols.items()
    ]
    usual = {TITLES[name]: USUAL_METRICS[name] for name in options.ground_truth}
    for name, fold in ground_truth_folds(gallery, options.ground_truth).items():
        more = tuple(dict.fromkeys([*metrics, *usual[name]]))
        results.append(ProtocolResult(gallery.dataset, gallery.split, name, [fold], {}, more, gallery.folder))
    return results


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


def measure_models(
    groups: Sequence[Group],
    models: Sequence[External],
    gallery: Gallery,
    options: EvalOptions,
    measured: Measurements,
) -> None:
    """Read every model of others, and rank it by every protocol."""
    rows = [(group, model) for group in groups if group.plain for model in models if group.files == model.files]
    for group, model in progress_bar(rows, "measure", unit=" models", leave=False, disable=len(rows) < 2):
        corrected = any(corrections_of(groups, group.runs[0]))
        measured.add(groups, group, group.runs[0], model.ranked(gallery, corrected), gallery, options)


def measure_runs(
    groups: Sequence[Group],
    gallery: Gallery,
    options: EvalOptions,
    measured: Measurements,
    judgements: Mapping[str, Judgements],
    cache: SplitCache,
) -> None:
    """Embed every run, rank it by every protocol, and judge it. Runs of the same features come together."""
    plain = [group for group in groups if group.plain]
    runs = [(str((cache.key(g.settings, g.info), r)), g, r) for g in plain if g.settings and g.info for r in g.runs]
    runs.sort(key=lambda run: run[0])
    for _, group, folder in progress_bar(runs, "measure", unit=" runs", leave=False, disable=len(runs) < 2):
        embedded = cache.embed(folder)
        one = ranked(embedded, corrections_of(groups, folder))
        measured.add(groups, group, folder, one, gallery, options)
        if judgements:
            measured.judged[folder] = {
                name: judge(embedded.prepared, embedded.scores_of, pairs) for name, pairs in judgements.items()
            }


def corrections_of(groups: Sequence[Group], run: Path) -> list[Correction | None]:
    """Return how a run is ranked: as it is (None), and with which corrections."""
    return list(dict.fromkeys(group.correction for group in groups if run in group.runs))


def ranked(embedded: EmbeddedSplit, corrections: Sequence[Correction | None]) -> Ranked:
    """Return what of a run is ranked. Raises BadInput if its bank holds what is measured, and may not."""
    run, bank = embedded.run, None
    if any(corrections):
        bank = read_bank(run.folder)
        if bank and not all(one.transductive for one in corrections if one):
            check_bank(run.folder, bank, embedded.split)
    return Ranked(run.settings.similarity, embedded.images, embedded.captions, bank)


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


def write_runs(folder: Path, group: Group, run: Path, one: Ranked, gallery: Gallery) -> None:
    """Write the TREC runs of a run, or of a model, as it is: one of each direction."""
    name = file_name(run.name if group.info else group.name)
    for direction in DIRECTIONS:
        path = folder / f"{name}.{direction}.run"
        write_run(path, name, one.scorer(direction), direction, (one.images, one.captions), gallery)


def pairs_of(group: Group, one: Ranked, gallery: Gallery, options: EvalOptions) -> PairScores:
    """Score the first images of the gallery against the first caption of each."""
    scores, rows = first_pairs(one.scorer(DIRECTIONS[0]), one.images, one.captions, gallery.image_of_caption)
    images = [gallery.images[row] for row in gallery.image_of_caption[rows].tolist()]
    measure = group.settings.similarity if group.settings else "score" if one.scores else options.similarity or "cosine"
    captions = [gallery.captions[row] for row in rows.tolist()]
    paths = [gallery.paths.get(image) for image in images]
    return PairScores(group.runs[0].name, SCORE_NAMES[measure], scores, captions, images, paths)


def rows_of(
    groups: Sequence[Group], measured: Measurements, result: ProtocolResult, against: Group | None, paper: bool
) -> list[ResultRow]:
    """Return a row per group, and the published ones if asked for."""
    rows = compare(groups, result, against)
    if measured.judged:
        judged = [of_seeds([measured.judged[run] for run in g.runs]) if g.plain and g.info else None for g in groups]
        rows = [replace(row, judgements=each) for row, each in zip(rows, judged, strict=True)]
    published = published_rows(result.dataset, result.protocol) if paper else []
    published = [replace(row, folder=result.folder) for row in published]
    if paper and not published:
        warn(f"nothing published is known for {result.dataset}, {result.protocol}")
    return rows + published


def of_seeds(judged: Sequence[Mapping[str, Judgement]]) -> dict[str, Judgement]:
    """Join what was said of the runs of a row."""
    first, *_ = judged
    return {name: replace(first[name], taus=tuple(tau for one in judged for tau in one[name].taus)) for name in first}


def report_of(
    groups: Sequence[Group], gallery: Gallery, measured: Measurements, rows: Sequence[ResultRow], figures: Figures
) -> Report:
    """Put together tables, figures, each row's recipe, and the best and worst queries of its first run."""
    plain = [group for group in groups if group.plain]
    judged = [replace(table, title=f"Human judgements, {KENDALL}") for table in judgement_tables(rows)]
    tables = [table for part in parts_of(rows) for table in (result_table(part), *metric_tables(part))] + judged
    seeds = f", seed {plain[-1].seeds[0]} of each row" if plain[-1].seeds else ""
    recipes = {g.name: {**to_table(g.settings), "features": list(g.features)} for g in plain if g.settings}
    return Report(
        f"Image–text retrieval, {rows[0].data}, {rows[0].split} split",
        tables,
        list(dict.fromkeys(note for table in tables for note in table.notes)),
        dict(figures.values()),
        measured.queries,
        # whatever folds the tables average over: a query of a whole split says more than one of its fifth
        f"Ranked among all {gallery.size} of the split{seeds}.",
        gallery.paths,
        {name: tomli_w.dumps(table) for name, table in recipes.items()},
    )

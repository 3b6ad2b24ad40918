"""Runs side by side: those that differ by seed alone make one row, with its mean, its spread and its interval."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.judgements import Judgement
from metrics.bootstrap import (
    ALPHA,
    bootstrap,
    hits_per_image,
    interval,
    queries_per_image,
    shares_of_rsum,
    sign_flip_test,
)
from metrics.protocols import Fold, metrics_of_folds
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS, RECALLS, Ranks, mean_of, rsum
from settings import Settings, flat_table, read_recipe
from training.run import RESULT, RunInfo, find_runs, read_run_config
from utils import BadInput, did_you_mean, warn

DirectionMetrics = Mapping[str, float]  # COLUMNS of one direction; what a paper does not report is missing


@dataclass(frozen=True)
class Correction:
    """A test-time correction. bank: "train", drawn from the training split, or "test", the queries that are ranked."""

    name: str
    bank: str

    @property
    def transductive(self) -> bool:
        return self.bank == "test"

    @property
    def label(self) -> str:
        return f"{self.name} ({'transductive' if self.transductive else 'inductive'})"


@dataclass(frozen=True)
class Spread:
    """Standard deviations over seeds (n - 1)."""

    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics
    rsum: float


@dataclass(frozen=True)
class Interval:
    """Ends of 95 % bootstrap intervals over images with all their captions, of figures averaged over seeds."""

    image_to_text: Mapping[str, tuple[float, float]]
    text_to_image: Mapping[str, tuple[float, float]]
    rsum: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """How far the rsum of a row lies from that of `row`, the interval of the difference, and a sign-flip test."""

    row: str
    difference: float
    interval: tuple[float, float]
    p: float
    verdict: str


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """A row of a table: runs that differ by seed alone, or what was published.

    run: the run's name, or the row's if it has several; row: its name; image_to_text, text_to_image, rsum: means over
    seeds. std: of several seeds. against: absent in the row that others are held against. correction: its name where
    scores are corrected, and whether that took the test queries together (transductive) or each alone. trained_on: the
    data, where others were measured.
    """

    run: str
    row: str
    dataset: str
    split: str
    protocol: str
    images: int | None
    captions: int | None
    features: tuple[str, ...] = ()
    image_to_text: DirectionMetrics
    text_to_image: DirectionMetrics
    rsum: float | None
    runs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    std: Spread | None = None
    interval: Interval | None = None
    against: Comparison | None = None
    judgements: Mapping[str, Judgement] | None = None
    correction: str | None = None
    transductive: bool | None = None
    trained_on: str | None = None
    published: bool = False
    image_features: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class ProtocolResult:
    """What one protocol gave: its galleries, and the ranks in each of every run or ensemble of runs, as it is (None) or
    corrected.
    """

    dataset: str
    split: str
    protocol: str
    folds: Sequence[Fold]
    ranks: dict[tuple[tuple[Path, ...], Correction | None], list[Ranks]]

    def of(self, group: "Group") -> list[list[Ranks]]:
        """Return the ranks of each run of a group, or those of all its runs together."""
        return [self.ranks[runs, group.correction] for runs in group.ranked]


@dataclass(frozen=True)
class Group:
    """The runs of one row, by seed. info: of the first of them; the others differ from it in seed alone.

    trained_on: the prepared folder of training, by name, where another one is measured.
    ensemble: which of them are ranked together, by the mean of their scores; () for each by itself. Those of an
    ensemble may differ in anything.
    """

    name: str
    settings: Settings
    info: RunInfo
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    correction: Correction | None = None
    trained_on: str | None = None
    ensemble: tuple[tuple[Path, ...], ...] = ()

    @property
    def ranked(self) -> Sequence[tuple[Path, ...]]:
        """Return which of its runs are ranked together: each by itself, or those of each ensemble."""
        return self.ensemble or [(run,) for run in self.runs]

    @property
    def plain(self) -> bool:
        """Return whether it is what was trained, neither corrected nor an ensemble."""
        return self.correction is None and not self.ensemble


def finished_runs(patterns: Sequence[str], root: Path) -> list[Path]:
    """Find the run folders that paths, names under the folder `root` and patterns stand for.

    What is half-finished is left out, and logged. Raises BadInput where nothing else is left, and for a pattern that
    matches no run.
    """
    folders = list(find_runs(patterns, root))
    unfinished = [path for path in folders if not (path / RESULT).is_file()]
    for path in unfinished:
        read_run_config(path)  # a folder that is no run at all is an error, not a half-finished run
    if not unfinished:
        return folders
    names = ", ".join(str(path) for path in unfinished)
    whose = "its" if len(unfinished) == 1 else "their"
    remedy = f"{whose} training has not finished; repeat the train.py command and it continues"
    if len(unfinished) == len(folders):
        raise BadInput(f"{names}: {remedy}")
    warn(f"left out: {names}: {remedy}")
    return [path for path in folders if path not in unfinished]


def by_dataset(folders: Sequence[Path]) -> list[list[Path]]:
    """Return the runs of each dataset, in the order in which datasets and runs came."""
    parts: dict[str, list[Path]] = {}
    for folder in folders:
        parts.setdefault(read_run_config(folder)[1].dataset, []).append(folder)
    return list(parts.values())


def group_runs(folders: Sequence[Path]) -> list[Group]:
    """Group runs with the same recipe, settings and features: recipes and features in the order in which they came, and
    what shares both by the values in which it differs, so that a sweep reads in order.

    Raises BadInput for two runs that are the same in everything, dataset and seed included.
    """
    members: dict[tuple, list[tuple[Path, Settings, RunInfo]]] = {}
    for folder in folders:
        settings, info = read_run_config(folder)
        data = info.dataset, info.captions, info.from_digest
        key = (info.recipe, settings.digest(), info.features, info.digests, *data)
        members.setdefault(key, []).append((folder, settings, info))
    recipes, features = ({key[i]: None for key in members} for i in (0, 2))
    ordered = sorted(
        members.values(),
        key=lambda group: (
            list(recipes).index(group[0][2].recipe),
            list(features).index(group[0][2].features),
            list(flat_table(group[0][1]).values()),
        ),
    )
    names = row_names([(settings, info) for (_, settings, info), *_ in ordered])
    return [_group(name, group) for name, group in zip(names, ordered, strict=True)]


def _group(name: str, members: list[tuple[Path, Settings, RunInfo]]) -> Group:
    members = sorted(members, key=lambda member: member[2].seed)
    for (one, _, info), (two, _, other) in pairwise(members):
        if info.seed == other.seed:
            raise BadInput(f"{one} and {two} are the same run, seed {info.seed} included; name only one of them")
    _, settings, info = members[0]
    return Group(name, settings, info, tuple(m[0] for m in members), tuple(m[2].seed for m in members))


def ensemble_of(groups: Sequence[Group], way: str) -> Group:
    """Return a row of runs that are ranked together. Raises BadInput where nothing comes together.

    way: "all", one ensemble of all runs; "seed", one of each seed, with a run of every group, a group of a single run
    (a closed form, which every seed gives the same) in all of them. Its features are those of any of them, its settings
    those of the first.
    """
    runs = tuple(run for group in groups for run in group.runs)
    first, *_ = groups
    seeds = max((group.seeds for group in groups), key=len)
    together: tuple[tuple[Path, ...], ...] = (runs,)
    if way == "all":
        seeds = ()
    else:
        odd = [group.name for group in groups if len(group.runs) > 1 and group.seeds != seeds]
        if odd:
            raise BadInput(
                f"`ensemble` seed: {odd[0]} has other seeds than the rest; train those, or take all together"
            )
        several = (group.runs * len(seeds) if len(group.runs) == 1 else group.runs for group in groups)
        together = tuple(zip(*several, strict=True))
    if len(together[0]) == 1:
        raise BadInput(f"`ensemble` {way}: {runs[0]} is alone, and its scores have no mean; name other runs, too")
    features = tuple(dict.fromkeys(name for group in groups for name in group.info.features))
    info = replace(first.info, features=features)
    names = " + ".join(group.name for group in groups)
    name = f"ensemble of {len(runs)} runs" if way == "all" else f"ensemble: {names}"
    return Group(name, first.settings, info, runs, seeds, ensemble=together)


def row_names(systems: Sequence[tuple[Settings, RunInfo]]) -> list[str]:
    """Name each of several systems that differ: the recipe; where several share one, what they have otherwise than the
    recipe, of the settings in which they differ from each other; and their features and the data that they were
    trained on, where those differ.

    `vse0`, `vse0 loss.margin=0.1`, `vse0 loss.margin=0.1, vgg19`
    """
    tables = [flat_table(settings) for settings, _ in systems]
    features = ["+".join(info.features) for _, info in systems]
    weights = [features[i] + "@" + "+".join(d[:8] for d in info.digests) for i, (_, info) in enumerate(systems)]
    if len(set(weights)) > len(set(features)):  # features of one name from other weights
        features = weights
    names = []
    for (_, info), table, feature in zip(systems, tables, features, strict=True):
        peers = [t for t, (_, other) in zip(tables, systems, strict=True) if other.recipe == info.recipe]
        recipe = _recipe_of(info)
        keys = [key for key in table if any(t[key] != table[key] for t in peers) and recipe.get(key) != table[key]]
        words = [info.recipe, *(f"{key}={_word(table[key])}" for key in keys)]
        words += ["from", Path(info.from_run).name] if info.from_run else []
        words[-1] += f", {feature}" if len(set(features)) > 1 else ""
        names.append(" ".join(words) + (trained_on(info) if len({i.captions for _, i in systems}) > 1 else ""))
    return names


def trained_on(info: RunInfo) -> str:
    """Return what stands at the end of a row's name where it matters what its runs were trained on."""
    return f", trained on {Path(info.data).name}"


def _recipe_of(info: RunInfo) -> dict[str, Any]:
    """Return the recipe's own settings; {} where it is a file of the user's, or has gone since."""
    try:
        return flat_table(read_recipe(info.recipe))
    except BadInput:
        return {}


def _word(value: Any) -> str:
    """Write a value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_row(wanted: str, groups: Sequence[Group]) -> Group:
    """Find the group that is meant: by the name of its row, by one of its runs, or by a pattern of either.

    Raises BadInput if there is none, naming the nearest, or several.
    """
    names = {group.name: group for group in groups}
    groups = [group for group in groups if group.plain]  # a run or a pattern stands for its plain row
    runs = {path.name: group for group in groups for path in group.runs}
    name = Path(wanted.rstrip("/")).name
    for table, key in ((names, wanted), (runs, name)):
        if key in table:
            return table[key]
    hits = [group for n, group in names.items() if group in groups and fnmatch.fnmatchcase(n, wanted)]
    hits = hits or [group for group in groups if any(fnmatch.fnmatchcase(path.name, name) for path in group.runs)]
    # a recipe's name is enough where it has one row, whatever that row's name says besides
    hits = hits or [group for group in groups if group.info.recipe == wanted]
    if len(hits) == 1:
        return hits[0]
    if hits:
        several = "; ".join(group.name for group in hits)
        raise BadInput(f"`against` {wanted}: stands for several rows ({several}); name one of them")
    hint = did_you_mean(wanted, [*names, *runs])
    if hint.startswith("known"):  # nothing is near: the rows are enough of an answer
        hint = f"its rows: {'; '.join(names)}"
    raise BadInput(f"`against` {wanted}: no such row in this table; {hint}")


def compare(groups: Sequence[Group], result: ProtocolResult, against: Group | None = None) -> list[ResultRow]:
    """Return a row per group. against: the group that the others are held against.

    >>> fold = Fold(0, 2, np.arange(4), np.array([0, 0, 1, 1]))
    >>> ranks = {((Path("runs/a"),), None): [Ranks(np.array([1, 3]), np.array([1, 2, 1, 1]))]}
    >>> info = RunInfo("vse0", "flickr8k", "data/flickr8k", ("vgg19",), ("d1",), (4096,), 0, "", ())
    >>> group = Group("vse0", Settings(), info, (Path("runs/a"),), (0,))
    >>> (row,) = compare([group], ProtocolResult("flickr8k", "test", "test 2", [fold], ranks))
    >>> row.image_to_text["R@1"], row.text_to_image["R@1"], row.rsum, row.interval.rsum
    (50.0, 75.0, 525.0, (500.0, 550.0))
    """
    folds = result.folds
    queries = np.concatenate([queries_per_image(f.image_of_caption, f.stop - f.start, len(CUTOFFS)) for f in folds])
    hits = np.stack([np.mean([_hits(ranks, folds) for ranks in result.of(g)], axis=0) for g in groups])
    drawn = bootstrap(hits, queries, len(folds))
    tests: list[Comparison | None] = [None] * len(groups)
    if against is not None:
        base = list(groups).index(against)
        shares = shares_of_rsum(hits, queries, len(folds))
        differences, sums = shares - shares[base], drawn.sum(axis=2)
        for number, p in enumerate(sign_flip_test(differences)):
            if number != base:
                difference, ends = float(differences[number].sum()), _ends(sums[:, number] - sums[:, base])
                verdict = "no more than noise" if p >= ALPHA else "higher" if difference > 0 else "lower"
                tests[number] = Comparison(against.name, difference, ends, float(p), verdict)
    return [_row(group, result, drawn[:, number], tests[number]) for number, group in enumerate(groups)]


def _hits(ranks: Sequence[Ranks], folds: Sequence[Fold]) -> np.ndarray:
    """Return (N, C) hits of every image, for a run."""
    pairs = zip(ranks, folds, strict=True)
    return np.concatenate(
        [hits_per_image(r.image_to_text, r.text_to_image, fold.image_of_caption, CUTOFFS) for r, fold in pairs]
    )


def _row(group: Group, result: ProtocolResult, drawn: np.ndarray, against: Comparison | None) -> ResultRow:
    """drawn: (samples, C) recalls of resampled images."""
    metrics = [metrics_of_folds(ranks) for ranks in result.of(group)]
    several = len(metrics) > 1
    spread = {d: {c: _std([m[d][c] for m in metrics]) for c in COLUMNS} for d in DIRECTIONS} if several else {}
    ends: dict[str, dict[str, tuple[float, float]]] = {direction: {} for direction in DIRECTIONS}
    for number, (direction, column) in enumerate(RECALLS):
        ends[direction][column] = _ends(drawn[:, number])
    mean = mean_of(metrics)
    return ResultRow(
        run=group.runs[0].name if group.plain and not several else group.name,
        row=group.name,
        dataset=result.dataset,
        split=result.split,
        protocol=result.protocol,
        images=sum(fold.stop - fold.start for fold in result.folds),
        captions=sum(len(fold.captions) for fold in result.folds),
        features=group.info.features,
        image_to_text=mean["image_to_text"],
        text_to_image=mean["text_to_image"],
        rsum=float(np.mean([rsum(m) for m in metrics])),
        runs=tuple(path.name for path in group.runs),
        seeds=group.seeds,
        std=Spread(**spread, rsum=_std([rsum(m) for m in metrics])) if several else None,
        interval=Interval(**ends, rsum=_ends(drawn.sum(axis=1))),
        against=against,
        correction=group.correction.name if group.correction else None,
        transductive=group.correction.transductive if group.correction else None,
        trained_on=group.trained_on,
    )


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = interval(values).tolist()
    return low, high

"""Rows side by side: the mean of each over its seeds, its spread, its interval, and its test against another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.groups import Correction, Group
from evaluation.judgements import Judgement
from metrics.bootstrap import ALPHA, bootstrap, interval, per_image, recalls_of, shares_of_rsum, sign_flip_test
from metrics.positions import metric_columns
from metrics.protocols import Fold, metrics_of_folds
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS, RECALLS, Ranks, mean_of, rsum

DirectionMetrics = Mapping[str, float]  # COLUMNS of one direction; what a paper does not report is missing


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
class Estimate:
    """A metric in percent, averaged over seeds. interval: of 95 %, as in Interval; std: of several seeds."""

    mean: float
    interval: tuple[float, float]
    std: float | None = None


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
    scores are corrected, and whether that took the test queries together (transductive) or each alone. more: by
    direction, the metrics that were asked for besides. queries: how many images and captions were asked, where that is
    not all of them. trained_on: the data, where others were measured. folder: the prepared folder that was measured, by
    name, where that is not the dataset's. source: where a published row is from, or the files of a model of somebody
    else.
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
    more: Mapping[str, Mapping[str, Estimate]] | None = None
    queries: tuple[int, int] | None = None
    external: bool = False
    published: bool = False
    image_features: str | None = None
    source: str | None = None
    folder: str | None = None

    @property
    def data(self) -> str:
        """What heads its table: the prepared folder's name, or else the dataset's."""
        return self.folder or self.dataset


@dataclass(frozen=True)
class ProtocolResult:
    """What one protocol gave: its galleries, and the ranks in each of every run or ensemble of runs, as it is (None) or
    corrected. metrics: names of METRICS in metrics/positions.py, which are measured besides.
    """

    dataset: str
    split: str
    protocol: str
    folds: Sequence[Fold]
    ranks: dict[tuple[tuple[Path, ...], Correction | None], list[Ranks]]
    metrics: tuple[str, ...] = ()
    folder: str | None = None  # as in ResultRow

    def of(self, group: "Group") -> list[list[Ranks]]:
        """Return the ranks of each run of a group, or those of all its runs together."""
        return [self.ranks[runs, group.correction] for runs in group.ranked]


def compare(groups: Sequence[Group], result: ProtocolResult, against: Group | None = None) -> list[ResultRow]:
    """Return a row per group. against: the group that the others are held against.

    >>> fold = Fold(0, 2, np.arange(4), np.array([0, 0, 1, 1]))
    >>> ranks = {((Path("clip"),), None): [Ranks(np.array([1, 3]), np.array([1, 2, 1, 1]))]}
    >>> group = Group("clip", None, None, (Path("clip"),), ())
    >>> (row,) = compare([group], ProtocolResult("flickr8k", "test", "test 2", [fold], ranks))
    >>> row.image_to_text["R@1"], row.text_to_image["R@1"], row.rsum, row.interval.rsum
    (50.0, 75.0, 525.0, (500.0, 550.0))
    """
    folds = result.folds
    several = [[_sums(ranks, result) for ranks in result.of(group)] for group in groups]
    hits = np.stack([np.mean([hit for hit, _ in runs], axis=0) for runs in several])
    queries = several[0][0][1]  # the same for all
    drawn = bootstrap(hits, queries, len(folds))
    tests: list[Comparison | None] = [None] * len(groups)
    if against is not None:
        base, recalls = list(groups).index(against), slice(0, len(RECALLS))
        shares = shares_of_rsum(hits[..., recalls], queries[:, recalls], len(folds))
        differences, sums = shares - shares[base], drawn[..., recalls].sum(axis=2)
        for number, p in enumerate(sign_flip_test(differences)):
            if number != base:
                difference, ends = float(differences[number].sum()), _ends(sums[:, number] - sums[:, base])
                verdict = "no more than noise" if p >= ALPHA else "higher" if difference > 0 else "lower"
                tests[number] = Comparison(against.name, difference, ends, float(p), verdict)
    once = np.ones((1, len(queries)))
    means = [recalls_of(once, np.stack([hit for hit, _ in runs]), queries, len(folds))[0] for runs in several]
    return [_row(group, result, drawn[:, n], tests[n], means[n]) for n, group in enumerate(groups)]


def _sums(ranks: Sequence[Ranks], result: ProtocolResult) -> tuple[np.ndarray, np.ndarray]:
    """Return what the queries of every image add up to (N, C), for a run, and how many they are (N, C): the recalls,
    then the other metrics, each in both directions.
    """
    columns = metric_columns(result.metrics)

    def of_fold(one: Ranks, fold: Fold) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        asked, images = fold.images_of_queries(one), fold.stop - fold.start
        values = {d: [getattr(one, d) <= k for k in CUTOFFS] for d in DIRECTIONS}
        parts = [(direction, values[direction]) for direction in DIRECTIONS]
        if columns:
            assert one.positions is not None
            parts += [(d, [metric(one.positions[d]) for metric in columns.values()]) for d in DIRECTIONS]
        for direction, part in parts:
            ones = [np.ones(len(asked[direction]))] * len(part)
            yield per_image(part, asked[direction], images), per_image(ones, asked[direction], images)

    of_folds = [list(of_fold(*pair)) for pair in zip(ranks, result.folds, strict=True)]
    hits, queries = (np.concatenate([np.hstack([p[i] for p in parts]) for parts in of_folds]) for i in (0, 1))
    return hits, queries


def _row(
    group: Group, result: ProtocolResult, drawn: np.ndarray, against: Comparison | None, means: np.ndarray
) -> ResultRow:
    """drawn: (samples, C) means of resampled images; means: (seeds, C) of all images."""
    metrics = [metrics_of_folds(ranks) for ranks in result.of(group)]
    several = len(metrics) > 1
    spread = {d: {c: _std([m[d][c] for m in metrics]) for c in COLUMNS} for d in DIRECTIONS} if several else {}
    ends: dict[str, dict[str, tuple[float, float]]] = {direction: {} for direction in DIRECTIONS}
    for number, (direction, column) in enumerate(RECALLS):
        ends[direction][column] = _ends(drawn[:, number])
    more: dict[str, dict[str, Estimate]] = {direction: {} for direction in DIRECTIONS}
    others = [(direction, column) for direction in DIRECTIONS for column in metric_columns(result.metrics)]
    for number, (direction, column) in enumerate(others, len(RECALLS)):
        std = _std(means[:, number].tolist()) if several else None
        more[direction][column] = Estimate(float(means[:, number].mean()), _ends(drawn[:, number]), std)
    mean, images = mean_of(metrics), sum(fold.stop - fold.start for fold in result.folds)
    captions, ranks = sum(len(fold.captions) for fold in result.folds), result.of(group)[0]
    asked = sum(len(one.image_to_text) for one in ranks), sum(len(one.text_to_image) for one in ranks)
    return ResultRow(
        run=group.runs[0].name if group.plain and not several else group.name,
        row=group.name,
        dataset=result.dataset,
        split=result.split,
        protocol=result.protocol,
        images=images,
        captions=captions,
        features=group.features,
        image_to_text=mean["image_to_text"],
        text_to_image=mean["text_to_image"],
        rsum=float(np.mean([rsum(m) for m in metrics])),
        runs=tuple(path.name for path in group.runs),
        seeds=group.seeds,
        std=Spread(**spread, rsum=_std([rsum(m) for m in metrics])) if several else None,
        interval=Interval(**ends, rsum=_ends(drawn[:, : len(RECALLS)].sum(axis=1))),
        against=against,
        correction=group.correction.name if group.correction else None,
        transductive=group.correction.transductive if group.correction else None,
        trained_on=group.trained_on,
        more=more if others else None,
        queries=None if asked == (images, captions) else asked,
        external=bool(group.files),
        source=", ".join(map(str, group.files)) or None,
        folder=result.folder,
    )


def _std(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1))


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = interval(values).tolist()
    return low, high

"""Runs side by side: those that differ by seed alone make one row, with its mean, its spread and its interval."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

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
from metrics.ranks import COLUMNS, CUTOFFS, DIRECTIONS, Ranks, mean_of, rsum
from settings import Settings, flat_table, read_recipe
from training.run import RESULT, RunInfo, find_runs, read_run_config
from utils import BadInput, did_you_mean

RECALLS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in CUTOFFS]


@dataclass(frozen=True)
class Group:
    """The runs of one row, by seed. info: of the first of them; the others differ from it in seed alone."""

    name: str
    settings: Settings
    info: RunInfo
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]


def finished_runs(patterns: Sequence[str], root: Path, log: Callable[[str], None]) -> list[Path]:
    """The run folders that paths, names under `root` and patterns stand for. What is half-finished is left out, and
    said; where nothing else is left, that is an error. Raises BadInput for a pattern that matches no run.
    """
    found = list(find_runs(patterns, root))
    unfinished = [path for path in found if not (path / RESULT).is_file()]
    for path in unfinished:
        read_run_config(path)  # a folder that is no run at all is an error, not a half-finished run
    if not unfinished:
        return found
    names = ", ".join(str(path) for path in unfinished)
    whose = "its" if len(unfinished) == 1 else "their"
    remedy = f"{whose} training has not finished; repeat the train.py command and it continues"
    if len(unfinished) == len(found):
        raise BadInput(f"{names}: {remedy}")
    log(f"left out: {names}: {remedy}")
    return [path for path in found if path not in unfinished]


def group_runs(folders: Sequence[Path]) -> list[Group]:
    """Runs with the same recipe, settings and features: recipes and features in the order in which they came, and what
    shares both by the values in which it differs, so that a sweep reads in order.

    Raises BadInput for runs of different datasets, and for two runs that are the same in everything, seed included.
    """
    members: dict[tuple, list[tuple[Path, Settings, RunInfo]]] = {}
    first: tuple[Path, RunInfo] | None = None
    for folder in folders:
        settings, info = read_run_config(folder)
        first = first or (folder, info)
        if info.dataset != first[1].dataset:
            raise BadInput(
                f"{folder} was trained on {info.dataset}, {first[0]} on {first[1].dataset}: one table takes runs of "
                f"one dataset; name those of one, for example with '*-{info.dataset}-*'"
            )
        key = (info.recipe, settings.digest(), info.features, info.digests)
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


def row_names(systems: Sequence[tuple[Settings, RunInfo]]) -> list[str]:
    """A name for each of several systems that differ: the recipe; where several share one, what they have otherwise
    than the recipe, of the settings in which they differ from each other; and their features, where those differ.

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
        own = _recipe_of(info)
        keys = [key for key in table if any(t[key] != table[key] for t in peers) and own.get(key) != table[key]]
        words = [info.recipe, *(f"{key}={_word(table[key])}" for key in keys)]
        names.append(" ".join(words) + (f", {feature}" if len(set(features)) > 1 else ""))
    return names


def _recipe_of(info: RunInfo) -> dict[str, Any]:
    """The recipe's own settings; nothing where it is a file of the user's, or has gone since."""
    try:
        return flat_table(read_recipe(info.recipe))
    except BadInput:
        return {}


def _word(value: Any) -> str:
    """A value as `--set` takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def find_row(wanted: str, groups: Sequence[Group]) -> Group:
    """The group that `--against` means: by the name of its row, by one of its runs, or by a pattern of either.

    Raises BadInput if there is none, naming the nearest, or several.
    """
    names = {group.name: group for group in groups}
    runs = {path.name: group for group in groups for path in group.runs}
    name = Path(wanted.rstrip("/")).name
    for table, key in ((names, wanted), (runs, name)):
        if key in table:
            return table[key]
    hits = [group for n, group in names.items() if fnmatch.fnmatchcase(n, wanted)]
    hits = hits or [group for group in groups if any(fnmatch.fnmatchcase(path.name, name) for path in group.runs)]
    # a recipe's name is enough where it has one row, whatever that row's name says besides
    hits = hits or [group for group in groups if group.info.recipe == wanted]
    if len(hits) == 1:
        return hits[0]
    if hits:
        several = "; ".join(group.name for group in hits)
        raise BadInput(f"--against {wanted}: stands for several rows ({several}); name one of them")
    hint = did_you_mean(wanted, [*names, *runs])
    if hint.startswith("known"):  # nothing is near: the rows are enough of an answer
        hint = f"its rows: {'; '.join(names)}"
    raise BadInput(f"--against {wanted}: no such row in this table; {hint}")


def compare(
    groups: Sequence[Group],
    ranks: Mapping[Path, Sequence[Ranks]],
    folds: Sequence[Fold],
    about: Mapping[str, Any],
    against: Group | None = None,
) -> list[dict[str, Any]]:
    """A row per group. ranks: run folder → Ranks of each fold; about: dataset, split and protocol of the table.

    Every row has, beside the keys of `about`, images, captions, both directions (means over seeds) and rsum:

    run: the run's name, or the row's if there are several; row: the row's name; runs, seeds: of the group; features.
    std: {direction: {column: …}, "rsum": …}, standard deviations over seeds (n - 1); only with several seeds.
    interval: {direction: {"R@1": [low, high], …}, "rsum": [low, high]}: 95 % bootstrap over images with all their
    captions, of figures averaged over seeds: what other images would change, not what other seeds would.
    against: {"row", "difference", "interval", "p", "verdict"} of rsum against the row `against`; absent in that row.
    """
    queries = np.concatenate(
        [queries_per_image(fold.image_of_caption, fold.stop - fold.start, len(CUTOFFS)) for fold in folds]
    )
    hits = np.stack([_mean_hits([ranks[run] for run in group.runs], folds) for group in groups])
    drawn = bootstrap(hits, queries, len(folds))
    info = {
        **about,
        "images": len(queries),
        "captions": sum(len(fold.captions) for fold in folds),
    }
    rows = [
        _row(group, [metrics_of_folds(list(ranks[run])) for run in group.runs], drawn[:, number], info)
        for number, group in enumerate(groups)
    ]
    if against is not None:
        base = list(groups).index(against)
        shares = shares_of_rsum(hits, queries, len(folds))
        differences = shares - shares[base]
        tests = sign_flip_test(differences)
        sums = drawn.sum(axis=2)
        for number, row in enumerate(rows):
            if number != base:
                ends = interval(sums[:, number] - sums[:, base])
                row["against"] = _verdict(against.name, differences[number].sum(), ends, tests[number])
    return rows


def _mean_hits(runs: Iterable[Sequence[Ranks]], folds: Sequence[Fold]) -> np.ndarray:
    """(N, C) hits of every image, averaged over the runs of a group."""
    return np.mean(
        [
            np.concatenate(
                [
                    hits_per_image(r.image_to_text, r.text_to_image, fold.image_of_caption, CUTOFFS)
                    for r, fold in zip(ranks, folds, strict=True)
                ]
            )
            for ranks in runs
        ],
        axis=0,
    )


def _row(group: Group, metrics: list[dict], drawn: np.ndarray, info: Mapping[str, Any]) -> dict[str, Any]:
    """metrics: of each run; drawn: (samples, C) recalls of resampled images."""
    several = len(group.runs) > 1
    row = {
        "run": group.name if several else group.runs[0].name,
        "row": group.name,
        **info,
        "features": list(group.info.features),
        **mean_of(metrics),
        "rsum": float(np.mean([rsum(m) for m in metrics])),
        "runs": [path.name for path in group.runs],
        "seeds": list(group.seeds),
    }
    if several:
        spread = {d: {c: float(np.std([m[d][c] for m in metrics], ddof=1)) for c in COLUMNS} for d in DIRECTIONS}
        row["std"] = {**spread, "rsum": float(np.std([rsum(m) for m in metrics], ddof=1))}
    ends = interval(drawn).T.tolist()
    intervals: dict[str, Any] = {direction: {} for direction in DIRECTIONS}
    for (direction, column), pair in zip(RECALLS, ends, strict=True):
        intervals[direction][column] = pair
    row["interval"] = {**intervals, "rsum": interval(drawn.sum(axis=1)).tolist()}
    return row


def _verdict(base: str, difference: float, ends: np.ndarray, p: float) -> dict[str, Any]:
    word = "no more than noise" if p >= ALPHA else "higher" if difference > 0 else "lower"
    return {"row": base, "difference": float(difference), "interval": ends.tolist(), "p": float(p), "verdict": word}

"""The rows of a table before they are measured: runs that differ by seed alone, models of others, and ensembles."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from settings import Settings, flat_table, read_recipe
from training.run import RESULT, RunInfo, find_runs, read_run_config
from utils import BadInput, did_you_mean, warn


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
class Group:
    """The runs of one row, by seed. info: of the first of them; the others differ from it in seed alone.

    A model of somebody else has neither settings nor info; its one "run" is its name, and files are where its scores or
    embeddings lie. banks: what may correct it; excluded: corrections that cannot. trained_on: the prepared folder of
    training, by name, where another one is measured. ensemble: which of the runs are ranked together, by the mean of
    their scores; () for each by itself. Those of an ensemble may differ in anything.
    """

    name: str
    settings: Settings | None
    info: RunInfo | None
    runs: tuple[Path, ...]
    seeds: tuple[int, ...]
    correction: Correction | None = None
    trained_on: str | None = None
    ensemble: tuple[tuple[Path, ...], ...] = ()
    files: tuple[Path, ...] = ()
    banks: tuple[str, ...] = ("train", "test")
    excluded: tuple[str, ...] = ()

    @property
    def ranked(self) -> Sequence[tuple[Path, ...]]:
        """Return which of its runs are ranked together: each by itself, or those of each ensemble."""
        return self.ensemble or [(run,) for run in self.runs]

    @property
    def plain(self) -> bool:
        """Return whether it is what was trained, neither corrected nor an ensemble."""
        return self.correction is None and not self.ensemble

    @property
    def features(self) -> tuple[str, ...]:
        return self.info.features if self.info else ()


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
    listed = next((group for group in groups if group.files and not group.banks), None)
    if listed:
        raise BadInput(
            f"`ensemble` {way}: {listed.name} is a TREC run, which has no score of what it leaves out, and so no mean; "
            f"give its scores or embeddings"
        )
    if way == "all":
        seeds = ()
    elif not seeds:
        raise BadInput(f"`ensemble` {way}: none of these rows has seeds; take all together with `ensemble` all")
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
    features = tuple(dict.fromkeys(name for group in groups for name in group.features))
    trained = next((group for group in groups if group.info), first)
    info = replace(trained.info, features=features) if trained.info else None
    names = " + ".join(group.name for group in groups)
    name = f"ensemble of {len(runs)} runs" if way == "all" else f"ensemble: {names}"
    banks = tuple(bank for bank in first.banks if all(bank in group.banks for group in groups))
    excluded = tuple(name for group in groups for name in group.excluded)
    return Group(name, trained.settings, info, runs, seeds, ensemble=together, banks=banks, excluded=excluded)


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
    starts, names = _starts([info for _, info in systems]), []
    for (_, info), table, feature, start in zip(systems, tables, features, starts, strict=True):
        peers = [t for t, (_, other) in zip(tables, systems, strict=True) if other.recipe == info.recipe]
        recipe = _recipe_of(info)
        keys = [key for key in table if any(t[key] != table[key] for t in peers) and recipe.get(key) != table[key]]
        words = [info.recipe, *(f"{key}={_word(table[key])}" for key in keys)]
        words += ["from", start] if start else []
        words[-1] += f", {feature}" if len(set(features)) > 1 else ""
        names.append(" ".join(words) + (trained_on(info) if len({i.captions for _, i in systems}) > 1 else ""))
    return names


def _starts(infos: Sequence[RunInfo]) -> list[str]:
    """Name what each system began with, if anything: recipe and data of that run, or its whole name where it has gone,
    or where another system's start has the same.
    """
    short: dict[str, str] = {}
    for run in {info.from_run for info in infos if info.from_run}:
        try:
            start = read_run_config(Path(run))[1]
            short[run] = f"{start.recipe} ({Path(start.data).name})"
        except BadInput:
            short[run] = Path(run).name
    names = list(short.values())
    once = {run: name if names.count(name) == 1 else Path(run).name for run, name in short.items()}
    return [once.get(info.from_run, "") for info in infos]


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
    hits = hits or [group for group in groups if group.info and group.info.recipe == wanted]
    if len(hits) == 1:
        return hits[0]
    if hits:
        several = "; ".join(group.name for group in hits)
        raise BadInput(f"`against` {wanted}: stands for several rows ({several}); name one of them")
    hint = did_you_mean(wanted, [*names, *runs])
    if hint.startswith("known"):  # nothing is near: the rows are enough of an answer
        hint = f"its rows: {'; '.join(names)}"
    raise BadInput(f"`against` {wanted}: no such row in this table; {hint}")

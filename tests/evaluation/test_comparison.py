"""Runs side by side: what makes a row, what it is called, its figures by hand, and what cannot stand in one table."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w

from evaluation import comparison
from evaluation.comparison import ProtocolResult, compare
from evaluation.groups import Group, find_row, finished_runs, group_runs, row_names
from metrics.bootstrap import draw_counts
from metrics.protocols import Protocol, folds_of, metrics_of_folds, protocol_name, protocols_for
from metrics.ranks import CUTOFFS, DIRECTIONS, Ranks
from settings import override, read_recipe, to_table
from training.run import RunInfo
from utils import BadInput


def info(recipe="vse0", features=("vgg19",), digests=("d1",), seed=0, dataset="flickr8k"):
    return RunInfo(recipe, dataset, "data/flickr8k", features, digests, (8,) * len(features), seed, "", ())


def make_run(root, about, changes=None, finished=True, settings=None):
    """A run folder as far as a table's rows are told from it."""
    settings = override(settings or read_recipe(about.recipe), changes or {})
    folder = root / about.run_name(settings)
    folder.mkdir(parents=True)
    run = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(about).items()}
    (folder / "recipe.toml").write_text(tomli_w.dumps({"run": run, **to_table(settings)}))
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def names(*systems):
    return row_names([(override(read_recipe(about.recipe), changes), about) for about, changes in systems])


def test_a_row_is_called_after_its_recipe():
    assert names((info(), {}), (info("vsepp"), {})) == ["vse0", "vsepp"]
    assert names((info(), {"embed_dim": 64}), (info("vsepp"), {})) == ["vse0", "vsepp"], "no other row of that recipe"


def test_rows_of_one_recipe_are_told_apart_by_what_they_changed():
    margins = [(info(), {"loss.margin": margin}) for margin in (0.1, 0.2, 0.3)]
    assert names(*margins) == ["vse0 loss.margin=0.1", "vse0", "vse0 loss.margin=0.3"]
    both = [(info(), {"embed_dim": 64, "text.stem": stem, "loss.margin": m}) for stem, m in ((False, 0.2), (True, 0.1))]
    assert names(*both) == ["vse0", "vse0 text.stem=true loss.margin=0.1"], "embed_dim=64 tells no row from another"


def test_rows_of_a_recipe_that_is_not_here_name_all_that_differs():
    systems = [(override(read_recipe("vse0"), {"embed_dim": dim}), info("my_own")) for dim in (64, 1024)]
    assert row_names(systems) == ["my_own embed_dim=64", "my_own embed_dim=1024"]


def test_features_are_named_where_they_differ():
    assert names((info(), {}), (info(features=("vgg19", "vgg16"), digests=("a", "b")), {})) == [
        "vse0, vgg19",
        "vse0, vgg19+vgg16",
    ]
    assert names((info(digests=("0123456789",)), {}), (info(digests=("abcdefghij",)), {})) == [
        "vse0, vgg19@01234567",
        "vse0, vgg19@abcdefgh",
    ]


def test_what_a_row_began_with_is_short_unless_that_tells_two_not_apart(tmp_path):
    home = replace(info("strong"), data="data/scenes")
    first, again = (str(make_run(tmp_path, replace(home, seed=seed))) for seed in (0, 1))
    gone = str(tmp_path / "strong-gone-vgg19-0-1a2b3c4d")

    def began(start):
        return replace(info("strong"), from_run=start, from_digest=start), {}

    assert names(began(first)) == ["strong from strong (scenes)"]
    assert names(began(gone), (info("strong"), {})) == ["strong from strong-gone-vgg19-0-1a2b3c4d", "strong"]
    assert names(began(first), began(again)) == [f"strong from {Path(start).name}" for start in (first, again)]


def test_runs_that_differ_by_seed_are_one_row(tmp_path):
    runs = [make_run(tmp_path, info(seed=seed), {"loss.margin": m}) for seed in (2, 0) for m in (0.2, 0.1)]
    runs.append(make_run(tmp_path, info("vsepp", seed=5)))
    groups = group_runs([runs[-1], *runs[:-1]])
    assert [(g.name, g.seeds) for g in groups] == [("vsepp", (5,)), ("vse0 loss.margin=0.1", (0, 2)), ("vse0", (0, 2))]
    assert groups[2].runs == (runs[2], runs[0])
    source = replace(read_recipe("vse0"), source="elsewhere")
    again = make_run(tmp_path, info(seed=7), settings=source)
    assert len(group_runs([runs[0], again])) == 1, "where a recipe comes from is no setting"


def test_one_run_twice_is_refused(tmp_path):
    one, two = make_run(tmp_path / "a", info()), make_run(tmp_path / "b", info())
    with pytest.raises(BadInput, match="are the same run, seed 0 included") as error:
        group_runs([one, two])
    assert str(one) in str(error.value)
    assert str(two) in str(error.value)


def test_runs_of_several_datasets_say_what_they_were_trained_on(tmp_path):
    one, coco, two = (
        make_run(tmp_path / str(seed), replace(info(seed=seed, dataset=name), data=f"data/{name}", captions=name))
        for seed, name in enumerate(("flickr8k", "coco", "flickr8k"))
    )
    assert [group.name for group in group_runs([one, two])] == ["vse0"]
    groups = group_runs([one, coco, two])  # as for one table of all of them on one folder
    assert [(g.name, g.seeds) for g in groups] == [
        ("vse0, trained on flickr8k", (0, 2)),
        ("vse0, trained on coco", (1,)),
    ]


def test_half_finished_runs_are_left_out_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    root = Path("runs")
    done, half = make_run(root, info()), make_run(root, info(seed=1), finished=False)
    assert finished_runs(["*vgg19*"], root) == [done]
    sentence = f"left out: {half}: its training has not finished; repeat the train.py command and it continues\n"
    assert capsys.readouterr().err == sentence
    assert finished_runs([str(done), done.name, "runs/*-0-*"], root) == [done], "each once"
    assert capsys.readouterr().err == ""
    for pattern in (half.name, str(half), "*-1-*"):
        with pytest.raises(BadInput, match="its training has not finished"):
            finished_runs([pattern], root)
    with pytest.raises(BadInput, match=r"x\*: no run matches; looked for .* in .*; runs holds 2 runs, such as vse0"):
        finished_runs(["x*"], root)
    with pytest.raises(BadInput, match="holds no run"):
        finished_runs(["x*"], Path("elsewhere"))
    with pytest.raises(BadInput, match="nothing: no such run folder"):
        finished_runs(["nothing"], root)
    Path("empty").mkdir()
    with pytest.raises(BadInput, match="empty: not a run folder"):
        finished_runs([str(done), "empty"], root)


def made(recipe, seeds, name=None):
    about = info(recipe, seed=seeds[0])
    settings = read_recipe(recipe)
    runs = tuple(Path("runs") / replace(about, seed=seed).run_name(settings) for seed in seeds)
    return Group(name or recipe, settings, about, runs, tuple(seeds))


def test_the_row_to_test_against_is_found_by_name_run_and_pattern():
    groups = [made("vse0", [0, 1]), made("vsepp", [0], "vsepp, vgg19"), made("strong", [0], "strong embed_dim=64")]
    strong = groups[2].runs[0]
    for wanted in (
        "strong embed_dim=64",
        strong.name,
        f"runs/{strong.name}/",
        "strong",
        "strong*",
        "*dim=*",
        "runs/strong-*",
    ):
        assert find_row(wanted, groups) is groups[2], wanted
    assert find_row("vse0", groups) is groups[0]
    assert find_row("vsepp", groups) is groups[1]
    assert find_row("vse0-*-1-*", groups) is groups[0]
    with pytest.raises(BadInput, match="`against` vse00: no such row in this table; did you mean vse0"):
        find_row("vse00", groups)
    with pytest.raises(BadInput, match=r"`against` qqq: .*; its rows: vse0; vsepp, vgg19; strong embed_dim=64"):
        find_row("qqq", groups)
    with pytest.raises(BadInput, match=r"stands for several rows \(vse0; vsepp, vgg19\)"):
        find_row("vse*", groups)


def compared(*args) -> list[Any]:
    """The rows of `compare`, in which these tests read what may be absent."""
    return compare(*args)


@pytest.fixture
def measured(monkeypatch):
    """Three groups, twelve images in three folds with 1 to 6 captions each, and random ranks of every run."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), rng.integers(1, 7, 12))
    folds = folds_of(owner, 12, Protocol(folds=3))
    groups = [made("vse0", [0, 1, 2]), made("vsepp", [0]), made("strong", [3, 4])]

    def draw(high):
        return [Ranks(rng.integers(1, high, 4), rng.integers(1, high, len(f.captions))) for f in folds]

    ranks: Any = {
        ((run,), None): draw(high) for group, high in zip(groups, (16, 16, 4), strict=True) for run in group.runs
    }
    monkeypatch.setattr(comparison, "bootstrap", partial(comparison.bootstrap, samples=300))
    return groups, ProtocolResult("flickr8k", "test", "test 12", folds, ranks)


def test_figures_of_a_row_by_hand(measured):
    groups, result = measured
    rows = compared(groups, result)
    for group, row in zip(groups, rows, strict=True):
        each = [metrics_of_folds(ranks) for ranks in result.of(group)]
        sums = [sum(m[way][f"R@{k}"] for way in DIRECTIONS for k in CUTOFFS) for m in each]
        for way in DIRECTIONS:
            for column, value in getattr(row, way).items():
                assert value == pytest.approx(sum(m[way][column] for m in each) / len(each))
                if len(each) > 1:
                    squares = sum((m[way][column] - value) ** 2 for m in each)
                    assert getattr(row.std, way)[column] == pytest.approx((squares / (len(each) - 1)) ** 0.5)
        assert row.rsum == pytest.approx(sum(sums) / len(sums))
        assert row.seeds == group.seeds
        assert row.runs == tuple(run.name for run in group.runs)
        assert (row.images, row.captions) == (12, sum(len(fold.captions) for fold in result.folds))
        assert row.interval.rsum[0] <= row.rsum <= row.interval.rsum[1]
    assert rows[0].run == rows[0].row == "vse0"
    assert rows[0].std.rsum == pytest.approx(np.std([sum_of(m) for m in each_of(groups[0], result.ranks)], ddof=1))
    assert (rows[1].run, rows[1].row) == (groups[1].runs[0].name, "vsepp")
    assert rows[1].std is None, "one seed has no deviation"


def each_of(group, ranks):
    return [metrics_of_folds(ranks[(run,), None]) for run in group.runs]


def sum_of(metrics):
    return sum(metrics[way][f"R@{k}"] for way in DIRECTIONS for k in CUTOFFS)


def test_intervals_are_those_of_the_mean_over_seeds_of_each_resample(measured):
    """A resample written out for every seed by itself: images drawn within their fold, with all their captions."""
    groups, result = measured
    rows = compared(groups, result)
    counts = np.concatenate(list(draw_counts(12, 3, 300)))
    sums, recalls = [], []
    for drawn in counts:
        seeds = []
        for run in groups[0].runs:
            parts = []
            for number, (fold, r) in enumerate(zip(result.folds, result.ranks[(run,), None], strict=True)):
                times = drawn[4 * number : 4 * number + 4].astype(int)
                parts.append(Ranks(r.image_to_text.repeat(times), r.text_to_image.repeat(times[fold.image_of_caption])))
            seeds.append(metrics_of_folds(parts))
        sums.append(np.mean([sum_of(m) for m in seeds]))
        recalls.append(np.mean([m["text_to_image"]["R@5"] for m in seeds]))
    assert rows[0].interval.rsum == pytest.approx(np.percentile(sums, [2.5, 97.5]))
    assert rows[0].interval.text_to_image["R@5"] == pytest.approx(np.percentile(recalls, [2.5, 97.5]))


def test_rows_held_against_another(measured):
    groups, result = measured
    rows = compared(groups, result, groups[1])
    assert rows[1].against is None
    for row in (rows[0], rows[2]):
        test = row.against
        assert test.row == "vsepp"
        assert test.difference == pytest.approx(row.rsum - rows[1].rsum)
        assert test.interval[0] <= test.difference <= test.interval[1]
    assert rows[0].against.verdict == "no more than noise"
    assert rows[0].against.p > 0.05
    assert rows[2].against.verdict == "higher"
    assert rows[2].against.p < 0.05
    (lower,) = [row.against for row in compared(groups[1:], result, groups[2]) if row.against]
    assert lower.verdict == "lower"
    assert lower.p == rows[2].against.p, "the other way round it is the same test"


def test_a_table_repeats(measured):
    groups, result = measured
    assert compared(groups, result, groups[0]) == compared(groups, result, groups[0])


def test_a_row_is_the_same_alone_and_among_others(measured):
    groups, result = measured
    (alone,) = compared(groups[:1], result)
    among = compared(groups, result)[0]
    assert alone.interval.rsum == pytest.approx(among.interval.rsum)
    assert replace(alone, interval=None) == replace(among, interval=None)


def test_captions_per_image_are_named_unless_they_are_the_usual():
    def named(dataset, images, folds, captions):
        found = protocols_for(dataset, "test", images, folds, captions)
        return [protocol_name(protocol, dataset, "test", images) for protocol in found]

    assert named("flickr8k", 1000, None, None) == named("flickr8k", 1000, None, 5) == ["test 1000"]
    assert named("flickr8k", 1000, 2, 1) == ["test 500, 2 folds, 1 caption an image"]
    assert named("folder", 200, None, 5) == ["test 200, 5 captions an image"]
    assert named("coco", 5000, None, None) == named("coco", 5000, None, 5) == ["1K, 5 folds", "5K"]
    assert named("coco", 5000, None, 3) == ["1K, 5 folds, 3 captions an image", "5K, 3 captions an image"]
    assert named("coco", 5000, 1, 0) == ["5K, all captions"]
    with pytest.raises(ValueError, match="`captions_per_image` -1"):
        named("folder", 200, None, -1)


def test_folds_hold_the_first_captions_of_their_images():
    owner = np.array([0, 0, 0, 1, 2, 2, 3, 3])
    one, two = folds_of(owner, 4, Protocol(folds=2, captions=2))
    assert (one.start, one.stop, two.start, two.stop) == (0, 2, 2, 4)
    assert one.captions.tolist() == [0, 1, 3]
    assert one.image_of_caption.tolist() == [0, 0, 1]
    assert two.captions.tolist() == [4, 5, 6, 7]
    assert two.image_of_caption.tolist() == [0, 0, 1, 1]

"""Intervals and the paired test: against plain loops, and by simulation with captions correlated within an image."""

import ast
from pathlib import Path

import numpy as np
import pytest

from metrics import bootstrap as statistics
from metrics.bootstrap import (
    bootstrap,
    draw_counts,
    interval,
    per_image,
    recalls_of,
    shares_of_rsum,
    sign_flip_test,
)
from metrics.protocols import metrics_of_folds
from metrics.ranks import CUTOFFS, DIRECTIONS, Ranks, metrics_of, rsum

IMAGES = 240  # of a simulated table


def ranks_for(rng, images, low=1, high=8):
    """Random ranks of images with `low` to `high` - 1 captions each, in no order."""
    owner = rng.permutation(np.repeat(np.arange(images), rng.integers(low, high, images)))
    return Ranks(rng.integers(1, 30, images), rng.integers(1, 30, len(owner))), owner


def outcomes(folds):
    """hits (N, C) and queries (N, C) of folds one after the other; folds: (Ranks, owner) each."""
    hits = [hits_per_image(r.image_to_text, r.text_to_image, owner) for r, owner in folds]
    queries = [queries_per_image(owner, len(r.image_to_text)) for r, owner in folds]
    return np.concatenate(hits), np.concatenate(queries)


def hits_per_image(image_to_text, text_to_image, owner):
    sides = ((image_to_text, np.arange(len(image_to_text))), (text_to_image, owner))
    return np.hstack([per_image([r <= k for k in CUTOFFS], of, len(image_to_text)) for r, of in sides])


def queries_per_image(owner, images):
    ones = [(np.ones(len(of)), of) for of in (np.arange(images), owner)]
    return np.hstack([per_image([one] * len(CUTOFFS), of, images) for one, of in ones])


def flat(metrics):
    return [metrics[way][f"R@{k}"] for way in DIRECTIONS for k in CUTOFFS]


def drawn_by_hand(counts, ranks, owner):
    """A resample written out: every drawn image, and every caption of it, as often as it was drawn."""
    image_to_text, text_to_image = [], []
    for image, times in enumerate(counts):
        for _ in range(int(times)):
            image_to_text.append(ranks.image_to_text[image])
            text_to_image += [ranks.text_to_image[c] for c in range(len(owner)) if owner[c] == image]
    return Ranks(np.array(image_to_text), np.array(text_to_image))


def test_knows_only_arrays():
    tree = ast.parse(Path(statistics.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"collections.abc"}


def test_hits_and_queries_equal_plain_loops():
    ranks, owner = ranks_for(np.random.default_rng(0), 17)
    hits, queries = outcomes([(ranks, owner)])
    for image in range(17):
        own = [c for c in range(len(owner)) if owner[c] == image]
        for column, k in enumerate(CUTOFFS):
            assert hits[image, column] == (ranks.image_to_text[image] <= k)
            assert hits[image, 3 + column] == sum(ranks.text_to_image[c] <= k for c in own)
            assert (queries[image, column], queries[image, 3 + column]) == (1, len(own))


@pytest.mark.parametrize("folds", [1, 3])
def test_bootstrap_equals_resamples_written_out(folds, monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS_PER_BLOCK", 40)  # several blocks
    rng = np.random.default_rng(folds)
    parts = [ranks_for(rng, 5) for _ in range(folds)]
    others = [(Ranks(r.image_to_text[::-1], r.text_to_image[::-1]), owner) for r, owner in parts]
    hits = np.stack([outcomes(parts)[0], outcomes(others)[0]])
    queries = outcomes(parts)[1]
    found = bootstrap(hits, queries, folds, samples=9, seed=4)
    assert found.shape == (9, 2, 6)
    counts = np.concatenate(list(draw_counts(5 * folds, folds, 9, seed=4)))
    assert counts.shape == (9, 5 * folds)
    for sample in range(9):
        pieces = counts[sample].reshape(folds, 5)
        assert (pieces.sum(axis=1) == 5).all(), "every fold keeps its size"
        for row, system in enumerate((parts, others)):
            drawn = [drawn_by_hand(c, r, owner) for c, (r, owner) in zip(pieces, system, strict=True)]
            assert found[sample, row] == pytest.approx(flat(metrics_of_folds(drawn)))


@pytest.mark.parametrize("folds", [1, 4])
def test_every_image_once_is_the_table(folds):
    rng = np.random.default_rng(2)
    parts = [ranks_for(rng, 6) for _ in range(folds)]
    hits, queries = outcomes(parts)
    metrics = metrics_of_folds([r for r, _ in parts])
    assert recalls_of(np.ones((1, 6 * folds)), hits[None], queries, folds)[0, 0] == pytest.approx(flat(metrics))
    assert shares_of_rsum(hits[None], queries, folds).sum() == pytest.approx(rsum(metrics))


def test_draws_are_uniform_and_repeat():
    one, two = (np.concatenate(list(draw_counts(6, 2, 3000, seed=7))) for _ in range(2))
    assert (one == two).all()
    assert one.mean(axis=0) == pytest.approx(np.ones(6), abs=0.06)
    assert one.var(axis=0) == pytest.approx(np.full(6, 2 / 3), abs=0.06)  # 3 draws of 1/3 each: 3 · 1/3 · 2/3


def test_what_tables_take_unless_told_otherwise():
    hits, queries = np.random.default_rng(1).random((1, 3, 2)), np.ones((3, 2))
    assert (bootstrap(hits, queries) == bootstrap(hits, queries, folds=1, samples=10_000, seed=0)).all()
    differences = hits[..., 0] - hits[..., 1]
    assert (sign_flip_test(differences) == sign_flip_test(differences, samples=10_000, seed=0)).all()
    assert (shares_of_rsum(hits, queries) == shares_of_rsum(hits, queries, folds=1)).all()
    assert (interval(hits) == interval(hits, 95)).all()
    assert statistics.ALPHA == 0.05


def test_interval_by_hand():
    values = np.arange(201.0)[:, None] * [1.0, -1.0]
    assert interval(values).T.tolist() == [[5.0, 195.0], [-195.0, -5.0]]


def test_sign_flips_equal_all_choices_of_signs(monkeypatch):
    monkeypatch.setattr(statistics, "DRAWS_PER_BLOCK", 3000)
    rng = np.random.default_rng(3)
    differences = rng.normal(0.5, 1.0, (3, 9))
    choices = np.array(np.meshgrid(*[[-1, 1]] * 9)).reshape(9, -1).T
    for row, p in zip(differences, sign_flip_test(differences, samples=20_000), strict=True):
        exact = np.mean(
            [abs(sum(s * d for s, d in zip(signs, row, strict=True))) >= abs(sum(row)) for signs in choices]
        )
        assert p == pytest.approx(exact, abs=0.012)


def test_sign_flips_at_the_ends():
    nothing, everything = np.zeros(50), np.full(50, 0.1)
    p = sign_flip_test(np.stack([nothing, everything, -everything]), samples=999)
    assert p.tolist() == [1.0, 1 / 1000, 1 / 1000]


# Simulated tables. An image has a difficulty of its own, felt by all its captions, both directions and every system,
# and the number of its captions goes with it; a system finds some images easier than another does; captions differ.
def simulate(rng, images, systems=1, seeds=2):
    """hits (systems, N, C), averaged over seeds, and queries (N, C) of one table; all systems are equally good."""
    difficulty = rng.normal(0, 1.2, images)
    owner = np.repeat(np.arange(images), 1 + rng.binomial(6, 1 / (1 + np.exp(difficulty))))
    hits = 0.0
    for system in range(systems):
        taste = difficulty + rng.normal(0, 0.7, images)
        for _ in range(seeds):
            image_to_text = rank(1.0 + taste + rng.normal(0, 0.5, images))
            text_to_image = rank(1.6 + taste[owner] + rng.normal(0, 0.5, len(owner)))
            found = hits_per_image(image_to_text, text_to_image, owner) / seeds
            hits = hits + found * (np.arange(systems) == system)[:, None, None]
    return hits, queries_per_image(owner, images)


def rank(logarithm):
    return 1 + np.floor(np.exp(logarithm)).astype(np.int64)


def test_the_interval_covers_the_truth_in_95_of_100_tables():
    rng = np.random.default_rng(0)
    hits, queries = simulate(rng, 400_000)
    truth = recalls_of(np.ones((1, len(queries))), hits, queries, 1)[0, 0]
    tables = 1500
    covered, naive = np.zeros(7), 0
    for table in range(tables):
        hits, queries = simulate(rng, IMAGES)
        resampled = bootstrap(hits, queries, samples=600, seed=table)[:, 0]
        low, high = interval(np.column_stack([resampled, resampled.sum(axis=1)]))
        covered += (low <= [*truth, truth.sum()]) & ([*truth, truth.sum()] <= high)
        # Captions drawn by themselves, in the normal approximation: what the interval must not be.
        share = hits[0].sum(axis=0) / queries.sum(axis=0)
        deviation = 100 * np.sqrt((share * (1 - share) / queries.sum(axis=0)).sum())
        naive += abs(100 * share.sum() - truth.sum()) <= 1.96 * deviation
    assert 100 * covered / tables == pytest.approx(np.full(7, 95), abs=2)
    assert 100 * naive / tables < 85, "the simulated captions are correlated, or this test shows nothing"


def test_the_interval_covers_the_truth_with_folds():
    rng = np.random.default_rng(1)
    hits, queries = simulate(rng, 400_000)
    truth = recalls_of(np.ones((1, len(queries))), hits, queries, 1)[0, 0].sum()
    covered = 0
    for table in range(1000):
        hits, queries = simulate(rng, 400)
        low, high = interval(bootstrap(hits, queries, folds=4, samples=600, seed=table)[:, 0].sum(axis=1))
        covered += low <= truth <= high
    assert 100 * covered / 1000 == pytest.approx(95, abs=2)


def test_equal_systems_are_told_apart_in_5_of_100_tables():
    rng = np.random.default_rng(2)
    tables, noise, outside, found = 1500, 0, 0, 0
    for table in range(tables):
        hits, queries = simulate(rng, IMAGES, systems=2)
        one, two = shares_of_rsum(hits, queries)
        noise += sign_flip_test((one - two)[None], samples=600, seed=table)[0] < 0.05
        low, high = interval(np.diff(bootstrap(hits, queries, samples=600, seed=table).sum(axis=2), axis=1))
        outside += not low <= 0 <= high
        better = two + 0.25 * two.mean()
        found += sign_flip_test((one - better)[None], samples=100, seed=table)[0] < 0.05
    assert 100 * noise / tables == pytest.approx(5, abs=2)
    assert 100 * outside / tables == pytest.approx(5, abs=2), "the interval of the difference agrees with the test"
    assert 100 * found / tables > 50, "a real difference is seen"


def test_a_single_ranks_object_agrees_with_metrics():
    ranks, owner = ranks_for(np.random.default_rng(8), 30)
    hits, queries = outcomes([(ranks, owner)])
    assert 100 * hits.sum(axis=0) / queries.sum(axis=0) == pytest.approx(flat(metrics_of(ranks)))

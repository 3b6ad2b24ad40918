"""Bounds hold, second looks decide, and counts equal plain loops, ties and near ties among them."""

import numpy as np
import pytest
import torch

from metrics import bounds
from metrics.bounds import BOUNDS, TooManyOpen, cosine_bounds, counts_at_least, exactly_at_least, order_bounds
from metrics.ranks import ranks_by_block
from metrics.similarity import RANKING


def plain_score(similarity, image, caption):
    """In float64, one dimension after the other, rounded to float32 at the end."""
    total = 0.0
    for v, c in zip(image.tolist(), caption.tolist(), strict=True):
        total += v * c if similarity == "cosine" else -(max(0.0, c - v) ** 2)
    return np.float32(total)


def plain_counts(similarity, images, captions, best, true):
    scores = np.array([[plain_score(similarity, v, c) for c in captions] for v in images])
    return (scores >= best.numpy()[:, None]).sum(1), (scores >= true.numpy()[None, :]).sum(0)


def rows(seed, n, dim, kind):
    """Unit rows, non-negative: spread; of few values, with ties; or nearly alike, apart in the last bits of float32."""
    random = np.random.default_rng(seed)
    values = {
        "spread": np.abs(random.normal(size=(n, dim))),
        "few": random.integers(0, 2, (n, dim)) + (np.arange(dim) == 0),
        "alike": 1 + random.integers(-2, 3, (n, dim)) * 2.0**-22,
    }[kind]
    return torch.from_numpy((values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32))


def only_tile(bounds, images, captions):
    ((_, _, tile),) = bounds.tiles(images, captions)
    return tile


@pytest.mark.parametrize("similarity", RANKING)
@pytest.mark.parametrize("kind", ["spread", "few", "alike"])
@pytest.mark.parametrize(("block", "tile"), [(4096, (512, 1024)), (7, (3, 4))])
def test_counts_equal_plain_loops(similarity, kind, block, tile, monkeypatch):
    monkeypatch.setattr(bounds, "BLOCK", block)
    monkeypatch.setattr(bounds, "TILE", tile)
    monkeypatch.setattr(bounds, "MOST_OPEN", 1.0)
    monkeypatch.setattr(bounds, "PAIRS", 7)
    images, captions = rows(1, 11, 9, kind), rows(2, 14, 9, kind)
    # thresholds that pairs have to the bit, and their neighbors
    scores = np.array([[plain_score(similarity, v, c) for c in captions] for v in images])
    best, true = torch.from_numpy(np.sort(scores, axis=1)[:, 7]), torch.from_numpy(np.sort(scores, axis=0)[5])
    best[::2] = torch.nextafter(best[::2], torch.tensor(9.0))
    counted = counts_at_least(similarity, images, captions, best, true)
    for mine, plain in zip(counted, plain_counts(similarity, images, captions, best, true), strict=True):
        assert mine.tolist() == plain.tolist()


@pytest.mark.parametrize("dim", [1, 8, 1024])
@pytest.mark.parametrize("kind", ["spread", "few", "alike"])
def test_exact_scores_lie_between_the_bounds(dim, kind):
    images, captions = rows(3, 20, dim, kind), rows(4, 30, dim, kind)
    a, b = images.double()[:, None], captions.double()[None]
    exact = {"cosine": (a * b).sum(2), "order": -(b - a).clamp(min=0).square().sum(2)}
    for similarity, bounds_of in BOUNDS.items():
        tile = only_tile(bounds_of(images, captions), images, captions)
        assert (exact[similarity] <= tile.scores.double() + tile.excess).all()
        assert (exact[similarity] >= tile.scores.double() - tile.shortfall).all()


def test_bounds_of_spread_rows_leave_little_open():
    """Else they would be right, and of no use."""
    images, captions = rows(5, 200, 1024, "spread"), rows(6, 300, 1024, "spread")
    assert only_tile(cosine_bounds(images, captions), images, captions).excess < 1e-4
    violation = (captions[None] - images[:, None]).clamp(min=0).square().sum(2)
    tile = only_tile(order_bounds(images, captions), images, captions)
    assert (tile.scores + violation).max() < 0.15 * violation.mean()


def test_second_looks_equal_plain_loops():
    images, captions = rows(7, 6, 50, "alike"), rows(8, 6, 50, "alike")
    of_image, of_caption = (torch.from_numpy(rows) for rows in np.random.default_rng(9).integers(0, 6, (2, 40)))
    for similarity in RANKING:
        plain = [plain_score(similarity, images[i], captions[c]) for i, c in zip(of_image, of_caption, strict=True)]
        scores = torch.from_numpy(np.array(plain))
        answers = exactly_at_least(similarity, images, captions, of_image, of_caption, scores)
        assert answers.all(), "a score is at least itself"
        above = torch.nextafter(scores, torch.tensor(9.0))
        assert not exactly_at_least(similarity, images, captions, of_image, of_caption, above).any()


@pytest.mark.parametrize("similarity", RANKING)
def test_a_collapsed_space_is_left_to_exact_scores(similarity):
    images, captions = rows(1, 1, 64, "spread").repeat(40, 1), rows(2, 1, 64, "spread").repeat(40, 1)
    true = torch.full((40,), float(plain_score(similarity, images[0], captions[0])))
    with pytest.raises(TooManyOpen):
        counts_at_least(similarity, images, captions, true, true)
    ranks = ranks_by_block(RANKING[similarity], images, captions, np.arange(40))
    assert (ranks.text_to_image == 40).all()


@pytest.mark.parametrize("similarity", RANKING)
@pytest.mark.parametrize("kind", ["spread", "few", "alike"])
def test_ranks_equal_plain_loops(similarity, kind):
    random = np.random.default_rng(0)
    image_of_caption = random.permutation(np.repeat(np.arange(25), random.integers(1, 5, 25)))
    images, captions = rows(1, 25, 16, kind), rows(2, len(image_of_caption), 16, kind)
    scores = [[plain_score(similarity, v, c) for c in captions] for v in images]
    ranks = ranks_by_block(RANKING[similarity], images, captions, image_of_caption)
    for caption, image in enumerate(image_of_caption):
        others = [scores[other][caption] for other in range(25) if other != image]
        assert ranks.text_to_image[caption] == 1 + sum(score >= scores[image][caption] for score in others)
    for image in range(25):
        best = max(scores[image][c] for c in range(len(captions)) if image_of_caption[c] == image)
        others = [scores[image][c] for c in range(len(captions)) if image_of_caption[c] != image]
        assert ranks.image_to_text[image] == 1 + sum(score >= best for score in others)


@pytest.mark.parametrize("similarity", RANKING)
def test_infinite_and_missing_numbers_rank_as_they_do_at_once(similarity):
    images, captions = rows(1, 8, 16, "spread"), rows(2, 8, 16, "spread")
    images[3, 2] = torch.nan
    ranks = ranks_by_block(RANKING[similarity], images, captions, np.arange(8))
    assert ranks.image_to_text[3] == 8
    assert ranks.text_to_image[3] == 8

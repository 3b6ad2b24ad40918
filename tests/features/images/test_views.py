"""Features of several views against plain loops: what is drawn, the mean, and what is joined."""

import doctest

import numpy as np
import pytest

from features.images import views
from features.images.views import FeatureViews, join_features, take_features

rng = np.random.default_rng(0)
SIX = rng.normal(size=(7, 6, 5)).astype(np.float16)
TWO = rng.normal(size=(7, 2, 3)).astype(np.float32)
ONE = rng.normal(size=(7, 4)).astype(np.float32)
SETS = pytest.mark.parametrize("parts", [[SIX], [ONE, SIX], [SIX, TWO, ONE]], ids=["one", "with a plain one", "three"])


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt(sum(float(x) ** 2 for x in vector))


def with_axis(part: np.ndarray) -> np.ndarray:
    return part[:, None] if part.ndim == 2 else part


def plain(parts: list[np.ndarray], image: int, chosen: list[list[int]], normalize: bool) -> np.ndarray:
    """The features of an image joined, of each part the mean of its `chosen` views."""
    normalize, pieces = normalize or len(parts) > 1, []
    for part, numbers in zip(map(with_axis, parts), chosen, strict=True):
        vectors = [part[image, view].astype(np.float64) for view in numbers]
        mean = np.mean([unit(vector) if normalize else vector for vector in vectors], axis=0)
        pieces.append(unit(mean) if normalize else mean)
    return np.concatenate(pieces)


def test_docstrings() -> None:
    assert doctest.testmod(views).failed == 0


@SETS
@pytest.mark.parametrize("normalize", [True, False])
def test_the_mean_equals_a_plain_loop(parts: list[np.ndarray], normalize: bool) -> None:
    features = FeatureViews(parts, normalize)
    assert features.shape == (7, sum(part.shape[-1] for part in parts))
    assert len(features) == 7
    every = [list(range(part.shape[1])) for part in map(with_axis, parts)]
    rows = np.stack([plain(parts, image, every, normalize) for image in range(7)])
    for part in (slice(None), slice(2, 5), slice(0, 0)):
        assert features[part].dtype == np.float32
        np.testing.assert_allclose(features[part], rows[part], atol=1e-6)
    np.testing.assert_array_equal(join_features([part.astype(np.float32) for part in parts], normalize), features[:])


@SETS
@pytest.mark.parametrize("normalize", [True, False])
def test_what_is_drawn_is_a_view_of_its_image(parts: list[np.ndarray], normalize: bool) -> None:
    images = np.array([3, 3, 0, 6])
    got = FeatureViews(parts, normalize).draw(images, np.random.default_rng(1))
    random = np.random.default_rng(1)
    drawn = [[0] * 4 if part.ndim == 2 else random.integers(part.shape[1], size=4).tolist() for part in parts]
    assert got.dtype == np.float32
    for row, image in enumerate(images):
        expected = plain(parts, image, [[views[row]] for views in drawn], normalize)
        np.testing.assert_allclose(got[row], expected, atol=1e-6)


def test_views_are_drawn_uniformly_and_for_each_feature_by_itself() -> None:
    count = 12_000
    angles = [np.linspace(0, 1, number) for number in (6, 4)]
    parts = [np.stack([np.cos(angle), np.sin(angle)], axis=1)[None].repeat(3, axis=0) for angle in angles]
    got = FeatureViews(parts, normalize=False).draw(np.arange(count) % 3, np.random.default_rng(0))
    first, second = (np.arctan2(got[:, k + 1], got[:, k]) for k in (0, 2))
    first, second = np.rint(5 * first).astype(int), np.rint(3 * second).astype(int)
    table = np.zeros((6, 4))
    np.add.at(table, (first, second), 1)
    expected = count / 24
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 50, "23 degrees of freedom: one in a thousand"


def test_the_seed_decides_what_is_drawn() -> None:
    features, images = FeatureViews([SIX], True), np.arange(7)
    one, again, other = (features.draw(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_nothing_is_drawn_where_there_are_no_views() -> None:
    random, images = np.random.default_rng(0), np.array([2, 0, 2])
    before = random.bit_generator.state
    np.testing.assert_array_equal(take_features(ONE, images, random), ONE[images])
    assert random.bit_generator.state == before
    drawn = take_features(FeatureViews([SIX], False), images, random)
    assert drawn.shape == (3, 5)
    assert random.bit_generator.state != before


def test_only_what_is_stored_is_held() -> None:
    features = FeatureViews([SIX, TWO], True)
    assert features.parts[0] is SIX
    assert features.parts[1] is TWO


@pytest.mark.parametrize("normalize", [True, False])
def test_zeros_stay_zeros_and_a_map_stays_a_map(normalize: bool) -> None:
    assert not join_features([np.zeros((2, 3, 4), np.float32)], normalize).any()
    assert join_features([np.ones((2, 3, 3, 4), np.float32)], normalize).shape == (2, 3, 3, 4)

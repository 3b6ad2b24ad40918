"""Canonical correlations against their definition."""

import doctest

import numpy as np
import pytest
import torch
from scipy import linalg

from features.images.views import FeatureViews
from features.text.vocabulary import Sentences
from settings import override, read_recipe
from training import cca
from training.cca import bag_of_words, fit_cca, top_singular

rng = np.random.default_rng(0)
WORDS = 9
LISTS = [rng.integers(0, WORDS, rng.integers(1, 6)).tolist() for _ in range(400)]
SENTENCES = Sentences.of(LISTS)
IMAGE_OF_CAPTION = np.sort(rng.integers(0, 100, 400))
IMAGE_OF_CAPTION[:100] = np.arange(100)
MIXING = rng.normal(size=(WORDS, 6))
FEATURES = np.stack(
    [
        bag_of_words(SENTENCES, WORDS, "count")[[np.flatnonzero(i == IMAGE_OF_CAPTION)[0]]].toarray()[0]
        for i in range(100)
    ]
)
FEATURES = (FEATURES @ MIXING + 0.3 * rng.normal(size=(100, 6))).astype(np.float32)


def test_bags_equal_plain_counting():
    for weighting in ("count", "binary", "mean"):
        bags = bag_of_words(SENTENCES, WORDS, weighting).toarray()
        for bag, words in zip(bags, LISTS, strict=True):
            plain = np.zeros(WORDS)
            for word in words:
                plain[word] += word != 0
            if weighting == "binary":
                plain = (plain > 0).astype(float)
            if weighting == "mean":
                plain = plain / max(1, plain.sum())
            np.testing.assert_allclose(bag, plain)


def fit(embed_dim, regularization, power):
    changes = {"text.weighting": "count", "embed_dim": embed_dim}
    changes |= {"loss.regularization": regularization, "loss.power": power}
    return fit_cca(FEATURES, SENTENCES, IMAGE_OF_CAPTION, WORDS, override(read_recipe("cca"), changes))


def test_the_example_is_true():
    assert doctest.testmod(cca).failed == 0


def project(weights):
    bags = bag_of_words(SENTENCES, WORDS, "count").toarray()
    images = FEATURES[IMAGE_OF_CAPTION] @ weights["image.1.weight"].numpy().T + weights["image.1.bias"].numpy()
    return images, bags @ weights["text.bag.weight"].numpy() + weights["text.bias"].numpy()


def test_projections_are_centered_whitened_and_correlated_as_eigenvalues_say():
    weights = fit(4, 1e-9, power=0.0)
    images, captions = project(weights)
    np.testing.assert_allclose(images.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(captions.mean(0), 0, atol=1e-4)
    n = len(images)
    np.testing.assert_allclose(images.T @ images / n, np.eye(4), atol=1e-3)
    np.testing.assert_allclose(captions.T @ captions / n, np.eye(4), atol=1e-3)
    cross = images.T @ captions / n
    np.testing.assert_allclose(cross, np.diag(np.diag(cross)), atol=1e-3)
    # the definition: eigenvalues of Cxx⁻¹ Cxy Cyy⁻¹ Cyx are the squared correlations
    x, y = (
        FEATURES[IMAGE_OF_CAPTION] - FEATURES[IMAGE_OF_CAPTION].mean(0),
        bag_of_words(SENTENCES, WORDS, "count").toarray()[:, 1:],
    )
    y = y - y.mean(0)
    squared = linalg.eigvals(linalg.solve(x.T @ x, x.T @ y) @ linalg.solve(y.T @ y, y.T @ x)).real
    np.testing.assert_allclose(np.diag(cross), np.sqrt(np.sort(squared)[::-1][:4]), atol=1e-3)


def test_power_scales_by_the_correlations():
    plain, scaled = (fit(3, 1e-6, power=p) for p in (0.0, 2.0))
    ratio = scaled["image.1.weight"] / plain["image.1.weight"]
    images, captions = project(plain)
    correlations = (images * captions).mean(0)
    np.testing.assert_allclose(ratio.numpy().mean(1), correlations**2, rtol=1e-2)


def test_more_dimensions_than_there_are_stay_zero():
    weights = fit(20, 1e-3, power=1.0)
    assert weights["image.1.weight"].shape == (20, 6)
    assert weights["text.bag.weight"].shape == (WORDS, 20)
    assert torch.isfinite(weights["text.bag.weight"]).all()
    assert weights["image.1.weight"][6:].abs().max() == 0


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_top_singular_equals_svd(shape):
    matrix = np.random.default_rng(1).normal(size=shape)
    left, values, right = top_singular(matrix, 3)
    u, s, v = linalg.svd(matrix)
    np.testing.assert_allclose(values, s[:3])
    np.testing.assert_allclose(left * values @ right.T, (u[:, :3] * s[:3]) @ v[:3], atol=1e-9)


def test_of_several_views_the_mean_is_taken():
    settings = override(read_recipe("cca"), {"embed_dim": 4})
    views = FEATURES[:, None] + rng.normal(size=(100, 3, 6)).astype(np.float32)
    got = fit_cca(FeatureViews([views], normalize=False), SENTENCES, IMAGE_OF_CAPTION, WORDS, settings)
    expected = fit_cca(views.mean(axis=1), SENTENCES, IMAGE_OF_CAPTION, WORDS, settings)
    for name, weight in expected.items():
        torch.testing.assert_close(got[name], weight)

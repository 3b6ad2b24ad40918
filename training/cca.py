"""Regularized linear CCA between image features and the bag of words: two linear branches in closed form.

Hotelling (1936); in this field Hodosh et al. (2013) and Gong et al. (2014), whose scaling by powers of the correlations
is taken here too. It trains in seconds and is the classical line of every table.
"""

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import linalg, sparse

from features.images.maps import FeatureMaps
from features.images.views import FeatureViews
from features.text.vocabulary import UNKNOWN, Sentences
from settings import Settings

if TYPE_CHECKING:
    from training.trainer import Trainer

ROWS_PER_BLOCK = 8192  # images at a time


def fit(trainer: "Trainer") -> None:
    """Train a run in closed form: one epoch, without a loss."""
    if not trainer.log:
        began = time.monotonic()
        split, sentences = trainer.data.splits["train"], trainer.data.sentences["train"]
        assert not isinstance(split.features, FeatureMaps)  # a linear image branch takes none
        num_words = len(trainer.model.state_dict()["text.bag.weight"])
        weights = fit_cca(split.features, sentences, split.image_of_caption, num_words, trainer.settings)
        trainer.model.load_state_dict(weights)
        trainer.end_epoch(began, None)
    trainer.finish()


def fit_cca(
    features: np.ndarray | FeatureViews, sentences: Sentences, image_of_caption: np.ndarray, num_words: int, s: Settings
) -> dict[str, torch.Tensor]:
    """Return weights of a linear image branch and a one-layer bag of words that maximize correlation over all pairs.

    features: (N, D); sentences: M of them, over `num_words` words; image_of_caption: (M,). s.loss.regularization: added
    to the diagonals of both covariances, as a share of their mean; s.loss.power: dimensions are scaled by correlation
    ** power. The names are those of TwoBranch, float32; with fewer than `embed_dim` directions, the others are zero.

    >>> features, sentences = np.eye(3), Sentences.of([[1], [2], [1, 2], [2]])
    >>> weights = fit_cca(features, sentences, np.array([0, 1, 2, 1]), 3, Settings(embed_dim=2))
    >>> {name: tuple(weight.shape) for name, weight in weights.items()}
    {'image.1.weight': (2, 3), 'image.1.bias': (2,), 'text.bag.weight': (3, 2), 'text.bias': (2,)}
    """
    bags = bag_of_words(sentences, num_words, s.text.weighting)
    x_mean, y_mean, cxx, cyy, cxy = covariances(features, bags, image_of_caption)
    for covariance in (cxx, cyy):
        covariance[np.diag_indices_from(covariance)] += s.loss.regularization * np.trace(covariance) / len(covariance)
    # With C = L Lᵀ on both sides, the correlations are the singular values of Lx⁻¹ Cxy Ly⁻ᵀ.
    lx, ly = linalg.cholesky(cxx, lower=True), linalg.cholesky(cyy, lower=True)
    middle = linalg.solve_triangular(lx, cxy, lower=True)
    middle = linalg.solve_triangular(ly, middle.T, lower=True).T
    left, correlations, right = top_singular(middle, s.embed_dim)
    scale = correlations**s.loss.power
    image_weight = linalg.solve_triangular(lx, left, lower=True, trans="T") * scale
    text_weight = linalg.solve_triangular(ly, right, lower=True, trans="T") * scale
    text_weight[UNKNOWN] = 0
    missing = s.embed_dim - len(scale)
    weights = {
        "image.1.weight": np.pad(image_weight.T, ((0, missing), (0, 0))),
        "image.1.bias": np.pad(-x_mean @ image_weight, (0, missing)),
        "text.bag.weight": np.pad(text_weight, ((0, 0), (0, missing))),
        "text.bias": np.pad(-y_mean @ text_weight, (0, missing)),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in weights.items()}


def covariances(
    features: np.ndarray | FeatureViews, bags: sparse.csr_array, image_of_caption: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return, over all M pairs and in float64, the means (D,) and (W,), and the covariances (D, D), (W, W), (D, W)."""
    (pairs, words), size = bags.shape, features.shape[1]
    captions = np.bincount(image_of_caption, minlength=len(features)).astype(np.float64)
    per_image = sparse.csr_array((np.ones(pairs), (image_of_caption, np.arange(pairs))), (len(features), pairs)) @ bags
    x_sum, xx, yx = np.zeros(size), np.zeros((size, size)), np.zeros((words, size))
    for start in range(0, len(features), ROWS_PER_BLOCK):  # in float64 by block: the features may fill the memory
        block = slice(start, start + ROWS_PER_BLOCK)
        x = features[block].astype(np.float64)
        x_sum += captions[block] @ x
        xx += (x * captions[block, None]).T @ x
        yx += per_image[block].T @ x
    x_mean, y_mean = x_sum / pairs, np.asarray(bags.mean(axis=0)).ravel()
    cxx = xx / pairs - np.outer(x_mean, x_mean)
    cyy = (bags.T @ bags).toarray() / pairs - np.outer(y_mean, y_mean)
    return x_mean, y_mean, cxx, cyy, yx.T / pairs - np.outer(x_mean, y_mean)


def bag_of_words(sentences: Sentences, num_words: int, weighting: str) -> sparse.csr_array:
    """Return (M, num_words) float64, as the one-hot branch sees its sentences: unknown words count for nothing."""
    rows = np.repeat(np.arange(len(sentences)), sentences.lengths)
    known = sentences.numbers != UNKNOWN
    cells = rows[known], sentences.numbers[known]
    bags = sparse.csr_array((np.ones(known.sum()), cells), (len(sentences), num_words))  # sums repeats
    if weighting == "binary":
        bags.data[:] = 1
    if weighting == "mean":
        bags = sparse.diags_array(1 / np.maximum(bags.sum(axis=1), 1)) @ bags
    return sparse.csr_array(bags)


def top_singular(matrix: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `most` largest singular values and their vectors: (rows, k), (k,), (columns, k), largest first.

    By the eigenvectors of the smaller Gram matrix: exact enough for correlations, and quick.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = top_singular(matrix.T, most)
        return left, values, right
    size = matrix.shape[1]
    values, right = linalg.eigh(matrix.T @ matrix, subset_by_index=(max(0, size - most), size - 1))
    keep = values[::-1] > 1e-12 * max(values[-1], 1e-300)
    values, right = np.sqrt(values[::-1][keep]), right[:, ::-1][:, keep]
    return matrix @ right / values, values, right

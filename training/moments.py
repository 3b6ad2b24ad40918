"""What closed forms take of the training pairs: means and covariances of image features and of the text side.

The text side is the bag of words, the features of a frozen sentence encoder, or both side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from features.text.vocabulary import UNKNOWN, Sentences
from settings import TextSettings

ROWS_PER_BLOCK = 8192  # rows at a time in float64: the features may fill the memory

Part = Any  # a scipy.sparse.csr_array or an array, (M, size): what one linear layer of the text branch takes


@dataclass(frozen=True)
class Moments:
    """Over all M pairs and in float64. x: images, y: text; `sizes`: of the parts of the text side, which add up to T.

    x_mean: (D,); y_mean: (T,); cxx: (D, D); cyy: (T, T); cxy: (D, T).
    """

    x_mean: np.ndarray
    y_mean: np.ndarray
    cxx: np.ndarray
    cyy: np.ndarray
    cxy: np.ndarray
    sizes: tuple[int, ...]


def moments(features: np.ndarray, parts: Sequence[Part], image_of_caption: np.ndarray) -> Moments:
    """Return the moments of M pairs. features: (N, D); parts: of the text side, (M, size) each; image_of_caption: (M,).

    >>> m = moments(np.eye(2), [np.array([[1.0], [2.0], [6.0]])], np.array([0, 0, 1]))
    >>> m.y_mean, m.cxy[:, 0]
    (array([3.]), array([-1.,  1.]))
    """
    pairs, size = len(image_of_caption), features.shape[1]
    captions = np.bincount(image_of_caption, minlength=len(features)).astype(np.float64)
    cells = image_of_caption, np.arange(pairs)
    membership = sparse.csr_array((np.ones(pairs), cells), (len(features), pairs))
    per_image = [membership @ part for part in parts]
    x_sum, xx = np.zeros(size), np.zeros((size, size))
    yx = [np.zeros((part.shape[1], size)) for part in parts]
    for start in range(0, len(features), ROWS_PER_BLOCK):
        block = slice(start, start + ROWS_PER_BLOCK)
        x = features[block].astype(np.float64)
        x_sum += captions[block] @ x
        xx += (x * captions[block, None]).T @ x
        for total, sums in zip(yx, per_image, strict=True):
            total += sums[block].T @ x
    x_mean = x_sum / pairs
    y_mean = np.concatenate([np.asarray(part.mean(axis=0, dtype=np.float64)).ravel() for part in parts])
    yy = np.block([[cross_product(a, b) for b in parts] for a in parts])
    return Moments(
        x_mean,
        y_mean,
        cxx=xx / pairs - np.outer(x_mean, x_mean),
        cyy=yy / pairs - np.outer(y_mean, y_mean),
        cxy=np.concatenate(yx).T / pairs - np.outer(x_mean, y_mean),
        sizes=tuple(part.shape[1] for part in parts),
    )


def cross_product(a: Part, b: Part) -> np.ndarray:
    """Return aᵀ b, float64, of M rows each; dense ones are taken block by block.

    >>> cross_product(np.array([[1.0], [2.0]]), np.array([[3.0, 0.0], [4.0, 1.0]]))
    array([[11.,  2.]])
    """
    if sparse.issparse(a) and sparse.issparse(b):
        return (a.T @ b).toarray()
    if sparse.issparse(b):
        return cross_product(b, a).T
    total = np.zeros((a.shape[1], b.shape[1]))
    for start in range(0, a.shape[0], ROWS_PER_BLOCK):
        block = slice(start, start + ROWS_PER_BLOCK)
        total += a[block].T @ b[block].astype(np.float64)
    return total


def text_parts(sentences: Sentences, num_words: int, s: TextSettings) -> list[Part]:
    """Return what linear layers of the text branch take of M sentences: bag of words, sentence features, or both."""
    parts: list[Part] = []
    if s.branch == "onehot":
        parts.append(bag_of_words(sentences, num_words, s.weighting))
    if s.encoder:
        assert sentences.features is not None  # settings.py sees to it that the encoder is frozen
        parts.append(unit_rows(sentences.features))
    return parts


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


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Return the rows of (N, D) at length 1; zeros stay zeros.

    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

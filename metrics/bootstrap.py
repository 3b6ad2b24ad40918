"""How far a recall can be believed: bootstrap intervals and a paired test, with images as the unit. Knows only arrays.

The captions of an image are correlated, and so are its two directions: an image that is hard to describe is hard both
ways. Images are therefore drawn with all their captions and both directions together; drawing captions by themselves
would give intervals that are too narrow. Galleries stay as they were: an image keeps its ranks, however often it is
drawn. With folds, images are drawn within their fold: an image was ranked in the gallery of its fold alone, and every
fold weighs the same in the figures.

Notation: N images, all folds one after the other, F equal folds, R rows (systems measured on the same images), and C
columns, which are the cutoffs K of image→text, then those of text→image, and other means over queries if there are.
"""

from collections.abc import Iterator, Sequence

import numpy as np

SAMPLES = 10_000  # resamples of a table: a p of 0.05 is then good to ±0.004, and the end of an interval to 1 % of it
SEED = 0  # the same table gets the same intervals every time
LEVEL = 95  # % of an interval
ALPHA = 0.05  # a difference with a smaller p is called one
DRAWS_PER_BLOCK = 1_000_000  # resampled images held at a time


def per_image(values: Sequence[np.ndarray], image_of_query: np.ndarray, images: int) -> np.ndarray:
    """Return (images, C) float64: the sums of each column's values (Q,), from 0 to 1, over the queries of an image.

    image_of_query: (Q,), the image that a query is, or belongs to. Of values that are all 1 it counts the queries.

    >>> per_image([np.array([True, False, True])], np.array([1, 1, 0]), 3).ravel().tolist()
    [1.0, 1.0, 0.0]
    """
    return np.stack([np.bincount(image_of_query, column, images) for column in values], axis=1, dtype=np.float64)


def draw_counts(images: int, folds: int, samples: int, seed: int = SEED) -> Iterator[np.ndarray]:
    """Yield blocks (b, N) of float64: how often each image was drawn, in each resample, within every fold."""
    random = np.random.default_rng(seed)
    size = images // folds
    block = max(1, min(samples, DRAWS_PER_BLOCK // images))
    for start in range(0, samples, block):
        b = min(block, samples - start)
        drawn = random.integers(0, size, (b, folds, size))
        drawn += (np.arange(b * folds) * size).reshape(b, folds, 1)  # every fold of every resample counts by itself
        yield np.bincount(drawn.ravel(), minlength=b * images).reshape(b, images).astype(np.float64)


def recalls_of(counts: np.ndarray, hits: np.ndarray, queries: np.ndarray, folds: int) -> np.ndarray:
    """Return (b, R, C) recalls in percent, averaged over folds, of images that count `counts` (b, N) times each.

    hits: (R, N, C); queries: (N, C). A recall is a ratio, hits over queries: images have any number of captions, so
    how many captions a resample holds varies as well. Without a query it is not-a-number.
    """
    rows, images, columns = hits.shape
    size = images // folds
    total = np.zeros((len(counts), rows, columns))
    for start in range(0, images, size):
        fold = slice(start, start + size)
        flat = hits[:, fold].transpose(1, 0, 2).reshape(size, rows * columns)
        hit = (counts[:, fold] @ flat).reshape(len(counts), rows, columns)
        with np.errstate(invalid="ignore"):
            total += hit / (counts[:, fold] @ queries[fold])[:, None, :]
    return 100.0 * total / folds


def bootstrap(
    hits: np.ndarray, queries: np.ndarray, folds: int = 1, samples: int = SAMPLES, seed: int = SEED
) -> np.ndarray:
    """Return (samples, R, C) recalls of resampled images, the same images for all rows, so that rows can be subtracted.

    hits: (R, N, C), averaged over seeds; queries: (N, C). Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    >>> hits = np.array([[[1.0], [0.0], [1.0], [1.0]]])  # four images, of which a system finds three at rank 1
    >>> resampled = bootstrap(hits, np.ones((4, 1)), samples=1000)
    >>> resampled.shape, interval(resampled)[:, 0, 0].tolist()
    ((1000, 1, 1), [25.0, 100.0])
    """
    return np.concatenate(
        [recalls_of(counts, hits, queries, folds) for counts in draw_counts(hits.shape[1], folds, samples, seed)]
    )


def interval(values: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Return (2, …) of (samples, …): the ends between which the middle `level` % of the resamples lie; those that are
    not-a-number are left out.
    """
    tail = (100.0 - level) / 2
    percentile = np.nanpercentile if np.isnan(values).any() else np.percentile
    return percentile(values, [tail, 100.0 - tail], axis=0)


def shares_of_rsum(hits: np.ndarray, queries: np.ndarray, folds: int = 1) -> np.ndarray:
    """Return (R, N): what each image adds to rsum, both directions together; the shares of a row add up to its rsum.

    hits: (R, N, C); queries: (N, C).
    """
    images, columns = queries.shape
    per_fold = queries.reshape(folds, images // folds, columns).sum(axis=1)
    weights = 100.0 / folds / np.repeat(per_fold, images // folds, axis=0)
    return np.einsum("rnc,nc->rn", hits, weights)


def sign_flip_test(differences: np.ndarray, samples: int = SAMPLES, seed: int = SEED) -> np.ndarray:
    """Return (R,) two-sided p of the sums of `differences` (R, N): how often chance alone gives a sum as far from zero.

    If two systems were alike, each image's difference might as well have had the other sign; `samples` random choices
    of signs say what sums that gives (Fisher's randomization test; Smucker, Allan, Carterette, CIKM 2007, compare it
    with others for retrieval). The observed signs count as one of the choices, so p is never 0.

    >>> sign_flip_test(np.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]), samples=1000).round(1).tolist()
    [1.0, 0.1]
    """
    rows, images = differences.shape
    random = np.random.default_rng(seed)
    observed = np.abs(differences.sum(axis=1))
    slack = 1e-9 * np.abs(differences).sum(axis=1)  # sums that differ in rounding alone are equal
    reached = np.zeros(rows)
    block = max(1, min(samples, DRAWS_PER_BLOCK // images))
    for start in range(0, samples, block):
        signs = 2.0 * random.integers(0, 2, (min(block, samples - start), images), dtype=np.int8) - 1.0
        reached += (np.abs(signs @ differences.T) >= observed - slack).sum(axis=0)
    return (reached + 1) / (samples + 1)

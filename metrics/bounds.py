"""Which scores are at least a threshold, without an exact score of every pair: bounds first, then a second look at few.

One float32 product bounds the scores of a tile of pairs. Most pairs lie outside of what the bounds leave open; those
within are summed up in float64 and rounded to float32 as in `pair_scores`, so that equal embeddings score equal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metrics.pairs import pair_scores

TILE = (512, 1024)  # images by captions: comparisons of a tile then stay near the cache
BLOCK = 4096  # images whose rows are held for the products of many tiles
MOST_OPEN = 1 / 4  # of a tile: beyond, exact scores of all pairs cost less than second looks
ROUNDING = 2.0**-24  # relative, of one operation in float32
PAIRS = 512  # of a second look at a time, whose differences then stay in the cache
SAMPLE = 2048  # images whose medians and means place the tangents: any would be right, these are tight


SecondLook = Callable[[Tensor, Tensor, Tensor], Tensor]  # rows (P,), columns (P,), thresholds (P,) → (P,) of bool


class TooManyOpen(Exception):
    """The bounds leave so many pairs open that they are of no use, as in a space that has collapsed."""


@dataclass(frozen=True)
class Tile:
    """What exact scores lie between: `scores` (N images, M captions) less `shortfall`, and `scores` and `excess`.

    shortfall: may be infinite, where there is no lower bound.
    """

    scores: Tensor
    shortfall: float
    excess: float


@dataclass(frozen=True)
class Bounds:
    """Bounds of scores as the product of two matrices, which are made of images and of captions, some at a time.

    of_images: (N, D) → (N, K). of_captions: (M, D) → (M, K), and the error of the product. lower: whether exact scores
    are at least the product less its error, too.
    """

    of_images: Callable[[Tensor], Tensor]
    of_captions: Callable[[Tensor], tuple[Tensor, float]]
    lower: bool

    def tiles(self, images: Tensor, captions: Tensor) -> Iterator[tuple[slice, slice, Tile]]:
        """Yield which images and captions, and their bounds, of all of them."""
        for block in _slices(len(images), BLOCK):
            of_images = self.of_images(images[block])
            for columns in _slices(len(captions), TILE[1]):
                of_captions, error = self.of_captions(captions[columns])
                for inside in _slices(len(of_images), TILE[0]):
                    rows = slice(block.start + inside.start, block.start + inside.stop)
                    tile = of_images[inside] @ of_captions.T
                    yield rows, columns, Tile(tile, error if self.lower else torch.inf, error)


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def cosine_bounds(images: Tensor, captions: Tensor) -> Bounds:
    """Bound cosines by their float32 product: as many roundings as dimensions, in whatever order it adds them up."""
    norms = [torch.linalg.vector_norm(rows, dim=1).max() for rows in (images, captions)]
    error = float((images.shape[1] + 4) * ROUNDING * norms[0] * norms[1])
    return Bounds(lambda rows: rows, lambda rows: (rows, error), lower=True)


def order_bounds(images: Tensor, captions: Tensor) -> Bounds:
    """Bound order scores from above, by one product of three times the dimensions.

    max(0, x)² ≥ 2ax − a² for every a ≥ 0: a tangent that touches at x = a. With x = caption − image, and for every
    dimension one tangent at what is usual of the lower half of its values and one of the upper, the sum over dimensions
    is a product: the image says in which half it lies, and its value there; the caption has the tangents' numbers.
    """
    sample = images[:: 1 + len(images) // SAMPLE]
    median = sample.median(dim=0).values
    upper = (sample > median).to(sample.dtype)
    usual = [(sample * half).sum(dim=0) / half.sum(dim=0).clamp(min=1) for half in (1 - upper, upper)]
    largest = torch.linalg.vector_norm(images, dim=1).max()
    roundings = (3 * images.shape[1] + 9) * ROUNDING

    def of_images(rows: Tensor) -> Tensor:
        upper = (rows > median).to(rows.dtype)
        return torch.cat([upper, rows * (1 - upper), rows * upper, torch.ones_like(rows[:, :1])], dim=1)

    def of_captions(rows: Tensor) -> tuple[Tensor, float]:
        slopes = [(rows - value).clamp_(min=0) for value in usual]
        lower, upper = (slope * (slope - 2 * rows) for slope in slopes)  # a² − 2ac, of each dimension
        constant = lower.sum(dim=1, keepdim=True)
        # the sum of the sizes of what is added up, and so of what is lost in rounding
        sizes = 2 * lower.abs().sum(dim=1) + upper.abs().sum(dim=1)
        sizes += 2 * largest * sum(torch.linalg.vector_norm(slope, dim=1) for slope in slopes)
        return torch.cat([upper - lower, *(2 * slope for slope in slopes), constant], dim=1), float(
            roundings * sizes.max()
        )

    return Bounds(of_images, of_captions, lower=False)


BOUNDS = {"cosine": cosine_bounds, "order": order_bounds}


def counts_at_least(
    similarity: str, images: Tensor, captions: Tensor, best: Tensor, true: Tensor
) -> tuple[Tensor, Tensor]:
    """Count for each image the captions that score at least `best`, for each caption the images of at least `true`.

    images: (N, D) and captions: (M, D), float32 and finite; best: (N,) and true: (M,), float32. Return (N,) and (M,)
    int64. Raises TooManyOpen.

    >>> eye = torch.eye(3)
    >>> counts_at_least("cosine", eye, eye, torch.full((3,), 0.5), torch.full((3,), -0.5))
    (tensor([1, 1, 1]), tensor([3, 3, 3]))
    """
    of_images, of_captions = torch.zeros(len(best), dtype=torch.int64), torch.zeros(len(true), dtype=torch.int64)
    for rows, columns, tile in BOUNDS[similarity](images, captions).tiles(images, captions):
        second_look = partial(exactly_at_least, similarity, images[rows], captions[columns])
        of_captions[columns] += _at_least(tile, true[columns], second_look)
        turned = Tile(tile.scores.T, tile.shortfall, tile.excess)
        of_images[rows] += _at_least(turned, best[rows], partial(_turned, second_look))
    return of_images, of_captions


def _turned(second_look: SecondLook, captions: Tensor, images: Tensor, thresholds: Tensor) -> Tensor:
    return second_look(images, captions, thresholds)


def _at_least(tile: Tile, thresholds: Tensor, exact: SecondLook) -> Tensor:
    """Count in each column of a tile (rows, columns) the exact scores that are at least its threshold.

    exact: tells of open pairs whether they are.
    """
    rounding = 2 * ROUNDING * thresholds.abs()  # of the two sums themselves
    high, low = thresholds + tile.shortfall + rounding, thresholds - tile.excess - rounding
    sure, possible = (len(tile.scores) - _count_below(tile.scores, limit) for limit in (high, low))
    columns = (possible > sure).nonzero().squeeze(1)
    if possible.sum() - sure.sum() > MOST_OPEN * tile.scores.numel():
        raise TooManyOpen
    near = tile.scores[:, columns]
    rows, which = ((near >= low[columns]) & (near < high[columns])).nonzero(as_tuple=True)
    columns = columns[which]
    return sure.index_add_(0, columns, exact(rows, columns, thresholds[columns]).long())


def _count_below(scores: Tensor, limits: Tensor) -> Tensor:
    """Return for each column the rows that score below its limit. Counted by a product: several times as quick."""
    below = torch.lt(scores, limits, out=torch.empty_like(scores))
    return (below.new_ones(len(below)) @ below).long()


def exactly_at_least(
    similarity: str, images: Tensor, captions: Tensor, image_rows: Tensor, caption_rows: Tensor, thresholds: Tensor
) -> Tensor:
    """Tell of pairs of rows of `images` and `captions` whether their `pair_scores` are at least `thresholds`: (P,)."""
    answers = torch.zeros(len(thresholds), dtype=torch.bool)
    unsure = torch.ones_like(answers)
    if similarity == "order":  # float32 decides all but what lies within its roundings
        error = 2 * (images.shape[1] + 4) * ROUNDING
        for part in torch.arange(len(thresholds)).split(PAIRS):
            scores = -(captions[caption_rows[part]] - images[image_rows[part]]).clamp_(min=0).square_().sum(dim=1)
            answers[part] = scores >= thresholds[part]
            unsure[part] = (scores - thresholds[part]).abs() <= -error * (scores + thresholds[part])
    pairs = unsure.nonzero().squeeze(1)
    rows = image_rows[pairs].numpy(), caption_rows[pairs].numpy()
    scores = torch.from_numpy(pair_scores(similarity, images.numpy(), captions.numpy(), *rows))
    answers[pairs] = scores >= thresholds[pairs]
    return answers

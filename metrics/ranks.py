"""Ranks, both ways. They start at 1, and ties count against the model. Counted by comparison, never by sorting."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from metrics.bounds import TooManyOpen, counts_at_least
from metrics.pairs import pair_scores
from metrics.positions import Positions
from metrics.similarity import RANKING, Scores

BOUNDED: dict[Scores, str] = {score: name for name, score in RANKING.items()}  # what there are bounds for


@dataclass(frozen=True)
class Ranks:
    """image_to_text: (images,) int64, rank of the best of each image's captions. text_to_image: (captions,) int64.

    positions: by direction, of all true items, where those were asked for or a caption belongs to several images; the
    ranks are then those of the queries that have a true item.
    """

    image_to_text: np.ndarray
    text_to_image: np.ndarray
    positions: Mapping[str, Positions] | None = field(default=None, repr=False)


def ranks_of(scores: Tensor, image_of_caption: np.ndarray) -> Ranks:
    """Return the ranks of scores (N images, M captions); image_of_caption: (M,) the row of each caption's image.

    Image to text: 1 + the number of other images' captions that score at least the image's best own caption.
    Text to image: 1 + the number of other images that score at least the true one.
    Not-a-number counts as the worst case on both sides. Raises ValueError if an image has no caption.

    >>> ranks_of(torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.4, 0.4]]), np.array([0, 0, 1]))
    Ranks(image_to_text=array([1, 2]), text_to_image=array([1, 2, 1]))
    """
    image_rows = torch.as_tensor(image_of_caption, device=scores.device)
    _check(len(scores), image_rows)
    true_scores = scores[image_rows, torch.arange(len(image_rows), device=scores.device)]
    return _count(lambda start, stop: scores[start:stop], len(scores), image_rows, true_scores, block=len(scores))


def ranks_by_block(
    similarity: Scores, images: Tensor, captions: Tensor, image_of_caption: np.ndarray, block: int = 1024
) -> Ranks:
    """Return `ranks_of(similarity(images, captions), …)` without holding more scores than of `block` images.

    Scores of RANKING are bounded first (`metrics.bounds`), and exact, as `pair_scores` has them, where that decides a
    rank. Of others, and in a space that has collapsed, every block is formed twice, first to read the true pairs'
    scores and then to compare with them: of another product they could differ in the last bit, and a tie be lost.

    >>> ranks_by_block(lambda a, b: a @ b.T, torch.eye(3), torch.eye(3), np.arange(3), block=2).image_to_text
    array([1, 1, 1])
    """
    image_rows = torch.as_tensor(image_of_caption, device=images.device)
    _check(len(images), image_rows)
    name = BOUNDED.get(similarity)
    if name and _bounds_hold(images, captions):
        with contextlib.suppress(TooManyOpen):
            return _ranks_by_bounds(name, images, captions, image_rows)
    if len(images) <= block:
        return ranks_of(similarity(images, captions), image_of_caption)
    true_scores = images.new_empty(len(image_rows))
    for start in range(0, len(images), block):
        inside = ((image_rows >= start) & (image_rows < start + block)).nonzero().squeeze(1)
        true_scores[inside] = similarity(images[start : start + block], captions)[image_rows[inside] - start, inside]
    return _count(lambda a, b: similarity(images[a:b], captions), len(images), image_rows, true_scores, block)


def _bounds_hold(*embeddings: Tensor) -> bool:
    """Whether a float32 product has the roundings of float32; a GPU, or a setting of torch, may have coarser ones."""
    return torch.get_float32_matmul_precision() == "highest" and all(
        e.device.type == "cpu" and e.dtype == torch.float32 and bool(e.isfinite().all()) for e in embeddings
    )


def _ranks_by_bounds(name: str, images: Tensor, captions: Tensor, image_rows: Tensor) -> Ranks:
    """Return the same by `counts_at_least`, which counts each image's captions and each caption's image, too."""
    pairs = image_rows.numpy(), np.arange(len(captions))
    true_scores = torch.from_numpy(pair_scores(name, images.numpy(), captions.numpy(), *pairs))
    best = torch.full((len(images),), -torch.inf).scatter_reduce(0, image_rows, true_scores, "amax")
    of_images, of_captions = counts_at_least(name, images, captions, best, true_scores)
    mine = torch.zeros_like(of_images).index_add(0, image_rows, (true_scores >= best[image_rows]).long())
    return Ranks((1 + of_images - mine).numpy(), of_captions.numpy())


def _count(rows: Callable[[int, int], Tensor], n: int, image_rows: Tensor, true_scores: Tensor, block: int) -> Ranks:
    """Compare block by block of images. image_rows: (M,) of captions; true_scores: (M,) of captions with these."""
    text_to_image = torch.ones_like(image_rows)
    image_to_text = torch.ones(n, dtype=torch.int64, device=image_rows.device)
    for start in range(0, n, block):
        scores = rows(start, min(start + block, n))
        others = image_rows[None, :] != torch.arange(start, start + len(scores), device=image_rows.device)[:, None]
        # "not below" rather than "at least": it holds for not-a-number, too
        text_to_image += (~(scores < true_scores[None, :]) & others).sum(dim=0)
        best = scores.masked_fill(others, -torch.inf).amax(dim=1)
        image_to_text[start : start + len(scores)] += (~(scores < best[:, None]) & others).sum(dim=1)
    return Ranks(image_to_text.cpu().numpy(), text_to_image.cpu().numpy())


def ranks_one_way(scores: Tensor, image_of_caption: np.ndarray, direction: str) -> np.ndarray:
    """Return the ranks of `ranks_of` in one direction, (images,) or (captions,): quick, for scores that are many.

    >>> ranks_one_way(torch.tensor([[0.9, 0.2, 0.3], [0.1, 0.4, 0.4]]), np.array([0, 0, 1]), "text_to_image")
    array([1, 2, 1], dtype=int32)
    """
    image_rows = torch.as_tensor(image_of_caption, device=scores.device)
    _check(len(scores), image_rows)
    true_scores = scores[image_rows, torch.arange(len(image_rows), device=scores.device)]
    if direction == "text_to_image":  # the true image counts itself: it does not score below itself
        return (~(scores < true_scores)).sum(dim=0, dtype=torch.int32).cpu().numpy()
    best = torch.full_like(scores[:, 0], -torch.inf).scatter_reduce(0, image_rows, true_scores, "amax")
    true_too = torch.zeros(len(scores), dtype=torch.int64, device=scores.device).index_add(
        0, image_rows, (~(true_scores < best[image_rows])).long()
    )
    return (1 + (~(scores < best[:, None])).sum(dim=1, dtype=torch.int32) - true_too).cpu().numpy()


def _check(images: int, image_rows: Tensor) -> None:
    if len(image_rows) == 0 or len(torch.bincount(image_rows, minlength=images)) != images:
        raise ValueError("image_of_caption names rows that the scores do not have")
    if (torch.bincount(image_rows, minlength=images) == 0).any():
        raise ValueError("an image without a caption has no rank")


CUTOFFS = (1, 5, 10)
TITLES = {"image_to_text": "image → text", "text_to_image": "text → image"}
DIRECTIONS = tuple(TITLES)
COLUMNS = (*(f"R@{k}" for k in CUTOFFS), "median_rank", "mean_rank")
RECALLS = [(direction, f"R@{k}") for direction in DIRECTIONS for k in CUTOFFS]  # whose sum is rsum


def recall_at(k: int, ranks: np.ndarray) -> float:
    """Return the percentage of queries with rank ≤ k: a query counts once, however many of its captions are found.

    >>> recall_at(5, np.array([1, 5, 6, 40]))
    50.0
    """
    return 100.0 * float(np.mean(ranks <= k))


def median_rank(ranks: np.ndarray) -> float:
    """Return ⌊median of zero-based ranks⌋ + 1, as the papers' code counts it.

    >>> median_rank(np.array([1, 2]))
    1.0
    """
    return float(np.floor(np.median(ranks - 1)) + 1)


def mean_rank(ranks: np.ndarray) -> float:
    return float(np.mean(ranks))


def one_way(ranks: np.ndarray) -> dict[str, float]:
    """Return the figures of one direction, under the names of COLUMNS."""
    recalls = {f"R@{k}": recall_at(k, ranks) for k in CUTOFFS}
    return {**recalls, "median_rank": median_rank(ranks), "mean_rank": mean_rank(ranks)}


def metrics_of(ranks: Ranks) -> dict[str, dict[str, float]]:
    """Return both directions: {"image_to_text": {"R@1": …}, "text_to_image": {…}}."""
    return {direction: one_way(getattr(ranks, direction)) for direction in DIRECTIONS}


def mean_of(metrics: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return every metric averaged, over folds or over seeds."""
    return {
        direction: {column: float(np.mean([m[direction][column] for m in metrics])) for column in metrics[0][direction]}
        for direction in DIRECTIONS
    }


def rsum(metrics: Mapping[str, Mapping[str, float]]) -> float:
    """Return the sum of the six recalls; 600 is perfect."""
    return sum(metrics[direction][column] for direction, column in RECALLS)

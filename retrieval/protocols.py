"""Protocols: which images and captions are ranked against each other, and under what name a table says so."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from retrieval.metrics import mean_of, metrics_of
from retrieval.ranks import Ranks, ranks_by_block
from utils import BadInput


@dataclass(frozen=True)
class Protocol:
    """folds: equal, consecutive parts of the split, each ranked on its own, every metric averaged over them.
    captions: how many captions of an image are kept, the first ones; 0 keeps all.
    """

    folds: int = 1
    captions: int = 0


# COCO's tables keep five captions of an image, and report five folds of 1,000 images ("1K") beside all 5,000 ("5K").
COCO = (Protocol(folds=5, captions=5), Protocol(folds=1, captions=5))


def protocols_for(dataset: str, split: str, images: int, folds: int | None) -> tuple[Protocol, ...]:
    """What to report for a split: the folds asked for, or what the dataset's papers report."""
    captions = 5 if dataset == "coco" else 0
    if folds is not None:
        if folds < 1 or images % folds:
            raise BadInput(
                f"--folds {folds}: the {images:,} images of {dataset}'s {split} split do not divide into {folds} equal "
                f"folds; choose a divisor of {images:,}"
            )
        return (Protocol(folds, captions),)
    if dataset == "coco" and images == 5000:
        return COCO
    return (Protocol(1, captions),)


def protocol_name(protocol: Protocol, dataset: str, split: str, images: int) -> str:
    """As papers and published_results.json write it: "test 1000", "1K, 5 folds", "5K"."""
    if dataset == "coco" and split == "test" and images % (1000 * protocol.folds) == 0:
        name = f"{images // protocol.folds // 1000}K"
    else:
        name = f"{split} {images // protocol.folds}"
    return name if protocol.folds == 1 else f"{name}, {protocol.folds} folds"


def first_captions(image_of_caption: np.ndarray, most: int) -> np.ndarray:
    """Rows of the first `most` captions of every image, in order; all rows for 0."""
    if not most:
        return np.arange(len(image_of_caption))
    seen: dict[int, int] = {}
    kept = []
    for row, image in enumerate(image_of_caption.tolist()):
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= most:
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def ranks_of_folds(
    similarity: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    captions: Tensor,
    image_of_caption: np.ndarray,
    protocol: Protocol,
) -> list[Ranks]:
    """Ranks of every fold. images: (N, D), captions: (M, D) embeddings; image_of_caption: (M,)."""
    size = len(images) // protocol.folds
    if size * protocol.folds != len(images):
        raise ValueError(f"{len(images)} images do not divide into {protocol.folds} equal folds")
    kept = first_captions(image_of_caption, protocol.captions)
    owner = image_of_caption[kept]
    found = []
    for start in range(0, len(images), size):
        inside = (owner >= start) & (owner < start + size)
        part = captions[kept[inside].tolist()]
        found.append(ranks_by_block(similarity, images[start : start + size], part, owner[inside] - start))
    return found


def metrics_of_folds(folds: list[Ranks]) -> dict[str, dict[str, float]]:
    return mean_of([metrics_of(ranks) for ranks in folds])

"""Protocols: which images and captions are ranked against each other, and under what name a table says so."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metrics.positions import Truth, positions_by_block
from metrics.ranks import Ranks, mean_of, metrics_of, ranks_by_block
from metrics.similarity import Scores


@dataclass(frozen=True)
class Protocol:
    """folds: equal, consecutive parts of the split, each ranked on its own, every metric averaged over them.
    captions: how many captions of an image are kept, the first ones; 0 keeps all.
    """

    folds: int = 1
    captions: int = 0


COCO_FOLDS = (5, 1)  # its tables report five folds of 1,000 images ("1K") beside all 5,000 ("5K")
# Captions an image that a dataset's papers keep, the first being what is kept here unless another number is asked for.
# Flickr's images have five captions each, so that keeping five is keeping all. A protocol's name is silent about these.
USUAL_CAPTIONS = {"coco": (5,), "flickr8k": (0, 5), "flickr30k": (0, 5)}


def protocols_for(
    dataset: str, split: str, images: int, folds: int | None, captions: int | None = None
) -> tuple[Protocol, ...]:
    """Return what to report for a split: the folds and captions asked for, or what the dataset's papers report.

    captions: how many captions of an image are kept, 0 for all of them. Raises ValueError for folds that are not equal.
    """
    if captions is not None and captions < 0:
        raise ValueError(
            f"`captions_per_image` {captions}: keep 1 or more captions of every image, or 0 for all of them"
        )
    kept = _usual(dataset)[0] if captions is None else captions
    if folds is not None:
        if folds < 1 or images % folds:
            raise ValueError(
                f"`folds` {folds}: the {images:,} images of {dataset}'s {split} split do not divide into {folds} equal "
                f"folds; choose a divisor of {images:,}"
            )
        return (Protocol(folds, kept),)
    if dataset == "coco" and images == 5000:
        return tuple(Protocol(count, kept) for count in COCO_FOLDS)
    return (Protocol(1, kept),)


def protocol_name(protocol: Protocol, dataset: str, split: str, images: int) -> str:
    """Return the name that papers and published.json write: "test 1000", "1K, 5 folds", "5K"; an unusual number of
    captions is added: "test 1000, 1 caption an image".
    """
    if dataset == "coco" and split == "test" and images % (1000 * protocol.folds) == 0:
        name = f"{images // protocol.folds // 1000}K"
    else:
        name = f"{split} {images // protocol.folds}"
    if protocol.folds > 1:
        name += f", {protocol.folds} folds"
    if protocol.captions not in _usual(dataset):
        number = f"{protocol.captions} caption{'s' * (protocol.captions > 1)} an image"
        name += f", {number if protocol.captions else 'all captions'}"
    return name


def _usual(dataset: str) -> tuple[int, ...]:
    return USUAL_CAPTIONS.get(dataset, (0,))


def first_captions(image_of_caption: np.ndarray, most: int) -> np.ndarray:
    """Return the rows of the first `most` captions of every image, in order, and those of no image (-1); all for 0."""
    if not most:
        return np.arange(len(image_of_caption))
    seen: Counter[int] = Counter()
    kept = []
    for row, image in enumerate(image_of_caption.tolist()):
        seen[image] += 1
        if seen[image] <= most or image < 0:
            kept.append(row)
    return np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class Fold:
    """Images `start` to `stop` of a split. captions: (M,) rows of the captions kept; image_of_caption: (M,) the image
    of each, counted from the fold's first.

    truth: which pairs are true, counted from the fold's first, where all their positions are asked for or a caption may
    belong to several images or none (-1 in image_of_caption, the first of them otherwise); None where image_of_caption
    says it all.
    """

    start: int
    stop: int
    captions: np.ndarray
    image_of_caption: np.ndarray
    truth: Truth | None = None

    def images_of_queries(self, ranks: Ranks) -> dict[str, np.ndarray]:
        """Return the image (Q,) that each query of a direction is, or belongs to."""
        if ranks.positions is None:
            return {"image_to_text": np.arange(self.stop - self.start), "text_to_image": self.image_of_caption}
        asked = {direction: positions.queries for direction, positions in ranks.positions.items()}
        return asked | {"text_to_image": self.image_of_caption[asked["text_to_image"]]}


def folds_of(image_of_caption: np.ndarray, images: int, protocol: Protocol, truth: Truth | None = None) -> list[Fold]:
    """Return the galleries, ranked each on its own. image_of_caption: (all captions,) rows of the split's images, -1
    for a caption of none, which only a protocol of one fold has room for; truth: see `Fold`, of the whole split.
    """
    size = images // protocol.folds
    if size * protocol.folds != images:
        raise ValueError(f"{images} images do not divide into {protocol.folds} equal folds")
    kept = first_captions(image_of_caption, protocol.captions)
    image_rows = image_of_caption[kept]
    folds = []
    for start in range(0, images, size):
        inside = (image_rows >= start) & (image_rows < start + size)
        inside |= (image_rows < 0) & (protocol.folds == 1)
        captions, rows = kept[inside], np.maximum(image_rows[inside] - start, -1)
        part = truth.within(start, start + size, captions) if truth else None
        folds.append(Fold(start, start + size, captions, rows, part))
    return folds


def ranks_of_folds(similarity: Scores, images: Tensor, captions: Tensor, folds: Sequence[Fold]) -> list[Ranks]:
    """Return the ranks of every fold. images: (N, D), captions: (M, D) embeddings."""
    return [ranks_of_fold(similarity, images[fold.start : fold.stop], captions[fold.captions], fold) for fold in folds]


def ranks_of_fold(similarity: Scores, images: Tensor, captions: Tensor, fold: Fold) -> Ranks:
    """Return the ranks of one fold, of whose images (n, D) and captions (m, D) the embeddings are."""
    if fold.truth is None:
        return ranks_by_block(similarity, images, captions, fold.image_of_caption)
    positions = positions_by_block(similarity, images, captions, fold.truth)
    return Ranks(**{direction: one.first for direction, one in positions.items()}, positions=positions)


def metrics_of_folds(folds: list[Ranks]) -> dict[str, dict[str, float]]:
    """Return every metric, averaged over folds."""
    return mean_of([metrics_of(ranks) for ranks in folds])

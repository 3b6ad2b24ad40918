"""What a step of training does to its batch: captions of one image together, mixtures of pairs, frozen features."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from features.images.views import take_features
from features.prepared import Split
from features.text.vocabulary import Sentences
from losses import structure
from settings import LossSettings, TrainingSettings


def grouped_order(image_of_caption: np.ndarray, size: int, random: np.random.Generator) -> np.ndarray:
    """Return all captions in random order, up to `size` of one image next to each other.

    Which captions of an image come together is random too; where `size` does not divide their number, fewer do.

    >>> grouped_order(np.array([0, 0, 1, 1]), 2, np.random.default_rng(0)).tolist()
    [2, 3, 0, 1]
    """
    shuffled = random.permutation(len(image_of_caption))
    order = shuffled[np.argsort(image_of_caption[shuffled], kind="stable")]
    images = image_of_caption[order]
    rank = np.arange(len(images)) - np.searchsorted(images, images)  # of a caption among those of its image
    groups = np.cumsum(rank % size == 0) - 1
    return order[np.argsort(random.permutation(len(order))[groups], kind="stable")]


@dataclass(frozen=True)
class Mixup:
    """Mixtures of pairs (Zhang et al., 2018; of latents and alike on both sides, Vouitsis et al., 2024, FuseMix).

    Row i of a batch's first half and row i of its second are mixed, `share` of the first; an odd row is left out.
    """

    share: float

    def __call__(self, x: Tensor) -> Tensor:
        """Mix (B, …) → (B // 2, …)."""
        half = len(x) // 2
        return self.share * x[:half] + (1 - self.share) * x[half : 2 * half]

    def images(self, images: Tensor) -> Tensor:
        """Return a number for each two images that are mixed, (B,) → (B // 2,): the same for the same two alone."""
        half = len(images) // 2
        return images[:half] * (1 + int(images.max())) + images[half : 2 * half]


def draw_mixup(alpha: float, count: int) -> Mixup | None:
    """Draw how a batch of `count` pairs is mixed, by torch's generator; None if `alpha` is 0, or for a single pair."""
    if not alpha or count < 2:
        return None
    return Mixup(float(torch.distributions.Beta(alpha, alpha).sample()))


def vectors(features: Tensor) -> Tensor:
    """Return frozen features as (B, D): of maps (B, H, W, C), the mean over positions."""
    return features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features


def similarities(features: Tensor, others: Tensor) -> Tensor:
    """Return the cosines (B, C) of frozen features (B, …) with those of others (C, …)."""
    unit, other = (F.normalize(vectors(x), dim=1) for x in (features, others))
    return unit @ other.T


def structure_loss(s: LossSettings, sides: list[tuple[Tensor | None, Tensor]]) -> Tensor:
    """Return `loss.structure` times what the heads change, over the sides that have frozen features.

    sides: of images and of captions, features before (None where there are none) and embeddings after.
    """
    parts = [
        structure(vectors(before), after, s.structure_temperature, s.structure_levels)
        for before, after in sides
        if before is not None
    ]
    return s.structure * torch.stack(parts).sum()


def about_batch(t: TrainingSettings, split: Split, sentences: Sentences, rows: np.ndarray) -> str:
    """Return which captions `rows` (B,) of the training split are, and why they may give no finite loss or gradient."""
    images = split.image_of_caption[rows]
    which = f"of a batch of {len(rows):,} captions, the first of image {split.images[images[0]]}"
    sides = [("image", split.images, images, take_features(split.features, images, np.random.default_rng(0)))]
    if sentences.features is not None:
        sides.append(("caption", split.captions, rows, sentences.features[rows]))
    for side, names, numbers, features in sides:
        bad = numbers[~np.isfinite(features).reshape(len(features), -1).all(axis=1)]
        if len(bad):
            reason = f"the features of {side} {names[bad[0]]} are not finite; make them again with prep.py and `fresh`"
            return f"{which}: {reason}"
    reason = f"steps are too large; lower `training.lr` (it is {t.lr:g}), or clip gradients with `training.grad_clip`"
    return f"{which}: probably {reason}, for example at 2"

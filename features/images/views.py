"""Features with several views of an image: training takes one of them, drawn anew each time, all else their mean."""

from collections.abc import Sequence

import numpy as np

from features.images.maps import FeatureMaps

Rows = np.ndarray | slice  # of a batch
ALL = slice(None)


class FeatureViews:
    """The views of N images, joined: like an array (N, D) float32, whose rows are the mean over the views of an image.

    parts: each of the features joined, as stored, which is all that is held: (N, views, D), their numbers of views may
    differ, or (N, D). normalize: as for `join_features`.

    >>> views = FeatureViews([np.array([[[3, 0], [0, 4]]], np.float16)], normalize=False)
    >>> views.shape, views[:], views.draw(np.array([0]), np.random.default_rng(1))
    ((1, 2), array([[1.5, 2. ]], dtype=float32), array([[3., 0.]], dtype=float32))
    """

    def __init__(self, parts: Sequence[np.ndarray], normalize: bool):
        self.parts, self.normalize = list(parts), normalize
        self.shape = len(self.parts[0]), sum(part.shape[-1] for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice | np.ndarray) -> np.ndarray:
        """Return the mean over the views of consecutive images, or of rows, (n, D) float32."""
        return join_features([part[images].astype(np.float32) for part in self.parts], self.normalize)

    def draw(self, images: np.ndarray, random: np.random.Generator, rows: Rows = ALL) -> np.ndarray:
        """Return a view of each of `images` (B,)[rows], (len(rows), D) float32; each feature joined draws for itself.

        It draws for all B, whichever rows are wanted.
        """

        def row(part: np.ndarray) -> np.ndarray:
            if part.ndim == 2:
                return part[images[rows]]
            return part[images[rows], random.integers(part.shape[1], size=len(images))[rows]]

        return join_features([row(part).astype(np.float32) for part in self.parts], self.normalize)


Features = np.ndarray | FeatureMaps | FeatureViews  # of the images of a split


def take_features(features: Features, images: np.ndarray, random: np.random.Generator, rows: Rows = ALL) -> np.ndarray:
    """Return the features of `rows` of a batch of `images` (B,), any order, repeats allowed: a view drawn of each.

    (len(rows), D) float32, or (len(rows), H, W, C) of spatial maps. random: draws where there are several views, and
    only there.

    >>> take_features(np.eye(3, dtype=np.float32), np.array([2, 1]), np.random.default_rng(0), np.array([0])).tolist()
    [[0.0, 0.0, 1.0]]
    """
    if isinstance(features, FeatureViews):
        return features.draw(images, random, rows)
    return features.take(images[rows]) if isinstance(features, FeatureMaps) else features[images[rows]]


def join_features(parts: Sequence[np.ndarray], normalize: bool) -> np.ndarray:
    """Join features (N, D1), (N, views, D2), … to (N, D1 + D2 + …) float32; one map (N, H, W, C) stays one.

    Several features are L2-normalized each before they are joined, so that none drowns the others; one feature is
    where `normalize` says so. Of several views each is, then their mean, which has the length that a view drawn in
    training has. A row of zeros stays zero.

    >>> views = np.array([[[3.0, 4.0], [4.0, 3.0]]])
    >>> join_features([views], normalize=True).round(4).tolist(), join_features([views], normalize=False).tolist()
    ([[0.707099974155426, 0.707099974155426]], [[3.5, 3.5]])
    """
    unit = _unit if normalize or len(parts) > 1 else np.asarray
    parts = [unit(unit(part).mean(axis=1)) if part.ndim == 3 else unit(part) for part in parts]
    return np.concatenate(parts, axis=-1, dtype=np.float32)


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

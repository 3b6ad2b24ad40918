"""Queries that add and subtract: "like this image, but in snow", "a dog, less of people"."""

from collections.abc import Sequence

import numpy as np

from utils import BadInput


def add_up(similarity: str, plus: Sequence[np.ndarray], minus: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Return the embedding (1, dim), of unit length, of images and sentences (1, dim) added up, less others.

    Each counts as much as the next: all have unit length. Raises BadInput where nothing is left, or where the
    similarity is not cosine: under order similarity a sum is no image or sentence (Vendrov et al., 2016).

    >>> dog, snow = np.float32([[1, 0]]), np.float32([[0, 1]])
    >>> bool(np.allclose(add_up("cosine", [dog, snow]), [[0.5**0.5, 0.5**0.5]]))
    True
    """
    if similarity != "cosine":
        raise BadInput(
            f"the run's similarity is {similarity}, not cosine, and only under cosine do images and sentences add up; "
            f"ask with one sentence or one image alone"
        )
    if not plus:
        raise BadInput("nothing is asked for, only what is to be taken away; add a sentence or an image")
    total = np.sum([*plus, *(-row for row in minus)], axis=0, dtype=np.float64)
    length = np.linalg.norm(total)
    if length < 1e-6:
        raise BadInput("what is added and what is taken away are the same; leave one of them out")
    return np.asarray(total / length, np.float32)

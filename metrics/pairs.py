"""Scores of single pairs, exact, with NumPy alone: what searches and ranks are decided by."""

import numpy as np

PAIRS_PER_BLOCK = 4096


def pair_scores(
    similarity: str, images: np.ndarray, captions: np.ndarray, image_rows: np.ndarray, caption_rows: np.ndarray
) -> np.ndarray:
    """Return the scores (P,) of pairs of rows of the embeddings (N, D) and (M, D), a block of pairs at a time.

    Summed up in float64 and rounded to float32, as for ranking: equal embeddings score equal.
    """
    scores = np.empty(len(image_rows), np.float32)
    for start in range(0, len(scores), PAIRS_PER_BLOCK):
        pairs = slice(start, start + PAIRS_PER_BLOCK)
        one, other = images[image_rows[pairs]].astype(np.float64), captions[caption_rows[pairs]].astype(np.float64)
        if similarity == "order":
            violation = np.maximum(0, other - one)  # what the caption asks for and the image lacks
            scores[pairs] = -np.square(violation).sum(1)
        else:
            scores[pairs] = (one * other).sum(1)
    return scores

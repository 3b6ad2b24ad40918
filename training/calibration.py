"""How likely an image and a sentence belong together: a logistic curve over two figures, fitted on val.

Sentences of words that are drawn at random from val's captions stand for those that no image belongs to. The figures
are the score of the pair, and how near the sentence lies to the training captions of the run's bank.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MIN_IMAGES = 50  # of val: with fewer, their best scores are too low a bar, and the curve takes anything for a match
MAX_SENTENCES = 1000  # of val, and of the bank
SHUFFLED = 400  # sentences that nothing belongs to: a transformer may have to read them now
NEIGHBORS = 10  # captions of the bank that nearness is the mean over
ANSWERED = 0.7  # share of queries that some image belongs to, as probabilities take it: turns away 10 % of val


@dataclass(frozen=True)
class Calibration:
    """A probability of a pair is the logistic function of intercept + score · its score + nearness · its nearness."""

    intercept: float
    score: float
    nearness: float

    def probabilities(self, scores: np.ndarray, nearness: np.ndarray | float) -> np.ndarray:
        """Return probabilities in the shape of `scores`; nearness: of the sentence, or of each pair's.

        >>> Calibration(-4.0, 8.0, 0.0).probabilities(np.array([0.5, 1.0]), 0.3).round(3).tolist()
        [0.5, 0.982]
        """
        return 1 / (1 + np.exp(-(self.intercept + self.score * scores + self.nearness * nearness)))


def calibrate(
    scores: np.ndarray, nearness: np.ndarray, shuffled_scores: np.ndarray, shuffled_nearness: np.ndarray
) -> Calibration:
    """Fit the curve to the best score and the nearness of sentences that images belong to (M,), and of others (S,).

    ANSWERED of all cases are of the first kind, however many there are here.
    """
    from sklearn.linear_model import LogisticRegression  # late: a table needs none of it

    figures = [np.stack(pair, axis=1) for pair in ((scores, nearness), (shuffled_scores, shuffled_nearness))]
    x, answered = np.concatenate(figures).astype(np.float64), np.repeat([1, 0], [len(part) for part in figures])
    weights = np.where(answered, ANSWERED / len(scores), (1 - ANSWERED) / len(shuffled_scores)) * len(x)
    scale = x.std(axis=0) + 1e-9
    for used in (2, 1):  # the score alone where it would count against a pair beside nearness
        curve = LogisticRegression(C=100.0).fit(x[:, :used] / scale[:used], answered, sample_weight=weights)
        score, nearby = [*(curve.coef_[0] / scale[:used]).tolist(), 0.0][:2]
        if score > 0:
            return Calibration(float(curve.intercept_[0]), score, nearby)
    return Calibration(math.log(ANSWERED / (1 - ANSWERED)), 0.0, 0.0)  # no score tells them apart


def nearness_to(captions: np.ndarray, sentences: np.ndarray) -> np.ndarray:
    """Return for sentences (S, D) the mean cosine (S,) with their NEIGHBORS nearest captions of a bank (B, D)."""
    near = spread(captions, MAX_SENTENCES)
    return np.sort(sentences @ near.T, axis=1)[:, -NEIGHBORS:].mean(axis=1)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Return up to `most` rows (N, …), evenly spread; of what it returns, it returns all.

    >>> spread(np.arange(10), 3)
    array([0, 3, 6])
    """
    kept = min(len(rows), most)
    return rows[np.arange(kept) * len(rows) // kept]


def shuffled_sentences(captions: Sequence[str], seed: int) -> list[str]:
    """Return SHUFFLED sentences of words that are drawn from all captions, as long as captions are."""
    random = np.random.default_rng([seed, SHUFFLED])
    words = [word for caption in captions for word in caption.split()]
    lengths = [len(captions[row].split()) for row in random.integers(len(captions), size=SHUFFLED)]
    return [" ".join(words[i] for i in random.integers(len(words), size=length)) for length in lengths]

"""The ranks of a model, or of several together by the mean of their scores, as they are and corrected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluation.groups import Correction
from metrics.correction import SINKHORN, Bank, Retrieval, activation_set, biases, gate, sinkhorn, with_bias
from metrics.protocols import Fold, ranks_of_fold, ranks_of_folds
from metrics.ranks import DIRECTIONS, Ranks
from metrics.similarity import RANKING, Scores, mean_scores
from training.bank import RunBank


@dataclass(frozen=True)
class Ranked:
    """What is ranked of a model. images: (N, D), captions: (M, D) embeddings; bank: what they may be corrected by.

    scores: by direction, where they do not come of the similarity; images and captions then tell their rows.
    """

    similarity: str
    images: Tensor
    captions: Tensor
    bank: RunBank | None = None
    scores: Mapping[str, Scores] | None = None

    def scorer(self, direction: str) -> Scores:
        """Return what scores images against captions, for ranking."""
        return self.scores[direction] if self.scores else RANKING[self.similarity]

    @property
    def both_ways_alike(self) -> bool:
        """Return whether both directions are ranked by the same scores."""
        return len({self.scorer(direction) for direction in DIRECTIONS}) == 1


def ranks_together(models: Sequence[Ranked], folds: Sequence[Fold], correction: Correction | None) -> list[Ranks]:
    """Return the ranks by the mean of the models' scores in every fold, each model's corrected within its gallery."""
    if correction is None and all(model.both_ways_alike for model in models):
        return ranks_of_folds(*_side_by_side(models, DIRECTIONS[0]), folds)
    ranks = []
    for fold in folds:
        parts = [
            replace(model, images=model.images[fold.start : fold.stop], captions=model.captions[fold.captions])
            for model in models
        ]
        one_way, positions = {}, {}
        for direction in DIRECTIONS:
            corrected = [_corrected(part, direction, correction) for part in parts] if correction else parts
            both = ranks_of_fold(*_side_by_side(corrected, direction), fold)
            one_way[direction] = getattr(both, direction)
            if both.positions:
                positions[direction] = both.positions[direction]
        ranks.append(Ranks(**one_way, positions=positions or None))
    return ranks


def _side_by_side(parts: Sequence[Ranked], direction: str) -> tuple[Scores, Tensor, Tensor]:
    """Return the embeddings of several models as those of one, and what scores them."""
    if len(parts) == 1:
        return parts[0].scorer(direction), parts[0].images, parts[0].captions
    score = mean_scores([part.scorer(direction) for part in parts], [part.images.shape[1] for part in parts])
    images, captions = (torch.cat([getattr(part, side) for part in parts], 1) for side in ("images", "captions"))
    return score, images, captions


def _corrected(part: Ranked, direction: str, correction: Correction) -> Ranked:
    """Return a model's embeddings with one more dimension, the bias of what a direction ranks."""
    assert part.bank is not None
    retrieval = Retrieval(part.similarity, direction, part.scorer(direction))
    p = part.bank.chosen[correction.bank][direction][correction.name]
    items, queries = part.images, part.captions
    if not retrieval.items_are_images:
        items, queries = queries, items
    rows = Bank(queries, items) if correction.transductive else part.bank.side(direction)
    corrected = None
    if correction.name == SINKHORN:
        scores = part.scorer(direction)(part.images, part.captions)
        bias = sinkhorn(scores, p.beta)[not retrieval.items_are_images]
    else:
        bias = biases(correction.name, p, retrieval, items, rows)
    if correction.name == "qb_norm":
        corrected = gate(retrieval, items, queries, activation_set(retrieval, items, rows.queries))
    items, queries = with_bias(retrieval, items, queries, bias, corrected)
    images, captions = (items, queries) if retrieval.items_are_images else (queries, items)
    return replace(part, images=images, captions=captions)

"""The ranks of a run, or of several together by the mean of their scores, as they are and corrected."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluation.comparison import Correction
from metrics.correction import SINKHORN, Bank, Retrieval, activation_set, biases, gate, sinkhorn, with_bias
from metrics.protocols import Fold, ranks_of_folds
from metrics.ranks import DIRECTIONS, Ranks, ranks_by_block
from metrics.similarity import RANKING, Scores, mean_scores
from training.bank import RunBank


@dataclass(frozen=True)
class Ranked:
    """What is ranked of a run. images: (N, D), captions: (M, D) embeddings; bank: what they may be corrected by."""

    similarity: str
    images: Tensor
    captions: Tensor
    bank: RunBank | None = None


def ranks_together(runs: Sequence[Ranked], folds: Sequence[Fold], correction: Correction | None) -> list[Ranks]:
    """Return the ranks by the mean of the runs' scores in every fold, each run's corrected within its gallery."""
    if correction is None:
        return ranks_of_folds(*_side_by_side(runs), folds)
    ranks = []
    for fold in folds:
        parts = [
            replace(run, images=run.images[fold.start : fold.stop], captions=run.captions[fold.captions])
            for run in runs
        ]
        one_way = {}
        for direction in DIRECTIONS:
            corrected = [_corrected(part, direction, correction) for part in parts]
            both = ranks_by_block(*_side_by_side(corrected), fold.image_of_caption)
            one_way[direction] = getattr(both, direction)
        ranks.append(Ranks(**one_way))
    return ranks


def _side_by_side(parts: Sequence[Ranked]) -> tuple[Scores, Tensor, Tensor]:
    """Return the embeddings of several runs as those of one, and what scores them."""
    score = mean_scores([part.similarity for part in parts], [part.images.shape[1] for part in parts])
    images, captions = (torch.cat([getattr(part, side) for part in parts], 1) for side in ("images", "captions"))
    return score, images, captions


def _corrected(part: Ranked, direction: str, correction: Correction) -> Ranked:
    """Return a run's embeddings with one more dimension, the bias of what a direction ranks."""
    assert part.bank is not None
    retrieval = Retrieval(part.similarity, direction)
    p = part.bank.chosen[correction.bank][direction][correction.name]
    items, queries = part.images, part.captions
    if not retrieval.items_are_images:
        items, queries = queries, items
    rows = Bank(queries, items) if correction.transductive else part.bank.side(direction)
    corrected = None
    if correction.name == SINKHORN:
        scores = RANKING[part.similarity](part.images, part.captions)
        bias = sinkhorn(scores, p.beta)[not retrieval.items_are_images]
    else:
        bias = biases(correction.name, p, retrieval, items, rows)
    if correction.name == "qb_norm":
        corrected = gate(retrieval, items, queries, activation_set(retrieval, items, rows.queries))
    items, queries = with_bias(retrieval, items, queries, bias, corrected)
    images, captions = (items, queries) if retrieval.items_are_images else (queries, items)
    return replace(part, images=images, captions=captions)

"""The ranks of a run, or of several together by the mean of their scores, as they are and corrected."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evaluation.comparison import Correction
from metrics.correction import SINKHORN, Bank, Retrieval, activation_set, biases, gate, sinkhorn, with_bias
from metrics.protocols import Fold
from metrics.ranks import DIRECTIONS, Ranks, ranks_by_block
from metrics.similarity import RANKING, mean_scores
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
    ranks = []
    for fold in folds:
        parts = [
            replace(run, images=run.images[fold.start : fold.stop], captions=run.captions[fold.captions])
            for run in runs
        ]
        if correction is None:
            ranks.append(_ranks(parts, fold))
        else:
            ways = [[_corrected(part, direction, correction) for part in parts] for direction in DIRECTIONS]
            one_way = {name: getattr(_ranks(way, fold), name) for way, name in zip(ways, DIRECTIONS, strict=True)}
            ranks.append(Ranks(**one_way))
    return ranks


def _ranks(parts: Sequence[Ranked], fold: Fold) -> Ranks:
    score = mean_scores([part.similarity for part in parts], [part.images.shape[1] for part in parts])
    images, captions = (torch.cat([getattr(part, side) for part in parts], 1) for side in ("images", "captions"))
    return ranks_by_block(score, images, captions, fold.image_of_caption)


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

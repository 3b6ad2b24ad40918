"""Losses: functions of scores and of which image each pair is of. None sees settings, models or features.

scores: (B, B), rows are images, columns are captions, larger is closer; pair i is image i with caption i.
images: (B,) integers, the image of each pair; two pairs of one image are never each other's negatives.
Every loss is a scalar tensor with a gradient, finite for any finite scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def negatives_mask(images: Tensor) -> Tensor:
    """Return (B, B) bool: where image i and caption j do not belong together.

    >>> negatives_mask(torch.tensor([0, 0, 1])).int().tolist()
    [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    return images[:, None] != images[None, :]


def hinge(
    scores: Tensor,
    images: Tensor,
    margin: float,
    negatives: str = "sum",
    reduction: str = "sum",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the bidirectional hinge triplet loss: what negatives score beyond the positive less `margin`.

    scores: (B, B); images: (B,) image of each pair; margin: in units of the scores.
    negatives: "sum" over all (Kiros et al., 2014; Vendrov et al., 2016), the "hardest" (Faghri et al., 2018, VSE++),
    "semihard": the hardest among those that score below the positive, none if there is none (Schroff et al., 2015),
    "random": one of them, uniform, drawn with `generator`.
    reduction: "sum" over the batch, or "mean" over its B pairs; both directions are always added up.

    >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
    >>> hinge(scores, torch.tensor([0, 1]), margin=0.2)  # image 0: 0.1 too close; caption 1: 0.5
    tensor(0.6000)
    """
    mask = negatives_mask(images)
    positives = scores.diagonal()
    pick = NEGATIVES[negatives]
    total = scores.new_zeros(())
    for by_query in (scores, scores.T):  # rows: image queries against captions, then caption queries against images
        violation = (margin + by_query - positives[:, None]).clamp(min=0)  # (B, B)
        allowed = mask & (by_query < positives[:, None]) if negatives == "semihard" else mask
        total = total + pick(violation.masked_fill(~allowed, 0), allowed, generator)
    return total / len(scores) if reduction == "mean" else total


def _sum(violation: Tensor, allowed: Tensor, generator: torch.Generator | None) -> Tensor:
    return violation.sum()


def _hardest(violation: Tensor, allowed: Tensor, generator: torch.Generator | None) -> Tensor:
    # max, not amax: where negatives tie, one of them takes the whole gradient, as in VSE++
    return violation.max(dim=1).values.sum()


def _random(violation: Tensor, allowed: Tensor, generator: torch.Generator | None) -> Tensor:
    if not allowed.any():  # in a batch of one image's captions nothing is a negative, in any other each query has one
        return violation.sum()
    return violation.gather(1, torch.multinomial(allowed.float(), 1, generator=generator)).sum()


NEGATIVES: dict[str, Callable[[Tensor, Tensor, torch.Generator | None], Tensor]] = {
    "sum": _sum,
    "hardest": _hardest,
    "semihard": _hardest,
    "random": _random,
}


def smooth_hinge(
    scores: Tensor, images: Tensor, margin: float, sharpness: float = 20.0, reduction: str = "sum"
) -> Tensor:
    """Return the smooth hinge over the hardest negative: log(1 + Σ exp(sharpness x violation)) / sharpness, both ways.

    It takes all negatives into account, near ones most, and tends to the hinge over the hardest one as `sharpness`
    grows (the log-sum-exp of Oh Song et al., 2016, on the scores of a batch).
    scores: (B, B); images: (B,); margin: in units of the scores; sharpness: one over it; reduction: as hinge's.

    >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
    >>> smooth_hinge(scores, torch.tensor([0, 1]), margin=0.2, sharpness=100.0)  # hinge: 0.1 and 0.5
    tensor(0.6000)
    """
    mask, scores = negatives_mask(images), _as_float(scores)
    positives = scores.diagonal()
    total = scores.new_zeros(())
    for by_query in (scores, scores.T):
        violation = sharpness * (margin + by_query - positives[:, None])
        violation = violation.masked_fill(~mask, -torch.inf)
        none = violation.new_zeros(len(scores), 1)  # the 1 in log(1 + …): a query without a negative costs nothing
        total = total + torch.logsumexp(torch.cat([none, violation], dim=1), dim=1).sum() / sharpness
    return total / len(scores) if reduction == "mean" else total


def infonce(scores: Tensor, images: Tensor, scale: Tensor | float) -> Tensor:
    """Return the symmetric cross-entropy of picking the true one among all others (van den Oord et al., 2018; CLIP,
    Radford et al., 2021), the mean over both directions and over the batch.

    scores: (B, B); images: (B,); scale: what scores are multiplied by, one over the temperature, learned as a rule.

    >>> infonce(torch.zeros(4, 4), torch.arange(4), scale=10.0)  # one in four: log 4
    tensor(1.3863)
    """
    logits = scale * _as_float(scores)
    same_image = ~negatives_mask(images) & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    logits = logits.masked_fill(same_image, -torch.inf)  # other captions of one image are no wrong answers
    true = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2


def siglip(scores: Tensor, images: Tensor, scale: Tensor | float, bias: Tensor | float) -> Tensor:
    """Return the pairwise sigmoid loss: every pair by itself is called matching or not (SigLIP, Zhai et al., 2023).

    scores: (B, B); images: (B,); scale and bias: of the logits, both learned as a rule. The sum over all pairs but
    those of other captions of the same image, divided by B.

    >>> siglip(torch.zeros(4, 4), torch.arange(4), scale=10.0, bias=0.0)  # 16 pairs of log 2, over 4
    tensor(2.7726)
    """
    logits = scale * _as_float(scores) + bias
    negative = negatives_mask(images)
    true = torch.eye(len(images), dtype=torch.bool, device=images.device)
    signs = torch.where(true, 1.0, -1.0).to(logits.dtype)
    costs = -F.logsigmoid(signs * logits)
    return costs.masked_fill(~(negative | true), 0).sum() / len(scores)


def _as_float(scores: Tensor) -> Tensor:
    """Exponentials of half-precision scores are summed up in float32."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores

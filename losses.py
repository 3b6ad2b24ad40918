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
        total = total + _log_one_plus_sum(violation, mask).sum() / sharpness
    return total / len(scores) if reduction == "mean" else total


def _log_one_plus_sum(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + Σ exp(exponent)) of each row, over where `mask` is true: (B, B) → (B,). Of none it is nothing."""
    one = exponents.new_zeros(len(exponents), 1)
    return torch.logsumexp(torch.cat([one, exponents.masked_fill(~mask, -torch.inf)], dim=1), dim=1)


def hal(scores: Tensor, images: Tensor, margin: float, sharpness: float) -> Tensor:
    """Return the hub-aware loss (HAL, Liu et al., 2020), its local part: a query pays for all that score near it.

    For each pair i, log(1 + Σ exp(sharpness x (negative - margin))) / sharpness over both directions, less
    log(1 + max(0, positive)); the mean over the batch. An item that is near many queries, a hub, is pushed by each.
    scores: (B, B) cosines; images: (B,); margin: what a negative may score; sharpness: one over units of the scores.

    >>> hal(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), torch.tensor([0, 1]), margin=0.3, sharpness=60.0)
    tensor(-0.0237)
    """
    mask, scores = negatives_mask(images), _as_float(scores)
    total = -scores.diagonal().clamp(min=0).log1p().sum()
    for by_query in (scores, scores.T):
        total = total + _log_one_plus_sum(sharpness * (by_query - margin), mask).sum() / sharpness
    return total / len(scores)


def infonce(scores: Tensor, images: Tensor, scale: Tensor | float, positives: str = "pair") -> Tensor:
    """Return the symmetric cross-entropy of picking the true one among all others (van den Oord et al., 2018; CLIP,
    Radford et al., 2021), the mean over both directions and over the batch.

    scores: (B, B); images: (B,); scale: what scores are multiplied by, one over the temperature, learned as a rule.
    positives: "pair", other captions of the same image are left out; "image", each of them is as right as the pair's.

    >>> infonce(torch.zeros(4, 4), torch.arange(4), scale=10.0)  # one in four: log 4
    tensor(1.3863)
    """
    if positives == "image":
        logits, targets = scale * _as_float(scores), _as_shares((~negatives_mask(images)).to(_as_float(scores)))
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    logits, true = _without_same_image(scale * _as_float(scores), images)
    return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2


def _without_same_image(logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in which other captions of one image are no wrong answers, and the number of each row's right one."""
    same_image = ~negatives_mask(images) & ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    return logits.masked_fill(same_image, -torch.inf), torch.arange(len(logits), device=logits.device)


def _as_shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def cwcl(scores: Tensor, images: Tensor, similarities: Tensor, scale: Tensor | float, sharpness: float = 1.0) -> Tensor:
    """Return the continuously weighted contrastive loss (CWCL, Srinivasa et al., 2023): soft targets of a frozen side.

    From an image to captions, caption j is right to the degree ((1 + similarities[i, j]) / 2) ** sharpness, as shares
    of 1; from a caption to images the loss is infonce's. The mean over both directions and over the batch.
    scores: (B, B); images: (B,); similarities: (B, B) cosines between the frozen features of the images; scale: as
    infonce's; sharpness: 1 is the paper's; the larger, the nearer to infonce with "image" positives.

    >>> cwcl(torch.zeros(4, 4), torch.arange(4), torch.eye(4), scale=10.0)  # log 4, whatever the targets
    tensor(1.3863)
    """
    logits = scale * _as_float(scores)
    targets = _as_shares(((1 + similarities) / 2).clamp(min=0).to(logits) ** sharpness)
    hard, true = _without_same_image(logits, images)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(hard.T, true)) / 2


def siglip(
    scores: Tensor,
    images: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    positives: str = "pair",
    reduction: str = "sum",
) -> Tensor:
    """Return the pairwise sigmoid loss: every pair by itself is called matching or not (SigLIP, Zhai et al., 2023).

    scores: (B, B); images: (B,); scale and bias: of the logits, both learned as a rule. positives: "pair", the sum
    leaves out other captions of the same image; "image", they match as well. It is divided by B, or by B x B with
    reduction "pairs" (SAIL, Zhang et al., 2025).

    >>> siglip(torch.zeros(4, 4), torch.arange(4), scale=10.0, bias=0.0)  # 16 pairs of log 2, over 4
    tensor(2.7726)
    """
    logits = scale * _as_float(scores) + bias
    negative = negatives_mask(images)
    pair = torch.eye(len(images), dtype=torch.bool, device=images.device)
    true = pair if positives == "pair" else ~negative
    signs = torch.where(true, 1.0, -1.0).to(logits.dtype)
    costs = -F.logsigmoid(signs * logits)
    total = costs.masked_fill(~(negative | true), 0).sum() / len(scores)
    return total / len(scores) if reduction == "pairs" else total


def structure(before: Tensor, after: Tensor, temperature: float, levels: int = 1) -> Tensor:
    """Return what a head changes in the neighborhoods of a batch (STRUCTURE, Gröger et al., 2025): part of a loss.

    Rows are L2-normalized and centered; a softmax over the cosines of row i, divided by the temperature, says how near
    each other row is, and its l-th power who is near in l steps. Between these distributions before and after the head
    stands the Jensen-Shannon divergence, in nats; level l has weight 1 / l; the mean over rows and levels.
    before: (B, D) frozen features; after: (B, E) their embeddings.

    >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> structure(features, features.flip(0), temperature=0.05)
    tensor(0.1501)
    """
    steps = [_neighborhoods(x, temperature) for x in (before, after)]
    reached, total = steps, before.new_zeros(())
    for level in range(1, levels + 1):
        middle = (reached[0] + reached[1]) / 2
        total = total + sum(_divergence(each, middle) for each in reached) / 2 / level
        reached = [each @ step for each, step in zip(reached, steps, strict=True)]
    return total / levels


def _neighborhoods(x: Tensor, temperature: float) -> Tensor:
    unit = F.normalize(_as_float(x), dim=1)
    unit = unit - unit.mean(dim=0)
    return (unit @ unit.T / temperature).softmax(dim=1)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """The mean Kullback-Leibler divergence of rows p from rows q; a share too small for a float counts for nothing."""
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())).sum(dim=1).mean()


def _as_float(scores: Tensor) -> Tensor:
    """Exponentials of half-precision scores are summed up in float32."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores

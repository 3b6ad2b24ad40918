"""Losses: functions of scores and of which image each pair is of. None sees settings, models or features.

scores: (B, B), rows are images, columns are captions, larger is closer; pair i is image i with caption i.
images: (B,) integers, the image of each pair; two pairs of one image are never each other's negatives.
Where several processes share a batch (training/distributed.py), each has scores of its own b pairs with all, by image
and by caption, both (b, B) with its own pairs first; what it gets is its share of the loss.
Every loss is a scalar tensor with a gradient, finite for any finite scores.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Scores = Tensor | tuple[Tensor, Tensor]  # (B, B), or of b of B pairs by image and by caption, both (b, B)


def both_ways(scores: Scores) -> tuple[Tensor, Tensor]:
    """Return scores with a row for each image, and with a row for each caption; pair i is on the diagonal of both.

    >>> [way.tolist() for way in both_ways(torch.tensor([[1, 2], [3, 4]]))]
    [[[1, 2], [3, 4]], [[1, 3], [2, 4]]]
    """
    return (scores, scores.T) if isinstance(scores, Tensor) else scores


def negatives_mask(images: Tensor) -> Tensor:
    """Return (B, B) bool: where image i and caption j do not belong together.

    >>> negatives_mask(torch.tensor([0, 0, 1])).int().tolist()
    [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    """
    return images[:, None] != images[None, :]


def hinge(
    scores: Scores,
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
    ways = both_ways(scores)  # rows: image queries against captions, then caption queries against images
    mask, positives = negatives_mask(images)[: len(ways[0])], ways[0].diagonal()
    pick = NEGATIVES[negatives]
    total = positives.new_zeros(())
    for by_query in ways:
        violation = (margin + by_query - positives[:, None]).clamp(min=0)  # (B, B)
        allowed = mask & (by_query < positives[:, None]) if negatives == "semihard" else mask
        total = total + pick(violation.masked_fill(~allowed, 0), allowed, generator)
    return total / len(images) if reduction == "mean" else total


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
    scores: Scores, images: Tensor, margin: float, sharpness: float = 20.0, reduction: str = "sum"
) -> Tensor:
    """Return the smooth hinge over the hardest negative: log(1 + Σ exp(sharpness x violation)) / sharpness, both ways.

    It takes all negatives into account, near ones most, and tends to the hinge over the hardest one as `sharpness`
    grows (the log-sum-exp of Oh Song et al., 2016, on the scores of a batch).
    scores: (B, B); images: (B,); margin: in units of the scores; sharpness: one over it; reduction: as hinge's.

    >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.5]])
    >>> smooth_hinge(scores, torch.tensor([0, 1]), margin=0.2, sharpness=100.0)  # hinge: 0.1 and 0.5
    tensor(0.6000)
    """
    ways = _ways(scores)
    mask, positives = negatives_mask(images)[: len(ways[0])], ways[0].diagonal()
    total = positives.new_zeros(())
    for by_query in ways:
        violation = sharpness * (margin + by_query - positives[:, None])
        total = total + _log_one_plus_sum(violation, mask).sum() / sharpness
    return total / len(images) if reduction == "mean" else total


def _log_one_plus_sum(exponents: Tensor, mask: Tensor) -> Tensor:
    """log(1 + Σ exp(exponent)) of each row, over where `mask` is true: (B, B) → (B,). Of none it is nothing."""
    one = exponents.new_zeros(len(exponents), 1)
    return torch.logsumexp(torch.cat([one, exponents.masked_fill(~mask, -torch.inf)], dim=1), dim=1)


def hal(scores: Scores, images: Tensor, margin: float, sharpness: float) -> Tensor:
    """Return the hub-aware loss (HAL, Liu et al., 2020), its local part: a query pays for all that score near it.

    For each pair i, log(1 + Σ exp(sharpness x (negative - margin))) / sharpness over both directions, less
    log(1 + max(0, positive)); the mean over the batch. An item that is near many queries, a hub, is pushed by each.
    scores: (B, B) cosines; images: (B,); margin: what a negative may score; sharpness: one over units of the scores.

    >>> hal(torch.tensor([[0.9, 0.8], [0.1, 0.5]]), torch.tensor([0, 1]), margin=0.3, sharpness=60.0)
    tensor(-0.0237)
    """
    ways = _ways(scores)
    mask = negatives_mask(images)[: len(ways[0])]
    total = -ways[0].diagonal().clamp(min=0).log1p().sum()
    for by_query in ways:
        total = total + _log_one_plus_sum(sharpness * (by_query - margin), mask).sum() / sharpness
    return total / len(images)


def infonce(scores: Scores, images: Tensor, scale: Tensor | float, positives: str = "pair") -> Tensor:
    """Return the symmetric cross-entropy of picking the true one among all others (van den Oord et al., 2018; CLIP,
    Radford et al., 2021), the mean over both directions and over the batch.

    scores: (B, B); images: (B,); scale: what scores are multiplied by, one over the temperature, learned as a rule.
    positives: "pair", other captions of the same image are left out; "image", each of them is as right as the pair's.

    >>> infonce(torch.zeros(4, 4), torch.arange(4), scale=10.0)  # one in four: log 4
    tensor(1.3863)
    """
    ways = _ways(scores, scale)
    if positives == "image":
        targets = _as_shares((~negatives_mask(images)).to(ways[0]))[: len(ways[0])]
        costs = [F.cross_entropy(logits, targets, reduction="sum") for logits in ways]
    else:
        costs = [F.cross_entropy(*_without_same_image(logits, images), reduction="sum") for logits in ways]
    return (costs[0] / len(images) + costs[1] / len(images)) / 2


def _without_same_image(logits: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits in which other captions of one image are no wrong answers, and the number of each row's right one."""
    same_image = (~negatives_mask(images)[: len(logits)]).fill_diagonal_(False)
    return logits.masked_fill(same_image, -torch.inf), torch.arange(len(logits), device=logits.device)


def _as_shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True)


def cwcl(scores: Scores, images: Tensor, similarities: Tensor, scale: Tensor | float, sharpness: float = 1.0) -> Tensor:
    """Return the continuously weighted contrastive loss (CWCL, Srinivasa et al., 2023): soft targets of a frozen side.

    From an image to captions, caption j is right to the degree ((1 + similarities[i, j]) / 2) ** sharpness, as shares
    of 1; from a caption to images the loss is infonce's. The mean over both directions and over the batch.
    scores: (B, B); images: (B,); similarities: (B, B) cosines between the frozen features of the images; scale: as
    infonce's; sharpness: 1 is the paper's; the larger, the nearer to infonce with "image" positives.

    >>> cwcl(torch.zeros(4, 4), torch.arange(4), torch.eye(4), scale=10.0)  # log 4, whatever the targets
    tensor(1.3863)
    """
    by_image, by_caption = _ways(scores, scale)
    targets = _as_shares(((1 + similarities) / 2).clamp(min=0).to(by_image) ** sharpness)
    soft = F.cross_entropy(by_image, targets, reduction="sum")
    hard = F.cross_entropy(*_without_same_image(by_caption, images), reduction="sum")
    return (soft / len(images) + hard / len(images)) / 2


def siglip(
    scores: Scores,
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
    logits = _ways(scores, scale)[0] + bias  # by image: it has every pair once
    negative = negatives_mask(images)[: len(logits)]
    pair = torch.zeros_like(negative).fill_diagonal_(True)
    true = pair if positives == "pair" else ~negative
    signs = torch.where(true, 1.0, -1.0).to(logits.dtype)
    costs = -F.logsigmoid(signs * logits)
    total = costs.masked_fill(~(negative | true), 0).sum() / len(images)
    return total / len(images) if reduction == "pairs" else total


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


def _ways(scores: Scores, scale: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """Scores both ways, exact enough for exponentials, and times a scale if there is one."""
    if not isinstance(scores, Tensor):
        by_image, by_caption = (_ways(way, scale)[0] for way in scores)
        return by_image, by_caption
    scores = _as_float(scores)
    return both_ways(scores if scale is None else scale * scores)


def _as_float(scores: Tensor) -> Tensor:
    """Exponentials of half-precision scores are summed up in float32."""
    return scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores

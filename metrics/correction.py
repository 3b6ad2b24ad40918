"""Test-time correction of hubs: scores of a query with the items of a gallery, less a bias of each item. Arrays only.

An item that is near to every query takes ranks from the true ones. How near it is to a bank of other queries tells it,
without training: the bias of an item is a soft maximum of its scores with the bank (inverted softmax; Smith et al.,
2017), the mean of the k best of them (NNN; Chowdhury et al., 2024), or a soft maximum taken together with that of a
second bank of gallery items (DBNorm; Wang et al., 2023). QB-Norm (Bogolin et al., 2022) subtracts the first of these
from the scores of a query only if the query's best item is the best one of a query in the bank. A bank of training data
is inductive; a bank of the queries to be ranked is transductive, as is Sinkhorn over all of their scores.

A bias that is one more dimension of the embeddings (`with_bias`) makes every search for the largest score find
corrected ones. Papers divide by a sum over the bank; the mean, taken here, gives the same ranks, and keeps a bias
within the range of the scores.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metrics.parameters import Parameters
from metrics.similarity import RANKING, Scores

CORRECTIONS = ("inverted_softmax", "qb_norm", "nnn", "db_norm")  # those of a bank
SINKHORN = "sinkhorn"
SCORES_PER_BLOCK = 2**23  # of items with a bank, held at a time
CACHED_SCORES_PER_BLOCK = 2**17  # of which a soft maximum is taken, at a time
SINKHORN_STEPS = 20
TINY = 1e-30


def fixed_parameters(spread: float) -> dict[str, Parameters]:
    """Return parameters of every correction for a model without validation pairs to choose them on, in units of the
    standard deviation `spread` of its scores: near what val chose for the models that ship, tuned to nothing else.

    >>> fixed_parameters(0.1)["inverted_softmax"].beta
    20.0
    """
    unit = 1 / max(spread, TINY)
    soft = Parameters(beta=2 * unit)
    balanced, dual = Parameters(beta=3 * unit), Parameters(beta=2.5 * unit, gallery_beta=0.5 * unit)
    return {
        **{"inverted_softmax": soft, "qb_norm": soft, "nnn": Parameters(k=16, alpha=0.75)},
        **{"db_norm": dual, SINKHORN: balanced},
    }


@dataclass(frozen=True)
class Bank:
    """Embeddings that biases are estimated with. queries: (B, D), what asks; gallery: (G, D), what is asked for."""

    queries: Tensor
    gallery: Tensor


@dataclass(frozen=True)
class Retrieval:
    """A direction of retrieval. similarity: "cosine" or "order"; direction: "text_to_image", where the items of the
    gallery are images and captions ask, or "image_to_text". score: of images with captions, that of ranking unless
    another is given.
    """

    similarity: str
    direction: str
    score: Scores | None = None

    @property
    def items_are_images(self) -> bool:
        return self.direction == "text_to_image"

    def scores(self, items: Tensor, queries: Tensor) -> Tensor:
        """Return the scores (I, Q) of items (I, D) with queries (Q, D)."""
        score = self.score or RANKING[self.similarity]
        return score(items, queries) if self.items_are_images else score(queries, items).T


def soft_maximum(scores: Tensor, beta: float) -> Tensor:
    """Return log(mean(exp(beta · scores))) / beta of every row.

    >>> soft_maximum(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), 100.0)
    tensor([0.9931, 0.5000])
    """
    blocks = _blocks(scores, scores.shape[1], CACHED_SCORES_PER_BLOCK)
    sums = torch.cat([torch.logsumexp(beta * block, dim=1) for block in blocks])
    return (sums - math.log(scores.shape[1])) / beta


def best_mean(scores: Tensor, k: int) -> Tensor:
    """Return the mean of the k largest scores of every row, of all where there are fewer.

    >>> best_mean(torch.tensor([[0.0, 1.0, 0.5]]), 2).tolist()
    [0.75]
    """
    return scores.topk(min(k, scores.shape[1]), dim=1).values.mean(dim=1)


def combine(queries: Tensor, gallery: Tensor, beta: float, gallery_beta: float) -> Tensor:
    """Return DBNorm's dual inverted softmax as a bias, of the soft maxima (I,) over queries and over gallery items.

    The product of exp(beta · s) / Σ over queries and exp(gallery_beta · s) / Σ over items orders as s minus their mean,
    each weighted by its inverse temperature.
    """
    return (beta * queries + gallery_beta * gallery) / (beta + gallery_beta)


def biases(name: str, p: Parameters, retrieval: Retrieval, items: Tensor, bank: Bank) -> Tensor:
    """Return the bias (I,) float32 of every item (I, D), a block of items at a time. name: one of CORRECTIONS.

    Summed up in float64 and rounded: equal items get equal biases, wherever they stand.

    >>> items, bank = torch.eye(2), Bank(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2))
    >>> biases("nnn", Parameters(k=1, alpha=0.5), Retrieval("cosine", "text_to_image"), items, bank)
    tensor([0.5000, 0.4000])
    """

    def of_block(block: Tensor) -> Tensor:
        scores = retrieval.scores(block, bank.queries).double()
        if name == "nnn":
            return p.alpha * best_mean(scores, p.k)
        maximum = soft_maximum(scores, p.beta)
        if name != "db_norm":
            return maximum
        gallery = soft_maximum(retrieval.scores(block, bank.gallery).double(), p.gallery_beta)
        return combine(maximum, gallery, p.beta, p.gallery_beta)

    rows = max(len(bank.queries), len(bank.gallery) if name == "db_norm" else 1)
    parts = [of_block(block).float() for block in _blocks(items, rows, SCORES_PER_BLOCK)]
    return torch.cat(parts)


def activation_set(retrieval: Retrieval, items: Tensor, queries: Tensor) -> Tensor:
    """Return (I,) bool: which items (I, D) are the best one of a query (B, D) of the bank; of equals, all of them.

    Every block of scores is formed twice, as in `ranks_by_block`.
    """
    best = torch.full((len(queries),), -torch.inf, device=items.device)
    for block in _blocks(items, len(queries), SCORES_PER_BLOCK):
        best = torch.maximum(best, retrieval.scores(block, queries).amax(dim=0))
    blocks = _blocks(items, len(queries), SCORES_PER_BLOCK)
    parts = [(retrieval.scores(block, queries) >= best).any(dim=1) for block in blocks]
    return torch.cat(parts)


def gate(retrieval: Retrieval, items: Tensor, queries: Tensor, active: Tensor) -> Tensor:
    """Return (Q,) bool: whether QB-Norm corrects a query: a best one of its items is in the activation set (I,)."""
    parts = []
    for block in _blocks(queries, len(items), SCORES_PER_BLOCK):
        scores = retrieval.scores(items, block)
        parts.append(((scores >= scores.amax(dim=0)) & active[:, None]).any(dim=0))
    return torch.cat(parts)


def with_bias(
    retrieval: Retrieval, items: Tensor, queries: Tensor, bias: Tensor, corrected: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return items (I, D + 1) and queries (Q, D + 1) whose scores are those of items and queries less the bias (I,).

    corrected: (Q,) bool, which queries' scores; all by default. Order scores are moved by 1 as well, which changes no
    rank: their biases are from -1 to 0, and the violation that one more dimension adds is not negative.

    >>> items, queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8]])
    >>> way = Retrieval("cosine", "text_to_image")
    >>> way.scores(*with_bias(way, items, queries, torch.tensor([0.0, 0.5]))).flatten()
    tensor([0.6000, 0.3000])
    """
    return torch.cat([items, item_column(retrieval, bias)], 1), torch.cat(
        [queries, query_column(retrieval, queries, corrected)], 1
    )


def item_column(retrieval: Retrieval, bias: Tensor) -> Tensor:
    """Return the dimension (I, 1) float32 that biases (I,) are to the items."""
    if retrieval.similarity != "order":
        return -bias[:, None]
    # (caption − image)² of this dimension is the bias where the query has 0: the image lacks it, or the caption asks it
    root = (bias + 1).clamp(min=0).sqrt()[:, None]
    return -root if retrieval.items_are_images else root


def query_column(retrieval: Retrieval, queries: Tensor, corrected: Tensor | None = None) -> Tensor:
    """Return the dimension (Q, 1) float32 that asks for corrected scores, or does not. corrected: (Q,) bool, all."""
    on = torch.ones(len(queries), dtype=torch.bool) if corrected is None else corrected
    if retrieval.similarity != "order":
        return on.to(queries)[:, None]
    # a caption that asks for nothing, or an image that holds everything, violates nothing
    off = -torch.inf if retrieval.items_are_images else torch.inf
    return torch.where(on, 0.0, off).to(queries)[:, None]


def sinkhorn(scores: Tensor, beta: float, steps: int = SINKHORN_STEPS) -> tuple[Tensor, Tensor]:
    """Return biases of images (N,) and captions (M,), float32, that balance all scores (N, M) (Sinkhorn, 1967).

    exp(beta · (score − both biases)) has then equal sums over all images, and over all captions: each is asked for as
    often as the others. Transductive: it needs all queries at once, and holds two matrices of their scores.

    >>> scores = torch.tensor([[0.9, 0.8], [0.7, 0.5]])  # the first image is nearest to both captions
    >>> images, captions = sinkhorn(scores, beta=10.0)
    >>> (scores - images[:, None]).argmax(0).tolist(), (scores - captions).argmax(1).tolist()
    ([1, 0], [1, 0])
    """
    captions = _soft_maxima(scores.T, _soft_maxima(scores, 0 * scores[0], beta), beta)
    images = _soft_maxima(scores, captions, beta)
    kernel = (scores - captions).sub_(images[:, None]).mul_(beta).exp_()  # of moderate size: no underflow
    v = torch.ones_like(kernel[0])
    for _ in range(steps):
        u = scores.shape[1] / (kernel @ v).clamp(min=TINY)
        v = len(scores) / (kernel.T @ u).clamp(min=TINY)
    # A product of matrices may give equal rows sums that differ in the last bit: the last step is taken as the first.
    images = _soft_maxima(scores, captions - v.log() / beta, beta)
    return images, _soft_maxima(scores.T, images, beta)


def _soft_maxima(scores: Tensor, biases: Tensor, beta: float) -> Tensor:
    """Return the soft maximum (I,) float32 of every row of scores (I, Q), less the biases (Q,) of the columns."""
    blocks = _blocks(scores, len(biases), SCORES_PER_BLOCK)
    return torch.cat([soft_maximum((block - biases).double(), beta).float() for block in blocks])


def _blocks(rows: Tensor, columns: int, scores: int) -> Sequence[Tensor]:
    """Return views of so many rows at a time that a block by `columns` holds that many scores."""
    return rows.split(max(1, scores // max(1, columns)))

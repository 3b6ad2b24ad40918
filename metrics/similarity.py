"""Scores of images against captions: rows are images, columns are captions, larger is closer.

Cosine, and the order similarity of Vendrov et al. (2016), which is neither symmetric nor an inner product. Embeddings
come L2-normalized (and non-negative for order) from the model. Nothing here holds images x captions x dimensions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# Rows at a time for order scores: with 1024 dimensions a block of them is 2 MB and stays in the cache, which makes
# plain tensor operations as quick as a compiled kernel (benchmarks/order_scores.py).
ROWS_PER_BLOCK = 512


def cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    """Return cosines (N, M) of images (N, D) and captions (M, D), rows of unit length.

    >>> cosine_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [1.0, 0.0]]))
    tensor([[0.6000, 1.0000]])
    """
    return images @ captions.T


def exact_cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    """Return the same for ranking: summed up in float64 and rounded to float32.

    A float32 matrix product may give equal rows scores that differ in the last bit, according to where in the matrix
    they stand; a tie would then be decided by chance instead of against the model.
    """
    return (images.double() @ captions.double().T).float()


def exact_order_scores(images: Tensor, captions: Tensor) -> Tensor:
    """Return order scores for ranking: summed up in float64 and rounded to float32, as cosines are."""
    return order_scores_by_block(images.double(), captions.double()).float()


def order_scores(images: Tensor, captions: Tensor) -> Tensor:
    """Return order scores (N, M), differentiable: -‖max(0, caption − image)‖², zero where the image holds it all.

    images: (N, D); captions: (M, D), rows non-negative.

    >>> order_scores(torch.tensor([[1.0, 0.5], [0.5, 0.0]]), torch.tensor([[0.5, 1.0]])).tolist()
    [[-0.25], [-1.0]]
    """
    return _OrderScores.apply(images, captions)


def order_scores_by_block(
    images: Tensor, captions: Tensor, rows: int = ROWS_PER_BLOCK, by_image: bool = True
) -> Tensor:
    """Return order scores (N, M), not differentiable: for one image at a time against blocks of `rows` captions.

    by_image: False takes one caption at a time against blocks of images, which is quicker for few captions.
    """
    each, many = (images, captions) if by_image else (captions, images)
    scores = many.new_empty(len(each), len(many))
    buffer = many.new_empty(min(rows, len(many)), many.shape[1])
    for start in range(0, len(many), rows):
        block = many[start : start + rows]
        for row, one in enumerate(each):
            violation = buffer[: len(block)]
            _violation(one, block, violation) if by_image else _violation(block, one, violation)
            torch.linalg.vector_norm(violation, dim=1, out=scores[row, start : start + rows])
    scores.square_().neg_()
    return scores if by_image else scores.T


def _violation(images: Tensor, captions: Tensor, out: Tensor | None = None) -> Tensor:
    """Return what the captions ask for and the images lack: max(0, caption − image)."""
    return torch.sub(captions, images, out=out).clamp_(min=0)


class _OrderScores(torch.autograd.Function):
    """Order scores whose backward forms the violation again, one row of images at a time: memory stays at B x D."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, captions: Tensor) -> Tensor:
        ctx.save_for_backward(images, captions)
        return order_scores_by_block(images, captions)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        # score = -Σ max(0, c - v)²: its gradient is 2 max(0, c - v) for the image v, and minus that for the caption c
        images, captions = ctx.saved_tensors
        for_images, for_captions = torch.zeros_like(images), torch.zeros_like(captions)
        buffer = torch.empty_like(captions)
        for row, image in enumerate(images):
            used = gradient[row].nonzero().squeeze(1)  # a hinge leaves most pairs without a gradient
            if 2 * len(used) > len(captions):  # all of them at once are quicker than a copy of most
                violation, weights = _violation(image, captions, buffer), 2 * gradient[row]
                for_images[row] = weights @ violation
                for_captions.sub_(violation.mul_(weights[:, None]))
            elif len(used):
                violation, weights = _violation(image, captions[used]), 2 * gradient[row, used]
                for_images[row] = weights @ violation
                for_captions.index_add_(0, used, violation.mul_(-weights[:, None]))
        return for_images, for_captions


Scores = Callable[[Tensor, Tensor], Tensor]
TRAINING: dict[str, Scores] = {"cosine": cosine_scores, "order": order_scores}  # differentiable
RANKING: dict[str, Scores] = {
    "cosine": exact_cosine_scores,
    "order": exact_order_scores,
}  # equal embeddings score equal


def mean_scores(scores: Sequence[Scores], widths: Sequence[int]) -> Scores:
    """Return what gives the mean of several models' scores, for ranking, of their embeddings side by side.

    widths: columns of the embeddings of each model, whose scores stand at the same place.

    >>> score = mean_scores([exact_cosine_scores, exact_cosine_scores], [2, 2])
    >>> score(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    tensor([[0.5000]])
    """

    def score(images: Tensor, captions: Tensor) -> Tensor:
        pairs = zip(images.split(list(widths), 1), captions.split(list(widths), 1), strict=True)
        total = images.new_zeros(len(images), len(captions))
        for one, pair in zip(scores, pairs, strict=True):
            total += one(*pair)
        return total / len(scores)

    return score

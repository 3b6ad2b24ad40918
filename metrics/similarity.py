"""Scores of images against captions: rows are images, columns are captions, larger is closer.

Cosine, and the order similarity of Vendrov et al. (2016), which is neither symmetric nor an inner product. Embeddings
come L2-normalized (and non-negative for order) from the model. Nothing here holds images x captions x dimensions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Captions at a time for order scores: with 1024 dimensions a block of them is 2 MB and stays in the cache, which makes
# plain tensor operations as quick as a compiled kernel (benchmarks/order_scores.py).
CAPTIONS_PER_BLOCK = 512


def cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    """(N, D), (M, D), rows of unit length → (N, M) cosines."""
    return images @ captions.T


def exact_cosine_scores(images: Tensor, captions: Tensor) -> Tensor:
    """The same for ranking: summed up in float64 and rounded to float32.

    A float32 matrix product may give equal rows scores that differ in the last bit, according to where in the matrix
    they stand; a tie would then be decided by chance instead of against the model.
    """
    return (images.double() @ captions.double().T).float()


def order_scores(images: Tensor, captions: Tensor) -> Tensor:
    """(N, D), (M, D), rows non-negative → (N, M): -‖max(0, caption − image)‖², zero where the image holds it all."""
    return _OrderScores.apply(images, captions)


class _OrderScores(torch.autograd.Function):
    """Order scores whose backward forms the violation again, one row of images at a time: memory stays at B x D."""

    @staticmethod
    def forward(ctx, images: Tensor, captions: Tensor) -> Tensor:
        ctx.save_for_backward(images, captions)
        scores = images.new_empty(len(images), len(captions))
        buffer = captions.new_empty(min(CAPTIONS_PER_BLOCK, len(captions)), captions.shape[1])
        for start in range(0, len(captions), CAPTIONS_PER_BLOCK):
            block = captions[start : start + CAPTIONS_PER_BLOCK]
            violation = buffer[: len(block)]
            for row, image in enumerate(images):
                torch.sub(block, image, out=violation).clamp_(min=0)
                torch.linalg.vector_norm(violation, dim=1, out=scores[row, start : start + CAPTIONS_PER_BLOCK])
        return scores.square_().neg_()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        # score = -Σ max(0, c - v)²: its gradient is 2 max(0, c - v) for the image v, and minus that for the caption c
        images, captions = ctx.saved_tensors
        for_images, for_captions = torch.zeros_like(images), torch.zeros_like(captions)
        for row, image in enumerate(images):
            used = gradient[row].nonzero().squeeze(1)  # a hinge leaves most pairs without a gradient
            if len(used):
                violation = (captions[used] - image).clamp_(min=0)
                weights = 2 * gradient[row, used]
                for_images[row] = weights @ violation
                for_captions.index_add_(0, used, violation.mul_(-weights[:, None]))
        return for_images, for_captions


Scores = Callable[[Tensor, Tensor], Tensor]
TRAINING: dict[str, Scores] = {"cosine": cosine_scores, "order": order_scores}  # differentiable
RANKING: dict[str, Scores] = {"cosine": exact_cosine_scores, "order": order_scores}  # equal embeddings score equal

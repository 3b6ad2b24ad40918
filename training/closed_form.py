"""Closed forms: both branches out of the moments of all training pairs, in seconds and without a gradient.

Chosen by `loss.name`. Three make linear branches: "cca", regularized canonical correlations (Hotelling, 1936; in this
field Hodosh et al., 2013, and Gong et al., 2014, whose scaling by powers of the correlations is taken too; with a
sentence encoder and a power of 1/2, Li et al.'s CSA, 2025), "ridge", regression of one side on the other (Hoerl and
Kennard, 1970), and "procrustes", the nearest rotation (Schönemann, 1966). "asif" keeps training pairs (Norelli et al.,
2023). "none" has no weights: it is what a dual encoder's own projections are worth, which heads have to beat. Every
seed gives the same.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import linalg, sparse

from features.images.maps import FeatureMaps
from features.text.vocabulary import UNKNOWN, Sentences
from settings import Settings
from training.moments import Moments, moments, text_parts, unit_rows
from utils import BadInput

if TYPE_CHECKING:
    from training.trainer import Trainer

RECIPES = {"none": "zero_shot"}  # of closed forms that are called otherwise


def fit(trainer: "Trainer") -> None:
    """Train a run in closed form: one epoch, without a loss. Raises BadInput as `check_settings` does."""
    check_settings(trainer.settings)
    if not trainer.log:
        began = time.monotonic()
        if trainer.settings.loss.name != "none":
            fit_branches(trainer)
        trainer.end_epoch(began, None)
    trainer.finish()


def fit_branches(trainer: "Trainer") -> None:
    """Fit the branches of a trainer's model to all training pairs."""
    split, sentences = trainer.data.splits["train"], trainer.data.sentences["train"]
    assert not isinstance(split.features, FeatureMaps)  # a linear image branch takes none
    features = split.features[:]  # of several views the mean
    if trainer.model.inputs is not None:
        features = trainer.model.inputs(torch.from_numpy(features)).numpy()
    words = [len(w) for name, w in trainer.model.state_dict().items() if name.endswith("bag.weight")]
    fitted = fit_asif if trainer.settings.loss.name == "asif" else fit_linear
    weights = fitted(features, sentences, split.image_of_caption, sum(words), trainer.settings)
    trainer.model.load_state_dict({**trainer.model.state_dict(), **weights})


def untrained(settings: Settings, digests: Sequence[str], size: int, encoder_digest: str) -> Settings:
    """Return the settings of a run without branches: its common space is the dual encoder's, of `size` dimensions.

    digests: of the image features' weights; encoder_digest: of those of the sentence features. Raises BadInput unless
    both are the towers of one model.
    """
    if list(digests) != [encoder_digest]:
        raise BadInput(
            f"loss.name is 'none', which compares the two towers of one dual encoder, and these `features` are not of "
            f"the same weights as the sentence features of {settings.text.encoder}; name those alone that prep.py "
            f"makes of it with `backbone`"
        )
    return replace(settings, embed_dim=size)


def check_settings(s: Settings) -> None:
    """Raise BadInput unless the branches are what the closed form makes."""
    words = s.text.branch == "onehot" and s.text.num_layers == 1 and s.text.bias
    frozen = not s.text.finetune and not (s.text.encoder and s.text.layer_norm)
    linear = s.image.branch == "linear" and s.similarity == "cosine" and frozen
    start = f"start from recipes/{RECIPES.get(s.loss.name, s.loss.name)}.toml"
    if s.loss.name == "none" and not (linear and s.text.branch == "encoder" and not s.image.standardize):
        raise BadInput(
            f"loss.name is 'none', which needs similarity = 'cosine', image.branch = 'linear', text.branch = 'encoder' "
            f"and false for image.standardize, text.layer_norm and text.finetune; {start}"
        )
    if s.loss.name == "asif" and not (linear and s.text.branch == "encoder"):
        raise BadInput(
            f"loss.name is 'asif', which needs similarity = 'cosine', image.branch = 'linear', text.branch = 'encoder' "
            f"and false for text.layer_norm and text.finetune; {start}"
        )
    if not (linear and (words or s.text.branch == "encoder")):
        raise BadInput(
            f"loss.name is '{s.loss.name}', which needs similarity = 'cosine', image.branch = 'linear', text.branch = "
            f"'encoder', or 'onehot' with text.num_layers = 1 and text.bias = true, and for an encoder false for "
            f"text.layer_norm and text.finetune; {start}"
        )


def fit_linear(
    features: np.ndarray, sentences: Sentences, image_of_caption: np.ndarray, num_words: int, s: Settings
) -> dict[str, torch.Tensor]:
    """Return the weights of linear branches, as `s.loss.name` says, with the names of TwoBranch, float32.

    features: (N, D); sentences: M of them, over `num_words` words; image_of_caption: (M,). Branches center both sides;
    with fewer than `embed_dim` directions, the other dimensions are zero.

    >>> features, sentences = np.eye(3), Sentences.of([[1], [2], [1, 2], [2]])
    >>> from settings import override, read_recipe
    >>> settings = override(read_recipe("cca"), {"embed_dim": 2})
    >>> weights = fit_linear(features, sentences, np.array([0, 1, 2, 1]), 3, settings)
    >>> {name: tuple(weight.shape) for name, weight in weights.items()}
    {'image.1.weight': (2, 3), 'image.1.bias': (2,), 'text.bag.weight': (3, 2), 'text.bias': (2,)}
    """
    m = moments(features, text_parts(sentences, num_words, s.text), image_of_caption)
    image_weight, text_weight = LINEAR[s.loss.name](m, s)
    if s.text.branch == "onehot":
        text_weight[UNKNOWN] = 0
    missing = s.embed_dim - image_weight.shape[1]
    weights = {
        "image.1.weight": np.pad(image_weight.T, ((0, missing), (0, 0))),
        "image.1.bias": np.pad(-m.x_mean @ image_weight, (0, missing)),
        **text_layers(np.pad(text_weight, ((0, 0), (0, missing))), np.pad(-m.y_mean @ text_weight, (0, missing)), m, s),
    }
    return {name: torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)) for name, value in weights.items()}


def fit_asif(
    features: np.ndarray, sentences: Sentences, image_of_caption: np.ndarray, num_words: int, s: Settings
) -> dict[str, torch.Tensor]:
    """Return `embed_dim` training images, evenly spread, and the mean of each one's captions, as anchors of both sides.

    features: (N, D); sentences: M of them, with features (M, E); num_words: any. Fewer images than `embed_dim` leave
    zeros, to which nothing is similar. The similarity to a mean of unit vectors is the mean similarity to them.

    >>> sentences = Sentences.of([[1], [1], [1]]).with_features(np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 1.0]]))
    >>> fit_asif(np.eye(2), sentences, np.array([0, 0, 1]), 0, Settings(embed_dim=2))["text.anchors"]
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]])
    """
    assert sentences.features is not None
    kept = np.unique(np.linspace(0, len(features) - 1, min(s.embed_dim, len(features))).round().astype(np.int64))
    row = np.full(len(features), -1)
    row[kept] = np.arange(len(kept))
    captions = np.flatnonzero(row[image_of_caption] >= 0)
    cells = row[image_of_caption[captions]], np.arange(len(captions))
    membership = sparse.csr_array((np.ones(len(captions)), cells), (len(kept), len(captions)))
    means = membership @ unit_rows(sentences.features[captions]) / membership.sum(axis=1)[:, None]
    missing = ((0, s.embed_dim - len(kept)), (0, 0))
    sides = {"image.anchors": unit_rows(features[kept]), "text.anchors": means}
    return {name: torch.from_numpy(np.pad(side, missing).astype(np.float32)) for name, side in sides.items()}


def text_layers(weight: np.ndarray, bias: np.ndarray, m: Moments, s: Settings) -> dict[str, np.ndarray]:
    """Return (T, embed_dim) and (embed_dim,) as the layers of the text branch: of its words, its sentences, or both."""
    if not s.text.encoder:
        return {"text.bag.weight": weight, "text.bias": bias}
    if s.text.branch == "encoder":
        return {"text.linear.weight": weight.T, "text.linear.bias": bias}
    words, sentences = np.split(weight, [m.sizes[0]])
    return {
        "text.words.bag.weight": words,
        "text.words.bias": bias,
        "text.sentence.linear.weight": sentences.T,
        "text.sentence.linear.bias": np.zeros_like(bias),
    }


def cca(m: Moments, s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the directions (D, k) and (T, k) of largest correlation, each scaled by correlation ** loss.power."""
    cxx, cyy = regularized(m.cxx, (len(m.cxx),), s), regularized(m.cyy, m.sizes, s)
    # With C = L Lᵀ on both sides, the correlations are the singular values of Lx⁻¹ Cxy Ly⁻ᵀ.
    lx, ly = linalg.cholesky(cxx, lower=True), linalg.cholesky(cyy, lower=True)
    middle = linalg.solve_triangular(lx, m.cxy, lower=True)
    middle = linalg.solve_triangular(ly, middle.T, lower=True).T
    left, correlations, right = top_singular(middle, s.embed_dim)
    scale = correlations**s.loss.power
    image_weight = linalg.solve_triangular(lx, left, lower=True, trans="T") * scale
    text_weight = linalg.solve_triangular(ly, right, lower=True, trans="T") * scale
    return image_weight, text_weight


def ridge(m: Moments, s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the regression (D, k) of the text side's first k principal components, and these (T, k).

    With loss.target "image", the other way round.
    """
    if s.loss.target == "image":
        text_weight = linalg.solve(regularized(m.cyy, m.sizes, s), m.cxy.T, assume_a="pos")
        axes = principal_axes(m.cxx, s.embed_dim)
        return axes, text_weight @ axes
    image_weight = linalg.solve(regularized(m.cxx, (len(m.cxx),), s), m.cxy, assume_a="pos")
    axes = principal_axes(m.cyy, s.embed_dim)
    return image_weight @ axes, axes


def procrustes(m: Moments, s: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Return the rotation (D, k) of the images' first k principal components nearest to the text's, and these (T, k).

    k is embed_dim, or the smaller side's size.
    """
    size = min(s.embed_dim, *m.cxy.shape)
    image_axes, text_axes = principal_axes(m.cxx, size), principal_axes(m.cyy, size)
    left, _, right = linalg.svd(image_axes.T @ m.cxy @ text_axes)
    return image_axes @ left @ right, text_axes


LINEAR: dict[str, Callable[[Moments, Settings], tuple[np.ndarray, np.ndarray]]] = {
    "cca": cca,
    "ridge": ridge,
    "procrustes": procrustes,
}


def regularized(covariance: np.ndarray, sizes: tuple[int, ...], s: Settings) -> np.ndarray:
    """Return a copy with `loss.regularization` added to the diagonal, as a share of its mean over each of the parts.

    Each part by itself: words have variances a hundred times smaller than a sentence's features.
    """
    covariance, start = covariance.copy(), 0
    for size in sizes:
        part = covariance[start : start + size, start : start + size]
        part[np.diag_indices(size)] += s.loss.regularization * np.trace(part) / size
        start += size
    return covariance


def principal_axes(covariance: np.ndarray, most: int) -> np.ndarray:
    """Return the eigenvectors of the `most` largest eigenvalues, (size, k), largest first.

    >>> abs(principal_axes(np.diag([1.0, 3.0, 2.0]), 2)).round(6).tolist()
    [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    size = len(covariance)
    return linalg.eigh(covariance, subset_by_index=(max(0, size - most), size - 1))[1][:, ::-1]


def top_singular(matrix: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the `most` largest singular values and their vectors: (rows, k), (k,), (columns, k), largest first.

    By the eigenvectors of the smaller Gram matrix: exact enough for correlations, and quick.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, values, left = top_singular(matrix.T, most)
        return left, values, right
    size = matrix.shape[1]
    values, right = linalg.eigh(matrix.T @ matrix, subset_by_index=(max(0, size - most), size - 1))
    keep = values[::-1] > 1e-12 * max(values[-1], 1e-300)
    values, right = np.sqrt(values[::-1][keep]), right[:, ::-1][:, keep]
    return matrix @ right / values, values, right

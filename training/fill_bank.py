"""What fills the bank of a run when its training ends: drawn rows embedded, parameters chosen on val, a calibration."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain, product
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from features.images.maps import FeatureMaps
from features.images.views import Features
from features.text.sentences import TextProcessor
from metrics.correction import (
    SINKHORN,
    Bank,
    Parameters,
    Retrieval,
    combine,
    sinkhorn,
    soft_maximum,
)
from metrics.ranks import CUTOFFS, DIRECTIONS, one_way, ranks_one_way
from metrics.similarity import TRAINING
from model import TwoBranch
from training.bank import BANK, BANKS, caption_keys, keys
from training.calibration import (
    MAX_SENTENCES,
    MIN_IMAGES,
    Calibration,
    calibrate,
    nearness_to,
    shuffled_sentences,
    spread,
)
from training.embed import ROWS_PER_BATCH, embed_features, embed_sentences
from training.run import encoding_settings
from utils import BadInput, atomic_write, warn

if TYPE_CHECKING:
    from training.trainer import Trainer

BANK_ROWS = 5000  # images, and as many captions
TUNING_IMAGES = 1000  # images of val that parameters are chosen on, the first ones
BETAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0)
DUAL_BETAS, GALLERY_BETAS = (7.0, 10.0, 14.0, 20.0, 28.0), (2.0, 5.0, 10.0)
SINKHORN_BETAS = (20.0, 28.0, 40.0)
KS, ALPHAS = (8, 16, 32, 64, 128), (0.5, 0.75, 1.0)


def save_bank(trainer: "Trainer") -> None:
    """Embed a bank with the weights that the trainer's model has, choose the parameters on val, and write both."""
    model, data = trainer.model.eval(), trainer.data
    train, val = data.splits["train"], data.splits["val"]
    image_rows, caption_rows = (
        drawn_rows(count, trainer.seed, number)
        for number, count in enumerate((len(train.images), len(train.captions)), 1)
    )
    images = embed_rows(model, train.features, image_rows).half()
    captions = embed_sentences(model, data.sentences["train"].take(caption_rows)).cpu().half()
    tensors = {
        "images": images,
        "captions": captions,
        "image_keys": torch.from_numpy(keys(train.images)[image_rows]),
        "caption_keys": torch.from_numpy(caption_keys(train)[caption_rows]),
    }
    kept = min(TUNING_IMAGES, len(val.images))
    rows = np.flatnonzero(val.image_of_caption < kept)
    val_images = embed_rows(model, val.features, np.arange(kept))
    val_captions = embed_sentences(model, data.sentences["val"].take(rows)).cpu()
    pairs = val_images, val_captions, val.image_of_caption[rows]
    chosen = choose(trainer.settings.similarity, *pairs, images.float(), captions.float())
    calibration = calibrate_on_val(trainer, val_images, captions.float().numpy())
    # One text: of several, the library writes one or the other first, and a run would not be the same to the bit.
    about = {"about": json.dumps({"chosen": chosen, "calibration": calibration and asdict(calibration)})}
    with atomic_write(trainer.folder / BANK, "wb") as file:
        file.write(safetensors.torch.save(tensors, about))


def calibrate_on_val(trainer: "Trainer", images: Tensor, bank: np.ndarray) -> Calibration | None:
    """Fit a calibration to val's captions and to shuffled ones, against the images (N, D) of val that are tuned on.

    None, which is logged, where there are fewer than MIN_IMAGES, or where the sentence encoder, whose cached features
    were enough until now, is not at hand.
    """
    if len(images) < MIN_IMAGES:
        warn(
            f"{trainer.folder.name}: its answers get no probabilities: val has {len(images)} images, and a curve over "
            f"fewer than {MIN_IMAGES} says little; prepare more images, or a larger val, and train again"
        )
        return None
    data, settings = trainer.data, trainer.settings
    split, sentences = data.splits["val"], data.sentences["val"]
    rows = np.flatnonzero(split.image_of_caption < len(images))
    rows = spread(rows, MAX_SENTENCES)
    kind = encoding_settings(settings.text)
    processor = TextProcessor(data.vocabulary, **kind, digest=trainer.info.encoder_digest)
    try:
        shuffled = processor.encode(shuffled_sentences(split.captions, trainer.seed))
    except BadInput as error:
        warn(f"{trainer.folder}: its scores get no probabilities, since no new sentence can be read ({error})")
        return None
    figures: list[np.ndarray] = []
    for each in (sentences.take(rows), shuffled):
        embedded = embed_sentences(trainer.model, each).cpu()
        best = TRAINING[settings.similarity](images, embedded).amax(dim=0)
        figures += [best.numpy(), nearness_to(bank, embedded.numpy())]
    return calibrate(*figures)


def drawn_rows(count: int, seed: int, number: int) -> np.ndarray:
    """Draw BANK_ROWS of `count` rows, or all, in rising order. number: tells the draws of one seed apart."""
    random = np.random.default_rng([seed, number, BANK_ROWS])
    return np.sort(random.permutation(count)[:BANK_ROWS])


def embed_rows(model: TwoBranch, features: Features, rows: np.ndarray) -> Tensor:
    """Embed rows of features (N, D), views or maps → (len(rows), embed_dim) on the CPU, in blocks."""
    parts = []
    for start in range(0, len(rows), ROWS_PER_BATCH):
        block = rows[start : start + ROWS_PER_BATCH]
        parts.append(
            embed_features(model, features.take(block) if isinstance(features, FeatureMaps) else features[block])
        )
    return torch.cat(parts).cpu()


def choose(
    similarity: str, images: Tensor, captions: Tensor, image_of_caption: np.ndarray, *banks: Tensor
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Choose the parameters of every correction by its recalls on pairs that are not for training.

    images (N, D), captions (M, D), image_of_caption (M,): of val; banks: of images and of captions, of train. Return
    bank → direction → correction → its parameters, and the sum of its three recalls ("val").
    """
    table: dict[str, dict[str, dict[str, dict[str, float]]]] = {bank: {} for bank in BANKS}
    scores = TRAINING[similarity](images, captions)
    balanced = [(Parameters(beta=beta), sinkhorn(scores, beta)) for beta in SINKHORN_BETAS]
    for direction in DIRECTIONS:
        retrieval, flip = Retrieval(similarity, direction, TRAINING[similarity]), direction == "image_to_text"
        items, queries = (captions, images) if flip else (images, captions)
        bank_items, bank_queries = reversed(banks) if flip else banks
        of_items = scores.T if flip else scores
        tried = {
            "train": candidates(retrieval, of_items, items, Bank(bank_queries, bank_items)),
            "test": chain(
                candidates(retrieval, of_items, items, Bank(queries, items)),
                ((SINKHORN, p, both[flip][:, None]) for p, both in balanced),
            ),
        }
        for bank in BANKS:
            best: dict[str, dict[str, float]] = {}
            for name, p, bias in tried[bank]:
                figures = one_way(ranks_one_way(scores - (bias.T if flip else bias), image_of_caption, direction))
                value = sum(figures[f"R@{k}"] for k in CUTOFFS)
                if value > best.get(name, {"val": -math.inf})["val"]:
                    best[name] = {**{key: x for key, x in asdict(p).items() if x}, "val": value}
            table[bank][direction] = best
    return table


def candidates(
    retrieval: Retrieval, scores: Tensor, items: Tensor, bank: Bank
) -> Iterator[tuple[str, Parameters, Tensor]]:
    """Yield each correction with each of its parameters, and what it takes from scores (I, Q): (I, 1), or (I, Q)."""
    asked = retrieval.scores(items, bank.queries).contiguous()
    active = (asked >= asked.amax(dim=0)).any(dim=1)
    gates = ((scores >= scores.amax(dim=0)) & active[:, None]).any(dim=0)
    soft = {beta: soft_maximum(asked, beta)[:, None] for beta in BETAS}
    for beta, bias in soft.items():
        yield "inverted_softmax", Parameters(beta=beta), bias
        yield "qb_norm", Parameters(beta=beta), bias * gates
    best = asked.topk(min(max(KS), asked.shape[1]), dim=1).values
    for k, alpha in product(KS, ALPHAS):
        yield "nnn", Parameters(k=k, alpha=alpha), alpha * best[:, :k].mean(dim=1, keepdim=True)
    near = retrieval.scores(items, bank.gallery).contiguous()
    gallery = {beta: soft_maximum(near, beta)[:, None] for beta in GALLERY_BETAS}
    for betas in product(DUAL_BETAS, GALLERY_BETAS):
        yield "db_norm", Parameters(*betas), combine(soft[betas[0]], gallery[betas[1]], *betas)

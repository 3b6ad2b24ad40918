"""The bank of a run: embeddings of training images and captions, for test-time correction (metrics/correction.py).

bank.safetensors holds up to BANK_ROWS of each, drawn by the run's seed, a number for each image id and each caption, by
which it is seen whether the bank holds what is being measured, and, in its header, the parameters that gave each
correction the best recalls on val: by bank ("train", or "test": the queries to be ranked), direction and name; and what
makes a probability of a score (training/calibration.py).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from features.images.maps import FeatureMaps
from features.images.views import Features
from features.prepared import Split
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
from training.calibration import MAX_SENTENCES, Calibration, calibrate, nearness_to, shuffled_sentences, spread
from training.run import AGAIN, ROWS_PER_BATCH, embed_features, embed_sentences, encoding_settings
from utils import BadInput, atomic_write, warn

if TYPE_CHECKING:
    from training.trainer import Trainer

BANK = "bank.safetensors"
BANK_ROWS = 5000  # images, and as many captions
TENSORS = ("images", "captions", "image_keys", "caption_keys")
BANKS = ("train", "test")
TUNING_IMAGES = 1000  # images of val that parameters are chosen on, the first ones
BETAS = (5.0, 7.0, 10.0, 14.0, 20.0, 28.0, 40.0, 56.0)
DUAL_BETAS, GALLERY_BETAS = (7.0, 10.0, 14.0, 20.0, 28.0), (2.0, 5.0, 10.0)
SINKHORN_BETAS = (20.0, 28.0, 40.0)
KS, ALPHAS = (8, 16, 32, 64, 128), (0.5, 0.75, 1.0)
Chosen = Mapping[str, Mapping[str, Mapping[str, Parameters]]]  # bank → direction → correction


@dataclass(frozen=True)
class RunBank:
    """A bank, read. images, captions: (B, D) float32; image_keys, caption_keys: (B,) int64, see `keys`."""

    images: Tensor
    captions: Tensor
    image_keys: np.ndarray
    caption_keys: np.ndarray
    chosen: Chosen
    calibration: Calibration | None  # where shuffled sentences could be read

    def __repr__(self) -> str:
        return f"RunBank({len(self.images):,} images, {len(self.captions):,} captions, {self.calibration})"

    def side(self, direction: str) -> Bank:
        """Return it as queries and gallery of a direction."""
        if direction == "text_to_image":
            return Bank(queries=self.captions, gallery=self.images)
        return Bank(queries=self.images, gallery=self.captions)

    def held(self, split: Split) -> list[str]:
        """Return the ids of those images of a split which the bank holds, themselves or by a caption of theirs."""
        of_captions = [split.images[row] for row in split.image_of_caption]
        known = [
            (split.images, np.isin(keys(split.images), self.image_keys)),
            (of_captions, np.isin(caption_keys(split), self.caption_keys)),
        ]
        return list(dict.fromkeys(ids[row] for ids, hits in known for row in np.flatnonzero(hits)))


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
    calibration = calibrate_on_val(trainer, val_images, captions.float())
    # One text: of several, the library writes one or the other first, and a run would not be the same to the bit.
    about = {"about": json.dumps({"chosen": chosen, "calibration": calibration and asdict(calibration)})}
    with atomic_write(trainer.folder / BANK, "wb") as file:
        file.write(safetensors.torch.save(tensors, about))


def calibrate_on_val(trainer: "Trainer", images: Tensor, bank: Tensor) -> Calibration | None:
    """Fit a calibration to val's captions and to shuffled ones, against the images (N, D) of val that are tuned on.

    None where the sentence encoder, whose cached features were enough until now, is not at hand; that is logged.
    """
    data, settings = trainer.data, trainer.settings
    split, sentences = data.splits["val"], data.sentences["val"]
    rows = np.flatnonzero(split.image_of_caption < len(images))
    rows = rows[spread(torch.arange(len(rows)), MAX_SENTENCES).numpy()]
    kind = encoding_settings(settings.text)
    processor = TextProcessor(data.vocabulary, **kind, digest=trainer.info.encoder_digest)
    try:
        shuffled = processor.encode(shuffled_sentences(split.captions, trainer.seed))
    except BadInput as error:
        warn(f"{trainer.folder}: its scores get no probabilities, since no new sentence can be read ({error})")
        return None
    figures: list[Tensor] = []
    for each in (sentences.take(rows), shuffled):
        embedded = embed_sentences(trainer.model, each).cpu()
        figures += [TRAINING[settings.similarity](images, embedded).amax(dim=0), nearness_to(bank, embedded)]
    return calibrate(*figures)


def read_bank(folder: Path) -> RunBank | None:
    """Read the bank of a run; None if it has none. Raises BadInput if it is damaged."""
    path = folder / BANK
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        calibration = about["calibration"] and Calibration(**about["calibration"])
        chosen = {
            bank: {
                direction: {
                    name: Parameters(**{key: row[key] for key in row if key != "val"}) for name, row in rows.items()
                }
                for direction, rows in directions.items()
            }
            for bank, directions in about["chosen"].items()
        }
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: cut short, or not the bank of a run of this version ({reason}); {AGAIN}") from None
    return RunBank(
        tensors["images"].float(),
        tensors["captions"].float(),
        tensors["image_keys"].numpy(),
        tensors["caption_keys"].numpy(),
        chosen,
        calibration,
    )


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


def keys(texts: Iterable[str]) -> np.ndarray:
    """Return a number (N,) int64 for every text: the first 64 bits of its SHA-256."""
    digests = b"".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def caption_keys(split: Split) -> np.ndarray:
    """Return a number (M,) int64 for every caption of an image; another image's may read the same."""
    pairs = zip(split.image_of_caption.tolist(), split.captions, strict=True)
    return keys(f"{split.images[image]}\n{caption}" for image, caption in pairs)


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

"""Training: epochs, validation, the best on val, checkpoints, and going on after a stop exactly where it was.

Every random choice of an epoch (order of captions, dropout, random negatives) is drawn from the seed and the epoch's
number, so that an epoch begins the same whether or not the program was stopped before it.
"""

import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from features.images.maps import FeatureMaps
from features.prepared import Split
from features.text.vocabulary import Sentences, Vocabulary, WordIndex
from losses import hinge, hinge_of_equal_scores, infonce, siglip, smooth_hinge
from metrics.ranks import Ranks, metrics_of, ranks_by_block, rsum
from metrics.similarity import RANKING, TRAINING
from model import TwoBranch
from settings import LossSettings, Settings, TrainingSettings
from training.cca import fit_cca
from training.run import (
    LAST,
    LOG,
    MODEL,
    RESULT,
    RunInfo,
    create_run,
    device,
    embed_features,
    embed_sentences,
    new_model,
    read_run_config,
    save_checkpoint,
    save_model,
)
from utils import BadInput, lock_folder, make_folder, read_json, write_json, write_jsonl


def train(
    folder: Path,
    settings: Settings,
    info: RunInfo,
    vocabulary: Vocabulary,
    splits: dict[str, Split],
    sentences: dict[str, Sentences],
    fresh: bool = False,
    told: Callable[[int, str], None] = lambda epochs, line: None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train one run into `folder`, from its last checkpoint if there is one; a finished run is left as it is.

    splits and sentences: "train" and "val", the sentences encoded as the text branch wants them. told: hears after
    every epoch how many there were and how it went. progress: shows a bar over the batches of an epoch.
    Returns the content of result.json. Raises BadInput if the folder holds a run of other features.
    """
    if fresh and folder.exists():
        with lock_folder(folder):
            (folder / RESULT).unlink(missing_ok=True)  # first, so that what a kill leaves is no finished run
            shutil.rmtree(folder)
    with lock_folder(make_folder(folder, "--runs")):
        if not (folder / "recipe.toml").is_file():
            create_run(folder, settings, info, vocabulary)
        check_same(folder, settings, info)
        if not (folder / RESULT).is_file():
            _train(folder, settings, info, vocabulary, splits, sentences, told, progress)
        return read_json(folder / RESULT, "train the run again with --fresh")


def _train(
    folder: Path,
    settings: Settings,
    info: RunInfo,
    vocabulary: Vocabulary,
    splits: dict[str, Split],
    sentences: dict[str, Sentences],
    told: Callable[[int, str], None],
    progress: bool,
) -> None:
    model = new_model(settings, info, len(WordIndex(vocabulary, settings.text.stem, settings.text.min_count)))
    optimizer = new_optimizer(model, settings)
    log = _resume(folder / LAST, model, optimizer)
    if log:
        told(len(log), f"{folder.name}: continues after epoch {len(log)}")
    closed_form = settings.loss.name == "cca"
    epochs = epochs_of(settings)
    while len(log) < epochs and not _out_of_patience(log, settings.training.patience):
        if closed_form:
            row = _closed_form(model, settings, splits, sentences)
        else:
            row = _epoch(len(log), model, optimizer, settings, info.seed, splits, sentences, progress)
        log.append(row)
        if row["rsum"] == max(r["rsum"] for r in log) and row["rsum"] not in [r["rsum"] for r in log[:-1]]:
            save_model(folder / MODEL, model)
        # The checkpoint comes after the best weights: stopped in between, the epoch is done again, to the same bits.
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
        save_checkpoint(folder / LAST, state)
        write_jsonl(folder / LOG, log)
        told(len(log), _line(folder.name, row, epochs))
        if row["collapsed"]:
            told(len(log), _advice(folder.name, row, settings))

    write_jsonl(folder / LOG, log)  # again: a kill may have come between the last checkpoint and its line
    best = max(log, key=lambda row: row["rsum"])
    result = {
        "split": "val",
        "best_epoch": best["epoch"],
        "epochs": len(log),
        "rsum": best["rsum"],
        **best["val"],
        "images": len(splits["val"].images),
        "captions": len(splits["val"].captions),
        "seconds": round(sum(row["seconds"] for row in log), 1),
        "collapsed": best["collapsed"],
    }
    write_json(folder / RESULT, result)


def new_optimizer(model: TwoBranch, settings: Settings) -> torch.optim.Optimizer:
    """Adam. A transformer that is trained too has a rate of its own, a fixed share of the other's."""
    t = settings.training
    inside = [p for name, p in model.named_parameters() if ".transformer." in f".{name}"]
    chosen = {id(p) for p in inside}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in chosen]}]
    if inside:
        groups.append({"params": inside, "share": settings.text.finetune_lr / t.lr})
    return torch.optim.Adam(groups, lr=t.lr, weight_decay=t.weight_decay, fused=True)


def epochs_of(settings: Settings) -> int:
    """How many epochs a run has, unless patience ends it before."""
    return 1 if settings.loss.name == "cca" else settings.training.epochs


def check_same(folder: Path, settings: Settings, info: RunInfo) -> None:
    """A folder is continued only with the settings and the features it was begun with."""
    old_settings, old = read_run_config(folder)
    for name, was, now in zip(old.features, old.digests, info.digests, strict=False):
        if was != now:
            raise BadInput(
                f"{folder}: was trained on {name} features of other weights than {info.data} holds now; "
                f"start over with --fresh, or give another --runs"
            )
    if old.captions and old.captions != info.captions:
        raise BadInput(
            f"{folder}: was trained on other captions or splits than {info.data} holds now; "
            f"start over with --fresh, or give another --runs"
        )
    if old.encoder_digest != info.encoder_digest:
        raise BadInput(
            f"{folder}: was trained with another text encoder under the name {settings.text.encoder}; "
            f"start over with --fresh, or give another --runs"
        )
    if (old.sizes, old.grid) != (info.sizes, info.grid) or old_settings.digest() != settings.digest():
        raise BadInput(f"{folder}: was begun with other settings or features; start over with --fresh")


def _resume(path: Path, model: TwoBranch, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Put the last checkpoint into model and optimizer; returns its log, empty if there is no checkpoint."""
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location=device(), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return list(state["log"])
    except (
        *(RuntimeError, KeyError, ValueError, EOFError, OSError, TypeError, AttributeError, IndexError),
        pickle.UnpicklingError,
    ) as error:  # whatever a damaged file makes torch stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: not a checkpoint of this run ({reason}); start over with --fresh") from None


def _epoch(
    number: int,
    model: TwoBranch,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    seed: int,
    splits: dict[str, Split],
    sentences: dict[str, Sentences],
    progress: bool,
) -> dict[str, Any]:
    """One epoch, every training caption once, and its measure on val: a line of log.jsonl."""
    began = time.monotonic()
    torch.manual_seed(seed * 1_000_003 + number + 1)
    data, words, t = splits["train"], sentences["train"], settings.training
    features_of = (
        data.features.take if isinstance(data.features, FeatureMaps) else partial(np.take, data.features, axis=0)
    )
    owners = torch.from_numpy(data.image_of_caption)
    # What runs over padding too has batches of sentences of like length, as in Kiros et al.'s code.
    lengths = (words.tokens or words).lengths if settings.text.branch == "gru" or words.tokens else None
    batches = list(epoch_batches(len(words), t.batch_size, np.random.default_rng([seed, number]), lengths))
    loss_of, equal_of = loss_functions(model, settings.loss, number)
    total = equal = 0.0
    model.train()
    with tqdm(batches, f"epoch {number + 1}/{t.epochs}", unit=" batches", leave=False, disable=not progress) as bar:
        for step, rows in enumerate(bar):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(t, number, step / len(batches)) * group.get("share", 1.0)
            images = owners[torch.from_numpy(rows)]
            features = torch.from_numpy(features_of(data.image_of_caption[rows]))
            total += _step(model, optimizer, settings, loss_of, features, words.take(rows), images)
            equal += float(equal_of(images.to(device())))
            if not math.isfinite(total):
                raise BadInput(
                    f"training.lr {t.lr:g}: the loss is no longer a number in epoch {number + 1}; "
                    f"lower it with --set training.lr=…, or clip gradients with --set training.grad_clip=2"
                )
            bar.set_postfix(loss=f"{total / (step + 1):.3f}", refresh=False)
    at_equal = abs(total - equal) < 0.02 * equal
    return _row(
        number, model, settings, splits, sentences, began, total / len(batches), rate_at(t, number, 0.0), at_equal
    )


def _row(number, model, settings, splits, sentences, began, loss, rate, at_equal) -> dict[str, Any]:
    """A line of log.jsonl: how the model stands on val after epoch `number` (from 0).

    at_equal: whether the loss is what equal scores give; with an rsum near chance the model has collapsed.
    """
    trained = time.monotonic() - began
    model.eval()
    metrics = metrics_of(ranks_on(model, settings.similarity, splits["val"], sentences["val"]))
    score = rsum(metrics)
    return {
        "epoch": number + 1,
        "loss": loss,
        "rate": rate,
        "rsum": score,
        "val": metrics,
        "collapsed": bool(at_equal and score < 2 * chance_rsum(len(splits["val"].images))),
        "seconds": round(time.monotonic() - began, 2),
        "seconds_training": round(trained, 2),
    }


def _closed_form(
    model: TwoBranch, settings: Settings, splits: dict[str, Split], sentences: dict[str, Sentences]
) -> dict[str, Any]:
    """Fit CCA into the branches' weights; one line of log.jsonl, without a loss."""
    began, loss, text = time.monotonic(), settings.loss, settings.text
    data = splits["train"]
    assert isinstance(data.features, np.ndarray)  # a linear image branch takes no maps
    weights = fit_cca(
        data.features,
        sentences["train"],
        data.image_of_caption,
        len(model.state_dict()["text.bag.weight"]),
        text.weighting,
        settings.embed_dim,
        loss.regularization,
        loss.power,
    )
    names = {"image_weight": "image.1.weight", "image_bias": "image.1.bias"}
    names |= {"text_weight": "text.bag.weight", "text_bias": "text.bias"}
    model.load_state_dict({names[name]: weight for name, weight in weights.items()})
    return _row(0, model, settings, splits, sentences, began, None, 0.0, False)


def _step(
    model: TwoBranch, optimizer, settings: Settings, loss_of, features: Tensor, sentences: Sentences, images: Tensor
) -> float:
    """One step on B pairs; returns the loss."""
    images = images.to(device())
    embedded = model.embed_images(features.to(device())), model.embed_sentences(sentences)
    scores = TRAINING[settings.similarity](*embedded)
    loss = loss_of(scores, images)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if settings.training.grad_clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.training.grad_clip)
    optimizer.step()
    return float(loss.detach())


Loss = Callable[[Tensor, Tensor], Tensor]


def loss_functions(model: TwoBranch, s: LossSettings, epoch: int) -> tuple[Loss, Callable[[Tensor], Tensor]]:
    """The loss of an epoch (from 0) as a function of scores and images, and what it is when all scores are equal."""
    if s.name == "hinge":
        negatives = "sum" if epoch < s.warmup_epochs else s.negatives
        return (
            partial(hinge, margin=s.margin, negatives=negatives, reduction=s.reduction),
            partial(hinge_of_equal_scores, margin=s.margin, negatives=negatives, reduction=s.reduction),
        )
    loss = LOSSES[s.name](model, s)

    def equal(images: Tensor) -> Tensor:
        with torch.no_grad():
            return loss(torch.zeros(len(images), len(images), device=images.device), images)

    return loss, equal


LOSSES: dict[str, Callable[[TwoBranch, LossSettings], Loss]] = {
    "smooth": lambda model, s: partial(smooth_hinge, margin=s.margin, sharpness=s.sharpness, reduction=s.reduction),
    "infonce": lambda model, s: lambda scores, images: infonce(scores, images, model.scale()),
    "siglip": lambda model, s: lambda scores, images: siglip(scores, images, model.scale(), model.score_bias),
}


def epoch_batches(
    captions: int, batch: int, random: np.random.Generator, lengths: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Rows of captions, `batch` at a time, each caption once; the last batch may be smaller.

    With `lengths` (captions,) the captions of a batch are of like length, and the batches come in random order.
    """
    order = random.permutation(captions)
    if lengths is not None:
        order = order[np.argsort(lengths[order], kind="stable")]
    starts = np.arange(0, captions, batch)
    if lengths is not None:
        random.shuffle(starts)
    for start in starts:
        yield order[start : start + batch]


def rate_at(t: TrainingSettings, epoch: int, part: float) -> float:
    """Adam's learning rate in epoch `epoch` (from 0), of which `part` (0 to 1) is done."""
    if t.schedule == "step":
        return t.lr * t.lr_gamma ** (epoch // t.lr_step)
    if t.schedule == "cosine":
        return t.lr * 0.5 * (1 + math.cos(math.pi * (epoch + part) / t.epochs))
    return t.lr


def ranks_on(model: TwoBranch, similarity: str, split: Split, sentences: Sentences) -> Ranks:
    """Ranks of a model in eval mode on one split."""
    images, captions = embed_features(model, split.features), embed_sentences(model, sentences)
    return ranks_of_embeddings(similarity, images, captions, split)


def ranks_of_embeddings(similarity: str, images: Tensor, captions: Tensor, split: Split) -> Ranks:
    return ranks_by_block(RANKING[similarity], images, captions, split.image_of_caption)


def chance_rsum(images: int) -> float:
    """About what random scores reach among `images`: K in `images`, for each K and both ways."""
    return 2 * sum(min(100.0, 100.0 * k / images) for k in (1, 5, 10))


def _out_of_patience(log: list[dict[str, Any]], patience: int) -> bool:
    if not patience or not log:
        return False
    best = max(log, key=lambda row: row["rsum"])  # the first of equals
    return len(log) - best["epoch"] >= patience


def _line(name: str, row: dict[str, Any], epochs: int) -> str:
    i2t, t2i = row["val"]["image_to_text"], row["val"]["text_to_image"]
    loss = "" if row["loss"] is None else f"loss {row['loss']:9.3f}  "
    return (
        f"{name}  epoch {row['epoch']:>2}/{epochs}  {loss}val rsum {row['rsum']:5.1f}  "
        f"R@1 {i2t['R@1']:4.1f} {t2i['R@1']:4.1f}  {row['seconds']:5.1f} s"
    )


def _advice(name: str, row: dict[str, Any], settings: Settings) -> str:
    ways = ["a smaller training.lr"]
    if settings.loss.negatives in ("hardest", "semihard"):
        ways.insert(0, "a warm-up with --set loss.warmup_epochs=1 or more")
    if not settings.image.normalize:
        ways.append("--set image.normalize=true")
    return (
        f"{name}: collapsed: the loss ({row['loss']:.3f}) is what equal scores give, rsum {row['rsum']:.1f} is near "
        f"chance; every image and caption lies at one place. Try {', or '.join(ways)}."
    )

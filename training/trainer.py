"""Training: epochs, validation, the best on val, checkpoints, and going on after a stop exactly where it was.

Every random choice of an epoch (order of captions, dropout, random negatives) is drawn from the seed and the epoch's
number, so that an epoch begins the same whether or not the program was stopped before it.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from features.device import default_device
from features.distributed import from_first, rank, size
from features.images.views import take_features
from features.prepared import Split
from features.progress import duration, progress_bar
from features.text.vocabulary import Sentences, Vocabulary
from losses import Scores, both_ways, cwcl, hal, hinge, infonce, siglip, smooth_hinge
from metrics.ranks import metrics_of, ranks_by_block, rsum
from metrics.similarity import RANKING, TRAINING
from model import TwoBranch
from settings import LossSettings, Settings
from training.checkpoint import load_checkpoint, load_model, save_checkpoint, save_model
from training.distributed import Share, add_up, begin_alike, own_draws
from training.embed import embed_features, embed_sentences, new_model
from training.fill_bank import save_bank
from training.run import LAST, LOG, MODEL, RESULT, RunPlan
from training.schedule import (
    batch_size_for,
    busy_hint,
    epoch_batches,
    epochs_of,
    out_of_patience,
    rate_at,
    view_random,
)
from training.start import carry_weights
from training.steps import about_batch, draw_mixup, grouped_order, similarities, structure_loss
from utils import BadInput, write_json, write_jsonl

MAX_RESTARTS = 3  # after collapses; what collapses once more is told and goes on
PROBED, ALIKE = 100, 0.01  # images and captions looked at for a collapse; their scores' standard deviation in one


@dataclass(frozen=True)
class TrainingData:
    """What runs read. splits, sentences: "train" and "val", the sentences encoded as the text branch wants them."""

    vocabulary: Vocabulary
    splits: dict[str, Split]
    sentences: dict[str, Sentences]


class OnEpoch(Protocol):
    """Hears after every epoch how many there have been, and a line about it, which may be a warning."""

    def __call__(self, epochs: int, line: str, warning: bool = False, /) -> None: ...


class Trainer:
    """A run in training: model, optimizer, data, and the log of the epochs behind it, one row each.

    It begins where the last checkpoint in the plan's folder left it. Raises BadInput if that is damaged.

    >>> trainer = Trainer(plan, data)  # doctest: +SKIP
    >>> trainer.train_epoch(), rsum(trainer.validate())  # doctest: +SKIP
    (14.2, 251.3)
    """

    def __init__(
        self,
        plan: RunPlan,
        data: TrainingData,
        on_epoch: OnEpoch = lambda *said: None,
        progress: bool = False,
    ):
        self.folder, self.settings, self.seed = plan.folder, plan.settings, plan.info.seed
        self.info, self.data, self.on_epoch, self.progress = plan.info, data, on_epoch, progress
        self.average: TwoBranch | None  # the model of averaged weights, if they are averaged
        self.begin()
        self.log, self.average = load_checkpoint(self.folder / LAST, self.model, self.optimizer)
        self.view_random = view_random(self.seed, len(self.log))
        self.began = len(self.log)  # epochs before this program

    def begin(self) -> None:
        """Make a new model, by the seed or with the weights of the run it begins with, and an optimizer."""
        self.model = new_model(self.settings, self.info, self.data.vocabulary)
        self.model.fit_inputs(self.data.splits["train"].features)
        if self.info.from_run:
            carry_weights(self.info, self.settings, self.data.vocabulary, self.model)
        begin_alike(self.model)
        self.optimizer = new_optimizer(self.model, self.settings)
        self.average = None

    @property
    def restarts(self) -> int:
        """Return how often a collapse has made training begin anew."""
        return min(MAX_RESTARTS, sum(row["collapsed"] for row in self.log))

    @property
    def epoch(self) -> int:
        """Return how many epochs the model as it is now has behind it."""
        collapsed = [row["epoch"] for row in self.log if row["collapsed"]][:MAX_RESTARTS]
        return len(self.log) - max(collapsed, default=0)

    @property
    def seconds_left(self) -> float:
        """Return how long training goes on, at the pace of the last epochs, if patience does not end it before."""
        t, rows = self.settings.training, self.log[len(self.log) - self.epoch :][-3:]
        if not rows or rows[-1]["loss"] is None or out_of_patience(self.log[-self.epoch :], t.patience):
            return 0.0
        return (t.epochs - self.epoch) * sum(row["seconds"] for row in rows) / len(rows)

    def rate(self, part: float) -> float:
        """Return the learning rate when `part` (0 to 1) of this epoch is done, half as high after every restart."""
        return rate_at(self.settings.training, self.epoch, part) / 2**self.restarts

    def fit(self) -> None:
        """Train until the last epoch, or until patience ends it; every epoch leaves a checkpoint."""
        t = self.settings.training
        while self.epoch < t.epochs and not out_of_patience(self.log[len(self.log) - self.epoch :], t.patience):
            began = time.monotonic()
            self.end_epoch(began, self.train_epoch())
        self.finish()

    def train_epoch(self) -> float:
        """Visit every training caption; return the mean loss of a batch.

        Raises BadInput where loss or gradient is not finite, before a step is taken by it.
        """
        t = self.settings.training
        torch.manual_seed(self.seed * 1_000_003 + len(self.log) + 1)
        self.view_random = view_random(self.seed, len(self.log))
        self.model.train()
        batches, total = self.batches(), 0.0
        name = f"epoch {self.epoch + 1}/{t.epochs}"
        with progress_bar(batches, name, line=False, unit=" batches", leave=False, disable=not self.progress) as bar:
            for step, rows in enumerate(bar):
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate(step / len(batches)) * group.get("share", 1.0)
                try:
                    total += self.train_step(rows)
                except FloatingPointError as error:
                    batch = about_batch(t, self.data.splits["train"], self.data.sentences["train"], rows)
                    raise BadInput(f"{name}, step {step + 1} of {len(batches)}: {error}, {batch}") from None
                if t.weight_average:
                    self.average_weights(self.epoch * len(batches) + step)
                bar.set_postfix(loss=f"{total / (step + 1):.3f}", refresh=False)
        return total / len(batches)

    def train_step(self, rows: np.ndarray) -> float:
        """Take one step on the training captions `rows` (B,) and their images; return the loss.

        Of several processes each embeds its share of the batch, and all take the same step. Raises FloatingPointError
        if loss or gradient is not finite.
        """
        split, sentences = self.data.splits["train"], self.data.sentences["train"]
        mix = draw_mixup(self.settings.training.mixup, len(rows))
        share = Share(len(rows) // 2 if mix else len(rows))
        kept = share.rows(2 if mix else 1)
        image_rows = split.image_of_caption[rows]
        features = take_features(split.features, image_rows, self.view_random, kept)
        batch, pairs = (torch.from_numpy(array).to(default_device()) for array in (features, image_rows))
        taken = sentences.take(rows[kept])
        if mix:
            batch, pairs = mix(batch), mix.images(pairs)
        with own_draws(self.view_random):
            images, captions = self.model.embed_images(batch), self.model.embed_sentences(taken, mix)
            batch, images, captions = (share.cut(x) for x in (batch, images, captions))
            scores = share.scores(TRAINING[self.settings.similarity], images, captions)
            frozen = share.gather(batch) if self.settings.loss.name == "cwcl" else batch
            loss = self.loss(scores, share.first(pairs), frozen)
        if self.settings.loss.structure:
            known = None if taken.features is None else torch.from_numpy(taken.features).to(default_device())
            known = known if known is None or mix is None else mix(known)
            loss = loss + self.structure_loss([(batch, images), (known, captions)], share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        total, clip = loss.detach(), self.settings.training.grad_clip
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        add_up([total, *gradients])
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(total + norm):
            raise FloatingPointError(f"the loss is {float(total):g}, the length of its gradient {float(norm):g}")
        if clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), clip, norm)
        self.optimizer.step()
        if self.settings.loss.negatives == "random" and isinstance(scores, Tensor):  # alone
            self.loss(torch.zeros_like(scores), pairs, batch)  # draws again: so docs/RESULTS.md was measured
        return float(total)

    @torch.no_grad()
    def average_weights(self, step: int) -> None:
        """Move the average of the weights towards those after `step` (from 0); it forgets its first steps quickly."""
        if self.average is None:
            self.average = copy.deepcopy(self.model).eval()
        decay = min(self.settings.training.weight_average, (1 + step) / (10 + step))
        for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)

    @property
    def result_model(self) -> TwoBranch:
        """Return the model that is validated and saved: that of the averaged weights, if they are averaged."""
        return self.average or self.model

    def loss(self, scores: Scores, images: Tensor, features: Tensor) -> Tensor:
        """Return the loss of a batch in this epoch: (B, B) scores, (B,) image of each pair, (B, …) its features.

        Of several processes, its share: scores of its b pairs, which come first in the others.
        """
        rows = len(both_ways(scores)[0])
        more = [similarities(features[:rows], features)] if self.settings.loss.name == "cwcl" else []
        # after a collapse one epoch more takes the sum
        loss = loss_of_epoch(self.model, self.settings.loss, self.epoch - self.restarts)
        return loss(scores, images, *more)

    def structure_loss(self, sides: list[tuple[Tensor | None, Tensor]], share: Share) -> Tensor:
        """Return a share of what the heads change in the neighborhoods of the whole batch."""
        whole = [(x if x is None else share.gather(share.cut(x)), share.gather(y)) for x, y in sides]
        return structure_loss(self.settings.loss, whole) / size()

    def batches(self) -> list[np.ndarray]:
        """Return this epoch's batches: rows of training captions, each caption once, few captions several times."""
        captions, random = len(self.data.sentences["train"]), np.random.default_rng([self.seed, len(self.log)])
        size = batch_size_for(self.settings.training, captions)
        passes = math.ceil(self.settings.training.min_steps / math.ceil(captions / size)) or 1
        return [batch for _ in range(passes) for batch in self.batches_of_pass(size, random)]

    def batches_of_pass(self, size: int, random: np.random.Generator) -> list[np.ndarray]:
        """Return batches of up to `size` training captions, each caption once."""
        t, words = self.settings.training, self.data.sentences["train"]
        if t.captions_per_image > 1:
            order = grouped_order(self.data.splits["train"].image_of_caption, t.captions_per_image, random)
            return [order[start : start + size] for start in range(0, len(order), size)]
        # What runs over padding too has batches of sentences of like length, as in Kiros et al.'s code.
        padded = self.settings.text.branch == "gru" or words.tokens
        lengths = (words.tokens or words).lengths if padded else None
        return list(epoch_batches(len(words), size, random, lengths))

    def validate(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the model on val, both directions."""
        model, split = self.result_model.eval(), self.data.splits["val"]
        images = embed_features(model, split.features)
        captions = embed_sentences(model, self.data.sentences["val"])
        return metrics_of(ranks_by_block(RANKING[self.settings.similarity], images, captions, split.image_of_caption))

    def collapsed(self, score: float) -> bool:
        """Return whether all embeddings are alike: rsum (`score`) near chance, and scores on val all but equal."""
        split, sentences = self.data.splits["val"], self.data.sentences["val"]
        if score >= 2 * chance_rsum(len(split.images)):
            return False
        images = embed_features(self.result_model.eval(), split.features[:PROBED])
        captions = embed_sentences(self.result_model, sentences.take(np.arange(min(PROBED, len(sentences)))))
        return float(TRAINING[self.settings.similarity](images, captions).std()) < ALIKE

    def end_epoch(self, began: float, loss: float | None) -> None:
        """Validate, keep the best weights, and write checkpoint and log. began: when the epoch did, monotonic seconds.

        loss: the mean over the epoch's batches, None for a closed form.
        """
        row = from_first(lambda: self.row_of_epoch(began, loss))
        if rank() == 0 and all(row["rsum"] > earlier["rsum"] for earlier in self.log):
            save_model(self.folder / MODEL, self.result_model)
        restarts = self.restarts
        self.log.append(row)
        if self.restarts > restarts:
            self.begin()
        if rank() == 0:
            # The checkpoint comes after the best weights: stopped in between, the epoch is done again, to like bits.
            save_checkpoint(self.folder / LAST, self.model, self.optimizer, self.log, self.average)
            write_jsonl(self.folder / LOG, self.log)
        self.on_epoch(len(self.log), summary(self.folder.name, row, epochs_of(self.settings), self.seconds_left))
        hint = busy_hint(row["seconds_training"], torch.get_num_threads())
        if hint and len(self.log) == self.began + 1:
            self.on_epoch(len(self.log), hint)
        if row["collapsed"]:
            lr = self.rate(0.0) if self.restarts > restarts else None
            self.on_epoch(len(self.log), collapse(self.folder.name, row, self.settings, lr), True)

    def row_of_epoch(self, began: float, loss: float | None) -> dict[str, Any]:
        """Validate; return what the log says of this epoch."""
        trained = time.monotonic() - began
        metrics = self.validate()
        score = rsum(metrics)
        return {
            "epoch": len(self.log) + 1,
            "loss": loss,
            "rate": 0.0 if loss is None else self.rate(0.0),
            "rsum": score,
            "val": metrics,
            "collapsed": loss is not None and self.collapsed(score),
            "seconds": round(time.monotonic() - began, 2),
            "seconds_training": round(trained, 2),
            "threads": torch.get_num_threads(),
            "processes": size(),
        }

    def finish(self) -> None:
        """Write the bank, and result.json, with which the run is finished. The model then has its best weights.

        The first process does it.
        """
        if rank():
            return
        load_model(self.folder / MODEL, self.model)
        save_bank(self)
        write_jsonl(self.folder / LOG, self.log)  # again: a kill may have come between the last checkpoint and its line
        best, split = max(self.log, key=lambda row: row["rsum"]), self.data.splits["val"]
        result = {
            "split": "val",
            "best_epoch": best["epoch"],
            "epochs": len(self.log),
            "rsum": best["rsum"],
            **best["val"],
            "images": len(split.images),
            "captions": len(split.captions),
            "seconds": round(sum(row["seconds"] for row in self.log), 1),
            "collapsed": best["collapsed"],
        }
        write_json(self.folder / RESULT, result)


def new_optimizer(model: TwoBranch, settings: Settings) -> torch.optim.Optimizer:
    """Make Adam or AdamW. A transformer that is trained too has a rate of its own, a fixed share of the other's."""
    t = settings.training
    inner = [p for name, p in model.named_parameters() if ".transformer." in f".{name}"]
    ids = {id(p) for p in inner}
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in ids]}]
    if inner:
        groups.append({"params": inner, "share": settings.text.finetune_lr / t.lr})
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[t.optimizer]
    return kind(groups, lr=t.lr, weight_decay=t.weight_decay, fused=True)


def loss_of_epoch(model: TwoBranch, s: LossSettings, epoch: int) -> Callable[..., Tensor]:
    """Return the loss of an epoch (from 0), a function of scores (B, B) and images (B,); cwcl's of similarities too."""
    match s.name:
        case "smooth":
            return partial(smooth_hinge, margin=s.margin, sharpness=s.sharpness, reduction=s.reduction)
        case "infonce":
            return partial(infonce, scale=model.scale(), positives=s.positives)
        case "siglip":
            return partial(
                siglip, scale=model.scale(), bias=model.score_bias, positives=s.positives, reduction=s.reduction
            )
        case "cwcl":
            return partial(cwcl, scale=model.scale(), sharpness=s.sharpness)
        case "hal":
            return partial(hal, margin=s.margin, sharpness=s.sharpness)
        case _:
            negatives = "sum" if epoch < s.warmup_epochs else s.negatives
            return partial(hinge, margin=s.margin, negatives=negatives, reduction=s.reduction)


def chance_rsum(images: int) -> float:
    """Return about what random scores reach among `images`: K in `images`, for each K and both ways.

    >>> chance_rsum(1000)
    3.2
    """
    return 2 * sum(min(100.0, 100.0 * k / images) for k in (1, 5, 10))


def summary(name: str, row: dict[str, Any], epochs: int, seconds_left: float = 0.0) -> str:
    """Return a line about an epoch's row of the log."""
    left = f", {duration(seconds_left)} left" if seconds_left >= 1 else ""
    i2t, t2i = row["val"]["image_to_text"], row["val"]["text_to_image"]
    loss = "" if row["loss"] is None else f"loss {row['loss']:9.3f}  "
    return (
        f"{name}  epoch {row['epoch']:>2}/{epochs}  {loss}val rsum {row['rsum']:5.1f}  "
        f"R@1 {i2t['R@1']:4.1f} {t2i['R@1']:4.1f}  {row['seconds']:5.1f} s{left}"
    )


def collapse(name: str, row: dict[str, Any], settings: Settings, lr: float | None) -> str:
    """Return what a collapse is and what is done about it: training begins anew at `lr`, or has done so in vain."""
    what = (
        f"{name}: collapsed: scores are all but equal, rsum {row['rsum']:.1f} is near chance; every image and caption "
        f"lies at one place."
    )
    if lr is not None:
        hinge = settings.loss.name == "hinge" and settings.loss.negatives != "sum"
        warm_up = " and with one more epoch of the sum over negatives" if hinge else ""
        return f"{what} Training begins anew, with a rate of {lr:g}{warm_up}."
    ways = ["a smaller `training.lr`"]
    if settings.loss.negatives in ("hardest", "semihard"):
        ways.insert(0, "a warm-up with `loss.warmup_epochs`=1 or more")
    if not settings.image.normalize:
        ways.append("`image.normalize`=true")
    return f"{what} It did so after {MAX_RESTARTS} new beginnings, too. Try {', or '.join(ways)}."

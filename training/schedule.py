"""What the epochs of a run are made of: how many, in which batches, at which rate, with which views and threads."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from settings import CLOSED_FORMS, Settings, TrainingSettings

SLOW_EPOCH = 10.0  # seconds from which on an epoch is worth a hint
SMALL_BATCH = 128  # pairs, below which `training.min_steps` makes no batch smaller; captions come again instead


def epochs_of(settings: Settings) -> int:
    """Return how many epochs a run has, unless patience ends it before."""
    return 1 if settings.loss.name in CLOSED_FORMS else settings.training.epochs


def out_of_patience(log: list[dict[str, Any]], patience: int) -> bool:
    """Return whether the last `patience` epochs (0: any number) brought no better rsum on val."""
    if not patience or not log:
        return False
    best = max(range(len(log)), key=lambda index: log[index]["rsum"])  # the first of equals
    return len(log) - 1 - best >= patience


def batch_size_for(t: TrainingSettings, captions: int) -> int:
    """Return how many pairs come in a step of an epoch of `captions`.

    >>> t = TrainingSettings(batch_size=1024, min_steps=30)
    >>> [batch_size_for(t, captions) for captions in (30_000, 6000, 1500)]
    [1000, 200, 128]
    """
    most = captions // t.min_steps if t.min_steps else t.batch_size
    return min(t.batch_size, max(most, SMALL_BATCH))


def epoch_batches(
    captions: int, batch_size: int, random: np.random.Generator, lengths: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yield rows of captions, `batch_size` at a time, each caption once; the last batch may be smaller.

    With `lengths` (captions,) the captions of a batch are of like length, and the batches come in random order.
    """
    order = random.permutation(captions)
    if lengths is not None:
        order = order[np.argsort(lengths[order], kind="stable")]
    starts = np.arange(0, captions, batch_size)
    if lengths is not None:
        random.shuffle(starts)
    for start in starts:
        yield order[start : start + batch_size]


def view_random(seed: int, epoch: int) -> np.random.Generator:
    """Return what draws the views of an epoch's images (from 0), beside what draws the order of its captions."""
    return np.random.default_rng([seed, epoch, 1])


def rate_at(t: TrainingSettings, epoch: int, part: float) -> float:
    """Return Adam's learning rate in epoch `epoch` (from 0), of which `part` (0 to 1) is done."""
    if t.schedule == "step":
        return t.lr * t.lr_gamma ** (epoch // t.lr_step)
    if t.schedule == "cosine":
        return t.lr * 0.5 * (1 + math.cos(math.pi * (epoch + part) / t.epochs))
    return t.lr


def busy_hint(seconds: float, threads: int) -> str:
    """Return what may make epochs of so many seconds quicker where other programs want the cores, too; else ""."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if threads == 1 or seconds < SLOW_EPOCH or load < 1.5 * cores:
        return ""
    return (
        f"this machine is busy (load {load:.1f} on {cores} cores), and threads wait for each other: stop, and repeat "
        f"the command with `threads` 1, which continues and may be many times quicker"
    )


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads (None: as it does), and put back what it used before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

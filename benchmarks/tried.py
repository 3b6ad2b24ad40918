"""Ideas that are not in `strong` or `stems`: val rsum of `strong`, or of `stems`, with each of them in turn.

    python benchmarks/tried.py data/flickr8k --features efficientnet_lite0
    python benchmarks/tried.py data/flickr8k --features efficientnet_lite0 --ideas queue whitening

What the program has no setting for is made here, outside it. Repeating a command trains nothing again.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from folders import derive, images_of

import model
from evaluation.measure import EvalOptions, evaluate
from features.prepared import Prepared
from features.text.vocabulary import tokenize
from layers.inputs import Standardize
from losses import hinge, smooth_hinge
from metrics.table import Table, as_markdown
from script import run_script
from training import trainer
from training.sweep import train_recipes

QUEUE = 4096  # embeddings of each side that stay as negatives after their batch
SHRINKAGE = 0.1  # of whitening: what share of the mean variance is added to each direction's
EPOCHS = 9  # of `stems`, over which margin and sharpness rise


class Queue:
    """The last embeddings of both sides, as negatives more of InfoNCE (cross-batch memory, Wang et al., 2020)."""

    def __init__(self) -> None:
        self.images, self.captions = torch.empty(0, 0), torch.empty(0, 0)
        self.owners, self.batch = torch.empty(0, dtype=torch.int64), (self.images, self.captions)

    def scores(self, images: Tensor, captions: Tensor) -> Tensor:
        self.batch = images, captions
        return images @ captions.T

    def loss(self, scores: Tensor, owners: Tensor, scale: Tensor, **_: Any) -> Tensor:
        total = scores.new_zeros(())
        sides = zip(self.batch, (self.captions, self.images), (scores, scores.T), strict=True)
        for queries, kept, inside in sides:
            same = (owners[:, None] == owners) & ~torch.eye(len(owners), dtype=torch.bool)
            columns = [(scale * inside).masked_fill(same, -torch.inf)]
            if len(kept):
                others = scale * (queries @ kept.T)
                columns.append(others.masked_fill(owners[:, None] == self.owners, -torch.inf))
            total = total + F.cross_entropy(torch.cat(columns, 1), torch.arange(len(owners))) / 2
        images, captions = (embedded.detach() for embedded in self.batch)
        if len(self.owners):
            images, captions = torch.cat([images, self.images]), torch.cat([captions, self.captions])
            owners = torch.cat([owners, self.owners])
        self.images, self.captions, self.owners = images[:QUEUE], captions[:QUEUE], owners[:QUEUE]
        return total


class Whiten(Standardize):
    """Directions of a backbone's features to equal variance, rather than each backbone to a unit mean square."""

    matrix: Tensor

    def __init__(self, sizes: Any, power: float = 1.0):
        super().__init__(sizes, power)
        self.register_buffer("matrix", torch.eye(sum(sizes)))

    def fit(self, blocks: Any) -> None:
        rows = self._powered(torch.cat([torch.as_tensor(block) for block in blocks])).double()
        self.mean.copy_(rows.mean(0))
        start = 0
        for size in self.sizes:
            part = slice(start, start := start + size)
            values, vectors = torch.linalg.eigh(torch.cov(rows[:, part].T))
            scaled = vectors / (values.clamp(min=0) + SHRINKAGE * values.mean()).sqrt() / size**0.5
            self.matrix[part, part] = (scaled @ vectors.T).float()

    def forward(self, x: Tensor) -> Tensor:
        return (self._powered(x) - self.mean) @ self.matrix


@contextmanager
def queue() -> Iterator[None]:
    """Negatives of earlier batches."""
    memory = Queue()
    with (
        mock.patch.dict(trainer.TRAINING, cosine=memory.scores),
        mock.patch.object(trainer, "infonce", memory.loss),
    ):
        yield


@contextmanager
def whitening() -> Iterator[None]:
    """Whitened features."""
    with mock.patch.object(model, "Standardize", Whiten):
        yield


@contextmanager
def of_epoch(loss: Callable[[float], Callable[..., Tensor]]) -> Iterator[None]:
    """A loss that depends on how much of the training is over, from 0 to 1."""
    with mock.patch.object(trainer, "loss_of_epoch", lambda _, settings, epoch: loss(min(1, epoch / (EPOCHS - 1)))):
        yield


def margin(part: float) -> Callable[..., Tensor]:
    """Return the hinge of the hardest negatives with a margin that rises from 0.05 to 0.2."""
    return partial(hinge, margin=0.05 + 0.15 * part, negatives="hardest" if part else "sum")


def sharpness(part: float) -> Callable[..., Tensor]:
    """Return the smooth hinge, from nearly the mean over negatives to nearly the hardest one."""
    return partial(smooth_hinge, margin=0.2, sharpness=10 * 10**part)


def with_trigrams(folder: Path) -> Path:
    """Prepare a folder beside `folder` whose captions have the trigrams of their words' letters as words more."""
    prepared = Prepared(folder)

    def spell(caption: str) -> str:
        grams = (f"<{word}>"[i : i + 3] for word in tokenize(caption) for i in range(len(word)))
        names = ["q" + "".join(f"{ord(letter):x}" for letter in gram) for gram in grams]
        return " ".join([caption, *names])

    images = [replace(image, captions=tuple(map(spell, image.captions))) for image in images_of(prepared)]
    return derive(prepared, folder.with_name(f"{folder.name}-trigrams"), images)


# name → recipe, changes, and what makes the idea
IDEAS: dict[str, tuple[str, list[str], Callable[[], Any] | None]] = {
    "strong": ("strong", [], None),
    "queue": ("strong", [], queue),
    "whitening": ("strong", [], whitening),
    "trigrams": ("strong", [], None),
    "bigrams": ("strong", ["text.bigrams=3"], None),
    "word dropout": ("strong", ["text.word_dropout=0.1"], None),
    "averaged weights": ("strong", ["training.weight_average=0.99"], None),
    "embed_dim 2048": ("strong", ["embed_dim=2048"], None),
    "stems": ("stems", [], None),
    "margin rises": ("stems", [], partial(of_epoch, margin)),
    "hardness rises": ("stems", [], partial(of_epoch, sharpness)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--features", nargs="+", default=[], metavar="NAME", help="default: the newest")
    parser.add_argument("--ideas", nargs="+", default=list(IDEAS), choices=list(IDEAS), metavar="IDEA")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in every run")
    parser.add_argument("--runs", type=Path, default=Path("runs/tried"))
    args = parser.parse_args()
    body = []
    for idea in args.ideas:
        plain, corrected = figures(args, idea)
        body.append([idea, IDEAS[idea][0], f"{plain:.1f}", f"{corrected:.1f}"])
        print(*body[-1], sep="  ", file=sys.stderr)
    print(as_markdown(Table("", ["tried", "recipe", "val rsum", "corrected"], body, left=frozenset({0, 1}))))


def figures(args: argparse.Namespace, idea: str) -> tuple[float, float]:
    """Return rsum on val, plain and corrected by inverted softmax, of seed 0."""
    recipe, changes, made = IDEAS[idea]
    data = with_trigrams(args.data) if idea == "trigrams" else args.data
    features, runs = [args.features] if args.features else [], args.runs / idea.replace(" ", "_")
    with made() if made else mock.MagicMock():
        (run,) = train_recipes([recipe], data=data, features=features, runs=runs, changes=[*changes, *args.set])
        options = EvalOptions(run=[str(run)], split="val", correction=["inverted_softmax"], format="json")
        plain, corrected = json.loads(evaluate(options))
    return plain["rsum"], corrected["rsum"]


if __name__ == "__main__":
    run_script(main)

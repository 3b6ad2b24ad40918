"""How quick is training: a GRU's steps against the plain way, order steps against cosine steps, and to a val rsum?

    python benchmarks/training_steps.py
    python benchmarks/training_steps.py --work quality --data data/flickr8k --features efficientnet_lite0 --rsum 300

Captions are drawn with Flickr8k's lengths and as often repeated words, features are noise: how long a step takes does
not depend on what it learns. The reference is written as the published codes are: a dataset that cuts and numbers a
caption in __getitem__, shuffled batches that are padded and packed, nn.GRU, Adam as it is by default.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from nltk.tokenize import TreebankWordTokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Goal, Timing, compare, in_pairs, memory_of, seconds, timings_table

from features.device import default_device
from features.prepared import Prepared, Split
from features.text.sentences import TextProcessor
from features.text.vocabulary import Vocabulary
from layers.gru import gru_states
from losses import hinge
from metrics.ranks import rsum
from metrics.table import as_text
from script import run_script
from settings import CLOSED_FORMS, Settings, override, read_recipe
from training.closed_form import fit_branches
from training.plan import plan_run
from training.run import RunInfo, RunPlan, encoding_settings
from training.schedule import epochs_of
from training.sweep import SplitCache
from training.trainer import Trainer, TrainingData

PER_IMAGE, FEATURES = 5, 1280
WORDS = 2920  # of Flickr8k that come four times
EXPONENT = 1.1  # the n-th most frequent comes n ** -EXPONENT as often
LENGTHS = (8.3, 1.3)  # shape and scale of the gamma distribution that Flickr8k's words a caption have about
BATCH = 128
WORKS = ("gru", "layer", "order", "quality")
AT_MOST = {"around": Goal(0.05, False), "order": Goal(1.15, False), "quality": Goal(9, False, "seconds")}


def drawn_captions(images: int, random: np.random.Generator) -> list[str]:
    shares = np.arange(1, WORDS + 1, dtype=np.float64) ** -EXPONENT
    lengths = np.maximum(1, random.gamma(*LENGTHS, size=images * PER_IMAGE).round().astype(int))
    words = random.choice(WORDS, size=lengths.sum(), p=shares / shares.sum())
    letters = np.array(["".join(chr(97 + n // 26**i % 26) for i in range(3)) for n in range(WORDS)])
    return [" ".join(part) for part in np.split(letters[words], np.cumsum(lengths)[:-1])]


def drawn_splits(train: int) -> dict[str, Split]:
    random, splits = np.random.default_rng(0), {}
    for name, images in (("train", train), ("val", train // 6)):
        features = random.random((images, FEATURES), np.float32)
        ids, of_image = [f"{name}{n}" for n in range(images)], np.repeat(np.arange(images), PER_IMAGE)
        splits[name] = Split(name, ids, drawn_captions(images, random), of_image, features)
    return splits


def drawn_trainer(folder: Path, settings: Settings, splits: dict[str, Split]) -> Trainer:
    info = RunInfo("drawn", "drawn", "none", ("noise",), ("",), (FEATURES,), 0, "", ())
    vocabulary = Vocabulary.build(splits["train"].captions, "none")
    processor = TextProcessor(vocabulary, **encoding_settings(settings.text))
    sentences = {name: processor.encode(split.captions) for name, split in splits.items()}
    trainer = Trainer(RunPlan(folder, settings, info), TrainingData(vocabulary, splits, sentences))
    trainer.model.train()
    return trainer


class PlainCaptions(Dataset):
    """Pairs of a feature and a caption as numbers, made when they are asked for."""

    def __init__(self, split: Split):
        words = sorted({word for caption in split.captions for word in caption.split()})
        self.split, self.numbers = split, {word: n for n, word in enumerate(words, 2)}
        self.tokenize = TreebankWordTokenizer().tokenize

    def __len__(self) -> int:
        return len(self.split.captions)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor, int]:
        tokens = self.tokenize(self.split.captions[row].lower())
        numbers = [self.numbers.get(token, 1) for token in tokens]
        image = int(self.split.image_of_caption[row])
        return torch.from_numpy(self.split.features[image : image + 1][0]), torch.tensor(numbers), image


def collate(pairs: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, list[int], Tensor]:
    pairs.sort(key=lambda pair: len(pair[1]), reverse=True)
    features, captions, images = zip(*pairs, strict=True)
    lengths = [len(caption) for caption in captions]
    padded = torch.zeros(len(captions), max(lengths), dtype=torch.int64)
    for row, caption in enumerate(captions):
        padded[row, : len(caption)] = caption
    return torch.stack(features), padded, lengths, torch.tensor(images)


class PlainModel(nn.Module):
    """A linear image branch, and word embeddings through a GRU of 1024 units, whose last state is taken."""

    def __init__(self, words: int):
        super().__init__()
        self.image = nn.Linear(FEATURES, 1024)
        self.embedding, self.gru = nn.Embedding(words, 300), nn.GRU(300, 1024, batch_first=True)

    def forward(self, features: Tensor, captions: Tensor, lengths: list[int]) -> Tensor:
        images = nn.functional.normalize(self.image(features), dim=1)
        packed = pack_padded_sequence(self.embedding(captions), lengths, batch_first=True)
        states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        last = (torch.tensor(lengths, device=states.device) - 1)[:, None, None].expand(-1, 1, 1024)
        return images @ nn.functional.normalize(states.gather(1, last).squeeze(1), dim=1).T


def plain_steps(split: Split, steps: int) -> Callable[[], None]:
    """Return what takes the next `steps` steps of the plain way."""
    data = PlainCaptions(split)
    device = default_device()
    model = PlainModel(len(data.numbers) + 2).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

    def forever() -> Iterator[tuple[Tensor, Tensor, list[int], Tensor]]:
        while True:
            yield from DataLoader(data, BATCH, shuffle=True, collate_fn=collate, drop_last=True)

    batches = forever()

    def run() -> None:
        for _ in range(steps):
            features, captions, lengths, images = next(batches)
            loss = hinge(model(features.to(device), captions.to(device), lengths), images.to(device), 0.2)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            loss.item()

    return run


def sampled(trainer: Trainer, steps: int) -> list[np.ndarray]:
    """Return `steps` of an epoch's batches, of all lengths alike."""
    lengths = trainer.data.sentences["train"].lengths
    batches = sorted((batch for batch in trainer.batches() if len(batch) == BATCH), key=lambda b: lengths[b].sum())
    return [batches[i] for i in np.linspace(0, len(batches) - 1, 2 * steps + 1).astype(int)[1::2]]


def gru(splits: dict[str, Split], steps: int, pairs: int) -> list[Timing]:
    """Time an epoch of `vse0` by some of its steps, against the plain way; and what is no step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = drawn_trainer(Path(folder), read_recipe("vse0"), splits)
        batches, plain = sampled(trainer, steps), plain_steps(splits["train"], steps)
        epoch = len(splits["train"].captions) / BATCH / steps

        def ours() -> None:
            for rows in batches:
                trainer.train_step(rows)

        def made() -> None:  # what a step does before the model sees the batch
            for rows in batches:
                trainer.data.splits["train"].features[trainer.data.splits["train"].image_of_caption[rows]]
                trainer.data.sentences["train"].take(rows)

        memory = memory_of(ours)
        plain()
        times, ratios = in_pairs(lambda: seconds(ours) * epoch, lambda: seconds(plain) * epoch, pairs)
        around = seconds(made) * epoch + seconds(trainer.batches)
        began = time.monotonic()
        trainer.end_epoch(began, 0.0)
        checks = time.monotonic() - began
    what, share = "an epoch of vse0, GRU 1024", [(around + checks) / min(times)]
    note = f"batches {around:.2g} s, validation and checkpoint {checks:.2g} s"
    return [
        Timing(what, times, ratios, "", "packed per shuffled batch", memory, Goal(3)),
        Timing(f"{what}: around its steps", [around + checks], share, note, "around / steps", None, AT_MOST["around"]),
    ]


def layer(pairs: int) -> Timing:
    """Time the GRU alone, forward and backward, against nn.GRU on the same packed words: batches of equal lengths."""
    torch.manual_seed(0)
    recurrent, embedding = nn.GRU(300, 1024, batch_first=True), nn.Embedding(WORDS, 300)
    shares = torch.arange(1, WORDS + 1, dtype=torch.float64) ** -EXPONENT
    packed = pack_padded_sequence(torch.multinomial(shares, BATCH * 11, True).view(BATCH, 11), [11] * BATCH, True)

    def ours() -> None:
        distinct, index = packed.data.unique(return_inverse=True)
        gru_states(recurrent, embedding(distinct), index, packed.batch_sizes.tolist()).sum().backward()

    def plain() -> None:
        recurrent(packed._replace(data=embedding(packed.data)))[0].data.sum().backward()

    return compare("its GRU alone, 128 sentences of 11 words", ours, plain, "nn.GRU, packed", pairs)


def order(splits: dict[str, Split], steps: int, pairs: int) -> Timing:
    """Time steps of `order_embedding` against the same with cosine: the ratio is order / cosine."""
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for similarity in ("cosine", "order"):
            settings = override(read_recipe("order_embedding"), {"similarity": similarity})
            runs.append(drawn_trainer(Path(folder) / similarity, settings, splits))
        batches = sampled(runs[0], steps)

        def run(trainer: Trainer) -> float:
            return seconds(lambda: [trainer.train_step(rows) for rows in batches]) / steps

        run(runs[0])
        memory = memory_of(lambda: run(runs[1]))
        times, ratios = in_pairs(lambda: run(runs[0]), lambda: run(runs[1]), pairs)
        times = [cosine * part for cosine, part in zip(times, ratios, strict=True)]
    what, reference = "a step of order_embedding", "order / cosine"
    return Timing(what, times, ratios, "", reference, memory, AT_MOST["order"])


def quality(data: Path, features: Sequence[str], recipe: str, goal: float, runs: int) -> Timing:
    """Time training from the prepared folder, until val has this rsum; validation included."""
    times, note = [], ""
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            prepared = Prepared(data)
            plan = plan_run(prepared, read_recipe(recipe), recipe=recipe, features=features, root=Path(folder))
            trainer = Trainer(plan, SplitCache(prepared).read(plan))
            epochs, score = epochs_of(plan.settings), 0.0
            while score < goal and trainer.epoch < epochs:
                fit_branches(trainer) if plan.settings.loss.name in CLOSED_FORMS else trainer.train_epoch()
                score = rsum(trainer.validate())
                trainer.log.append({"epoch": trainer.epoch + 1, "rsum": score, "collapsed": False})
            times.append(time.monotonic() - began)
            note = f"rsum {score:.1f} after {trainer.epoch} epochs"
    return Timing(f"{recipe} to val rsum {goal:g}", times, note=note, goal=AT_MOST["quality"])


def timings(work: Sequence[str], images: int = 6000, steps: int = 12, pairs: int = 5) -> Iterator[Timing]:
    """Yield what the works but "quality" take."""
    splits = drawn_splits(images)
    if "gru" in work:
        yield from gru(splits, steps, pairs)
    if "layer" in work:
        yield layer(pairs)
    if "order" in work:
        yield order(splits, steps, pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--images", type=int, default=6000, help="that are drawn, with five captions each")
    parser.add_argument("--steps", type=int, default=12, help="of an epoch that are timed")
    parser.add_argument("--pairs", type=int, default=5, help="of runs")
    parser.add_argument("--data", type=Path, help="a prepared folder, for quality")
    parser.add_argument("--features", nargs="+", default=["efficientnet_lite0"])
    parser.add_argument("--recipe", default="strong")
    parser.add_argument("--rsum", type=float, default=300.0, help="on val")
    parser.add_argument("--threads", type=int, help="of torch; default: torch's own")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    rows = list(timings(args.work, args.images, args.steps, args.pairs))
    if "quality" in args.work and args.data:
        rows.append(quality(args.data, args.features, args.recipe, args.rsum, args.pairs))
    print(as_text(timings_table(rows)))


if __name__ == "__main__":
    run_script(main)

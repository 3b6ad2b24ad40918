"""What grows with the size of a dataset, and what does not: time and memory from a thousand on.

    python benchmarks/growth.py
    python benchmarks/growth.py --only training --captions 617000
    python benchmarks/growth.py --only index --vectors 1000000 --to 10000000

training  `strong` on a synthetic prepared folder: five captions an image, 2,048 numbers of float16. Steps of 1,024
          pairs, in turn with those of Flickr8k's size; the memory is that of the process that opens it and trains.
prep      prep.py on small images, with a small network and random weights, in one process.
index     exact search, FAISS's HNSW and IVF-PQ on vectors of 512 numbers around 30,000 centers, queries alike: seconds
          of building and of one query at recall@10 of 0.95. What is worked out goes on as the last two points do.

Every point has a process of its own, whose peak is VmHWM of Linux, files that are mapped into it included.
"""

import argparse
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Goal, Timing, in_pairs, peak_memory, seconds, timings_table
from training_steps import PER_IMAGE, drawn_captions

from features.datasets.dataset import Dataset, Image
from features.images.store import write_store
from features.options import resolve_options
from features.prepare import prepare
from features.prepared import Prepared, write_prepared
from features.text.vocabulary import Vocabulary
from metrics.table import Table, as_text
from retrieval.approximate import EXACT, KINDS, PQ_ROWS, Approximate
from retrieval.emoji import unit_rows
from retrieval.index import write_rows
from retrieval.nearest import COSINE, exact_nearest
from script import run_script
from settings import override, read_recipe
from training.plan import plan_run
from training.sweep import SplitCache
from training.trainer import Trainer
from utils import be_quiet

CAPTIONS = (1000, 10_000, 30_000, 100_000, 617_000)  # Flickr8k has 30,000 to train on, COCO 617,000
FLICKR8K, VAL_IMAGES, FEATURES = 30_000, 1000, 2048
IMAGES, PIXELS, SMALL_NETWORK = (1000, 4000, 16_000), 32, "mobilenet_v3_small"
VECTORS, DIM, CENTERS, NOISE, QUERIES = (10_000, 30_000, 100_000, 300_000, 1_000_000), 512, 30_000, 0.5, 200
ROWS = 2**14  # made at a time


@dataclass(frozen=True)
class Curve:
    """Seconds for one of `unit`, and MB of the process, at sizes. worked_out: so many of the last are not measured."""

    work: str
    unit: str
    sizes: list[int]
    seconds: list[float]
    memory: list[float] = field(default_factory=list)
    worked_out: int = 0


def apart(work: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own; say how long it took."""
    began = time.monotonic()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        result = pool.submit(function, *args).result()
    print(f"{work}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    return result


def up_to(sizes: Sequence[int], most: int) -> list[int]:
    """Return the sizes below `most`, and `most`.

    >>> up_to((10, 100, 1000), 500)
    [10, 100, 500]
    """
    return [*(size for size in sizes if size < most), most]


def training_growth(captions: int = CAPTIONS[-1], pairs: int = 5, steps: int = 10) -> Iterator[Curve | Timing]:
    """Yield what a caption costs at each size, and whether one of the most costs as much as one of Flickr8k's."""
    points = []
    with tempfile.TemporaryDirectory() as scratch:
        reference = write_folder(Path(scratch) / "reference", min(FLICKR8K, captions))
        for size in up_to(CAPTIONS, captions):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                data, work = write_folder(Path(folder) / "data", size), f"training, {size:,} captions"
                points.append(apart(work, train_at, data, reference, steps, pairs))
    sizes = up_to(CAPTIONS, captions)
    read, costs, ratios, memory = zip(*points, strict=True)
    yield Curve("opening a prepared folder", "caption", sizes, list(read), list(memory))
    yield Curve("training, strong", "caption", sizes, [median(cost) for cost in costs], list(memory))
    what, reference_size = f"strong, a caption of {captions:,}", f"it / one of {min(FLICKR8K, captions):,}"
    yield Timing(what, costs[-1], ratios[-1], "", reference_size, memory[-1], Goal(1.1, False))


def write_folder(folder: Path, captions: int) -> Path:
    """Write a prepared folder of noise with so many training captions."""
    random, per_split = np.random.default_rng(0), {"train": captions // PER_IMAGE, "val": VAL_IMAGES}
    images: list[Image] = []
    for split, count in per_split.items():
        drawn = drawn_captions(count, random)
        parts = (tuple(drawn[n : n + PER_IMAGE]) for n in range(0, len(drawn), PER_IMAGE))
        images += (Image(f"{split}{n}", None, split, part) for n, part in enumerate(parts))
    words = (caption for image in images[: -per_split["val"]] for caption in image.captions)
    folder.mkdir()
    write_prepared(folder, Dataset("drawn", tuple(images)), None, Vocabulary.build(words, "none"))
    starts = range(0, len(images), ROWS)
    blocks = (random.random((min(ROWS, len(images) - start), FEATURES), np.float32) for start in starts)
    about: dict[str, str | int] = {"backbone": "noise", "digest": "none"}
    write_store(folder / "noise.h5", [image.id for image in images], (FEATURES,), "float16", about, blocks)
    return folder


def train_at(folder: Path, reference: Path, steps: int, pairs: int) -> tuple[float, list[float], list[float], float]:
    """Return the seconds that a caption takes to be read, those it takes in training, how many times those of the
    reference each is, and the peak memory before that was opened."""
    with tempfile.TemporaryDirectory() as runs:
        opened: list[Trainer] = []
        took = seconds(lambda: opened.append(trainer_of(folder, Path(runs))))
        ours = part_of_epoch(opened[0], steps)
        ours()
        memory, plain = peak_memory(), part_of_epoch(trainer_of(reference, Path(runs)), steps)
        plain()
        costs, ratios = in_pairs(plain, ours, pairs)
    costs = [cost * part for cost, part in zip(costs, ratios, strict=True)]
    return took / len(opened[0].data.sentences["train"]), costs, ratios, memory


def trainer_of(folder: Path, runs: Path) -> Trainer:
    """Return what trains `strong` on a prepared folder, with batches of one size however few captions there are."""
    prepared = Prepared(folder)
    settings = override(read_recipe("strong"), {"training.min_steps": 0})
    plan = plan_run(prepared, settings, recipe="strong", root=runs)
    trainer = Trainer(plan, SplitCache(prepared).read(plan))
    trainer.model.train()
    return trainer


def part_of_epoch(trainer: Trainer, steps: int) -> Callable[[], float]:
    """Return what takes the next steps of an epoch, and returns the seconds that one of their captions took."""
    batches = itertools.cycle(trainer.batches())

    def run() -> float:
        rows = list(itertools.islice(batches, steps))
        return seconds(lambda: [trainer.train_step(batch) for batch in rows]) / sum(map(len, rows))

    return run


def prep_growth(images: int = IMAGES[-1]) -> Iterator[Curve]:
    """Yield what prep.py takes for an image, and how much memory, by their number."""
    sizes = up_to(IMAGES, images)
    took, memory = zip(*(apart(f"prep.py, {size:,} images", prepare_at, size) for size in sizes), strict=True)
    yield Curve(f"prep.py, {SMALL_NETWORK}, {PIXELS} pixels", "image", sizes, list(took), list(memory))


def prepare_at(count: int) -> tuple[float, float]:
    """Return what it takes to prepare one of so many small images, and the peak memory."""
    from start import draw_images

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_images(folder / "images", count)
        lines = [f"{number}.png,an image\n" for number in range(count)]
        (folder / "captions.csv").write_text("image,caption\n" + "".join(lines))
        asked = {"dataset": "folder", "images": folder / "images", "captions": folder / "captions.csv"}
        network = {"backbone": SMALL_NETWORK, "weights": "random", "size": PIXELS, "engine": "torch", "workers": 0}
        be_quiet()
        took = seconds(lambda: prepare(resolve_options({**asked, **network, "data": folder / "data"})))
        return took / count, peak_memory()


def index_growth(vectors: int = VECTORS[-2], to: int = 10_000_000) -> Iterator[Curve]:
    """Yield what it takes to build each kind of index and to search it, and what `to` vectors would take."""
    for kind in (EXACT, *KINDS):
        sizes = [size for size in up_to(VECTORS, vectors) if kind != "ivf_pq" or size >= PQ_ROWS]
        if not sizes:
            continue
        points = [apart(f"{kind}, {size:,} vectors", search_at, kind, size) for size in sizes]
        for what, unit, column in (("building", "vector", 0), ("a query", "query", 1))[kind == EXACT :]:
            took, memory = [point[column] for point in points], [point[2] for point in points]
            yield continued(Curve(f"{what}, {kind}", unit, sizes, took, memory), to)


def continued(curve: Curve, to: int) -> Curve:
    """Return a curve as far as `to`, worked out from its last two points."""
    if len(curve.sizes) < 2 or to <= curve.sizes[-1]:
        return curve
    cost, memory = (goes_on(curve.sizes, y, to, powers) for y, powers in ((curve.seconds, True), (curve.memory, False)))
    return replace(
        curve, sizes=[*curve.sizes, to], seconds=[*curve.seconds, cost], memory=[*curve.memory, memory], worked_out=1
    )


def goes_on(sizes: Sequence[int], values: Sequence[float], to: int, powers: bool) -> float:
    """Return where a line through the last two points is at `to`: with `powers`, a line on logarithmic axes.

    >>> round(goes_on([1, 10], [3.0, 30.0], 100, powers=True)), goes_on([1, 2], [3.0, 4.0], 5, powers=False)
    (300, 7.0)
    """
    scale, back = (math.log10, lambda value: 10**value) if powers else (float, float)
    (x0, x1), (y0, y1) = map(scale, sizes[-2:]), map(scale, values[-2:])
    return back(y1 + (y1 - y0) / (x1 - x0) * (scale(to) - x1))


def search_at(kind: str, count: int) -> tuple[float, float, float]:
    """Return the seconds that a vector takes to be built in, those of one query, and the peak memory."""
    random = np.random.default_rng(0)
    centers = unit_rows(random.standard_normal((CENTERS, DIM), np.float32))

    def around(start: int, stop: int) -> np.ndarray:
        noise = random.standard_normal((stop - start, DIM), np.float32) * np.float32(NOISE / DIM**0.5)
        return unit_rows(centers[np.arange(start, stop) % CENTERS] + noise)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        write_rows(path, (count, DIM), (around(at, min(at + ROWS, count)) for at in range(0, count, ROWS)))
        rows, queries = np.load(path, mmap_mode="c").view(np.ndarray), around(0, QUERIES)
        if kind == EXACT:
            search, built = partial(exact_nearest, rows=rows, k=10, measure=COSINE), 0.0
        else:
            made: list[Approximate] = []
            built = seconds(lambda: made.append(Approximate.build(kind, rows, Path(folder) / "index.faiss")))
            made[0].tune(queries[::2])
            search = partial(made[0].nearest, k=10)
        took = median(seconds(partial(search, queries[row : row + 1])) for row in range(1, QUERIES, 2))
        return built / count, took, peak_memory()


def curves_table(curves: Sequence[Curve]) -> Table:
    """Return a row for each point of each curve."""
    body = []
    for curve in curves:
        for number, (size, cost) in enumerate(zip(curve.sizes, curve.seconds, strict=True)):
            memory = f"{curve.memory[number]:,.0f}" if curve.memory else ""
            how = "worked out" if number >= len(curve.sizes) - curve.worked_out else ""
            body.append([curve.work, f"{size:,}", f"{1e6 * cost:,.0f} a {curve.unit}", memory, how])
    return Table("", ["work", "size", "µs", "MB", ""], body, left=frozenset({0, 4}))


def draw_curves(curves: Sequence[Curve], path: Path) -> None:
    """Draw seconds and memory over size; what is worked out is dotted."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for color, curve in enumerate(curves):
        measured = len(curve.sizes) - curve.worked_out
        name = f"{curve.work}, a {curve.unit}"
        for axes, values in ((cost, curve.seconds), (memory, curve.memory)):
            axes.plot(curve.sizes[:measured], values[:measured], "o-", color=f"C{color}", label=name)
            axes.plot(curve.sizes[measured - 1 :], values[measured - 1 :], "o:", color=f"C{color}", mfc="white")
            axes.set(xscale="log", yscale="log", xlabel="captions, images or vectors")
    cost.set_title("seconds")
    memory.set_title("memory of the process, MB")
    cost.legend(fontsize="small")
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("training", "prep", "index")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--captions", type=int, default=CAPTIONS[-1], help="to train on, at most")
    parser.add_argument("--steps", type=int, default=10, help="that are timed at once")
    parser.add_argument("--pairs", type=int, default=5, help="of runs")
    parser.add_argument("--images", type=int, default=IMAGES[-1], help="to prepare, at most")
    parser.add_argument("--vectors", type=int, default=VECTORS[-2], help="to index, at most")
    parser.add_argument("--to", type=int, default=10_000_000, help="vectors that are worked out")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves")
    args = parser.parse_args()
    be_quiet()
    parted: dict[str, Callable[[], Iterator[Curve | Timing]]] = {
        "training": lambda: training_growth(args.captions, args.pairs, args.steps),
        "prep": lambda: prep_growth(args.images),
        "index": lambda: index_growth(args.vectors, args.to),
    }
    rows = [row for part in args.only for row in parted[part]()]
    curves = [row for row in rows if isinstance(row, Curve)]
    print(as_text(curves_table(curves)))
    if timings := [row for row in rows if isinstance(row, Timing)]:
        print(as_text(timings_table(timings)))
    if args.plot:
        draw_curves(curves, args.plot)


if __name__ == "__main__":
    run_script(main)

"""What is quick and what is not, in one table: against plain references, in pairs, on this machine.

    make bench
    make bench DATA=data/flickr8k
    python benchmarks/bench.py --only ranks start
    python benchmarks/bench.py --only one_hot --data data/flickr8k

Without --data, images are drawn, and what needs a prepared Flickr8k is left out; one_hot, which trains 81 runs, waits
to be named. Each work is written to --out when it is done, and curves beside it, a PNG. Of earlier works, what was
measured on this machine, with the same versions and at the same size, stays in the file and in the table.
"""

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import extraction
import order_scores
import ranks
import search_latency
import sentence_features
import start
import training_steps
from growth import Curve, curves_table, draw_curves, index_growth, prep_growth, training_growth
from timing import Goal, Timing, seconds, timings_table

from features.prepared import Prepared
from metrics.table import as_text
from reading import read_json
from retrieval.build import build_index
from retrieval.searcher import Searcher
from script import run_script
from training.run import Run
from utils import be_quiet, make_folder, write_json

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy", "h5py", "openvino", "faiss-cpu", "transformers")
Args = argparse.Namespace


def extract(args: Args) -> Iterator[Timing]:
    """Inception-V3 with random weights, which are as quick as others, and the default backbone."""
    images = Prepared(args.data).images_folder if args.data else None
    for backbone, weights in (("inception_v3", "random"), ("efficientnet_lite0", None)):
        yield from extraction.timings(
            images, args.sized(64, 2), backbone, weights, engine=args.engine, pairs=args.pairs
        )


def sentences(args: Args) -> list[Timing]:
    return sentence_features.timings(args.data, args.sized(1000, 10), engine=args.engine, pairs=args.pairs)


def train(args: Args) -> Iterator[Timing]:
    images, steps = args.sized(6000, 60), args.sized(12, 1)
    return training_steps.timings(("gru", "layer", "order"), images, steps, args.pairs)


def quality(args: Args) -> Iterator[Timing]:
    """What is trained to a rsum is trained three times at most."""
    for recipe in ("strong", "cca_joined"):
        goal, runs = 300 * min(1, args.scale), min(3, args.pairs)
        yield training_steps.quality(args.data, ["efficientnet_lite0"], recipe, goal, runs)


def rank(args: Args) -> Iterator[Timing]:
    for similarity, queries in (("cosine", 300), ("order", 60)):
        drawn = ranks.draw(similarity, args.sized(5000, 20))
        yield ranks.compare(similarity, *drawn, args.sized(queries, 5), args.pairs)


def starts(args: Args) -> Iterator[Timing]:
    return start.timings(images=args.sized(50, 2), pairs=args.pairs)


def latency(args: Args) -> Iterator[Timing]:
    """Sentences among the images of the prepared folder, by a model that ships."""
    with tempfile.TemporaryDirectory() as folder:
        build_index(Run.open(ROOT / "models/stems"), [args.data], Path(folder) / "index")
        yield from search_latency.timings(
            Searcher.open(Path(folder) / "index"), Prepared(args.data), args.sized(500, 5)
        )


def one_hot(args: Args) -> Iterator[Timing]:
    """One run of the table, from nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["make", "one-hot", f"DATA={args.data.resolve()}", f"RUNS={folder}"]
        took = seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL))
    yield Timing("make one-hot, 81 runs", [took], goal=Goal(1200, False, "seconds"))


WORKS: dict[str, Callable[[Args], Iterable[Timing | Curve]]] = {
    "extraction": extract,
    "sentences": sentences,
    "training": train,
    "quality": quality,
    "ranks": rank,
    "order_scores": lambda args: order_scores.timings(args.pairs),
    "start": starts,
    "latency": latency,
    "train_growth": lambda args: training_growth(args.sized(617_000, 6000), args.pairs),
    "prep_growth": lambda args: prep_growth(args.sized(16_000, 160)),
    "index_growth": lambda args: index_growth(args.sized(300_000, 1000)),
    "one_hot": one_hot,
}
NEED_DATA = {"sentences", "quality", "latency", "one_hot"}
ALONE = {"one_hot"}  # measured when it is named


def main() -> None:
    args = arguments()
    be_quiet()
    make_folder(args.out.parent, "out")
    report = earlier(args.out, about(args))
    for name in works_of(args):
        began = time.monotonic()
        report["works"][name] = [asdict(row) for row in WORKS[name](args)]
        write_json(args.out, report)
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    timings, curves = rows_of(report)
    print(" · ".join(f"{key} {value}" for key, value in report["about"].items()))
    print(f"\n{as_text(timings_table(timings))}")
    if curves:
        print(f"\n{as_text(curves_table(curves))}")
        draw_curves(curves, args.out.with_suffix(".png"))


def works_of(args: Args) -> list[str]:
    """Return the works that are asked for, and can be done."""
    names = args.only or [name for name in WORKS if name not in ALONE]
    left_out = [name for name in names if name in NEED_DATA and args.data is None]
    if left_out:
        print(f"left out without a prepared Flickr8k (--data): {', '.join(left_out)}", file=sys.stderr)
    return [name for name in names if name not in left_out]


def about(args: Args) -> dict[str, str]:
    """Return what figures depend on: the machine, versions, sizes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = {"GPU": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    machine = {"processor": processor(), "cores": str(os.cpu_count()), "threads": str(torch.get_num_threads()), **gpu}
    system = {"system": platform.platform(terse=True), "Python": platform.python_version()}
    return {**machine, **system, **found, "scale": f"{args.scale:g}"}


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def earlier(path: Path, about: dict[str, str]) -> dict[str, Any]:
    """Return the report at `path` if it is about the same; else an empty one."""
    report = read_json(path, "name another file with `out`") if path.exists() else None
    return report if report and report.get("about") == about else {"about": about, "works": {}}


def rows_of(report: dict[str, Any]) -> tuple[list[Timing], list[Curve]]:
    """Return what a report holds, in the order of WORKS."""
    rows = [row for name in WORKS for row in report["works"].get(name, [])]
    timings = [Timing(**{**row, "goal": row["goal"] and Goal(*row["goal"])}) for row in rows if "ratios" in row]
    return timings, [Curve(**row) for row in rows if "ratios" not in row]


def arguments() -> Args:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(WORKS), metavar="WORK", help=f"of {', '.join(WORKS)}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="a prepared Flickr8k, with efficientnet_lite0")
    parser.add_argument("--pairs", type=int, default=5, help="of runs")
    parser.add_argument("--scale", type=float, default=1.0, help="measure on so many times as much of everything")
    parser.add_argument("--engine", nargs="+", help="of frozen networks; default: those that are installed")
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), metavar="FILE.json")
    args = parser.parse_args()
    args.sized = lambda count, least: max(least, round(args.scale * count))
    return args


if __name__ == "__main__":
    run_script(main)

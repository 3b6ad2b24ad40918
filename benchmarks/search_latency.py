"""How long does one warm query take from end to end, the branch of the sentence or the image included?

    python benchmarks/search_latency.py images.index
    python benchmarks/search_latency.py images.index --queries 1000 --images 50

Queries are test captions of the dataset that the index's run was trained on, each timed by itself, the text branch
apart. Where there are fewer captions or images than asked for, all are taken.
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from features.prepared import Prepared
from retrieval.searcher import Searcher
from script import run_script

WARM = 20  # queries before those that count: others, where there are enough


def main() -> None:
    args = arguments()
    began = time.perf_counter()
    searcher = Searcher.open(args.index, args.run, exact=args.exact)
    opened = time.perf_counter() - began
    way = "exact" if searcher.exact or searcher.index.approximate is None else "approximate"
    print(f"{len(searcher.index):,} images, {searcher.index.meta.dim} dimensions, {searcher.similarity}, {way}")
    print(f"k = {args.k}, {torch.get_num_threads()} threads; opened with its run in {opened:.2f} s")
    rng = np.random.default_rng(args.seed)
    text, whole = sentence_times(searcher, Prepared(args.data or searcher.run.info.data), rng, args)
    report("sentence, text branch alone", text)
    report("sentence, end to end", whole)
    if args.images:
        report("image, end to end", image_times(searcher, rng, args))


def sentence_times(
    searcher: Searcher, data: Prepared, rng: np.random.Generator, args: argparse.Namespace
) -> tuple[list[float], list[float]]:
    """Seconds of each query in the text branch alone, and from the sentence to the ids."""
    captions = [caption for row in data.rows if row["split"] == "test" for caption in row["captions"]]
    captions = [captions[i] for i in rng.permutation(len(captions))[: args.queries + WARM]]
    for caption in captions[-WARM:]:
        searcher.search(caption, args.k)
    text, whole = [], []
    for caption in captions[: args.queries]:
        began = time.perf_counter()
        query = searcher.embed_sentence(caption)
        embedded = time.perf_counter()
        rows, _ = searcher.nearest_images(query, args.k)
        [searcher.index.ids[row] for row in rows[0].tolist()]
        whole.append(time.perf_counter() - began)
        text.append(embedded - began)
    return text, whole


def image_times(searcher: Searcher, rng: np.random.Generator, args: argparse.Namespace) -> list[float]:
    """Seconds of each image of the index, from its file to captions and similar images."""
    paths = map(searcher.index.path, rng.permutation(len(searcher.index)).tolist())
    files = list(islice((path for path in paths if path is not None), args.images))
    times = []
    for path in [*files[:1], *files]:  # the first opens the backbone, which does not count
        began = time.perf_counter()
        query = searcher.embed_image(path)
        searcher.captions_of(query, args.k)
        searcher.similar_of(query, args.k)
        times.append(time.perf_counter() - began)
    return times[1:]


def report(name: str, times: list[float]) -> None:
    middle, late = np.percentile(times or [np.nan], [50, 95]) * 1e3
    print(f"{name}, {len(times):,} queries: median {middle:.1f} ms, 95th percentile {late:.1f} ms")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("--run", type=Path, metavar="RUN", help="the index's run, if it has moved")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared folder of the queries")
    parser.add_argument("--queries", type=int, default=500, metavar="N")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="ask with so many images of the index, too")
    parser.add_argument("-k", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--exact", action="store_true", help="search all, where the index is made approximate")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)

"""How long does one warm query take from end to end, the branch of the sentence or the image included?

    python benchmarks/search_latency.py images.index
    python benchmarks/search_latency.py images.index --queries 1000 --images 50

Queries are test captions of the dataset that the index's run was trained on, each timed by itself, the text branch
apart. Where there are fewer captions or images than asked for, all are taken.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Timing, timings_table

from features.prepared import Prepared
from metrics.table import as_text
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
    data = Prepared(args.data or searcher.run.info.data)
    rows = timings(searcher, data, args.queries, images=args.images, k=args.k, seed=args.seed)
    print(as_text(timings_table(list(rows))))


def timings(
    searcher: Searcher, data: Prepared, queries: int = 500, *, images: int = 0, k: int = 20, seed: int = 0
) -> Iterator[Timing]:
    """Yield what each of many sentences takes, and each of some images of the index."""
    rng = np.random.default_rng(seed)
    captions = [caption for row in data.rows if row["split"] == "test" for caption in row["captions"]]
    captions = [captions[i] for i in rng.permutation(len(captions))[: queries + WARM]]
    for caption in captions[-WARM:]:
        searcher.search(caption, k)
    text, whole = sentence_times(searcher, captions[:queries], k)
    yield timing_of("a sentence, text branch alone", text)
    yield timing_of(f"a sentence among {len(searcher.index):,} images", whole)
    if images:
        yield timing_of(f"an image among {len(searcher.index):,} images", image_times(searcher, rng, images, k))


def timing_of(work: str, seconds: Sequence[float]) -> Timing:
    return Timing(work, seconds, note=f"95th percentile {np.percentile(seconds, 95):.2g} s")


def sentence_times(searcher: Searcher, captions: Sequence[str], k: int) -> tuple[list[float], list[float]]:
    """Seconds of each query in the text branch alone, and from the sentence to the ids."""
    text, whole = [], []
    for caption in captions:
        began = time.perf_counter()
        query = searcher.embed_sentence(caption)
        embedded = time.perf_counter()
        rows, _ = searcher.nearest_images(query, k)
        [searcher.index.ids[row] for row in rows[0].tolist()]
        whole.append(time.perf_counter() - began)
        text.append(embedded - began)
    return text, whole


def image_times(searcher: Searcher, rng: np.random.Generator, images: int, k: int) -> list[float]:
    """Seconds of images of the index, from their files to captions and similar images."""
    paths = map(searcher.index.path, rng.permutation(len(searcher.index)).tolist())
    files = list(islice((path for path in paths if path is not None), images))
    times = []
    for path in [*files[:1], *files]:  # the first opens the backbone, which does not count
        began = time.perf_counter()
        query = searcher.embed_image(path)
        searcher.captions_of(query, k)
        searcher.similar_of(query, k)
        times.append(time.perf_counter() - began)
    return times[1:]


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

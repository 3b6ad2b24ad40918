"""How quick are ranks, both ways, against sorting the scores of every query as the published codes do?

    python benchmarks/ranks.py
    python benchmarks/ranks.py --images 1000 --similarity order
    python benchmarks/ranks.py --images 1000 --leading

Embeddings are drawn so that ranks are those of a model that has learned: a caption is its image and noise. Every figure
is a ratio of times taken in turn in the same run. The reference ranks some queries of each direction, whose ranks are
compared, and its time is that of all: an hour for order scores of 5,000 x 25,000.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Goal, Timing, in_pairs, memory_of, seconds, timings_table

from features.device import default_device
from metrics.ranks import Ranks, ranks_by_block
from metrics.similarity import RANKING
from metrics.table import Table, as_text

GOALS = {"cosine": Goal(50), "order": Goal(60)}
LEADING_CAPTIONS = 200  # whose pairs are looked at
REFERENCE_BLOCK, REFERENCE_NUMBERS = 100, 2**28  # queries, and numbers, that the reference forms at a time for order


def reference_ranks(
    similarity: str, queries: np.ndarray, items: np.ndarray, true: Sequence[np.ndarray], by_image: bool
) -> np.ndarray:
    """Sort the scores of each query and look its first true item up; of order, from 100 queries at most at a time."""
    ranks = np.empty(len(queries), np.int64)
    for query, scores in enumerate(rows_of_scores(similarity, queries, items, by_image)):
        order = np.argsort(scores)[::-1]
        ranks[query] = 1 + min(np.where(order == item)[0][0] for item in true[query])
    return ranks


def rows_of_scores(similarity: str, queries: np.ndarray, items: np.ndarray, by_image: bool) -> Iterator[np.ndarray]:
    """Yield the scores of each query."""
    if similarity == "cosine":
        for query in queries:
            yield items @ query
        return
    every = torch.from_numpy(items)
    height = max(1, min(REFERENCE_BLOCK, REFERENCE_NUMBERS // items.size))
    for start in range(0, len(queries), height):
        block = torch.from_numpy(queries[start : start + height])
        lacking = every[None] - block[:, None] if by_image else block[:, None] - every[None]
        yield from (-lacking.clamp(min=0).pow(2).sum(2)).numpy()


def draw(
    similarity: str, count: int, captions_per_image: int = 5, dim: int = 1024
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit rows of images and captions, non-negative for order, and the image of each caption."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(count, dim)).astype(np.float32)
    image_of_caption = np.repeat(np.arange(count), captions_per_image)
    captions = rows[image_of_caption] + 2 * random.normal(size=(len(image_of_caption), dim)).astype(np.float32)
    both = [np.abs(part) if similarity == "order" else part for part in (rows, captions)]
    rows, captions = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in both)
    return rows, captions, image_of_caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--similarity", nargs="+", choices=list(RANKING), default=list(RANKING))
    parser.add_argument("--queries", type=int, default=200, help="of each direction that the reference ranks, at most")
    parser.add_argument("--pairs", type=int, default=5, help="of runs")
    how = "only say how many pairs are open for order when the leading dimensions have been added up"
    parser.add_argument("--leading", action="store_true", help=how)
    args = parser.parse_args()
    size = args.images, args.captions_per_image, args.dim
    if args.leading:
        print(as_text(leading(*draw("order", *size))))
        return
    print(as_text(timings_table([compare(s, *draw(s, *size), args.queries, args.pairs) for s in args.similarity])))


def compare(
    similarity: str, images: np.ndarray, captions: np.ndarray, image_of_caption: np.ndarray, queries: int, pairs: int
) -> Timing:
    """Time the ranks of all queries against the reference's, and compare those of some queries."""
    random = np.random.default_rng(0)
    rows, columns = (random.permutation(len(embeddings))[:queries] for embeddings in (images, captions))
    captions_of = [np.flatnonzero(image_of_caption == image) for image in rows]
    images_of = list(image_of_caption[columns][:, None])
    device = default_device()
    of_all = torch.from_numpy(images).to(device), torch.from_numpy(captions).to(device)

    def ours() -> Ranks:
        return ranks_by_block(RANKING[similarity], *of_all, image_of_caption)

    def of_images() -> np.ndarray:
        return reference_ranks(similarity, images[rows], captions, captions_of, by_image=True)

    def of_captions() -> np.ndarray:
        return reference_ranks(similarity, captions[columns], images, images_of, by_image=False)

    def reference_seconds() -> float:
        """Return what all queries would take: each of a direction takes as long as another."""
        ways = seconds(of_images) / len(rows) * len(images), seconds(of_captions) / len(columns) * len(captions)
        return sum(ways)

    mine = ours()
    memory = memory_of(ours)
    differ = (mine.image_to_text[rows] != of_images()).sum() + (mine.text_to_image[columns] != of_captions()).sum()
    note = f"{differ} of {len(rows) + len(columns)} ranks differ"
    if similarity == "cosine":
        note += f", the product alone {min(seconds(lambda: of_all[0] @ of_all[1].T) for _ in range(3)):.2f} s"
    work = f"ranks, {similarity}, {len(images):,} x {len(captions):,}"
    times, goal = in_pairs(lambda: seconds(ours), reference_seconds, pairs), GOALS[similarity]
    return Timing(work, *times, note, "each query's scores sorted", memory, goal)


def leading(images: np.ndarray, captions: np.ndarray, image_of_caption: np.ndarray) -> Table:
    """Return the share of pairs that the sum over leading dimensions leaves open: it is not yet the true pair's.

    Dimensions come by how much they violate on average, those that violate most first.
    """
    queries = captions[:LEADING_CAPTIONS]
    order = np.argsort(-np.square((queries - images.mean(axis=0)).clip(min=0)).mean(axis=0))
    images, queries = images[:, order], queries[:, order]
    true = np.square((queries - images[image_of_caption[: len(queries)]]).clip(min=0)).sum(axis=1)
    body, dim = [], images.shape[1]
    for share in (1 / 8, 1 / 4, 1 / 2):
        kept = slice(0, round(share * dim))
        sums = [np.square((query[kept] - images[:, kept]).clip(min=0)).sum(axis=1) for query in queries]
        opened = np.mean([(row < limit).mean() for row, limit in zip(sums, true, strict=True)])
        body.append([f"{kept.stop:,} of {dim:,}", f"{100 * opened:.1f} %"])
    return Table("", ["leading dimensions", "pairs open"], body)


if __name__ == "__main__":
    main()

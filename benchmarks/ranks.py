"""How quick are ranks, both ways, against sorting the scores of every query as the published codes do?

    python benchmarks/ranks.py
    python benchmarks/ranks.py --images 5000 --captions-per-image 5 --similarity order --pairs 5

Embeddings are drawn so that ranks are those of a model that has learned: a caption is its image and noise. Every figure
is a ratio of times taken in turn in the same run. The ranks of both ways are compared, query by query.
"""

import argparse
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import ratio

from metrics.ranks import Ranks, ranks_by_block
from metrics.similarity import RANKING

REFERENCE_BLOCK = 100  # queries whose order scores the reference forms at a time, with all dimensions


def reference_ranks(similarity: str, images: np.ndarray, captions: np.ndarray, image_of_caption: np.ndarray) -> Ranks:
    """Sort the scores of each query and look the first true item up; order scores from blocks of 100 queries."""
    captions_of = [np.flatnonzero(image_of_caption == image) for image in range(len(images))]
    image_to_text = np.empty(len(images), np.int64)
    for image, scores in enumerate(rows_of_scores(similarity, images, captions, by_image=True)):
        order = np.argsort(scores)[::-1]
        image_to_text[image] = 1 + min(np.where(order == caption)[0][0] for caption in captions_of[image])
    text_to_image = np.empty(len(captions), np.int64)
    for caption, scores in enumerate(rows_of_scores(similarity, captions, images, by_image=False)):
        text_to_image[caption] = 1 + np.where(np.argsort(scores)[::-1] == image_of_caption[caption])[0][0]
    return Ranks(image_to_text, text_to_image)


def rows_of_scores(similarity: str, queries: np.ndarray, items: np.ndarray, by_image: bool) -> Iterator[np.ndarray]:
    """Yield the scores of each query."""
    if similarity == "cosine":
        for query in queries:
            yield items @ query
        return
    every = torch.from_numpy(items)
    for start in range(0, len(queries), REFERENCE_BLOCK):
        block = torch.from_numpy(queries[start : start + REFERENCE_BLOCK])
        lacking = every[None] - block[:, None] if by_image else block[:, None] - every[None]
        yield from (-lacking.clamp(min=0).pow(2).sum(2)).numpy()


def draw(images: int, captions_per_image: int, dim: int, similarity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit rows of images and captions, non-negative for order, and the image of each caption."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(images, dim)).astype(np.float32)
    image_of_caption = np.repeat(np.arange(images), captions_per_image)
    captions = rows[image_of_caption] + 2 * random.normal(size=(len(image_of_caption), dim)).astype(np.float32)
    both = [np.abs(part) if similarity == "order" else part for part in (rows, captions)]
    rows, captions = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in both)
    return rows, captions, image_of_caption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions-per-image", type=int, default=5)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--similarity", nargs="+", choices=list(RANKING), default=list(RANKING))
    parser.add_argument("--pairs", type=int, default=5, help="of runs; 0: only compare the ranks of ours with one")
    args = parser.parse_args()
    for similarity in args.similarity:
        compare(similarity, *draw(args.images, args.captions_per_image, args.dim, similarity), args.pairs)


def compare(
    similarity: str, images: np.ndarray, captions: np.ndarray, image_of_caption: np.ndarray, pairs: int
) -> None:
    """Print how many ranks differ, and how much quicker ours are, of `pairs` paired runs."""

    def ours() -> Ranks:
        embeddings = torch.from_numpy(images), torch.from_numpy(captions)
        return ranks_by_block(RANKING[similarity], *embeddings, image_of_caption)

    def reference() -> Ranks:
        return reference_ranks(similarity, images, captions, image_of_caption)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mine = ours()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    theirs = reference()
    ways = [(mine.image_to_text, theirs.image_to_text), (mine.text_to_image, theirs.text_to_image)]
    differ = sum(int((a != b).sum()) for a, b in ways)
    print(f"{similarity}, {len(images):,} x {len(captions):,}: {differ} ranks differ, {more:.0f} MB more", flush=True)
    if pairs:
        seconds, times = ratio(ours, reference, pairs)
        print(f"ours {seconds:.2f} s, reference / ours {times:.1f}", flush=True)


if __name__ == "__main__":
    main()

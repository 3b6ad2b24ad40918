"""How many test images have all but a duplicate in the training split? Nearest training image of each, by its features.

    python benchmarks/near_duplicates.py data/flickr8k --features efficientnet_lite0 --sheet pairs.png

Cosines are of features less their mean over the training split: what all images share tells nothing. The sheet shows
the nearest pairs, for how large a cosine means the same scene is for eyes to say. Identical captions are counted, too.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from features.images.decode import jpeg_bytes, thumbnail
from features.prepared import Prepared, Split
from metrics.table import Table, as_markdown
from retrieval.contact_sheet import TILE_PIXELS, Tile, write_sheet
from retrieval.nearest import COSINE, exact_nearest
from script import run_script
from training.moments import unit_rows

COSINES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
PAIRS = 30  # on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--features", metavar="NAME", help="default: the newest")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png")
    args = parser.parse_args()
    prepared = Prepared(args.data)
    features = [args.features] if args.features else prepared.stores()[:1]
    train, test = (prepared.split(name, features) for name in ("train", "test"))
    cosines, rows = nearest(train.features[:], test.features[:])
    print(as_markdown(counts(cosines)))
    known = set(train.captions)
    same = sum(caption in known for caption in test.captions)
    print(f"\n{same:,} of {len(test.captions):,} test captions are captions of a training image, to the letter")
    if args.sheet:
        write_pairs(args.sheet, prepared, (train, test), cosines, rows)


def nearest(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest cosine (N,) of each of test (N, D) with rows of train (M, D), and that row (N,)."""
    mean = train.mean(axis=0)
    test, train = (unit_rows(rows - mean).astype(np.float32) for rows in (test, train))
    rows, cosines = exact_nearest(test, train, 1, COSINE)
    return cosines[:, 0], rows[:, 0]


def counts(cosines: np.ndarray) -> Table:
    """Return how many test images have a training image as near as this."""
    body = [[f"{c:.2f}", f"{(cosines >= c).sum():,}", f"{100 * (cosines >= c).mean():.1f}"] for c in COSINES]
    return Table("", ["cosine at least", "test images", "%"], body)


def write_pairs(
    path: Path, prepared: Prepared, splits: tuple[Split, Split], cosines: np.ndarray, rows: np.ndarray
) -> None:
    """Write a sheet of the nearest pairs, the test image first, framed."""
    paths = {row["image"]: prepared.path_of(row) for row in prepared.rows}
    train, test = splits
    tiles = []
    for pair, number in enumerate(np.argsort(-cosines)[:PAIRS].tolist(), 1):
        for image, true in ((test.images[number], True), (train.images[rows[number]], False)):
            small = thumbnail(paths[image], TILE_PIXELS)
            jpeg = None if small is None else jpeg_bytes(small, TILE_PIXELS)
            tiles.append(Tile(f"pair {pair} · {cosines[number]:.3f}", jpeg, true))
    write_sheet(path, "Test images (framed), each before its nearest training image", tiles)


if __name__ == "__main__":
    run_script(main)

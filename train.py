"""Train runs: every recipe with every seed and every combination of `--set` values, on one reading of the data.

    python train.py                                           the default recipe on the newest prepared folder
    python train.py vse0 vsepp --seeds 0 1 2                  six runs
    python train.py strong --set loss.margin=0.1,0.2          a swept setting
    python train.py order_embedding --data data/flickr8k --features efficientnet_lite0 inception_v3

Repeating a command continues what was stopped and leaves alone what is finished; --fresh starts over.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from features.prepared import Prepared, Split, newest_prepared
from features.vocabulary import Encoder, Sentences
from runs import RESULT, Facts
from settings import Settings, known_recipes, override, parse_changes, read_recipe
from training import check_same, train
from utils import BadInput, make_folder, script

DEFAULT_RECIPE = "strong"


@dataclass(frozen=True)
class Job:
    folder: Path
    settings: Settings
    facts: Facts


def main() -> None:
    args = arguments()
    for seed in args.seeds:
        if not 0 <= seed < 2**32:
            raise BadInput(f"--seeds {seed}: a seed is a whole number from 0 to {2**32 - 1}")
    recipes = {name: read_recipe(name) for name in args.recipe}  # before anything slow: a typo is told at once
    changes = parse_changes(args.set)
    variants = [(name, override(recipe, change)) for name, recipe in recipes.items() for change in changes]
    data = Prepared(args.data or newest_prepared(Path("data")))
    make_folder(args.runs, "--runs")
    captions = data.digest()
    jobs = [
        job_for(data, captions, name, s, args.features, seed, args.runs) for name, s in variants for seed in args.seeds
    ]
    jobs = list({job.folder: job for job in jobs}.values())  # two ways of saying the same settings are one run
    inputs = Inputs(data)
    for number, job in enumerate(jobs, 1):
        done = (job.folder / RESULT).is_file() and not args.fresh
        say(f"run {number} of {len(jobs)}: {job.folder.name}{' is finished' if done else ''}")
        if done:
            check_same(job.folder, job.settings, job.facts)
            continue
        splits, sentences = inputs.of(job)
        train(job.folder, job.settings, job.facts, data.vocabulary, splits, sentences, args.fresh)
    say(f"now: python eval.py {' '.join(str(job.folder) for job in jobs)}")


def job_for(
    data: Prepared, captions: str, recipe: str, settings: Settings, features: list[str], seed: int, root: Path
) -> Job:
    """A run to be trained. Without --features: what the recipe names, or else the newest features there are."""
    names = list(dict.fromkeys(features or settings.features or data.stores()[:1]))
    if not names:
        raise BadInput(f"{data.folder}: has no features; prepare them with: python prep.py {data.name} --backbone NAME")
    stores = [data.store(name) for name in names]
    for store in stores:
        if len(store.shape) != 1:
            raise BadInput(f"{store.path}: holds spatial maps, and no recipe here takes them; choose other --features")
    facts = Facts(
        recipe=Path(recipe).stem,
        dataset=data.name,
        data=str(data.folder.resolve()),
        features=tuple(names),
        digests=tuple(str(store.attributes["digest"]) for store in stores),
        sizes=tuple(store.shape[0] for store in stores),
        seed=seed,
        captions=captions,
    )
    return Job(root / facts.run_name(settings), settings, facts)


class Inputs:
    """Features and encoded captions, read once for all the runs that want the same."""

    def __init__(self, data: Prepared):
        self.data = data
        self.splits: dict[tuple, dict[str, Split]] = {}
        self.sentences: dict[tuple, dict[str, Sentences]] = {}

    def of(self, job: Job) -> tuple[dict[str, Split], dict[str, Sentences]]:
        features, normalise = job.facts.features, job.settings.image.normalise
        if (features, normalise) not in self.splits:
            self.splits = {
                (features, normalise): {s: self.data.split(s, features, normalise) for s in ("train", "val")}
            }
        splits = self.splits[features, normalise]
        text = job.settings.text
        if (text.stem, text.min_count) not in self.sentences:
            encoder = Encoder(self.data.vocabulary, text.stem, text.min_count)
            encoded = {name: Sentences.encode(split.captions, encoder, True) for name, split in splits.items()}
            self.sentences[text.stem, text.min_count] = encoded
        return splits, self.sentences[text.stem, text.min_count]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipe",
        nargs="*",
        default=[DEFAULT_RECIPE],
        metavar="RECIPE",
        help=f"{', '.join(known_recipes())}, or a .toml file; default: {DEFAULT_RECIPE}",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="a prepared folder; default: the newest under data/")
    parser.add_argument(
        "--features", nargs="+", default=[], metavar="NAME", help="one or several, joined; default: the newest"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override settings, see settings.py"
    )
    parser.add_argument("--fresh", action="store_true", help="train again, even what is finished")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)

"""Train runs: every recipe with every seed and every combination of `--set` values, on one reading of the data.

    python train.py                                           the default recipe on the newest prepared folder
    python train.py vse0 vsepp --seeds 0 1 2                  six runs
    python train.py strong --set loss.margin=0.1,0.2          a swept setting
    python train.py strong --seeds 0 1 2 --jobs 3             three runs side by side
    python train.py order_embedding --data data/flickr8k --features efficientnet_lite0 inception_v3

    python train.py --probe                                   which features and text encoder lie most alike, in seconds

Repeating a command continues what was stopped and leaves alone what is finished; --fresh starts over.
"""

import argparse
from pathlib import Path

from settings import all_keys, known_recipes
from utils import log, run_script

DEFAULT_RECIPE = "strong"


def main() -> None:
    args = arguments()
    if args.probe:
        from metrics.table import as_text
        from training.probe import probe

        print(as_text(probe(args.data, args.features)))
        return
    from training.sweep import train_recipes  # torch is slow to import: after the arguments are read

    folders = train_recipes(
        args.recipe,
        data=args.data,
        features=args.features,
        runs=args.runs,
        seeds=args.seeds,
        changes=args.set,
        jobs=args.jobs,
        fresh=args.fresh,
    )
    trained = " ".join(map(str, folders)) if len(folders) <= 3 else f"'{args.runs}/*'"
    log(f"now: python eval.py {trained}")


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
        "--features",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME",
        help="one or several, joined; given again: others, for runs of their own; default: the newest",
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override settings, see settings.py"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side, in processes of their own; default: 1"
    )
    parser.add_argument("--fresh", action="store_true", help="train again, even what is finished")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="train nothing: rank pairs of features and text sides of the prepared folder",
    )
    args, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint(unknown[0])}")
    return args


def hint(flag: str) -> str:
    """Return how a flag is written that is a setting (`--epochs`, `--lr=1e-3`); nothing if it is none."""
    name, _, value = flag.lstrip("-").partition("=")
    keys = [key for key in all_keys() if name.replace("-", "_") in (key, key.rpartition(".")[2])]
    return f"; that is a setting: --set {' or '.join(f'{key}={value}' for key in keys)}" if keys else ""


if __name__ == "__main__":
    run_script(main)

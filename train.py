# PYTHON_ARGCOMPLETE_OK
"""Train runs: every recipe with every seed and every combination of `--set` values, on one reading of the data.

    python train.py                                           the default recipe on the newest prepared folder
    python train.py vse0 vsepp --seeds 0 1 2                  six runs
    python train.py strong --set loss.margin=0.1,0.2          a swept setting
    python train.py strong --seeds 0 1 2 --jobs 3             three runs side by side
    torchrun --nproc-per-node 4 train.py strong               four processes share each batch, see docs/SCALE.md
    python train.py order_embedding --data data/flickr8k --features efficientnet_lite0 inception_v3

    python train.py --from RUN --data data/other              fine-tuning: a run's weights and words, other data
    python train.py --probe                                   which features and text encoder lie most alike, in seconds

Repeating a command continues what was stopped and leaves alone what is finished; --fresh starts over.
"""

import argparse
from pathlib import Path
from shutil import get_terminal_size

from script import complete, folders_with, one_sentence, run_script
from settings import all_keys, assignments, known_recipes
from utils import be_quiet, log

DEFAULT_RECIPE = "strong"


def main() -> None:
    args = arguments()
    if args.quiet:
        be_quiet()
    if args.list:
        from metrics.table import as_text
        from training.recipes import recipe_table

        print(as_text(recipe_table(get_terminal_size().columns)))
        return
    if args.probe:
        from metrics.table import as_text
        from training.probe import probe

        print(as_text(probe(args.data, args.features)))
        return
    from training.sweep import results_of, train_recipes  # torch is slow to import: after the arguments are read

    folders = train_recipes(
        args.recipe or ([] if args.from_run else [DEFAULT_RECIPE]),
        data=args.data,
        features=args.features,
        from_run=args.from_run,
        runs=args.runs,
        seeds=args.seeds,
        changes=args.set,
        jobs=args.jobs,
        threads=args.threads,
        tensorboard=args.tensorboard,
        fresh=args.fresh,
    )
    print("\n".join(results_of(folders)))
    trained = " ".join(map(str, folders)) if len(folders) <= 3 else f"'{args.runs}/*'"
    log(f"now: python eval.py {trained}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipe",
        nargs="*",
        metavar="RECIPE",
        help=f"{', '.join(known_recipes())}, or a .toml file; default: {DEFAULT_RECIPE}, or that of --from",
    )
    parser.add_argument(
        "--list", action="store_true", help="train nothing: say which recipes there are, as wide as the terminal"
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
    start = "begin with the weights and words of a run, and by default with its settings and features"
    parser.add_argument("--from", dest="from_run", metavar="RUN", help=start)
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where run folders go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument(
        "--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="override settings, see settings.py"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="runs side by side, in processes of their own; default: 1"
    )
    threads = "of the processor, a run; default: all cores, or as many as it was begun with"
    parser.add_argument("--threads", type=int, metavar="N", help=threads)
    parser.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write the logs of the runs there, too, for TensorBoard"
    )
    parser.add_argument("--fresh", action="store_true", help="train again, even what is finished")
    parser.add_argument(
        "--probe",
        action="store_true",
        help="train nothing: rank pairs of features and text sides of the prepared folder",
    )
    parser.add_argument("--quiet", action="store_true", help="say only warnings, errors and the result")
    complete(
        parser,
        recipe=lambda args: known_recipes(),
        set=lambda args: assignments(),
        features=lambda args: stores_in(args.data),
        from_run=lambda args: folders_with("recipe.toml", args.runs),
    )
    args, unknown = one_sentence(parser).parse_known_args()
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint(unknown[0])}")
    return args


def stores_in(folder: Path | None) -> list[str]:
    """Return the names of the features of a prepared folder, or of all under data/."""
    files = folder.glob("*.h5") if folder else Path("data").glob("*/*.h5")
    return sorted({path.stem for path in files if not path.stem.endswith(".text")})


def hint(flag: str) -> str:
    """Return how a flag is written that is a setting (`--epochs`, `--lr=1e-3`); nothing if it is none."""
    name, _, value = flag.lstrip("-").partition("=")
    keys = [key for key in all_keys() if name.replace("-", "_") in (key, key.rpartition(".")[2])]
    return f"; that is a setting: --set {' or '.join(f'{key}={value}' for key in keys)}" if keys else ""


if __name__ == "__main__":
    run_script(main)

"""Train runs: every recipe with every seed and every combination of `--set` values, on one reading of the data.

    python train.py                                           the default recipe on the newest prepared folder
    python train.py vse0 vsepp --seeds 0 1 2                  six runs
    python train.py strong --set loss.margin=0.1,0.2          a swept setting
    python train.py strong --seeds 0 1 2 --jobs 3             three runs side by side
    python train.py order_embedding --data data/flickr8k --features efficientnet_lite0 inception_v3

Repeating a command continues what was stopped and leaves alone what is finished; --fresh starts over.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from features.images.store import FeatureStore
from features.prepared import Prepared, newest_prepared
from features.text.sentences import sentence_encoder
from model import heads_for
from settings import Settings, TextSettings, known_recipes, override, parse_changes, read_recipe
from training.run import RunInfo
from training.sweep import Job, sweep, unique
from utils import BadInput, make_folder, run_script

DEFAULT_RECIPE = "strong"


def main() -> None:
    args = arguments()
    for seed in args.seeds:
        if not 0 <= seed < 2**32:
            raise BadInput(f"--seeds {seed}: a seed is a whole number from 0 to {2**32 - 1}")
    if args.jobs < 1:
        raise BadInput(f"--jobs {args.jobs}: one run at a time at least")
    if args.jobs > 1:
        torch.set_num_threads(1)  # threads of torch do not survive the fork of a process
    recipes = {name: read_recipe(name) for name in args.recipe}  # before anything slow: a typo is told at once
    changes = parse_changes(args.set)
    variants = [(name, override(recipe, change)) for name, recipe in recipes.items() for change in changes]
    data = Prepared(args.data or newest_prepared(Path("data")))
    make_folder(args.runs, "--runs")
    captions = data.digest()
    jobs = unique(
        job_for(data, captions, name, settings, features, seed, args.runs)
        for features in args.features or [[]]
        for name, settings in variants
        for seed in args.seeds
    )
    sweep(jobs, data, args.fresh, args.jobs)
    trained = [str(job.folder) for job in jobs] if len(jobs) <= 3 else [f"'{args.runs}/*'"]
    log(f"now: python eval.py {' '.join(trained)}")


def job_for(
    data: Prepared, captions: str, recipe: str, settings: Settings, features: list[str], seed: int, root: Path
) -> Job:
    """A run to be trained. Without --features: what the recipe names, or else the newest features there are."""
    names = list(dict.fromkeys(features or settings.features or data.stores()[:1]))
    if not names:
        raise BadInput(f"{data.folder}: has no features; prepare them with: python prep.py {data.name} --backbone NAME")
    stores = [data.store(name) for name in names]
    for store in stores:
        check_shape(store, settings)
    encoder = encoder_info(data, settings.text)
    info = RunInfo(
        recipe=Path(recipe).stem,
        dataset=data.name,
        data=str(data.folder.resolve()),
        features=tuple(names),
        digests=tuple(str(store.attributes["digest"]) for store in stores),
        sizes=tuple(store.shape[-1] for store in stores),
        seed=seed,
        captions=captions,
        backbones=tuple({**store.attributes, "dtype": store.dtype} for store in stores),
        grid=stores[0].shape[:-1],
        **encoder,
    )
    return Job(root / info.run_name(settings), settings, info)


def check_shape(store: FeatureStore, settings: Settings) -> None:
    """Raises BadInput unless the image branch takes such features."""
    maps = len(store.shape) == 3
    if settings.image.branch != "attention" and maps:
        raise BadInput(
            f"{store.path}: holds spatial maps; take them with --set image.branch=attention, or choose other --features"
        )
    if settings.image.branch == "attention":
        if not maps:
            raise BadInput(
                f"{store.path}: holds no spatial maps, which image.branch = 'attention' pools; name those of "
                f"prep.py --map with --features, such as {store.path.stem}.map"
            )
        heads_for(store.shape[-1], settings.image.num_heads)


def encoder_info(data: Prepared, text: TextSettings) -> dict[str, Any]:
    """What a run notes of the transformer in its text branch. Raises BadInput if it, or its features, are not there."""
    if not text.encoder:
        return {}
    if text.finetune:
        encoder = sentence_encoder(text.encoder)
        return {"encoder_digest": encoder.digest, "encoder_size": encoder.size}
    store = data.text_store(text.encoder)
    return {"encoder_digest": str(store.attributes["digest"]), "encoder_size": store.size}


def log(line: str) -> None:
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
        "--features",
        nargs="+",
        action="append",
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
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)

"""Report retrieval metrics of runs: recall@K, median and mean rank, image to text and text to image.

python eval.py                                       the newest run on its test split
python eval.py RUN RUN --split val                   several runs in one table; RUN may be a pattern: 'runs/*'
python eval.py RUN --folds 5 --format latex          averaged over five folds, ready to paste
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from features.prepared import Prepared, Split
from retrieval.metrics import rsum
from retrieval.protocols import metrics_of_folds, protocol_name, protocols_for, ranks_of_folds
from retrieval.similarity import RANKING
from retrieval.tables import FORMATS
from runs import Run, find_runs, newest_run
from utils import BadInput, script


def main() -> None:
    args = arguments()
    folders = list(find_runs(args.run, args.runs)) if args.run else [newest_run(args.runs)]
    prepared: dict[Path, Prepared] = {}
    rows: list[dict[str, Any]] = []
    for folder in folders:
        run = Run.open(folder)
        data = args.data or Path(run.facts.data)
        if data not in prepared:
            prepared[data] = Prepared(data)
        rows += rows_of(run, split_for(run, prepared[data], args.split), args.folds)
    print(FORMATS[args.format](rows))


def split_for(run: Run, data: Prepared, split: str) -> Split:
    """A split with the very features the run was trained on. Raises BadInput if they differ."""
    if data.name != run.facts.dataset:
        raise BadInput(
            f"{data.folder}: holds {data.name}, but {run.folder} was trained on {run.facts.dataset}; mend --data"
        )
    for name, digest, size in zip(run.facts.features, run.facts.digests, run.facts.sizes, strict=True):
        store = data.store(name)
        if store.attributes.get("digest") != digest or store.shape != (size,):
            raise BadInput(
                f"{store.path}: not the features that {run.folder} was trained on (other weights or size); "
                f"name the right folder with --data, or train again"
            )
    return data.split(split, run.facts.features, run.settings.image.normalise)


def rows_of(run: Run, split: Split, folds: int | None) -> list[dict[str, Any]]:
    """A row per protocol."""
    images = torch.from_numpy(run.embed_features(split.features))
    captions = torch.from_numpy(run.embed_sentences(split.captions))
    similarity, dataset = RANKING[run.settings.similarity], run.facts.dataset
    rows = []
    for protocol in protocols_for(dataset, split.name, len(images), folds):
        found = ranks_of_folds(similarity, images, captions, split.image_of_caption, protocol)
        metrics = metrics_of_folds(found)
        rows.append(
            {
                "run": run.folder.name,
                "dataset": dataset,
                "split": split.name,
                "protocol": protocol_name(protocol, dataset, split.name, len(images)),
                "images": len(images),
                "captions": sum(len(ranks.text_to_image) for ranks in found),
                **metrics,
                "rsum": rsum(metrics),
            }
        )
    return rows


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "run", nargs="*", metavar="RUN", help="run folders, their names, or patterns; default: the newest"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="ROOT", help="where runs are looked for")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the prepared folder, if it has moved since training")
    parser.add_argument("--split", choices=("train", "val", "test"), default="test")
    parser.add_argument("--folds", type=int, metavar="N", help="average over N equal, consecutive parts of the split")
    parser.add_argument("--format", choices=tuple(FORMATS), default="text")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)

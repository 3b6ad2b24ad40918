"""What prep.py remembers of its last call for a prepared folder, so that the next one need not be told again."""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from features.datasets.vsepp import is_vsepp
from features.prepared import DATASET, DRAWN

SPLIT_RATIO = [80, 10, 10]
LANGUAGE = "english"
# What dataset.json remembers, besides the folder of the photographs; the last four of precomputed features only.
REMEMBERED = {
    "captions": str,
    "splits": str,
    "split_ratio": list,
    "restval": bool,
    "language": str,
    "precomputed": str,
    "ids": str,
    "backbone": list,
    "crops": int,
}


def recorded(folder: Path, dataset: str) -> dict[str, Any]:
    """What dataset.json of `folder` says, if it is of this dataset; else nothing."""
    try:
        head = json.loads((folder / DATASET).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # damaged: prepared again, from what the flags say
        return {}
    return head if isinstance(head, dict) and head.get("dataset") == dataset else {}


def resolve_options(args: argparse.Namespace, folder: Path, precomputed_too: bool) -> str:
    """Fill in what was not given: from an earlier preparation of the same dataset, or else the defaults.

    Splits and precomputed features belong to their captions: other captions are read without them.
    `precomputed_too` says whether precomputed features are wanted at all. Returns the flags that were filled in.
    """
    words: list[str] = []
    head = recorded(folder, args.dataset)
    found: dict[str, Any] = head["source"] if isinstance(head.get("source"), dict) else {}
    source = {key: value for key, value in found.items() if isinstance(value, REMEMBERED.get(key, ()))}
    args.precomputed_before = {}
    if args.dataset != DRAWN and "captions" in source:
        given = {key for key, value in vars(args).items() if value is not None}
        other = args.captions is not None and str(args.captions.resolve()) != source["captions"]
        if args.captions is None:
            args.captions = Path(source["captions"])
        vsepp = brings_features(args)
        if args.images is None and not vsepp and isinstance(head.get("images"), str):
            args.images = Path(head["images"])
        if not other:
            args.precomputed_before = {
                key: source[key] for key in ("precomputed", "ids", "backbone", "crops") if key in source
            }
            if args.splits is None and "splits" in source:
                args.splits = Path(source["splits"])
            args.split_ratio = args.split_ratio or source.get("split_ratio")
            args.restval = source.get("restval") if args.restval is None else args.restval
            recall_ready(args, vsepp, precomputed_too and "images" not in given)
        flags = {
            name: getattr(args, name) for name in ("images", "captions", "splits", "precomputed") if name not in given
        }
        words = [word for name, value in flags.items() if value is not None for word in (f"--{name}", str(value))]
    args.language = args.language or source.get("language") or LANGUAGE
    args.split_ratio = args.split_ratio or SPLIT_RATIO
    args.restval = args.restval is not False
    return shlex.join(words)


def recall_ready(args: argparse.Namespace, vsepp: bool, wanted: bool) -> None:
    """Precomputed features under the name they had."""
    before = args.precomputed_before
    if args.precomputed is None and "precomputed" in before and wanted:
        args.precomputed = Path(before["precomputed"])
    same = vsepp or (args.precomputed is not None and str(args.precomputed.resolve()) == before.get("precomputed"))
    if same and args.ids is None and "ids" in before:
        args.ids = Path(before["ids"])
    if same and args.backbone is None and "backbone" in before:
        args.backbone, args.crops = before["backbone"], before.get("crops", 1)


def source_of(args: argparse.Namespace) -> dict[str, Any]:
    """What `recall` needs the next time."""
    if args.dataset == DRAWN:
        return {"language": args.language}
    paths = {"captions": args.captions, "splits": args.splits, "precomputed": args.precomputed, "ids": args.ids}
    source: dict[str, Any] = {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    source |= {"split_ratio": args.split_ratio, "restval": args.restval, "language": args.language}
    if args.precomputed is None and not brings_features(args):
        return {**args.precomputed_before, **source}
    return {**source, "crops": args.crops, **({"backbone": args.backbone} if args.backbone else {})}


def brings_features(args: argparse.Namespace) -> bool:
    """Whether the captions are a VSE++ folder, which brings features of its own."""
    return args.captions is not None and args.captions.is_dir() and is_vsepp(args.captions)

"""Prepare a dataset: frozen features of every image in HDF5, the captions, and the vocabulary of the training split.

    python prep.py                                            the sample that the project draws itself
    python prep.py flickr8k --images Flicker8k_Dataset --captions Flickr8k_text --backbone inception_v3
    python prep.py coco --images coco --captions dataset_coco.json --backbone vgg19 --crops 10
    python prep.py flickr30k --captions dataset_flickr30k.json --ready vgg_feats.mat

Writes data/DATASET/. Repeating a command continues it, for features too: what is done is not done again.
"""

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

from features.dataset import SPLITS, Dataset, check_on_disk
from features.prepared import VOCABULARY, same_rows, write_prepared
from features.readers import FILES, read
from features.ready import load_ready
from features.store import DTYPES, FeatureStore, store_name, write_store
from features.vocabulary import LANGUAGES, Vocabulary, make_stemmer
from features.vsepp import is_vsepp
from utils import BadInput, make_folder, nearest, script

DEFAULT_BACKBONE = "efficientnet_lite0"  # its weights come with the install: no network is needed
DATASETS = ("scenes", *FILES)


def main() -> None:
    args = arguments()
    check_arguments(args)
    folder = make_folder(args.data / (args.name or args.dataset), "--data")
    make_stemmer(args.language)
    backbones = load_backbones(args)  # before the dataset is read or drawn: a typo is told at once
    dataset, images = read_dataset(args, folder)
    for note in dataset.notes:
        say(note)
    say(f"{args.dataset}: " + ", ".join(f"{dataset.count(split):,} {split}" for split in SPLITS) + " images")

    if args.ready or not backbones:
        store_ready(args, dataset, folder)
    unreadable: dict[str, str] = {}
    for backbone in backbones:
        unreadable |= extract_features(args, dataset, backbone, folder)
    if unreadable:
        report_unreadable(unreadable, args.skip_unreadable)
        dataset = without(dataset, unreadable)
    write_captions(args, dataset, images, folder)
    stores = sorted(path.name for path in folder.glob("*.h5"))
    say(f"{folder}: {len(dataset.images):,} images, features: {', '.join(stores)}")
    say(f"now: python train.py --data {folder}")


def read_dataset(args: argparse.Namespace, folder: Path) -> tuple[Dataset, Path | None]:
    """The dataset, and the folder of its photographs (None where features come ready-made)."""
    if args.dataset == "scenes":
        from features.scenes import scenes

        return scenes(folder / "images"), folder / "images"
    dataset = read(args.dataset, args.captions, args.images, args.splits, args.restval, tuple(args.split_ratio))
    if args.images:
        check_on_disk(dataset.images, args.images)
    return dataset, args.images


def load_backbones(args: argparse.Namespace) -> list:
    """The backbones asked for; none where features come ready-made."""
    if args.ready or (args.dataset != "scenes" and args.captions.is_dir() and is_vsepp(args.captions)):
        return []
    from features.backbones import load

    names = args.backbone or [DEFAULT_BACKBONE]
    options = {"layer": args.layer, "weights": args.weights, "map": args.map, "crops": args.crops}
    return [load(name, **options) for name in dict.fromkeys(names)]


def extract_features(args: argparse.Namespace, dataset: Dataset, backbone, folder: Path) -> dict[str, str]:
    """Bring one store up to date; returns the images that cannot be read and why."""
    from features.extraction import extract

    dtype = args.dtype or ("float16" if args.map else "float32")
    failed = extract(
        dataset.images,
        backbone,
        folder / f"{backbone.store}.h5",
        batch=args.batch,
        workers=args.workers,
        dtype=dtype,
        skip_unreadable=args.skip_unreadable,
        fresh=args.fresh,
    )
    return dict(failed)


def store_ready(args: argparse.Namespace, dataset: Dataset, folder: Path) -> None:
    """Turn ready-made features into a store of the same kind as prep's own."""
    source = args.ready or args.captions
    name = store_name((args.backbone or [source.resolve().stem])[0], None, args.map, args.crops)
    path = folder / f"{name}.h5"
    ready = load_ready(source, dataset, args.ids)
    for note in ready.notes:
        say(note)
    if path.exists() and not args.fresh:
        store = FeatureStore.open(path)
        if store.attributes.get("digest") != ready.digest:
            raise BadInput(f"{path}: was made from another file than {source}; repeat with --fresh to replace it")
        if store.ids == ready.ids:
            return
    attributes: dict[str, str | int] = {
        "backbone": name,
        "layer": "ready-made",
        "digest": ready.digest,
        "transform": "ready-made",
        "weights": f"features of {source.name}",
        "map": int(len(ready.shape) == 3),
        "crops": args.crops,
    }
    write_store(path, ready.ids, ready.shape, ready.dtype, attributes, ready.blocks())


def report_unreadable(unreadable: dict[str, str], skip: bool) -> None:
    """Name every image that cannot be read; without --skip-unreadable that ends the program."""
    for image, reason in unreadable.items():
        say(f"cannot be read: {image}: {reason}")
    if not skip:
        raise BadInput(
            f"{len(unreadable):,} images cannot be read; all others are kept: mend them and repeat the command "
            f"(without --fresh), or go on without them with --skip-unreadable"
        )
    say(f"{len(unreadable):,} images that cannot be read left out")


def without(dataset: Dataset, unreadable: dict[str, str]) -> Dataset:
    kept = tuple(image for image in dataset.images if image.id not in unreadable)
    notes = (*dataset.notes, f"{len(dataset.images) - len(kept):,} images that cannot be read left out")
    for split in SPLITS:
        if not any(image.split == split for image in kept):
            raise BadInput(f"no image of the {split} split can be read; mend them, or point --images elsewhere")
    return replace(dataset, images=kept, notes=notes)


def write_captions(args: argparse.Namespace, dataset: Dataset, images: Path | None, folder: Path) -> None:
    """captions.jsonl, dataset.json and vocabulary.json, unless they say so already."""
    if not args.fresh and same_rows(folder, dataset) and (folder / VOCABULARY).is_file():
        with contextlib.suppress(BadInput):  # damaged, or of another version: built again
            vocabulary = Vocabulary.load(folder / VOCABULARY)
            if vocabulary.language == args.language:
                write_prepared(folder, dataset, images, vocabulary)  # the photographs may have moved
                return
    captions = [caption for image in dataset.images if image.split == "train" for caption in image.captions]
    vocabulary = Vocabulary.build(captions, args.language, progress=True)
    write_prepared(folder, dataset, images, vocabulary)
    say(f"{len(captions):,} training captions, {len(vocabulary.counts):,} words, stems: {args.language}")


def check_arguments(args: argparse.Namespace) -> None:
    """Flags that do not go together, before anything is read."""
    if args.dataset not in DATASETS:
        raise BadInput(f"dataset {args.dataset}: unknown; {nearest(args.dataset, DATASETS)}")
    if args.batch < 1:
        raise BadInput(f"--batch {args.batch}: at least one image at a time")
    if args.workers < 0:
        raise BadInput(f"--workers {args.workers}: 0 decodes images in the program itself, more beside it")
    if args.name is not None and (Path(args.name).name != args.name or args.name in ("", ".", "..")):
        raise BadInput(f"--name {args.name}: the name of a folder under --data, without a path")
    if args.dataset == "scenes":
        for flag in ("images", "captions", "splits", "ready", "ids"):
            if getattr(args, flag) is not None:
                raise BadInput(f"--{flag} goes with a dataset of yours; name it: {', '.join(FILES)}")
        return
    if args.captions is None:
        raise BadInput(f"--captions is missing: name the caption file or folder of {args.dataset}")
    if args.images is None and args.ready is None and not (args.captions.is_dir() and is_vsepp(args.captions)):
        raise BadInput("--images is missing: name the folder of the photographs, or features of yours with --ready")
    if args.ids is not None and args.ready is None:
        raise BadInput("--ids goes with --ready: it names the rows of ready-made features")
    vsepp = args.captions.is_dir() and is_vsepp(args.captions)
    if args.images is not None and vsepp:
        raise BadInput(f"--images: {args.captions} brings features and no photographs; leave --images out")
    if args.ready is not None or vsepp:
        for flag, default in (("layer", None), ("weights", None), ("dtype", None), ("map", False)):
            if getattr(args, flag) != default:
                raise BadInput(f"--{flag} goes with a backbone; ready-made features are taken as they are")
    if args.weights not in (None, "random") and len(args.backbone or []) > 1:
        raise BadInput(f"--weights {args.weights}: one file fits one backbone; prepare them one after the other")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", nargs="?", default="scenes", metavar="DATASET", help=f"{', '.join(DATASETS)}; default: scenes")
    add("--images", type=Path, metavar="DIR", help="the folder of the photographs")
    add("--captions", type=Path, metavar="FILE|DIR", help="the caption file, or the folder that holds it")
    add("--splits", type=Path, metavar="DIR", help="a folder with train.txt, val.txt and test.txt, lists of image ids")
    add("--split-ratio", type=float, nargs=3, default=[80, 10, 10], metavar=("TRAIN", "VAL", "TEST"))
    add("--no-restval", dest="restval", action="store_false", help="leave Karpathy's restval images out of train")
    add("--backbone", nargs="+", metavar="NAME", help=f"one or several, or timm:NAME; default: {DEFAULT_BACKBONE}")
    add("--weights", metavar="FILE|random", help="a local state dict instead of the published weights")
    add("--layer", metavar="NODE", help="another node of the network than its penultimate one")
    add("--map", action="store_true", help="keep the spatial map, H x W x C")
    add("--crops", type=int, choices=(1, 10), default=1, help="10 averages ten crops")
    add("--ready", type=Path, metavar="FILE", help="ready-made features instead: .npy, .npz, .h5, .mat")
    add("--ids", type=Path, metavar="FILE", help="the image ids of the rows of --ready, one a line")
    add("--language", default="english", metavar="NAME", help=f"of the stemmer: {', '.join(LANGUAGES)}")
    add("--data", type=Path, default=Path("data"), metavar="ROOT", help="where prepared folders go")
    add("--name", metavar="NAME", help="of the prepared folder; default: DATASET")
    add("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    add("--dtype", choices=DTYPES, help="of the stored features; default: float32, float16 for maps")
    add("--batch", type=int, default=16, metavar="N", help="images at a time")
    add("--workers", type=int, default=1, metavar="N", help="processes that decode images beside the network")
    add("--fresh", action="store_true", help="start over, features included")
    return parser.parse_args()


if __name__ == "__main__":
    script(main)

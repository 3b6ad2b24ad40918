"""Runs measured on data that they were not trained on: what must be the same, and which images they know already."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from features.prepared import Prepared, Split
from features.progress import progress_bar
from training.bank import read_bank
from training.run import Run, RunInfo
from utils import BadInput, warn

ROWS_PER_BLOCK = 256  # images whose features are compared at a time
SAME = 0.01  # two features of one image differ by less, as a share of their length, whatever machine made them
SKETCHED = 16  # directions along which the nearest training image is sought


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

    They are known by like features, whatever their ids are, where the prepared folder of training is as it was; where
    it is not, by the ids of the training images that the run's bank holds, and an image of another id goes unnoticed.
    """
    try:
        home = Prepared(run.info.data)
        if home.digest() != run.info.captions:
            raise BadInput(f"{home.folder}: has changed")
        for name in run.info.features:
            home.store(name)
    except BadInput:
        bank = read_bank(run.folder)
        return bank.held(split) if bank else []
    trained = [row["image"] for row in home.rows if row["split"] == "train"]
    return [split.images[row] for row in rows_alike(run, (data, split.images), (home, trained))]


def rows_alike(
    run: Run, measured: tuple[Prepared, Sequence[str]], trained: tuple[Prepared, Sequence[str]]
) -> list[int]:
    """Return which of the measured images have the features of a trained one, by their rows, in order.

    Each side is a folder and ids in it. Features are read in blocks. Along SKETCHED directions no two of them are
    farther apart than they are: whose neighbor there is no twin has none.
    """
    from scipy.spatial import KDTree  # late: other tables need none of it

    first = next(blocks_of(run, *measured))
    random = np.random.default_rng(0)
    directions = np.linalg.qr(random.normal(size=(first.shape[1], min(SKETCHED, first.shape[1]))))[0]
    total = len(measured[1]) + len(trained[1])
    sketches = []
    with progress_bar(name="look for training images", total=total, unit=" images", leave=False) as bar:
        for side in (measured, trained):
            parts = []
            for block in blocks_of(run, *side):
                parts.append(block @ directions)
                bar.update(len(block))
            sketches.append(np.concatenate(parts))
    _, nearest = KDTree(sketches[1]).query(sketches[0])
    twins = blocks_of(run, trained[0], [trained[1][row] for row in nearest.tolist()])
    alike = [
        np.linalg.norm(one - other, axis=1) <= SAME * np.linalg.norm(one, axis=1)
        for one, other in zip(blocks_of(run, *measured), twins, strict=True)
    ]
    return np.flatnonzero(np.concatenate(alike)).tolist()


def blocks_of(run: Run, folder: Prepared, ids: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield a run's features of images, (n, D) float32, ROWS_PER_BLOCK images at a time; maps are laid out in a row."""
    for start in range(0, len(ids), ROWS_PER_BLOCK):
        block = ids[start : start + ROWS_PER_BLOCK]
        features = folder.features_of(block, run.info.features, run.settings.image.normalize)
        yield features[:].reshape(len(block), -1)

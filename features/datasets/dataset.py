"""What every reader returns: images with an id, a path and a split, and their captions. Never five by assumption."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from utils import BadInput, unit_hash

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Image:
    """One photograph and its captions (any number but none). `path` is None where features come precomputed."""

    id: str
    path: Path | None
    split: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Images in dataset order: the order of folds and of precomputed features. `notes` are said aloud by prep.py.

    `source_ids` are all ids of the caption file in its own order, those left out included: precomputed features that
    lie beside such a file have a row for each of them.
    """

    name: str
    images: tuple[Image, ...]
    notes: tuple[str, ...] = field(default=())
    source_ids: tuple[str, ...] = field(default=())

    def count(self, split: str) -> int:
        return sum(image.split == split for image in self.images)


def hash_split(image_id: str, ratio: tuple[float, float, float] = (80, 10, 10)) -> str:
    """train, val or test by a hash of the id: stable when images are added, the same on every machine."""
    train, val, test = ratio
    place = unit_hash(image_id) * (train + val + test)
    return "train" if place < train else "val" if place < train + val else "test"


def is_vsepp(folder: Path) -> bool:
    """Return whether this is a folder that VSE++ trains from, which holds features and captions."""
    return (folder / "train_ims.npy").is_file() or (folder / "train_caps.txt").is_file()


def clean_caption(caption: str) -> str:
    """White space folded to single blanks: a caption is one line everywhere in this project."""
    return " ".join(caption.split())


def check(dataset: Dataset, source: Path | str) -> Dataset:
    """The dataset with blank captions and images left without a caption dropped (counted in a note).

    Raises BadInput if nothing is left, an id stands twice, a split is unknown, or a split has no image.
    """
    blank = sum(not clean_caption(caption) for image in dataset.images for caption in image.captions)
    images = [
        replace(image, captions=tuple(filter(None, map(clean_caption, image.captions)))) for image in dataset.images
    ]
    bare = [image for image in images if not image.captions]
    images = [image for image in images if image.captions]
    notes = list(dataset.notes)
    if blank:
        notes.append(f"{blank:,} blank captions left out")
    if bare:
        notes.append(f"{len(bare):,} images without a caption left out, the first {bare[0].id}")
    if not images:
        raise BadInput(f"{source}: holds no image with a caption; check that --captions names the right file")
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise BadInput(f"{source}: image {image.id} stands in it twice as two images; give every image one id")
        seen.add(image.id)
        if image.split not in SPLITS:
            raise BadInput(f"{source}: image {image.id} has split {image.split!r}; it must be train, val or test")
    for split in SPLITS:
        if not any(image.split == split for image in images):
            raise BadInput(
                f"{source}: the {split} split has no image; name the splits with --splits, "
                f"or leave the split column out and let --split-ratio draw them"
            )
    return replace(dataset, images=tuple(images), notes=tuple(notes))


def check_on_disk(images: Iterable[Image], folder: Path | str) -> None:
    """Raises BadInput that names how many listed images are not on disk, and the first of them."""
    missing = [image for image in images if image.path is None or not image.path.is_file()]
    if missing:
        raise BadInput(
            f"{folder}: {len(missing):,} listed images are not there, the first {missing[0].id}; "
            f"point --images to the folder that holds them"
        )

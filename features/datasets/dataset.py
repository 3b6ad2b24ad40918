"""What every reader returns: images with an id, a path and a split, and any number of captions each."""

import contextlib
import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.images.files import ImageFile, file_on_disk, open_image_file, size_of
from features.progress import progress_bar
from utils import BadInput, unit_hash, warn

SPLITS = ("train", "val", "test")
_CONTROLS = dict.fromkeys([*range(32), *range(127, 160)], " ")


@dataclass(frozen=True)
class Image:
    """One image and its captions, at least one.

    id: a path within the image folder. path: its file, or its bytes inside one; None where features come precomputed.
    split: train, val or test.
    """

    id: str
    path: ImageFile | None
    split: str
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """N images in dataset order, which is that of folds and of precomputed features.

    notes: what the reader decided, to be logged. source_ids: all ids of the caption file in its own order, those left
    out included: precomputed features that lie beside such a file have a row for each of them.
    """

    name: str
    images: tuple[Image, ...]
    notes: tuple[str, ...] = field(default=())
    source_ids: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"Dataset({self.name!r}: {', '.join(f'{self.count(split):,} {split}' for split in SPLITS)} images)"

    def count(self, split: str) -> int:
        """Return the number of images of a split."""
        return sum(image.split == split for image in self.images)


def hash_split(image_id: str, ratio: tuple[float, float, float] = (80, 10, 10)) -> str:
    """Return train, val or test by a hash of the id: stable when images are added, the same on every machine.

    >>> [hash_split(f"{number}.jpg") for number in (2, 3, 13)], hash_split("0.jpg", ratio=(0, 1, 1))
    (['train', 'val', 'test'], 'val')
    """
    train, val, test = ratio
    draw = unit_hash(image_id) * (train + val + test)
    return "train" if draw < train else "val" if draw < train + val else "test"


def is_vsepp(folder: Path) -> bool:
    """Return whether this is a folder that VSE++ trains from, which holds features and captions."""
    return (folder / "train_ims.npy").is_file() or (folder / "train_caps.txt").is_file()


def is_clip_retrieval(folder: Path) -> bool:
    """Return whether this is a folder that clip-retrieval has written, which holds features and captions."""
    return (folder / "img_emb").is_dir() and (folder / "metadata").is_dir()


def brings_features(folder: Path) -> bool:
    """Return whether captions and features lie in this folder together.

    >>> brings_features(Path(__file__).parent)
    False
    """
    return is_vsepp(folder) or is_clip_retrieval(folder)


def clean_caption(caption: str) -> str:
    """Fold white space and control characters to single blanks, and letters to one form of Unicode (NFC).

    A caption is one line everywhere in this project, and two are the same if they read the same.

    >>> clean_caption(" A dog  runs\\nfast. ")
    'A dog runs fast.'
    """
    return " ".join(unicodedata.normalize("NFC", caption.translate(_CONTROLS)).split())


def check(dataset: Dataset, source: Path | str) -> Dataset:
    """Drop blank captions and images left without a caption, counted in notes.

    Raises BadInput if nothing is left, an id stands twice, a split is unknown, or a split has no image.
    """
    cleaned = [replace(image, captions=tuple(map(clean_caption, image.captions))) for image in dataset.images]
    blank = sum(not caption for image in cleaned for caption in image.captions)
    cleaned = [replace(image, captions=tuple(filter(None, image.captions))) for image in cleaned]
    bare = [image for image in cleaned if not image.captions]
    images = [image for image in cleaned if image.captions]
    notes = list(dataset.notes)
    if blank:
        notes.append(f"{blank:,} blank captions left out")
    if bare:
        notes.append(f"{len(bare):,} images without a caption left out, the first {bare[0].id}")
    if not images:
        raise BadInput(f"{source}: holds no image with a caption; check that `captions` names the right file")
    seen: set[str] = set()
    for image in images:
        if image.id in seen:
            raise BadInput(f"{source}: image {image.id} stands in it twice as two images; give every image one id")
        seen.add(image.id)
        if image.split not in SPLITS:
            raise BadInput(f"{source}: image {image.id} has split {image.split!r}; it must be train, val or test")
    for split in SPLITS:
        if not any(image.split == split for image in images):
            remedy = "name the splits with `splits`, or leave the split column out and let `split_ratio` draw them"
            raise BadInput(f"{source}: the {split} split has no image; {remedy}")
    return replace(dataset, images=tuple(images), notes=tuple(notes))


def check_on_disk(images: Sequence[Image], folder: Path | str, skip: bool = False) -> None:
    """Raise BadInput that names how many listed images are not on disk, and the first; with `skip` if all are not."""
    missing = [image.id for image in images if image.path is None or not file_on_disk(image.path).is_file()]
    if missing and not (skip and len(missing) < len(images)):
        what = f"{len(missing):,} listed images are not there, the first {missing[0]}"
        remedy = "point `images` to the folder that holds them"
        remedy += "" if len(missing) == len(images) else ", or go on without them with `skip_unreadable`"
        raise BadInput(f"{folder}: {what}; {remedy}")


def note_duplicates(dataset: Dataset) -> Dataset:
    """Warn of images in different splits whose files are the same to the byte, counted in a note.

    Only files of one size are read.
    """
    by_size: dict[int, list[Image]] = {}
    for image in dataset.images:
        with contextlib.suppress(OSError):  # what is missing is told elsewhere
            if image.path is not None:
                by_size.setdefault(size_of(image.path), []).append(image)
    by_content: dict[bytes, list[Image]] = {}
    alike = [image for images in by_size.values() if len({image.split for image in images}) > 1 for image in images]
    for image in progress_bar(alike, "duplicates", unit=" images", delay=2, leave=False):
        with contextlib.suppress(OSError):
            assert image.path is not None
            with open_image_file(image.path) as file:
                by_content.setdefault(hashlib.sha256(file.read()).digest(), []).append(image)
    groups = [images for images in by_content.values() if len({image.split for image in images}) > 1]
    if not groups:
        return dataset
    count, (first, second, *_) = sum(map(len, groups)), groups[0]
    note = f"{count:,} images have the same file in another split, the first {first.id} as {second.id}"
    warn(f"{note}: what is trained on is measured, too; leave one of the two out of the captions")
    return replace(dataset, notes=(*dataset.notes, note))

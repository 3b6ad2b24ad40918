"""Prepared folders made of others: some of the images, or other splits, with links to the features."""

from collections.abc import Sequence
from pathlib import Path

from features.datasets.dataset import Dataset, Image
from features.prepared import Prepared, write_prepared
from features.text.vocabulary import Vocabulary


def images_of(prepared: Prepared) -> list[Image]:
    """Return the images of a prepared folder, in their order."""
    return [Image(r["image"], prepared.path_of(r), r["split"], tuple(r["captions"])) for r in prepared.rows]


def derive(prepared: Prepared, target: Path, images: Sequence[Image]) -> Path:
    """Prepare `target` with these images, a vocabulary of their training split and links to all features."""
    captions = [caption for image in images if image.split == "train" for caption in image.captions]
    target.mkdir(exist_ok=True)
    vocabulary = Vocabulary.build(captions, prepared.vocabulary.language)
    write_prepared(target, Dataset(prepared.name, tuple(images)), prepared.images_folder, vocabulary)
    for store in prepared.folder.glob("*.h5"):
        if not (target / store.name).exists():
            (target / store.name).symlink_to(store.resolve())
    return target

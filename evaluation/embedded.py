"""The split that the runs of a table are measured on, read once for all that want the same features, and embedded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from features.prepared import Prepared, Split
from metrics.similarity import RANKING, Scores
from settings import Settings
from training.run import Run, RunInfo
from utils import BadInput


@dataclass(frozen=True)
class EmbeddedSplit:
    """A run's embeddings of a split. images: (N, D); captions: (M, D)."""

    run: Run
    prepared: Prepared
    split: Split
    images: Tensor
    captions: Tensor

    @property
    def similarity(self) -> Scores:
        return RANKING[self.run.settings.similarity]

    def paths(self) -> dict[str, Path | None]:
        """Return where the images of the split lie."""
        rows = (row for row in self.prepared.rows if row["split"] == self.split.name)
        return {row["image"]: self.prepared.path_of(row) for row in rows}

    def embedded_images(self, ids: Sequence[str]) -> np.ndarray:
        """Return the embeddings (n, D) of images of the prepared folder; those of another split are embedded now."""
        rows = {image: row for row, image in enumerate(self.split.images)}
        if all(image in rows for image in ids):
            return self.images[[rows[image] for image in ids]].numpy()
        normalize = self.run.settings.image.normalize
        return self.run.embed_features(self.prepared.features_of(ids, self.run.info.features, normalize))

    def embedded_captions(self, texts: Sequence[str]) -> np.ndarray:
        """Return the embeddings (n, D) of captions; those of another split are embedded now."""
        rows = {caption: row for row, caption in enumerate(self.split.captions)}
        if all(text in rows for text in texts):
            return self.captions[[rows[text] for text in texts]].numpy()
        return self.run.embed_sentences(texts)


class SplitCache:
    """Reads the split that runs are measured on; the features of one set are held at a time.

    `first` is the first run with its split, features left out: every other run must have its images and captions.
    """

    def __init__(self, data: Path | None, split: str):
        self.data, self.split = data, split
        self.prepared: dict[Path, tuple[Prepared, str]] = {}  # and the digest of its captions
        self.held: dict[tuple, Split] = {}
        self.first: tuple[Path, Split] | None = None

    def key(self, settings: Settings, info: RunInfo) -> tuple[Path, tuple[str, ...], bool]:
        """Return what tells one set of features from another: prepared folder, names, normalization."""
        return self.data or Path(info.data), info.features, settings.image.normalize

    def embed(self, folder: Path) -> EmbeddedSplit:
        """Open a run and embed its split.

        Raises BadInput if the features are not those of training, or the images not those of the other runs.
        """
        run = Run.open(folder)
        data, features, normalize = key = self.key(run.settings, run.info)
        if data not in self.prepared:
            prepared = Prepared(data)
            self.prepared[data] = prepared, prepared.digest()
        prepared, digest = self.prepared[data]
        check_features(run, prepared, digest, self.split)
        if key not in self.held:
            self.held.clear()  # before others are read: two of them might not fit
            self.held[key] = prepared.split(self.split, features, normalize)
        split = self.held[key]
        if self.first is None:
            self.first = folder, replace(split, features=split.features[:0])
        check_same_images(folder, split, *self.first)
        images = torch.from_numpy(run.embed_features(split.features))
        return EmbeddedSplit(run, prepared, split, images, torch.from_numpy(run.embed_captions(prepared, split.name)))


def check_features(run: Run, data: Prepared, captions: str, split: str) -> None:
    """Raise BadInput unless `data`, whose captions have the digest `captions`, holds the run's training features."""
    if data.name != run.info.dataset:
        raise BadInput(
            f"{data.folder}: holds {data.name}, but {run.folder} was trained on {run.info.dataset}; mend `data`"
        )
    if run.info.captions and run.info.captions != captions:
        raise BadInput(
            f"{data.folder}: holds other captions or splits than {run.folder} was trained on: its {split} split may "
            f"hold training images; name the right folder with `data`, or train again"
        )
    for name, digest, size in zip(run.info.features, run.info.digests, run.info.sizes, strict=True):
        store = data.store(name)
        if store.attributes.get("digest") != digest or store.shape != (*run.info.grid, size):
            raise BadInput(
                f"{store.path}: not the features that {run.folder} was trained on (other weights or size); "
                f"name the right folder with `data`, or train again"
            )


def check_same_images(folder: Path, split: Split, first: Path, other: Split) -> None:
    """Raise BadInput that names both runs unless their splits hold the same images and captions in the same order."""
    if (split.images, split.captions) == (other.images, other.captions) and np.array_equal(
        split.image_of_caption, other.image_of_caption
    ):
        return
    pairs = zip_longest(split.images, other.images, fillvalue="none")
    where = next((f"the first image {a} against {b}" for a, b in pairs if a != b), "other captions")
    raise BadInput(
        f"{folder} and {first}: their {split.name} splits are not the same ({len(split.images):,} images and "
        f"{len(split.captions):,} captions against {len(other.images):,} and {len(other.captions):,}; {where}); "
        f"measure both on one folder with `data`, or apart"
    )

"""The split that runs are measured on, embedded with each of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evaluation.elsewhere import check_features, is_elsewhere, warn_of_training_images
from evaluation.groups import Group, trained_on
from features.prepared import Prepared, Split
from metrics.pairs import pair_scores
from settings import Settings
from training.run import Run, RunInfo, read_run_config


@dataclass(frozen=True)
class EmbeddedSplit:
    """A run's embeddings of a split. images: (N, D); captions: (M, D)."""

    run: Run
    prepared: Prepared
    split: Split
    images: Tensor
    captions: Tensor

    def scores_of(self, ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Return the scores (P,) of P pairs of image and caption of the prepared folder, whatever their split.

        Where the split lacks an image, all of them are embedded now, each once; and so with the captions.
        """
        images, image_rows = np.unique(ids, return_inverse=True)
        captions, caption_rows = np.unique(texts, return_inverse=True)
        embedded = self._images(images.tolist()), self._captions(captions.tolist())
        return pair_scores(self.run.settings.similarity, *embedded, image_rows, caption_rows)

    def _images(self, ids: Sequence[str]) -> np.ndarray:
        rows = {image: row for row, image in enumerate(self.split.images)}
        if all(image in rows for image in ids):
            return self.images[[rows[image] for image in ids]].numpy()
        normalize = self.run.settings.image.normalize
        return self.run.embed_features(self.prepared.features_of(ids, self.run.info.features, normalize))

    def _captions(self, texts: Sequence[str]) -> np.ndarray:
        rows = {caption: row for row, caption in enumerate(self.split.captions)}
        if all(text in rows for text in texts):
            return self.captions[[rows[text] for text in texts]].numpy()
        return self.run.embed_sentences(texts, check=False)


class SplitCache:
    """Reads the split that runs are measured on; the features of one set are held at a time."""

    def __init__(self, data: Path | None, split: str):
        self.data, self.split = data, split
        self.prepared: dict[Path, tuple[Prepared, str]] = {}  # and the digest of its captions
        self.held: dict[tuple, Split] = {}

    def key(self, settings: Settings, info: RunInfo) -> tuple[Path, tuple[str, ...], bool]:
        """Return what tells one set of features from another: prepared folder, names, normalization."""
        return self.data or Path(info.data), info.features, settings.image.normalize

    def by_dataset(self, folders: Sequence[Path]) -> list[list[Path]]:
        """Return the runs of each table: of one dataset whose split is the same, in the order in which they came.

        The name of a dataset does not say it: `folder` may be anybody's images.
        """
        parts: dict[tuple[str, str], list[Path]] = {}
        for folder in folders:
            prepared, _ = self._read(read_run_config(folder)[1])
            parts.setdefault((prepared.name, prepared.split_digest(self.split)), []).append(folder)
        return list(parts.values())

    def _read(self, info: RunInfo) -> tuple[Prepared, str]:
        data = self.data or Path(info.data)
        if data not in self.prepared:
            prepared = Prepared(data)
            self.prepared[data] = prepared, prepared.digest()
        return self.prepared[data]

    def open(self, info: RunInfo) -> tuple[Prepared, bool]:
        """Open the folder that a run is measured on; return it, and whether the run was trained on another one."""
        prepared, digest = self._read(info)
        return prepared, is_elsewhere(info, prepared, digest)

    def named(self, group: Group) -> Group:
        """Return a row that says in its name what it was trained on, if that is not what it is measured on."""
        if self.data is None or group.info is None or not self.open(group.info)[1]:
            return group
        name = group.name.removesuffix(trained_on(group.info)) + trained_on(group.info)
        return replace(group, name=name, trained_on=Path(group.info.data).name)

    def embed(self, folder: Path) -> EmbeddedSplit:
        """Open a run and embed its split.

        Raises BadInput if the features are not those of training.
        """
        run = Run.open(folder)
        key = self.key(run.settings, run.info)
        prepared, elsewhere = self.open(run.info)
        check_features(run, prepared)
        if key not in self.held:
            self.held.clear()  # before others are read: two of them might not fit
            self.held[key] = prepared.split(self.split, run.info.features, run.settings.image.normalize)
        split = self.held[key]
        if elsewhere:
            warn_of_training_images(run, prepared, split)
        images = torch.from_numpy(run.embed_features(split.features))
        return EmbeddedSplit(run, prepared, split, images, torch.from_numpy(run.embed_captions(prepared, split.name)))

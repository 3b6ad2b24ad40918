"""What is ranked: the images and captions of a dataset, whoever embeds them, and which of them belong together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from features.images.files import ImageFile
from features.prepared import Prepared
from metrics.positions import Truth
from metrics.protocols import Fold, folds_of, protocol_name, protocols_for
from utils import BadInput


@dataclass(frozen=True)
class Gallery:
    """Images and captions, in the order of the rows that are ranked.

    folder: the name of the prepared folder, where that is not the dataset's. images: ids; captions: their texts, where
    those are known; caption_ids: `IMAGE#N`, or what a file of pairs calls them; image_of_caption: (M,) the row of each
    caption's image, of the first if it belongs to several, -1 if to none; paths: where
    images lie.
    """

    dataset: str
    split: str
    images: list[str]
    captions: list[str]
    caption_ids: list[str]
    image_of_caption: np.ndarray
    truth: Truth
    paths: Mapping[str, ImageFile | None] = field(default_factory=dict)
    folder: str | None = None

    @classmethod
    def of_prepared(cls, prepared: Prepared, split: str) -> "Gallery":
        """Return a split of a prepared folder. Raises BadInput if that is empty."""
        rows = [row for row in prepared.rows if row["split"] == split]
        if not rows:
            raise BadInput(f"{prepared.folder}: the {split} split has no image; name another with `split`")
        captions = [caption for row in rows for caption in row["captions"]]
        ids = [f"{row['image']}#{number}" for row in rows for number in range(len(row["captions"]))]
        image_of_caption = np.repeat(np.arange(len(rows)), [len(row["captions"]) for row in rows])
        paths = {row["image"]: prepared.path_of(row) for row in rows}
        names = [row["image"] for row in rows]
        truth = Truth.of(image_of_caption)
        folder = None if prepared.folder_name == prepared.name else prepared.folder_name
        return cls(prepared.name, split, names, captions, ids, image_of_caption, truth, paths, folder)

    @cached_property
    def plain(self) -> bool:
        """Return whether every caption belongs to one image, both ways, and every image has a caption."""
        one, other = (pairs[np.lexsort(pairs.T)] for pairs in self.truth.both)
        each = bool((self.image_of_caption >= 0).all()) and len(one) == len(self.captions)
        return each and np.array_equal(one, other) and len(np.unique(self.image_of_caption)) == len(self.images)

    @property
    def size(self) -> str:
        return f"{len(self.images):,} images and {len(self.captions):,} captions"

    def protocols(self, folds: int | None, captions: int | None, positions: bool) -> dict[str, list[Fold]]:
        """Return the galleries of every protocol, by its name. positions: whether all those of true items are needed.

        Raises BadInput for folds that are not equal, or in which something would have no query.
        """
        count = len(self.images)
        try:
            chosen = protocols_for(self.dataset, self.split, count, folds, captions)
        except ValueError as error:
            raise BadInput(str(error)) from None
        truth = self.truth if positions or not self.plain else None
        named = {}
        for protocol in chosen:
            if protocol.folds > 1 and (self.image_of_caption < 0).any():
                row = int(np.argmin(self.image_of_caption))
                raise BadInput(
                    f"`folds` {protocol.folds}: the caption {self.caption_ids[row]} belongs to no image, and so to no "
                    f"fold; take one fold with `folds` 1"
                )
            parts = folds_of(self.image_of_caption, count, protocol, truth)
            if truth and not all(len(pairs) for fold in parts if fold.truth for pairs in fold.truth.both):
                raise BadInput(f"`folds` {protocol.folds}: one of them has no pair to ask for; take fewer")
            named[protocol_name(protocol, self.dataset, self.split, count)] = parts
        return named

    def with_more(self, images: Sequence[str], captions: Sequence[str]) -> "Gallery":
        """Return the gallery with ids more that no pair names: they are in it, and are not asked."""
        more = [list(dict.fromkeys(ids)) for ids in (images, captions)]
        no_image = np.full(len(more[1]), -1)
        return replace(
            self,
            images=[*self.images, *more[0]],
            captions=[*self.captions, *more[1]],
            caption_ids=[*self.caption_ids, *more[1]],
            image_of_caption=np.concatenate([self.image_of_caption, no_image]),
        )

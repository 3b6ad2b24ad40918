"""The prepared folder data/NAME/: what prep.py leaves and train.py, eval.py and search.py read."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.datasets.dataset import SPLITS, Dataset, Image
from features.datasets.line_files import image_id
from features.format import check_format
from features.images.files import ImageFile, image_file
from features.images.maps import FeatureMaps
from features.images.store import FeatureStore
from features.images.views import Features, FeatureViews, join_features
from features.options import CAPTIONS, DATA, DATASET, DRAWN, FORMAT, VOCABULARY
from features.text.hub import text_store_name
from features.text.store import SUFFIX, TextStore
from features.text.vocabulary import Vocabulary
from reading import read_json, read_jsonl
from utils import BadInput, NotPrepared, command_line, did_you_mean, digest_text, write_json, write_jsonl

ROWS_PER_BLOCK = 4096  # rows of features that are read at once
# What stands at the end of a store's name, from the last to the first, for these options of prep.py.
ENDINGS = {"views": r"\.views(\d+)$", "crops": r"\.crops(10)$", "map": r"\.map$", "size": r"\.size(\d+)$"}


@dataclass(frozen=True)
class Split:
    """Images and captions of one split, in dataset order. Captions of one image stand together.

    features: (images, D) float32, views or maps; image_of_caption: (captions,) int64, the row of each caption's image.
    """

    name: str
    images: list[str]
    captions: list[str]
    image_of_caption: np.ndarray
    features: Features

    def __repr__(self) -> str:
        counts = f"{len(self.images):,} images, {len(self.captions):,} captions"
        return f"Split({self.name!r}: {counts}, features {self.features.shape})"


def write_prepared(
    folder: Path, dataset: Dataset, images: Path | None, vocabulary: Vocabulary, source: dict[str, Any] | None = None
) -> None:
    """Write captions.jsonl, vocabulary.json and dataset.json (where the images lie, and what was left out).

    source: what prep.py needs besides the images to repeat its command, see `features.options.source_of`.
    A line of captions.jsonl has a "path" only where the image is not at `images` / its id: str(Image.path).
    """

    def line(image: Image) -> dict[str, Any]:
        path = {} if images is None or image.path in (None, images / image.id) else {"path": str(image.path)}
        return {"image": image.id, "split": image.split, "captions": list(image.captions), **path}

    vocabulary.save(folder / VOCABULARY)
    root = None if images is None else str(images.resolve())
    head = {"format": FORMAT, "dataset": dataset.name, "images": root, "notes": dataset.notes}
    write_json(folder / DATASET, {**head, "source": source or {}})
    write_jsonl(folder / CAPTIONS, map(line, dataset.images))


class Prepared:
    """A prepared folder, open for reading.

    name: of the dataset. rows: the lines of captions.jsonl. vocabulary: of the training split.

        data = Prepared("data/flickr8k")
        train = data.split("train", ["inception_v3"])
        train.features.shape, len(train.captions)     ((6000, 2048), 30000)
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        remedy = f"prepare it with prep.py (`data` {self.folder.parent})"
        if not (self.folder / CAPTIONS).is_file():
            beside = [str(file.parent) for file in self.folder.parent.glob(f"*/{CAPTIONS}")]
            nearest = did_you_mean(str(self.folder), beside, otherwise=remedy)
            raise BadInput(f"{self.folder}: not a prepared folder (no {CAPTIONS}); {nearest}")
        head = read_json(self.folder / DATASET, remedy)
        if not isinstance(head, dict):
            raise BadInput(f"{self.folder / DATASET}: not the {DATASET} of a prepared folder; {remedy}")
        check_format(self.folder / DATASET, head.get("format"), FORMAT, remedy)
        sound = isinstance(head.get("dataset"), str) and isinstance(head.get("images", ""), str | None)
        if not sound or not head["dataset"].isprintable():
            raise BadInput(f"{self.folder / DATASET}: does not say which dataset this is; {remedy}")
        self.name: str = head["dataset"]
        self.images_folder = None if head.get("images") is None else Path(head["images"])
        self.rows = read_jsonl(self.folder / CAPTIONS, remedy)
        for number, row in enumerate(self.rows, 1):
            if not _is_sound(row):
                raise BadInput(f"{self.folder / CAPTIONS}: line {number} lacks image, split or captions; {remedy}")
            image_id(self.folder / CAPTIONS, f"line {number}", row["image"])  # none leads out of the image folder
        (image, count), *_ = Counter(row["image"] for row in self.rows).most_common(1) or [("", 1)]
        if count > 1:
            raise BadInput(f"{self.folder / CAPTIONS}: image {image} stands in it {count} times; {remedy}")
        self.vocabulary = Vocabulary.load(self.folder / VOCABULARY)

    def __repr__(self) -> str:
        images = Counter(row["split"] for row in self.rows)
        counts = ", ".join(f"{images[split]:,} {split}" for split in SPLITS)
        captions = sum(len(row["captions"]) for row in self.rows)
        kept = {"features": self.stores(), "sentence features": self.text_stores()}
        more = "".join(f"; {kind}: {', '.join(names)}" for kind, names in kept.items() if names)
        return f"Prepared({str(self.folder)!r}: {self.name}, {counts} images, {captions:,} captions{more})"

    @property
    def folder_name(self) -> str:
        """The name of its folder: two of one dataset have two."""
        return (self.folder if self.folder.name not in ("", "..") else self.folder.resolve()).name

    def digest(self) -> str:
        """Return sixteen hexadecimal digits that differ when an image, a split, a caption or the stemmer differs."""
        rows = [[row["image"], row["split"], row["captions"]] for row in self.rows]
        return digest_text(json.dumps([rows, self.vocabulary.language]))[:16]

    def split_digest(self, split: str) -> str:
        """Return sixteen hexadecimal digits that differ when an image or a caption of a split, or their order, does."""
        rows = [[row["image"], row["captions"]] for row in self.rows if row["split"] == split]
        return digest_text(json.dumps(rows))[:16]

    def path_of(self, row: dict[str, Any]) -> ImageFile | None:
        """Return where the image of a line of captions.jsonl lies; None where features came precomputed."""
        if "path" in row:
            return image_file(row["path"])
        return None if self.images_folder is None else self.images_folder / row["image"]

    def stores(self) -> list[str]:
        """Return the names of the complete feature stores, the newest first."""
        return [name for name in self._files(".h5") if not name.endswith(".text")]

    def text_stores(self) -> list[str]:
        """Return the names of the complete stores of sentence features, the newest first."""
        return self._files(SUFFIX)

    def _files(self, suffix: str) -> list[str]:
        files = sorted(self.folder.glob(f"*{suffix}"), key=lambda file: (-file.stat().st_mtime, file.name))
        return [file.name.removesuffix(suffix) for file in files]

    def store(self, name: str) -> FeatureStore:
        """Open the feature store `name`. Raises NotPrepared that names the stores there are."""
        stores = self.stores()
        if name not in stores:
            hint = did_you_mean(name, stores) if stores else "it has no features at all"
            raise NotPrepared(
                f"`features` {name}: {self.folder} has no such features ({hint})",
                self.prep_options(**options_of_store(name)),
            )
        return FeatureStore.open(self.folder / f"{name}.h5")

    def text_store(self, encoder: str) -> TextStore:
        """Open the sentence features of a text encoder, as prep.py was given it. Raises NotPrepared if it has none."""
        options = self.prep_options(text_encoder=encoder)
        name, stores = text_store_name(encoder), self.text_stores()
        if name not in stores:
            hint = did_you_mean(name, stores) if stores else "it has those of no text encoder"
            raise NotPrepared(f"{self.folder}: has no sentence features of {encoder} ({hint})", options)
        return TextStore.open(self.folder / f"{name}{SUFFIX}", command_line("prep.py", options))

    def sentence_features(self, split: str, encoder: str, pooling: str) -> np.ndarray:
        """Read features (M, D) float32, a row for each caption of a split, in the order of `split(…).captions`.

        Raises BadInput if the store is missing, or does not hold one of the captions as it reads now.
        """
        return self.text_store(encoder).read([row for row in self.rows if row["split"] == split], pooling)

    def prep_options(self, **more: Any) -> dict[str, Any]:
        """Return what `features.options.resolve_options` is given to add something to this folder.

        "" is the dataset; images are "DIR", to be filled in, where a backbone is wanted and features came precomputed.
        """
        folder = self.folder if self.folder.name not in ("", "..") else self.folder.resolve()
        no_images = "backbone" in more and self.images_folder is None and self.name != DRAWN
        options = {"": self.name, **({"images": "DIR"} if no_images else {}), **more}
        if folder.parent.absolute() != DATA.absolute():
            options["data"] = str(folder.parent)
        return options if folder.name == self.name else {**options, "name": folder.name}

    def split(self, name: str, features: Sequence[str], normalize: bool = True) -> Split:
        """Read one split with its features joined. Raises BadInput if a store lacks one of its images."""
        rows = [row for row in self.rows if row["split"] == name]
        if not rows:
            raise BadInput(f"{self.folder}: the {name} split has no image; name another with `split`")
        ids = [row["image"] for row in rows]
        captions = [caption for row in rows for caption in row["captions"]]
        image_of_caption = np.repeat(np.arange(len(rows)), [len(row["captions"]) for row in rows])
        return Split(name, ids, captions, image_of_caption, self.features_of(ids, features, normalize))

    def features_of(self, ids: Sequence[str], features: Sequence[str], normalize: bool) -> Features:
        """Read the features of N images, joined to (N, D) float32 block by block: only the result is held whole.

        Where a store has several views, all of them are held, as stored. Maps (N, H, W, C) are read as they are used.
        Raises BadInput if a store lacks an image, or maps shall be joined.
        """
        stores = [self.store(feature) for feature in features]
        rows = [store.rows(ids) for store in stores]
        if any(store.grid for store in stores):
            if len(stores) > 1:
                named = " ".join(features)
                raise BadInput(f"`features` {named}: spatial maps are not joined with others; name one alone")
            return FeatureMaps(stores[0], rows[0], normalize)
        if any(store.views > 1 for store in stores):
            parts = [store.read(r, store.dtype) for store, r in zip(stores, rows, strict=True)]
            return FeatureViews(parts, normalize)
        out = np.empty((len(ids), sum(store.shape[-1] for store in stores)), np.float32)
        for start in range(0, len(ids), ROWS_PER_BLOCK):
            parts = [store.read(r[start : start + ROWS_PER_BLOCK]) for store, r in zip(stores, rows, strict=True)]
            out[start : start + ROWS_PER_BLOCK] = join_features(parts, normalize)
        return out


def options_of_store(name: str) -> dict[str, Any]:
    """Return the options of prep.py that make the store `name`: the inverse of `features.images.store.store_name`.

    >>> options_of_store("vgg19.crops10"), options_of_store("timm-resnet10t.a1_in1k.map")
    ({'backbone': 'vgg19', 'crops': 10}, {'backbone': 'timm:resnet10t.a1_in1k', 'map': True})
    >>> options_of_store("resnet50.layer3.size320.views6")
    {'backbone': 'resnet50', 'layer': 'layer3', 'size': 320, 'views': 6}
    >>> options_of_store("clip-openai--clip-vit-base-patch32")
    {'backbone': 'clip:openai/clip-vit-base-patch32'}
    """
    more: dict[str, Any] = {}
    for option, pattern in ENDINGS.items():
        if match := re.search(pattern, name):
            name, more = name[: match.start()], {option: int(match[1]) if match.groups() else True, **more}
    library, hyphen, rest = name.partition("-")
    if hyphen and library in ("timm", "clip", "open_clip"):
        return {"backbone": f"{library}:{rest.replace('--', '/')}", **more}
    name, _, layer = name.partition(".")  # names of torchvision have no full stop
    return {"backbone": name, **({"layer": layer} if layer else {}), **more}


def _is_sound(row: dict[str, Any]) -> bool:
    captions = row.get("captions")
    named = isinstance(row.get("image"), str) and row.get("split") in SPLITS and isinstance(row.get("path", ""), str)
    return named and isinstance(captions, list) and bool(captions) and all(isinstance(c, str) for c in captions)


def newest_prepared(root: Path) -> Path:
    """Return the prepared folder under `root` that was written last."""
    folders = [path.parent for path in root.glob(f"*/{CAPTIONS}")] if root.is_dir() else []
    if not folders:
        raise BadInput(f"{root}: holds no prepared folder; run prep.py first, or name one with `data`")
    # The last change: when a store was completed or the captions were written, whichever is later.
    return max(folders, key=lambda f: max(path.stat().st_mtime for path in (f / CAPTIONS, *f.glob("*.h5"))))

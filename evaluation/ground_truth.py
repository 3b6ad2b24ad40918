"""COCO's test images with more true pairs than its five captions an image: ECCV Caption (Chun et al., 2022) and CxC,
the Crisscrossed Captions (Parekh et al., 2021), from the data that the package eccv_caption carries.

Both keep the gallery of Karpathy's 5,000 test images and 25,000 captions. ECCV Caption asks 1,261 of these images and
1,332 of these captions, and its true pairs differ by direction. Two of its pairs name captions beyond an image's
fifth, which are in no such gallery: they are left out, where the package counts them as never found.
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evaluation.gallery import Gallery
from metrics.positions import Truth
from metrics.protocols import Fold
from utils import BadInput

PACKAGE = "eccv_caption"
TITLES = {"eccv": "5K, ECCV Caption", "cxc": "5K, CxC"}
USUAL_METRICS = {"eccv": ("map", "rprecision"), "cxc": ()}  # that its papers print beside R@K


def data_folder() -> Path:
    """Return where the package keeps its data, without importing it. Raises BadInput if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise BadInput(f"`ground_truth` needs the package {PACKAGE}, which is not installed: pip install {PACKAGE}")
    return Path(spec.submodule_search_locations[0]) / "data"


def ground_truth_folds(gallery: Gallery, names: Sequence[str]) -> dict[str, Fold]:
    """Return the gallery with each ground truth, by its name. Raises BadInput unless it is COCO's, all of it."""
    if not names:
        return {}
    data = data_folder()
    order = np.load(data / "coco_test_ids.npy").tolist()  # Karpathy's order, five captions an image
    image_of = {int(caption): images[0] for caption, images in _read(data / "original_caption_to_image.json").items()}
    captions_of: dict[int, list[int]] = {}
    for caption in order:
        captions_of.setdefault(image_of[caption], []).append(caption)
    image_rows = {number: row for row, name in enumerate(gallery.images) if (number := _image_number(name)) is not None}
    caption_rows = _caption_rows(gallery, captions_of)
    lost = [*(f"image {i}" for i in captions_of if i not in image_rows)]
    lost += [f"caption {c}" for c in order if c not in caption_rows]
    if lost or len(gallery.images) != len(captions_of):
        such = f", and {len(lost):,} of them are missing, such as {lost[0]}" if lost else ""
        raise BadInput(
            f"`ground_truth` {' '.join(names)}: stands for COCO's {len(captions_of):,} test images and their "
            f"{len(order):,} captions by COCO's own ids{such}; what is ranked are {gallery.size}"
        )
    rows = np.sort([caption_rows[caption] for caption in order])
    row_of = dict(zip(rows.tolist(), range(len(rows)), strict=True))
    folds = {}
    for name in dict.fromkeys(names):
        to_text, to_image = (_read(data / f"{name}_{way}.json") for way in ("image_to_caption", "caption_to_image"))
        forward = [(int(image), caption) for image, captions in to_text.items() for caption in captions]
        back = [(image, int(caption)) for caption, images in to_image.items() for image in images]
        sides = ([(image, caption) for image, caption in side if caption in image_of] for side in (forward, back))
        pairs = (np.array([(image_rows[i], row_of[caption_rows[c]]) for i, c in side]) for side in sides)
        folds[TITLES[name]] = Fold(0, len(gallery.images), rows, gallery.image_of_caption[rows], Truth(*pairs))
    return folds


def _read(path: Path) -> dict[str, list[int]]:
    return {key: [int(value) for value in values] for key, values in json.loads(path.read_text()).items()}


def _image_number(name: str) -> int | None:
    """
    >>> _image_number("val2014/COCO_val2014_000000391895.jpg"), _image_number("391895"), _image_number("a.jpg")
    (391895, 391895, None)
    """
    match = re.search(r"(\d+)$", Path(name).stem)
    return int(match[1]) if match else None


def _caption_rows(gallery: Gallery, captions_of: dict[int, list[int]]) -> dict[int, int]:
    """Return the row of each caption by COCO's id of it: its id in the pairs, or its number among those of its image,
    as Karpathy's file has them.
    """
    rows = {}
    for row, name in enumerate(gallery.caption_ids):
        image, sign, number = name.rpartition("#")
        if not sign and number.isdecimal():
            rows[int(number)] = row
        elif sign and number.isdecimal():
            known = captions_of.get(_image_number(image) or 0, [])
            rows |= {known[int(number)]: row} if int(number) < len(known) else {}
    return rows

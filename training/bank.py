"""The bank of a run: embeddings of training images and captions, for test-time correction (metrics/correction.py).

bank.safetensors holds up to BANK_ROWS of each, drawn by the run's seed, a number for each image id and each caption, by
which it is seen whether the bank holds what is being measured, and, in its header, the parameters that gave each
correction the best recalls on val: by bank ("train", or "test": the queries to be ranked), direction and name; and what
makes a probability of a score (training/calibration.py).
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors

from metrics.parameters import Parameters
from reading import parse_json, typed
from training.calibration import Calibration
from training.run import AGAIN
from utils import BadInput

if TYPE_CHECKING:  # a search reads a bank without torch
    from features.prepared import Split
    from metrics.correction import Bank

BANK = "bank.safetensors"
TENSORS = ("images", "captions", "image_keys", "caption_keys")
BANKS = ("train", "test")
Chosen = Mapping[str, Mapping[str, Mapping[str, Parameters]]]  # bank → direction → correction


@dataclass(frozen=True)
class RunBank:
    """A bank, read. images, captions: (B, D) float32; image_keys, caption_keys: (B,) int64, see `keys`."""

    images: np.ndarray
    captions: np.ndarray
    image_keys: np.ndarray
    caption_keys: np.ndarray
    chosen: Chosen
    calibration: Calibration | None  # where val was large enough, and shuffled sentences could be read

    def __repr__(self) -> str:
        return f"RunBank({len(self.images):,} images, {len(self.captions):,} captions, {self.calibration})"

    def side(self, direction: str) -> "Bank":
        """Return it as queries and gallery of a direction."""
        import torch

        from metrics.correction import Bank

        images, captions = torch.from_numpy(self.images), torch.from_numpy(self.captions)
        if direction == "text_to_image":
            return Bank(queries=captions, gallery=images)
        return Bank(queries=images, gallery=captions)

    def held(self, split: "Split") -> list[str]:
        """Return the ids of those images of a split which the bank holds, themselves or by a caption of theirs."""
        of_captions = [split.images[row] for row in split.image_of_caption]
        known = [
            (split.images, np.isin(keys(split.images), self.image_keys)),
            (of_captions, np.isin(caption_keys(split), self.caption_keys)),
        ]
        return list(dict.fromkeys(ids[row] for ids, hits in known for row in np.flatnonzero(hits)))


def read_bank(folder: Path) -> RunBank | None:
    """Read the bank of a run; None if it has none. Raises BadInput if it is damaged."""
    path = folder / BANK
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = parse_json(file.metadata()["about"])
            tensors = {name: file.get_tensor(name) for name in TENSORS}
        calibration = about["calibration"] and typed(Calibration, about["calibration"])
        chosen = {
            bank: {
                direction: {
                    name: typed(Parameters, {key: row[key] for key in row if key != "val"})
                    for name, row in rows.items()
                }
                for direction, rows in directions.items()
            }
            for bank, directions in about["chosen"].items()
        }
        if any(tensor.ndim != 2 - name.endswith("_keys") for name, tensor in tensors.items()):
            raise ValueError("tensors of other shapes")
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: cut short, or not the bank of a run of this version ({reason}); {AGAIN}") from None
    return RunBank(
        tensors["images"].astype(np.float32),
        tensors["captions"].astype(np.float32),
        tensors["image_keys"],
        tensors["caption_keys"],
        chosen,
        calibration,
    )


def keys(texts: Iterable[str]) -> np.ndarray:
    """Return a number (N,) int64 for every text: the first 64 bits of its SHA-256."""
    digests = b"".join(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8] for text in texts)
    return np.frombuffer(digests, "<i8").astype(np.int64)


def caption_keys(split: "Split") -> np.ndarray:
    """Return a number (M,) int64 for every caption of an image; another image's may read the same."""
    pairs = zip(split.image_of_caption.tolist(), split.captions, strict=True)
    return keys(f"{split.images[image]}\n{caption}" for image, caption in pairs)

"""How quick is prep.py from JPEG to HDF5, against the plain loop over the same network that one would write?

    python benchmarks/extraction.py
    python benchmarks/extraction.py --images Flicker8k_Dataset --backbone inception_v3 --weights inception_v3.pth

Without a folder of images some are drawn, as large as Flickr8k's. Times are those of whole extractions, decoding and
files included, in turn with the reference's. What starts once, loading and converting the network, is left out of both.
The features of all images are compared with the reference's.
"""

import argparse
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from unittest import mock

import h5py
import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from timing import Goal, Timing, in_pairs, memory_of, seconds, timings_table

from features.blocks import BFLOAT16, FLOAT32, OPENVINO, TORCH
from features.datasets.dataset import Image
from features.datasets.scenes import scenes
from features.device import default_device
from features.engines import Engine, cosines, has_bfloat16, is_installed, run_ahead
from features.images import extract as extraction
from features.images import weights as weight
from features.images.backbones import BACKBONES, Backbone, build, load
from features.images.decode import IMAGE_SUFFIXES
from features.images.engine import image_engine
from features.images.extract import extract
from features.images.layers import cut
from metrics.table import as_text
from script import run_script
from utils import be_quiet

REFERENCE_BATCH = 16
PIXELS = (500, 375)  # of images that are drawn
GOALS = {FLOAT32: Goal(2.4), BFLOAT16: Goal(4.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images; default: drawn ones")
    parser.add_argument("--count", type=int, default=64, help="images of it that are taken")
    parser.add_argument("--backbone", choices=list(BACKBONES), default="efficientnet_lite0")
    parser.add_argument("--weights", help="a local state dict, or random; default: the published weights")
    parser.add_argument("--workers", type=int, default=1, help="processes that decode, as of prep.py")
    parser.add_argument("--engine", nargs="+", choices=(TORCH, OPENVINO), help="default: those that are installed")
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    be_quiet()
    print(as_text(timings_table(timings(**vars(args)))))


def timings(
    images: Path | None = None,
    count: int = 64,
    backbone: str = "efficientnet_lite0",
    weights: str | None = None,
    workers: int = 1,
    engine: Sequence[str] | None = None,
    pairs: int = 5,
) -> list[Timing]:
    """Return a row for each engine and precision that this machine has, and one for each without decoding and files."""
    ours, body = load(backbone, weights=weights), plain_network(backbone, weights)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if images is None:
            images = draw_images(folder / "drawn", count)
        paths = [path for path in sorted(images.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES][:count]
        rows = []
        for name, precision in engines(engine):
            running = image_engine(ours, len(paths), engine=name, precision=precision)
            rows += compare(ours, body, running, paths, folder, workers, pairs)
        return rows


def draw_images(folder: Path, count: int) -> Path:
    """Return a folder of JPEGs of scenes, made as large as those of a dataset."""
    out = folder / "jpeg"
    out.mkdir(parents=True)
    for image in scenes(folder, 0, count, 0, 0).images:
        PILImage.open(folder / image.id).convert("RGB").resize(PIXELS).save(out / f"{Path(image.id).stem}.jpg")
    return out


def engines(wanted: Sequence[str] | None = None) -> Iterator[tuple[str, str]]:
    """Yield the engines, those that are wanted or all that fit, each in the precisions of this machine."""
    fits = is_installed() and default_device().type == "cpu"
    for name in wanted or (TORCH, *([OPENVINO] if fits else [])):
        yield name, FLOAT32
        if has_bfloat16(name):
            yield name, BFLOAT16


def compare(
    backbone: Backbone,
    body: nn.Module,
    engine: Engine,
    paths: Sequence[Path],
    folder: Path,
    workers: int,
    pairs: int,
) -> list[Timing]:
    """Time an engine in turn with the reference, and alone in turn with all of prep.py's work."""
    images = [Image(str(path), path, "train", ("",)) for path in paths]
    taken = list(islice(cycle(paths), REFERENCE_BATCH))
    pixels = torch.stack([backbone.transform(PILImage.open(path).convert("RGB")) for path in taken])
    out, plain = folder / "ours.h5", folder / "reference.h5"

    def ours() -> float:
        with mock.patch.object(extraction, "image_engine", return_value=engine):  # it starts but once
            return seconds(lambda: extract(images, backbone, out, workers=workers, engine=engine.name, fresh=True))

    def bare() -> float:
        batches = [pixels] * math.ceil(len(paths) / len(pixels))  # of one size, as prep.py fills them up
        return seconds(lambda: list(run_ahead(engine.start, batches, engine.ahead)))

    def reference() -> float:
        return seconds(lambda: reference_extraction(paths, backbone.transform, body, plain))

    bare(), reference()
    memory = memory_of(ours)
    cosine = smallest_cosine(out, plain)
    took, ratios = in_pairs(ours, reference, pairs)
    again, share = in_pairs(ours, bare, pairs)
    what = f"prep.py, {backbone.store}, {engine.name} {engine.precision}"
    alone = [seconds * part for seconds, part in zip(again, share, strict=True)]
    rates = [f"{len(paths) / median(times):.1f} images/s" for times in (took, alone)]
    note = f"{rates[0]}, smallest cosine {cosine:.7f}"
    return [
        Timing(what, took, ratios, note, "plain loop, batches of 16", memory, GOALS[engine.precision]),
        Timing(what, again, share, f"alone {rates[1]}", "the network alone", None, Goal(0.9)),
    ]


def plain_network(name: str, weights: str | None) -> nn.Module:
    """Return the network as its library builds it, cut where its features are: nothing folded, channels first."""
    torch.manual_seed(0)
    body = cut(name, build(name), BACKBONES[name].vector)
    if weights != "random":
        of_install = name == "efficientnet_lite0" and weights is None
        published = weight.from_install if of_install else lambda: weight.from_torchvision(name)
        state, _ = weight.from_file(name, weights) if weights else published()
        body.load_state_dict({key: value for key, value in state.items() if key in body.state_dict()})
    return body.requires_grad_(False).eval().to(default_device())


def reference_extraction(paths: Sequence[Path], transform: object, body: nn.Module, file: Path) -> None:
    """Decode a batch, run the network, append its rows to HDF5, and so on."""
    assert callable(transform)
    with h5py.File(file, "w") as out, torch.no_grad():
        rows = None
        for start in range(0, len(paths), REFERENCE_BATCH):
            batch = [transform(PILImage.open(path).convert("RGB")) for path in paths[start : start + REFERENCE_BATCH]]
            features = body(torch.stack(batch).to(default_device())).cpu().numpy()
            if rows is None:
                rows = out.create_dataset("features", (len(paths), features.shape[1]), "float32")
            rows[start : start + len(features)] = features


def smallest_cosine(ours: Path, reference: Path) -> float:
    def read(path: Path) -> Tensor:
        with h5py.File(path) as file:
            return torch.from_numpy(np.asarray(file["features"]))

    return float(cosines(read(ours), read(reference)).min())


if __name__ == "__main__":
    run_script(main)

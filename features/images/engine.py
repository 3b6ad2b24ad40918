"""The engine that computes a backbone: what OpenVINO is given of it, and which is the quicker where nobody says."""

import copy
from collections.abc import Callable

import numpy as np
from PIL import Image as PILImage
from torch import Tensor

from features.blocks import AUTO, FLOAT32, TORCH
from features.engines import Engine, OpenVINOEngine, choose_engine
from features.images.backbones import Backbone, Frozen, join_crops

AUTO_MIN_IMAGES = 500  # images, below which converting and measuring take longer than they could save


class CropsEngine:
    """OpenVINO for all that a backbone takes: of (B, n, 3, H, W), crops or views, one of all images after the other."""

    def __init__(self, engine: Engine, views: bool):
        self.engine, self.views = engine, views
        self.name, self.precision, self.ahead = engine.name, engine.precision, engine.ahead

    def start(self, *inputs: Tensor) -> Callable[[], Tensor]:
        (pixels,) = inputs
        if pixels.dim() < 5:
            return self.engine.start(pixels)
        waits = [self.engine.start(pixels[:, crop]) for crop in range(pixels.shape[1])]
        return lambda: join_crops([wait() for wait in waits], self.views)


def image_engine(
    backbone: Backbone, count: int, *, batch: int = 16, engine: str = AUTO, precision: str = FLOAT32
) -> Engine:
    """Return the engine asked for, ready for batches of `batch` images; AUTO: the quicker one for `count` images.

    Raises BadInput if it is not installed, cannot take the backbone or gives other features, or the machine has no
    bfloat16.
    """
    module = backbone.module

    def convert() -> tuple[Engine, tuple[Tensor]]:
        pixels = backbone.transform(_noise())
        pixels = (pixels[0] if pixels.dim() == 4 else pixels).expand(batch, *pixels.shape[-3:]).contiguous()
        rows = module.rows if isinstance(module, Frozen) else module
        if isinstance(module, Frozen) and module.device.type != "cpu":
            rows = copy.deepcopy(rows).cpu()
        return CropsEngine(OpenVINOEngine(rows, (pixels,), precision), backbone.views > 1), (pixels,)

    if engine == AUTO and count < AUTO_MIN_IMAGES:
        engine = TORCH
    return choose_engine(engine, precision, module, convert, backbone.store, "images")


def _noise() -> PILImage.Image:
    """Return an image on which networks that compute different things differ."""
    return PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (320, 320, 3), np.uint8))

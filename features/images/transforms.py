"""What a network sees of an image: its published transform, at another size, in ten crops, or in several views."""

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from features.images import weights as weight
from utils import BadInput

MIN_SIZE = 32  # pixels: networks halve an image five times


class View(NamedTuple):
    """A crop of the image resized `scale` times as large as published; left, top: what share of the rest lies there."""

    name: str
    scale: float
    left: float
    top: float


# The views of an image, in this order; every second one is mirrored. View 0 is what is seen without views.
VIEWS = (
    View("center", 1.0, 0.5, 0.5),
    View("center", 1.0, 0.5, 0.5),
    View("top left", 1.25, 0.0, 0.0),
    View("bottom right", 1.25, 1.0, 1.0),
    View("top right", 1.25, 1.0, 0.0),
    View("bottom left", 1.25, 0.0, 1.0),
    View("center", 1.25, 0.5, 0.5),
    View("center", 1.25, 0.5, 0.5),
    View("center", 1.5, 0.5, 0.5),
    View("center", 1.5, 0.5, 0.5),
)


def published_transform(name: str, network: nn.Module) -> Any:
    """Return the published transform, PIL RGB image → (3, H, W), as a `Compose` of steps that `describe` can name."""
    from torchvision import transforms

    if name.startswith("timm:"):
        import timm

        return timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    if name == "efficientnet_lite0":
        # (x - 127) / 128 at 224, as published, but without cutting an eighth off the shorter side first: captions speak
        # of the border too, and seeing it is worth 6 points of rsum on Flickr8k's val (docs/NOT_HELPED.md).
        resize, crop, way = 224, 224, transforms.InterpolationMode.BICUBIC
        mean, std = [127 / 255] * 3, [128 / 255] * 3
    else:
        preset = weight.published(name).transforms()
        (resize,), (crop,), way = preset.resize_size, preset.crop_size, preset.interpolation
        mean, std = preset.mean, preset.std
    return transforms.Compose(
        [
            transforms.Resize(resize, interpolation=way),
            transforms.CenterCrop(crop),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


def check_crops(map: bool, crops: int, views: int, size: int | None) -> None:
    """Raise BadInput for crops, views or a size that there are not, or that do not go together."""
    if crops not in (1, 10):
        raise BadInput(f"`crops` {crops}: an image is seen whole or in ten crops; choose 1 or 10")
    if map and crops == 10:
        raise BadInput("`map` with `crops` 10: a map has one grid, ten crops have ten; choose one of the two")
    if not 1 <= views <= len(VIEWS):
        raise BadInput(f"`views` {views}: an image has {len(VIEWS)} views; choose a number from 1 to {len(VIEWS)}")
    if views > 1 and (map or crops == 10):
        other = "`map`" if map else "`crops` 10"
        raise BadInput(f"`views` {views} with {other}: views are kept of one vector each; choose one of the two")
    if size is not None and size < MIN_SIZE:
        raise BadInput(f"`size` {size}: at least {MIN_SIZE} pixels; networks halve an image five times")


def input_size(transform: Any) -> int | None:
    """Return the side of the crop that a published transform ends in; None if it takes none."""
    from torchvision.transforms import CenterCrop

    crop = next((step for step in transform.transforms if type(step) is CenterCrop), None)
    return None if crop is None else int(crop.size[0])


def resized(name: str, published: Any, size: int) -> Any:
    """Return a published transform for images of `size` pixels a side: its resize is scaled in proportion.

    Raises BadInput if it is not a resize and a crop.
    """
    from torchvision import transforms

    side = input_size(published)
    steps = list(published.transforms)
    resize = next((i for i, step in enumerate(steps) if type(step) is transforms.Resize), None)
    if side is None or resize is None:
        raise BadInput(f"`size` {size}: the published transform of {name} is no resize and crop; leave `size` out")
    steps[resize] = _scaled(steps[resize], size / side)
    steps = [transforms.CenterCrop(size) if type(step) is transforms.CenterCrop else step for step in steps]
    return transforms.Compose(steps)


def _scaled(resize: Any, scale: float) -> Any:
    """A copy of a Resize to `scale` times its size."""
    size = resize.size
    size = round(size * scale) if isinstance(size, int) else [round(side * scale) for side in size]
    return type(resize)(size, interpolation=resize.interpolation, antialias=resize.antialias)


class TenCrops:
    """A published transform that takes the four corners, the center and their mirror images: → (10, 3, H, W)."""

    def __init__(self, name: str, whole: Any) -> None:
        from torchvision import transforms

        self.before, step, self.after = _around_crop(name, whole, "crops")
        self.crop = transforms.TenCrop(step.size)

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([self.after(crop) for crop in self.crop(self.before(image))])


class Views:
    """A published transform that takes the first `count` of VIEWS: PIL RGB image → (count, 3, H, W)."""

    def __init__(self, name: str, whole: Any, count: int) -> None:
        from torchvision import transforms

        self.whole, self.views = whole, VIEWS[:count]
        before, self.crop, self.after = _around_crop(name, whole, "views")
        self.before = {
            scale: transforms.Compose(
                [_scaled(step, scale) if type(step) is transforms.Resize else step for step in before.transforms]
            )
            for scale in {view.scale for view in self.views}
        }

    def __call__(self, image: Any) -> Tensor:
        resized = {scale: before(image) for scale, before in self.before.items()}
        return torch.stack(
            [self.after(self._crop(resized[view.scale], view, number % 2)) for number, view in enumerate(self.views)]
        )

    def _crop(self, image: Any, view: View, mirrored: int) -> Any:
        from torchvision.transforms import functional

        if view.name == "center":
            crop = self.crop(image)
        else:
            height, width = self.crop.size
            left, top = round((image.width - width) * view.left), round((image.height - height) * view.top)
            crop = functional.crop(image, top, left, height, width)
        return functional.hflip(crop) if mirrored else crop


def _around_crop(name: str, whole: Any, option: str) -> tuple[Any, Any, Any]:
    """What a transform does before its center crop, the crop, and what it does after it."""
    from torchvision import transforms

    kinds = [type(step) for step in whole.transforms]
    if transforms.CenterCrop not in kinds:
        raise BadInput(f"`{option}`: the published transform of {name} takes no crop; leave `{option}` out")
    index = kinds.index(transforms.CenterCrop)
    steps = whole.transforms
    return transforms.Compose(steps[:index]), steps[index], transforms.Compose(steps[index + 1 :])


def describe(transform: Any) -> str:
    """Describe a transform in words that no library changes: "resize 342 bilinear, crop 299, mean …, std …"."""
    if isinstance(transform, Views):
        names = [f"{view.name} {view.scale:g}" for view in transform.views]
        views = [f"{name} mirrored" if number % 2 else name for number, name in enumerate(names)]
        return f"{describe(transform.whole)}, views: {'; '.join(views)}"
    if isinstance(transform, TenCrops):
        steps = [*transform.before.transforms, transform.crop, *transform.after.transforms]
    else:
        steps = transform.transforms
    return ", ".join(filter(None, map(_describe_step, steps)))


def _describe_step(step: Any) -> str:
    kind = type(step).__name__
    if kind == "Resize":
        return f"resize {_sizes(step.size)} {step.interpolation.value}"
    if kind in ("CenterCrop", "TenCrop"):
        return f"{'crop' if kind == 'CenterCrop' else 'ten crops'} {_sizes(step.size)}"
    if kind == "Normalize":
        return f"mean {_sizes(step.mean)}, std {_sizes(step.std)}"
    return "" if kind in ("ToTensor", "MaybeToTensor", "MaybeConvertMode") else re.sub(r"\s+", " ", repr(step))


def _sizes(values: Any) -> str:
    values = [values] if isinstance(values, int | float) else [float(value) for value in values]
    values = values[:1] if len(set(values)) == 1 else values
    return " ".join(f"{value:.6g}" for value in values)

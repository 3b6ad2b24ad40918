"""Frozen networks: their published transform, cut at a layer, with weights that are checked, and quick on a CPU.

backbone = load("inception_v3")
row = backbone.module(backbone.transform(image)[None])  # (1, 2048)
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from features.device import default_device
from features.images import weights as weight
from features.images.layers import cut, fuse_conv_bn, output_layer, penultimate_layer
from features.images.store import store_name
from utils import BadInput, did_you_mean, log

RANDOM = "random"


class Layers(NamedTuple):
    """Where a network is cut: the node of its vector, the size after pooling, and the node of its last spatial map."""

    vector: str
    size: int
    map: str


# The vector that the papers take: pooled after the last convolution, for VGG fc7 after its ReLU. Without dropout.
BACKBONES = {
    "inception_v3": Layers("flatten", 2048, "Mixed_7c"),
    "vgg16": Layers("classifier.4", 4096, "features"),
    "vgg19": Layers("classifier.4", 4096, "features"),
    "resnet18": Layers("flatten", 512, "layer4"),
    "resnet50": Layers("flatten", 2048, "layer4"),
    "resnet152": Layers("flatten", 2048, "layer4"),
    "densenet201": Layers("flatten", 1920, "relu"),
    "efficientnet_b0": Layers("flatten", 1280, "features"),
    "efficientnet_lite0": Layers("global_pool.flatten", 1280, "bn2"),
}


@dataclass(frozen=True)
class Backbone:
    """A frozen network, cut at `layer`, ready to run, and everything that a store says about where its rows come from.

    module: (B, 3, H, W) float32 → (B, D), or (B, H, W, C) for a map, float32 on the CPU; (B, 10, 3, H, W) for ten
    crops, whose features it averages. transform: PIL RGB image → (3, H, W), or (10, 3, H, W).
    """

    name: str
    layer: str
    store: str
    module: nn.Module
    transform: Callable[[Any], Tensor]
    transform_text: str
    digest: str
    weights: str
    shape: tuple[int, ...]
    map: bool = False
    crops: int = 1
    file: str = ""  # where the weights lie, if they are a local file

    @property
    def attributes(self) -> dict[str, str | int]:
        """Return what the store of its features says about them."""
        return {
            "backbone": self.name,
            "layer": self.layer,
            "digest": self.digest,
            "transform": self.transform_text,
            "weights": self.weights,
            "file": self.file,
            "map": int(self.map),
            "crops": self.crops,
        }


def load(
    name: str, *, layer: str | None = None, weights: Path | str | None = None, map: bool = False, crops: int = 1
) -> Backbone:
    """Load the backbone `name`: one of BACKBONES, another torchvision classifier, or timm:NAME.

    layer: node of its graph, instead of the penultimate one; a 4-d output is averaged over space unless `map` keeps it.
    weights: None for the published ones, a path, or "random" (for tests). crops: 1, or 10 (corners, center, mirrored).
    Raises BadInput for an unknown name or node, weights that do not fit, a failed download, or a layer without a map.
    """
    if crops not in (1, 10):
        raise BadInput(f"`crops` {crops}: an image is seen whole or in ten crops; choose 1 or 10")
    if map and crops == 10:
        raise BadInput("`map` with `crops` 10: a map has one grid, ten crops have ten; choose one of the two")
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)  # so that random weights are the same in every run
    try:
        network = build(name, map=map, pretrained=weights is None)
    finally:
        torch.random.set_rng_state(torch_state)
    transform = published_transform(name, network)
    default = default_layer(name, network, transform, map)
    node = layer or default or "output"
    body = cut(name, network, node) if layer or default else network
    text = _fill(name, network, body, f"layer {node} of {name}", weights)
    if crops == 10:
        transform = TenCrops(name, transform)
    digest = weight.digest(body)
    module = Frozen(fuse_conv_bn(body), map, f"{node} of {name}")
    return Backbone(
        name=name,
        layer=node,
        store=store_name(name, layer if node != default else None, map, crops),
        module=module,
        transform=transform,
        transform_text=describe(transform),
        digest=digest,
        weights=text,
        shape=_row_shape(module, transform),
        map=map,
        crops=crops,
        file="" if weights is None or weights == RANDOM else str(Path(weights).resolve()),
    )


def reopen(attributes: Mapping[str, Any]) -> Backbone:
    """Load the backbone that made a store of these attributes, for images that the store does not hold.

    Raises BadInput if the features came precomputed, or the weights are no longer those they were.
    """
    name, layer, text = (str(attributes[key]) for key in ("backbone", "layer", "weights"))
    if layer == "precomputed":
        raise BadInput(
            f"{name}: its features came precomputed ({text}); only images of its prepared folder can be used"
        )
    weights = RANDOM if text == RANDOM else attributes.get("file") or None
    if weights is None and text.startswith("file "):
        raise BadInput(f"{name}: nothing says where its weights lie ({text}); extract its features again with prep.py")
    node = None if layer == "output" else layer
    backbone = load(name, layer=node, weights=weights, map=bool(attributes["map"]), crops=int(attributes["crops"]))
    if backbone.digest != attributes["digest"]:
        source = weights or backbone.weights
        raise BadInput(f"{name}: {source} holds other weights than its features were made with; put those back there")
    return backbone


def default_layer(name: str, network: nn.Module, transform: Any, map: bool) -> str | None:
    """Return the node that `layer` None stands for; None for the whole of a timm model that cannot be traced."""
    if name in BACKBONES:
        return BACKBONES[name].map if map else BACKBONES[name].vector
    if name.startswith("timm:"):
        return output_layer(network)
    return penultimate_layer(name, network, transform(_blank()).shape[-1] if map else None)


def _fill(name: str, network: nn.Module, body: nn.Module, what: str, weights: Path | str | None) -> str:
    """Put the weights asked for into `body`; return what to call them."""
    if weights == RANDOM:
        log(f"warning: {name} has random weights: its features are good for tests only")
        return RANDOM
    if weights is not None:
        state, text = weight.from_file(name, weights)
        source = str(weights)
    elif name == "efficientnet_lite0":
        state, text = weight.from_install()
        source = text
    elif name.startswith("timm:"):
        return f"timm {_timm_config(network).get('architecture')}.{_timm_config(network).get('tag')}"
    else:
        state, text = weight.from_torchvision(name)
        source = text
    weight.fill(body, state, known=_full_keys(network), what=what, source=source)
    return text


def _full_keys(network: nn.Module) -> list[str]:
    """Return the keys of the whole network, with the classifier that timm leaves out as a prefix."""
    classifier = _timm_config(network).get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else classifier
    return [*network.state_dict(), *(f"{head}." for head in heads)]


def _timm_config(network: nn.Module) -> dict[str, Any]:
    return vars(network).get("pretrained_cfg") or {}


def build(name: str, *, map: bool = False, pretrained: bool = False) -> nn.Module:
    """Build the network in evaluation mode, its weights still random (timm's own ones, if `pretrained`).

    Raises BadInput, naming the nearest known name, if neither torchvision nor timm has it.
    """
    if name == "efficientnet_lite0":
        import timm

        return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    if name.startswith("timm:"):
        return _build_timm(name.removeprefix("timm:"), map, pretrained).eval()
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = did_you_mean(name, [*BACKBONES, *known], f"known: {', '.join(BACKBONES)}")
        raise BadInput(f"`backbone` {name}: unknown; {hint}; any torchvision classifier will do, and timm:NAME")
    options: dict[str, Any] = {}
    if name in ("inception_v3", "googlenet"):
        # The published weights expect inputs scaled to -1..1, which these two do themselves, but by default only for
        # weights that torchvision downloads: a local file would silently see another input.
        options = {"transform_input": True, "init_weights": False, "aux_logits": True}
    return models.get_model(name, weights=None, **options).eval()


def _build_timm(name: str, map: bool, pretrained: bool) -> nn.Module:
    import timm

    if ":" not in name:  # hf-hub:… and the like are found by timm itself
        known = [*timm.list_models(), *timm.list_pretrained()]
        if name not in known:
            names = [f"timm:{model}" for model in known]
            hint = did_you_mean(f"timm:{name}", names, "timm.list_models() lists the names")
            raise BadInput(f"`backbone` timm:{name}: timm has no such model; {hint}")
    options: dict[str, Any] = {"num_classes": 0}
    if map:
        options["global_pool"] = ""  # timm's way to leave the last map or the last tokens as they are
    if pretrained:
        return weight.from_timm(name, **options)
    return timm.create_model(name, pretrained=False, **options)


class Frozen(nn.Module):
    """`body` without gradients, on the GPU if there is one; what comes out is arranged into rows on the CPU."""

    def __init__(self, body: nn.Module, map: bool, node: str) -> None:
        super().__init__()
        self.device = default_device()
        self.body = body.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # ten bits: features would differ in the third digit from a CPU's
        self.map, self.node = map, node

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D) or (B, H, W, C); (B, 10, 3, H, W) → the mean over the ten, crop by crop."""
        if pixels.dim() == 5:
            return torch.stack([self(pixels[:, crop]) for crop in range(pixels.shape[1])]).mean(0)
        out = self.body(pixels.to(self.device).contiguous(memory_format=torch.channels_last))
        return arrange(out, self.map, self.node).float().cpu().contiguous()


def arrange(out: Any, map: bool, node: str) -> Tensor:
    """Arrange what a node gives into (B, D), or (B, H, W, C) for a map: tokens without the class token, or their mean.

    Raises BadInput that names the node if it gives no feature of an image.
    """
    if isinstance(out, Tensor) and out.dim() == 2 and not map:
        return out
    if isinstance(out, Tensor) and out.dim() == 4:
        # Images are square: where the first two of three sizes agree and the last does not, channels stand last.
        channels_last = out.shape[1] == out.shape[2] != out.shape[3]
        spatial = out if channels_last else out.permute(0, 2, 3, 1)
        return spatial if map else spatial.mean((1, 2))
    if isinstance(out, Tensor) and out.dim() == 3:
        side = math.isqrt(out.shape[1])
        return out[:, out.shape[1] - side**2 :].unflatten(1, (side, side)) if map else out.mean(1)
    got = f"a tensor of shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    want = "no spatial map" if map else "no feature of an image"
    raise BadInput(f"`layer` {node} gives {got}, {want}; name another node")


def _row_shape(module: nn.Module, transform: Callable[[Any], Tensor]) -> tuple[int, ...]:
    pixels = transform(_blank())
    return tuple(module((pixels[0] if pixels.dim() == 4 else pixels)[None]).shape[1:])


def _blank() -> PILImage.Image:
    return PILImage.new("RGB", (64, 64))


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


class TenCrops:
    """A published transform that takes the four corners, the center and their mirror images: → (10, 3, H, W)."""

    def __init__(self, name: str, whole: Any) -> None:
        from torchvision import transforms

        kinds = [type(step) for step in whole.transforms]
        if transforms.CenterCrop not in kinds:
            raise BadInput(f"`crops` 10: the published transform of {name} takes no crop; leave `crops` out")
        step = kinds.index(transforms.CenterCrop)
        self.before = transforms.Compose(whole.transforms[:step])
        self.crop = transforms.TenCrop(whole.transforms[step].size)
        self.after = transforms.Compose(whole.transforms[step + 1 :])

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([self.after(crop) for crop in self.crop(self.before(image))])


def describe(transform: Any) -> str:
    """Describe a transform in words that no library changes: "resize 342 bilinear, crop 299, mean …, std …"."""
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
    return "" if kind in ("ToTensor", "MaybeToTensor") else re.sub(r"\s+", " ", repr(step))


def _sizes(values: Any) -> str:
    values = [values] if isinstance(values, int | float) else [float(value) for value in values]
    values = values[:1] if len(set(values)) == 1 else values
    return " ".join(f"{value:.6g}" for value in values)

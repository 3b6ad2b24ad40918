"""Frozen networks: their published transform, cut at a layer, with weights that are checked, and quick on a CPU.

backbone = load("inception_v3")
row = backbone.module(backbone.transform(image)[None])  # (1, 2048)
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from features.blocks import FLOAT32, TORCH
from features.device import default_device
from features.dual_encoders import RANDOM, ImageTower, load_dual
from features.images import weights as weight
from features.images.layers import cut, fuse_conv_bn, output_layer, penultimate_layer
from features.images.store import store_name
from features.images.transforms import TenCrops, Views, check_crops, describe, input_size, published_transform, resized
from features.text.hub import dual_stem, is_dual
from features.text.store import PROJECTED
from utils import BadInput, did_you_mean, warn


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
    crops, whose features it averages; (B, views, 3, H, W) → (B, views, D). transform: PIL RGB image → (3, H, W),
    (10, 3, H, W) or (views, 3, H, W). size: of the input in pixels, 0 for the published one.
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
    views: int = 1
    size: int = 0
    engine: str = TORCH  # what computes the rows of its store, and in which precision
    precision: str = FLOAT32

    @property
    def attributes(self) -> dict[str, str | int]:
        """Return what the store of its features says about them; of views and size, where they are not the usual."""
        unusual: dict[str, str | int] = {"views": self.views} if self.views > 1 else {}
        if self.size:
            unusual["size"] = self.size
        return {
            "backbone": self.name,
            "layer": self.layer,
            "digest": self.digest,
            "transform": self.transform_text,
            "weights": self.weights,
            "file": self.file,
            "map": int(self.map),
            "crops": self.crops,
            "engine": self.engine,
            "precision": self.precision,
            **unusual,
        }


def load(
    name: str,
    *,
    layer: str | None = None,
    weights: Path | str | None = None,
    map: bool = False,
    crops: int = 1,
    views: int = 1,
    size: int | None = None,
) -> Backbone:
    """Load the backbone `name`: one of BACKBONES, another torchvision classifier, timm:NAME, or a dual encoder's tower.

    layer: node of its graph, instead of the penultimate one; a 4-d output is averaged over space unless `map` keeps it.
    weights: None for the published ones, a path, or "random" (for tests). crops: 1, or 10 (corners, center, mirrored).
    views: so many of VIEWS, a row of each. size: side of its input in pixels, None for the published one.
    Raises BadInput for an unknown name or node, weights that do not fit, a failed download, or a layer without a map.
    """
    check_crops(map, crops, views, size)
    if is_dual(name):
        return _load_tower(name, layer, weights, map, crops, views, size)
    network = _build_seeded(name, map=map, pretrained=weights is None)
    whole = published_transform(name, network)
    if size is not None:
        size, whole = (None, whole) if size == input_size(whole) else (size, resized(name, whole, size))
    with _size_refused(name, size):
        default = default_layer(name, network, whole, map)
    node = layer or default or "output"
    body = cut(name, network, node) if layer or default else network
    text = _fill(name, network, body, f"layer {node} of {name}", weights)
    digest = weight.digest(body)
    module = Frozen(fuse_conv_bn(body), map, f"{node} of {name}", views > 1)
    with _size_refused(name, size):
        shape = _row_shape(module, whole)
    transform = _cropped(name, whole, crops, views)
    return Backbone(
        name=name,
        layer=node,
        store=store_name(name, layer if node != default else None, map, crops, views, size),
        module=module,
        transform=transform,
        transform_text=describe(transform),
        digest=digest,
        weights=text,
        shape=(views, *shape) if views > 1 else shape,
        map=map,
        crops=crops,
        file="" if weights is None or weights == RANDOM else str(Path(weights).resolve()),
        views=views,
        size=size or 0,
    )


def _load_tower(
    name: str, layer: str | None, weights: Path | str | None, map: bool, crops: int, views: int, size: int | None
) -> Backbone:
    """Load the image tower of a dual encoder, up to its own projection, with its own transform."""
    if layer not in (None, PROJECTED) or map or size:
        option = "map" if map else "size" if size else "layer"
        raise BadInput(f"`{option}`: {name} is taken whole, up to its own projection; leave `{option}` out")
    dual = load_dual(name, weights, "backbone")
    transform = _cropped(name, dual.transform, crops, views)
    module = Frozen(ImageTower(dual), False, name, views > 1)
    shape = _row_shape(module, transform)
    return Backbone(
        name=dual.name,
        layer=PROJECTED,
        store=store_name(dual_stem(name), None, False, crops, views),
        module=module,
        transform=transform,
        transform_text=describe(transform),
        digest=dual.digest,
        weights=dual.weights,
        shape=shape,
        crops=crops,
        file=dual.file,
        views=views,
    )


def _cropped(name: str, whole: Any, crops: int, views: int) -> Any:
    """Return a transform that takes ten crops or several views, or the whole one."""
    return TenCrops(name, whole) if crops == 10 else Views(name, whole, views) if views > 1 else whole


def _build_seeded(name: str, *, map: bool, pretrained: bool) -> nn.Module:
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)  # so that random weights are the same in every run
    try:
        return build(name, map=map, pretrained=pretrained)
    finally:
        torch.random.set_rng_state(torch_state)


@contextlib.contextmanager
def _size_refused(name: str, size: int | None) -> Iterator[None]:
    """Turn what a network raises that cannot take images of `size` into one sentence."""
    try:
        yield
    except (RuntimeError, AssertionError, ValueError) as error:  # a kernel larger than what is left, a fixed grid
        if size is None:
            raise
        raise BadInput(
            f"`size` {size}: {name} takes no images of {size} by {size} pixels; name another, or leave `size` out for "
            f"the published one"
        ) from error


def reopen(attributes: Mapping[str, Any]) -> Backbone:
    """Load the backbone that made a store of these attributes, for images that the store does not hold.

    Raises BadInput if the features came precomputed, or the weights are no longer those they were.
    """
    name, layer, text = (str(attributes.get(key, "")) for key in ("backbone", "layer", "weights"))
    if layer == "precomputed":
        raise BadInput(
            f"{name}: its features came precomputed ({text}); only images of its prepared folder can be used"
        )
    weights = RANDOM if text == RANDOM else attributes.get("file") or None
    if weights is None and text.startswith("file "):
        raise BadInput(f"{name}: nothing says where its weights lie ({text}); extract its features again with prep.py")
    node = None if layer == "output" else layer
    numbers = {key: attributes.get(key, usual) for key, usual in (("map", None), ("crops", None), ("views", 1))}
    whole = {"backbone", "layer", "weights", "digest"} <= attributes.keys() and isinstance(weights, str | None)
    if not whole or not all(isinstance(number, int) for number in numbers.values()):
        raise BadInput(f"{name}: nothing says how its features were made; extract them again with prep.py")
    backbone = load(
        name,
        layer=node,
        weights=weights,
        map=bool(numbers["map"]),
        crops=numbers["crops"],
        views=numbers["views"],
        size=attributes.get("size"),
    )
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
        warn(f"warning: {name} has random weights: its features are good for tests only")
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


class Rows(nn.Module):
    """`body` without gradients, and what comes out arranged into rows: (B, 3, H, W) → (B, D) or (B, H, W, C)."""

    def __init__(self, body: nn.Module, map: bool, node: str) -> None:
        super().__init__()
        self.body, self.map, self.node = body.eval().requires_grad_(False), map, node

    def forward(self, pixels: Tensor) -> Tensor:
        return arrange(self.body(pixels), self.map, self.node)


class Frozen(nn.Module):
    """Rows of images, on the GPU if there is one; what comes out is on the CPU."""

    def __init__(self, body: nn.Module, map: bool, node: str, views: bool = False) -> None:
        super().__init__()
        self.device = default_device()
        self.rows = Rows(body, map, node).to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # ten bits: features would differ in the third digit from a CPU's
        self.views = views

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D) or (B, H, W, C); (B, n, 3, H, W) → (B, n, D) of views, of ten crops their mean.

        One crop of all images after the other: batches are of one size, whatever is taken of an image.
        """
        if pixels.dim() == 5:
            return join_crops([self(pixels[:, crop]) for crop in range(pixels.shape[1])], self.views)
        rows = self.rows(pixels.to(self.device).contiguous(memory_format=torch.channels_last))
        return rows.float().cpu().contiguous()


def join_crops(parts: Sequence[Tensor], views: bool) -> Tensor:
    """Join n crops of B images, (B, D) each: (B, n, D) of views, of ten crops their mean (B, D).

    >>> join_crops([torch.zeros(1, 2), torch.ones(1, 2)], views=False).tolist()
    [[0.5, 0.5]]
    """
    return torch.stack(list(parts), dim=1) if views else torch.stack(list(parts)).mean(0)


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
    return tuple(module(transform(_blank())[None]).shape[1:])


def _blank() -> PILImage.Image:
    return PILImage.new("RGB", (64, 64))

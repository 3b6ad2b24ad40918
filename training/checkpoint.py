"""Weights and checkpoints: written whole or not at all, read without unpickling a class."""

import copy
import io
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from features.device import default_device
from model import TwoBranch
from reading import open_regular
from utils import BadInput, atomic_write


def save_model(path: Path, model: TwoBranch) -> None:
    """Write the weights of a model, as safetensors."""
    with atomic_write(path, "wb") as file:
        file.write(safetensors.torch.save({name: t.cpu().contiguous() for name, t in model.state_dict().items()}))


def load_model(path: Path, model: TwoBranch) -> None:
    """Put saved weights into a model. Raises BadInput if they are missing, damaged or of another recipe."""
    remedy = "train the run again with `fresh`"
    try:
        with open_regular(path) as file:
            model.load_state_dict(safetensors.torch.load(file.read()))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file; {remedy}") from None
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise BadInput(f"{path}: cut short, or not the weights of this recipe ({reason}); {remedy}") from None


def save_checkpoint(
    path: Path,
    model: TwoBranch,
    optimizer: torch.optim.Optimizer,
    log: list[dict[str, Any]],
    average: TwoBranch | None = None,
) -> None:
    """Write all that resuming needs: plain tensors and numbers. average: the model of averaged weights, if any."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "log": log}
    buffer = io.BytesIO()
    torch.save({**state, "average": None if average is None else average.state_dict()}, buffer)
    with atomic_write(path, "wb") as file:
        file.write(buffer.getbuffer())


def load_checkpoint(
    path: Path, model: TwoBranch, optimizer: torch.optim.Optimizer
) -> tuple[list[dict[str, Any]], TwoBranch | None]:
    """Put the last checkpoint into model and optimizer; return its log and the model of averaged weights, if any.

    Without a checkpoint the log is empty. Raises BadInput if the file is damaged, or of another model.
    """
    if not path.is_file():
        return [], None
    try:
        state = torch.load(path, map_location=default_device(), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average = None
        if state["average"] is not None:
            average = copy.deepcopy(model)
            average.load_state_dict(state["average"])
        return list(state["log"]), average
    except Exception as error:  # whatever a damaged file makes torch stumble over
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(f"{path}: not a checkpoint of this run ({reason}); start over with `fresh`") from None

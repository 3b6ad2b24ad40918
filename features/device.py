"""The device that networks run on: one choice for the frozen ones and for those that are trained."""

import torch


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU.

    >>> default_device().type in ("cuda", "cpu")
    True
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

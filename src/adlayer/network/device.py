"""Where networks run, by the name that a user gives."""

from __future__ import annotations

import torch

from adlayer.errors import UserError

DEVICES = ("cpu", "cuda")


def find_device(name: str) -> torch.device:
    """The device of a name.

    Raises
    ------
    UserError
        If there is no such name, or no such device on this machine.
    """
    if name not in DEVICES:
        raise UserError(f'device "{name}" is unknown: choose one of {", ".join(DEVICES)}')
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            'device "cuda" cannot be used, for PyTorch finds no GPU: take the device cpu, or install a CUDA build of '
            "PyTorch and the GPU's driver"
        )
    return torch.device(name)

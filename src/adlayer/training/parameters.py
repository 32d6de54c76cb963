"""A network's parameters in one block of memory: norm, optimiser and average take one operation, not hundreds."""

from __future__ import annotations

import torch
from torch import nn

_ALIGNED = 32  # numbers, at multiples of which each begins: products read whole lines of memory


def joined(network: nn.Module, *, gradients: bool = False) -> nn.Parameter:
    """One vector, new parameters of the network its parts; ``gradients``: zeros that theirs are parts of.

    What is loaded into the network goes into the vector. Between the parts there are zeros.
    """
    before = dict(network.named_parameters())
    sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in before.values()]
    whole = nn.Parameter(next(iter(before.values())).detach().new_zeros(sum(sizes)))
    whole.grad = torch.zeros_like(whole) if gradients else None
    for (name, parameter), part in zip(before.items(), whole.detach().split(sizes), strict=True):
        owner, _, last = name.rpartition(".")
        theirs = part[: parameter.numel()].view_as(parameter)
        theirs.copy_(parameter.detach())
        setattr(network.get_submodule(owner), last, nn.Parameter(theirs))
    if gradients:
        for parameter, part in zip(network.parameters(), whole.grad.split(sizes), strict=True):
            parameter.grad = part[: parameter.numel()].view_as(parameter)
    return whole

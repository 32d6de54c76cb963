"""A network's parameters in one block of memory: norm, optimiser and average take one operation, not hundreds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_ALIGNED = 32  # numbers, at multiples of which each begins: products read whole lines of memory


def joined(network: nn.Module, *, gradients: bool = False) -> Tensor:
    """One leaf vector, new parameters of the network its parts; ``gradients``: zeros that theirs are parts of.

    What is loaded into the network goes into the vector. Between the parts there are zeros.
    """
    before = dict(network.named_parameters())
    sizes = [-(-p.numel() // _ALIGNED) * _ALIGNED for p in before.values()]
    whole = next(iter(before.values())).detach().new_zeros(sum(sizes))
    gradient = torch.zeros_like(whole)
    for (name, parameter), part, back in zip(before.items(), whole.split(sizes), gradient.split(sizes), strict=True):
        n = parameter.numel()
        theirs = nn.Parameter(part[:n].view_as(parameter))
        theirs.detach().copy_(parameter.detach())
        theirs.grad = back[:n].view_as(parameter) if gradients else None
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, theirs)
    whole.requires_grad_()
    whole.grad = gradient if gradients else None
    return whole

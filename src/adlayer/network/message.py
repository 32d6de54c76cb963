"""The message of PaiNN with kernels, differentiable twice: ``message.c``, on a GPU :mod:`adlayer.network.gpu.message`.

Notation is that of ``message.c``: one function ``Φ(g, c, v, W, u)`` whose derivatives are the message, its gradient and
the gradient of that.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adlayer import compiled

_SOURCE = Path(__file__).with_name("message.c").read_text()


def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for a floating-point type, or nothing where they cannot be had."""
    return compiled.library("message", _SOURCE, dtype)


class _Edges(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("pairs", "ways", "atoms", "receivers", "features")),
        ("receiver", ctypes.c_void_p),
        ("sender", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Ends:
    """Where edges begin and end: receiver and sender (E,) in one or two ways through the pairs, numbers of atoms."""

    receiver: Tensor
    sender: Tensor
    n_senders: int
    n_receivers: int


def available(tensor: Tensor) -> bool:
    """Whether there are kernels in C for tensors of this device and floating-point type."""
    return tensor.device.type == "cpu" and library(tensor.dtype) is not None


def device_ends(first: Tensor, second: Tensor, n_atoms: int) -> Any:
    """What stands for :class:`Ends` on a GPU, of pairs (P,) whose edges run both ways; nothing elsewhere."""
    if not compiled.for_gpu(first.device):
        return None
    return import_module("adlayer.network.gpu.message").DeviceEnds.of(first, second, n_atoms)


def _run(kernel: str, ends: Any, arguments: tuple[Tensor, ...], *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What a kernel gives, in the shapes of its results. The arguments end with W (P, 3F) and u (3, P), or theirs."""
    if not isinstance(ends, Ends):
        found: tuple[Tensor, ...] = import_module("adlayer.network.gpu.message").run(kernel, ends, arguments)
        return found
    arguments = tuple(x.contiguous() for x in arguments)
    receiver, sender = ends.receiver.contiguous(), ends.sender.contiguous()
    results = tuple(arguments[-1].new_empty(shape) for shape in shapes)
    (_, pairs), (_, columns) = arguments[-1].shape, arguments[-2].shape
    edges = _Edges(
        pairs, len(receiver) // max(pairs, 1), ends.n_senders, ends.n_receivers, columns // 3,
        receiver.data_ptr(), sender.data_ptr(),
    )  # fmt: skip
    compiled.call(getattr(library(arguments[-1].dtype), kernel), edges, *arguments, *results)
    return results


class Message(torch.autograd.Function):
    """``∂Φ/∂g`` of c (N, 3F), v (3, N, F), W (P, 3F) and u (3, P): scalars (R, F) and vectors (3, R, F)."""

    @staticmethod
    def forward(ctx: Any, ends: Any, c: Tensor, v: Tensor, w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        ctx.ends = ends
        ctx.save_for_backward(c, v, w, u)
        total = _run("message", ends, (c, v, w, u), (4, ends.n_receivers, v.shape[-1]))[0]
        return total[0], total[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_Gradient.apply(ctx.ends, torch.cat([g[None], h]), *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """``∂Φ/∂(c, v, W, u)``."""

    @staticmethod
    def forward(ctx: Any, ends: Any, *arguments: Tensor) -> tuple[Tensor, ...]:
        ctx.ends = ends
        ctx.save_for_backward(*arguments)
        return _run("gradient", ends, arguments, *(x.shape for x in arguments[1:]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:
        arguments = ctx.saved_tensors
        return None, *_run("second", ctx.ends, (*arguments, *tangents), *(x.shape for x in arguments))

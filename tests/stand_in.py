"""A pretended accelerator: tensors that say they live on another device while their numbers are worked on here.

Inside :func:`accelerator`, a tensor moved to or made on :data:`DEVICE` says so of itself, is computed with all the same
(values that decide a path are there too), and every operation that mixes it with a tensor of the CPU raises, as on a
real accelerator: only numbers (tensors without dimensions) may mix, and only copies cross over. The device is named
``meta``, for PyTorch needs no driver to believe in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")
_CROSSING = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Elsewhere(Tensor):
    """A tensor of the pretended device; ``here`` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> Elsewhere:
        made: Elsewhere = Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device=DEVICE
        )
        made.here = here
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do the operation on the numbers, wherever its tensors say they live."""
    leaves, form = tree_flatten((args, kwargs))
    away = [x for x in leaves if isinstance(x, Elsewhere)]
    wanted = kwargs.get("device")
    if away and function not in _CROSSING:
        strays = [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, Elsewhere) and x.dim()]
        if strays:
            raise RuntimeError(f"{function} mixes tensors of the accelerator with one of the CPU, {strays[0].shape}")
    if wanted is not None:
        result_away = torch.device(wanted) == DEVICE
    elif function is torch.ops.aten.copy_.default:
        result_away = isinstance(args[0], Elsewhere)
    else:
        result_away = bool(away)
    known = {id(x.here): x for x in away}
    here = [x.here if isinstance(x, Elsewhere) else x for x in leaves]
    inner, options = tree_unflatten(here, form)
    if wanted is not None:
        options = options | {"device": "cpu"}
    result = function(*inner, **options)

    def wrapped(x: Any) -> Any:
        if not (isinstance(x, Tensor) and result_away):
            return x
        return known[id(x)] if id(x) in known else Elsewhere(x)

    return tree_map(wrapped, result)


class _Accelerator(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """The pretended device, which exists inside this context."""
    with _Accelerator():
        yield DEVICE


class AtOnce:
    """An executor without a thread: the pretended device exists in this one alone."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def submit(self, function: Callable[..., Any], *arguments: Any) -> AtOnce:
        self.value = function(*arguments)
        return self

    def result(self) -> Any:
        return self.value

    def __enter__(self) -> AtOnce:
        return self

    def __exit__(self, *_: object) -> None:
        pass

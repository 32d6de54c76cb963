"""Functions of a batch as CUDA graphs: one launch instead of hundreds, each of which costs the host microseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adlayer.network.graph import Batch

_BEFORE = 2  # calls for a batch before its graph is made: short runs are not worth it


class Replayed:
    """A method ``(batch, *fixed, *inputs) → Tensor`` that is captured when the same batch comes again and again.

    The same is a batch whose tensors but the positions are the same objects, as are the ``fixed``. The function must
    not wait for the GPU. Its owner, always the same, is named at each call: held here, both would live until the next
    search for cycles, with all their memory.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self._same: tuple[Any, ...] = ()
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, owner: Any, batch: Batch, fixed: tuple[Any, ...], *inputs: Tensor) -> Tensor:
        same = (batch.numbers, batch.tags, batch.batch, batch.cell, batch.window, *fixed)
        if len(same) != len(self._same) or any(a is not b for a, b in zip(same, self._same, strict=True)):
            self._same, self._calls, self._graph = same, 0, None
        self._calls += 1
        if self._calls <= _BEFORE or batch.positions.device.type != "cuda":
            return self.function(owner, batch, *fixed, *inputs)
        graph = self._graph if self._graph is not None else self._captured(owner, batch, fixed, inputs)
        for there, here in zip(self._inputs, (batch.positions, *inputs), strict=True):
            there.copy_(here)
        graph.replay()
        return self._output.clone()

    def _captured(
        self, owner: Any, batch: Batch, fixed: tuple[Any, ...], inputs: tuple[Tensor, ...]
    ) -> torch.cuda.CUDAGraph:
        """The function on copies of its inputs, recorded."""
        self._inputs = [x.clone() for x in (batch.positions, *inputs)]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = self.function(owner, batch.with_positions(self._inputs[0]), *fixed, *self._inputs[1:])
        return self._graph

"""Losses and their gradients as CUDA graphs: a step of training is a thousand small operations, and the host is slow.

A graph's tensors have one size for ever, batches have many: they are filled up to round sizes by atoms
(:mod:`adlayer.training.filling`) and by pairs that are out of reach and weigh nothing. Where a graph cannot be had, or
does not give the loss and the gradients of PyTorch's operations, these go on alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from adlayer.diffusion.kernels import Kernel
from adlayer.network.graph import Batch
from adlayer.network.heads import Denoiser, ForceField
from adlayer.network.model import Model
from adlayer.network.neighbours import Edges
from adlayer.training.filling import APART, Layout, Packed, round_size, unpacked
from adlayer.training.losses import ENERGY_UNIT, FORCE_UNIT, huber, noised_loss

_GRAPHS = 64  # at most, one for each combination of sizes
_TOLERANCE = 1e-3  # of the largest gradient of a parameter, in single precision


@dataclass(frozen=True)
class Inputs:
    """All that a loss is given, on one device: tensors of a filled batch and of what is compared, and pairs."""

    block: Tensor
    layout: Layout
    pairs: Tensor  # (4 P,) first atoms, second atoms, shifts

    def edges(self, dtype: torch.dtype) -> Edges:
        """The pairs, both ways."""
        n = len(self.pairs) // 4
        first, second = self.pairs[: 2 * n].view(2, n)
        return Edges.both_ways(first, second, self.pairs[2 * n :].view(n, 2).to(dtype))


def filled_pairs(edges: Edges, n_atoms: int) -> Tensor:
    """The pairs of a filled batch of so many atoms, a round number: the rest are atoms with their images far away."""
    n = edges.n_pairs
    more = round_size(n) - n
    atoms = torch.arange(more, device=edges.receiver.device) % n_atoms  # a kernel goes through an atom's edges in turn
    far = atoms.new_full((2 * more,), APART)  # lattice steps
    return torch.cat([edges.receiver[:n], atoms, edges.sender[:n], atoms, edges.shift[:n].flatten().long(), far])


class Gradients:
    """Gradients of ``loss(inputs)`` in a network's parameters, put in the place of those that are there (``grad``).

    On a GPU they are worked out on a stream of their own, and there for those that :meth:`join`. Graphs recorded on one
    stream share memory that products work in, so two that run side by side must be of two.
    """

    def __init__(
        self, loss: Callable[[Inputs], Tensor], network: nn.Module, undisturbed: AbstractContextManager[Any]
    ) -> None:
        self.loss, self.parameters, self.undisturbed = loss, list(network.parameters()), undisturbed
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self._stream = _stream_on(self.parameters[0].device)
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None  # memory that graphs have in common, for one runs at a time
        self.works = True
        """Whether graphs are used: not any more, and a warning says why, after one could not be had or was wrong."""

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss."""
        if self._stream is None:
            return self._found(inputs)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            return self._found(inputs)

    def join(self) -> None:
        """Let what follows wait for the gradients."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)

    def _found(self, inputs: Inputs) -> Tensor:
        key = inputs.layout, len(inputs.pairs)
        graph = self._graphs.get(key)
        if graph is not None:
            return graph(inputs)
        loss = self._plain(inputs)
        if self.works and len(self._graphs) < _GRAPHS:
            self.works = self._made(key, inputs, loss)
            if not self.works:
                self._graphs.clear()
        return loss

    def _plain(self, inputs: Inputs) -> Tensor:
        loss = self.loss(inputs)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        pairs = zip(self._gradients(), found, strict=True)
        there, new = zip(*[(a, b.contiguous()) for a, b in pairs if b is not None], strict=True)
        torch._foreach_copy_(there, new)  # at once, where they are laid out alike
        return loss.detach()

    def _gradients(self) -> list[Tensor]:
        """Where they are put."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def _made(self, key: Any, inputs: Inputs, loss: Tensor) -> bool:
        """Make a graph for inputs of these sizes; whether it gives what PyTorch's operations gave."""
        there = self._gradients()
        expected = [x.clone() for x in there]
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with self.undisturbed:
                graph = _Graph(self._plain, inputs, self._pool)
            found = graph(inputs)
            right = all(_close(a, b) for a, b in zip([found, *there], [loss, *expected], strict=True))
        except (RuntimeError, AssertionError) as error:  # the latter without CUDA
            warnings.warn(f"training goes on without CUDA graphs: {error}", stacklevel=2)
            return False
        finally:
            torch._foreach_copy_(there, expected)
        if right:
            self._graphs[key] = graph
        else:
            warnings.warn("training goes on without CUDA graphs: one gives other gradients", stacklevel=2)
        return right


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-7)


def _stream_on(device: torch.device, priority: int = 0) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device, priority) if device.type == "cuda" else None


class _Graph:
    """A function, done before on this stream, recorded for inputs of one size each."""

    def __init__(self, function: Callable[[Inputs], Tensor], inputs: Inputs, pool: Any) -> None:
        self.inputs = replace(inputs, block=inputs.block.clone(), pairs=inputs.pairs.clone())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool, stream=torch.cuda.current_stream()):
            self.loss = function(self.inputs)

    def __call__(self, inputs: Inputs) -> Tensor:
        self.inputs.block.copy_(inputs.block)
        self.inputs.pairs.copy_(inputs.pairs)
        self.graph.replay()
        return self.loss


class Graphs:
    """Losses of both networks of a model, whose gradients are put into their parameters.

    Another thread can bring their inputs to the device while a graph is under way: on a stream of their own, and never
    while one is recorded. They must be kept until the loss is known.
    """

    def __init__(self, model: Model, kernel: Kernel) -> None:
        self.device = model.device
        self._alone = Lock()  # who uses the device in a way that recording would not bear, or records
        self.denoiser = Gradients(partial(_denoising_loss, model, kernel), model.denoiser, self._alone)
        self.force_field = Gradients(partial(_force_field_loss, model), model.force_field, self._alone)
        self._stream = _stream_on(model.device, priority=-1)  # of inputs, which go first

    def inputs(self, network: Denoiser | ForceField, given: Packed) -> Inputs:
        """What a network's loss is given, on the device."""
        block, layout = torch.from_numpy(given[0]), given[1]
        with self._alone, torch.cuda.stream(self._stream) if self._stream else nullcontext():
            block = block.to(self.device)
            batch = _batch(unpacked(block, layout))
            pairs = filled_pairs(network.edges(batch), len(batch.numbers))
            if self._stream:
                self._stream.synchronize()
        return Inputs(block, layout, pairs)


def _denoising_loss(model: Model, kernel: Kernel, inputs: Inputs) -> Tensor:
    given = unpacked(inputs.block, inputs.layout)
    batch, edges = _batch(given), inputs.edges(given["positions"].dtype)
    drawn = {name: given[name] for name in ("sigma", "conditions", "noisy", "clean", "rows", "weight")}
    return noised_loss(model, kernel, batch, edges=edges, **drawn)


def _force_field_loss(model: Model, inputs: Inputs) -> Tensor:
    given = unpacked(inputs.block, inputs.layout)
    energies, forces = model.force_field(_batch(given), inputs.edges(given["positions"].dtype))
    energy = (energies - given["energies"]) / given["counts"]
    loss = huber(energy, ENERGY_UNIT, given["of_energies"])
    return loss + huber(forces - given["forces"], FORCE_UNIT, given["of_forces"])


def _batch(given: dict[str, Tensor]) -> Batch:
    return Batch(**{name: given[name] for name in ("numbers", "positions", "tags", "batch", "cell", "window")})

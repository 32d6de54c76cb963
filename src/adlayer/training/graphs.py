"""Losses and their gradients as CUDA graphs: a step of training is a thousand small operations, and the host is slow.

A graph's tensors have one size for ever, batches have many: they are filled up to round sizes. A structure of atoms out
of each other's reach is added, which weighs nothing, and pairs that are out of reach too. Where a graph cannot be had,
or does not give the loss and the gradients of PyTorch's operations, these go on alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from adlayer.diffusion.kernels import Kernel
from adlayer.network.graph import Batch
from adlayer.network.heads import Denoiser, ForceField
from adlayer.network.model import Model
from adlayer.network.neighbours import Edges
from adlayer.training.dataset import Frame
from adlayer.training.losses import ENERGY_UNIT, FORCE_UNIT, collate_frames, huber, noised, noised_loss

_STEPS = 8  # round sizes between a power of two and the next
_APART = 1000.0  # Å, between atoms that fill up; lattice steps, of pairs that do
_GRAPHS = 64  # at most, one for each combination of sizes
_TOLERANCE = 1e-3  # of the largest gradient of a parameter, in single precision

Inputs = dict[str, Tensor]
"""All that a loss is given, on the device: a filled batch, its edges, and what is compared."""


def round_size(n: int) -> int:
    """The next round size above n.

    >>> [round_size(n) for n in (1, 15, 16, 17, 100, 7168)]
    [2, 16, 18, 18, 104, 7680]
    """
    step = max(1, 1 << max(0, n.bit_length() - _STEPS.bit_length()))
    return (n // step + 1) * step


def filled(batch: Batch) -> Batch:
    """The batch with one more structure, so that it has a round number of atoms, mobile and others.

    Its atoms are of kinds that the batch has, alone, and in the cell and window of the first structure.
    """
    mobile = batch.mobile
    n_mobile, n_others = int(mobile.sum()), int((~mobile).sum())
    more = [round_size(n_mobile) - n_mobile, round_size(n_others) - n_others]
    kind = torch.tensor([int(mobile.nonzero()[0]), int((~mobile).nonzero()[0])])
    rows = kind.repeat_interleave(torch.tensor(more))
    positions = torch.zeros(len(rows), 3, dtype=batch.positions.dtype)
    positions[:, 2] = _APART * torch.arange(1, len(rows) + 1)
    return Batch(
        numbers=torch.cat([batch.numbers, batch.numbers[rows]]),
        positions=torch.cat([batch.positions, positions]),
        tags=torch.cat([batch.tags, batch.tags[rows]]),
        batch=torch.cat([batch.batch, torch.full_like(rows, batch.n_structures)]),
        cell=torch.cat([batch.cell, batch.cell[:1]]),
        window=torch.cat([batch.window, batch.window[:1]]),
    )


def filled_edges(edges: Edges, n_atoms: int) -> Inputs:
    """Edges of a filled batch of so many atoms in a round number of pairs: atoms in turn with their images far away."""
    n = edges.n_pairs
    more = round_size(n) - n
    atoms = torch.arange(more, device=edges.receiver.device) % n_atoms  # a kernel goes through an atom's edges in turn
    far = edges.shift.new_full((more, 2), _APART)
    receiver, sender = torch.cat([edges.receiver[:n], atoms]), torch.cat([edges.sender[:n], atoms])
    shift = torch.cat([edges.shift[:n], far])
    return {
        "receiver": torch.cat([receiver, sender]),
        "sender": torch.cat([sender, receiver]),
        "shift": torch.cat([shift, -shift]),
    }


def batch_of(inputs: Inputs) -> tuple[Batch, Edges]:
    """The batch and the edges among inputs."""
    batch = Batch(**{name: inputs[name] for name in ("numbers", "positions", "tags", "batch", "cell", "window")})
    return batch, Edges(inputs["receiver"], inputs["sender"], inputs["shift"], paired=True)


class Gradients:
    """Gradients of ``loss(inputs)`` in parameters, put into their ``grad``."""

    def __init__(
        self, loss: Callable[[Inputs], Tensor], parameters: list[nn.Parameter], undisturbed: AbstractContextManager[Any]
    ) -> None:
        self.loss, self.parameters, self.undisturbed = loss, parameters, undisturbed
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None  # memory that graphs have in common, for one runs at a time
        self.works = True
        """Whether graphs are used: not any more, and a warning says why, after one could not be had or was wrong."""

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss."""
        key = tuple((name, tuple(x.shape)) for name, x in sorted(inputs.items()))
        graph = self._graphs.get(key)
        if graph is not None and self.works:
            loss, gradients = graph(inputs)
        else:
            loss, gradients = self._plain(inputs)
            if self.works and len(self._graphs) < _GRAPHS:
                self.works = self._made(key, inputs, loss, gradients)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return loss

    def _plain(self, inputs: Inputs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        loss = self.loss(inputs)
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), tuple(x if x is None else x.contiguous() for x in found)  # as the optimiser asks

    def _made(self, key: Any, inputs: Inputs, loss: Tensor, gradients: tuple[Tensor | None, ...]) -> bool:
        """Make a graph for inputs of these sizes; whether it gives what PyTorch's operations gave."""
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            with self.undisturbed:
                graph = _Graph(self._plain, inputs, self._pool)
            found, ours = graph(inputs)
        except (RuntimeError, AssertionError) as error:  # the latter without CUDA
            warnings.warn(f"training goes on without CUDA graphs: {error}", stacklevel=2)
            return False
        self._graphs[key] = graph
        pairs = [(found, loss), *((a, b) for a, b in zip(ours, gradients, strict=True) if a is not None)]
        right = all(b is not None and _close(a, b) for a, b in pairs)
        if not right:
            warnings.warn("training goes on without CUDA graphs: one gives other gradients", stacklevel=2)
        return right


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max() + 1e-7)


class _Graph:
    """A function recorded for inputs of one size each."""

    def __init__(
        self, function: Callable[[Inputs], tuple[Tensor, tuple[Tensor | None, ...]]], inputs: Inputs, pool: Any
    ) -> None:
        self.inputs = {name: x.clone() for name, x in inputs.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function(self.inputs)  # what is done once, is done now
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.loss, self.gradients = function(self.inputs)

    def __call__(self, inputs: Inputs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        for name, there in self.inputs.items():
            there.copy_(inputs[name])
        self.graph.replay()
        return self.loss, self.gradients


class Graphs:
    """Losses of both networks of a model, whose gradients are put into their parameters.

    Their inputs can be prepared by another thread while a graph is under way: on a stream of their own, and never while
    one is recorded. They must be kept until the loss is known.
    """

    def __init__(self, model: Model, kernel: Kernel) -> None:
        self.model, self.kernel = model, kernel
        self._alone = Lock()  # who uses the device in a way that recording would not bear, or records
        self.denoiser = Gradients(self._denoising_loss, list(model.denoiser.parameters()), self._alone)
        self.force_field = Gradients(self._force_field_loss, list(model.force_field.parameters()), self._alone)
        self._stream = torch.cuda.Stream(model.device) if model.device.type == "cuda" else None
        self._baseline = torch.zeros(119, dtype=torch.float64)  # eV of an atom of each atomic number
        self._baseline[torch.tensor(model.card.numbers)] = model.force_field.baseline.cpu()

    def for_denoiser(self, batch: Batch, sigma: Tensor, conditions: Tensor, normal: Tensor) -> Inputs:
        """Prepares :func:`adlayer.training.losses.denoising_loss`, of a batch on the host."""
        noisy, clean, rows = noised(self.kernel, batch, sigma, normal)
        whole = filled(batch.with_positions(batch.positions.index_copy(0, rows, noisy)))
        every = whole.mobile.nonzero()[:, 0]
        drawn = {"noisy": noisy, "clean": clean, "sigma": sigma, "conditions": conditions}
        sizes = {"noisy": len(every), "clean": len(every)}
        others = {name: _lengthened(x, sizes.get(name, len(x) + 1)) for name, x in drawn.items()}
        return self._inputs(
            self.model.denoiser, whole, others | {"rows": every, "weight": _weights(len(rows), len(every))}
        )

    def for_force_field(self, frames: Sequence[Frame]) -> Inputs:
        """Prepares the mean Huber losses of energies and forces of frames."""
        batch, energies, forces = collate_frames(frames)
        whole, n = filled(batch), len(frames)
        aim = energies.index_add(0, batch.batch, self._baseline[batch.numbers], alpha=-1.0)
        others = {
            "energies": _lengthened(aim.float(), n + 1),
            "counts": _lengthened(torch.bincount(batch.batch).float(), n + 1),
            "of_energies": _weights(n, n + 1),
            "forces": _lengthened(forces, len(whole.numbers)),
            "of_forces": _weights(len(forces), len(whole.numbers))[:, None] / 3,
        }
        return self._inputs(self.model.force_field, whole, others)

    def _inputs(self, network: Denoiser | ForceField, whole: Batch, others: Inputs) -> Inputs:
        device = self.model.device
        with self._alone, torch.cuda.stream(self._stream) if self._stream else nullcontext():
            batch = whole.to(device=device)
            edges = filled_edges(network.edges(batch), len(whole.numbers))
            inputs = vars(batch) | edges | {name: x.to(device) for name, x in others.items()}
            if self._stream:
                self._stream.synchronize()
        return inputs

    def _denoising_loss(self, inputs: Inputs) -> Tensor:
        batch, edges = batch_of(inputs)
        drawn = {name: inputs[name] for name in ("sigma", "conditions", "noisy", "clean", "rows", "weight")}
        return noised_loss(self.model, self.kernel, batch, edges=edges, **drawn)

    def _force_field_loss(self, inputs: Inputs) -> Tensor:
        energies, forces = self.model.force_field(*batch_of(inputs))
        energy = (energies - inputs["energies"]) / inputs["counts"]
        loss = huber(energy, ENERGY_UNIT, inputs["of_energies"])
        return loss + huber(forces - inputs["forces"], FORCE_UNIT, inputs["of_forces"])


def _lengthened(x: Tensor, n: int) -> Tensor:
    """With copies of the first row behind, n rows."""
    return torch.cat([x, x[:1].expand(n - len(x), *x.shape[1:])])


def _weights(n: int, n_all: int) -> Tensor:
    """Weights (n_all,) of a mean over the first n."""
    return torch.zeros(n_all).index_fill(0, torch.arange(n), 1.0 / n)

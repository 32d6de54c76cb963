"""The networks of a trained model, faster: the numbers of :mod:`adlayer.network.heads` to rounding.

The gradient in the positions is written out instead of recorded, filters come from a table over distances (cubic
between its knots), and all that lies between the matrix products runs in kernels: those of ``inference.c`` on the CPU,
of :mod:`adlayer.network.gpu.inference` on a GPU. Weights are copied: after training, make it anew.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from adlayer import compiled
from adlayer.network.graph import Batch
from adlayer.network.heads import CORE_STRENGTH, Denoiser, ForceField, raised, rises
from adlayer.network.neighbours import Edges, neighbours
from adlayer.network.painn import Interaction, Mixing, PaiNN, cosine_cutoff

_SOURCE = Path(__file__).with_name("inference.c").read_text()
_KNOTS = 257


def fast_force_field(force_field: ForceField) -> ForceField | FastForceField:
    """A force field whose weights do not change: the module itself where there are no kernels for it."""
    return FastForceField(force_field) if _kernels(force_field.painn) is not None else force_field


def fast_denoiser(denoiser: Denoiser) -> Denoiser | FastDenoiser:
    """A denoiser whose weights do not change: the module itself where there are no kernels for it."""
    return FastDenoiser(denoiser) if _kernels(denoiser.painn) is not None else denoiser


class _Kernels(Protocol):
    """The kernels of a device."""

    def __call__(self, kernel: str, *arguments: Any) -> None:
        """Run the kernel of that name."""
        ...

    def pairs(self, batch: Batch, rise: Tensor | None, *, among_substrate: bool) -> Any:
        """Neighbours, as kernels take them, of atoms that are raised by ``rise`` (N,), Å."""
        ...

    def repel(
        self, pairs: Any, batch: Batch, rise: Tensor | None, radii: Tensor, strength: Tensor, energies: Tensor,
        forces: Tensor,
    ) -> None:  # fmt: skip
        """Add core repulsion to energies (N,) and forces (N, 3); atoms are where they are, not raised."""
        ...

    def added(self, x: Tensor, more: Tensor, structure: Tensor) -> Tensor:
        """``x + more[structure]``."""
        ...

    def replayed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """A method of ``(batch, *fixed, *inputs)`` as a function of ``(owner, batch, fixed, *inputs)``.

        See :class:`adlayer.network.gpu.replay.Replayed`.
        """
        ...


def _kernels(painn: PaiNN) -> _Kernels | None:
    """Those for a network where it is, or nothing where they cannot be had."""
    weight = next(painn.parameters())
    if compiled.for_gpu(weight.device):
        module = import_module("adlayer.network.gpu.inference")
        kernels: _Kernels = module.Kernels(painn.features, _KNOTS, painn.cutoff, painn.epsilon)
        return kernels
    if weight.device.type != "cpu":
        return None
    sizes = f"#define F {painn.features}\n#define EPSILON {painn.epsilon!r}\n"
    library = compiled.library("inference", sizes + _SOURCE, weight.dtype)
    return None if library is None else _Compiled(library, painn.cutoff)


class _Record(ctypes.Structure):
    _fields_ = (
        ("pairs", ctypes.c_int64),
        ("knots", ctypes.c_int64),
        ("cutoff", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("first", "second", "distance", "unit")),
    )


class _Pairs:
    """Pairs of atoms, P, with their distances and unit vectors; of the edges j → i and i → j the first is given.

    ``record`` is what kernels are given; it holds addresses alone, of the tensors kept here.
    """

    def __init__(self, kernels: ctypes.CDLL, batch: Batch, edges: Edges, cutoff: float) -> None:
        n = edges.n_pairs
        first, second = edges.receiver[:n], edges.sender[:n]
        offset = edges.offsets(batch)
        distance, unit = offset.new_empty(n), offset.new_empty(n, 3)
        self.edges, self.kept = edges, (first, second, distance, unit)
        compiled.call(kernels.geometry, n, first, second, offset, batch.positions.contiguous(), distance, unit)
        self.record = _Record(n, _KNOTS, cutoff, *(x.data_ptr() for x in self.kept))

    def __len__(self) -> int:
        return len(self.kept[0])


@dataclass(frozen=True)
class _Compiled:
    """The kernels of ``inference.c``."""

    kernels: ctypes.CDLL
    cutoff: float

    def __call__(self, kernel: str, *arguments: compiled.Argument | _Pairs) -> None:
        compiled.call(getattr(self.kernels, kernel), *(x.record if isinstance(x, _Pairs) else x for x in arguments))

    def pairs(self, batch: Batch, rise: Tensor | None, *, among_substrate: bool) -> _Pairs:
        seen = batch if rise is None else raised(batch, rise)
        return _Pairs(self.kernels, seen, neighbours(seen, self.cutoff, among_substrate=among_substrate), self.cutoff)

    def repel(
        self, pairs: _Pairs, batch: Batch, rise: Tensor | None, radii: Tensor, strength: Tensor, energies: Tensor,
        forces: Tensor,
    ) -> None:  # fmt: skip
        near = _Pairs(self.kernels, batch, pairs.edges, self.cutoff) if rise is not None else pairs
        self("repulsion", near, radii, strength, energies, forces)

    def added(self, x: Tensor, more: Tensor, structure: Tensor) -> Tensor:
        return x + more.index_select(0, structure)

    def replayed(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda owner, batch, fixed, *inputs: function(owner, batch, *fixed, *inputs)


@dataclass(frozen=True)
class _Linear:
    """``x W + b``."""

    weight: Tensor  # (in, out)
    bias: Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> _Linear:
        return cls(layer.weight.detach().clone().T, None if layer.bias is None else layer.bias.detach().clone())

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def back(self, gradient: Tensor) -> Tensor:
        return gradient @ self.weight.T


@dataclass(frozen=True)
class _Perceptron:
    """Linear, SiLU, linear."""

    inner: _Linear
    outer: _Linear

    @classmethod
    def of(cls, layers: nn.Sequential) -> _Perceptron:
        first, _, last = layers
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        return cls(_Linear.of(first), _Linear.of(last))

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what its gradient needs."""
        hidden = self.inner(x)
        return self.outer(nn.functional.silu(hidden)), hidden

    def back(self, gradient: Tensor, hidden: Tensor) -> Tensor:
        return self.inner.back(torch.ops.aten.silu_backward(self.outer.back(gradient), hidden))


def _table(layer: nn.Linear, painn: PaiNN) -> Tensor:
    """Filters, and their derivatives times the spacing, at the knots (knots, 2, 3F)."""
    weight, bias = (x.detach().double() for x in (layer.weight, layer.bias))
    distance = torch.linspace(0.0, painn.cutoff, _KNOTS, dtype=weight.dtype, device=weight.device)[:, None]
    centres = torch.linspace(0.0, painn.cutoff, weight.shape[1], dtype=weight.dtype, device=weight.device)
    away = distance - centres
    basis = torch.exp(painn.radial.coefficient * away**2)  # (knots, n)
    inner, inner_slope = basis @ weight.T + bias, (2.0 * painn.radial.coefficient * away * basis) @ weight.T
    envelope = cosine_cutoff(distance, painn.cutoff)
    envelope_slope = -0.5 * math.pi / painn.cutoff * torch.sin(math.pi / painn.cutoff * distance)
    slope = inner_slope * envelope + inner * envelope_slope
    return torch.stack([inner * envelope, slope * distance[1]], dim=1).to(layer.weight.dtype)


@dataclass(frozen=True)
class _Layer:
    """An interaction and a mixing."""

    table: Tensor
    context: _Perceptron
    context_condition: _Linear | None
    channels: _Linear
    update: _Perceptron
    update_condition: _Linear | None

    @classmethod
    def of(cls, interaction: Interaction, mixing: Mixing, painn: PaiNN) -> _Layer:
        return cls(
            _table(interaction.filter, painn),
            _Perceptron.of(interaction.context),
            None if interaction.condition is None else _Linear.of(interaction.condition),
            _Linear.of(mixing.channels),
            _Perceptron.of(mixing.context),
            None if mixing.condition is None else _Linear.of(mixing.condition),
        )


@dataclass(frozen=True)
class _Condition:
    """A vector of each structure (B, C), and the structure of each atom."""

    vectors: Tensor
    structure: Tensor


@dataclass(frozen=True)
class _Facts:
    """What the networks ask of a batch whatever its positions."""

    tags: Tensor  # (N,) which it was made for
    mobile: Tensor  # (N,) bool
    rows: Tensor  # (M,) of the overlayer's atoms
    rise: Tensor | None  # (N,) Å, where the network sees any atom raised

    @classmethod
    def of(cls, batch: Batch, lift: float, before: _Facts | None) -> _Facts:
        """Those of a batch, which may be those of the one before."""
        if before is not None and before.tags is batch.tags:
            return before
        mobile = batch.mobile
        return cls(batch.tags, mobile, mobile.nonzero()[:, 0], rises(batch, lift) if lift else None)


@dataclass(frozen=True)
class _Passed:
    """What the gradient of a layer needs: vectors that came in, and intermediate results in order."""

    v: Tensor | None
    context: Tensor
    context_hidden: Tensor
    mixed: Tensor
    both: Tensor
    dot: Tensor
    update: Tensor
    update_hidden: Tensor


class _Network:
    """The layers of a PaiNN; scalars (N, F), vectors (N, 3, F)."""

    def __init__(self, painn: PaiNN) -> None:
        kernels = _kernels(painn)
        assert kernels is not None
        self.kernels = kernels
        self._facts: _Facts | None = None
        self.layers = [_Layer.of(interaction, mixing, painn) for interaction, mixing in painn.layers()]

    def __call__(
        self, s: Tensor, v: Tensor | None, pairs: Any, condition: _Condition | None = None,
        read_out: _Facts | None = None, passed: list[_Passed] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Scalars and vectors after all layers, of the mobile atoms alone where ``read_out`` says which they are.

        ``None`` for v stands for zeros. The scalars given are overwritten. What the gradient of each layer needs is
        added to ``passed``.
        """
        for layer in self.layers:
            s, v, kept = self._layer(layer, s, v, pairs, condition, read_out if layer is self.layers[-1] else None)
            if passed is not None:
                passed.append(kept)
        assert v is not None
        return s, v

    def seen(self, batch: Batch, lift: float, *, among_substrate: bool) -> tuple[Any, _Facts]:
        """The neighbours in a batch, and what does not depend on its positions."""
        self._facts = _Facts.of(batch, lift, self._facts)
        return self.kernels.pairs(batch, self._facts.rise, among_substrate=among_substrate), self._facts

    def _conditioned(self, x: Tensor, layer: _Linear | None, condition: _Condition | None) -> Tensor:
        if layer is None or condition is None:
            return x
        return self.kernels.added(x, layer(condition.vectors), condition.structure)

    def _layer(
        self, layer: _Layer, s: Tensor, v: Tensor | None, pairs: Any, condition: _Condition | None,
        read_out: _Facts | None,
    ) -> tuple[Tensor, Tensor, _Passed]:  # fmt: skip
        context, context_hidden = layer.context(self._conditioned(s, layer.context_condition, condition))
        moved = s.new_zeros(len(s), 3, s.shape[1]) if v is None else v.clone()
        wanted = None if read_out is None else read_out.mobile
        self.kernels("message", pairs, layer.table, context, v, wanted, s, moved)
        if read_out is not None:
            rows = read_out.rows
            s, moved = s.index_select(0, rows), moved.index_select(0, rows)
            if condition is not None:
                condition = _Condition(condition.vectors, condition.structure.index_select(0, rows))
        mixed = layer.channels(moved.flatten(0, 1))
        both, dot = s.new_empty(len(s), 2 * s.shape[1]), torch.empty_like(s)
        self.kernels("joined", len(s), s, mixed, both, dot)
        update, update_hidden = layer.update(self._conditioned(both, layer.update_condition, condition))
        self.kernels("update", len(s), update, mixed, dot, s, moved)
        return s, moved, _Passed(v, context, context_hidden, mixed, both, dot, update, update_hidden)

    def forces(self, gradient: Tensor, pairs: Any, passed: Sequence[_Passed]) -> Tensor:
        """Minus the gradient in the positions (N, 3), of the gradient in the last scalars (N, F)."""
        kernels, n, g = self.kernels, len(gradient), gradient.clone()
        dd, du = g.new_zeros(len(pairs)), g.new_zeros(len(pairs), 3)
        h: Tensor | None = None  # the gradient in the vectors
        for layer, kept in zip(reversed(self.layers), reversed(passed), strict=True):
            d_update, d_mixed = torch.empty_like(kept.update), torch.empty_like(kept.mixed)
            kernels("update_gradient", n, g, h, kept.mixed, kept.dot, d_update)
            d_both = layer.update.back(d_update, kept.update_hidden)
            kernels("joined_gradient", n, d_both, kept.both, kept.update, kept.mixed, h, g, d_mixed)
            through = layer.channels.back(d_mixed).view(n, 3, -1)
            h = through if h is None else h + through
            if kept.v is None:
                kernels("message_gradient", pairs, layer.table, kept.context, None, g, h, None, None, dd, du)
                break
            d_context, dv = torch.zeros_like(kept.context), h.clone()
            kernels("message_gradient", pairs, layer.table, kept.context, kept.v, g, h, d_context, dv, dd, du)
            g, h = g + layer.context.back(d_context, kept.context_hidden), dv
        forces = g.new_zeros(n, 3)
        kernels("forces", pairs, dd, du, forces)
        return forces


class FastForceField:
    """A :class:`ForceField` on kernels."""

    def __init__(self, module: ForceField) -> None:
        self.module = module
        self.network = _Network(module.painn)
        self.energy = _Perceptron.of(module.energy)
        self.scale = module.scale.clone()
        self.strength = torch.full_like(self.scale, CORE_STRENGTH)
        self._replayed = self.network.kernels.replayed(FastForceField._overlayer)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Interaction energies (B,), eV, and forces on all atoms (N, 3), eV/Å."""
        return self._all(batch, *self.network.seen(batch, self.module.lift, among_substrate=True))

    @torch.no_grad()
    def overlayer_forces(self, batch: Batch) -> Tensor:
        """Forces on the overlayer atoms alone (M, 3), eV/Å; less work than all where forces are direct."""
        return self._replayed(self, batch, self.network.seen(batch, self.module.lift, among_substrate=True))

    def _all(self, batch: Batch, pairs: Any, facts: _Facts) -> tuple[Tensor, Tensor]:
        passed: list[_Passed] = []
        s, v = self.network(self.module.scalars(batch), None, pairs, passed=passed)
        energies, hidden = self.energy(s)
        energies = energies[:, 0] * self.scale
        if self.module.force is None:
            forces = self.network.forces(self.energy.back(self.scale.expand(len(s), 1), hidden), pairs, passed)
        else:
            forces = self.module.force(s, v) * self.scale
        self._repel(batch, pairs, facts, energies, forces)
        return energies.new_zeros(batch.n_structures).index_add(0, batch.batch, energies), forces

    def _overlayer(self, batch: Batch, pairs: Any, facts: _Facts) -> Tensor:
        if self.module.force is None:
            return self._all(batch, pairs, facts)[1].index_select(0, facts.rows)
        s, v = self.network(self.module.scalars(batch), None, pairs, read_out=facts)
        forces = torch.zeros_like(batch.positions).index_copy(0, facts.rows, self.module.force(s, v) * self.scale)
        self._repel(batch, pairs, facts, torch.zeros_like(forces[:, 0]), forces)
        return forces.index_select(0, facts.rows)

    def _repel(self, batch: Batch, pairs: Any, facts: _Facts, energies: Tensor, forces: Tensor) -> None:
        radii = self.module.radii.index_select(0, batch.numbers)
        self.network.kernels.repel(pairs, batch, facts.rise, radii, self.strength, energies, forces)


class FastDenoiser:
    """A :class:`Denoiser` on kernels."""

    def __init__(self, module: Denoiser) -> None:
        self.module = module
        self.network = _Network(module.painn)
        self._replayed = self.network.kernels.replayed(FastDenoiser._score)

    @torch.no_grad()
    def __call__(self, batch: Batch, sigma: Tensor, conditions: Tensor) -> Tensor:
        """Normalised score of the overlayer atoms (M, 3) of the batch, noise levels (B,) and conditions (B, K)."""
        seen = self.network.seen(batch, self.module.lift, among_substrate=False)
        return self._replayed(self, batch, seen, sigma, conditions)

    def _score(self, batch: Batch, pairs: Any, facts: _Facts, sigma: Tensor, conditions: Tensor) -> Tensor:
        s, v, condition = self.module.inputs(batch, sigma, conditions)
        s, v = self.network(s, v, pairs, _Condition(condition, batch.batch), read_out=facts)
        score: Tensor = self.module.read_out(s, v)
        return score

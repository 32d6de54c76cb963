"""The networks of a trained model on the CPU, faster: the numbers of :mod:`adlayer.network.heads` to rounding.

The gradient in the positions is written out instead of recorded, filters come from a table over distances (cubic
between its knots), and all that lies between the matrix products runs in the kernels of ``inference.c``. Weights are
copied: after training, make it anew.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from adlayer.compiled import call, library
from adlayer.network.graph import Batch
from adlayer.network.heads import CORE_STRENGTH, Denoiser, ForceField, lifted
from adlayer.network.neighbours import Edges
from adlayer.network.painn import Interaction, Mixing, PaiNN, cosine_cutoff

_SOURCE = Path(__file__).with_name("inference.c").read_text()
_KNOTS = 257


def fast_force_field(force_field: ForceField) -> ForceField | FastForceField:
    """A force field whose weights do not change: the module itself where there are no kernels for it."""
    return FastForceField(force_field) if _usable(force_field.painn) else force_field


def fast_denoiser(denoiser: Denoiser) -> Denoiser | FastDenoiser:
    """A denoiser whose weights do not change: the module itself where there are no kernels for it."""
    return FastDenoiser(denoiser) if _usable(denoiser.painn) else denoiser


def _usable(painn: PaiNN) -> bool:
    return next(painn.parameters()).device.type == "cpu" and _kernels(painn) is not None


def _kernels(painn: PaiNN) -> ctypes.CDLL | None:
    sizes = f"#define F {painn.features}\n#define EPSILON {painn.epsilon!r}\n"
    return library("inference", sizes + _SOURCE, next(painn.parameters()).dtype)


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
        self.kept = (first, second, distance, unit)
        call(kernels.geometry, n, first, second, offset, batch.positions.contiguous(), distance, unit)
        self.record = _Record(n, _KNOTS, cutoff, *(x.data_ptr() for x in self.kept))

    def __len__(self) -> int:
        return len(self.kept[0])


def _table(layer: nn.Linear, painn: PaiNN) -> Tensor:
    """Filters, and their derivatives times the spacing, at the knots (knots, 2, 3F)."""
    weight, bias = (x.detach().double() for x in (layer.weight, layer.bias))
    distance = torch.linspace(0.0, painn.cutoff, _KNOTS, dtype=torch.float64)[:, None]
    away = distance - torch.linspace(0.0, painn.cutoff, weight.shape[1], dtype=torch.float64)
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

    def added(self, x: Tensor, layer: _Linear | None) -> Tensor:
        return x if layer is None else x + layer(self.vectors).index_select(0, self.structure)


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
        self.kernels, self.cutoff = kernels, painn.cutoff
        self.layers = [_Layer.of(interaction, mixing, painn) for interaction, mixing in painn.layers()]

    def pairs(self, batch: Batch, edges: Edges) -> _Pairs:
        return _Pairs(self.kernels, batch, edges, self.cutoff)

    def __call__(
        self, s: Tensor, v: Tensor | None, pairs: _Pairs, condition: _Condition | None = None,
        read_out: Tensor | None = None, passed: list[_Passed] | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Scalars and vectors after all layers, of the atoms in the mask ``read_out`` (N,) alone.

        ``None`` for v stands for zeros. What the gradient of each layer needs is added to ``passed``.
        """
        for layer in self.layers:
            s, v, kept = self._layer(layer, s, v, pairs, condition, read_out if layer is self.layers[-1] else None)
            if passed is not None:
                passed.append(kept)
        assert v is not None
        return s, v

    def _layer(
        self, layer: _Layer, s: Tensor, v: Tensor | None, pairs: _Pairs, condition: _Condition | None,
        read_out: Tensor | None,
    ) -> tuple[Tensor, Tensor, _Passed]:  # fmt: skip
        x = s if condition is None else condition.added(s, layer.context_condition)
        context, context_hidden = layer.context(x)
        s = s.clone()
        moved = s.new_zeros(len(s), 3, s.shape[1]) if v is None else v.clone()
        call(self.kernels.message, pairs.record, layer.table, context, v, read_out, s, moved)
        if read_out is not None:
            rows = read_out.nonzero()[:, 0]
            s, moved = s.index_select(0, rows), moved.index_select(0, rows)
            if condition is not None:
                condition = _Condition(condition.vectors, condition.structure.index_select(0, rows))
        mixed = layer.channels(moved.flatten(0, 1))
        both, dot = s.new_empty(len(s), 2 * s.shape[1]), torch.empty_like(s)
        call(self.kernels.joined, len(s), s, mixed, both, dot)
        x = both if condition is None else condition.added(both, layer.update_condition)
        update, update_hidden = layer.update(x)
        call(self.kernels.update, len(s), update, mixed, dot, s, moved)
        return s, moved, _Passed(v, context, context_hidden, mixed, both, dot, update, update_hidden)

    def forces(self, gradient: Tensor, pairs: _Pairs, passed: Sequence[_Passed]) -> Tensor:
        """Minus the gradient in the positions (N, 3), of the gradient in the last scalars (N, F)."""
        kernels, n, g = self.kernels, len(gradient), gradient.clone()
        dd, du = g.new_zeros(len(pairs)), g.new_zeros(len(pairs), 3)
        h: Tensor | None = None  # the gradient in the vectors
        for layer, kept in zip(reversed(self.layers), reversed(passed), strict=True):
            d_update, d_mixed = torch.empty_like(kept.update), torch.empty_like(kept.mixed)
            call(kernels.update_gradient, n, g, h, kept.mixed, kept.dot, d_update)
            d_both = layer.update.back(d_update, kept.update_hidden)
            call(kernels.joined_gradient, n, d_both, kept.both, kept.update, kept.mixed, h, g, d_mixed)
            through = layer.channels.back(d_mixed).view(n, 3, -1)
            h = through if h is None else h + through
            if kept.v is None:
                call(kernels.message_gradient, pairs.record, layer.table, kept.context, None, g, h, None, None, dd, du)
                break
            d_context, dv = torch.zeros_like(kept.context), h.clone()
            call(kernels.message_gradient, pairs.record, layer.table, kept.context, kept.v, g, h, d_context, dv, dd, du)
            g, h = g + layer.context.back(d_context, kept.context_hidden), dv
        forces = g.new_zeros(n, 3)
        call(kernels.forces, pairs.record, dd, du, forces)
        return forces


class FastForceField:
    """A :class:`ForceField` on kernels."""

    def __init__(self, module: ForceField) -> None:
        self.module = module
        self.network = _Network(module.painn)
        self.energy = _Perceptron.of(module.energy)
        self.scale = module.scale.clone()
        self.strength = torch.full_like(self.scale, CORE_STRENGTH)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Interaction energies (B,), eV, and forces on all atoms (N, 3), eV/Å."""
        passed: list[_Passed] = []
        s, v, pairs, edges = self._atoms(batch, passed=passed)
        energies, hidden = self.energy(s)
        energies = energies[:, 0] * self.scale
        if self.module.force is None:
            forces = self.network.forces(self.energy.back(self.scale.expand(len(s), 1), hidden), pairs, passed)
        else:
            forces = self.module.force(s, v) * self.scale
        self._repel(batch, edges, pairs, energies, forces)
        return energies.new_zeros(batch.n_structures).index_add(0, batch.batch, energies), forces

    @torch.no_grad()
    def overlayer_forces(self, batch: Batch) -> Tensor:
        """Forces on the overlayer atoms alone (M, 3), eV/Å; less work than all where forces are direct."""
        rows = batch.mobile.nonzero()[:, 0]
        if self.module.force is None:
            return self(batch)[1].index_select(0, rows)
        s, v, pairs, edges = self._atoms(batch, read_out=batch.mobile)
        forces = torch.zeros_like(batch.positions).index_copy(0, rows, self.module.force(s, v) * self.scale)
        self._repel(batch, edges, pairs, torch.zeros_like(forces[:, 0]), forces)
        return forces.index_select(0, rows)

    def _atoms(
        self, batch: Batch, read_out: Tensor | None = None, passed: list[_Passed] | None = None
    ) -> tuple[Tensor, Tensor, _Pairs, Edges]:
        """Scalars and vectors after the network, of the atoms in ``read_out`` (N,)."""
        edges = self.module.edges(batch)
        pairs = self.network.pairs(lifted(batch, self.module.lift), edges)
        s, v = self.network(self.module.scalars(batch), None, pairs, read_out=read_out, passed=passed)
        return s, v, pairs, edges

    def _repel(self, batch: Batch, edges: Edges, pairs: _Pairs, energies: Tensor, forces: Tensor) -> None:
        """Add core repulsion to energies (N,) and forces (N, 3); atoms are where they are, not lifted."""
        near = self.network.pairs(batch, edges) if self.module.lift else pairs
        radii = self.module.radii.index_select(0, batch.numbers)
        call(self.network.kernels.repulsion, near.record, radii, self.strength, energies, forces)


class FastDenoiser:
    """A :class:`Denoiser` on kernels."""

    def __init__(self, module: Denoiser) -> None:
        self.module = module
        self.network = _Network(module.painn)

    @torch.no_grad()
    def __call__(self, batch: Batch, sigma: Tensor, conditions: Tensor) -> Tensor:
        """Normalised score of the overlayer atoms (M, 3) of the batch, noise levels (B,) and conditions (B, K)."""
        module = self.module
        s, v, condition = module.inputs(batch, sigma, conditions)
        pairs = self.network.pairs(lifted(batch, module.lift), module.edges(batch))
        s, v = self.network(s, v, pairs, _Condition(condition, batch.batch), read_out=batch.mobile)
        score: Tensor = module.read_out(s, v)
        return score

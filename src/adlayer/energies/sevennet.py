"""SevenNet on the CPU: the network of a model of the package ``sevenn``, with features laid out for speed.

Upstream keeps the features of an atom as rows [channel, component] of all degrees after each other, and results of an
edge's size between its operations, which cost most of its time. Here

- features are blocks (atoms·(2l+1), channels), one for each degree, on which an equivariant linear map is one matrix
  product for each degree, without a permutation;
- convolutions are the kernels of :mod:`adlayer.energies.convolution`;
- a pair of atoms is one row for its two edges, from the radial network to the forces. With the pair's vector
  r = x_j − x_i and f = ∂E/∂r, forces are Σ f on i and −Σ f on j, the stress is Σ r fᵀ / V.

Weights are upstream's, read when a model is loaded; what does not depend on the layout (radial basis, harmonics,
rescaling) stays upstream's. Energies and forces are the same to rounding. A model that is built in another way is not
read (:func:`fast` gives nothing) and stays with upstream's own path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor

from adlayer.energies.convolution import Convolution, Pairs, Path

Blocks = tuple[Tensor, ...]  # (atoms·(2l+1), channels) each


class _UnknownError(ValueError):
    """The model is not built as expected here."""


def _expect(condition: object) -> None:
    if not condition:
        raise _UnknownError


@dataclass(frozen=True)
class _Linear:
    """Equivariant linear map: for each block of the result the block it comes from and a matrix (channels, columns).

    A block that comes from none is zero: ``None`` and zeros (1, columns).
    """

    maps: tuple[tuple[int | None, Tensor], ...]

    @classmethod
    def read(cls, linear: Any) -> _Linear:
        """The matrices are what the map gives for unit vectors, one channel at a time."""
        _expect(type(linear).__name__ == "Linear" and linear.bias_numel == 0)
        sources, targets = _parts(linear.irreps_in), _parts(linear.irreps_out)
        unit = linear.weight.new_zeros(sum(channels for _, _, channels in sources), linear.irreps_in.dim)
        starts, row = [], 0
        for start, degree, channels in sources:
            starts.append(row)
            unit[range(row, row + channels), range(start, start + channels * (2 * degree + 1), 2 * degree + 1)] = 1.0
            row += channels
        response = linear(unit).detach()
        maps: list[tuple[int | None, Tensor]] = []
        for start, degree, columns in targets:
            n = next((n for n, source in enumerate(sources) if source[1] == degree), None)
            if n is None:
                maps.append((None, response.new_zeros(1, columns)))
                continue
            rows = response[starts[n] : starts[n] + sources[n][2]]
            maps.append((n, rows[:, start : start + columns * (2 * degree + 1) : 2 * degree + 1].contiguous()))
        _expect(np.isclose(sum(float(m.square().sum()) for _, m in maps), float(response.square().sum())))
        return cls(tuple(maps))

    def scaled(self, factors: Sequence[float]) -> _Linear:
        """The same for blocks that lack these factors."""
        return _Linear(tuple((n, matrix if n is None else matrix * factors[n]) for n, matrix in self.maps))

    def __call__(self, blocks: Blocks) -> Blocks:
        return tuple(matrix if n is None else blocks[n].mm(matrix) for n, matrix in self.maps)

    def add(self, blocks: Blocks, others: Blocks) -> Blocks:
        """The map's result and ``others``."""
        return tuple(
            other if n is None else torch.addmm(other, blocks[n], matrix)
            for other, (n, matrix) in zip(others, self.maps, strict=True)
        )


def _parts(irreps: Any) -> list[tuple[int, int, int]]:
    """Start, degree and channels of each degree; one parity, every degree once."""
    merged = irreps.simplify()
    _expect(len({ir.l for _, ir in merged}) == len(merged))
    starts = np.cumsum([0, *(multiplicity * ir.dim for multiplicity, ir in merged)])
    return [(int(s), ir.l, multiplicity) for s, (multiplicity, ir) in zip(starts, merged, strict=False)]


@dataclass(frozen=True)
class _Gate:
    """Scalars activated, other blocks times their activated gates, which are the last columns of the scalars.

    Activations have a constant factor each upstream: ``factors``, left out here, for the maps that follow.
    """

    columns: tuple[int, ...]  # scalars, then the gates of each block
    activations: tuple[Callable[[Tensor], Tensor], ...]
    factors: tuple[float, ...]

    @classmethod
    def read(cls, gate: Any) -> _Gate:
        _expect(type(gate).__name__ == "Gate")
        scalars, gated = gate.act_scalars, gate.irreps_gated
        parts, activations = list(scalars.irreps_in), list(scalars.acts)
        if len(gated):
            parts += gate.act_gates.irreps_in
            activations += gate.act_gates.acts
        columns = tuple(multiplicity for multiplicity, _ in parts)
        _expect(len(scalars.irreps_in) == 1 and all(ir.l == 0 for _, ir in parts))
        _expect(columns[1:] == tuple(multiplicity for multiplicity, _ in gated))
        expected = [(0, sum(columns)), *((ir.l, multiplicity) for multiplicity, ir in gated)]
        _expect([(degree, channels) for _, degree, channels in _parts(gate.irreps_in)] == expected)
        return cls(columns, tuple(act.f for act in activations), tuple(float(act.cst) for act in activations))

    def __call__(self, blocks: Blocks) -> Blocks:
        scalars, *others = blocks
        active = [f(x) for f, x in zip(self.activations, scalars.split(self.columns, dim=-1), strict=True)]
        results = [active[0]]
        for gate, block in zip(active[1:], others, strict=True):
            results.append((block.view(len(gate), -1, gate.shape[1]) * gate.unsqueeze(1)).view_as(block))
        return tuple(results)


def read_convolution(module: Any) -> Convolution:
    """The shape of an ``IrrepsConvolution``, with its denominator in the coefficients."""
    from e3nn.o3 import wigner_3j

    tp = module.convolution
    _expect(type(module).__name__ == "IrrepsConvolution" and type(tp).__name__ == "TensorProduct")
    _expect(not module.is_parallel and all(m == 1 for m, _ in tp.irreps_in2))
    _expect(all(one.connection_mode == "uvu" and one.has_weight for one in tp.instructions))
    blocks = tuple((ir.l, multiplicity) for multiplicity, ir in tp.irreps_in1)
    _expect(blocks == tuple((degree, channels) for _, degree, channels in _parts(tp.irreps_in1)))
    groups: list[tuple[int, int]] = []
    place: list[tuple[int, int]] = []  # group and first column of each of the results
    for ir, parts in groupby(tp.irreps_out, key=lambda part: part.ir):
        column = 0
        for part in parts:
            place.append((len(groups), column))
            column += part.mul
        groups.append((ir.l, column))
    paths, weight = [], 0
    for one in tp.instructions:
        degrees = tp.irreps_in1[one.i_in1].ir.l, tp.irreps_in2[one.i_in2].ir.l, tp.irreps_out[one.i_out].ir.l
        factor = one.path_weight / float(module.denominator)
        coefficients = wigner_3j(*degrees, dtype=torch.float64) * factor
        coefficients = torch.where(coefficients.abs() > 1e-9 * factor, coefficients, 0.0)  # zero but for rounding
        group, column = place[one.i_out]
        paths.append(Path(one.i_in1, one.i_in2, group, column, weight, coefficients))
        weight += tp.irreps_in1[one.i_in1].mul
    return Convolution(blocks, tuple(ir.l for _, ir in tp.irreps_in2), tuple(groups), tuple(paths))


@dataclass(frozen=True)
class _Radial:
    """Weights of a convolution from the radial basis: matrices with an activation after each but the last.

    What upstream divides and multiplies by at every call is in the matrices.
    """

    matrices: tuple[Tensor, ...]
    activations: tuple[Callable[[Tensor], Tensor], ...]

    @classmethod
    def read(cls, network: Any) -> _Radial:
        layers = list(network.children())
        _expect(type(network).__name__ == "FullyConnectedNet" and layers[-1].act is None)
        _expect(all(layer.var_in == layer.var_out == 1 for layer in layers))
        factors = [1.0, *(layer.act.cst for layer in layers[:-1])]
        matrices = (layer.weight.detach() * (f / layer.h_in**0.5) for f, layer in zip(factors, layers, strict=True))
        return cls(tuple(matrices), tuple(layer.act.f for layer in layers[:-1]))

    def __call__(self, basis: Tensor) -> Tensor:
        for matrix, activation in zip(self.matrices[:-1], self.activations, strict=True):
            basis = activation(basis @ matrix)
        return basis @ self.matrices[-1]


@dataclass(frozen=True)
class _Layer:
    """Interaction: a linear map around (``skip``), and one before and one after the convolution; then the gate."""

    skip: _Linear
    before: _Linear
    convolution: Convolution
    radial: _Radial
    after: _Linear
    gate: _Gate

    def __call__(self, blocks: Blocks, pairs: Pairs, harmonics: Tensor, basis: Tensor) -> Blocks:
        groups = self.convolution(pairs, harmonics, self.radial(basis), self.before(blocks))
        return self.gate(self.after.add(groups, self.skip(blocks)))


class Network:
    """The network of one of upstream's models.

    Raises
    ------
    _UnknownError
        If the model is not built as expected.
    """

    def __init__(self, model: Any) -> None:
        import sevenn._keys as key

        modules, names = dict(model.named_children()), []

        def take(name: str, kind: str) -> Any:
            _expect(name in modules and type(modules[name]).__name__ == kind)
            names.append(name)
            return modules[name]

        def linear(name: str, kind: str = "IrrepsLinear", factors: Sequence[float] | None = None) -> _Linear:
            module = take(name, kind)
            _expect(getattr(module, "num_modalities", 0) <= 1)
            read = _Linear.read(module.linear)
            return read if factors is None else read.scaled(factors)

        _expect(all(p.dtype == torch.float32 and p.device.type == "cpu" for p in model.parameters()))
        self._keys = key.EDGE_VEC, key.EDGE_ATTR, key.EDGE_EMBEDDING
        self._edges = take("edge_embedding", "EdgeEmbedding")
        take("onehot_idx_to_onehot", "OnehotEmbedding")
        ((_, self._species),) = linear("onehot_to_feature_x").maps  # (species, channels)
        self._layers: list[_Layer] = []
        factors: tuple[float, ...] = (1.0,)
        while f"{(n := len(self._layers))}_convolution" in modules:
            module = take(f"{n}_convolution", "IrrepsConvolution")
            take(f"{n}_self_connection_outro", "SelfConnectionOutro")
            layer = _Layer(
                skip=linear(f"{n}_self_connection_intro", "SelfConnectionLinearIntro", factors),
                before=linear(f"{n}_self_interaction_1", factors=factors),
                convolution=read_convolution(module),
                radial=_Radial.read(module.weight_nn),
                after=linear(f"{n}_self_interaction_2"),
                gate=_Gate.read(take(f"{n}_equivariant_gate", "EquivariantGate").gate),
            )
            self._layers.append(layer)
            factors = layer.gate.factors
        self._readout = [linear("reduce_input_to_hidden", factors=factors), linear("reduce_hidden_to_energy")]
        rescale = take("rescale_atomic_energy", "SpeciesWiseRescale")
        self._scale, self._shift = rescale.scale.detach(), rescale.shift.detach()
        _expect(take("reduce_total_enegy", "AtomReduce").constant == 1.0)
        take("force_output", "ForceStressOutputFromEdge")
        _expect(sorted(names) == sorted(modules))
        _expect(all(layer.convolution.library(torch.float32) is not None for layer in self._layers))

    def __call__(self, species: Tensor, pairs: Pairs, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energies of the atoms (n,) in eV and the gradient (pairs, 3) of their sum in the pairs' vectors, eV/Å."""
        vector, attribute, embedding = self._keys
        vectors = vectors.detach().requires_grad_()
        edges = self._edges({vector: vectors})
        blocks: Blocks = (self._species[species],)
        for layer in self._layers:
            blocks = layer(blocks, pairs, edges[attribute], edges[embedding])
        for linear in self._readout:
            blocks = linear(blocks)
        energies = blocks[0].reshape(-1) * self._scale[species] + self._shift[species]
        (gradient,) = torch.autograd.grad(energies.sum(), vectors)
        return energies.detach(), gradient


class SevenNet(Calculator):
    """Upstream's calculator with the faster network: the same results."""

    # ASE reads it from the class.
    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(self, upstream: Any, network: Network) -> None:
        super().__init__()
        self._upstream, self._network = upstream, network
        self._places = torch.full((120,), -1)
        for number, place in upstream.type_map.items():
            self._places[number] = place

    def set_atoms(self, atoms: Atoms) -> None:
        """Refuse elements that the model does not know."""
        self._upstream.set_atoms(atoms)

    def calculate(
        self, atoms: Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Fill ``results``: eV, eV/Å, eV/Å³."""
        import sevenn._keys as key
        from sevenn.train.dataload import unlabeled_atoms_to_graph

        super().calculate(atoms, properties, system_changes)
        self.set_atoms(self.atoms)
        graph = unlabeled_atoms_to_graph(self.atoms, self._upstream.cutoff, with_shift=True)
        (i, j), shift = graph[key.EDGE_IDX], graph[key.CELL_SHIFT]
        a, b, c = shift.T
        ahead = (a > 0) | (a == 0) & ((b > 0) | (b == 0) & (c > 0))
        once = np.flatnonzero((i < j) | (i == j) & ahead)  # of the two edges of a pair
        pairs = Pairs(torch.from_numpy(i[once]), torch.from_numpy(j[once]), len(self.atoms))
        vectors = torch.from_numpy(graph[key.EDGE_VEC][once]).float()
        energies, gradient = self._network(self._places[torch.from_numpy(self.atoms.numbers)], pairs, vectors)
        forces = gradient.new_zeros(len(self.atoms), 3)
        forces = forces.index_add(0, pairs.first, gradient).index_add(0, pairs.second, gradient, alpha=-1)
        virial = (vectors.T @ gradient).numpy()
        stress = virial[[0, 1, 2, 1, 2, 0], [0, 1, 2, 2, 0, 1]] / max(self.atoms.cell.volume, 1e-3)
        energy = float(energies.sum())
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "energies": energies.numpy(),
            "forces": forces.numpy(),
            "stress": stress,
            "num_edges": 2 * len(once),
        }


def fast(upstream: Any) -> SevenNet | None:
    """The same calculator with the faster network, or nothing where its model or this machine does not allow that."""
    try:
        _expect(upstream.modal is None and not upstream.compute_atomic_virial)
        with torch.no_grad():
            network = Network(upstream.model)
    except (AttributeError, LookupError, TypeError, ValueError):  # built in another way
        return None
    return SevenNet(upstream, network)

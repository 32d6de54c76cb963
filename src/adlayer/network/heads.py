"""The two networks of a model: the denoiser and the force field, both PaiNN.

**Denoiser.** Predicts the score ``s_θ(r, σ)`` of the overlayer atoms (non-conservative vector read-out). Its raw
output is of order one at every noise level: the caller multiplies by the root-mean-square score of the kernel.
Scalars enter with the element, whether the atom is mobile, its distance to both walls of the confinement (the walls
break the symmetry along z), and vectors with the surface normal; noise level and conditions enter every interaction.
Symmetric under in-plane rotations, reflections and translations and permutations of like atoms.

**Force field.** ``E = Σ_i (e_Z(i) + ε(s_i)) + E_core`` with a composition baseline ``e_Z``; forces are the exact
negative gradient, or, in its faster form, a vector read-out. ``E_core = ½ Σ_ij A (1 − d_ij/d⁰_ij)²`` over pairs closer
than ``d⁰ = 0.7`` times the sum of covalent radii, nearer than any data: there a learned energy alone may have holes
into which atoms fall.

**Lift.** Hollow sites of one kind differ from those of another by the second substrate layer alone, which lies where
the cutoff function has almost faded. Both networks therefore see substrate layers below the first raised by ``lift`` Å
for each layer in between, and know their atoms apart from those of the first. A constant shift of each atom changes
no derivative and no symmetry. 0 switches it off, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from adlayer.network.graph import Batch
from adlayer.network.neighbours import Edges, neighbours
from adlayer.network.painn import Condition, PaiNN

CORE_STRENGTH = 60.0  # eV
_CORE_RADIUS = 0.7  # sums of covalent radii
_DEEP = 0.5  # eV of core repulsion for an atom, which one pair has at 0.87 of the core's radius
_WALL_REACH = 6.0  # Å
_WALL_FEATURES = 8


class Species(nn.Module):
    """Atomic numbers (N,) → row of each element in the tables (N,)."""

    table: Tensor

    def __init__(self, elements: Sequence[int]) -> None:
        super().__init__()
        table = torch.full((119,), -1, dtype=torch.long)
        table[torch.tensor(list(elements))] = torch.arange(len(elements))
        self.register_buffer("table", table, persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.table[numbers]


def rises(batch: Batch, lift: float) -> Tensor:
    """How far the networks see each atom raised (N,), Å: layer ``k`` of the substrate by ``(k − 1)·lift``."""
    return lift * (batch.tags - 1).clamp(min=0).to(batch.positions.dtype)


def raised(batch: Batch, rise: Tensor) -> Batch:
    """The batch with each atom raised by ``rise`` (N,), Å."""
    return batch.with_positions(batch.positions + torch.nn.functional.pad(rise[:, None], (2, 0)))


def lifted(batch: Batch, lift: float) -> Batch:
    """The batch as the networks see it."""
    return raised(batch, rises(batch, lift)) if lift else batch


class VectorReadOut(nn.Module):
    """Equivariant vector of each atom: ``Σ_f γ_f(s) (V v)_f``, (N, F) and (N, 3, F) → (N, 3)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mix = nn.Linear(features, features, bias=False)
        self.gate = nn.Sequential(nn.Linear(2 * features, features), nn.SiLU(), nn.Linear(features, features))

    def forward(self, s: Tensor, v: Tensor) -> Tensor:
        v = self.mix(v)
        norm = torch.sqrt((v**2).sum(dim=1) + 1e-8)  # (N, F)
        return (v * self.gate(torch.cat([s, norm], dim=-1))[:, None]).sum(dim=-1)


class Denoiser(nn.Module):
    """Noise-level-conditioned PaiNN with a vector read-out.

    Parameters
    ----------
    elements
        Atomic numbers that the model knows.
    features, interactions, n_radial, cutoff
        Size of the PaiNN.
    n_conditions
        Number of scalar conditions of a structure (energy above the minimum, …); NaN stands for "not given".
    lift
        By how much deeper layers are seen raised, Å a layer; see the module's docstring.
    """

    frequencies: Tensor
    wall_centres: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        *,
        features: int = 64,
        interactions: int = 4,
        n_radial: int = 30,
        cutoff: float = 6.0,
        n_conditions: int = 0,
        n_frequencies: int = 16,
        lift: float = 0.0,
    ) -> None:
        super().__init__()
        self.cutoff, self.lift = cutoff, lift
        self.n_kinds = 3 if lift else 2  # substrate, overlayer, deeper substrate
        self.species = Species(elements)
        self.embedding = nn.Embedding(self.n_kinds * len(elements), features)
        self.walls = nn.Linear(2 * _WALL_FEATURES + 2, features)
        self.normal = nn.Linear(features, features, bias=False)
        self.register_buffer("frequencies", torch.linspace(0.1, 3.0, n_frequencies), persistent=False)
        self.register_buffer("wall_centres", torch.linspace(0.0, _WALL_REACH, _WALL_FEATURES), persistent=False)
        n_inputs = 2 * n_frequencies + 4 * n_conditions
        self.condition = nn.Sequential(
            nn.Linear(n_inputs, features), nn.SiLU(), nn.Linear(features, features), nn.SiLU()
        )
        self.painn = PaiNN(features, interactions, n_radial, cutoff, n_condition=features)
        self.read_out = VectorReadOut(features)

    def edges(self, batch: Batch) -> Edges:
        """The edges that the denoiser uses: all pairs but those within the rigid substrate."""
        return neighbours(lifted(batch, self.lift), self.cutoff, among_substrate=False)

    def _condition(self, sigma: Tensor, conditions: Tensor) -> Tensor:
        """Noise level (B,) in Å and conditions (B, K), NaN where not given → (B, F)."""
        phase = torch.log(sigma)[:, None] * self.frequencies
        given = (~torch.isnan(conditions)).to(sigma.dtype)
        value = torch.nan_to_num(conditions)
        parts = [value, torch.tanh(value), torch.exp(-value.abs()) * given, given]
        return self.condition(torch.cat([phase.sin(), phase.cos(), *parts], dim=-1))

    def _walls(self, batch: Batch, sigma: Tensor) -> Tensor:
        """Features of the distances to both walls (N, 2·8+2)."""
        window, level = batch.window[batch.batch], sigma[batch.batch]
        z = batch.positions[:, 2]
        gaps = torch.stack([z - window[:, 0], window[:, 1] - z], dim=-1)  # (N, 2)
        spacing = _WALL_REACH / (_WALL_FEATURES - 1)
        smooth = torch.exp(-0.5 * ((gaps[:, :, None] - self.wall_centres) / spacing) ** 2)  # (N, 2, 8)
        return torch.cat([smooth.flatten(1), torch.tanh(gaps / level[:, None])], dim=-1)

    def inputs(self, batch: Batch, sigma: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What enters the PaiNN: scalars (N, F), vectors (N, 3, F), and the condition of each structure (B, F)."""
        kind = batch.mobile.long() if not self.lift else batch.mobile.long() + 2 * (batch.tags > 1)
        embedded = self.embedding.weight.index_select(0, self.n_kinds * self.species(batch.numbers) + kind)
        s = embedded + self.walls(self._walls(batch, sigma))
        v = s.new_zeros(len(s), 3, s.shape[1])
        v[:, 2] = self.normal(s)
        return s, v, self._condition(sigma, conditions)

    def forward(
        self,
        batch: Batch,
        sigma: Tensor,
        conditions: Tensor,
        edges: Edges | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Normalised score of the overlayer atoms, of order one.

        Parameters
        ----------
        batch
            The structures; substrate atoms are seen, never moved.
        sigma
            Noise level of each structure (B,), Å.
        conditions
            (B, K), NaN where not given.
        edges, rows
            From :meth:`edges`, and the overlayer's atoms (M,), if they are known already.

        Returns
        -------
        Tensor
            (M, 3) for the M overlayer atoms, in the order of the batch.
        """
        edges = self.edges(batch) if edges is None else edges
        rows = batch.mobile.nonzero()[:, 0] if rows is None else rows
        s, v, condition = self.inputs(batch, sigma, conditions)
        vectors = edges.vectors(lifted(batch, self.lift))
        s, v = self.painn(s, v, edges, vectors, Condition(condition, batch.batch), read_out=(batch.mobile, rows))
        return self.read_out(s.index_select(0, rows), v.index_select(0, rows))


class ForceField(nn.Module):
    """PaiNN with an energy head; see the module's docstring.

    Parameters
    ----------
    elements, features, interactions, n_radial, cutoff, lift
        As for :class:`Denoiser`.
    direct
        Read forces out of the vectors, do not differentiate the energy: about twice as fast, not conservative.
    """

    radii: Tensor
    baseline: Tensor
    scale: Tensor

    def __init__(
        self,
        elements: Sequence[int],
        *,
        features: int = 64,
        interactions: int = 3,
        n_radial: int = 20,
        cutoff: float = 5.0,
        direct: bool = False,
        lift: float = 0.0,
    ) -> None:
        super().__init__()
        self.cutoff, self.direct, self.lift = cutoff, direct, lift
        self.n_kinds = 2 if lift else 1  # overlayer and first layer alike, deeper substrate
        self.species = Species(elements)
        self.embedding = nn.Embedding(self.n_kinds * len(elements), features)
        self.painn = PaiNN(features, interactions, n_radial, cutoff)
        self.energy = nn.Sequential(nn.Linear(features, features // 2), nn.SiLU(), nn.Linear(features // 2, 1))
        self.force = VectorReadOut(features) if direct else None
        radii = torch.tensor(covalent_radii, dtype=torch.get_default_dtype())
        self.register_buffer("radii", _CORE_RADIUS * radii, persistent=False)
        self.register_buffer("baseline", torch.zeros(len(elements), dtype=torch.float64))  # eV per atom
        self.register_buffer("scale", torch.ones(()))  # eV

    def edges(self, batch: Batch) -> Edges:
        """All pairs within the cutoff."""
        return neighbours(lifted(batch, self.lift), self.cutoff)

    def forward(self, batch: Batch, edges: Edges | None = None) -> tuple[Tensor, Tensor]:
        """Interaction energies without the baseline (B,), eV, and forces on all atoms (N, 3), eV/Å.

        Differentiable in the parameters while the module is in training mode.
        """
        edges = self.edges(batch) if edges is None else edges
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            batch = batch.with_positions(positions)
            core = self._core(batch, edges)  # (N,)
            with torch.set_grad_enabled(self.training or not self.direct):
                s, v = self._atoms(batch, edges)
            per_atom = self.energy(s)[:, 0] * self.scale + core
            energy = s.new_zeros(batch.n_structures).index_add(0, batch.batch, per_atom)
            differentiated = core if self.direct else energy
            (gradient,) = torch.autograd.grad(differentiated.sum(), positions, create_graph=self.training)
            forces = -gradient if self.force is None else self.force(s, v) * self.scale - gradient
        return (energy, forces) if self.training else (energy.detach(), forces.detach())

    def overlayer_forces(self, batch: Batch) -> Tensor:
        """Forces on the overlayer atoms alone (M, 3), eV/Å; less work than all where forces are direct."""
        rows = batch.mobile.nonzero()[:, 0]
        if self.force is None:
            return self(batch)[1].index_select(0, rows)
        edges = self.edges(batch)
        with torch.enable_grad():
            positions = batch.positions.detach().requires_grad_()
            core = self._core(batch.with_positions(positions), edges).sum()
            (gradient,) = torch.autograd.grad(core, positions)
        with torch.no_grad():
            s, v = self._atoms(batch, edges, read_out=(batch.mobile, rows))
            return self.force(s.index_select(0, rows), v.index_select(0, rows)) * self.scale - gradient[rows]

    def scalars(self, batch: Batch) -> Tensor:
        """What enters the PaiNN (N, F)."""
        deeper = (batch.tags > 1).long() if self.lift else 0
        return self.embedding.weight.index_select(0, self.n_kinds * self.species(batch.numbers) + deeper)

    def _atoms(
        self, batch: Batch, edges: Edges, read_out: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Scalars (N, F) and vectors (N, 3, F) after the network; direct forces need no gradient in the positions."""
        s = self.scalars(batch)
        vectors = edges.vectors(lifted(batch, self.lift))
        found: tuple[Tensor, Tensor] = self.painn(
            s, None, edges, vectors.detach() if self.direct else vectors, read_out=read_out
        )
        return found

    def _core(self, batch: Batch, edges: Edges) -> Tensor:
        """Core repulsion of each atom (N,), eV: half of every pair."""
        radii = self.radii.index_select(0, batch.numbers)  # (N,)
        n = edges.n_pairs
        pairs = Edges(edges.receiver[:n], edges.sender[:n], edges.shift[:n])
        if radii.device.type == "cpu":  # elsewhere it would take longer to know which are near
            with torch.no_grad():
                square = (pairs.vectors(batch) ** 2).sum(dim=-1)
            pairs = pairs.keep(square < (2.0 * radii.max()) ** 2)
        contact = radii.index_select(0, pairs.receiver) + radii.index_select(0, pairs.sender)
        distance = torch.sqrt((pairs.vectors(batch) ** 2).sum(dim=-1) + 1e-12)
        half = 0.5 * CORE_STRENGTH * (1.0 - distance / contact).clamp(min=0.0) ** 2
        total = torch.zeros_like(radii).index_add(0, pairs.receiver, half)
        return total.index_add(0, pairs.sender, half) if edges.paired else total

    def crowded(self, batch: Batch) -> Tensor:
        """(B,) bool: where an atom is deep in another's core, so that the learned energy means nothing."""
        core = self._core(batch, neighbours(batch, 2.0 * float(self.radii.index_select(0, batch.numbers).max())))
        deep = (core > _DEEP).to(core.dtype)
        return core.new_zeros(batch.n_structures).index_add(0, batch.batch, deep) > 0

    def total_energy(self, batch: Batch, interaction: Tensor) -> Tensor:
        """Total energies (B,) in double precision: interaction plus composition baseline."""
        baseline = self.baseline[self.species(batch.numbers)].double()
        total = interaction.new_zeros(batch.n_structures, dtype=torch.float64).index_add(0, batch.batch, baseline)
        return total + interaction.double()

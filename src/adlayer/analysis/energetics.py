"""Formation and adsorption energies of overlayers against reservoirs of their elements.

An overlayer of n_i atoms of element i on one side of a slab of area A has the formation energy per area

    γ(Δμ) = [E − E_substrate − Σ_i n_i (μ_i° + Δμ_i)] / A                    (eV/Å²)

(K. Reuter & M. Scheffler, Phys. Rev. B 65, 035406 (2001); the bare substrate is the zero). E_substrate is the energy
of the bare slab in the same cell, with the same layers and the same ones fixed; μ_i° the energy per atom of the
element's reference: the bulk crystal of a metal, half the molecule of a gas. Both are of the calculator that gave E.
Energies stand for free energies: vibrations and configurations of the solid are left out, which is good to about
10 meV/Å² in RuO₂(110) (ibid.) and to 0.1 eV per oxygen in bulk Ag₂O. Overlayer atoms carry tag 0.

Average and differential adsorption energies per atom of X, negative where binding, at Δμ = 0:

    E_ads = [E − E_substrate − Σ_i n_i μ_i°] / n_X,       E_diff = Δ(E_ads n_X / A) / Δ(n_X / A)

the second between successive coverages. All energies in eV, lengths in Å.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import ArrayLike

from adlayer.analysis.records import potential_energy
from adlayer.analysis.registry import ideal_substrate, lattice_points, reduce_basis
from adlayer.errors import UserError
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.substrate import fixed_mask

_SAME_LATTICE = 0.1  # Å of the lengths, 0.01 of the cosine


@dataclass(frozen=True)
class SurfacePhase:
    """One overlayer phase.

    Attributes
    ----------
    label
        What to call it.
    formation
        E − E_substrate − Σ n_i μ_i°, eV per cell.
    counts
        n_i, overlayer atoms of each element in the cell.
    area
        Of the cell, Å².
    """

    label: str
    formation: float
    counts: Mapping[str, int]
    area: float

    @property
    def n_atoms(self) -> int:
        """Number of overlayer atoms in the cell."""
        return sum(self.counts.values())

    def excess(self, element: str) -> float:
        """Overlayer atoms of an element per area, Å⁻²: minus the slope of γ."""
        return self.counts.get(element, 0) / self.area

    def gamma(self, potentials: Mapping[str, ArrayLike]) -> np.ndarray:
        """γ (eV/Å²) at the Δμ_i (eV; numbers or arrays of one shape) given, zero for elements left out."""
        energy = np.asarray(self.formation, dtype=float)
        for element, potential in potentials.items():
            energy = energy - self.counts.get(element, 0) * np.asarray(potential, dtype=float)
        return energy / self.area

    def adsorption_energy(self, element: str) -> float:
        """E_ads, eV per atom of the element; ``nan`` if there is none."""
        n = self.counts.get(element, 0)
        return self.formation / n if n else float("nan")


def area(atoms: Atoms) -> float:
    """Area of the cell in the plane, Å²: of one side, the one that carries the overlayer."""
    return abs(float(np.linalg.det(atoms.cell.array[:2, :2])))


def overlayer_counts(atoms: Atoms) -> dict[str, int]:
    """Overlayer atoms of each element."""
    symbols = [s for s, tag in zip(atoms.get_chemical_symbols(), atoms.get_tags(), strict=True) if tag == 0]
    return dict(sorted(Counter(symbols).items()))


def bare_substrate(atoms: Atoms) -> Atoms:
    """The undistorted substrate of a structure in the structure's cell, its layers tagged and fixed alike.

    Each site is the median of its equivalents (see :mod:`adlayer.analysis.registry`), so that distortions by the
    overlayer are gone; fixed layers lie where they lay. Relax it to have the energy of the clean surface.
    """
    ideal = ideal_substrate(atoms)
    points = lattice_points(ideal)
    tags, fixed = atoms.get_tags(), fixed_mask(atoms)
    held = {int(t) for t in set(tags[tags > 0]) if fixed[tags == t].all()}
    positions = np.repeat(ideal.sites, len(points), axis=0)
    positions[:, :2] += np.tile(points, (len(ideal.sites), 1))
    slab = Atoms(
        numbers=np.repeat(ideal.numbers, len(points)),
        positions=positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        tags=np.repeat(ideal.layers, len(points)),
    )
    slab.wrap(pbc=[True, True, False])
    slab.set_constraint(FixAtoms(mask=np.isin(slab.get_tags(), sorted(held))))
    return slab


def lattice_shape(atoms: Atoms) -> np.ndarray:
    """What a lattice in the plane is known by (3,): reduced lengths in Å and ten times the absolute cosine."""
    u, v = reduce_basis(atoms.cell.array[:2, :2])
    lengths = np.linalg.norm(u), np.linalg.norm(v)
    return np.array([*lengths, 10.0 * abs(float(u @ v)) / float(lengths[0] * lengths[1])])


def _layers(atoms: Atoms) -> dict[tuple[int, str, bool], float]:
    """Substrate atoms per Å² by layer, element and whether they are fixed."""
    kinds = zip(atoms.get_tags().tolist(), atoms.get_chemical_symbols(), fixed_mask(atoms).tolist(), strict=True)
    return {kind: n / area(atoms) for kind, n in Counter(k for k in kinds if k[0] > 0).items()}


def check_one_substrate(structures: Sequence[Atoms]) -> None:
    """Raise :class:`UserError` if structures rest on different substrates: their γ have different zeros."""
    first = _layers(structures[0])
    for atoms in structures[1:]:
        other = _layers(atoms)
        if first.keys() != other.keys() or any(abs(other[k] / n - 1) > 0.01 for k, n in first.items()):
            names = [overlayer_formula(a) or a.get_chemical_formula() for a in (structures[0], atoms)]
            raise UserError(
                f"{names[0]} and {names[1]} rest on different substrates (faces, layers or fixed layers): "
                "select structures of one substrate"
            )


def lowest_of_each(structures: Sequence[Atoms]) -> list[Atoms]:
    """The structure of lowest energy for each overlayer formula and cell, in order of formula.

    Raises
    ------
    UserError
        If a structure has no finite energy.
    """
    phases: dict[tuple[object, ...], list[tuple[np.ndarray, float, Atoms]]] = {}  # of each formula by lattice
    for index, atoms in enumerate(structures):
        energy = potential_energy(atoms)
        if energy is None or not np.isfinite(energy):
            raise UserError(f"structure {index} has no energy: relax the structures first")
        shape, known = lattice_shape(atoms), phases.setdefault((*overlayer_counts(atoms).items(), len(atoms)), [])
        same = [k for k, (other, _, _) in enumerate(known) if np.abs(shape - other).max() < _SAME_LATTICE]
        if not same:
            known.append((shape, energy, atoms))
        elif energy < known[same[0]][1]:
            known[same[0]] = (known[same[0]][0], energy, atoms)
    return [
        atoms
        for key in sorted(phases, key=repr)
        for _, _, atoms in sorted(phases[key], key=lambda phase: phase[0].round(1).tolist())
    ]


def surface_phase(atoms: Atoms, substrate_energy: float, potentials: Mapping[str, float], label: str) -> SurfacePhase:
    """A structure with its energy as a phase.

    Parameters
    ----------
    atoms
        With tags and energy.
    substrate_energy
        Of the bare substrate in the same cell, eV.
    potentials
        μ_i°, eV per atom, of every overlayer element; of the calculator that gave the energies.
    label
        What to call it.

    Raises
    ------
    UserError
        If there is no energy, or no reference for an element.
    """
    energy = potential_energy(atoms)
    if energy is None:
        raise UserError(f"{label} has no energy: relax it first")
    counts = overlayer_counts(atoms)
    missing = [e for e in counts if e not in potentials]
    if missing:
        raise UserError(f"{missing[0]} has no reference energy: give one in eV per atom")
    reservoirs = sum(n * potentials[element] for element, n in counts.items())
    return SurfacePhase(label, energy - substrate_energy - reservoirs, counts, area(atoms))


def differential_adsorption_energies(phases: Sequence[SurfacePhase], element: str) -> list[tuple[float, float, float]]:
    """E_diff between successive coverages of an element, the lowest phase of each coverage taken.

    The phases should differ in the coverage only, such as those of one cell with the same amount of metal.

    Returns
    -------
    list of (low, high, energy)
        Coverages in Å⁻², and eV per atom added from the lower to the higher one.
    """
    lowest: dict[float, float] = {}
    for phase in phases:
        coverage = round(phase.excess(element), 9)
        lowest[coverage] = min(float(phase.gamma({})), lowest.get(coverage, np.inf))
    steps = sorted(lowest.items())
    return [(a, b, (f - e) / (b - a)) for (a, e), (b, f) in itertools.pairwise(steps)]


def compound_limit(energy: float, counts: Mapping[str, int], potentials: Mapping[str, float], element: str) -> float:
    """Δμ (eV) of an element above which a bulk compound forms, the other elements at their references.

    It is the compound's formation energy per atom of the element.

    Parameters
    ----------
    energy, counts
        Of the compound's cell, eV; its atoms.
    potentials
        μ_i°, eV per atom.
    element
        The element that varies.
    """
    if not counts.get(element):
        raise UserError(f"the compound holds no {element}: give a crystal that does")
    missing = [e for e in counts if e not in potentials]
    if missing:
        raise UserError(f"{missing[0]} of the compound has no reference energy: give one in eV per atom")
    return (energy - sum(n * potentials[e] for e, n in counts.items())) / counts[element]


def corrected_potential(
    energy: float, counts: Mapping[str, int], potentials: Mapping[str, float], element: str, limit: float
) -> float:
    """μ° (eV per atom) of an element with which :func:`compound_limit` comes out as measured.

    ``limit`` is the measured formation enthalpy of the compound at 0 K, eV per atom of the element. It takes the place
    of the calculated energy of a molecule in which the calculator is not to be trusted.
    """
    return potentials[element] + compound_limit(energy, counts, potentials, element) - limit

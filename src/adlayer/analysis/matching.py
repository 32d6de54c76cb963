"""When are two overlayers the same structure?

If an operation of the *bare substrate* (see :mod:`adlayer.analysis.registry`) carries one onto the other, like
atoms permuted. The distance between two overlayers is

    d(a, b) = min over operations g of max over atoms i of | r_i(a) − g r_π(i)(b) |,

π being the assignment of like atoms with the smallest sum of squares (Hungarian method, periodic in the plane).
Heights are measured from the substrate; ``lateral=True`` leaves them out, which recognises a structure by its lateral
topology where heights depend on the energy model. Operations of free space that the substrate lacks do not
count: an overlayer shifted from fcc to hcp hollows, or mirrored in a plane that is no mirror of the substrate, is
another structure.

Necessary conditions make most comparisons cheap. If d ≤ τ, sorted heights differ by at most τ and sorted lateral
interatomic distances, a fingerprint that no isometry changes, by at most 2τ; and for a given operation d is no less
than the largest distance of any atom to its nearest like atom. :func:`unique` checks the energy and the invariants of
a structure against all groups at once, and only what passes gets the exact distance. Being necessary, the conditions
change the cost of a verdict, never the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.optimize import linear_sum_assignment

from adlayer.analysis.records import potential_energy
from adlayer.analysis.registry import (
    IdealSubstrate,
    SymmetryOperations,
    ideal_substrate,
    minimum_image,
    reduce_basis,
    substrate_maps,
    substrate_operations,
)
from adlayer.errors import UserError

TOLERANCE = 0.5
"""Default tolerance of a match, Å: no more than thermal and computational scatter, far below the distance of sites."""
LATERAL_TOLERANCE = 0.7
"""Default without heights, Å: variants of the Ag6 model lie within 0.45 Å of each other, rivals beyond 1.9 Å."""

__all__ = [
    "LATERAL_TOLERANCE",
    "TOLERANCE",
    "SymmetryOperations",
    "distance",
    "match",
    "same_structure",
    "substrate_operations",
    "unique",
]


@dataclass(frozen=True)
class Overlayer:
    """An overlayer on its ideal substrate, sorted by element.

    Attributes
    ----------
    substrate
        The ideal substrate.
    cell
        (2, 2) superlattice vectors as rows, Å.
    positions, numbers
        (N, 3) Å and (N,) atomic numbers of the overlayer, sorted by the latter.
    fingerprint
        (N (N − 1) / 2,) lateral distances, Å: for each pair of elements the sorted ones.
    heights
        (N,) heights, Å, absolute: for each element the sorted ones.
    levels
        (n_layers,) mean height, Å, of the substrate down to each layer.
    """

    substrate: IdealSubstrate
    cell: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    fingerprint: np.ndarray
    heights: np.ndarray
    levels: np.ndarray

    @property
    def kind(self) -> tuple[bytes, int]:
        """What two overlayers of finite distance share: elements, and the number of (1×1) cells."""
        return self.numbers.tobytes(), self.substrate.n_cells

    @property
    def area(self) -> float:
        """Area of the cell, Å²."""
        return abs(float(np.linalg.det(self.cell)))


def prepare(atoms: Atoms) -> Overlayer:
    """The overlayer of a structure with tags, ready to be compared.

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    adsorbed = np.flatnonzero(atoms.get_tags() == 0)
    adsorbed = adsorbed[np.argsort(atoms.numbers[adsorbed], kind="stable")]
    positions, numbers = atoms.positions[adsorbed], atoms.numbers[adsorbed]
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    substrate = ideal_substrate(atoms)
    i, j = np.triu_indices(len(numbers), 1)
    lengths = np.linalg.norm(minimum_image(positions[i, :2] - positions[j, :2], cell), axis=-1)
    return Overlayer(
        substrate=substrate,
        cell=cell,
        positions=positions,
        numbers=numbers,
        fingerprint=lengths[np.lexsort((lengths, numbers[j], numbers[i]))],
        heights=positions[np.lexsort((positions[:, 2], numbers)), 2],
        levels=np.array([substrate.down_to(k).sites[:, 2].mean() for k in range(1, substrate.layers.max() + 1)]),
    )


def _lift(a: Overlayer, b: Overlayer) -> float:
    """Å to add to heights of ``b`` so that its substrate lies level with that of ``a``."""
    layer = min(len(a.levels), len(b.levels)) - 1
    return float(a.levels[layer] - b.levels[layer])


@dataclass(frozen=True)
class _Screen:
    """The invariants of n overlayers of one kind, side by side.

    ``heights`` (n, N), ``lengths`` (n, N (N − 1) / 2) and ``levels`` (n, n_layers) in Å as in :class:`Overlayer`,
    ``depths`` (n,) numbers of layers and ``scales`` (n,) square roots of the cells' areas, Å.
    """

    heights: np.ndarray
    lengths: np.ndarray
    levels: np.ndarray
    depths: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, overlayers: Sequence[Overlayer]) -> _Screen:
        depths = np.array([len(o.levels) for o in overlayers])
        return cls(
            heights=np.array([o.heights for o in overlayers]),
            lengths=np.array([o.fingerprint for o in overlayers]),
            levels=np.array([np.pad(o.levels, (0, depths.max() - len(o.levels)), "edge") for o in overlayers]),
            depths=depths,
            scales=np.array([math.sqrt(o.area) for o in overlayers]),
        )

    def close_to(self, k: int, others: np.ndarray, lateral: bool, cutoff: float) -> np.ndarray:
        """Those of the others (indices) that the invariants leave within ``cutoff`` (Å) of overlayer ``k``."""
        if not lateral and self.heights.size:
            layer = np.minimum(self.depths[k], self.depths[others]) - 1
            lift = self.levels[k, layer] - self.levels[others, layer]
            gaps = np.abs(self.heights[others] + lift[:, None] - self.heights[k]).max(axis=1)
            others = others[gaps <= cutoff + 1e-9]
        if self.lengths.size:
            scale = self.scales[k] / self.scales[others]
            gaps = np.abs(self.lengths[others] * scale[:, None] - self.lengths[k]).max(axis=1, initial=0.0)
            others = others[gaps <= 2 * cutoff + 1e-9]
        return others


def _square_gaps(a: Overlayer, b: Overlayer, maps: SymmetryOperations, lateral: bool, reach: float) -> list[np.ndarray]:
    """Squared distances (n_maps, n, n), Å², from atoms of ``a`` to mapped atoms of ``b``, for each element.

    Exact up to ``reach`` (Å); longer ones are exact or too long.
    """
    images = maps.apply(b.positions[:, :2])  # (k, N, 2)
    basis = reduce_basis(a.cell)
    rounding_suffices = reach < a.area / 2 / np.linalg.norm(basis, axis=1).max()  # half the least distance of its lines
    lift = _lift(a, b)
    gaps = []
    for element in np.unique(a.numbers):
        of = a.numbers == element
        vectors = a.positions[of, :2][None, :, None] - images[:, None, of]  # (k, n, n, 2)
        if rounding_suffices:
            fractional = vectors @ np.linalg.inv(basis)
            vectors = (fractional - np.round(fractional)) @ basis
        else:
            vectors = minimum_image(vectors, basis)
        squares = (vectors**2).sum(-1)
        if not lateral:
            squares += (a.positions[of, 2][:, None] - b.positions[of, 2] - lift) ** 2
        gaps.append(squares)
    return gaps


def displacements(
    a: Overlayer, b: Overlayer, maps: SymmetryOperations, lateral: bool = False, cutoff: float = math.inf
) -> Iterator[tuple[int, float, float]]:
    """How far each operation leaves ``b`` from ``a``.

    Parameters
    ----------
    a, b
        Overlayers of one kind.
    maps
        Operations from the substrate of ``b`` to that of ``a``.
    lateral
        Ignore heights.
    cutoff
        Operations that leave an atom farther than this (Å) from any like atom are skipped.

    Yields
    ------
    tuple of int, float, float
        Index of the operation, largest displacement of an atom (Å), and a lower bound on it (Å) that grows from
        one operation to the next.
    """
    gaps = _square_gaps(a, b, maps, lateral, cutoff)
    nearest = [np.maximum(g.min(axis=1).max(axis=1), g.min(axis=2).max(axis=1)) for g in gaps]
    bound = np.sqrt(np.max([np.zeros(len(maps)), *nearest], axis=0))  # (k,)
    order = np.argsort(bound, kind="stable")
    kept = order[bound[order] <= cutoff]
    if len(kept):
        gaps = _square_gaps(a, b, SymmetryOperations(maps.rotations[kept], maps.translations[kept]), lateral, math.inf)
    for j, k in enumerate(kept):
        farthest = max((float(g[j][linear_sum_assignment(g[j])].max()) for g in gaps), default=0.0)
        yield int(k), math.sqrt(farthest), float(bound[k])


def _distance(a: Overlayer, b: Overlayer, lateral: bool, cutoff: float = math.inf) -> float:
    """The distance if it is within ``cutoff`` (Å), else ``inf``."""
    if a.kind != b.kind:
        return math.inf
    best = math.inf
    for _, farthest, bound in displacements(a, b, substrate_maps(b.substrate, a.substrate), lateral, cutoff):
        if bound >= best:
            break
        best = min(best, farthest)
    return best if best <= cutoff else math.inf


def distance(a: Atoms, b: Atoms, lateral: bool = False) -> float:
    """Largest displacement of an overlayer atom between two structures, over the best operation of the substrate.

    Parameters
    ----------
    a, b
        Structures with tags. They may differ in origin, basis of the superlattice, number of layers and, by up to
        3 %, in the lattice constant; lengths are then those of ``a``.
    lateral
        Ignore heights.

    Returns
    -------
    float
        Å; ``inf`` if composition, substrate or superlattice differ.

    Raises
    ------
    UserError
        If a structure has no substrate.
    """
    return _distance(prepare(a), prepare(b), lateral)


def same_structure(a: Atoms, b: Atoms, tolerance: float | None = None, lateral: bool = False) -> bool:
    """Whether :func:`distance` is within ``tolerance`` (Å; default 0.5, and 0.7 without heights)."""
    return bool(match([b], a, tolerance=tolerance, lateral=lateral))


def match(
    structures: Sequence[Atoms], reference: Atoms, tolerance: float | None = None, lateral: bool = False
) -> list[int]:
    """Indices of the structures that are the reference.

    Parameters
    ----------
    structures, reference
        With tags.
    tolerance
        Largest :func:`distance` from the reference, Å; default :data:`TOLERANCE`, or :data:`LATERAL_TOLERANCE`.
    lateral
        Ignore heights.
    """
    if tolerance is None:
        tolerance = LATERAL_TOLERANCE if lateral else TOLERANCE
    if not tolerance > 0:
        raise UserError(f"tolerance {tolerance:g} Å is not positive: give a distance such as {TOLERANCE:g}")
    overlayers = [prepare(reference), *map(prepare, structures)]
    same_kind = [k for k, overlayer in enumerate(overlayers) if overlayer.kind == overlayers[0].kind]
    screen = _Screen.of([overlayers[k] for k in same_kind])
    close = screen.close_to(0, np.arange(1, len(same_kind)), lateral, tolerance)
    candidates = [same_kind[k] for k in close]
    return [k - 1 for k in candidates if math.isfinite(_distance(overlayers[0], overlayers[k], lateral, tolerance))]


def unique(structures: Sequence[Atoms], tolerance: float = 0.3, energy_tolerance: float = 0.05) -> list[list[int]]:
    """Groups of structures that are the same.

    From the lowest structure up, each joins the first group (the lowest one) whose lowest member it equals, or founds
    another.

    Parameters
    ----------
    structures
        With tags; energies are compared where both structures have one.
    tolerance
        Largest :func:`distance` from the lowest member of the group, Å.
    energy_tolerance
        Largest difference of energy from it, eV.

    Returns
    -------
    list of list of int
        Indices; the lowest in energy first, in each group and among groups (without energies, in the given order).

    Raises
    ------
    UserError
        If a structure has no substrate.
    """
    overlayers = [prepare(atoms) for atoms in structures]
    return unique_overlayers(overlayers, [potential_energy(a) for a in structures], tolerance, energy_tolerance)


def unique_overlayers(
    overlayers: Sequence[Overlayer],
    energies: Sequence[float | None],
    tolerance: float = 0.3,
    energy_tolerance: float = 0.05,
) -> list[list[int]]:
    """As :func:`unique`, for structures prepared already and their energies (eV, ``None`` where unknown)."""
    known = np.array([math.nan if e is None else e for e in energies])
    order = np.argsort(np.where(np.isnan(known), math.inf, known), kind="stable")
    kinds: dict[tuple[bytes, int], list[int]] = {}
    for i in order:
        kinds.setdefault(overlayers[i].kind, []).append(int(i))
    groups = [
        [members[k] for k in group]
        for members in kinds.values()
        for group in _groups([overlayers[i] for i in members], known[members], tolerance, energy_tolerance)
    ]
    rank = np.argsort(order, kind="stable")
    return sorted(groups, key=lambda group: int(rank[group[0]]))


def _groups(
    overlayers: Sequence[Overlayer], energies: np.ndarray, tolerance: float, energy_tolerance: float
) -> list[list[int]]:
    """Groups of equal overlayers of one kind, which come sorted by energy (n,), ``nan`` where unknown."""
    screen = _Screen.of(overlayers)
    groups: list[list[int]] = []
    for k, overlayer in enumerate(overlayers):
        lowest = np.array([group[0] for group in groups], dtype=int)
        near = ~(np.abs(energies[lowest] - energies[k]) > energy_tolerance)  # true for unknown energies
        for j in screen.close_to(k, lowest[near], False, tolerance):
            if math.isfinite(_distance(overlayers[j], overlayer, False, tolerance)):
                groups[np.searchsorted(lowest, j)].append(k)
                break
        else:
            groups.append([k])
    return groups

"""When are two overlayers the same structure?

If an operation of the *bare substrate* (see :mod:`adlayer.analysis.registry`) carries one onto the other, like
atoms permuted. The distance between two overlayers is

    d(a, b) = min over operations g of max over atoms i of | r_i(a) − g r_π(i)(b) |,

π being the assignment of like atoms with the smallest sum of squares (Hungarian method, periodic in the plane).
Heights are measured from the substrate; ``lateral=True`` leaves them out, which recognises a structure by its lateral
topology where heights depend on the energy model. Operations of free space that the substrate lacks do not
count: an overlayer shifted from fcc to hcp hollows, or mirrored in a plane that is no mirror of the substrate, is
another structure.

Two necessary conditions make most comparisons cheap. If d ≤ τ, sorted heights differ by at most τ and sorted lateral
interatomic distances by at most 2τ; and for a given operation d is no less than the largest distance of any atom
to its nearest like atom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.optimize import linear_sum_assignment

from adlayer.analysis.compare import potential_energy
from adlayer.analysis.registry import (
    IdealSubstrate,
    SymmetryOperations,
    ideal_substrate,
    minimum_image,
    substrate_maps,
    substrate_operations,
)

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
class _Overlayer:
    """An overlayer on its ideal substrate, sorted by element.

    ``fingerprint`` holds sorted lateral distances (Å) for each pair of elements, ``heights`` sorted heights (Å,
    absolute) for each element.
    """

    substrate: IdealSubstrate
    cell: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    fingerprint: list[np.ndarray]
    heights: list[np.ndarray]


def _prepare(atoms: Atoms) -> _Overlayer:
    adsorbed = np.flatnonzero(atoms.get_tags() == 0)
    adsorbed = adsorbed[np.argsort(atoms.numbers[adsorbed], kind="stable")]
    positions, numbers = atoms.positions[adsorbed], atoms.numbers[adsorbed]
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    elements = np.unique(numbers)
    lengths = np.linalg.norm(minimum_image(positions[:, None, :2] - positions[None, :, :2], cell), axis=-1)
    return _Overlayer(
        substrate=ideal_substrate(atoms),
        cell=cell,
        positions=positions,
        numbers=numbers,
        fingerprint=[
            np.sort(lengths[np.ix_(numbers == p, numbers == q)], axis=None) for p in elements for q in elements
        ],
        heights=[np.sort(positions[numbers == p, 2]) for p in elements],
    )


def _lift(a: _Overlayer, b: _Overlayer) -> float:
    """Å to add to heights of ``b`` so that its substrate lies level with that of ``a``."""
    layer = min(a.substrate.layers.max(), b.substrate.layers.max())
    return float(a.substrate.down_to(layer).sites[:, 2].mean() - b.substrate.down_to(layer).sites[:, 2].mean())


def _may_match(a: _Overlayer, b: _Overlayer, lateral: bool, cutoff: float) -> bool:
    """Whether the invariants leave room for a distance within ``cutoff``."""
    scale = math.sqrt(abs(np.linalg.det(a.cell) / np.linalg.det(b.cell)))
    pairs = zip(a.fingerprint, b.fingerprint, strict=True)
    if any(np.abs(p - scale * q).max() > 2 * cutoff + 1e-9 for p, q in pairs):
        return False
    lift = _lift(a, b)
    heights = zip(a.heights, b.heights, strict=True)
    return lateral or all(np.abs(p - q - lift).max() <= cutoff + 1e-9 for p, q in heights)


def _square_gaps(a: _Overlayer, b: _Overlayer, maps: SymmetryOperations, lateral: bool) -> list[np.ndarray]:
    """Squared distances (n_maps, n, n), Å², from atoms of ``a`` to mapped atoms of ``b``, for each element."""
    images = maps.apply(b.positions[:, :2])  # (k, N, 2)
    lift = _lift(a, b)
    gaps = []
    for element in np.unique(a.numbers):
        of = a.numbers == element
        vectors = a.positions[of, :2][None, :, None] - images[:, None, of]  # (k, n, n, 2)
        squares = (minimum_image(vectors, a.cell) ** 2).sum(-1)
        if not lateral:
            squares += (a.positions[of, 2][:, None] - b.positions[of, 2] - lift) ** 2
        gaps.append(squares)
    return gaps


def _distance(a: _Overlayer, b: _Overlayer, lateral: bool, cutoff: float = math.inf) -> float:
    """The distance if it is within ``cutoff`` (Å), else ``inf``."""
    if not np.array_equal(a.numbers, b.numbers):
        return math.inf
    if math.isfinite(cutoff) and not _may_match(a, b, lateral, cutoff):
        return math.inf
    maps = substrate_maps(b.substrate, a.substrate)
    if len(maps) == 0:
        return math.inf
    gaps = _square_gaps(a, b, maps, lateral)
    nearest = [np.maximum(g.min(axis=1).max(axis=1), g.min(axis=2).max(axis=1)) for g in gaps]
    bound = np.max([np.zeros(len(maps)), *nearest], axis=0)  # (k,)
    best = math.inf
    for k in np.argsort(bound, kind="stable"):
        if bound[k] >= best or bound[k] > cutoff**2:
            break
        best = min(best, max((float(g[k][linear_sum_assignment(g[k])].max()) for g in gaps), default=0.0))
    return math.sqrt(best) if best <= cutoff**2 else math.inf


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
    return _distance(_prepare(a), _prepare(b), lateral)


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
    target = _prepare(reference)
    return [
        index
        for index, atoms in enumerate(structures)
        if math.isfinite(_distance(target, _prepare(atoms), lateral, cutoff=tolerance))
    ]


def unique(structures: Sequence[Atoms], tolerance: float = 0.3, energy_tolerance: float = 0.05) -> list[list[int]]:
    """Groups of structures that are the same.

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
    """
    energies = [potential_energy(atoms) for atoms in structures]
    order = sorted(range(len(structures)), key=lambda i: math.inf if (e := energies[i]) is None else e)
    prepared = [_prepare(atoms) for atoms in structures]
    groups: list[list[int]] = []
    for i in order:
        for group in groups:
            lowest, own = energies[group[0]], energies[i]
            if lowest is not None and own is not None and abs(own - lowest) > energy_tolerance:
                continue
            if math.isfinite(_distance(prepared[group[0]], prepared[i], False, cutoff=tolerance)):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups

"""Primitive cells and symmetry groups of overlayers on their substrate.

All three notions rest on the operations g of the *bare ideal substrate* (:mod:`adlayer.analysis.registry`) that carry
the overlayer, heights included, onto itself: with like atoms paired as in :mod:`adlayer.analysis.matching`, no atom
may end farther than a tolerance from its partner. Noise can let single operations pass and fail their products; what
counts is the largest set, taken in order of these displacements, that is closed under multiplication. The relaxation
of the substrate plays no part.

- **Primitive cell.** The pure translations among them span the overlayer's true superlattice: a p(4×4) structure that
  is invariant under two of the sixteen (1×1) translations is a structure with half the cell.
- **Point group of the overlayer on the substrate.** Their rotational parts, one of the ten plane point groups: 3m for
  oxygen in the hollows of fcc(111), although the oxygen alone has 6mm.
- **Plane group.** The type, one of 17, of the group of overlayer *and* bare substrate projected along the surface
  normal, atoms of other element or layer counted as of another kind. With ``x → W x + w`` in the primitive basis (W
  integer) it follows from the order of the rotations and from each reflection: ``ℓ = w + W w`` is a lattice vector;
  the reflection belongs to a mirror line if ``ℓ = n + W n`` for a lattice vector n, else only to glide lines; the
  lattice is centred with respect to it if W exchanges two basis vectors of some primitive basis (International Tables
  for Crystallography A). All of it is integer arithmetic, which noise does not touch.
- **Layer group.** The type, one of 80, of overlayer and slab as they stand, relaxation included, in the primitive
  cell, by spglib with ``aperiodic_dir=2`` at the same tolerance. An overlayer on one side leaves 17 of them.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms
from scipy.optimize import linear_sum_assignment

from adlayer.analysis.matching import Overlayer, displacements, prepare
from adlayer.analysis.registry import (
    IdealSubstrate,
    SymmetryOperations,
    aligned_basis,
    lattice_points,
    minimum_image,
    reduce_basis,
    substrate_maps,
    surface_basis,
)

PLANE_GROUPS = (
    *("p1", "p2", "pm", "pg", "cm", "p2mm", "p2mg", "p2gg", "c2mm"),
    *("p4", "p4mm", "p4gm", "p3", "p3m1", "p31m", "p6", "p6mm"),
)
"""The 17 plane groups in the order of International Tables A."""


@dataclass(frozen=True)
class PrimitiveOverlayer:
    """A structure in the smallest cell that holds it.

    Attributes
    ----------
    atoms
        Overlayer and substrate of the primitive cell, without energies.
    matrix
        (2, 2) integers: the cell in (1×1) vectors, see :func:`adlayer.analysis.registry.surface_basis`.
    basis
        (2, 2) those vectors as rows, Å.
    n_copies
        Primitive cells in the cell of the structure given.
    overlayer
        The overlayer of ``atoms``, see :func:`adlayer.analysis.matching.prepare`.
    """

    atoms: Atoms
    matrix: np.ndarray
    basis: np.ndarray
    n_copies: int
    overlayer: Overlayer


@dataclass(frozen=True)
class Symmetry:
    """The groups of an overlayer on its substrate; see the module's docstring for what each one is the group of.

    Attributes
    ----------
    point_group
        ``1``, ``2``, ``3``, ``4``, ``6``, ``m``, ``2mm``, ``3m``, ``4mm`` or ``6mm``.
    plane_group, plane_group_number
        Such as ``p3m1``, 14.
    layer_group, layer_group_number
        Such as ``p3m1``, 69; empty and 0 where spglib finds none.
    """

    point_group: str
    plane_group: str
    plane_group_number: int
    layer_group: str
    layer_group_number: int


def invariant_operations(overlayer: Overlayer, maps: SymmetryOperations, tolerance: float) -> SymmetryOperations:
    """The largest closed set of operations that leave the overlayer as it is; see the module's docstring.

    Parameters
    ----------
    overlayer
        See :func:`adlayer.analysis.matching.prepare`.
    maps
        A group of operations of its substrate, modulo the superlattice.
    tolerance
        Å that an atom may end from its partner.
    """
    moved = {k: far for k, far, _ in displacements(overlayer, overlayer, maps, cutoff=tolerance) if far <= tolerance}
    kept = np.array(sorted(moved, key=lambda k: (round(moved[k], 6), k)))
    rotations, inverse = maps.rotations[kept], np.linalg.inv(overlayer.cell)
    shifts = maps.translations[kept] @ inverse  # fractional
    products = np.einsum("aij,bjk->abik", rotations, rotations)
    turned = np.einsum("aij,bj->abi", rotations, maps.translations[kept]) @ inverse + shifts[:, None]
    table = np.empty((len(kept), len(kept)), dtype=int)  # index of the product, len(kept) if it is not among them
    for a in range(len(kept)):
        gaps = turned[a][:, None] - shifts  # (b, c, 2)
        gaps = (gaps - np.round(gaps)) @ overlayer.cell
        same = (np.abs(products[a][:, None] - rotations).max(axis=(2, 3)) < 0.05) & ((gaps**2).sum(-1) < tolerance**2)
        table[a] = np.where(same.any(axis=1), same.argmax(axis=1), len(kept))
    size = next(n for n in range(len(kept), 0, -1) if n == 1 or (table[:n, :n] < n).all())
    return SymmetryOperations(maps.rotations[kept[:size]], maps.translations[kept[:size]])


def _translations(overlayer: Overlayer, tolerance: float) -> np.ndarray:
    """(1×1) lattice vectors (k, 2), Å, within the cell that leave the overlayer as it is."""
    counts = np.unique(overlayer.numbers, return_counts=True)[1]
    if len(counts) and np.gcd.reduce(np.append(counts, overlayer.substrate.n_cells)) == 1:
        return np.zeros((1, 2))  # a translation permutes atoms in cycles of one length
    points = lattice_points(overlayer.substrate)
    maps = SymmetryOperations(np.repeat(np.eye(2)[None], len(points), axis=0), points)
    return invariant_operations(overlayer, maps, tolerance).translations


def _overlayer_orbits(positions: np.ndarray, numbers: np.ndarray, shifts: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """For each atom the first of those (N,) that the translations ``shifts`` (k, 2) carry into one another."""
    first = np.arange(len(numbers))
    for element in np.unique(numbers):
        of = np.flatnonzero(numbers == element)
        for shift in shifts:
            gaps = positions[of, None] - positions[of]
            squares = (minimum_image(gaps[..., :2] + shift, cell) ** 2).sum(-1) + gaps[..., 2] ** 2
            np.minimum.at(first, of, of[linear_sum_assignment(squares)[1]])
    return first


def _substrate_orbits(atoms: Atoms, ideal: IdealSubstrate, small: np.ndarray) -> np.ndarray:
    """Label (N,) of each substrate atom: its ideal site and place in the small cell; overlayer atoms keep −1."""
    points = lattice_points(ideal)
    fractional = np.round(points @ np.linalg.inv(small), 6) % 1 % (1 - 1e-5)
    coset = np.unique(np.round(fractional, 4), axis=0, return_inverse=True)[1].ravel()
    labels = np.full(len(atoms), -1)
    tags, cell = atoms.get_tags(), np.asarray(atoms.cell[:2, :2])
    for layer, number in {(int(t), int(z)) for t, z in zip(ideal.layers, ideal.numbers, strict=True)}:
        own = np.flatnonzero((tags == layer) & (atoms.numbers == number))
        sites = np.flatnonzero((ideal.layers == layer) & (ideal.numbers == number))
        targets = (ideal.sites[sites, None, :2] + points).reshape(-1, 2)
        squares = (minimum_image(atoms.positions[own, None, :2] - targets, cell) ** 2).sum(-1)
        squares += (atoms.positions[own, None, 2] - np.repeat(ideal.sites[sites, 2], len(points))) ** 2
        target = linear_sum_assignment(squares)[1]
        labels[own] = np.repeat(sites, len(points))[target] * len(points) + np.tile(coset, len(sites))[target]
    return labels


def _orbits(atoms: Atoms, ideal: IdealSubstrate, shifts: np.ndarray, small: np.ndarray) -> np.ndarray:
    """Label (N,) of each atom: the same for those that become one in the lattice ``small`` of the shifts (k, 2)."""
    labels = _substrate_orbits(atoms, ideal, small)
    adsorbed = atoms.get_tags() == 0
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    orbits = _overlayer_orbits(atoms.positions[adsorbed], atoms.numbers[adsorbed], shifts, cell)
    labels[adsorbed] = labels.max() + 1 + orbits
    return labels


def _fold(atoms: Atoms, labels: np.ndarray, small: np.ndarray) -> Atoms:
    """One atom for each label, at the mean of the atoms that bear it, in the cell ``small`` (2, 2)."""
    _, first, orbit = np.unique(labels, return_index=True, return_inverse=True)
    gaps = atoms.positions - atoms.positions[first][orbit]
    gaps[:, :2] = minimum_image(gaps[:, :2], small)
    mean = np.stack([np.bincount(orbit.ravel(), weights=gaps[:, i]) for i in range(3)], 1)
    positions = atoms.positions[first] + mean / np.bincount(orbit.ravel())[:, None]
    kept = np.sort(first)
    folded = atoms[kept]
    folded.info = dict(atoms.info)
    folded.set_positions(positions[np.argsort(first)], apply_constraint=False)
    cell = atoms.cell.array.copy()
    cell[:2, :2] = small
    folded.set_cell(cell, scale_atoms=False)
    folded.wrap(pbc=[True, True, False])
    return folded


def primitive_overlayer(atoms: Atoms, tolerance: float = 0.3, overlayer: Overlayer | None = None) -> PrimitiveOverlayer:
    """The smallest cell that holds a structure: a p(4×4) structure that is really c(4×2) is recognised.

    Parameters
    ----------
    atoms
        With tags. The overlayer decides; the substrate follows.
    tolerance
        Å that an overlayer atom may lie from a translated copy of another.
    overlayer
        What :func:`adlayer.analysis.matching.prepare` makes of the structure, where it is known already.

    Returns
    -------
    PrimitiveOverlayer
        In the primitive cell atoms stand at the mean of their copies, with tags, constraints and ``info`` (its
        ``superstructure`` renewed); a primitive structure comes back as it is, in its own cell.

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    overlayer = prepare(atoms) if overlayer is None else overlayer
    ideal, cell = overlayer.substrate, overlayer.cell
    basis = surface_basis(atoms, ideal)
    shifts = _translations(overlayer, tolerance)
    folded, small = atoms, cell
    if len(shifts) > 1:
        lattice = aligned_basis(_lattice(shifts, ideal.basis, ideal.matrix), cell)
        labels = _orbits(atoms, ideal, shifts, lattice)
        if (np.unique(labels, return_counts=True)[1] == len(shifts)).all():
            folded, small = _fold(atoms, labels, lattice), lattice
            overlayer = prepare(folded)
    matrix = np.round(small @ np.linalg.inv(basis)).astype(int)
    if "superstructure" in folded.info and folded is not atoms:
        folded.info["superstructure"] = matrix.tolist()
    n_copies = round(abs(float(np.linalg.det(cell) / np.linalg.det(small))))
    return PrimitiveOverlayer(folded, matrix, basis, n_copies, overlayer)


def _lattice(shifts: np.ndarray, basis: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Two vectors (rows) that span the superlattice ``matrix @ basis`` and the shifts (k, 2) together."""
    whole = np.round(shifts @ np.linalg.inv(basis)).astype(int)
    rows = [row for row in np.vstack([whole, matrix]) if row.any()]
    columns = []
    for column in range(2):  # Euclid's algorithm on the rows, to Hermite's normal form
        while len(live := [row for row in rows if row[column]]) > 1:
            least = min(live, key=lambda row: abs(int(row[column])))
            rows = [row if row is least else row - row[column] // least[column] * least for row in rows]
        columns.append(live[0])
        rows = [row for row in rows if row is not live[0]]
    return np.array(columns) @ basis


def point_group(rotations: np.ndarray) -> str:
    """Name of the plane point group that orthogonal matrices (n, 2, 2) form; repeated ones count once.

    >>> point_group(np.array([np.eye(2), np.diag([1.0, -1.0])]))
    'm'
    """
    distinct = np.unique(np.round(rotations, 3) + 0.0, axis=0)
    order = int((np.linalg.det(distinct) > 0).sum())
    mirrored = len(distinct) > order
    if not mirrored:
        return str(order)
    return {1: "m", 3: "3m"}.get(order, f"{order}mm")


def plane_group(operations: SymmetryOperations, cell: np.ndarray) -> str:
    """Type of the plane group that operations and translations of a primitive cell form together.

    Parameters
    ----------
    operations
        One for each element of the point group.
    cell
        (2, 2) primitive lattice vectors as rows, Å.
    """
    basis = reduce_basis(cell)
    inverse = np.linalg.inv(basis)
    parts = np.round(basis @ operations.rotations.transpose(0, 2, 1) @ inverse).astype(int)  # f → f W + w
    shifts = operations.translations @ inverse
    reflections = [(W, w) for W, w in zip(parts, shifts, strict=True) if round(float(np.linalg.det(W))) == -1]
    order = len(parts) - len(reflections)
    if not reflections:
        return f"p{order}"
    axes = [_fixed_vector(W) for W, _ in reflections]
    centred = [bool(((W - np.eye(2, dtype=int)) % 2).any()) for W, _ in reflections]
    glides = [  # w + wW is an odd multiple of the fixed vector, n + nW always an even one
        not c and round(float((w + w @ W) @ f / (f @ f))) % 2 == 1
        for (W, w), f, c in zip(reflections, axes, centred, strict=True)
    ]
    if order == 3:
        length = np.linalg.norm(axes[0] @ basis)
        return "p31m" if length < 1.2 * np.linalg.norm(basis[0]) else "p3m1"
    if order == 4:
        return "p4gm" if any(glides) else "p4mm"
    if order == 6:
        return "p6mm"
    if all(centred):
        return "cm" if order == 1 else "c2mm"
    return ["pm", "pg"][sum(glides)] if order == 1 else ["p2mm", "p2mg", "p2gg"][sum(glides)]


def _fixed_vector(W: np.ndarray) -> np.ndarray:
    """The shortest integer row vector along the line that a reflection ``f → f W`` leaves as it is."""
    vectors = np.eye(2, dtype=int) + W
    vector = vectors[np.abs(vectors).sum(axis=1).argmax()]
    return np.asarray(vector // np.gcd(*vector))


def layer_group(atoms: Atoms, tolerance: float) -> tuple[str, int]:
    """International symbol and number of a slab's layer group, by spglib; empty and 0 where it finds none.

    Parameters
    ----------
    atoms
        Periodic in the first two cell vectors, in a primitive cell.
    tolerance
        Å, as spglib's ``symprec``.
    """
    cell = atoms.cell.array.copy()
    heights = atoms.positions[:, 2] - atoms.positions[:, 2].min() + 5.0
    cell[2] = [0.0, 0.0, heights.max() + 5.0]
    positions = np.column_stack([atoms.positions[:, :2], heights])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib's own, on how it will report errors
        found = spglib.get_symmetry_layerdataset(
            (cell.tolist(), (positions @ np.linalg.inv(cell)).tolist(), atoms.numbers.tolist()),
            aperiodic_dir=2,
            symprec=tolerance,
        )
    return ("", 0) if found is None else (str(found.international), int(found.number))


def describe_symmetry(atoms: Atoms, tolerance: float = 0.3) -> Symmetry:
    """Plane group, layer group and point group of an overlayer on its substrate.

    Parameters
    ----------
    atoms
        With tags; in any cell.
    tolerance
        Å that an overlayer atom may end from its partner.

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    return symmetry_of(primitive_overlayer(atoms, tolerance), tolerance)


def symmetry_of(primitive: PrimitiveOverlayer, tolerance: float = 0.3) -> Symmetry:
    """As :func:`describe_symmetry`, for a structure whose primitive cell is known."""
    overlayer = primitive.overlayer
    operations = invariant_operations(overlayer, substrate_maps(overlayer.substrate, overlayer.substrate), tolerance)
    plane = plane_group(operations, overlayer.cell)
    symbol, number = layer_group(primitive.atoms, tolerance)
    return Symmetry(
        point_group=point_group(operations.rotations),
        plane_group=plane,
        plane_group_number=PLANE_GROUPS.index(plane) + 1,
        layer_group=symbol,
        layer_group_number=number,
    )

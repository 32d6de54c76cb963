"""Low-energy electron diffraction (LEED): where the spots are, and in the kinematic picture how bright.

- **Positions.** A superlattice ``M`` on the (1×1) basis ``B`` (rows) diffracts into ``q = (i, j) S*`` with
  ``S* = 2π (M B)⁻ᵀ``; in units of the substrate's ``B* = 2π B⁻ᵀ`` the order of a spot is ``(h, k) = (i, j) M⁻ᵀ``.
- **Domains.** An operation ``g`` of the bare substrate's point group turns the overlayer, ``M → M U_g``, at no cost in
  energy: every image occurs on a real surface, and the pattern is the sum of theirs.
- **Intensities**, normal incidence at energy E, single scattering:
  ``I(q) = |Σ_j f_j(q) exp(i q·r_j)|²`` over overlayer and top layer, ``q_z = k + √(k² − |q_∥|²)``, ``k = √(2mE)/ħ``,
  and the first Born approximation for a screened nucleus, ``f = Z/(|q|² + Z^⅔/a₀²)`` (F. Lenz, Z. Naturforsch. A 9, 185
  (1954)). Domains add incoherently. Electrons scatter many times: such intensities show what is weak or absent, and
  measured I(V) curves call for a dynamical calculation.
- **Extinctions** are exact also with multiple scattering at normal incidence. If ``x → R x + t`` leaves the structure
  as it is and ``Rᵀ q = q``, then ``F(q) = exp(i q·t) F(q)`` vanishes unless ``q·t`` is a multiple of 2π: the missing
  ``(h + ½, 0)`` spots of glide lines (B. W. Holland & D. P. Woodruff, Surf. Sci. 36, 488 (1973)).

Lengths in Å, wave vectors in Å⁻¹, energies in eV.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms, units

from adlayer.analysis.registry import (
    IdealSubstrate,
    SymmetryOperations,
    ideal_substrate,
    minimum_image,
    substrate_maps,
    substrate_operations,
    surface_basis,
)
from adlayer.errors import UserError
from adlayer.structures.sublattices import hermite_form, images, integer_operations, lattice_operations, reduced_matrix

ENERGY = 100.0
"""Default energy of the electrons, eV."""
TOLERANCE = 0.2
"""Default for the symmetry of a relaxed structure, Å that an atom may miss its image by."""
_REACH = 1.85  # default radius of the pattern, in units of the longer reciprocal vector


@dataclass(frozen=True)
class LeedDomain:
    """Spots of one orientation of the superlattice.

    Attributes
    ----------
    matrix
        (2, 2) integers, the domain's cell in (1×1) vectors, reduced.
    orders
        (n, 2) orders in units of the substrate's reciprocal vectors, from the centre outwards.
    spots
        (n, 2) wave vectors, Å⁻¹.
    intensities
        (n,) contribution of the domain, the strongest spot of the whole pattern besides (0, 0) being 1; ``None`` where
        only the lattice is known.
    extinct
        (n,) whether symmetry forbids the spot.
    """

    matrix: np.ndarray
    orders: np.ndarray
    spots: np.ndarray
    intensities: np.ndarray | None
    extinct: np.ndarray

    @property
    def area(self) -> int:
        """Of the domain's cell in (1×1) cells, the same for all domains."""
        return abs(round(float(np.linalg.det(self.matrix))))

    @property
    def numerators(self) -> np.ndarray:
        """(n, 2) integers: the orders in units of 1/area."""
        return np.rint(self.area * self.orders).astype(int)

    @property
    def integral(self) -> np.ndarray:
        """(n,) whether the spot is one of the substrate's."""
        found: np.ndarray = (self.numerators % self.area == 0).all(axis=1)
        return found


@dataclass(frozen=True)
class LeedPattern:
    """A diffraction pattern.

    Attributes
    ----------
    basis, reciprocal
        (2, 2) (1×1) vectors of the surface, Å, and their reciprocal ones, Å⁻¹ (with 2π), as rows.
    domains
        In the order of the point group, the given orientation first.
    radius
        Å⁻¹ up to which spots are listed.
    energy
        Of the electrons, eV; ``None`` where only the lattice is known.
    """

    basis: np.ndarray
    reciprocal: np.ndarray
    domains: tuple[LeedDomain, ...]
    radius: float
    energy: float | None = None


def reciprocal_lattice(cell: np.ndarray) -> np.ndarray:
    """Reciprocal vectors (2, 2), rows, with ``b_i · a_j = 2π δ_ij``."""
    return 2 * np.pi * np.linalg.inv(cell).T


def leed_pattern(
    basis: np.ndarray, matrix: np.ndarray, operations: np.ndarray | None = None, radius: float | None = None
) -> LeedPattern:
    """Spot positions of a superlattice and of its symmetry domains.

    Parameters
    ----------
    basis
        (2, 2) right-handed (1×1) surface vectors as rows, Å.
    matrix
        (2, 2) integers, the superlattice.
    operations
        (n, 2, 2) point group of the substrate as integer matrices, see
        :func:`adlayer.structures.sublattices.integer_operations`; by default that of the bare lattice.
    radius
        Å⁻¹ up to which spots are listed; by default a little beyond the first-order spots of the substrate.

    Raises
    ------
    UserError
        If the radius is not positive.
    """
    reciprocal = reciprocal_lattice(basis)
    if radius is None:
        radius = _REACH * float(np.linalg.norm(reciprocal_lattice(_reduced(basis)), axis=1).max())
    if not radius > 0:
        raise UserError(f"radius {radius:g} Å⁻¹ shows no spots: give a positive one")
    orbit = images(matrix, lattice_operations(basis) if operations is None else operations)
    domains = tuple(_domain(reduced_matrix(image, basis), basis, radius) for image in orbit.values())
    return LeedPattern(basis, reciprocal, domains, radius)


def _reduced(basis: np.ndarray) -> np.ndarray:
    return reduced_matrix(np.eye(2, dtype=int), basis) @ basis


def _domain(matrix: np.ndarray, basis: np.ndarray, radius: float) -> LeedDomain:
    cell = matrix @ basis
    reach = np.ceil(radius * np.linalg.norm(cell, axis=1) / (2 * np.pi)).astype(int)  # |i| = |q·s1|/2π
    grid = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    spots = grid @ reciprocal_lattice(cell)
    order = np.lexsort((np.round(np.arctan2(spots[:, 1], spots[:, 0]), 6), np.round(np.linalg.norm(spots, axis=1), 6)))
    order = order[np.linalg.norm(spots[order], axis=1) <= radius * (1 + 1e-9)]
    orders = grid[order] @ np.linalg.inv(matrix).T
    return LeedDomain(matrix, orders, spots[order], None, np.zeros(len(order), dtype=bool))


def surface_lattice(atoms: Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(1×1) basis, superlattice and point group of a structure's substrate.

    Returns
    -------
    basis : numpy.ndarray
        (2, 2) see :func:`adlayer.analysis.registry.surface_basis`.
    matrix : numpy.ndarray
        (2, 2) integers; the cell is ``matrix @ basis``.
    rotations : numpy.ndarray
        (n, 2, 2) Cartesian point operations ``x → R x`` of the ideal substrate.

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    ideal = ideal_substrate(atoms)
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    basis = surface_basis(atoms, ideal)
    return basis, np.rint(cell @ np.linalg.inv(basis)).astype(int), _point_group(ideal)


def _point_group(ideal: IdealSubstrate) -> np.ndarray:
    single = replace(ideal, matrix=np.eye(2, dtype=int))
    return substrate_maps(single, single, strain=0.0).rotations


def kinematic_pattern(
    atoms: Atoms, energy: float = ENERGY, radius: float | None = None, tolerance: float = TOLERANCE
) -> LeedPattern:
    """The pattern of a structure with kinematic intensities and extinctions, averaged over its domains.

    Parameters
    ----------
    atoms
        With tags.
    energy
        Of the electrons, eV, at normal incidence.
    radius
        Å⁻¹, see :func:`leed_pattern`; never beyond the wave number of the electrons.
    tolerance
        Å that an atom may miss its image by in a symmetry operation.

    Raises
    ------
    UserError
        If the structure has no substrate or the energy is not positive.
    """
    if not energy > 0:
        raise UserError(f"energy {energy:g} eV is not positive: give that of the electrons, such as 100")
    basis, matrix, rotations = surface_lattice(atoms)
    wavenumber = electron_wavenumber(energy)
    bare = leed_pattern(basis, matrix, integer_operations(rotations, basis), radius)
    if bare.radius > wavenumber:
        bare = leed_pattern(basis, matrix, integer_operations(rotations, basis), wavenumber)
    symmetry = structure_operations(atoms, tolerance)
    domains = []
    for domain in bare.domains:
        turned = [
            domain.spots @ rotation
            for rotation in rotations
            if hermite_form(matrix @ integer_operations(rotation[None], basis)[0]) == hermite_form(domain.matrix)
        ]
        intensities = sum(scattered_intensity(atoms, q, energy) for q in turned) / len(rotations)
        extinct = np.all([forbidden(q, symmetry) for q in turned], axis=0)
        domains.append(replace(domain, intensities=np.where(extinct, 0.0, intensities), extinct=extinct))
    return replace(bare, domains=_scaled(domains), energy=energy)


def _scaled(domains: list[LeedDomain]) -> tuple[LeedDomain, ...]:
    """Domains with intensities relative to the strongest spot of their sum besides (0, 0)."""
    sums: dict[tuple[int, ...], float] = {}
    for domain in domains:
        assert domain.intensities is not None
        for key, intensity in zip(map(tuple, domain.numerators.tolist()), domain.intensities, strict=True):
            sums[key] = sums.get(key, 0.0) + float(intensity)
    strongest = max((value for key, value in sums.items() if any(key)), default=0.0) or 1.0
    return tuple(replace(d, intensities=d.intensities / strongest) for d in domains if d.intensities is not None)


def electron_wavenumber(energy: float) -> float:
    """Wave number of electrons of a kinetic energy (eV), Å⁻¹.

    >>> round(electron_wavenumber(100.0), 3)
    5.123
    """
    return math.sqrt(2 * units._me * energy * units._e) / units._hbar * 1e-10


def scattered_intensity(atoms: Atoms, spots: np.ndarray, energy: float) -> np.ndarray:
    """``|Σ f exp(i q·r)|²`` (n,) of overlayer and top layer for lateral wave vectors ``spots`` (n, 2), Å⁻¹.

    Arbitrary units; see the module's docstring.
    """
    scatterers = atoms[atoms.get_tags() <= 1]
    k = electron_wavenumber(energy)
    lateral = (spots**2).sum(1)
    normal = k + np.sqrt(np.maximum(k**2 - lateral, 0.0))
    square = lateral + normal**2  # (n,)
    charges = scatterers.numbers.astype(float)
    factors = charges / (square[:, None] + charges ** (2 / 3) / units.Bohr**2)  # (n, N)
    waves = np.column_stack([spots, normal])
    amplitude = (factors * np.exp(1j * waves @ scatterers.positions.T)).sum(axis=1)
    return np.abs(amplitude) ** 2


def structure_operations(atoms: Atoms, tolerance: float = TOLERANCE) -> SymmetryOperations:
    """The operations of the bare substrate that carry the whole structure, as relaxed, onto itself.

    Parameters
    ----------
    atoms
        With tags.
    tolerance
        Å that an atom may miss its image by.

    Returns
    -------
    SymmetryOperations
        Modulo the superlattice, the identity among them.
    """
    operations = substrate_operations(atoms)
    kept = np.ones(len(operations), dtype=bool)
    kinds = np.stack([atoms.get_tags(), atoms.numbers], axis=1)
    for kind in np.unique(kinds, axis=0):
        positions = atoms.positions[(kinds == kind).all(axis=1)]
        kept &= _maps_onto_itself(positions, operations, np.asarray(atoms.cell[:2, :2], dtype=float), tolerance)
    return SymmetryOperations(operations.rotations[kept], operations.translations[kept])


def _maps_onto_itself(
    positions: np.ndarray, operations: SymmetryOperations, cell: np.ndarray, tolerance: float
) -> np.ndarray:
    """Whether each operation permutes like atoms (n, 3) within the tolerance."""
    mapped = operations.apply(positions[:, :2])  # (k, n, 2)
    lateral = minimum_image(mapped[:, :, None] - positions[None, None, :, :2], cell)  # (k, n, n, 2)
    squares = (lateral**2).sum(-1) + (positions[:, None, 2] - positions[None, :, 2]) ** 2
    permuted = (np.sort(squares.argmin(axis=2), axis=1) == np.arange(len(positions))).all(axis=1)
    permuted &= (squares.min(axis=2) <= tolerance**2).all(axis=1)
    return permuted


def forbidden(spots: np.ndarray, symmetry: SymmetryOperations) -> np.ndarray:
    """Whether the symmetry of a structure forbids each spot (n, 2), Å⁻¹: see the module's docstring."""
    turned = np.einsum("nj,kji->kni", spots, symmetry.rotations)  # Rᵀ q
    fixed = np.linalg.norm(turned - spots, axis=2) < 1e-3 * (1 + np.linalg.norm(spots, axis=1))
    phases = np.exp(1j * np.einsum("nj,kj->kn", spots, symmetry.translations))
    # Among the powers of an operation the phase of a forbidden spot is at least 120° from 0 for one.
    out: np.ndarray = (fixed & (np.abs(phases - 1) > 1.0)).any(axis=0)
    return out

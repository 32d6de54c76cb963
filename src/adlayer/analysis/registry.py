"""The bare substrate behind a relaxed structure, and the isometries that leave it as it is.

An overlayer's position counts only relative to the substrate. A relaxed structure shows the substrate
distorted; what symmetry means here is the symmetry of the *ideal* one, found in three steps:

1. **Lattice.** A lateral translation belongs to the (1×1) lattice if it carries each atom of the deepest layer onto a
   like atom, and most atoms of the layers above likewise, within a tolerance that forgives relaxation. With the
   superlattice ``S`` (rows) and the two shortest such translations ``B``, the integer matrix ``M = round(S B⁻¹)``
   makes ``B = M⁻¹ S`` exact.
2. **Sites.** All substrate atoms folded into one (1×1) cell; each site is the median of its ``|det M|`` atoms.
3. **Operations.** ``x → R x + t`` (x a column of in-plane coordinates, z untouched) such that lattice, superlattice
   and each site of each layer are mapped onto their like: ``R = (B⁻¹ U B')ᵀ`` with ``U`` unimodular. From a structure
   to itself they form its substrate's space group modulo the superlattice; from one structure to another they align
   the two substrates, whatever their origin, choice of basis, number of layers and (within a uniform strain)
   lattice constant.

A slab of two fcc(111) layers has the layer group p3m1, so that fcc and hcp hollows differ; one layer alone would have
p6mm.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from ase import Atoms

from adlayer.errors import UserError

_RELAXATION = 0.9  # Å that a substrate atom may stray from its site
_BUCKLING = 0.5  # Å between heights of atoms taken for the same
_ANISOTROPY = 0.005  # relative difference of principal stretches that still counts as a uniform strain
_UNIMODULAR = np.array(
    [u for u in itertools.product((-1, 0, 1), repeat=4) if abs(u[0] * u[3] - u[1] * u[2]) == 1], dtype=int
).reshape(-1, 2, 2)


@dataclass(frozen=True)
class IdealSubstrate:
    """The undistorted substrate of a structure.

    Attributes
    ----------
    basis
        (2, 2) reduced (1×1) vectors as rows, Å.
    matrix
        (2, 2) integers; the structure's cell is ``matrix @ basis``.
    sites
        (m, 3) atoms of one (1×1) cell, Å.
    numbers, layers
        (m,) atomic numbers and tags of the sites.
    """

    basis: np.ndarray
    matrix: np.ndarray
    sites: np.ndarray
    numbers: np.ndarray
    layers: np.ndarray

    @property
    def n_cells(self) -> int:
        """Number of (1×1) cells in the structure's cell."""
        return abs(round(float(np.linalg.det(self.matrix))))

    def down_to(self, layer: int) -> IdealSubstrate:
        """The same substrate without the layers below ``layer``."""
        kept = self.layers <= layer
        return IdealSubstrate(self.basis, self.matrix, self.sites[kept], self.numbers[kept], self.layers[kept])


@dataclass(frozen=True)
class SymmetryOperations:
    """In-plane operations ``x → rotations[k] @ x + translations[k]``; heights stay.

    Attributes
    ----------
    rotations
        (n, 2, 2) Cartesian; orthogonal, times the ratio of lattice constants between two different structures.
    translations
        (n, 2) Å.
    """

    rotations: np.ndarray
    translations: np.ndarray

    def __len__(self) -> int:
        return len(self.rotations)

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Images (n, N, 2) of the points (N, 2) under each operation."""
        return np.einsum("kij,aj->kai", self.rotations, points) + self.translations[:, None]


def reduce_basis(cell: np.ndarray) -> np.ndarray:
    """The two shortest vectors (rows) that span the lattice of ``cell`` (2, 2): Lagrange–Gauss reduction.

    >>> reduce_basis(np.array([[1.0, 0.0], [7.2, 2.0]])).round(6).tolist()
    [[1.0, 0.0], [0.2, 2.0]]
    """
    u, v = np.array(cell, dtype=float)
    while True:
        if u @ u > v @ v:
            u, v = v, u
        steps = round(float(u @ v / (u @ u)))
        if steps == 0:
            return np.array([u, v])
        v = v - steps * u


def minimum_image(vectors: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """The shortest of all vectors equivalent to ``vectors`` (..., 2) in the lattice of the rows of ``cell`` (2, 2)."""
    basis = reduce_basis(cell)
    fractional = vectors @ np.linalg.inv(basis)
    nearest = (fractional - np.round(fractional)) @ basis
    best, length = nearest, (nearest**2).sum(-1)
    for shift in itertools.product((-1, 0, 1), repeat=2):
        other = nearest + shift @ basis
        shorter = (other**2).sum(-1) < length - 1e-12
        if shorter.any():
            best = np.where(shorter[..., None], other, best)
            length = (best**2).sum(-1)
    return best


def _groups(atoms: Atoms) -> list[tuple[int, int, np.ndarray]]:
    """Tag, atomic number and positions (n, 3) of the substrate's atoms by layer and element, the deepest first."""
    tags = atoms.get_tags()
    kinds = sorted({(-int(t), int(z)) for t, z in zip(tags, atoms.numbers, strict=True) if t > 0})
    return [(-t, z, atoms.positions[(tags == -t) & (atoms.numbers == z)]) for t, z in kinds]


def _mapped_fraction(points: np.ndarray, shifts: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Fraction (k,) of the points (n, 3) that each lateral shift (k, 2) carries near a point of the set."""
    gaps = points[None, :, None] - points[None, None]  # (1, n, n, 3)
    lateral = gaps[..., :2] + shifts[:, None, None]  # (k, n, n, 2)
    fractional = lateral @ np.linalg.inv(cell)
    lateral = (fractional - np.round(fractional)) @ cell  # exact for gaps as short as the tolerance
    near = (lateral**2).sum(-1) + gaps[..., 2] ** 2 < _RELAXATION**2
    return near.any(axis=2).mean(axis=1)


def _lattice(groups: list[tuple[int, int, np.ndarray]], cell: np.ndarray) -> np.ndarray:
    """The (1×1) vectors (2, 2) of the substrate in the supercell ``cell`` (2, 2), as rows, approximately."""
    reduced = reduce_basis(cell)
    bottom = min((g for g in groups if g[0] == groups[0][0]), key=lambda g: len(g[2]))[2]
    shifts = bottom[:, :2] - bottom[0, :2]
    kept = _mapped_fraction(bottom, shifts, reduced) > 1 - 1e-9
    for _, _, points in groups[1:]:
        kept &= _mapped_fraction(points, shifts, reduced) > 0.5
    images = np.array(list(itertools.product((-1, 0, 1), repeat=2))) @ reduced
    vectors = (minimum_image(shifts[kept], reduced)[:, None] + images).reshape(-1, 2)
    vectors = vectors[np.linalg.norm(vectors, axis=1) > 1e-3]
    vectors = vectors[np.argsort(np.round(np.linalg.norm(vectors, axis=1), 3), kind="stable")]
    first = vectors[0]
    area = np.abs(first[0] * vectors[:, 1] - first[1] * vectors[:, 0])
    return np.array([first, vectors[np.argmax(area > 0.2 * (first @ first))]])


def _fold(points: np.ndarray, basis: np.ndarray, n_cells: int) -> list[np.ndarray]:
    """Sites (3,) of one kind in the (1×1) cell: medians of ``n_cells`` atoms each, displaced ones outvoted."""
    sites = []
    while len(points):
        gaps = points[:, None] - points[None]  # (n, n, 3)
        gaps[..., :2] = minimum_image(gaps[..., :2], basis)
        lengths = np.linalg.norm(gaps, axis=-1)
        centre = int(np.argmin(np.minimum(lengths, _RELAXATION).sum(axis=1)))
        members = np.argsort(lengths[:, centre], kind="stable")[:n_cells]
        sites.append(points[centre] + np.median(gaps[members, centre], axis=0))
        points = np.delete(points, members, axis=0)
    return sites


def ideal_substrate(structure: Atoms) -> IdealSubstrate:
    """The undistorted substrate of a (relaxed) structure with tagged layers; see the module's docstring.

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    groups = _groups(structure)
    if not groups:
        raise UserError("the structure has no substrate: tag its layers 1, 2, … from the top (overlayer atoms 0)")
    cell = np.asarray(structure.cell[:2, :2], dtype=float)
    matrix = np.round(cell @ np.linalg.inv(_lattice(groups, cell))).astype(int)
    n_cells = abs(round(float(np.linalg.det(matrix))))
    if n_cells == 0 or any(len(points) % n_cells for _, _, points in groups):  # translations act freely on atoms
        matrix, n_cells = np.eye(2, dtype=int), 1
    basis = np.linalg.inv(matrix) @ cell
    folded = [(t, z, site) for t, z, points in groups for site in _fold(points, basis, n_cells)]
    return IdealSubstrate(
        basis=basis,
        matrix=matrix,
        sites=np.array([site for *_, site in folded]),
        numbers=np.array([z for _, z, _ in folded]),
        layers=np.array([t for t, *_ in folded]),
    )


def aligned_basis(basis: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Of all pairs of shortest vectors that span the lattice of ``basis``, that most parallel to those of ``cell``."""
    short = reduce_basis(basis)
    vectors = np.array([c for c in itertools.product((-1, 0, 1), repeat=2) if any(c)]) @ short  # (8, 2)
    target = np.linalg.det(short) * np.sign(np.linalg.det(short) * np.linalg.det(cell))
    directions = cell / np.linalg.norm(cell, axis=1)[:, None]

    def merit(pair: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
        lengths = np.linalg.norm(pair, axis=1)
        along = (np.array(pair) * directions).sum(axis=1) / lengths
        return round(float(lengths.sum()), 3), -round(float(along.sum()), 6)

    pairs = [(u, v) for u in vectors for v in vectors if abs(u[0] * v[1] - u[1] * v[0] - target) < 0.1 * abs(target)]
    return np.array(min(pairs, key=merit))


def surface_basis(atoms: Atoms, ideal: IdealSubstrate) -> np.ndarray:
    """The right-handed (1×1) vectors (2, 2) as rows, Å, in which the structure's superlattice is written.

    Those of ``info["superstructure"]`` where they fit the substrate, else its shortest ones, as parallel to the
    cell's as can be, the shorter one first: O/Ag(110) is p(2×1), however its cell is turned.
    """
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    given = np.reshape(atoms.info.get("superstructure", np.zeros(4)), (2, 2)).astype(float)
    if abs(np.linalg.det(given)) > 0.5:
        basis = np.linalg.inv(given) @ cell
        multiple = ideal.basis @ np.linalg.inv(basis)
        if np.abs(multiple - np.round(multiple)).max() < 1e-3:
            return _right_handed(basis)
    first, second = _right_handed(aligned_basis(ideal.basis, cell))
    longer = np.linalg.norm(first) > np.linalg.norm(second) + 1e-3
    return np.array([second, -first] if longer else [first, second])


def _right_handed(basis: np.ndarray) -> np.ndarray:
    return np.asarray(basis if np.linalg.det(basis) > 0 else basis[::-1])


def lattice_points(ideal: IdealSubstrate) -> np.ndarray:
    """The (1×1) lattice vectors (n_cells, 2), Å, that lie within the supercell."""
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ ideal.matrix
    ranges = [np.arange(low, high + 1) for low, high in zip(corners.min(0), corners.max(0), strict=True)]
    grid = np.stack(np.meshgrid(*ranges, indexing="ij"), -1).reshape(-1, 2)
    fractional = grid @ np.linalg.inv(ideal.matrix)
    inside = np.all((fractional > -1e-9) & (fractional < 1 - 1e-9), axis=1)
    return grid[inside] @ ideal.basis


def _linear_parts(source: IdealSubstrate, target: IdealSubstrate, strain: float) -> np.ndarray:
    """Row maps ``W`` (n, 2, 2), ``x → x W``, from lattice and superlattice of ``source`` onto those of ``target``."""
    maps = np.linalg.inv(source.basis) @ _UNIMODULAR @ target.basis  # (u, 2, 2)
    stretch = np.linalg.svd(maps, compute_uv=False)
    uniform = (np.abs(stretch - 1) < strain + _ANISOTROPY).all(axis=1)
    uniform &= stretch[:, 0] - stretch[:, 1] < _ANISOTROPY
    coordinates = source.matrix @ _UNIMODULAR @ np.linalg.inv(target.matrix)
    commensurate = np.abs(coordinates - np.round(coordinates)).max(axis=(1, 2)) < 1e-6
    return maps[uniform & commensurate]


def _translation(
    mapped: np.ndarray, source: IdealSubstrate, target: IdealSubstrate, shift: np.ndarray, tolerance: float
) -> np.ndarray | None:
    """The shift (2,), refined by least squares, that lays mapped sites (m, 3) onto like ones; ``None`` if none does."""
    like = (source.numbers[:, None] == target.numbers) & (source.layers[:, None] == target.layers)
    gaps = target.sites[None] - mapped[:, None]
    gaps[..., :2] = minimum_image(gaps[..., :2] - shift, target.basis)
    lengths = np.where(like & (np.abs(gaps[..., 2]) < _BUCKLING), np.linalg.norm(gaps[..., :2], axis=-1), np.inf)
    partner = lengths.argmin(axis=1)
    if len(set(partner)) < len(partner):
        return None
    nearest = gaps[np.arange(len(partner)), partner, :2]
    residual = nearest - nearest.mean(axis=0)
    if not (np.isfinite(lengths.min(axis=1)).all() and np.linalg.norm(residual, axis=1).max() <= tolerance):
        return None
    return shift + nearest.mean(axis=0)


def substrate_maps(
    source: IdealSubstrate, target: IdealSubstrate, *, tolerance: float = 0.3, strain: float = 0.03
) -> SymmetryOperations:
    """All operations that lay one ideal substrate onto another, by the layers that both have.

    Parameters
    ----------
    source, target
        Substrates; their superlattices must be the same up to the choice of basis and operations of the substrate.
    tolerance
        Å that a site may miss its image by, after the best common shift.
    strain
        Largest relative difference of the lattice constants.

    Returns
    -------
    SymmetryOperations
        Empty if the substrates or their superlattices differ.
    """
    layer = min(source.layers.max(), target.layers.max())
    source, target = source.down_to(layer), target.down_to(layer)
    rotations, translations = [], []
    kinds, counts = np.unique(np.stack([source.layers, source.numbers], 1), axis=0, return_counts=True)
    rare = kinds[counts.argmin()]
    first = np.flatnonzero((source.layers == rare[0]) & (source.numbers == rare[1]))[0]
    partners = np.flatnonzero((target.layers == rare[0]) & (target.numbers == rare[1]))
    if len(source.sites) == len(target.sites):
        lift = target.sites[:, 2].mean() - source.sites[:, 2].mean()
        for linear in _linear_parts(source, target, strain):
            mapped = np.column_stack([source.sites[:, :2] @ linear, source.sites[:, 2] + lift])
            for partner in partners:
                guess = target.sites[partner, :2] - mapped[first, :2]
                shift = _translation(mapped, source, target, guess, tolerance)
                if shift is not None:
                    rotations.append(linear.T)
                    translations.append(minimum_image(shift, target.basis))
    points = lattice_points(target)
    shifts = np.reshape(translations, (-1, 1, 2)) + points  # (n, n_cells, 2)
    return SymmetryOperations(np.repeat(np.reshape(rotations, (-1, 2, 2)), len(points), axis=0), shifts.reshape(-1, 2))


def substrate_operations(structure: Atoms, tolerance: float = 0.3) -> SymmetryOperations:
    """The space group of the bare substrate, modulo the superlattice, that also keeps the superlattice.

    Parameters
    ----------
    structure
        With tags; relaxed or not, with or without an overlayer.
    tolerance
        Å that a layer may have slid from its symmetric place.

    Returns
    -------
    SymmetryOperations
        All (1×1) translations within the cell times the point operations: 16 · 6 = 96 for p(4×4) on fcc(111).

    Raises
    ------
    UserError
        If no atom is tagged as substrate.
    """
    ideal = ideal_substrate(structure)
    return substrate_maps(ideal, ideal, tolerance=tolerance, strain=0.0)

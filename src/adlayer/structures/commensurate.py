"""Commensurate cells: every superlattice of a surface up to a given area, each once.

A surface with (1×1) lattice ``Λ`` has σ(n) = Σ_{d|n} d sublattices of index n (area n in (1×1) units). Two of them are
the same superstructure in another orientation if an operation of the substrate's point group carries one to the other;
such images are the rotational and mirror domains seen in diffraction. By Burnside's lemma the number of classes is
the mean, over the point group, of the number of sublattices that an operation leaves as they are. It is OEIS A003051
for p6mm and p3m1 substrates such as fcc(111), A145393 for p4mm such as fcc(100), A069734 for p2mm such as
fcc(110), A145391 for c2mm such as bcc(110) (J. S. Rutherford, Acta Cryst. A 65, 156 (2009)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from adlayer.errors import UserError
from adlayer.structures.sublattices import (
    Form,
    hermite_form,
    images,
    lattice_operations,
    reduced_matrix,
    sublattices,
)
from adlayer.structures.superstructure import superstructure_matrix, wood_notation

MAX_AREA = 200
"""Largest area enumerated, (1×1) cells: some 6,000 distinct ones, a minute of work."""


@dataclass(frozen=True)
class CommensurateCell:
    """A superlattice up to the substrate's symmetry.

    Attributes
    ----------
    matrix
        (2, 2) integers, the shortest vectors of the domain that the name stands for, right-handed, at 60° to 90°.
    area
        In (1×1) cells.
    wood
        Wood's name, ``None`` if it has none.
    domains
        Number of distinct sublattices that the point group makes of it.
    lengths, angle
        Of the two vectors, Å and degrees.
    """

    matrix: np.ndarray
    area: int
    wood: str | None
    domains: int
    lengths: tuple[float, float]
    angle: float


def commensurate_cells(
    basis: np.ndarray, max_area: int, *, min_area: int = 1, operations: np.ndarray | None = None
) -> list[CommensurateCell]:
    """All superlattices of a surface between two areas, distinct under its symmetry.

    Parameters
    ----------
    basis
        (2, 2) right-handed (1×1) surface vectors as rows, Å.
    max_area, min_area
        In (1×1) cells.
    operations
        (n, 2, 2) point group of the substrate as integer matrices, see
        :func:`adlayer.structures.sublattices.integer_operations`; by default that of the bare lattice.

    Returns
    -------
    list of CommensurateCell
        By area, and within an area from the roundest cell to the longest.

    Raises
    ------
    UserError
        If the areas are not 1 ≤ ``min_area`` ≤ ``max_area`` ≤ :data:`MAX_AREA`.

    Examples
    --------
    >>> hexagonal = np.array([[1.0, 0.0], [0.5, 3**0.5 / 2]])
    >>> [cell.wood for cell in commensurate_cells(hexagonal, 4)]
    ['p(1x1)', 'p(2x1)', '(r3xr3)R30', 'p(3x1)', 'p(2x2)', 'c(4x2)', 'p(4x1)']
    """
    if not 1 <= min_area <= max_area <= MAX_AREA:
        raise UserError(f"areas {min_area} to {max_area} cannot be listed: ask for 1 ≤ least ≤ largest ≤ {MAX_AREA}")
    operations = lattice_operations(basis) if operations is None else operations
    cells: list[CommensurateCell] = []
    for area in range(min_area, max_area + 1):
        found = [_cell(orbit, area, basis, operations) for orbit in _orbits(area, operations)]
        cells += sorted(found, key=_roundness)
    return cells


def _roundness(cell: CommensurateCell) -> tuple[object, ...]:
    return round(max(cell.lengths), 4), cell.domains, round(sum(cell.lengths), 4), cell.matrix.tolist()


def _orbits(area: int, operations: np.ndarray) -> list[dict[Form, np.ndarray]]:
    """The sublattices of an area, sorted into classes of symmetric images."""
    orbits: list[dict[Form, np.ndarray]] = []
    seen: set[Form] = set()
    for a, b, d in sublattices(area):
        if (a, b, d) not in seen:
            orbits.append(images(np.array([[a, b], [0, d]]), operations))
            seen.update(orbits[-1])
    return orbits


def _cell(orbit: dict[Form, np.ndarray], area: int, basis: np.ndarray, operations: np.ndarray) -> CommensurateCell:
    first = next(iter(orbit.values()))
    wood = wood_notation(first, basis, operations)
    named = first if wood is None else orbit[hermite_form(superstructure_matrix(wood, basis))]
    matrix = reduced_matrix(named, basis)
    u, v = matrix @ basis
    lengths = float(np.linalg.norm(u)), float(np.linalg.norm(v))
    angle = float(np.degrees(np.arccos(np.clip(u @ v / (lengths[0] * lengths[1]), -1, 1))))
    return CommensurateCell(matrix, area, wood, len(orbit), lengths, angle)

"""Commensurate cells: counted against published sequences and by independent brute force."""

import itertools

import numpy as np
import pytest

from adlayer.errors import UserError
from adlayer.structures.commensurate import commensurate_cells
from adlayer.structures.sublattices import hermite_form, lattice_operations
from adlayer.structures.superstructure import superstructure_matrix

HEXAGONAL = 2.9465 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])
SQUARE = 2.9 * np.eye(2)
RECTANGULAR = np.diag([2.95, 4.17])
RHOMBIC = 2.74 * np.array([[1.0, 0.0], [1 / 3, np.sqrt(8) / 3]])
OBLIQUE = np.array([[2.5, 0.0], [0.7, 3.1]])

# Numbers of inequivalent sublattices of index 1, 2, …, On-Line Encyclopedia of Integer Sequences.
A003051 = [1, 1, 2, 3, 2, 3, 3, 5, 4, 4, 3, 8, 4, 5, 6, 9, 4, 8, 5, 10, 8, 7, 5, 15]  # p6mm
A145393 = [1, 2, 2, 4, 3, 5, 3, 7, 5, 7, 4, 11, 5, 8, 8, 12, 6, 13, 6, 15, 10, 11, 7, 21, 10]  # p4mm
A145392 = [1, 2, 2, 4, 4, 6, 4, 8, 7, 10, 6, 14, 8, 12, 12, 16, 10, 20, 10, 22]  # p4
A145391 = [1, 2, 3, 5, 4, 7, 5, 10, 8, 10, 7, 17, 8, 13, 14, 19, 10, 21, 11, 24]  # c2mm
A000203 = [1, 3, 4, 7, 6, 12, 8, 15, 13, 18, 12, 28, 14, 24, 24, 31, 18, 39, 20, 42]  # p2: all, σ(n)


def counts(basis: np.ndarray, up_to: int, operations: np.ndarray | None = None) -> list[int]:
    areas = [cell.area for cell in commensurate_cells(basis, up_to, operations=operations)]
    return np.bincount(areas, minlength=up_to + 1)[1:].tolist()


@pytest.mark.parametrize(
    ("basis", "sequence"),
    [(HEXAGONAL, A003051), (SQUARE, A145393), (RHOMBIC, A145391), (OBLIQUE, A000203)],
    ids=["p6mm", "p4mm", "c2mm", "p2"],
)
def test_counts_are_the_published_ones(basis, sequence):
    assert counts(basis, len(sequence)) == sequence


def test_without_reflections_there_are_more_cells():
    rotations = np.array([u for u in lattice_operations(SQUARE) if np.linalg.det(u) > 0])
    assert counts(SQUARE, len(A145392), rotations) == A145392
    assert A145392[4] != A145393[4]  # (r5xr5)R26.6 and its mirror image


def _brute_force(basis: np.ndarray, index: int) -> int:
    """Classes of sublattices as sets of points modulo ``index``, merged by isometries found by their metric."""
    points = list(itertools.product(range(index), repeat=2))
    subgroups = set()
    for u, v in itertools.product(points, repeat=2):
        span = {((i * u[0] + j * v[0]) % index, (i * u[1] + j * v[1]) % index) for i, j in points}
        if len(span) == index:  # index · Z² lies in every sublattice of that index
            subgroups.add(frozenset(span))
    entries = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=4))).reshape(-1, 2, 2)
    metric = basis @ basis.T
    isometries = [u for u in entries if np.allclose(u @ metric @ u.T, metric)]
    classes = {
        min(tuple(sorted(tuple((np.array(p) @ u % index).tolist()) for p in group)) for u in isometries)
        for group in subgroups
    }
    return len(classes)


@pytest.mark.parametrize("basis", [HEXAGONAL, SQUARE, RECTANGULAR, RHOMBIC], ids=["p6mm", "p4mm", "p2mm", "c2mm"])
def test_counts_by_brute_force(basis):
    assert counts(basis, 6) == [_brute_force(basis, index) for index in range(1, 7)]


@pytest.mark.parametrize("basis", [HEXAGONAL, SQUARE, RECTANGULAR, RHOMBIC, OBLIQUE])
def test_cells_are_distinct_complete_and_named_for_themselves(basis):
    operations = lattice_operations(basis)
    cells = commensurate_cells(basis, 16)
    for area in range(1, 17):
        same = [cell for cell in cells if cell.area == area]
        assert sum(cell.domains for cell in same) == sum(d for d in range(1, area + 1) if area % d == 0)
        forms = [{hermite_form(cell.matrix @ u) for u in operations} for cell in same]
        assert [len(f) for f in forms] == [cell.domains for cell in same]
        assert len(set().union(*forms)) == sum(map(len, forms))
    for cell in cells:
        assert round(np.linalg.det(cell.matrix)) == cell.area
        assert np.linalg.norm(cell.matrix @ basis, axis=1) == pytest.approx(cell.lengths)
        assert 60 - 1e-6 <= cell.angle <= 90 + 1e-6
        if cell.wood is not None:
            assert hermite_form(superstructure_matrix(cell.wood, basis)) == hermite_form(cell.matrix)
    names = [cell.wood for cell in cells if cell.wood is not None]
    assert len(set(names)) == len(names)


def test_cells_known_from_experiments_are_listed():
    names = {cell.wood: cell for cell in commensurate_cells(HEXAGONAL, 16)}
    for known in ("p(4x4)", "c(4x2)", "(r3xr3)R30", "(r7xr7)R19.1", "(r13xr13)R13.9", "c(5xr3)rect"):
        assert known in names
    assert (names["p(4x4)"].area, names["p(4x4)"].domains) == (16, 1)
    assert names["(r7xr7)R19.1"].domains == 2


def test_least_area_and_mistakes():
    assert {cell.area for cell in commensurate_cells(SQUARE, 6, min_area=5)} == {5, 6}
    for least, most in ((1, 0), (0, 4), (5, 4), (1, 100_000)):
        with pytest.raises(UserError, match="ask for 1 ≤ least") as error:
            commensurate_cells(SQUARE, most, min_area=least)
        assert "\n" not in str(error.value)

"""Superstructure notation against hand-written matrices, and back to Wood's names."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adlayer.errors import UserError
from adlayer.structures.sublattices import lattice_operations
from adlayer.structures.superstructure import superstructure_matrix, wood_notation

HEXAGONAL = 2.9465 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])
SQUARE = 2.9 * np.eye(2)
RECTANGULAR = np.diag([2.95, 4.17])


@pytest.mark.parametrize(
    ("notation", "basis", "matrix"),
    [
        ("p(4x4)", HEXAGONAL, [[4, 0], [0, 4]]),
        ("4x4", HEXAGONAL, [[4, 0], [0, 4]]),
        ("p(4 × 4)", HEXAGONAL, [[4, 0], [0, 4]]),
        ("p(4x2)", HEXAGONAL, [[4, 0], [0, 2]]),
        ("c(4x2)", HEXAGONAL, [[2, 1], [-2, 1]]),
        ("c(4x4)", HEXAGONAL, [[2, 2], [-2, 2]]),
        ("(√3×√3)R30°", HEXAGONAL, [[1, 1], [-1, 2]]),
        ("(r3xr3)R30", HEXAGONAL, [[1, 1], [-1, 2]]),
        ("(sqrt3xsqrt3)-R30", HEXAGONAL, [[1, 1], [-1, 2]]),
        ("(r7xr7)R19.1", HEXAGONAL, [[2, 1], [-1, 3]]),
        ("p(4x5r3)", HEXAGONAL, [[4, 0], [-5, 10]]),
        ("(√5×√5)R27", SQUARE, [[2, 1], [-1, 2]]),
        ("c(2x2)", SQUARE, [[1, 1], [-1, 1]]),
        ("(√2×√2)R45", SQUARE, [[1, 1], [-1, 1]]),
        ("p(2x1)", RECTANGULAR, [[2, 0], [0, 1]]),
        ("[[8,-7],[2,4]]", HEXAGONAL, [[8, -7], [2, 4]]),
        ("[[0, 1], [1, 0]]", SQUARE, [[0, 1], [-1, 0]]),
    ],
)
def test_matrices(notation: str, basis: np.ndarray, matrix: list[list[int]]) -> None:
    assert superstructure_matrix(notation, basis).tolist() == matrix


@pytest.mark.parametrize(("p", "q", "angle"), [(3, 3, 30.0), (7, 7, 19.107), (13, 13, 13.898), (19, 19, 23.413)])
def test_rotated_cells_have_the_lengths_and_angle_they_name(p: int, q: int, angle: float) -> None:
    vectors = superstructure_matrix(f"(r{p}xr{q})R{angle}", HEXAGONAL) @ HEXAGONAL
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(2.9465 * np.sqrt([p, q]))
    assert np.degrees(np.arctan2(vectors[0, 1], vectors[0, 0])) == pytest.approx(angle, abs=1e-3)


@pytest.mark.parametrize(
    ("notation", "basis", "words"),
    [
        ("", HEXAGONAL, "not understood"),
        ("p(4x", HEXAGONAL, "not understood"),
        ("p(4x)", HEXAGONAL, "stretch factor"),
        ("four by four", HEXAGONAL, "not understood"),
        ("(r3xr3)R30", SQUARE, "not commensurate"),
        ("p(2.5x2)", HEXAGONAL, "not commensurate"),
        ("c(3x2)", HEXAGONAL, "no lattice point"),
        ("p(0x2)", HEXAGONAL, "zero area"),
        ("[[1,2],[2,4]]", HEXAGONAL, "zero area"),
        ("[[1,2],[3]]", HEXAGONAL, "not a 2×2 matrix"),
        ("[[1,0.5],[0,1]]", HEXAGONAL, "not a 2×2 matrix"),
        ("[[1,2]", HEXAGONAL, "not a 2×2 matrix"),
    ],
)
def test_bad_notations(notation: str, basis: np.ndarray, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        superstructure_matrix(notation, basis)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("notation", "matrix"),
    [
        ("c(5xr3)rect", [[2, 1], [-3, 1]]),
        ("(2xr3)rect", [[2, 0], [-1, 2]]),
        ("p(4x5r3)rect", [[4, 0], [-5, 10]]),
        ("(r3x3)rectR30", [[1, 1], [-3, 3]]),
    ],
)
def test_rectangular_cells_on_a_hexagonal_surface(notation: str, matrix: list[list[int]]) -> None:
    assert superstructure_matrix(notation, HEXAGONAL).tolist() == matrix


ROUND_TRIPS = {
    "hexagonal": (
        HEXAGONAL,
        "p(1x1) p(2x1) p(2x2) p(3x1) p(3x2) p(4x4) p(7x7) p(100x1) c(4x2) c(6x4) c(8x2) c(8x4) c(12x2) "
        "(r3xr3)R30 (2r3x2r3)R30 (3r3xr3)R30 (r7xr7)R19.1 (2r7x2r7)R19.1 (2r7xr7)R19.1 (r13xr13)R13.9 "
        "(r19xr19)R23.4 (r31xr31)R8.9 (r91xr91)R27 c(5xr3)rect c(7xr3)rect p(4xr3)rect p(4x5r3)rect c(3x5r3)rect",
    ),
    "square": (
        SQUARE,
        "p(1x1) p(2x1) p(2x2) p(10x1) c(2x2) c(4x2) c(4x4) c(6x2) c(8x2) c(10x2) (2r2xr2)R45 (3r2xr2)R45 "
        "(r5xr5)R26.6 (r10xr10)R18.4 (2r5xr5)R26.6 (r13xr13)R33.7",
    ),
    "rectangular": (
        RECTANGULAR,
        "p(1x1) p(2x1) p(1x2) p(3x1) p(6x6) p(2x3) c(2x2) c(6x2) c(2x4) c(2x10) c(4x2)",
    ),
    "fcc(110)": (2.56 * np.diag([1.0, np.sqrt(2)]), "p(2x1) p(3x1) c(6x2) c(2x4) (r3xr3)R54.7"),
}


@pytest.mark.parametrize(
    ("basis", "name"),
    [
        pytest.param(basis, name, id=f"{kind} {name}")
        for kind, (basis, names) in ROUND_TRIPS.items()
        for name in names.split()
    ],
)
def test_names_survive_the_round_trip(basis: np.ndarray, name: str) -> None:
    assert wood_notation(superstructure_matrix(name, basis), basis) == name


@pytest.mark.parametrize(
    ("given", "basis", "common"),
    [
        ("c(2x2)", HEXAGONAL, "p(2x1)"),
        ("p(2xr3)", HEXAGONAL, "c(4x2)"),
        ("c(3xr3)rect", HEXAGONAL, "(r3xr3)R30"),
        ("(r3x2r3)R30", HEXAGONAL, "(2r3xr3)R30"),
        ("(r2xr2)R45", SQUARE, "c(2x2)"),
        ("(r2x2r2)R45", SQUARE, "(2r2xr2)R45"),
        ("p(1x3)", SQUARE, "p(3x1)"),
    ],
)
def test_other_names_of_a_cell_lead_to_the_common_one(given: str, basis: np.ndarray, common: str) -> None:
    assert wood_notation(superstructure_matrix(given, basis), basis) == common


@pytest.mark.parametrize(
    ("matrix", "basis"),
    [
        ([[8, -7], [2, 4]], HEXAGONAL),
        ([[3, 0], [1, 3]], HEXAGONAL),
        ([[2, 1], [-1, 2]], RECTANGULAR),
        ([[3, 1], [0, 3]], SQUARE),
    ],
)
def test_most_cells_have_no_name(matrix: list[list[int]], basis: np.ndarray) -> None:
    assert wood_notation(np.array(matrix), basis) is None


def test_mirror_images_are_told_apart_where_the_substrate_has_no_mirror() -> None:
    one, other = np.array([[2, 1], [-1, 3]]), np.array([[3, -1], [1, 2]])
    assert wood_notation(one, HEXAGONAL) == wood_notation(other, HEXAGONAL) == "(r7xr7)R19.1"
    rotations = np.array([u for u in lattice_operations(HEXAGONAL) if np.linalg.det(u) > 0])
    assert wood_notation(one, HEXAGONAL, rotations) == "(r7xr7)R19.1"
    assert wood_notation(other, HEXAGONAL, rotations) == "(r7xr7)R40.9"


def _equivalent(one: np.ndarray, other: np.ndarray, basis: np.ndarray) -> bool:
    """Whether an isometry of the lattice carries one sublattice to the other: by metric and division alone."""
    entries = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=4))).reshape(-1, 2, 2)
    metric = basis @ basis.T
    isometries = [u for u in entries if np.allclose(u @ metric @ u.T, metric)]
    quotients = [one @ u @ np.linalg.inv(other) for u in isometries]
    return any(np.allclose(q, np.rint(q)) and np.isclose(abs(np.linalg.det(q)), 1) for q in quotients)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-6, 6), min_size=4, max_size=4).filter(lambda v: v[0] * v[3] != v[1] * v[2]),
    st.sampled_from([HEXAGONAL, SQUARE, RECTANGULAR, 2.56 * np.diag([1.0, np.sqrt(2)])]),
    st.integers(0, 11),
)
def test_names_belong_to_the_class_of_the_sublattice(entries: list[int], basis: np.ndarray, choice: int) -> None:
    matrix = np.reshape(entries, (2, 2))
    name = wood_notation(matrix, basis)
    if name is not None:
        assert _equivalent(superstructure_matrix(name, basis), matrix, basis)
    operations = lattice_operations(basis)
    changed = np.array([[2, 1], [-5, -3]]) @ matrix @ operations[choice % len(operations)]
    assert wood_notation(changed, basis) == name


def test_the_check_of_equivalence_can_fail() -> None:
    assert _equivalent(np.array([[2, 0], [0, 1]]), np.array([[1, 1], [-1, 1]]), HEXAGONAL)
    assert not _equivalent(np.array([[2, 0], [0, 1]]), np.array([[1, 1], [-1, 1]]), SQUARE)

"""Superstructure notation against hand-written matrices."""

import numpy as np
import pytest

from adlayer.errors import UserError
from adlayer.structures.superstructure import superstructure_matrix

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
        ("p(4x", HEXAGONAL, "stretch factor"),
        ("four by four", HEXAGONAL, "not understood"),
        ("(r3xr3)R30", SQUARE, "not commensurate"),
        ("p(2.5x2)", HEXAGONAL, "not commensurate"),
        ("c(3x2)", HEXAGONAL, "no lattice point"),
        ("p(0x2)", HEXAGONAL, "zero area|not commensurate"),
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

"""Superstructure notation: Wood's notation and 2×2 integer matrices.

A superstructure of a surface with (1×1) basis vectors ``a1, a2`` (rows of a 2×2 array, Å) has the cell
``M @ [a1, a2]`` with an integer matrix ``M`` (rows are superlattice vectors); ``|det M|`` is its area in (1×1)
cells. Wood's notation (E. A. Wood, J. Appl. Phys. 35, 1306 (1964)) names those in which both vectors are stretched
by given factors and rotated by one angle, ``(p×q)Rθ``; ``c`` centres the cell. The basis is ASE's: 60° between
``a1`` and ``a2`` on hexagonal surfaces.
"""

from __future__ import annotations

import json
import math
import re

import numpy as np

from adlayer.errors import UserError

_FACTOR = r"(?:\d+(?:\.\d+)?)?(?:(?:√|sqrt|r)\d+)?"
_WOOD = re.compile(
    rf"^(?P<kind>[pc]?)\(?(?P<p>{_FACTOR})[x×](?P<q>{_FACTOR})\)?(?:-?R(?P<angle>\d+(?:\.\d+)?)°?)?$",
    re.IGNORECASE,
)
_MATRIX_HINT = 'give Wood\'s notation such as "p(4x4)", "c(4x2)", "(r3xr3)R30", or a matrix such as "[[8,-7],[2,4]]"'


def _factor(text: str, notation: str) -> float:
    number, _, root = re.sub(r"√|sqrt|r", "√", text, flags=re.IGNORECASE).partition("√")
    if not number and not root:
        raise UserError(f'superstructure "{notation}" lacks a stretch factor: {_MATRIX_HINT}')
    return (float(number) if number else 1.0) * (math.sqrt(int(root)) if root else 1.0)


def _find_vector(basis: np.ndarray, along: np.ndarray, length: float, angle: float) -> np.ndarray | None:
    """Integer vector of the given length whose direction is ``along`` turned by ``angle`` (degrees, within 1°)."""
    reach = math.ceil(2.5 * length / min(np.linalg.norm(basis, axis=1))) + 2
    grid = np.stack(np.meshgrid(*2 * [np.arange(-reach, reach + 1)], indexing="ij"), -1).reshape(-1, 2)
    vectors = grid @ basis
    lengths = np.linalg.norm(vectors, axis=1)
    turn = np.degrees(np.arctan2(vectors[:, 1], vectors[:, 0]) - math.atan2(along[1], along[0]))
    turn = np.abs((turn - angle + 180.0) % 360.0 - 180.0)
    hits = np.flatnonzero((np.abs(lengths - length) < 1e-3 * length) & (turn < 1.0))
    return None if len(hits) == 0 else grid[hits[np.argmin(turn[hits])]]


def _parse_matrix(notation: str) -> np.ndarray:
    try:
        values = np.array(json.loads(notation), dtype=float)
    except (ValueError, TypeError):
        values = np.zeros(0)
    if values.shape != (2, 2) or not np.array_equal(values, np.round(values)):
        raise UserError(f'superstructure "{notation}" is not a 2×2 matrix of integers: {_MATRIX_HINT}')
    return values.astype(int)


def superstructure_matrix(notation: str, basis: np.ndarray) -> np.ndarray:
    """Integer matrix of a superstructure, right-handed.

    Parameters
    ----------
    notation
        Wood's notation, ASCII allowed (``p(4x4)``, ``c(4x2)``, ``(r3xr3)R30``), or a matrix as JSON.
    basis
        (2, 2) array, the (1×1) surface vectors as rows, Å.

    Returns
    -------
    numpy.ndarray
        (2, 2) integers with positive determinant; rows are the superlattice vectors.

    Raises
    ------
    UserError
        If the text is neither notation, or names a cell that is not commensurate with the surface.

    Examples
    --------
    >>> import numpy as np
    >>> hexagonal = np.array([[1.0, 0.0], [0.5, 3**0.5 / 2]])
    >>> superstructure_matrix("(r3xr3)R30", hexagonal).tolist()
    [[1, 1], [-1, 2]]
    >>> superstructure_matrix("c(4x2)", hexagonal).tolist()
    [[2, 1], [-2, 1]]
    """
    text = notation.replace(" ", "")
    if text.startswith("["):
        matrix = _parse_matrix(text)
    else:
        match = _WOOD.match(text)
        if match is None:
            raise UserError(f'superstructure "{notation}" is not understood: {_MATRIX_HINT}')
        angle = float(match["angle"] or 0.0)
        lengths = [
            _factor(f, notation) * float(np.linalg.norm(v))
            for f, v in zip((match["p"], match["q"]), basis, strict=True)
        ]
        first = _find_vector(basis, basis[0], lengths[0], angle)
        second = _find_vector(basis, basis[1], lengths[1], angle)
        if second is None:  # rectangular cells on a hexagonal surface, as in p(4x5r3)
            second = _find_vector(basis, basis[0], lengths[1], angle + 90.0)
        if first is None or second is None:
            raise UserError(
                f'superstructure "{notation}" is not commensurate with this surface: give its matrix instead'
            )
        matrix = np.array([first, second])
        if match["kind"].lower() == "c":
            doubled = np.array([matrix[0] + matrix[1], matrix[1] - matrix[0]])
            if np.any(doubled % 2):
                raise UserError(
                    f'centred cell "{notation}" has no lattice point at its centre: give its matrix instead'
                )
            matrix = doubled // 2
    determinant = round(float(np.linalg.det(matrix)))
    if determinant == 0:
        raise UserError(f'superstructure "{notation}" has zero area: give two independent vectors')
    return matrix if determinant > 0 else matrix * np.array([[1], [-1]])

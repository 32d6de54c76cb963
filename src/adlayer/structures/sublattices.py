"""Sublattices of a surface's (1×1) lattice: normal form, shape and symmetry.

A sublattice is the row space over the integers of a 2×2 matrix ``M``; its Cartesian cell is ``M @ [a1, a2]`` and its
index ``|det M|``. Two matrices span the same sublattice if and only if their Hermite normal forms are equal,

    H = V M = [[a, b], [0, d]],   a, d > 0,   0 ≤ b < d,   V unimodular,

so that ``H`` is a name of the sublattice. An isometry of the (1×1) lattice is an integer matrix ``U`` for which
``U @ [a1, a2]`` is the rotated or mirrored basis: it carries the sublattice of ``M`` to that of ``M U``. The inversion
carries every sublattice to itself, so a surface with point group 3m orders its sublattices as 6mm does.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

Form = tuple[int, int, int]
"""Hermite normal form ``(a, b, d)`` of ``[[a, b], [0, d]]``."""


def hermite_form(matrix: np.ndarray) -> Form:
    """The Hermite normal form ``(a, b, d)`` of the sublattice that integer rows (2, 2) span.

    >>> hermite_form(np.array([[2, 1], [-2, 1]]))
    (2, 1, 2)
    """
    (p, q), (r, s) = ((int(x) for x in row) for row in matrix)
    while r:
        step = p // r
        (p, q), (r, s) = (r, s), (p - step * r, q - step * s)
    if p < 0:
        p, q = -p, -q
    return p, q % abs(s), abs(s)


def reduced_matrix(matrix: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The same sublattice with the two shortest vectors, right-handed and at an angle of 60° to 90°.

    Of several such cells, the one whose first vector points closest to ``a1``.

    Parameters
    ----------
    matrix
        (2, 2) integers of non-zero determinant.
    basis
        (2, 2) right-handed (1×1) vectors as rows, Å.

    Returns
    -------
    numpy.ndarray
        (2, 2) integers (Lagrange–Gauss reduction).

    Examples
    --------
    >>> reduced_matrix(np.array([[3, 0], [7, 2]]), np.eye(2)).tolist()
    [[1, 2], [-2, 2]]
    """
    u, v = (np.array(row, dtype=int) for row in matrix)
    while True:
        lengths = [float(np.sum((w @ basis) ** 2)) for w in (u, v)]
        if lengths[0] > lengths[1] * (1 + 1e-9):
            u, v = v, u
            lengths.reverse()
        steps = round(float((u @ basis) @ (v @ basis)) / lengths[0] * (1 - 1e-9))  # a tie is no reason for a step
        if steps == 0:
            break
        v = v - steps * u
    index = abs(round(float(np.linalg.det(matrix))))
    short = [sign * w for w in (u, v, u - v, u + v) for sign in (1, -1)]
    cells = [np.array(pair) for pair in itertools.permutations(short, 2)]
    return min((c for c in cells if round(float(np.linalg.det(c))) == index), key=lambda c: _shape(c, basis))


def _shape(cell: np.ndarray, basis: np.ndarray) -> tuple[float, ...]:
    """Sort key among cells of one sublattice: short, not obtuse, first vector along a1."""
    vectors = cell @ basis
    scale = float(np.linalg.norm(basis))
    obtuse = float(vectors[0] @ vectors[1]) < -1e-6 * scale**2
    turn = math.atan2(vectors[0, 1], vectors[0, 0]) - math.atan2(basis[0, 1], basis[0, 0])
    turn = (turn + math.pi) % (2 * math.pi) - math.pi
    return round(float(np.linalg.norm(vectors)) / scale, 5), obtuse, round(abs(turn), 5), round(-turn, 5)


def lattice_operations(basis: np.ndarray, tolerance: float = 1e-3) -> np.ndarray:
    """The isometries of a lattice as integer matrices ``U``: its point group, inversion included.

    Parameters
    ----------
    basis
        (2, 2) lattice vectors as rows, Å.
    tolerance
        Relative error of lengths and products that still counts as equal.

    Returns
    -------
    numpy.ndarray
        (n, 2, 2) integers; n = 12 for hexagonal, 8 square, 4 rectangular and rhombic, 2 oblique lattices.
    """
    reduced = reduced_matrix(np.eye(2, dtype=int), basis)
    short = reduced @ basis
    candidates = np.array(list(itertools.product((-1, 0, 1), repeat=4))).reshape(-1, 2, 2)
    metric = candidates @ (short @ short.T) @ candidates.transpose(0, 2, 1)
    error = np.abs(metric - short @ short.T).max(axis=(1, 2))
    isometries = candidates[error < tolerance * np.linalg.norm(short[1]) ** 2]
    return np.rint(np.linalg.inv(reduced) @ isometries @ reduced).astype(int)


def integer_operations(rotations: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Cartesian point operations ``x → R x`` (n, 2, 2) of a lattice as integer matrices ``U``, without repeats."""
    maps = basis @ np.swapaxes(rotations, 1, 2) @ np.linalg.inv(basis)
    return np.unique(np.rint(maps).astype(int), axis=0)


def images(matrix: np.ndarray, operations: np.ndarray) -> dict[Form, np.ndarray]:
    """The distinct sublattices onto which operations (n, 2, 2) carry one, with a matrix (2, 2) of each.

    In the order of the operations, the sublattice itself first.
    """
    found: dict[Form, np.ndarray] = {}
    for moved in (np.asarray(matrix), *(matrix @ operations)):
        found.setdefault(hermite_form(moved), moved)
    return found


def sublattices(index: int) -> list[Form]:
    """All sublattices of an index as Hermite normal forms: σ(index) in number.

    >>> sublattices(2)
    [(1, 0, 2), (1, 1, 2), (2, 0, 1)]
    """
    return [(a, b, index // a) for a in range(1, index + 1) if index % a == 0 for b in range(index // a)]

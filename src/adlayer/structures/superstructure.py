"""Superstructure notation: Wood's notation and 2×2 integer matrices.

A superstructure of a surface with (1×1) basis vectors ``a1, a2`` (rows of a 2×2 array, Å) has the cell
``M @ [a1, a2]`` with an integer matrix ``M`` (rows are superlattice vectors); ``|det M|`` is its area in (1×1)
cells. Wood's notation (E. A. Wood, J. Appl. Phys. 35, 1306 (1964)) names those in which both vectors are stretched
by given factors and rotated by one angle, ``(p×q)Rθ``; ``c`` centres the cell. The basis is ASE's: 60° between
``a1`` and ``a2`` on hexagonal surfaces. There ``(p×q)rect`` has its second vector, of length ``q |a2|``, at right
angles to the first. Most superstructures have no such name; where there are several, :func:`wood_notation` takes the
one most used: unrotated before rotated, primitive before centred, a cell similar to the (1×1) before ``rect``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

import numpy as np

from adlayer.errors import UserError
from adlayer.structures.sublattices import hermite_form, images, lattice_operations, reduced_matrix

_FACTOR = r"(?:\d+(?:\.\d+)?)?(?:(?:√|sqrt|r)\d+)?"
_WOOD = re.compile(
    rf"^(?P<kind>[pc]?)\(?(?P<p>{_FACTOR})[x×](?P<q>{_FACTOR})\)?(?P<rect>rect)?(?:-?R(?P<angle>\d+(?:\.\d+)?)°?)?$",
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


def _parse_wood(text: str, notation: str, basis: np.ndarray) -> np.ndarray:
    match = _WOOD.match(text)
    if match is None or text.count("(") != text.count(")"):
        raise UserError(f'superstructure "{notation}" is not understood: {_MATRIX_HINT}')
    angle = float(match["angle"] or 0.0)
    p, q = (
        _factor(f, notation) * float(np.linalg.norm(v)) for f, v in zip((match["p"], match["q"]), basis, strict=True)
    )
    if not p * q > 0:
        raise UserError(f'superstructure "{notation}" has zero area: {_MATRIX_HINT}')
    first = _find_vector(basis, basis[0], p, angle)
    second = None if match["rect"] else _find_vector(basis, basis[1], q, angle)
    if second is None:  # rectangular cells on a hexagonal surface, as in p(4x5r3)
        second = _find_vector(basis, basis[0], q, angle + 90.0)
    if first is None or second is None:
        raise UserError(f'superstructure "{notation}" is not commensurate with this surface: give its matrix instead')
    matrix = np.array([first, second])
    if match["kind"].lower() == "c":
        doubled = np.array([matrix[0] + matrix[1], matrix[1] - matrix[0]])
        if np.any(doubled % 2):
            raise UserError(f'centred cell "{notation}" has no lattice point at its centre: give its matrix instead')
        matrix = doubled // 2
    return matrix


def superstructure_matrix(notation: str, basis: np.ndarray) -> np.ndarray:
    """Integer matrix of a superstructure, right-handed.

    Parameters
    ----------
    notation
        Wood's notation, ASCII allowed (``p(4x4)``, ``c(4x2)``, ``(r3xr3)R30``, ``c(5xr3)rect``), or a matrix as JSON.
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
    matrix = _parse_matrix(text) if text.startswith("[") else _parse_wood(text, notation, basis)
    determinant = round(float(np.linalg.det(matrix)))
    if determinant == 0:
        raise UserError(f'superstructure "{notation}" has zero area: give two independent vectors')
    return matrix if determinant > 0 else matrix * np.array([[1], [-1]])


def wood_notation(matrix: np.ndarray, basis: np.ndarray, operations: np.ndarray | None = None) -> str | None:
    """Wood's name of a superlattice, or ``None`` if it has none.

    Read back by :func:`superstructure_matrix`, the name gives the same superlattice up to the operations; which
    matrix spans it, or which of its symmetric images, makes no difference.

    Parameters
    ----------
    matrix
        (2, 2) integers of non-zero determinant.
    basis
        (2, 2) right-handed (1×1) surface vectors as rows, Å.
    operations
        (n, 2, 2) point group of the substrate as integer matrices, see
        :func:`adlayer.structures.sublattices.lattice_operations`; by default that of the bare lattice.

    Examples
    --------
    >>> hexagonal = np.array([[1.0, 0.0], [0.5, 3**0.5 / 2]])
    >>> wood_notation(np.array([[3, -1], [1, 2]]), hexagonal)
    '(r7xr7)R19.1'
    >>> wood_notation(np.array([[8, -7], [2, 4]]), hexagonal) is None
    True
    """
    operations = lattice_operations(basis) if operations is None else operations
    orbit = images(matrix, operations)
    names = {name for image in orbit.values() for name in _candidates(image, basis)}
    for _, text in sorted(names):
        try:
            if hermite_form(superstructure_matrix(text, basis)) in orbit:
                return text
        except UserError:  # the rounded angle or a near-by vector misleads the reader: not a good name
            continue
    return None


_STYLES = ("p", "c", "p R", "p rect", "c rect", "c R", "p rect R", "c rect R")  # most used first
_ROUNDING = 1e-3  # relative error of a stretch factor that still counts as the root of an integer


def _candidates(matrix: np.ndarray, basis: np.ndarray) -> Iterator[tuple[tuple[float, ...], str]]:
    """Names of cells (p) and centred cells (c) of exactly this sublattice, each with its sort key."""
    area = abs(float(np.linalg.det(matrix @ basis)))
    between = _angle(basis[1]) - _angle(basis[0])
    firsts = _short_vectors(matrix, basis)
    cartesian = firsts @ basis
    lengths = np.linalg.norm(cartesian, axis=1)
    turns = np.arctan2(cartesian[:, 1], cartesian[:, 0]) - _angle(basis[0])
    units = np.linalg.norm(basis, axis=1)
    kinds = [("", between)] if abs(between - math.pi / 2) < _ROUNDING else [("", between), (" rect", math.pi / 2)]
    for centring, (rect, angle) in ((c, k) for c in (1, 2) for k in kinds):
        long = centring * area / (lengths * math.sin(angle))
        directions = turns + _angle(basis[0]) + angle
        second = long[:, None] * np.stack([np.cos(directions), np.sin(directions)], 1) @ np.linalg.inv(basis)
        seconds = np.rint(second).astype(int)
        halves = np.concatenate([firsts, seconds], 1).reshape(-1, 2, 2)
        inside = _belongs(seconds, matrix)
        if centring == 2:
            inside &= _belongs((firsts + seconds) / 2, matrix)
        fits = inside & (np.linalg.norm((second - seconds) @ basis, axis=1) < _ROUNDING * long)
        for cell, turn in zip(halves[fits], np.degrees(turns[fits]) % 180.0, strict=True):
            p, q = np.linalg.norm(cell @ basis, axis=1) / units
            yield from _name("pc"[centring - 1], float(p), float(q), rect, round(float(turn), 1) % 180.0)


def _angle(vector: np.ndarray) -> float:
    return math.atan2(vector[1], vector[0])


def _belongs(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Whether each point (n, 2), in (1×1) coordinates, lies on the sublattice."""
    coordinates = points @ np.linalg.inv(matrix)
    return np.all(np.abs(coordinates - np.rint(coordinates)) < 1e-6, axis=1)


def _short_vectors(matrix: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Sublattice vectors (n, 2), one of each ± pair, among them every side of a cell of once or twice the area."""
    reduced = reduced_matrix(matrix, basis)
    u, v = np.linalg.norm(reduced @ basis, axis=1)
    reach = 2.01 * max(u, v) / math.sin(_angle(basis[1]) - _angle(basis[0]))  # the other side is min(u, v) at least
    m, n = math.ceil(1.16 * reach / u), math.ceil(1.16 * reach / v)  # u and v are at 60° or more
    grid = np.stack(np.meshgrid(np.arange(-m, m + 1), np.arange(-n, n + 1), indexing="ij"), -1).reshape(-1, 2)
    grid = grid[(grid[:, 0] > 0) | ((grid[:, 0] == 0) & (grid[:, 1] > 0))]
    vectors: np.ndarray = grid @ reduced
    return vectors


def _name(kind: str, p: float, q: float, rect: str, turn: float) -> Iterator[tuple[tuple[float, ...], str]]:
    """The name of a cell with stretch factors ``p`` and ``q``, if these are roots of integers."""
    if any(round(f**2) < 1 or abs(f - math.sqrt(round(f**2))) > _ROUNDING * f for f in (p, q)):
        return
    style = kind + rect + (" R" if turn else "")
    prefix = "" if style in ("p R", "p rect R") else kind
    rotation = f"R{turn:g}" if turn else ""
    yield (_STYLES.index(style), turn, -round(p, 3)), f"{prefix}({_root(p)}x{_root(q)}){rect.strip()}{rotation}"


def _root(factor: float) -> str:
    """A stretch factor as text: 4, r3, 2r3."""
    square = round(factor**2)
    whole = max(m for m in range(1, math.isqrt(square) + 1) if square % m**2 == 0)
    rest = square // whole**2
    return ("" if whole == 1 and rest > 1 else str(whole)) + (f"r{rest}" if rest > 1 else "")

"""Overlayers drawn with a symmetry of their substrate.

Structures of low energy are more symmetric than chance would have them, and a symmetric one has fewer degrees of
freedom to find: random search has long been done so (C. J. Pickard & R. J. Needs, J. Phys.: Condens. Matter 23, 053201,
2011). In diffusion it needs nothing but noise that keeps the symmetry: the network is equivariant, so a structure that
is symmetric at one noise level has a symmetric score, and stays so.

A group here is cyclic, of the powers of one operation ``x → R x + t`` of the bare substrate modulo the superlattice: a
rotation, a mirror or a glide line. Atoms lie in general orbits, one atom for each operation, or on the fixed points of
the whole group, the axes of a rotation (an atom each at most) or mirror lines.
"""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import numpy as np
import spglib
from ase import Atoms

_TOLERANCE = 0.05  # Å


@dataclass(frozen=True)
class CyclicGroup:
    """Operations ``x → R x + t`` (k of them, the first is the identity) modulo the lattice of ``cell``.

    ``fixed`` are the points (f, 2), Å, that all leave where they are, or points on the lines of a mirror, whose
    direction ``line`` (2,) is; a rotation has none.
    """

    rotations: np.ndarray  # (k, 2, 2)
    translations: np.ndarray  # (k, 2) Å
    fixed: np.ndarray  # (f, 2) Å
    line: np.ndarray | None

    @property
    def order(self) -> int:
        return len(self.rotations)


@dataclass(frozen=True)
class Orbits:
    """How m overlayer atoms follow from a few: atom i lies at ``matrices[i] x[source[i]] + shifts[i]``.

    ``matrices`` (m, 3, 3) of an atom at a fixed point project on what its symmetry leaves free, and ``shifts`` (m, 3)
    in Å hold the rest.
    """

    source: np.ndarray  # (m,)
    matrices: np.ndarray  # (m, 3, 3)
    shifts: np.ndarray  # (m, 3) Å

    def place(self, points: np.ndarray) -> np.ndarray:
        """Positions (m, 3) that have the symmetry, from any (m, 3), Å."""
        return self.vectors(points) + self.shifts

    def vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (m, 3) that have the symmetry, from any (m, 3); of normal ones each is normal in its free space."""
        turned: np.ndarray = np.einsum("mij,mj->mi", self.matrices, vectors[self.source])
        return turned


def joined(parts: list[Orbits]) -> Orbits:
    """The orbits of several structures, one after the other."""
    before = np.cumsum([0, *(len(part.source) for part in parts[:-1])])
    return Orbits(
        np.concatenate([part.source + n for part, n in zip(parts, before, strict=True)]),
        np.concatenate([part.matrices for part in parts]),
        np.concatenate([part.shifts for part in parts]),
    )


def no_symmetry(n: int) -> Orbits:
    """Orbits of n atoms that all go their own way."""
    return Orbits(np.arange(n), np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3)))


def cyclic_groups(substrate: Atoms) -> dict[str, list[CyclicGroup]]:
    """The cyclic groups of a bare substrate in its cell by kind: ``2``, ``3``, ``4``, ``6`` or ``m`` (glides too)."""
    cell = substrate.cell.array[:2, :2]
    box = substrate.cell.array.copy()
    box[2] = [0.0, 0.0, np.ptp(substrate.positions[:, 2]) + 20.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib's own, on how it will report errors
        found = spglib.get_symmetry(
            (box, substrate.positions @ np.linalg.inv(box), substrate.get_tags()), symprec=_TOLERANCE
        )
    groups: dict[str, list[CyclicGroup]] = {}
    if found is None:
        return groups
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        upright = rotation[2].tolist() == [0, 0, 1] and not rotation[:2, 2].any()
        turn = cell.T @ rotation[:2, :2] @ np.linalg.inv(cell.T)
        if upright and np.abs(turn - np.eye(2)).max() > 0.1:
            group = _cyclic_group(turn, translation[:2] @ cell, cell)
            if group is not None:
                groups.setdefault("m" if group.line is not None else str(group.order), []).append(group)
    return groups


def _cyclic_group(rotation: np.ndarray, translation: np.ndarray, cell: np.ndarray) -> CyclicGroup | None:
    """The powers of an operation; none if the last of them is a translation by less than a lattice vector."""
    rotations, translations = [np.eye(2)], [np.zeros(2)]
    while True:
        turn, shift = rotation @ rotations[-1], rotation @ translations[-1] + translation
        if np.abs(turn - np.eye(2)).max() < 0.01:
            break
        rotations.append(turn)
        translations.append(shift)
    fractional = shift @ np.linalg.inv(cell)
    if np.linalg.norm((fractional - np.round(fractional)) @ cell) > _TOLERANCE:
        return None
    mirror = np.linalg.det(rotation) < 0
    fixed, line = _fixed_points(rotation, translation, cell, mirror)
    return CyclicGroup(np.array(rotations), np.array(translations), fixed, line)


def _fixed_points(
    rotation: np.ndarray, translation: np.ndarray, cell: np.ndarray, mirror: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (f, 2) with ``x − R x = t`` up to a lattice vector, and the direction of a mirror's lines."""
    steps = np.array(list(itertools.product(range(-2, 3), repeat=2))) @ cell
    targets = translation + steps
    line = None
    if mirror:
        line = np.linalg.eigh(rotation + rotation.T)[1][:, 1]  # eigenvalue 2 of R + Rᵀ
        points = targets[np.abs(targets @ line) < _TOLERANCE] / 2
    else:
        points = targets @ np.linalg.inv(np.eye(2) - rotation).T
    fractional = points @ np.linalg.inv(cell)
    inside = fractional - np.floor(fractional + 1e-6)
    first = np.unique(np.round(inside, 5), axis=0, return_index=True)[1]
    return inside[first] @ cell, line


def draw_orbits(counts: list[int], groups: dict[str, list[CyclicGroup]], rng: np.random.Generator) -> Orbits:
    """Orbits for so many atoms of each element, one element after the other, under a group drawn at random.

    First the kind of the group is drawn, then one of that kind, then how many atoms lie on its fixed points. Without
    groups, or where the numbers do not fit, there is no symmetry.
    """
    n = sum(counts)
    if not groups:
        return no_symmetry(n)
    kinds = sorted(groups)
    kind = kinds[rng.integers(len(kinds))]
    group = groups[kind][rng.integers(len(groups[kind]))]
    free = rng.permutation(len(group.fixed)).tolist()
    source: list[int] = []
    matrices: list[np.ndarray] = []
    shifts: list[list[float]] = []
    for count in counts:
        limit = len(free) if group.line is None else max(count // 2, count % 2) if len(free) else 0
        choices = range(count % group.order, min(count, limit) + 1, group.order)
        if not choices:
            return no_symmetry(n)
        n_fixed = choices[rng.integers(len(choices))]
        for _ in range((count - n_fixed) // group.order):
            source += group.order * [len(source)]
            matrices += [_upright(turn) for turn in group.rotations]
            shifts += [[*shift, 0.0] for shift in group.translations]
        for _ in range(n_fixed):
            point = group.fixed[rng.integers(len(group.fixed)) if group.line is not None else free.pop()]
            along = np.zeros((2, 2)) if group.line is None else np.outer(group.line, group.line)
            source.append(len(source))
            matrices.append(_upright(along))
            shifts.append([*(point - along @ point), 0.0])
    return Orbits(np.array(source), np.array(matrices), np.array(shifts))


def _upright(plane: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, :2] = plane
    return matrix

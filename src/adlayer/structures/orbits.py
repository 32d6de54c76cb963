"""Overlayers drawn with a symmetry of their substrate.

Structures of low energy are more symmetric than chance would have them, and a symmetric one has fewer degrees of
freedom to find: random search has long been done so (C. J. Pickard & R. J. Needs, J. Phys.: Condens. Matter 23, 053201,
2011). In diffusion it needs nothing but noise that keeps the symmetry: the network is equivariant, so a structure that
is symmetric at one noise level has a symmetric score, and stays so.

A group here is one of operations ``x → R x + t`` of the bare substrate modulo the superlattice, all with another R:
rotations about an axis, a mirror or a glide line, or both. Groups that a translation of the substrate carries into each
other give the same overlayers, one of them is kept. Atoms lie in general orbits, one atom for each operation, or on
what operations leave where it is: on mirror lines, as many as there is room for, or on axes, an atom at most on each.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import spglib
from ase import Atoms

_TOLERANCE = 0.05  # Å
_SOMEWHERE = 0.3183  # Å along a mirror line, where nothing else is symmetric
_NAMES = {1: "m", 2: "2mm", 3: "3m", 4: "4mm", 6: "6mm"}  # with reflections, by the number of rotations


@dataclass(frozen=True)
class Site:
    """Where atoms of a special orbit lie: at ``point`` (2,), Å, or on the line through it along ``line`` (2,).

    ``members`` are the operations that carry it to the atoms of its orbit, the identity first.
    """

    point: np.ndarray
    line: np.ndarray | None
    members: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Operations ``x → R x + t`` (k of them, the first is the identity) modulo the lattice, and its special sites."""

    rotations: np.ndarray  # (k, 2, 2)
    translations: np.ndarray  # (k, 2) Å
    axes: tuple[Site, ...]
    lines: tuple[Site, ...]

    @property
    def order(self) -> int:
        """Atoms of a general orbit."""
        return len(self.rotations)

    @property
    def on_line(self) -> int:
        """Atoms of an orbit on mirror lines."""
        return self.order // 2


@dataclass(frozen=True)
class Orbits:
    """How m overlayer atoms follow from a few: atom i lies at ``matrices[i] x[source[i]] + shifts[i]``.

    ``matrices`` (m, 3, 3) of an atom at a fixed point project on what its symmetry leaves free, and ``shifts`` (m, 3)
    in Å hold the rest.
    """

    source: np.ndarray  # (m,)
    matrices: np.ndarray  # (m, 3, 3)
    shifts: np.ndarray  # (m, 3) Å

    @cached_property
    def free(self) -> bool:
        """Whether all atoms go their own way."""
        own = np.array_equal(self.source, np.arange(len(self.source)))
        return own and bool((self.matrices == np.eye(3)).all())

    def place(self, points: np.ndarray) -> np.ndarray:
        """Positions (m, 3) that have the symmetry, from any (m, 3), Å."""
        return self.vectors(points) + self.shifts

    def vectors(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors (m, 3) that have the symmetry, from any (m, 3); of normal ones each is normal in its free space."""
        if self.free:
            return vectors
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


Operation = tuple[tuple[int, ...], int, int]
"""The matrix W of ``x → W x + w`` in fractional coordinates, by rows, and the number of its w, see :class:`_Space`."""
_IDENTITY = (1, 0, 0, 1)


class _Space:
    """The operations of a substrate modulo the superlattice, all upright, composed in exact arithmetic.

    Translations of all operations with one W differ by translations of the substrate, which are fractions with the
    number of (1×1) cells as their denominator: ``w = first[W] + (a, b)/cells``.
    """

    def __init__(self, substrate: Atoms) -> None:
        box = substrate.cell.array.copy()
        box[2] = [0.0, 0.0, np.ptp(substrate.positions[:, 2]) + 20.0]
        kinds = 200 * substrate.get_tags() + substrate.numbers  # atoms of another layer or element are of another kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # spglib's own, on how it will report errors
            found = spglib.get_symmetry((box, substrate.positions @ np.linalg.inv(box), kinds), symprec=_TOLERANCE)
        pairs = [] if found is None else zip(found["rotations"], found["translations"], strict=True)
        upright = [
            (tuple(int(x) for x in rotation[:2, :2].flat), translation[:2].tolist())
            for rotation, translation in pairs
            if rotation[2].tolist() == [0, 0, 1] and not rotation[:2, 2].any()
        ]
        self.cells = sum(matrix == _IDENTITY for matrix, _ in upright)
        self.first: dict[tuple[int, ...], list[float]] = {_IDENTITY: [0.0, 0.0]}
        for matrix, translation in upright:
            self.first.setdefault(matrix, translation)
        self.operations = [self.number(matrix, *translation) for matrix, translation in upright]

    def number(self, matrix: tuple[int, ...], x: float, y: float) -> Operation:
        """The operation of a matrix and a fractional translation."""
        x0, y0 = self.first[matrix]
        return matrix, round((x - x0) * self.cells) % self.cells, round((y - y0) * self.cells) % self.cells

    def translation(self, operation: Operation) -> tuple[float, float]:
        """Fractional translation."""
        matrix, a, b = operation
        x0, y0 = self.first[matrix]
        return x0 + a / self.cells, y0 + b / self.cells

    def product(self, second: Operation, first: Operation) -> Operation:
        """One operation after the other."""
        (p, q, r, s), (t, u, v, w) = second[0], first[0]
        (x, y), (x2, y2) = self.translation(first), self.translation(second)
        return self.number(
            (p * t + q * v, p * u + q * w, r * t + s * v, r * u + s * w), p * x + q * y + x2, r * x + s * y + y2
        )

    def closed(self, generators: Iterable[Operation]) -> frozenset[Operation] | None:
        """The group that operations generate; none if a translation by less than a lattice vector is among it."""
        identity: Operation = (_IDENTITY, 0, 0)
        group, fresh = {identity}, list(generators)
        while fresh:
            new = fresh.pop()
            if new in group:
                continue
            if new[0] == _IDENTITY:
                return None
            group.add(new)
            fresh += [self.product(new, old) for old in group] + [self.product(old, new) for old in group]
        return frozenset(group)

    def translated(self, group: frozenset[Operation]) -> set[frozenset[Operation]]:
        """The group moved by every translation τ of the substrate: ``w + (1 − W) τ``."""
        moved: set[frozenset[Operation]] = set()
        for _, a, b in (op for op in self.operations if op[0] == _IDENTITY):
            members: list[Operation] = []
            for (p, q, r, s), x, y in group:
                dx, dy = a - p * a - q * b, b - r * a - s * b
                members.append(((p, q, r, s), (x + dx) % self.cells, (y + dy) % self.cells))
            moved.add(frozenset(members))
        return moved


def symmetry_groups(substrate: Atoms) -> dict[str, list[Group]]:
    """The groups of a bare substrate in its cell by the name of their point group: ``3``, ``m`` (glides too), ``3m``, …

    Of groups that differ by a translation of the substrate there is one.
    """
    space = _Space(substrate)
    found: list[frozenset[Operation]] = []
    seen: set[frozenset[Operation]] = set()

    def add(generators: Iterable[Operation]) -> None:
        group = space.closed(generators)
        if group is not None and group not in seen:
            found.append(group)
            seen.update(space.translated(group))

    turns = [op for op in space.operations if op[0] != _IDENTITY]
    for turn in turns:
        add([turn])
    for group in [g for g in found if not any(map(_reflects, g))]:
        for turn in filter(_reflects, turns):
            add([*group, turn])
    groups: dict[str, list[Group]] = {}
    for members in found:
        n_rotations = sum(not _reflects(op) for op in members)
        name = str(n_rotations) if n_rotations == len(members) else _NAMES[n_rotations]
        groups.setdefault(name, []).append(_group(space, members, substrate.cell.array[:2, :2]))
    return groups


def _reflects(operation: Operation) -> bool:
    p, q, r, s = operation[0]
    return p * s - q * r < 0


def _group(space: _Space, members: frozenset[Operation], cell: np.ndarray) -> Group:
    """The group in Cartesian coordinates, with its axes and mirror lines."""
    ordered = sorted(members, key=lambda op: op[0] != _IDENTITY)
    matrices = np.array([op[0] for op in ordered], dtype=float).reshape(-1, 2, 2)
    rotations = cell.T @ matrices @ np.linalg.inv(cell.T)
    translations = np.array([space.translation(op) for op in ordered]) @ cell
    axes: list[Site] = []
    lines: list[Site] = []
    steps = np.array(list(itertools.product(range(-2, 3), repeat=2))) @ cell
    for turn, shift in zip(rotations[1:], translations[1:], strict=True):
        targets = shift + steps  # x − R x = t + L for fixed points x
        if np.linalg.det(turn) > 0:
            for point in targets @ np.linalg.inv(np.eye(2) - turn).T:
                images = rotations @ point + translations  # (k, 2)
                if not any(_whole(images - site.point, cell).any() for site in axes):
                    axes.append(Site(point, None, _distinct(images, cell)))
        else:
            line = np.linalg.eigh(turn + turn.T)[1][:, 1]  # eigenvalue 2 of R + Rᵀ
            for point in targets[np.abs(targets @ line) < _TOLERANCE] / 2:  # a glide has none
                images, directions = rotations @ point + translations, rotations @ line
                if not any(_same_line(site, images, directions, cell) for site in lines):
                    lines.append(Site(point, line, _distinct(images + _SOMEWHERE * directions, cell)))
    return Group(rotations, translations, tuple(axes), tuple(lines))


def _whole(vectors: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """(…,) bool: which vectors (…, 2) are lattice vectors."""
    fractional = vectors @ np.linalg.inv(cell)
    near: np.ndarray = np.linalg.norm((fractional - np.round(fractional)) @ cell, axis=-1) < _TOLERANCE
    return near


def _distinct(points: np.ndarray, cell: np.ndarray) -> tuple[int, ...]:
    """The first of each of the points (k, 2) that differ by more than a lattice vector."""
    same = _whole(points[:, None] - points[None, :], cell)  # (k, k)
    return tuple(k for k in range(len(points)) if not same[k, :k].any())


def _same_line(site: Site, points: np.ndarray, directions: np.ndarray, cell: np.ndarray) -> bool:
    """Whether a site's line is one of those through points (k, 2) along directions (k, 2), modulo the lattice."""
    assert site.line is not None
    across = np.array([-site.line[1], site.line[0]])
    spacing, rest = cell @ across  # lattice rows lie apart by what divides both
    while abs(rest) > _TOLERANCE:
        spacing, rest = rest, spacing - round(spacing / rest) * rest
    rows = (points - site.point) @ across / spacing  # (k,)
    parallel = np.abs(directions @ across) < 1e-3
    return bool((parallel & (np.abs(rows - np.round(rows)) * abs(spacing) < _TOLERANCE)).any())


def draw_orbits(counts: list[int], groups: dict[str, list[Group]], rng: np.random.Generator) -> Orbits:
    """Orbits for so many atoms of each element, one element after the other, under a group drawn at random.

    First the kind of the group is drawn, then one of that kind, then which axes and how many line sites hold atoms,
    every choice that leaves whole general orbits being as likely. Without groups, or where the numbers do not fit,
    there is no symmetry.
    """
    n = sum(counts)
    if not groups:
        return no_symmetry(n)
    kinds = sorted(groups)
    kind = kinds[rng.integers(len(kinds))]
    group = groups[kind][rng.integers(len(groups[kind]))]
    source: list[int] = []
    matrices: list[np.ndarray] = []
    shifts: list[np.ndarray] = []

    def add(members: Iterable[int], point: np.ndarray, free: np.ndarray) -> None:
        """An orbit of an atom that lies where ``free`` lets it, from ``point`` on."""
        first = len(source)
        for k in members:
            source.append(first)
            matrices.append(_upright(group.rotations[k] @ free))
            shifts.append(np.append(group.rotations[k] @ (point - free @ point) + group.translations[k], 0.0))

    taken: set[int] = set()
    for count in counts:
        choices = _choices(count, group, taken)
        if not choices:
            return no_symmetry(n)
        axes, n_lines = choices[rng.integers(len(choices))]
        taken.update(axes)
        in_general = count - sum(len(group.axes[a].members) for a in axes) - n_lines * group.on_line
        for _ in range(in_general // group.order):
            add(range(group.order), np.zeros(2), np.eye(2))
        for _ in range(n_lines):
            site = group.lines[rng.integers(len(group.lines))]
            assert site.line is not None
            add(site.members, site.point, np.outer(site.line, site.line))
        for a in axes:
            add(group.axes[a].members, group.axes[a].point, np.zeros((2, 2)))
    return Orbits(np.array(source), np.array(matrices), np.array(shifts))


def _choices(count: int, group: Group, taken: set[int]) -> list[tuple[tuple[int, ...], int]]:
    """Which free axes, and how many orbits on lines, leave whole general orbits of so many atoms."""
    free = [a for a in range(len(group.axes)) if a not in taken]
    choices = []
    for axes in itertools.chain.from_iterable(itertools.combinations(free, k) for k in range(len(free) + 1)):
        left = count - sum(len(group.axes[a].members) for a in axes)
        for n_lines in range(left // group.on_line + 1 if group.lines else 1):
            rest = left - n_lines * group.on_line
            if rest >= 0 and rest % group.order == 0:
                choices.append((axes, n_lines))
    return choices


def _upright(plane: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, :2] = plane
    return matrix

"""Random overlayers: the starting points of random structure search.

Atoms are placed one after another, uniformly in the cell times the confinement window; a place closer to an atom
than ``min_distance`` times the sum of the two covalent radii is drawn again (Pickard & Needs, J. Phys.: Condens. Matter
23, 053201 (2011)).
"""

from __future__ import annotations

import itertools
import re

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii

from adlayer.errors import UserError

_DENSEST = 0.64  # part of the volume that spheres fill which are packed at random


def parse_formula(formula: str) -> dict[str, int]:
    """Counts of each element, in the order written.

    >>> parse_formula("Ag12O6")
    {'Ag': 12, 'O': 6}
    """
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", formula)
    if not parts or "".join(s + n for s, n in parts) != formula.strip():
        raise UserError(f'formula "{formula}" is not understood: write it like "Ag12O6"')
    counts: dict[str, int] = {}
    for symbol, number in parts:
        if symbol not in atomic_numbers or symbol == "X":
            raise UserError(f'formula "{formula}" names an unknown element "{symbol}": use chemical symbols')
        counts[symbol] = counts.get(symbol, 0) + int(number or 1)
    counts = {s: n for s, n in counts.items() if n > 0}
    if not counts:
        raise UserError(f'formula "{formula}" holds no atoms: write it like "Ag12O6"')
    return counts


def write_formula(counts: dict[str, int]) -> str:
    """The formula text, such as ``"Ag12O6"``, with the number left out where it is one.

    >>> write_formula({"Ag": 4, "O": 1})
    'Ag4O'
    """
    return "".join(f"{s}{n if n > 1 else ''}" for s, n in counts.items() if n)


def expand_range(text: str) -> list[str]:
    """All formulas of a range such as ``"Ag3-6 O1-4"``.

    >>> expand_range("Ag3-4 O1-2")
    ['Ag3O', 'Ag3O2', 'Ag4O', 'Ag4O2']
    """
    choices = []
    for part in text.split():
        match = re.fullmatch(r"([A-Z][a-z]?)(\d+)(?:-(\d+))?", part)
        if match is None:
            raise UserError(f'range "{text}" is not understood at "{part}": write it like "Ag3-6 O1-4"')
        low, high = int(match[2]), int(match[3] or match[2])
        if high < low:
            raise UserError(f'range "{part}" runs backwards: write the smaller number first')
        choices.append([(match[1], n) for n in range(low, high + 1)])
    formulas = [
        write_formula(parse_formula("".join(f"{s}{n}" for s, n in c)))
        for c in itertools.product(*choices)
        if any(n for _, n in c)
    ]
    if not formulas:
        raise UserError(f'range "{text}" holds no formula: write it like "Ag3-6 O1-4"')
    return formulas


def overlayer_formula(atoms: Atoms) -> str:
    """Formula of the overlayer (tag 0), heavy elements first, so that oxides read ``AgO``."""
    numbers, counts = np.unique(atoms.numbers[atoms.get_tags() == 0], return_counts=True)
    return write_formula(
        {chemical_symbols[z]: int(n) for z, n in sorted(zip(numbers, counts, strict=True), reverse=True)}
    )


def _images(cell: np.ndarray, reach: float) -> np.ndarray:
    """(n, 2) lattice vectors (Å) needed to see every in-plane image within ``reach`` of an atom in the same cell."""
    heights = abs(np.linalg.det(cell)) / np.linalg.norm(cell[::-1], axis=1)
    span = np.ceil(reach / heights).astype(int) + 1
    steps = np.stack(np.meshgrid(*(np.arange(-s, s + 1) for s in span), indexing="ij"), -1).reshape(-1, 2)
    return steps @ cell


def closest_contact(atoms: Atoms) -> tuple[int, int, float] | None:
    """The pair of atoms with the smallest distance over the sum of covalent radii, and that ratio.

    Periodic images count. ``None`` if no pair of atoms lies within 4 Å.
    """
    from ase.neighborlist import neighbor_list

    i, j, d = neighbor_list("ijd", atoms, 4.0)
    if len(d) == 0:
        return None
    ratio = d / (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
    k = int(np.argmin(ratio))
    return int(min(i[k], j[k])), int(max(i[k], j[k])), float(ratio[k])


def has_room(substrate: Atoms, counts: dict[str, int], min_distance: float) -> bool:
    """Whether so many atoms can be that far apart in the window, judged by the volume of spheres alone.

    What passes may still not fit. ``counts`` of each element; the other arguments as for :func:`place_overlayer`.
    """
    low, high = substrate.info["confinement"]
    radii = {symbol: min_distance * covalent_radii[atomic_numbers[symbol]] for symbol in counts}
    filled = sum(n * 4.0 / 3.0 * np.pi * radii[symbol] ** 3 for symbol, n in counts.items())
    area = abs(float(np.linalg.det(substrate.cell[:2, :2])))
    return bool(filled <= _DENSEST * area * (high - low + 2.0 * max(radii.values())))


def place_overlayer(
    substrate: Atoms,
    formula: str,
    rng: np.random.Generator,
    *,
    min_distance: float = 0.7,
    attempts: int = 200,
) -> Atoms:
    """A random overlayer on the substrate.

    Parameters
    ----------
    substrate
        With tags and ``info["confinement"]``; not changed.
    formula
        Of the overlayer, such as ``"Ag4O2"``.
    rng
        The structure's own random stream.
    min_distance
        Smallest allowed distance as a fraction of the sum of covalent radii.
    attempts
        Tries for one atom before all start again; after as many restarts the search gives up.

    Returns
    -------
    ase.Atoms
        Substrate first, then the overlayer (tag 0), constraints and info kept.

    Raises
    ------
    UserError
        If the atoms do not fit into the window at this distance.
    """
    counts = parse_formula(formula)
    if not min_distance >= 0.0:
        raise UserError(f"min_distance is {min_distance:g}: give a fraction of covalent radii such as 0.7")
    symbols = [s for s, n in counts.items() for _ in range(n)]
    radii = covalent_radii[[atomic_numbers[s] for s in symbols]]
    fixed_radii = covalent_radii[substrate.numbers]
    cell = np.asarray(substrate.cell[:2, :2])
    low, high = substrate.info["confinement"]
    images = _images(cell, 2 * min_distance * max(radii.max(), fixed_radii.max()))
    images = np.concatenate([images, np.zeros((len(images), 1))], axis=1)

    def try_once() -> np.ndarray | None:
        positions, known_radii = substrate.positions, fixed_radii
        for k in rng.permutation(len(symbols)):
            for _ in range(attempts):
                place = np.append(rng.random(2) @ cell, rng.uniform(low, high))
                gaps = np.linalg.norm(positions[:, None] + images[None] - place, axis=-1).min(axis=1)
                own = np.linalg.norm(images, axis=-1)
                own_fits = np.all(own[own > 0] >= 2 * min_distance * radii[k])
                if own_fits and np.all(gaps >= min_distance * (known_radii + radii[k])):
                    break
            else:
                return None
            positions = np.vstack([positions, place])
            known_radii = np.append(known_radii, radii[k])
            placed[k] = place
        return placed

    placed = np.empty((len(symbols), 3))
    for _ in range(attempts if has_room(substrate, counts, min_distance) else 0):
        if (found := try_once()) is not None:
            overlayer = Atoms(symbols, found, tags=0)
            structure = substrate + overlayer
            structure.info = dict(substrate.info)
            return structure
    raise UserError(
        f"{formula} does not fit between z = {low:g} and {high:g} Å at min_distance {min_distance:g}: "
        "widen the window, enlarge the cell or lower min_distance"
    )

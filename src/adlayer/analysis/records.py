"""What a structure carries with it: its energy, its coverage, the keys of its row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from adlayer.analysis.registry import ideal_substrate


def potential_energy(atoms: Atoms) -> float | None:
    """Energy stored with the structure, eV; ``None`` if there is none (nothing is calculated)."""
    if atoms.calc is None:
        return None
    energy = atoms.calc.get_property("energy", atoms, allow_calculation=False)
    return None if energy is None else float(energy)


def coverage(atoms: Atoms) -> dict[str, float]:
    """Overlayer atoms of each element per (1×1) cell of the substrate, ML, elements from light to heavy.

    The (1×1) cell is the smallest that the substrate shows.
    """
    n_cells = ideal_substrate(atoms).n_cells
    numbers, counts = np.unique(atoms.numbers[atoms.get_tags() == 0], return_counts=True)
    return {chemical_symbols[z]: float(k / n_cells) for z, k in zip(numbers, counts, strict=True)}


def row_values(structures: Sequence[Atoms], key: str) -> np.ndarray:
    """Values (m,) of a row key over the structures that have it."""
    rows = [atoms.info.get("row", {}) for atoms in structures]
    return np.array([row[key] for row in rows if row.get(key) is not None], dtype=float)

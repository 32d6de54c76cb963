"""Small structures for the network's tests: irregular, on an oblique cell, so that no symmetry holds by accident."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import Atoms

collect_ignore = ["make_schnetpack_reference.py"]  # needs SchNetPack

OBLIQUE = ((6.1, 0.4), (2.3, 5.2))


def _slab(seed: int = 0, cell: tuple[tuple[float, float], ...] = OBLIQUE, overlayer: str = "Ag2O3") -> Atoms:
    """Four substrate atoms in two irregular layers and an overlayer, no two atoms closer than 1.6 Å."""
    rng = np.random.default_rng(seed)
    box = np.diag([0.0, 0.0, 25.0])
    box[:2, :2] = cell
    atoms = Atoms("Ag4" + overlayer, cell=box, pbc=[True, True, False])
    atoms.set_tags([2, 2, 1, 1] + [0] * (len(atoms) - 4))
    heights = {2: (5.0, 5.4), 1: (7.1, 7.6), 0: (8.4, 11.8)}
    for i, tag in enumerate(atoms.get_tags()):
        while True:
            atoms.positions[i, :2] = rng.random(2) @ box[:2, :2]
            atoms.positions[i, 2] = rng.uniform(*heights[int(tag)])
            if i == 0 or atoms.get_distances(i, list(range(i)), mic=True).min() > 1.6:
                break
    atoms.info["confinement"] = [8.2, 12.5]
    return atoms


@pytest.fixture
def slab() -> Callable[..., Atoms]:
    return _slab

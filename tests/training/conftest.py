"""A small made-up database: silver oxides on Ag(111) p(2x2), energies linear in the composition plus a known excess."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer.network.model import Architecture
from adlayer.structures.placement import parse_formula, place_overlayer
from adlayer.structures.store import connect, rows_in_order, write_row
from adlayer.structures.substrate import build_substrate
from adlayer.training.dataset import Dataset, Selection, build_dataset

PER_ATOM = {"Ag": -2.5, "O": -4.25}  # eV
TINY = Architecture(
    features=8,
    interactions=1,
    n_radial=6,
    cutoff=4.0,
    force_features=8,
    force_interactions=1,
    force_n_radial=6,
    force_cutoff=4.0,
)


@dataclass(frozen=True)
class Path3:
    """A relaxation path of three points."""

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray


class MadeUp:
    """A database that is filled row by row."""

    def __init__(self, path: Path) -> None:
        self.database = connect(path)
        self.substrate = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.16, window=(1.0, 4.0))
        self.n = 0

    def add(
        self,
        formula: str,
        above: float = 0.0,
        *,
        shift: float = 0.05,
        calculator: str = "made-up",
        parameters: dict[str, Any] | None = None,
        converged: bool = True,
        largest_force: float = 1.0,
    ) -> Path3:
        """A random overlayer whose path ends ``above`` the lowest energy of its composition; the top layer moves."""
        rng = np.random.default_rng(self.n)
        atoms: Atoms = place_overlayer(self.substrate, formula, rng, min_distance=0.5)
        tags = atoms.get_tags()
        end = atoms.positions + 0.1 * rng.standard_normal((len(atoms), 3)) * (tags == 0)[:, None]
        end[np.flatnonzero(tags == 1)[0], 0] += shift
        energy = sum(PER_ATOM[s] for s in atoms.get_chemical_symbols()) + above
        path = Path3(
            np.stack([atoms.positions, 0.5 * (atoms.positions + end), end]),
            np.array([energy + 0.4, energy + 0.1, energy]),
            np.stack([np.full((len(atoms), 3), f) for f in (largest_force, 0.3, 0.0)]),
        )
        atoms.positions = end
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=path.forces[-1])
        atoms.calc.name = calculator
        atoms.calc.parameters = parameters or {}
        keys = {"stage": "search", "overlayer": formula, "seed": 0, "sample": self.n, "converged": converged}
        write_row(self.database, atoms, keys, path)
        self.n += 1
        return path

    def dataset(self, selection: Selection | None = None, **arguments: Any) -> Dataset:
        return build_dataset(rows_in_order(self.database), selection or Selection(), **arguments)


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    return MadeUp(tmp_path / "made-up.db")


@pytest.fixture
def dataset(made_up: MadeUp) -> Dataset:
    for formula in ("Ag2O", "AgO2", "Ag2O2"):
        assert parse_formula(formula)
        for k in range(3):
            made_up.add(formula, 0.2 * k)
    return made_up.dataset(validation=0.2)


@pytest.fixture
def tiny() -> Architecture:
    return TINY

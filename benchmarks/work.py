"""The work that is measured, the same for ours and the peer: networks, structures, how often.

A structure is a random overlayer on Ag(111), the state in which sampling starts. Networks are untrained: the cost of
PaiNN does not depend on its weights. Everything is written to a folder as plain files, which both sides read.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

LATTICE = 4.167  # Å
WINDOW = (1.0, 6.0)  # Å above the top layer


@dataclass(frozen=True)
class Network:
    """Size of both networks, AGeDi's defaults."""

    features: int = 64
    interactions: int = 4
    n_radial: int = 30
    cutoff: float = 6.0


@dataclass(frozen=True)
class Work:
    """One thing to time. ``steps`` for one measurement; ``target``: ours over the peer's, at most.

    With ``base_steps`` sampling is timed with so few steps too, so that what is done once can be taken off.
    """

    name: str
    kind: str  # "sample" or "train"
    cell: str
    formula: str
    batch: int  # structures at once
    steps: int
    force_field: bool  # guidance by forces, or training of the force field too
    target: float
    device: str = "cpu"
    base_steps: int = 0


WORKS = {
    work.name: work
    for work in (
        Work("sampling", "sample", "p(4x4)", "Ag12O6", 16, 20, False, 1 / 8),
        Work("sampling_guided", "sample", "p(4x4)", "Ag12O6", 16, 10, True, 1 / 8),
        Work("train_denoiser", "train", "p(3x3)", "Ag6O4", 32, 3, False, 1 / 4),
        Work("train_force_field", "train", "p(3x3)", "Ag6O4", 32, 3, True, 1 / 4),
    )
}


def bare(cell: str) -> Atoms:
    """The substrate of two layers."""
    return build_substrate("Ag(111)", cell, layers=2, fixed_layers=2, lattice=LATTICE, window=WINDOW)


def structures(work: Work, n: int, seed: int = 0) -> list[Atoms]:
    """Random structures of the work, with made-up energies (eV) and forces (eV/Å) to train on."""
    made = []
    for k in range(n):
        rng = np.random.default_rng([seed, k])
        atoms = place_overlayer(bare(work.cell), work.formula, rng)
        energy, forces = -2.5 * len(atoms) + rng.normal(), rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        made.append(atoms)
    return made


def write_work(work: Work, folder: Path) -> None:
    """Write ``work.json``, ``substrate.extxyz`` and ``structures.extxyz``."""
    write(folder / "substrate.extxyz", bare(work.cell))
    made = structures(work, 2 * work.batch if work.kind == "train" else 1)  # sampling makes its own
    write(folder / "structures.extxyz", made)
    content = asdict(work) | {"network": asdict(Network()), "window": list(made[0].info["confinement"])}
    (folder / "work.json").write_text(json.dumps(content, indent=1))

"""Local relaxation of one structure with any ASE calculator, its path recorded.

The optimizer is that of :mod:`adlayer.energies.batched`, with one structure in the batch: from random starts it needs
fewer than half the force calls of ASE's BFGS (``benchmarks/optimizer.py``). The path holds forces of *all* atoms,
those under ``FixAtoms`` too: it is what a force field learns from.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator, CalculatorSetupError, InputError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from torch import Tensor

from adlayer.energies.batched import RelaxState, relaxing
from adlayer.errors import UserError
from adlayer.structures.placement import closest_contact
from adlayer.structures.substrate import fixed_mask

COLLAPSED = 0.5


@dataclass(frozen=True)
class Path:
    """Frames of a relaxation: ``positions`` (T, N, 3) Å, ``energies`` (T,) eV, full ``forces`` (T, N, 3) eV/Å."""

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    def thin(self, frames: int) -> Path:
        """At most ``frames`` of the path, first and last kept, evenly spaced in energy change plus displacement."""
        if len(self.energies) <= frames:
            return self
        moved = np.linalg.norm(np.diff(self.positions, axis=0), axis=-1).max(axis=1)
        measure = np.abs(np.diff(self.energies))
        length = np.concatenate([[0.0], np.cumsum(measure / max(measure.sum(), 1e-9) + moved / max(moved.sum(), 1e-9))])
        keep = np.unique(np.searchsorted(length, np.linspace(0.0, length[-1], frames)).clip(0, len(length) - 1))
        return Path(self.positions[keep], self.energies[keep], self.forces[keep])


@dataclass(frozen=True)
class Relaxation:
    """Outcome of a relaxation. ``atoms`` carries the final energy and forces in a ``SinglePointCalculator``."""

    atoms: Atoms
    energy: float  # eV
    fmax: float  # eV/Å, largest force on a free atom
    n_steps: int
    n_force_calls: int
    converged: bool
    cpu_s: float  # processor time of this process
    path: Path


def check_criterion(fmax: float) -> None:
    """Raise :class:`UserError` if no relaxation can end at such forces, eV/Å."""
    if not (math.isfinite(fmax) and fmax > 0):
        raise UserError(f"fmax is {fmax:g} eV/Å: give a positive force such as 0.05")


def _check_treats(atoms: Atoms, name: str) -> None:
    """Raise :class:`UserError` if the calculator or we refuse the structure; the calculator keeps the result."""
    other = {type(c).__name__ for c in atoms.constraints if not isinstance(c, FixAtoms)}
    if other:
        raise UserError(
            f"{atoms.get_chemical_formula()} is under {', '.join(sorted(other))}, which relaxation does not know: "
            "fix whole atoms with FixAtoms"
        )
    try:
        atoms.get_forces()
    except (NotImplementedError, CalculatorSetupError, InputError) as error:
        raise UserError(
            f"calculator {name} cannot treat {atoms.get_chemical_formula()} ({error}): choose another calculator"
        ) from error


def _collapsed(atoms: Atoms) -> bool:
    """Whether two atoms lie closer than :data:`COLLAPSED` times the sum of their covalent radii."""
    contact = closest_contact(atoms)
    return contact is not None and contact[2] < COLLAPSED


def _frame(state: RelaxState) -> tuple[np.ndarray, float, np.ndarray]:
    """Positions, energy and forces of a batch of one."""
    return state.positions.numpy(), float(state.energies[0]), state.forces.numpy()


def relax(
    atoms: Atoms,
    calculator: BaseCalculator,
    *,
    fmax: float = 0.05,
    max_steps: int = 300,
    identity: dict[str, str] | None = None,
) -> Relaxation:
    """Relax a structure with L-BFGS until the largest force on a free atom is below ``fmax``.

    Parameters
    ----------
    atoms
        The start; not changed. ``FixAtoms`` is respected.
    calculator
        Any ASE calculator with energies and forces.
    fmax, max_steps
        Criterion in eV/Å, and the number of steps after which to give up.
    identity
        The backend's record (see :func:`adlayer.energies.calculators.identify`), stored with the energy.

    Returns
    -------
    Relaxation
        ``converged`` is false if the steps ran out, energies ceased to be finite, or atoms fell into each other
        (potentials have holes at distances that they never learned).

    Raises
    ------
    UserError
        If the calculator cannot treat the structure, such as an element it does not know, or a constraint is none of
        ``FixAtoms``.
    """
    start = time.process_time()
    work = atoms.copy()
    work.calc = calculator
    _check_treats(work, (identity or {}).get("name", type(calculator).__name__))

    n_force_calls = 0

    def energy_and_forces(positions: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal n_force_calls
        n_force_calls += 1
        work.positions = positions.numpy()
        forces = work.get_forces(apply_constraint=False)
        return torch.tensor([work.get_potential_energy()], dtype=torch.float64), torch.from_numpy(forces).double()

    one, fixed = torch.zeros(len(work), dtype=torch.long), torch.from_numpy(fixed_mask(work))
    frames: list[tuple[np.ndarray, float, np.ndarray]] = []
    for state in relaxing(energy_and_forces, torch.from_numpy(work.get_positions()), one, fixed, fmax, max_steps):
        if not frames or not bool(state.failed):
            frames.append(_frame(state))
    path = Path(*(np.array(column) for column in zip(*frames, strict=True)))
    energy = float(path.energies[-1])
    final = atoms.copy()
    final.positions = path.positions[-1]
    final.calc = SinglePointCalculator(final, energy=energy, forces=path.forces[-1])
    final.calc.name = (identity or {}).get("name", "unknown")
    final.calc.parameters.update({k: v for k, v in (identity or {}).items() if k != "name"})
    free = final.get_forces()  # zero on fixed atoms
    return Relaxation(
        atoms=final,
        energy=energy,
        fmax=float(np.linalg.norm(free, axis=1).max()),
        n_steps=len(frames) - 1,
        n_force_calls=n_force_calls,
        converged=bool(state.converged) and not _collapsed(final),
        cpu_s=time.process_time() - start,
        path=path,
    )

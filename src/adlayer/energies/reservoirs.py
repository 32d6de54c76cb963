"""Energies of references (bulk crystals, molecules, bare slabs) with a named calculator, kept in a database.

A crystal is relaxed with its cell (ASE's ``FrechetCellFilter``), a molecule and a slab with theirs as it is. The
database is asked first: a row counts only if the structure, the calculator, its version and its settings agree.
"""

from __future__ import annotations

from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import atomic_numbers, reference_states
from ase.db.core import Database
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from adlayer.energies.calculators import identify, make_calculator
from adlayer.energies.relaxation import relax
from adlayer.errors import UserError
from adlayer.structures.store import row_atoms, task_fingerprint, write_row
from adlayer.structures.substrate import fixed_mask

FMAX = 0.01  # eV/Å
_MAX_STEPS = 300
_VACUUM = 6.0  # Å round a molecule


def reservoir(element: str) -> Atoms:
    """The pure element as it is found: a molecule (periodic in no direction) or a crystal.

    Raises
    ------
    UserError
        If it is neither diatomic nor of a crystal structure that ASE builds.
    """
    state = dict(reference_states[atomic_numbers[element]] or {})
    if state.get("symmetry") == "diatom":
        return molecule(f"{element}2", vacuum=_VACUUM)
    try:
        return bulk(element)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise UserError(f"there is no simple crystal of {element}: give its energy as {element}=eV per atom") from error


def _relax_crystal(atoms: Atoms, calculator: BaseCalculator, identity: dict[str, str]) -> tuple[Atoms, bool]:
    work = atoms.copy()
    work.calc = calculator
    try:
        optimizer = BFGS(FrechetCellFilter(work), logfile=None)  # type: ignore[arg-type]
        converged = optimizer.run(fmax=FMAX, steps=_MAX_STEPS)
    except (PropertyNotImplementedError, NotImplementedError) as error:
        raise UserError(
            f"calculator {identity['name']} cannot relax crystalline {atoms.get_chemical_formula()} ({error}): "
            "give the energies per atom instead"
        ) from error
    final = work.copy()
    final.calc = SinglePointCalculator(final, energy=float(work.get_potential_energy()), forces=work.get_forces())
    final.calc.name = identity["name"]
    final.calc.parameters.update({k: v for k, v in identity.items() if k != "name"})
    return final, bool(converged)


def reference_energy(atoms: Atoms, calculator: str, database: Database) -> float:
    """Energy (eV) of a relaxed reference, from the database or computed and written to it.

    Parameters
    ----------
    atoms
        Start; one that is periodic in all directions is relaxed with its cell. ``FixAtoms`` is respected.
    calculator
        Specification of the backend.
    database
        Where references are kept.

    Raises
    ------
    UserError
        If the backend cannot treat it, or it does not converge.
    """
    identity = identify(calculator)
    fixed = fixed_mask(atoms).nonzero()[0].tolist()
    task = task_fingerprint(atoms, "reference", identity, fixed, FMAX)
    for row in database.select(task=task):
        return float(row_atoms(row).get_potential_energy())
    if atoms.pbc.all():
        final, converged = _relax_crystal(atoms, make_calculator(calculator), identity)
    else:
        result = relax(atoms, make_calculator(calculator), fmax=FMAX, max_steps=_MAX_STEPS, identity=identity)
        final, converged = result.atoms, result.converged
    if not converged:
        raise UserError(
            f"the reference {atoms.get_chemical_formula()} does not relax with {identity['name']}: "
            "take another calculator or give the energies per atom"
        )
    final.info = {}  # whatever came with a file
    write_row(database, final, {"stage": "reference", "task": task, "converged": True})
    return float(final.get_potential_energy())

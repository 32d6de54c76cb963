"""Local relaxation of many structures over worker processes, as a resumable job.

Rows are written as relaxations finish; a run finds what is left to do by the fingerprints (``task``) of the rows
already there. A structure that stands several times in the input is relaxed as often, so output matches input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ase import Atoms
from ase.db.core import Database

from adlayer.energies.calculators import identify, make_calculator
from adlayer.energies.relaxation import Relaxation, check_criterion, relax
from adlayer.energies.workers import run_jobs, worker_pool
from adlayer.progress import Progress, silent
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.store import backend_record, row_atoms, task_fingerprint, write_row
from adlayer.structures.substrate import fixed_mask

PATH_FRAMES = 20
_KEPT = ("seed", "sample", "model")  # keys that a relaxed row takes over from its parent


@dataclass(frozen=True)
class _Start:
    """One structure to relax; ``index`` is its place in the input."""

    index: int
    atoms: Atoms
    calculator: str
    fmax: float
    max_steps: int


def relax_with(specification: str, atoms: Atoms, fmax: float, max_steps: int) -> Relaxation:
    """Relax a structure with the backend of a specification; arguments as for :func:`relax`."""
    calculator, identity = make_calculator(specification), identify(specification)
    return relax(atoms, calculator, fmax=fmax, max_steps=max_steps, identity=identity)


def spent(result: Relaxation) -> dict[str, Any]:
    """The keys of a row that say what its relaxation took."""
    return {
        "n_force_calls": result.n_force_calls,
        "n_steps": result.n_steps,
        "converged": result.converged,
        "cpu_s": round(result.cpu_s, 3),
    }


def _relax_start(job: _Start) -> Relaxation:
    return relax_with(job.calculator, job.atoms, job.fmax, job.max_steps)


def _row_keys(start: Atoms, index: int, result: Relaxation) -> dict[str, Any]:
    """Keys of a relaxed row; ``parent`` is the id of the row it came from, or its place in a file."""
    row = start.info.get("row", {})
    return {
        **{key: row[key] for key in _KEPT if key in row},
        "stage": "relaxed",
        "overlayer": overlayer_formula(start),
        **spent(result),
        "parent": row.get("id", index),
    }


def relax_structures(
    structures: Sequence[Atoms],
    calculator: str,
    *,
    fmax: float = 0.05,
    max_steps: int = 300,
    workers: int | None = None,
    executor_url: str | None = None,
    progress: Progress = silent,
    on_result: Callable[[int, Atoms, Relaxation], None] = lambda index, atoms, relaxation: None,
) -> list[Atoms]:
    """Relax structures in parallel.

    Parameters
    ----------
    structures
        The starts; not changed. ``FixAtoms`` is respected.
    calculator
        Specification of the backend.
    fmax, max_steps
        Criterion in eV/Å; steps after which to give up.
    workers, executor_url
        See :func:`adlayer.energies.workers.worker_pool`.
    progress
        Called with the number of structures done and the total.
    on_result
        Called as each relaxation finishes with its place in the input, the relaxed structure and the relaxation.

    Returns
    -------
    list of ase.Atoms
        In the order of the input, with energy and forces, ``info`` kept, and in ``info["row"]`` the keys of a relaxed
        row (see :mod:`adlayer.structures.store`) and the record of the backend as ``calculator``.

    Raises
    ------
    UserError
        If the backend is unusable.
    """
    check_criterion(fmax)
    identity = identify(calculator)
    relaxed: dict[int, Atoms] = {}
    progress(0, len(structures))
    if len(structures) == 0:
        return []
    jobs = [_Start(k, atoms, calculator, fmax, max_steps) for k, atoms in enumerate(map(_bare, structures))]
    with worker_pool(workers, executor_url) as (pool, count):
        for job, result in run_jobs(_relax_start, jobs, pool, 2 * count):
            atoms = result.atoms
            atoms.info = dict(structures[job.index].info)
            atoms.info["row"] = {
                **_row_keys(structures[job.index], job.index, result),
                "calculator": backend_record(identity),
            }
            relaxed[job.index] = atoms
            on_result(job.index, atoms, result)
            progress(len(relaxed), len(jobs))
    return [relaxed[k] for k in range(len(jobs))]


def relax_into_database(
    structures: Sequence[Atoms],
    database: Database,
    calculator: str,
    *,
    fmax: float = 0.05,
    max_steps: int = 300,
    workers: int | None = None,
    executor_url: str | None = None,
    progress: Progress = silent,
) -> list[Atoms]:
    """Relax those structures that the database does not hold yet, and write them to it as they finish.

    Arguments and errors as in :func:`relax_structures`.

    Returns
    -------
    list of ase.Atoms
        All of them, in the order of the input, as the database holds them.
    """
    tasks = _tasks(structures, calculator, fmax, max_steps)
    done = {row.get("task") for row in database.select("stage=relaxed", include_data=False)}
    todo = [k for k, task in enumerate(tasks) if task not in done]
    total, before = len(tasks), len(tasks) - len(todo)

    def write(number: int, atoms: Atoms, result: Relaxation) -> None:
        index = todo[number]
        keys = {**_row_keys(structures[index], index, result), "task": tasks[index]}
        plain = atoms.copy()
        plain.calc = atoms.calc
        plain.info.pop("row")  # it stands in the keys
        write_row(database, plain, keys, result.path.thin(PATH_FRAMES))

    relax_structures(
        [structures[k] for k in todo],
        calculator,
        fmax=fmax,
        max_steps=max_steps,
        workers=workers,
        executor_url=executor_url,
        progress=lambda finished, _: progress(before + finished, total),
        on_result=write,
    )
    rows = {row.get("task"): row for row in database.select("stage=relaxed")}
    return [row_atoms(rows[task]) for task in tasks]


def _bare(atoms: Atoms) -> Atoms:
    """The structure without calculator and info: what travels to a worker."""
    bare = atoms.copy()
    bare.info = {}
    return bare


def _tasks(structures: Sequence[Atoms], calculator: str, fmax: float, max_steps: int) -> list[str]:
    """Fingerprints (one for each structure, all different)."""
    identity = identify(calculator)
    seen: Counter[str] = Counter()
    tasks = []
    for atoms in structures:
        fixed = fixed_mask(atoms).nonzero()[0].tolist()
        settings = ("relax", fixed, identity, fmax, max_steps)
        once = task_fingerprint(atoms, *settings)
        tasks.append(task_fingerprint(atoms, *settings, seen[once]))
        seen[once] += 1
    return tasks

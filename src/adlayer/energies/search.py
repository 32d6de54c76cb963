"""Random structure search as a resumable job (Pickard & Needs, J. Phys.: Condens. Matter 23, 053201 (2011)).

Each sample has its own random stream, keyed by the seed, the formula and its number; rows are written as relaxations
finish, and a run finds what is left to do by the fingerprints (``task``) of the rows already there.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.db.core import Database

from adlayer.energies.calculators import identify
from adlayer.energies.relaxation import Relaxation, check_criterion
from adlayer.energies.relaxing import PATH_FRAMES, relax_with, spent
from adlayer.energies.workers import run_jobs, worker_pool
from adlayer.progress import Progress, silent
from adlayer.structures.placement import parse_formula, place_overlayer, write_formula
from adlayer.structures.store import task_fingerprint, write_row
from adlayer.structures.substrate import check_substrate


@dataclass(frozen=True)
class Sample:
    """One random structure to relax."""

    substrate: Atoms
    formula: str
    seed: int
    sample: int
    calculator: str
    fmax: float
    max_steps: int
    min_distance: float
    task: str


@dataclass(frozen=True)
class SearchSummary:
    """What a search has in the database: ``n`` rows of its own, how many converged, force calls spent on them."""

    n: int
    n_converged: int
    n_force_calls: int
    lowest: dict[str, float]  # eV, by formula
    tasks: tuple[str, ...]  # of its rows


def sample_rng(seed: int, formula: str, sample: int) -> np.random.Generator:
    """The random stream of one sample."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(zlib.crc32(formula.encode()), sample)))


def _relax_sample(job: Sample) -> Relaxation:
    start = place_overlayer(
        job.substrate, job.formula, sample_rng(job.seed, job.formula, job.sample), min_distance=job.min_distance
    )
    return relax_with(job.calculator, start, job.fmax, job.max_steps)


def search(
    substrate: Atoms,
    formulas: Sequence[str],
    n: int,
    database: Database,
    *,
    calculator: str = "sevennet",
    seed: int = 0,
    fmax: float = 0.05,
    max_steps: int = 300,
    min_distance: float = 0.7,
    workers: int | None = None,
    executor_url: str | None = None,
    progress: Progress = silent,
) -> SearchSummary:
    """Relax ``n`` random structures of each formula and write them to the database.

    Parameters
    ----------
    substrate
        With tags, ``FixAtoms`` and ``info["confinement"]``.
    formulas
        Of the overlayer; samples of all formulas are interleaved, so that an interrupted search is balanced.
    n
        Structures of each formula.
    database
        Open ASE database; rows of this very search that are there already are not computed again.
    calculator
        Specification of the backend.
    seed, fmax, max_steps, min_distance
        Random seed; relaxation criterion in eV/Å; steps; smallest distance in covalent radii.
    workers, executor_url
        See :func:`adlayer.energies.workers.worker_pool`.
    progress
        Called with the number of samples done and the total.

    Raises
    ------
    UserError
        If the substrate, a formula or the backend is unusable.
    """
    check_substrate(substrate)
    check_criterion(fmax)
    formulas = [write_formula(parse_formula(f)) for f in formulas]
    identity = identify(calculator)
    for formula in formulas:  # fails before any work if it cannot fit
        place_overlayer(substrate, formula, sample_rng(seed, formula, 0), min_distance=min_distance)
    jobs = [
        Sample(
            substrate, formula, seed, k, calculator, fmax, max_steps, min_distance,
            task_fingerprint(substrate, formula, seed, k, identity, fmax, max_steps, min_distance),
        )
        for k in range(n)
        for formula in dict.fromkeys(formulas)
    ]  # fmt: skip
    tasks = {job.task for job in jobs}
    done = {row.get("task") for row in database.select("stage=search", include_data=False)} & tasks
    todo = [job for job in jobs if job.task not in done]
    progress(len(done), len(jobs))
    if todo:
        with worker_pool(workers, executor_url) as (pool, count):
            for finished, (job, result) in enumerate(run_jobs(_relax_sample, todo, pool, 2 * count), start=1):
                keys = {
                    "stage": "search", "overlayer": job.formula, "seed": job.seed, "sample": job.sample,
                    **spent(result), "task": job.task,
                }  # fmt: skip
                write_row(database, result.atoms, keys, result.path.thin(PATH_FRAMES))
                progress(len(done) + finished, len(jobs))
    rows = [row for row in database.select("stage=search", include_data=False) if row.get("task") in tasks]
    lowest: dict[str, float] = {}
    for row in rows:
        if row.converged:
            lowest[row.overlayer] = min(row.energy, lowest.get(row.overlayer, np.inf))
    n_converged, n_force_calls = sum(bool(r.converged) for r in rows), sum(r.n_force_calls for r in rows)
    return SearchSummary(len(rows), n_converged, n_force_calls, lowest, tuple(tasks))

"""The stage that samples networks: ``generate``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.core import Database

from adlayer.energies.workers import default_workers, run_jobs, worker_pool
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.store import (
    check_structure_file,
    output_database,
    row_atoms,
    task_fingerprint,
    write_row,
    write_structures,
)
from adlayer.study.stages import check_layers


def sampling_settings(preset: str = "default", **changes: Any) -> Any:
    """The sampling settings of a preset with changes; ``energy=None`` is one, and asks for no energy.

    Raises
    ------
    UserError
        For an unknown preset.
    """
    from adlayer.diffusion.sampling import PRESETS

    if preset not in PRESETS:
        raise UserError(f'preset "{preset}" is unknown: choose one of {", ".join(PRESETS)}')
    return replace(PRESETS[preset], **changes)


def given(**options: Any) -> dict[str, Any]:
    """Those options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def read_substrate(path: str) -> Atoms:
    """A substrate from a structure file; an overlayer in it is taken off."""
    from adlayer.structures.store import read_structures

    atoms = read_structures(path)[0]
    bare = atoms[atoms.get_tags() >= 1]
    if len(bare) == 0:
        bare = atoms.copy()  # let the check say what is wrong
    bare.info = {
        k: v for k, v in atoms.info.items() if k not in ("row", "name", "reference_energy", "reference_energy_source")
    }
    bare.calc = None
    return bare


def _frames(substrate: Atoms, symbols: list[str], samples: list[list[np.ndarray]]) -> list[Atoms]:
    """The reverse process of each sample as structures, one after the other."""
    frames = []
    for number, sample in enumerate(samples):
        for step, positions in enumerate(sample):
            atoms = substrate + Atoms(symbols, positions, tags=0)
            atoms.info = {**substrate.info, "sample": number, "step": step}
            frames.append(atoms)
    return frames


@dataclass(frozen=True)
class _Block:
    """Consecutive samples to generate together."""

    model: str  # file
    fingerprint: str  # of what is in it
    substrate: Atoms
    formula: str
    first: int
    last: int  # exclusive
    seed: int
    sampling: Any
    film: bool
    device: str


@dataclass(frozen=True)
class _Made:
    """What a block gave: structures, evaluations of both networks, CPU time, and the process of each sample."""

    structures: list[Atoms]
    network_calls: int
    force_calls: int
    cpu: float  # s
    film: list[list[np.ndarray]]


@lru_cache(maxsize=1)
def _model(path: str, fingerprint: str, device: str) -> Any:
    """The model in a file with this fingerprint, loaded once."""
    from adlayer.network.device import find_device
    from adlayer.training.checkpoint import load_model

    return load_model(path, find_device(device))


def _make(block: _Block) -> _Made:
    """Generate a block, on one thread: the bits then do not depend on the number of workers."""
    import torch

    from adlayer.diffusion.generation import generate

    film: list[list[np.ndarray]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    try:
        made = generate(
            _model(block.model, block.fingerprint, block.device),
            block.substrate,
            formula=block.formula,
            n=block.last,
            skip=block.first,
            block=block.last - block.first,
            seed=block.seed,
            settings=block.sampling,
            trajectory=film if block.film else None,
        )
    finally:
        torch.set_num_threads(threads)
    return _Made(made.structures, made.n_network_calls, made.n_force_calls, time.process_time() - start, film)


def _run_blocks(blocks: list[_Block], workers: int | None) -> Iterator[tuple[_Block, _Made]]:
    """Each block with what it gave, as they finish; a single block or worker, or a GPU, needs no other process."""
    count = min(len(blocks), default_workers() if workers is None else workers)
    if count <= 1 or blocks[0].device != "cpu":
        yield from ((block, _make(block)) for block in blocks)
        return
    with worker_pool(count) as (pool, in_flight):
        yield from run_jobs(_make, blocks, pool, in_flight)


def generate_into(
    database: Database,
    model_path: str,
    substrate: Atoms,
    *,
    formula: str,
    n: int,
    seed: int = 0,
    sampling: Any = None,
    trajectory: str | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Generate into a database, block by block over worker processes; blocks that are there already are not made again.

    On ``cuda`` blocks are larger and made one after the other in this process, whatever ``workers``.

    Parameters
    ----------
    database
        Open, to be written to.
    model_path, substrate
        Model file; structure without overlayer.
    formula, n, seed
        See :func:`adlayer.diffusion.generation.generate`.
    sampling
        See :func:`sampling_settings`; by default those of the preset ``default``.
    trajectory
        File for the reverse process; all blocks are then made anew.
    workers, device
        Processes; ``cpu`` or ``cuda``.
    progress
        Called with the number of structures done and the total.

    Returns
    -------
    dict
        ``n``, ``formula``, ``model`` (its fingerprint), ``n_network_calls``, ``n_force_calls`` (0),
        ``n_learned_force_calls``, ``cpu_s``, and under ``structures`` the samples as ``Atoms`` in order.

    Raises
    ------
    UserError
        If the model, the request or the device is unusable.
    """
    from adlayer.diffusion.generation import block_size, check_request
    from adlayer.diffusion.sampling import Sampling
    from adlayer.structures.placement import parse_formula
    from adlayer.training.checkpoint import model_hash

    sampling = sampling or Sampling()
    fingerprint = model_hash(model_path)
    model = _model(model_path, fingerprint, device)
    formula = check_request(model, substrate, formula, n, sampling)
    if trajectory is not None:
        check_structure_file(trajectory)
    tasks = [task_fingerprint(substrate, fingerprint, formula, asdict(sampling), seed, k) for k in range(n)]
    present = {row.get("task") for row in database.select("stage=generated", include_data=False)}
    n_atoms = len(substrate) + sum(parse_formula(formula).values())
    film, size = trajectory is not None, block_size(model.device, n_atoms)
    blocks = [
        _Block(model_path, fingerprint, substrate, formula, first, min(first + size, n), seed, sampling, film, device)
        for first in range(0, n, size)
        if film or not present.issuperset(tasks[first : first + size])
    ]
    done = n - sum(b.last - b.first for b in blocks)
    progress(done, n)
    network_calls = force_calls = 0
    cpu = 0.0
    films: dict[int, list[list[np.ndarray]]] = {}
    for block, made in _run_blocks(blocks, workers):
        share = round(made.cpu / len(made.structures), 3)
        for number, atoms in enumerate(made.structures, start=block.first):
            row = atoms.info.pop("row")
            if tasks[number] not in present:
                spent = {"n_steps": 0, "n_force_calls": 0, "cpu_s": share}
                write_row(database, atoms, {**row, "model": fingerprint, "task": tasks[number], **spent})
        films[block.first] = made.film
        network_calls, force_calls, cpu = (
            network_calls + made.network_calls,
            force_calls + made.force_calls,
            cpu + made.cpu,
        )
        done += len(made.structures)
        progress(done, n)
    if trajectory is not None:
        symbols = [s for s, count in parse_formula(formula).items() for _ in range(count)]
        write_structures(trajectory, _frames(substrate, symbols, [f for first in sorted(films) for f in films[first]]))
    wanted = set(tasks)
    rows = {row.get("task"): row for row in database.select("stage=generated") if row.get("task") in wanted}
    return {
        "n": n,
        "formula": formula,
        "model": fingerprint,
        "n_network_calls": network_calls,
        "n_force_calls": 0,
        "n_learned_force_calls": force_calls,
        "cpu_s": round(cpu, 2),
        "structures": [row_atoms(rows[task]) for task in tasks],
    }


def generate_to(
    model: str, substrate: str, output: str, *, trajectory: str | None = None, **arguments: Any
) -> dict[str, Any]:
    """Generate into a structure file or database, see :func:`generate_into`; adds ``outputs``."""
    files = [Path(name).resolve() for name in (output, trajectory, substrate, model) if name is not None]
    if len(set(files)) < len(files):
        raise UserError(f"output {output} or the trajectory is one of the other files: give names of their own")
    bare = read_substrate(substrate)
    check_layers(substrate, [bare])
    database, hidden = output_database(output)
    try:
        result = generate_into(database, model, bare, trajectory=trajectory, **arguments)
    except UserError:
        if hidden is not None and not database.count():
            hidden.unlink()
        raise
    if hidden is not None:
        write_structures(output, result["structures"])
        hidden.unlink()
    result["outputs"] = [output] + ([trajectory] if trajectory else [])
    return result


def generate(
    model: Any,
    substrate: Any,
    *,
    formula: str,
    n: int,
    seed: int = 0,
    preset: str = "default",
    device: str | None = None,
    **changes: Any,
) -> list[Atoms]:
    """New structures of a formula on a substrate, in memory.

    Parameters
    ----------
    model
        Model file, or a model loaded by :func:`adlayer.training.checkpoint.load_model`.
    substrate
        Structure or file; an overlayer in a file is taken off.
    formula, n, seed
        See :func:`adlayer.diffusion.generation.generate`.
    preset, changes
        ``default``, ``fast`` or ``paper``, and fields of :class:`adlayer.diffusion.sampling.Sampling` to change.
    device
        ``cpu`` or ``cuda``, to which a loaded model is moved; by default ``cpu`` for a file, and a model stays where it
        is.
    """
    from adlayer.diffusion import generation
    from adlayer.network.device import find_device
    from adlayer.training.checkpoint import load_model

    where = None if device is None else find_device(device)
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if where is not None:
        model = model.to(where)
    if isinstance(substrate, str | os.PathLike):
        substrate = read_substrate(str(substrate))
    settings = sampling_settings(preset, **changes)
    return generation.generate(model, substrate, formula=formula, n=n, seed=seed, settings=settings).structures

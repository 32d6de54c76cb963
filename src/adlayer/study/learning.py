"""The stages that use networks: ``train`` and ``generate``."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.core import Database

from adlayer.energies.workers import default_workers, run_jobs, worker_pool
from adlayer.errors import UserError
from adlayer.structures.store import (
    check_writable,
    connect,
    output_database,
    replacing,
    row_atoms,
    rows_in_order,
    task_fingerprint,
    write_row,
    write_structures,
)

Progress = Callable[[int, int], None]
BLOCK = 4  # structures generated together, by one worker
NEW_RATE, START_RATE = 1e-3, 3e-4  # learning rates of a new model, and of one that goes on from another


def read_seconds(text: str) -> float:
    """Seconds of a time such as ``"90"``, ``"90s"``, ``"30m"``, ``"1h"``.

    >>> read_seconds("1.5h")
    5400.0
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        seconds = float(number) * units[unit]
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise UserError(f'time "{text}" is not understood: write it like "90s", "30m" or "1h"')
    return seconds


def read_repeats(text: str) -> tuple[tuple[int, int], ...]:
    """Repetitions such as ``"1x1,1x1,2x1,1x2"``: one is drawn for each structure, so that what stands twice comes
    twice as often.

    >>> read_repeats("1x1,2x1")
    ((1, 1), (2, 1))
    """
    try:
        pairs = tuple((int(n), int(m)) for n, m in (p.strip().split("x") for p in text.split(",")))
    except ValueError:
        pairs = ()
    if not pairs or min(min(p) for p in pairs) < 1:
        raise UserError(f'repetition "{text}" is not understood: write it like "1x1,2x1,1x2"')
    return pairs


def _metrics_text(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _read_metrics(path: Path, up_to: int) -> list[dict[str, Any]]:
    """Metrics of the training that goes on, up to the step it goes on from."""
    if not path.is_file():
        return []
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"] <= up_to]


def train(
    database: str,
    output: str,
    *,
    select: str = "",
    repeat: str = "1x1,1x1,2x1,1x2",
    steps: int | None = None,
    time: str | None = None,
    resume: bool = False,
    start: str | None = None,
    seed: int = 0,
    batch: int = 32,
    every: float = 60.0,
    progress: Callable[[int, float, float], None] = lambda step, fraction, loss: None,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train denoiser and force field on a database; writes the model, ``STEM.metrics.csv`` and ``STEM.loss.png``.

    Arguments as for the verb ``train``; ``every`` is the time between saved states in seconds. A training interrupted
    at any moment goes on with ``resume`` from the last of them.

    Raises
    ------
    UserError
        For unusable data, options or files, and a state of another training.
    """
    import torch

    from adlayer.network.model import Architecture, Model
    from adlayer.report.figures import loss_curve
    from adlayer.training import trainer
    from adlayer.training.checkpoint import (
        load_model,
        load_state,
        model_hash,
        save_model,
        save_state,
        state_path,
    )
    from adlayer.training.dataset import build_dataset, parse_selection
    from adlayer.training.trainer import Report, Settings, describe, state_key

    if steps is None and time is None:
        steps = 10_000
    settings = Settings(
        steps=steps,
        seconds=None if time is None else read_seconds(time),
        repeats=read_repeats(repeat),
        seed=seed,
        batch=batch,
        learning_rate=NEW_RATE if start is None else START_RATE,
    )
    begin_with = None if start is None else load_model(start)
    selection = parse_selection(select)
    check_writable(output)
    dataset = build_dataset(rows_in_order(connect(database, must_exist=True)), selection, seed=seed)
    message(describe(dataset))
    target = Path(output)
    saved = state_path(target)
    metrics_path, curve_path = target.with_suffix(".metrics.csv"), target.with_suffix(".loss.png")
    state = None
    if resume:
        state = load_state(saved)
        if state.settings != state_key(settings, dataset):
            raise UserError(
                f"training state {saved} belongs to other data or settings: repeat those, or start without --resume"
            )
    metrics = _read_metrics(metrics_path, state.step) if state is not None else []

    def keep(model: Model, report: Report) -> None:
        metrics.append({f.name: round(float(getattr(report, f.name)), 6) for f in fields(report)})
        save_model(target, model)
        with replacing(metrics_path) as partial:
            partial.write_text(_metrics_text(metrics))
        message(
            f"step {report.step}: score loss {report.score_loss:.3f}, held out {report.validation_score:.3f}; "
            f"energy {1000 * report.validation_energy:.1f} meV/atom, force {1000 * report.validation_force:.0f} meV/Å"
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the two networks have a thread each
    try:
        model = trainer.train(
            dataset, Architecture(), settings, start=begin_with, state=state, every=every, on_report=keep,
            on_state=lambda state: save_state(saved, state), progress=progress,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    loss_curve(metrics).savefig(curve_path, dpi=150)
    saved.unlink(missing_ok=True)
    return {
        "n_structures": model.card.n_structures,
        "n_steps": model.card.n_steps,
        "validation_loss": model.card.validation["score_loss"],
        "validation": model.card.validation,
        "n_force_calls": 0,
        "model": model_hash(target),
        "outputs": [str(target), str(metrics_path), str(curve_path)],
    }


def sampling_settings(preset: str = "default", **changes: Any) -> Any:
    """The sampling settings of a preset with the given (not ``None``) changes.

    Raises
    ------
    UserError
        For an unknown preset.
    """
    from adlayer.diffusion.generation import PRESETS

    if preset not in PRESETS:
        raise UserError(f'preset "{preset}" is unknown: choose one of {", ".join(PRESETS)}')
    return replace(PRESETS[preset], **{k: v for k, v in changes.items() if v is not None})


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

    model: str
    substrate: Atoms
    formula: str
    first: int
    last: int  # exclusive
    seed: int
    sampling: Any
    film: bool


@dataclass(frozen=True)
class _Made:
    """What a block gave: structures, evaluations of both networks, CPU time, and the process of each sample."""

    structures: list[Atoms]
    network_calls: int
    force_calls: int
    cpu: float  # s
    film: list[list[np.ndarray]]


@lru_cache(maxsize=1)
def _model(path: str) -> Any:
    from adlayer.training.checkpoint import load_model

    return load_model(path)


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
            _model(block.model),
            block.substrate,
            formula=block.formula,
            n=block.last,
            skip=block.first,
            block=BLOCK,
            seed=block.seed,
            settings=block.sampling,
            trajectory=film if block.film else None,
        )
    finally:
        torch.set_num_threads(threads)
    return _Made(made.structures, made.n_network_calls, made.n_force_calls, time.process_time() - start, film)


def _run_blocks(blocks: list[_Block], workers: int | None) -> Iterator[tuple[_Block, _Made]]:
    """Each block with what it gave, as they finish; a single block or worker needs no other process."""
    count = min(len(blocks), default_workers() if workers is None else workers)
    if count <= 1:
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
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Generate into a database, block by block over worker processes; blocks that are there already are not made again.

    Returns the verb's numbers and, under ``structures``, the samples as ``Atoms`` in order.
    """
    from adlayer.diffusion.generation import Sampling, check_request
    from adlayer.structures.placement import parse_formula
    from adlayer.training.checkpoint import model_hash

    sampling = sampling or Sampling()
    formula = check_request(_model(model_path), substrate, formula, n, sampling)
    fingerprint = model_hash(model_path)
    if trajectory is not None:
        check_writable(trajectory)
    tasks = [task_fingerprint(substrate, fingerprint, formula, asdict(sampling), seed, k) for k in range(n)]
    present = {row.get("task") for row in database.select("stage=generated", include_data=False)}
    blocks = [
        _Block(model_path, substrate, formula, first, min(first + BLOCK, n), seed, sampling, trajectory is not None)
        for first in range(0, n, BLOCK)
        if trajectory is not None or not present.issuperset(tasks[first : first + BLOCK])
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
    database, hidden = output_database(output)
    result = generate_into(database, model, read_substrate(substrate), trajectory=trajectory, **arguments)
    if hidden is not None:
        write_structures(output, result["structures"])
        hidden.unlink()
    result["outputs"] = [output] + ([trajectory] if trajectory else [])
    return result


def generate(
    model: Any, substrate: Any, *, formula: str, n: int, seed: int = 0, preset: str = "default", **changes: Any
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
        ``default`` or ``paper``, and fields of :class:`adlayer.diffusion.generation.Sampling` to change.
    """
    from adlayer.diffusion import generation
    from adlayer.training.checkpoint import load_model

    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    if isinstance(substrate, str | os.PathLike):
        substrate = read_substrate(str(substrate))
    settings = sampling_settings(preset, **changes)
    return generation.generate(model, substrate, formula=formula, n=n, seed=seed, settings=settings).structures

"""The stage that makes networks: ``train``."""

from __future__ import annotations

import contextlib
import csv
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from adlayer.errors import UserError
from adlayer.progress import Progress
from adlayer.structures.store import check_writable, connect, is_database, rows_in_order, write_csv

StepProgress = Callable[[int, float, float], None]
"""Called with a step's number, the fraction done and the loss."""
TRAINING_STEPS = 10_000  # unless steps or time are given
NEW_RATE, START_RATE = 1e-3, 3e-4  # learning rates of a new model, and of one that goes on from another


def in_steps(progress: Progress, steps: int | None, time: str | None) -> StepProgress:
    """Progress in steps where their number is known, else in percent; arguments as for :func:`train`."""
    total = TRAINING_STEPS if steps is None and time is None else steps
    return lambda step, fraction, loss: progress(round(100 * fraction), 100) if total is None else progress(step, total)


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


def _read_metrics(path: Path, up_to: int) -> list[dict[str, Any]]:
    """Metrics of the training that goes on, up to the step it goes on from."""
    if not path.is_file():
        return []
    with path.open() as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    return [row for row in rows if row["step"] <= up_to]


@contextlib.contextmanager
def _interrupts_between_steps(progress: StepProgress) -> Iterator[StepProgress]:
    """A progress function that raises the first interrupt that has come, so that it never falls into a step.

    A second one falls where it falls.
    """
    if threading.current_thread() is not threading.main_thread():  # it hears of none
        yield progress
        return
    asked: list[int] = []
    known = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in known.items() if callable(handler)}  # which would raise

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        restore()

    def told(step: int, fraction: float, loss: float) -> None:
        progress(step, fraction, loss)
        if asked:
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, ask)
    try:
        yield told
    finally:
        restore()


def train(
    database: str,
    output: str,
    *,
    rows: str = "",
    select: str = "",
    repeat: str = "1x1,1x1,2x1,1x2",
    steps: int | None = None,
    time: str | None = None,
    resume: bool = False,
    start: str | None = None,
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
    every: float = 60.0,
    progress: StepProgress = lambda step, fraction, loss: None,
    message: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train denoiser and force field on a database; writes the model, ``STEM.metrics.csv`` and ``STEM.loss.png``.

    Arguments as for the verb ``train``, and ``rows``, which rows of the database there are at all (ASE's syntax);
    ``device`` is ``cpu`` or ``cuda``; ``every`` is the time between saved states in seconds. A training interrupted at
    any moment goes on from the last of them when it is called again; with ``resume`` it must.

    Returns
    -------
    dict
        ``n_structures``, ``n_steps``, ``validation_loss`` (of the denoiser), ``validation`` (best scores),
        ``n_force_calls`` (0), ``model`` (its fingerprint) and ``outputs``.

    Raises
    ------
    UserError
        For unusable data, options or files, and a state of another training.
    """
    import torch

    from adlayer.network.device import find_device
    from adlayer.network.model import Architecture, Model
    from adlayer.report.figures import loss_curve
    from adlayer.report.pictures import save_picture
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
    from adlayer.training.settings import Settings
    from adlayer.training.trainer import Report, describe, state_key

    where = find_device(device)
    if steps is None and time is None:
        steps = TRAINING_STEPS
    settings = Settings(
        steps=steps,
        seconds=None if time is None else read_seconds(time),
        repeats=read_repeats(repeat),
        seed=seed,
        batch=batch,
        learning_rate=NEW_RATE if start is None else START_RATE,
        start=None if start is None else model_hash(start),
    )
    begin_with = None if start is None else load_model(start)
    selection = parse_selection(select)
    if is_database(output):
        raise UserError(f"output {output} has the name of a database: give that of a model, such as model.safetensors")
    check_writable(output)
    dataset = build_dataset(rows_in_order(connect(database, must_exist=True), rows), selection, seed=seed)
    message(describe(dataset))
    target = Path(output)
    saved = state_path(target)
    metrics_path, curve_path = target.with_suffix(".metrics.csv"), target.with_suffix(".loss.png")
    state = None
    if resume or saved.is_file():
        state = load_state(saved)
        if state.settings == state_key(settings, dataset):
            message(f"goes on at step {state.step}, where it was interrupted")
        elif resume:
            raise UserError(
                f"training state {saved} belongs to other data or settings: repeat those, or start without --resume"
            )
        else:
            message(f"begins anew: {saved} belongs to other data or settings")
            state = None
    metrics = _read_metrics(metrics_path, state.step) if state is not None else []

    def keep(model: Model, report: Report) -> None:
        metrics.append({f.name: round(float(getattr(report, f.name)), 6) for f in fields(report)})
        save_model(target, model)
        write_csv(metrics_path, metrics[0], [row.values() for row in metrics])
        message(
            f"step {report.step}: score loss {report.score_loss:.3f}, validation {report.validation_score:.3f}; "
            f"energy {1000 * report.validation_energy:.1f} meV/atom, force {1000 * report.validation_force:.0f} meV/Å"
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the two networks have a thread each
    try:
        with _interrupts_between_steps(progress) as told:
            model = trainer.train(
                dataset, Architecture(), settings, start=begin_with, state=state, device=where, every=every,
                on_report=keep, on_state=lambda state: save_state(saved, state), progress=told,
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    save_picture(loss_curve(metrics), curve_path, dpi=150)
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

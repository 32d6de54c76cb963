"""Gradients of a step's losses in the parameters of both networks.

A batch is drawn whole and worked on in blocks, larger ones on an accelerator: they change rounding alone.
"""

from __future__ import annotations

import gc
import multiprocessing
import warnings
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor

import numpy as np
import torch
from torch import Tensor

from adlayer.diffusion.kernels import Kernel
from adlayer.energies.workers import default_workers, processes_of, start_worker
from adlayer.network.model import Model
from adlayer.training.dataset import Dataset
from adlayer.training.drawing import blocks, draw, draw_frames, draw_sigma
from adlayer.training.filling import Packed, Preparation
from adlayer.training.graphs import Graphs, Inputs
from adlayer.training.losses import ENERGY_UNIT, FORCE_UNIT, collate, denoising_loss, force_field_errors, huber
from adlayer.training.settings import Settings

_WORKERS, _AHEAD = 2, 4  # processes that prepare, and steps
_PATIENCE = 60.0  # s, until they answer

Loss = float | Tensor  # without dimensions
_preparation: Preparation | None = None  # of a worker process


def denoiser_gradients(model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, step: int) -> float:
    """Accumulate the gradients of one batch for the denoiser, a block of structures at a time."""
    if not settings.batch:
        return 0.0
    drawn, total = draw(dataset, model.card, settings, step), 0.0
    parts, n_mobile = blocks(drawn.examples, model.device), len(drawn.normals)
    sizes = [len(part) for part in parts]
    windows = np.split(drawn.windows, np.cumsum(sizes)[:-1])
    given = [x.to(model.device).split(sizes) for x in (drawn.conditions, drawn.levels)]
    noise = drawn.normals.to(model.device).split([sum(e.n_mobile for e in part) for part in parts])
    for part, walls, conditions, level, normal in zip(parts, windows, *given, noise, strict=True):
        batch = collate(part, walls, model.device)
        sigma = draw_sigma(level, batch, settings)
        loss = denoising_loss(model, kernel, batch, sigma, conditions, normal) * (len(normal) / n_mobile)
        loss.backward()
        total += float(loss.detach())
    return total


def force_field_gradients(model: Model, dataset: Dataset, settings: Settings, step: int) -> float:
    """Accumulate the gradients of one batch of frames for the force field, a block at a time."""
    if not (settings.force_batch and dataset.frames):
        return 0.0
    frames = draw_frames(dataset, settings, step)
    n_components, total = 3 * sum(len(f.numbers) for f in frames), 0.0
    for part in blocks(frames, model.device):
        energy, force = force_field_errors(model, part)
        loss = huber(energy, ENERGY_UNIT) / len(frames) + huber(force, FORCE_UNIT) / n_components
        loss.backward()
        total += float(loss.detach())
    return total


class Networks:
    """Adds the gradients of a step to those of both networks, zeros before; each has a thread: they share nothing."""

    behind = 0
    """Steps that may be under way when another begins: losses of the last ones are not known yet."""

    def __init__(self, model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, helper: Executor) -> None:
        self.model, self.dataset, self.kernel, self.settings = model, dataset, kernel, settings
        self.helper = helper

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        waiting = self.helper.submit(self._force_field, step)
        return self._denoiser(step), waiting.result()

    def close(self) -> None:
        """Nothing is wanted any more."""

    def _denoiser(self, step: int) -> float:
        return denoiser_gradients(self.model, self.dataset, self.kernel, self.settings, step)

    def _force_field(self, step: int) -> float:
        return force_field_gradients(self.model, self.dataset, self.settings, step)


class NetworksOnGpu(Networks):
    """The same with graphs, side by side, while what they are given in the next steps is prepared.

    Worker processes draw it, which would keep the interpreter from launching what there is to do; a thread takes it to
    the device. Nothing here waits for the device: losses are known when they are asked for.
    """

    behind = 1

    def __init__(
        self, model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, helper: Executor,
        workers: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, dataset, kernel, settings, helper)
        baseline = torch.zeros(119, dtype=torch.float64)
        baseline[torch.tensor(model.card.numbers)] = model.force_field.baseline.cpu()
        self.preparation = Preparation(dataset, model.card, settings, kernel, baseline, model.device)
        if workers is None:
            workers = min(_WORKERS, default_workers() - 1) if model.device.type == "cuda" else 0
        self._pool = _forked(self.preparation, workers)
        self._drawn: dict[int, Future[tuple[Packed | None, Packed | None]]] = {}  # by step
        self._ahead: dict[int, Future[tuple[Inputs | None, Inputs | None]]] = {}
        self._given: list[tuple[Inputs | None, Inputs | None]] = []  # kept while steps are under way
        self.graphs = Graphs(model, kernel)

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        examples, frames = self._ahead[step].result() if step in self._ahead else self._prepared(step)
        self._given = [*self._given[-self.behind :], (examples, frames)]
        score = self._denoiser(step) if examples is None else self.graphs.denoiser(examples)
        force = self._force_field(step) if frames is None else self.graphs.force_field(frames)
        self._ahead = {step + 1: self.helper.submit(self._prepared, step + 1)}
        self.graphs.denoiser.join()
        self.graphs.force_field.join()
        return score, force

    def close(self) -> None:
        """End the workers."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)

    def _prepared(self, step: int) -> tuple[Inputs | None, Inputs | None]:
        """What the graphs are given; nothing where a network is not trained, or its batch too large for one block."""
        examples, frames = self._draw(step)
        return (
            None if examples is None else self.graphs.inputs(self.model.denoiser, examples),
            None if frames is None else self.graphs.inputs(self.model.force_field, frames),
        )

    def _draw(self, step: int) -> tuple[Packed | None, Packed | None]:
        """By a worker, who goes on with later steps; here, if there is none or one was killed."""
        pool = self._pool
        if pool is None:
            return self.preparation(step)
        try:
            for later in range(step, step + _AHEAD):
                if later not in self._drawn:
                    self._drawn[later] = pool.submit(_prepare, later)
            return self._drawn.pop(step).result()
        except BrokenExecutor:
            warnings.warn("training goes on without worker processes: one was killed", stacklevel=2)
            self._pool = None
            _end(pool)
            return self.preparation(step)


def _forked(preparation: Preparation, workers: int) -> ProcessPoolExecutor | None:
    """Processes that have the data already and touch no device, forked at once; nothing where they cannot be had."""
    global _preparation
    pool = None
    _preparation = preparation
    try:
        with warnings.catch_warnings():  # there may be threads: none of ours, none that holds what is needed
            warnings.simplefilter("ignore", DeprecationWarning)
            if workers:
                context = multiprocessing.get_context("fork")
                pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
                pool.submit(int).result(_PATIENCE)
    except (BrokenExecutor, TimeoutError, OSError, ValueError, ImportError):
        if pool is not None:
            _end(pool)
        pool = None
    finally:
        _preparation = None  # the workers have theirs
    return pool


def _end(pool: ProcessPoolExecutor) -> None:
    """Kill the workers of a pool, whatever they wait for."""
    for process in processes_of(pool):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def _start() -> None:
    start_worker()
    torch.set_num_threads(1)
    gc.disable()  # nothing of the parent's is freed here


def _prepare(step: int) -> tuple[Packed | None, Packed | None]:
    assert _preparation is not None
    return _preparation(step)

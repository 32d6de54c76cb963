"""Training of denoiser and force field together.

Every step draws its own random stream from the seed and its number, so that a resumed training takes the steps that
an uninterrupted one would have taken. Weights are averaged exponentially (EMA); what is validated and saved is the
average.

- Denoiser: score matching over all noise levels (:mod:`adlayer.diffusion.objective`), structures repeated in the
  plane, windows drawn at random around the data (the network shall know any wall), conditions dropped at random.
- Force field: energies and forces of frames (:mod:`adlayer.training.losses`).

A batch is drawn whole and worked on in blocks, larger ones on an accelerator: they change rounding alone.

On few structures the denoiser overfits while the force field still learns: each network is kept as it was at its own
best validation.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from adlayer import compiled
from adlayer.diffusion.kernels import ExactKernel, Kernel, PaperKernel
from adlayer.diffusion.schedule import LinearBeta, log_uniform_sigma, sigma_max_for
from adlayer.errors import UserError
from adlayer.network.graph import Batch
from adlayer.network.model import Architecture, Card, Model, composition_fractions
from adlayer.training.checkpoint import TrainingState
from adlayer.training.dataset import Dataset, Example, Frame, composition_baseline
from adlayer.training.graphs import Graphs, Inputs
from adlayer.training.losses import (
    ENERGY_UNIT,
    FORCE_UNIT,
    collate,
    denoising_loss,
    force_field_errors,
    force_field_loss,
    huber,
)

VALIDATION_SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # Å
Item = TypeVar("Item", Example, Frame)
Loss = float | Tensor  # without dimensions
BLOCK_ATOMS = 1000  # that are worked on at once, where there are more than one structure
DEVICE_BLOCK_ATOMS = 20_000  # the same on an accelerator
_LONGEST_GRADIENT = 5.0  # of a network's parameters together


@dataclass(frozen=True)
class Settings:
    """How to train; ``steps`` or ``seconds`` ends it, whichever is given.

    ``batch`` structures for the denoiser and ``force_batch`` frames for the force field make a step; a network with 0
    is not trained.
    """

    steps: int | None = None
    seconds: float | None = None
    batch: int = 32
    force_batch: int = 8
    learning_rate: float = 1e-3
    warmup: int = 100
    average: float = 0.999
    weight_decay: float = 1e-2
    validate_every: int = 250  # steps
    repeats: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (2, 1), (1, 2))
    drop_conditions: float = 0.3
    sigma_min: float = 0.02  # Å
    kernel: str = "exact"
    seed: int = 0


@dataclass(frozen=True)
class Report:
    """One line of ``metrics.csv``: losses are means since the line before, validation is of the averaged weights."""

    step: int
    seconds: float
    learning_rate: float
    score_loss: float
    force_field_loss: float
    validation_score: float
    validation_energy: float  # eV per atom, mean absolute error
    validation_force: float  # eV/Å, mean absolute error


def make_kernel(name: str) -> Kernel:
    """The forward process by name: ``exact`` or ``paper``."""
    kernels: dict[str, type[Kernel]] = {"exact": ExactKernel, "paper": PaperKernel}
    return kernels[name]()


def _random_windows(examples: Sequence[Example], rng: np.random.Generator) -> np.ndarray:
    """Walls (B, 2): 0.6 to 1.4 Å and 3 to 6 Å above the top layer, both beyond the structure's atoms; absolute z, Å."""
    lowest, highest = np.array([e.reach for e in examples]).T
    low = np.minimum(rng.uniform(0.6, 1.4, len(examples)), lowest - 0.02)
    high = np.maximum(rng.uniform(3.0, 6.0, len(examples)), highest + 0.02)
    walls: np.ndarray = np.array([e.top for e in examples])[:, None] + np.stack([low, high], axis=1)
    return walls


def _conditions(examples: Sequence[Example], card: Card, rng: np.random.Generator, drop: float) -> Tensor:
    """Conditions (B, K) of examples: energy and composition, each dropped by chance."""
    rows = np.array([(e.energy_above, *composition_fractions(e.counts, card.elements)) for e in examples])
    no_energy, no_composition = rng.random((2, len(examples))) < drop
    rows[no_energy, 0] = np.nan
    rows[no_composition, 1:] = np.nan
    return torch.from_numpy(rows).float()


def _draw_sigma(u: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """Noise levels (B,) from uniforms: log-uniform up to the uniform limit, or uniform in the published time."""
    if settings.kernel == "paper":
        return LinearBeta().sigma(u.clamp(min=1e-3))
    return log_uniform_sigma(u, settings.sigma_min, sigma_max_for(batch.cell, batch.window))


def make_model(dataset: Dataset, architecture: Architecture, settings: Settings, start: Model | None = None) -> Model:
    """A model for the data, which it takes its card from: untrained, or with the weights of ``start``.

    An untrained one takes its elements and its energy baseline from the training set, too.

    Raises
    ------
    UserError
        If ``start`` does not know an element of the data, or has another kernel.
    """
    if start is not None:
        _check_start(start, dataset, settings)
    heights = np.concatenate([e.heights for e in dataset.train])
    card = Card(
        elements=dataset.elements if start is None else start.card.elements,
        kernel=settings.kernel,
        sigma_min=settings.sigma_min,
        architecture=architecture if start is None else start.card.architecture,
        heights=tuple(float(q) for q in np.quantile(heights, [0.05, 0.25, 0.75, 0.95])),  # type: ignore[arg-type]
        compositions=dataset.compositions,
        calculator=dataset.calculator,
        data_hash=dataset.data_hash,
        n_structures=len(dataset.train) + len(dataset.validation),
        training=asdict(settings),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Model(card)
    if start is None:
        model.force_field.baseline.copy_(torch.from_numpy(composition_baseline(dataset.frames, card.numbers)))
    else:
        model.load_state_dict(start.state_dict())
    return model


def _check_start(start: Model, dataset: Dataset, settings: Settings) -> None:
    unknown = set(dataset.elements) - set(start.card.elements)
    if unknown:
        raise UserError(
            f"the data hold {', '.join(sorted(unknown))}, which the model to start from does not know: "
            f"it knows {', '.join(start.card.elements)}; select other data or train a new model"
        )
    if start.card.kernel != settings.kernel:
        raise UserError(
            f"the model to start from has the kernel {start.card.kernel}, the training {settings.kernel}: use the same"
        )


class Validation:
    """Fixed structures, noise levels and noises on which every model of a training is judged."""

    def __init__(self, dataset: Dataset, card: Card, settings: Settings, limit: int = 32) -> None:
        rng = np.random.default_rng([settings.seed, 0x5EED])
        chosen = dataset.validation[:limit] or dataset.train[:limit]
        self.kernel = make_kernel(settings.kernel)
        self.batch = collate(chosen, _random_windows(chosen, rng))
        self.conditions = _conditions(chosen, card, rng, 0.5)
        n_mobile = int(self.batch.mobile.sum())
        self.normals = [torch.from_numpy(rng.standard_normal((n_mobile, 3))).float() for _ in VALIDATION_SIGMAS]
        picks = rng.permutation(len(dataset.validation_frames))[: 4 * limit]
        self.frames = [dataset.validation_frames[k] for k in picks]

    def __call__(self, model: Model) -> tuple[float, float, float]:
        """Score loss (mean over noise levels), energy and force errors of a model."""
        batch, conditions = self.batch.to(device=model.device), self.conditions.to(model.device)
        with torch.no_grad():
            losses = [
                denoising_loss(
                    model, self.kernel, batch, torch.full_like(conditions[:, 0], s), conditions, n.to(model.device)
                )
                for s, n in zip(VALIDATION_SIGMAS, self.normals, strict=True)
            ]
            energy, force = float("nan"), float("nan")
            if self.frames:
                _, *errors = force_field_loss(model, self.frames)
                energy, force = (float(e) for e in errors)
        return float(torch.stack(losses).mean()), energy, force


def _rate(settings: Settings, step: int, elapsed: float) -> float:
    """Learning rate: linear warm-up, then a cosine down to one percent at the end."""
    ends = []
    if settings.steps:
        ends.append(step / settings.steps)
    if settings.seconds:
        ends.append(elapsed / settings.seconds)
    progress = min(1.0, max(ends, default=0.0))
    warm = min(1.0, (step + 1) / settings.warmup)
    return settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def train(
    dataset: Dataset,
    architecture: Architecture,
    settings: Settings,
    *,
    start: Model | None = None,
    state: TrainingState | None = None,
    device: torch.device | str = "cpu",
    every: float = 60.0,
    on_report: Callable[[Model, Report], None] = lambda model, report: None,
    on_state: Callable[[TrainingState], None] = lambda state: None,
    progress: Callable[[int, float, float], None] = lambda step, fraction, loss: None,
) -> Model:
    """Train a model.

    Parameters
    ----------
    dataset, architecture, settings
        What to learn from, how large the networks are, and how to learn.
    start
        Model whose weights, and architecture, to begin with; a new one if not given.
    state
        Of an interrupted training of the same settings, to go on from.
    device
        Where to train; what is drawn does not depend on it.
    every
        Seconds between states, beside the one after each validation.
    on_report
        Called after each validation with the best model so far and the metrics: the place to save them.
    on_state
        Called with what the training can go on from, at the end too.
    progress
        Called after each step with its number, the fraction done and the loss.

    Returns
    -------
    Model
        With averaged weights, of each network where it was validated best, on the device.

    Raises
    ------
    UserError
        See :func:`make_model`.
    """
    model = make_model(dataset, architecture, settings, start).to(device)
    average = copy.deepcopy(model).eval()
    best, best_scores = copy.deepcopy(average), dict[str, float]()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=settings.learning_rate,
        weight_decay=settings.weight_decay,
        fused=model.device.type == "cuda",
    )
    step, before = 0, 0.0
    if state is not None:
        model.load_state_dict(state.weights)
        average.load_state_dict(state.average)
        best.load_state_dict(state.best)
        best_scores = dict(state.best_scores)
        optimizer.load_state_dict(state.optimizer)
        step, before = state.step, state.elapsed
    validation = Validation(dataset, model.card, settings)
    kernel = make_kernel(settings.kernel)
    model.train()
    begun = last = time.monotonic()
    sums, count = np.zeros(2), 0
    helper = ThreadPoolExecutor(1)
    kind = _NetworksOnGpu if compiled.for_gpu(model.device) else _Networks
    networks = kind(model, dataset, kernel, settings, helper)

    def finished() -> bool:
        over_steps = settings.steps is not None and step >= settings.steps
        return over_steps or (settings.seconds is not None and before + time.monotonic() - begun >= settings.seconds)

    def snapshot() -> TrainingState:
        weights = (model.state_dict(), average.state_dict(), best.state_dict(), best_scores, optimizer.state_dict())
        return TrainingState(step, before + time.monotonic() - begun, *weights, state_key(settings, dataset))

    while True:
        done = finished()
        if count and (done or step % settings.validate_every == 0):
            elapsed = before + time.monotonic() - begun
            scores = validation(average)
            losses = sums / count
            report = Report(step, elapsed, optimizer.param_groups[0]["lr"], float(losses[0]), float(losses[1]), *scores)
            best_scores = _keep_best(best, best_scores, average, report)
            best.card = replace(model.card, n_steps=step, validation=best_scores)
            sums, count = np.zeros(2), 0
            on_report(best, report)
        if done or count == 0 or time.monotonic() - last > every:
            on_state(snapshot())
            last = time.monotonic()
        if done:
            helper.shutdown()
            return best
        for group in optimizer.param_groups:
            group["lr"] = _rate(settings, step, before + time.monotonic() - begun)
        sums += _step(networks, average, optimizer, settings, step)
        step, count = step + 1, count + 1
        elapsed = before + time.monotonic() - begun
        fraction = max(
            step / settings.steps if settings.steps else 0.0, elapsed / settings.seconds if settings.seconds else 0.0
        )
        progress(step, min(1.0, fraction), float(sums[0] / count))


def _keep_best(best: Model, scores: dict[str, float], average: Model, report: Report) -> dict[str, float]:
    """Take over each network of ``average`` that is validated better than the one kept; returns the kept scores.

    The force field's score is its errors in their units; what cannot be validated is taken over.
    """
    scores = dict(scores)
    if not report.validation_score >= scores.get("score_loss", math.inf):
        best.denoiser.load_state_dict(average.denoiser.state_dict())
        scores |= {"score_loss": report.validation_score, "score_step": report.step}
    error = report.validation_energy / ENERGY_UNIT + report.validation_force / FORCE_UNIT
    kept = scores.get("energy_mae", math.inf) / ENERGY_UNIT + scores.get("force_mae", math.inf) / FORCE_UNIT
    if not error >= kept:
        best.force_field.load_state_dict(average.force_field.state_dict())
        scores |= {"energy_mae": report.validation_energy, "force_mae": report.validation_force}
        scores["force_field_step"] = report.step
    return scores


def state_key(settings: Settings, dataset: Dataset) -> str:
    """What must agree for a state to go on: the data and all settings but the length of the training."""
    fixed = asdict(replace(settings, steps=None, seconds=None))
    return json.dumps({"data": dataset.data_hash, **fixed}, sort_keys=True)


def _blocks(items: Sequence[Item], device: torch.device) -> list[list[Item]]:
    """The items in turn, in blocks of at most :data:`BLOCK_ATOMS` atoms: fewer are slow, more leave the cache.

    On an accelerator :data:`DEVICE_BLOCK_ATOMS`: fewer leave it idle, more may not fit into its memory.
    """
    limit = BLOCK_ATOMS if device.type == "cpu" else DEVICE_BLOCK_ATOMS
    blocks: list[list[Item]] = []
    room = 0
    for item in items:
        room -= len(item.numbers)
        if room < 0:
            blocks.append([])
            room = limit - len(item.numbers)
        blocks[-1].append(item)
    return blocks


@dataclass(frozen=True)
class _Drawn:
    """What the denoiser learns from in a step: B examples with M overlayer atoms, as drawn."""

    examples: list[Example]
    windows: np.ndarray  # (B, 2) absolute z, Å
    conditions: Tensor  # (B, K)
    levels: Tensor  # (B,) in [0, 1)
    normals: Tensor  # (M, 3)


def _draw(dataset: Dataset, card: Card, settings: Settings, step: int) -> _Drawn:
    rng = np.random.default_rng([settings.seed, step, 0])
    chosen = [dataset.train[k] for k in rng.integers(len(dataset.train), size=settings.batch)]
    windows = _random_windows(chosen, rng)
    conditions = _conditions(chosen, card, rng, settings.drop_conditions)
    repeats = rng.integers(len(settings.repeats), size=len(chosen))
    chosen = [e.repeat(*settings.repeats[k]) for e, k in zip(chosen, repeats, strict=True)]
    levels = torch.from_numpy(rng.random(len(chosen))).float()
    n_mobile = sum(int(e.mobile.sum()) for e in chosen)
    normals = torch.from_numpy(rng.standard_normal((n_mobile, 3), dtype=np.float32))
    return _Drawn(chosen, windows, conditions, levels, normals)


def _draw_frames(dataset: Dataset, settings: Settings, step: int) -> list[Frame]:
    rng = np.random.default_rng([settings.seed, step, 1])
    return [dataset.frames[k] for k in rng.integers(len(dataset.frames), size=settings.force_batch)]


def _denoiser_gradients(model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, step: int) -> float:
    """Accumulate the gradients of one batch for the denoiser, a block of structures at a time."""
    if not settings.batch:
        return 0.0
    drawn, total = _draw(dataset, model.card, settings, step), 0.0
    parts, n_mobile = _blocks(drawn.examples, model.device), len(drawn.normals)
    sizes = [len(part) for part in parts]
    windows = np.split(drawn.windows, np.cumsum(sizes)[:-1])
    given = [x.to(model.device).split(sizes) for x in (drawn.conditions, drawn.levels)]
    noise = drawn.normals.to(model.device).split([sum(int(e.mobile.sum()) for e in part) for part in parts])
    for part, walls, conditions, level, normal in zip(parts, windows, *given, noise, strict=True):
        batch = collate(part, walls, model.device)
        sigma = _draw_sigma(level, batch, settings)
        loss = denoising_loss(model, kernel, batch, sigma, conditions, normal) * (len(normal) / n_mobile)
        loss.backward()
        total += float(loss.detach())
    return total


def _force_field_gradients(model: Model, dataset: Dataset, settings: Settings, step: int) -> float:
    """Accumulate the gradients of one batch of frames for the force field, a block at a time."""
    if not (settings.force_batch and dataset.frames):
        return 0.0
    frames = _draw_frames(dataset, settings, step)
    n_components, total = 3 * sum(len(f.numbers) for f in frames), 0.0
    for part in _blocks(frames, model.device):
        energy, force = force_field_errors(model, part)
        loss = huber(energy, ENERGY_UNIT) / len(frames) + huber(force, FORCE_UNIT) / n_components
        loss.backward()
        total += float(loss.detach())
    return total


class _Networks:
    """Puts the gradients of a step into both networks: they share nothing, so each has a thread."""

    def __init__(self, model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, helper: Executor) -> None:
        self.model, self.dataset, self.kernel, self.settings = model, dataset, kernel, settings
        self.helper = helper

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        waiting = self.helper.submit(self._force_field, step)
        return self._denoiser(step), waiting.result()

    def _denoiser(self, step: int) -> float:
        return _denoiser_gradients(self.model, self.dataset, self.kernel, self.settings, step)

    def _force_field(self, step: int) -> float:
        return _force_field_gradients(self.model, self.dataset, self.settings, step)


class _NetworksOnGpu(_Networks):
    """The same with graphs, one network after the other, while a thread prepares what they are given in the next step.

    Nothing here waits for the device: losses are known when they are asked for.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.graphs = Graphs(self.model, self.kernel)
        self._ahead: dict[int, Future[tuple[Inputs | None, Inputs | None]]] = {}  # by step
        self._given: tuple[Inputs | None, Inputs | None] = None, None  # kept while the step is under way

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        self._given = self._ahead[step].result() if step in self._ahead else self._prepared(step)
        examples, frames = self._given
        score = self._denoiser(step) if examples is None else self.graphs.denoiser(examples)
        force = self._force_field(step) if frames is None else self.graphs.force_field(frames)
        self._ahead = {step + 1: self.helper.submit(self._prepared, step + 1)}
        return score, force

    def _prepared(self, step: int) -> tuple[Inputs | None, Inputs | None]:
        """What the graphs are given; nothing where a network is not trained, or its batch too large for one block."""
        settings, examples, frames = self.settings, None, None
        if settings.batch:
            drawn = _draw(self.dataset, self.model.card, settings, step)
            if len(_blocks(drawn.examples, self.model.device)) == 1:
                batch = collate(drawn.examples, drawn.windows)
                sigma = _draw_sigma(drawn.levels, batch, settings)
                examples = self.graphs.for_denoiser(batch, sigma, drawn.conditions, drawn.normals)
        if settings.force_batch and self.dataset.frames:
            chosen = _draw_frames(self.dataset, settings, step)
            if len(_blocks(chosen, self.model.device)) == 1:
                frames = self.graphs.for_force_field(chosen)
        return examples, frames


def _step(
    networks: _Networks, average: Model, optimizer: torch.optim.Optimizer, settings: Settings, step: int
) -> np.ndarray:
    """One optimisation step; returns both losses."""
    model = networks.model
    optimizer.zero_grad(set_to_none=True)
    losses = networks.gradients(step)
    for network in (model.denoiser, model.force_field):
        torch.nn.utils.clip_grad_norm_(network.parameters(), _LONGEST_GRADIENT)
    optimizer.step()
    keep = min(settings.average, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1.0 - keep)
    return np.array([float(loss) for loss in losses])  # waits for the device


def describe(dataset: Dataset) -> str:
    """One line on what is learned from."""
    formulas = ", ".join(f"{f}×{n}" for f, n in dataset.compositions.items())
    n, n_frames, n_held = len(dataset.train), len(dataset.frames), len(dataset.validation)
    return f"{n} structures ({formulas}), {n_frames} frames, {n_held} held out"

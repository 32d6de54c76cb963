"""Training of denoiser and force field together.

Every step draws its own random stream from the seed and its number, so that a resumed training takes the steps that
an uninterrupted one would have taken. Weights are averaged exponentially (EMA); what is validated and saved is the
average.

- Denoiser: score matching over all noise levels (:mod:`adlayer.diffusion.objective`), structures repeated in the
  plane, windows drawn at random around the data (the network shall know any wall), conditions dropped at random.
- Force field: energies and forces of frames (:mod:`adlayer.training.losses`).

On few structures the denoiser overfits while the force field still learns: each network is kept as it was at its own
best validation.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from adlayer import compiled
from adlayer.errors import UserError
from adlayer.network.model import Architecture, Card, Model
from adlayer.training.checkpoint import TrainingState
from adlayer.training.dataset import Dataset, composition_baseline
from adlayer.training.drawing import conditions, random_windows
from adlayer.training.gradients import Networks, NetworksOnGpu
from adlayer.training.losses import ENERGY_UNIT, FORCE_UNIT, collate, denoising_loss, force_field_loss
from adlayer.training.parameters import joined
from adlayer.training.settings import Settings, make_kernel

VALIDATION_SIGMAS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # Å
_LONGEST_GRADIENT = 5.0  # of a network's parameters together
_STATE = 2  # format: from the second on the optimiser knows each network as one vector


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
        self.batch = collate(chosen, random_windows(chosen, rng))
        self.conditions = conditions(chosen, card, rng, 0.5)
        n_mobile = int(self.batch.mobile.sum())
        self.normals = [torch.from_numpy(rng.standard_normal((n_mobile, 3))).float() for _ in VALIDATION_SIGMAS]
        picks = rng.permutation(len(dataset.validation_frames))[: 4 * limit]
        self.frames = [dataset.validation_frames[k] for k in picks]

    def __call__(self, model: Model) -> tuple[float, float, float]:
        """Score loss (mean over noise levels), energy and force errors of a model."""
        batch, known = self.batch.to(device=model.device), self.conditions.to(model.device)
        with torch.no_grad():
            losses = [
                denoising_loss(model, self.kernel, batch, torch.full_like(known[:, 0], s), known, n.to(model.device))
                for s, n in zip(VALIDATION_SIGMAS, self.normals, strict=True)
            ]
            energy, force = float("nan"), float("nan")
            if self.frames:
                _, *errors = force_field_loss(model, self.frames)
                energy, force = (float(e) for e in errors)
        return float(torch.stack(losses).mean()), energy, force


def _rate(settings: Settings, step: int, elapsed: float) -> float:
    """Learning rate: linear warm-up, then a cosine down to one percent at the end."""
    warm = min(1.0, (step + 1) / settings.warmup)
    cosine = math.cos(math.pi * settings.fraction(step, elapsed))
    return settings.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1.0 + cosine))


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
        Called after each step with its number, the fraction done and the mean loss since the last report, NaN where no
        loss is known yet (a GPU is a step behind). A ``KeyboardInterrupt`` that it raises
        ends the training after one more state.

    Returns
    -------
    Model
        With averaged weights, of each network where it was validated best, on the device.

    Raises
    ------
    UserError
        See :func:`make_model`; if neither network is to be trained.
    """
    model = make_model(dataset, architecture, settings, start).to(device)
    average = copy.deepcopy(model).eval()
    best, best_scores = copy.deepcopy(average), dict[str, float]()
    taught = [
        name
        for name, data in (("denoiser", settings.batch), ("force_field", settings.force_batch and dataset.frames))
        if data
    ]
    if not taught:
        raise UserError("there is nothing to train: give a batch for the denoiser or, with frames, for the force field")
    vectors = [joined(getattr(model, name), gradients=True) for name in taught]
    averages = [joined(getattr(average, name)) for name in taught]
    optimizer = torch.optim.AdamW(
        vectors,
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
    sums, count, unread = np.zeros(2), 0, list[_Losses]()
    kind = NetworksOnGpu if compiled.for_gpu(model.device) else Networks

    def elapsed() -> float:
        return before + time.monotonic() - begun

    def state_now() -> TrainingState:
        weights = (model.state_dict(), average.state_dict(), best.state_dict(), best_scores)
        return TrainingState(step, elapsed(), *weights, optimizer.state_dict(), state_key(settings, dataset))

    with (
        torch.cuda.device(model.device) if model.device.type == "cuda" else nullcontext(),
        ThreadPoolExecutor(1) as helper,
        closing(kind(model, dataset, kernel, settings, helper)) as networks,
    ):
        while True:
            done = settings.fraction(step, elapsed()) >= 1.0
            if count and (done or step % settings.validate_every == 0):
                sums, unread = sums + sum(losses() for losses in unread), []
                rate, (score, error) = optimizer.param_groups[0]["lr"], sums / count
                report = Report(step, elapsed(), rate, float(score), float(error), *validation(average))
                best_scores = _keep_best(best, best_scores, average, report)
                best.card = replace(model.card, n_steps=step, validation=best_scores)
                sums, count = np.zeros(2), 0
                on_report(best, report)
            if done or count == 0 or time.monotonic() - last > every:
                on_state(state_now())
                last = time.monotonic()
            if done:
                return best
            for group in optimizer.param_groups:
                group["lr"] = _rate(settings, step, elapsed())
            unread.append(_step(networks, vectors, averages, optimizer, settings, step))
            if len(unread) > networks.behind:
                sums += unread.pop(0)()
            step, count = step + 1, count + 1
            known = count - len(unread)
            try:
                progress(step, settings.fraction(step, elapsed()), float(sums[0] / known) if known else math.nan)
            except KeyboardInterrupt:
                on_state(state_now())
                raise


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
    return json.dumps({"data": dataset.data_hash, "state": _STATE, **fixed}, sort_keys=True)


_Losses = Callable[[], np.ndarray]


def _step(
    networks: Networks, vectors: list[torch.Tensor], averages: list[torch.Tensor], optimizer: torch.optim.Optimizer,
    settings: Settings, step: int,
) -> _Losses:  # fmt: skip
    """One optimisation step of networks, each one vector, and of their averages; returns what waits for both losses."""
    optimizer.zero_grad(set_to_none=False)  # the networks' gradients are parts of the vectors'
    losses = networks.gradients(step)
    for vector in vectors:
        torch.nn.utils.clip_grad_norm_(vector, _LONGEST_GRADIENT)
    optimizer.step()
    keep = min(settings.average, (1 + step) / (10 + step))
    with torch.no_grad():
        torch._foreach_lerp_(averages, vectors, 1.0 - keep)
    if vectors[0].device.type != "cuda":
        return lambda: np.array([float(loss) for loss in losses])
    there = torch.empty(2, pin_memory=True)
    for k, loss in enumerate(losses):
        there[k].copy_(torch.as_tensor(loss), non_blocking=True)
    event = torch.cuda.Event()
    event.record()

    def wait() -> np.ndarray:
        event.synchronize()
        return there.numpy().astype(float)

    return wait


def describe(dataset: Dataset) -> str:
    """One line on what is learned from."""
    formulas = ", ".join(f"{f}×{n}" for f, n in dataset.compositions.items())
    n_held, n_frames = len(dataset.validation), len(dataset.frames)
    held = f"{n_held} held out" if n_held else "too few to hold any out: validated on what is learned from"
    return f"{len(dataset.train) + n_held} structures ({formulas}), {n_frames} frames, {held}"

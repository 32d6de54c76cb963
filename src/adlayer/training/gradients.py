"""Gradients of a step's losses in the parameters of both networks.

A batch is drawn whole and worked on in blocks, larger ones on an accelerator: they change rounding alone.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from torch import Tensor

from adlayer.diffusion.kernels import Kernel
from adlayer.network.model import Model
from adlayer.training.dataset import Dataset
from adlayer.training.drawing import blocks, draw, draw_frames, draw_sigma
from adlayer.training.graphs import Graphs, Inputs
from adlayer.training.losses import ENERGY_UNIT, FORCE_UNIT, collate, denoising_loss, force_field_errors, huber
from adlayer.training.settings import Settings

Loss = float | Tensor  # without dimensions


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
    """Adds the gradients of a step to those of both networks, zeros before: they share nothing, so each has a thread."""

    def __init__(self, model: Model, dataset: Dataset, kernel: Kernel, settings: Settings, helper: Executor) -> None:
        self.model, self.dataset, self.kernel, self.settings = model, dataset, kernel, settings
        self.helper = helper

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        waiting = self.helper.submit(self._force_field, step)
        return self._denoiser(step), waiting.result()

    def _denoiser(self, step: int) -> float:
        return denoiser_gradients(self.model, self.dataset, self.kernel, self.settings, step)

    def _force_field(self, step: int) -> float:
        return force_field_gradients(self.model, self.dataset, self.settings, step)


class NetworksOnGpu(Networks):
    """The same with graphs, side by side, while a thread prepares what they are given in the next step.

    Nothing here waits for the device: losses are known when they are asked for.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.graphs = Graphs(self.model, self.kernel)
        self._ahead: dict[int, Future[tuple[Inputs | None, Inputs | None]]] = {}  # by step
        self._given: tuple[Inputs | None, Inputs | None] = None, None  # kept while the step is under way

    def gradients(self, step: int) -> tuple[Loss, Loss]:
        """The losses of the denoiser and of the force field."""
        self._given = examples, frames = self._ahead[step].result() if step in self._ahead else self._prepared(step)
        score = self._denoiser(step) if examples is None else self.graphs.denoiser(examples)
        force = self._force_field(step) if frames is None else self.graphs.force_field(frames)
        self._ahead = {step + 1: self.helper.submit(self._prepared, step + 1)}
        self.graphs.denoiser.join()
        self.graphs.force_field.join()
        return score, force

    def _prepared(self, step: int) -> tuple[Inputs | None, Inputs | None]:
        """What the graphs are given; nothing where a network is not trained, or its batch too large for one block."""
        settings, examples, frames = self.settings, None, None
        if settings.batch:
            drawn = draw(self.dataset, self.model.card, settings, step)
            if len(blocks(drawn.examples, self.model.device)) == 1:
                batch = collate(drawn.examples, drawn.windows)
                sigma = draw_sigma(drawn.levels, batch, settings)
                examples = self.graphs.for_denoiser(batch, sigma, drawn.conditions, drawn.normals)
        if settings.force_batch and self.dataset.frames:
            chosen = draw_frames(self.dataset, settings, step)
            if len(blocks(chosen, self.model.device)) == 1:
                frames = self.graphs.for_force_field(chosen)
        return examples, frames

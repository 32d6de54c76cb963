"""What the networks learn from in a step, each step from a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from adlayer.diffusion.schedule import LinearBeta, log_uniform_sigma, sigma_max_for
from adlayer.network.graph import Batch
from adlayer.network.model import Card, composition_fractions
from adlayer.training.dataset import Dataset, Example, Frame
from adlayer.training.settings import Settings

Item = TypeVar("Item", Example, Frame)
BLOCK_ATOMS = 1000  # that are worked on at once, where there are more than one structure
DEVICE_BLOCK_ATOMS = 20_000  # the same on an accelerator


def random_windows(examples: Sequence[Example], rng: np.random.Generator) -> np.ndarray:
    """Walls (B, 2): 0.6 to 1.4 Å and 3 to 6 Å above the top layer, both beyond the structure's atoms; absolute z, Å."""
    lowest, highest = np.array([e.reach for e in examples]).T
    low = np.minimum(rng.uniform(0.6, 1.4, len(examples)), lowest - 0.02)
    high = np.maximum(rng.uniform(3.0, 6.0, len(examples)), highest + 0.02)
    walls: np.ndarray = np.array([e.top for e in examples])[:, None] + np.stack([low, high], axis=1)
    return walls


def conditions(examples: Sequence[Example], card: Card, rng: np.random.Generator, drop: float) -> Tensor:
    """Conditions (B, K) of examples: energy and composition, each dropped by chance."""
    rows = np.array([(e.energy_above, *composition_fractions(e.counts, card.elements)) for e in examples])
    no_energy, no_composition = rng.random((2, len(examples))) < drop
    rows[no_energy, 0] = np.nan
    rows[no_composition, 1:] = np.nan
    return torch.from_numpy(rows).float()


def draw_sigma(u: Tensor, batch: Batch, settings: Settings) -> Tensor:
    """Noise levels (B,) from uniforms: log-uniform up to the uniform limit, or uniform in the published time."""
    if settings.kernel == "paper":
        return LinearBeta().sigma(u.clamp(min=1e-3))
    return log_uniform_sigma(u, settings.sigma_min, sigma_max_for(batch.cell, batch.window))


def blocks(items: Sequence[Item], device: torch.device) -> list[list[Item]]:
    """The items in turn, in blocks of at most :data:`BLOCK_ATOMS` atoms: fewer are slow, more leave the cache.

    On an accelerator :data:`DEVICE_BLOCK_ATOMS`: fewer leave it idle, more may not fit into its memory.
    """
    limit = BLOCK_ATOMS if device.type == "cpu" else DEVICE_BLOCK_ATOMS
    made: list[list[Item]] = []
    room = 0
    for item in items:
        room -= len(item.numbers)
        if room < 0:
            made.append([])
            room = limit - len(item.numbers)
        made[-1].append(item)
    return made


@dataclass(frozen=True)
class Drawn:
    """What the denoiser learns from in a step: B examples with M overlayer atoms, as drawn."""

    examples: list[Example]
    windows: np.ndarray  # (B, 2) absolute z, Å
    conditions: Tensor  # (B, K)
    levels: Tensor  # (B,) in [0, 1)
    normals: Tensor  # (M, 3)


def draw(dataset: Dataset, card: Card, settings: Settings, step: int) -> Drawn:
    """The examples of a step."""
    rng = np.random.default_rng([settings.seed, step, 0])
    chosen = [dataset.train[k] for k in rng.integers(len(dataset.train), size=settings.batch)]
    windows = random_windows(chosen, rng)
    known = conditions(chosen, card, rng, settings.drop_conditions)
    repeats = rng.integers(len(settings.repeats), size=len(chosen))
    chosen = [e.repeat(*settings.repeats[k]) for e, k in zip(chosen, repeats, strict=True)]
    levels = torch.from_numpy(rng.random(len(chosen))).float()
    n_mobile = sum(e.n_mobile for e in chosen)
    normals = torch.from_numpy(rng.standard_normal((n_mobile, 3), dtype=np.float32))
    return Drawn(chosen, windows, known, levels, normals)


def draw_frames(dataset: Dataset, settings: Settings, step: int) -> list[Frame]:
    """The frames of a step."""
    rng = np.random.default_rng([settings.seed, step, 1])
    return [dataset.frames[k] for k in rng.integers(len(dataset.frames), size=settings.force_batch)]

"""What training minimises: batches from examples and frames, and the losses of both networks.

- Denoiser: score matching (:mod:`adlayer.diffusion.objective`).
- Force field: Huber loss of energy per atom (unit 5 meV) and of force components (unit 0.1 eV/Å).

Batches are made on the device that is named; everything else follows them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from adlayer.diffusion.kernels import Domain, Kernel
from adlayer.diffusion.objective import score_matching_loss
from adlayer.network.graph import Batch
from adlayer.network.model import Model
from adlayer.network.neighbours import Edges
from adlayer.training.dataset import Example, Frame

ENERGY_UNIT, FORCE_UNIT = 0.005, 0.1  # eV per atom, eV/Å


def collate(examples: Sequence[Example | Frame], windows: ArrayLike, device: torch.device | str = "cpu") -> Batch:
    """A batch of examples or frames with their windows (B, 2), absolute z, Å."""
    counts = [len(e.numbers) for e in examples]
    batch = Batch(
        numbers=torch.from_numpy(np.concatenate([e.numbers for e in examples])).long(),
        positions=torch.from_numpy(np.concatenate([e.positions for e in examples])).float(),
        tags=torch.from_numpy(np.concatenate([e.tags for e in examples])).long(),
        batch=torch.from_numpy(np.repeat(np.arange(len(examples)), counts)),
        cell=torch.from_numpy(np.concatenate([e.cell for e in examples])).float().view(-1, 2, 2),
        window=torch.from_numpy(np.asarray(windows, dtype=np.float32)),
    )
    return batch.to(device=device)


def collate_frames(frames: Sequence[Frame], device: torch.device | str = "cpu") -> tuple[Batch, Tensor, Tensor]:
    """A batch of frames, energies (B,) in double precision, forces (N, 3)."""
    batch = collate(frames, np.zeros((len(frames), 2)), device)  # the force field knows no walls
    energies = torch.tensor([f.energy for f in frames], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([f.forces for f in frames])).float()
    return batch, energies.to(device), forces.to(device)


def noised(kernel: Kernel, batch: Batch, sigma: Tensor, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Overlayer atoms with noise and without (M, 3), Å, and their rows (M,) in the batch."""
    rows = batch.mobile.nonzero()[:, 0]
    clean = batch.positions[rows]
    return kernel.perturb(clean, sigma, normal, Domain(batch.cell, batch.window, batch.batch[rows])), clean, rows


def denoising_loss(
    model: Model, kernel: Kernel, batch: Batch, sigma: Tensor, conditions: Tensor, normal: Tensor
) -> Tensor:
    """Score-matching loss of a batch at the given noise levels (B,), with standard normals (M, 3)."""
    noisy, clean, rows = noised(kernel, batch, sigma, normal)
    batch = batch.with_positions(batch.positions.index_copy(0, rows, noisy))
    return noised_loss(model, kernel, batch, sigma, conditions, noisy, clean, rows)


def noised_loss(
    model: Model, kernel: Kernel, batch: Batch, sigma: Tensor, conditions: Tensor, noisy: Tensor, clean: Tensor,
    rows: Tensor, edges: Edges | None = None, weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The same of a batch that has noise already (:func:`noised`), with edges and weights (M,) where there are any."""
    domain = Domain(batch.cell, batch.window, batch.batch.index_select(0, rows))
    scale = kernel.score_scale(sigma, domain)
    target = kernel.score(noisy, clean, sigma, domain)
    predicted = model.denoiser(batch, sigma, conditions, edges, rows) * scale[domain.batch]
    return score_matching_loss(predicted, target, scale, domain, weight)


def force_field_errors(model: Model, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """Errors of energy (B,), eV per atom, and of forces (N, 3), eV/Å."""
    batch, energies, forces = collate_frames(frames, model.device)
    energy, predicted = model.force_field(batch)
    baseline = model.force_field.total_energy(batch, torch.zeros_like(energy))
    counts = torch.bincount(batch.batch).to(energy.dtype)
    return (energy - (energies - baseline).to(energy.dtype)) / counts, predicted - forces


def huber(error: Tensor, unit: float, weight: Tensor | None = None) -> Tensor:
    """Sum of the Huber losses of errors in a unit, weighted by what broadcasts to them."""
    losses = torch.nn.functional.smooth_l1_loss(error / unit, torch.zeros_like(error), reduction="none")
    return losses.sum() if weight is None else (losses * weight).sum()


def force_field_loss(model: Model, frames: Sequence[Frame]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, mean absolute errors of energy (eV per atom) and force components (eV/Å)."""
    energy, force = force_field_errors(model, frames)
    loss = huber(energy, ENERGY_UNIT) / energy.numel() + huber(force, FORCE_UNIT) / force.numel()
    return loss, energy.detach().abs().mean(), force.detach().abs().mean()

"""A block of structures that are generated together: the model's score and forces on them, and their relaxation."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from adlayer.diffusion.guidance import classifier_free
from adlayer.diffusion.kernels import Domain, ExactKernel, PaperKernel, ScaleTable
from adlayer.diffusion.sampling import Sampling
from adlayer.diffusion.schedule import LinearBeta, sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import Score
from adlayer.energies.batched import init, step
from adlayer.network.graph import Batch, to_batch
from adlayer.network.inference import fast_denoiser, fast_force_field
from adlayer.network.model import Model, condition_row
from adlayer.structures.substrate import fixed_mask

_FMAX = 0.05  # eV/Å, of learned relaxations
_STAGE = 5  # steps of a relaxation between looks at who goes on
_PATIENCE = 0.33  # eV for each overlayer atom and step taken: who lies further above its target is given up


class Block:
    """A block of structures under way: batch, domain, and the functions of overlayer positions that solvers need."""

    def __init__(self, model: Model, starts: list[Atoms], settings: Sampling) -> None:
        self.model, self.settings = model, settings
        self.batch: Batch = to_batch(starts, device=model.device)
        self.mobile = self.batch.mobile.nonzero()[:, 0]  # (M,)
        self.domain = Domain(self.batch.cell, self.batch.window, self.batch.batch[self.mobile])
        self.single = Domain(self.batch.cell[:1], self.batch.window[:1], self.domain.batch[:0])  # all have it in common
        self.kernel = PaperKernel() if model.card.kernel == "paper" else ExactKernel()
        self.fixed = torch.from_numpy(np.tile(fixed_mask(starts[0]), len(starts))).to(model.device)  # (N,)
        self.patience = _PATIENCE * len(self.mobile) / len(starts)  # eV
        self.denoiser, self.force_field = fast_denoiser(model.denoiser), fast_force_field(model.force_field)
        self.network_calls = 0
        self.force_calls = 0

    @property
    def least_sigma(self) -> float:
        """The last noise level above zero, Å."""
        return max(self.settings.sigma_min, self.model.card.sigma_min)

    def at(self, positions: Tensor) -> Batch:
        """The batch with overlayer positions (M, 3)."""
        return self.batch.with_positions(self.batch.positions.index_copy(0, self.mobile, positions))

    def from_host(self, numbers: np.ndarray) -> Tensor:
        """Numbers of any shape in the batch's precision and on its device."""
        return torch.from_numpy(numbers).to(self.batch.positions)

    def score(self, conditions: Tensor) -> Score:
        """The model's score under conditions (K,) that hold for every structure."""
        rows = conditions.to(self.batch.positions).expand(self.batch.n_structures, -1)

        def score(positions: Tensor, sigma: Tensor) -> Tensor:
            self.network_calls += 1
            scale = self._scale(sigma)
            return self.denoiser(self.at(positions), sigma, rows) * self.domain.per_atom(scale)

        return score

    def _scale(self, sigma: Tensor) -> Tensor:
        """The kernel's score scale (B, 3) at noise levels (B,)."""
        if sigma.device.type != "cpu":
            return self._scales(sigma)
        levels, which = torch.unique(sigma, return_inverse=True)  # often one level for all
        return self.kernel.score_scale(levels, self.single)[which]

    @cached_property
    def _scales(self) -> ScaleTable:
        """All scales, on an accelerator, where thousands of levels take no longer than one."""
        return ScaleTable.of(self.kernel, self.single)

    def forces(self, positions: Tensor) -> Tensor:
        """Forces of the learned force field on the overlayer (M, 3), eV/Å."""
        self.force_calls += self.batch.n_structures
        return self.force_field.overlayer_forces(self.at(positions))

    def grid(self) -> Tensor:
        """Noise levels (K+1, B), none but the last below what the network has learned."""
        if self.settings.published_levels:
            levels = LinearBeta().grid(self.settings.steps)
            levels = torch.cat([levels[levels >= self.model.card.sigma_min], levels[-1:]]).to(self.batch.positions)
            return levels[:, None].expand(-1, self.batch.n_structures)
        top = sigma_max_for(self.batch.cell, self.batch.window)
        return sigma_grid(self.settings.steps, self.least_sigma, top, self.settings.rho)

    def guided_score(self) -> Score:
        """The score under the settings' conditions."""
        settings, n_conditions = self.settings, self.model.card.n_conditions
        nothing = condition_row(None, None, n_conditions)
        if settings.energy is None and settings.fractions is None:
            return self.score(nothing)
        conditional = self.score(condition_row(settings.energy, settings.fractions, n_conditions))
        if settings.weight == 1.0:
            return conditional
        return classifier_free(conditional, self.score(nothing), settings.weight)

    def settle(self, positions: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Relax in the learned force field, all atoms that ``FixAtoms`` leaves free.

        Returns the overlayer (M, 3), to be put back on the bare substrate as in the training data and clipped at the
        walls, and the relaxed energies (B,) in eV. Where atoms end deep in each other's core the energy is infinite,
        for the learned one has holes there. A structure that breaks stays as it was, its energy infinite. What will
        hardly come below its ``target`` (B,), eV, is given up on the way.
        """
        whole = self.at(positions)
        moved, final = self._relax(whole, self.settings.relax_steps, target)
        relaxed, window = moved[self.mobile], self.domain.per_atom(whole.window)
        z = torch.minimum(torch.maximum(relaxed[:, 2], window[:, 0]), window[:, 1])
        relaxed = torch.cat([relaxed[:, :2], z[:, None]], dim=1)
        unsound = (~torch.isfinite(relaxed).all(dim=1)).float()
        broken = unsound.new_zeros(whole.n_structures).index_add(0, self.domain.batch, unsound) > 0  # (B,)
        lost = broken | self.model.force_field.crowded(whole.with_positions(moved))
        energies = torch.where(lost, torch.full_like(final, torch.inf), final)
        return torch.where(self.domain.per_atom(broken)[:, None], positions, relaxed), energies

    def _relax(self, whole: Batch, steps: int, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Positions (N, 3) and energies (B,) relaxed in the learned force field.

        Every few steps, what is done goes no further, nor what will hardly come below its ``target`` (B,), eV.
        """
        part, fixed = whole, self.fixed
        atoms, members = (torch.arange(n, device=fixed.device) for n in (len(fixed), whole.n_structures))

        def energies_and_forces(positions: Tensor) -> tuple[Tensor, Tensor]:
            self.force_calls += part.n_structures
            return self.force_field(part.with_positions(positions))

        state = init(energies_and_forces, part.positions, part.batch, fixed, _FMAX)
        positions, energies = state.positions.clone(), state.energies.clone()
        for taken in range(1, steps + 1):
            state = step(energies_and_forces, state, part.batch, fixed, _FMAX)
            if taken % _STAGE and taken < steps:
                continue
            positions[atoms], energies[members] = state.positions, state.energies
            left = state.active
            if target is not None:
                left = left & (state.energies < target[members] + self.patience / taken)
            if not bool(left.any()):
                break
            if not bool(left.all()):
                state = state.subset(left, part.batch)
                part, mask = part.subset(left)
                fixed, atoms, members = fixed[mask], atoms[mask], members[left]
        return positions, energies

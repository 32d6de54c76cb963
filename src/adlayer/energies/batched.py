"""Local relaxation of a batch of structures with one call of the energy model per step.

L-BFGS (J. Nocedal, Math. Comp. 35, 773 (1980)) for all structures at once: with displacements ``s`` and changes of the
gradient ``y`` of the last m steps, the two-loop recursion gives the step ``H F`` for forces F, every inner product
taken within a structure. There is no line search, so that a step costs one call: instead

- a pair is used only where ``s·y > 0``, which keeps H positive definite and every step downhill;
- H starts from ``|s·y| / y·y`` of the latest step (where the energy is concave too, or the step would stay short), and
  from 1/70 Å²/eV before there is one, as ASE's BFGS does;
- a step is scaled down so that no atom moves further than 0.2 Å.

A structure stops at its own convergence, or where its energy or forces cease to be finite (it then stays at its last
finite geometry, unconverged); others go on, and do not feel it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from adlayer import compiled

MAX_MOVE = 0.2
"""Longest displacement of an atom in a step, Å."""
MEMORY = 20
"""Pairs (s, y) kept."""
INITIAL_INVERSE_CURVATURE = 1.0 / 70.0
"""Å²/eV."""
_SOURCE = f"#define MEMORY {MEMORY}\n{Path(__file__).with_name('lbfgs.c').read_text()}"


class EnergyModel(Protocol):
    """Energies (B,) in eV and forces (N, 3) in eV/Å of a batch of structures at positions (N, 3) in Å."""

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class RelaxState:
    """A batch in the middle of its relaxation. N atoms, B structures, m ≤ :data:`MEMORY` pairs, the latest last."""

    positions: Tensor  # (N, 3) Å
    energies: Tensor  # (B,) eV
    forces: Tensor  # (N, 3) eV/Å, on all atoms, fixed ones too
    n_steps: Tensor  # (B,) steps taken
    converged: Tensor  # (B,) bool
    failed: Tensor  # (B,) bool: energy or forces not finite
    displacements: Tensor  # (m, N, 3) s, Å
    gradient_changes: Tensor  # (m, N, 3) y, eV/Å
    inverse_products: Tensor  # (m, B) 1/(s·y) in 1/eV, 0 where the pair is not used
    inverse_curvature: Tensor  # (B,) Å²/eV

    @property
    def active(self) -> Tensor:
        """(B,) bool: which structures still move."""
        return ~(self.converged | self.failed)

    def subset(self, chosen: Tensor, batch: Tensor) -> RelaxState:
        """The state of the ``chosen`` structures (B,) bool alone; ``batch`` (N,) says to which each atom belongs."""
        atoms = chosen[batch]
        return RelaxState(
            self.positions[atoms], self.energies[chosen], self.forces[atoms], self.n_steps[chosen],
            self.converged[chosen], self.failed[chosen], self.displacements[:, atoms], self.gradient_changes[:, atoms],
            self.inverse_products[:, chosen], self.inverse_curvature[chosen],
        )  # fmt: skip


def _products(a: Tensor, b: Tensor, batch: Tensor, n: int) -> Tensor:
    """(n,) inner product of two (N, 3) vectors within each structure."""
    return a.new_zeros(n).index_add(0, batch, (a * b).sum(-1))


def _largest(vectors: Tensor, batch: Tensor, n: int) -> Tensor:
    """(n,) length of the longest of the vectors (N, 3) in each structure."""
    return vectors.new_zeros(n).scatter_reduce(0, batch, vectors.norm(dim=-1), "amax")


def _finite(energies: Tensor, forces: Tensor, batch: Tensor) -> Tensor:
    """(B,) bool: which structures have a finite energy and finite forces."""
    bad = (~torch.isfinite(forces).all(-1)).to(energies.dtype)  # (N,)
    return torch.isfinite(energies) & (energies.new_zeros(len(energies)).index_add(0, batch, bad) == 0)


def init(model: EnergyModel, positions: Tensor, batch: Tensor, fixed: Tensor, fmax: float) -> RelaxState:
    """The state before the first step; calls the model once. Arguments as in :func:`relaxing`."""
    energies, forces = model(positions)
    n = len(energies)
    failed = ~_finite(energies, forces, batch)
    free = forces.masked_fill(fixed[:, None], 0.0)
    empty = positions.new_zeros(0, *positions.shape)
    return RelaxState(
        positions=positions,
        energies=energies,
        forces=forces,
        n_steps=torch.zeros(n, dtype=torch.long, device=positions.device),
        converged=~failed & (_largest(free, batch, n) < fmax),
        failed=failed,
        displacements=empty,
        gradient_changes=empty,
        inverse_products=positions.new_zeros(0, n),
        inverse_curvature=positions.new_full((n,), INITIAL_INVERSE_CURVATURE),
    )


def _direction(state: RelaxState, free: Tensor, batch: Tensor) -> Tensor:
    """(N, 3) H F, Å, by the two-loop recursion."""
    n = len(state.energies)
    start = torch.searchsorted(batch, torch.arange(n + 1, device=batch.device))
    pairs = state.displacements, state.gradient_changes, state.inverse_products, state.inverse_curvature
    if compiled.for_gpu(free.device):
        on_gpu = import_module("adlayer.energies.lbfgs_gpu")
        found: Tensor = on_gpu.direction(*pairs, start, free)
        return found
    kernels = compiled.library("lbfgs", _SOURCE, free.dtype) if free.device.type == "cpu" else None
    if kernels is not None:
        direction = free.clone()
        compiled.call(
            kernels.direction,
            len(state.displacements),
            len(free),
            n,
            start,
            *(x.contiguous() for x in pairs),
            direction,
        )
        return direction
    direction, factors = free, []
    for s, y, rho in zip(
        state.displacements.flip(0), state.gradient_changes.flip(0), state.inverse_products.flip(0), strict=True
    ):
        factors.append(rho * _products(s, direction, batch, n))  # (B,)
        direction = direction - factors[-1][batch, None] * y
    direction = direction * state.inverse_curvature[batch, None]
    for s, y, rho in zip(state.displacements, state.gradient_changes, state.inverse_products, strict=True):
        correction = factors.pop() - rho * _products(y, direction, batch, n)  # (B,)
        direction = direction + correction[batch, None] * s
    return direction


def step(model: EnergyModel, state: RelaxState, batch: Tensor, fixed: Tensor, fmax: float) -> RelaxState:
    """One step of every structure that is still active; calls the model once."""
    n = len(state.energies)
    moving = state.active[batch, None] & ~fixed[:, None]  # (N, 1)
    before = torch.where(moving, state.forces, 0.0)
    move = _direction(state, before, batch)
    longest = _largest(move, batch, n)
    move = torch.where(moving, move * (MAX_MOVE / longest.clamp(min=MAX_MOVE))[batch, None], 0.0)

    energies, forces = model(state.positions + move)
    accepted = state.active & _finite(energies, forces, batch)
    at = accepted[batch, None]
    forces = torch.where(at, forces, state.forces)
    move = torch.where(at, move, 0.0)
    after = torch.where(moving & at, forces, 0.0)
    change = torch.where(at, before - after, 0.0)  # y, minus the change of the forces

    curvature, norm = _products(move, change, batch, n), _products(change, change, batch, n)
    usable = accepted & (curvature > 1e-10)
    keep = slice(-(MEMORY - 1), None)
    return replace(
        state,
        positions=state.positions + move,
        energies=torch.where(accepted, energies, state.energies),
        forces=forces,
        n_steps=state.n_steps + accepted,
        converged=state.converged | (accepted & (_largest(after, batch, n) < fmax)),
        failed=state.failed | (state.active & ~accepted),
        displacements=torch.cat([state.displacements[keep], move[None]]),
        gradient_changes=torch.cat([state.gradient_changes[keep], change[None]]),
        inverse_products=torch.cat(
            [state.inverse_products[keep], torch.where(usable, 1.0 / curvature.clamp(min=1e-10), 0.0)[None]]
        ),
        inverse_curvature=torch.where(accepted & (norm > 0), curvature.abs() / norm, state.inverse_curvature),
    )


def relaxing(
    model: EnergyModel, positions: Tensor, batch: Tensor, fixed: Tensor, fmax: float, max_steps: int
) -> Iterator[RelaxState]:
    """The state before the first step and after each, until no structure moves or the steps are over.

    Parameters
    ----------
    model
        Called once for each state.
    positions
        (N, 3) Å, atoms of all structures one after another.
    batch
        (N,) structure of each atom.
    fixed
        (N,) bool, atoms that do not move.
    fmax, max_steps
        Largest force on a free atom at which a structure is relaxed, eV/Å; steps after which to give up.
    """
    state = init(model, positions, batch, fixed, fmax)
    yield state
    for _ in range(max_steps):
        if not bool(state.active.any()):
            return
        state = step(model, state, batch, fixed, fmax)
        yield state

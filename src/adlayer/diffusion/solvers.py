"""Solvers of the reverse diffusion, from noise to structures.

Time runs backwards along falling noise levels σ; the forward process is ``dr = g dw``, ``g² = dσ²/dt`` without drift.
With the score s = ∇ log p_σ the reverse process is ``dr = g² s dt + g dw`` and the equivalent deterministic one (the
probability flow) ``dr/dσ = −σ s`` (Song et al. 2021). ``δ = σ² s`` is the displacement to the denoised point
``D = r + δ``, the posterior mean of r_0 (Tweedie).

Positions live on a torus between walls. So solvers only ever combine *displacements*, never absolute coordinates, and
fold after each step; a displacement kept for later changes its sign along z when its atom was reflected. The last step,
to σ = 0, goes to the denoised point and adds no noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from adlayer.diffusion.kernels import Domain, fold, mirror

if TYPE_CHECKING:
    from adlayer.diffusion.guidance import ForceGuidance

Score = Callable[[Tensor, Tensor], Tensor]  # positions (M, 3), sigma (B,) -> score (M, 3)
Normal = Callable[[], Tensor]  # fresh standard normal numbers (M, 3)


@dataclass(frozen=True)
class State:
    """Positions, folded, and what a multistep solver remembers of the step before."""

    positions: Tensor  # (M, 3) Å
    denoised: Tensor | None = None  # (M, 3) displacement from the positions to the last denoised point
    log_step: Tensor | None = None  # (B,) log(σ/σ_next) of the last step

    def moved(self, displacement: Tensor, domain: Domain) -> State:
        """The state after displacements (M, 3), folded."""
        free = self.positions + displacement
        denoised = None if self.denoised is None else (self.denoised - displacement) * mirror(free, domain)
        return replace(self, positions=fold(free, domain), denoised=denoised)


class Solver(Protocol):
    """One way to step from one noise level to the next."""

    def normals(self, n_steps: int) -> int:
        """How often so many steps ask for normal numbers."""
        ...

    def init(self, positions: Tensor) -> State:
        """The state at the start."""
        ...

    def step(
        self, state: State, sigma: Tensor, sigma_next: Tensor, score: Score, normal: Normal, domain: Domain, last: bool
    ) -> State:
        """Step from ``sigma`` (B,) to ``sigma_next`` (B,), which is 0 on the last step."""
        ...


@dataclass(frozen=True)
class EulerMaruyama:
    """Reverse stochastic equation, first order: ``r + (σ² − σ'²) s + √(σ² − σ'²) ε``, the published solver."""

    def normals(self, n_steps: int) -> int:
        """How often so many steps ask for normal numbers."""
        return n_steps - 1

    def init(self, positions: Tensor) -> State:
        """The state at the start."""
        return State(positions)

    def step(
        self, state: State, sigma: Tensor, sigma_next: Tensor, score: Score, normal: Normal, domain: Domain, last: bool
    ) -> State:
        """One step; the last goes to the denoised point."""
        variance = domain.per_atom(sigma.square() - sigma_next.square())[:, None]
        displacement = variance * score(state.positions, sigma)
        if not last:
            displacement = displacement + torch.sqrt(variance) * normal()
        return state.moved(displacement, domain)


@dataclass(frozen=True)
class Heun:
    """Probability flow by Heun's method, second order, with optional churn (Karras et al. 2022, Alg. 2).

    ``churn`` γ first raises the noise to σ(1 + γ) with fresh noise; 0 is deterministic, the original's limit is √2 − 1.
    """

    churn: float = 0.0

    def normals(self, n_steps: int) -> int:
        """How often so many steps ask for normal numbers."""
        return n_steps if self.churn > 0.0 else 0

    def init(self, positions: Tensor) -> State:
        """The state at the start."""
        return State(positions)

    def step(
        self, state: State, sigma: Tensor, sigma_next: Tensor, score: Score, normal: Normal, domain: Domain, last: bool
    ) -> State:
        """One step; the last is Euler's, to the denoised point."""
        if self.churn > 0.0:
            raised = sigma * (1.0 + self.churn)
            added = domain.per_atom(torch.sqrt(raised.square() - sigma.square()))[:, None]
            state, sigma = state.moved(added * normal(), domain), raised
        level, level_next = domain.per_atom(sigma)[:, None], domain.per_atom(sigma_next)[:, None]
        slope = -level * score(state.positions, sigma)
        displacement = (level_next - level) * slope
        if not last:
            there = state.positions + displacement
            slope_there = -level_next * score(fold(there, domain), sigma_next) * mirror(there, domain)
            displacement = (level_next - level) * 0.5 * (slope + slope_there)
        return state.moved(displacement, domain)


@dataclass(frozen=True)
class Multistep:
    """Second-order multistep exponential integrator, DPM-Solver++(2M) and its stochastic kin (Lu et al. 2022).

    In λ = −log σ, with step h and the one before h₋, ``r + c [δ + (h/2h₋)(D − D₋)] + σ' √(1 − e^{−2ηh}) ε`` where
    ``c = 1 − e^{−(1+η)h}``. ``eta`` η = 0 is deterministic, 1 the reverse stochastic equation.
    """

    eta: float = 0.0

    def normals(self, n_steps: int) -> int:
        """How often so many steps ask for normal numbers."""
        return n_steps - 1 if self.eta > 0.0 else 0

    def init(self, positions: Tensor) -> State:
        """The state at the start."""
        return State(positions)

    def step(
        self, state: State, sigma: Tensor, sigma_next: Tensor, score: Score, normal: Normal, domain: Domain, last: bool
    ) -> State:
        """One step; the first and the last are first order."""
        denoised = domain.per_atom(sigma)[:, None].square() * score(state.positions, sigma)  # δ
        if last:
            return State(state.positions).moved(denoised, domain)
        ratio = sigma_next / sigma
        log_step = -torch.log(ratio)
        target = denoised
        if state.denoised is not None and state.log_step is not None:
            slope = domain.per_atom(log_step / (2.0 * state.log_step))[:, None]
            target = denoised + slope * (denoised - state.denoised)
        displacement = domain.per_atom(1.0 - ratio ** (1.0 + self.eta))[:, None] * target
        if self.eta > 0.0:
            fresh = sigma_next * torch.sqrt(1.0 - ratio ** (2.0 * self.eta))
            displacement = displacement + domain.per_atom(fresh)[:, None] * normal()
        return State(state.positions, denoised, log_step).moved(displacement, domain)


@dataclass(frozen=True)
class Langevin:
    """Corrector: Langevin steps ``r + ε s + √(2ε) n`` at fixed σ, ``ε = size σ²``, at levels below ``sigma_gate``, Å.

    The variance it settles at is off by ``size/2`` of σ²; it must stay well below 1.
    """

    steps: int = 1
    size: float = 0.1
    sigma_gate: float = 0.5

    def correct(self, state: State, sigma: Tensor, score: Score, normal: Normal, domain: Domain) -> State:
        """The state after the corrector's steps at noise level ``sigma`` (B,)."""
        active = (sigma > 0.0) & (sigma < self.sigma_gate)
        if not bool(active.any()):
            return state
        epsilon = domain.per_atom(torch.where(active, self.size * sigma.square(), torch.zeros_like(sigma)))[:, None]
        for _ in range(self.steps):
            displacement = epsilon * score(state.positions, sigma) + torch.sqrt(2.0 * epsilon) * normal()
            state = state.moved(displacement, domain)
        return state


@torch.no_grad()
def sample(
    score: Score,
    positions: Tensor,
    grid: Tensor,
    solver: Solver,
    normal: Normal,
    domain: Domain,
    guidance: ForceGuidance | None = None,
    corrector: Langevin | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Run the reverse diffusion, without gradients (forces that need them must enable them).

    Parameters
    ----------
    score
        Maps positions (M, 3) and noise levels (B,) to scores (M, 3), 1/Å.
    positions
        (M, 3) start, drawn from the prior, Å.
    grid
        (K + 1, B) falling noise levels, Å, the last row 0.
    solver, guidance, corrector
        Each of the K steps is a displacement by guidance, a solver step, then the corrector at the new level.
    normal
        Returns fresh standard normal numbers (M, 3) each time it is called.
    callback
        Called with the number of steps done and the positions, at the start (0) and after each step.

    Returns
    -------
    Tensor
        (M, 3) positions in cell and window, Å.
    """
    state = solver.init(fold(positions, domain))
    n_steps = len(grid) - 1
    if callback is not None:
        callback(0, state.positions)
    for i in range(n_steps):
        sigma, sigma_next = grid[i], grid[i + 1]
        if guidance is not None:
            state = state.moved(guidance.displacement(state.positions, sigma, i / n_steps, domain), domain)
        state = solver.step(state, sigma, sigma_next, score, normal, domain, i == n_steps - 1)
        if corrector is not None:
            state = corrector.correct(state, sigma_next, score, normal, domain)
        if callback is not None:
            callback(i + 1, state.positions)
    return state.positions

"""Solvers given the exact score of known distributions, and the published implementation's errors, which must fail.

The data: atoms at one of three sites, with unequal weights and a spread τ by the exact kernel. Kernels compose,
so the density at noise level σ is the same mixture with spread √(τ² + σ²), and its score is known in closed form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adlayer.diffusion import solvers
from adlayer.diffusion.kernels import Domain, ExactKernel, fold, minimum_image, mirror, uniform
from adlayer.diffusion.schedule import LinearBeta, sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import EulerMaruyama, Heun, Langevin, Multistep, Score, Solver, State, sample

KERNEL = ExactKernel()
WEIGHTS = (0.6, 0.3, 0.1)
SHORT_CELL = torch.tensor([[[5.8, 0.0], [2.9, 5.02]], [[5.0, -4.0], [1.0, 3.5]]], dtype=torch.float64)
SHORT_WINDOW = torch.tensor([[10.0, 14.0], [-2.0, 1.5]], dtype=torch.float64)


@dataclass(frozen=True)
class Mixture:
    """Atoms at one of K sites, the same fractional ones in each structure."""

    domain: Domain
    spread: float  # τ, Å
    sites01: tuple[tuple[float, float, float], ...] = ((0.1, 0.2, 0.05), (0.6, 0.7, 0.5), (0.1, 0.7, 0.8))
    weights: tuple[float, ...] = WEIGHTS

    def sites(self) -> list[Tensor]:
        """K tensors (M, 3): each atom's sites."""
        here = self.domain.window.new_tensor(self.sites01)
        return [uniform(self.domain, site.expand(len(self.domain.batch), 3)) for site in here]

    def score(self, positions: Tensor, sigma: Tensor) -> Tensor:
        level = torch.sqrt(sigma.square() + self.spread**2)
        parts = [KERNEL._parts(positions, site, level, self.domain) for site in self.sites()]
        log_density = torch.stack([part[0] for part in parts])  # (K, M)
        weight = torch.softmax(log_density + log_density.new_tensor(self.weights).log()[:, None], dim=0)
        return (weight[..., None] * torch.stack([part[1] for part in parts])).sum(0)

    def residuals(self, positions: Tensor) -> Tensor:
        """(K, M, 3) nearest displacements from the sites."""
        frame = self.domain.frame[self.domain.batch]
        return torch.stack(
            [
                torch.cat([torch.stack(minimum_image(*frame.components(d[:, :2]), frame), -1), d[:, 2:]], dim=-1)
                for d in (positions - site for site in self.sites())
            ]
        )


def two_structures(atoms_each: int) -> Domain:
    return Domain(SHORT_CELL, SHORT_WINDOW, torch.arange(2).repeat_interleave(atoms_each))


def normals(n_atoms: int, seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)


def prior(domain: Domain, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return uniform(domain, torch.rand(len(domain.batch), 3, generator=generator, dtype=torch.float64))


def levels(domain: Domain, n_steps: int, sigma_min: float = 0.02) -> Tensor:
    return sigma_grid(n_steps, sigma_min, sigma_max_for(domain.cell, domain.window))


def run(solver: Solver, mixture: Mixture, n_steps: int, score: Score | None = None, seed: int = 0) -> Tensor:
    domain = mixture.domain
    n = len(domain.batch)
    return sample(
        score or mixture.score, prior(domain, seed), levels(domain, n_steps), solver, normals(n, seed + 1), domain
    )


def errors(mixture: Mixture, positions: Tensor) -> dict[str, float]:
    """Departures from the mixture: site weights, spreads along x, y, z (z away from walls), mean displacement."""
    residuals = mixture.residuals(positions)
    nearest = residuals.square().sum(-1).argmin(0)  # (M,)
    counts = torch.bincount(nearest, minlength=len(mixture.weights)).double() / len(nearest)
    own = residuals.gather(0, nearest[None, :, None].expand(1, -1, 3))[0]
    middle = nearest == 1  # the site far from both walls
    planar = own[:, :2].square().mean().sqrt() / mixture.spread - 1.0
    vertical = own[middle, 2].square().mean().sqrt() / mixture.spread - 1.0
    return {
        "weights": float((counts - torch.tensor(mixture.weights)).abs().max()),
        "planar spread": abs(float(planar)),
        "vertical spread": abs(float(vertical)),
        "mean": float(own[:, :2].mean(0).abs().max() / mixture.spread),
    }


def accepted(mixture: Mixture, positions: Tensor, bias: float) -> bool:
    """All errors within four standard errors plus the discretisation's ``bias``."""
    n = len(positions)
    statistical = {
        "weights": 4 * math.sqrt(0.25 / n),
        "planar spread": 4 / math.sqrt(4 * n),
        "vertical spread": 4 / math.sqrt(2 * WEIGHTS[1] * n),
        "mean": 4 / math.sqrt(n),
    }
    return all(value < statistical[name] + bias for name, value in errors(mixture, positions).items())


SOLVERS = {
    "euler": EulerMaruyama(),
    "heun": Heun(),
    "heun churned": Heun(churn=0.2),
    "multistep": Multistep(),
    "multistep half": Multistep(eta=0.5),
    "multistep stochastic": Multistep(eta=1.0),
}
# relative bias allowed at each number of steps; Euler's noise is too strong by half a step
BIAS = {20: 0.06, 50: 0.02}
EULER_BIAS = {20: 0.5, 50: 0.2}


@pytest.mark.parametrize("n_steps", [20, 50])
@pytest.mark.parametrize("name", SOLVERS)
def test_mixture_comes_back(name: str, n_steps: int) -> None:
    mixture = Mixture(two_structures(1000), spread=0.2)
    bias = (EULER_BIAS if name == "euler" else BIAS)[n_steps]
    found = run(SOLVERS[name], mixture, n_steps)
    assert accepted(mixture, found, bias), errors(mixture, found)

"""Noise levels: their grid, their largest, and the published schedule."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from adlayer.diffusion.kernels import Domain, ExactKernel, uniform
from adlayer.diffusion.schedule import LinearBeta, log_uniform_sigma, sigma_grid, sigma_max_for

HEXAGONAL = torch.tensor([[2.9, 0.0], [1.45, 2.9 * 3**0.5 / 2]], dtype=torch.float64)
MATRICES = torch.tensor([[[4, 0], [0, 4]], [[8, -7], [2, 4]], [[1, 0], [0, 7]], [[2, 0], [0, 2]]], dtype=torch.float64)
CELLS = torch.cat([MATRICES @ HEXAGONAL, torch.diag(torch.tensor([6.0, 6.0], dtype=torch.float64))[None]])
WINDOWS = torch.tensor([[10.0, 14.0], [10.0, 13.0], [3.0, 6.0], [0.0, 9.0], [5.0, 8.0]], dtype=torch.float64)


def test_grid_falls_from_the_largest_level_to_the_smallest_and_then_to_zero() -> None:
    top = torch.tensor([3.0, 8.0], dtype=torch.float64)
    grid = sigma_grid(20, 0.01, top)
    assert grid.shape == (21, 2)
    assert (grid[0] == top).all()
    assert (grid[-1] == 0.0).all()
    np.testing.assert_allclose(grid[-2].numpy(), 0.01, rtol=1e-9)
    assert (grid.diff(dim=0) < 0.0).all()
    np.testing.assert_allclose(np.diff(grid[:-1, 1].numpy() ** (1 / 7), n=2), 0.0, atol=1e-12)


def test_one_step_goes_from_the_largest_level_to_zero() -> None:
    assert sigma_grid(1, 0.01, torch.tensor([3.0])).tolist() == [[3.0], [0.0]]


def deviation(sigma: torch.Tensor, z_only: bool) -> torch.Tensor:
    """Largest relative departure (B,) of the exact density from uniform, over r_t and the hardest r_0 (at a wall)."""
    kernel, u = ExactKernel(), (torch.arange(24, dtype=torch.float64)) / 24
    found = []
    for b in range(len(CELLS)):
        unit = torch.cartesian_prod(
            torch.zeros(1).double(), torch.zeros(1).double(), torch.linspace(0, 1, 201).double()
        )
        if not z_only:
            unit = torch.cat([torch.cartesian_prod(u, u), torch.full((576, 1), 0.5)], dim=-1).double()
        domain = Domain(CELLS[b : b + 1], WINDOWS[b : b + 1], torch.zeros(len(unit), dtype=torch.long))
        noisy = uniform(domain, unit)
        clean = torch.zeros_like(noisy)
        clean[:, 2] = WINDOWS[b, 0] if z_only else WINDOWS[b].mean()
        log_density = kernel.log_density(noisy, clean, sigma[b : b + 1], domain)
        volume = torch.linalg.det(CELLS[b]).abs() * (WINDOWS[b, 1] - WINDOWS[b, 0])
        found.append((log_density.exp() * volume - 1.0).abs().max())
    return torch.stack(found)


def test_density_at_the_largest_level_is_uniform_to_one_percent_each_way() -> None:
    top = sigma_max_for(CELLS, WINDOWS)
    planar, vertical = deviation(top, z_only=False), deviation(top, z_only=True)
    # each probe sits at a node of the other direction's slowest wave or sees its square: 1 % and a little
    assert (planar <= 0.0105).all()
    assert (vertical <= 0.0205).all()
    assert (torch.maximum(planar, vertical) > 0.003).all(), "the level is not wastefully large either"
    half = 0.5 * top
    assert (torch.maximum(deviation(half, False), deviation(half, True)) > 0.2).all()


@pytest.mark.parametrize("b", range(len(CELLS)))
def test_atoms_noised_to_the_largest_level_pass_for_uniform_and_to_a_third_of_it_do_not(b: int) -> None:
    n = 10000
    domain = Domain(CELLS[b : b + 1], WINDOWS[b : b + 1], torch.zeros(n, dtype=torch.long))
    clean = torch.tensor([0.3, 0.4, 0.0], dtype=torch.float64) + torch.tensor([0, 0, WINDOWS[b, 0] + 0.1])
    normal = torch.randn(n, 3, generator=torch.Generator().manual_seed(b), dtype=torch.float64)

    def smallest_p(sigma: torch.Tensor) -> float:
        noisy = ExactKernel().perturb(clean.expand(n, 3), sigma, normal, domain)
        height = (noisy[:, 2] - domain.window[0, 0]) / domain.width[0]
        columns = [*(noisy[:, :2] @ domain.inverse[0]).numpy().T, height.numpy()]
        return min(stats.kstest(column, "uniform").pvalue for column in columns)

    top = sigma_max_for(domain.cell, domain.window)
    assert smallest_p(top) > 1e-3
    assert smallest_p(top / 3.0) < 1e-6


def test_largest_level_does_not_depend_on_the_choice_of_cell() -> None:
    other = torch.tensor([[3.0, 2.0], [4.0, 3.0]], dtype=torch.float64) @ CELLS
    torch.testing.assert_close(sigma_max_for(other, WINDOWS), sigma_max_for(CELLS, WINDOWS))


def test_training_levels_are_uniform_in_the_logarithm() -> None:
    u = torch.rand(20000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = log_uniform_sigma(u, 0.01, torch.full_like(u, 6.0))
    scaled = np.log(sigma.numpy() / 0.01) / math.log(600.0)
    assert stats.kstest(scaled, "uniform").pvalue > 1e-3
    assert log_uniform_sigma(torch.zeros(1), 0.01, torch.tensor([6.0])).item() == pytest.approx(0.01)


def test_published_schedule_matches_its_integrals() -> None:
    schedule = LinearBeta()
    for time in (0.0, 0.2, 0.7, 1.0):
        t = torch.tensor(time, dtype=torch.float64, requires_grad=True)
        integral = quad(lambda x: 0.01 + 2.99 * x, 0.0, time)[0]
        assert schedule.B(t).item() == pytest.approx(integral, abs=1e-12)
        assert schedule.alpha(t).item() == pytest.approx(math.exp(-integral / 2))
        assert schedule.sigma(t).item() ** 2 + schedule.alpha(t).item() ** 2 == pytest.approx(1.0)
        (rate,) = torch.autograd.grad(-torch.expm1(-schedule.B(t)), t)
        assert schedule.g2(t).item() == pytest.approx(rate.item())


@pytest.mark.parametrize(("beta_max", "level"), [(2.0, 0.80), (3.0, 0.88), (4.0, 0.93)])
def test_published_schedule_ends_below_one_angstrom(beta_max: float, level: float) -> None:
    grid = LinearBeta(beta_max=beta_max).grid(1000)
    assert grid.shape == (1001,)
    assert grid[0].item() == pytest.approx(level, abs=0.005)
    assert grid[-1].item() == 0.0
    assert (grid.diff() < 0.0).all()

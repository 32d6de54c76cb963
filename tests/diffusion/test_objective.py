"""Denoising score matching weighs every noise level alike and has the marginal score as its minimum."""

import math

import pytest
import torch
from torch import Tensor

from adlayer.diffusion.kernels import Domain, ExactKernel, uniform
from adlayer.diffusion.objective import score_matching_loss
from adlayer.diffusion.schedule import sigma_max_for

KERNEL = ExactKernel()
CELL = torch.tensor([[8.7, 0.0], [4.35, 7.53]], dtype=torch.float64)


def domain_of(n_structures: int, atoms_each: int) -> Domain:
    return Domain(
        CELL.repeat(n_structures, 1, 1),
        torch.tensor([[10.0, 14.0]], dtype=torch.float64).repeat(n_structures, 1),
        torch.arange(n_structures).repeat_interleave(atoms_each),
    )


def noised(domain: Domain, sigma: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(domain.batch), 3)
    clean = uniform(domain, torch.rand(shape, generator=generator, dtype=torch.float64))
    return KERNEL.perturb(clean, sigma, torch.randn(shape, generator=generator, dtype=torch.float64), domain), clean


def test_formula() -> None:
    domain = domain_of(2, 1)
    predicted = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    target = torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    scale = torch.tensor([[1.0, 2.0, 2.0], [4.0, 1.0, 1.0]])
    assert score_matching_loss(predicted, target, scale, domain).item() == pytest.approx((1 + 1 + 1 + 0.25) / 2)


def losses_of_zero(weight: str) -> list[float]:
    """Loss (should be 3) of a network that returns zero, from σ = 0.01 Å to the largest level."""
    domain = domain_of(1, 20000)
    top = float(sigma_max_for(domain.cell, domain.window)[0])
    found = []
    for sigma in torch.logspace(-2, math.log10(0.8 * top), 7, dtype=torch.float64)[:, None]:
        noisy, clean = noised(domain, sigma)
        target = KERNEL.score(noisy, clean, sigma, domain)
        scale = KERNEL.score_scale(sigma, domain) if weight == "fisher" else (1.0 / sigma)[:, None].expand(1, 3)
        found.append(float(score_matching_loss(torch.zeros_like(target), target, scale, domain)))
    return found


def test_every_noise_level_weighs_alike() -> None:
    assert losses_of_zero("fisher") == pytest.approx([3.0] * 7, rel=0.06)


def test_weights_of_a_free_gaussian_lose_the_high_levels() -> None:
    """The planted error: λ = σ², right in free space only."""
    assert min(losses_of_zero("free")) < 0.3


def test_minimum_is_the_marginal_score() -> None:
    """Two sites, many draws: the loss at the mixture's score lies below that of its neighbours and of either site."""
    domain, sigma = domain_of(1, 40000), torch.tensor([1.2], dtype=torch.float64)
    sites = torch.tensor([[1.0, 1.0, 11.0], [3.5, 2.0, 12.5]], dtype=torch.float64)
    which = (torch.arange(40000) % 3 == 0).long()
    noisy, _ = noised(domain, sigma)
    generator = torch.Generator().manual_seed(7)
    normal = torch.randn(40000, 3, generator=generator, dtype=torch.float64)
    noisy = KERNEL.perturb(sites[which], sigma, normal, domain)
    target = KERNEL.score(noisy, sites[which], sigma, domain)
    each = [site.expand(40000, 3) for site in sites]
    log_density = torch.stack([KERNEL.log_density(noisy, site, sigma, domain) for site in each])
    share = torch.softmax(log_density + torch.tensor([[2 / 3], [1 / 3]]).log(), dim=0)[..., None]
    scores = torch.stack([KERNEL.score(noisy, site, sigma, domain) for site in each])
    marginal = (share * scores).sum(0)
    scale = KERNEL.score_scale(sigma, domain)

    def loss(predicted: Tensor) -> float:
        return float(score_matching_loss(predicted, target, scale, domain))

    best = loss(marginal)
    for other in (0.97 * marginal, 1.03 * marginal, scores[0], scores[1], scores.mean(0), marginal / sigma):
        assert best < loss(other)


def test_loss_carries_gradients() -> None:
    domain, sigma = domain_of(2, 5), torch.tensor([0.1, 2.0], dtype=torch.float64)
    noisy, clean = noised(domain, sigma)
    predicted = torch.zeros(10, 3, dtype=torch.float64, requires_grad=True)
    target = KERNEL.score(noisy, clean, sigma, domain)
    scale = KERNEL.score_scale(sigma, domain)
    score_matching_loss(predicted, target, scale, domain).backward()
    torch.testing.assert_close(predicted.grad, -2 * target / domain.per_atom(scale).square() / 10)

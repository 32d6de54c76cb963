"""Classifier-free guidance: exact scores of a known mixture, and what conditions do to a trained model.

Samples of the shipped model come in pairs that share all their random numbers, judged by Wilcoxon's one-sided
signed-rank test. Nothing here knows a number that the model gave. Energies are raw: nothing is relaxed.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import adlayer
from adlayer.diffusion.generation import Generated, generate
from adlayer.diffusion.guidance import classifier_free
from adlayer.diffusion.kernels import Domain, ExactKernel, minimum_image, uniform
from adlayer.diffusion.sampling import Sampling
from adlayer.diffusion.schedule import sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import Multistep, Score, sample
from adlayer.network.model import Model
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model

QUICK = Sampling(steps=25, relax_steps=0)
FORMULA, RIGHT = "Ag4O2", (1.0 / 3.0,)


# Exact scores: atoms that do not feel each other, in one of two sites.


def _mixture(kernel: ExactKernel, sites: Tensor, shares: tuple[float, float], domain: Domain) -> Score:
    def score(positions: Tensor, sigma: Tensor) -> Tensor:
        each = [site.expand_as(positions) for site in sites]
        logs = torch.stack([kernel.log_density(positions, site, sigma, domain) for site in each])  # (2, M)
        weights = torch.softmax(logs + torch.tensor(shares, dtype=logs.dtype).log()[:, None], dim=0)
        return sum(
            w[:, None] * kernel.score(positions, site, sigma, domain) for w, site in zip(weights, each, strict=True)
        )

    return score


def test_weights_tilt_a_known_mixture() -> None:
    """Sites equally likely, under the condition 3 : 1. Weights 0 and 1 give these shares, 2 goes beyond, −1 against."""
    n = 800
    domain = Domain(
        torch.tensor([[[6.0, 0.0], [3.0, 5.0]]], dtype=torch.float64),
        torch.tensor([[0.0, 3.0]], dtype=torch.float64),
        torch.zeros(n, dtype=torch.long),
    )
    kernel = ExactKernel()
    sites = torch.tensor([[1.0, 1.0, 1.0], [4.5, 3.5, 2.0]], dtype=torch.float64)
    free, conditional = (_mixture(kernel, sites, s, domain) for s in ((0.5, 0.5), (0.75, 0.25)))
    grid = sigma_grid(20, 0.02, sigma_max_for(domain.cell, domain.window))

    def share(weight: float) -> float:
        """Of the atoms, those in the first site; all must be in one of the two."""
        generator = torch.Generator().manual_seed(0)
        found = sample(
            classifier_free(conditional, free, weight),
            uniform(domain, torch.rand(n, 3, generator=generator, dtype=torch.float64)),
            grid,
            Multistep(),
            lambda: torch.randn(n, 3, generator=generator, dtype=torch.float64),
            domain,
        )
        frame = domain.frame[domain.batch]
        distances = []
        for site in sites:
            x, y = minimum_image(*frame.components((found - site)[:, :2]), frame)
            distances.append(torch.stack([x, y, (found - site)[:, 2]]).norm(dim=0))
        first, second = (d < 0.3 for d in distances)
        assert (first | second).all()
        return float(first.double().mean())

    against, none, plain, strong = (share(w) for w in (-1.0, 0.0, 1.0, 2.0))
    error = 4.0 * 0.5 / np.sqrt(n)  # four standard errors
    assert none == pytest.approx(0.5, abs=error)
    assert plain == pytest.approx(0.75, abs=error)
    assert strong > plain + error
    assert against < none - error


# The shipped model.


@lru_cache(maxsize=1)
def _shipped() -> Model:
    return load_model(Path(adlayer.__file__).parent / "data" / "ag-o.safetensors")


def _generate(n: int, model: Model | None = None, **changes: Any) -> Generated:
    substrate = build_substrate("Ag(111)", "p(3x2)", layers=2, lattice=4.16, window=(1.0, 5.0))
    settings = replace(QUICK, **changes)
    return generate(model or _shipped(), substrate, formula=FORMULA, n=n, seed=1, settings=settings, block=16)


def _energies(n: int, model: Model | None = None, **changes: Any) -> np.ndarray:
    return np.array([atoms.get_potential_energy() for atoms in _generate(n, model, **changes).structures])


def _lower(low: np.ndarray, high: np.ndarray) -> float:
    """p of the hypothesis that ``low`` is not below ``high``, pair by pair."""
    return float(stats.wilcoxon(low, high, alternative="less").pvalue)


def test_asking_for_low_energy_gives_lower_energy() -> None:
    low, high = _energies(48, energy=0.0), _energies(48, energy=0.15)
    assert low.mean() < high.mean()
    assert _lower(low, high) < 0.01
    assert _lower(high, low) > 0.5


def test_a_model_that_ignores_conditions_is_found_out() -> None:
    """The planted error: the network's inputs from the conditions cut off. Pairs are then the same structures."""
    deaf = copy.deepcopy(_shipped())
    first = deaf.denoiser.condition[0]
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        first.weight[:, 2 * len(deaf.denoiser.frequencies) :] = 0.0
    low, high = _energies(4, deaf, energy=0.0), _energies(4, deaf, energy=0.15)
    np.testing.assert_allclose(low, high, atol=1e-3)


@pytest.mark.slow
def test_a_larger_weight_goes_further() -> None:
    """Energy falls with the weight of "lowest", and rises with that of "0.3 eV per atom above it"."""
    free, low, lower = (_energies(192, energy=0.0, weight=w) for w in (0.0, 1.0, 2.0))
    assert _lower(low, free) < 0.01
    assert _lower(lower, low) < 0.01
    high, higher = (_energies(192, energy=0.3, weight=w) for w in (1.0, 2.0))
    assert _lower(free, high) < 0.01
    assert _lower(low, high) < 0.01
    assert _lower(lower, higher) < 0.01


@pytest.mark.slow
def test_the_calculator_of_the_data_agrees() -> None:
    """The energies above are the model's own; those of SevenNet-0 shift alike."""
    pytest.importorskip("sevenn")
    from adlayer.energies.calculators import make_calculator

    calculator = make_calculator("sevennet")

    def energies(energy: float) -> np.ndarray:
        found = []
        for atoms in _generate(48, energy=energy).structures:
            atoms.calc = calculator
            found.append(atoms.get_potential_energy())
        return np.array(found)

    assert _lower(energies(0.0), energies(0.15)) < 0.01


@pytest.mark.slow
def test_the_fraction_of_the_formula_says_nothing_new() -> None:
    """With the formula fixed, its oxygen fraction is known from the atoms: p(r | formula, fraction) = p(r | formula).
    So the score of an exact model ignores it, and guidance by it must change nothing, at any weight: the mean energy
    by less than 0.05 eV per overlayer atom (two one-sided tests on pairs, p < 0.01 each).
    """
    free = _energies(128, energy=None)
    for weight in (1.0, 3.0):
        difference = (_energies(128, energy=None, fractions=RIGHT, weight=weight) - free) / 6.0
        assert stats.ttest_1samp(difference, 0.05, alternative="less").pvalue < 0.01
        assert stats.ttest_1samp(difference, -0.05, alternative="greater").pvalue < 0.01

"""Solvers given the exact score of known distributions, and the published implementation's errors, which must fail.

The data: atoms at one of three sites, with unequal weights and a spread τ by the exact kernel. Kernels compose,
so the density at noise level σ is the same mixture with spread √(τ² + σ²), and its score is known in closed form.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats
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
        level, k = torch.sqrt(sigma.square() + self.spread**2), len(self.weights)
        stacked = replace(self.domain, batch=self.domain.batch.repeat(k))
        log_density, score = KERNEL._parts(positions.repeat(k, 1), torch.cat(self.sites()), level, stacked)
        log_weight = log_density.new_tensor(self.weights).log()[:, None]
        weight = torch.softmax(log_density.view(k, -1) + log_weight, dim=0)
        return (weight[..., None] * score.view(k, -1, 3)).sum(0)

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
    mixture = Mixture(two_structures(600), spread=0.2)
    bias = (EULER_BIAS if name == "euler" else BIAS)[n_steps]
    found = run(SOLVERS[name], mixture, n_steps)
    assert accepted(mixture, found, bias), errors(mixture, found)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_mixture_comes_back_at_a_thousand_steps(name: str) -> None:
    mixture = Mixture(two_structures(500), spread=0.2)
    found = run(SOLVERS[name], mixture, 1000)
    assert accepted(mixture, found, 0.01), errors(mixture, found)


@pytest.mark.parametrize("name", ["heun", "multistep", "multistep stochastic"])
def test_heights_are_distributed_as_the_data(name: str) -> None:
    """Two-sample Kolmogorov–Smirnov at 1e-3, a site at the wall included, 50 steps."""
    mixture = Mixture(two_structures(750), spread=0.3)
    domain, n = mixture.domain, 1500
    which = torch.multinomial(torch.tensor(WEIGHTS), n, replacement=True, generator=torch.Generator().manual_seed(5))
    site = torch.stack(mixture.sites())[which, torch.arange(n)]
    data = KERNEL.perturb(site, torch.full((2,), 0.3, dtype=torch.float64), normals(n, 6)(), domain)
    found = run(SOLVERS[name], mixture, 50)
    for b in (0, 1):
        own = domain.batch == b
        assert stats.ks_2samp(found[own, 2].numpy(), data[own, 2].numpy()).pvalue > 1e-3


# order of convergence


def integrate(solver: Solver, mixture: Mixture, n_steps: int, factor: float = 1.0) -> Tensor:
    """Without noise, from fixed starts at σ = 3 Å to 0.1 Å on geometric levels, with ``factor`` times the score."""
    domain = mixture.domain
    grid = torch.logspace(math.log10(3.0), -1.0, n_steps + 1, dtype=torch.float64)[:, None].expand(-1, 2)
    state = solver.init(prior(domain, 3))
    zero = torch.zeros_like(state.positions)
    for sigma, sigma_next in pairwise(grid):
        state = solver.step(
            state, sigma, sigma_next, lambda r, level: factor * mixture.score(r, level), lambda: zero, domain, False
        )
    return state.positions


@pytest.mark.parametrize(
    ("solver", "order"), [(EulerMaruyama(), 1.0), (Heun(), 2.0), (Multistep(), 2.0)], ids=["euler", "heun", "multistep"]
)
def test_order_of_convergence_without_noise(solver: Solver, order: float) -> None:
    """Halving the step divides the error of the median atom by 2^order.

    Euler's drift is twice the probability flow's: noise-free, it solves the flow of the doubled score.
    """
    mixture = Mixture(two_structures(20), spread=0.5)
    reference = integrate(Heun(), mixture, 300, factor=2.0 if isinstance(solver, EulerMaruyama) else 1.0)
    frame = mixture.domain.frame[mixture.domain.batch]

    def error(n_steps: int) -> float:
        difference = integrate(solver, mixture, n_steps) - reference
        x, y = minimum_image(*frame.components(difference[:, :2]), frame)
        return float(torch.stack([x, y, difference[:, 2]]).norm(dim=0).median())

    assert math.log2(error(40) / error(80)) == pytest.approx(order, abs=0.25)


def test_deterministic_solvers_agree_with_each_other() -> None:
    mixture = Mixture(two_structures(20), spread=0.5)
    heun, multistep = integrate(Heun(), mixture, 100), integrate(Multistep(), mixture, 100)
    assert float((heun - multistep).norm(dim=-1).median()) < 2e-3


# torus and walls


def unfolded(score: Score, domain: Domain) -> Score:
    """The same score seen from free space: periodic in the plane, mirrored along z."""
    return lambda positions, sigma: score(fold(positions, domain), sigma) * mirror(positions, domain)


def folding_error(solver: Solver) -> float:
    """A run in the folded domain against a folded run in free space, with a score that drives atoms through walls."""
    domain = two_structures(30)
    free = replace(domain, cell=domain.cell * 1e4, window=torch.tensor([[-1e4, 1e4]] * 2, dtype=torch.float64))
    height = domain.per_atom(domain.window)[:, 0]

    def score(positions: Tensor, sigma: Tensor) -> Tensor:
        z = positions[:, 2] - height
        push = torch.stack([torch.sin(z), torch.cos(3 * z), 2.0 + torch.cos(2 * z)], dim=-1)
        return push * (3.0 / domain.per_atom(sigma)[:, None])

    start, grid = prior(domain, 1), levels(domain, 12)
    origin = start.new_tensor([2e4, 2e4, 0.0])  # keeps free space inside its own huge cell

    def shifted(positions: Tensor, sigma: Tensor) -> Tensor:
        return unfolded(score, domain)(positions - origin, sigma)

    zero = torch.zeros_like(start)
    expected = fold(sample(shifted, start + origin, grid, solver, lambda: zero, free) - origin, domain)
    found = sample(score, start, grid, solver, lambda: zero, domain)
    frame = domain.frame[domain.batch]
    x, y = minimum_image(*frame.components((found - expected)[:, :2]), frame)
    return float(torch.stack([x, y, (found - expected)[:, 2]]).abs().max())


@pytest.mark.parametrize("solver", [EulerMaruyama(), Heun(), Multistep(), Multistep(eta=1.0)])
def test_folding_each_step_is_folding_at_the_end(solver: Solver) -> None:
    assert folding_error(solver) < 1e-6


@pytest.mark.parametrize("solver", [Heun(), Multistep()])
def test_remembered_displacements_must_be_mirrored(solver: Solver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "mirror", lambda positions, domain: torch.ones_like(positions))
    assert folding_error(solver) > 1e-2


def origin_error(solver: Solver) -> float:
    """Largest change of the result when crystal, atoms and window are all moved, with the same noise."""
    mixture = Mixture(two_structures(20), spread=0.2)
    domain = mixture.domain
    shift = torch.tensor([3.0, -11.0, 57.0], dtype=torch.float64)
    there = replace(domain, window=domain.window + shift[2])

    def moved_score(positions: Tensor, sigma: Tensor) -> Tensor:
        return mixture.score(positions - shift, sigma)

    start, grid = prior(domain, 8), levels(domain, 20)
    here = sample(mixture.score, start, grid, solver, normals(40, 9), domain)
    moved = sample(moved_score, start + shift, grid, solver, normals(40, 9), there) - shift
    frame = domain.frame[domain.batch]
    x, y = minimum_image(*frame.components((moved - here)[:, :2]), frame)
    return float(torch.stack([x, y, (moved - here)[:, 2]]).abs().max())


@dataclass(frozen=True)
class PublishedDrift(EulerMaruyama):
    """The planted error: the reverse step keeps ½ β r on absolute coordinates."""

    def step(
        self,
        state: State,
        sigma: Tensor,
        sigma_next: Tensor,
        score: Score,
        normal: Callable[[], Tensor],
        domain: Domain,
        last: bool,
    ) -> State:
        drift = 0.5 * domain.per_atom((sigma.square() - sigma_next.square()) / (1 + sigma.square()))[:, None]
        return super().step(
            state.moved(drift * state.positions, domain), sigma, sigma_next, score, normal, domain, last
        )


@pytest.mark.parametrize("name", SOLVERS)
def test_result_does_not_depend_on_the_origin(name: str) -> None:
    assert origin_error(SOLVERS[name]) < 1e-6


def test_published_drift_depends_on_the_origin() -> None:
    assert origin_error(PublishedDrift()) > 0.1


# the published implementation's other errors


def test_score_off_by_sigma_fails() -> None:
    mixture = Mixture(two_structures(500), spread=0.2)

    def published(positions: Tensor, sigma: Tensor) -> Tensor:
        return mixture.score(positions, sigma) / mixture.domain.per_atom(sigma)[:, None]

    assert accepted(mixture, run(Multistep(eta=1.0), mixture, 50), BIAS[50])
    assert not accepted(mixture, run(Multistep(eta=1.0), mixture, 50, published), BIAS[50])


def test_prior_that_is_not_the_end_of_the_forward_process_fails() -> None:
    """The planted error: from uniform atoms at the published σ(1) = 0.93 Å; all else as in the runs that pass."""
    mixture = Mixture(two_structures(500), spread=0.2)
    domain = mixture.domain
    top = LinearBeta(beta_max=4.0).sigma(torch.tensor([1.0, 1.0], dtype=torch.float64))
    grid = sigma_grid(50, 0.02, top)
    found = sample(mixture.score, prior(domain, 0), grid, Multistep(eta=1.0), normals(1000, 1), domain)
    assert not accepted(mixture, found, BIAS[50])
    assert errors(mixture, found)["weights"] > 0.1


@dataclass(frozen=True)
class NoisyLanding(EulerMaruyama):
    """The planted error: the last step adds noise like any other."""

    def step(
        self,
        state: State,
        sigma: Tensor,
        sigma_next: Tensor,
        score: Score,
        normal: Callable[[], Tensor],
        domain: Domain,
        last: bool,
    ) -> State:
        landed = super().step(state, sigma, sigma_next, score, normal, domain, last)
        return landed if not last else landed.moved(domain.per_atom(sigma)[:, None] * normal(), domain)


@dataclass(frozen=True)
class DoubledLanding(EulerMaruyama):
    """The planted error: the last step goes twice as far as the denoised point."""

    def step(
        self,
        state: State,
        sigma: Tensor,
        sigma_next: Tensor,
        score: Score,
        normal: Callable[[], Tensor],
        domain: Domain,
        last: bool,
    ) -> State:
        twice = (lambda r, s: 2.0 * score(r, s)) if last else score
        return super().step(state, sigma, sigma_next, twice, normal, domain, last)


def landing_error(solver: Solver) -> float:
    """Largest distance from the nearest site, for sites without spread."""
    mixture = Mixture(two_structures(60), spread=0.0)
    return float(mixture.residuals(run(solver, mixture, 20)).norm(dim=-1).amin(0).max())


@pytest.mark.parametrize("name", SOLVERS)
def test_last_step_lands_on_the_site(name: str) -> None:
    assert landing_error(SOLVERS[name]) < 1e-9


@pytest.mark.parametrize("solver", [NoisyLanding(), DoubledLanding()])
def test_last_step_that_overshoots_fails(solver: Solver) -> None:
    assert landing_error(solver) > 0.02


def equilibrium_ratio(corrector: Langevin, noise_factor: float = 1.0) -> float:
    """Variance after many corrector steps over the right one, for atoms that start in equilibrium."""
    n, sigma = 4000, torch.full((2,), 0.2, dtype=torch.float64)
    mixture = Mixture(two_structures(n // 2), spread=0.1, sites01=((0.5, 0.5, 0.5),), weights=(1.0,))
    level = torch.sqrt(sigma.square() + 0.1**2)
    state = State(KERNEL.perturb(mixture.sites()[0], level, normals(n, 1)(), mixture.domain))
    source = normals(n, 2)
    for _ in range(40):
        state = corrector.correct(state, sigma, mixture.score, lambda: noise_factor * source(), mixture.domain)
    return float(mixture.residuals(state.positions)[0].square().mean() / level[0] ** 2)


def test_corrector_keeps_the_distribution() -> None:
    """Within 4 standard errors of the variance and the stated size/2 of σ² (score of variance 0.05: 0.8 × size/2)."""
    assert equilibrium_ratio(Langevin(size=0.1)) == pytest.approx(1.0 / (1.0 - 0.04), abs=4 * math.sqrt(2 / 12000))


def test_corrector_without_the_root_of_two_fails() -> None:
    assert equilibrium_ratio(Langevin(size=0.1), noise_factor=1 / math.sqrt(2)) < 0.6


def test_corrector_rests_above_its_gate_and_at_zero_noise() -> None:
    domain = two_structures(5)
    state = State(prior(domain, 0))

    def never(positions: Tensor, sigma: Tensor) -> Tensor:
        raise AssertionError("no score is needed")

    for sigma in (0.0, 0.5, 2.0):
        level = torch.full((2,), sigma, dtype=torch.float64)
        assert Langevin().correct(state, level, never, normals(10, 0), domain) is state
    mixed = torch.tensor([0.1, 2.0], dtype=torch.float64)
    moved = Langevin().correct(state, mixed, Mixture(domain, 0.1).score, normals(10, 0), domain)
    same = (moved.positions - state.positions).abs().amax(-1) < 1e-12
    assert same[5:].all()
    assert not same[:5].any()


# the loop


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_are_counted_and_every_frame_lies_inside(name: str) -> None:
    mixture, frames, calls = Mixture(two_structures(10), spread=0.2), [], []
    domain, solver = mixture.domain, SOLVERS[name]

    def counted(positions: Tensor, sigma: Tensor) -> Tensor:
        calls.append(float(sigma[0]))
        return mixture.score(positions, sigma)

    def keep(step: int, positions: Tensor) -> None:
        assert step == len(frames)
        frames.append(positions)

    result = sample(
        counted,
        prior(domain, 0),
        levels(domain, 15),
        solver,
        normals(20, 1),
        domain,
        corrector=Langevin(),
        callback=keep,
    )
    corrections = int((levels(domain, 15)[1:-1, 0] < 0.5).sum())
    per_step = 2 if isinstance(solver, Heun) else 1  # the last step takes one
    assert len(calls) == 14 * per_step + 1 + corrections
    assert len(frames) == 16
    assert frames[-1] is result
    for frame in frames:
        inside = fold(frame, domain)
        torch.testing.assert_close(inside[:, 2], frame[:, 2], atol=1e-9, rtol=0.0)
        fractional = (frame[:, None, :2] @ domain.per_atom(domain.inverse)).squeeze(1).numpy()
        assert ((fractional > -1e-9) & (fractional < 1 + 1e-9)).all()


def test_single_precision_follows_double() -> None:
    mixture = Mixture(two_structures(50), spread=0.2)
    single = replace(mixture, domain=replace(mixture.domain, cell=SHORT_CELL.float(), window=SHORT_WINDOW.float()))
    start, grid, zero = prior(mixture.domain, 0), levels(mixture.domain, 20), torch.zeros(100, 3)
    for solver in (Heun(), Multistep()):
        fine = sample(mixture.score, start, grid, solver, zero.double, mixture.domain)
        coarse = sample(single.score, start.float(), grid.float(), solver, lambda: zero, single.domain)
        assert coarse.dtype == torch.float32
        distance = mixture.residuals(fine).norm(dim=-1).amin(0) - mixture.residuals(coarse.double()).norm(dim=-1).amin(
            0
        )
        assert np.median(distance.abs().numpy()) < 1e-4

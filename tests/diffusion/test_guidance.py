"""Guidance by forces and classifier-free guidance."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from adlayer.diffusion import block
from adlayer.diffusion.generation import generate
from adlayer.diffusion.guidance import ForceGuidance, classifier_free
from adlayer.diffusion.kernels import Domain, ExactKernel, minimum_image, uniform
from adlayer.diffusion.sampling import PRESETS, Sampling
from adlayer.diffusion.schedule import sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import EulerMaruyama, Multistep, sample
from adlayer.network.graph import Batch
from adlayer.network.heads import ForceField
from adlayer.network.inference import fast_force_field
from adlayer.network.model import Architecture, Card, Model
from adlayer.structures.substrate import build_substrate

CELL = torch.tensor([[8.7, 0.0], [4.35, 7.53]], dtype=torch.float64)
WINDOW = (10.0, 14.0)


def domain_of(n_structures: int, atoms_each: int, dtype: torch.dtype = torch.float64) -> Domain:
    return Domain(
        CELL.to(dtype).repeat(n_structures, 1, 1),
        torch.tensor([WINDOW], dtype=dtype).repeat(n_structures, 1),
        torch.arange(n_structures).repeat_interleave(atoms_each),
    )


def random(domain: Domain, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return uniform(domain, torch.rand(len(domain.batch), 3, generator=generator, dtype=domain.cell.dtype))


def normals(domain: Domain, seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(len(domain.batch), 3, generator=generator, dtype=domain.cell.dtype)


def test_displacement_is_eta_times_progress_to_the_zeta_times_force() -> None:
    domain = domain_of(2, 3)
    force = normals(domain, 0)()
    guidance = ForceGuidance(lambda _: force, strength=0.01, exponent=2.0)
    moved = guidance.displacement(random(domain, 1), torch.ones(2).double(), 0.5, domain)
    torch.testing.assert_close(moved, 0.01 * 0.25 * force)
    assert (guidance.displacement(random(domain, 1), torch.ones(2).double(), 0.0, domain) == 0.0).all()


def broken_forces(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Forces, and the displacements they must make with η = 1 and a cap of 0.1 Å."""
    top, third = torch.finfo(dtype).max, 0.1 / math.sqrt(3.0)
    pairs = [
        ([3.0, 4.0, 0.0], [0.06, 0.08, 0.0]),
        ([top, -top, top], [third, -third, third]),
        ([0.0, 0.0, -1e30], [0.0, 0.0, -0.1]),
        ([math.nan, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([1.0, math.inf, 1.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([1e-38, 0.0, 0.0], [1e-38, 0.0, 0.0]),
        ([0.03, 0.0, 0.04], [0.03, 0.0, 0.04]),
    ]
    forces, displacements = zip(*pairs, strict=True)
    return torch.tensor(forces, dtype=dtype), torch.tensor(displacements, dtype=dtype)


def right(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cap_keeps_the_direction_and_broken_forces_do_not_move(dtype: torch.dtype) -> None:
    domain = domain_of(1, 8, dtype)
    forces, expected = broken_forces(dtype)
    level, positions = torch.ones(1, dtype=dtype), random(domain, 0)
    for strength, wanted in ((1.0, expected), (0.0, torch.zeros_like(expected))):
        guidance = ForceGuidance(lambda _: forces, strength=strength, cap=0.1)
        found = guidance.displacement(positions, level, 1.0, domain)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-30)
        assert right(found, wanted)


def test_plain_ways_to_cap_fail() -> None:
    """The planted errors: a norm that overflows, and non-finite forces replaced after it rather than before."""
    forces, expected = broken_forces(torch.float32)
    length = forces.square().sum(-1, keepdim=True).sqrt()
    assert not right(forces / length * length.clamp(max=0.1), expected)
    assert not right(torch.nan_to_num(forces / length * length.clamp(max=0.1)), expected)
    assert not right(forces.clamp(-0.1, 0.1), expected)


def test_gate_spares_structures_and_calls() -> None:
    domain, calls = domain_of(2, 2), []

    def forces(positions: Tensor) -> Tensor:
        calls.append(len(positions))
        return torch.ones_like(positions)

    guidance = ForceGuidance(forces, strength=0.01, sigma_gate=0.5)
    both_above = torch.tensor([0.5, 3.0], dtype=torch.float64)
    assert (guidance.displacement(random(domain, 0), both_above, 1.0, domain) == 0.0).all()
    assert calls == []
    one_below = torch.tensor([0.4, 3.0], dtype=torch.float64)
    moved = guidance.displacement(random(domain, 0), one_below, 1.0, domain)
    np.testing.assert_allclose(moved.numpy(), [[0.01] * 3] * 2 + [[0.0] * 3] * 2)
    assert calls == [4]


@pytest.mark.parametrize("solver", [EulerMaruyama(), Multistep(eta=1.0)], ids=["euler", "multistep"])
def test_wild_forces_over_a_thousand_steps_stay_finite_and_inside(solver: EulerMaruyama | Multistep) -> None:
    domain = domain_of(64, 4, torch.float32)
    generator = torch.Generator().manual_seed(0)
    kernel, clean = ExactKernel(), random(domain, 1)

    def forces(positions: Tensor) -> Tensor:
        size = 10.0 ** (76.0 * torch.rand(len(positions), 1, generator=generator) - 37.5)  # overflows now and then
        wild = size * torch.randn(len(positions), 3, generator=generator)
        wild[torch.randint(len(wild), (5,), generator=generator)] = math.nan
        return wild

    def check(_: int, positions: Tensor) -> None:
        assert torch.isfinite(positions).all()
        assert ((positions[:, 2] >= WINDOW[0]) & (positions[:, 2] <= WINDOW[1])).all()

    sample(
        lambda positions, sigma: kernel.score(positions, clean, sigma, domain),
        random(domain, 2),
        sigma_grid(1000, 0.01, sigma_max_for(domain.cell, domain.window)),
        solver,
        normals(domain, 3),
        domain,
        guidance=ForceGuidance(forces, strength=1.0),
        callback=check,
    )


def test_guidance_lowers_the_energy() -> None:
    """Atoms free to be anywhere at one height; a force along a1 brings them nearer to a line."""
    domain = domain_of(1, 800)
    wave = 2 * math.pi * domain.inverse[0, :, 0]  # energy cos(G·r)

    def energy(positions: Tensor) -> float:
        return float(torch.cos(positions[:, :2] @ wave).mean())

    def forces(positions: Tensor) -> Tensor:
        in_plane = torch.sin(positions[:, :2] @ wave)[:, None] * wave
        return torch.cat([in_plane, torch.zeros_like(in_plane[:, :1])], dim=-1)

    def run(guidance: ForceGuidance | None) -> Tensor:
        grid = sigma_grid(100, 0.02, sigma_max_for(domain.cell, domain.window))
        flat = torch.zeros(800, 3, dtype=torch.float64)
        return sample(
            lambda _, sigma: flat, random(domain, 0), grid, Multistep(), normals(domain, 1), domain, guidance=guidance
        )

    free, guided = run(None), run(ForceGuidance(forces, strength=0.02))
    assert abs(energy(free)) < 4 / math.sqrt(1600)
    # along each path dr/dk = η (k/K) F: one hundred steps of η 0.02 make 0.99 Å²/eV in all
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000 * 2 * math.pi
    phase = u.clone()
    for k in range(100):
        phase = phase + 0.02 * k / 100 * torch.sin(phase) * wave.square().sum()
    expected = float(torch.cos(phase).mean())
    assert energy(guided) == pytest.approx(expected, abs=4 / math.sqrt(1600))
    assert expected < -0.2


def test_classifier_free_weights() -> None:
    domain = domain_of(1, 50)
    kernel, near, far = ExactKernel(), random(domain, 0), random(domain, 1)
    positions, sigma = random(domain, 2), torch.ones(1, dtype=torch.float64)

    def towards(clean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda r, s: kernel.score(r, clean, s, domain)

    conditional, free = towards(near), towards(far)
    for weight, expected in (
        (0.0, free(positions, sigma)),
        (1.0, conditional(positions, sigma)),
        (3.0, 3 * conditional(positions, sigma) - 2 * free(positions, sigma)),
    ):
        torch.testing.assert_close(classifier_free(conditional, free, weight)(positions, sigma), expected)


def test_classifier_free_sampling_follows_the_conditional_score() -> None:
    domain = domain_of(1, 50)
    kernel, near, far = ExactKernel(), random(domain, 0), random(domain, 1)
    score = classifier_free(
        lambda r, s: kernel.score(r, near, s, domain), lambda r, s: kernel.score(r, far, s, domain), 1.0
    )
    grid = sigma_grid(20, 0.02, sigma_max_for(domain.cell, domain.window))
    found = sample(score, random(domain, 2), grid, Multistep(), normals(domain, 3), domain)
    frame = domain.frame[domain.batch]
    x, y = minimum_image(*frame.components((found - near)[:, :2]), frame)
    assert float(torch.stack([x, y, (found - near)[:, 2]]).abs().max()) < 1e-6


# The whole path: random weights in both networks, through generate.

SMALL = Architecture(
    features=4,
    interactions=1,
    n_radial=4,
    cutoff=3.0,
    force_features=4,
    force_interactions=1,
    force_n_radial=4,
    force_cutoff=4.0,
)


def _generated_under_random_forces(size: Architecture, settings: Sampling, scale: float, n: int = 64) -> np.ndarray:
    """Generate with random weights, forces multiplied by ``scale``, and check every step of every structure.

    Returns the lengths of all forces on overlayer atoms that the guidance was given, eV/Å.
    """
    torch.manual_seed(0)
    model = Model(Card(("Ag", "O"), "exact", 0.02, size, heights=(1.0, 1.3, 2.2, 2.8))).eval()
    model.force_field.scale.fill_(scale)
    lengths: list[Tensor] = []

    class Recorder:
        def __init__(self, module: ForceField) -> None:
            self.force_field = fast_force_field(module)

        def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
            return self.force_field(batch)

        def overlayer_forces(self, batch: Batch) -> Tensor:
            forces = self.force_field.overlayer_forces(batch)
            lengths.append(torch.linalg.vector_norm(forces.double(), dim=-1))
            return forces

    substrate = build_substrate("Ag(111)", "p(2x1)", layers=1, fixed_layers=0, lattice=4.16, window=(1.0, 4.0))
    before = substrate.copy()
    low, high = before.info["confinement"]
    trajectory: list[list[np.ndarray]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "fast_force_field", Recorder)
        made = generate(
            model, substrate, formula="AgO", n=n, seed=3, settings=settings, block=n, trajectory=trajectory
        ).structures

    assert len(made) == len(trajectory) == n
    paths = np.stack([np.stack(frames) for frames in trajectory])  # (n, steps + 1, 2, 3)
    assert np.isfinite(paths).all()
    assert paths[..., 2].min() >= np.float32(low)  # solvers work in single precision
    assert paths[..., 2].max() <= np.float32(high)
    for atoms in made:
        assert atoms.positions[: len(before)].tobytes() == before.positions.tobytes()
        assert atoms.cell.array.tobytes() == before.cell.array.tobytes()
        overlayer = atoms.positions[len(before) :]
        assert np.isfinite(overlayer).all()
        assert overlayer[:, 2].min() >= low
        assert overlayer[:, 2].max() <= high
    assert substrate.positions.tobytes() == before.positions.tobytes()
    return torch.cat(lengths).numpy()


def test_random_weights_and_large_forces_over_a_thousand_steps() -> None:
    """64 structures, the paper's preset: guided at every noise level, by forces of hundreds of eV/Å and more."""
    lengths = _generated_under_random_forces(SMALL, PRESETS["paper"], scale=1e7)
    assert np.median(lengths) > 300.0
    assert lengths.max() > 1500.0  # η F (1 − t) is then beyond the cap


def test_random_weights_and_forces_that_overflow() -> None:
    settings = replace(PRESETS["paper"], steps=30, guidance=1.0)
    lengths = _generated_under_random_forces(SMALL, settings, scale=3e38)
    assert not np.isfinite(lengths).all()


def test_the_check_finds_guidance_without_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted error: plain η F. Where the forces overflow, positions are no numbers any more."""

    def plain(self: ForceGuidance, positions: Tensor, sigma: Tensor, progress: float, domain: Domain) -> Tensor:
        return self.strength * progress * torch.full_like(positions, math.inf)

    monkeypatch.setattr(ForceGuidance, "displacement", plain)
    with pytest.raises((AssertionError, ValueError, RuntimeError)):
        _generated_under_random_forces(SMALL, replace(PRESETS["paper"], steps=3), scale=1e7, n=2)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["multistep", "heun", "euler"])
def test_every_solver_under_large_random_forces(solver: str) -> None:
    settings = Sampling(steps=1000, solver=solver, guidance=1e-4, guidance_gate=None, energy=None, relax_steps=0)
    assert np.median(_generated_under_random_forces(SMALL, settings, scale=1e7)) > 300.0


@pytest.mark.slow
def test_networks_of_full_size_under_large_random_forces() -> None:
    settings = replace(PRESETS["paper"], guidance=1e-3)
    assert np.median(_generated_under_random_forces(Architecture(), settings, scale=1e7)) > 300.0

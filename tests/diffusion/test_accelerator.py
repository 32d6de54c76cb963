"""Sampling on an accelerator, pretended (:mod:`stand_in`) or real: nothing stays behind, the numbers are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.geometry import find_mic
from stand_in import accelerator
from torch import Tensor

from adlayer.diffusion import kernels
from adlayer.diffusion.block import Block
from adlayer.diffusion.generation import Generated, generate
from adlayer.diffusion.guidance import ForceGuidance, classifier_free
from adlayer.diffusion.kernels import Domain, ExactKernel, Frame, Kernel, PaperKernel, reduced_frame, uniform
from adlayer.diffusion.sampling import SOLVERS, Sampling
from adlayer.diffusion.schedule import sigma_grid, sigma_max_for
from adlayer.diffusion.solvers import EulerMaruyama, Heun, Langevin, Multistep, Solver, sample
from adlayer.energies.batched import relaxing
from adlayer.network.model import Architecture, Card, Model
from adlayer.structures.substrate import build_substrate

KERNELS = [ExactKernel(), PaperKernel()]
ALL = [EulerMaruyama(), Heun(0.2), Multistep(1.0), Multistep(0.0)]
N_ATOMS = 12


def _domain(device: torch.device | str) -> Domain:
    cell = torch.tensor([[[5.8, 0.0], [2.9, 5.02]], [[5.0, -4.0], [1.0, 3.5]]], dtype=torch.float64)
    window = torch.tensor([[10.0, 14.0], [-2.0, 1.5]], dtype=torch.float64)
    structure = torch.arange(2).repeat_interleave(N_ATOMS // 2)
    return Domain(cell.to(device), window.to(device), structure.to(device))


def _numbers(device: torch.device | str, seed: int = 0) -> Iterator[Tensor]:
    """Normal numbers (M, 3), drawn on the host."""
    rng = np.random.default_rng(seed)
    while True:
        yield torch.from_numpy(rng.standard_normal((N_ATOMS, 3))).to(device)


def _kernel(kernel: Kernel, device: torch.device | str) -> list[Tensor]:
    domain, numbers = _domain(device), _numbers(device)
    clean = uniform(domain, torch.special.ndtr(next(numbers)))
    found = []
    for levels in ([0.05, 0.3], [1.2, 6.0]):
        sigma = torch.tensor(levels, dtype=torch.float64).to(device)
        noisy = kernel.perturb(clean, sigma, next(numbers), domain)
        found += [noisy, kernel.score(noisy, clean, sigma, domain), kernel.log_density(noisy, clean, sigma, domain)]
        found += [kernel.score_scale(sigma, domain)]
    return found


def _walk(solver: Solver, device: torch.device | str) -> list[Tensor]:
    """A guided, corrected walk towards one site."""
    domain, numbers, frames = _domain(device), _numbers(device), list[Tensor]()
    site = uniform(domain, torch.full((N_ATOMS, 3), 0.4, dtype=torch.float64).to(device))

    def score(positions: Tensor, sigma: Tensor) -> Tensor:
        return ExactKernel().score(positions, site, sigma, domain)

    guidance = ForceGuidance(lambda x: site - x, 0.01, sigma_gate=2.0)
    levels = sigma_grid(6, 0.05, sigma_max_for(domain.cell, domain.window))
    sample(
        classifier_free(score, lambda x, sigma: 0.9 * score(x, sigma), 1.5),
        uniform(domain, torch.special.ndtr(next(numbers))), levels, solver, lambda: next(numbers), domain, guidance,
        Langevin(2, 0.1, 1.0), lambda _, x: frames.append(x),
    )  # fmt: skip
    return frames


def _relaxed(device: torch.device | str) -> list[Tensor]:
    """In a quartic well around each atom's start, one atom fixed."""
    domain, numbers = _domain(device), _numbers(device)
    centre, start = next(numbers), next(numbers)

    def well(x: Tensor) -> tuple[Tensor, Tensor]:
        d = x - centre
        energy = (0.5 * d**2 + 0.25 * d**4).sum(-1)
        return energy.new_zeros(2).index_add(0, domain.batch, energy), -(d + d**3)

    fixed = (torch.arange(N_ATOMS) == 0).to(device)
    *_, last = relaxing(well, start, domain.batch, fixed, 0.05, 30)
    return [last.positions, last.energies, last.forces, last.n_steps, last.converged]


def _parts() -> dict[str, Callable[[torch.device | str], list[Tensor]]]:
    parts: dict[str, Callable[[torch.device | str], list[Tensor]]] = {"relaxation": _relaxed}
    for kernel in KERNELS:
        parts[type(kernel).__name__] = lambda device, kernel=kernel: _kernel(kernel, device)
    for solver in ALL:
        parts[str(solver)] = lambda device, solver=solver: _walk(solver, device)
    return parts


PARTS = _parts()


@pytest.mark.parametrize("part", PARTS)
def test_all_is_made_where_the_positions_are(part: str) -> None:
    here = PARTS[part]("cpu")
    with accelerator() as device:
        there = PARTS[part](device)
        assert {x.device for x in there} == {device}
        for a, b in zip(there, here, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9)


def _frame_left_behind(cell: Tensor) -> Frame:
    return Frame(**{name: x.cpu() for name, x in vars(reduced_frame(cell)).items()})


@pytest.mark.parametrize("part", [p for p in PARTS if p != "relaxation"])
def test_a_tensor_left_behind_is_seen(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the reduced frame of the lattice on the CPU."""
    monkeypatch.setattr(kernels, "reduced_frame", _frame_left_behind)
    PARTS[part]("cpu")
    with accelerator() as device, pytest.raises(RuntimeError, match="mixes tensors"):
        PARTS[part](device)


@pytest.fixture
def substrate() -> Atoms:
    return build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.16, fixed_layers=1, window=(1.0, 4.0))


def _model(kernel: str) -> Model:
    torch.manual_seed(2)
    small = {"features": 8, "interactions": 2, "n_radial": 6, "cutoff": 4.0}
    size = Architecture(**small, **{f"force_{name}": value for name, value in small.items()})
    return Model(Card(("Ag", "O"), kernel, 0.02, size, heights=(1.0, 1.3, 2.2, 2.8))).eval()


SETTINGS = {
    **{solver: Sampling(steps=4, solver=solver, relax_steps=0) for solver in SOLVERS},
    "published": Sampling(steps=4, solver="euler", published_levels=True, energy=None, relax_steps=0),
    "guided": Sampling(steps=4, guidance=0.05, weight=1.5, corrector=1, relax_steps=0),
    "refined": Sampling(steps=4, relax_steps=2, refine=2, refine_steps=2, symmetry=0.6),
}


def _generated(model: Model, substrate: Atoms, settings: Sampling, n: int = 3) -> Generated:
    made = generate(model, substrate, formula="Ag2O", n=n, settings=settings, trajectory=[])
    assert all(isinstance(a.get_potential_energy(), float) for a in made.structures)
    return made


def _compare(there: Generated, here: Generated, tolerance: float) -> None:
    assert there.n_network_calls == here.n_network_calls
    for a, b in zip(there.structures, here.structures, strict=True):
        np.testing.assert_allclose(find_mic(a.positions - b.positions, a.cell)[0], 0.0, atol=tolerance)
        assert a.get_potential_energy() == pytest.approx(b.get_potential_energy(), abs=10 * tolerance)
        forces = (x.get_forces(apply_constraint=False) for x in (a, b))
        np.testing.assert_allclose(*forces, atol=10 * tolerance)


@pytest.mark.parametrize("kernel", ["exact", "paper"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_whole_samples(settings: str, kernel: str, substrate: Atoms) -> None:
    model = _model(kernel)
    here = _generated(model, substrate, SETTINGS[settings])
    with accelerator() as device:
        there = _generated(model.to(device), substrate, SETTINGS[settings])
    _compare(there, here, 1e-3)


def test_a_number_of_a_sample_left_behind_is_seen(substrate: Atoms, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: random numbers that stay on the host."""
    monkeypatch.setattr(Block, "from_host", lambda self, numbers: torch.from_numpy(numbers).float())
    model = _model("exact")
    _generated(model, substrate, SETTINGS["euler"])
    with accelerator() as device, pytest.raises(RuntimeError, match="mixes tensors"):
        _generated(model.to(device), substrate, SETTINGS["euler"])


@pytest.mark.gpu
@pytest.mark.parametrize("part", PARTS)
def test_the_same_numbers_on_a_gpu(part: str) -> None:
    for a, b in zip(PARTS[part]("cuda"), PARTS[part]("cpu"), strict=True):
        assert a.device.type == "cuda"
        torch.testing.assert_close(a.cpu(), b, rtol=1e-7, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_same_samples_on_a_gpu(settings: str, substrate: Atoms) -> None:
    model = _model("exact")
    here = _generated(model, substrate, SETTINGS[settings], n=8)
    _compare(_generated(model.to("cuda"), substrate, SETTINGS[settings], n=8), here, 1e-2)


@pytest.mark.gpu
def test_the_same_distribution_on_a_gpu(substrate: Atoms) -> None:
    """Heights and energies of many samples, whose rounding differs: means within five standard errors."""
    settings = replace(SETTINGS["refined"], steps=10)
    model = _model("exact")
    sets = []
    for device in ("cpu", "cuda"):
        made = _generated(model.to(device), substrate, settings, n=64).structures
        heights = np.array([a.positions[a.get_tags() == 0, 2].mean() for a in made])
        sets.append((heights, np.array([a.get_potential_energy() for a in made])))
    for here, there in zip(*sets, strict=True):
        error = np.sqrt((here.var() + there.var()) / len(here))
        assert abs(here.mean() - there.mean()) < 5.0 * error

"""Batched relaxation against ASE's optimizer on Lennard-Jones clusters."""

from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.optimize import BFGS

from adlayer import compiled
from adlayer.energies.batched import MAX_MOVE, MEMORY, RelaxState, init, relaxing, step
from adlayer.energies.relaxation import relax
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

CUTOFF = 100.0


def cluster(n: int, seed: int) -> np.ndarray:
    """A loose cluster (n, 3) with no atoms on top of each other."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*3 * [np.arange(3)], indexing="ij"), -1).reshape(-1, 3)
    return 1.2 * places[rng.choice(27, n, replace=False)] + rng.normal(0, 0.08, (n, 3))


class Clusters:
    """Lennard-Jones energies (ε = σ = 1) and forces of separate clusters, in torch, counting its calls."""

    def __init__(self, batch: torch.Tensor) -> None:
        self.batch = batch
        self.n = int(batch.max()) + 1
        self.pairs = torch.nonzero(torch.triu(batch[:, None] == batch[None, :], 1))  # (P, 2)
        self.calls = 0

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        x = positions.detach().requires_grad_(True)
        i, j = self.pairs.T
        square = ((x[i] - x[j]) ** 2).sum(-1)
        pair = 4 * (square**-6 - square**-3)
        energies = x.new_zeros(self.n).index_add(0, self.batch[i], pair)
        (gradient,) = torch.autograd.grad(energies.sum(), x)
        return energies.detach(), -gradient


def pack(clusters: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = torch.tensor([len(c) for c in clusters])
    return torch.tensor(np.concatenate(clusters)), torch.repeat_interleave(torch.arange(len(sizes)), sizes)


def relaxed(*arguments: Any) -> RelaxState:
    """The last state."""
    *_, last = relaxing(*arguments)
    return last


CLUSTERS = [cluster(n, seed) for seed, n in enumerate([2, 3, 4, 5, 7, 6])]


def test_reaches_the_minima_that_ase_reaches() -> None:
    positions, batch = pack(CLUSTERS)
    model = Clusters(batch)
    result = relaxed(model, positions, batch, torch.zeros(len(batch), dtype=torch.bool), 1e-4, 500)
    assert result.converged.all()
    assert model.calls == int(result.n_steps.max()) + 1
    # Known global minima of the smallest clusters (Hoare & Pal 1971); larger ones may end in other minima.
    assert result.energies[:3].tolist() == pytest.approx([-1.0, -3.0, -6.0], abs=1e-6)
    for k in range(len(CLUSTERS)):
        # The end of ours is a minimum by independent code: same energy, no forces, and ASE's optimizer stays there.
        atoms = Atoms(f"Ar{len(CLUSTERS[k])}", result.positions[batch == k].numpy())
        atoms.calc = LennardJones(rc=CUTOFF, smooth=False)
        shift = 4 * (CUTOFF**-12 - CUTOFF**-6) * len(atoms) * (len(atoms) - 1) / 2
        assert float(result.energies[k]) == pytest.approx(atoms.get_potential_energy() + shift, abs=1e-7)
        assert np.abs(atoms.get_forces()).max() < 2e-4
        BFGS(atoms, logfile=None).run(fmax=1e-6, steps=200)
        assert float(result.energies[k]) == pytest.approx(atoms.get_potential_energy() + shift, abs=1e-6)


def test_finds_the_minima_of_ase_from_near_in_as_many_steps() -> None:
    """From the same start near a minimum both find the same structure; limited memory may cost a few steps."""
    steps = []
    for seed in range(5):
        atoms = Atoms("Ar7", cluster(7, 100 + seed))
        atoms.calc = LennardJones(rc=CUTOFF, smooth=False)
        BFGS(atoms, logfile=None).run(fmax=1e-3, steps=500)
        atoms.rattle(0.05, seed=seed)
        positions, batch = pack([atoms.positions.copy()])
        optimizer = BFGS(atoms, logfile=None)
        optimizer.run(fmax=1e-3, steps=500)
        ours = relaxed(Clusters(batch), positions, batch, torch.zeros(7, dtype=torch.bool), 1e-3, 500)
        assert float(ours.energies[0]) == pytest.approx(atoms.get_potential_energy(), abs=1e-4)
        steps.append((int(ours.n_steps[0]), optimizer.nsteps))
    ours_total, ase_total = np.sum(steps, axis=0)
    assert ours_total <= 1.15 * ase_total, steps


def test_relaxes_random_overlayers_in_fewer_calls_than_ase() -> None:
    """Gold on Au(111), far from minima and with a fixed layer, is what the relaxation is for."""
    substrate = build_substrate("Au(111)", "p(3x3)", layers=2, window=(1.0, 4.0))
    steps = []
    for seed in range(2):
        atoms = place_overlayer(substrate, "Au5", np.random.default_rng(seed))
        ours = relax(atoms, EMT(), fmax=0.05, max_steps=300)
        atoms.calc = EMT()
        theirs = BFGS(atoms, logfile=None)
        theirs.run(fmax=0.05, steps=300)
        assert ours.converged
        assert ours.energy == pytest.approx(atoms.get_potential_energy(), abs=0.01)
        steps.append((ours.n_steps, theirs.nsteps))
    ours_total, ase_total = np.sum(steps, axis=0)
    assert ours_total < ase_total, steps


@pytest.mark.parametrize(("max_steps", "tolerance"), [(25, 1e-10), (300, 1e-5)])
def test_independent_of_the_batch(max_steps: int, tolerance: float) -> None:
    """Up to rounding, which a long path amplifies."""
    positions, batch = pack(CLUSTERS)
    free = torch.zeros(len(batch), dtype=torch.bool)
    together = relaxed(Clusters(batch), positions, batch, free, 1e-3, max_steps)
    for k, own in enumerate(CLUSTERS):
        alone_positions, alone_batch = pack([own])
        alone = relaxed(Clusters(alone_batch), alone_positions, alone_batch, free[: len(own)], 1e-3, max_steps)
        assert int(alone.n_steps[0]) == int(together.n_steps[k])
        torch.testing.assert_close(alone.positions, together.positions[batch == k], atol=tolerance, rtol=0)


def test_fixed_atoms_stay_and_steps_are_capped() -> None:
    positions, batch = pack(CLUSTERS)
    fixed = torch.arange(len(batch)) % 3 == 0
    model = Clusters(batch)
    state = init(model, positions, batch, fixed, 1e-3)
    for _ in range(30):
        following = step(model, state, batch, fixed, 1e-3)
        assert float((following.positions - state.positions).norm(dim=-1).max()) <= MAX_MOVE + 1e-12
        stopped = state.converged[batch]
        assert torch.equal(following.positions[stopped], state.positions[stopped])
        state = following
    assert torch.equal(state.positions[fixed], positions[fixed])
    assert not torch.equal(state.positions[~fixed], positions[~fixed])


def test_harmonic_wells_are_found_exactly() -> None:
    """Anisotropic wells with stiffness from 0.5 to 50 eV/Å²: the minimum is known."""
    stiffness = torch.logspace(-0.3, 1.7, 6).double().reshape(2, 3).repeat(4, 1)  # (8, 3)
    batch = torch.arange(8) // 2
    centre = torch.arange(24.0).double().reshape(8, 3)

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        energy = (0.5 * stiffness * (x - centre) ** 2).sum(-1)
        return x.new_zeros(4).index_add(0, batch, energy), -stiffness * (x - centre)

    result = relaxed(model, centre + 1.0, batch, torch.zeros(8, dtype=torch.bool), 1e-6, 100)
    assert result.converged.all()
    torch.testing.assert_close(result.positions, centre, atol=1e-5, rtol=0)


def test_one_broken_structure_harms_no_other() -> None:
    positions, batch = pack(CLUSTERS)
    free = torch.zeros(len(batch), dtype=torch.bool)
    sound = relaxed(Clusters(batch), positions, batch, free, 1e-3, 300)
    model = Clusters(batch)

    def breaking(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        energies, forces = model(x)
        if model.calls > 3:
            forces[batch == 3] = torch.nan
        return energies, forces

    result = relaxed(breaking, positions, batch, free, 1e-3, 300)
    assert result.converged.tolist() == [True, True, True, False, True, True]
    assert int(result.n_steps[3]) == 2
    assert torch.isfinite(result.positions).all()
    assert torch.isfinite(result.forces).all()
    torch.testing.assert_close(result.positions[batch != 3], sound.positions[batch != 3])


def test_not_finite_at_the_start_is_not_converged() -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((1,), torch.nan), torch.zeros_like(x)

    result = relaxed(
        model, torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool), 0.05, 9
    )
    assert not result.converged.any()
    assert int(result.n_steps[0]) == 0


@pytest.mark.parametrize("kernel", ["in C", "for a GPU"])
def test_the_kernel_gives_the_steps_of_the_recursion_in_pytorch(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In double precision to rounding, while pairs come in, are not used and go out."""
    if kernel == "for a GPU":
        pytest.importorskip("triton")
        if torch.cuda.is_available():
            pytest.skip("the kernel is interpreted only where there is no GPU")
        monkeypatch.setattr(compiled, "for_gpu", lambda _: True)
        monkeypatch.setattr("adlayer.energies.lbfgs_gpu._BLOCK", 16)  # several for a structure
    positions, batch = pack(CLUSTERS)
    fixed = torch.zeros(len(batch), dtype=torch.bool)
    fixed[3] = True

    def trail() -> list[torch.Tensor]:
        model = Clusters(batch)
        state = init(model, positions, batch, fixed, 1e-9)
        states = [state := step(model, state, batch, fixed, 1e-9) for _ in range(MEMORY + 5)]
        assert any(bool((s.inverse_products == 0).any()) for s in states)
        return [s.positions for s in states]

    with_kernel = trail()
    monkeypatch.setattr(compiled, "for_gpu", lambda _: False)
    monkeypatch.setattr(compiled, "library", lambda *_: None)
    for a, b in zip(with_kernel, trail(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-8)


@pytest.mark.gpu
def test_the_same_steps_on_a_gpu() -> None:
    positions, batch = pack(CLUSTERS)
    fixed = torch.zeros(len(batch), dtype=torch.bool)

    def trail(device: str) -> list[torch.Tensor]:
        on_host, there = Clusters(batch), batch.to(device)

        def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            energies, forces = on_host(x.cpu())
            return energies.to(device), forces.to(device)

        state = init(model, positions.to(device), there, fixed.to(device), 1e-9)
        states = [state := step(model, state, there, fixed.to(device), 1e-9) for _ in range(MEMORY + 5)]
        return [s.positions.cpu() for s in states]

    for a, b in zip(trail("cuda"), trail("cpu"), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-8)

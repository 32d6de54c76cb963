"""Networks with fixed weights on kernels: against the modules they stand for, and against finite differences."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from torch import Tensor

from adlayer import compiled
from adlayer.network import inference
from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField
from adlayer.network.inference import FastDenoiser, FastForceField, fast_denoiser, fast_force_field
from adlayer.network.painn import PaiNN

Slab = Callable[..., Atoms]
SIZE = {"features": 24, "interactions": 3, "n_radial": 12}
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}  # of the largest; the table of filters is exact to the former
SMALL = ((3.1, 0.4), (1.2, 3.3))
needs_compiler = pytest.mark.skipif(inference._kernels(PaiNN(24, 3, 12, 5.0)) is None, reason="no C compiler")


def _force_field(dtype: torch.dtype = torch.float64, **options: object) -> ForceField:
    torch.manual_seed(4)
    options = {"cutoff": 5.0, **SIZE, **options}
    return ForceField([47, 8], **options).to(dtype).eval()  # type: ignore[arg-type]


def _denoiser(dtype: torch.dtype = torch.float64, **options: object) -> Denoiser:
    torch.manual_seed(3)
    options = {"cutoff": 5.0, "n_conditions": 2, **SIZE, **options}
    return Denoiser([47, 8], **options).to(dtype)  # type: ignore[arg-type]


def _batch(slab: Slab, dtype: torch.dtype = torch.float64) -> Batch:
    """Two structures and one in a cell smaller than the cutoff, of which one has an atom in another's core."""
    deep = slab(2)
    deep.positions[-1] = deep.positions[0] + [0.7, 0.3, 0.9]
    small = slab(1)
    small.positions[:, :2] = small.get_scaled_positions(wrap=False)[:, :2] @ SMALL
    small.cell[:2, :2] = SMALL
    return to_batch([deep, slab(3), small], dtype)


def _score(denoiser: Denoiser | FastDenoiser, batch: Batch) -> Tensor:
    sigma, conditions = torch.tensor([0.1, 0.4, 1.5]), torch.tensor([[0.2, 0.3], [0.1, float("nan")], [0.0, 0.5]])
    with torch.no_grad():
        return denoiser(batch, sigma.to(batch.positions), conditions.to(batch.positions))


def _off(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


@needs_compiler
@pytest.mark.parametrize("direct", [False, True], ids=["gradient", "direct"])
@pytest.mark.parametrize("lift", [0.0, 1.1])
def test_forces_are_those_of_the_module(direct: bool, lift: float, slab: Slab) -> None:
    for dtype in (torch.float64, torch.float32):
        module, batch = _force_field(dtype, direct=direct, lift=lift), _batch(slab, dtype)
        fast = fast_force_field(module)
        assert isinstance(fast, FastForceField)
        (energies, forces), (expected_energies, expected) = fast(batch), module(batch)
        assert _off(energies, expected_energies) < TOLERANCE[dtype]
        assert _off(forces, expected) < TOLERANCE[dtype]
        assert _off(fast.overlayer_forces(batch), expected[batch.mobile]) < TOLERANCE[dtype]
        assert energies.dtype == forces.dtype == dtype


@needs_compiler
def test_forces_are_the_derivative_of_the_energy(slab: Slab) -> None:
    """Central differences: the gradient is that of the table, not of what the table stands for."""
    fast, batch = fast_force_field(_force_field(lift=1.1)), _batch(slab)
    forces = fast(batch)[1]
    h = 1e-5
    for atom, axis in ((0, 0), (0, 2), (3, 1), (8, 0), (8, 2), (12, 1), (20, 0), (25, 2)):
        energy = []
        for step in (-h, h):
            positions = batch.positions.clone()
            positions[atom, axis] += step
            energy.append(float(fast(batch.with_positions(positions))[0].sum()))
        assert float(forces[atom, axis]) == pytest.approx((energy[0] - energy[1]) / (2 * h), abs=1e-6)


@needs_compiler
@pytest.mark.parametrize("lift", [0.0, 1.1])
def test_scores_are_those_of_the_module(lift: float, slab: Slab) -> None:
    for dtype in (torch.float64, torch.float32):
        module, batch = _denoiser(dtype, lift=lift), _batch(slab, dtype)
        fast = fast_denoiser(module)
        assert isinstance(fast, FastDenoiser)
        assert _off(_score(fast, batch), _score(module, batch)) < TOLERANCE[dtype]


@needs_compiler
def test_the_comparison_sees_a_coarser_table(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = _force_field(), _batch(slab)
    assert _off(fast_force_field(module)(batch)[1], module(batch)[1]) < 1e-7
    monkeypatch.setattr(inference, "_KNOTS", 65)
    assert _off(fast_force_field(module)(batch)[1], module(batch)[1]) > 1e-7


@needs_compiler
def test_atoms_out_of_reach_of_each_other(slab: Slab) -> None:
    """No pairs at all."""
    atoms = slab(0, cell=((50.0, 0.0), (0.0, 50.0)))[[0, 5]]
    atoms.info["confinement"] = [8.2, 12.5]
    batch = to_batch([atoms], torch.float64)
    module = _force_field(cutoff=3.0)
    energies, forces = fast_force_field(module)(batch)
    assert _off(energies, module(batch)[0]) < 1e-12
    assert not forces.any()


@needs_compiler
def test_weights_are_those_of_the_moment(slab: Slab) -> None:
    module, batch = _force_field(), _batch(slab)
    fast = fast_force_field(module)
    before = fast(batch)[0]
    with torch.no_grad():
        for layer in (module.painn, module.energy):
            for parameter in layer.parameters():
                parameter.mul_(1.1)
    assert torch.equal(fast(batch)[0], before)
    assert _off(fast_force_field(module)(batch)[0], before) > 1e-3


def test_the_modules_themselves_without_kernels(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "library", lambda *_: None)
    force_field, denoiser = _force_field(), _denoiser()
    assert fast_force_field(force_field) is force_field
    assert fast_denoiser(denoiser) is denoiser


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_an_atom_that_is_lost_harms_no_other_structure(value: float, slab: Slab) -> None:
    fast, batch = fast_force_field(_force_field()), _batch(slab)
    expected_energies, expected = fast(batch)
    positions = batch.positions.clone()
    positions[12, 0] = value
    energies, forces = fast(batch.with_positions(positions))
    assert torch.equal(energies[[0, 2]], expected_energies[[0, 2]])
    assert torch.equal(forces[batch.batch != 1], expected[batch.batch != 1])


def test_a_fast_network_goes_when_it_is_not_held(slab: Callable[..., Atoms]) -> None:
    """At once: with a cycle it, and on a GPU its graphs, would keep their memory until the next search for cycles."""
    batch = _batch(slab, torch.float32)
    networks = [fast_denoiser(_denoiser(torch.float32)), fast_force_field(_force_field(torch.float32))]
    _score(networks[0], batch)
    networks[1](batch)
    gc.disable()
    try:
        held = [weakref.ref(network) for network in networks]
        networks.clear()
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()

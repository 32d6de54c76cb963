"""The kernels for a GPU, on one or on the CPU by Triton's interpreter, against PyTorch's operations.


Interpreted, they are called through the networks, which are told that the CPU is a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from ase import Atoms
from torch import Tensor

from adlayer import compiled
from adlayer.network import inference, message, painn, pairs
from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField
from adlayer.network.inference import FastDenoiser, FastForceField, fast_denoiser, fast_force_field
from adlayer.network.neighbours import neighbours

from . import test_inference
from .test_inference import _off

Slab = Callable[..., Atoms]
interpreted = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason="no Triton, or a GPU"
)
DEVICES = [pytest.param("cpu", marks=interpreted, id="interpreted"), pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-5}  # of the largest, as for the kernels in C
DTYPES = (torch.float64, torch.float32)
SIZE = {"features": 5, "interactions": 2, "n_radial": 9, "cutoff": 3.6}  # small, for the interpreter is slow


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels for a GPU run."""
    monkeypatch.setattr(compiled, "for_gpu", lambda where: where.type == request.param)
    for module in ("inference", "message"):  # the lists still take two rounds and more
        monkeypatch.setattr(f"adlayer.network.gpu.{module}._EDGES", 8 if request.param == "cuda" else 16)
    return str(request.param)


def _batch(slab: Slab, dtype: torch.dtype = torch.float64) -> Batch:
    """A structure with an atom in another's core, and one in a cell smaller than the cutoff."""
    deep, small = slab(2, overlayer="AgO"), slab(1, overlayer="O", cell=((3.4, 0.4), (1.2, 3.3)))
    deep.positions[-1] = deep.positions[0] + [0.7, 0.3, 0.9]
    return to_batch([deep, small], dtype)


def _score(denoiser: Denoiser | FastDenoiser, batch: Batch) -> Tensor:
    sigma, conditions = torch.tensor([0.1, 1.5]), torch.tensor([[0.2, float("nan")], [0.0, 0.5]])
    given = (x[: batch.n_structures].to(batch.positions) for x in (sigma, conditions))
    return denoiser(batch, *given).detach().cpu()


def _force_field(dtype: torch.dtype = torch.float64, **options: object) -> ForceField:
    return test_inference._force_field(dtype, **SIZE, **options)


def _denoiser(dtype: torch.dtype = torch.float64, **options: object) -> Denoiser:
    return test_inference._denoiser(dtype, **SIZE, **options)


def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, PyTorch's operations alone."""
    monkeypatch.setattr(compiled, "for_gpu", lambda where: False)
    monkeypatch.setattr(message, "library", lambda dtype: None)


def _gradients(net: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    net.zero_grad()
    loss.backward()
    return [p.grad.cpu() for p in net.parameters() if p.grad is not None]


def _trained(device: str, slab: Slab) -> list[Tensor]:
    """What a step of training needs: scores, energies, forces and the gradients of their squares."""
    batch = _batch(slab).to(device=device)
    denoiser, force_field = _denoiser(lift=1.1).to(device), _force_field(lift=1.1).to(device).train()
    sigma = torch.tensor([0.1, 1.5]).to(batch.positions)
    score = denoiser(batch, sigma, torch.full((2, 2), 0.2).to(batch.positions))
    energies, forces = force_field(batch)
    found = [x.detach().cpu() for x in (score, energies, forces)]
    found += _gradients(denoiser, score.square().sum())
    return found + _gradients(force_field, energies.square().sum() + forces.square().sum())


def test_training_is_that_of_pytorch(device: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """First and second derivatives of the message, in the last layer at some of the atoms alone."""
    found = _trained(device, slab)
    _plain(monkeypatch)
    expected = _trained("cpu", slab)
    assert len(found) == len(expected) > 40
    for a, b in zip(found, expected, strict=True):
        assert float((a - b).abs().max()) <= 1e-10 * float(b.abs().max())


def test_mixing_in_any_layout(device: str) -> None:
    """Gradients of gradients too, of arguments that do not lie together."""
    from adlayer.network.gpu import mixing

    torch.manual_seed(0)
    shapes = ((4, 3), (3, 4, 6), (2, 6), (4, 3), (3, 4, 3), (4, 9))
    s, mixed, more, s_2, v, a = (torch.randn(shape, dtype=torch.float64, device=device) for shape in shapes)
    structure = torch.tensor([0, 0, 1, 1], device=device)
    given = [x.T.contiguous().T if x.dim() == 2 else x.transpose(1, 2).contiguous().transpose(1, 2) for x in
             (s, mixed, more, s_2, v, a)]  # fmt: skip
    assert not any(x.is_contiguous() for x in given)
    results = []
    for join, update in ((mixing.joined, mixing.updated), (painn.joined, painn.updated)):
        leaves = [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in given]
        both, dot, second = join(*leaves[:3], structure, 1e-8)
        found = [both, *update(leaves[3], leaves[4], second, dot, leaves[5])]
        first = torch.autograd.grad(sum(x.pow(3).sum() for x in found), leaves, create_graph=True)
        twice = torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
        results.append([x.detach().cpu() for x in (*found, *first, *twice)])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y)


def test_a_sign_that_is_wrong_is_seen(device: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: on the way back unit vectors keep their sign, as if the pairs were twice as many."""
    from adlayer.network.gpu.message import DeviceEnds

    denoiser, batch = _denoiser().to(device), _batch(slab).to(device=device)
    right, kept = _score(denoiser, batch), DeviceEnds.of
    monkeypatch.setattr(DeviceEnds, "of", lambda first, second, n: kept(second, first, n))
    assert _off(_score(denoiser, batch), right) > 1e-3


def _compared(device: str, batch: Batch, cutoff: float, among_substrate: bool) -> int:
    """How many pairs there are, after a look whether they are those of the search in PyTorch."""
    edges = neighbours(batch.to(device=device), cutoff, among_substrate=among_substrate)
    assert edges.paired
    n = edges.n_pairs
    found = torch.cat([edges.receiver[:n, None], edges.sender[:n, None], edges.shift[:n].long()], dim=1)
    i, j, shift = pairs.close_pairs(batch, cutoff, among_substrate=among_substrate)
    expected = torch.cat([i[:, None], j[:, None], shift.long()], dim=1)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    return len(found)


@pytest.mark.parametrize("among_substrate", [True, False])
@pytest.mark.parametrize("cutoff", [3.0, 6.0])
def test_the_same_neighbours(device: str, cutoff: float, among_substrate: bool, slab: Slab) -> None:
    for dtype in DTYPES:
        batch = _batch(slab, dtype)
        far = torch.tensor([9.3, -7.1, 0.0], dtype=dtype) * (torch.arange(len(batch.positions)) % 3)[:, None]
        assert _compared(device, batch.with_positions(batch.positions + far), cutoff, among_substrate) > 5


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
def test_the_same_neighbours_by_bins(device: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pairs and as edges by the atoms that they end on, in cells of 3×3 bins, of 3×1, of 1×3, and without.

    One atom is lost, and near to none.
    """
    from adlayer.network.gpu import neighbours as on_gpu

    monkeypatch.setattr(on_gpu, "_FEW", 3)
    several = [slab(0).repeat((2, 2, 1)), slab(1), slab(2).repeat((2, 1, 1)), slab(3).repeat((1, 2, 1))]
    for atoms in several:
        atoms.info["confinement"] = [8.2, 12.5]
    several[2].positions[-1] = float("nan")
    batch = to_batch(several, torch.float64)
    assert pairs.strips_of(batch.cell, 3.2).tolist() == [[3, 3], [1, 1], [3, 1], [1, 3]]
    n = _compared(device, batch, 3.2, True)
    there = batch.to(device=device)
    edges = on_gpu.arrivals(there, there.positions, 3.2, on_gpu.Plan.of(there, 3.2))
    assert int(edges.start[-1]) == 2 * n
    expected = neighbours(batch, 3.2)
    lengths = expected.vectors(batch).norm(dim=1)
    for atom in range(len(batch.positions)):
        here = slice(int(edges.start[atom]), int(edges.start[atom + 1]))
        distances = edges.distance[here].cpu().sort().values
        torch.testing.assert_close(distances, lengths[expected.receiver == atom].sort().values)


def _fast(device: str, dtype: torch.dtype, **options: object) -> FastForceField:
    fast = fast_force_field(_force_field(dtype, **options).to(device))
    assert isinstance(fast, FastForceField)
    assert type(fast.network.kernels).__module__ == "adlayer.network.gpu.inference"
    return fast


@pytest.mark.parametrize(("direct", "lift"), [(False, 1.1), (True, 0.0)], ids=["gradient", "direct"])
def test_forces_are_those_of_the_module(device: str, direct: bool, lift: float, slab: Slab) -> None:
    for dtype in DTYPES:
        batch = _batch(slab, dtype)
        there, fast = batch.to(device=device), _fast(device, dtype, direct=direct, lift=lift)
        expected_energies, expected = _force_field(torch.float64, direct=direct, lift=lift)(batch.to(torch.float64))
        energies, forces = fast(there)
        assert energies.dtype == forces.dtype == dtype
        assert _off(energies.cpu(), expected_energies) < TOLERANCE[dtype]
        assert _off(forces.cpu(), expected) < TOLERANCE[dtype]
        assert _off(fast.overlayer_forces(there).cpu(), expected[batch.mobile]) < TOLERANCE[dtype]


def test_scores_are_those_of_the_module(device: str, slab: Slab) -> None:
    """Call after call, from a graph at the third, with positions that change; then of another batch."""
    for dtype in DTYPES:
        module, fast = _denoiser(torch.float64, lift=1.1), fast_denoiser(_denoiser(dtype, lift=1.1).to(device))
        assert isinstance(fast, FastDenoiser)
        batch = _batch(slab, dtype)
        for some in (batch, batch.subset(torch.tensor([True, False]))[0]):
            there = some.to(device=device)
            for k in range(4):
                shift = torch.tensor([0.1, 0.05, -0.02], dtype=dtype) * k * some.mobile[:, None]
                expected = _score(module, some.with_positions(some.positions + shift).to(torch.float64))
                found = _score(fast, there.with_positions(there.positions + shift.to(device)))
                assert _off(found, expected) < TOLERANCE[dtype]


def test_the_comparison_sees_a_coarser_table(device: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = _batch(slab)
    expected = _force_field()(batch)[1]
    monkeypatch.setattr(inference, "_KNOTS", 33)
    assert _off(_fast(device, torch.float64)(batch.to(device=device))[1].cpu(), expected) > TOLERANCE[torch.float64]


def test_no_two_calls_differ(device: str, slab: Slab) -> None:
    batch, fast = _batch(slab, torch.float32).to(device=device), _fast(device, torch.float32)
    (energies, forces), (again, too) = fast(batch), fast(batch)
    assert torch.equal(energies, again)
    assert torch.equal(forces, too)


def test_atoms_out_of_reach_of_each_other(device: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pairs at all, in training and with fixed weights."""
    batch = _batch(slab).subset(torch.tensor([True, False]))[0]
    apart = torch.arange(len(batch.positions))[:, None] * torch.tensor([[30.0, 0.0, 0.0]], dtype=torch.float64)
    batch = Batch(**{**vars(batch), "positions": apart, "cell": 1e3 * torch.eye(2, dtype=torch.float64)[None]})
    expected = _force_field()(batch)[0]
    module = _force_field().to(device)
    for found in (module(batch.to(device=device)), _fast(device, torch.float64)(batch.to(device=device))):
        assert _off(found[0].cpu(), expected) < 1e-12
        assert not found[1].any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_an_atom_that_is_lost_harms_no_other_structure(device: str, value: float, slab: Slab) -> None:
    batch, fast = _batch(slab).to(device=device), _fast(device, torch.float64)
    expected_energies, expected = fast(batch)
    positions = batch.positions.clone()
    positions[2, 0] = value
    energies, forces = fast(batch.with_positions(positions))
    assert torch.equal(energies[1], expected_energies[1])
    assert torch.equal(forces[batch.batch == 1], expected[batch.batch == 1])

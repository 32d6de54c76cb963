"""The networks on an accelerator, pretended (:mod:`stand_in`) or real: nothing stays behind, numbers are the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ase import Atoms
from stand_in import accelerator
from torch import Tensor

from adlayer.network import painn
from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField

Slab = Callable[..., Atoms]
Device = torch.device | str
SIZE = {"features": 16, "interactions": 2, "n_radial": 7, "cutoff": 5.0}


def _scores(batch: Batch, dtype: torch.dtype, device: Device, **options: float) -> list[Tensor]:
    """Scores and all gradients of their squares."""
    torch.manual_seed(0)
    net = Denoiser([47, 8], n_conditions=2, **SIZE, **options).to(device=device, dtype=dtype)
    sigma = torch.tensor([0.3, 1.0]).to(device=device, dtype=dtype)
    conditions = torch.tensor([[0.2, float("nan")], [0.1, 0.3]]).to(device=device, dtype=dtype)
    score = net(batch, sigma, conditions)
    score.square().sum().backward()
    return [score.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def _forces(batch: Batch, dtype: torch.dtype, device: Device, *, direct: bool = False, lift: float = 0.0) -> list:
    """Energies, forces, the gradients of the squares of both; forces on the overlayer and total energies."""
    torch.manual_seed(0)
    net = ForceField([47, 8], direct=direct, lift=lift, **SIZE).to(device=device, dtype=dtype).train()
    energies, forces = net(batch)
    (energies.square().sum() + forces.square().sum()).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    net.eval()
    total = net.total_energy(batch, energies.detach())
    return [energies.detach(), forces.detach(), *gradients, net.overlayer_forces(batch), total]


NETWORKS: dict[str, Callable[..., list[Tensor]]] = {
    "denoiser": _scores,
    "denoiser with lift": lambda *a: _scores(*a, lift=1.1),
    "forces by gradient": _forces,
    "direct forces with lift": lambda *a: _forces(*a, direct=True, lift=1.1),
}


def _batch(slab: Slab, dtype: torch.dtype) -> Batch:
    return to_batch([slab(0), slab(1, overlayer="AgO4")], dtype)


def _compare(there: list[Tensor], here: list[Tensor], tolerance: float) -> None:
    """To a tolerance of the largest value of each."""
    assert len(there) == len(here) > 10
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0.0, atol=tolerance * float(b.abs().max()))


@pytest.mark.parametrize("network", NETWORKS)
def test_all_is_made_where_the_batch_is(network: str, slab: Slab) -> None:
    run, dtype = NETWORKS[network], torch.float64
    here = _batch(slab, dtype)
    with accelerator() as device:
        there = [x.cpu() for x in run(here.to(device=device), dtype, device)]
    _compare(there, run(here, dtype, "cpu"), 1e-11)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_tensor_left_behind_is_seen(network: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the places of repeated indices, made on the CPU."""

    def wrong(index: Tensor, times: int, n: int) -> Tensor:
        return (index + n * torch.arange(times)[:, None]).flatten()

    monkeypatch.setattr(painn, "_repeated", wrong)
    here = _batch(slab, torch.float64)
    NETWORKS[network](here, torch.float64, "cpu")
    with accelerator() as device, pytest.raises(RuntimeError, match="mixes tensors"):
        NETWORKS[network](here.to(device=device), torch.float64, device)


def test_a_batch_moves_whole(slab: Slab) -> None:
    batch = _batch(slab, torch.float32)
    with accelerator() as device:
        there = batch.to(device=device)
        made = to_batch([slab(0)], torch.float64, device=device)
        assert {x.device for x in (*vars(there).values(), *vars(made).values())} == {device}
        assert there.mobile.device == device
        assert (there.positions.dtype, made.positions.dtype) == (torch.float32, torch.float64)
        part, atoms = there.subset(torch.tensor([False, True]).to(device))
        assert torch.equal(part.positions.cpu(), batch.positions[atoms.cpu()])


@pytest.mark.gpu
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)])
def test_the_same_numbers_on_a_gpu(network: str, dtype: torch.dtype, tolerance: float, slab: Slab) -> None:
    here = _batch(slab, dtype)
    _compare(NETWORKS[network](here.to(device="cuda"), dtype, "cuda"), NETWORKS[network](here, dtype, "cpu"), tolerance)

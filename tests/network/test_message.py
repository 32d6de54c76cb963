"""The kernels in C against finite differences and against PyTorch's operations, and what happens without them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from ase import Atoms
from torch import Tensor

from adlayer.network import message, painn
from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField
from adlayer.network.message import Ends, Message

Slab = Callable[..., Atoms]
SIZE = {"features": 24, "interactions": 3, "n_radial": 9, "cutoff": 5.0, "lift": 1.1}
needs_compiler = pytest.mark.skipif(message.library(torch.float32) is None, reason="no C compiler")


def _arguments(n_pairs: int = 7, n_atoms: int = 5, features: int = 6) -> tuple[Tensor, ...]:
    shapes = ((n_atoms, 3 * features), (3, n_atoms, features), (n_pairs, 3 * features), (3, n_pairs))
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator).double().requires_grad_() for shape in shapes)


def _ends(n_ways: int, n_receivers: int = 5) -> Ends:
    """Seven pairs of five atoms, one of them an atom and its own image."""
    i, j = torch.tensor([0, 0, 1, 3, 2, 4, 2]), torch.tensor([1, 2, 2, 3, 4, 0, 2])
    if n_ways == 2:
        return Ends(torch.cat([i, j]), torch.cat([j, i]), 5, n_receivers)
    return Ends(i.clamp(max=n_receivers - 1), j, 5, n_receivers)


@needs_compiler
@pytest.mark.parametrize("ends", [_ends(2), _ends(1), _ends(1, 2)], ids=["both ways", "one way", "two receivers"])
def test_first_and_second_derivatives(ends: Ends) -> None:
    """Finite differences in double precision."""
    arguments = _arguments()
    assert torch.autograd.gradcheck(lambda *a: Message.apply(ends, *a), arguments)
    assert torch.autograd.gradgradcheck(lambda *a: Message.apply(ends, *a), arguments)


@needs_compiler
def test_columns_that_do_not_lie_together_are_taken_as_they_are() -> None:
    c, v, w, u = _arguments()
    strided = [x.detach().T.contiguous().T for x in (c, w)]
    index = torch.stack([_ends(2).receiver, _ends(2).sender], dim=1)
    ends = replace(_ends(2), receiver=index[:, 0], sender=index[:, 1])
    assert not any(x.is_contiguous() for x in (*strided, ends.receiver))
    found = Message.apply(ends, strided[0], v, strided[1], u)
    for a, b in zip(found, Message.apply(_ends(2), c, v, w, u), strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_no_edges_no_message() -> None:
    c, v, w, u = _arguments(n_pairs=0)
    nothing = torch.zeros(0, dtype=torch.long)
    found = torch.cat([x.reshape(-1, 5, 6) for x in Message.apply(Ends(nothing, nothing, 5, 5), c, v, w, u)])
    assert torch.equal(found, torch.zeros(4, 5, 6, dtype=torch.float64))


def _batch(slab: Slab) -> Batch:
    return to_batch([slab(0), slab(1)], torch.float64)


def _score(slab: Slab) -> list[Tensor]:
    """Scores and all gradients of their squares."""
    torch.manual_seed(0)
    net, batch = Denoiser([47, 8], n_conditions=2, **SIZE).double(), _batch(slab)
    score = net(batch, torch.tensor([0.3, 1.0]).double(), torch.full((2, 2), 0.2).double())
    score.square().sum().backward()
    return [score.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]


def _forces(direct: bool) -> Callable[[Slab], list[Tensor]]:
    def forces(slab: Slab) -> list[Tensor]:
        """Energies, forces and the gradients of the squares of both."""
        torch.manual_seed(0)
        net, batch = ForceField([47, 8], direct=direct, **SIZE).double().train(), _batch(slab)
        energies, forces = net(batch)
        (energies.square().sum() + forces.square().sum()).backward()
        return [energies.detach(), forces.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]

    return forces


NETWORKS = {"denoiser": _score, "direct forces": _forces(True), "forces by gradient": _forces(False)}


@needs_compiler
@pytest.mark.parametrize("network", NETWORKS)
def test_equal_to_pytorch(network: str, slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results and gradients of all parameters to 1e-12 of the largest."""
    fast = NETWORKS[network](slab)
    monkeypatch.setattr(painn, "available", lambda tensor: False)
    plain = NETWORKS[network](slab)
    assert len(fast) == len(plain) > 20
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12 * float(b.abs().max()))


@needs_compiler
@pytest.mark.parametrize(
    ("network", "kernel"),
    [
        ("denoiser", "message"),
        ("denoiser", "gradient"),
        ("direct forces", "gradient"),
        ("forces by gradient", "second"),
    ],
)
def test_the_comparison_sees_small_mistakes(
    network: str, kernel: str, slab: Slab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part in a million more from one kernel."""
    results = NETWORKS[network]
    right, run = results(slab), message._run

    def wrong(name: str, *arguments: object) -> tuple[Tensor, ...]:
        return tuple(x * (1.0 + 1e-6 * (name == kernel)) for x in run(name, *arguments))  # type: ignore[arg-type]

    monkeypatch.setattr(message, "_run", wrong)
    off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(results(slab), right, strict=True)]
    assert max(off) > 1e-8


def test_no_kernels_for_other_types() -> None:
    assert not message.available(torch.zeros(1, dtype=torch.bfloat16))
    assert not message.available(torch.zeros(1, device="meta"))

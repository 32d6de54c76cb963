"""PaiNN against SchNetPack's own, its size, its smoothness and its shortcut."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor

from adlayer.network import painn
from adlayer.network.graph import Batch, to_batch
from adlayer.network.neighbours import Edges, neighbours
from adlayer.network.painn import Condition, PaiNN

Planted = Callable[[PaiNN, Edges], tuple[PaiNN, Edges]]


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    """See ``make_schnetpack_reference.py``."""
    with np.load(Path(__file__).with_name("schnetpack_painn.npz")) as file:
        return dict(file)


def _copied(stored: dict[str, np.ndarray]) -> PaiNN:
    features, interactions, n_radial = (int(n) for n in stored["size"][:3])
    net = PaiNN(features, interactions, n_radial, float(stored["size"][3])).double()
    net.radial.centres = torch.linspace(0.0, net.cutoff, n_radial, dtype=torch.float64)  # made in single precision
    names = {  # their layers hold their activation
        "interactions.{k}.interatomic_context_net.0.": "interactions.{k}.context.0.",
        "interactions.{k}.interatomic_context_net.1.": "interactions.{k}.context.2.",
        "mixing.{k}.intraatomic_context_net.0.": "mixings.{k}.context.0.",
        "mixing.{k}.intraatomic_context_net.1.": "mixings.{k}.context.2.",
        "mixing.{k}.mu_channel_mix.": "mixings.{k}.channels.",
    }
    weights = {n.removeprefix("weight:"): torch.from_numpy(w) for n, w in stored.items() if n.startswith("weight:")}
    state: dict[str, Tensor] = {}
    for k in range(interactions):
        rows = slice(3 * features * k, 3 * features * (k + 1))  # theirs has one filter layer for all interactions
        for part in ("weight", "bias"):
            state[f"interactions.{k}.filter.{part}"] = weights[f"filter_net.{part}"][rows]
        for theirs, ours in names.items():
            prefix = theirs.format(k=k)
            found = {n: w for n, w in weights.items() if n.startswith(prefix)}
            state |= {ours.format(k=k) + n.removeprefix(prefix): w for n, w in found.items()}
        for name in (
            "filter",
            "context.2",
        ):  # theirs splits in scalar, direction, gate; ours in scalar, gate, direction
            for part in ("weight", "bias"):
                scalar, direction, gate = state[f"interactions.{k}.{name}.{part}"].chunk(3)
                state[f"interactions.{k}.{name}.{part}"] = torch.cat([scalar, gate, direction])
    net.load_state_dict(state)
    return net


def _inputs(stored: dict[str, np.ndarray]) -> tuple[Batch, Edges]:
    n = len(stored["numbers"])
    batch = Batch(
        numbers=torch.from_numpy(stored["numbers"]).long(),
        positions=torch.from_numpy(stored["positions"]),
        tags=torch.zeros(n, dtype=torch.long),
        batch=torch.zeros(n, dtype=torch.long),
        cell=torch.from_numpy(stored["cell"])[None],
        window=torch.zeros(1, 2, dtype=torch.float64),
    )
    edges = Edges(
        torch.from_numpy(stored["receiver"]).long(),
        torch.from_numpy(stored["sender"]).long(),
        torch.from_numpy(stored["shift"][:, :2]).double(),
    )
    return batch, edges


def _run(net: PaiNN, stored: dict[str, np.ndarray], edges: Edges, vectors: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.from_numpy(stored["embedded"])
    return net(s, torch.zeros(len(s), 3, s.shape[1], dtype=s.dtype), edges, vectors)


def test_equals_schnetpack(stored: dict[str, np.ndarray]) -> None:
    net = _copied(stored)
    batch, edges = _inputs(stored)
    vectors = edges.vectors(batch).requires_grad_()
    s, v = _run(net, stored, edges, vectors)
    np.testing.assert_allclose(s.detach(), stored["scalar"], atol=1e-10)
    np.testing.assert_allclose(v.detach(), stored["vector"], atol=1e-10)
    (gradient,) = torch.autograd.grad(s.sin().sum() + v.cos().sum(), vectors)
    np.testing.assert_allclose(gradient, stored["gradient"], atol=1e-10)


def test_equals_schnetpack_with_our_own_neighbours(stored: dict[str, np.ndarray]) -> None:
    batch, _ = _inputs(stored)
    edges = neighbours(batch, float(stored["size"][3]))
    assert len(edges.receiver) == len(stored["receiver"])
    s, v = _run(_copied(stored), stored, edges, edges.vectors(batch))
    np.testing.assert_allclose(s.detach(), stored["scalar"], atol=1e-10)
    np.testing.assert_allclose(v.detach(), stored["vector"], atol=1e-10)


@pytest.mark.parametrize(
    "planted",
    [
        lambda net, edges: (net, Edges(edges.sender, edges.receiver, -edges.shift)),  # r_ij and who sends turned round
        lambda net, edges: (setattr(net.radial, "coefficient", 0.9 * net.radial.coefficient), (net, edges))[1],
        lambda net, edges: (setattr(net.mixings[1], "epsilon", 1e-2), (net, edges))[1],
        lambda net, edges: (net.interactions[2].filter.bias.data.mul_(1.01), (net, edges))[1],
    ],
    ids=["direction of edges", "width of the radial functions", "epsilon of the norm", "bias of the last filter"],
)
def test_the_comparison_sees_small_mistakes(stored: dict[str, np.ndarray], planted: Planted) -> None:
    batch, edges = _inputs(stored)
    vectors = edges.vectors(batch)
    net, edges = planted(_copied(stored), edges)
    s, v = _run(net, stored, edges, vectors)
    wrong = max(
        np.abs(s.detach().numpy() - stored["scalar"]).max(), np.abs(v.detach().numpy() - stored["vector"]).max()
    )
    assert wrong > 1e-4


def test_published_size() -> None:
    """64 features, 4 interactions, 30 radial functions; each interaction has 51 520 parameters."""
    per_interaction = (64 * 64 + 64 + 64 * 192 + 192) + (30 * 192 + 192) + 64 * 128 + (128 * 64 + 64 + 64 * 192 + 192)
    assert per_interaction == 51_520
    assert sum(p.numel() for p in PaiNN(64, 4, 30, 6.0).parameters()) == 4 * per_interaction


def _pair(net: PaiNN, distance: float) -> tuple[Tensor, Tensor]:
    vector = torch.tensor([[0.6, 0.0, 0.8], [-0.6, 0.0, -0.8]], dtype=torch.float64) * distance
    edges = Edges(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.zeros(2, 2, dtype=torch.float64))
    s = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64).reshape(2, 8)
    with torch.no_grad():
        return net(s, torch.zeros(2, 3, 8, dtype=torch.float64), edges, vector)


def _jump(net: PaiNN, step: float) -> float:
    """Largest change of the results when the neighbour crosses the cutoff by ``step``."""
    inside, outside = _pair(net, 4.0 - step), _pair(net, 4.0 + step)
    return max(float((a - b).abs().max()) for a, b in zip(inside, outside, strict=True))


def test_smooth_at_the_cutoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and first derivative vanish at the cutoff: halving the distance to it quarters the change."""
    torch.manual_seed(0)
    net = PaiNN(8, 2, 6, 4.0).double()
    assert 1e-9 < _jump(net, 0.02) < 1e-3
    assert _jump(net, 0.01) == pytest.approx(_jump(net, 0.02) / 4.0, rel=0.05)
    monkeypatch.setattr(painn, "cosine_cutoff", lambda d, cutoff: (d < cutoff).to(d.dtype))  # planted: a hard cutoff
    assert _jump(net, 0.01) > 1e-2


def test_read_out_shortcut_changes_nothing_on_the_atoms_read_out(slab: Callable[..., Atoms]) -> None:
    torch.manual_seed(0)
    net = PaiNN(8, 3, 6, 4.5, n_condition=5).double()
    batch = to_batch([slab(0), slab(1)], torch.float64)
    edges = neighbours(batch, 4.5)
    n = len(batch.numbers)
    generator = torch.Generator().manual_seed(1)
    s, c = torch.randn(n, 8, generator=generator).double(), torch.randn(2, 5, generator=generator).double()
    condition = Condition(c, batch.batch)
    arguments = (s, torch.zeros(n, 3, 8, dtype=torch.float64), edges, edges.vectors(batch), condition)
    full, short = net(*arguments), net(*arguments, read_out=(batch.mobile, batch.mobile.nonzero()[:, 0]))
    for a, b in zip(full, short, strict=True):
        torch.testing.assert_close(a[batch.mobile], b[batch.mobile], rtol=1e-12, atol=1e-12)
        assert (a[~batch.mobile] - b[~batch.mobile]).abs().max() > 1e-3

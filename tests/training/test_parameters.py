"""Parameters as one vector: the same network, whatever happens to one of the two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adlayer.training.parameters import joined


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))


def test_the_network_stays_what_it_was() -> None:
    network, before = _network(), _network()
    whole = joined(network)
    assert list(network.state_dict()) == list(before.state_dict())
    for a, b in zip(network.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)
    x = torch.randn(4, 3)
    assert torch.equal(network(x), before(x))
    square = float(whole.detach().square().sum())
    assert square == pytest.approx(sum(float(p.detach().square().sum()) for p in before.parameters()))


def test_vector_and_parameters_are_one_memory() -> None:
    network = _network()
    whole = joined(network)
    with torch.no_grad():
        whole.mul_(2.0)
    for a, b in zip(network.parameters(), _network().parameters(), strict=True):
        assert torch.equal(a, 2.0 * b)
    network.load_state_dict({name: torch.zeros_like(x) for name, x in network.state_dict().items()})
    assert not whole.any()
    assert {p.data_ptr() % 64 for p in network.parameters()} == {whole.data_ptr() % 64}


def test_an_optimiser_of_the_vector_is_one_of_the_parameters() -> None:
    """Norms and steps, through several of them."""
    network, other, x = _network(), _network(), torch.randn(7, 3)
    whole = joined(network, gradients=True)
    ours, theirs = torch.optim.AdamW([whole], lr=0.1), torch.optim.AdamW(other.parameters(), lr=0.1)
    for _ in range(3):
        ours.zero_grad(set_to_none=False)
        theirs.zero_grad()
        network(x).square().sum().backward()
        other(x).square().sum().backward()
        norms = [float(nn.utils.clip_grad_norm_(p, 0.3)) for p in (whole, list(other.parameters()))]
        assert norms[0] > 0.3  # it is cut
        assert norms[0] == pytest.approx(norms[1])
        ours.step()
        theirs.step()
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)

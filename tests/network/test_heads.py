"""Denoiser and force field: derivatives, images, batches, conditions."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii
from torch import Tensor

from adlayer.network.graph import Batch, to_batch
from adlayer.network.heads import Denoiser, ForceField, lifted
from adlayer.network.neighbours import Edges, neighbours
from adlayer.structures.substrate import build_substrate

Slab = Callable[..., Atoms]
NAN = float("nan")
SIZE = {"features": 16, "interactions": 2, "n_radial": 8, "cutoff": 5.0, "lift": 1.1}


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(3)
    return Denoiser([47, 8], n_conditions=2, **SIZE).double()


@pytest.fixture(params=[False, True], ids=["energy", "direct"])
def force_field(request: pytest.FixtureRequest) -> ForceField:
    return _force_field(direct=request.param)


def _force_field(direct: bool = False) -> ForceField:
    torch.manual_seed(4)
    return ForceField([47, 8], direct=direct, **SIZE).double().eval()


def _score(denoiser: Denoiser, batch: Batch, sigma: float = 0.3, edges: Edges | None = None) -> Tensor:
    n = batch.n_structures
    return denoiser(batch, torch.full((n,), sigma).double(), torch.full((n, 2), NAN).double(), edges)


def _energy(force_field: ForceField, batch: Batch, atom: int, axis: int, step: float) -> float:
    positions = batch.positions.clone()
    positions[atom, axis] += step
    return float(force_field(batch.with_positions(positions))[0].sum())


def test_forces_are_the_derivative_of_the_energy(slab: Slab) -> None:
    """Central differences in double precision, with two atoms deep in each other's core."""
    force_field = _force_field()
    atoms = slab(2)
    atoms.positions[-1] = atoms.positions[0] + [0.7, 0.3, 0.9]
    batch = to_batch([atoms, slab(3)], torch.float64)
    _, forces = force_field(batch)
    h = 1e-4
    picks = [(0, 0), (0, 2), (3, 1), (8, 0), (8, 2), (10, 2), (17, 1)]
    found = [
        -(_energy(force_field, batch, i, k, h) - _energy(force_field, batch, i, k, -h)) / (2 * h) for i, k in picks
    ]
    expected = np.array([float(forces[i, k]) for i, k in picks])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 10.0  # the core acts
    flipped = expected * [1 if k < 2 else -1 for _, k in picks]  # planted: forces along z of the wrong sign
    assert not np.allclose(found, flipped, rtol=1e-2, atol=1e-3)


def test_forces_sum_to_zero(slab: Slab) -> None:
    _, forces = _force_field()(to_batch([slab(2)], torch.float64))
    np.testing.assert_allclose(forces.sum(0), 0.0, atol=1e-10)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.999, 1.0, 1.3])
def test_core_repulsion_of_a_pair(share: float) -> None:
    """``A (1 − d/d⁰)²`` inside ``d⁰``, nothing outside: the difference to a network without core."""
    contact = 0.7 * (covalent_radii[47] + covalent_radii[8])
    distance = share * contact
    atoms = Atoms(
        "AgO", positions=[[0, 0, 8], [0, 0, 8 + distance]], cell=[30, 30, 30], pbc=[True, True, False], tags=0
    )
    atoms.info["confinement"] = [5.0, 15.0]
    batch = to_batch([atoms], torch.float64)
    force_field, bare = _force_field(), _force_field()
    bare.radii.zero_()
    (energy, forces), (without, forces_without) = force_field(batch), bare(batch)
    overlap = max(0.0, 1.0 - distance / contact)
    assert float(energy - without) == pytest.approx(60.0 * overlap**2, abs=1e-5)
    assert float((forces - forces_without)[1, 2]) == pytest.approx(120.0 * overlap / contact, abs=1e-4)


def _all_images(batch: Batch, cutoff: float, reach: int) -> Edges:
    """Every edge by a loop over atoms and lattice vectors."""
    found = []
    for i, j, a, b in product(*[range(len(batch.numbers))] * 2, *[range(-reach, reach + 1)] * 2):
        d = batch.positions[j] - batch.positions[i]
        d = d + torch.cat([torch.tensor([a, b]).double() @ batch.cell[0], torch.zeros(1).double()])
        if 0.0 < float(d.norm()) < cutoff:
            found.append((i, j, a, b))
    i, j, a, b = torch.tensor(found).T
    return Edges(i, j, torch.stack([a, b], dim=-1).double())


def test_cells_smaller_than_the_cutoff_sum_over_all_images(denoiser: Denoiser, force_field: ForceField) -> None:
    atoms = Atoms("AgO", positions=[[0.1, 0.2, 7.0], [1.2, 0.9, 8.7]], pbc=[True, True, False], tags=[1, 0])
    atoms.set_cell([[2.7, 0.0, 0.0], [0.8, 3.1, 0.0], [0.0, 0.0, 25.0]])
    atoms.info["confinement"] = [8.0, 12.0]
    batch = to_batch([atoms], torch.float64)
    edges = _all_images(batch, 5.0, reach=6)
    assert int((edges.receiver == edges.sender).sum()) > 10
    for ours, brute in zip(force_field(batch), force_field(batch, edges), strict=True):
        torch.testing.assert_close(ours, brute, rtol=1e-10, atol=1e-10)
    touching = edges.keep(batch.mobile[edges.receiver] | batch.mobile[edges.sender])
    torch.testing.assert_close(_score(denoiser, batch), _score(denoiser, batch, edges=touching), rtol=1e-10, atol=1e-10)
    nearest = edges.keep(edges.shift.abs().amax(dim=-1) <= 1)  # planted: the nearest images alone
    assert (force_field(batch)[0] - force_field(batch, nearest)[0]).abs() > 1e-5


def test_edges_beyond_the_cutoff_change_nothing(denoiser: Denoiser, force_field: ForceField, slab: Slab) -> None:
    batch = to_batch([slab(0), slab(1)], torch.float64)
    longer = neighbours(batch, denoiser.cutoff + 1.5, among_substrate=False)
    assert len(longer.receiver) > len(denoiser.edges(batch).receiver)
    torch.testing.assert_close(_score(denoiser, batch), _score(denoiser, batch, edges=longer), rtol=1e-10, atol=1e-10)
    for a, b in zip(force_field(batch), force_field(batch, neighbours(batch, force_field.cutoff + 1.5)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("direct", [False, True])
def test_pairs_that_share_their_filters_equal_edges_each_for_itself(
    denoiser: Denoiser, direct: bool, slab: Slab
) -> None:
    """Answers and their derivatives in the parameters, with images of different cells and edges beyond the cutoff."""
    batch = to_batch([slab(0), slab(1, cell=((3.1, 0.2), (0.9, 4.0)), overlayer="AgO")], torch.float64)
    force_field = _force_field(direct).train()
    for network in (denoiser, force_field):
        paired = neighbours(batch, network.cutoff + 0.5, among_substrate=network is force_field)
        single = Edges(paired.receiver, paired.sender, paired.shift)
        wrong = Edges(paired.receiver, paired.sender, paired.shift.flip(0), paired=True)  # planted: images mixed up
        fast, plain, planted = (_answers(network, batch, edges) for edges in (paired, single, wrong))
        for a, b in zip(fast, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        assert (fast[0] - planted[0]).abs().max() > 1e-4


def _answers(network: Denoiser | ForceField, batch: Batch, edges: Edges) -> list[Tensor]:
    network.zero_grad()
    answer = [_score(network, batch, edges=edges)] if isinstance(network, Denoiser) else [*network(batch, edges)]
    sum((x**2).sum() for x in answer).backward()
    return [*(x.detach() for x in answer), *(p.grad for p in network.parameters() if p.grad is not None)]


def test_the_denoiser_does_not_see_the_inside_of_the_substrate(denoiser: Denoiser, slab: Slab) -> None:
    """Its edges are all edges without those between two substrate atoms, and these would change its answer."""
    batch = to_batch([slab(0)], torch.float64)
    every, used = neighbours(lifted(batch, 1.1), 5.0), denoiser.edges(batch)
    touching = every.keep(batch.mobile[every.receiver] | batch.mobile[every.sender])
    for name in ("receiver", "sender", "shift"):
        assert torch.equal(getattr(used, name), getattr(touching, name))
    assert (_score(denoiser, batch) - _score(denoiser, batch, edges=every)).abs().max() > 1e-4


def test_nothing_leaks_between_the_structures_of_a_batch(
    denoiser: Denoiser, force_field: ForceField, slab: Slab
) -> None:
    batch = to_batch([slab(0), slab(1), slab(2)], torch.float64)
    batch = batch.with_positions(batch.positions.requires_grad_())
    second = batch.batch == 1
    score = _score(denoiser, batch)[second[batch.mobile]]
    (gradient,) = torch.autograd.grad((score**2).sum(), batch.positions)
    assert gradient[second].abs().max() > 1e-3
    assert (gradient[~second] == 0.0).all()
    plain = batch.with_positions(batch.positions.detach())
    moved = plain.with_positions(plain.positions + 0.3 * torch.rand(plain.positions.shape).double() * ~second[:, None])
    (energy, forces), (energy_moved, forces_moved) = force_field(plain), force_field(moved)
    torch.testing.assert_close(energy[1], energy_moved[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forces[second], forces_moved[second], rtol=1e-12, atol=1e-12)
    assert (energy[0] - energy_moved[0]).abs() > 1e-6


def test_a_batch_of_many_equals_batches_of_one(denoiser: Denoiser, force_field: ForceField, slab: Slab) -> None:
    structures = [
        slab(0),
        slab(1, cell=((9.0, 0.0), (0.0, 5.0)), overlayer="O"),
        slab(2, cell=((7.3, 0.5), (-2.1, 6.4)), overlayer="Ag3O2"),
    ]
    many, ones = to_batch(structures, torch.float64), [to_batch([atoms], torch.float64) for atoms in structures]
    sigma = torch.tensor([0.05, 0.4, 2.0]).double()
    conditions = torch.tensor([[0.2, NAN], [NAN, NAN], [0.0, 0.4]]).double()
    score = denoiser(many, sigma, conditions)
    alone = torch.cat([denoiser(one, sigma[k : k + 1], conditions[k : k + 1]) for k, one in enumerate(ones)])
    torch.testing.assert_close(score, alone, rtol=1e-10, atol=1e-10)
    together = force_field(many)
    apart = [torch.cat(parts) for parts in zip(*(force_field(one) for one in ones), strict=True)]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_condition_not_given_is_nan_and_leaves_none_behind(denoiser: Denoiser, slab: Slab) -> None:
    batch, sigma = to_batch([slab(0)] * 4, torch.float64), torch.full((4,), 0.3).double()
    conditions = torch.tensor([[NAN, NAN], [0.0, NAN], [NAN, 0.0], [0.0, 0.0]]).double()
    score = denoiser(batch, sigma, conditions)
    assert bool(torch.isfinite(score).all())
    (score**2).sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in denoiser.parameters())
    parts = score.detach().reshape(4, -1)
    for a, b in product(range(4), range(4)):  # a zero that is given is not the same as nothing given
        assert a == b or (parts[a] - parts[b]).abs().max() > 1e-4


def test_noise_level_and_conditions_matter(denoiser: Denoiser, slab: Slab) -> None:
    batch = to_batch([slab(0)], torch.float64)
    assert (_score(denoiser, batch, 0.03) - _score(denoiser, batch, 3.0)).abs().max() > 1e-3
    sigma = torch.tensor([0.3]).double()
    low, high = (denoiser(batch, sigma, torch.tensor([[e, 0.3]]).double()) for e in (0.0, 0.5))
    assert (low - high).abs().max() > 1e-4


def test_total_energy_adds_the_composition(slab: Slab) -> None:
    force_field = _force_field()
    force_field.baseline.copy_(torch.tensor([-2.5, -4.0]))
    batch = to_batch([slab(0), slab(1, overlayer="O")], torch.float64)
    total = force_field.total_energy(batch, torch.tensor([0.25, -0.5]))
    assert total.dtype == torch.float64
    assert total.tolist() == [6 * -2.5 + 3 * -4.0 + 0.25, 4 * -2.5 - 4.0 - 0.5]


def test_training_mode_is_differentiable_in_the_parameters(slab: Slab) -> None:
    force_field = _force_field().train()
    energy, forces = force_field(to_batch([slab(0)], torch.float64))
    ((energy**2).sum() + (forces**2).sum()).backward()
    assert all(p.grad is not None for name, p in force_field.named_parameters() if not name.endswith("energy.2.bias"))
    energy, forces = force_field.eval()(to_batch([slab(0)], torch.float64))
    assert not energy.requires_grad
    assert not forces.requires_grad


def test_single_precision_agrees_with_double(denoiser: Denoiser, force_field: ForceField, slab: Slab) -> None:
    batch = to_batch([slab(0), slab(1)], torch.float64)
    score, (energy, forces) = _score(denoiser, batch), force_field(batch)
    single = batch.to(torch.float32)
    low = denoiser.float()(single, torch.full((2,), 0.3), torch.full((2, 2), NAN))
    low_energy, low_forces = force_field.float()(single)
    for a, b in ((score, low), (energy, low_energy), (forces, low_forces)):
        assert (a - b.double()).abs().max() < 1e-4 * a.abs().max()


def test_lift_raises_deeper_layers_alone(slab: Slab) -> None:
    batch = to_batch([slab(2)], torch.float64)
    rise = lifted(batch, 1.1).positions - batch.positions
    np.testing.assert_allclose(rise[:, 2], [1.1, 1.1, 0, 0, 0, 0, 0, 0, 0], atol=1e-12)
    assert not rise[:, :2].any()


def test_lift_tells_hollows_apart() -> None:
    """Oxygen above an fcc and an hcp hollow of Ag(111): energies of a random network differ nine times as much."""
    bare = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.167, window=(1.0, 4.0))
    first, second = (bare.positions[bare.get_tags() == tag] for tag in (1, 2))
    hcp = second[0, :2]
    fcc = 2.0 * first[0, :2] - hcp
    gaps = [np.sort(np.linalg.norm(_images(bare, site), axis=1))[:3] for site in (hcp, fcc)]
    np.testing.assert_allclose(gaps, 4.167 / np.sqrt(6.0), atol=1e-6)  # both are hollows of the first layer
    batches = [
        to_batch([bare + Atoms("O", [[*site, first[0, 2] + 1.3]], tags=[0])], torch.float64) for site in (hcp, fcc)
    ]

    def difference(lift: float) -> float:
        torch.manual_seed(4)
        network = ForceField([47, 8], **{**SIZE, "lift": lift}).double().eval()
        return abs(float(network(batches[0])[0] - network(batches[1])[0]))

    assert difference(1.4) > 5.0 * difference(0.0) > 0.0


def _images(bare: Atoms, site: np.ndarray) -> np.ndarray:
    """Lateral vectors (n, 2) from a site to the atoms of the first layer, images next door included."""
    cell = bare.cell.array[:2, :2]
    steps = np.array([[m, n] for m in (-1, 0, 1) for n in (-1, 0, 1)]) @ cell
    at = bare.positions[bare.get_tags() == 1, :2]
    vectors: np.ndarray = (at[:, None] + steps - site).reshape(-1, 2)
    return vectors


def test_forces_on_the_overlayer_alone_are_those_of_all(force_field: ForceField, slab: Slab) -> None:
    atoms = slab(2)
    atoms.positions[-1] = atoms.positions[0] + [0.7, 0.3, 0.9]  # in its core
    batch = to_batch([atoms, slab(3)], torch.float64)
    found, expected = force_field.overlayer_forces(batch), force_field(batch)[1][batch.mobile]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert expected.abs().max() > 1.0
    assert not found.requires_grad

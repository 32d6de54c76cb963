"""Edges against ASE's neighbour list and against loops over lattice vectors."""

from __future__ import annotations

import shutil
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list

from adlayer import compiled
from adlayer.network import neighbours as module
from adlayer.network.graph import to_batch
from adlayer.network.neighbours import Edges, neighbours

CELLS = {
    "square": ((7.0, 0.0), (0.0, 7.0)),
    "oblique": ((6.1, 0.4), (2.3, 5.2)),
    "smaller than the cutoff": ((2.6, 0.0), (1.1, 2.9)),
    "needle": ((3.0, 0.0), (-13.7, 4.4)),
    "left-handed": ((2.3, 5.2), (6.1, 0.4)),
}


@pytest.fixture(autouse=True, params=["each with each", "vesin"])
def search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with both searches of the CPU."""
    if request.param == "vesin":
        monkeypatch.setattr(module, "_FEW_ATOMS", 0)
    else:
        assert compiled.library("neighbours", module._SOURCE, torch.float64) is not None or not shutil.which("cc")


def _random(cell: tuple[tuple[float, float], ...], seed: int, n: int = 6) -> Atoms:
    rng = np.random.default_rng(seed)
    box = np.diag([0.0, 0.0, 30.0])
    box[:2, :2] = cell
    atoms = Atoms(f"Ag{n}", cell=box, pbc=[True, True, False])
    atoms.positions[:, :2] = rng.uniform(-0.7, 1.8, (n, 2)) @ box[:2, :2]  # some outside the cell
    atoms.positions[:, 2] = rng.uniform(-2.0, 6.0, n)
    atoms.set_tags([1, 1, 1] + [0] * (n - 3))
    atoms.info["confinement"] = [0.0, 6.0]
    return atoms


def _edges(structures: list[Atoms], cutoff: float, among_substrate: bool = True) -> Counter:
    batch = to_batch(structures, torch.float64)
    edges = neighbours(batch, cutoff, among_substrate=among_substrate)
    vectors = edges.vectors(batch).numpy().round(6) + 0.0
    columns = (edges.receiver.tolist(), edges.sender.tolist(), edges.shift.long().tolist(), vectors.tolist())
    return Counter((i, j, *s, *d) for i, j, s, d in zip(*columns, strict=True))


def _ase_edges(atoms: Atoms, cutoff: float, first: int = 0) -> Counter:
    i, j, shift, vectors = neighbor_list("ijSD", atoms, cutoff)
    return Counter(
        (a + first, b + first, *s[:2], *d) for a, b, s, d in zip(*map(_listed, (i, j, shift, vectors)), strict=True)
    )


def _listed(array: np.ndarray) -> list:
    return (array.round(6) + 0.0).tolist()


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_ase(cell: tuple[tuple[float, float], ...], seed: int) -> None:
    atoms = _random(cell, seed)
    found = _edges([atoms], 6.0)
    assert found == _ase_edges(atoms, 6.0)
    assert max(found.values()) == 1


def test_a_batch_is_its_structures_one_after_another() -> None:
    structures = [_random(cell, seed) for seed, cell in enumerate(CELLS.values())]
    expected: Counter = Counter()
    first = 0
    for atoms in structures:
        expected += _ase_edges(atoms, 5.0, first)
        first += len(atoms)
    assert _edges(structures, 5.0) == expected


def test_equal_to_a_loop_over_images() -> None:
    """A cell far smaller than the cutoff: several edges for a pair, and edges of an atom to its own images."""
    atoms = _random(CELLS["smaller than the cutoff"], 3, n=4)
    expected: Counter = Counter()
    for i, j, a, b in product(range(4), range(4), range(-12, 13), range(-12, 13)):
        d = atoms.positions[j] - atoms.positions[i] + np.array([a, b, 0]) @ atoms.cell.array
        if 0 < np.linalg.norm(d) < 6.0:
            expected[(i, j, a, b, *_listed(d))] += 1
    assert _edges([atoms], 6.0) == expected
    assert sum(count for (i, j, *_), count in expected.items() if i == j) >= 4 * 10


def test_pairs_within_the_substrate_are_left_out_and_no_others() -> None:
    atoms = _random(CELLS["oblique"], 0)
    tags = atoms.get_tags()
    every = _edges([atoms], 6.0)
    wanted = Counter({e: n for e, n in every.items() if tags[e[0]] == 0 or tags[e[1]] == 0})
    assert _edges([atoms], 6.0, among_substrate=False) == wanted
    assert 0 < len(wanted) < len(every)


def test_paired_the_second_half_is_the_first_the_other_way_round() -> None:
    batch = to_batch([_random(CELLS["oblique"], 0), _random(CELLS["smaller than the cutoff"], 1)])
    edges = neighbours(batch, 6.0)
    assert edges.paired
    (there, back), (sent, returned), (shift, shift_back) = (
        x.chunk(2) for x in (edges.receiver, edges.sender, edges.shift)
    )
    assert torch.equal(there, returned)
    assert torch.equal(back, sent)
    assert torch.equal(shift, -shift_back)
    one_way = edges.vectors(batch)[: edges.n_pairs]
    unpaired = Edges(edges.receiver, edges.sender, edges.shift)
    torch.testing.assert_close(unpaired.vectors(batch)[: edges.n_pairs], one_way)
    torch.testing.assert_close(edges.vectors(batch), unpaired.vectors(batch))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_lost_atom_is_near_to_no_other(value: float) -> None:
    """Sampling may break a structure; all other atoms have the edges that they had."""
    whole, broken = _random(CELLS["oblique"], 1), _random(CELLS["oblique"], 2)
    broken.positions[5] = value
    batch = to_batch([broken, whole], torch.float64)
    edges = neighbours(batch, 5.0)
    at_first, at_second = edges.receiver == 5, edges.sender == 5
    assert torch.equal(at_first, at_second)  # with its own images alone, if any
    others = ~at_first
    alone = to_batch([broken[:5], whole], torch.float64)
    assert int(others.sum()) == len(neighbours(alone, 5.0).receiver)

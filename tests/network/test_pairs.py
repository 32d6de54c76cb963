"""The search over pairs against vesin's lists: the same edges, whatever the order, and mistakes are seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from stand_in import Elsewhere, accelerator

from adlayer.network import pairs
from adlayer.network.graph import Batch, to_batch
from adlayer.network.neighbours import Edges, neighbours
from adlayer.network.pairs import close_pairs
from adlayer.structures.substrate import build_substrate

CUTOFF = 5.95  # no multiple of a lattice vector
CELLS = {
    "wide": ((14.0, 0.0), (5.0, 13.1)),
    "oblique": ((6.1, 0.4), (2.3, 5.2)),
    "smaller than the cutoff": ((2.6, 0.0), (1.1, 2.9)),
    "needle": ((3.0, 0.0), (-13.7, 4.4)),
    "left-handed": ((2.3, 5.2), (6.1, 0.4)),
    "of many bins": ((41.0, 3.0), (-9.0, 33.0)),
    "of bins along one axis": ((25.0, 1.0), (2.0, 4.4)),
}
BINNED = ("of many bins", "of bins along one axis")


def _random(cell: str, seed: int, n: int = 7) -> Atoms:
    """Atoms in and around the cell, more in large ones, three of them of the substrate."""
    n = 10 * n if cell in BINNED else n
    rng = np.random.default_rng(seed)
    box = np.diag([0.0, 0.0, 30.0])
    box[:2, :2] = CELLS[cell]
    atoms = Atoms(f"Ag{n}", cell=box, pbc=[True, True, False])
    atoms.positions[:, :2] = rng.uniform(-2.7, 3.8, (n, 2)) @ box[:2, :2]
    atoms.positions[:, 2] = rng.uniform(-2.0, 6.0, n)
    atoms.set_tags([1, 1, 1] + [0] * (n - 3))
    atoms.info["confinement"] = [0.0, 6.0]
    return atoms


def _searched(batch: Batch, cutoff: float = CUTOFF, *, among_substrate: bool = True) -> Edges:
    i, j, shift = close_pairs(batch, cutoff, among_substrate=among_substrate)
    return Edges(torch.cat([i, j]), torch.cat([j, i]), torch.cat([shift, -shift]), paired=True)


def _counted(edges: Edges) -> Counter:
    columns = torch.cat([edges.receiver[:, None], edges.sender[:, None], edges.shift.long()], dim=1)
    return Counter(map(tuple, columns.tolist()))


def _same(batch: Batch, **options: bool) -> bool:
    """Whether both find the same, where no distance is within rounding of the cutoff."""
    found = [neighbours(batch, CUTOFF + change, **options) for change in (-1e-6, 0.0, 1e-6)]
    assert len({len(edges.sender) for edges in found}) == 1
    return _counted(_searched(batch, **options)) == _counted(found[1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("among_substrate", [True, False])
def test_equal_to_the_list(cell: str, seed: int, among_substrate: bool) -> None:
    batch = to_batch([_random(cell, seed)], torch.float64)
    assert len(neighbours(batch, CUTOFF).sender) > 0
    assert _same(batch, among_substrate=among_substrate)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunk", [1, 1000, pairs.CHUNK])
def test_equal_in_a_batch_of_mixed_sizes_however_it_is_cut(
    chunk: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    structures = [_random(cell, seed, n=3 + 2 * seed) for seed, cell in enumerate(CELLS)]
    slab = build_substrate("Ag(111)", "p(4x4)", layers=2, lattice=4.167, window=(1.0, 5.0))
    slab.rattle(0.1, seed=1)  # or whole shells of neighbours would lie at one distance
    monkeypatch.setattr(pairs, "CHUNK", chunk)
    batch = to_batch([*structures[:2], slab, *structures[2:]], dtype)
    assert _same(batch)
    assert _same(batch, among_substrate=False)


def test_nothing_near() -> None:
    edges = _searched(to_batch([_random("wide", 0, n=3)], torch.float64), 0.01)
    assert (len(edges.sender), edges.shift.shape, edges.receiver.dtype) == (0, (0, 2), torch.int64)


def _nearest_image_alone(heights: torch.Tensor, cutoff: float) -> torch.Tensor:
    return torch.zeros(1, 2, dtype=heights.dtype)


def _one_image_too_few(heights: torch.Tensor, cutoff: float) -> torch.Tensor:
    every = IMAGES(heights, cutoff)
    return every[every[:, 1] < every[:, 1].max()]


IMAGES = pairs._images


@pytest.mark.parametrize("wrong", [_nearest_image_alone, _one_image_too_few])
def test_a_missing_image_is_seen(wrong: Callable[..., torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_images", wrong)
    batches = [to_batch([_random(cell, 0)], torch.float64) for cell in ("oblique", "smaller than the cutoff")]
    assert not any(_same(batch) for batch in batches)


@pytest.mark.parametrize("bin_", [0, 1, 4, 7])
def test_a_missing_bin_is_seen(bin_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = pairs.candidates

    def wrong(*arguments: object) -> tuple[torch.Tensor, ...]:
        order, first, count = candidates(*arguments)  # type: ignore[arg-type]
        return order, first, count.index_fill(1, torch.tensor([bin_]), 0)

    batch = to_batch([_random("of many bins", 0)], torch.float64)
    monkeypatch.setattr(pairs, "candidates", wrong)
    assert not _same(batch)


def test_wide_cells_need_the_nearest_image_alone() -> None:
    heights = pairs._heights(torch.tensor([CELLS["wide"]], dtype=torch.float64))
    assert len(pairs._images(heights, 6.0)) == 1
    assert len(pairs._images(heights, 7.0)) == 9


def test_in_large_cells_the_candidates_grow_with_the_atoms() -> None:
    """Four times the atoms at the same density: four times the pairs to look at, not sixteen times."""
    counts = []
    for n in (14, 28):
        slab = build_substrate("Ag(111)", f"p({n}x{n})", layers=2, lattice=4.167, window=(1.0, 5.0))
        batch = to_batch([slab], torch.float64)
        counts.append(int(pairs.candidates(batch.batch, batch.positions, batch.cell, 6.0)[2].sum()))
    assert 3.0 < counts[1] / counts[0] < 5.0


def test_other_devices_take_it() -> None:
    here = to_batch([_random("oblique", 0), _random("needle", 1)])
    with accelerator() as device:
        edges = neighbours(here.to(device=device), CUTOFF)
        assert all(isinstance(x, Elsewhere) for x in vars(edges).values() if isinstance(x, torch.Tensor))
        back = Edges(edges.receiver.cpu(), edges.sender.cpu(), edges.shift.cpu(), edges.paired)
    assert _counted(back) == _counted(neighbours(here, CUTOFF))
    assert back.shift.dtype == here.positions.dtype


@pytest.mark.gpu
def test_equal_to_the_list_on_a_gpu() -> None:
    structures = [_random(cell, seed, n=3 + 2 * seed) for seed, cell in enumerate(CELLS)]
    here = to_batch(structures)
    for options in ({"among_substrate": True}, {"among_substrate": False}):
        edges = neighbours(here.to(device="cuda"), CUTOFF, **options)
        assert edges.sender.device.type == "cuda"
        back = Edges(edges.receiver.cpu(), edges.sender.cpu(), edges.shift.cpu(), edges.paired)
        assert _counted(back) == _counted(neighbours(here, CUTOFF, **options))

"""Neighbours on a GPU: each atom of a structure is compared with each, periodic images included.

In large cells with those in its own bin and the ones around it alone (:mod:`adlayer.network.pairs`). What is found is
either pairs, each once, for networks in training, or the edges by the atom that they end on, for those with fixed
weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adlayer.network.graph import Batch
from adlayer.network.pairs import candidates

_TOGETHER = 64  # atoms that one is compared with at once
_FEW = 600  # atoms of a structure up to which there are no bins
_ROOM = 1.25  # for more edges than there are at first


def close_pairs(batch: Batch, cutoff: float, *, among_substrate: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`adlayer.network.pairs.close_pairs`, in the order of the first atoms."""
    inputs, options = _inputs(batch, batch.positions.detach(), cutoff, among_substrate)
    counts = torch.empty(len(batch.positions), dtype=torch.int32, device=batch.positions.device)
    unused = 3 * (batch.batch,)
    _search[(len(counts),)](*inputs, counts, counts, *unused, WRITE=False, FULL=False, **options)
    last = counts.cumsum(0)
    total = int(last[-1])
    found = first, second, shift = [last.new_empty(total * k) for k in (1, 1, 2)]
    _search[(len(counts),)](*inputs, counts, last, *found, WRITE=True, FULL=False, **options)
    return first, second, shift.view(-1, 2)


@dataclass(frozen=True)
class Arrivals:
    """Edges by the atom ``i`` that they end on: those of atom i are ``start[i]`` to ``start[i + 1]``.

    Arrays have room for E edges or more, so that the next list can take the place of this one.
    """

    start: Tensor  # (N + 1,) 32-bit
    sender: Tensor  # (E,) atom j, 32-bit
    distance: Tensor  # (E,) Å
    unit: Tensor  # (E, 3) of x_j − x_i

    def __len__(self) -> int:
        return len(self.sender)


def arrivals(
    batch: Batch, positions: Tensor, cutoff: float, *, among_substrate: bool = True, before: Arrivals | None = None
) -> Arrivals:
    """All edges shorter than ``cutoff``, Å, of atoms at ``positions`` (N, 3): in the place of others that lie there."""
    inputs, options = _inputs(batch, positions, cutoff, among_substrate)
    n = len(positions)
    if before is not None and len(before.start) != n + 1:
        before = None
    start = batch.batch.new_zeros(n + 1, dtype=torch.int32) if before is None else before.start
    counts = torch.empty_like(start[1:])
    unused = 3 * (batch.batch,)
    _search[(n,)](*inputs, counts, counts, *unused, WRITE=False, FULL=True, **options)
    torch.cumsum(counts, 0, dtype=torch.int32, out=start[1:])
    total = int(start[-1])
    if before is None or len(before) < total:
        room = int(_ROOM * total) + 1
        sender = torch.empty(room, dtype=torch.int32, device=start.device)
        before = Arrivals(start, sender, positions.new_empty(room), positions.new_empty(room, 3))
    lists = before.sender, before.distance, before.unit
    _search[(n,)](*inputs, counts, start[1:], *lists, WRITE=True, FULL=True, **options)
    return before


def _inputs(
    batch: Batch, positions: Tensor, cutoff: float, among_substrate: bool
) -> tuple[tuple[Tensor, ...], dict[str, float]]:
    """What the search is given."""
    structures = torch.arange(batch.n_structures + 1, device=positions.device)
    start = torch.searchsorted(batch.batch, structures)
    bins, lists = 0, 3 * (start,)
    if len(positions) > _FEW * batch.n_structures:
        lists = candidates(batch.batch, positions.double(), batch.cell.double(), cutoff)
        bins = lists[1].shape[1]
    arrays = (positions, batch.cell, batch.batch, start, batch.tags, *lists)
    options = {"CUTOFF": cutoff, "ALL": among_substrate, "TOGETHER": _TOGETHER, "BINS": bins, "num_warps": 2}
    return tuple(x.contiguous() for x in arrays), options


@triton.jit
def _search(
    x, cell, structure, start, tags, order, firsts, sizes, counts, last, one, two, three,
    CUTOFF: tl.constexpr, ALL: tl.constexpr, TOGETHER: tl.constexpr, BINS: tl.constexpr, WRITE: tl.constexpr,
    FULL: tl.constexpr,
):  # fmt: skip
    """Count the pairs of atom ``i`` with itself and those that follow it, or write them down: first, second, shift.

    ``FULL``: the edges from all atoms: sender, distance, unit vector.
    """
    i = tl.program_id(0)
    b = tl.load(structure + i)
    ax, ay = tl.load(cell + 4 * b).to(tl.float64), tl.load(cell + 4 * b + 1).to(tl.float64)
    bx, by = tl.load(cell + 4 * b + 2).to(tl.float64), tl.load(cell + 4 * b + 3).to(tl.float64)
    area = ax * by - ay * bx
    # images beside the nearest that may be near enough: the cell's height over the other vector is |area|/length
    n_a = tl.ceil(CUTOFF * tl.sqrt(bx * bx + by * by) / tl.abs(area) - 0.499999).to(tl.int32)
    n_b = tl.ceil(CUTOFF * tl.sqrt(ax * ax + ay * ay) / tl.abs(area) - 0.499999).to(tl.int32)
    xi, yi, zi = (
        tl.load(x + 3 * i).to(tl.float64), tl.load(x + 3 * i + 1).to(tl.float64), tl.load(x + 3 * i + 2).to(tl.float64)
    )  # fmt: skip
    mobile = tl.load(tags + i) == 0
    found = tl.zeros([1], dtype=tl.int32)
    place = tl.zeros([1], dtype=tl.int64)
    if WRITE:
        place += tl.load(last + i) - tl.load(counts + i)
    k = b * 0
    while k < (BINS if BINS else 1):
        if BINS:
            begin = tl.load(firsts + i * BINS + k)
            end = begin + tl.load(sizes + i * BINS + k)
        else:
            begin, end = tl.load(start + b), tl.load(start + b + 1)
        while begin < end:
            slot = begin + tl.arange(0, TOGETHER)
            there = slot < end
            j = tl.load(order + slot, mask=there, other=0) if BINS else slot
            if not FULL:
                there = there & (j >= i)
            dx = tl.load(x + 3 * j, mask=there, other=0.0).to(tl.float64) - xi
            dy = tl.load(x + 3 * j + 1, mask=there, other=0.0).to(tl.float64) - yi
            dz = tl.load(x + 3 * j + 2, mask=there, other=0.0).to(tl.float64) - zi
            if not ALL:
                there = there & (mobile | (tl.load(tags + j, mask=there, other=1) == 0))
            nearest_a = -tl.floor((dx * by - dy * bx) / area + 0.5)
            nearest_b = -tl.floor((dy * ax - dx * ay) / area + 0.5)
            t_a = -n_a
            while t_a <= n_a:
                t_b = -n_b
                while t_b <= n_b:
                    s_a, s_b = nearest_a + t_a, nearest_b + t_b
                    rx, ry = dx + s_a * ax + s_b * bx, dy + s_a * ay + s_b * by
                    square = rx * rx + ry * ry + dz * dz
                    after = (t_a > 0) | ((t_a == 0) & (t_b > 0))  # one of each pair of opposite images of an atom
                    if FULL:
                        after = after | (t_a != 0) | (t_b != 0)
                    near = there & (square < CUTOFF * CUTOFF) & ((j != i) | after)
                    if WRITE:
                        at = place + tl.cumsum(near.to(tl.int64), 0) - 1
                        if FULL:
                            d = tl.sqrt(square + 1e-12)
                            tl.store(one + at, j.to(tl.int32), mask=near)
                            tl.store(two + at, d.to(x.dtype.element_ty), mask=near)
                            tl.store(three + 3 * at, (rx / d).to(x.dtype.element_ty), mask=near)
                            tl.store(three + 3 * at + 1, (ry / d).to(x.dtype.element_ty), mask=near)
                            tl.store(three + 3 * at + 2, (dz / d).to(x.dtype.element_ty), mask=near)
                        else:
                            tl.store(one + at, i.to(tl.int64) + tl.zeros_like(at), mask=near)
                            tl.store(two + at, j, mask=near)
                            tl.store(three + 2 * at, s_a.to(tl.int64), mask=near)
                            tl.store(three + 2 * at + 1, s_b.to(tl.int64), mask=near)
                        place += tl.sum(near.to(tl.int64), 0)
                    else:
                        found += tl.sum(near.to(tl.int32), 0)
                    t_b += 1
                t_a += 1
            begin += TOGETHER
        k += 1
    if not WRITE:
        tl.store(counts + i + tl.zeros([1], dtype=tl.int32), found)

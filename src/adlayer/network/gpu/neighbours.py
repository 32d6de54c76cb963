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
from adlayer.network.pairs import strips_of

_TOGETHER = 64  # atoms that one is compared with at once
_ATOMS = 128  # of a program that puts them into bins
_FEW = 600  # atoms of a structure up to which there are no bins
_ROOM = 1.25  # for more edges than there are at first


@dataclass(frozen=True)
class Plan:
    """What a search asks of a batch whatever its positions."""

    structure: Tensor  # (N,) of each atom, which it was made for
    cell: Tensor  # (B, 2, 2) likewise
    start: Tensor  # (B + 1,) where the atoms of each structure begin
    strips: Tensor  # (B, 2) that a cell is cut into along each axis
    offset: Tensor  # (B,) the first bin of each structure
    n_bins: int  # 0 where there are none

    @classmethod
    def of(cls, batch: Batch, cutoff: float, before: Plan | None = None) -> Plan:
        """That of a batch, which may be the one before."""
        if before is not None and before.structure is batch.batch and before.cell is batch.cell:
            return before
        start = torch.searchsorted(batch.batch, torch.arange(batch.n_structures + 1, device=batch.batch.device))
        if len(batch.batch) <= _FEW * batch.n_structures:
            return cls(batch.batch, batch.cell, start, start, start, 0)
        strips = strips_of(batch.cell.double(), cutoff)
        last = strips.prod(dim=1).cumsum(0)
        return cls(batch.batch, batch.cell, start, strips, last - strips.prod(dim=1), int(last[-1]))

    def lists(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The bin of each atom (N,), the atoms in the order of bins (N,), and where those of each bin begin there."""
        if not self.n_bins:
            return self.start, self.start, self.start
        bins = torch.empty_like(self.structure)
        given = positions, self.cell.contiguous(), self.structure, self.strips, self.offset
        _bin[(triton.cdiv(len(bins), _ATOMS),)](*given, bins, len(bins), ATOMS=_ATOMS)
        found, order = bins.sort(stable=True)
        return bins, order, torch.searchsorted(found, torch.arange(self.n_bins + 1, device=bins.device))


def close_pairs(batch: Batch, cutoff: float, *, among_substrate: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`adlayer.network.pairs.close_pairs`, in the order of the first atoms."""
    inputs, options = _inputs(batch, batch.positions.detach(), cutoff, among_substrate, Plan.of(batch, cutoff))
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
    batch: Batch, positions: Tensor, cutoff: float, plan: Plan, *, among_substrate: bool = True,
    before: Arrivals | None = None,
) -> Arrivals:  # fmt: skip
    """All edges shorter than ``cutoff``, Å, of atoms at ``positions`` (N, 3): in the place of others that lie there."""
    inputs, options = _inputs(batch, positions, cutoff, among_substrate, plan)
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
    batch: Batch, positions: Tensor, cutoff: float, among_substrate: bool, plan: Plan
) -> tuple[tuple[Tensor, ...], dict[str, float]]:
    """What the search is given."""
    positions = positions.contiguous()
    arrays = (positions, batch.cell, batch.batch, plan.start, batch.tags, plan.strips, plan.offset)
    options = {"CUTOFF": cutoff, "ALL": among_substrate, "TOGETHER": _TOGETHER, "BINS": plan.n_bins > 0, "num_warps": 2}
    return tuple(x.contiguous() for x in (*arrays, *plan.lists(positions))), options


@triton.jit(do_not_specialize=["n"])
def _bin(x, cell, structure, strips, offset, bins, n, ATOMS: tl.constexpr):
    """The bin of a few atoms; one that is lost lies in some bin, near to none."""
    i = tl.program_id(0) * ATOMS + tl.arange(0, ATOMS)
    here = i < n
    b = tl.load(structure + i, mask=here, other=0)
    ax, ay = tl.load(cell + 4 * b).to(tl.float64), tl.load(cell + 4 * b + 1).to(tl.float64)
    bx, by = tl.load(cell + 4 * b + 2).to(tl.float64), tl.load(cell + 4 * b + 3).to(tl.float64)
    area = ax * by - ay * bx
    xi = tl.load(x + 3 * i, mask=here, other=0.0).to(tl.float64)
    yi = tl.load(x + 3 * i + 1, mask=here, other=0.0).to(tl.float64)
    along_a, along_b = (xi * by - yi * bx) / area, (yi * ax - xi * ay) / area
    along_a, along_b = along_a - tl.floor(along_a), along_b - tl.floor(along_b)
    along_a = tl.where(along_a == along_a, along_a, 0.0)
    along_b = tl.where(along_b == along_b, along_b, 0.0)
    n_a, n_b = tl.load(strips + 2 * b), tl.load(strips + 2 * b + 1)
    p = tl.minimum((along_a * n_a.to(tl.float64)).to(tl.int64), n_a - 1)
    q = tl.minimum((along_b * n_b.to(tl.float64)).to(tl.int64), n_b - 1)
    tl.store(bins + i, tl.load(offset + b) + p * n_b + q, mask=here)


@triton.jit
def _search(
    x, cell, structure, start, tags, strips, offset, bins, order, begins, counts, last, one, two, three,
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
    begin, end = tl.load(start + b), tl.load(start + b + 1)
    if BINS:
        first_bin = tl.load(offset + b)
        mine = tl.load(bins + i) - first_bin
        strips_a, strips_b = tl.load(strips + 2 * b), tl.load(strips + 2 * b + 1)
    k = b * 0
    while k < (6 if BINS else 1):
        if BINS:  # three rows of bins, each once; the three in a row lie together but where they wrap around
            row = mine // strips_b + k // 2 - 1
            bin_b = mine % strips_b
            low, high = tl.maximum(bin_b - 1, 0), tl.minimum(bin_b + 2, strips_b)
            wrapped = tl.where(bin_b == 0, strips_b - 1, 0)
            wraps = (strips_b > 1) & ((bin_b == 0) | (bin_b == strips_b - 1))
            low, high = tl.where(k % 2 == 0, low, wrapped), tl.where(k % 2 == 0, high, wrapped + wraps.to(tl.int64))
            here_a = (strips_a > 1) | (k // 2 == 1)
            at_row = first_bin + (row + strips_a) % strips_a * strips_b
            begin = tl.load(begins + at_row + low)
            end = tl.where(here_a, tl.load(begins + at_row + high), begin)
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

"""Which pairs each atom is part of, so that a program can sum over the edges that end on one atom.

A pair ``p`` of P is an atom ``first[p]`` and its neighbour ``second[p]``. Edge ``p`` ends on the first and begins at
the second, edge ``P + p`` runs the other way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Incidence:
    """Pairs, P, of N atoms, and the edges by the atom that they end on."""

    first: Tensor  # (P,) whole
    second: Tensor  # (P,) whole
    order: Tensor  # (2P,) edges sorted by the atom that they end on, 32-bit
    start: Tensor  # (N + 1,) where those of each atom begin in ``order``, 32-bit

    @classmethod
    def of(cls, first: Tensor, second: Tensor, n_atoms: int) -> Incidence:
        """From the atoms of the pairs (P,)."""
        ends, order = torch.cat([first, second]).int().sort(stable=True)
        start = torch.searchsorted(ends, torch.arange(n_atoms + 1, device=ends.device, dtype=torch.int32))
        return cls(first.contiguous(), second.contiguous(), order.int(), start.int())

    @property
    def n_pairs(self) -> int:
        return len(self.first)

    @property
    def n_atoms(self) -> int:
        return len(self.start) - 1

    @property
    def lists(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What kernels are given."""
        return self.order, self.start, self.first, self.second


@triton.jit
def ending(order, first, second, pairs, begin, end, EDGES: tl.constexpr):
    """Of a few edges that end on one atom: which there are, their pairs, whether they run back, where they begin."""
    e = begin + tl.arange(0, EDGES)
    here = e < end
    edge = tl.load(order + e, mask=here, other=0).to(tl.int64)
    back = edge >= pairs
    pair = tl.where(back, edge - pairs, edge)
    other = tl.where(back, tl.load(first + pair, mask=here, other=0), tl.load(second + pair, mask=here, other=0))
    return here, pair, back, other


@triton.jit
def rows(base, index, f, mask):
    """Rows of features (EDGES, FEATURES) that begin at the places ``index`` of an array."""
    return tl.load(base + index[:, None] + f[None, :], mask=mask, other=0.0)


@triton.jit
def three(base, index, step, f, mask):
    """Three such rows, each a ``step`` after the one before."""
    return rows(base, index, f, mask), rows(base, index + step, f, mask), rows(base, index + 2 * step, f, mask)


@triton.jit
def vectors(u, index, step, sign, here):
    """Three components of vectors, each a ``step`` after the one before, with a sign, (EDGES, 1) each."""
    x = sign * tl.load(u + index, mask=here, other=0.0)
    y = sign * tl.load(u + index + step, mask=here, other=0.0)
    z = sign * tl.load(u + index + 2 * step, mask=here, other=0.0)
    return x[:, None], y[:, None], z[:, None]

"""Neighbours by looking at pairs of a structure's atoms, all structures together, on whatever device the batch is.

With fractional in-plane coordinates f, a pair's images lie at ``δ + t`` of them, ``δ = f_j − f_i − [f_j − f_i]`` in
``[−½, ½]`` and t whole. An image nearer than the cutoff c has ``|δ_k + t_k| h_k < c`` along both axes, with h_k the
cell's height over the other vector, so ``|t_k| ≤ ⌈c/h_k − ½⌉``: the nearest image alone where both heights are 2c and
more. Atoms may lie outside the cell.

A cell is cut along each axis into ``⌊h_k/c⌋`` strips, if that is three or more, so that an atom has its neighbours in
its own bin and those around it; in large cells the work grows with the number of atoms, in small ones with its square.
Pairs are looked at in chunks that bound the memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adlayer.network.graph import Batch

CHUNK = 1 << 22  # pairs times images that are looked at together, some 100 bytes each


def close_pairs(batch: Batch, cutoff: float, *, among_substrate: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs nearer than ``cutoff`` (Å), each once.

    Returns
    -------
    tuple
        Atoms i and j (P,) with i ≤ j, and the shift (P, 2) of j's image in lattice steps, integers.
    """
    positions, cells = batch.positions.detach().double(), batch.cell.double()
    fractional = _fractional(batch.batch, positions, cells)
    images = _images(_heights(cells), cutoff)  # (T, 2)
    after = (images[:, 0] > 0) | ((images[:, 0] == 0) & (images[:, 1] > 0))  # (T,) one of each pair of opposite images
    order, first, count = candidates(batch.batch, positions, cells, cutoff)
    last, around = count.flatten().cumsum(0), count.shape[1]  # one after the last candidate of each atom and bin
    before = first.flatten() - (last - count.flatten())
    mobile = batch.mobile

    def search(start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        pair = torch.arange(start, end, device=positions.device)
        row = torch.searchsorted(last, pair, right=True)
        i, j = row // around, order[before[row] + pair]
        wanted = i <= j if among_substrate else (i <= j) & (mobile[i] | mobile[j])
        chosen = wanted.nonzero()[:, 0]
        i, j = i[chosen], j[chosen]
        shift = images - torch.round(fractional[j] - fractional[i])[:, None]  # (P, T, 2)
        between, cell = positions[j] - positions[i], cells[batch.batch[i]]  # (P, 3), (P, 2, 2)
        x, y = (between[:, k, None] + (shift * cell[:, None, :, k]).sum(-1) for k in (0, 1))  # (P, T) each
        square = x.square() + y.square() + between[:, 2, None].square()
        near = (square < cutoff**2) & ((i != j)[:, None] | after)
        which, image = near.nonzero().unbind(1)
        return i[which], j[which], shift[which, image]

    n_pairs = int(last[-1])
    step = max(1, CHUNK // len(images))
    found = [search(start, min(start + step, n_pairs)) for start in range(0, n_pairs, step)]
    i, j, shift = (torch.cat(column) for column in zip(*found, strict=True))
    return i, j, shift


def _heights(cells: Tensor) -> Tensor:
    """Heights (B, 2) of the cells (B, 2, 2) over their second and their first vector, Å."""
    a, b = cells.unbind(1)  # (B, 2) each
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    return torch.stack([area / b.norm(dim=-1), area / a.norm(dim=-1)], dim=-1)


def _images(heights: Tensor, cutoff: float) -> Tensor:
    """Images (T, 2) beside the nearest that any of the cells may need."""
    steps = torch.ceil(cutoff / heights - 0.5 + 1e-6).clamp(min=0).amax(dim=0)  # (2,)
    return _grid(int(steps[0]), int(steps[1])).to(heights)


def _grid(n: int, m: int) -> Tensor:
    """Whole steps (…, 2) from −n to n and from −m to m."""
    return torch.cartesian_prod(torch.arange(-n, n + 1), torch.arange(-m, m + 1))


def _fractional(structure: Tensor, positions: Tensor, cells: Tensor) -> Tensor:
    """Fractional coordinates in the plane (N, 2)."""
    return (positions[:, :2, None] * torch.linalg.inv(cells)[structure]).sum(1)


def strips_of(cells: Tensor, cutoff: float) -> Tensor:
    """How many strips each cell is cut into along each axis (B, 2)."""
    strips = torch.floor(_heights(cells) / cutoff).long()
    return torch.where(strips < 3, 1, strips)


def candidates(structure: Tensor, positions: Tensor, cells: Tensor, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """The atoms in an order by bins (N,), and of each atom where those of the K bins around it begin, and how many.

    The last two are (N, K); a bin that is not there, or there already, holds none. Of atoms of structures (N,) at
    positions (N, 3) in cells (B, 2, 2), in double precision.
    """
    fractional, strips = _fractional(structure, positions, cells), strips_of(cells, cutoff)
    n_bins = strips.prod(dim=1)
    offset, mine = (n_bins.cumsum(0) - n_bins)[structure], strips[structure]  # (N,), (N, 2)
    within = torch.nan_to_num(fractional - torch.floor(fractional))  # a lost atom lies in some bin, near to none
    place = (within * mine).long().minimum(mine - 1)  # (N, 2)
    bins = offset + place[:, 0] * mine[:, 1] + place[:, 1]
    sizes = torch.bincount(bins, minlength=int(n_bins.sum()))
    starts = sizes.cumsum(0) - sizes
    cut = (strips > 1).any(dim=0)  # (2,)
    steps = _grid(int(cut[0]), int(cut[1])).to(structure.device)  # (K, 2)
    there = torch.remainder(place[:, None] + steps, mine[:, None])  # (N, K, 2)
    around = offset[:, None] + there[..., 0] * mine[:, None, 1] + there[..., 1]  # (N, K)
    exists = ((steps == 0) | (mine[:, None] > 1)).all(dim=-1)
    return bins.argsort(stable=True), starts[around], torch.where(exists, sizes[around], 0)

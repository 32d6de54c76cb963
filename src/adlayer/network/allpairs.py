"""Neighbours by looking at every pair of a structure's atoms, on whatever device the batch is.

With fractional in-plane coordinates f, a pair's images lie at ``δ + t`` of them, ``δ = f_j − f_i − [f_j − f_i]`` in
``[−½, ½]`` and t whole. An image nearer than the cutoff c has ``|δ_k + t_k| h_k < c`` along both axes, with h_k the
cell's height over the other vector, so ``|t_k| ≤ ⌈c/h_k − ½⌉``: the nearest image alone where both heights are 2c and
more. Atoms may lie outside the cell. All structures are worked on together, in chunks that bound the memory; the work
grows with the square of a structure's atoms, which a graphics processor bears up to ten thousand of them.
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
    atoms = torch.arange(len(positions), device=positions.device)
    ends = torch.bincount(batch.batch, minlength=len(cells)).cumsum(0)  # (B,)
    last = (ends[batch.batch] - atoms).cumsum(0)  # (N,) one after the last pair of each atom with itself and later ones
    fractional = (positions[:, :2, None] * torch.linalg.inv(cells)[batch.batch]).sum(1)  # (N, 2)
    images = _images(cells, cutoff)  # (T, 2)
    after = (images[:, 0] > 0) | ((images[:, 0] == 0) & (images[:, 1] > 0))  # (T,) one of each pair of opposite images
    mobile = batch.mobile

    def search(first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        pair = torch.arange(first, end, device=positions.device)
        i = torch.searchsorted(last, pair, right=True)
        j = ends[batch.batch[i]] - (last[i] - pair)
        if not among_substrate:
            wanted = (mobile[i] | mobile[j]).nonzero()[:, 0]
            i, j = i[wanted], j[wanted]
        shift = images - torch.round(fractional[j] - fractional[i])[:, None]  # (P, T, 2)
        between, cell = positions[j] - positions[i], cells[batch.batch[i]]  # (P, 3), (P, 2, 2)
        x, y = (between[:, k, None] + (shift * cell[:, None, :, k]).sum(-1) for k in (0, 1))  # (P, T) each
        square = x.square() + y.square() + between[:, 2, None].square()
        near = (square < cutoff**2) & ((i != j)[:, None] | after)
        pair, image = near.nonzero().unbind(1)
        return i[pair], j[pair], shift[pair, image]

    n_pairs = int(last[-1])
    step = max(1, CHUNK // len(images))
    found = [search(first, min(first + step, n_pairs)) for first in range(0, n_pairs, step)]
    i, j, shift = (torch.cat(column) for column in zip(*found, strict=True))
    return i, j, shift


def _images(cells: Tensor, cutoff: float) -> Tensor:
    """Images (T, 2) beside the nearest that any of the cells (B, 2, 2) may need."""
    a, b = cells.unbind(1)  # (B, 2) each
    area = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).abs()
    heights = torch.stack([area / b.norm(dim=-1), area / a.norm(dim=-1)], dim=-1)  # (B, 2)
    steps = torch.ceil(cutoff / heights - 0.5 + 1e-6).clamp(min=0).amax(dim=0)  # (2,)
    n, m = int(steps[0]), int(steps[1])
    along, across = (torch.arange(-k, k + 1, dtype=cells.dtype, device=cells.device) for k in (n, m))
    return torch.cartesian_prod(along, across)

"""Neighbour lists of a batch: pairs within a cutoff, every periodic image in the plane counted.

An edge is ``(receiver i, sender j, shift)``; cells smaller than the cutoff give several edges for a pair of atoms, and
edges from an atom to its own images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from vesin import NeighborList

from adlayer.network.graph import Batch


@dataclass(frozen=True)
class Edges:
    """Directed edges of a batch, sorted by receiver."""

    receiver: Tensor  # (E,) atom i
    sender: Tensor  # (E,) atom j
    shift: Tensor  # (E, 2) lattice steps of the sender's image, in the batch's floating-point type

    def vectors(self, batch: Batch) -> Tensor:
        """``x_j + shift·cell − x_i`` (E, 3), differentiable in the positions."""
        offset = torch.einsum("es,esk->ek", self.shift, batch.cell[batch.batch[self.receiver]])  # (E, 2)
        between = batch.positions[self.sender] - batch.positions[self.receiver]
        return between + torch.nn.functional.pad(offset, (0, 1))

    def keep(self, mask: Tensor) -> Edges:
        """The edges where ``mask`` (E,) is true."""
        return Edges(self.receiver[mask], self.sender[mask], self.shift[mask])


def neighbours(batch: Batch, cutoff: float, *, among_substrate: bool = True) -> Edges:
    """All edges shorter than ``cutoff`` (Å).

    Parameters
    ----------
    among_substrate
        Whether pairs of substrate atoms are wanted. The denoiser's substrate is rigid: they tell it nothing.
    """
    positions = batch.positions.detach().double().numpy()
    mobile = batch.mobile.numpy()
    cells = batch.cell.double().numpy()
    ends = np.cumsum(np.bincount(batch.batch.numpy(), minlength=len(cells)))
    finder = NeighborList(cutoff=cutoff, full_list=True, sorted=True)
    parts = []
    for cell, start, end in zip(cells, np.concatenate([[0], ends[:-1]]), ends, strict=True):
        box = np.eye(3)
        box[:2, :2] = cell
        box[2, 2] = np.ptp(positions[start:end, 2]) + cutoff + 1.0
        i, j, shift = finder.compute(positions[start:end], box, [True, True, False], "ijS")
        i, j = i.astype(np.int64) + start, j.astype(np.int64) + start
        if not among_substrate:
            touching = mobile[i] | mobile[j]
            i, j, shift = i[touching], j[touching], shift[touching]
        parts.append((i, j, shift[:, :2]))
    receiver, sender, shift = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Edges(
        torch.from_numpy(receiver), torch.from_numpy(sender), torch.from_numpy(shift).to(batch.positions.dtype)
    )

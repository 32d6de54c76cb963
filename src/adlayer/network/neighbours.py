"""Neighbour lists of a batch: pairs within a cutoff, every periodic image in the plane counted.

An edge is ``(receiver i, sender j, shift)``; cells smaller than the cutoff give several edges for a pair of atoms, and
edges from an atom to its own images. Searches give the same edges in different orders. On the CPU: for structures of up
to some hundred atoms the kernel ``neighbours.c``, which compares each with each, otherwise vesin. On a GPU: the kernel
of :mod:`adlayer.network.gpu.neighbours`. On whatever else: a search in PyTorch (:mod:`adlayer.network.pairs`).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vesin import NeighborList

from adlayer import compiled
from adlayer.network.graph import Batch
from adlayer.network.pairs import close_pairs

_SOURCE = Path(__file__).with_name("neighbours.c").read_text()
_FEW_ATOMS = 300  # of a structure: each is compared with each


@dataclass(frozen=True)
class Edges:
    """Directed edges of a batch. ``paired``: the second half is the first the other way round, edge for edge."""

    receiver: Tensor  # (E,) atom i
    sender: Tensor  # (E,) atom j
    shift: Tensor  # (E, 2) lattice steps of the sender's image, in the batch's floating-point type
    paired: bool = False

    @classmethod
    def both_ways(cls, first: Tensor, second: Tensor, shift: Tensor) -> Edges:
        """From the atoms of pairs (P,) and the lattice steps (P, 2) from first to second."""
        return cls(torch.cat([first, second]), torch.cat([second, first]), torch.cat([shift, -shift]), paired=True)

    @property
    def n_pairs(self) -> int:
        """Edges that differ in length: E/2 where they are paired, else E."""
        return len(self.receiver) // (2 if self.paired else 1)

    def offsets(self, batch: Batch) -> Tensor:
        """``shift·cell`` of each pair (P, 3), Å."""
        n = self.n_pairs
        cell = batch.cell.index_select(0, batch.batch.index_select(0, self.receiver[:n]))  # (P, 2, 2)
        return torch.nn.functional.pad((self.shift[:n, :, None] * cell).sum(dim=1), (0, 1))

    def vectors(self, batch: Batch) -> Tensor:
        """``x_j + shift·cell − x_i`` (E, 3), differentiable in the positions."""
        n = self.n_pairs
        receiver, sender = self.receiver[:n], self.sender[:n]
        between = batch.positions.index_select(0, sender) - batch.positions.index_select(0, receiver)
        between = between + self.offsets(batch)
        return torch.cat([between, -between]) if self.paired else between

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
    device = batch.positions.device
    if compiled.for_gpu(device):
        search = import_module("adlayer.network.gpu.neighbours").close_pairs
        i, j, shift = search(batch, cutoff, among_substrate=among_substrate)
    elif device.type != "cpu":
        i, j, shift = close_pairs(batch, cutoff, among_substrate=among_substrate)
    else:
        kernels = compiled.library("neighbours", _SOURCE, torch.float64)
        if kernels is not None and len(batch.positions) <= _FEW_ATOMS * batch.n_structures:
            i, j, shift = _each_with_each(kernels, batch, cutoff, among_substrate)
        else:
            i, j, shift = _listed(batch, cutoff, among_substrate)
    return Edges.both_ways(i, j, shift.to(batch.positions.dtype))


class _Search(ctypes.Structure):
    _fields_ = (
        ("structures", ctypes.c_int64),
        ("room", ctypes.c_int64),
        ("cutoff", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("start", "x", "cell", "mobile")),
    )


def _each_with_each(
    kernels: ctypes.CDLL, batch: Batch, cutoff: float, among_substrate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (P,) and shifts (P, 2) from ``neighbours.c``."""
    start = torch.searchsorted(batch.batch, torch.arange(batch.n_structures + 1))
    x, cell = batch.positions.detach().double().contiguous(), batch.cell.double().contiguous()
    mobile = None if among_substrate else batch.mobile
    room = 32 * len(x)
    kernels.search.restype = ctypes.c_int64
    while True:
        first, second, shift = (torch.empty(room * k, dtype=torch.long) for k in (1, 1, 2))
        fields = (None if z is None else z.data_ptr() for z in (start, x, cell, mobile))
        search = _Search(batch.n_structures, room, cutoff, *fields)
        found = compiled.call(kernels.search, search, first, second, shift)
        if found <= room:
            return first[:found], second[:found], shift.view(-1, 2)[:found]
        room = found


def _listed(batch: Batch, cutoff: float, among_substrate: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (P,) and shifts (P, 2) from vesin. Lost atoms, whose positions are no numbers, are near to no other."""
    positions = batch.positions.detach().double().numpy()
    lost = (~np.isfinite(positions).all(axis=1)).nonzero()[0]
    if len(lost):
        above = np.nanmax(positions[:, 2], initial=0.0, where=np.isfinite(positions[:, 2]))
        positions = positions.copy()
        positions[lost] = 0.0
        positions[lost, 2] = above + 2.0 * cutoff * np.arange(1, len(lost) + 1)
    cells = batch.cell.double().numpy()
    ends = np.cumsum(np.bincount(batch.batch.numpy(), minlength=len(cells)))
    starts = np.concatenate([[0], ends[:-1]])
    heights = positions[:, 2]
    boxes = np.zeros((len(cells), 3, 3))
    boxes[:, :2, :2] = cells
    boxes[:, 2, 2] = np.maximum.reduceat(heights, starts) - np.minimum.reduceat(heights, starts) + cutoff + 1.0
    finder = NeighborList(cutoff=cutoff, full_list=False, sorted=True, n_threads=torch.get_num_threads())
    periodic = np.array([True, True, False])
    parts = [
        finder.compute(positions[start:end], box, periodic, "ijS")
        for box, start, end in zip(boxes, starts, ends, strict=True)
    ]
    first = np.repeat(starts, [len(i) for i, *_ in parts])
    i, j, shift = (np.concatenate(column) for column in zip(*parts, strict=True))
    i, j, shift = i.astype(np.int64) + first, j.astype(np.int64) + first, shift[:, :2]
    if not among_substrate:
        mobile = batch.mobile.numpy()
        touching = (mobile[i] | mobile[j]).nonzero()[0]
        i, j, shift = i[touching], j[touching], shift[touching]
    return torch.from_numpy(i), torch.from_numpy(j), torch.from_numpy(shift)

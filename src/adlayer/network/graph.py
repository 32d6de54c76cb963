"""A batch of structures as tensors.

Atoms of all structures lie one after another; ``batch`` says to which structure each belongs. Slabs are periodic in the
plane only: an edge ``j → i`` carries the integer shift of the sender's image, and ``r_ij = x_j + shift·cell − x_i``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase import Atoms
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Structures without their edges. N atoms, B structures."""

    numbers: Tensor  # (N,) atomic numbers
    positions: Tensor  # (N, 3) Å
    tags: Tensor  # (N,) 0 for the overlayer, 1, 2, … for the substrate's layers from the top
    batch: Tensor  # (N,) structure of each atom, ascending
    cell: Tensor  # (B, 2, 2) in-plane lattice vectors as rows, Å
    window: Tensor  # (B, 2) confinement z_lo, z_hi, Å

    @property
    def mobile(self) -> Tensor:
        """(N,) bool: overlayer atoms, the ones that diffuse."""
        return self.tags == 0

    @property
    def n_structures(self) -> int:
        return len(self.cell)

    def with_positions(self, positions: Tensor) -> Batch:
        """The same structures with other positions (N, 3)."""
        return replace(self, positions=positions)

    def subset(self, chosen: Tensor) -> tuple[Batch, Tensor]:
        """The ``chosen`` structures (B,) bool alone, and the mask (N,) of their atoms."""
        atoms = chosen[self.batch]
        number = torch.cumsum(chosen.long(), 0) - 1  # of each structure among the chosen
        part = Batch(
            self.numbers[atoms], self.positions[atoms], self.tags[atoms], number[self.batch[atoms]],
            self.cell[chosen], self.window[chosen],
        )  # fmt: skip
        return part, atoms

    def to(self, dtype: torch.dtype | None = None, *, device: torch.device | str | None = None) -> Batch:
        """Floating-point fields in another precision, all fields on another device."""
        real = {name: getattr(self, name).to(device=device, dtype=dtype) for name in ("positions", "cell", "window")}
        whole = {name: getattr(self, name).to(device=device) for name in ("numbers", "tags", "batch")}
        return replace(self, **real, **whole)


def to_batch(
    structures: Sequence[Atoms], dtype: torch.dtype = torch.float32, *, device: torch.device | str = "cpu"
) -> Batch:
    """A batch from ASE structures with tags and ``info["confinement"]``."""
    counts = [len(atoms) for atoms in structures]
    batch = Batch(
        numbers=torch.from_numpy(np.concatenate([a.numbers for a in structures])).long(),
        positions=torch.from_numpy(np.concatenate([a.positions for a in structures])).to(dtype),
        tags=torch.from_numpy(np.concatenate([a.get_tags() for a in structures])).long(),
        batch=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        cell=torch.from_numpy(np.stack([a.cell.array[:2, :2] for a in structures])).to(dtype),
        window=torch.from_numpy(np.array([a.info["confinement"] for a in structures])).to(dtype),
    )
    return batch.to(device=device)

"""What both networks learn from in a step, drawn and filled up to round sizes on the host, in one block of bytes each.

A structure of atoms out of each other's reach is added, which weighs nothing: a graph's tensors have one size for ever,
batches have many.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from adlayer.diffusion.kernels import Kernel
from adlayer.network.graph import Batch
from adlayer.network.model import Card
from adlayer.training.dataset import Dataset, Frame
from adlayer.training.drawing import Drawn, blocks, draw, draw_frames, draw_sigma
from adlayer.training.losses import collate, collate_frames, noised
from adlayer.training.settings import Settings

APART = 1000.0  # Å, between atoms that fill up
_STEPS = 8  # round sizes between a power of two and the next
_ALIGNED = 16  # bytes, at multiples of which tensors begin in a block

Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]
"""Name, type and shape of each tensor in a block, in turn."""
Packed = tuple[np.ndarray, Layout]


def round_size(n: int) -> int:
    """The next round size above n.

    >>> [round_size(n) for n in (1, 15, 16, 17, 100, 7168)]
    [2, 16, 18, 18, 104, 7680]
    """
    step = max(1, 1 << max(0, n.bit_length() - _STEPS.bit_length()))
    return (n // step + 1) * step


def filled(batch: Batch) -> Batch:
    """The batch with one more structure, so that it has a round number of atoms, mobile and others.

    Its atoms are of kinds that the batch has, alone, and in the cell and window of the first structure.
    """
    mobile = batch.mobile
    n_mobile, n_others = int(mobile.sum()), int((~mobile).sum())
    more = [round_size(n_mobile) - n_mobile, round_size(n_others) - n_others]
    kind = torch.tensor([int(mobile.nonzero()[0]), int((~mobile).nonzero()[0])])
    rows = kind.repeat_interleave(torch.tensor(more))
    positions = torch.zeros(len(rows), 3, dtype=batch.positions.dtype)
    positions[:, 2] = APART * torch.arange(1, len(rows) + 1)
    return Batch(
        numbers=torch.cat([batch.numbers, batch.numbers[rows]]),
        positions=torch.cat([batch.positions, positions]),
        tags=torch.cat([batch.tags, batch.tags[rows]]),
        batch=torch.cat([batch.batch, torch.full_like(rows, batch.n_structures)]),
        cell=torch.cat([batch.cell, batch.cell[:1]]),
        window=torch.cat([batch.window, batch.window[:1]]),
    )


def packed(tensors: dict[str, Tensor]) -> Packed:
    """Tensors on the host in one block, so that one copy takes them to a device."""
    raw = [x.contiguous().numpy().tobytes() for x in tensors.values()]
    block = np.frombuffer(bytearray(b"".join(x + bytes(-len(x) % _ALIGNED) for x in raw)), dtype=np.uint8)
    return block, tuple((name, x.dtype, tuple(x.shape)) for name, x in tensors.items())


def unpacked(block: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The tensors in a block, by name."""
    found, begin = {}, 0
    for name, kind, shape in layout:
        end = begin + prod(shape) * kind.itemsize
        found[name] = block[begin:end].view(kind).view(shape)
        begin = -(-end // _ALIGNED) * _ALIGNED
    return found


@dataclass(frozen=True)
class Preparation:
    """Draws and fills up batches; what is drawn in a step depends on the settings' seed and the step alone.

    ``baseline`` (119,): energy of an atom of each atomic number, eV; ``device``: where losses will be worked out.
    """

    dataset: Dataset
    card: Card
    settings: Settings
    kernel: Kernel
    baseline: Tensor
    device: torch.device

    def __call__(self, step: int) -> tuple[Packed | None, Packed | None]:
        """For the denoiser and for the force field; nothing for one that is not trained or needs several blocks."""
        settings, examples, frames = self.settings, None, None
        if settings.batch:
            drawn = draw(self.dataset, self.card, settings, step)
            if len(blocks(drawn.examples, self.device)) == 1:
                examples = self.of_examples(drawn)
        if settings.force_batch and self.dataset.frames:
            chosen = draw_frames(self.dataset, settings, step)
            if len(blocks(chosen, self.device)) == 1:
                frames = self.of_frames(chosen)
        return examples, frames

    def of_examples(self, drawn: Drawn) -> Packed:
        """What the score-matching loss is given (:func:`adlayer.training.losses.noised_loss`)."""
        batch = collate(drawn.examples, drawn.windows)
        sigma = draw_sigma(drawn.levels, batch, self.settings)
        noisy, clean, rows = noised(self.kernel, batch, sigma, drawn.normals)
        whole = filled(batch.with_positions(batch.positions.index_copy(0, rows, noisy)))
        every = whole.mobile.nonzero()[:, 0]
        others = {
            "noisy": _lengthened(noisy, len(every)),
            "clean": _lengthened(clean, len(every)),
            "sigma": _lengthened(sigma, len(sigma) + 1),
            "conditions": _lengthened(drawn.conditions, len(sigma) + 1),
            "rows": every,
            "weight": _weights(len(rows), len(every)),
        }
        return packed(vars(whole) | others)

    def of_frames(self, frames: list[Frame]) -> Packed:
        """What the mean Huber losses of energies and forces are given."""
        batch, energies, forces = collate_frames(frames)
        whole, n = filled(batch), len(frames)
        aim = energies.index_add(0, batch.batch, self.baseline[batch.numbers], alpha=-1.0)
        others = {
            "energies": _lengthened(aim.float(), n + 1),
            "counts": _lengthened(torch.bincount(batch.batch).float(), n + 1),
            "of_energies": _weights(n, n + 1),
            "forces": _lengthened(forces, len(whole.numbers)),
            "of_forces": _weights(len(forces), len(whole.numbers))[:, None] / 3,
        }
        return packed(vars(whole) | others)


def _lengthened(x: Tensor, n: int) -> Tensor:
    """With copies of the first row behind, n rows."""
    return torch.cat([x, x[:1].expand(n - len(x), *x.shape[1:])])


def _weights(n: int, n_all: int) -> Tensor:
    """Weights (n_all,) of a mean over the first n."""
    return torch.zeros(n_all).index_fill(0, torch.arange(n), 1.0 / n)

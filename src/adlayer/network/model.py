"""A model: denoiser and force field, with what must be known to use them.

Conditions of the denoiser, in this order: the energy above the lowest of the same composition, eV per overlayer atom,
and the fraction of each element but the first among the overlayer atoms. NaN stands for "not given".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from adlayer.network.heads import Denoiser, ForceField


@dataclass(frozen=True)
class Architecture:
    """Sizes of both networks; cutoffs and ``lift`` in Å. Published: 4 interactions, no lift."""

    features: int = 64
    interactions: int = 3
    n_radial: int = 30
    cutoff: float = 6.0
    force_features: int = 64
    force_interactions: int = 3
    force_n_radial: int = 20
    force_cutoff: float = 5.0
    direct_forces: bool = False
    lift: float = 1.4


@dataclass(frozen=True)
class Card:
    """What a model file says of itself.

    ``heights`` are quantiles (5, 25, 75, 95 %) of the overlayer atoms' heights above the top layer in the training
    data, Å; ``compositions`` the structures of each overlayer formula; ``calculator`` the backend's record of the
    training energies.
    """

    elements: tuple[str, ...]
    kernel: str  # "exact" or "paper"
    sigma_min: float  # Å
    architecture: Architecture
    heights: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    compositions: dict[str, int] = field(default_factory=dict)
    calculator: dict[str, str] = field(default_factory=dict)
    data_hash: str = ""
    n_structures: int = 0
    n_steps: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    licence: str = "MIT"

    @property
    def numbers(self) -> list[int]:
        return [atomic_numbers[s] for s in self.elements]

    @property
    def n_conditions(self) -> int:
        return len(self.elements)

    def plain(self) -> dict[str, Any]:
        """As nested plain Python, for JSON."""
        return asdict(self)


class Model(torch.nn.Module):
    """Denoiser and force field of one training."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card = card
        size = card.architecture
        self.denoiser = Denoiser(
            card.numbers,
            features=size.features,
            interactions=size.interactions,
            n_radial=size.n_radial,
            cutoff=size.cutoff,
            n_conditions=card.n_conditions,
            lift=size.lift,
        )
        self.force_field = ForceField(
            card.numbers,
            features=size.force_features,
            interactions=size.force_interactions,
            n_radial=size.force_n_radial,
            cutoff=size.force_cutoff,
            direct=size.direct_forces,
            lift=size.lift,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the batches must be."""
        return next(self.parameters()).device


def composition_fractions(counts: dict[str, int], elements: Sequence[str]) -> list[float]:
    """Fraction of each element but the first among the overlayer atoms.

    >>> composition_fractions({"Ag": 12, "O": 6}, ["Ag", "O"])
    [0.3333333333333333]
    """
    total = sum(counts.values())
    return [counts.get(s, 0) / total for s in elements[1:]]


def condition_row(energy: float | None, fractions: Sequence[float] | None, n_conditions: int) -> Tensor:
    """The conditions of a structure (K,): energy above the minimum in eV per overlayer atom, and element fractions."""
    row = torch.full((n_conditions,), float("nan"))
    if energy is not None:
        row[0] = energy
    if fractions is not None:
        row[1:] = torch.tensor(list(fractions))
    return row

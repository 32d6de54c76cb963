"""Guidance: nudges towards low energy while a structure is generated.

*By forces* (Phys. Rev. B 110, 235427, Eq. 3): each step moves an atom by ``η (1 − t)^ζ F(r)``, at most by a cap.
*Classifier-free* (Ho & Salimans 2022): ``s = s_u + w (s_c − s_u)``; w = 1 is the conditional score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from adlayer.diffusion.kernels import Domain
from adlayer.diffusion.solvers import Score


@dataclass(frozen=True)
class ForceGuidance:
    """Displacements along the forces on overlayer atoms.

    ``forces`` maps positions (M, 3), Å, to forces (M, 3), eV/Å; ``strength`` is η in Å²/eV, ``exponent`` ζ. ``cap`` is
    the largest displacement of an atom in one step, Å. Structures whose noise level is not below ``sigma_gate``, Å, are
    left alone; when all are, no force is computed.
    """

    forces: Callable[[Tensor], Tensor]
    strength: float
    exponent: float = 1.0
    cap: float = 0.1
    sigma_gate: float | None = None

    def displacement(self, positions: Tensor, sigma: Tensor, progress: float, domain: Domain) -> Tensor:
        """Displacements (M, 3), Å, at noise levels (B,) and ``progress`` 1 − t.

        Atoms with a non-finite force stay where they are; lengths are formed so that huge forces do not overflow.
        """
        if self.sigma_gate is not None and not bool((sigma < self.sigma_gate).any()):
            return torch.zeros_like(positions)
        force = self.forces(positions).to(positions)
        acts = torch.isfinite(force).all(dim=-1)
        if self.sigma_gate is not None:
            acts = acts & domain.per_atom(sigma < self.sigma_gate)
        force = torch.where(acts[:, None], force, torch.zeros_like(force))
        largest = force.abs().amax(dim=-1, keepdim=True)  # (M, 1)
        direction = force / largest.clamp(min=torch.finfo(force.dtype).tiny)  # largest component 1
        stretch = torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp(min=1.0)
        length = (self.strength * progress**self.exponent * largest * stretch).clamp(max=self.cap)
        return direction / stretch * length


def classifier_free(conditional: Score, unconditional: Score, weight: float) -> Score:
    """The score ``s_u + weight (s_c − s_u)``."""

    def score(positions: Tensor, sigma: Tensor) -> Tensor:
        free = unconditional(positions, sigma)
        return free + weight * (conditional(positions, sigma) - free)

    return score

"""Denoising score matching: ``E λ(σ) ‖s_θ(r_t, σ) − ∇ log p(r_t | r_0)‖²`` with ``λ = 1/E‖∇ log p‖²`` (Vincent 2011).

Each Cartesian component is divided by its own root-mean-square score, so every noise level, and in-plane and vertical
motion, weigh alike; a network that returns zero has a loss of 3.
"""

from __future__ import annotations

from torch import Tensor

from adlayer.diffusion.kernels import Domain


def score_matching_loss(
    predicted: Tensor, target: Tensor, scale: Tensor, domain: Domain, weight: Tensor | None = None
) -> Tensor:
    """Mean over atoms of ``|(predicted − target)/scale|²``, a scalar, or their sum with weights.

    Parameters
    ----------
    predicted, target
        (M, 3) scores, 1/Å: the network's and the kernel's.
    scale
        (B, 3) root-mean-square scores, as by ``Kernel.score_scale``, 1/Å.
    domain
        Says which structure each atom belongs to.
    weight
        (M,) of each atom.
    """
    losses = ((predicted - target) / domain.per_atom(scale)).square().sum(-1)  # (M,)
    return losses.mean() if weight is None else (weight * losses).sum()

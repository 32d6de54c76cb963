"""Noise levels σ (Å) of the forward process, for training and for sampling.

σ² is the variance of an atom's displacement. Sampling walks a falling grid of levels that ends at exactly 0. All
functions take one level per structure (B,), for the largest depends on the cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adlayer.diffusion.kernels import reduced_frame

# 6 exp(−σ²G²/2) = 1 % for the six shortest reciprocal vectors G = 2π/h a lattice can have: σ = 0.569 h.
_PLANE_REACH = math.sqrt(2.0 * math.log(600.0)) / (2.0 * math.pi)
# 2 exp(−π²σ²/2w²) = 1 % between reflecting walls: σ = 1.036 w.
_WINDOW_REACH = math.sqrt(2.0 * math.log(200.0)) / math.pi


def sigma_grid(n_steps: int, sigma_min: float, sigma_max: Tensor, rho: float = 7.0) -> Tensor:
    """Noise levels of ``n_steps`` sampling steps (Karras et al. 2022, Eq. 5).

    Parameters
    ----------
    n_steps
        Number of steps, at least 1.
    sigma_min, sigma_max
        Last level above zero, Å, and first level (B,), Å.
    rho
        How strongly the levels crowd at low noise.

    Returns
    -------
    Tensor
        (n_steps + 1, B): from ``sigma_max`` down to ``sigma_min``, then 0.
    """
    part = torch.arange(n_steps, dtype=sigma_max.dtype, device=sigma_max.device) / max(n_steps - 1, 1)
    top = sigma_max ** (1.0 / rho)  # (B,)
    levels = (top + part[:, None] * (sigma_min ** (1.0 / rho) - top)) ** rho
    levels[0] = sigma_max
    return torch.cat([levels, torch.zeros_like(levels[:1])])


def sigma_max_for(cell: Tensor, window: Tensor) -> Tensor:
    """Noise level (B,), Å, at which the exact kernel is uniform to 1 % in the plane and to 1 % along z.

    In the plane the slowest wave has the length h, the height of the cell over its shortest lattice vector; along z it
    has the length 2w. About ``max(0.57 h, 1.04 w)``.

    Parameters
    ----------
    cell, window
        (B, 2, 2) in-plane cells as rows and (B, 2) walls, Å.
    """
    width = window[:, 1] - window[:, 0]
    return torch.maximum(_PLANE_REACH * reduced_frame(cell).height, _WINDOW_REACH * width)


def log_uniform_sigma(u: Tensor, sigma_min: float, sigma_max: Tensor) -> Tensor:
    """Training noise levels (B,), uniform in log σ, from uniform numbers ``u`` (B,) in [0, 1)."""
    return sigma_min * (sigma_max / sigma_min) ** u


@dataclass(frozen=True)
class LinearBeta:
    """The published variance-preserving schedule, β(t) = β_min + t(β_max − β_min) (Phys. Rev. B 110, 235427, Eq. 1).

    Times are tensors in [0, 1]. We keep its noise levels but not its drift: ``dr = g dw`` with ``g² = dσ²/dt``.
    """

    beta_min: float = 0.01
    beta_max: float = 3.0

    def beta(self, t: Tensor) -> Tensor:
        """β(t)."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def B(self, t: Tensor) -> Tensor:  # noqa: N802 - the paper's symbol
        """∫₀ᵗ β."""
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        """Mean factor exp(−B/2) of the published process; ours does not shrink."""
        return torch.exp(-0.5 * self.B(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Noise level √(1 − e^{−B}), Å."""
        return torch.sqrt(-torch.expm1(-self.B(t)))

    def g2(self, t: Tensor) -> Tensor:
        """dσ²/dt = β e^{−B}, Å²."""
        return self.beta(t) * torch.exp(-self.B(t))

    def grid(self, n_steps: int) -> Tensor:
        """Noise levels (n_steps + 1,) at equal steps of t from 1 down to 0, in double precision."""
        return self.sigma(torch.linspace(1.0, 0.0, n_steps + 1, dtype=torch.float64))

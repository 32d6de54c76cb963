"""Transition kernels p(r_t | r_0) of overlayer atoms: a torus in the plane times a slab between two walls.

An atom diffuses freely, ``dr = g(t) dw``, with σ²(t) the variance collected by time t. No drift: the process knows no
origin.

*In the plane* positions are taken modulo the lattice, so the density is the wrapped normal of an oblique torus,
``p(d) = Σ_L N(d − L; 0, σ²I)`` over lattice vectors L. With a Lagrange-reduced cell turned to ``a₁ = (ℓ, 0)``,
``a₂ = (s, h)`` (then ``ℓ² ≤ s² + h²``, ``|s| ≤ ℓ/2``, ``h ≥ √3ℓ/2``) the sum is one over rows,
``p(x, y) = Σ_n N(y − nh; σ) θ(x − ns; ℓ, σ)``, of one-dimensional wrapped normals

    θ(x; L, σ) = Σ_k N(x − kL; σ) = 1/L [1 + 2 Σ_m exp(−2π²m²σ²/L²) cos(2πmx/L)].

Below ``σ = 0.3 L`` five images, above it four cosines are exact to about 1e-14 (Poisson summation). The rows are
treated alike: by images when ``σ < 0.3 h``, else by reciprocal lattice vectors, ``p = Σ_G e^{−σ²G²/2} cos(G·d)/A``.

*Along z* the motion is reflected at the walls ``z_lo, z_hi`` a width w apart: the mirror images repeat with period 2w,
``p(z | z_0) = θ(z − z_0; 2w, σ) + θ(z + z_0 − 2z_lo; 2w, σ)``.

Both tend to the uniform density, the prior. Lengths are in Å, scores in 1/Å; M overlayer atoms, B structures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from adlayer import compiled

SWITCH = 0.3  # σ/L from which a Fourier series replaces the sum over images
NARROW = 0.1  # σ/L up to which a normal and its images do not meet: what they change is below 1e-5
SCALE_FLOOR = 1e-3  # smallest score scale, in units of 1/σ
IMAGES = 2
COSINES = 4
REDUCTIONS = 12  # each but the last shortens a vector by √3 or more
QUADRATURE = 12  # points of a period for the score scale in the plane
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class Frame:
    """Lagrange-reduced lattice turned so that a₁ = (length, 0), a₂ = (shear, height); fields share a shape (...)."""

    axis: Tensor  # (..., 2) unit vector along a₁
    length: Tensor
    shear: Tensor
    height: Tensor

    def __getitem__(self, index: object) -> Frame:
        return Frame(self.axis[index], self.length[index], self.shear[index], self.height[index])  # type: ignore[index]

    def components(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Components (...) of in-plane vectors (..., 2) along a₁ and across it."""
        ex, ey = self.axis.unbind(-1)
        x, y = vectors.unbind(-1)
        return x * ex + y * ey, y * ex - x * ey

    def vectors(self, along: Tensor, across: Tensor) -> Tensor:
        """Inverse of :meth:`components`."""
        ex, ey = self.axis.unbind(-1)
        return torch.stack([along * ex - across * ey, along * ey + across * ex], dim=-1)


def reduced_frame(cell: Tensor) -> Frame:
    """Shortest basis of a plane lattice (Lagrange–Gauss reduction), whatever cell describes it.

    Parameters
    ----------
    cell
        (B, 2, 2) lattice vectors as rows, Å.
    """
    a, b = cell.unbind(-2)  # (B, 2) each
    for _ in range(REDUCTIONS):
        b = b - torch.round((a * b).sum(-1, keepdim=True) / a.square().sum(-1, keepdim=True)) * a
        swap = b.square().sum(-1, keepdim=True) < a.square().sum(-1, keepdim=True)
        a, b = torch.where(swap, b, a), torch.where(swap, a, b)
        if swap.device.type == "cpu" and not bool(swap.any()):  # elsewhere it would take longer to know
            break
    length = torch.linalg.vector_norm(a, dim=-1)
    axis = a / length[:, None]
    height = axis[:, 0] * b[:, 1] - axis[:, 1] * b[:, 0]
    return Frame(axis, length, (b * axis).sum(-1) * torch.sign(height), height.abs())


@dataclass(frozen=True)
class Domain:
    """Where the overlayer atoms of B structures live."""

    cell: Tensor  # (B, 2, 2) in-plane lattice vectors as rows, Å
    window: Tensor  # (B, 2) walls z_lo, z_hi, Å
    batch: Tensor  # (M,) structure of each overlayer atom

    @cached_property
    def frame(self) -> Frame:
        """Reduced frame of each structure, fields (B,)."""
        return reduced_frame(self.cell)

    @cached_property
    def inverse(self) -> Tensor:
        """(B, 2, 2) inverse cells."""
        return torch.linalg.inv(self.cell)

    @property
    def width(self) -> Tensor:
        """(B,) distance between the walls, Å."""
        return self.window[:, 1] - self.window[:, 0]

    def per_atom(self, values: Tensor) -> Tensor:
        """Values (B, ...) of each structure as (M, ...) of its atoms."""
        return values[self.batch]


def fold(positions: Tensor, domain: Domain) -> Tensor:
    """Wrap positions (M, 3) into the cell and reflect them at the walls, from any distance."""
    fractional = (positions[:, None, :2] @ domain.per_atom(domain.inverse)).squeeze(1)  # (M, 2)
    in_plane = ((fractional - torch.floor(fractional))[:, None] @ domain.per_atom(domain.cell)).squeeze(1)
    z_lo, z_hi = domain.per_atom(domain.window).unbind(-1)
    width = z_hi - z_lo
    depth = width - (torch.remainder(positions[:, 2] - z_lo, 2.0 * width) - width).abs()
    z = torch.minimum(torch.maximum(z_lo + depth, z_lo), z_hi)
    return torch.cat([in_plane, z[:, None]], dim=-1)


def mirror(positions: Tensor, domain: Domain) -> Tensor:
    """Signs (M, 3) that vectors take when their atoms are folded: −1 along z after an odd number of reflections."""
    z_lo, z_hi = domain.per_atom(domain.window).unbind(-1)
    odd = torch.remainder(torch.floor((positions[:, 2] - z_lo) / (z_hi - z_lo)), 2.0)
    return torch.stack([torch.ones_like(odd), torch.ones_like(odd), 1.0 - 2.0 * odd], dim=-1)


def uniform(domain: Domain, noise01: Tensor) -> Tensor:
    """The prior: uniform positions (M, 3) in cell and window, from uniform numbers (M, 3) in [0, 1)."""
    in_plane = (noise01[:, None, :2] @ domain.per_atom(domain.cell)).squeeze(1)
    z_lo, z_hi = domain.per_atom(domain.window).unbind(-1)
    return torch.cat([in_plane, (z_lo + noise01[:, 2] * (z_hi - z_lo))[:, None]], dim=-1)


def wrapped_normal(x: Tensor, period: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of θ(x; period, σ) and its derivative in x; the arguments broadcast together."""
    x = x - period * torch.round(x / period)
    k = torch.arange(-IMAGES, IMAGES + 1, dtype=x.dtype, device=x.device)
    offset = x[..., None] - k * period[..., None]  # (..., 5)
    exponent = -0.5 * (offset / sigma[..., None]).square()
    near = torch.logsumexp(exponent, dim=-1) - torch.log(sigma) - HALF_LOG_2PI
    near_slope = -(torch.softmax(exponent, dim=-1) * offset).sum(-1) / sigma.square()

    wide = torch.maximum(sigma / period, torch.full_like(sigma, SWITCH))  # keeps the unused branch finite
    wave = 2.0 * math.pi * torch.arange(1, COSINES + 1, dtype=x.dtype, device=x.device)
    phase = wave * (x / period)[..., None]
    amplitude = 2.0 * torch.exp(-0.5 * (wave * wide[..., None]).square())
    series = 1.0 + (amplitude * torch.cos(phase)).sum(-1)
    far = torch.log(series) - torch.log(period)
    far_slope = -(amplitude * wave * torch.sin(phase)).sum(-1) / (period * series)

    images = sigma < SWITCH * period
    return torch.where(images, near, far), torch.where(images, near_slope, far_slope)


def _half_plane(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices of one of each pair ±G of reciprocal vectors up to the fourth."""
    k = torch.arange(-COSINES, COSINES + 1, dtype=dtype, device=device)
    pairs = torch.cartesian_prod(k, k)
    k1, k2 = pairs[len(pairs) // 2 + 1 :].unbind(-1)
    return k1, k2


def wrapped_normal_2d(x: Tensor, y: Tensor, frame: Frame, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log density of the wrapped normal on an oblique torus and its gradient, in the reduced frame.

    Arguments broadcast to a common shape (...); so do the three results ``log p``, ``∂x log p``, ``∂y log p``.
    """
    length, shear, height = frame.length, frame.shear, frame.height
    row = torch.round(y / height)
    x, y = x - row * shear, y - row * height
    n = torch.arange(-IMAGES, IMAGES + 1, dtype=x.dtype, device=x.device)
    log_x, slope_x = wrapped_normal(x[..., None] - n * shear[..., None], length[..., None], sigma[..., None])
    rise = y[..., None] - n * height[..., None]  # (..., 5)
    exponent = log_x - 0.5 * (rise / sigma[..., None]).square()
    weight = torch.softmax(exponent, dim=-1)
    near = torch.logsumexp(exponent, dim=-1) - torch.log(sigma) - HALF_LOG_2PI
    near_x = (weight * slope_x).sum(-1)
    near_y = -(weight * rise).sum(-1) / sigma.square()

    k1, k2 = _half_plane(x.dtype, x.device)
    gx = 2.0 * math.pi * k1 / length[..., None]  # (..., 40)
    gy = 2.0 * math.pi * (k2 - k1 * (shear / length)[..., None]) / height[..., None]
    wide = torch.maximum(sigma, SWITCH * height)[..., None]
    amplitude = 2.0 * torch.exp(-0.5 * wide.square() * (gx.square() + gy.square()))
    phase = gx * x[..., None] + gy * y[..., None]
    series = 1.0 + (amplitude * torch.cos(phase)).sum(-1)
    sine = amplitude * torch.sin(phase) / series[..., None]
    far = torch.log(series) - torch.log(length * height)

    images = sigma < SWITCH * height
    return (
        torch.where(images, near, far),
        torch.where(images, near_x, -(gx * sine).sum(-1)),
        torch.where(images, near_y, -(gy * sine).sum(-1)),
    )


def reflected_normal(z: Tensor, z_0: Tensor, width: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Log density of reflected Brownian motion between walls at 0 and ``width``, and its derivative in z."""
    direct, direct_slope = wrapped_normal(z - z_0, 2.0 * width, sigma)
    image, image_slope = wrapped_normal(z + z_0, 2.0 * width, sigma)
    share = torch.sigmoid(direct - image)
    return torch.logaddexp(direct, image), share * direct_slope + (1.0 - share) * image_slope


def minimum_image(x: Tensor, y: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """Shortest displacement modulo the lattice, in the reduced frame; shapes (...)."""
    row = torch.round(y / frame.height)
    x, y = x - row * frame.shear, y - row * frame.height
    n = torch.arange(-1, 2, dtype=x.dtype, device=x.device)
    rise = y[..., None] - n * frame.height[..., None]  # (..., 3)
    run = x[..., None] - n * frame.shear[..., None]
    run = run - frame.length[..., None] * torch.round(run / frame.length[..., None])
    nearest = torch.argmin(run.square() + rise.square(), dim=-1, keepdim=True)
    return run.gather(-1, nearest).squeeze(-1), rise.gather(-1, nearest).squeeze(-1)


class Kernel(Protocol):
    """A transition kernel p(r_t | r_0) of independent atoms."""

    def perturb(self, clean: Tensor, sigma: Tensor, normal: Tensor, domain: Domain) -> Tensor:
        """Draw r_t (M, 3) at noise levels ``sigma`` (B,) from standard normal numbers (M, 3); folded."""
        ...

    def score(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``∇ log p(r_t | r_0)`` in r_t, (M, 3), 1/Å."""
        ...

    def log_density(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``log p(r_t | r_0)`` of each atom, (M,), p in 1/Å³."""
        ...

    def score_scale(self, sigma: Tensor, domain: Domain) -> Tensor:
        """Root-mean-square (B, 3) of the score's components, r_0 uniform; x and y share their mean. ≥ 1e-3/σ."""
        ...


def _for_gpu() -> Any:
    return import_module("adlayer.diffusion.kernels_gpu")


class ExactKernel:
    """Brownian motion on the torus between reflecting walls (see the module's docstring)."""

    def perturb(self, clean: Tensor, sigma: Tensor, normal: Tensor, domain: Domain) -> Tensor:
        """Draw r_t: folding free Brownian motion gives the wrapped, reflected one exactly."""
        return fold(clean + domain.per_atom(sigma)[:, None] * normal, domain)

    def _parts(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
        per_atom, frame = domain.per_atom(sigma), domain.frame[domain.batch]
        x, y = frame.components(noisy[:, :2] - clean[:, :2])
        planar, along, across = wrapped_normal_2d(x, y, frame, per_atom)
        z_lo, z_hi = domain.per_atom(domain.window).unbind(-1)
        vertical, slope = reflected_normal(noisy[:, 2] - z_lo, clean[:, 2] - z_lo, z_hi - z_lo, per_atom)
        return planar + vertical, torch.cat([frame.vectors(along, across), slope[:, None]], dim=-1)

    def score(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``∇ log p(r_t | r_0)``, (M, 3), 1/Å."""
        if compiled.for_gpu(noisy.device):
            return _for_gpu().score(noisy, clean, sigma, domain)
        return self._parts(noisy, clean, sigma, domain)[1]

    def log_density(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``log p(r_t | r_0)``, (M,)."""
        return self._parts(noisy, clean, sigma, domain)[0]

    def score_scale(self, sigma: Tensor, domain: Domain) -> Tensor:
        """Root-mean-square score (B, 3) by quadrature, to about 1e-3 of its value; never below 1e-3/σ."""
        on_gpu = compiled.for_gpu(sigma.device)
        planar = _for_gpu().planar_information(sigma, domain) if on_gpu else planar_information(sigma, domain)
        return _scale(planar, _reflected_information(sigma / domain.width), sigma)


class PaperKernel:
    """The published kernel: a plain normal in the plane, a truncated normal along z.

    The in-plane score is that of the nearest image, ``−(r_t − r_0)_mic/σ²``: good for σ well below the cell. The
    in-plane density is the nearest image's too, and so not normalised on the torus. Truncating is not reflecting: this
    is not the kernel of a diffusion, and its prior is uniform only for σ well above the window.
    """

    def perturb(self, clean: Tensor, sigma: Tensor, normal: Tensor, domain: Domain) -> Tensor:
        """Draw r_t; along z by the inverse distribution function, in double precision for its tails."""
        per_atom = domain.per_atom(sigma)
        low, high = self._bounds(clean.double(), sigma.double(), domain)
        part = torch.special.ndtr(normal[:, 2].double())
        left, right = torch.special.ndtr(low), torch.special.ndtr(high)
        drawn = torch.special.ndtri(left + part * (right - left)).clamp(low, high).to(clean.dtype)
        return fold(clean + per_atom[:, None] * torch.cat([normal[:, :2], drawn[:, None]], dim=-1), domain)

    def score(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``∇ log p(r_t | r_0)`` of the nearest image, (M, 3), 1/Å."""
        return -self._residual(noisy, clean, domain) / domain.per_atom(sigma).square()[:, None]

    def log_density(self, noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
        """``log p(r_t | r_0)`` with the nearest image in the plane, (M,)."""
        per_atom = domain.per_atom(sigma)
        low, high = self._bounds(clean, sigma, domain)
        kept = torch.log(torch.special.ndtr(high) - torch.special.ndtr(low))
        exponent = -0.5 * (self._residual(noisy, clean, domain) / per_atom[:, None]).square().sum(-1)
        return exponent - 3.0 * (torch.log(per_atom) + HALF_LOG_2PI) - kept

    def score_scale(self, sigma: Tensor, domain: Domain) -> Tensor:
        """Root-mean-square score (B, 3) by quadrature, to about 1e-2 of its value; never below 1e-3/σ."""
        frame = domain.frame[:, None]
        x, y = _planar_grid(frame, sigma[:, None])
        log_p, _, _ = wrapped_normal_2d(x, y, frame, sigma[:, None].expand_as(x))
        near_x, near_y = minimum_image(x, y, frame)
        square = (torch.softmax(log_p, dim=-1) * (near_x.square() + near_y.square())).sum(-1)
        return _scale(0.5 * square / sigma.square(), _truncated_variance(sigma / domain.width), sigma)

    @staticmethod
    def _bounds(clean: Tensor, sigma: Tensor, domain: Domain) -> tuple[Tensor, Tensor]:
        walls = (domain.per_atom(domain.window) - clean[:, 2:]) / domain.per_atom(sigma)[:, None]
        return walls[:, 0], walls[:, 1]

    @staticmethod
    def _residual(noisy: Tensor, clean: Tensor, domain: Domain) -> Tensor:
        frame = domain.frame[domain.batch]
        x, y = minimum_image(*frame.components(noisy[:, :2] - clean[:, :2]), frame)
        return torch.cat([frame.vectors(x, y), (noisy - clean)[:, 2:]], dim=-1)


_SCALE_KNOTS = 4096
_SCALE_LOW, _SCALE_HIGH = math.log(1e-3), math.log(1e2)  # log σ, σ in Å


@dataclass(frozen=True)
class ScaleTable:
    """The score scale of one domain, linear in log σ between knots: as accurate as it is itself."""

    values: Tensor  # (knots, 3) σ times the scale

    @classmethod
    def of(cls, kernel: Kernel, domain: Domain) -> ScaleTable:
        """For levels of the domain's one structure, from 0.001 to 100 Å."""
        levels = torch.exp(torch.linspace(_SCALE_LOW, _SCALE_HIGH, _SCALE_KNOTS, dtype=torch.float64)).to(domain.cell)
        many = Domain(domain.cell.expand(_SCALE_KNOTS, 2, 2), domain.window.expand(_SCALE_KNOTS, 2), domain.batch)
        return cls(kernel.score_scale(levels, many) * levels[:, None])

    def __call__(self, sigma: Tensor) -> Tensor:
        """The scale (B, 3) at levels (B,)."""
        density = (_SCALE_KNOTS - 1) / (_SCALE_HIGH - _SCALE_LOW)
        place = ((torch.log(sigma) - _SCALE_LOW) * density).clamp(0, _SCALE_KNOTS - 1.001)
        knot = place.long()
        return torch.lerp(self.values[knot], self.values[knot + 1], (place - knot)[:, None]) / sigma[:, None]


def _scale(planar: Tensor, vertical: Tensor, sigma: Tensor) -> Tensor:
    """Mean squares (B,) of σ·score, in plane and along z, to the floored scale (B, 3)."""
    squares = torch.stack([planar, planar, vertical], dim=-1)
    return torch.sqrt(squares.clamp(min=SCALE_FLOOR**2)) / sigma[:, None]


def planar_information(sigma: Tensor, domain: Domain) -> Tensor:
    """``σ² E s²/2`` (B,) of the exact kernel's score s in the plane: 1 where images do not meet."""
    narrow = sigma < NARROW * torch.minimum(domain.frame.length, domain.frame.height)
    planar = torch.ones_like(sigma)
    wide = (~narrow).nonzero()[:, 0] if sigma.device.type == "cpu" else slice(None)  # elsewhere it waits for the device
    level = sigma[wide, None]
    if len(level):
        frame = domain.frame[wide if len(domain.cell) > 1 else slice(None)][:, None]
        x, y = _planar_grid(frame, level)
        log_p, along, across = wrapped_normal_2d(x, y, frame, level.expand_as(x))
        square = (torch.softmax(log_p, dim=-1) * (along.square() + across.square())).sum(-1)
        planar[wide] = 0.5 * square * level[:, 0].square()
    return torch.where(narrow, 1.0, planar)


def _planar_grid(frame: Frame, sigma: Tensor, points: int = QUADRATURE) -> tuple[Tensor, Tensor]:
    """Midpoints (B, points²/2) over half a period, or ±6σ where that is less: the integrands are even in d."""
    index = torch.arange(points, dtype=sigma.dtype, device=sigma.device)
    across, along = torch.cartesian_prod((index[: points // 2] + 0.5) / points, (index + 0.5) / points - 0.5).unbind(-1)
    return along * torch.minimum(12.0 * sigma, frame.length), across * torch.minimum(12.0 * sigma, frame.height)


_TABLE_STEP, _TABLE_END, _THIN = 0.01, 1.5, 0.05  # in σ/w; thinner than _THIN the two walls do not meet


@lru_cache(maxsize=4)
def _information_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """``σ² E s_z²`` of the reflected kernel at σ/w = 0, 0.01, …, 1.5.

    Midpoints resolve the even, 2w-periodic integrand with spectral accuracy. Below σ/w = 0.05 each wall acts for
    itself on a layer as thick as σ: the value is linear there.
    """
    ratio = torch.arange(round(_THIN / _TABLE_STEP), round(_TABLE_END / _TABLE_STEP) + 1).double() * _TABLE_STEP
    z, z_0 = torch.meshgrid(*2 * [(torch.arange(64).double() + 0.5) / 64], indexing="ij")

    def mean_square(sigma: Tensor) -> Tensor:
        log_p, slope = reflected_normal(z, z_0, torch.ones_like(z), sigma.expand_as(z))
        return (log_p.exp() * slope.square()).mean()

    value = ratio.square() * torch.stack([mean_square(sigma) for sigma in ratio])  # one at a time: all take 250 MiB
    thin = torch.arange(round(_THIN / _TABLE_STEP)).double() * _TABLE_STEP
    return torch.cat([1.0 - (1.0 - value[0]) * thin / ratio[0], value]).to(device, dtype)


def _reflected_information(ratio: Tensor) -> Tensor:
    """``σ² E s_z²`` (B,) of the reflected kernel at σ/w, by linear interpolation; past 1.5 it is below the floor."""
    table = _information_table(ratio.dtype, ratio.device)
    place = (ratio / _TABLE_STEP).clamp(max=len(table) - 1.001)
    index = place.long()
    return torch.lerp(table[index], table[index + 1], place - index)


def _truncated_variance(ratio: Tensor, points: int = 64) -> Tensor:
    """``E (z − z_0)²/σ²`` (B,) of the truncated normal, z_0 uniform; linear in σ/w where the walls do not meet."""
    resolved = ratio.clamp(min=_THIN)[:, None]
    place = (torch.arange(points, dtype=ratio.dtype, device=ratio.device) + 0.5) / points
    low, high = -place / resolved, (1.0 - place) / resolved  # (B, points)
    edge = high * torch.exp(-0.5 * high.square()) - low * torch.exp(-0.5 * low.square())
    kept = torch.special.ndtr(high) - torch.special.ndtr(low)
    value = 1.0 - (edge / (math.sqrt(2.0 * math.pi) * kept)).mean(dim=-1)
    return 1.0 - (1.0 - value) * (ratio / resolved[:, 0])

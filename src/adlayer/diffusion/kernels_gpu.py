"""Score of the exact kernel and its size on a GPU, in Triton: one launch each in place of hundreds.

The formulas are those of :mod:`adlayer.diffusion.kernels`. A program works on a few atoms, or on the quadrature for one
structure; each reduces the lattice for itself.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from adlayer.diffusion import kernels
from adlayer.diffusion.kernels import Domain

_ATOMS = 32  # of a program
_SWITCH, _NARROW = tl.constexpr(kernels.SWITCH), tl.constexpr(kernels.NARROW)
_IMAGES, _COSINES = tl.constexpr(kernels.IMAGES), tl.constexpr(kernels.COSINES)
_REDUCTIONS = tl.constexpr(kernels.REDUCTIONS)
_HALF_LOG_2PI, _TWO_PI = tl.constexpr(kernels.HALF_LOG_2PI), tl.constexpr(2.0 * math.pi)
_VERY_LOW = tl.constexpr(-1e30)  # below any log density


def score(noisy: Tensor, clean: Tensor, sigma: Tensor, domain: Domain) -> Tensor:
    """As :meth:`adlayer.diffusion.kernels.ExactKernel.score`."""
    inputs = (x.contiguous() for x in (noisy, clean, sigma, domain.cell, domain.window, domain.batch))
    result = torch.empty_like(noisy, memory_format=torch.contiguous_format)
    _score[(triton.cdiv(len(noisy), _ATOMS),)](*inputs, result, len(noisy), ATOMS=_ATOMS, num_warps=1)
    return result


def planar_information(sigma: Tensor, domain: Domain) -> Tensor:
    """As :func:`adlayer.diffusion.kernels.planar_information`."""
    result, points = torch.empty_like(sigma), kernels.QUADRATURE
    lanes = triton.next_power_of_2(points * points // 2)
    inputs = (x.contiguous() for x in (sigma, domain.cell.expand(len(sigma), 2, 2)))
    _information[(len(sigma),)](*inputs, result, POINTS=points, LANES=lanes, num_warps=4)
    return result


@triton.jit
def _nearest(x):
    return tl.floor(x + 0.5)


@triton.jit
def _frame(cell, b):
    """Of the lattice of structure ``b``: unit vector along a₁, length, shear, height."""
    ax, ay = tl.load(cell + 4 * b), tl.load(cell + 4 * b + 1)
    bx, by = tl.load(cell + 4 * b + 2), tl.load(cell + 4 * b + 3)
    for _ in tl.static_range(_REDUCTIONS):
        times = _nearest((ax * bx + ay * by) / (ax * ax + ay * ay))
        bx, by = bx - times * ax, by - times * ay
        swap = bx * bx + by * by < ax * ax + ay * ay
        ax, ay, bx, by = tl.where(swap, bx, ax), tl.where(swap, by, ay), tl.where(swap, ax, bx), tl.where(swap, ay, by)
    length = tl.sqrt(ax * ax + ay * ay)
    ex, ey = ax / length, ay / length
    height, shear = ex * by - ey * bx, ex * bx + ey * by
    return ex, ey, length, tl.where(height < 0.0, -shear, shear), tl.abs(height)


@triton.jit
def _wrapped(x, period, sigma):
    """Log density of the wrapped normal and its slope."""
    x -= period * _nearest(x / period)
    top = -0.5 * (x / sigma) * (x / sigma)
    total, moment = x * 0.0, x * 0.0
    for k in tl.static_range(-_IMAGES, _IMAGES + 1):
        offset = x - k * period
        weight = tl.exp(-0.5 * (offset / sigma) * (offset / sigma) - top)
        total += weight
        moment += weight * offset
    near = top + tl.log(total) - tl.log(sigma) - _HALF_LOG_2PI
    near_slope = -moment / (total * sigma * sigma)
    wide = tl.maximum(sigma / period, _SWITCH)  # keeps the unused branch finite
    series, slope = x * 0.0 + 1.0, x * 0.0
    turn = tl.full([], _TWO_PI, x.dtype)
    phase = turn * (x / period)
    cosine, sine = tl.cos(phase), tl.sin(phase)
    c, s = cosine, sine  # of m times the phase
    for m in tl.static_range(1, _COSINES + 1):
        wave = turn * m
        amplitude = 2.0 * tl.exp(-0.5 * (wave * wide) * (wave * wide))
        series += amplitude * c
        slope -= amplitude * wave * s
        c, s = c * cosine - s * sine, s * cosine + c * sine
    images = sigma < _SWITCH * period
    far, far_slope = tl.log(series) - tl.log(period), slope / (period * series)
    return tl.where(images, near, far), tl.where(images, near_slope, far_slope)


@triton.jit
def _on_torus(x, y, length, shear, height, sigma):
    """Log density on the oblique torus and its gradient, in the reduced frame."""
    row = _nearest(y / height)
    x, y = x - row * shear, y - row * height
    top, total, along, across = x * 0.0 + _VERY_LOW, x * 0.0, x * 0.0, x * 0.0
    k = 0
    while k < 2 * _IMAGES + 1:
        n = (k - _IMAGES).to(x.dtype)
        log_x, slope = _wrapped(x - n * shear, length, sigma)
        rise = y - n * height
        exponent = log_x - 0.5 * (rise / sigma) * (rise / sigma)
        new = tl.maximum(top, exponent)
        keep, weight = tl.exp(top - new), tl.exp(exponent - new)
        total, along, across = total * keep + weight, along * keep + weight * slope, across * keep - weight * rise
        top = new
        k += 1
    near, near_x, near_y = top + tl.log(total) - tl.log(sigma) - _HALF_LOG_2PI, along / total, across / total
    near_y = near_y / (sigma * sigma)

    wide = tl.maximum(sigma, _SWITCH * height)
    series, far_x, far_y = x * 0.0 + 1.0, x * 0.0, x * 0.0
    turn = tl.full([], _TWO_PI, x.dtype)
    side: tl.constexpr = 2 * _COSINES + 1
    k = side * side // 2 + 1  # one of each pair of opposite reciprocal vectors
    while k < side * side:
        k1, k2 = (k // side - _COSINES).to(x.dtype), (k % side - _COSINES).to(x.dtype)
        gx, gy = turn * k1 / length, turn * (k2 - k1 * (shear / length)) / height
        amplitude = 2.0 * tl.exp(-0.5 * wide * wide * (gx * gx + gy * gy))
        phase = gx * x + gy * y
        sine = amplitude * tl.sin(phase)
        series += amplitude * tl.cos(phase)
        far_x -= gx * sine
        far_y -= gy * sine
        k += 1
    images = sigma < _SWITCH * height
    return (
        tl.where(images, near, tl.log(series) - tl.log(length * height)),
        tl.where(images, near_x, far_x / series),
        tl.where(images, near_y, far_y / series),
    )


@triton.jit(do_not_specialize=["n"])
def _score(noisy, clean, sigma, cell, window, structure, result, n, ATOMS: tl.constexpr):
    i = tl.program_id(0) * ATOMS + tl.arange(0, ATOMS)
    here = i < n
    i = tl.where(here, i, 0)  # the first again where there is none
    b = tl.load(structure + i)
    level = tl.load(sigma + b)
    ex, ey, length, shear, height = _frame(cell, b)
    dx, dy = tl.load(noisy + 3 * i) - tl.load(clean + 3 * i), tl.load(noisy + 3 * i + 1) - tl.load(clean + 3 * i + 1)
    _, along, across = _on_torus(dx * ex + dy * ey, dy * ex - dx * ey, length, shear, height, level)
    low = tl.load(window + 2 * b)
    period = 2.0 * (tl.load(window + 2 * b + 1) - low)
    z, z_0 = tl.load(noisy + 3 * i + 2) - low, tl.load(clean + 3 * i + 2) - low
    direct, direct_slope = _wrapped(z - z_0, period, level)
    image, image_slope = _wrapped(z + z_0, period, level)
    share = 1.0 / (1.0 + tl.exp(image - direct))
    tl.store(result + 3 * i, along * ex - across * ey, mask=here)
    tl.store(result + 3 * i + 1, along * ey + across * ex, mask=here)
    tl.store(result + 3 * i + 2, share * direct_slope + (1.0 - share) * image_slope, mask=here)


@triton.jit
def _information(sigma, cell, result, POINTS: tl.constexpr, LANES: tl.constexpr):
    b = tl.program_id(0)
    level = tl.load(sigma + b)
    _, _, length, shear, height = _frame(cell, b)
    lane = tl.arange(0, LANES)
    there = lane < POINTS * POINTS // 2
    i, j = (lane // POINTS).to(level.dtype), (lane % POINTS).to(level.dtype)
    x = ((j + 0.5) / POINTS - 0.5) * tl.minimum(12.0 * level, length)
    y = (i + 0.5) / POINTS * tl.minimum(12.0 * level, height)
    log_p, along, across = _on_torus(x, y, length, shear, height, level)
    log_p = tl.where(there, log_p, _VERY_LOW)
    weight = tl.exp(log_p - tl.max(log_p, 0))
    mean = tl.sum(weight * (along * along + across * across), 0) / tl.sum(weight, 0)
    narrow = level < _NARROW * tl.minimum(length, height)
    tl.store(result + b, tl.where(narrow, 1.0, 0.5 * mean * level * level))

"""The kernel of ``lbfgs.c`` on a GPU, in Triton: a program works on a structure."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512  # components at once


def direction(s: Tensor, y: Tensor, r: Tensor, curvature: Tensor, start: Tensor, forces: Tensor) -> Tensor:
    """H F, Å, of forces (N, 3) with m pairs (m, N, 3), 1/(s·y) (m, B), curvatures (B,) and first atoms (B + 1,)."""
    result, (m, n) = forces.clone(), r.shape
    factors = torch.empty(max(m, 1), n, dtype=torch.float64, device=forces.device)
    arrays = (x.contiguous() for x in (s, y, r, curvature))
    _direction[(n,)](*arrays, start, factors, result, m, len(forces), n, BLOCK=_BLOCK)
    return result


@triton.jit
def _product(a, b, n, BLOCK: tl.constexpr):
    """In double precision."""
    total = tl.zeros([BLOCK], dtype=tl.float64)
    k = tl.zeros([], dtype=tl.int64)
    while k < n:
        e = k + tl.arange(0, BLOCK)
        here = e < n
        total += tl.load(a + e, mask=here, other=0.0).to(tl.float64) * tl.load(b + e, mask=here, other=0.0)
        k += BLOCK
    return tl.sum(total, 0)


@triton.jit
def _add(d, x, factor, n, BLOCK: tl.constexpr):
    """``d += factor x``."""
    k = tl.zeros([], dtype=tl.int64)
    while k < n:
        e = k + tl.arange(0, BLOCK)
        here = e < n
        tl.store(d + e, tl.load(d + e, mask=here) + factor * tl.load(x + e, mask=here), mask=here)
        k += BLOCK
    tl.debug_barrier()


@triton.jit
def _scale(d, factor, n, BLOCK: tl.constexpr):
    k = tl.zeros([], dtype=tl.int64)
    while k < n:
        e = k + tl.arange(0, BLOCK)
        tl.store(d + e, factor * tl.load(d + e, mask=e < n), mask=e < n)
        k += BLOCK
    tl.debug_barrier()


@triton.jit(do_not_specialize=["m", "atoms", "structures"])
def _direction(s, y, r, curvature, start, factors, d, m, atoms, structures, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    first = 3 * tl.load(start + b)
    n = 3 * tl.load(start + b + 1) - first
    at, step = d + first, 3 * atoms.to(tl.int64)
    k = m - 1
    while k >= 0:
        pair = k * step + first
        factor = tl.load(r + k * structures + b).to(tl.float64) * _product(s + pair, at, n, BLOCK)
        tl.store(factors + k * structures + b, factor)
        _add(at, y + pair, -factor.to(d.dtype.element_ty), n, BLOCK)
        k -= 1
    _scale(at, tl.load(curvature + b), n, BLOCK)
    k = m - m
    while k < m:
        pair = k * step + first
        product = tl.load(r + k * structures + b).to(tl.float64) * _product(y + pair, at, n, BLOCK)
        rest = tl.load(factors + k * structures + b) - product
        _add(at, s + pair, rest.to(d.dtype.element_ty), n, BLOCK)
        k += 1

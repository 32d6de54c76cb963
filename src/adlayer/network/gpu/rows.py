"""What the kernels of edges have in common: rows of features of a few atoms or pairs, and their vectors."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows(base, index, f, mask):
    """Rows of features (EDGES, FEATURES) that begin at the places ``index`` of an array."""
    return tl.load(base + index[:, None] + f[None, :], mask=mask, other=0.0)


@triton.jit
def three(base, index, step, f, mask):
    """Three such rows, each a ``step`` after the one before."""
    return rows(base, index, f, mask), rows(base, index + step, f, mask), rows(base, index + 2 * step, f, mask)


@triton.jit
def images(at, step, mask, F: tl.constexpr):
    """Both images of vectors, component by component a ``step`` apart: x, y, z of the first and of the second."""
    x, y, z = tl.load(at, mask=mask), tl.load(at + step, mask=mask), tl.load(at + 2 * step, mask=mask)
    at += F
    return x, y, z, tl.load(at, mask=mask), tl.load(at + step, mask=mask), tl.load(at + 2 * step, mask=mask)


@triton.jit
def vectors(u, index, step, sign, here):
    """Three components of vectors, each a ``step`` after the one before, with a sign, (EDGES, 1) each."""
    x = sign * tl.load(u + index, mask=here, other=0.0)
    y = sign * tl.load(u + index + step, mask=here, other=0.0)
    z = sign * tl.load(u + index + 2 * step, mask=here, other=0.0)
    return x[:, None], y[:, None], z[:, None]

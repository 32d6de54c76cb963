"""The message of PaiNN and its derivatives on a GPU: the three functions of ``message.c``, whose notation holds.

A program sums what arrives at one atom, or what an atom's gradient takes back from where it sent to, or works on a few
pairs. With ``SECOND`` it is the derivative along tangents of (c, v, W, u).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from adlayer.network.gpu.rows import rows, three, vectors

_EDGES = 8  # that a program works on at once


@dataclass(frozen=True)
class DeviceEnds:
    """Pairs, P, of N atoms, their edges by the atom that these end on, and which of the atoms are the R receivers.

    Edge ``p`` of the 2P ends on the first atom of pair p and begins at the second, edge ``P + p`` runs the other way.
    """

    first: Tensor  # (P,) whole
    second: Tensor  # (P,) whole
    order: Tensor  # (2P,) edges sorted by the atom that they end on, 32-bit
    start: Tensor  # (N + 1,) where those of each atom begin in ``order``, 32-bit
    slot: Tensor  # (N,) row among the receivers, −1 for none
    n_receivers: int

    @classmethod
    def of(cls, first: Tensor, second: Tensor, n_atoms: int) -> DeviceEnds:
        """From the atoms of the pairs (P,); every atom receives."""
        ends, order = torch.cat([first, second]).int().sort(stable=True)
        atoms = torch.arange(n_atoms + 1, device=first.device)
        start = torch.searchsorted(ends, atoms.int()).int()
        return cls(first.contiguous(), second.contiguous(), order.int(), start, atoms[:-1], n_atoms)

    def onto(self, read_out: Tensor, n_receivers: int) -> DeviceEnds:
        """The atoms where ``read_out`` (N,) is true receive, numbered in turn."""
        return replace(self, slot=torch.where(read_out, read_out.cumsum(0) - 1, -1), n_receivers=n_receivers)


def run(kernel: str, ends: DeviceEnds, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What ``message``, ``gradient`` or ``second`` gives; see :mod:`adlayer.network.message`."""
    arguments = tuple(x.contiguous() for x in arguments)
    g, second = (None if kernel == "message" else arguments[0]), kernel == "second"
    c, v, w, u = arguments[:4] if g is None else arguments[1:5]
    tangents = arguments[5:] if second else (c, v, w, u)  # the latter are not looked at
    pairs, atoms, features = len(ends.first), len(ends.slot), v.shape[-1]
    sizes = {"F": features, "WIDE": triton.next_power_of_2(features), "EDGES": _EDGES, "SECOND": second}
    inputs = (ends.order, ends.start, ends.first, ends.second, ends.slot, c, v, w, u, *tangents)
    counts = (pairs, atoms, ends.n_receivers)
    found: tuple[Tensor, ...] = ()
    if kernel != "gradient":
        arrived = c.new_empty(4, ends.n_receivers, features)
        _receive[(atoms,)](*inputs, arrived, *counts, **sizes, num_warps=2)
        found = (arrived,)
    if g is None:
        return found
    dc, dv, dw, du = (torch.empty_like(x) for x in (c, v, w, u))
    _send[(atoms,)](*inputs, g, dc, dv, *counts, **sizes, num_warps=2)
    if pairs:
        _pair[(triton.cdiv(pairs, _EDGES),)](*inputs, g, dw, du, *counts, **sizes, num_warps=4)
    return *found, dc, dv, dw, du


@triton.jit
def _ending(order, first, second, pairs, begin, end, EDGES: tl.constexpr):
    """Of a few edges that end on one atom: which there are, their pairs, whether they run back, where they begin."""
    e = begin + tl.arange(0, EDGES)
    here = e < end
    edge = tl.load(order + e, mask=here, other=0).to(tl.int64)
    back = edge >= pairs
    pair = tl.where(back, edge - pairs, edge)
    other = tl.where(back, tl.load(first + pair, mask=here, other=0), tl.load(second + pair, mask=here, other=0))
    return here, pair, back, other


@triton.jit
def _received(g, row, receivers, vx, vy, vz, ux, uy, uz, f, m, F: tl.constexpr):
    """The gradient g at receivers, and its products with the sender's vectors and with unit vectors."""
    g0 = rows(g, F * row, f, m)
    gx, gy, gz = three(g, F * (receivers + row), F * receivers, f, m)
    return g0, gx, gy, gz, gx * vx + gy * vy + gz * vz, gx * ux + gy * uy + gz * uz


@triton.jit(do_not_specialize=["pairs", "atoms", "receivers"])
def _receive(
    order, start, first, second, slot, c, v, w, u, tc, tv, tw, tu, out, pairs, atoms, receivers,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """``∂Φ/∂g`` at one receiver."""
    i = tl.program_id(0)
    row = tl.load(slot + i)
    if row >= 0:
        f = tl.arange(0, WIDE)
        s = tl.zeros([EDGES, WIDE], dtype=w.dtype.element_ty)
        x, y, z = s, s, s
        end = tl.load(start + i + 1)
        begin = tl.load(start + i)
        while begin < end:
            here, p, back, j = _ending(order, first, second, pairs, begin, end, EDGES)
            m = here[:, None] & (f < F)[None, :]
            sign = tl.where(back, -1.0, 1.0).to(w.dtype.element_ty)
            ux, uy, uz = vectors(u, p, pairs, sign, here)
            w0, w1, w2 = three(w, 3 * F * p, F, f, m)
            c0, c1, c2 = three(c, 3 * F * j, F, f, m)
            vx, vy, vz = three(v, F * j, F * atoms, f, m)
            if SECOND:
                hx, hy, hz = vectors(tu, p, pairs, sign, here)
                tw0, tw1, tw2 = three(tw, 3 * F * p, F, f, m)
                tc0, tc1, tc2 = three(tc, 3 * F * j, F, f, m)
                tvx, tvy, tvz = three(tv, F * j, F * atoms, f, m)
                a, ta = c1 * w1, tc1 * w1 + c1 * tw1
                b, tb = c2 * w2, tc2 * w2 + c2 * tw2
                s += tc0 * w0 + c0 * tw0
                x += ta * vx + a * tvx + tb * ux + b * hx
                y += ta * vy + a * tvy + tb * uy + b * hy
                z += ta * vz + a * tvz + tb * uz + b * hz
            else:
                a, b = c1 * w1, c2 * w2
                s += c0 * w0
                x += a * vx + b * ux
                y += a * vy + b * uy
                z += a * vz + b * uz
            begin += EDGES
        at = out + row * F + f
        tl.store(at, tl.sum(s, 0), mask=f < F)
        tl.store(at + receivers * F, tl.sum(x, 0), mask=f < F)
        tl.store(at + 2 * receivers * F, tl.sum(y, 0), mask=f < F)
        tl.store(at + 3 * receivers * F, tl.sum(z, 0), mask=f < F)


@triton.jit(do_not_specialize=["pairs", "atoms", "receivers"])
def _send(
    order, start, first, second, slot, c, v, w, u, tc, tv, tw, tu, g, dc, dv, pairs, atoms, receivers,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """``∂Φ/∂c`` and ``∂Φ/∂v`` at one sender: edges run the other way from those that end on it."""
    j = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, WIDE)
    zero = tl.zeros([1], dtype=tl.int64)
    one = (f < F)[None, :]
    c1 = rows(c, 3 * F * j + F + zero, f, one)
    vx, vy, vz = three(v, F * j + zero, F * atoms, f, one)
    if SECOND:
        tc1 = rows(tc, 3 * F * j + F + zero, f, one)
        tvx, tvy, tvz = three(tv, F * j + zero, F * atoms, f, one)
    d0 = tl.zeros([EDGES, WIDE], dtype=w.dtype.element_ty)
    d1, d2, x, y, z = d0, d0, d0, d0, d0
    end = tl.load(start + j + 1)
    begin = tl.load(start + j)
    while begin < end:
        here, p, back, i = _ending(order, first, second, pairs, begin, end, EDGES)
        row = tl.load(slot + i)
        m = (here & (row >= 0))[:, None] & one
        sign = tl.where(back, 1.0, -1.0).to(w.dtype.element_ty)
        ux, uy, uz = vectors(u, p, pairs, sign, here)
        w0, w1, w2 = three(w, 3 * F * p, F, f, m)
        g0, gx, gy, gz, along, across = _received(g, row, receivers, vx, vy, vz, ux, uy, uz, f, m, F)
        if SECOND:
            hx, hy, hz = vectors(tu, p, pairs, sign, here)
            tw0, tw1, tw2 = three(tw, 3 * F * p, F, f, m)
            d0 += g0 * tw0
            d1 += (gx * tvx + gy * tvy + gz * tvz) * w1 + along * tw1
            d2 += (gx * hx + gy * hy + gz * hz) * w2 + across * tw2
            a = tc1 * w1 + c1 * tw1
        else:
            d0 += g0 * w0
            d1 += along * w1
            d2 += across * w2
            a = c1 * w1
        x += gx * a
        y += gy * a
        z += gz * a
        begin += EDGES
    tl.store(dc + 3 * F * j + f, tl.sum(d0, 0), mask=f < F)
    tl.store(dc + 3 * F * j + F + f, tl.sum(d1, 0), mask=f < F)
    tl.store(dc + 3 * F * j + 2 * F + f, tl.sum(d2, 0), mask=f < F)
    tl.store(dv + F * j + f, tl.sum(x, 0), mask=f < F)
    tl.store(dv + F * (atoms + j) + f, tl.sum(y, 0), mask=f < F)
    tl.store(dv + F * (2 * atoms + j) + f, tl.sum(z, 0), mask=f < F)


@triton.jit(do_not_specialize=["pairs", "atoms", "receivers"])
def _pair(
    order, start, first, second, slot, c, v, w, u, tc, tv, tw, tu, g, dw, du, pairs, atoms, receivers,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, SECOND: tl.constexpr,
):  # fmt: skip
    """``∂Φ/∂W`` and ``∂Φ/∂u`` of a few pairs."""
    p = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    there = p < pairs
    p = tl.where(there, p, 0)
    f = tl.arange(0, WIDE)
    whole = there[:, None] & (f < F)[None, :]
    d0 = tl.zeros([EDGES, WIDE], dtype=w.dtype.element_ty)
    d1, d2, x, y, z = d0, d0, d0, d0, d0
    w2 = rows(w, 3 * F * p + 2 * F, f, whole)
    for way in tl.static_range(2):
        i, j = tl.load((first if way == 0 else second) + p), tl.load((second if way == 0 else first) + p)
        sign = 1.0 if way == 0 else -1.0
        row = tl.load(slot + i)
        m = whole & (row >= 0)[:, None]
        ux, uy, uz = vectors(u, p, pairs, sign, there)
        c0, c1, c2 = three(c, 3 * F * j, F, f, m)
        vx, vy, vz = three(v, F * j, F * atoms, f, m)
        g0, gx, gy, gz, along, across = _received(g, row, receivers, vx, vy, vz, ux, uy, uz, f, m, F)
        if SECOND:
            hx, hy, hz = vectors(tu, p, pairs, sign, there)
            tc0, tc1, tc2 = three(tc, 3 * F * j, F, f, m)
            tvx, tvy, tvz = three(tv, F * j, F * atoms, f, m)
            tw2 = rows(tw, 3 * F * p + 2 * F, f, m)
            d0 += g0 * tc0
            d1 += (gx * tvx + gy * tvy + gz * tvz) * c1 + along * tc1
            d2 += (gx * hx + gy * hy + gz * hz) * c2 + across * tc2
            b = tc2 * w2 + c2 * tw2
        else:
            d0 += g0 * c0
            d1 += along * c1
            d2 += across * c2
            b = c2 * w2
        x += sign * gx * b
        y += sign * gy * b
        z += sign * gz * b
    at = dw + 3 * F * p[:, None] + f[None, :]
    tl.store(at, d0, mask=whole)
    tl.store(at + F, d1, mask=whole)
    tl.store(at + 2 * F, d2, mask=whole)
    tl.store(du + p, tl.sum(x, 1), mask=there)
    tl.store(du + pairs + p, tl.sum(y, 1), mask=there)
    tl.store(du + 2 * pairs + p, tl.sum(z, 1), mask=there)

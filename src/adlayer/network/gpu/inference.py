"""The kernels of ``inference.c`` on a GPU, under the same names and with the same layouts.

An atom has all its edges in one list (:class:`adlayer.network.gpu.neighbours.Arrivals`), a pair's are in two: what
``inference.c`` does for both atoms of a pair at once is done for each of them here, so that no two programs add to
the same numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adlayer.network.gpu.neighbours import Arrivals, Plan, arrivals
from adlayer.network.gpu.replay import Replayed
from adlayer.network.gpu.rows import images, rows, three, vectors
from adlayer.network.graph import Batch

_EDGES, _WARPS = 4, 1  # that a program works on at once, with all their features: measured on an H200
_SCALARS = 32  # edges at once where there are no features
_ELEMENTS = 1024


class Kernels:
    """For networks of so many features and filters on so many knots up to the cutoff (Å); ``epsilon`` as in PaiNN."""

    def __init__(self, features: int, knots: int, cutoff: float, epsilon: float) -> None:
        self.features, self.cutoff, self.epsilon = features, cutoff, epsilon
        places = {"DENSITY": (knots - 1) / cutoff, "CUTOFF": cutoff}
        self.sizes = {"F": features, "WIDE": triton.next_power_of_2(features), "EDGES": _EDGES, **places}
        self.replayed = Replayed
        self._plan: Plan | None = None
        self._last: Arrivals | None = None

    def __call__(self, kernel: str, *arguments: object) -> None:
        """Run the kernel of that name."""
        getattr(self, kernel)(*arguments)

    def pairs(self, batch: Batch, rise: Tensor | None, *, among_substrate: bool) -> Arrivals:
        """The edges of a batch, each atom raised by ``rise`` (N,), Å: valid until they are asked for again."""
        positions = batch.positions
        if rise is not None:
            positions = torch.cat([positions[:, :2], positions[:, 2:] + rise[:, None]], dim=1)
        self._plan = Plan.of(batch, self.cutoff, self._plan)
        self._last = arrivals(
            batch, positions, self.cutoff, self._plan, among_substrate=among_substrate, before=self._last
        )
        return self._last

    def added(self, x: Tensor, more: Tensor, structure: Tensor) -> Tensor:
        """``x + more[structure]``."""
        out, n = torch.empty_like(x), x.numel()
        _added[(triton.cdiv(n, _ELEMENTS),)](x, more, structure, out, n, F=x.shape[1], BLOCK=_ELEMENTS)
        return out

    def message(
        self, edges: Arrivals, table: Tensor, c: Tensor, v: Tensor | None, wanted: Tensor | None, s: Tensor, t: Tensor
    ) -> None:
        _message[(len(s),)](
            edges.start, edges.sender, edges.distance, edges.unit, table, c, c if v is None else v,
            c if wanted is None else wanted, s, t, **self.sizes, MOVED=v is not None, ALL=wanted is None,
            num_warps=_WARPS,
        )  # fmt: skip

    def message_gradient(
        self, edges: Arrivals, table: Tensor, c: Tensor, v: Tensor | None, g: Tensor, h: Tensor, dc: Tensor | None,
        dv: Tensor | None, dd: Tensor, du: Tensor,
    ) -> None:  # fmt: skip
        inputs = edges.start, edges.sender, edges.distance, edges.unit, table, c, c if v is None else v, g, h
        if v is not None:
            _sender_gradient[(len(g),)](*inputs, dc, dv, **self.sizes, num_warps=_WARPS)
        _edge_gradient[(len(g),)](*inputs, dd, du, **self.sizes, MOVED=v is not None, num_warps=_WARPS)

    def forces(self, edges: Arrivals, dd: Tensor, du: Tensor, force: Tensor) -> None:
        _forces[(len(force),)](edges.start, edges.distance, edges.unit, dd, du, force, EDGES=_SCALARS, num_warps=1)

    def repel(
        self, edges: Arrivals, batch: Batch, rise: Tensor | None, radii: Tensor, strength: Tensor, energies: Tensor,
        forces: Tensor,
    ) -> None:  # fmt: skip
        """Add core repulsion to energies (N,) and forces (N, 3) of atoms that were raised when edges were made."""
        rise = torch.zeros_like(radii) if rise is None else rise
        _repulsion[(len(forces),)](
            edges.start, edges.sender, edges.distance, edges.unit, rise, radii, strength, energies, forces,
            EDGES=_SCALARS, num_warps=1,
        )  # fmt: skip

    def joined(self, atoms: int, s: Tensor, m: Tensor, both: Tensor, dot: Tensor) -> None:
        _joined[self._grid(atoms)](s, m, both, dot, atoms, EPSILON=self.epsilon, F=self.features, BLOCK=_ELEMENTS)

    def update(self, atoms: int, a: Tensor, m: Tensor, dot: Tensor, s: Tensor, v: Tensor) -> None:
        _update[self._grid(atoms)](a, m, dot, s, v, atoms, F=self.features, BLOCK=_ELEMENTS)

    def update_gradient(self, atoms: int, g: Tensor, h: Tensor | None, m: Tensor, dot: Tensor, da: Tensor) -> None:
        _update_gradient[self._grid(atoms)](
            g, g if h is None else h, m, dot, da, atoms, MOVED=h is not None, F=self.features, BLOCK=_ELEMENTS
        )

    def joined_gradient(
        self, atoms: int, dboth: Tensor, both: Tensor, a: Tensor, m: Tensor, h: Tensor | None, g: Tensor, dm: Tensor
    ) -> None:
        _joined_gradient[self._grid(atoms)](
            dboth, both, a, m, g if h is None else h, g, dm, atoms, MOVED=h is not None, F=self.features,
            BLOCK=_ELEMENTS,
        )  # fmt: skip

    def _grid(self, atoms: int) -> tuple[int]:
        return (triton.cdiv(atoms * self.features, _ELEMENTS),)


@triton.jit(do_not_specialize=["n"])
def _added(x, more, structure, out, n, F: tl.constexpr, BLOCK: tl.constexpr):
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = k < n
    row = tl.load(structure + k // F, mask=here, other=0)
    tl.store(out + k, tl.load(x + k, mask=here) + tl.load(more + row * F + k % F, mask=here), mask=here)


@triton.jit
def _ending(
    sender, distance, unit, begin, end, f, F: tl.constexpr, EDGES: tl.constexpr, DENSITY: tl.constexpr,
    CUTOFF: tl.constexpr,
):  # fmt: skip
    """Of a few edges that end on one atom: which there are, alone and with features; where they begin; unit vectors.

    In between, where their distances lie in a table: the row of the knot below, and how far they are on to the next,
    (EDGES, 1).
    """
    e = begin + tl.arange(0, EDGES)
    here = e < end
    j = tl.load(sender + e, mask=here, other=0).to(tl.int64)
    d = tl.load(distance + e, mask=here, other=0.0)
    ux, uy, uz = vectors(unit, 3 * e, 1, 1.0, here)
    here = here & (d < CUTOFF)
    place = tl.where(here, d, 0.0).to(tl.float64) * DENSITY
    knot = place.to(tl.int64)
    on = (place - knot.to(tl.float64)).to(d.dtype)[:, None]
    return here, here[:, None] & (f < F)[None, :], j, 6 * F * knot, on, ux, uy, uz


@triton.jit
def _filter(table, row, t, n: tl.constexpr, f, m, F: tl.constexpr):
    """Part n of filters, in the cubic between knots."""
    b = t * t * (3 - 2 * t)
    below = (1 - b) * rows(table, row + n * F, f, m) + t * (1 - t) * (1 - t) * rows(table, row + (n + 3) * F, f, m)
    return below + b * rows(table, row + (n + 6) * F, f, m) + t * t * (t - 1) * rows(table, row + (n + 9) * F, f, m)


@triton.jit
def _slope(table, row, t, n: tl.constexpr, f, m, F: tl.constexpr):
    """Its derivative in t."""
    rise = rows(table, row + (n + 6) * F, f, m) - rows(table, row + n * F, f, m)
    ends = (1 - t) * (1 - 3 * t) * rows(table, row + (n + 3) * F, f, m)
    return 6 * t * (1 - t) * rise + ends + t * (3 * t - 2) * rows(table, row + (n + 9) * F, f, m)


@triton.jit
def _message(
    start, sender, distance, unit, table, c, v, wanted, s, t,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, DENSITY: tl.constexpr, CUTOFF: tl.constexpr,
    MOVED: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """What arrives at one atom."""
    i = tl.program_id(0).to(tl.int64)
    is_wanted = True
    if not ALL:
        is_wanted = tl.load(wanted + i) != 0
    if is_wanted:
        f = tl.arange(0, WIDE)
        d0 = tl.zeros([EDGES, WIDE], dtype=c.dtype.element_ty)
        x, y, z = d0, d0, d0
        begin, end = tl.load(start + i), tl.load(start + i + 1)
        while begin < end:
            _, m, j, row, on, ux, uy, uz = _ending(sender, distance, unit, begin, end, f, F, EDGES, DENSITY, CUTOFF)
            c0, c1, c2 = three(c, 3 * F * j, F, f, m)
            d0 += c0 * _filter(table, row, on, 0, f, m, F)
            b = c2 * _filter(table, row, on, 2, f, m, F)
            if MOVED:
                vx, vy, vz = three(v, 3 * F * j, F, f, m)
                a = c1 * _filter(table, row, on, 1, f, m, F)
                x += a * vx + b * ux
                y += a * vy + b * uy
                z += a * vz + b * uz
            else:
                x += b * ux
                y += b * uy
                z += b * uz
            begin += EDGES
        mask = f < F
        at, on_v = s + F * i + f, t + 3 * F * i + f
        tl.store(at, tl.load(at, mask=mask) + tl.sum(d0, 0), mask=mask)
        tl.store(on_v, tl.load(on_v, mask=mask) + tl.sum(x, 0), mask=mask)
        tl.store(on_v + F, tl.load(on_v + F, mask=mask) + tl.sum(y, 0), mask=mask)
        tl.store(on_v + 2 * F, tl.load(on_v + 2 * F, mask=mask) + tl.sum(z, 0), mask=mask)


@triton.jit
def _sender_gradient(
    start, sender, distance, unit, table, c, v, g, h, dc, dv,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, DENSITY: tl.constexpr, CUTOFF: tl.constexpr,
):  # fmt: skip
    """What one atom's context and vectors get back from where they were sent to: there unit vectors turn round."""
    j = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, WIDE)
    mask = f < F
    one, nought = mask[None, :], tl.zeros([1], dtype=tl.int64)
    vx, vy, vz = three(v, 3 * F * j + nought, F, f, one)
    d0 = tl.zeros([EDGES, WIDE], dtype=c.dtype.element_ty)
    d1, d2, x, y, z = d0, d0, d0, d0, d0
    begin, end = tl.load(start + j), tl.load(start + j + 1)
    while begin < end:
        _, m, i, row, on, ux, uy, uz = _ending(sender, distance, unit, begin, end, f, F, EDGES, DENSITY, CUTOFF)
        hx, hy, hz = three(h, 3 * F * i, F, f, m)
        w1 = _filter(table, row, on, 1, f, m, F)
        d0 += rows(g, F * i, f, m) * _filter(table, row, on, 0, f, m, F)
        d1 += (hx * vx + hy * vy + hz * vz) * w1
        d2 -= (hx * ux + hy * uy + hz * uz) * _filter(table, row, on, 2, f, m, F)
        x += hx * w1
        y += hy * w1
        z += hz * w1
        begin += EDGES
    gate = tl.load(c + 3 * F * j + F + f, mask=mask)
    at, on_v = dc + 3 * F * j + f, dv + 3 * F * j + f
    tl.store(at, tl.load(at, mask=mask) + tl.sum(d0, 0), mask=mask)
    tl.store(at + F, tl.load(at + F, mask=mask) + tl.sum(d1, 0), mask=mask)
    tl.store(at + 2 * F, tl.load(at + 2 * F, mask=mask) + tl.sum(d2, 0), mask=mask)
    tl.store(on_v, tl.load(on_v, mask=mask) + gate * tl.sum(x, 0), mask=mask)
    tl.store(on_v + F, tl.load(on_v + F, mask=mask) + gate * tl.sum(y, 0), mask=mask)
    tl.store(on_v + 2 * F, tl.load(on_v + 2 * F, mask=mask) + gate * tl.sum(z, 0), mask=mask)


@triton.jit
def _edge_gradient(
    start, sender, distance, unit, table, c, v, g, h, dd, du,
    F: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, DENSITY: tl.constexpr, CUTOFF: tl.constexpr,
    MOVED: tl.constexpr,
):  # fmt: skip
    """Gradients in distances and unit vectors of the edges that end on one atom, of what goes both ways; added."""
    i = tl.program_id(0).to(tl.int64)
    f = tl.arange(0, WIDE)
    one, nought = (f < F)[None, :], tl.zeros([1], dtype=tl.int64)
    ci0, ci1, ci2 = three(c, 3 * F * i + nought, F, f, one)
    xi, yi, zi = three(h, 3 * F * i + nought, F, f, one)
    gi = rows(g, F * i + nought, f, one)
    if MOVED:
        vxi, vyi, vzi = three(v, 3 * F * i + nought, F, f, one)
    begin, end = tl.load(start + i), tl.load(start + i + 1)
    while begin < end:
        here, m, j, row, on, ux, uy, uz = _ending(sender, distance, unit, begin, end, f, F, EDGES, DENSITY, CUTOFF)
        cj0, cj1, cj2 = three(c, 3 * F * j, F, f, m)
        xj, yj, zj = three(h, 3 * F * j, F, f, m)
        x, y, z = xi * cj2 - xj * ci2, yi * cj2 - yj * ci2, zi * cj2 - zj * ci2
        sd = (gi * cj0 + rows(g, F * j, f, m) * ci0) * _slope(table, row, on, 0, f, m, F)
        sd += (x * ux + y * uy + z * uz) * _slope(table, row, on, 2, f, m, F)
        if MOVED:
            vxj, vyj, vzj = three(v, 3 * F * j, F, f, m)
            along = (xi * vxj + yi * vyj + zi * vzj) * cj1 + (xj * vxi + yj * vyi + zj * vzi) * ci1
            sd += along * _slope(table, row, on, 1, f, m, F)
        w2 = _filter(table, row, on, 2, f, m, F)
        e = begin + tl.arange(0, EDGES)
        at = du + 3 * e
        tl.store(dd + e, tl.load(dd + e, mask=here) + tl.sum(sd, 1) * DENSITY, mask=here)
        tl.store(at, tl.load(at, mask=here) + tl.sum(x * w2, 1), mask=here)
        tl.store(at + 1, tl.load(at + 1, mask=here) + tl.sum(y * w2, 1), mask=here)
        tl.store(at + 2, tl.load(at + 2, mask=here) + tl.sum(z * w2, 1), mask=here)
        begin += EDGES


@triton.jit(do_not_specialize=["atoms"])
def _element(atoms, F: tl.constexpr, BLOCK: tl.constexpr):
    """The atoms and features of a few elements, and which there are."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return k // F, k % F, k < atoms * F


@triton.jit(do_not_specialize=["atoms"])
def _joined(s, m, both, dot, atoms, EPSILON: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    i, f, here = _element(atoms, F, BLOCK)
    x, y, z, p, q, r = images(m + 6 * F * i + f, 2 * F, here, F)
    tl.store(both + 2 * F * i + f, tl.load(s + F * i + f, mask=here), mask=here)
    tl.store(both + 2 * F * i + F + f, tl.sqrt(x * x + y * y + z * z + EPSILON), mask=here)
    tl.store(dot + F * i + f, x * p + y * q + z * r, mask=here)


@triton.jit(do_not_specialize=["atoms"])
def _update(a, m, dot, s, v, atoms, F: tl.constexpr, BLOCK: tl.constexpr):
    i, f, here = _element(atoms, F, BLOCK)
    at, on, on_v = a + 3 * F * i + f, s + F * i + f, v + 3 * F * i + f
    gate = tl.load(at + F, mask=here)
    _, _, _, p, q, r = images(m + 6 * F * i + f, 2 * F, here, F)
    more = tl.load(at, mask=here) + tl.load(at + 2 * F, mask=here) * tl.load(dot + F * i + f, mask=here)
    tl.store(on, tl.load(on, mask=here) + more, mask=here)
    tl.store(on_v, tl.load(on_v, mask=here) + gate * p, mask=here)
    tl.store(on_v + F, tl.load(on_v + F, mask=here) + gate * q, mask=here)
    tl.store(on_v + 2 * F, tl.load(on_v + 2 * F, mask=here) + gate * r, mask=here)


@triton.jit(do_not_specialize=["atoms"])
def _update_gradient(g, h, m, dot, da, atoms, MOVED: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    i, f, here = _element(atoms, F, BLOCK)
    at, back = da + 3 * F * i + f, tl.load(g + F * i + f, mask=here)
    gate = tl.zeros([BLOCK], dtype=g.dtype.element_ty)
    if MOVED:
        _, _, _, p, q, r = images(m + 6 * F * i + f, 2 * F, here, F)
        on = h + 3 * F * i + f
        gate = tl.load(on, mask=here) * p + tl.load(on + F, mask=here) * q + tl.load(on + 2 * F, mask=here) * r
    tl.store(at, back, mask=here)
    tl.store(at + F, gate, mask=here)
    tl.store(at + 2 * F, back * tl.load(dot + F * i + f, mask=here), mask=here)


@triton.jit(do_not_specialize=["atoms"])
def _joined_gradient(dboth, both, a, m, h, g, dm, atoms, MOVED: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    i, f, here = _element(atoms, F, BLOCK)
    x, y, z, p, q, r = images(m + 6 * F * i + f, 2 * F, here, F)
    pair, on = 2 * F * i + f, 6 * F * i + f
    back = tl.load(g + F * i + f, mask=here)
    stretch = tl.load(dboth + pair + F, mask=here) / tl.load(both + pair + F, mask=here, other=1.0)
    product = back * tl.load(a + 3 * F * i + 2 * F + f, mask=here)
    tl.store(dm + on, stretch * x + product * p, mask=here)
    tl.store(dm + on + 2 * F, stretch * y + product * q, mask=here)
    tl.store(dm + on + 4 * F, stretch * z + product * r, mask=here)
    dp, dq, dr = product * x, product * y, product * z
    if MOVED:
        gate, at = tl.load(a + 3 * F * i + F + f, mask=here), h + 3 * F * i + f
        dp += gate * tl.load(at, mask=here)
        dq += gate * tl.load(at + F, mask=here)
        dr += gate * tl.load(at + 2 * F, mask=here)
    tl.store(dm + on + F, dp, mask=here)
    tl.store(dm + on + 3 * F, dq, mask=here)
    tl.store(dm + on + 5 * F, dr, mask=here)
    tl.store(g + F * i + f, back + tl.load(dboth + pair, mask=here), mask=here)


@triton.jit
def _forces(start, distance, unit, dd, du, force, EDGES: tl.constexpr):
    """The force on one atom."""
    i = tl.program_id(0).to(tl.int64)
    x = tl.zeros([EDGES], dtype=unit.dtype.element_ty)
    y, z = x, x
    begin, end = tl.load(start + i), tl.load(start + i + 1)
    while begin < end:
        e = begin + tl.arange(0, EDGES)
        here = e < end
        at, on = unit + 3 * e, du + 3 * e
        ux, uy, uz = tl.load(at, mask=here), tl.load(at + 1, mask=here), tl.load(at + 2, mask=here)
        tx, ty, tz = tl.load(on, mask=here), tl.load(on + 1, mask=here), tl.load(on + 2, mask=here)
        d, radial = tl.load(distance + e, mask=here, other=1.0), tl.load(dd + e, mask=here)
        along = tx * ux + ty * uy + tz * uz
        x += tl.where(here, radial * ux + (tx - along * ux) / d, 0.0)
        y += tl.where(here, radial * uy + (ty - along * uy) / d, 0.0)
        z += tl.where(here, radial * uz + (tz - along * uz) / d, 0.0)
        begin += EDGES
    at = force + 3 * i
    tl.store(at, tl.load(at) + tl.sum(x, 0))
    tl.store(at + 1, tl.load(at + 1) + tl.sum(y, 0))
    tl.store(at + 2, tl.load(at + 2) + tl.sum(z, 0))


@triton.jit
def _repulsion(start, sender, distance, unit, rise, radius, strength, energy, force, EDGES: tl.constexpr):
    """Core repulsion of one atom: half of each pair's energy, and the force."""
    i = tl.program_id(0).to(tl.int64)
    e = tl.zeros([EDGES], dtype=unit.dtype.element_ty)
    x, y, z = e, e, e
    own, lift, a = tl.load(radius + i), tl.load(rise + i), tl.load(strength)
    begin, end = tl.load(start + i), tl.load(start + i + 1)
    while begin < end:
        k = begin + tl.arange(0, EDGES)
        here = k < end
        j = tl.load(sender + k, mask=here, other=0)
        seen, at = tl.load(distance + k, mask=here, other=1.0), unit + 3 * k
        rx = seen * tl.load(at, mask=here, other=1.0)
        ry = seen * tl.load(at + 1, mask=here, other=1.0)
        rz = seen * tl.load(at + 2, mask=here, other=1.0) - (tl.load(rise + j) - lift)
        d = tl.sqrt(rx * rx + ry * ry + rz * rz + 1e-12)
        contact = own + tl.load(radius + j)
        inside = 1.0 - d / contact
        near = here & (inside > 0.0)
        push = -2.0 * a * inside / (contact * d)
        e += tl.where(near, 0.5 * a * inside * inside, 0.0)
        x += tl.where(near, push * rx, 0.0)
        y += tl.where(near, push * ry, 0.0)
        z += tl.where(near, push * rz, 0.0)
        begin += EDGES
    at = force + 3 * i
    tl.store(energy + i, tl.load(energy + i) + tl.sum(e, 0))
    tl.store(at, tl.load(at) + tl.sum(x, 0))
    tl.store(at + 1, tl.load(at + 1) + tl.sum(y, 0))
    tl.store(at + 2, tl.load(at + 2) + tl.sum(z, 0))

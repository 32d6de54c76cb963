"""What a mixing of PaiNN does between its matrix products on a GPU, and its gradients: a kernel for a dozen operations.

Where a gradient of the gradient is wanted, as for forces, the gradient is worked out by PyTorch's operations.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from adlayer.network.gpu.rows import images

_ELEMENTS = 1024  # of a program


def joined(
    s: Tensor, mixed: Tensor, more: Tensor | None, structure: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`adlayer.network.painn.joined`."""
    found: tuple[Tensor, Tensor, Tensor] = _Joined.apply(s, mixed, more, structure, epsilon)
    return found


def updated(s: Tensor, v: Tensor, second: Tensor, dot: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`adlayer.network.painn.updated`."""
    found: tuple[Tensor, Tensor] = _Updated.apply(s, v, second, dot, a)
    return found


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, s: Tensor, mixed: Tensor, more: Tensor | None, structure: Tensor | None, epsilon: float
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(mixed, structure)
        s, mixed = s.contiguous(), mixed.contiguous()
        atoms, features = s.shape
        both, dot, second = s.new_empty(atoms, 2 * features), torch.empty_like(s), mixed.new_empty(3, *s.shape)
        image, of = (s, s) if more is None or structure is None else (more.contiguous(), structure)
        _join[_grid(s)](
            s, mixed, image, of, both, dot, second, atoms, EPSILON=epsilon, MORE=more is not None, F=features,
            BLOCK=_ELEMENTS,
        )  # fmt: skip
        ctx.epsilon, ctx.structures = epsilon, None if more is None else len(more)
        return both, dot, second

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor, k: Tensor) -> tuple[Tensor | None, ...]:
        mixed, structure = ctx.saved_tensors
        features = h.shape[1]
        to_more = None
        if ctx.structures is not None:
            to_more = g.new_zeros(ctx.structures, 2 * features).index_add(0, structure, g)
        if torch.is_grad_enabled():
            first, second = mixed.chunk(2, dim=-1)
            norm = torch.sqrt((first**2).sum(dim=0) + ctx.epsilon)
            to_first = g[:, features:] / norm * first + h * second
            to_mixed = torch.cat([to_first, k + h * first], dim=-1)
            return g[:, :features], to_mixed, to_more, None, None
        inputs = g, h, k, mixed = tuple(x.contiguous() for x in (g, h, k, mixed))
        to_s, to_mixed = torch.empty_like(h), torch.empty_like(mixed)
        _join_gradient[_grid(h)](*inputs, to_s, to_mixed, len(h), EPSILON=ctx.epsilon, F=features, BLOCK=_ELEMENTS)
        return to_s, to_mixed, to_more, None, None


class _Updated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, second: Tensor, dot: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(second, dot, a)
        inputs = s, v, *_ = tuple(x.contiguous() for x in (s, v, second, dot, a))
        new_s, new_v = torch.empty_like(s), torch.empty_like(v)
        _update[_grid(s)](*inputs, new_s, new_v, len(s), F=s.shape[1], BLOCK=_ELEMENTS)
        return new_s, new_v

    @staticmethod
    def backward(ctx: Any, g: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        second, dot, a = ctx.saved_tensors
        if torch.is_grad_enabled():
            _, gate, product = a.chunk(3, dim=-1)
            to_a = torch.cat([g, (h * second).sum(dim=0), g * dot], dim=-1)
            return g, h, h * gate, g * product, to_a
        inputs = g, h, *saved = tuple(x.contiguous() for x in (g, h, second, dot, a))
        outputs = [torch.empty_like(x) for x in saved]
        _update_gradient[_grid(g)](*inputs, *outputs, len(g), F=g.shape[1], BLOCK=_ELEMENTS)
        return g, h, *outputs


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), _ELEMENTS),)


@triton.jit(do_not_specialize=["atoms"])
def _element(atoms, F: tl.constexpr, BLOCK: tl.constexpr):
    """A few elements, their atoms and features, which there are, and how many there are."""
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    every = atoms.to(tl.int64) * F
    return k, k // F, k % F, k < every, every


@triton.jit(do_not_specialize=["atoms"])
def _join(
    s, mixed, more, structure, both, dot, second, atoms, EPSILON: tl.constexpr, MORE: tl.constexpr, F: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    k, i, f, here, every = _element(atoms, F, BLOCK)
    x, y, z, p, q, r = images(mixed + 2 * F * i + f, 2 * every, here, F)
    one, other = tl.load(s + k, mask=here), tl.sqrt(x * x + y * y + z * z + EPSILON)
    if MORE:
        row = more + 2 * F * tl.load(structure + i, mask=here, other=0) + f
        one, other = one + tl.load(row, mask=here), other + tl.load(row + F, mask=here)
    tl.store(both + 2 * F * i + f, one, mask=here)
    tl.store(both + 2 * F * i + F + f, other, mask=here)
    tl.store(dot + k, x * p + y * q + z * r, mask=here)
    tl.store(second + k, p, mask=here)
    tl.store(second + every + k, q, mask=here)
    tl.store(second + 2 * every + k, r, mask=here)


@triton.jit(do_not_specialize=["atoms"])
def _join_gradient(
    g, h, to, mixed, to_s, to_mixed, atoms, EPSILON: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    k, i, f, here, every = _element(atoms, F, BLOCK)
    x, y, z, p, q, r = images(mixed + 2 * F * i + f, 2 * every, here, F)
    at, on, step = g + 2 * F * i + f, to_mixed + 2 * F * i + f, 2 * every
    stretch = tl.load(at + F, mask=here) / tl.sqrt(x * x + y * y + z * z + EPSILON)
    product = tl.load(h + k, mask=here)
    tl.store(to_s + k, tl.load(at, mask=here), mask=here)
    tl.store(on, stretch * x + product * p, mask=here)
    tl.store(on + step, stretch * y + product * q, mask=here)
    tl.store(on + 2 * step, stretch * z + product * r, mask=here)
    on += F
    tl.store(on, tl.load(to + k, mask=here) + product * x, mask=here)
    tl.store(on + step, tl.load(to + every + k, mask=here) + product * y, mask=here)
    tl.store(on + 2 * step, tl.load(to + 2 * every + k, mask=here) + product * z, mask=here)


@triton.jit(do_not_specialize=["atoms"])
def _update(s, v, second, dot, a, new_s, new_v, atoms, F: tl.constexpr, BLOCK: tl.constexpr):
    k, i, f, here, every = _element(atoms, F, BLOCK)
    at = a + 3 * F * i + f
    gate = tl.load(at + F, mask=here)
    more = tl.load(at, mask=here) + tl.load(at + 2 * F, mask=here) * tl.load(dot + k, mask=here)
    tl.store(new_s + k, tl.load(s + k, mask=here) + more, mask=here)
    for _ in tl.static_range(3):
        tl.store(new_v + k, tl.load(v + k, mask=here) + gate * tl.load(second + k, mask=here), mask=here)
        k += every


@triton.jit(do_not_specialize=["atoms"])
def _update_gradient(
    g, h, second, dot, a, to_second, to_dot, to_a, atoms, F: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    k, i, f, here, every = _element(atoms, F, BLOCK)
    at, on, back = a + 3 * F * i + f, to_a + 3 * F * i + f, tl.load(g + k, mask=here)
    gate = tl.load(at + F, mask=here)
    tl.store(to_dot + k, back * tl.load(at + 2 * F, mask=here), mask=here)
    tl.store(on, back, mask=here)
    tl.store(on + 2 * F, back * tl.load(dot + k, mask=here), mask=here)
    along = back * 0.0
    for _ in tl.static_range(3):
        part = tl.load(h + k, mask=here)
        along += part * tl.load(second + k, mask=here)
        tl.store(to_second + k, part * gate, mask=here)
        k += every
    tl.store(on + F, along, mask=here)

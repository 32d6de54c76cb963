"""Convolutions of equivariant networks on pairs of atoms, by kernels in C that are written for the layer's shape.

A convolution in the manner of NequIP is one function of four arguments. Node features x come in blocks b of degree l₁,
channels u and components m₁; harmonics y of the edges in degrees l₂; its results in groups of degree l₃. Path k takes a
block and a degree to columns of a group with Clebsch-Gordan coefficients Cᵏ and weights w of the edge, one for each
channel ("uvu"). Summed over edges j → i, paths, channels and components,

    Φ(g, x, y, w) = Σ gᵏ_i[m₃, u] wᵏ[u] Σ Cᵏ[m₁, m₂, m₃] xᵇ_j[m₁, u] y[m₂],

    message   ∂Φ/∂g: the convolution;
    gradient  ∂Φ/∂(x, y, w): what its gradient g gives for its arguments.

Nothing of an edge's size is written to memory but ∂Φ/∂(y, w). Edges come in pairs, j → i and i → j, of one length and
so with the same weights; the harmonics of the way back are those of the way there times (−1)ˡ. All arrays are
contiguous: xᵇ (atoms·(2l₁+1), channels), results and g of a group (atoms·(2l₃+1), columns), y (pairs, harmonics),
w (pairs, weights); channels lie together, so that a processor takes many at once. The loops over paths and components
are written out in the C text, with Aᵏ[m₃, m₁] = Σ Cᵏ y once for each edge.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adlayer import compiled


@dataclass(frozen=True)
class Path:
    """One term: which block and which degree of the harmonics, to where."""

    block: int
    harmonics: int  # place of its degree among those of the harmonics
    group: int
    column: int  # the first of its columns in the group
    weight: int  # the first of its weights
    coefficients: Tensor  # (2l₁+1, 2l₂+1, 2l₃+1)


@dataclass(frozen=True)
class Convolution:
    """A convolution's shape and coefficients, and the convolution itself."""

    blocks: tuple[tuple[int, int], ...]  # degree and channels of each
    harmonics: tuple[int, ...]  # degrees
    groups: tuple[tuple[int, int], ...]  # degree and columns of each
    paths: tuple[Path, ...]

    @property
    def n_harmonics(self) -> int:
        """Components of all harmonics."""
        return sum(2 * degree + 1 for degree in self.harmonics)

    @property
    def n_weights(self) -> int:
        """Weights of an edge."""
        return sum(self.blocks[path.block][1] for path in self.paths)

    @cached_property
    def source(self) -> str:
        """The kernels in C."""
        return "\n".join(_source(self))

    def library(self, dtype: torch.dtype) -> ctypes.CDLL | None:
        """The kernels compiled, or nothing where they cannot be."""
        return compiled.library("convolution", self.source, dtype)

    def __call__(self, pairs: Pairs, y: Tensor, w: Tensor, blocks: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The groups, of y (pairs, harmonics), w (pairs, weights) and the blocks; differentiable once."""
        groups: tuple[Tensor, ...] = _Convolve.apply(self, pairs, y, w, *blocks)
        return groups


@dataclass(frozen=True)
class Pairs:
    """Pairs of atoms: y is that of the edges from ``second`` (pairs,) to ``first`` (pairs,)."""

    first: Tensor
    second: Tensor
    n_atoms: int


class _Convolve(torch.autograd.Function):
    """``∂Φ/∂g``."""

    @staticmethod
    def forward(
        ctx: Any, shape: Convolution, pairs: Pairs, y: Tensor, w: Tensor, *blocks: Tensor
    ) -> tuple[Tensor, ...]:
        y, w, *x = (z.contiguous() for z in (y, w, *blocks))
        ctx.shape, ctx.pairs = shape, pairs
        ctx.save_for_backward(y, w, *x)
        groups = tuple(y.new_empty(pairs.n_atoms * (2 * degree + 1), columns) for degree, columns in shape.groups)
        _run("message", shape, pairs, (x, y, w), (groups,))
        return groups

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        y, w, *x = ctx.saved_tensors
        dx, dy, dw = [torch.empty_like(z) for z in x], torch.empty_like(y), torch.empty_like(w)
        _run("gradient", ctx.shape, ctx.pairs, ([g.contiguous() for g in gradients], x, y, w), (dx, dy, dw))
        return None, None, dy, dw, *dx


class _Ends(ctypes.Structure):
    _fields_ = (
        ("pairs", ctypes.c_int64),
        ("atoms", ctypes.c_int64),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
    )


def _run(kernel: str, shape: Convolution, pairs: Pairs, arguments: tuple[Any, ...], results: tuple[Any, ...]) -> None:
    """Call a kernel."""
    first, second = pairs.first.contiguous(), pairs.second.contiguous()
    ends = _Ends(len(first), pairs.n_atoms, first.data_ptr(), second.data_ptr())
    library = shape.library(arguments[-1].dtype)  # that of w
    compiled.call(getattr(library, kernel), ends, *arguments, *results)


_HEAD = """\
#include <stdint.h>
#include <string.h>

typedef struct {
    int64_t pairs, atoms;
    const int64_t *first, *second;
} Ends;
"""
_LOOP = """\
    for (int64_t p = 0; p < ends->pairs; ++p)
        for (int way = 0; way < 2; ++way) {
            const int64_t i = way ? ends->second[p] : ends->first[p], j = way ? ends->first[p] : ends->second[p];
            const REAL odd = way ? -1 : 1;"""


def _source(shape: Convolution) -> Iterator[str]:
    """Lines of the C text.

    Names: y{m} harmonics; a{path}_{m₃}_{m₁} the matrices A; x{m₁}, w{path}, g{path}_{m₃} what is loaded for a channel;
    r… the rows that these come from, d… results; f = w·g, h = Σ A·g, s{m} the sum over channels for a harmonic.
    """
    yield _HEAD
    yield "void message(const Ends *ends, REAL *const *x, const REAL *y, const REAL *w, REAL *const *dg)\n{"
    yield from _clear("dg", shape.groups)
    yield _LOOP
    yield from _edge(shape)
    for block, (degree, channels) in enumerate(shape.blocks):
        paths = _paths(shape, block)
        yield "            {"
        yield from _rows(shape, block, paths, "dg", const=False)
        yield "#pragma omp simd"
        yield f"                for (int64_t u = 0; u < {channels}; ++u) {{"
        yield from _loads(degree, channels)
        for k, path in paths:
            yield f"                    const REAL w{k} = rw{k}[u];"
            columns = shape.groups[path.group][1]
            for m3, row in enumerate(_matrix(path)):
                terms = " + ".join(f"a{k}_{m3}_{m1} * x{m1}" for m1, entry in enumerate(row) if entry)
                if terms:
                    yield f"                    rdg{k}[{m3 * columns} + u] += w{k} * ({terms});"
        yield "                }\n            }"
    yield "        }\n}\n"

    yield (
        "void gradient(const Ends *ends, REAL *const *g, REAL *const *x, const REAL *y, const REAL *w,\n"
        "              REAL *const *dx, REAL *dy, REAL *dw)\n{"
    )
    yield from _clear("dx", shape.blocks)
    yield f"    memset(dy, 0, ends->pairs * {shape.n_harmonics} * sizeof(REAL));"
    yield f"    memset(dw, 0, ends->pairs * {shape.n_weights} * sizeof(REAL));"
    yield _LOOP
    yield from _edge(shape)
    for block in range(len(shape.blocks)):
        yield from _gradient(shape, block)
    yield "        }\n}"


def _gradient(shape: Convolution, block: int) -> Iterator[str]:
    """Of an edge, for one block."""
    (degree, channels), paths = shape.blocks[block], _paths(shape, block)
    sums = sorted({m for _, path in paths for m in _components(shape, path)})
    yield "            {"
    yield from _rows(shape, block, paths, "g", const=True)
    yield f"                REAL *restrict rdx = dx[{block}] + {(2 * degree + 1) * channels} * j;"
    yield f"                REAL {', '.join(f's{m} = 0' for m in sums)};"
    yield f"#pragma omp simd reduction(+ : {', '.join(f's{m}' for m in sums)})"
    yield f"                for (int64_t u = 0; u < {channels}; ++u) {{"
    yield from _loads(degree, channels)
    along: list[list[str]] = [[] for _ in range(2 * degree + 1)]  # terms of dx
    for k, path in paths:
        matrix, columns = _matrix(path), shape.groups[path.group][1]
        yield f"                    const REAL w{k} = rw{k}[u];"
        for m3 in range(len(matrix)):
            yield f"                    const REAL g{k}_{m3} = rg{k}[{m3 * columns} + u], f{k}_{m3} = w{k} * g{k}_{m3};"
        weight = []
        for m1 in range(2 * degree + 1):
            terms = " + ".join(f"a{k}_{m3}_{m1} * g{k}_{m3}" for m3, row in enumerate(matrix) if row[m1])
            if terms:
                yield f"                    const REAL h{k}_{m1} = {terms};"
                along[m1].append(f"w{k} * h{k}_{m1}")
                weight.append(f"x{m1} * h{k}_{m1}")
        yield f"                    rdw{k}[u] += {' + '.join(weight)};"
        for m2, m in enumerate(_components(shape, path)):
            products = [
                f"f{k}_{m3} * ({inner})"
                for m3 in range(len(matrix))
                if (inner := _sum(path.coefficients[:, m2, m3], "x"))
            ]
            if products:
                yield f"                    s{m} += {' + '.join(products)};"
    for m1, terms_of in enumerate(along):
        if terms_of:
            yield f"                    rdx[{m1 * channels} + u] += {' + '.join(terms_of)};"
    yield "                }"
    for m in sums:
        yield f"                dy[{shape.n_harmonics} * p + {m}] += {_sign(shape, m)}s{m};"
    yield "            }"


def _clear(name: str, parts: tuple[tuple[int, int], ...]) -> Iterator[str]:
    for n, (degree, columns) in enumerate(parts):
        yield f"    memset({name}[{n}], 0, ends->atoms * {(2 * degree + 1) * columns} * sizeof(REAL));"


def _edge(shape: Convolution) -> Iterator[str]:
    """Harmonics of the edge and the matrices A of all paths."""
    for m in range(shape.n_harmonics):
        yield f"            const REAL y{m} = {_sign(shape, m)}y[{shape.n_harmonics} * p + {m}];"
    for k, path in enumerate(shape.paths):
        first = _components(shape, path)[0]
        for m3, row in enumerate(_matrix(path)):
            for m1, entry in enumerate(row):
                if entry:
                    value = _sum(path.coefficients[m1, :, m3], "y", first)
                    yield f"            const REAL a{k}_{m3}_{m1} = {value};"


def _rows(shape: Convolution, block: int, paths: list[tuple[int, Path]], group: str, *, const: bool) -> Iterator[str]:
    """Pointers to the rows of the sender, the weights, and the receiver's rows in g or ∂Φ/∂g."""
    degree, channels = shape.blocks[block]
    yield f"                const REAL *restrict rx = x[{block}] + {(2 * degree + 1) * channels} * j;"
    for k, path in paths:
        l3, columns = shape.groups[path.group]
        where = f"{group}[{path.group}] + {(2 * l3 + 1) * columns} * i + {path.column}"
        yield f"                {'const ' if const else ''}REAL *restrict r{group}{k} = {where};"
        yield f"                const REAL *restrict rw{k} = w + {shape.n_weights} * p + {path.weight};"
        if const:
            yield f"                REAL *restrict rdw{k} = dw + {shape.n_weights} * p + {path.weight};"


def _loads(degree: int, channels: int) -> Iterator[str]:
    for m in range(2 * degree + 1):
        yield f"                    const REAL x{m} = rx[{m * channels} + u];"


def _paths(shape: Convolution, block: int) -> list[tuple[int, Path]]:
    return [(k, path) for k, path in enumerate(shape.paths) if path.block == block]


def _components(shape: Convolution, path: Path) -> range:
    """Where the components of its harmonics lie among all."""
    start = sum(2 * degree + 1 for degree in shape.harmonics[: path.harmonics])
    return range(start, start + 2 * shape.harmonics[path.harmonics] + 1)


def _sign(shape: Convolution, m: int) -> str:
    """``odd *`` for a component of odd degree."""
    degrees = [degree for degree in shape.harmonics for _ in range(2 * degree + 1)]
    return "odd * " if degrees[m] % 2 else ""


def _matrix(path: Path) -> list[list[bool]]:
    """Which entries [m₃][m₁] of A are not always zero."""
    present: list[list[bool]] = (path.coefficients != 0).any(dim=1).T.tolist()
    return present


def _sum(coefficients: Tensor, name: str, first: int = 0) -> str:
    """Σ c·name as C text, nothing where every c is zero."""
    return " + ".join(f"(REAL){c!r} * {name}{first + n}" for n, c in enumerate(coefficients.tolist()) if c)

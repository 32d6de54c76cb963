"""The exact kernel on a GPU, or by Triton's interpreter on the CPU, against PyTorch's operations."""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from adlayer import compiled
from adlayer.diffusion import kernels
from adlayer.diffusion.kernels import Domain, ExactKernel, uniform

interpreted = pytest.mark.skipif(
    find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1", reason="no Triton, or a GPU"
)
DEVICES = [pytest.param("cpu", marks=interpreted, id="interpreted"), pytest.param("cuda", marks=pytest.mark.gpu)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # in units of 1/σ
CELLS = [[[8.0, 0.0], [0.0, 8.0]], [[5.9, 0.0], [-2.95, 5.1]], [[3.0, 0.2], [7.0, 9.5]], [[11.8, 0.0], [5.9, 10.2]]]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels for a GPU run."""
    return str(request.param)


def _atoms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Domain]:
    """Noisy and clean atoms of structures of several cells, each at several levels: more than one program's."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.tensor([0.02, 0.3, 0.9, 1.5, 2.5, 6.0], dtype=dtype).repeat(len(CELLS))
    cell = torch.tensor(CELLS, dtype=dtype).repeat_interleave(len(levels) // len(CELLS), 0)
    window = torch.tensor([10.0, 13.5], dtype=dtype).expand(len(cell), 2)
    domain = Domain(cell, window, torch.arange(len(cell)).repeat_interleave(5))
    n = len(domain.batch)
    clean = uniform(domain, torch.rand(n, 3, dtype=dtype, generator=generator))
    normal = torch.randn(n, 3, dtype=dtype, generator=generator)
    return ExactKernel().perturb(clean, levels, normal, domain), clean, levels, domain


def _differ(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Largest differences in units of 1/σ: of scores and of their scale."""
    noisy, clean, levels, domain = _atoms(dtype)
    kernel = ExactKernel()
    # of the same structures in the same precision: where images meet, rounding is part of the score
    score, scale = kernel.score(noisy, clean, levels, domain), kernel.score_scale(levels, domain)
    monkeypatch.setattr(compiled, "for_gpu", lambda where: where.type == device)
    there = Domain(*(x.to(device) for x in (domain.cell, domain.window, domain.batch)))
    found = kernel.score(*(x.to(device) for x in (noisy, clean, levels)), there).cpu()
    found_scale = kernel.score_scale(levels.to(device), there).cpu()
    assert torch.isfinite(found).all()
    off = (found - score).abs() * domain.per_atom(levels)[:, None]
    return float(off.max()), float(((found_scale - scale).abs() * levels[:, None]).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_score_and_scale(device: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    for off in _differ(device, dtype, monkeypatch):
        assert off < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ["IMAGES", "COSINES", "REDUCTIONS"])
def test_a_sum_that_ends_early_is_seen(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: one image, one cosine, and no reduction of the lattice."""
    if device == "cuda":
        pytest.skip("kernels are compiled once")
    on_gpu: Any = import_module("adlayer.diffusion.kernels_gpu")
    monkeypatch.setattr(on_gpu, f"_{name}", on_gpu.tl.constexpr(0 if name == "REDUCTIONS" else 1))
    assert max(_differ(device, torch.float64, monkeypatch)) > 1e3 * TOLERANCE[torch.float64]


def test_wide_levels_alone_are_integrated() -> None:
    """On the CPU, among narrow ones, they have the values that they have alone."""
    _, _, levels, domain = _atoms(torch.float64)
    together = kernels.planar_information(levels, domain)
    narrow = levels < kernels.NARROW * torch.minimum(domain.frame.length, domain.frame.height)
    assert 0 < int(narrow.sum()) < len(levels)
    assert (together[narrow] == 1.0).all()
    for k in range(len(levels)):
        alone = Domain(domain.cell[k : k + 1], domain.window[k : k + 1], domain.batch[:1])
        torch.testing.assert_close(kernels.planar_information(levels[k : k + 1], alone), together[k : k + 1])

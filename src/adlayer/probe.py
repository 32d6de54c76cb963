"""The smallest kernel for a GPU: whether Triton can make any, for which it needs a C compiler and Python's headers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _count(out, N: tl.constexpr):
    tl.store(out + tl.arange(0, N), tl.arange(0, N))


def works(device: str = "cuda") -> bool:
    """Whether it ran and did what it should; raises whatever keeps it from that."""
    out = torch.empty(16, dtype=torch.int32, device=device)
    _count[(1,)](out, N=16)
    return out.tolist() == list(range(16))

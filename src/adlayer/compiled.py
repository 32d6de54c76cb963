"""Kernels in C, compiled on first use with the C compiler of the machine; those for a GPU are in Triton.

Without a compiler, and wherever anything fails, there is no library and the work is done by PyTorch alone: slower, the
same numbers to rounding. What is compiled is kept in the user's cache folder, under a name that changes with the
source, the compiler's options and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_TYPES = {torch.float32: "float", torch.float64: "double"}
_OPTIONS = ("-O3", "-fopenmp-simd", "-shared", "-fPIC")
_TUNED = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes
_SECONDS = 60  # for the compiler


@cache
def library(name: str, source: str, dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels of a source text for a floating-point type, or nothing where they cannot be had.

    Parameters
    ----------
    name
        Begins the names of the compiled files.
    source
        In C, with ``REAL`` for the floating-point type.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or dtype not in _TYPES or os.name != "posix":
        return None
    options = (*_OPTIONS, f"-DREAL={_TYPES[dtype]}")
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adlayer"
        file = folder / f"{name}-{_key(source, compiler, options)}.so"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(source, compiler, options, file)
        return ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def for_gpu(device: torch.device) -> bool:
    """Whether there are kernels in Triton for the device: PyTorch's builds for GPUs come with it."""
    return device.type == "cuda" and _triton()


@cache
def _triton() -> bool:
    """Whether a kernel can be had; it takes a second to know."""
    try:
        return bool(import_module("adlayer.probe").works())
    except Exception:  # no Triton, compiler, headers or card that it knows: whatever it is, PyTorch does the work
        return False


Argument = Tensor | Sequence[Tensor] | ctypes.Structure | int | None


def call(function: Any, *arguments: Argument) -> Any:
    """Call a kernel.

    Tensors, which must be contiguous, go by their addresses, several together as an array of them, structures by
    reference, ``None`` as NULL.
    """
    return function(*(_argument(x) for x in arguments))


def _argument(x: Argument) -> Any:
    if isinstance(x, Tensor):
        assert x.is_contiguous()
        return ctypes.c_void_p(x.data_ptr())
    if isinstance(x, Sequence):
        return (ctypes.c_void_p * len(x))(*(_argument(tensor) for tensor in x))
    if isinstance(x, ctypes.Structure):
        return ctypes.byref(x)
    return ctypes.c_void_p(None) if x is None else ctypes.c_int64(x)


def _key(source: str, compiler: str, options: tuple[str, ...]) -> str:
    """Changes with all that the compiled file depends on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (source, compiler, *options, platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(source: str, compiler: str, options: tuple[str, ...], file: Path) -> None:
    """Compile to ``file``, which appears whole or not at all.

    Raises
    ------
    OSError, subprocess.SubprocessError
        Where that fails.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        text, made = Path(folder) / f"{file.stem}.c", Path(folder) / file.name
        text.write_text(source)
        for tuned in _TUNED:
            command = [compiler, *options, *filter(None, [tuned]), "-o", str(made), str(text)]
            if subprocess.run(command, capture_output=True, timeout=_SECONDS).returncode == 0:
                os.replace(made, file)
                return
    raise OSError(f"{compiler} does not compile {file.stem}.c")

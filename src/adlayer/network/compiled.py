"""The message's kernels in C (``message.c``), compiled on first use with the C compiler of the machine.

Without a compiler, and wherever anything fails, there is no library and the network runs on PyTorch alone: slower, the
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
from functools import cache
from pathlib import Path

import torch

_SOURCE = Path(__file__).with_name("message.c")
_TYPES = {torch.float32: "float", torch.float64: "double"}
_OPTIONS = ("-O3", "-fopenmp-simd", "-shared", "-fPIC")
_TUNED = ("-march=native", "-mcpu=native", "")  # the first that the compiler takes
_SECONDS = 60  # for the compiler


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for a floating-point type, or nothing where they cannot be had."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or dtype not in _TYPES or os.name != "posix":
        return None
    options = (*_OPTIONS, f"-DREAL={_TYPES[dtype]}")
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adlayer"
        file = folder / f"message-{_key(compiler, options)}.so"
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _compile(compiler, options, file)
        return ctypes.CDLL(str(file))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _key(compiler: str, options: tuple[str, ...]) -> str:
    """Changes with all that the compiled file depends on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    processor = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    parts = (_SOURCE.read_text(), compiler, *options, platform.machine(), processor)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, options: tuple[str, ...], file: Path) -> None:
    """Compile to ``file``, which appears whole or not at all.

    Raises
    ------
    OSError, subprocess.SubprocessError
        Where that fails.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        for tuned in _TUNED:
            command = [compiler, *options, *filter(None, [tuned]), "-o", str(made), str(_SOURCE)]
            if subprocess.run(command, capture_output=True, timeout=_SECONDS).returncode == 0:
                os.replace(made, file)
                return
    raise OSError(f"{compiler} does not compile {_SOURCE}")

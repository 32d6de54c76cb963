"""What the scripts of this study have in common: substrate, the model that ships, progress, medians, provenance."""

import platform
import sys
from collections.abc import Callable
from importlib import metadata, resources
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.compare import bootstrap_interval
from adlayer.structures.substrate import build_substrate


def substrate(cell: str) -> Atoms:
    """Ag(111): two layers, the lower one fixed, SevenNet-0's lattice constant; overlayers 1 to 4 Å above."""
    return build_substrate("Ag(111)", cell, layers=2, fixed_layers=1, lattice=4.167, window=(1.0, 4.0))


def shipped() -> str:
    """File of the model in the package."""
    return str(resources.files("adlayer") / "data" / "ag-o.safetensors")


def progress(label: str) -> Callable[[int, int], None]:
    """A line on stderr for each structure done."""
    return lambda done, total: print(f"{label}: {done} of {total}", file=sys.stderr, flush=True)


def median(values: np.ndarray, digits: int = 3) -> list[float]:
    """Median with its 95 % interval."""
    found = bootstrap_interval(values, np.median, seed=0)
    return [round(float(x), digits) for x in (found.value, found.low, found.high)]


def about(what: str) -> dict[str, Any]:
    """The head of a record: what it holds, machine and versions."""
    return {
        "what": what,
        "machine": f"{platform.machine()}, {platform.system()}, one thread a structure",
        "versions": {p: metadata.version(p) for p in ("adlayer", "torch", "ase", "sevenn", "numpy")},
    }

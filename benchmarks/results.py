"""``results.json``: written piece by piece, each piece whole or not at all; and the statistics in it.

A ratio is ours over the peer's, below 1 where ours is cheaper. Repeats are paired: both sides of a round run one after
the other, the ratio of each round is formed, and the median is given with the quartiles and the extremes.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

import adlayer

FILE = Path(__file__).with_name("results.json")


def spread(values: Sequence[float]) -> dict[str, float | int]:
    """Median, quartiles, extremes and number of the values.

    >>> spread([3.0, 1.0, 2.0])["median"]
    2.0
    """
    low, first, median, third, high = (float(q) for q in np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0]))
    return {"median": median, "quartiles": [first, third], "extremes": [low, high], "n": len(values)}  # type: ignore[dict-item]


def paired_ratio(ours: Sequence[float], peer: Sequence[float]) -> dict[str, float | int]:
    """Spread of ours over the peer's, repeat by repeat.

    Raises
    ------
    ValueError
        If the two differ in length: then they are not pairs.
    """
    return spread([a / b for a, b in zip(ours, peer, strict=True)])


def load(file: Path | None = None) -> dict[str, Any]:
    """What is in the file, by default :data:`FILE`."""
    file = file or FILE
    content: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return content


def record(
    section: str, content: dict[str, Any], ratios: dict[str, float] | None = None, file: Path | None = None
) -> None:
    """Put a section into the file (``a.b`` is b within a) and its ratios among the others."""
    file = file or FILE
    everything = load(file)
    place = everything
    *path, name = section.split(".")
    for key in path:
        place = place.setdefault(key, {})
    when = datetime.now(UTC).isoformat(timespec="seconds")
    place[name] = content | {"measured": when, "processor": machine()["processor"]}
    everything.setdefault("ratios", {}).update(ratios or {})
    everything["machine"] = machine()
    others = {name: version(name) for name in ("ase", "numpy", "torch")}
    everything["versions"] = {"adlayer": adlayer.__version__} | others
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(everything, indent=1) + "\n")
    os.replace(temporary, file)


def machine() -> dict[str, Any]:
    """Processor, operating system, Python, and the load now."""
    info = Path("/proc/cpuinfo")
    models = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.is_file()
        else []
    )
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": list(os.getloadavg()),
    }

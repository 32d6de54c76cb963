"""Where the time of sampling goes: the package's functions and torch's operations, on the work ``sampling``."""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import tempfile
from pathlib import Path
from typing import Any

import torch
from ours import prepare_sampling
from results import record
from torch.profiler import ProfilerActivity, profile
from work import WORKS, write_work
from worker import pin

import adlayer

TOP = 12
_PACKAGE = str(Path(adlayer.__file__).parent)


def functions(profiler: cProfile.Profile) -> list[dict[str, Any]]:
    """The package's own functions by the time spent in and below them, s and share of all."""
    stats: Any = pstats.Stats(profiler)
    total = stats.total_tt
    own = [
        {"function": f"{Path(file).stem}.{name}", "calls": calls, "s": below, "share": below / total}
        for (file, _, name), (_, calls, _, below, _) in stats.stats.items()
        if file.startswith(_PACKAGE) and not name.startswith("<")
    ]
    return sorted(own, key=lambda row: -row["s"])[:TOP]


def operations(profiler: Any) -> list[dict[str, Any]]:
    """Torch's operations by the time spent in them alone, s and share of all operations."""
    rows = profiler.key_averages()
    total = sum(row.self_cpu_time_total for row in rows)
    rows = sorted(rows, key=lambda row: -row.self_cpu_time_total)[:TOP]
    return [
        {
            "operation": row.key,
            "calls": row.count,
            "s": 1e-6 * row.self_cpu_time_total,
            "share": row.self_cpu_time_total / total,
        }
        for row in rows
    ]


def main() -> None:
    """Profile both sizes of the network and write the section ``profile``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", default="sampling", choices=("sampling", "sampling_guided"))
    work = WORKS[parser.parse_args().work]
    pin()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"work": work.name}
    with tempfile.TemporaryDirectory() as folder:
        write_work(work, Path(folder))
        loaded = json.loads((Path(folder) / "work.json").read_text())
        for size, name in (("same", "ours"), ("default", "default")):
            run = prepare_sampling(loaded, Path(folder), size)
            run(0)  # warming up
            python = cProfile.Profile()
            python.runcall(run, 1)
            with profile(activities=[ProfilerActivity.CPU]) as torch_profiler:
                run(1)
            content[name] = {"functions": functions(python), "operations": operations(torch_profiler)}
            print(f"{work.name}, {name}: share of the time in and below the package's functions; in torch's operations")
            for f, o in zip(content[name]["functions"], content[name]["operations"], strict=True):
                print(f"  {f['share']:6.1%} {f['function']:<34}{o['share']:6.1%} {o['operation']}")
    record("profile", content)


if __name__ == "__main__":
    main()

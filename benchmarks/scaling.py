"""Time and memory of one denoiser evaluation against the number of atoms in one cell, up to 10,000.

The cells are p(n×n) of Ag(111) with two layers and an overlayer of constant density, uniform in the window as at the
start of sampling. Neighbour list included. Sizes rise, so the peak memory after each is that of the size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ours import architecture
from results import record, spread
from work import Network, bare
from worker import Stopwatch, peak_memory, pin

from adlayer.network.graph import Batch, to_batch
from adlayer.network.inference import fast_denoiser
from adlayer.network.model import Architecture, Card, Model

SIZES = (4, 8, 16, 32, 57)
REPEATS = 3


def cell_of(n: int, seed: int = 0) -> Atoms:
    """The p(n×n) cell: three Ag to four sites of the top layer, three O to eight, uniform in the window."""
    substrate = bare(f"p({n}x{n})")
    symbols = ["Ag"] * round(0.75 * n * n) + ["O"] * round(0.375 * n * n)
    rng = np.random.default_rng([seed, n])
    low, high = substrate.info["confinement"]
    flat = rng.random((len(symbols), 2)) @ substrate.cell.array[:2, :2]
    atoms = substrate + Atoms(symbols, np.column_stack([flat, rng.uniform(low, high, len(symbols))]), tags=0)
    atoms.info = dict(substrate.info)
    return atoms


def exponent(atoms: list[int], seconds: list[float]) -> float:
    """Slope of log time over log atoms, least squares; 1 is linear."""
    return float(np.polyfit(np.log(atoms), np.log(seconds), 1)[0])


def evaluate(model: Model, batch: Batch, seconds: float = 1.0) -> list[float]:
    """CPU seconds of single evaluations: :data:`REPEATS` of them, or as many as fit into ``seconds``."""
    costs: list[float] = []
    denoiser = fast_denoiser(model.denoiser)
    with torch.no_grad():
        while len(costs) < REPEATS or (sum(costs) < seconds and len(costs) < 50):
            watch = Stopwatch()
            denoiser(batch, torch.ones(1), torch.full((1, 2), float("nan")))
            costs.append(watch.cost()["cpu_s"])
    return costs


def curve(size: Architecture) -> list[dict[str, Any]]:
    """Cost at every cell size."""
    torch.manual_seed(0)
    model = Model(Card(("Ag", "O"), "exact", 0.02, size)).eval()
    evaluate(model, to_batch([cell_of(SIZES[0])]))  # warming up
    points = []
    for n in SIZES:
        atoms = cell_of(n)
        before = peak_memory()
        cost = spread(evaluate(model, to_batch([atoms])))
        rise = peak_memory() - before
        points.append(
            {
                "atoms": len(atoms),
                "cpu_s": cost,
                "us_per_atom": 1e6 * float(cost["median"]) / len(atoms),
                "kib_per_atom": 2**10 * rise / len(atoms) if rise > 0 else None,
            }
        )
    return points


def main() -> None:
    """Measure and write the section ``scaling``."""
    pin()
    torch.set_num_threads(1)
    network = Network().__dict__
    base = peak_memory()
    content: dict[str, Any] = {"import_mib": base}
    content["ours"] = curve(architecture(network, "same"))
    largest = content["ours"][-1]
    content["peak_mib"] = peak_memory()
    content["peak_kib_per_atom"] = 2**10 * (peak_memory() - base) / largest["atoms"]
    record("scaling", content)
    content["default"] = curve(architecture(network, "default"))
    for name in ("ours", "default"):
        points = content[name][1:]
        content[f"exponent_{name}"] = exponent([p["atoms"] for p in points], [p["cpu_s"]["median"] for p in points])
    record("scaling", content)
    for name in ("ours", "default"):
        told = ", ".join(f"{p['atoms']} atoms {1e3 * p['cpu_s']['median']:.0f} ms" for p in content[name])
        print(f"scaling, {name}: {told}; exponent {content[f'exponent_{name}']:.2f}")
    print(f"scaling: peak memory {content['peak_kib_per_atom']:.0f} KiB per atom at {largest['atoms']} atoms")


if __name__ == "__main__":
    main()

"""The networks with fixed weights on kernels against the modules they stand for: processor seconds, and differences.

The model that ships on random overlayers of Ag12O6 on Ag(111) p(4x4); in every round the two take turns on the same new
structures, and who begins alternates. The first round warms up. One thread. At last whole structures are generated with
the preset ``fast``, with a compiler and without, each in a process of its own (``--generate`` is one of them).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import paired_ratio, record, spread
from torch import Tensor
from work import LATTICE, bare
from worker import Stopwatch, pin

import adlayer
from adlayer.diffusion.generation import generate
from adlayer.diffusion.sampling import PRESETS
from adlayer.network import neighbours
from adlayer.network.graph import Batch, to_batch
from adlayer.network.inference import FastDenoiser, FastForceField, fast_denoiser, fast_force_field
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model

MODEL = Path(adlayer.__file__).parent / "data/ag-o.safetensors"
BATCHES, ROUNDS, CALLS = (1, 5, 12), 20, 3  # structures together; calls of each in a round
GENERATED = 12  # structures
Sides = dict[str, Callable[[Batch], Tensor]]


def measure(sides: Sides, n: int) -> dict[str, Any]:
    """Costs of a call for one structure of ``n`` and the largest difference over the largest value."""
    costs: dict[str, list[float]] = {name: [] for name in sides}
    differences = []
    for seed in range(ROUNDS + 1):
        rng = np.random.default_rng([seed, n])
        batch = to_batch([place_overlayer(bare("p(4x4)"), "Ag12O6", rng) for _ in range(n)])
        results = {}
        for name in sorted(sides, reverse=bool(seed % 2)):
            watch = Stopwatch()
            for _ in range(CALLS):
                results[name] = sides[name](batch)
            if seed:
                costs[name].append(watch.cost()["cpu_s"] / CALLS / n)
        fast, module = results["kernels"], results["module"]
        differences.append(float((fast - module).abs().max() / module.abs().max()))
    return {
        "cpu_s": {name: spread(cost) for name, cost in costs.items()},
        "ratio": paired_ratio(costs["kernels"], costs["module"]),
        "largest_difference": max(differences),
    }


def _pairs(few_atoms: int) -> Callable[[Batch], Tensor]:
    """Number of neighbours within 5 Å, each with each up to so many atoms, by vesin beyond."""

    def count(batch: Batch) -> Tensor:
        kept, neighbours._FEW_ATOMS = neighbours._FEW_ATOMS, few_atoms
        found = neighbours.neighbours(batch, 5.0)
        neighbours._FEW_ATOMS = kept
        return torch.bincount(found.receiver).double()

    return count


def generated() -> float:
    """CPU seconds of a structure that the preset ``fast`` makes, after one for warming up."""
    model = load_model(MODEL)
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    generate(model, substrate, formula="Ag12O6", n=1, seed=1, settings=PRESETS["fast"])
    watch = Stopwatch()
    generate(model, substrate, formula="Ag12O6", n=GENERATED, settings=PRESETS["fast"])
    return watch.cost()["cpu_s"] / GENERATED


def _generation() -> dict[str, Any]:
    """The same with a compiler and without, and the ratio."""
    compilers = {"kernels": os.environ.get("CC", "cc"), "module": "/nonexistent"}
    command = [sys.executable, __file__, "--generate"]
    found = {
        side: float(subprocess.run(command, env=os.environ | {"CC": cc}, capture_output=True, check=True).stdout)
        for side, cc in compilers.items()
    }
    return {"n": GENERATED, "cpu_s": found, "ratio": found["kernels"] / found["module"]}


def main() -> None:
    """Measure and write the section ``inference``."""
    pin()
    torch.set_num_threads(1)
    if "--generate" in sys.argv[1:]:
        print(generated())
        return
    model = load_model(MODEL)
    force_field, denoiser = fast_force_field(model.force_field), fast_denoiser(model.denoiser)
    if not isinstance(force_field, FastForceField) or not isinstance(denoiser, FastDenoiser):
        raise SystemExit("no C compiler: there is nothing to compare")

    def scores(network: Any) -> Callable[[Batch], Tensor]:
        def call(batch: Batch) -> Tensor:
            n = batch.n_structures
            with torch.no_grad():
                score: Tensor = network(batch, torch.full((n,), 0.5), torch.tensor([[0.0, 1 / 3]]).expand(n, -1))
            return score

        return call

    works: dict[str, Sides] = {
        "forces": {"kernels": lambda b: force_field(b)[1], "module": lambda b: model.force_field(b)[1]},
        "scores": {"kernels": scores(denoiser), "module": scores(model.denoiser)},
        "neighbours": {"kernels": _pairs(300), "module": _pairs(0)},
    }
    content = {name: {str(n): measure(sides, n) for n in BATCHES} for name, sides in works.items()}
    ratios = {f"inference_{name}": float(one[str(BATCHES[-1])]["ratio"]["median"]) for name, one in content.items()}
    whole = _generation()
    record("inference", content | {"generation": whole}, ratios | {"inference_generation": whole["ratio"]})
    for name, one in content.items():
        for n, found in one.items():
            times = {side: 1000 * cost["median"] for side, cost in found["cpu_s"].items()}
            print(
                f"{name}, {n} together: {times['module']:.3f} -> {times['kernels']:.3f} ms CPU each (ratio "
                f"{found['ratio']['median']:.3f}), at most {found['largest_difference']:.0e} of the largest apart"
            )
    seconds = whole["cpu_s"]
    print(
        f"generated, fast: {seconds['module']:.2f} -> {seconds['kernels']:.2f} CPU s each (ratio {whole['ratio']:.3f})"
    )


if __name__ == "__main__":
    main()

"""A force call of SevenNet-0, upstream's own path against our kernels: processor seconds, and that both say the same.

Random overlayers on Ag(111), the state in which a search starts; in every round the two take turns on the same new
structure, and who begins alternates. The first round warms up. One thread.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from results import paired_ratio, record, spread
from work import bare
from worker import Stopwatch, pin

from adlayer.energies.calculators import make_calculator, quiet_backends
from adlayer.energies.sevennet import SevenNet
from adlayer.structures.placement import place_overlayer

SIZES = {"Ag5O3": "p(4x2)", "Ag12O6": "p(4x4)"}
ROUNDS, CALLS = 20, 3  # calls of each in a round


def measure(calculators: dict[str, Any], formula: str) -> dict[str, Any]:
    """Costs and the largest differences for one size of structure."""
    costs: dict[str, list[float]] = {name: [] for name in calculators}
    differences, edges = [], []
    for seed in range(ROUNDS + 1):
        atoms = place_overlayer(bare(SIZES[formula]), formula, np.random.default_rng(seed))
        results = {}
        for name in sorted(calculators, reverse=bool(seed % 2)):
            calculator, watch = calculators[name], Stopwatch()
            for _ in range(CALLS):
                calculator.calculate(atoms)
            if seed:
                costs[name].append(watch.cost()["cpu_s"] / CALLS)
            results[name] = calculator.results
        ours, upstream = results["ours"], results["upstream"]
        edges.append(int(ours["num_edges"]))
        energy = abs(ours["energy"] - upstream["energy"]) / len(atoms)
        differences.append((energy, np.abs(ours["forces"] - upstream["forces"]).max()))
    energies, forces = np.max(differences, axis=0).tolist()
    return {
        "cell": SIZES[formula],
        "atoms": len(atoms),
        "edges": spread(edges),
        "cpu_s": {name: spread(cost) for name, cost in costs.items()},
        "ratio": paired_ratio(costs["ours"], costs["upstream"]),
        "largest_difference": {"energy_ev_per_atom": energies, "force_ev_per_angstrom": forces},
    }


def main() -> None:
    """Measure and write the section ``sevennet``."""
    pin()
    torch.set_num_threads(1)
    with warnings.catch_warnings(), quiet_backends():
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator

        calculators = {"ours": make_calculator("sevennet"), "upstream": SevenNetCalculator("7net-0", device="cpu")}
    if not isinstance(calculators["ours"], SevenNet):
        raise SystemExit("no C compiler: there is nothing to compare")
    content = {formula: measure(calculators, formula) for formula in SIZES}
    ratios = {f"sevennet_{formula}": float(one["ratio"]["median"]) for formula, one in content.items()}
    record("sevennet", content, ratios)
    for formula, one in content.items():
        times = {name: 1000 * cost["median"] for name, cost in one["cpu_s"].items()}
        energy, force = one["largest_difference"].values()
        print(
            f"{formula}, {one['atoms']} atoms: upstream {times['upstream']:.1f} ms, ours {times['ours']:.1f} ms CPU "
            f"(ratio {one['ratio']['median']:.3f}); at most {energy:.1e} eV/atom and {force:.1e} eV/Å apart"
        )


if __name__ == "__main__":
    main()

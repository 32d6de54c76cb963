"""What one structure costs at equal or better raw energy: Ag12O6 in Ag(111) p(4x4), as generated, before a real
calculator relaxes it.

Ours in three forms: sampled alone in few and in the default number of steps, and sampled and relaxed in the learned
force field (the refinement that follows by default is left out). Raw energies are SevenNet-0's, above the Ag6 model.
The peer's cost is its default number of steps times the cost of a step from ``works.sampling``; its raw energies are
those of the published model on this work (the paper's own checkpoint, 1000 steps, 32 structures, measured elsewhere:
median +15.7 eV, 3 to 126). The ratio is that of our cheapest form whose raw median is no higher.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np
import torch
from results import load, record, spread
from speed import PEER_STEPS
from work import LATTICE
from worker import Stopwatch, pin

from adlayer.analysis.compare import bootstrap_interval
from adlayer.analysis.references import reference
from adlayer.diffusion.generation import generate
from adlayer.diffusion.sampling import Sampling
from adlayer.energies.calculators import make_calculator
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model

N, REPEATS = 8, 3
PEER_RAW = 15.7  # eV
TARGET = 1 / 100
FORMS = {
    "sampled in 20 steps": Sampling(steps=20, relax_steps=0),
    "sampled in 50 steps": Sampling(relax_steps=0),
    "sampled in 50 steps, relaxed in the force field": Sampling(),
}


def measure(settings: Sampling) -> dict[str, Any]:
    """Processor seconds and raw energies (eV above Ag6) of one form."""
    model = load_model(str(resources.files("adlayer") / "data" / "ag-o.safetensors"))
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    calculator = make_calculator("sevennet")
    zero = float(reference("p4x4-O_Ag111-Ag6").info["reference_energy"])
    costs, raw = [], []
    for seed in range(REPEATS + 1):
        watch = Stopwatch()
        made = generate(model, substrate, formula="Ag12O6", n=N, seed=seed, settings=settings)
        cost = watch.cost(N)["cpu_s"] / N
        if seed:  # the first warms up
            costs.append(cost)
            for atoms in made.structures:
                atoms.calc = calculator
                raw.append(float(atoms.get_potential_energy()) - zero)
    median = bootstrap_interval(raw, np.median, seed=0)
    return {
        "cpu_s": spread(costs),
        "denoiser_calls": made.n_network_calls / N,
        "force_field_calls": made.n_force_calls / N,
        "raw_median_eV": [round(x, 2) for x in (median.value, median.low, median.high)],
        "n": len(raw),
    }


def main() -> None:
    """Measure ours, take the peer's cost per step from ``works.sampling``, write the section ``structure``."""
    pin()
    torch.set_num_threads(1)
    forms = {name: measure(settings) for name, settings in FORMS.items()}
    content: dict[str, Any] = {"ours": forms, "target": TARGET, "peer_raw_median_eV": PEER_RAW}
    ratios = {}
    good = [form for form in forms.values() if form["raw_median_eV"][0] <= PEER_RAW]
    peer = load().get("works", {}).get("sampling", {}).get("sides", {}).get("peer")
    if peer:
        cost = PEER_STEPS * peer["cpu_s"]["median"]
        content["peer"] = {"cpu_s": cost, "steps": PEER_STEPS, "how": "steps × cost of a step without guidance"}
        for form in forms.values():
            form["ratio"] = form["cpu_s"]["median"] / cost
        if good:
            ratios["structure"] = content["ratio"] = min(form["ratio"] for form in good)
    record("structure", content, ratios)
    for name, form in forms.items():
        told = f"; ours/peer {form['ratio']:.4f} (at most {TARGET})" if "ratio" in form else ""
        print(f"{name}: {form['cpu_s']['median']:.3f} s CPU, raw {form['raw_median_eV']} eV{told}", flush=True)


if __name__ == "__main__":
    main()

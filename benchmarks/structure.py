"""What one structure costs: ours sampled and relaxed in the learned force field, without the refinement that follows by
default; the peer's at its default number of steps.

The comparison holds at equal or better raw energy: of the structures as generated, before a real calculator relaxes
them. Raw energies need a peer trained on the same data; where ``raw_energies.json`` is there (``{"ours": [...],
"peer": [...], "how": "..."}``, eV per structure), medians are compared, otherwise the ratio says cost alone.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

import torch
from results import load, record, spread
from speed import PEER_STEPS
from work import LATTICE
from worker import Stopwatch, pin

from adlayer.diffusion.generation import Sampling, generate
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model

N, REPEATS = 4, 3
RAW = Path(__file__).with_name("raw_energies.json")
TARGET = 1 / 100


def main() -> None:
    """Measure ours, take the peer's cost per step from ``works.sampling``, write the section ``structure``."""
    pin()
    torch.set_num_threads(1)
    model = load_model(str(resources.files("adlayer") / "data" / "ag-o.safetensors"))
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    settings = Sampling()
    costs, calls = [], []
    for seed in range(REPEATS + 1):
        watch = Stopwatch()
        made = generate(model, substrate, formula="Ag12O6", n=N, seed=seed, settings=settings)
        if seed:  # the first warms up
            costs.append(watch.cost(N)["cpu_s"] / N)
            calls.append((made.n_network_calls / N, made.n_force_calls / N))
    content: dict[str, Any] = {
        "ours": {
            "cpu_s": spread(costs),
            "denoiser_calls": calls[-1][0],
            "force_field_calls": median(c[1] for c in calls),
        },
        "target": TARGET,
        "raw_energies": "not compared: no peer trained on the same data",
    }
    ratios = {}
    peer = load().get("works", {}).get("sampling", {}).get("sides", {}).get("peer")
    if peer:
        cost = PEER_STEPS * peer["cpu_s"]["median"]
        content["peer"] = {"cpu_s": cost, "steps": PEER_STEPS, "how": "steps × cost of a step without guidance"}
        ratios["structure"] = content["ratio"] = content["ours"]["cpu_s"]["median"] / cost
    if RAW.is_file():
        raw = json.loads(RAW.read_text())
        both = {side: spread(raw[side]) for side in ("ours", "peer")}
        content["raw_energies"] = both | {
            "how": raw["how"],
            "no_worse": both["ours"]["median"] <= both["peer"]["median"],  # type: ignore[operator]
        }
    record("structure", content, ratios)
    told = f"; ours/peer {ratios['structure']:.4f} (at most {TARGET})" if ratios else ""
    print(f"structure: ours {median(costs):.2f} s CPU with {calls[-1][0]:.0f} denoiser calls{told}")


if __name__ == "__main__":
    main()

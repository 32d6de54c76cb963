"""Our optimizer against ASE's BFGS with a real calculator: force calls from random starts to the same criterion.

Random overlayers as a search places them, Ag5O3 in p(4×2), Ag6O3 in p(3×3) and Ag12O6 in p(4×4) of Ag(111), two layers,
the lower one fixed, SevenNet-0, largest force 0.05 eV/Å, at most 300 steps. From so far away two optimisers may end in
different minima, either the lower: counted by energy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase.optimize import BFGS
from results import paired_ratio, record, spread
from work import LATTICE
from worker import pin

from adlayer.energies.calculators import make_calculator
from adlayer.energies.relaxation import relax
from adlayer.energies.search import sample_rng
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

WORK = {"p(4x2)": "Ag5O3", "p(3x3)": "Ag6O3", "p(4x4)": "Ag12O6"}
N, FMAX, MAX_STEPS, SAME = 12, 0.05, 300, 0.01  # structures of each; eV/Å; steps; eV, energies of one minimum


def main() -> None:
    """Measure and write the section ``optimizer``."""
    pin()
    torch.set_num_threads(1)
    calculator = make_calculator("sevennet")
    calls: dict[str, list[int]] = {"ours": [], "bfgs": []}
    gaps: list[float] = []
    for cell, formula in WORK.items():
        substrate = build_substrate("Ag(111)", cell, layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
        for k in range(N):
            start = place_overlayer(substrate, formula, sample_rng(0, formula, k))
            ours = relax(start, calculator, fmax=FMAX, max_steps=MAX_STEPS)
            theirs = start.copy()
            theirs.calc = calculator
            optimizer = BFGS(theirs, logfile=None)
            optimizer.run(fmax=FMAX, steps=MAX_STEPS)
            calls["ours"].append(ours.n_force_calls)
            calls["bfgs"].append(optimizer.nsteps + 1)
            gaps.append(ours.energy - theirs.get_potential_energy())
    ratio = paired_ratio([float(c) for c in calls["ours"]], [float(c) for c in calls["bfgs"]])
    gap = np.array(gaps)
    content: dict[str, Any] = {
        "force_calls": {name: spread([float(c) for c in values]) for name, values in calls.items()},
        "ratio": ratio,
        "same_minimum": int((abs(gap) < SAME).sum()),
        "ours_lower": int((gap < -SAME).sum()),
        "bfgs_lower": int((gap > SAME).sum()),
        "energy_gap_ev": spread(gaps),
        "n": len(gaps),
    }
    record("optimizer", content, {"optimizer": float(ratio["median"])})
    print(f"optimizer: {content}")


if __name__ == "__main__":
    main()

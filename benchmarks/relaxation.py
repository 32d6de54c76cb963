"""Our batched relaxer against ASE's serial BFGS, on the force field that ships: structures per second, same minima.

Both start from the same generated Ag12O6 on Ag(111) p(4×4) and stop at the same criterion, where each is still a little
above its minimum; relaxed on, not timed, to a fifth of that, minima are compared by energy. From so far away two
optimisers may end in different ones, either the lower; from minima whose atoms were displaced at random (0.05 Å in each
direction) they must come back to the same one.
"""

from __future__ import annotations

from importlib import resources
from statistics import median
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.optimize import BFGS
from results import paired_ratio, record, spread
from work import LATTICE
from worker import Stopwatch, pin

from adlayer.diffusion.generation import generate
from adlayer.diffusion.sampling import Sampling
from adlayer.energies.batched import relaxing
from adlayer.network.graph import to_batch
from adlayer.network.inference import fast_force_field
from adlayer.network.model import Model
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model
from adlayer.training.learned import LearnedCalculator

N, REPEATS, FMAX, MAX_STEPS = 12, 10, 0.05, 300
SAME = 0.01  # eV, energies of one minimum reached twice
TIGHT = 0.01  # eV/Å: at FMAX relaxations are still some 0.02 eV above their minima


def starts(model: Model, seed: int) -> list[Atoms]:
    """Generated structures, not relaxed; the top layer of the substrate is free."""
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    settings = Sampling(steps=20, relax_steps=0)
    return generate(model, substrate, formula="Ag12O6", n=N, seed=seed, settings=settings).structures


def fixed_atoms(atoms: Atoms) -> np.ndarray:
    """(n,) bool: the atoms that ``FixAtoms`` holds."""
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        fixed[constraint.index] = True
    return fixed


Outcome = tuple[dict[str, float], np.ndarray, np.ndarray, list[Atoms]]  # cost, energies (eV), steps, minima


def batched(model: Model, structures: list[Atoms], fmax: float = FMAX) -> Outcome:
    """Our relaxer, all structures at once."""
    watch = Stopwatch()
    batch = to_batch(structures)
    fixed = torch.from_numpy(np.concatenate([fixed_atoms(a) for a in structures]))
    force_field = fast_force_field(model.force_field)

    def forces(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return force_field(batch.with_positions(positions))

    *_, result = relaxing(forces, batch.positions, batch.batch, fixed, fmax, MAX_STEPS)
    energies = model.force_field.total_energy(batch, result.energies)
    cost = watch.cost(len(structures))
    minima = [atoms.copy() for atoms in structures]
    for atoms, positions in zip(minima, result.positions.split([len(a) for a in minima]), strict=True):
        atoms.positions[:] = positions.numpy()
    return cost, energies.numpy(), result.n_steps.numpy(), minima


def serial(calculator: LearnedCalculator, structures: list[Atoms]) -> Outcome:
    """The same by ASE's BFGS, one structure after the other."""
    watch, energies, steps, minima = Stopwatch(), [], [], []
    for start in structures:
        atoms = start.copy()
        atoms.calc = calculator
        optimizer = BFGS(atoms, logfile=None)
        optimizer.run(fmax=FMAX, steps=MAX_STEPS)
        energies.append(atoms.get_potential_energy())
        steps.append(optimizer.nsteps)
        minima.append(atoms)
    return watch.cost(len(structures)), np.array(energies), np.array(steps), minima


def gap(model: Model, energies: dict[str, np.ndarray], minima: dict[str, list[Atoms]]) -> tuple[np.ndarray, np.ndarray]:
    """Energies of ours above the other's (n,), eV: where the relaxations ended, and both relaxed on to ``TIGHT``."""
    ends = {name: batched(model, found, TIGHT)[1] for name, found in minima.items()}
    return energies["batched"] - energies["serial"], ends["batched"] - ends["serial"]


def displaced(minima: list[Atoms], seed: int) -> list[Atoms]:
    """Copies with every free atom displaced at random, 0.05 Å in each direction."""
    copies = [atoms.copy() for atoms in minima]
    for k, atoms in enumerate(copies):
        noise = np.random.default_rng([seed, k]).normal(0.0, 0.05, (len(atoms), 3))
        atoms.positions[~fixed_atoms(atoms)] += noise[~fixed_atoms(atoms)]
    return copies


def main() -> None:
    """Measure and write the section ``relaxation``."""
    pin()
    torch.set_num_threads(1)
    path = str(resources.files("adlayer") / "data" / "ag-o.safetensors")
    model, calculator = load_model(path), LearnedCalculator(path)
    batched(model, starts(model, 0)[:2])  # warming up
    costs: dict[str, list[dict[str, float]]] = {"batched": [], "serial": []}
    steps: dict[str, list[int]] = {"batched": [], "serial": []}
    ends: list[float] = []
    gaps: list[float] = []
    for seed in range(1, REPEATS + 1):
        structures = starts(model, seed)
        energies, minima = {}, {}
        for name in ("batched", "serial") if seed % 2 else ("serial", "batched"):
            run = batched(model, structures) if name == "batched" else serial(calculator, structures)
            cost, energies[name], taken, minima[name] = run
            costs[name].append(cost)
            steps[name] += taken.tolist()
        end, minimum = gap(model, energies, minima)
        ends += end.tolist()
        gaps += minimum.tolist()
        ratio = paired_ratio([c["cpu_s"] for c in costs["batched"]], [c["cpu_s"] for c in costs["serial"]])
        content: dict[str, Any] = {
            name: {
                "cpu_s": spread([c["cpu_s"] / N for c in costs[name]]),
                "structures_per_s": spread([N / c["wall_s"] for c in costs[name]]),
                "n_steps": spread(steps[name]),
            }
            for name in costs
        }
        content |= {
            "ratio": ratio,
            "same_minimum": sum(abs(g) < SAME for g in gaps),
            "batched_lower": sum(g < -SAME for g in gaps),
            "serial_lower": sum(g > SAME for g in gaps),
            "energy_gap_ev": spread(gaps),
            "energy_gap_at_the_end_ev": spread(ends),
            "n": len(gaps),
            "seeds": list(range(1, seed + 1)),
        }
        record("relaxation", content, {"relaxation": float(ratio["median"])})
    near = displaced(minima["serial"], 0)
    runs = {"batched": batched(model, near), "serial": serial(calculator, near)}
    _, away = gap(model, {k: r[1] for k, r in runs.items()}, {k: r[3] for k, r in runs.items()})
    content["from_displaced_minima"] = {"same_minimum": int((abs(away) < SAME).sum()), "n": N}
    record("relaxation", content)
    print(
        f"relaxation: batched {content['batched']['cpu_s']['median']:.2f} s, ASE's BFGS "
        f"{content['serial']['cpu_s']['median']:.2f} s CPU per structure (ratio {ratio['median']:.3f}); steps "
        f"{median(steps['batched']):.0f} and {median(steps['serial']):.0f}; "
        f"same minimum {content['same_minimum']} of {len(gaps)}, from displaced minima "
        f"{content['from_displaced_minima']['same_minimum']} of {N}"
    )


if __name__ == "__main__":
    main()

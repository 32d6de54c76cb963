"""A domain boundary of the p(4x4) phase: Ag29O22 in the cell [[8,-7],[2,4]] of 46 units, far beyond the training data.

    python examples/silver_oxide/boundary.py make -n 12      # generate with the model that ships, and relax
    python examples/silver_oxide/boundary.py random -n 4     # random search in the same cell
    python examples/silver_oxide/boundary.py summary         # boundary.json, boundary.png, boundary.extxyz

Cell and composition are those of the journal version of the paper (Rønne & Hammer). Energies are SevenNet-0's: two
layers, the lower one fixed, lattice constant 4.167 Å, fmax 0.05 eV/Å. Energies per area count overlayer silver from the
crystal and oxygen at Δμ below half a molecule. Everything lies under ``runs/boundary`` and goes on where it was.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from setting import about, median, progress, shipped, substrate

from adlayer.analysis.energetics import SurfacePhase
from adlayer.analysis.references import reference
from adlayer.energies.relaxing import relax_into_database
from adlayer.energies.search import search
from adlayer.report.figures import structure_figure
from adlayer.structures.store import connect, read_structures, write_structures
from adlayer.study.learning import generate_into, sampling_settings
from adlayer.study.thermodynamics import study_phases

HERE, RUNS = Path(__file__).parent, Path("runs/boundary")
CELL, FORMULA = "[[8,-7],[2,4]]", "Ag29O22"
POTENTIALS = (-0.8, -0.6, -0.4, -0.2, 0.0)  # Δμ of oxygen, eV


def make(n: int, refine: int, workers: int | None) -> None:
    database = connect(RUNS / "generated.db")
    made = generate_into(
        database, shipped(), substrate(CELL), formula=FORMULA, n=n, workers=workers,
        sampling=sampling_settings(refine=refine), progress=progress("generate"),
    )  # fmt: skip
    relax_into_database(made["structures"], database, "sevennet", workers=workers, progress=progress("relax"))


def _relaxed(path: Path, stage: str) -> list[Atoms]:
    return [a for a in read_structures(path, f"stage={stage}") if a.info["row"]["converged"]] if path.is_file() else []


def _numbers(structures: list[Atoms], raw: list[float], zero: float) -> dict[str, Any]:
    energies = np.array([a.get_potential_energy() for a in structures]) - zero
    steps = np.array([a.info["row"]["n_steps"] for a in structures], dtype=float)

    return {
        "n": len(structures),
        "lowest_eV": round(float(energies.min()), 3),
        "median_eV": median(energies, 3),
        "raw_median_eV": median(np.array(raw) - zero, 2),
        "steps_median": median(steps, 1),
        "cpu_s_relaxing": round(float(np.mean([a.info["row"]["cpu_s"] for a in structures])), 1),
    }


def _raw(path: Path, stage: str) -> list[float]:
    return [r.data["path_energies"][0] for r in connect(path).select(f"stage={stage}") if r.converged]


def _gamma(phase: SurfacePhase) -> dict[str, float]:
    """γ at several Δμ of oxygen, meV/Å²."""
    return {str(mu): round(1000 * float(phase.gamma({"O": mu})), 2) for mu in POTENTIALS}


def summary() -> None:
    generated = _relaxed(RUNS / "generated.db", "relaxed")
    found = _relaxed(RUNS / "random.db", "search")
    best = min(generated, key=Atoms.get_potential_energy)
    zero = best.get_potential_energy()
    known = reference("p4x4-O_Ag111-Ag6")
    known.calc = SinglePointCalculator(known, energy=float(known.info["reference_energy"]))
    phases = study_phases([known, best], "sevennet", connect(RUNS / "references.db"), progress=progress("references"))
    order = sorted(generated, key=lambda atoms: atoms.info["row"]["sample"])
    energies = np.array([a.get_potential_energy() for a in order]) - zero
    cost = [a.info["row"]["cpu_s"] for a in read_structures(RUNS / "generated.db", "stage=generated")]
    what = f"{FORMULA} in {CELL} of Ag(111), SevenNet-0; eV a cell above the lowest generated, 95 % intervals"
    record: dict[str, Any] = about(what) | {
        "model": best.info["row"]["model"],
        "generated": {
            **_numbers(generated, _raw(RUNS / "generated.db", "relaxed"), zero),
            "cpu_s_generating": round(float(np.mean(cost)), 1),
            "lowest_three_eV": np.sort(energies)[:3].round(2).tolist(),
            "lowest_of_the_first_24_eV": round(float(energies[:24].min()), 2),
        },
        "gamma_meV_per_A2_at_oxygen_potential": {p.label: _gamma(p) for p in phases.diagram.phases},
        "calculator": phases.calculator,
    }
    if found:
        record["random"] = _numbers(found, _raw(RUNS / "random.db", "search"), zero)
    (HERE / "boundary.json").write_text(json.dumps(record, indent=1) + "\n")
    best.info.pop("row")
    write_structures(HERE / "boundary.extxyz", [best])
    structure_figure(best, width=6.5).savefig(HERE / "boundary.png", dpi=80)
    print(json.dumps(record, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "random", "summary"])
    parser.add_argument("-n", type=int, default=12)
    parser.add_argument("--refine", type=int, default=40)
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    RUNS.mkdir(parents=True, exist_ok=True)
    if arguments.what == "make":
        make(arguments.n, arguments.refine, arguments.workers)
    elif arguments.what == "random":
        database = connect(RUNS / "random.db")
        search(
            substrate(CELL), [FORMULA], arguments.n, database, workers=arguments.workers, progress=progress("random")
        )
    else:
        summary()


if __name__ == "__main__":
    main()

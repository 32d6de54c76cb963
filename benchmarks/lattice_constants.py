"""Lattice constants of the common metals in the default calculator, which `adlayer substrate` uses.

    python benchmarks/lattice_constants.py

Each bulk crystal is relaxed with its cell (ASE's FrechetCellFilter) from ASE's experimental reference; the table goes
to ``src/adlayer/data/lattice_constants.json``, in Å, with the backend that made it. A minute on one core.
"""

import argparse
import json
import math
from pathlib import Path

import ase
from ase.build import bulk
from ase.calculators.calculator import BaseCalculator
from ase.data import atomic_numbers, reference_states
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from adlayer.energies.calculators import DEFAULT, identify, make_calculator

# Not Rb and Cs: their neighbours lie beyond the 5 Å that SevenNet-0 sees.
METALS = [
    *["Li", "Na", "K", "Ca", "Sr", "Ba", "Be", "Mg", "Al", "Sc", "Y", "Ti", "Zr", "Hf", "V", "Nb", "Ta", "Cr", "Mo"],
    *["W", "Tc", "Re", "Fe", "Co", "Ni", "Cu", "Zn", "Ru", "Rh", "Pd", "Ag", "Cd", "Os", "Ir", "Pt", "Au", "Pb", "Tl"],
]
TABLE = Path(__file__).parents[1] / "src" / "adlayer" / "data" / "lattice_constants.json"


def lattice_constants(element: str, calculator: BaseCalculator) -> tuple[str, dict[str, float]]:
    """Crystal structure of an element and its relaxed ``a`` (Å), with ``c/a`` for hcp crystals."""
    structure = str((reference_states[atomic_numbers[element]] or {})["symmetry"])
    crystal = bulk(element)
    crystal.calc = calculator
    optimizer = BFGS(FrechetCellFilter(crystal), logfile=None)
    if not optimizer.run(fmax=1e-3, steps=200):
        raise RuntimeError(f"{element} did not converge")
    lengths = crystal.cell.lengths()
    if structure == "hcp":
        return structure, {"a": round(float(lengths[0]), 3), "c/a": round(float(lengths[2] / lengths[0]), 3)}
    factor = math.sqrt(2.0) if structure == "fcc" else 2.0 / math.sqrt(3.0)
    return structure, {"a": round(float(lengths[0] * factor), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=TABLE)
    output = parser.parse_args().output
    calculator = make_calculator(DEFAULT)
    table = {}
    for element in METALS:
        structure, constants = lattice_constants(element, calculator)
        table[f"{element} {structure}"] = constants
        print(element, structure, constants, flush=True)
    record = {"calculator": identify(DEFAULT), "ase": ase.__version__, "lattice_constants": table}
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()

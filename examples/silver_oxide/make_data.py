"""The training data: Ag-O on Ag(111) in small cells, relaxed with SevenNet-0.

    python examples/silver_oxide/make_data.py runs/silver_oxide.db --rounds 5
    python examples/silver_oxide/make_data.py runs/second.db --rounds 1 --model model.safetensors

The first is random structure search. The second is the second round: a model that learned from the first generates in
the same small cells, and what it finds is relaxed in the same way; it shows the force field where it is wrong.

Six cells of 6 to 9 (1x1) units, ten compositions each, from low to high oxygen; two layers, the lower one fixed,
lattice constant 4.167 Å. No p(4x4) cell is among them, and nothing is placed by hand. Stop it at any moment and run it
again: it goes on where it was. A round is four samples of each composition in each cell.
"""

import argparse
import sys

from ase import Atoms
from ase.db.core import Database
from setting import substrate

from adlayer.energies.relaxing import relax_into_database
from adlayer.energies.search import search
from adlayer.structures.store import connect
from adlayer.study.learning import generate_into, sampling_settings

SMALL = "Ag4O2 Ag3O2 Ag4O3 Ag5O2 Ag5O3 Ag4O Ag3O3 Ag4O4 Ag5O Ag3O"
FORMULAS = {
    "p(3x2)": SMALL,
    "[[2,0],[-1,3]]": SMALL,
    "p(4x2)": "Ag6O3 Ag5O3 Ag6O4 Ag5O2 Ag6O2 Ag5O4 Ag4O2 Ag4O4 Ag3O3 Ag5O",
    "p(3x3)": "Ag6O3 Ag7O3 Ag7O4 Ag6O4 Ag5O3 Ag7O2 Ag6O2 Ag4O3 Ag5O5 Ag6O",
    "c(4x4)": "Ag6O3 Ag5O3 Ag6O4 Ag5O2 Ag6O2 Ag5O4 Ag4O2 Ag4O4 Ag3O3 Ag5O",
    "(r7xr7)R19.1": "Ag5O3 Ag5O2 Ag4O2 Ag5O4 Ag4O3 Ag6O3 Ag3O2 Ag4O4 Ag3O3 Ag4O",
}
VARIED = sampling_settings(refine=4)  # with 40 rounds, most samples of a small cell are one and the same structure


def searched(database: Database, surface: Atoms, formulas: list[str], samples: int, workers: int | None) -> str:
    """Random search; says how it went."""
    summary = search(surface, formulas, samples, database, workers=workers)
    return f"{summary.n} relaxed, {summary.n_converged} converged"


def generated(
    database: Database, surface: Atoms, formulas: list[str], samples: int, workers: int | None, model: str
) -> str:
    """Generate with a model and relax; says how it went."""
    made = []
    for formula in formulas:
        work = {"formula": formula, "n": samples, "workers": workers, "sampling": VARIED}
        made += generate_into(database, model, surface, **work)["structures"]
    relax_into_database(made, database, "sevennet", workers=workers)
    return f"{samples} of each of {len(formulas)} compositions generated and relaxed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--model", help="generate with this model instead of searching at random")
    arguments = parser.parse_args()
    database = connect(arguments.database)
    for samples in range(4, 4 * arguments.rounds + 1, 4):
        for cell, formulas in FORMULAS.items():
            surface = substrate(cell)
            work = (database, surface, formulas.split(), samples, arguments.workers)
            said = generated(*work, arguments.model) if arguments.model else searched(*work)
            print(f"{cell}: {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

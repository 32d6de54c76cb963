"""The training data: Ag-O on Ag(111) in small cells, relaxed with SevenNet-0.

    python examples/silver_oxide/make_data.py runs/silver_oxide.db --rounds 12
    python examples/silver_oxide/make_data.py runs/silver_oxide.db --pack     # training.db.xz, .json, .png
    python examples/silver_oxide/make_data.py runs/second.db --rounds 1 --model model.safetensors

The first is random structure search. The second is the second round: a model that learned from the first generates in
the same small cells, and what it finds is relaxed in the same way; it shows the force field where it is wrong.

Six cells of 6 to 9 (1x1) units, ten compositions each, from low to high oxygen; two layers, the lower one fixed,
lattice constant 4.167 Å. No p(4x4) cell is among them, and nothing is placed by hand. Stop it at any moment and run it
again: it goes on where it was. A round is four samples of each composition in each cell, some minutes on two cores.
What is packed has ten frames of each relaxation path; the model learned from the twenty that the search keeps.
"""

import argparse
import json
import lzma
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.db.core import Database
from setting import about, substrate

from adlayer.energies.relaxation import Path as RelaxationPath
from adlayer.energies.relaxing import relax_into_database
from adlayer.energies.search import search
from adlayer.report.figures import energy_distribution
from adlayer.structures.store import connect, row_atoms, rows_in_order, write_row
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
HERE = Path(__file__).parent
FRAMES = 10
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


def pack(database: Database) -> None:
    """The database that ships, a table of its compositions, and how far above the lowest its structures lie."""
    energies: dict[tuple[float, str], list[float]] = defaultdict(list)
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        packed = connect(Path(folder) / "training.db")
        for row in rows_in_order(database, "stage=search"):
            path = RelaxationPath(*(np.asarray(row.data[f"path_{k}"]) for k in ("positions", "energies", "forces")))
            atoms = row_atoms(row)
            atoms.info.pop("row")
            write_row(packed, atoms, dict(row.key_value_pairs), path.thin(FRAMES))
            if row.converged:
                energies[round(float(np.linalg.det(row.cell[:2, :2])), 1), row.overlayer].append(row.energy)
            steps.append(row.n_steps)
        (HERE / "training.db.xz").write_bytes(lzma.compress((Path(folder) / "training.db").read_bytes(), preset=9))
    above: dict[str, list[float]] = {"O below 32 %": [], "O 32 to 36 %": [], "O above 36 %": []}
    table: dict[str, dict[str, Any]] = {}
    for (area, formula), values in sorted(energies.items()):
        gaps = np.array(values) - min(values)
        silver, oxygen = (int(x or 1) for x in formula.removeprefix("Ag").split("O"))
        share = oxygen / (silver + oxygen)
        above[list(above)[int(share > 0.32) + int(share > 0.36)]] += gaps.tolist()
        table[f"{formula}, {area} Å²"] = {"n": len(values), "median_eV": round(float(np.median(gaps)), 3)}
    record = about(
        "Random search on Ag(111), SevenNet-0; energies above the lowest of a composition in cells of an area"
    )
    record |= {"n": len(steps), "steps_median": float(np.median(steps)), "compositions": table}
    (HERE / "training.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    groups = {k: np.array(v) for k, v in above.items()}
    energy_distribution(groups, "energy above the lowest of its composition (eV)").savefig(
        HERE / "training.png", dpi=130
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--model", help="generate with this model instead of searching at random")
    parser.add_argument("--pack", action="store_true", help="pack what there is")
    arguments = parser.parse_args()
    database = connect(arguments.database)
    if arguments.pack:
        pack(database)
        return
    for samples in range(4, 4 * arguments.rounds + 1, 4):
        for cell, formulas in FORMULAS.items():
            surface = substrate(cell)
            work = (database, surface, formulas.split(), samples, arguments.workers)
            said = generated(*work, arguments.model) if arguments.model else searched(*work)
            print(f"{cell}: {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

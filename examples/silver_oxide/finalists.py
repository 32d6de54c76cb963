"""The finalists of the silver-oxide study, with two and with three layers, as ``finalists.extxyz``.

    python examples/silver_oxide/finalists.py

Each structure stands twice: as relaxed on two layers, the lower one fixed, and relaxed again on three, the lowest one
fixed (lattice constant 4.167 Å, largest force 0.05 eV/Å). Both energies are SevenNet-0's, in eV; ``energy_7net-l3i5``
is that of another potential at the same positions, ``relaxed_7net-l3i5`` after relaxation with it (two layers only).
The new structures come from ``runs/headline/unsymmetric.db``, the
lowest ones that are neither Ag6 nor each other by geometry; ``Ag5O3`` is the lowest of random search in p(4×2)
(``search.db.xz`` or the database named), doubled. It lacks two silver atoms: compare it with the others by way of
``Ag-bulk``, one atom of the crystal. DFT on these: ``dft.py``.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms

from adlayer.analysis.matching import match, unique
from adlayer.analysis.references import reference
from adlayer.energies.calculators import make_calculator
from adlayer.energies.relaxation import relax
from adlayer.structures.store import read_structures
from adlayer.structures.substrate import build_substrate, fixed_mask

HERE = Path(__file__).parent
LATTICE = 4.167  # Å, SevenNet-0's own
REFERENCES = {
    "Ag6": "p4x4-O_Ag111-Ag6",
    "Ag6-symmetric": "p4x4-O_Ag111-Ag6-symmetric",
    "trilayer": "p4x4-O_Ag111-Ag2O-trilayer",
    "best-random": "p4x4-O_Ag111-best-random",
}


def snapshot(path: Path, selection: str) -> list[Atoms]:
    """Structures of a database that others may be writing to: a copy is read."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, folder))
        return read_structures(copy, selection)


def new_structures(path: Path, n: int) -> dict[str, Atoms]:
    """The lowest ``n`` converged structures that are neither Ag6 nor each other, ``new-1`` the lowest."""
    relaxed = [a for a in snapshot(path, "stage=relaxed") if a.info["row"]["converged"]]
    known = set(match(relaxed, reference(REFERENCES["Ag6"]), lateral=True))
    lowest = [group[0] for group in unique(relaxed) if group[0] not in known]
    return {f"new-{k}": relaxed[i] for k, i in enumerate(lowest[:n], 1)}


def doubled_ag5o3(path: Path) -> Atoms:
    """The lowest Ag5O3 in p(4×2), twice: Ag10O6 in p(4×4)."""
    found = [a for a in snapshot(path, "overlayer=Ag5O3,stage=search") if a.info["row"]["converged"]]
    fitting = [a for a in found if a.info["superstructure"] == [[4, 0], [0, 2]]]
    return min(fitting, key=lambda a: a.get_potential_energy()).repeat((1, 2, 1))


def plain(atoms: Atoms) -> Atoms:
    """Symbols, cell, positions, tags and fixed atoms, nothing else."""
    kept = Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, tags=atoms.get_tags())
    kept.set_constraint(FixAtoms(mask=fixed_mask(atoms)))
    return kept


def with_third_layer(atoms: Atoms) -> Atoms:
    """The structure on one more layer, which is fixed instead of the second."""
    slab = build_substrate("Ag(111)", "p(4x4)", layers=3, fixed_layers=1, lattice=LATTICE)
    upper, lowest = slab[slab.get_tags() == 2], slab[slab.get_tags() == 3]
    fixed = atoms[atoms.get_tags() == 2]
    gaps = fixed.positions[0] - upper.positions  # one of them carries the slab's second layer onto the structure's
    shifts = [s for s in gaps if _same_layer(fixed.positions, upper.positions + s, atoms.cell[:2, :2])]
    if not shifts:
        raise SystemExit("the fixed layer is not that of Ag(111) p(4x4) with the lattice constant 4.167 Å")
    lowest.positions += shifts[0]
    deeper = plain(atoms) + plain(lowest)
    deeper.positions[:, 2] += atoms.positions[:, 2].min() - lowest.positions[:, 2].min()
    deeper.cell[2, 2] += atoms.positions[:, 2].min() - lowest.positions[:, 2].min()
    deeper.set_constraint(FixAtoms(mask=deeper.get_tags() == 3))
    return deeper


def _same_layer(a: np.ndarray, b: np.ndarray, cell: np.ndarray, tolerance: float = 0.02) -> bool:
    """Whether two sets of positions (n, 3) agree within ``tolerance`` (Å), up to order and translations of the cell."""
    fractional = (a[:, None, :2] - b[None, :, :2]) @ np.linalg.inv(cell)
    lateral = np.linalg.norm((fractional - np.round(fractional)) @ cell, axis=-1)
    level = np.abs(a[:, None, 2] - b[None, :, 2])
    return bool((np.hypot(lateral, level).min(axis=1) < tolerance).all())


def finished(atoms: Atoms, name: str, layers: int, energy: float, **more: float | int) -> Atoms:
    """The structure as it is written, with the other potential's energies."""
    final = plain(atoms)
    final.info = {"name": name, "layers": layers, **more}
    other = make_calculator("sevennet?model=7net-l3i5")
    result = relax(final, other, max_steps=300 if layers == 2 else 0)
    final.info["energy_7net-l3i5"] = round(float(result.path.energies[0]), 5)
    if layers == 2 and result.converged:
        final.info["relaxed_7net-l3i5"] = round(result.energy, 5)
    final.calc = SinglePointCalculator(final, energy=round(energy, 5))
    print(f"{name:14} {layers} layers {energy:12.4f} eV", *(f"{k}={v}" for k, v in final.info.items()), flush=True)
    return final


def single_point(atoms: Atoms) -> float:
    """SevenNet-0's energy, eV."""
    work = atoms.copy()
    work.calc = make_calculator("sevennet")
    return float(work.get_potential_energy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--refined", type=Path, default=Path("runs/headline/unsymmetric.db"))
    parser.add_argument("--search", type=Path, default=HERE / "search.db.xz")
    parser.add_argument("-n", type=int, default=4, help="how many new structures")
    parser.add_argument("--layers", type=int, nargs="+", choices=[2, 3], default=[2, 3])
    parser.add_argument("-o", type=Path, default=HERE / "finalists.extxyz")
    arguments = parser.parse_args()
    calculator = make_calculator("sevennet")
    chosen = {name: reference(file) for name, file in REFERENCES.items()}
    chosen |= new_structures(arguments.refined, arguments.n)
    chosen["Ag5O3"] = relax(plain(doubled_ag5o3(arguments.search)), calculator).atoms
    crystal = bulk("Ag", a=LATTICE)
    frames = [finished(crystal, "Ag-bulk", 0, single_point(crystal))]
    if 2 in arguments.layers:
        frames += [finished(a, name, 2, single_point(a)) for name, a in chosen.items()]
    if 3 in arguments.layers:
        for name, atoms in chosen.items():
            result = relax(with_third_layer(atoms), calculator)
            if not result.converged:
                print(f"{name} with 3 layers did not converge", flush=True)
            frames.append(finished(result.atoms, name, 3, result.energy, steps=result.n_steps))
    ase.io.write(arguments.o, frames, format="extxyz")


if __name__ == "__main__":
    main()

"""Duplicates found by ``adlayer.analysis.matching`` and by pymatgen's StructureMatcher, on the same structures.

    python benchmarks/matching.py DATABASE … [-n 100] [--raw 300] [-o benchmarks/matching.json]

1. **Known answers.** Of ``-n`` structures without symmetry, drawn from the databases, each gets a copy that is the same
   structure by construction (an operation of the bare substrate on all atoms, overlayer displaced by up to 0.1 Å) and
   up to three that are not: the overlayer shifted from fcc to hcp hollows, the overlayer mirrored in a plane that is no
   mirror of the substrate, one overlayer atom moved by 0.8 Å. Left out, and counted, is an impostor that an operation
   of the substrate does carry onto the original, because the overlayer alone has a symmetry that the substrate lacks.
2. **Raw sets.** Of the first ``--raw`` structures as they are, pairs of one composition and cell (at most ``--pairs``,
   drawn at random), energies left out of the verdict. Where the two disagree, the difference of energy says who is
   right, if one backend gave both: one minimum has one energy. Grouping of the same set by composition and cell is
   timed too.

Ours merges at a largest displacement of an overlayer atom of 0.3 Å. pymatgen is run with its defaults, with settings
brought as close as they come (no rescaling, no reduction, a largest displacement of 0.3 Å), and with the latter on the
overlayer without its substrate. Needs Ag(111) or another fcc(111) surface and pymatgen; minutes on one core.
"""

import argparse
import itertools
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymatgen.core
from ase import Atoms
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from results import machine

import adlayer
from adlayer.analysis.matching import distance, same_structure, substrate_operations, unique
from adlayer.analysis.records import potential_energy
from adlayer.analysis.registry import ideal_substrate, reduce_basis
from adlayer.analysis.symmetry import describe_symmetry
from adlayer.structures.store import read_structures

TOLERANCE = 0.3  # Å
SAME_ENERGY = 0.01  # eV


def structure(atoms: Atoms, whole: bool = True) -> Structure:
    """The pymatgen structure, with its substrate or without."""
    kept = atoms if whole else atoms[atoms.get_tags() == 0]
    return Structure(
        atoms.cell.array, list(kept.get_chemical_symbols()), kept.get_scaled_positions(), coords_are_cartesian=False
    )


def tuned(a: Structure) -> StructureMatcher:
    """A matcher without rescaling and reduction whose limit is a largest displacement of :data:`TOLERANCE`."""
    return StructureMatcher(primitive_cell=False, scale=False, stol=TOLERANCE / (a.volume / len(a)) ** (1 / 3))


def pymatgen_tuned(a: Atoms, b: Atoms, whole: bool = True) -> bool:
    first = structure(a, whole)
    return bool(tuned(first).fit(first, structure(b, whole)))


METHODS: dict[str, Callable[[Atoms, Atoms], bool]] = {
    "adlayer": lambda a, b: same_structure(a, b, TOLERANCE),
    "pymatgen, defaults": lambda a, b: bool(StructureMatcher().fit(structure(a), structure(b))),
    "pymatgen, tuned": pymatgen_tuned,
    "pymatgen, overlayer alone": lambda a, b: pymatgen_tuned(a, b, whole=False),
}


def displaced(n: int, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Displacements (n, 3) of random direction, each at most ``largest`` long."""
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1)[:, None] * largest * rng.random((n, 1))


def variants(atoms: Atoms, rng: np.random.Generator) -> tuple[dict[str, Atoms], list[str]]:
    """The copy of a structure and its impostors by name, and the names of impostors left out."""
    adsorbed = np.flatnonzero(atoms.get_tags() == 0)
    basis, cell = ideal_substrate(atoms).basis, np.asarray(atoms.cell[:2, :2])
    operations = substrate_operations(atoms)
    found = {name: atoms.copy() for name in ("same", "other hollow", "one atom moved")}
    found["same"].positions[:, :2] = operations.apply(atoms.positions[:, :2])[rng.integers(len(operations))]
    a1, a2 = reduce_basis(basis)
    a2 = a2 if a1 @ a2 > 0 else -a2
    found["other hollow"].positions[adsorbed, :2] += (a1 + a2) / 3
    direction = rng.normal(size=3)
    found["one atom moved"].positions[rng.choice(adsorbed)] += 0.8 * direction / np.linalg.norm(direction)
    along = basis[0] / np.linalg.norm(basis[0])  # a close-packed row
    mirror = 2 * np.outer(along, along) - np.eye(2)
    image = cell @ mirror @ np.linalg.inv(cell)
    if np.abs(image - np.round(image)).max() < 1e-3:  # the mirror keeps the superlattice
        found["mirrored"] = atoms.copy()
        origin = atoms.positions[np.flatnonzero(atoms.get_tags() == 1)[0], :2]
        found["mirrored"].positions[adsorbed, :2] = (atoms.positions[adsorbed, :2] - origin) @ mirror + origin
    left_out = [name for name, other in found.items() if name != "same" and distance(atoms, other) <= 2 * TOLERANCE]
    found = {name: other for name, other in found.items() if name not in left_out}
    for other in found.values():
        other.positions[adsorbed] += displaced(len(adsorbed), 0.1, rng)
        other.wrap()
    return found, left_out


def known_answers(
    structures: list[Atoms], rng: np.random.Generator
) -> tuple[dict[str, dict[str, object]], dict[str, int]]:
    """Pairs merged, for each kind of pair and method, with the median processor time of a verdict (ms); and how many
    impostors of each kind were left out."""
    merged: dict[str, dict[str, list[bool]]] = {name: defaultdict(list) for name in METHODS}
    seconds: dict[str, list[float]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    for atoms in structures:
        made, omitted = variants(atoms, rng)
        left_out.update(omitted)
        for kind, other in made.items():
            for name, method in METHODS.items():
                start = time.process_time()
                merged[name][kind].append(method(atoms, other))
                seconds[name].append(time.process_time() - start)
    table = {
        name: {
            **{kind: {"pairs": len(v), "merged": sum(v)} for kind, v in merged[name].items()},
            "median_ms": round(1e3 * float(np.median(seconds[name])), 2),
        }
        for name in METHODS
    }
    return table, dict(left_out)


def raw_set(structures: list[Atoms], most: int, rng: np.random.Generator) -> dict[str, object]:
    """Agreement on at most so many pairs of one composition and cell, and the time of grouping."""
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, atoms in enumerate(structures):
        kinds[(atoms.get_chemical_formula(), str(atoms.cell.array.round(3)))].append(i)
    counts = {"both": 0, "adlayer only": 0, "pymatgen only": 0, "neither": 0}
    gaps: dict[str, list[float]] = defaultdict(list)
    pairs = [pair for members in kinds.values() for pair in itertools.combinations(members, 2)]
    for k in rng.permutation(len(pairs))[:most]:
        i, j = pairs[k]
        ours, theirs = (METHODS[m](structures[i], structures[j]) for m in ("adlayer", "pymatgen, tuned"))
        name = {(1, 1): "both", (1, 0): "adlayer only", (0, 1): "pymatgen only"}.get((ours, theirs), "neither")
        counts[name] += 1
        low, high = potential_energy(structures[i]), potential_energy(structures[j])
        backends = [structures[k].info.get("row", {}).get("calculator") for k in (i, j)]
        if low is not None and high is not None and backends[0] == backends[1]:
            gaps[name].append(abs(high - low))
    start = time.process_time()
    groups = [g for m in kinds.values() for g in unique([structures[i] for i in m], TOLERANCE, energy_tolerance=np.inf)]
    ours_s = time.process_time() - start
    start = time.process_time()
    theirs = 0
    for members in kinds.values():
        batch = [structure(structures[i]) for i in members]
        theirs += len(tuned(batch[0]).group_structures(batch))
    theirs_s = time.process_time() - start
    return {
        "structures": len(structures),
        "pairs": counts,
        "energy_gaps_eV": {
            name: {
                "median": round(float(np.median(v)), 4),
                "largest": round(max(v), 4),
                f"below_{SAME_ENERGY:g}": sum(g < SAME_ENERGY for g in v),
            }
            for name, v in gaps.items()
        },
        "groups": {"adlayer": len(groups), "pymatgen, tuned": theirs},
        "grouping_s": {"adlayer": round(ours_s, 2), "pymatgen, tuned": round(theirs_s, 2)},
        "ratio": round(theirs_s / ours_s, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("databases", nargs="+")
    parser.add_argument("-n", type=int, default=100, help="structures with known answers, of all databases together")
    parser.add_argument("--raw", type=int, default=300, help="structures of each database as they are")
    parser.add_argument("--pairs", type=int, default=1000, help="most pairs of each database")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    sets = {Path(name).name: read_structures(name) for name in arguments.databases}
    chosen = []
    for structures in sets.values():
        drawn = rng.permutation(len(structures))[: arguments.n]
        plain = [structures[i] for i in drawn if describe_symmetry(structures[i]).plane_group == "p1"]
        chosen += plain[: arguments.n // len(sets)]
    known, left_out = known_answers(chosen, rng)
    print(json.dumps(known, indent=1), flush=True)
    result = {
        "versions": {"pymatgen": pymatgen.core.__version__, "adlayer": adlayer.__version__, "numpy": np.__version__},
        "machine": machine(),
        "seed": arguments.seed,
        "n": len(chosen),
        "known_answers": known,
        "left_out": left_out,
        "speed_ratio": {k: round(float(v["median_ms"] / known["adlayer"]["median_ms"]), 1) for k, v in known.items()},
        "raw": {name: raw_set(structures[: arguments.raw], arguments.pairs, rng) for name, structures in sets.items()},
    }
    text = json.dumps(result, indent=1)
    arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""The headline: Ag12O6 in Ag(111) p(4x4), generated, relaxed with SevenNet-0, matched with the Ag6 model.

    python examples/silver_oxide/headline.py default -n 208         # the default preset
    python examples/silver_oxide/headline.py fast -n 208            # a third of the rounds
    python examples/silver_oxide/headline.py unsymmetric -n 208     # the same without symmetries
    python examples/silver_oxide/headline.py plain -n 208           # one start, no refinement, too
    python examples/silver_oxide/headline.py paper -n 208           # the published sampler's settings
    python examples/silver_oxide/headline.py random -n 1640         # random search in the large cell
    python examples/silver_oxide/headline.py summary                # table, json, figures, p4x4.db.xz

Two layers, the lower one fixed, lattice constant 4.167 Å, fmax 0.05 eV/Å, at most 300 steps. Each set has a database of
its own under ``runs/headline``; stop it at any moment and run it again. Ag6 is recognised by lateral topology. Energies
are above the lowest structure known, the Ag6 model (-145.506 eV). Raw energies are SevenNet-0's before relaxation.
"""

import argparse
import json
import lzma
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from scipy.stats import fisher_exact
from setting import about, progress, shipped, substrate

from adlayer.analysis.compare import bootstrap_interval, calls_for_success, success_curve, wilson_interval
from adlayer.analysis.matching import match, unique
from adlayer.analysis.references import reference
from adlayer.energies.relaxing import relax_into_database
from adlayer.energies.search import search
from adlayer.report.figures import energy_distribution, success_figure
from adlayer.structures.store import connect, read_structures, write_row
from adlayer.study.learning import generate_into, sampling_settings
from adlayer.training.checkpoint import model_hash

FORMULA, AG6 = "Ag12O6", "p4x4-O_Ag111-Ag6"
HERE, RUNS = Path(__file__).parent, Path("runs/headline")
SETS: dict[str, dict[str, Any]] = {
    "default": {"preset": "default"},
    "fast": {"preset": "fast"},
    "unsymmetric": {"preset": "default", "symmetry": 0.0},
    "plain": {"preset": "fast", "symmetry": 0.0, "starts": 1, "refine": 0},
    "paper": {"preset": "paper"},
}
WITHIN = 0.1  # eV


def run(name: str, n: int, seed: int, model: str, workers: int | None) -> None:
    """Make one set, or what is missing of it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    surface = substrate("p(4x4)")
    database = connect(RUNS / f"{name}.db")
    if name == "random":
        search(surface, [FORMULA], n, database, seed=seed, workers=workers, progress=progress(name))
        return
    made = generate_into(
        database, model, surface, formula=FORMULA, n=n, seed=seed, workers=workers, progress=progress(name),
        sampling=sampling_settings(**SETS[name]),
    )  # fmt: skip
    relax_into_database(made["structures"], database, "sevennet", workers=workers, progress=progress(f"relax {name}"))


def _value(interval: Any, digits: int = 3) -> dict[str, float]:
    return {k: round(float(getattr(interval, k)), digits) for k in ("value", "low", "high")}


def summarise(name: str) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Numbers of one set; energies above Ag6 (n,) in eV, and force calls (n,)."""
    known = reference(AG6)
    zero = float(known.info["reference_energy"])
    rows = list(connect(RUNS / f"{name}.db").select("stage=search" if name == "random" else "stage=relaxed"))
    every = read_structures(RUNS / f"{name}.db")
    relaxed: list[Atoms] = [a for a in every if a.info["row"]["stage"] in ("search", "relaxed")]
    generated = [a.info["row"] for a in every if a.info["row"]["stage"] == "generated"]
    energies = np.array([a.get_potential_energy() for a in relaxed]) - zero
    sound = np.array([bool(a.info["row"]["converged"]) for a in relaxed])
    matched = [k for k in match(relaxed, known, lateral=True) if sound[k]]
    close = sound & (energies < WITHIN)
    calls = np.array([a.info["row"]["n_force_calls"] for a in relaxed], dtype=float)
    steps = np.array([a.info["row"]["n_steps"] for a in relaxed], dtype=float)
    raw = np.array([row.data["path_energies"][0] for row in rows]) - zero
    generation = float(np.mean([g["cpu_s"] for g in generated])) if generated else 0.0
    relaxation = float(np.mean([a.info["row"]["cpu_s"] for a in relaxed]))
    n = len(relaxed)
    hit = wilson_interval(len(matched), n)
    cost = {
        k: [round(calls_for_success(p, unit)) if p > 0 else None for p in (hit.low, hit.value, hit.high)]
        for k, unit in (("force_calls", float(calls.mean())), ("cpu_s", generation + relaxation))
    }
    result = {
        "n": n,
        "n_converged": int(sound.sum()),
        "ag6": {"k": len(matched), **_value(hit)},
        "within_0.1_eV": {"k": int(close.sum()), **_value(wilson_interval(int(close.sum()), n))},
        "different_within_0.1_eV": len(unique([a for a, c in zip(relaxed, close, strict=True) if c])),
        "finalists_within_0.1_eV": _finalists([a for a, c in zip(relaxed, close, strict=True) if c]),
        "lowest_eV": round(float(energies[sound].min()), 4),
        "lowest_ag6_eV": round(float(energies[matched].min()), 4) if matched else None,
        "median_eV": _value(bootstrap_interval(energies[sound], np.median, seed=0)),
        "raw_median_eV": _value(bootstrap_interval(raw, np.median, seed=0)),
        "steps_median": _value(bootstrap_interval(steps, np.median, seed=0), 1),
        "force_calls_each": round(float(calls.mean()), 1),
        "generation_cpu_s": round(generation, 2),
        "relaxation_cpu_s": round(relaxation, 2),
        "to_find_ag6_with_95_percent": cost,
        "seeds": sorted({int(a.info["row"]["seed"]) for a in relaxed}),
        "samples_of_ag6": [[int(relaxed[k].info["row"][key]) for key in ("seed", "sample")] for k in matched],
    }
    if generated:
        result["model"] = str(generated[0]["model"])
    return result, energies[sound], calls


def _finalists(structures: list[Atoms]) -> dict[str, int]:
    """How many of the structures are those of ``finalists.extxyz``, of the same substrate."""
    known = [a for a in read_structures(HERE / "finalists.extxyz") if structures and len(a) == len(structures[0])]
    counts = {str(a.info["name"]): len(match(structures, a)) for a in known}
    return {name: count for name, count in counts.items() if count}


def summary() -> None:
    """Table on stdout, and the two files."""
    names = [n for n in (*SETS, "random") if (RUNS / f"{n}.db").is_file()]
    if not names:
        sys.exit(f"headline: no set lies under {RUNS}: make one first, such as: headline.py default -n 208")
    found = {name: summarise(name) for name in names}
    what = "Ag12O6 in Ag(111) p(4x4), SevenNet-0, 2 layers; energies above the Ag6 model; 95 % intervals"
    record = about(what) | {"sets": {name: result for name, (result, _, _) in found.items()}}
    if "random" in found:
        record["force calls of random search over ours, at least"] = {
            name: _saved(result, found["random"][0]) for name, (result, _, _) in found.items() if name != "random"
        }
    if {"default", "unsymmetric"} <= set(found):
        both = (found["default"][0], found["unsymmetric"][0])
        record["with against without symmetry, p of Fisher's exact test"] = {
            key: _by_chance(*both, key) for key in ("ag6", "within_0.1_eV")
        }
    (HERE / "headline.json").write_text(json.dumps(record, indent=1) + "\n")
    keys = list(next(iter(record["sets"].values())))  # type: ignore[attr-defined]
    for key in keys:
        print(f"{key:30}", *(f"{json.dumps(result.get(key)):>48}" for result, _, _ in found.values()))
    energy_distribution({n: e for n, (_, e, _) in found.items()}).savefig(HERE / "headline.png", dpi=150)
    _pack(HERE / "p4x4.db.xz")
    budget = 3000.0
    curves = {n: success_curve(_is_ag6(n), c, budget=budget) for n, (_, _, c) in found.items()}
    success_figure(curves).savefig(HERE / "headline-success.png", dpi=150)


def _by_chance(one: dict[str, Any], other: dict[str, Any], key: str) -> float:
    """How likely numbers of hits that differ so much are if chances are the same."""
    table = [[found[key]["k"], found["n"] - found[key]["k"]] for found in (one, other)]
    return round(float(fisher_exact(table).pvalue), 4)


def _saved(ours: dict[str, Any], random: dict[str, Any]) -> dict[str, int] | None:
    """Lower bounds of the ratio of calls to find Ag6 with 95 %: with our rate as measured, and at the low end of it."""
    fewest, likely, most = (ours["to_find_ag6_with_95_percent"]["force_calls"][k] for k in (2, 1, 0))
    bound = random["to_find_ag6_with_95_percent"]["force_calls"][2]  # at the high end of its rate
    return {"value": bound // likely, "low": bound // most, "high": bound // fewest} if likely and most else None


def _pack(target: Path) -> None:
    """The structures of the default preset, relaxed, without their paths, as the database that ships."""
    with tempfile.TemporaryDirectory() as folder:
        packed = connect(Path(folder) / "p4x4.db")
        for atoms in read_structures(RUNS / "default.db", "stage=relaxed"):
            row = atoms.info.pop("row")
            write_row(packed, atoms, {k: v for k, v in row.items() if k not in ("id", "calculator")})
        target.write_bytes(lzma.compress((Path(folder) / "p4x4.db").read_bytes(), preset=9))


def _is_ag6(name: str) -> np.ndarray:
    relaxed = [a for a in read_structures(RUNS / f"{name}.db") if a.info["row"]["stage"] in ("search", "relaxed")]
    hits = np.zeros(len(relaxed), dtype=bool)
    hits[match(relaxed, reference(AG6), lateral=True)] = True
    return hits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*SETS, "random", "summary"])
    parser.add_argument("-n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=None, help="default: the model that ships")
    parser.add_argument("--workers", type=int, default=None)
    arguments = parser.parse_args()
    if arguments.what == "summary":
        summary()
        return
    model = arguments.model or shipped()
    print(f"model {model_hash(model)}", file=sys.stderr)
    run(arguments.what, arguments.n, arguments.seed, model, arguments.workers)


if __name__ == "__main__":
    main()

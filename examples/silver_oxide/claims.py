"""Claims 1 to 7 of the paper with our own models: Ag8O4 in p(4x3), a cell that none of them saw.

    python examples/silver_oxide/claims.py rss          # random search in that cell, 200 relaxations
    python examples/silver_oxide/claims.py models       # eleven denoisers, the same number of steps each
    python examples/silver_oxide/claims.py generate     # claims 1 to 4: 200 structures of each of six models
    python examples/silver_oxide/claims.py guided       # claim 5, with the model that ships
    python examples/silver_oxide/claims.py steps        # claim 6, with the model that ships
    python examples/silver_oxide/claims.py large        # claim 7: cells of 12 to 96 units
    python examples/silver_oxide/claims.py lift         # not the paper's: deeper layers seen raised, or not
    python examples/silver_oxide/claims.py curve        # learning curve: 100, 300, 1000 and all structures
    python examples/silver_oxide/claims.py summary      # claims.json and the figures

Everything lies under ``runs/claims`` and goes on where it was. Models learn from ``runs/silver_oxide.db``
(`make_data.py`) or from ``--data``: denoiser alone, 2500 steps of 16 structures, no condition in generation, as in the
paper. Energies are SevenNet-0's, two layers, the lower one fixed, lattice constant 4.167 Å, fmax 0.05 eV/Å.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import fisher_exact, mannwhitneyu, wilcoxon
from setting import about, median, progress, shipped, substrate

from adlayer.analysis.compare import distribution_distance, wilson_interval
from adlayer.diffusion.sampling import Sampling
from adlayer.energies.relaxing import relax_into_database
from adlayer.energies.search import search
from adlayer.network.model import Architecture
from adlayer.report.figures import energy_distribution, relaxation_figure
from adlayer.structures.placement import closest_contact
from adlayer.structures.store import connect, read_structures, rows_in_order
from adlayer.study.learning import generate_into
from adlayer.training.checkpoint import load_state, save_model, save_state, state_path
from adlayer.training.dataset import build_dataset, parse_selection
from adlayer.training.settings import Settings
from adlayer.training.trainer import train

HERE, RUNS = Path(__file__).parent, Path("runs/claims")
CELL, FORMULA, N = "p(4x3)", "Ag8O4", 200
SELECTIONS = {
    "all": "",
    "low-energy": "dE<0.4",
    "low-oxygen": "dE<0.4, O<0.32",
    "high-oxygen": "dE<0.4, 0.35<O<0.9",
    "low-oxygen-of-all": "O<0.32",
    "high-oxygen-of-all": "0.35<O<0.9",
}
CURVE = {"hundred": "n<101", "three-hundred": "n<301", "thousand": "n<1001"}
STEPS = (10, 50, 500)
GUIDANCE = (0.0, 0.005, 0.02)  # Å²/eV
CELLS = {"p(4x3)": ("Ag8O4", 48), "p(4x6)": ("Ag16O8", 48), "p(8x6)": ("Ag32O16", 32), "p(8x12)": ("Ag64O32", 16)}
PLAIN = Sampling(steps=50, energy=None, relax_steps=0)  # neither condition nor symmetry, learned relaxation, refinement
WORKERS = 1


def model_path(name: str) -> Path:
    return RUNS / f"{name}.safetensors"


def rss() -> None:
    search(substrate(CELL), [FORMULA], N, connect(RUNS / "rss.db"), workers=WORKERS, progress=progress("rss"))


def learn(name: str, data: str) -> None:
    """Train one denoiser, or go on with it."""
    target = model_path(name)
    if target.is_file() and not state_path(target).is_file():
        return
    repeats = ((1, 1),) if name == "unrepeated" else Settings.repeats
    architecture = Architecture(lift=0.0) if name == "flat" else Architecture()
    dataset = build_dataset(rows_in_order(connect(data)), parse_selection((SELECTIONS | CURVE).get(name, "")))
    saved = state_path(target)
    model = train(
        dataset, architecture, Settings(steps=2500, batch=16, force_batch=0, repeats=repeats),
        state=load_state(saved) if saved.is_file() else None,
        on_state=lambda state: save_state(saved, state),
        on_report=lambda _, r: print(name, r.step, r.score_loss, r.validation_score, file=sys.stderr, flush=True),
    )  # fmt: skip
    save_model(target, model)
    saved.unlink()


def make(
    name: str, model: str, n: int, *, cell: str = CELL, formula: str = FORMULA, relax: bool, **changes: Any
) -> None:
    """Generate into a database of this name and relax, or calculate the energy alone."""
    database = connect(RUNS / f"{name}.db")
    settings = replace(PLAIN, **changes)
    made = generate_into(
        database, model, substrate(cell), formula=formula, n=n, workers=1, sampling=settings, progress=progress(name)
    )
    if len(database) > 2 * n:
        raise SystemExit(f"{RUNS / name}.db holds structures made with other settings: remove it")
    relax_into_database(
        made["structures"],
        database,
        "sevennet",
        max_steps=300 if relax else 1,
        workers=WORKERS,
        progress=progress(name),
    )


def raw(name: str) -> np.ndarray:
    """SevenNet-0 energies as generated (n,), eV."""
    rows = sorted(connect(RUNS / f"{name}.db").select(f"stage=relaxed,sample<{N}"), key=lambda row: row.sample)
    return np.array([row.data["path_energies"][0] for row in rows])


def relaxed(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Energies of what converged, eV, and steps of all (n,)."""
    stage = "search" if name == "rss" else "relaxed"
    rows = list(connect(RUNS / f"{name}.db").select(f"stage={stage},sample<{N}"))
    return np.array([r.energy for r in rows if r.converged]), np.array([r.n_steps for r in rows])


def shift(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """How much lower or higher the second sample lies: difference of medians with its interval, and the rank test."""
    rng = np.random.default_rng(0)
    draws = [np.median(rng.choice(b, len(b))) - np.median(rng.choice(a, len(a))) for _ in range(2000)]
    ends = np.quantile(draws, [0.025, 0.975])
    return {
        "difference_of_medians": [round(float(x), 3) for x in (np.median(b) - np.median(a), *ends)],
        "p_value": float(mannwhitneyu(a, b).pvalue),
    }


def broken(name: str) -> tuple[int, int]:
    """Structures as generated in which atoms overlap (closer than 0.7 times the covalent radii), and all."""
    made = read_structures(RUNS / f"{name}.db", "stage=generated")
    contacts = [closest_contact(atoms) for atoms in made]
    return sum(c is not None and c[2] < 0.7 for c in contacts), len(made)


def summary() -> None:
    """All claims from what there is; missing parts are left out."""
    record = about(f"{FORMULA} in Ag(111) {CELL}, SevenNet-0; medians with 95 % intervals, eV; p of Mann and Whitney")
    record["sampling"] = asdict(PLAIN) | {"but in 5 and 6": "guidance and steps as named"}
    there = {path.stem for path in RUNS.glob("*.db")}
    for title, needed, content in (
        ("1-4 models", {"rss", *SELECTIONS}, _models),
        ("5 guidance", {f"guided-{g}" for g in GUIDANCE}, _guided),
        ("6 steps", {f"steps-{s}" for s in STEPS}, _steps),
        ("7 large cells", {f"{m}-{c}" for m in ("all", "unrepeated") for c in CELLS}, _large),
        ("lift", {"flat", "all"}, lambda: {"raw": shift(raw("flat"), raw("all"))}),
        ("learning curve", {*CURVE, "all"}, _curve),
    ):
        if needed <= there:
            record[title] = content()
    (HERE / "claims.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


def _models() -> dict[str, Any]:
    energies = {name: relaxed(name)[0] for name in ("rss", *SELECTIONS)}
    zero = min(e.min() for e in energies.values())
    energies = {name: e - zero for name, e in energies.items()}
    steps = {name: relaxed(name)[1] for name in energies}
    shown = {name: e for name, e in energies.items() if not name.endswith("of-all")}
    energy_distribution(shown, "relaxed energy above the lowest (eV)").savefig(HERE / "claims-models.png", dpi=130)
    relaxation_figure({name: steps[name] for name in shown}).savefig(HERE / "claims-relaxation.png", dpi=130)
    distance = distribution_distance(energies["rss"], energies["all"])
    w = distance.wasserstein
    return {
        "n": {k: len(v) for k, v in energies.items()},
        "relaxed_median": {k: median(v) for k, v in energies.items()},
        "raw_median": {k: median(raw(k) - zero, 2) for k in SELECTIONS},
        "steps_median": {k: median(v, 1) for k, v in steps.items()},
        "1 wasserstein_to_rss": [round(float(x), 3) for x in (w.value, w.low, w.high)],
        "1 kolmogorov_smirnov_p": distance.ks_p_value,
        "2 steps": shift(steps["rss"], steps["all"]),
        "3 low energy": shift(energies["all"], energies["low-energy"]),
        "3 low energy, raw": shift(raw("all"), raw("low-energy")),
        **{
            f"4 {name} against {whole}{what}": shift(before[whole], before[name])
            for what, before in (("", energies), (", raw", {k: raw(k) for k in SELECTIONS}))
            for name, whole in (
                ("low-oxygen", "low-energy"),
                ("high-oxygen", "low-energy"),
                ("high-oxygen", "low-oxygen"),
                ("low-oxygen-of-all", "all"),
                ("high-oxygen-of-all", "all"),
            )
        },
    }


def _paired(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """Change from ``before`` to ``after`` sample by sample."""
    return {"change_median": median(after - before), "wilcoxon_p": float(wilcoxon(after - before).pvalue)}


def _guided() -> dict[str, Any]:
    energies = {f"η = {g} Å²/eV": raw(f"guided-{g}") for g in GUIDANCE}
    zero = min(e.min() for e in energies.values())
    figure = energy_distribution({k: v - zero for k, v in energies.items()}, "raw energy above the lowest (eV)")
    figure.savefig(HERE / "claims-guidance.png", dpi=130)
    plain, *others = energies.items()
    return {
        "n": len(plain[1]),
        "raw_median": {k: median(v - zero) for k, v in energies.items()},
        "against none, same seeds": {k: _paired(plain[1], v) for k, v in others},
    }


def _steps() -> dict[str, Any]:
    first = {s: raw(f"steps-{s}") for s in STEPS}
    last = {s: relaxed(f"steps-{s}")[0] for s in STEPS}
    zero = min(e.min() for e in last.values())
    for what, values in (("raw", first), ("relaxed", last)):
        figure = energy_distribution({f"{s} steps": v - zero for s, v in values.items()}, f"{what} energy (eV)")
        figure.savefig(HERE / f"claims-steps-{what}.png", dpi=130)
    few, many = STEPS[0], STEPS[-1]
    return {
        "n": len(first[few]),
        "raw_median": {s: median(v - zero) for s, v in first.items()},
        "relaxed_median": {s: median(v - zero) for s, v in last.items()},
        f"raw, {few} to 50": shift(first[few], first[50]),
        f"raw, {few} to {many}": shift(first[few], first[many]),
        f"relaxed, {few} to {many}": shift(last[few], last[many]),
    }


def _large() -> dict[str, Any]:
    result: dict[str, Any] = {}
    counts = {cell: sum(int(c) for c in formula[2:].split("O")) for cell, (formula, _) in CELLS.items()}
    bare = {cell: len(substrate(cell)) for cell in CELLS}
    small = raw("all-p(4x3)").min() / counts["p(4x3)"]
    for model in ("all", "unrepeated"):
        for cell in CELLS:
            name = f"{model}-{cell}"
            overlaps, n = broken(name)
            share = wilson_interval(overlaps, n)
            result.setdefault(model, {})[cell] = {
                "atoms": bare[cell] + counts[cell],
                "n": n,
                "overlapping": [overlaps, round(share.low, 3), round(share.high, 3)],
                "raw_median_per_overlayer_atom": median(raw(name) / counts[cell] - small),
            }
    per_atom = {
        (cell, model): raw(f"{model}-{cell}") / counts[cell] - small
        for cell in CELLS
        for model in ("all", "unrepeated")
    }
    shown = {
        f"{cell}, {'repeated' if model == 'all' else 'not'}": values
        for (cell, model), values in per_atom.items()
        if cell in ("p(4x6)", "p(8x6)")
    }
    figure = energy_distribution(shown, "raw energy per overlayer atom, eV")
    figure.savefig(HERE / "claims-repetition.png", dpi=130)
    result["repeated against not"] = {
        cell: shift(per_atom[cell, "unrepeated"], per_atom[cell, "all"]) for cell in list(CELLS)[1:]
    }
    larger = [np.concatenate([per_atom[c, m] for c in list(CELLS)[1:]]) for m in ("unrepeated", "all")]
    result["repeated against not"]["all larger cells"] = shift(*larger)
    overlapping = [[result[m][c]["overlapping"][0] for c in list(CELLS)[1:]] for m in ("unrepeated", "all")]
    n = sum(result["all"][c]["n"] for c in list(CELLS)[1:])
    table = [[sum(k), n - sum(k)] for k in overlapping]
    result["overlapping in larger cells"] = {"not": table[0], "repeated": table[1], "p": fisher_exact(table).pvalue}
    return result


def _curve() -> dict[str, Any]:
    zero = relaxed("rss")[0].min()
    made = {name: raw(name) for name in (*CURVE, "all")}
    return {
        "raw_median": {k: median(v - zero, 2) for k, v in made.items()},
        **{f"{name} to all": shift(made[name], made["all"]) for name in CURVE},
    }


def work(what: str, data: str) -> None:
    RUNS.mkdir(parents=True, exist_ok=True)
    if what == "rss":
        rss()
    elif what == "models":
        for name in (*SELECTIONS, "unrepeated", "flat", *CURVE):
            learn(name, data)
    elif what == "generate":
        for name in SELECTIONS:
            make(name, str(model_path(name)), N, relax=True)
    elif what == "guided":
        for strength in GUIDANCE:
            make(f"guided-{strength}", shipped(), N, relax=False, guidance=strength)
    elif what == "steps":
        for steps in STEPS:
            make(f"steps-{steps}", shipped(), N, relax=True, steps=steps)
    elif what == "large":
        for model in ("all", "unrepeated"):
            for cell, (formula, n) in CELLS.items():
                make(f"{model}-{cell}", str(model_path(model)), n, cell=cell, formula=formula, relax=False)
    elif what in ("lift", "curve"):
        for name in ("flat",) if what == "lift" else CURVE:
            make(name, str(model_path(name)), N, relax=False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what", choices=["rss", "models", "generate", "guided", "steps", "large", "lift", "curve", "summary"]
    )
    parser.add_argument("--data", default="runs/silver_oxide.db")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if chosen.what == "summary":
        summary()
    else:
        work(chosen.what, chosen.data)


if __name__ == "__main__":
    main()

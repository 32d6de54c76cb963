"""Direct against gradient forces of the force field: errors, cost, relaxation, conservation.

    python benchmarks/forces.py --seconds 360 --seeds 1

Three force fields for each seed, trained on the same frames in the same order: forces as the gradient of the energy,
forces read out directly in the same CPU time, and those in the same number of steps. Nothing but the force field is
trained; the loss is :func:`adlayer.training.losses.force_field_loss`, the learning rate falls as in the trainer.
A tenth of the searches is held out, whole: all frames of a relaxation are on one side.

- **Errors**: mean absolute errors on the held-out frames.
- **Cost**: CPU time of a training step (8 frames) and of an evaluation (8 structures, and one).
- **Relaxation** of held-out starts (L-BFGS, ``adlayer.energies.batched``): how many converge, in how many steps, how
  the result looks to the calculator of the data, and the *imbalance* |ΔE + Σ ∫F·dx|, the energy change that the work of
  the forces does not account for (three Gauss points a step).
- **Curl** at relaxed structures: |J − Jᵀ|/|J + Jᵀ| (Frobenius) of J = ∂F/∂x over the overlayer's coordinates, by
  central differences in double precision; 0 for a gradient.
- **Drift** of the total energy in molecular dynamics without a thermostat (ASE's VelocityVerlet, 300 K to start with,
  1 fs), by a straight line.

Intervals are 95 %, by bootstrap over the held-out searches. Models and what was found of them are kept in
``--models``: run again, the script goes on.
"""

import argparse
import copy
import importlib.metadata
import json
import lzma
import math
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet

from adlayer.analysis.compare import bootstrap_interval, wilson_interval
from adlayer.energies import batched
from adlayer.energies.calculators import DEFAULT, identify, make_calculator
from adlayer.network.graph import Batch, to_batch
from adlayer.network.model import Architecture, Card, Model
from adlayer.structures.store import connect, rows_in_order
from adlayer.structures.substrate import fixed_mask
from adlayer.training.checkpoint import load_model, save_model
from adlayer.training.dataset import Frame, Row, composition_baseline
from adlayer.training.losses import collate_frames, force_field_loss

HERE = Path(__file__).parent
DATABASE = HERE.parent / "examples" / "silver_oxide" / "search.db.xz"
BATCH, RATE, AVERAGE, WARMUP, FORCE_LIMIT = 8, 1e-3, 0.999, 100, 30.0
RELAXED, RELAX_STEPS, CURLS, MD_RUNS, MD_STEPS = 24, 200, 12, 4, 1000
GAUSS = ((0.5 - math.sqrt(0.15), 0.5, 0.5 + math.sqrt(0.15)), (5 / 18, 8 / 18, 5 / 18))  # on [0, 1]
MEDIANS = ("imbalance", "true_energy", "true_force")  # a few relaxations end far off
VARIANTS = ("gradient", "direct, same time", "direct, same steps")


@dataclass(frozen=True)
class Search:
    """One relaxation of the data: its structure with constraints, and its frames."""

    atoms: Atoms
    frames: list[Frame]


def read_searches(path: Path) -> list[Search]:
    """Converged relaxations of a packed database, in the order of the search."""
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "search.db"
        database.write_bytes(lzma.decompress(path.read_bytes()))
        return [_search(row) for row in rows_in_order(connect(database)) if row.get("converged")]


def _search(row: Row) -> Search:
    data, cell = row.data, np.asarray(row.cell)[:2, :2]
    path = zip(data["path_positions"], data["path_energies"], data["path_forces"], strict=True)
    frames = [Frame(row.numbers, x.astype(float), row.tags, cell, float(e), f) for x, e, f in path]
    atoms = row.toatoms()
    atoms.info["confinement"] = [0.0, 1.0]  # the force field knows no walls
    return Search(atoms, frames)


def train(frames: Sequence[Frame], direct: bool, seed: int, *, steps: int | None, seconds: float | None) -> Model:
    """A trained force field (its denoiser is not), averaged weights; ``steps`` or CPU ``seconds`` ends it."""
    size = Architecture(features=4, interactions=1, n_radial=4, direct_forces=direct)
    torch.manual_seed(seed)
    model = Model(Card(("Ag", "O"), "exact", 0.02, size))
    field = model.force_field
    field.baseline.copy_(torch.from_numpy(composition_baseline(frames, model.card.numbers)))
    average = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(field.parameters(), lr=RATE)
    start, step, progress = time.process_time(), 0, 0.0
    while progress < 1.0:
        fall = 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * fall
        chosen = np.random.default_rng([seed, step]).integers(len(frames), size=BATCH)
        optimizer.zero_grad(set_to_none=True)
        force_field_loss(model, [frames[k] for k in chosen])[0].backward()
        torch.nn.utils.clip_grad_norm_(field.parameters(), 5.0)
        optimizer.step()
        keep = min(AVERAGE, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.force_field.parameters()), list(field.parameters()), 1.0 - keep)
        step += 1
        elapsed = time.process_time() - start
        progress = step / steps if steps else elapsed / (seconds or 1.0)
        if step % 500 == 0:
            print(f"  step {step}, {elapsed:.0f} CPU s", flush=True)
    average.card = replace(average.card, n_steps=step, training={"cpu_s": elapsed, "seed": seed})
    return average


def errors(model: Model, held: Sequence[Search]) -> dict[str, np.ndarray]:
    """Mean absolute errors over the frames of each search: energy in eV per atom, force components in eV/Å."""
    energy, force = [], []
    for search in held:
        batch, energies, forces = collate_frames(search.frames)
        interaction, predicted = model.force_field(batch)
        difference = model.force_field.total_energy(batch, interaction) - energies
        energy.append(float(difference.abs().mean()) / len(search.atoms))
        force.append(float((predicted - forces).abs().mean()))
    return {"energy": np.array(energy), "force": np.array(force)}


def relaxations(model: Model, held: Sequence[Search]) -> tuple[dict[str, np.ndarray], list[Atoms]]:
    """Relax the first frame of each search: what happened, one number each, and where it ended."""
    starts = [_at(search, 0) for search in held]
    made = [_relax(model, starts[k : k + 8]) for k in range(0, len(starts), 8)]
    return {key: np.concatenate([one[key] for one, _ in made]) for key in made[0][0]}, [a for _, e in made for a in e]


def _at(search: Search, frame: int) -> Atoms:
    atoms = search.atoms.copy()
    atoms.positions = search.frames[frame].positions
    return atoms


def _relax(model: Model, starts: list[Atoms]) -> tuple[dict[str, np.ndarray], list[Atoms]]:
    batch = to_batch(starts)
    fixed = torch.from_numpy(np.concatenate([fixed_mask(a) for a in starts]))

    def call(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        interaction, forces = model.force_field(batch.with_positions(positions.float()))
        return model.force_field.total_energy(batch, interaction), forces.double()

    state = batched.init(call, batch.positions.double(), batch.batch, fixed, 0.05)
    first, work = state.energies, torch.zeros(len(starts), dtype=torch.float64)
    for _ in range(RELAX_STEPS):
        if not bool(state.active.any()):
            break
        before = state
        state = batched.step(call, state, batch.batch, fixed, 0.05)
        move = state.positions - before.positions
        for place, weight in zip(*GAUSS, strict=True):
            forces = call(before.positions + place * move)[1]
            work = work.index_add(0, batch.batch, weight * (forces * move).sum(-1))
    ends = []
    for k, start in enumerate(starts):
        end = start.copy()
        end.positions = state.positions[batch.batch == k].numpy()
        ends.append(end)
    change = state.energies - first
    found = {"converged": state.converged, "steps": state.n_steps, "change": change, "imbalance": (change + work).abs()}
    return {key: value.double().numpy() for key, value in found.items()}, ends


def true_energies(calculator: Any, structures: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Energies (eV) and largest forces on free atoms (eV/Å) in the calculator of the data."""
    energies, largest = [], []
    for atoms in structures:
        atoms = atoms.copy()
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        largest.append(np.linalg.norm(atoms.get_forces(), axis=1).max())
    return np.array(energies), np.array(largest)


def curl(model: Model, held: Sequence[Search], h: float = 1e-3) -> np.ndarray:
    """|J − Jᵀ|/|J + Jᵀ| of each search's relaxed structure; see the module's docstring."""
    field = copy.deepcopy(model.force_field).double()
    ratios = []
    for search in held:
        one = to_batch([_at(search, -1)], torch.float64)
        mobile = one.mobile.nonzero()[:, 0]
        n = 3 * len(mobile)
        moves = torch.zeros(2 * n, len(one.numbers), 3, dtype=torch.float64)
        for column in range(n):
            moves[column, mobile[column // 3], column % 3] = h
        moves[n:] = -moves[:n]
        _, forces = field(_copies(one, moves))
        forces = forces.view(2 * n, -1, 3)[:, mobile].reshape(2 * n, n)
        jacobian = (forces[:n] - forces[n:]) / (2.0 * h)
        ratios.append(float((jacobian - jacobian.T).norm() / (jacobian + jacobian.T).norm()))
    return np.array(ratios)


def _copies(one: Batch, moves: torch.Tensor) -> Batch:
    """Copies of a batch of one, displaced by (K, N, 3)."""
    copies, n = len(moves), len(one.numbers)
    return Batch(
        numbers=one.numbers.repeat(copies),
        positions=(one.positions + moves).reshape(-1, 3),
        tags=one.tags.repeat(copies),
        batch=torch.arange(copies).repeat_interleave(n),
        cell=one.cell.expand(copies, 2, 2),
        window=one.window.expand(copies, 2),
    )


def dynamics(path: Path, held: Sequence[Search], seed: int) -> dict[str, np.ndarray]:
    """Drift of the total energy (meV per free atom and ps) and its scatter about the line (meV per free atom)."""
    calculator = make_calculator(f"model:{path}")
    drifts, scatters = [], []
    for k, search in enumerate(held):
        atoms = _at(search, -1)
        free = len(atoms) - int(fixed_mask(atoms).sum())
        thermalize_momenta(atoms, temperature_K=300, rng=np.random.default_rng([seed, k]))
        atoms.calc = calculator
        run, totals = VelocityVerlet(atoms, timestep=1.0 * units.fs), []
        run.attach(lambda atoms=atoms, totals=totals: totals.append(atoms.get_total_energy()))
        run.run(MD_STEPS)
        picoseconds = np.arange(len(totals)) * 1e-3
        slope, offset = np.polyfit(picoseconds, totals, 1)
        drifts.append(1e3 * slope / free)
        scatters.append(1e3 * np.std(totals - slope * picoseconds - offset) / free)
    return {"drift": np.array(drifts), "scatter": np.array(scatters)}


def cost(models: dict[str, Model], frames: Sequence[Frame], repeats: int = 30) -> dict[str, dict[str, float]]:
    """Medians of the CPU time (ms) of a training step and of evaluations, taken in turns on the same frames."""
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "batch": [], "single": []} for name in models}
    for k in range(repeats):
        chosen = [frames[i] for i in np.random.default_rng([7, k]).integers(len(frames), size=BATCH)]
        whole, one = collate_frames(chosen)[0], collate_frames(chosen[:1])[0]
        for name, model in models.items():
            work = copy.deepcopy(model)
            optimizer = torch.optim.AdamW(work.force_field.parameters(), lr=0.0)

            def step(work: Model = work, optimizer: torch.optim.Optimizer = optimizer) -> None:
                force_field_loss(work.train(), chosen)[0].backward()  # noqa: B023  (called in this turn)
                optimizer.step()

            calls = {
                "step": step,
                "batch": lambda model=model: model.force_field(whole),  # noqa: B023
                "single": lambda model=model: model.force_field(one),  # noqa: B023
            }
            for what, call in calls.items():
                start = time.process_time()
                call()
                times[name][what].append(1e3 * (time.process_time() - start))
    return {name: {what: float(np.median(t)) for what, t in of.items()} for name, of in times.items()}


def judge(path: Path, held: Sequence[Search], seed: int) -> dict[str, Any]:
    """All measurements of one model, each an array over held-out searches, all of them or the first few."""
    model = load_model(path)
    some = held[:RELAXED]
    relaxed, ends = relaxations(model, some)
    calculator = make_calculator(DEFAULT)
    energies, forces = true_energies(calculator, ends)
    ends_of_data = np.array([search.frames[-1].energy for search in some])
    counts = np.array([np.count_nonzero(search.atoms.get_tags() == 0) for search in some])
    values = {
        **errors(model, held),
        **relaxed,
        "true_energy": (energies - ends_of_data) / counts,  # eV per overlayer atom above where the data's paths end
        "true_force": forces,
        "curl": curl(model, held[:CURLS]),
        **dynamics(path, held[:MD_RUNS], seed),
    }
    record = {"n_steps": model.card.n_steps, "cpu_s": model.card.training["cpu_s"], "seed": seed}
    return record | {"values": {key: np.asarray(value, dtype=float).tolist() for key, value in values.items()}}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Value and interval of each quantity, over the held-out searches of all seeds (seeds averaged first)."""
    result = {}
    for key in runs[0]["values"]:
        each = np.mean([run["values"][key] for run in runs], axis=0)
        if key == "converged":
            hits = [x for run in runs for x in run["values"][key]]
            interval = wilson_interval(int(sum(hits)), len(hits))
        else:
            values = np.abs(each) if key == "drift" else each
            interval = bootstrap_interval(values, np.median if key in MEDIANS else np.mean, seed=0)
        result[key] = [interval.value, interval.low, interval.high]
    return result


ROWS = [
    ("energy error, meV/atom", "energy", 1e3),
    ("force error, meV/Å", "force", 1e3),
    ("relaxations converged in 200 steps, %", "converged", 100.0),
    ("steps of a relaxation", "steps", 1.0),
    ("imbalance of a relaxation (median), meV", "imbalance", 1e3),
    ("true energy at its end (median), eV per overlayer atom", "true_energy", 1.0),
    ("true largest force at its end (median), eV/Å", "true_force", 1.0),
    ("curl, relative", "curl", 1.0),
    ("drift of total energy, meV per atom and ps (magnitude)", "drift", 1.0),
    ("scatter of total energy, meV per atom", "scatter", 1.0),
]


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| | " + " | ".join(VARIANTS) + " |", "|---|" + "---|" * len(VARIANTS)]

    def line(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    runs = [[r for r in result["runs"] if r["variant"] == v] for v in VARIANTS]
    line("training steps", [f"{np.mean([r['n_steps'] for r in of]):.0f}" for of in runs])
    line("CPU seconds of training", [f"{np.mean([r['cpu_s'] for r in of]):.0f}" for of in runs])
    for what, key in (("training step of 8", "step"), ("evaluation of 8", "batch"), ("evaluation of one", "single")):
        line(f"{what}, CPU ms", [f"{result['cost'][v.split(',')[0]][key]:.1f}" for v in VARIANTS])
    for name, key, factor in ROWS:
        cells = []
        for v in VARIANTS:
            value, low, high = (factor * x for x in result["summary"][v][key])
            cells.append(f"{value:.3g} [{low:.3g}, {high:.3g}]")
        line(name, cells)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", type=Path, default=DATABASE)
    parser.add_argument("--seconds", type=float, default=360.0, help="CPU seconds of a training")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--models", type=Path, default=Path("build/forces"), help="folder for the trained models")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "forces.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.models.mkdir(parents=True, exist_ok=True)

    searches = read_searches(options.database)
    order = np.random.default_rng(0).permutation(len(searches))
    held = [searches[k] for k in order[: len(searches) // 10]]
    kept = [searches[k] for k in sorted(order[len(searches) // 10 :])]
    frames = [f for search in kept for f in search.frames if np.abs(f.forces).max() < FORCE_LIMIT]
    held = [replace(s, frames=[f for f in s.frames if np.abs(f.forces).max() < FORCE_LIMIT]) for s in held]
    runs, models = [], {}
    for seed in range(options.seeds):
        steps = None
        for variant in VARIANTS:
            path = options.models / f"{variant.replace(', ', '-').replace(' ', '-')}-{options.seconds:.0f}-{seed}"
            if not path.is_file():
                print(f"{variant}, seed {seed}", flush=True)
                fixed = variant == VARIANTS[2]
                ends = {"steps": steps if fixed else None, "seconds": None if fixed else options.seconds}
                save_model(path, train(frames, variant != VARIANTS[0], seed, **ends))
            models[variant.split(",")[0]] = load_model(path)
            steps = steps or models[VARIANTS[0]].card.n_steps
            judged = path.with_suffix(".json")
            if not judged.is_file():
                judged.write_text(json.dumps({"variant": variant} | judge(path, held, seed)))
            runs.append(json.loads(judged.read_text()))
    result = {
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("adlayer", "torch", "ase", "numpy")},
        "machine": f"{platform.machine()}, 1 thread",
        "calculator": identify(DEFAULT),
        "seeds": list(range(options.seeds)),
        "n_searches": len(kept),
        "n_frames": len(frames),
        "n_held_searches": len(held),
        "n_held_frames": sum(len(s.frames) for s in held),
        "cost": cost(models, frames),
        "summary": {v: summary([r for r in runs if r["variant"] == v]) for v in VARIANTS},
        "runs": runs,
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()

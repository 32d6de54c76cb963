"""On a GPU: sampling and training against AGeDi on the same card, time per structure against atoms, memory.

``python benchmarks/gpu.py`` measures all within about ``--seconds`` and writes piece by piece into ``gpu.json``.
It needs no network. The peer is imported from the folder in ``ADLAYER_PEER`` (filled by ``pip install --target``), or
from wherever this Python finds it; without it our side alone is measured, and a line says so.

Times are wall seconds between synchronised moments, medians after one round of warming up. Sampling is timed with many
and with few steps: the difference counts, so that what is done once for a batch counts on neither side.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import resources
from pathlib import Path
from threading import Timer
from typing import Any

import torch
from ours import architecture, dataset_of, prepare_sampling, training_rounds
from results import machine, record, spread
from scaling import SIZES, cell_of, exponent
from turns import Worker, WorkerError
from work import LATTICE, Network, Work, structures, write_work
from worker import peak_gpu_memory

from adlayer.diffusion.generation import generate
from adlayer.diffusion.kernels import ExactKernel
from adlayer.diffusion.sampling import PRESETS
from adlayer.network.graph import Batch, to_batch
from adlayer.network.inference import FastDenoiser, fast_denoiser, fast_force_field
from adlayer.network.model import Card, Model
from adlayer.structures.substrate import build_substrate
from adlayer.training.checkpoint import load_model
from adlayer.training.gradients import NetworksOnGpu
from adlayer.training.settings import Settings

HERE = Path(__file__).parent
OUTPUT = HERE / "gpu.json"
TOGETHER = 25_600  # atoms at once where the card shall be full
TARGETS = {"sample": 1 / 10, "train": 1 / 5}
REPEATS, SHORT_REPEATS, LEAST = 9, 20, 5


@dataclass(frozen=True)
class Size:
    """How much is measured: structures sampled, trained on and searched for at once, steps of both sides, cells."""

    sample: int = 512
    train: tuple[int, ...] = (32, 256)
    steps: int = 204
    peer_steps: int = 64
    warm: int = 80  # training steps before any is timed
    train_steps: int = 100
    peer_train_steps: int = 20
    cells: tuple[int, ...] = SIZES
    together: int = TOGETHER
    search: int = 512


SMALL = Size(
    sample=4, train=(2,), steps=16, peer_steps=8, warm=2, train_steps=2, peer_train_steps=2, cells=SIZES[:2],
    together=200, search=2,
)  # fmt: skip


class Run:
    """One run of the benchmark: its device, its end, where results go."""

    def __init__(self, device: str, size: Size, seconds: float, output: Path) -> None:
        self.device, self.size, self.output = device, size, output
        self.end = time.monotonic() + seconds
        self.skipped: list[str] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    def works(self) -> list[Work]:
        """What is measured on both sides, the most important first."""
        n, base = self.size.sample, 4  # by then ours replays a graph
        cell, small = ("p(4x4)", "Ag12O6"), ("p(3x3)", "Ag6O4")
        sampling = Work("sampling", "sample", *cell, n, self.size.steps, False, 0.1, self.device, base)
        guided = Work("sampling_guided", "sample", *cell, n, self.size.steps // 2, True, 0.1, self.device, base)
        trained = [
            Work(f"train_{name}_{batch}", "train", *small, batch, self.size.train_steps, force_field, 0.2, self.device)
            for batch in reversed(self.size.train)
            for name, force_field in (("denoiser", False), ("force_field", True))
        ]
        return [sampling, *trained, guided]

    def write(self, section: str, content: dict[str, Any], ratios: dict[str, float] | None = None) -> None:
        """Put a section and its ratios into the file."""
        record(section, content, ratios, self.output)

    def synchronise(self) -> None:
        """Wait for what is under way on the GPU."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def timed(self, work: Callable[[], Any], seconds: float = 2.0) -> dict[str, Any]:
        """Wall seconds of some work done again and again, at least :data:`LEAST` times, after doing it once."""
        work()
        costs: list[float] = []
        while len(costs) < LEAST or (sum(costs) < seconds and len(costs) < 20):
            self.synchronise()
            start = time.perf_counter()
            work()
            self.synchronise()
            costs.append(time.perf_counter() - start)
        return spread(costs)

    def enough(self, seconds: float, most: int) -> Callable[[int], bool]:
        """Whether so many rounds are enough, after so many seconds from the first question on.

        At least :data:`LEAST` are wanted, but one will do where there is no time for another.
        """
        start: float | None = None

        def enough(n: int) -> bool:
            nonlocal start
            start = time.monotonic() if start is None else start
            spent = time.monotonic() - start
            return (n >= LEAST and (n >= most or spent >= seconds)) or (n > 0 and self.left < 1.5 * spent / n)

        return enough

    def peak(self) -> float | None:
        """Largest memory on the GPU since last asked, MiB."""
        return peak_gpu_memory(torch.cuda) if self.device == "cuda" else None


def model_of(run: Run, name: str) -> Model:
    """An untrained model of the published size (``same``), or our ``default``."""
    torch.manual_seed(0)
    card = Card(("Ag", "O"), "exact", 0.02, architecture(vars(Network()), name))
    return Model(card).to(run.device).eval()


def call(model: Model, batch: Batch) -> Callable[[], Any]:
    """One evaluation of the denoiser as sampling does it, neighbours included."""
    denoiser = fast_denoiser(model.denoiser)
    sigma = batch.positions.new_ones(batch.n_structures)
    conditions = batch.positions.new_full((batch.n_structures, model.card.n_conditions), float("nan"))

    def evaluate() -> None:
        with torch.no_grad():
            denoiser(batch, sigma, conditions)

    for _ in range(3):  # the third is a graph's, where there are graphs
        evaluate()
    return evaluate


def unit_cost(work: Work, cost: dict[str, Any]) -> float:
    """Wall seconds per structure and step of sampling, set-up taken off, or per step of training."""
    if work.kind == "train":
        return float(cost["wall_s"] / cost["units"])
    steps = cost["units"] / work.batch
    return float((cost["wall_s"] - cost["base_s"]) / (steps - work.base_steps) / work.batch)


def side(work: Work, costs: list[dict[str, Any]]) -> dict[str, Any]:
    """What is written of one side from its rounds."""
    last = costs[-1]
    content = {
        "unit": "structure and step" if work.kind == "sample" else "step",
        "steps": last["units"] / (work.batch if work.kind == "sample" else 1),
        "wall_s": spread([unit_cost(work, c) for c in costs]),
        "with_setup_s": spread([c["wall_s"] / c["units"] for c in costs]),
        **{key: last[key] for key in ("atoms", "edges", "network_s") if key in last},
    }
    if "gpu_mib" in last:
        content["gpu_mib"] = max(c["gpu_mib"] for c in costs)
        content["gpu_mib_per_structure"] = content["gpu_mib"] / work.batch
    return content


def rounds(run: Run, once: Callable[[int], dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    """Costs of some work, seed by seed, after a round of warming up: as many as fit, at least :data:`LEAST`.

    One round alone is given where there is no time for more.

    Raises
    ------
    WorkerError
        If it breaks off before that.
    """
    once(0)
    costs: list[dict[str, Any]] = []
    enough = run.enough(seconds, REPEATS)
    while not enough(len(costs)):
        costs.append(once(len(costs) + 1))
    return costs


def our_side(run: Run, work: Work, folder: Path, name: str, seconds: float) -> dict[str, Any]:
    """Ours in this process."""
    gc.collect()
    run.peak()  # counts from here
    content = asdict(work) | {"network": asdict(Network()), "window": list(structures(work, 1)[0].info["confinement"])}
    if work.kind == "sample":
        return side(work, rounds(run, prepare_sampling(content, folder, name), seconds))
    return side(work, training_rounds(content, folder, name, run.size.warm, run.enough(seconds, SHORT_REPEATS)))


def start_peer(run: Run, work: Work, folder: Path) -> Worker:
    """The peer's side of a work in a process of its own, ready to begin.

    Raises
    ------
    WorkerError
        If it cannot be imported.
    """
    work = replace(work, steps=run.size.peer_steps if work.kind == "sample" else run.size.peer_train_steps)
    write_work(work, folder)
    path = os.pathsep.join(filter(None, [os.environ.get("ADLAYER_PEER"), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(HERE / "peer_agedi.py"), str(folder)]
    return Worker(command, folder / "peer.log", pin=False, environment={"PYTHONPATH": path})


def peer_side(run: Run, work: Work, worker: Worker, seconds: float) -> dict[str, Any]:
    """The peer's, in its process, which is ended when the time is up.

    Raises
    ------
    WorkerError
        If it breaks off.
    """
    watchdog = Timer(max(run.left, 1.0), worker.process.kill)
    watchdog.start()
    try:
        return side(work, rounds(run, worker.run, seconds)) | {"versions": worker.facts["versions"]}
    finally:
        watchdog.cancel()
        worker.__exit__()


def compare(run: Run, work: Work, seconds: float, peer: Future[Worker], log: Path) -> None:
    """One work on all sides, written as they come."""
    sides: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    content: dict[str, Any] = {"batch": work.batch, "target": work.target, "sides": sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_work(work, folder)
        for size in ("same", "default"):
            sides[size] = our_side(run, work, folder, size, seconds)
            run.write(f"works.{work.name}", content)
    try:
        sides["peer"] = peer_side(run, work, peer.result(), seconds)
    except WorkerError as error:
        content["peer_skipped"] = str(error).split(" (see ")[0]
        content["peer_log"] = log.read_text().splitlines()[-20:] if log.is_file() else []
        print(f"{work.name}: peer skipped: {content['peer_skipped']}", flush=True)
    if "peer" in sides:
        for size, suffix in (("same", ""), ("default", "_default")):
            ratios[f"{work.name}{suffix}"] = sides[size]["wall_s"]["median"] / sides["peer"]["wall_s"]["median"]
    run.write(f"works.{work.name}", content, ratios)
    shown = ", ".join(f"{name} {1e3 * s['wall_s']['median']:.4g} ms" for name, s in sides.items())
    memory = ", ".join(f"{name} {s['gpu_mib_per_structure']:.1f}" for name, s in sides.items() if "gpu_mib" in s)
    told = f"; ours/peer {ratios[work.name]:.4f} (at most {work.target:.2f})" if ratios else ""
    print(
        f"{work.name} of {work.batch}: {shown} per {sides['same']['unit']}{told}"
        + (f"; MiB per structure: {memory}" if memory else ""),
        flush=True,
    )


def parts(run: Run, name: str) -> dict[str, Any]:
    """Where a sampling step goes: the denoiser with its neighbours, those alone, and forces, of a whole batch."""
    model = model_of(run, name)
    some = structures(Work("", "sample", "p(4x4)", "Ag12O6", 1, 1, False, 0.0), min(run.size.sample, 64))
    batch = to_batch((some * (run.size.sample // len(some) + 1))[: run.size.sample], device=run.device)
    denoiser, force_field = fast_denoiser(model.denoiser), fast_force_field(model.force_field)
    edges = model.denoiser.edges(batch)
    content: dict[str, Any] = {"structures": batch.n_structures, "edges": len(edges.sender) / batch.n_structures}
    run.peak()
    content["denoiser_s"] = run.timed(call(model, batch))
    content["denoiser_mib"] = run.peak()
    if isinstance(denoiser, FastDenoiser):
        kernels = denoiser.network.kernels
        content["neighbours_s"] = run.timed(lambda: kernels.pairs(batch, None, among_substrate=False))
    content["forces_s"] = run.timed(lambda: force_field(batch))
    content["forces_mib"] = run.peak()
    return content


def training_parts(run: Run, name: str) -> dict[str, Any]:
    """Where a training step goes, by the number of structures: drawing, bringing to the card, gradients."""
    return {str(batch): step_parts(run, model_of(run, name).train(), batch) for batch in run.size.train}


def step_parts(run: Run, model: Model, batch: int) -> dict[str, Any]:
    """Parts of a step of so many structures and frames."""
    made = structures(Work("", "train", "p(3x3)", "Ag6O4", batch, 1, True, 0.0), 2 * batch)
    settings = Settings(steps=1, batch=batch, force_batch=batch, repeats=((1, 1),))
    with ThreadPoolExecutor(1) as helper:
        networks = NetworksOnGpu(model, dataset_of(made), ExactKernel(), settings, helper, workers=0)
        graphs, (examples, frames) = networks.graphs, networks.preparation(0)
        assert examples is not None
        assert frames is not None
        one, other = graphs.inputs(model.denoiser, examples), graphs.inputs(model.force_field, frames)
        works: dict[str, Callable[[], Any]] = {
            "drawing_s": lambda: networks.preparation(0),
            "to_the_card_s": lambda: graphs.inputs(model.denoiser, examples),
            "denoiser_s": lambda: graphs.denoiser(one),
            "force_field_s": lambda: graphs.force_field(other),
            "both_s": lambda: (graphs.denoiser(one), graphs.force_field(other)),
        }
        return {part: run.timed(work, 1.0) for part, work in works.items()}


def search(run: Run, name: str) -> dict[str, Any]:
    """The whole search of a preset with the model that ships: structures a second, and the median learned energy."""
    model = load_model(str(resources.files("adlayer") / "data" / "ag-o.safetensors"), run.device)
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    n, settings = run.size.search, PRESETS[name]
    generate(model, substrate, formula="Ag12O6", n=min(n, 4), seed=1, settings=replace(settings, refine=1))  # warms up
    run.synchronise()
    start = time.perf_counter()
    made = generate(model, substrate, formula="Ag12O6", n=n, seed=0, settings=settings).structures
    seconds = time.perf_counter() - start
    energies = sorted(atoms.get_potential_energy() for atoms in made)
    return {"n": n, "s_per_structure": seconds / n, "median_eV": energies[n // 2], "lowest_eV": energies[0]}


def curve(run: Run, name: str) -> dict[str, Any]:
    """One denoiser call against the atoms of the cell: one structure alone, and as many as fill the card."""
    model = model_of(run, name)
    points = []
    for n in run.size.cells:
        atoms = cell_of(n)
        copies = max(1, run.size.together // len(atoms))
        run.peak()
        alone = run.timed(call(model, to_batch([atoms], device=run.device)), 1.0)
        memory = run.peak()
        full = run.timed(call(model, to_batch([atoms] * copies, device=run.device)), 1.0)
        together = {"copies": copies, "s_per_structure": full["median"] / copies}
        points.append({"atoms": len(atoms), "alone_s": alone, "alone_mib": memory} | together)
    sizes = [p["atoms"] for p in points]
    return {
        "points": points,
        "exponent_alone": exponent(sizes, [p["alone_s"]["median"] for p in points]),
        "exponent_together": exponent(sizes, [p["s_per_structure"] for p in points]),
    }


def alone(run: Run, section: str, part: Callable[[Run, str], dict[str, Any]], name: str) -> None:
    """A part that the peer has no share in, written at once."""
    run.write(section, part(run, name))


def facts(run: Run) -> dict[str, Any]:
    """The card and what drives it."""
    content = {"device": run.device, "torch": torch.__version__, "cuda": torch.version.cuda, "host": machine()}
    if run.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        content |= {
            "name": card.name,
            "memory_mib": card.total_memory / 2**20,
            "processors": card.multi_processor_count,
        }
    return content


def main() -> None:
    """Measure what the time allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="a few small structures, to see that all runs")
    parser.add_argument("--seconds", type=float, default=300.0, help="about how long, in all")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu: PyTorch finds no GPU here; --device cpu --small shows that the script runs")
    size = SMALL if arguments.small else Size()
    run = Run(arguments.device, size, arguments.seconds, arguments.output)
    run.write("card", facts(run))
    works = run.works()
    share = arguments.seconds / (4 * (len(works) + 2))  # of one side of one work
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name) / work.name for work in works]
        for folder in folders:
            folder.mkdir()
        with ThreadPoolExecutor(len(works)) as starting:  # imports take most of a peer's time
            peers = [
                starting.submit(start_peer, run, work, folder) for work, folder in zip(works, folders, strict=True)
            ]
        sides = [
            partial(compare, run, work, share, peer, folder / "peer.log")
            for work, peer, folder in zip(works, peers, folders, strict=True)
        ]
        measure(run, works, sides)


def measure(run: Run, works: list[Work], sides: list[Callable[[], None]]) -> None:
    """All parts in turn while there is time, the most important first."""
    tasks: dict[str, Callable[[], None]] = {works[0].name: sides[0]}
    for section, part in (("parts", parts), ("scaling", curve)):
        for name in ("same", "default"):
            tasks[f"{section}.{name}"] = partial(alone, run, f"{section}.{name}", part, name)
    tasks |= {work.name: side for work, side in zip(works[1:], sides[1:], strict=True)}
    tasks |= {
        f"training_parts.{name}": partial(alone, run, f"training_parts.{name}", training_parts, name)
        for name in ("same", "default")
    }
    tasks |= {f"search.{name}": partial(alone, run, f"search.{name}", search, name) for name in ("fast", "default")}
    for name, task in tasks.items():
        if run.left <= 0.0:
            run.skipped.append(name)
            continue
        before = time.monotonic()
        task()
        print(f"{name}: {time.monotonic() - before:.0f} s, {max(run.left, 0.0):.0f} s left", flush=True)
    if run.skipped:
        print(f"no time left for {', '.join(run.skipped)}: give more --seconds")
    run.write("done", {"skipped": run.skipped, "left_s": run.left})


if __name__ == "__main__":
    main()

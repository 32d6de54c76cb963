"""The peer's side, run in its own environment: AGeDi with SchNetPack's PaiNN, through its public functions.

Its settings are its defaults; the substrate is masked and the overlayer confined, as in its publication. A training
step is loss, gradient and optimiser on one batch made beforehand: neither its data loader nor Lightning's loop counts.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import agedi
import torch
from agedi import ForcefieldGuidanceConfig
from ase.io import read
from torch_geometric.data import Batch
from worker import Stopwatch, peak_gpu_memory, peak_memory, serve

IMPORTED = peak_memory()


def _diffusion(work: dict[str, Any]) -> Any:
    network = work["network"]
    return agedi.create_diffusion(
        model="PaiNN",
        cutoff=network["cutoff"],
        feature_size=network["features"],
        n_blocks=network["interactions"],
        n_rbf=network["n_radial"],
        noisers=("ConfinedCellPositions",),
        confinement=tuple(work["window"]),
        force_field=work["force_field"],
        device=work["device"],
    )


def _finish(work: dict[str, Any]) -> None:
    """Wait for what is under way on the GPU."""
    if work["device"] == "cuda":
        torch.cuda.synchronize()


def _gpu_memory(work: dict[str, Any]) -> dict[str, float]:
    return {"gpu_mib": peak_gpu_memory(torch.cuda)} if work["device"] == "cuda" else {}


def _network(diffusion: Any, work: dict[str, Any], made: list[Any], repeats: int = 5) -> float:
    """Wall seconds of one call of the score network on all structures together, with their edges given."""
    batch = Batch.from_data_list(made).to(work["device"])
    batch.update_graph()
    diffusion.sample_time(batch)
    costs = []
    with torch.no_grad():
        for _ in range(repeats + 1):  # the first warms up
            there = batch.clone()
            _finish(work)
            start = time.perf_counter()
            diffusion.score_model(there)
            _finish(work)
            costs.append(time.perf_counter() - start)
    return min(costs[1:])


def _sampling(work: dict[str, Any], folder: Path) -> Any:
    substrate = read(folder / "substrate.extxyz")
    diffusion = _diffusion(work)
    guidance = ForcefieldGuidanceConfig(guidance=1e-4 if work["force_field"] else 0.0)

    def sampled(seed: int, steps: int) -> tuple[dict[str, Any], list[Any]]:
        torch.manual_seed(seed)
        watch = Stopwatch()
        made = agedi.sample(
            diffusion,
            n_samples=work["batch"],
            batch_size=work["batch"],
            formula=work["formula"],
            template=substrate,
            confinement=tuple(work["window"]),
            steps=steps,
            ff_guidance=guidance,
            as_atoms=False,
        )
        _finish(work)
        return watch.cost(work["batch"] * steps), made

    def run(seed: int) -> dict[str, Any]:
        cost, made = sampled(seed, work["steps"])
        cost |= _gpu_memory(work)
        if work["base_steps"]:
            cost["base_s"] = sampled(seed, work["base_steps"])[0]["wall_s"]
            cost["network_s"] = _network(diffusion, work, made)
        for graph in made:
            graph.update_graph()
        edges = sum(graph.edge_index.shape[1] for graph in made) / len(made)
        return cost | {"atoms": len(made[0].pos), "edges": edges}

    return run


def _training(work: dict[str, Any], folder: Path) -> Any:
    data = read(folder / "structures.extxyz", ":")
    dataset = agedi.create_dataset(
        data,
        cutoff=work["network"]["cutoff"],
        batch_size=work["batch"],
        train_split=0.5,
        val_split=0.5,
        mask="MaskFixed",
        confinement=tuple(work["window"]),
    )
    batch = next(iter(dataset.train_dataloader())).to(work["device"])
    diffusion = _diffusion(work)
    diffusion.setup()
    diffusion.train()
    optimizer = diffusion.configure_optimizers()["optimizer"]

    def step() -> None:
        optimizer.zero_grad()
        diffusion.loss(batch.clone(), torch.tensor(0))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 10.0)
        optimizer.step()

    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        step()
        _finish(work)
        watch = Stopwatch()
        for _ in range(work["steps"]):
            step()
        _finish(work)
        n = work["batch"]
        facts = {"atoms": len(batch.pos) / n, "edges": batch.edge_index.shape[1] / n}
        return watch.cost(work["steps"]) | facts | _gpu_memory(work)

    return run


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    work = json.loads((folder / "work.json").read_text())
    prepare = _sampling if work["kind"] == "sample" else _training
    versions = {name: version(name) for name in ("agedi", "schnetpack", "torch")}
    lists = find_spec("nvalchemiops")  # its neighbour lists on the GPU, where installed; else matscipy's on the host
    versions["nvalchemi-toolkit-ops"] = version("nvalchemi-toolkit-ops") if lists else "none"
    serve(versions, IMPORTED, lambda: prepare(work, folder))


if __name__ == "__main__":
    main()

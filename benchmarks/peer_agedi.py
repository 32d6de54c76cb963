"""The peer's side, run in its own environment: AGeDi with SchNetPack's PaiNN, through its public functions.

Its settings are its defaults; the substrate is masked and the overlayer confined, as in its publication. A training
step is loss, gradient and optimiser on one batch made beforehand: neither its data loader nor Lightning's loop counts.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import agedi
import torch
from agedi import ForcefieldGuidanceConfig
from ase.io import read
from worker import Stopwatch, peak_memory, serve

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
        device="cpu",
    )


def _sampling(work: dict[str, Any], folder: Path) -> Any:
    substrate = read(folder / "substrate.extxyz")
    diffusion = _diffusion(work)
    guidance = ForcefieldGuidanceConfig(guidance=1e-4 if work["force_field"] else 0.0)

    def run(seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        watch = Stopwatch()
        made = agedi.sample(
            diffusion,
            n_samples=work["batch"],
            batch_size=work["batch"],
            formula=work["formula"],
            template=substrate,
            confinement=tuple(work["window"]),
            steps=work["steps"],
            ff_guidance=guidance,
            as_atoms=False,
        )
        cost = watch.cost(work["batch"] * work["steps"])
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
    batch = next(iter(dataset.train_dataloader()))
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
        watch = Stopwatch()
        for _ in range(work["steps"]):
            step()
        n = work["batch"]
        return watch.cost(work["steps"]) | {"atoms": len(batch.pos) / n, "edges": batch.edge_index.shape[1] / n}

    return run


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    work = json.loads((folder / "work.json").read_text())
    prepare = _sampling if work["kind"] == "sample" else _training
    versions = {name: version(name) for name in ("agedi", "schnetpack", "torch")}
    serve(versions, IMPORTED, lambda: prepare(work, folder))


if __name__ == "__main__":
    main()

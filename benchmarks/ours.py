"""Our side, through the package's public functions.

``same`` is a network of the peer's size, with forces read out directly as the peer's are; ``default`` is what
:class:`adlayer.network.model.Architecture` says. A training step counts from batch drawing to averaged weights.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from worker import Stopwatch, peak_gpu_memory, peak_memory, serve

from adlayer.diffusion.generation import generate
from adlayer.diffusion.sampling import Sampling
from adlayer.network.graph import to_batch
from adlayer.network.model import Architecture, Card, Model
from adlayer.network.neighbours import neighbours
from adlayer.training.dataset import Dataset, Example, Frame
from adlayer.training.settings import Settings
from adlayer.training.trainer import train

IMPORTED = peak_memory()


def architecture(network: dict[str, Any], size: str) -> Architecture:
    """The architecture of a variant, ``same`` or ``default``."""
    if size == "default":
        return Architecture()
    return Architecture(**network, **{f"force_{k}": v for k, v in network.items()}, direct_forces=True)


def _gpu_memory(work: dict[str, Any]) -> dict[str, float]:
    return {"gpu_mib": peak_gpu_memory(torch.cuda)} if work["device"] == "cuda" else {}


def prepare_sampling(work: dict[str, Any], folder: Path, size: str) -> Any:
    substrate = read(folder / "substrate.extxyz")
    substrate.info["confinement"] = work["window"]
    torch.manual_seed(0)
    card = Card(("Ag", "O"), "exact", 0.02, architecture(work["network"], size), heights=(1.0, 2.0, 5.0, 6.0))
    model = Model(card).to(work["device"]).eval()
    settings = Sampling(
        steps=work["steps"],
        solver="euler",
        published_levels=True,
        energy=None,
        guidance=1e-4 if work["force_field"] else 0.0,
        guidance_gate=None,
        relax_steps=0,
    )

    def sampled(seed: int, settings: Sampling) -> tuple[dict[str, Any], list[Atoms]]:
        watch = Stopwatch()
        made = generate(model, substrate, formula=work["formula"], n=work["batch"], seed=seed, settings=settings)
        return watch.cost(made.n_network_calls), made.structures  # which are on the host: nothing is under way

    def run(seed: int) -> dict[str, Any]:
        cost, made = sampled(seed, settings)
        if work["base_steps"]:
            cost["base_s"] = sampled(seed, replace(settings, steps=work["base_steps"]))[0]["wall_s"]
        edges = neighbours(to_batch(made[:16]), work["network"]["cutoff"])
        facts = {"atoms": len(made[0]), "edges": len(edges.sender) / len(made[:16])}
        return cost | facts | _gpu_memory(work)

    return run


def dataset_of(structures: list[Any]) -> Dataset:
    """Structures as training data: all but the last to train on."""
    examples, frames = [], []
    for atoms in structures:
        mobile, cell = atoms.get_tags() == 0, atoms.cell.array[:2, :2]
        top = float(atoms.positions[atoms.get_tags() == 1, 2].mean())
        examples.append(Example(atoms.numbers, atoms.positions, mobile, cell, top, 0.0))
        forces = atoms.get_forces(apply_constraint=False)
        frames.append(Frame(atoms.numbers, atoms.positions, mobile, cell, atoms.get_potential_energy(), forces))
    return Dataset(examples[:-1], examples[-1:], frames[:-1], frames[-1:], {}, {}, "benchmark")


Progress = Callable[[int, float, float], None]


class _EnoughError(Exception):
    """Ends a training."""


def _trainer(work: dict[str, Any], folder: Path, size: str) -> tuple[Callable[[int, Progress], None], dict[str, Any]]:
    """What trains with a seed until its progress ends it, and atoms and edges of a structure."""
    structures = read(folder / "structures.extxyz", ":")
    for atoms in structures:
        atoms.info["confinement"] = work["window"]
    edges, n = neighbours(to_batch(structures), work["network"]["cutoff"]), work["batch"]
    settings = Settings(steps=10**6, batch=n, force_batch=n if work["force_field"] else 0, repeats=((1, 1),))
    data, shape = dataset_of(structures), architecture(work["network"], size)

    def trained(seed: int, progress: Progress) -> None:
        with contextlib.suppress(_EnoughError):
            given = replace(settings, seed=seed)
            train(data, shape, given, device=work["device"], every=np.inf, progress=progress)

    return trained, {"atoms": len(structures[0]), "edges": len(edges.sender) / len(structures)}


def prepare_training(work: dict[str, Any], folder: Path, size: str) -> Any:
    trained, facts = _trainer(work, folder, size)

    def run(seed: int) -> dict[str, Any]:
        watch, cost = Stopwatch(), dict[str, Any]()

        def note(step: int, fraction: float, loss: float) -> None:
            nonlocal watch, cost
            if step == 1:  # warms up
                watch = Stopwatch()
            elif step == 1 + work["steps"]:
                cost = watch.cost(work["steps"])
                raise _EnoughError

        trained(seed, note)
        return cost | facts

    return run


def training_rounds(
    work: dict[str, Any], folder: Path, size: str, warm: int, enough: Callable[[int], bool]
) -> list[dict[str, Any]]:
    """Costs of one training on a GPU, round by round of ``work["steps"]``, until they are ``enough`` in number.

    While it warms up, graphs are recorded for batches of new sizes, and workers begin.
    """
    watch, costs = Stopwatch(), list[dict[str, Any]]()

    def note(step: int, fraction: float, loss: float) -> None:
        nonlocal watch
        if step >= warm and (step - warm) % work["steps"] == 0:
            if work["device"] == "cuda":
                torch.cuda.synchronize()
            if step > warm:
                costs.append(watch.cost(work["steps"]))
            if enough(len(costs)):
                raise _EnoughError
            watch = Stopwatch()

    trained, facts = _trainer(work, folder, size)
    trained(1, note)
    return [cost | facts | _gpu_memory(work) for cost in costs]


def main() -> None:
    torch.set_num_threads(1)
    folder, size = Path(sys.argv[1]), sys.argv[2]
    work = json.loads((folder / "work.json").read_text())
    prepare = prepare_sampling if work["kind"] == "sample" else prepare_training
    versions = {name: version(name) for name in ("adlayer", "torch", "vesin")}
    serve(versions, IMPORTED, lambda: prepare(work, folder, size))


if __name__ == "__main__":
    main()

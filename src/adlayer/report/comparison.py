"""Sets of structures side by side: numbers with their intervals, and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.compare import (
    bootstrap_interval,
    distribution_distance,
    relaxation_cost,
    success_curve,
    wilson_interval,
)
from adlayer.analysis.records import potential_energy, row_values
from adlayer.errors import UserError
from adlayer.structures.store import backend_text, check_writable, write_text

Sets = Mapping[str, Sequence[Atoms]]


def energies_above_common_lowest(sets: Sets) -> dict[str, np.ndarray]:
    """Energies (eV) of each set above the lowest of the same composition in any of them.

    Raises
    ------
    UserError
        If a structure has no finite energy, or the energies come from different calculators or settings.
    """
    lowest: dict[str, float] = {}
    energies: dict[str, list[tuple[str, float]]] = {name: [] for name in sets}
    backends = set()
    for name, structures in sets.items():
        for index, atoms in enumerate(structures):
            energy = potential_energy(atoms)
            if energy is None or not np.isfinite(energy):
                raise UserError(f"structure {index} of {name} has no energy: relax the structures first")
            formula = atoms.get_chemical_formula()
            lowest[formula] = min(energy, lowest.get(formula, np.inf))
            energies[name].append((formula, energy))
            if (backend := atoms.info.get("row", {}).get("calculator")) is not None:
                backends.add(backend_text(backend))
    if len(backends) > 1:
        raise UserError(f"energies of {' and '.join(sorted(backends))} do not compare: relax all with one calculator")
    return {name: np.array([e - lowest[f] for f, e in pairs]) for name, pairs in energies.items()}


def compare_sets(sets: Sets, *, within: float = 0.1, seed: int = 0) -> dict[str, Any]:
    """Numbers as JSON values: ``sets`` by name, and ``distances`` of the first from each other one.

    Arguments and errors as in :func:`adlayer.study.compare`; intervals are 95 %.
    """
    above = energies_above_common_lowest(sets)
    described = {
        name: {
            "energy_above_lowest": asdict(bootstrap_interval(energies, np.median, seed)),
            "success": asdict(wilson_interval(int((energies <= within).sum()), len(energies))),
            **asdict(relaxation_cost(sets[name], seed)),
        }
        for name, energies in above.items()
    }
    first, *others = above
    distances = {f"{first} – {name}": asdict(distribution_distance(above[first], above[name], seed)) for name in others}
    return {"within": within, "sets": described, "distances": distances}


def write_comparison(
    directory: str | os.PathLike[str], sets: Sets, result: Mapping[str, Any], *, within: float = 0.1, seed: int = 0
) -> list[Path]:
    """Write ``comparison.json`` and every figure for which the structures have data; returns the paths."""
    from adlayer.report.figures import energy_distribution, relaxation_figure, success_figure
    from adlayer.report.pictures import save_picture

    folder = Path(directory)
    paths = [folder / "comparison.json"]
    check_writable(paths[0])
    write_text(paths[0], json.dumps(result, indent=1) + "\n")
    above = energies_above_common_lowest(sets)
    figures = {"energies.png": energy_distribution(above)}
    if steps := {name: values for name, s in sets.items() if len(values := row_values(s, "n_steps"))}:
        figures["relaxation.png"] = relaxation_figure(steps, seed=seed)
    costs = {name: values for name, s in sets.items() if len(values := row_values(s, "n_force_calls")) == len(s)}
    if costs and all(calls.sum() > 0 for calls in costs.values()):
        curves = {name: success_curve(above[name] <= within, calls) for name, calls in costs.items()}
        figures["success.png"] = success_figure(curves)
    for name, figure in figures.items():
        save_picture(figure, folder / name, dpi=150)
        paths.append(folder / name)
    return paths

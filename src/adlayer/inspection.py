"""What a file is and whether it is sound: structure files, databases, models."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.records import potential_energy
from adlayer.errors import UserError
from adlayer.structures.placement import closest_contact, overlayer_formula
from adlayer.structures.store import backend_text, is_database, read_structures
from adlayer.structures.substrate import has_plane_cell

OVERLAP = 0.5
"""Distance over the sum of covalent radii below which two atoms overlap."""
MODEL_SUFFIX = ".safetensors"


def inspect(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a structure file, database or model holds, as JSON values, with ``kind``, ``problems`` and ``sound``.

    Raises
    ------
    UserError
        If the file is missing, unreadable or empty.
    """
    if not is_database(path) and not Path(path).is_file():
        raise UserError(f"there is no file {path}: give a structure file, a database or a model")
    if Path(path).suffix == MODEL_SUFFIX:
        return {"file": str(path), **inspect_model(path)}
    kind = "database" if is_database(path) else "structures"
    return {"file": str(path), "kind": kind, **inspect_structures(read_structures(path, broken=True))}


def inspect_model(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The header of a model file; that it loads shows that it is whole."""
    from adlayer.training.checkpoint import load_model, model_hash, read_header

    header = read_header(path)
    problems = []
    weights = list(load_model(path).parameters())
    if not all(bool(parameter.isfinite().all()) for parameter in weights):
        problems.append("some weights are not finite")
    return {
        "kind": "model",
        **header,
        "hash": model_hash(path),
        "n_parameters": sum(parameter.numel() for parameter in weights),
        "problems": problems,
        "sound": not problems,
    }


def structure_problems(atoms: Atoms) -> list[str]:
    """What makes a structure unusable, in words; empty if it is sound."""
    problems = []
    if not np.isfinite(atoms.positions).all():
        return ["positions that are not finite"]
    if not np.any(atoms.get_tags() >= 1):
        problems.append("no substrate (tags 1, 2, …)")
    if window_of(atoms) is None:
        problems.append("no confinement window")
    if not has_plane_cell(atoms):
        problems.append("no cell in the plane")
    elif (contact := closest_contact(atoms)) is not None and contact[2] < OVERLAP:
        problems.append("overlapping atoms")
    energy = potential_energy(atoms)
    if energy is not None and not math.isfinite(energy):
        problems.append("an energy that is not finite")
    return problems


def window_of(atoms: Atoms) -> tuple[float, float] | None:
    """The confinement window (Å), ``None`` if there is none that makes sense."""
    try:
        low, high = (float(z) for z in atoms.info["confinement"])
    except (KeyError, TypeError, ValueError):
        return None
    return (low, high) if low < high else None


def outside_window(atoms: Atoms, tolerance: float = 1e-3) -> bool:
    """Whether an overlayer atom lies outside the window by more than ``tolerance`` (Å)."""
    window = window_of(atoms)
    z = atoms.positions[atoms.get_tags() == 0, 2]
    return window is not None and bool(np.any((z < window[0] - tolerance) | (z > window[1] + tolerance)))


def inspect_structures(structures: Sequence[Atoms]) -> dict[str, Any]:
    """Counts by stage, overlayer and backend, ranges of energies, and problems of a set of structures.

    Energies (eV) are given lowest and highest by overlayer and backend, since others cannot be compared. Overlayer
    atoms outside the window are counted, but no fault: relaxations may move them there.
    """
    rows = [atoms.info.get("row", {}) for atoms in structures]
    backends = [_backend(atoms) for atoms in structures]
    formulas = [overlayer_formula(atoms) or "bare" for atoms in structures]
    energies: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for atoms, backend, formula in zip(structures, backends, formulas, strict=True):
        energy = potential_energy(atoms)
        if energy is not None and math.isfinite(energy):
            low, high = energies[backend].get(formula, (energy, energy))
            energies[backend][formula] = [min(low, energy), max(high, energy)]
    faults = Counter(problem for atoms in structures for problem in structure_problems(atoms))
    problems = [f"{count} of {len(structures)} have {problem}" for problem, count in faults.items()]
    return {
        "n": len(structures),
        "n_atoms": sorted({len(atoms) for atoms in structures}),
        "stages": dict(Counter(str(row.get("stage", "none")) for row in rows)),
        "overlayers": dict(Counter(formulas)),
        "calculators": dict(Counter(backends)),
        "n_converged": sum(bool(row.get("converged")) for row in rows),
        "n_force_calls": int(sum(row.get("n_force_calls", 0) for row in rows)),
        "energies": dict(energies),
        "n_outside_window": sum(outside_window(atoms) for atoms in structures),
        "problems": problems,
        "sound": not problems,
    }


def _backend(atoms: Atoms) -> str:
    """Name, version and settings of the backend of the energy in one line."""
    if potential_energy(atoms) is None:
        return "none"
    record = atoms.info.get("row", {}).get("calculator")
    if not isinstance(record, dict):
        return "unknown"
    return backend_text(record)

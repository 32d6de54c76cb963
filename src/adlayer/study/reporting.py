"""The ``report`` of a study, a database or a structure file."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer import __version__
from adlayer.structures.store import read_structures
from adlayer.study.stages import load_reference


def backend_of(atoms: Atoms) -> str:
    """The backend of a structure's energy with its version and settings, as text; ``"none"`` without one."""
    record = atoms.info.get("row", {}).get("calculator")
    if record is None:
        return "none" if atoms.calc is None else str(getattr(atoms.calc, "name", "unknown"))
    settings = ", ".join(f"{k}={v}" for k, v in record.get("settings", {}).items())
    return " ".join(filter(None, [record["name"], record.get("version", ""), settings]))


def find_reference(name: str, judged: Atoms) -> Atoms:
    """A shipped reference by name, or the first structure of a file.

    It carries an energy only where that compares with those of the structures to be judged, for the same atoms in the
    same cell: its own from the same backend, or ``info["reference_energy"]`` (eV) from the same kind of backend.
    """
    known = load_reference(name)
    own, backend, known.calc = known.calc, backend_of(known), None
    source = str(known.info.get("reference_energy_source", "none")).split()[0]
    same_atoms = np.array_equal(np.sort(known.numbers), np.sort(judged.numbers))
    areas = [abs(np.linalg.det(a.cell.array[:2, :2])) for a in (known, judged)]
    comparable = same_atoms and abs(areas[0] / areas[1] - 1.0) < 1e-3
    if comparable and own is not None and backend == backend_of(judged):
        known.calc = own
    elif comparable and backend_of(judged).startswith(source):
        known.calc = SinglePointCalculator(known, energy=float(known.info["reference_energy"]))
    return known


def provenance(**more: Any) -> dict[str, str]:
    """Versions and machine, for the foot of a report, and whatever else is named."""
    versions = ", ".join(f"{p} {metadata.version(p)}" for p in ("ase", "torch", "numpy"))
    machine = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return {
        "adlayer": __version__,
        **{k.replace("_", " "): str(v) for k, v in more.items()},
        "libraries": versions,
        "machine": machine,
    }


def report(
    source: str, directory: str, *, reference_name: str | None = None, title: str | None = None
) -> dict[str, Any]:
    """The page of a study's folder (``study.db`` in it), a database or a structure file.

    Relaxed rows are reported, or generated ones if none is relaxed, with the random search of the same formula and
    cell beside them.
    """
    from adlayer.analysis.matching import match
    from adlayer.report.page import write_report

    path = Path(source)
    structures = read_structures(path / "study.db" if path.is_dir() else source)
    if (path / "random.db").is_file():
        structures += read_structures(path / "random.db")

    def stage(name: str) -> list[Atoms]:
        return [a for a in structures if a.info.get("row", {}).get("stage") == name]

    main = stage("relaxed") or stage("generated")
    groups: dict[str, list[Atoms]] = {"generated": main} if main else {"structures": structures}
    if main and (same := [a for a in stage("search") if sorted(a.numbers) == sorted(main[0].numbers)]):
        groups["random search"] = same
    first = next(iter(groups.values()))
    known = None if reference_name is None else find_reference(reference_name, first[0])
    matched = [] if known is None else match(first, known, lateral=True)
    page = write_report(
        directory,
        title=title or path.stem,
        groups=groups,
        reference=known,
        matched=matched,
        provenance=provenance(energies=backend_of(first[0]), source=source),
    )
    return {"n": len(first), "n_matched": len(matched), "report": str(page), "n_force_calls": 0, "outputs": [str(page)]}

"""The ``report`` of a study, a database or a structure file."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from ase import Atoms

from adlayer import __version__
from adlayer.structures.store import read_structures


def find_reference(name: str) -> Atoms:
    """A shipped reference by name, or the first structure of a file; its ``reference_energy`` (eV) as its energy."""
    from ase.calculators.singlepoint import SinglePointCalculator

    from adlayer.analysis.references import reference, reference_names

    atoms = reference(name) if name in reference_names() else read_structures(name)[0]
    if atoms.calc is None and "reference_energy" in atoms.info:
        atoms.calc = SinglePointCalculator(atoms, energy=float(atoms.info["reference_energy"]))
    return atoms


def _backend(atoms: Atoms) -> str:
    """Record of the backend of a structure's energy, as text."""
    if atoms.calc is None:
        return "none"
    parameters = dict(getattr(atoms.calc, "parameters", {}) or {})
    return ", ".join(
        [str(getattr(atoms.calc, "name", "unknown")), *(f"{k} {v}" for k, v in sorted(parameters.items()))]
    )


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

    def stage(name: str) -> list[Atoms]:
        return [a for a in structures if a.info.get("row", {}).get("stage") == name]

    main = stage("relaxed") or stage("generated")
    groups: dict[str, list[Atoms]] = {"generated": main} if main else {"structures": structures}
    if main and (same := [a for a in stage("search") if sorted(a.numbers) == sorted(main[0].numbers)]):
        groups["random search"] = same
    known = None if reference_name is None else find_reference(reference_name)
    first = next(iter(groups.values()))
    matched = [] if known is None else match(first, known, lateral=True)
    page = write_report(
        directory,
        title=title or path.stem,
        groups=groups,
        reference=known,
        matched=matched,
        provenance=provenance(energies=_backend(first[0]), source=source),
    )
    return {"n": len(first), "n_matched": len(matched), "report": str(page), "n_force_calls": 0, "outputs": [str(page)]}

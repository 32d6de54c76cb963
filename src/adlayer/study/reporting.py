"""The ``report`` of a study, a database or a structure file: everything the analysis has to say, on one page.

:func:`judge` is the one way to a page, for ``report`` as for ``run`` and ``demo``: structures whose relaxation did not
converge are set aside (unless there are no others), duplicates joined, symmetries and motifs found, the known structure
looked for, tunnelling images and diffraction patterns drawn of the lowest structures, and, where more than one phase of
one calculator is there, the phase diagram computed. What was found of each structure is written besides as a table and
as a database.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from matplotlib.figure import Figure

from adlayer import __version__
from adlayer.analysis.records import potential_energy
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.store import backend_text, connect, read_structures
from adlayer.study.classifying import write_table
from adlayer.study.stages import FilePath, load_reference

REFERENCES = "references.db"
TABLES = ("table.csv", "table.db")
"""All structures judged as rows of :func:`adlayer.analysis.table.describe`, duplicates too, beside the page."""


@dataclass(frozen=True)
class Judgement:
    """What was found about the first of the sets judged.

    ``structures`` are those that count; ``duplicates`` are groups of indices into them, the lowest first in each and
    among groups; ``matched`` are the indices of the known structure, ``zero`` its energy or the lowest, eV (``None``
    without energies); ``page`` is the report.
    """

    structures: list[Atoms]
    duplicates: list[list[int]]
    matched: list[int]
    zero: float | None
    page: Path


def backend_of(atoms: Atoms) -> str:
    """The backend of a structure's energy with its version and settings, as text; ``"none"`` without one."""
    record = atoms.info.get("row", {}).get("calculator")
    if record is None:
        return "none" if atoms.calc is None else str(getattr(atoms.calc, "name", "unknown"))
    return backend_text(record)


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


def _finished(structures: Sequence[Atoms]) -> list[Atoms]:
    """Without those that are known not to have converged, unless there are no others."""
    converged = [a for a in structures if a.info.get("row", {}).get("converged", True)]
    return converged or list(structures)


def _duplicates(records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Groups of the same structure, the lowest first in each and among groups."""
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        lowest = record["duplicate_of"]
        groups.setdefault(index if lowest is None else lowest, []).append(index)

    def height(index: int) -> float:
        energy = records[index]["energy"]
        return float("inf") if energy is None else energy

    return sorted((sorted(group, key=height) for group in groups.values()), key=lambda group: height(group[0]))


def _stm(atoms: Atoms) -> Figure:
    from adlayer.analysis.stm import stm_image
    from adlayer.report.stm import stm_figure

    return stm_figure([stm_image(atoms, resolution=0.2)])


def _leed(atoms: Atoms) -> Figure:
    from adlayer.report.leed import leed_figure, typeset_wood
    from adlayer.study.superstructures import leed

    found = leed(atoms)
    return leed_figure(found["pattern"], typeset_wood(found["wood"]) if found["wood"] else "")


def _phase_figures(
    structures: Sequence[Atoms], directory: Path, progress: Progress
) -> tuple[dict[str, tuple[Figure, str]], str]:
    """Phase diagrams, and in words what they rest on or why there are none.

    References are computed in the calculator of the energies and kept in ``references.db`` of the directory.
    """
    from adlayer.analysis.energetics import lowest_of_each
    from adlayer.report.phases import phase_figure, pressure_figure
    from adlayer.study.thermodynamics import backend_specification, study_phases

    records = [a.info.get("row", {}).get("calculator") for a in structures]
    if None in records or len({json.dumps(record, sort_keys=True) for record in records}) > 1:
        return {}, "none: needs energies of one known calculator"
    if any(not (a.get_tags() == 0).any() for a in structures) or len(lowest_of_each(structures)) < 2:
        return {}, "none: needs more than one phase"
    try:
        specification = backend_specification(records[0], None)
        study = study_phases(structures, specification, connect(directory / REFERENCES), progress=progress)
    except UserError as error:
        return {}, f"none: {error}"
    band = f"The band is ±{study.diagram.uncertainty:g} eV for each overlayer atom."
    figures = {
        "Phase diagram": (phase_figure(study.diagram), f"Formation energies against the chemical potential. {band}"),
        "Stable phases": (pressure_figure(study.diagram), "Against temperature and pressure of the gas."),
    }
    return figures, "references " + ", ".join(f"{e} {mu:.3f} eV" for e, mu in study.potentials.items())


def judge(
    sets: Mapping[str, Sequence[Atoms]],
    directory: FilePath,
    *,
    title: str,
    reference: str | None = None,
    phases: bool = True,
    notes: Mapping[str, str] | None = None,
    progress: Progress = silent,
) -> Judgement:
    """Analyse sets of structures and write the page, with :data:`TABLES` beside it.

    Parameters
    ----------
    sets
        Name and structures of each set, the one reported on first.
    directory
        Of the page, see :func:`adlayer.report.page.write_report`.
    title
        Heading of the page.
    reference
        Known structure: file, or name of a reference of the package.
    phases
        Whether to compute a phase diagram where the structures allow one; its references take some minutes once.
    notes
        Further provenance.
    progress
        Called with the structures analysed and their number.

    Raises
    ------
    UserError
        If there are no structures, the reference is unknown or the page cannot be written.
    """
    from adlayer.analysis.matching import match
    from adlayer.analysis.table import describe
    from adlayer.report.page import write_report

    finished = {name: _finished(structures) for name, structures in sets.items()}
    pooled = [atoms for structures in finished.values() for atoms in structures]
    first = next(iter(finished.values()), [])
    if not first:
        raise UserError("there are no structures to report on: generate or search some first")
    known = None if reference is None else find_reference(reference, first[0])
    matched = [] if known is None else match(first, known, lateral=True)
    records = describe(pooled, progress=progress)
    duplicates = _duplicates(records)
    figures, resting = _phase_figures(pooled, Path(directory), progress) if phases else ({}, "")
    page = write_report(
        directory,
        title=title,
        groups=finished,
        reference=known,
        matched=matched,
        duplicates=duplicates,
        records=records,
        imagers={"STM": _stm, "LEED": _leed},
        phases=figures,
        tables=TABLES,
        provenance=provenance(**(notes or {}), **({"phase_diagram": resting} if resting else {})),
    )
    for name in TABLES:
        write_table(Path(directory) / name, pooled, records)
    energies = [energy for atoms in first if (energy := potential_energy(atoms)) is not None]
    zero = potential_energy(known) if known is not None else None
    own = [group for whole in duplicates if (group := [i for i in whole if i < len(first)])]
    return Judgement(first, own, matched, min(energies, default=None) if zero is None else zero, page)


def _sets_of(source: FilePath) -> dict[str, list[Atoms]]:
    """Relaxed rows of a study or database, or generated ones if none is relaxed, with the random search of the same
    composition beside them; all structures of anything else."""
    path = Path(source)
    structures = read_structures(path / "study.db" if path.is_dir() else source)
    if (path / "random.db").is_file():
        structures += read_structures(path / "random.db")

    def stage(name: str) -> list[Atoms]:
        return [a for a in structures if a.info.get("row", {}).get("stage") == name]

    main = stage("relaxed") or stage("generated")
    if not main:
        return {"random search" if len(stage("search")) == len(structures) else "structures": structures}
    same = [a for a in stage("search") if sorted(a.numbers) == sorted(main[0].numbers)]
    return {"generated": main, **({"random search": same} if same else {})}


def _named_sets(sources: Sequence[FilePath]) -> dict[str, list[Atoms]]:
    """The sets of one source, or those of several under the names of their files."""
    if len(sources) == 1:
        return _sets_of(sources[0])
    stems = [Path(source).name.split(".")[0] for source in sources]
    names = stems if len(set(stems)) == len(stems) else [str(source) for source in sources]
    sets = {}
    for name, source in zip(names, sources, strict=True):
        found = _sets_of(source)
        sets.update({name if len(found) == 1 else f"{name}: {part}": structures for part, structures in found.items()})
    return sets


def report(
    sources: FilePath | Sequence[FilePath],
    directory: FilePath,
    *,
    reference_name: str | None = None,
    title: str | None = None,
    phases: bool = True,
    progress: Progress = silent,
) -> dict[str, Any]:
    """The page of a study's folder (``study.db`` in it), databases or structure files; see :func:`judge`.

    The first source is the one reported on; the page is called after it unless a title is given.
    """
    every = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    sets = _named_sets(every)
    first = next(iter(sets.values()))
    found = judge(
        sets,
        directory,
        title=title or Path(every[0]).name.split(".")[0],
        reference=reference_name,
        phases=phases,
        notes={"energies": backend_of(first[0]), "source": ", ".join(map(str, every))},
        progress=progress,
    )
    return {
        "n": len(found.structures),
        "n_unique": len(found.duplicates),
        "n_matched": len(found.matched),
        "report": str(found.page),
        "n_force_calls": 0,
        "outputs": [str(found.page), *(str(found.page.parent / name) for name in TABLES)],
    }

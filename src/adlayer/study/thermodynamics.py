"""The ``phases`` verb: relaxed structures of one or several databases, their references, the phase diagram."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers
from ase.db.core import Database

from adlayer.analysis.energetics import (
    SurfacePhase,
    area,
    bare_substrate,
    check_one_substrate,
    compound_limit,
    lowest_of_each,
    overlayer_counts,
    surface_phase,
)
from adlayer.analysis.gas import DIATOMICS, MBAR, gas_temperature
from adlayer.analysis.phases import UNCERTAINTY, PhaseDiagram, Stability, phase_diagram
from adlayer.analysis.registry import ideal_substrate, surface_basis
from adlayer.energies.calculators import identify
from adlayer.energies.reservoirs import reference_energy, reservoir
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.store import (
    backend_record,
    backend_text,
    check_selection,
    check_writable,
    connect,
    read_structures,
    write_csv,
    write_structures,
    write_text,
)
from adlayer.structures.superstructure import wood_notation
from adlayer.study.stages import FilePath

_CORNERS = (1e-10 * MBAR, MBAR, 1e3 * MBAR)  # Pa at which tables give temperatures: ultra-high vacuum, 1 mbar, 1 bar


@dataclass(frozen=True)
class PhaseStudy:
    """A phase diagram with the lowest structure of each phase and the references it rests on.

    ``structures`` are in the order of ``diagram.phases`` after the first, which is the bare substrate; ``potentials``
    are μ° in eV per atom, ``given`` those of them that the user gave.
    """

    diagram: PhaseDiagram
    structures: list[Atoms]
    potentials: dict[str, float]
    given: list[str]
    calculator: dict[str, Any]


def parse_references(texts: Sequence[str]) -> dict[str, float]:
    """Energies per atom from texts such as ``"O=-4.9"``."""
    energies = {}
    for text in texts:
        element, _, value = (part.strip() for part in text.partition("="))
        try:
            energy = float(value)
        except ValueError:
            energy = math.nan
        if element not in atomic_numbers or not math.isfinite(energy):
            raise UserError(f'reference "{text}" is not understood: write it like "O=-4.9", in eV per atom')
        energies[element] = energy
    return energies


def finished_structures(sources: Sequence[FilePath], select: str = "") -> list[Atoms]:
    """The structures of all sources whose relaxation converged, each with its backend's record.

    Raises
    ------
    UserError
        If there are none, or their energies come from different calculators or settings.
    """
    check_selection(select, sources)
    every = [atoms for source in sources for atoms in read_structures(source, select)]
    kept = [
        a for a in every if a.calc is not None and a.info.get("row", {}).get("converged") and (a.get_tags() == 0).any()
    ]
    if not kept:
        raise UserError(f"{', '.join(map(str, sources))} hold no relaxed structure: run adlayer relax or search first")
    known = [a.info["row"].get("calculator") for a in kept]
    records = {"an unknown calculator" if record is None else backend_text(record) for record in known}
    if len(records) > 1 or None in known:
        raise UserError(f"energies of {' and '.join(sorted(records))} do not compare: relax all with one calculator")
    return kept


def backend_specification(record: Mapping[str, Any], given: str | None) -> str:
    """The backend's specification, found from its record or checked against it."""
    settings = "&".join(
        f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in record.get("settings", {}).items()
    )
    if given is None and record["name"] == "model":
        raise UserError("the energies are of a trained model: name its file with --calculator model:PATH")
    specification = given or record["name"] + (f"?{settings}" if settings else "")
    own = backend_record(identify(specification))
    if own != dict(record):
        raise UserError(
            f"the energies are of {backend_text(dict(record))}, but calculator {specification} here is "
            f"{backend_text(own)}: relax the structures with it first"
        )
    return specification


def cell_label(atoms: Atoms) -> str:
    """Wood's notation of a structure's cell, or its matrix."""
    basis = surface_basis(atoms, ideal_substrate(atoms))
    matrix = np.rint(atoms.cell.array[:2, :2] @ np.linalg.inv(basis)).astype(int)
    return wood_notation(matrix, basis) or "({} {} | {} {})".format(*matrix.ravel())


def _cell(atoms: Atoms) -> str:
    return str(atoms.cell.array.round(4).tolist())


def _roughness(slab: Atoms) -> float:
    """Largest spread of heights within a layer, Å."""
    layers = slab.get_tags()
    return max(float(np.ptp(slab.positions[layers == t, 2])) for t in set(layers))


def bare_substrates(structures: Sequence[Atoms]) -> dict[str, Atoms]:
    """The bare substrate of each cell, from the structure that shows it flattest."""
    slabs = sorted(map(bare_substrate, structures), key=_roughness, reverse=True)
    return {_cell(slab): slab for slab in slabs}  # of each cell the last stays


def _reference_energies(
    starts: Sequence[Atoms], calculator: str, database: Database, progress: Progress
) -> list[float]:
    progress(0, len(starts))
    energies = []
    for atoms in starts:
        energies.append(reference_energy(atoms, calculator, database))
        progress(len(energies), len(starts))
    return energies


def study_phases(
    structures: Sequence[Atoms],
    calculator: str,
    database: Database,
    *,
    varied: str = "O",
    uncertainty: float = UNCERTAINTY,
    references: Mapping[str, float] | None = None,
    bulk: Sequence[Atoms] = (),
    progress: Progress = silent,
) -> PhaseStudy:
    """Phase diagram of relaxed structures; references are computed, or taken from the database of earlier ones.

    Arguments, errors: as in :func:`phases`.
    """
    check_one_substrate(structures)
    lowest = lowest_of_each(structures)
    elements = sorted({e for a in lowest for e in overlayer_counts(a)} | {e for b in bulk for e in b.symbols})
    given = {e: energy for e, energy in (references or {}).items() if e in elements}
    if varied not in elements:
        raise UserError(f"no overlayer holds {varied}: vary one of {', '.join(elements)}")
    for crystal in bulk:
        if not crystal.pbc.all():
            raise UserError(f"bulk {crystal.get_chemical_formula()} is not periodic in all directions: give a crystal")

    pure = {e: reservoir(e) for e in elements if e not in given}
    slabs = bare_substrates(lowest)
    energies = iter(_reference_energies([*pure.values(), *slabs.values(), *bulk], calculator, database, progress))
    potentials = {**{e: next(energies) / len(atoms) for e, atoms in pure.items()}, **given}
    clean = {cell: next(energies) for cell in slabs}
    limits = {
        crystal.symbols.formula.reduce()[0].format("metal"): compound_limit(
            next(energies), crystal.symbols.formula.count(), potentials, varied
        )
        for crystal in bulk
    }
    zero = SurfacePhase("clean " + str(lowest[0].info.get("substrate", "surface")), 0.0, {}, area(lowest[0]))
    found = [surface_phase(a, clean[_cell(a)], potentials, f"{overlayer_formula(a)} {cell_label(a)}") for a in lowest]
    diagram = phase_diagram([zero, *found], varied, uncertainty=uncertainty, limits=limits)
    return PhaseStudy(diagram, lowest, potentials, sorted(given), backend_record(identify(calculator)))


def _ends(interval: tuple[float, float] | None) -> list[float | None]:
    """Both ends of an interval, ``None`` for infinite ones and for no interval."""
    return [None, None] if interval is None else [x if math.isfinite(x) else None for x in interval]


def _temperature(element: str, potential: float | None, pressure: float) -> float | None:
    if potential is None or element not in DIATOMICS:
        return None
    temperature = gas_temperature(element, potential, pressure)
    return round(temperature, 1) if math.isfinite(temperature) else None


def phase_record(s: Stability, element: str) -> dict[str, Any]:
    """What is known of one phase, as JSON values.

    Energies in eV, areas in Å²; ``temperatures``, K, are those up to which it is stable in 10⁻¹⁰ mbar, 1 mbar and
    1 bar of the gas, ``None`` where there is no such border.
    """
    phase = s.phase
    ends = _ends(s.stable)
    return {
        "label": phase.label,
        "counts": dict(phase.counts),
        "area": phase.area,
        "formation_energy": phase.formation,
        "gamma": phase.formation / phase.area,
        "atoms_per_area": phase.excess(element),
        "adsorption_energy": phase.adsorption_energy(element) if phase.counts.get(element) else None,
        "is_stable": s.stable is not None,
        "stable": ends,
        "may_be_stable": s.possible is not None,
        "possible": _ends(s.possible),
        "temperatures": [_temperature(element, ends[0], p) for p in _CORNERS],
    }


def write_table(path: FilePath, diagram: PhaseDiagram) -> None:
    """Every phase as a row of a CSV table; units stand in the column names."""
    elements = sorted({e for phase in diagram.phases for e in phase.counts})
    rows = []
    for s in diagram.stabilities:
        known = phase_record(s, diagram.element)
        rows.append(
            {
                "phase": known["label"],
                **{f"n_{e}": s.phase.counts.get(e, 0) for e in elements},
                "area_A2": known["area"],
                "formation_eV": known["formation_energy"],
                "gamma0_eV_per_A2": known["gamma"],
                f"{diagram.element}_per_A2": known["atoms_per_area"],
                f"adsorption_eV_per_{diagram.element}": known["adsorption_energy"],
                "is_stable": known["is_stable"],
                **dict(zip(("stable_from_eV", "stable_to_eV"), known["stable"], strict=True)),
                "may_be_stable": known["may_be_stable"],
                **dict(zip(("possible_from_eV", "possible_to_eV"), known["possible"], strict=True)),
                **dict(zip(("T_UHV_K", "T_1mbar_K", "T_1bar_K"), known["temperatures"], strict=True)),
            }
        )
    check_writable(path)
    rounded = [[round(v, 6) if isinstance(v, float) else v for v in row.values()] for row in rows]
    write_csv(path, rows[0], rounded)


def _summary(study: PhaseStudy) -> dict[str, Any]:
    diagram = study.diagram
    return {
        "element": diagram.element,
        "calculator": study.calculator,
        "references": study.potentials,
        "references_given": study.given,
        "uncertainty": diagram.uncertainty,
        "limits": dict(diagram.limits),
        "n_phases": len(diagram.phases),
        "stable": [phase_record(s, diagram.element) for s in diagram.stable],
        "transitions": [
            {"below": t.below.label, "above": t.above.label, "potential": t.potential, "uncertainty": t.uncertainty}
            for t in diagram.transitions
        ],
    }


def _write_numbers(folder: Path, study: PhaseStudy) -> list[Path]:
    """Table, JSON and the structures of all phases."""
    paths = [folder / "phases.csv", folder / "phases.json", folder / "phases.extxyz"]
    write_table(paths[0], study.diagram)
    write_text(paths[1], json.dumps(_summary(study), indent=1) + "\n")
    for atoms, phase in zip(study.structures, study.diagram.phases[1:], strict=True):
        atoms.info["phase"] = phase.label
    write_structures(paths[2], study.structures)
    return paths


def _write_figures(
    folder: Path,
    diagram: PhaseDiagram,
    temperatures: tuple[float, float],
    pressures: tuple[float, float],
    mark: Sequence[str],
) -> list[Path]:
    """The figures as PNG, PDF and SVG."""
    from adlayer.report.phases import phase_figure, pressure_figure
    from adlayer.report.pictures import save_picture

    figures = {"phases": phase_figure(diagram, mark=mark)}
    if diagram.element in DIATOMICS:
        figures["phases-pT"] = pressure_figure(diagram, temperatures, pressures)
    paths = []
    for name, figure in figures.items():
        for suffix in ("png", "pdf", "svg"):
            paths.append(folder / f"{name}.{suffix}")
            save_picture(figure, paths[-1])
    return paths


def phases(
    sources: FilePath | Sequence[FilePath],
    output: FilePath,
    *,
    calculator: str | None = None,
    varied: str = "O",
    uncertainty: float = UNCERTAINTY,
    references: Sequence[str] = (),
    bulk: Sequence[FilePath] = (),
    temperatures: tuple[float, float] = (300.0, 900.0),
    pressures: tuple[float, float] = (1e-10, 1e3),
    mark: Sequence[str] = (),
    select: str = "",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Phase diagram of the relaxed structures of databases or structure files, written to a folder.

    Parameters
    ----------
    sources
        Databases or structure files; all structures on one substrate, with energies of one calculator.
    output
        Folder; keeps the references computed in ``references.db`` for the next time.
    calculator
        Specification of the backend for the references; by default that of the energies, which it must be.
    varied
        The element whose Δμ varies; the others are in equilibrium with their references.
    uncertainty
        Of the calculator, eV per overlayer atom.
    references
        Energies per atom that take the place of computed ones, such as ``"O=-4.9"``.
    bulk
        Files of bulk crystals, such as an oxide: relaxed with their cell, each gives the Δμ above which it forms.
    temperatures, pressures
        Ranges, K and mbar.
    mark
        Overlayer formulas, or whole labels, of phases to draw and name though they may not be stable.
    select
        Selection of database rows.
    progress
        Called with the number of references done and the total.

    Returns
    -------
    dict
        JSON values: ``element``, ``calculator``, ``references``, ``stable``, ``transitions``, ``limits``, ``outputs``.

    Raises
    ------
    UserError
        If structures, references or ranges are unusable.
    """
    for name, (low, high) in {"temperature": temperatures, "pressure": pressures}.items():
        if not 0 < low < high:
            raise UserError(f"{name} range {low:g} {high:g} is empty: give two numbers above zero, the lower one first")
    given = parse_references(references)
    structures = finished_structures([sources] if isinstance(sources, str | os.PathLike) else list(sources), select)
    there = {overlayer_formula(atoms) for atoms in structures}
    for name in mark:
        if name.partition(" ")[0] not in there:
            raise UserError(f"{name} to mark is none of the phases: give one of {', '.join(sorted(there))}")
    specification = backend_specification(structures[0].info["row"]["calculator"], calculator)
    folder = Path(output)
    study = study_phases(
        structures,
        specification,
        connect(folder / "references.db"),
        varied=varied,
        uncertainty=uncertainty,
        references=given,
        bulk=[read_structures(name)[0] for name in bulk],
        progress=progress,
    )
    paths = _write_numbers(folder, study) + _write_figures(folder, study.diagram, temperatures, pressures, mark)
    return {"n": len(structures), **_summary(study), "outputs": [str(path) for path in paths]}

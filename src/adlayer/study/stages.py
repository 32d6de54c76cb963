"""The stages of a study, one function for each: what the command line and the Python API share.

Each takes names of files or ASE structures and plain settings, and returns its result; files are written only where an
output is named. Mistakes in the input raise :class:`adlayer.errors.UserError` before any work is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from adlayer.analysis.references import reference, reference_names
from adlayer.energies import search as random_search
from adlayer.energies.calculators import BACKENDS, DEFAULT, backend_version, check_calculator
from adlayer.energies.relaxation import check_criterion
from adlayer.energies.relaxing import relax_into_database, relax_structures
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.lattice import Lattice, default_lattice
from adlayer.structures.placement import expand_range, parse_formula
from adlayer.structures.store import (
    check_selection,
    check_structure_file,
    connect,
    is_database,
    output_database,
    read_structures,
    write_structures,
)
from adlayer.structures.substrate import build_substrate, check_substrate, prepare_substrate

FilePath = str | os.PathLike[str]


def load_structures(source: FilePath | Atoms | Sequence[Atoms], selection: str = "") -> list[Atoms]:
    """Structures from a file, a database, or as they are."""
    if isinstance(source, Atoms):
        return [source]
    if isinstance(source, str | os.PathLike):
        return read_structures(source, selection)
    return list(source)


def check_layers(source: object, structures: Sequence[Atoms]) -> None:
    """Raise :class:`UserError` if one of the structures of a source has no substrate."""
    where = f" of {source}" if isinstance(source, str | os.PathLike) else ""
    for number, atoms in enumerate(structures):
        if not (atoms.get_tags() >= 1).any():
            raise UserError(
                f"structure {number}{where} has no substrate: tag its layers 1, 2, … from the top (overlayer atoms 0)"
            )


def substrate(
    surface: str | None = None,
    cell: str = "p(1x1)",
    *,
    layers: int = 3,
    fixed_layers: int = 1,
    lattice: float | None = None,
    window: tuple[float, float] = (1.0, 5.0),
    slab: FilePath | Atoms | None = None,
    output: FilePath | None = None,
) -> Atoms:
    """A substrate from the name of its surface or from any slab.

    Parameters
    ----------
    surface, cell, layers, fixed_layers, window
        See :func:`adlayer.structures.substrate.build_substrate`.
    lattice
        Lattice constant in Å; default: that of the default calculator, see :func:`default_lattice`.
    slab
        A slab, or a file that ASE reads, instead of ``surface``; its in-plane cell counts as (1×1). Where layers are
        tagged 1, 2, …, atoms of tag 0 are an overlayer and left out.
    output
        File to write.

    Returns
    -------
    ase.Atoms
        See :func:`adlayer.structures.substrate.build_substrate`; with ``info["lattice"]`` if built from a surface.
    """
    if (surface is None) == (slab is None):
        raise UserError('a substrate needs either the name of a surface such as "Ag(111)" or --from FILE: give one')
    if output is not None:
        check_structure_file(output)
    if slab is not None:
        given = load_structures(slab)[0]
        layered = given.get_tags() >= 1
        if layered.any():
            given = given[layered]
        atoms = prepare_substrate(given, cell, fixed_layers=fixed_layers, window=window)
    else:
        assert surface is not None
        constants = default_lattice(surface) if lattice is None else Lattice(lattice, None, "given")
        atoms = build_substrate(
            surface,
            cell,
            layers=layers,
            fixed_layers=fixed_layers,
            lattice=constants.a,
            covera=constants.covera,
            window=window,
        )
        atoms.info["lattice"] = constants.a
        atoms.info["lattice_source"] = constants.source
    if output is not None:
        write_structures(output, [atoms])
    return atoms


def formulas_of(formulas: Sequence[str] = (), ranges: Sequence[str] = ()) -> list[str]:
    """All formulas of the lists (each may hold several, parted by spaces) and ranges, without repeats."""
    every = [f for text in formulas for f in text.split()] + [f for text in ranges for f in expand_range(text)]
    for formula in every:
        parse_formula(formula)
    if not every:
        raise UserError('no composition is given: name one with --formula Ag4O2 or some with --range "Ag3-6 O1-4"')
    return list(dict.fromkeys(every))


def search(
    substrate: FilePath | Atoms,
    database: FilePath,
    formulas: Sequence[str] = (),
    *,
    ranges: Sequence[str] = (),
    n: int = 10,
    calculator: str = DEFAULT,
    seed: int = 0,
    fmax: float = 0.05,
    max_steps: int = 300,
    min_distance: float = 0.7,
    workers: int | None = None,
    executor_url: str | None = None,
    progress: Progress = silent,
) -> random_search.SearchSummary:
    """Random structure search into a database; what is there already is not done again.

    Parameters
    ----------
    substrate, database
        Structure or file; ASE database.
    formulas, ranges
        Of the overlayer, see :func:`formulas_of`.
    n
        Structures of each formula.
    calculator, seed, fmax, max_steps, min_distance, workers, executor_url, progress
        See :func:`adlayer.energies.search.search`.
    """
    wanted = formulas_of(formulas, ranges)
    check_calculator(calculator)
    check_criterion(fmax)
    start = load_structures(substrate)[0]
    check_layers(substrate, [start])
    check_substrate(start)
    return random_search.search(
        start,
        wanted,
        n,
        connect_database(database),
        calculator=calculator,
        seed=seed,
        fmax=fmax,
        max_steps=max_steps,
        min_distance=min_distance,
        workers=workers,
        executor_url=executor_url,
        progress=progress,
    )


def connect_database(name: FilePath) -> Any:
    """A database to write to, whose name must say so."""
    if not is_database(name):
        raise UserError(f"{name} is not the name of a database: end it in .db, or give a PostgreSQL URL")
    return connect(name)


def relax(
    source: FilePath | Atoms | Sequence[Atoms],
    output: FilePath | None = None,
    *,
    calculator: str = DEFAULT,
    select: str = "",
    fmax: float = 0.05,
    max_steps: int = 300,
    workers: int | None = None,
    executor_url: str | None = None,
    progress: Progress = silent,
) -> list[Atoms]:
    """Relax structures; with an output the job can be interrupted and goes on when it is run again.

    Parameters
    ----------
    source
        Structures, a structure file or a database. Of the very database that is written to, relaxed rows are left out.
    output
        Database that takes the rows, or structure file, written when all is done; until then results are kept in a
        hidden database beside it.
    select
        Selection of database rows in ASE's syntax, such as ``"stage=generated"``.
    calculator, fmax, max_steps, workers, executor_url, progress
        See :func:`adlayer.energies.relaxing.relax_structures`.

    Returns
    -------
    list of ase.Atoms
        See :func:`adlayer.energies.relaxing.relax_structures`.
    """
    check_calculator(calculator)
    check_criterion(fmax)
    check_selection(select, [source])
    structures = load_structures(source, select)
    settings: dict[str, Any] = {
        "fmax": fmax,
        "max_steps": max_steps,
        "workers": workers,
        "executor_url": executor_url,
        "progress": progress,
    }
    if output is None:
        return relax_structures(structures, calculator, **settings)
    if is_database(output) and isinstance(source, str | os.PathLike) and str(source) == str(output):
        structures = [atoms for atoms in structures if atoms.info["row"].get("stage") != "relaxed"]
    database, sidecar = output_database(output)
    relaxed = relax_into_database(structures, database, calculator, **settings)
    if sidecar is None:
        return relaxed
    for atoms in relaxed:
        atoms.info["row"] = {k: v for k, v in atoms.info["row"].items() if k not in ("id", "task")}
    write_structures(output, relaxed)
    sidecar.unlink()
    return relaxed


def calculators() -> list[dict[str, Any]]:
    """The known energy backends: ``name``, ``version`` (``None`` if not installed), ``extra`` to install, ``note``."""
    return [
        {"name": name, "version": backend_version(name), "extra": backend.extra, "note": backend.note}
        for name, backend in BACKENDS.items()
    ]


def load_reference(name: FilePath | Atoms) -> Atoms:
    """A structure, a file, or one of the references that come with the package by its name."""
    if isinstance(name, str) and name in reference_names():
        return reference(name)
    if isinstance(name, str | os.PathLike) and not is_database(name) and not Path(name).is_file():
        raise UserError(f"there is no reference {name}: give a file or one of {', '.join(reference_names())}")
    return load_structures(name)[0]


def match(
    source: FilePath | Sequence[Atoms],
    reference: FilePath | Atoms,
    *,
    select: str = "",
    tolerance: float | None = None,
    heights: bool = False,
) -> tuple[list[Atoms], list[int]]:
    """The structures, and the indices of those that are the reference: see :func:`adlayer.analysis.matching.match`.

    Lateral positions decide unless ``heights`` are to agree too.
    """
    from adlayer.analysis import matching

    if not isinstance(reference, Atoms) and str(reference) not in reference_names() and Path(reference).is_file():
        targets = load_structures(reference)
    else:
        targets = [load_reference(reference)]
    if len(targets) > 1:
        raise UserError(f"reference {reference} holds {len(targets)} structures: give a file with one")
    check_selection(select, [source])
    structures = load_structures(source, select)
    check_layers(reference, targets)
    check_layers(source, structures)
    return structures, matching.match(structures, targets[0], tolerance=tolerance, lateral=not heights)


def compare(
    groups: Mapping[str, FilePath | Sequence[Atoms]],
    output: FilePath | None = None,
    *,
    select: str = "",
    within: float = 0.1,
    seed: int = 0,
) -> dict[str, Any]:
    """Energies, relaxation cost and success of sets of structures, with 95 % confidence intervals.

    Parameters
    ----------
    groups
        Name and structures of each set, all with energies of one calculator. Energies count from the lowest of the same
        composition in any set.
    output
        Folder for ``comparison.json`` and the figures.
    select
        Selection of database rows.
    within
        A structure is a success if its energy lies within so much (eV) of the lowest.
    seed
        Of the bootstrap.

    Returns
    -------
    dict
        ``sets`` by name, ``distances`` between pairs of them (from the first), and ``outputs``.
    """
    from adlayer.report.comparison import compare_sets, write_comparison

    check_selection(select, groups.values())
    sets = {name: load_structures(source, select) for name, source in groups.items()}
    result = compare_sets(sets, within=within, seed=seed)
    paths = [] if output is None else write_comparison(output, sets, result, within=within, seed=seed)
    return {**result, "outputs": [str(path) for path in paths]}

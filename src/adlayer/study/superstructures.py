"""Stages on superstructures: ``cells`` lists commensurate cells, ``leed`` computes and draws a diffraction pattern."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.leed import ENERGY, LeedPattern, kinematic_pattern, leed_pattern, surface_lattice
from adlayer.errors import UserError
from adlayer.structures.commensurate import CommensurateCell, commensurate_cells
from adlayer.structures.store import check_selection, check_writable, is_database, write_csv
from adlayer.structures.sublattices import integer_operations
from adlayer.structures.superstructure import superstructure_matrix, wood_notation
from adlayer.study.stages import FilePath, load_structures, substrate

_TABLE = ".csv"
_PICTURES = (".png", ".pdf", ".svg")


def cells(
    surface: FilePath | Atoms,
    max_area: int,
    *,
    min_area: int = 1,
    lattice: float | None = None,
    output: FilePath | None = None,
) -> list[CommensurateCell]:
    """All commensurate cells of a surface up to an area, distinct under the substrate's symmetry.

    Parameters
    ----------
    surface
        Name such as ``"Ag(111)"``, or a structure (file) whose substrate counts.
    max_area, min_area
        In (1×1) cells.
    lattice
        Lattice constant of a named surface in Å, see :func:`adlayer.study.substrate`.
    output
        Table to write, in CSV.
    """
    if output is not None:
        _check_output(output, [_TABLE])
    basis, _, rotations = surface_lattice(_structure(surface, lattice))
    found = commensurate_cells(basis, max_area, min_area=min_area, operations=integer_operations(rotations, basis))
    if output is not None:
        header = ["area", "wood", "m11", "m12", "m21", "m22", "length1_A", "length2_A", "angle_deg", "domains"]
        rows = [
            [c.area, c.wood or "", *c.matrix.ravel(), *(f"{x:.4f}" for x in (*c.lengths, c.angle)), c.domains]
            for c in found
        ]
        write_csv(output, header, rows)
    return found


def leed(
    source: FilePath | Atoms,
    output: FilePath | None = None,
    *,
    cell: str | None = None,
    lattice: float | None = None,
    energy: float | None = None,
    index: int = 0,
    select: str = "",
) -> dict[str, Any]:
    """The LEED pattern of a superstructure (positions of spots), or of a structure (with kinematic intensities).

    Parameters
    ----------
    source
        Name of a surface, then with ``cell``; or a structure, a file or a database.
    output
        Picture, or table of spots (CSV).
    cell
        Superstructure on a named surface: Wood's notation or a matrix; default ``p(1x1)``.
    lattice
        Lattice constant of a named surface in Å.
    energy
        Of the electrons, eV; default 100 for structures, none for named surfaces.
    index, select
        Which structure of a file, counted from 0, and of which rows of a database.

    Returns
    -------
    dict
        ``pattern`` (:class:`adlayer.analysis.leed.LeedPattern`), ``wood``, ``matrix``, ``area``, ``n_domains``,
        ``n_spots`` and ``n_forbidden`` (all domains), and of a structure ``coverage``.
    """
    from adlayer.analysis.records import coverage

    if output is not None:
        _check_output(output, [*_PICTURES, _TABLE])
    if _is_name(source):
        name = str(source)
        if energy is not None:
            raise UserError(f"--energy needs the atoms of a structure, which {source} does not tell: give a file")
        basis, _, rotations = surface_lattice(_structure(source, lattice))
        matrix = superstructure_matrix("p(1x1)" if cell is None else cell, basis)
        pattern, covered = leed_pattern(basis, matrix, integer_operations(rotations, basis)), {}
    else:
        if cell is not None or lattice is not None:
            raise UserError(f"--cell and --lattice do not go with {source}, which has its own: leave them out")
        atoms = _structure(source, None, index, select)
        overlayer = atoms[atoms.get_tags() == 0].get_chemical_formula()
        name = " on ".join(filter(None, [overlayer, atoms.info.get("substrate")]))
        basis, matrix, rotations = surface_lattice(atoms)
        pattern, covered = kinematic_pattern(atoms, ENERGY if energy is None else energy), coverage(atoms)
    wood = wood_notation(matrix, basis, integer_operations(rotations, basis))
    if output is not None:
        _write_pattern(output, pattern, name, wood)
    return {
        "pattern": pattern,
        "wood": wood,
        "matrix": matrix.tolist(),
        "area": abs(round(float(np.linalg.det(matrix)))),
        "n_domains": len(pattern.domains),
        "n_spots": len({tuple(key) for domain in pattern.domains for key in domain.numerators.tolist()}),
        "n_forbidden": int(sum(d.extinct.sum() for d in pattern.domains)),
        "coverage": covered,
    }


def _is_name(source: FilePath | Atoms) -> bool:
    """Whether this is the name of a surface rather than a structure or a file."""
    if not isinstance(source, str | os.PathLike):
        return False
    return not (Path(source).is_file() or Path(source).suffix or is_database(source))


def _structure(source: FilePath | Atoms, lattice: float | None, index: int = 0, select: str = "") -> Atoms:
    """The structure, one of a file, or the (1×1) slab of a named surface."""
    if _is_name(source):
        return substrate(str(source), lattice=lattice)
    if lattice is not None:
        raise UserError(f"--lattice does not go with {source}, which has its own: leave it out")
    check_selection(select, [source])
    structures = load_structures(source, select)
    if not 0 <= index < len(structures):
        raise UserError(f"{source} holds {len(structures)} structures, not number {index}: count from 0")
    return structures[index]


def _check_output(path: FilePath, suffixes: Sequence[str]) -> None:
    if Path(path).suffix.lower() not in suffixes:
        raise UserError(f"output {path} has no format that can be written: end its name in {' or '.join(suffixes)}")
    check_writable(path)


def _write_pattern(path: FilePath, pattern: LeedPattern, name: str, wood: str | None) -> None:
    if Path(path).suffix.lower() == _TABLE:
        write_csv(path, ["domain", "h", "k", "qx_per_A", "qy_per_A", "intensity", "forbidden"], _spots(pattern))
        return
    from adlayer.report.leed import leed_figure, typeset_wood
    from adlayer.report.pictures import save_picture

    title = ", ".join(filter(None, [name, "" if wood is None else typeset_wood(wood)]))
    save_picture(leed_figure(pattern, title), path)


def _spots(pattern: LeedPattern) -> list[list[object]]:
    rows: list[list[object]] = []
    for number, domain in enumerate(pattern.domains, start=1):
        intensities = (
            [""] * len(domain.spots) if domain.intensities is None else [f"{i:.4g}" for i in domain.intensities]
        )
        for order, spot, intensity, extinct in zip(
            domain.orders, domain.spots, intensities, domain.extinct, strict=True
        ):
            rows.append([number, *(f"{x + 0.0:.4f}" for x in (*order, *spot)), intensity, int(extinct)])
    return rows

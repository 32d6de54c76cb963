"""One row for each structure: what it is, how stable, how symmetric, whether new, and where it comes from.

======================  ====================================================================================
``index``               place in the list
``id``                  row of the database it was read from
``overlayer``           formula of the overlayer
``coverage_Ag`` …       overlayer atoms of that element per (1×1) cell, ML; a column for each element of any overlayer
``cell``                Wood's name of the superlattice, or its matrix if it has none
``matrix``              superlattice vectors in (1×1) vectors, as JSON
``primitive_cell``      the same two for the primitive cell, see :func:`adlayer.analysis.symmetry.primitive_overlayer`
``primitive_matrix``
``energy``              potential energy, eV
``energy_per_area``     energy above the lowest structure of the same composition, cell and calculator, by the
                        cell's area, eV/Å²
``duplicate_of``        index of the lowest structure that this one equals
``motif``               label, see :func:`adlayer.analysis.motifs.motifs`
``plane_group``         see :mod:`adlayer.analysis.symmetry`, as the next two
``layer_group``
``point_group``
``origin``              stage that made it: ``search``, ``generated``, ``relaxed``
``seed``, ``model``     random seed; hash of the generating model
``converged``           whether its relaxation met the criterion
``n_steps``             relaxation steps
``n_force_calls``       calculator calls spent on it
======================  ====================================================================================

What is not known is ``None``. Superlattices count as the same if an isometry of the (1×1) lattice carries one to the
other.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from adlayer.analysis.matching import prepare, unique_overlayers
from adlayer.analysis.motifs import motifs
from adlayer.analysis.records import coverage, potential_energy
from adlayer.analysis.symmetry import PrimitiveOverlayer, Symmetry, primitive_overlayer, symmetry_of
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.sublattices import images, lattice_operations
from adlayer.structures.superstructure import wood_notation

_PROVENANCE = {
    "origin": "stage",
    "seed": "seed",
    "model": "model",
    "converged": "converged",
    "n_steps": "n_steps",
    "n_force_calls": "n_force_calls",
}  # column: key of the database row


def describe(
    structures: Sequence[Atoms],
    tolerance: float = 0.3,
    energy_tolerance: float = 0.05,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """A table of structures; see the module's docstring for its columns.

    Parameters
    ----------
    structures
        With tags; compositions, cells and substrates may differ.
    tolerance
        Å, of duplicates (:func:`adlayer.analysis.matching.unique`), primitive cells and symmetry.
    energy_tolerance
        eV, of duplicates.
    progress
        Called with the structures done and their number.

    Returns
    -------
    list of dict
        In the order given, all with the same columns in the same order; plain values that JSON and CSV hold.

    Raises
    ------
    UserError
        If a structure has no substrate, or a tolerance makes no sense.
    """
    if not tolerance > 0 or not energy_tolerance >= 0:
        raise UserError(
            f"tolerances are {tolerance:g} Å and {energy_tolerance:g} eV: give a positive and a non-negative one"
        )
    overlayers = [prepare(atoms) for atoms in structures]
    energies = [potential_energy(atoms) for atoms in structures]
    groups = unique_overlayers(overlayers, energies, tolerance, energy_tolerance)
    lowest = {i: group[0] for group in groups for i in group}
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers[atoms.get_tags() == 0]})
    symbols = [chemical_symbols[z] for z in elements]
    rows, keys = [], []
    for index, (atoms, overlayer) in enumerate(zip(structures, overlayers, strict=True)):
        primitive = primitive_overlayer(atoms, tolerance, overlayer)
        symmetry = symmetry_of(primitive, tolerance)
        duplicate = None if lowest[index] == index else lowest[index]
        rows.append(
            {
                "index": index,
                **_row(atoms, primitive, symmetry, symbols),
                "energy": energies[index],
                "duplicate_of": duplicate,
            }
        )
        keys.append(_comparable(atoms, primitive))
        progress(index + 1, len(structures))
    excess = _above_lowest(energies, keys) / np.array([overlayer.area for overlayer in overlayers])
    for row, value in zip(rows, excess, strict=True):
        row["energy_per_area"] = None if math.isnan(value) else float(value)
    representatives = [group[0] for group in groups]
    for motif in motifs([structures[i] for i in representatives], excess[representatives]):
        for member in motif.members:
            for i in groups[member]:
                rows[i]["motif"] = motif.label
    return rows


def _row(atoms: Atoms, primitive: PrimitiveOverlayer, symmetry: Symmetry, symbols: list[str]) -> dict[str, Any]:
    """A structure's row, with empty places for what the other structures decide."""
    record = atoms.info.get("row", {})
    matrix = _own_matrix(atoms, primitive)
    amounts = coverage(atoms)
    return {
        "id": record.get("id"),
        "overlayer": overlayer_formula(atoms),
        **{f"coverage_{symbol}": round(amounts.get(symbol, 0.0), 6) for symbol in symbols},
        "cell": _name(matrix, primitive.basis),
        "matrix": json.dumps(matrix.tolist()),
        "primitive_cell": _name(primitive.matrix, primitive.basis),
        "primitive_matrix": json.dumps(primitive.matrix.tolist()),
        "energy": None,
        "energy_per_area": None,
        "duplicate_of": None,
        "motif": None,
        "plane_group": symmetry.plane_group,
        "layer_group": symmetry.layer_group or None,
        "point_group": symmetry.point_group,
        **{column: record.get(key) for column, key in _PROVENANCE.items()},
    }


def _own_matrix(atoms: Atoms, primitive: PrimitiveOverlayer) -> np.ndarray:
    """The structure's own superlattice (2, 2) in the vectors of its primitive cell's ``basis``."""
    return np.round(atoms.cell[:2, :2] @ np.linalg.inv(primitive.basis)).astype(int)


def _comparable(atoms: Atoms, primitive: PrimitiveOverlayer) -> tuple[object, ...]:
    """What structures share whose energies may be compared."""
    calculator = atoms.info.get("row", {}).get("calculator")
    matrix = _own_matrix(atoms, primitive)
    cell = _canonical(_hashable(matrix), _hashable(primitive.basis))
    composition = tuple(np.sort(atoms.numbers * 1000 + atoms.get_tags().clip(0, 1)))
    return composition, cell, json.dumps(calculator, sort_keys=True, default=str)


def _above_lowest(energies: list[float | None], keys: list[tuple[object, ...]]) -> np.ndarray:
    """Energies (n,), eV, above the lowest of equal key; ``nan`` where unknown."""
    lowest: dict[tuple[object, ...], float] = {}
    for energy, key in zip(energies, keys, strict=True):
        if energy is not None:
            lowest[key] = min(energy, lowest.get(key, math.inf))
    return np.array([math.nan if e is None else e - lowest[k] for e, k in zip(energies, keys, strict=True)])


_Rows = tuple[tuple[float, ...], ...]


def _hashable(array: np.ndarray) -> _Rows:
    return tuple(tuple(row) for row in np.round(array, 6).tolist())


def _name(matrix: np.ndarray, basis: np.ndarray) -> str:
    return _wood(_hashable(matrix), _hashable(basis))


@functools.lru_cache(maxsize=1024)
def _wood(matrix: _Rows, basis: _Rows) -> str:
    """Wood's name of a superlattice, or the matrix as JSON where it has none."""
    return wood_notation(np.array(matrix, dtype=int), np.array(basis)) or json.dumps(np.array(matrix, int).tolist())


@functools.lru_cache(maxsize=1024)
def _canonical(matrix: _Rows, basis: _Rows) -> tuple[int, int, int]:
    """The same for superlattices that an isometry of the (1×1) lattice carries into one another."""
    return min(images(np.array(matrix, dtype=int), lattice_operations(np.array(basis))))

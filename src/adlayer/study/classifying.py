"""The ``classify`` verb: a table of structures as CSV, or as an ASE database."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from adlayer.analysis.table import describe
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.store import (
    check_selection,
    check_writable,
    connect,
    is_database,
    replacing,
    write_csv,
    write_row,
)
from adlayer.study.stages import FilePath, check_layers, load_structures

_KEPT_BY_ASE = {"index", "id", "energy"}  # columns that an ASE database has of its own
_RENAMED = {"cell": "superlattice", "origin": "stage"}  # columns whose names ASE reserves, or the store's own


def classify(
    source: FilePath | Sequence[Atoms],
    output: FilePath | None = None,
    *,
    select: str = "",
    tolerance: float = 0.3,
    energy_tolerance: float = 0.05,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """A row for each structure: what it is, how stable, how symmetric, whether new, and where it comes from.

    Parameters
    ----------
    source
        Structures, a structure file or a database.
    output
        ``.csv`` for a table, ``.db`` for an ASE database of the structures with the columns as keys. There ``cell`` is
        called ``superlattice`` and ``origin`` ``stage``, ``duplicate_of`` is a row's id, a point group that reads as a
        number is stored as one, and what is unknown is left out. A table that is there is replaced.
    select
        Selection of database rows.
    tolerance, energy_tolerance, progress
        See :func:`adlayer.analysis.table.describe`.

    Returns
    -------
    list of dict
        See :func:`adlayer.analysis.table.describe`.

    Raises
    ------
    UserError
        If the output is neither, is the source itself, or a structure has no substrate.
    """
    if output is not None:
        _check_output(source, output)
    check_selection(select, [source])
    structures = load_structures(source, select)
    check_layers(source, structures)
    rows = describe(structures, tolerance, energy_tolerance, progress)
    if output is not None:
        write_table(output, structures, rows)
    return rows


def write_table(output: FilePath, structures: Sequence[Atoms], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write structures and their rows as :func:`classify` does, atomically."""
    if is_database(output):
        with replacing(output) as partial:
            _write_database(partial, structures, rows)
    else:
        write_csv(output, rows[0], [row.values() for row in rows])


def _check_output(source: FilePath | Sequence[Atoms], output: FilePath) -> None:
    if Path(output).suffix not in (".csv", ".db"):
        raise UserError(f"output {output} is neither a table nor a database: end its name in .csv or .db")
    if isinstance(source, str | os.PathLike) and Path(source).resolve() == Path(output).resolve():
        raise UserError(f"output {output} is the input itself: give another name")
    check_writable(output)
    if is_database(output) and Path(output).exists() and any(r.get("task") for r in connect(output).select()):
        raise UserError(f"output {output} is a database of other stages, which would be lost: give another name")


def _write_database(path: Path, structures: Sequence[Atoms], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows in the order of the structures, so that structure ``i`` has the id ``i + 1``."""
    database: Any = connect(path)
    with database:
        for atoms, row in zip(structures, rows, strict=True):
            write_row(database, atoms, {**_plain_keys(atoms), **_keys(row)})


def _plain_keys(atoms: Atoms) -> dict[str, Any]:
    """Keys of the row that a structure was read from, save those that mean something only in its own database."""
    record = atoms.info.get("row", {})
    return {k: v for k, v in record.items() if k not in ("id", "calculator", "parent", "task")}


def _keys(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row as keys of an ASE database."""
    keys = {_RENAMED.get(k, k): v for k, v in row.items() if k not in _KEPT_BY_ASE and v is not None}
    keys["source_id"] = row["id"]
    if row["duplicate_of"] is not None:
        keys["duplicate_of"] = row["duplicate_of"] + 1
    if row["point_group"].isdigit():
        keys["point_group"] = int(row["point_group"])
    return keys


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the table says in numbers: structures, unique ones, motifs, and structures by plane group."""
    groups = [row["plane_group"] for row in rows]
    return {
        "n": len(rows),
        "n_unique": sum(row["duplicate_of"] is None for row in rows),
        "n_motifs": len({row["motif"] for row in rows}),
        "plane_groups": {name: groups.count(name) for name in sorted(set(groups), key=groups.count, reverse=True)},
    }

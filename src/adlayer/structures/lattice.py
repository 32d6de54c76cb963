"""Lattice constants of the common metals in the default calculator (table made by benchmarks/lattice_constants.py)."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from adlayer.errors import UserError
from adlayer.structures.substrate import parse_surface


class Lattice(NamedTuple):
    """Lattice constant ``a`` (Å), ``c/a`` of hcp crystals, and where they come from."""

    a: float
    covera: float | None
    source: str


@cache
def _lattice_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads((resources.files("adlayer") / "data/lattice_constants.json").read_text())
    return table


def default_lattice(surface: str) -> Lattice:
    """Relaxed lattice constant of a surface's crystal in the default calculator.

    Raises
    ------
    UserError
        If the table does not hold this crystal.
    """
    element, structure, _ = parse_surface(surface)
    table = _lattice_table()
    constants = table["lattice_constants"].get(f"{element} {structure}")
    if constants is None:
        raise UserError(f"there is no lattice constant of {structure} {element} in the table: give --lattice in Å")
    return Lattice(
        constants["a"], constants.get("c/a"), f"{table['calculator']['name']} {table['calculator']['version']}"
    )

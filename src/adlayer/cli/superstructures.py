"""Verbs on superstructures: ``cells`` and ``leed``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Select, Session, verb

_Lattice = Annotated[float | None, typer.Option(help="Lattice constant, Å; default: the default backend's.")]


@verb('adlayer cells "Ag(111)" --max-area 12')
def cells(
    session: Session,
    surface: Annotated[str, typer.Argument(help='Such as "Ag(111)", or a structure file whose substrate counts.')],
    max_area: Annotated[int, typer.Option(help="Largest area, (1×1) cells.")] = 12,
    min_area: Annotated[int, typer.Option(help="Smallest area, (1×1) cells.")] = 1,
    lattice: _Lattice = None,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Table to write, CSV.")] = None,
) -> dict[str, Any]:
    """List the commensurate cells of a surface.

    Every superlattice up to an area, once under the symmetry of the substrate, with Wood's name where it has one.
    """
    from adlayer import study

    found = study.cells(surface, max_area, min_area=min_area, lattice=lattice, output=output)
    if output is not None:
        session.wrote(output)
    session.say(f"{'area':>4}  {'Wood':<20} {'matrix':<18} {'vectors (Å)':>15} {'angle':>6}  domains")
    for cell in found:
        matrix = str(cell.matrix.tolist()).replace(" ", "")
        lengths = "{:7.2f} {:7.2f}".format(*cell.lengths)
        session.say(
            f"{cell.area:>4}  {cell.wood or '-':<20} {matrix:<18} {lengths} {cell.angle:>5.1f}°  {cell.domains}"
        )
    session.say(f"{len(found)} distinct cells")
    return {
        "n": len(found),
        "cells": [
            {
                "area": cell.area,
                "wood": cell.wood,
                "matrix": cell.matrix.tolist(),
                "lengths": [round(x, 4) for x in cell.lengths],
                "angle": round(cell.angle, 3),
                "domains": cell.domains,
            }
            for cell in found
        ],
    }


@verb('adlayer leed "Ag(111)" --cell "p(4x4)" -o leed.png')
def leed(
    session: Session,
    source: Annotated[str, typer.Argument(help='Such as "Ag(111)", or a structure file or database.')],
    output: Annotated[str, typer.Option("-o", "--output", help="Picture, or table of spots (.csv).")],
    cell: Annotated[str | None, typer.Option(help="On a named surface: Wood's notation or a matrix.")] = None,
    lattice: _Lattice = None,
    energy: Annotated[float | None, typer.Option(help="Of the electrons, eV; of a structure by default 100.")] = None,
    index: Annotated[int, typer.Option(min=0, help="Which structure of the file, from 0.")] = 0,
    select: Select = "",
) -> dict[str, Any]:
    """Draw a LEED pattern.

    Spots of the substrate and of every symmetry domain of the superstructure. For a structure, intensities are
    kinematic (single scattering), and spots that glide lines forbid are marked.
    """
    from adlayer import study

    found = study.leed(source, output, cell=cell, lattice=lattice, energy=energy, index=index, select=select)
    session.wrote(output)
    del found["pattern"]
    session.say(f"{found['wood'] or 'no Wood name'}: {found['matrix']}, area {found['area']}")
    session.say(f"domains: {found['n_domains']}, spots: {found['n_spots']}, forbidden: {found['n_forbidden']}")
    if found["coverage"]:
        session.say("coverage: " + ", ".join(f"{k} {v:.3g} ML" for k, v in found["coverage"].items()))
    return found

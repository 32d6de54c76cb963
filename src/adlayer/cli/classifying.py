"""The verb ``classify``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Select, Session, counted, verb


@verb("adlayer classify study.db -o table.csv")
def classify(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="IN", help="Structure file or database.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Table (.csv) or ASE database (.db) to write.")],
    select: Select = "",
    tolerance: Annotated[float, typer.Option(min=0.0, help="Largest displacement of an atom, Å.")] = 0.3,
    energy_tolerance: Annotated[float, typer.Option(min=0.0, help="Largest difference of duplicates, eV.")] = 0.05,
) -> dict[str, Any]:
    """Tabulate structures: duplicates, motifs, symmetry, stability, origin.

    One row for each structure; symmetry and duplicates are judged on the bare substrate.
    """
    from adlayer import study
    from adlayer.study.classifying import summary

    with session.progress("structures") as progress:
        rows = study.classify(
            source, output, select=select, tolerance=tolerance, energy_tolerance=energy_tolerance, progress=progress
        )
    session.wrote(output)
    found = summary(rows)
    groups = ", ".join(f"{n} {name}" for name, n in found["plane_groups"].items())
    number, motifs = counted(found["n"], "structure"), counted(found["n_motifs"], "motif")
    session.say(f"{number}, {found['n_unique']} unique, {motifs}; {groups}")
    return found

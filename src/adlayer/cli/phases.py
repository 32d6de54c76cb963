"""The verb ``phases``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Select, Session, counted, verb


@verb("adlayer phases search.db study.db --bulk Ag2O.cif -o diagram")
def phases(
    session: Session,
    sources: Annotated[list[str], typer.Argument(metavar="DB …", help="Databases or files of relaxed structures.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write to.")],
    calculator: Annotated[
        str | None, typer.Option(help="Energy backend of the references; it must be that of the energies.")
    ] = None,
    varied: Annotated[str, typer.Option(help="Element whose chemical potential varies.")] = "O",
    uncertainty: Annotated[float, typer.Option(help="Of the calculator, eV per overlayer atom.")] = 0.05,
    reference: Annotated[
        list[str] | None, typer.Option(help="Reference energy instead of a computed one, eV per atom: O=-4.9.")
    ] = None,
    bulk: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Bulk crystal, such as the oxide, to compare with.")
    ] = None,
    temperatures: Annotated[tuple[float, float], typer.Option(help="Range, K.")] = (300.0, 900.0),
    pressures: Annotated[tuple[float, float], typer.Option(help="Range, mbar.")] = (1e-10, 1e3),
    mark: Annotated[list[str] | None, typer.Option(help="Formula of a phase to draw and name besides: Ag12O6.")] = None,
    select: Select = "",
) -> dict[str, Any]:
    """Draw the phase diagram.

    Formation energy per area against the chemical potential of the gas, stable phases against temperature and
    pressure. Missing reference energies are computed and kept in the folder.
    """
    from adlayer import study

    with session.progress("references") as progress:
        result = study.phases(
            sources,
            output,
            calculator=calculator,
            varied=varied,
            uncertainty=uncertainty,
            references=reference or [],
            bulk=bulk or [],
            temperatures=temperatures,
            pressures=pressures,
            mark=mark or [],
            select=select,
            progress=progress,
        )
    for path in result.pop("outputs"):
        session.wrote(path)
    number, n_phases = counted(result["n"], "structure"), counted(result["n_phases"], "phase")
    session.say(f"{number}, {n_phases}; stable from low to high Δμ({varied}):")
    for phase in result["stable"]:
        low, high = (f"{x:+.2f}" if x is not None else "…" for x in phase["stable"])
        session.say(f"  {phase['label']}: {low} to {high} eV")
    for name, limit in result["limits"].items():
        session.say(f"bulk {name} forms above {limit:+.2f} eV")
    return result

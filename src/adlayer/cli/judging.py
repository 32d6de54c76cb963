"""Verbs that judge structures: ``match`` and ``compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Select, Session, verb


@verb("adlayer match relaxed.extxyz p4x4-O_Ag111-Ag6")
def match(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="IN", help="Structure file or database.")],
    reference: Annotated[str, typer.Argument(help="Structure file, or the name of a reference of the package.")],
    select: Select = "",
    tolerance: Annotated[
        float | None, typer.Option(help="Largest displacement of an atom, Å; default 0.7, with heights 0.5.")
    ] = None,
    heights: Annotated[bool, typer.Option("--heights", help="Compare heights too.")] = False,
) -> dict[str, Any]:
    """Say which structures are a reference.

    Two structures are the same up to the symmetry of the bare substrate. Heights do not count unless asked for:
    backends differ in them, and the lateral topology tells phases apart.
    """
    from adlayer import study

    structures, matched = study.match(source, reference, select=select, tolerance=tolerance, heights=heights)
    which = f": {', '.join(map(str, matched))}" if matched else ""
    session.say(f"{len(matched)} of {len(structures)} structures are {reference}{which}")
    return {"n": len(structures), "n_matched": len(matched), "matched": matched}


@verb("adlayer compare relaxed.extxyz random.extxyz -o comparison")
def compare(
    session: Session,
    sources: Annotated[list[str], typer.Argument(metavar="A B …", help="Structure files or databases.")],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write to.")],
    select: Select = "",
    within: Annotated[float, typer.Option(help="A success lies within so much of the lowest energy, eV.")] = 0.1,
) -> dict[str, Any]:
    """Compare sets of structures.

    Energies, relaxation cost and success, with 95 % confidence intervals.
    """
    from adlayer import study

    names = [Path(source).stem for source in sources]
    groups = dict(zip(names if len(set(names)) == len(names) else sources, sources, strict=True))
    result = study.compare(groups, output, select=select, within=within, seed=session.seed)
    for path in result.pop("outputs"):
        session.wrote(path)
    for name, found in result["sets"].items():
        session.say(f"{name}: {found['n']} structures")
        session.say(f"  above the lowest: median {_interval(found['energy_above_lowest'])} eV")
        session.say(f"  within {within:g} eV of the lowest: {_interval(found['success'])}")
        if found["n_steps"] is not None:
            session.say(f"  relaxation steps: median {_interval(found['n_steps'])}")
    for pair, found in result["distances"].items():
        session.say(f"{pair}: {_interval(found['wasserstein'])} eV apart, p = {found['ks_p_value']:.2g} of chance")
    return result


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"

"""Verbs that draw: ``picture`` and ``stm``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Select, Session, counted, verb

Sources = Annotated[list[str], typer.Argument(metavar="IN …", help="Structure files, databases or references.")]
Picture = Annotated[str, typer.Option("-o", "--output", help="Picture to write: .png, .pdf or .svg.")]
Index = Annotated[str, typer.Option(help='Which structures of each file, such as "0 2 -1" or "0:6".')]


@verb("adlayer picture ranked.extxyz --index 0:6 -o structures.pdf")
def picture(
    session: Session,
    sources: Sources,
    output: Picture,
    select: Select = "",
    index: Index = "",
) -> dict[str, Any]:
    """Draw structures from above and from the side.

    All on one scale, with unit cell, scale bar and legend; overlayer and layers in colours that everyone can tell
    apart.
    """
    from adlayer import study

    structures = study.picture(sources, output, select=select, index=index)
    session.wrote(output)
    session.say(f"{output}: {counted(len(structures), 'structure')}")
    return {"n": len(structures)}


@verb('adlayer stm p4x4-O_Ag111-Ag6 --blur 0.5 --cell-experiment "11.8 11.8 60" -o image.png')
def stm(
    session: Session,
    sources: Sources,
    output: Picture,
    mode: Annotated[str, typer.Option(help="current (constant current) or height (constant height).")] = "current",
    distance: Annotated[float, typer.Option(help="Of the tip from the topmost atom at the set point, Å.")] = 4.0,
    weights: Annotated[
        str, typer.Option(help='Elements at the bias you have in mind: bright above 0, dark below, "Ag=1 O=-0.1".')
    ] = "",
    work_function: Annotated[float, typer.Option(help="Sets the decay into the vacuum, eV.")] = 4.6,
    blur: Annotated[float, typer.Option(help="Width of the tip (Gaussian), Å.")] = 0.0,
    resolution: Annotated[float, typer.Option(help="Spacing of the computed points, Å.")] = 0.1,
    cell_experiment: Annotated[
        str, typer.Option(help='Measured cell to draw over it: a, b in Å and the angle, "11.8 11.8 60".')
    ] = "",
    profile: Annotated[str, typer.Option(help='Line to draw the profile of: x, y of both ends in Å, "0 0 12 0".')] = "",
    plane: Annotated[float | None, typer.Option(help="Height of the set point in a file of ASE's STM, Å.")] = None,
    select: Select = "",
    index: Index = "",
) -> dict[str, Any]:
    """Simulate scanning tunnelling images.

    A geometric model: atoms with exponential tails, weighted by element; it knows nothing of electronic structure.
    Files of densities of states that ASE's STM wrote are drawn from those.
    """
    from adlayer import study

    images = study.stm(
        sources,
        output,
        mode=mode,
        distance=distance,
        weights=weights,
        work_function=work_function,
        blur=blur,
        resolution=resolution,
        cell_experiment=cell_experiment,
        profile=profile,
        plane=plane,
        select=select,
        index=index,
    )
    session.wrote(output)
    corrugation = [float(image.values.max() - image.values.min()) for image in images]
    for image, value in zip(images, corrugation, strict=True):
        session.say(f"{image.model}: corrugation {value:.3g}" + (" Å" if image.mode == "current" else ""))
    session.say(f"{output}: {counted(len(images), 'image')}")
    return {"n": len(images), "mode": mode, "corrugation": corrugation}

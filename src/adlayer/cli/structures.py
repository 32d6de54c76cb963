"""Verbs that make and describe structures: ``substrate``, ``info``, ``calculators``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Output, Session, verb


@verb('adlayer substrate "Ag(111)" --cell "p(4x4)" --layers 3 --fixed-layers 1 --window 1.0 5.0 -o substrate.extxyz')
def substrate(
    session: Session,
    output: Output,
    surface: Annotated[str | None, typer.Argument(help='Such as "Ag(111)" or "Fe bcc(110)".')] = None,
    cell: Annotated[str, typer.Option(help='Wood\'s notation or a matrix "[[8,-7],[2,4]]".')] = "p(1x1)",
    layers: Annotated[int | None, typer.Option(help="Number of layers.  [default: 3]", show_default=False)] = None,
    fixed_layers: Annotated[int, typer.Option(help="Lowest layers that relaxations keep fixed.")] = 1,
    lattice: Annotated[float | None, typer.Option(help="Lattice constant, Å; default: the default backend's.")] = None,
    window: Annotated[tuple[float, float], typer.Option(help="Confinement above the top layer, Å.")] = (1.0, 5.0),
    slab: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE", help="A slab that ASE reads, instead; of one with tags, the layers."),
    ] = None,
) -> dict[str, Any]:
    """Build a substrate.

    A crystal surface with tagged and fixed layers, and the window in which the overlayer lives.
    """
    from adlayer import study
    from adlayer.errors import UserError

    if slab is not None and (layers is not None or lattice is not None):
        raise UserError(f"--layers and --lattice do not go with --from {slab}, which has its own: leave them out")
    atoms = study.substrate(
        surface,
        cell,
        layers=3 if layers is None else layers,
        fixed_layers=fixed_layers,
        lattice=lattice,
        window=window,
        slab=slab,
        output=output,
    )
    session.wrote_structures(output)
    if "lattice" in atoms.info:
        session.say(f"lattice constant {atoms.info['lattice']:g} Å ({atoms.info['lattice_source']})")
    low, high = atoms.info["confinement"]
    session.say(f"{output}: {len(atoms)} atoms, {atoms.get_tags().max()} layers, window z = {low:g} to {high:g} Å")
    kept = ("superstructure", "confinement", "lattice", "lattice_source")
    return {"n_atoms": len(atoms), **{key: atoms.info[key] for key in kept if key in atoms.info}}


@verb("adlayer info search.db")
def info(
    session: Session,
    file: Annotated[str, typer.Argument(help="Structure file, database or model.")],
) -> dict[str, Any]:
    """Say what a file is and whether it is sound."""
    from adlayer.inspection import inspect

    found = inspect(file)
    for key, value in found.items():
        if (
            key in ("problems", "sound")
            or value in (None, 0, {}, [])
            or (isinstance(value, dict) and set(value) == {"none"})
        ):
            continue
        session.say(f"{key.replace('_', ' ')}: {_plain(value)}")
    session.say("sound" if found["sound"] else f"not sound: {'; '.join(found['problems'])}")
    return found


def _plain(value: Any, indent: int = 2) -> str:
    """A JSON value for reading: nested tables indented, energies with three digits."""
    if isinstance(value, dict):
        return "".join(f"\n{' ' * indent}{k}: {_plain(v, indent + 2)}" for k, v in value.items())
    if isinstance(value, list) and value and all(isinstance(v, float) for v in value):
        return " to ".join(f"{v:.3f}" for v in value) if len(value) == 2 else " ".join(f"{v:g}" for v in value)
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    return str(value)


@verb("adlayer calculators")
def calculators(session: Session) -> dict[str, Any]:
    """List the energy backends.

    Which work here, with versions, and how to add one.
    """
    from adlayer import study

    found = study.calculators()
    for backend in found:
        state = backend["version"] or f"missing: pip install 'adlayer[{backend['extra']}]'"
        session.say(f"{backend['name']:<10} {state:<42} {backend['note']}")
    session.say("model:PATH is the force field of a trained model; name?key=value passes arguments.")
    session.say('Any ASE calculator works by its import path: --calculator "mypackage.module:factory?key=value".')
    return {"calculators": found}

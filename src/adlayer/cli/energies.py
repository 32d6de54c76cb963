"""Verbs that spend force calls: ``search`` and ``relax``."""

from __future__ import annotations

import math
from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Calculator, Executor, Fmax, MaxSteps, Output, Select, Session, Workers, counted, verb


@verb('adlayer search substrate.extxyz --formula "Ag4O2 Ag5O2" -n 20 --calculator sevennet --db search.db')
def search(
    session: Session,
    substrate: Annotated[str, typer.Argument(help="Substrate file.")],
    database: Annotated[str, typer.Option("--db", help="Database to write to: .db file or PostgreSQL URL.")],
    formula: Annotated[list[str] | None, typer.Option(help="Overlayer; several by spaces or repeats.")] = None,
    range_: Annotated[list[str] | None, typer.Option("--range", help='Overlayers, such as "Ag3-6 O1-4".')] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Structures of each composition.")] = 10,
    calculator: Calculator = "sevennet",
    fmax: Fmax = 0.05,
    max_steps: MaxSteps = 300,
    min_distance: Annotated[float, typer.Option(help="Smallest distance in sums of covalent radii.")] = 0.7,
    workers: Workers = None,
    executor: Executor = None,
) -> dict[str, Any]:
    """Random structure search into a database.

    Relaxes random overlayers and keeps them with their paths.
    Interrupt it at any moment: the same command goes on where it was.
    """
    from adlayer import study

    with session.progress("search") as progress:
        summary = study.search(
            substrate,
            database,
            formula or [],
            ranges=range_ or [],
            n=n,
            calculator=calculator,
            seed=session.seed,
            fmax=fmax,
            max_steps=max_steps,
            min_distance=min_distance,
            workers=workers,
            executor_url=executor,
            progress=progress,
        )
    session.wrote(database)
    session.n_force_calls = summary.n_force_calls
    number = counted(summary.n, "structure")
    session.say(f"{database}: {number}, {summary.n_converged} converged, {summary.n_force_calls} force calls")
    for overlayer, energy in summary.lowest.items():
        session.say(f"  {overlayer}: lowest {energy:.3f} eV")
    return {"n": summary.n, "n_converged": summary.n_converged, "lowest": summary.lowest}


@verb("adlayer relax generated.extxyz --calculator sevennet --fmax 0.05 -o relaxed.extxyz")
def relax(
    session: Session,
    source: Annotated[str, typer.Argument(metavar="IN", help="Structure file or database.")],
    output: Output,
    calculator: Calculator = "sevennet",
    select: Select = "",
    fmax: Fmax = 0.05,
    max_steps: MaxSteps = 300,
    workers: Workers = None,
    executor: Executor = None,
) -> dict[str, Any]:
    """Relax structures locally.

    Records energies, force calls and convergence.
    Interrupt it at any moment: the same command goes on where it was.
    """
    from adlayer import study

    with session.progress("relax") as progress:
        relaxed = study.relax(
            source,
            output,
            calculator=calculator,
            select=select,
            fmax=fmax,
            max_steps=max_steps,
            workers=workers,
            executor_url=executor,
            progress=progress,
        )
    session.wrote_structures(output)
    rows = [atoms.info["row"] for atoms in relaxed]
    energies = [float(atoms.calc.results.get("energy", math.nan)) for atoms in relaxed]
    n_converged = sum(bool(row["converged"]) for row in rows)
    session.n_force_calls = sum(row["n_force_calls"] for row in rows)
    number = counted(len(rows), "structure")
    session.say(f"{output}: {number}, {n_converged} converged, {session.n_force_calls} force calls")
    finite = [energy for energy in energies if math.isfinite(energy)]
    if finite:
        session.say(f"  energies {min(finite):.3f} to {max(finite):.3f} eV")
    return {
        "n": len(rows),
        "n_converged": n_converged,
        "energies": [energy if math.isfinite(energy) else None for energy in energies],
        "n_steps": [row["n_steps"] for row in rows],
    }

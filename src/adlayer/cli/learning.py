"""Verbs around the model: ``train``, ``generate``, ``report``, ``run`` and ``demo``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from adlayer.cli.verbs import Device, Output, Session, Workers, counted, verb


@verb('adlayer train search.db -o model.safetensors --time 1h --select "dE<1.5"')
def train(
    session: Session,
    database: Annotated[str, typer.Argument(metavar="DB", help="Database of adlayer search.")],
    output: Output,
    select: Annotated[
        str,
        typer.Option(help='Rows to learn from: "dE<1.5" (eV), "0.2<O<0.4" (fraction), "shift<1" (Å), "n<100" rows.'),
    ] = "",
    repeat: Annotated[str, typer.Option(help="In-plane repetitions to draw from.")] = "1x1,1x1,2x1,1x2",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of steps; default 10000, or as --time allows.")
    ] = None,
    time: Annotated[str | None, typer.Option(help='How long: "90s", "30m", "1h".')] = None,
    batch: Annotated[
        int, typer.Option(min=0, help="Structures of a step; with 0 the force field alone is trained.")
    ] = 32,
    start: Annotated[str | None, typer.Option(metavar="MODEL", help="Begin with the weights of this model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Insist on going on with an interrupted training.")] = False,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Train denoiser and force field together.

    Writes the model, its metrics (CSV) and a loss curve. An interrupted training goes on when the same command is
    given again; a finished model learns from new data with --start.
    """
    from adlayer import study
    from adlayer.study.training import in_steps

    with session.progress("train, %" if time and not steps else "train") as progress:
        result = study.train(
            database,
            output,
            select=select,
            repeat=repeat,
            steps=steps,
            time=time,
            resume=resume,
            start=start,
            seed=session.seed,
            batch=batch,
            device=device,
            progress=in_steps(progress, steps, time),
            message=session.say,
        )
    for path in result.pop("outputs"):
        session.wrote(path)
    return result


@verb("adlayer generate model.safetensors substrate.extxyz --formula Ag12O6 -n 24 -o generated.extxyz")
def generate(
    session: Session,
    model: Annotated[str, typer.Argument(help="Model file.")],
    substrate: Annotated[str, typer.Argument(help="Substrate file; an overlayer in it is taken off.")],
    output: Output,
    formula: Annotated[str, typer.Option(help="Overlayer, such as Ag12O6.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Number of structures.")] = 10,
    preset: Annotated[str, typer.Option(help="default, fast or paper.")] = "default",
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of the solver.")] = None,
    solver: Annotated[str | None, typer.Option(help="multistep, heun or euler.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Strength of the force guidance, Å²/eV.")] = None,
    energy: Annotated[
        float | None, typer.Option(help="Energy above the lowest asked for, eV per overlayer atom.")
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Weight of the energy condition; 1 is plainly conditional.")
    ] = None,
    relax_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the final relaxation in the learned force field.")
    ] = None,
    starts: Annotated[
        int | None, typer.Option(min=1, help="Samples of which each structure is the lowest in learned energy.")
    ] = None,
    refine: Annotated[
        int | None, typer.Option(min=0, help="Rounds of noising, denoising and relaxing that keep what is lower.")
    ] = None,
    symmetry: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the structures drawn with a symmetry of the substrate.")
    ] = None,
    workers: Workers = None,
    device: Device = "cpu",
    trajectory: Annotated[str | None, typer.Option(metavar="FILE", help="Write the reverse process too.")] = None,
) -> dict[str, Any]:
    """Generate structures with a trained model.

    The substrate stays as it is, the overlayer within the window. OUT is a structure file or a database.
    """
    from adlayer import study
    from adlayer.study.learning import given

    with session.progress("generate") as progress:
        result = study.generate_to(
            model,
            substrate,
            output,
            formula=formula,
            n=n,
            seed=session.seed,
            sampling=study.sampling_settings(
                preset,
                **given(
                    steps=steps,
                    solver=solver,
                    guidance=guidance,
                    energy=energy,
                    weight=weight,
                    relax_steps=relax_steps,
                    starts=starts,
                    refine=refine,
                    symmetry=symmetry,
                ),
            ),
            trajectory=trajectory,
            workers=workers,
            device=device,
            progress=progress,
        )
    for path in result.pop("outputs"):
        session.wrote_structures(path)
    result.pop("structures")
    session.say(
        f"{output}: {counted(result['n'], 'structure')} of {result['formula']}, {result['cpu_s'] / n:.2f} CPU s each "
        "(energies are the learned force field's)"
    )
    return result


@verb("adlayer report runs/study -o page")
def report(
    session: Session,
    sources: Annotated[
        list[str], typer.Argument(metavar="STUDY …", help="Folder of a study, databases or structure files.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write to.")],
    reference: Annotated[
        str | None, typer.Option(help="Known structure: file, or name of a reference of the package.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    phases: Annotated[
        bool, typer.Option("--phases/--no-phases", help="Compute a phase diagram where there are several phases.")
    ] = True,
) -> dict[str, Any]:
    """Write the page of a study: a folder that opens offline.

    Structures in three dimensions linked to a map and a sortable table, with symmetries, duplicates, tunnelling
    images, diffraction patterns, and what was compared. A phase diagram needs the calculator of the energies.
    """
    from adlayer import study

    with session.progress("analyse") as progress:
        result = study.report(sources, output, reference_name=reference, title=title, phases=phases, progress=progress)
    for path in result.pop("outputs"):
        session.wrote(path)
    session.say(f"{result['report']}: {counted(result['n'], 'structure')}")
    return result


def _tell(session: Session, result: dict[str, Any]) -> dict[str, Any]:
    """What a finished study found, in words; its paths go to the session."""
    for path in result.pop("outputs", []):
        session.wrote(path)
    session.n_force_calls = result.pop("n_force_calls", 0)
    for line in result.pop("summary", []):
        session.say(line)
    return result


@verb("adlayer run examples/silver_oxide/study.toml --until train")
def run(
    session: Session,
    file: Annotated[
        str, typer.Argument(metavar="STUDY.toml", help="Study file; its own seed holds unless --seed is given.")
    ],
    until: Annotated[str | None, typer.Option(help="Last stage: search, train, generate, relax or report.")] = None,
) -> dict[str, Any]:
    """Run all stages of a study file.

    Each stage goes on where it was: run it again after an interruption.
    """
    from adlayer import study
    from adlayer.config import read_study

    loaded = read_study(file)
    if session.asked_seed is not None:
        loaded = loaded.model_copy(update={"seed": session.asked_seed})
    session.seed = loaded.seed
    return _tell(session, study.run(loaded, until=until, reporter=session))


@verb("adlayer demo -o demo")
def demo(
    session: Session,
    output: Annotated[str, typer.Option("-o", "--output", help="Folder to write to.")] = "demo",
    n: Annotated[int, typer.Option("-n", min=1, help="Number of structures.")] = 24,
) -> dict[str, Any]:
    """Do the main job on what ships.

    The pretrained model generates Ag12O6 on Ag(111) p(4x4); SevenNet-0 relaxes; duplicates go, the rest is ranked and
    matched against the Ag6 model, and a page written. A minute on two cores; interrupted, the same command goes on.
    """
    from adlayer import study

    return _tell(session, study.demo(output, n=n, seed=session.seed, reporter=session))

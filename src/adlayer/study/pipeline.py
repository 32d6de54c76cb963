"""``run``: all stages of a study file, each resumable; and ``demo``, the main job on what ships.

Everything lies in one folder: ``study.db`` (rows of every stage), ``random.db`` (random structures to compare with),
``model.safetensors`` with its metrics, ``ranked.extxyz`` and the page: ``index.html`` with the folder ``page``. A
stage looks in there for what is done already, so that a run goes on wherever it was stopped.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms

from adlayer.config import SearchTable, Study
from adlayer.energies.search import SearchSummary
from adlayer.errors import UserError
from adlayer.progress import Progress, silent
from adlayer.structures.placement import expand_range
from adlayer.structures.store import check_writable, connect, read_structures, write_structures, write_text
from adlayer.study.learning import generate_into, given, sampling_settings
from adlayer.study.reporting import Judgement, judge
from adlayer.study.training import in_steps, train

STAGES = ("search", "train", "generate", "relax", "report")
DEMO_MODEL = "ag-o.safetensors"
_BEGUN = "begun: "  # stands before the record of a training that has not ended
DEMO_REFERENCE = "p4x4-O_Ag111-Ag6"


class Reporter(Protocol):
    """Where a run tells how it gets on."""

    def say(self, text: str) -> None:
        """One line."""

    def progress(self, label: str) -> AbstractContextManager[Progress]:
        """A progress bar: the context's value is called with what is done and the total."""


class Quiet:
    """A reporter that says nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def progress(self, label: str) -> AbstractContextManager[Progress]:
        """Nothing."""
        return nullcontext(silent)


def _substrate(study: Study, cell: str, window: tuple[float, float] | None = None) -> Atoms:
    from adlayer.study.stages import substrate

    surface = study.surface
    return substrate(
        surface.name,
        cell,
        layers=surface.layers,
        fixed_layers=surface.fixed_layers,
        lattice=surface.lattice,
        window=window or surface.window,
    )


def _search_in(
    study: Study, reporter: Reporter, database: str, table: SearchTable, window: tuple[float, float] | None = None
) -> SearchSummary:
    """One random structure search of the study, into a database of its folder."""
    from adlayer.energies.search import search

    formulas = table.formulas + (expand_range(table.range) if table.range else [])
    if not formulas:
        raise UserError(f"the search in {table.cell} names no formulas: give formulas or a range")
    with reporter.progress(f"search {table.cell}") as progress:
        return search(
            _substrate(study, table.cell, window), formulas, table.n, connect(Path(study.directory) / database),
            calculator=study.relax.calculator, seed=study.seed, fmax=study.relax.fmax, max_steps=study.relax.max_steps,
            min_distance=table.min_distance, progress=progress,
        )  # fmt: skip


def _search(study: Study, reporter: Reporter) -> dict[str, Any]:
    found = [_search_in(study, reporter, "study.db", table) for table in study.search]
    return {
        "n": sum(s.n for s in found),
        "n_converged": sum(s.n_converged for s in found),
        "n_force_calls": sum(s.n_force_calls for s in found),
    }


def _random(study: Study, reporter: Reporter) -> list[Atoms]:
    """Converged random structures to compare with, in a database of their own: the model must not learn from them."""
    table = study.generate
    if not table.random:
        return []
    job = SearchTable(cell=table.cell, formulas=[table.formula], n=table.random)
    tasks = set(_search_in(study, reporter, "random.db", job, table.window).tasks)  # others may be there from before
    rows = read_structures(Path(study.directory) / "random.db")
    return [a for a in rows if a.info["row"]["converged"] and a.info["row"]["task"] in tasks]


def _training_record(study: Study) -> str:
    return study.model_dump_json(include={"seed", "surface", "search", "train", "relax"})


def _train(study: Study, reporter: Reporter) -> dict[str, Any]:
    from adlayer.training.checkpoint import state_path

    directory = Path(study.directory)
    model, record, wanted = directory / "model.safetensors", directory / "model.study.json", _training_record(study)
    written = record.read_text() if record.is_file() else ""
    if written == wanted and model.is_file() and not state_path(model).is_file():
        return {"trained_before": True, "outputs": [str(model)]}
    write_text(record, _BEGUN + wanted)  # what lies there now is not the model of this study
    table = study.train
    with reporter.progress("train, %" if table.time and not table.steps else "train") as progress:
        result = train(
            str(directory / "study.db"), str(model), rows="stage=search", select=table.select, repeat=table.repeat,
            time=table.time, steps=table.steps, batch=table.batch, seed=study.seed, message=reporter.say,
            progress=in_steps(progress, table.steps, table.time),
        )  # fmt: skip
    write_text(record, wanted)
    return result


def _generate(study: Study, reporter: Reporter, model: str) -> dict[str, Any]:
    table = study.generate
    with reporter.progress("generate") as progress:
        return generate_into(
            connect(Path(study.directory) / "study.db"), model, _substrate(study, table.cell, table.window),
            formula=table.formula, n=table.n, seed=study.seed, progress=progress,
            sampling=sampling_settings(
                table.preset,
                **given(steps=table.steps, starts=table.starts, refine=table.refine, symmetry=table.symmetry),
            ),
        )  # fmt: skip


def _relax(study: Study, reporter: Reporter, structures: list[Atoms]) -> list[Atoms]:
    from adlayer.energies.relaxing import relax_into_database

    with reporter.progress("relax") as progress:
        return relax_into_database(
            structures, connect(Path(study.directory) / "study.db"), study.relax.calculator, fmax=study.relax.fmax,
            max_steps=study.relax.max_steps, progress=progress,
        )  # fmt: skip


def _judge(study: Study, relaxed: list[Atoms], searched: list[Atoms], model: str, reporter: Reporter) -> dict[str, Any]:
    """Duplicates removed, ranked, matched, and the page."""
    from adlayer.training.checkpoint import model_hash

    directory, relax = Path(study.directory), study.relax
    with reporter.progress("analyse") as progress:
        found = judge(
            {"generated": relaxed, **({"random search": searched} if searched else {})},
            directory,
            title=study.title,
            reference=study.reference,
            phases=False,
            notes={
                "energies": f"{relax.calculator}, fmax {relax.fmax} eV/Å, at most {relax.max_steps} steps",
                "model": f"{Path(model).name} ({model_hash(model)})",
                "seed": str(study.seed),
                "cell": f"{study.surface.name} {study.generate.cell}, {study.surface.layers} layers",
            },
            progress=progress,
        )
    write_structures(directory / "ranked.extxyz", [found.structures[group[0]] for group in found.duplicates])
    lowest, zero = found.structures[found.duplicates[0][0]].get_potential_energy(), found.zero
    n_converged = sum(bool(a.info["row"]["converged"]) for a in relaxed)
    counts = f"{n_converged} of {len(relaxed)} relaxations converged"
    return {
        "n": len(relaxed),
        "n_unique": len(found.duplicates),
        "n_converged": n_converged,
        "n_matched": len(found.matched),
        "matched": found.matched,
        "lowest": lowest - zero,
        "n_force_calls": sum(a.info["row"]["n_force_calls"] for a in found.structures),
        "report": str(found.page),
        "summary": [counts, *_summary(found, study.reference), f"report: {found.page}"],
        "outputs": [str(directory / "study.db"), str(directory / "ranked.extxyz"), str(found.page)],
    }


def _summary(found: Judgement, reference: str | None) -> list[str]:
    """What was found, as lines of text: the lowest structures, and how many are the reference."""
    structures, matched = found.structures, set(found.matched)
    steps = sorted(a.info["row"]["n_steps"] for a in structures)
    lines = [
        f"{len(structures)} structures relaxed (median {steps[len(steps) // 2]} steps), "
        f"{len(found.duplicates)} of them different"
    ]
    lines.append("  rank  eV above " + (f"{reference:<24}" if reference else f"{'the lowest':<24}") + "times  sample")
    for rank, group in enumerate(found.duplicates[:8], start=1):
        first = structures[group[0]]
        name = "is it" if matched.intersection(group) else ""
        above = first.get_potential_energy() - found.zero
        lines.append(
            f"  {rank:>4}  {above:>+8.3f}  {name:<24}{len(group):>5}  {first.info['row'].get('sample', group[0])}"
        )
    if reference:
        lines.append(f"{len(matched)} of {len(structures)} are {reference} by lateral topology")
    return lines


def run(
    study: Study, *, until: str | None = None, model: str | None = None, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Run the stages of a study, each going on where it was.

    Parameters
    ----------
    study
        From :func:`adlayer.config.read_study`.
    until
        Last stage to run, one of :data:`STAGES`; default all.
    model
        A trained model to use in place of the stages ``search`` and ``train``.
    reporter
        Where to tell progress.

    Raises
    ------
    UserError
        For anything unusable in the study.
    """
    reporter = reporter or Quiet()
    if until is not None and until not in STAGES:
        raise UserError(f'stage "{until}" is unknown: choose one of {", ".join(STAGES)}')
    last = STAGES.index(until) if until else len(STAGES) - 1
    directory = Path(study.directory)
    check_writable(directory / "study.json")
    write_text(directory / "study.json", json.dumps(study.model_dump(), indent=1))
    result: dict[str, Any] = {"directory": str(directory)}
    if model is None:
        model = str(directory / "model.safetensors")
        result["search"] = _search(study, reporter)
        if last >= 1:
            result["train"] = _train(study, reporter)
    if last >= 2:
        generated = _generate(study, reporter, model)
        structures = generated.pop("structures")
        result["generate"] = generated
    if last >= 3:
        relaxed = _relax(study, reporter, structures)
    if last >= 4:
        result.update(_judge(study, relaxed, _random(study, reporter), model, reporter))
    return result


def demo(directory: str, *, n: int = 24, seed: int = 0, reporter: Reporter | None = None) -> dict[str, Any]:
    """Generate Ag12O6 on Ag(111) p(4x4) with the model that ships, relax, rank, match with the Ag6 model, report."""
    from adlayer.config import GenerateTable, SurfaceTable

    study = Study(
        title="Ag12O6 on Ag(111) p(4×4)",
        directory=directory,
        seed=seed,
        reference=DEMO_REFERENCE,
        surface=SurfaceTable(name="Ag(111)", layers=2, fixed_layers=1, lattice=4.167, window=(1.0, 4.0)),
        search=[SearchTable(cell="p(4x2)", formulas=["Ag6O3"])],
        generate=GenerateTable(cell="p(4x4)", formula="Ag12O6", n=n),
    )
    with resources.as_file(resources.files("adlayer") / "data" / DEMO_MODEL) as model:
        if not model.is_file():
            raise UserError(f"the model {DEMO_MODEL} that should ship is missing: install adlayer again")
        return run(study, model=str(model), reporter=reporter)

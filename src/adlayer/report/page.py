"""The report: a folder that opens offline, and can be moved or sent as it is.

========================  ==========================================================================================
``index.html``            the page: numbers, best structures, explorer, table, figures, provenance
``page/data.js``          the structures and properties that the explorer shows (:mod:`adlayer.report.explorer`)
``page/chemiscope.min.js``  the explorer itself, with ``LICENSES.txt``
``page/pictures/``        pictures of the lowest structures, and figures
``page/structures.extxyz``  every unique structure in the order of the table
========================  ==========================================================================================

The sets shown and the zero of energy are as in :mod:`adlayer.report.entries`. Pictures take a good part of a second
each, so only the lowest structures have them; all others are drawn by the explorer when they are selected, which keeps
a page of 5,000 structures usable. What a study knows beyond structures and energies comes as data: ``records`` become
columns, ``imagers`` pictures, ``phases`` figures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import ase.io
from ase import Atoms
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from adlayer.analysis.compare import Interval, calls_for_success, wilson_interval
from adlayer.analysis.matching import unique
from adlayer.analysis.records import potential_energy, row_values
from adlayer.errors import UserError
from adlayer.report.entries import Entry, Sets, above_zero, columns, rank, signed, subscripts, zero_levels
from adlayer.report.explorer import write_chemiscope, write_data
from adlayer.report.figures import structure_figure, structure_legend
from adlayer.report.sets import set_figures, set_rows
from adlayer.structures.store import check_writable, plain_info, write_text

FOLDER = "page"
_DPI = 150


def _save(figure: Figure, path: Path) -> str:
    """Write a figure; returns its path relative to the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return f"{FOLDER}/{path.parent.name}/{path.name}"


def _extended_xyz(atoms: Atoms) -> str:
    plain, text = atoms.copy(), StringIO()
    plain.calc, plain.info = atoms.calc, plain_info(atoms)
    ase.io.write(text, plain, format="extxyz")
    return text.getvalue()


def _pictures(
    folder: Path, entries: Sequence[Entry], imagers: Mapping[str, Callable[[Atoms], Figure]]
) -> dict[int, dict[str, str]]:
    """Draw the entries; label and path of the pictures of each rank, the structure first."""
    makers: dict[str, Callable[[Atoms], Figure]] = {"structure": structure_figure, **imagers}
    paths: dict[int, dict[str, str]] = {entry.rank: {} for entry in entries}
    for entry in entries:
        for label, make in makers.items():
            with suppress(UserError):  # what cannot be drawn, such as an image of a surface with holes, is left out
                path = folder / "pictures" / f"{entry.rank:04d}-{label.replace(' ', '-')}.png"
                paths[entry.rank][label] = _save(make(entry.atoms), path)
    return paths


def _saved_figures(folder: Path, name: str, figures: Mapping[str, tuple[Figure, str]]) -> list[dict[str, str]]:
    """Figures as the page shows them, from heading, figure and caption."""
    return [
        {
            "title": title,
            "path": _save(figure, folder / "pictures" / f"{name}-{place}.png"),
            "caption": caption,
        }
        for place, (title, (figure, caption)) in enumerate(figures.items(), start=1)
    ]


def _matched_note(structures: Sequence[Atoms], found: Interval) -> str:
    """How many force calls make a match nearly sure."""
    calls = row_values(structures, "n_force_calls")
    if len(calls) != len(structures) or not found.value > 0:
        return ""
    needed = calls_for_success(found.value, float(calls.mean()))
    return f"one is 95 % sure within about {float(f'{needed:.2g}'):.0f} force calls"


def _headline(structures: Sequence[Atoms], levels: Mapping[str, float], relative: bool) -> dict[str, str]:
    """The lowest energy (eV), or of several compositions, whose energies do not compare, their number."""
    totals = [energy for atoms in structures if (energy := potential_energy(atoms)) is not None]
    n = len({atoms.get_chemical_formula() for atoms in structures})
    if n > 1:
        return {"label": "compositions", "value": str(n), "unit": "", "note": "each with its own zero of energy"}
    if not totals:
        return {"label": "lowest energy", "value": signed(None), "unit": "", "note": "no energies recorded"}
    note = "relative to the reference" if relative else "total, of the cell"
    lowest = min(e for a in structures if (e := above_zero(a, levels)) is not None) if relative else min(totals)
    return {"label": "lowest energy", "value": signed(lowest), "unit": "eV", "note": note}


def _check(directory: Path, sets: Sets, matched: Iterable[int]) -> None:
    if not sets or not len(next(iter(sets.values()))):
        raise UserError("there are no structures to report on: generate or search some first")
    n = len(next(iter(sets.values())))
    if stray := [i for i in matched if not 0 <= i < n]:
        raise UserError(
            f"matched index {stray[0]} lies outside the {n} structures of the first group: number them from 0"
        )
    check_writable(directory / "index.html")


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of ``folder`` when all has gone well."""
    new, old = (folder.with_name(f".{os.getpid()}.{which}-{folder.name}") for which in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def _render(**values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("adlayer.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(signed=signed, subscripts=subscripts)
    return environment.get_template("page.html").render(**values)


def write_report(
    directory: str | os.PathLike[str],
    *,
    title: str,
    groups: Sets,
    reference: Atoms | None = None,
    matched: Sequence[int] = (),
    duplicates: Sequence[Sequence[int]] | None = None,
    records: Sequence[Mapping[str, Any]] | None = None,
    imagers: Mapping[str, Callable[[Atoms], Figure]] | None = None,
    phases: Mapping[str, tuple[Figure, str]] | None = None,
    tables: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
    best: int = 6,
    pictured: int = 12,
) -> Path:
    """Write ``index.html`` and the folder ``page`` beside it into a directory.

    Parameters
    ----------
    directory
        Made if need be; an older report there is replaced.
    title
        Heading of the page.
    groups
        Name and structures of each set, the one reported on first, such as ``{"generated": …, "random search": …}``.
        Energies come from their calculators (one setting for all), cost and origin from ``info["row"]``.
    reference
        The known structure; its energy, if it has one, is the zero.
    matched
        Indices into the first group of the structures that are the reference.
    duplicates
        Groups of indices of the same structure into the structures of all groups, one after the other, the lowest of
        each first; by default those of :func:`adlayer.analysis.matching.unique`.
    records
        Further properties of each of these structures by name: see :data:`adlayer.report.entries.DESCRIBED`.
    imagers
        Label and drawing function of further pictures of a structure, such as ``{"STM": …}``.
    phases
        Heading, figure and caption of each phase diagram.
    tables
        Names of files beside the page that hold its table; it links to them.
    provenance
        Name and value of what made the results: calculator, model, seeds, versions.
    best
        Number of structures shown large at the top.
    pictured
        Number of structures with pictures, at least ``best``.

    Returns
    -------
    pathlib.Path
        Of the page.

    Raises
    ------
    UserError
        If there are no structures, an index is out of range or the page cannot be written.
    """
    path = Path(directory) / "index.html"
    _check(path.parent, groups, matched)
    name, structures = next(iter(groups.items()))
    pooled = [atoms for group in groups.values() for atoms in group]
    levels = zero_levels(pooled, reference)
    with_energy = reference is not None and potential_energy(reference) is not None
    zero = "the reference" if with_energy else "the lowest of its composition"
    groups_of_same = unique(pooled) if duplicates is None else duplicates
    entries = rank(groups, groups_of_same, levels, matched=matched, records=records)
    found = wilson_interval(len(matched), len(structures))
    with _replacing(path.parent / FOLDER) as folder:
        files = {entry.filename: _extended_xyz(entry.atoms) for entry in entries}
        (folder / "structures.extxyz").write_text("".join(files.values()), encoding="utf-8")
        pictures = _pictures(folder, entries[: max(best, pictured)], imagers or {})
        write_chemiscope(folder)
        write_data(folder / "data.js", title, entries, pictures, files)
        page = _render(
            title=title,
            name=name,
            n=len(structures),
            n_unique=sum(name in entry.found for entry in entries),
            entries=entries,
            columns=columns(entries, reference is not None),
            headline=_headline(structures, levels, with_energy),
            zero=zero,
            has_reference=reference is not None,
            n_matched=len(matched),
            found=found,
            matched_note=_matched_note(structures, found),
            best=entries[:best],
            pictures=pictures,
            reference_image=None
            if reference is None
            else _save(structure_figure(reference), folder / "pictures" / "reference.png"),
            legend=structure_legend(entries[0].atoms),
            rows=set_rows(groups, levels),
            phases=_saved_figures(folder, "phases", phases or {}),
            figures=_saved_figures(folder, "figure", set_figures(groups, levels, zero)),
            tables=tables,
            provenance=dict(provenance or {}),
            folder=FOLDER,
        )
    write_text(path, page)
    return path

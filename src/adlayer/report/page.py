"""The report: one HTML file with everything in it.

Energies are given above a zero level for each composition: the reference's energy if it has the same formula (and an
energy from the same calculator, which is the caller's to see to), else the lowest of all structures shown. The first
group is the one reported on; the others stand beside it for comparison.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from adlayer.analysis.compare import (
    Interval,
    calls_for_success,
    coverage,
    distribution_distance,
    energies_above_lowest,
    potential_energy,
    relaxation_cost,
    row_values,
    wilson_interval,
)
from adlayer.analysis.matching import unique
from adlayer.errors import UserError
from adlayer.report.figures import energy_distribution, relaxation_figure, structure_figure, structure_legend
from adlayer.structures.placement import overlayer_formula
from adlayer.structures.store import check_writable, plain_info

_NONE = "–"


@dataclass(frozen=True)
class Entry:
    """One unique structure as the page shows it; energies in eV, ``None`` where not recorded."""

    rank: int
    formula: str
    coverage: str
    energy: float | None
    above: float | None
    copies: int
    matched: bool
    n_steps: int | None
    n_force_calls: int | None
    converged: bool | None
    origin: str
    filename: str
    download: str
    atoms: Atoms

    @property
    def picture_text(self) -> str:
        """What the picture shows, for those who cannot see it."""
        return f"Structure {self.rank}, {self.formula}, from above and from the side; {signed(self.above)} eV"


def signed(value: float | None, digits: int = 3) -> str:
    """A number with its sign and a true minus; a dash for ``None``.

    >>> signed(-0.1234), signed(None)
    ('−0.123', '–')
    """
    if value is None:
        return _NONE
    return f"{0.0 if abs(value) < 0.5 * 10**-digits else value:+.{digits}f}".replace("-", "−")


def subscripts(formula: str) -> str:
    """A formula as it is printed.

    >>> subscripts("Ag12O6")
    'Ag₁₂O₆'
    """
    return formula.translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def interval_text(interval: Interval | None, digits: int = 0) -> str:
    """An estimate with its 95 % interval.

    >>> interval_text(Interval(70.0, 61.0, 84.5))
    '70 (61–84)'
    """
    if interval is None:
        return _NONE
    low, high = (f"{v:.{digits}f}".replace("-", "−") for v in (interval.low, interval.high))
    return f"{interval.value:.{digits}f}".replace("-", "−") + f" ({low}–{high})"


def _png(figure: Figure, dpi: int = 150) -> str:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _extxyz_link(atoms: Atoms) -> str:
    plain, text = atoms.copy(), StringIO()
    plain.calc, plain.info = atoms.calc, plain_info(atoms)
    ase.io.write(text, plain, format="extxyz")
    return "data:chemical/x-xyz;base64," + base64.b64encode(text.getvalue().encode()).decode()


def _zero_levels(structures: Iterable[Atoms], reference: Atoms | None) -> dict[str, float]:
    """Energy (eV) that counts as zero for each formula of the whole structure."""
    levels: dict[str, float] = {}
    for atoms in structures:
        if (energy := potential_energy(atoms)) is not None:
            formula = atoms.get_chemical_formula()
            levels[formula] = min(levels.get(formula, energy), energy)
    if reference is not None and (energy := potential_energy(reference)) is not None:
        levels[reference.get_chemical_formula()] = energy
    return levels


def _above(atoms: Atoms, levels: Mapping[str, float]) -> float | None:
    if potential_energy(atoms) is None:
        return None
    return float(energies_above_lowest([atoms], levels[atoms.get_chemical_formula()])[0])


def _energies(structures: Sequence[Atoms], levels: Mapping[str, float]) -> np.ndarray:
    above = [_above(atoms, levels) for atoms in structures]
    return np.array([energy for energy in above if energy is not None])


def _origin(row: Mapping[str, Any]) -> str:
    return " / ".join(str(row[key]) for key in ("seed", "sample") if row.get(key) is not None) or _NONE


def _entries(structures: Sequence[Atoms], matched: set[int], levels: Mapping[str, float]) -> list[Entry]:
    """Unique structures, the lowest first."""
    groups = unique(structures)
    heights = [_above(structures[group[0]], levels) for group in groups]
    order = sorted(range(len(groups)), key=lambda g: np.inf if (h := heights[g]) is None else h)
    entries = []
    for rank, g in enumerate(order, start=1):
        atoms, row = structures[groups[g][0]], structures[groups[g][0]].info.get("row", {})
        formula = overlayer_formula(atoms)
        entries.append(
            Entry(
                rank=rank,
                formula=formula,
                coverage=" + ".join(f"{theta:.3g} {element}" for element, theta in reversed(coverage(atoms).items())),
                energy=potential_energy(atoms),
                above=heights[g],
                copies=len(groups[g]),
                matched=not matched.isdisjoint(groups[g]),
                n_steps=row.get("n_steps"),
                n_force_calls=row.get("n_force_calls"),
                converged=row.get("converged"),
                origin=_origin(row),
                filename=f"{rank:03d}-{formula}.extxyz",
                download=_extxyz_link(atoms),
                atoms=atoms,
            )
        )
    return entries


def _group_rows(groups: Mapping[str, Sequence[Atoms]], levels: Mapping[str, float]) -> list[dict[str, str]]:
    """The table that sets the groups side by side; differences are those from the first group."""
    first = _energies(next(iter(groups.values())), levels)
    rows = []
    for place, (name, structures) in enumerate(groups.items()):
        energies, cost = _energies(structures, levels), relaxation_cost(structures)
        known = len(row_values(structures, "converged"))
        difference = distribution_distance(first, energies) if place and len(first) and len(energies) else None
        rows.append(
            {
                "name": name,
                "n": str(cost.n),
                "converged": f"{cost.n_converged} of {known}" if known else _NONE,
                "lowest": signed(energies.min()) if len(energies) else _NONE,
                "median": signed(float(np.median(energies))) if len(energies) else _NONE,
                "steps": interval_text(cost.n_steps),
                "calls": interval_text(cost.n_force_calls),
                "distance": interval_text(difference.wasserstein, 2) if difference else _NONE,
                "p_value": f"{difference.ks_p_value:.2g}" if difference else _NONE,
            }
        )
    return rows


def _figures(groups: Mapping[str, Sequence[Atoms]], levels: Mapping[str, float], zero: str) -> list[dict[str, str]]:
    """Energy and cost figures of what is recorded, with captions."""
    figures = []
    energies = {name: _energies(structures, levels) for name, structures in groups.items()}
    if any(len(values) for values in energies.values()):
        figure = energy_distribution(energies, f"energy above {zero} (eV)")
        caption = "Energies. Each tick is one structure; dashed lines are medians."
        figures.append({"image": _png(figure), "caption": caption, "text": f"Histogram of energies above {zero}"})
    steps = {name: row_values(structures, "n_steps") for name, structures in groups.items()}
    if any(len(values) for values in steps.values()):
        caption = "Relaxation cost. Each point is one structure; bars are 95 % intervals of the median."
        figures.append({"image": _png(relaxation_figure(steps)), "caption": caption, "text": "Relaxation steps by set"})
    return figures


def _matched_note(structures: Sequence[Atoms], found: Interval) -> str:
    """How many force calls make a match nearly sure."""
    calls = row_values(structures, "n_force_calls")
    if len(calls) != len(structures) or not found.value > 0:
        return ""
    needed = calls_for_success(found.value, float(calls.mean()))
    return f"one is 95 % sure within about {float(f'{needed:.2g}'):.0f} force calls"


def _lowest(structures: Sequence[Atoms], levels: Mapping[str, float], relative: bool) -> tuple[float | None, str]:
    """The headline energy (eV) and what it is."""
    totals = [energy for atoms in structures if (energy := potential_energy(atoms)) is not None]
    if not totals:
        return None, "no energies recorded"
    if relative:
        return float(_energies(structures, levels).min()), "relative to the reference"
    return min(totals), "total, of the cell"


def _check(directory: Path, groups: Mapping[str, Sequence[Atoms]], matched: Iterable[int]) -> None:
    if not groups or not len(next(iter(groups.values()))):
        raise UserError("there are no structures to report on: generate or search some first")
    n = len(next(iter(groups.values())))
    if stray := [i for i in matched if not 0 <= i < n]:
        raise UserError(
            f"matched index {stray[0]} lies outside the {n} structures of the first group: number them from 0"
        )
    check_writable(directory / "index.html")


def write_report(
    directory: str | os.PathLike[str],
    *,
    title: str,
    groups: Mapping[str, Sequence[Atoms]],
    reference: Atoms | None = None,
    matched: Sequence[int] = (),
    provenance: Mapping[str, str] | None = None,
    best: int = 6,
) -> Path:
    """Write ``index.html``, self-contained, into a directory.

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
    provenance
        Name and value of what made the results: calculator, model, seeds, versions.
    best
        Number of structures pictured.

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
    levels = _zero_levels((atoms for group in groups.values() for atoms in group), reference)
    with_energy = reference is not None and potential_energy(reference) is not None
    zero = "the reference" if with_energy else "the lowest of its composition"
    entries = _entries(structures, set(matched), levels)
    lowest, lowest_note = _lowest(structures, levels, with_energy)
    found = wilson_interval(len(matched), len(structures))
    pictured = [{"entry": entry, "image": _png(structure_figure(entry.atoms))} for entry in entries[:best]]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(signed=signed, subscripts=subscripts)
    template = environment.from_string((resources.files("adlayer.report") / "page.html").read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        name=name,
        n=len(structures),
        entries=entries,
        lowest=lowest,
        lowest_note=lowest_note,
        zero=zero,
        has_reference=reference is not None,
        n_matched=len(matched),
        found=found,
        matched_note=_matched_note(structures, found),
        pictured=pictured,
        reference_image=_png(structure_figure(reference)) if reference is not None else None,
        legend=structure_legend(entries[0].atoms),
        rows=_group_rows(groups, levels),
        figures=_figures(groups, levels, zero),
        provenance=dict(provenance or {}),
    )
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path

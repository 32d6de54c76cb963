"""The sets of a page side by side: a table, and the figures of energies, cost and success.

A success is a structure within 0.1 eV of the zero of energy or below. Its curve is drawn where all sets have one
composition and cell and every force call is recorded, so that the sets compete for the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from ase import Atoms
from matplotlib.figure import Figure

from adlayer.analysis.compare import DistributionDistance, distribution_distance, relaxation_cost, success_curve
from adlayer.analysis.records import row_values
from adlayer.report.entries import NONE, Sets, above_zero, interval_text, signed
from adlayer.report.figures import energy_distribution, relaxation_figure, success_figure

WITHIN = 0.1


def _energies(structures: Sequence[Atoms], levels: Mapping[str, float]) -> np.ndarray:
    above = [above_zero(atoms, levels) for atoms in structures]
    return np.array([energy for energy in above if energy is not None])


def set_rows(sets: Sets, levels: Mapping[str, float]) -> list[dict[str, str]]:
    """The table that sets the groups side by side; differences are those from the first group,
    where the compositions are the same."""
    first = next(iter(sets.values()))
    rows = []
    for place, (name, structures) in enumerate(sets.items()):
        energies, cost = _energies(structures, levels), relaxation_cost(structures)
        known = len(row_values(structures, "converged"))
        difference = _difference(first, structures, levels) if place else None
        rows.append(
            {
                "name": name,
                "n": str(cost.n),
                "converged": f"{cost.n_converged} of {known}" if known else NONE,
                "lowest": signed(energies.min()) if len(energies) else NONE,
                "median": signed(float(np.median(energies))) if len(energies) else NONE,
                "steps": interval_text(cost.n_steps),
                "calls": interval_text(cost.n_force_calls),
                "distance": interval_text(difference.wasserstein, 2) if difference else NONE,
                "p_value": f"{difference.ks_p_value:.2g}" if difference else NONE,
            }
        )
    return rows


def _difference(
    first: Sequence[Atoms], second: Sequence[Atoms], levels: Mapping[str, float]
) -> DistributionDistance | None:
    """Of the energies of two sets, or ``None`` where their compositions differ or no energy is known."""
    a, b = _energies(first, levels), _energies(second, levels)
    same = {x.get_chemical_formula() for x in first} == {x.get_chemical_formula() for x in second}
    return distribution_distance(a, b) if same and len(a) and len(b) else None


def _success(sets: Sets, levels: Mapping[str, float]) -> Figure | None:
    """The success curves, or ``None`` where they would compare different things or nothing ever succeeded."""
    one_system = len({(a.get_chemical_formula(), round(a.cell.areas()[2], 1)) for s in sets.values() for a in s}) == 1
    energies = {name: _energies(structures, levels) for name, structures in sets.items()}
    calls = {name: row_values(structures, "n_force_calls") for name, structures in sets.items()}
    complete = all(
        len(energies[name]) == len(calls[name]) == len(s) and calls[name].sum() > 0 for name, s in sets.items()
    )
    if not one_system or not complete or not any((values <= WITHIN).any() for values in energies.values()):
        return None
    budget = max(float(values.sum()) for values in calls.values())
    return success_figure({n: success_curve(energies[n] <= WITHIN, calls[n], budget=budget) for n in sets})


def set_figures(sets: Sets, levels: Mapping[str, float], zero: str) -> dict[str, tuple[Figure, str]]:
    """Heading, figure and caption of what is recorded."""
    figures: dict[str, tuple[Figure, str]] = {}
    energies = {name: _energies(structures, levels) for name, structures in sets.items()}
    if any(len(values) for values in energies.values()):
        figure = energy_distribution(energies, f"energy above {zero} (eV)")
        figures["Energies"] = (figure, "Each tick is one structure; dashed lines are medians.")
    steps = {name: row_values(structures, "n_steps") for name, structures in sets.items()}
    if any(len(values) for values in steps.values()):
        caption = "Each point is one structure; bars are 95 % intervals of the median."
        figures["Relaxation cost"] = (relaxation_figure(steps), caption)
    if (curves := _success(sets, levels)) is not None:
        caption = (
            f"Chance of having found a structure within {WITHIN} eV of the zero, against the force calls spent on "
            "relaxations; bands are 95 %."
        )
        figures["Success"] = (curves, caption)
    return figures

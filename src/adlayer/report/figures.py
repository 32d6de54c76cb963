"""Figures: structures from above and from the side, energies, relaxation cost, losses, success.

Conventions: each function returns its own :class:`matplotlib.figure.Figure` (no global state; save it with
``figure.savefig``). Colours are Okabe and Ito's, distinguishable with any colour vision (M. Okabe & K. Ito, 2008). In
structures the substrate is grey, lighter towards the bottom, the overlayer's metal blue, oxygen vermilion; what lies
deeper, or in another unit cell, is paler. Lengths in Å, energies in eV.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols, covalent_radii
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon
from numpy.typing import ArrayLike

from adlayer.analysis.compare import SuccessCurve, bootstrap_interval
from adlayer.errors import UserError

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
_INK = "#1f2933"
_MUTED = "#6b7684"
_SUBSTRATE = ("#a7b0bb", "#c8ced6", "#e1e5ea", "#f2f4f6")  # from the top layer down
_NONMETALS = {"O": "#D55E00", "H": "#f5f5f5", "C": "#3b3f46", "N": "#7a5cc2", "S": "#E3C800", "Cl": "#009E73"}
_METALS = ("#1f77b4", "#009E73", "#CC79A7", "#56B4E9")
_LEAST_WIDTH = 12.0  # Å shown of a structure
_SCALE = 0.92  # drawn radius over covalent radius
_HIGHLIGHT = ((0.80, 0.08, 0.07), (0.60, 0.16, 0.09), (0.42, 0.23, 0.12), (0.24, 0.30, 0.18))  # radius, shift, strength


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plain_axes(
    figure: Figure, xlabel: str, ylabel: str, place: tuple[int, int, int] | SubplotSpec = (1, 1, 1)
) -> Axes:
    axes = figure.add_subplot(*place) if isinstance(place, tuple) else figure.add_subplot(place)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa5b1")
    axes.tick_params(colors=_MUTED, labelsize=9, length=3)
    axes.set_xlabel(xlabel, color=_INK, fontsize=10)
    axes.set_ylabel(ylabel, color=_INK, fontsize=10)
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _legend(axes: Axes, **keywords: Any) -> None:
    axes.legend(frameon=False, fontsize=9, labelcolor=_INK, **keywords)


def _towards_white(colour: ArrayLike, amount: ArrayLike) -> np.ndarray:
    """Colours (..., 3) mixed with white; 0 leaves them, 1 is white."""
    mix = np.asarray(amount, dtype=float)[..., None]
    return np.asarray(colour) * (1 - mix) + mix


def _element_colours(atoms: Atoms) -> dict[int, str]:
    """Colour of each element of the overlayer, by atomic number."""
    elements = sorted({int(z) for z in atoms.numbers[atoms.get_tags() == 0]}, reverse=True)
    metals = itertools.cycle(_METALS)
    return {z: _NONMETALS.get(chemical_symbols[z]) or next(metals) for z in elements}


def _base_colours(atoms: Atoms) -> np.ndarray:
    """(n, 3) RGB of each atom: element in the overlayer (paler the deeper it lies), layer in the substrate."""
    tags, heights = atoms.get_tags(), atoms.positions[:, 2]
    elements = _element_colours(atoms)
    colours = np.array(
        [
            to_rgb(elements[int(z)] if tag == 0 else _SUBSTRATE[min(int(tag), len(_SUBSTRATE)) - 1])
            for tag, z in zip(tags, atoms.numbers, strict=True)
        ]
    )
    for z in elements:
        of = (tags == 0) & (atoms.numbers == z)
        colours[of] = _towards_white(colours[of], 0.42 * np.clip((heights[of].max() - heights[of]) / 2.5, 0, 1))
    return colours


def _images(atoms: Atoms, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index (m,) and position (m, 3) of every periodic image whose x, y lie within ``low`` to ``high`` (2,)."""
    cell = np.asarray(atoms.cell[:2, :2])
    corners = np.array(list(itertools.product(*zip(low, high, strict=True)))) @ np.linalg.inv(cell)
    fractional = atoms.positions[:, :2] @ np.linalg.inv(cell)
    first = np.floor(corners.min(0) - fractional.max(0)).astype(int)
    last = np.ceil(corners.max(0) - fractional.min(0)).astype(int)
    shifts = np.array(list(itertools.product(*(range(a, b + 1) for a, b in zip(first, last, strict=True))))) @ cell
    lateral = atoms.positions[:, None, :2] + shifts  # (n, s, 2)
    index, shift = np.nonzero(((lateral >= low) & (lateral <= high)).all(-1))
    return index, np.column_stack([lateral[index, shift], atoms.positions[index, 2]])


def _discs(axes: Axes, centres: np.ndarray, radii: np.ndarray, colours: np.ndarray, edges: np.ndarray) -> None:
    """Circles with a soft highlight, painted in the order given."""
    patches, faces, lines = [], [], []
    for centre, radius, colour, edge in zip(centres, radii, colours, edges, strict=True):
        patches.append(Circle(tuple(centre), radius))
        faces.append((*colour, 1.0))
        lines.append((*edge, 1.0))
        for size, shift, alpha in _HIGHLIGHT:
            patches.append(Circle((centre[0] - shift * radius, centre[1] + shift * radius), size * radius))
            faces.append((1.0, 1.0, 1.0, alpha))
            lines.append((1.0, 1.0, 1.0, 0.0))
    axes.add_collection(PatchCollection(patches, facecolors=faces, edgecolors=lines, linewidths=0.6))


def _draw_top(axes: Axes, atoms: Atoms, margin: float) -> None:
    cell = np.asarray(atoms.cell[:2, :2])
    outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ cell
    low, high = outline.min(0) - margin, outline.max(0) + margin
    radii = _SCALE * covalent_radii[atoms.numbers]
    index, points = _images(atoms, low - radii.max(), high + radii.max())
    order = np.argsort(points[:, 2], kind="stable")
    index, points = index[order], points[order]
    fractional = points[:, :2] @ np.linalg.inv(cell)
    slack = 0.2 / np.linalg.norm(cell, axis=1)  # atoms on the outline belong to the cell
    outside = ((fractional < -slack) | (fractional > 1 + slack)).any(axis=1)
    colours = _towards_white(_base_colours(atoms)[index], 0.4 * outside)
    edges = _towards_white(0.45 * _base_colours(atoms)[index], 0.5 * outside)
    _discs(axes, points[:, :2], radii[index], colours, edges)
    axes.add_patch(Polygon(outline, closed=True, fill=False, edgecolor="white", linewidth=3.0, joinstyle="round"))
    axes.add_patch(Polygon(outline, closed=True, fill=False, edgecolor=_INK, linewidth=1.3, joinstyle="round"))
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _draw_side(axes: Axes, atoms: Atoms, margin: float) -> None:
    cell = np.asarray(atoms.cell[:2, :2])
    outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ cell
    radii = _SCALE * covalent_radii[atoms.numbers]
    left, right = outline[:, 0].min() - margin, outline[:, 0].max() + margin
    front, back = outline[:, 1].min() - 1e-6, outline[:, 1].max() - 1e-6
    index, points = _images(atoms, np.array([left - radii.max(), front]), np.array([right + radii.max(), back]))
    order = np.argsort(-points[:, 1], kind="stable")
    index, points = index[order], points[order]
    depth = (points[:, 1] - front) / (back - front)
    colours = _towards_white(_base_colours(atoms)[index], 0.45 * depth)
    edges = _towards_white(0.45 * _base_colours(atoms)[index], 0.55 * depth)
    _discs(axes, points[:, [0, 2]], radii[index], colours, edges)
    heights = atoms.positions[:, 2]
    axes.set(xlim=(left, right), ylim=(heights.min() - radii.max() - 0.2, heights.max() + radii.max() + 0.2))


def _default_margin(atoms: Atoms) -> float:
    """Å around the cell: a rim round large cells, neighbours round small ones."""
    outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.asarray(atoms.cell[:2, :2])
    return max(1.5, float(_LEAST_WIDTH - np.ptp(outline[:, 0])) / 2)


def draw_structure(axes: Axes, atoms: Atoms, view: str = "top", margin: float | None = None) -> None:
    """Draw a structure with its periodic images.

    Parameters
    ----------
    axes
        Where to; its frame and ticks are removed.
    atoms
        With tags.
    view
        ``"top"``: along −z, unit cell outlined, atoms of neighbouring cells pale; ``"side"``: along +y, what lies
        farther away pale.
    margin
        Å shown around the cell; by default at least 1.5, and as much as makes the picture 12 Å wide.

    Raises
    ------
    UserError
        If there is no such view.
    """
    if view not in ("top", "side"):
        raise UserError(f'there is no view "{view}": choose top or side')
    draw = _draw_top if view == "top" else _draw_side
    draw(axes, atoms, _default_margin(atoms) if margin is None else margin)
    axes.set_aspect("equal")
    axes.set_axis_off()


def structure_figure(atoms: Atoms, title: str = "", width: float = 4.2) -> Figure:
    """A structure from above and, below it on the same scale, from the side; ``width`` in inches."""
    margin = _default_margin(atoms)
    outline = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.asarray(atoms.cell[:2, :2])
    spans = outline.max(0) - outline.min(0) + 2 * margin
    thickness = np.ptp(atoms.positions[:, 2]) + 2 * _SCALE * covalent_radii[atoms.numbers].max() + 0.4
    scale = width / spans[0]
    figure = _figure(width, scale * (spans[1] + thickness) + 0.15 + (0.3 if title else 0))
    top, side = figure.subplots(2, 1, height_ratios=[spans[1], thickness])
    draw_structure(top, atoms, "top", margin)
    draw_structure(side, atoms, "side", margin)
    if title:
        figure.suptitle(title, fontsize=11, color=_INK)
    return figure


def structure_legend(atoms: Atoms) -> list[tuple[str, str]]:
    """Label and colour of what the drawings show: overlayer elements, then substrate layers from the top."""
    labels = [(f"{chemical_symbols[z]} overlayer", colour) for z, colour in _element_colours(atoms).items()]
    layers = sorted({int(t) for t in atoms.get_tags() if t > 0})[: len(_SUBSTRATE)]
    return labels + [(f"layer {t}" + (" (top)" if t == 1 else ""), _SUBSTRATE[t - 1]) for t in layers]


def _samples(groups: Mapping[str, ArrayLike]) -> dict[str, np.ndarray]:
    samples = {name: np.asarray(values, dtype=float).ravel() for name, values in groups.items()}
    samples = {name: values[np.isfinite(values)] for name, values in samples.items()}
    samples = {name: values for name, values in samples.items() if len(values)}
    if not samples:
        raise UserError("there are no finite values to draw: give at least one")
    return samples


def energy_distribution(
    groups: Mapping[str, ArrayLike], xlabel: str = "energy above the lowest (eV)", bins: int = 24
) -> Figure:
    """Energies of several sets side by side: histograms of fractions, each structure a tick, medians dashed.

    Parameters
    ----------
    groups
        Name and energies (n,), eV, of each set.
    xlabel
        What the energies are relative to.
    bins
        Number of bins, common to all sets.
    """
    samples = _samples(groups)
    figure = _figure(6.4, 3.0 + 0.14 * len(samples))
    axes = _plain_axes(figure, xlabel, "fraction of structures")
    pooled = np.concatenate(list(samples.values()))
    edges = np.linspace(min(pooled.min(), 0.0), pooled.max() + 1e-9 + 0.02 * (np.ptp(pooled) or 1.0), bins + 1)
    peak = 0.0
    for values, colour in zip(samples.values(), itertools.cycle(PALETTE), strict=False):
        fraction = np.histogram(values, edges)[0] / len(values)
        peak = max(peak, float(fraction.max()))
        axes.stairs(fraction, edges, fill=True, facecolor=(*to_rgb(colour), 0.22), edgecolor=colour, linewidth=1.4)
        axes.axvline(float(np.median(values)), color=colour, linestyle=(0, (4, 3)), linewidth=1.1)
    for row, (values, colour) in enumerate(zip(samples.values(), itertools.cycle(PALETTE), strict=False), start=1):
        axes.plot(values, np.full(len(values), -0.055 * row * peak), "|", color=colour, markersize=6, alpha=0.8)
    axes.set_ylim(-0.055 * (len(samples) + 0.8) * peak, 1.08 * peak)
    axes.set_yticks([t for t in axes.get_yticks() if 0 <= t <= 1.08 * peak])
    handles = [
        Line2D([], [], color=colour, linewidth=5, alpha=0.6, label=f"{name} (n = {len(values)})")
        for (name, values), colour in zip(samples.items(), itertools.cycle(PALETTE), strict=False)
    ]
    _legend(
        axes, handles=[*handles, Line2D([], [], color=_MUTED, linestyle=(0, (4, 3)), linewidth=1.1, label="median")]
    )
    return figure


def relaxation_figure(groups: Mapping[str, ArrayLike], xlabel: str = "relaxation steps", seed: int = 0) -> Figure:
    """Cost of each structure as a point, and the median of each set with its 95 % bootstrap interval.

    Parameters
    ----------
    groups
        Name and steps or force calls (n,) of each set.
    xlabel
        What is counted.
    seed
        Of the bootstrap.
    """
    samples = _samples(groups)
    figure = _figure(6.4, 1.5 + 0.85 * len(samples))
    axes = _plain_axes(figure, xlabel, "")
    rows = range(len(samples) - 1, -1, -1)  # the first set on top
    for row, values, colour in zip(rows, samples.values(), itertools.cycle(PALETTE), strict=False):
        spread = (np.arange(len(values)) * 0.618034) % 1.0 - 0.5  # low-discrepancy jitter: the same at every drawing
        axes.scatter(values, row + 0.42 * spread, s=16, color=colour, alpha=0.4, linewidths=0)
        median = bootstrap_interval(values, np.median, seed)
        axes.plot([median.low, median.high], [row, row], color=_INK, linewidth=2.2, solid_capstyle="butt")
        axes.plot(median.value, row, "o", color="white", markeredgecolor=_INK, markeredgewidth=1.6, markersize=7)
        axes.annotate(
            f"median {median.value:.0f}", (median.value, row + 0.27), ha="center", va="bottom", fontsize=9, color=_INK
        )
    axes.set_yticks(rows, [f"{name}\n(n = {len(v)})" for name, v in samples.items()])
    axes.set_ylim(-0.5, len(samples) - 0.35)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.7)
    return figure


def _column(rows: Sequence[Mapping[str, object]], step: str, name: str) -> np.ndarray:
    """Points (m, 2) of a metrics column against the step, empty and undefined fields left out."""
    points = [(float(str(row[step])), float(str(row[name]))) for row in rows if row.get(name) not in (None, "")]
    table = np.array(points, dtype=float).reshape(-1, 2)
    return table[np.isfinite(table).all(axis=1)]


def loss_curve(rows: Sequence[Mapping[str, object]], step: str = "step") -> Figure:
    """Losses and validation errors against training steps, score and force field apart, on logarithmic axes.

    Parameters
    ----------
    rows
        Rows of a metrics table (such as ``csv.DictReader`` gives): ``step`` and columns whose name contains ``loss`` or
        begins with ``validation``; of these, ``force`` and ``energy`` mark the force field.
    step
        Name of the column on the horizontal axis.

    Raises
    ------
    UserError
        If there is nothing to draw.
    """
    names = [n for n in dict.fromkeys(k for row in rows for k in row) if "loss" in n or n.startswith("validation")]
    curves = {name: points for name in names if len(points := _column(rows, step, name))}
    of_field = {name for name in curves if "force" in name or "energy" in name}
    panels = [p for p in ([n for n in curves if n not in of_field], [n for n in curves if n in of_field]) if p]
    if not panels:
        raise UserError('the metrics have no column with "loss" in its name: give the table that training wrote')
    units = {"validation_energy": " (eV/atom)", "validation_force": " (eV/Å)"}
    figure = _figure(4.6 * len(panels) if len(panels) > 1 else 6.4, 3.2)
    for place, panel in enumerate(panels, start=1):
        title = "force field" if panel[0] in of_field else "score"
        axes = _plain_axes(figure, "training step", f"loss of the {title}", (1, len(panels), place))
        for name, colour in zip(panel, itertools.cycle(PALETTE), strict=False):
            marker = "o" if len(curves[name]) <= 40 else ""
            label = name.replace("_", " ") + units.get(name, "")
            axes.plot(*curves[name].T, color=colour, linewidth=1.5, marker=marker, markersize=3.5, label=label)
        if all(curves[name][:, 1].min() > 0 for name in panel):
            axes.set_yscale("log")
        _legend(axes)
    return figure


def success_figure(curves: Mapping[str, SuccessCurve]) -> Figure:
    """Probability of having found the target against force calls spent, with 95 % bands.

    Parameters
    ----------
    curves
        Name and curve of each method.
    """
    if not curves:
        raise UserError("there are no success curves to draw: give at least one")
    figure = _figure(6.4, 3.2)
    axes = _plain_axes(figure, "calculator force calls", "probability of success")
    for (name, curve), colour in zip(curves.items(), itertools.cycle(PALETTE), strict=False):
        axes.fill_between(curve.force_calls, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(curve.force_calls, curve.probability, color=colour, linewidth=1.8, label=name)
    axes.axhline(0.95, color=_MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(ylim=(-0.02, 1.02), xlim=(0, max(curve.force_calls.max() for curve in curves.values())))
    _legend(axes, loc="lower right")
    return figure

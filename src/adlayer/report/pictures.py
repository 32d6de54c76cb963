"""Structure pictures for publication, and what pictures of a surface share: windows, scale bars, titles, files.

A picture shows every structure from above and from the side on one scale, with its unit cell, a scale bar in nm and one
legend for all. A window is a rectangle in the plane, ``(low, high)`` with two (2,) corners, Å; those of a sheet are of
one size, so that structures compare.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from adlayer.errors import UserError
from adlayer.report.figures import _INK, _SCALE, _figure, draw_structure, structure_legend
from adlayer.structures.store import check_writable, replacing
from adlayer.structures.substrate import has_plane_cell

SUFFIXES = (".png", ".pdf", ".svg")
Window = tuple[np.ndarray, np.ndarray]
_LEAST = 14.0  # Å shown of a small cell
_RIM = 3.0  # Å shown around a large one


def outline(cell: np.ndarray) -> np.ndarray:
    """(4, 2) corners of the unit cell spanned by the rows of ``cell`` (2, 2)."""
    return np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) @ np.asarray(cell)


def common_windows(cells: Sequence[np.ndarray]) -> list[Window]:
    """For each cell (2, 2) a window round its centre, all of the size that shows the largest cell whole."""
    corners = [outline(cell) for cell in cells]
    spans = np.max([np.ptp(c, axis=0) for c in corners], axis=0) + 2 * _RIM
    half = np.maximum(spans, (_LEAST, 0.75 * _LEAST)) / 2
    return [(c.mean(0) - half, c.mean(0) + half) for c in corners]


def draw_window(axes: Axes, atoms: Atoms, window: Window, view: str = "top") -> None:
    """:func:`adlayer.report.figures.draw_structure`, cut to a window; from the side, to its width."""
    low, high = window
    corners = outline(np.asarray(atoms.cell)[:2, :2])
    margin = max(float((corners.min(0) - low).max()), float((high - corners.max(0)).max()), 0.0)
    draw_structure(axes, atoms, view, margin)
    axes.set_xlim(low[0], high[0])
    if view == "top":
        axes.set_ylim(low[1], high[1])


def side_height(atoms: Atoms) -> float:
    """Å that the side view of a structure is high."""
    return float(np.ptp(atoms.positions[:, 2]) + 2 * _SCALE * covalent_radii[atoms.numbers].max() + 0.4)


def scale_bar(axes: Axes, colour: str = _INK) -> None:
    """A bar of 0.5, 1, 2 or 5 nm (or ten times that) in the lower left corner of axes in Å."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    width, height = right - left, top - bottom
    lengths = [m * 10.0**k for k in range(-1, 5) for m in (1, 2, 5)]  # nm
    length = max((v for v in lengths if 10 * v <= 0.4 * width), default=lengths[0])
    x, y = left + 0.04 * width, bottom + 0.04 * height
    rim = "white" if colour == _INK else _INK
    bar = Rectangle((x, y), 10 * length, 0.016 * height, facecolor=colour, edgecolor="none", zorder=6)
    bar.set_path_effects([withStroke(linewidth=2.5, foreground=rim)])
    axes.add_patch(bar)
    text = axes.text(x + 5 * length, y + 0.028 * height, f"{length:g} nm", ha="center", va="bottom", fontsize=8.5)
    text.set(color=colour, zorder=6, path_effects=[withStroke(linewidth=2.5, foreground=rim)])


def legend_below(figure: Figure, structures: Sequence[Atoms]) -> None:
    """One legend for all structures, in the colours of :func:`adlayer.report.figures.structure_legend`."""
    labels = dict(pair for atoms in structures for pair in structure_legend(atoms))
    look: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 9, "markeredgewidth": 0.6}
    discs = [Line2D([], [], color=colour, markeredgecolor=_INK, **look) for colour in labels.values()]
    columns = min(len(discs), max(1, int(figure.get_figwidth() / 1.35)))
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": _INK, "handletextpad": 0.2}
    figure.legend(discs, list(labels), loc="outside lower center", ncols=columns, columnspacing=1.4, **style)


def picture_sheet(structures: Sequence[Atoms], titles: Sequence[str] = (), width: float = 3.4) -> Figure:
    """Every structure from above and from the side, on one scale, with a legend.

    Parameters
    ----------
    structures
        With tags.
    titles
        Above each; none by default.
    width
        Of one structure, inches.

    Raises
    ------
    UserError
        If there are no structures.
    """
    if not structures:
        raise UserError("there are no structures to draw: give at least one, and an index that is there")
    for number, atoms in enumerate(structures):
        if not has_plane_cell(atoms):
            raise UserError(
                f"structure {number} has no cell in the plane, so that there is nothing to repeat: give one"
            )
    windows = common_windows([np.asarray(atoms.cell)[:2, :2] for atoms in structures])
    span, height = windows[0][1] - windows[0][0], max(side_height(atoms) for atoms in structures)
    columns = len(structures) if len(structures) < 4 else min(4, math.ceil(math.sqrt(len(structures))))
    rows = math.ceil(len(structures) / columns)
    scale = width / span[0]
    figure = _figure(columns * (width + 0.15), rows * (scale * (span[1] + height) + 0.45) + 0.4)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[span[1], height] * rows)
    for place, (atoms, window) in enumerate(zip(structures, windows, strict=True)):
        row, column = divmod(place, columns)
        top, side = (figure.add_subplot(grid[2 * row + k, column]) for k in (0, 1))
        draw_window(top, atoms, window)
        draw_window(side, atoms, window, "side")
        upper = side.get_ylim()[1]
        side.set_ylim(upper - height, upper)
        scale_bar(top)
        if titles:
            top.set_title(titles[place], fontsize=10, color=_INK)
    legend_below(figure, structures)
    return figure


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise :class:`UserError` before any work is done if a figure cannot be written to ``path``."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"output {path} is no picture: end its name in {', '.join(SUFFIXES)}")
    check_writable(path)


def save_picture(figure: Figure, path: str | os.PathLike[str], dpi: int = 200) -> None:
    """Write a figure in the format of its name, atomically; the same figure gives the same bytes."""
    check_picture(path)
    dates = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    with replacing(path) as partial, matplotlib.rc_context({"svg.hashsalt": "adlayer"}):
        figure.savefig(partial, dpi=dpi, metadata=dates[partial.suffix.lower()])

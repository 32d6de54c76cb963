"""Scanning tunnelling images beside the structures they belong to.

Images are resampled on a rectangular grid, so that they appear in real space, tiled and not sheared, in the same window
as the structure from above. Heights are drawn relative to the lowest of the image. An experimental unit cell, where
given, is laid on the image from the same corner with its first vector along that of the structure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from adlayer.analysis.stm import StmImage
from adlayer.errors import UserError
from adlayer.report.figures import _INK, _MUTED, PALETTE, _figure, _legend, _plain_axes
from adlayer.report.pictures import Window, common_windows, draw_window, legend_below, outline, scale_bar

_COLOURS = LinearSegmentedColormap.from_list("tip", ["#0d0502", "#57230a", "#b2641c", "#eeb75c", "#fff6df"])
"""Lightness rises all the way: readable with any colour vision and in print."""
_EXPERIMENT = "#56B4E9"
_PIXEL = 0.05  # Å


@dataclass(frozen=True)
class ExperimentalCell:
    """A measured unit cell: lengths ``a``, ``b`` in Å and the angle ``gamma`` between them in degrees."""

    a: float
    b: float
    gamma: float

    def vectors(self, along: np.ndarray) -> np.ndarray:
        """(2, 2) vectors as rows, the first along the direction ``along`` (2,)."""
        first = np.asarray(along, dtype=float) / np.linalg.norm(along)
        turn = math.radians(self.gamma)
        second = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ first
        return np.array([self.a * first, self.b * second])

    def __str__(self) -> str:
        return f"{self.a:g} Å × {self.b:g} Å, {self.gamma:g}°"


def experimental_cell(text: str) -> ExperimentalCell:
    """The cell that a text such as ``"11.8 11.8 60"`` names: a and b in Å, the angle in degrees.

    Raises
    ------
    UserError
        If it does not.

    >>> experimental_cell("11.8 11.8 60")
    ExperimentalCell(a=11.8, b=11.8, gamma=60.0)
    """
    try:
        a, b, gamma = (float(word) for word in text.replace(",", " ").split())
    except ValueError:
        a = b = gamma = math.nan
    if not (0 < a < math.inf and 0 < b < math.inf and 0 < gamma < 180):
        raise UserError(f'the experimental cell "{text}" is not a, b (Å) and an angle: write it like "11.8 11.8 60"')
    return ExperimentalCell(a, b, gamma)


def real_space(image: StmImage, window: Window) -> np.ndarray:
    """Values on a rectangular grid (rows along y) that fills a window, at the middles of its pixels."""
    low, high = window
    nx, ny = np.maximum(np.round((high - low) / _PIXEL), 2).astype(int)
    x, y = (low[k] + (np.arange(n) + 0.5) * (high[k] - low[k]) / n for k, n in ((0, nx), (1, ny)))
    return image.sample(np.stack(np.meshgrid(x, y), -1))


def draw_image(
    axes: Axes,
    image: StmImage,
    window: Window,
    experiment: ExperimentalCell | None = None,
    line: np.ndarray | None = None,
) -> None:
    """Draw an image in real space with its unit cell, scale bar and colour bar.

    Parameters
    ----------
    axes
        Where to; its frame and ticks are removed.
    image
        Of one unit cell.
    window
        Corners, Å.
    experiment
        A measured cell to draw over it.
    line
        (2, 2) ends of a line to mark, Å.
    """
    (left, bottom), (right, top) = window
    values = real_space(image, window)
    relative = values - image.values.min() if image.mode == "current" else values
    shown = axes.imshow(relative, _COLOURS, origin="lower", extent=(left, right, bottom, top), interpolation="bilinear")
    cell = outline(image.cell)
    axes.add_patch(Polygon(cell, closed=True, fill=False, edgecolor=_INK, linewidth=2.6, joinstyle="round"))
    axes.add_patch(Polygon(cell, closed=True, fill=False, edgecolor="white", linewidth=1.2, joinstyle="round"))
    if experiment is not None:
        measured = outline(experiment.vectors(image.cell[0]))
        axes.add_patch(Polygon(measured, closed=True, fill=False, edgecolor=_INK, linewidth=3.0))
        axes.add_patch(Polygon(measured, closed=True, fill=False, edgecolor=_EXPERIMENT, linewidth=1.6, linestyle="--"))
    if line is not None:
        axes.plot(*np.asarray(line).T, color=_INK, linewidth=2.6)
        axes.plot(*np.asarray(line).T, color=PALETTE[2], linewidth=1.4)
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    scale_bar(axes, "white")
    bar = axes.figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=18)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=_MUTED, labelsize=8, length=2)
    label = "height above the lowest (Å)" if image.mode == "current" else "density / set point"
    bar.set_label(label, fontsize=8.5, color=_INK)


def line_profile(image: StmImage, line: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Distance (n,) in Å along a line with ends (2, 2) in Å, and the image's values (n,) there."""
    part = np.linspace(0, 1, points)[:, None]
    start, end = np.asarray(line, dtype=float)
    return part[:, 0] * float(np.linalg.norm(end - start)), image.sample(start + part * (end - start))


def _draw_profiles(axes: Axes, images: Sequence[StmImage], titles: Sequence[str], line: np.ndarray) -> None:
    for k, image in enumerate(images):
        distance, values = line_profile(image, line)
        if image.mode == "current":
            values = values - image.values.min()
        axes.plot(distance / 10, values, color=PALETTE[k % len(PALETTE)], linewidth=1.6, label=titles[k])
    axes.set_xlim(0, float(np.linalg.norm(line[1] - line[0])) / 10)
    if len(images) > 1:
        _legend(axes)


def stm_figure(
    images: Sequence[StmImage],
    structures: Sequence[Atoms | None] = (),
    titles: Sequence[str] = (),
    *,
    experiment: ExperimentalCell | None = None,
    line: np.ndarray | None = None,
    width: float = 3.4,
) -> Figure:
    """Images, each beside its structure from above, with a note of what they come from.

    Parameters
    ----------
    images
        All of one mode.
    structures
        In the order of the images; ``None`` where there is none.
    titles
        In the order of the images; none by default.
    experiment
        A measured unit cell, drawn on each image.
    line
        (2, 2) ends in Å of a line whose profile is drawn below.
    width
        Of a panel, inches.

    Raises
    ------
    UserError
        If there are no images.
    """
    if not images:
        raise UserError("there are no images to draw: give at least one structure")
    structures, titles = structures or [None] * len(images), titles or [""] * len(images)
    known = [atoms for atoms in structures if atoms is not None]
    windows = common_windows([image.cell for image in images])
    span = windows[0][1] - windows[0][0]
    across = 2 if known else 1  # panels of an entry
    entries = 1 if len(images) < 3 else 2  # in a row
    rows, panel = math.ceil(len(images) / entries), width * span[1] / span[0]
    below = 1.9 if line is not None else 0.0
    figure = _figure(entries * (across * width + 0.9), rows * (panel + 0.3) + below + 0.75)
    grid = figure.add_gridspec(
        rows + bool(below), across * entries, height_ratios=[panel] * rows + [below] * bool(below)
    )
    for place, (image, atoms, window) in enumerate(zip(images, structures, windows, strict=True)):
        row, column = place // entries, across * (place % entries)
        if atoms is not None:
            left = figure.add_subplot(grid[row, column])
            draw_window(left, atoms, window)
            scale_bar(left)
            left.set_title(titles[place], fontsize=10, color=_INK)
        right = figure.add_subplot(grid[row, column + across - 1])
        draw_image(right, image, window, experiment, line)
        right.set_title("" if atoms is not None else titles[place], fontsize=10, color=_INK)
    if line is not None:
        unit = "height above\nthe lowest (Å)" if images[0].mode == "current" else "density /\nset point"
        axes = _plain_axes(figure, "distance along the line (nm)", unit, grid[rows, :])
        _draw_profiles(axes, images, titles, line)
    if known:
        legend_below(figure, known)
    figure.suptitle(_note(images, experiment), fontsize=9, color=_MUTED)
    return figure


def _note(images: Sequence[StmImage], experiment: ExperimentalCell | None) -> str:
    """What the images are, in a line."""
    models = "; ".join(dict.fromkeys(image.model for image in images))
    mode = "constant current" if images[0].mode == "current" else "constant height"
    return f"{models}, {mode}" + (f"; dashed: experiment, {experiment}" if experiment is not None else "")

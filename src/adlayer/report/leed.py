"""A LEED pattern, drawn: the domains' cells on the surface, and their spots in reciprocal space.

Conventions as in :mod:`adlayer.report.figures`. Spots of the substrate are dark; those of a superstructure have the
colour of their domain, shared by sectors where several coincide. Where intensities are known the area of a spot grows
with the root of its intensity, and spots that symmetry forbids are crosses.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Polygon, Wedge
from matplotlib.patheffects import withStroke
from scipy.spatial import KDTree

from adlayer.analysis.leed import LeedPattern, reciprocal_lattice
from adlayer.report.figures import _INK, _MUTED, PALETTE, _figure
from adlayer.structures.sublattices import reduced_matrix

_SUBSTRATE_SPOT = "#2b3440"
_SQUARE = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])


def leed_figure(pattern: LeedPattern, title: str = "") -> Figure:
    """Domains on the surface (left) and their common diffraction pattern (right).

    Parameters
    ----------
    pattern
        With or without intensities.
    title
        Above the figure, such as ``"Ag(111)-p(4x4)"``.
    """
    figure = _figure(8.8, 5.0)
    surface, screen = figure.subplots(1, 2)
    draw_domains(surface, pattern)
    draw_pattern(screen, pattern)
    if title:
        figure.suptitle(title, fontsize=12, color=_INK)
    figure.legend(
        handles=_handles(pattern),
        loc="outside lower center",
        ncols=min(4, len(_handles(pattern))),
        frameon=False,
        fontsize=8.5,
        labelcolor=_INK,
        handletextpad=0.3,
    )
    return figure


def typeset_wood(name: str) -> str:
    """Wood's notation as it is printed; still understood by :func:`superstructure_matrix`.

    >>> typeset_wood("(2r3xr7)R19.1")
    '(2√3×√7)R19.1°'
    """
    return re.sub(r"(R[\d.]+)$", r"\1°", re.sub(r"r(?=\d)", "√", name).replace("x", "×"))


def _colours(pattern: LeedPattern) -> list[str]:
    return list(itertools.islice(itertools.cycle(PALETTE), len(pattern.domains)))


def _handles(pattern: LeedPattern) -> list[Line2D]:
    def dot(colour: str, label: str, marker: str = "o") -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=colour, markersize=6.5, label=label)

    handles = [dot(_SUBSTRATE_SPOT, "substrate")]
    for number, (domain, colour) in enumerate(zip(pattern.domains, _colours(pattern), strict=True), start=1):
        (a, b), (c, d) = domain.matrix.tolist()
        name = f"domain {number}" if len(pattern.domains) > 1 else "superstructure"
        handles.append(dot(colour, f"{name}: ({a} {b} / {c} {d})".replace("-", "\N{MINUS SIGN}")))
    if any(domain.extinct.any() for domain in pattern.domains):
        handles.append(dot(_MUTED, "forbidden by symmetry", "x"))
    return handles


def _axis_off(axes: Axes, reach: float, middle: tuple[float, float] = (0.0, 0.0)) -> None:
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    axes.set_aspect("equal")
    axes.set_axis_off()


def draw_domains(axes: Axes, pattern: LeedPattern) -> None:
    """Lattice points of the substrate, its unit cell, and the cell of each domain."""
    outlines = _spread([domain.matrix @ pattern.basis for domain in pattern.domains], pattern.basis)
    corners = np.concatenate(outlines)
    middle = (corners.min(0) + corners.max(0)) / 2
    lengths = np.linalg.norm(pattern.basis, axis=1)
    reach = float(np.abs(corners - middle).max() + 1.25 * lengths.max())
    points = _points_within(pattern.basis, 1.5 * reach + float(np.abs(middle).max()))
    inside = np.abs(points - middle).max(1) < reach
    axes.scatter(
        points[inside, 0],
        points[inside, 1],
        s=min((26.0 * lengths.min() / reach) ** 2, 200.0),
        color="#d3d8de",
        linewidths=0,
    )
    for number, (outline, colour) in enumerate(zip(outlines, _colours(pattern), strict=True), start=1):
        axes.add_patch(Polygon(outline, facecolor=colour, alpha=0.16, edgecolor="none"))
        axes.add_patch(Polygon(outline, fill=False, edgecolor=colour, linewidth=1.8, joinstyle="round"))
        if len(outlines) > 1:
            axes.text(
                outline[:, 0].mean(),
                outline[:, 1].mean(),
                str(number),
                color=_INK,
                fontsize=10,
                ha="center",
                va="center",
            )
    units = _SQUARE @ pattern.basis + points[:, None]
    units = units[(np.abs(units - middle) < reach).all(axis=(1, 2))]
    obstacles = np.concatenate([np.linspace(o, np.roll(o, 1, axis=0), 9).reshape(-1, 2) for o in outlines])
    free = np.linalg.norm(units.mean(1)[:, None] - obstacles, axis=-1).min(1)
    free -= 10 * reach * np.any([_covers(o, units.mean(1)) for o in outlines], axis=0)
    axes.add_patch(Polygon(units[np.argmax(free.round(3))], fill=False, edgecolor=_INK, linewidth=1.4))
    axes.set_title("cells on the surface", fontsize=9.5, color=_MUTED)
    _axis_off(axes, reach, (float(middle[0]), float(middle[1])))


def _covers(outline: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Whether each point (n, 2) lies in a parallelogram (4, 2)."""
    fractions = (points - outline[0]) @ np.linalg.inv(np.array([outline[1] - outline[0], outline[3] - outline[0]]))
    covered: np.ndarray = ((fractions > 0) & (fractions < 1)).all(axis=1)
    return covered


def _spread(cells: Sequence[np.ndarray], basis: np.ndarray) -> list[np.ndarray]:
    """Outlines (4, 2) of the cells, corners on lattice points, side by side on a circle."""
    size = max(float(np.linalg.norm(_SQUARE @ c - c.sum(0) / 2, axis=1).max()) for c in cells)
    distance = 0.0
    if len(cells) > 1:
        distance = (0.9 * size + 0.5 * float(np.linalg.norm(basis, axis=1).max())) / math.sin(math.pi / len(cells))
    outlines = []
    for number, cell in enumerate(cells):
        turn = 2 * math.pi * number / len(cells) + math.pi / 2
        corner = distance * np.array([math.cos(turn), math.sin(turn)]) - cell.sum(0) / 2
        outlines.append(_SQUARE @ cell + np.rint(corner @ np.linalg.inv(basis)) @ basis)
    return outlines


def _points_within(basis: np.ndarray, radius: float) -> np.ndarray:
    reach = np.ceil(radius * np.linalg.norm(reciprocal_lattice(basis), axis=1) / (2 * np.pi)).astype(int)
    grid = np.array(list(itertools.product(*(range(-n, n + 1) for n in reach))))
    points: np.ndarray = grid @ basis
    return points[np.linalg.norm(points, axis=1) <= radius]


def draw_pattern(axes: Axes, pattern: LeedPattern) -> None:
    """Spots of all domains with the reciprocal cells of substrate and domains."""
    sizes = _spot_sizes(pattern)
    axes.add_patch(Circle((0, 0), 1.04 * pattern.radius, facecolor="#fafbfc", edgecolor="#c5ccd4", linewidth=1.0))
    _draw_cells(axes, pattern)
    spots, crosses = spot_patches(pattern, *sizes)
    axes.add_collection(PatchCollection(spots, match_original=True, zorder=2))
    axes.plot(crosses[:, 0], crosses[:, 1], "x", color=_MUTED, markersize=4, markeredgewidth=1.0)
    centre = pattern.reciprocal.sum(0) / 2
    for order in ((0, 0), (1, 0), (0, 1)):
        q = np.array(order) @ pattern.reciprocal
        outwards = (q - centre) / np.linalg.norm(q - centre)
        place = q + 2.1 * sizes[0] * outwards * np.array([1.5, 1.0])
        label = f"({order[0]},{order[1]})"
        axes.text(place[0], place[1], label, ha="center", va="center", fontsize=8, color=_INK, path_effects=_HALO)
    kind = "positions of the spots" if pattern.energy is None else f"kinematic, normal incidence, {pattern.energy:g} eV"
    axes.set_title(kind, fontsize=9.5, color=_MUTED)
    length = 1.0  # Å⁻¹
    left, base = -1.02 * pattern.radius, -1.02 * pattern.radius
    axes.plot([left, left + length], [base, base], color=_INK, linewidth=1.6, solid_capstyle="butt")
    axes.text(left + length / 2, base + 0.03 * pattern.radius, "1 Å⁻¹", ha="center", fontsize=8, color=_INK)
    _axis_off(axes, 1.06 * pattern.radius)


_HALO = [withStroke(linewidth=2.5, foreground="white")]


def _shortest(reciprocal: np.ndarray) -> np.ndarray:
    return reduced_matrix(np.eye(2, dtype=int), reciprocal) @ reciprocal


def _spot_sizes(pattern: LeedPattern) -> tuple[float, float]:
    """Radii of the largest spots of substrate and superstructure, Å⁻¹, so that neighbours do not touch."""
    spots = np.unique(np.concatenate([d.numerators for d in pattern.domains]), axis=0) / pattern.domains[0].area
    nearest = float(KDTree(spots @ pattern.reciprocal).query(spots @ pattern.reciprocal, k=2)[0][:, 1].min())
    first_order = float(np.linalg.norm(_shortest(pattern.reciprocal), axis=1).min())
    small = max(min(0.055 * first_order, 0.42 * nearest), 0.009 * pattern.radius)
    return max(min(0.075 * first_order, 0.45 * nearest), 1.25 * small), small


def spot_patches(pattern: LeedPattern, large: float, small: float) -> tuple[list[Patch], np.ndarray]:
    """What is drawn for the spots.

    Parameters
    ----------
    pattern
        With or without intensities.
    large, small
        Radii of the brightest spots of substrate and superstructure, Å⁻¹.

    Returns
    -------
    patches : list of matplotlib.patches.Patch
        A circle for each substrate spot, a sector for each domain that lights a superstructure spot.
    crosses : numpy.ndarray
        (n, 2) spots that no domain lights, Å⁻¹.
    """
    lit: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for number, domain in enumerate(pattern.domains):
        brightness = np.ones(len(domain.spots)) if domain.intensities is None else domain.intensities
        for key, value, extinct in zip(domain.numerators.tolist(), brightness, domain.extinct, strict=True):
            lit.setdefault(tuple(key), []).extend([] if extinct else [(number, float(value))])
    patches: list[Patch] = []
    crosses = []
    colours, area = _colours(pattern), pattern.domains[0].area
    for key, shares in lit.items():
        spot = np.array(key) / area @ pattern.reciprocal
        integral = key[0] % area == 0 and key[1] % area == 0
        brightest = min(1.0, max(0.3, sum(value for _, value in shares) ** 0.25))
        radius = (large if integral else small) * (1.0 if pattern.energy is None else brightest)
        if not shares:
            crosses.append(spot)
        elif integral:
            patches.append(Circle(tuple(spot), radius, facecolor=_SUBSTRATE_SPOT, edgecolor="white", linewidth=0.5))
        else:
            edges = np.linspace(90.0, 450.0, len(shares) + 1)
            patches += [
                Wedge(tuple(spot), radius, start, end, facecolor=colours[number], edgecolor="none")
                for (number, _), start, end in zip(shares, edges, edges[1:], strict=False)
            ]
    return patches, np.reshape(crosses, (-1, 2))


def _draw_cells(axes: Axes, pattern: LeedPattern) -> None:
    for domain, colour in zip(pattern.domains, _colours(pattern), strict=True):
        outline = _SQUARE @ _shortest(reciprocal_lattice(domain.matrix @ pattern.basis))
        axes.add_patch(Polygon(outline, facecolor=colour, alpha=0.10, edgecolor="none"))
        axes.add_patch(Polygon(outline, fill=False, edgecolor=colour, linewidth=1.3))
    outline = _SQUARE @ pattern.reciprocal
    axes.add_patch(Polygon(outline, fill=False, edgecolor=_INK, linewidth=1.3, linestyle=(0, (5, 3))))

"""Phase diagrams: formation energies against the chemical potential, and stable phases against T and p.

Conventions as in :mod:`adlayer.report.figures`; γ in meV/Å², Δμ in eV, temperatures in K, pressures in mbar.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from adlayer.analysis.energetics import SurfacePhase
from adlayer.analysis.gas import DIATOMICS, MBAR, gas_potential, gas_pressure
from adlayer.analysis.phases import PhaseDiagram, envelope, half_widths
from adlayer.report.figures import _INK, _MUTED, PALETTE, _figure, _plain_axes, _towards_white

AXIS_PRESSURES = {"10⁻¹⁰ mbar": 1e-10 * MBAR, "1 mbar": MBAR, "1 bar": 1e3 * MBAR}
"""Name and value (Pa) of the pressures that have a temperature axis."""
_CLEAN = "#8a94a0"
_POINTS = 400
_HALO = [withStroke(linewidth=3.0, foreground="white", alpha=0.8)]


def pretty(label: str) -> str:
    """A label with subscripts and signs, for matplotlib.

    >>> pretty("Ag12O6 p(4x4)")
    'Ag$_{12}$O$_{6}$ p(4×4)'
    """
    formula, _, cell = label.partition(" ")
    if re.fullmatch(r"([A-Z][a-z]?\d*)+", formula):
        formula = re.sub(r"(\d+)", r"$_{\1}$", formula)
    cell = re.sub(r"\br(\d+)|(?<=[\dx(])r(\d+)", lambda m: f"√{m[1] or m[2]}", cell).replace("x", "×")
    return f"{formula} {cell}".strip()


def _stable_colours(diagram: PhaseDiagram) -> dict[str, str]:
    """Colour of each stable phase by its label, in order of Δμ; the bare substrate is grey."""
    colours = itertools.cycle(PALETTE)
    return {s.phase.label: next(colours) if s.phase.n_atoms else _CLEAN for s in diagram.stable}


def _bounds(diagram: PhaseDiagram, low: float, high: float) -> list[tuple[SurfacePhase, float, float]]:
    """Stable phases with their intervals clipped to the range, those outside left out."""
    clipped = [(s.phase, max(s.stable[0], low), min(s.stable[1], high)) for s in diagram.stable if s.stable]
    return [(phase, a, b) for phase, a, b in clipped if b > a]


def _temperature_axes(axes: Axes, element: str, low: float, high: float) -> None:
    """Axes on top with the temperatures at which the gas has Δμ, one for each pressure."""
    for row, (name, pressure) in enumerate(AXIS_PRESSURES.items()):
        top = axes.secondary_xaxis(1.0 + 0.115 * row)
        temperatures = np.arange(100.0, 4000.0, 100.0)
        places = np.array([gas_potential(element, t, pressure) for t in temperatures])
        inside = [(x, t) for x, t in zip(places, temperatures, strict=True) if low <= x <= high]
        spacing = (inside[0][0] - inside[-1][0]) / max(len(inside) - 1, 1) if inside else math.inf
        step = next(n for n in (100, 200, 500, 1000) if n == 1000 or spacing * n / 100 > 0.065 * (high - low))
        shown = [(x, t) for x, t in inside if t % step == 0]
        top.set_ticks([x for x, _ in shown], labels=[f"{t:.0f}" for _, t in shown])
        top.tick_params(colors=_MUTED, labelsize=8, length=3, pad=1.5)
        top.spines["top"].set_color("#9aa5b1")
        axes.annotate(
            f"T (K), {name}",
            (1.0, 1.0 + 0.115 * row),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=_INK,
            annotation_clip=False,
        )


def _name_regions(axes: Axes, diagram: PhaseDiagram, low: float, high: float) -> None:
    """Shade the interval of each stable phase and write its name into it, upright where there is no room."""
    colours = _stable_colours(diagram)
    for phase, start, end in _bounds(diagram, low, high):
        colour = colours[phase.label]
        axes.axvspan(start, end, color=_towards_white(to_rgb(colour), 0.86), linewidth=0, zorder=0)
        narrow = (end - start) < 0.2 * (high - low)
        axes.text(
            (start + end) / 2,
            0.975,
            pretty(phase.label) if narrow else pretty(phase.label).replace(" ", "\n", 1),
            transform=axes.get_xaxis_transform(),
            rotation=90 if narrow else 0,
            ha="center",
            va="top",
            fontsize=9,
            color=0.7 * np.array(to_rgb(colour)),
            zorder=6,
            path_effects=[withStroke(linewidth=3.0, foreground=_towards_white(to_rgb(colour), 0.86))],
        )


def _limits(axes: Axes, diagram: PhaseDiagram, low: float, high: float) -> None:
    for name, limit in diagram.limits.items():
        if low < limit < high:
            axes.axvline(limit, color=_INK, linewidth=1.0, linestyle=(0, (8, 4)), zorder=4)
            axes.annotate(
                f"bulk {pretty(name)} →",
                (limit, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=9,
                color=_INK,
                zorder=6,
                path_effects=_HALO,
            )


def _mark(axes: Axes, phase: SurfacePhase, element: str, low: float, high: float) -> None:
    """A dashed line for a phase of special interest, named where it leaves the picture on the left or on top."""
    bottom, top = axes.get_ylim()
    x = np.linspace(low, high, _POINTS)
    gamma = 1e3 * phase.gamma({element: x})
    axes.plot(x, gamma, color=_INK, linewidth=1.4, linestyle=(0, (3, 1.5)), zorder=5)
    k = int(np.argmax(gamma < bottom + 0.72 * (top - bottom)))
    axes.annotate(
        pretty(phase.label),
        (x[k], gamma[k]),
        xytext=(-8, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=9,
        color=_INK,
        zorder=6,
        path_effects=_HALO,
    )


def _range(diagram: PhaseDiagram) -> tuple[float, float]:
    """Δμ that shows every transition and limit, up to the pure element."""
    places = [t.potential for t in diagram.transitions] + [x for x in diagram.limits.values() if x < 0]
    lowest = min(places, default=-1.5)
    highest = max((s.stable[1] for s in diagram.stable if s.stable), default=0.0)
    if math.isinf(highest):
        highest = max([0.0, *places]) + 0.3
    return lowest - max(0.45, 0.4 * abs(lowest)), highest


def phase_figure(
    diagram: PhaseDiagram, low: float | None = None, high: float | None = None, *, mark: Sequence[str] = ()
) -> Figure:
    """γ of every phase against Δμ, the lower envelope thick with its error band, stable phases shaded and named.

    Temperatures stand on top for :data:`AXIS_PRESSURES` where the element has a known gas. Lines of phases that may be
    stable within the uncertainty are darker than those that cannot be.

    Parameters
    ----------
    diagram
        See :func:`adlayer.analysis.phases.phase_diagram`.
    low, high
        Range of Δμ, eV; by default one that shows every transition.
    mark
        Labels, or the formulas they begin with, of phases to draw dashed and named.
    """
    element = diagram.element
    whole = _range(diagram)
    low, high = whole[0] if low is None else low, whole[1] if high is None else high
    figure = _figure(7.2, 5.2)
    axes = _plain_axes(figure, f"Δμ({element}) (eV)", "formation energy γ (meV/Å²)")
    x = np.linspace(low, high, _POINTS)
    lowest = 1e3 * envelope(diagram.phases, element, x)
    for s in diagram.stabilities:
        possible = s.possible is not None and s.possible[0] < high and s.possible[1] > low
        shade, width, order = ("#8a94a0", 0.7, 2) if possible else ("#d5dade", 0.5, 1)
        axes.plot(x[[0, -1]], 1e3 * s.phase.gamma({element: x[[0, -1]]}), color=shade, linewidth=width, zorder=order)
    colours = _stable_colours(diagram)
    widths = dict(zip((p.label for p in diagram.phases), half_widths(diagram.phases, diagram.uncertainty), strict=True))
    for phase, start, end in _bounds(diagram, low, high):
        ends = np.array([start, end])
        gamma, width = 1e3 * phase.gamma({element: ends}), 1e3 * widths[phase.label]
        axes.fill_between(ends, gamma - width, gamma + width, color=colours[phase.label], alpha=0.22, lw=0, zorder=3)
        axes.plot(ends, gamma, color=colours[phase.label], linewidth=3.0, solid_capstyle="butt", zorder=5)
    for t in diagram.transitions:
        axes.axvline(t.potential, color="white", linewidth=1.0, zorder=0.5)
    span = max(float(np.ptp(lowest)), 10.0)
    axes.set(xlim=(low, high), ylim=(lowest.min() - 0.25 * span, lowest.max() + 0.75 * span))
    for phase in diagram.phases:
        if any(phase.label == name or phase.label.startswith(f"{name} ") for name in mark):
            _mark(axes, phase, element, low, high)
    _name_regions(axes, diagram, low, high)
    _limits(axes, diagram, low, high)
    if element in DIATOMICS:
        _temperature_axes(axes, element, low, high)
    return figure


def pressure_figure(
    diagram: PhaseDiagram,
    temperatures: tuple[float, float] = (300.0, 900.0),
    pressures: tuple[float, float] = (1e-10, 1e3),
) -> Figure:
    """Stable phases against temperature (K) and pressure of the gas (mbar), borders exact, their error bands darker.

    Raises
    ------
    UserError
        If the element has no known gas.
    """
    element = diagram.element
    figure = _figure(6.0, 4.4)
    axes = _plain_axes(figure, "temperature (K)", f"pressure of {element}$_2$ (mbar)")
    axes.grid(visible=False)
    bottom, top = (math.log10(p) for p in pressures)
    t = np.linspace(*temperatures, 200)

    def border(potential: float) -> np.ndarray:
        """log10 of the pressure (mbar) at each temperature."""
        if math.isinf(potential):
            return np.full(len(t), math.copysign(1e3, potential))
        return np.array([math.log10(max(gas_pressure(element, potential, k) / MBAR, 1e-300)) for k in t])

    colours = _stable_colours(diagram)
    for s in diagram.stable:
        assert s.stable is not None
        start = border(s.stable[0])
        end = border(math.inf if s is diagram.stable[-1] else s.stable[1])
        face = _towards_white(to_rgb(colours[s.phase.label]), 0.55)
        axes.fill_between(t, start, end, color=face, linewidth=0)
        _name_area(axes, pretty(s.phase.label), t, np.clip(start, bottom, top), np.clip(end, bottom, top))
    name: str | None = "border within the uncertainty"
    for below, above, change in zip(diagram.stable, diagram.stable[1:], diagram.transitions, strict=False):
        assert below.stable is not None
        assert above.stable is not None
        line = border(change.potential)
        if not ((line > bottom) & (line < top)).any():
            continue
        low = max(change.potential - change.uncertainty, below.stable[0])
        high = min(change.potential + change.uncertainty, above.stable[1])
        axes.fill_between(t, border(low), border(high), color=_INK, alpha=0.13, linewidth=0, label=name)
        axes.plot(t, line, color=_INK, linewidth=1.6)
        name = None
    for compound, limit in diagram.limits.items():
        axes.plot(
            t, border(limit), color=_INK, linewidth=1.3, linestyle=(0, (5, 3)), label=f"bulk {pretty(compound)} above"
        )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", fontsize=9, labelcolor=_INK, framealpha=0.85, edgecolor="none")
    axes.set(xlim=temperatures, ylim=(bottom, top))
    decades = np.arange(math.ceil(bottom), math.floor(top) + 1)
    decades = decades[:: max(1, round(len(decades) / 7))]
    axes.set_yticks(decades, [f"10$^{{{k:.0f}}}$" for k in decades])
    return figure


def _name_area(axes: Axes, name: str, t: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Write a name where the strip between two curves is highest; nothing if it is invisible."""
    inner = slice(len(t) // 6, -len(t) // 6)
    height = (high - low)[inner]
    if height.max() <= 0.3:
        return
    wide = np.flatnonzero(height > 0.9 * height.max())
    k = int(wide[len(wide) // 2]) + len(t) // 6
    axes.text(t[k], (low[k] + high[k]) / 2, name, ha="center", va="center", fontsize=10, color=_INK, zorder=6)

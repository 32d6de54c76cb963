"""Which overlayer phase is stable at which chemical potential.

With one potential x = Δμ varied and the others kept, each phase is a straight line γ_k(x) = b_k − s_k x with s_k its
atoms per area. The stable phase is that of lowest γ; it changes where two lines of the lower envelope cross, at
x = (b_i − b_j)/(s_i − s_j), with more of the element towards higher x. Nothing is put on a grid.

**Uncertainty.** If the calculator's energy per overlayer atom is uncertain by ±u, γ_k is by ±w_k = ±u N_k/A_k, N_k
atoms on the area A_k; the clean surface is the zero and has none. The errors are taken as independent bounds. A phase
*may* be stable at x where γ_k − w_k ≤ γ_j + w_j for all j: an intersection of half-lines, hence an interval; and a
transition between i and j lies within ±(w_i + w_j)/|s_i − s_j|. Energies in eV, γ in eV/Å².
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adlayer.analysis.energetics import SurfacePhase
from adlayer.errors import UserError

UNCERTAINTY = 0.05
"""Default u, eV per overlayer atom. Between two structures of Ag12O6 on p(4×4)-Ag(111) (the Ag6 model and the Ag2O
trilayer) the difference is 0.71 eV in SevenNet-0 and 1.53 eV in DFT (PBE, single points): 0.05 eV for each of 18."""


@dataclass(frozen=True)
class Stability:
    """Where a phase is stable and where it may be, as intervals of Δμ (eV); ``None`` if nowhere.

    Attributes
    ----------
    phase
        The phase.
    stable
        Where its γ is the lowest.
    possible
        Where its γ may be the lowest within the uncertainty.
    """

    phase: SurfacePhase
    stable: tuple[float, float] | None
    possible: tuple[float, float] | None


@dataclass(frozen=True)
class Transition:
    """Δμ (eV) at which one phase gives way to the next, and by how much it may be off."""

    below: SurfacePhase
    above: SurfacePhase
    potential: float
    uncertainty: float


def _lines(
    phases: Sequence[SurfacePhase], element: str, others: Mapping[str, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Intercepts b (n,) and atoms per area s (n,)."""
    if not phases:
        raise UserError("there are no phases to compare: give at least one")
    if others and element in others:
        raise UserError(f"{element} is the element that varies: leave it out of the fixed potentials")
    intercepts = np.array([float(phase.gamma(others or {})) for phase in phases])
    return intercepts, np.array([phase.excess(element) for phase in phases])


def _interval(
    intercepts: np.ndarray, slopes: np.ndarray, k: int, slack: np.ndarray, low: float, high: float
) -> tuple[float, float] | None:
    """Where b_k − s_k x ≤ b_j − s_j x + slack_j for all j, within [low, high]."""
    for j in range(len(intercepts)):
        if j == k:
            continue
        rise = slopes[j] - slopes[k]  # (s_j − s_k) x ≤ b_j − b_k + slack_j
        room = intercepts[j] - intercepts[k] + slack[j]
        if abs(rise) < 1e-12:
            if room < 0 or (room == 0 and j < k):  # of equal lines the first counts
                return None
        elif rise > 0:
            high = min(high, room / rise)
        else:
            low = max(low, room / rise)
    return (float(low), float(high)) if low < high else None


def half_widths(phases: Sequence[SurfacePhase], uncertainty: float) -> np.ndarray:
    """w (n,), eV/Å², of each phase."""
    if not uncertainty >= 0:
        raise UserError(f"uncertainty {uncertainty:g} eV is no uncertainty: give zero or more")
    return np.array([uncertainty * phase.n_atoms / phase.area for phase in phases])


def stabilities(
    phases: Sequence[SurfacePhase],
    element: str,
    *,
    uncertainty: float = UNCERTAINTY,
    others: Mapping[str, float] | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> list[Stability]:
    """The intervals of each phase, in the order given.

    Parameters
    ----------
    phases
        All that compete, the clean surface among them.
    element
        Whose Δμ is varied.
    uncertainty
        u, eV per overlayer atom.
    others
        Δμ (eV) of other elements, zero where left out.
    low, high
        Range of Δμ, eV.

    Raises
    ------
    UserError
        If there are no phases, or the uncertainty is negative.
    """
    intercepts, slopes = _lines(phases, element, others)
    widths = half_widths(phases, uncertainty)
    nothing = np.zeros(len(phases))
    return [
        Stability(
            phase,
            _interval(intercepts, slopes, k, nothing, low, high),
            _interval(intercepts, slopes, k, widths + widths[k], low, high),
        )
        for k, phase in enumerate(phases)
    ]


def _transitions(found: Sequence[Stability], element: str, uncertainty: float) -> list[Transition]:
    """The successive stable phases and where they change, from low to high Δμ."""
    ordered = sorted(((s.stable, s.phase) for s in found if s.stable), key=lambda pair: pair[0])
    result = []
    for (_, below), ((start, _), above) in itertools.pairwise(ordered):
        widths = half_widths([below, above], uncertainty)
        step = above.excess(element) - below.excess(element)
        result.append(Transition(below, above, start, float(widths.sum() / step)))
    return result


def envelope(phases: Sequence[SurfacePhase], element: str, potentials: np.ndarray, **others: float) -> np.ndarray:
    """The lowest γ (n,), eV/Å², at each Δμ (n,), eV, of the element."""
    return np.min([phase.gamma({element: potentials, **others}) for phase in phases], axis=0)


@dataclass(frozen=True)
class PhaseDiagram:
    """What competes as Δμ of one element varies, and what wins.

    Attributes
    ----------
    element, uncertainty
        The element that varies; u, eV per overlayer atom.
    stabilities
        Of each phase, in the order given.
    transitions
        Between stable phases, from low to high Δμ.
    limits
        Name and Δμ (eV) of each bulk compound that forms above it.
    """

    element: str
    uncertainty: float
    stabilities: list[Stability]
    transitions: list[Transition]
    limits: Mapping[str, float]

    @property
    def phases(self) -> list[SurfacePhase]:
        """All phases."""
        return [s.phase for s in self.stabilities]

    @property
    def stable(self) -> list[Stability]:
        """Those that are stable somewhere, from low to high Δμ."""
        return sorted((s for s in self.stabilities if s.stable), key=lambda s: s.stable or (0.0, 0.0))


def phase_diagram(
    phases: Sequence[SurfacePhase],
    element: str,
    *,
    uncertainty: float = UNCERTAINTY,
    low: float = -math.inf,
    high: float = 0.0,
    limits: Mapping[str, float] | None = None,
) -> PhaseDiagram:
    """Stable phases as Δμ of one element goes from ``low`` to ``high`` (eV; 0 is the pure element), the others at 0.

    Parameters, errors: as in :func:`stabilities`; ``limits`` is only kept.
    """
    found = stabilities(phases, element, uncertainty=uncertainty, low=low, high=high)
    return PhaseDiagram(element, uncertainty, found, _transitions(found, element, uncertainty), dict(limits or {}))

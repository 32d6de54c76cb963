"""The lower envelope: against a fine grid, by hand, and against pymatgen."""

import warnings

import numpy as np
import pytest

from adlayer.analysis.energetics import SurfacePhase
from adlayer.analysis.phases import envelope, half_widths, phase_diagram, stabilities
from adlayer.errors import UserError

CLEAN = SurfacePhase("clean", 0.0, {}, 10.0)


def some_phases(seed: int, n: int = 25) -> list[SurfacePhase]:
    rng = np.random.default_rng(seed)
    return [CLEAN] + [
        SurfacePhase(
            str(k),
            float(rng.normal(-1.0, 1.0)),
            {"Ag": int(rng.integers(0, 6)), "O": int(rng.integers(1, 6))},
            float(rng.uniform(8, 20)),
        )
        for k in range(n)
    ]


def test_two_phases_by_hand():
    """γ = 0 and γ = (−1.2 − 2x)/20 cross at x = −0.6; within ±u = 0.1 per atom, 3 atoms, at −0.6 ± 0.15."""
    oxide = SurfacePhase("AgO2", -1.2, {"Ag": 1, "O": 2}, 20.0)
    diagram = phase_diagram([CLEAN, oxide], "O", uncertainty=0.1, limits={"Ag2O": -0.3})
    clean, other = diagram.stabilities
    assert clean.stable == (-np.inf, pytest.approx(-0.6))
    assert clean.possible == (-np.inf, pytest.approx(-0.45))
    assert other.stable == (pytest.approx(-0.6), 0.0)
    assert other.possible == (pytest.approx(-0.75), 0.0)
    (change,) = diagram.transitions
    assert (change.below, change.above) == (CLEAN, oxide)
    assert (change.potential, change.uncertainty) == (pytest.approx(-0.6), pytest.approx(0.15))
    assert half_widths([CLEAN, oxide], 0.1) == pytest.approx([0.0, 0.1 * 3 / 20])
    assert diagram.limits == {"Ag2O": -0.3}
    metal_poor = stabilities([CLEAN, oxide], "O", others={"Ag": -0.4})[1]
    assert metal_poor.stable == (pytest.approx(-0.4), np.inf)


@pytest.mark.parametrize("seed", range(20))
def test_intervals_are_those_of_a_fine_grid(seed):
    phases = some_phases(seed)
    x = np.linspace(-3.0, 1.0, 20001)
    gammas = np.array([p.gamma({"O": x}) for p in phases])
    widths = half_widths(phases, 0.05)[:, None]
    winner = gammas.argmin(axis=0)
    possible = gammas - widths <= (gammas + widths).min(axis=0) + 1e-12
    for k, found in enumerate(stabilities(phases, "O", uncertainty=0.05, low=-3.0, high=1.0)):
        for interval, grid in ((found.stable, winner == k), (found.possible, possible[k])):
            if interval is None:
                assert not grid.any()
                continue
            inside = (x > interval[0] + 2e-4) & (x < interval[1] - 2e-4)
            outside = (x < interval[0] - 2e-4) | (x > interval[1] + 2e-4)
            assert grid[inside].all()
            assert not grid[outside].any()
        if found.stable is not None:
            assert found.possible is not None
            assert found.possible[0] <= found.stable[0]
            assert found.possible[1] >= found.stable[1]
    assert envelope(phases, "O", x) == pytest.approx(gammas.min(axis=0))


@pytest.mark.parametrize("seed", range(20))
def test_stable_intervals_join_and_coverage_rises(seed):
    diagram = phase_diagram(some_phases(seed), "O", low=-4.0, high=1.0)
    ends = [s.stable for s in diagram.stable]
    assert ends[0][0] == -4.0
    assert ends[-1][1] == 1.0
    assert [b for _, b in ends[:-1]] == pytest.approx([a for a, _ in ends[1:]])
    excess = [s.phase.excess("O") for s in diagram.stable]
    assert np.all(np.diff(excess) > 0)
    assert len(diagram.transitions) == len(diagram.stable) - 1
    for change in diagram.transitions:
        at = {"O": change.potential}
        assert float(change.below.gamma(at)) == pytest.approx(float(change.above.gamma(at)), abs=1e-12)


def test_of_equal_phases_the_first_is_stable():
    twins = [CLEAN, SurfacePhase("a", -1.0, {"O": 1}, 10.0), SurfacePhase("b", -2.0, {"O": 2}, 20.0)]
    diagram = phase_diagram(twins, "O", uncertainty=0.0)
    assert [s.phase.label for s in diagram.stable] == ["clean", "a"]


def test_pymatgen_finds_the_same_breakpoints():
    surface = pytest.importorskip("pymatgen.analysis.surface_analysis")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_breakpoints(surface)


def check_breakpoints(surface) -> None:
    from pymatgen.core import Lattice, Structure
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from sympy import Symbol

    mu, clean_energy, side = {"Ag": -2.83, "O": -4.90}, -40.0, 8.0
    lattice = Lattice.from_parameters(side, side, 30.0, 90, 90, 90)

    def structure(silver: int, oxygen: int) -> Structure:
        symbols = ["Ag"] * silver + ["O"] * oxygen
        return Structure(lattice, symbols, [[0.01 * k, 0.07 * k % 1, 0.3 + 0.02 * k] for k in range(len(symbols))])

    def element(symbol: str) -> ComputedStructureEntry:
        return ComputedStructureEntry(Structure(Lattice.cubic(10), [symbol], [[0, 0, 0]]), mu[symbol])

    counts = [(2, 1), (3, 2), (4, 4), (1, 5)]
    formations = [-0.9, -1.7, -2.1, -1.9]
    bare = surface.SlabEntry(structure(16, 0), clean_energy, (1, 1, 1), label="clean")
    slabs = [
        surface.SlabEntry(
            structure(16 + silver, oxygen), clean_energy + silver * mu["Ag"] + oxygen * mu["O"] + formation,
            (1, 1, 1), adsorbates=[element("O")], clean_entry=bare, label=f"{silver} {oxygen}",
        )
        for (silver, oxygen), formation in zip(counts, formations, strict=True)
    ]  # fmt: skip
    plotter = surface.SurfaceEnergyPlotter([bare, *slabs], element("Ag"))
    theirs = plotter.stable_u_range_dict([-3.0, 1.0], Symbol("delu_O"), no_doped=False)
    ranges = {entry.label: limits for entry, limits in theirs.items() if len(limits) == 2}
    phases = [SurfacePhase("clean", 0.0, {}, side**2)] + [
        SurfacePhase(f"{silver} {oxygen}", formation, {"Ag": silver, "O": oxygen}, side**2)
        for (silver, oxygen), formation in zip(counts, formations, strict=True)
    ]
    diagram = phase_diagram(phases, "O", low=-3.0, high=1.0)
    assert len(diagram.stable) >= 3
    assert {s.phase.label for s in diagram.stable} == set(ranges)
    for s in diagram.stable:
        assert s.stable == pytest.approx([float(x) for x in ranges[s.phase.label]], abs=1e-9)
    # The molecule taken for the atom would be seen.
    doubled = [SurfacePhase(p.label, p.formation, {k: 2 * n for k, n in p.counts.items()}, p.area) for p in phases]
    assert phase_diagram(doubled, "O", low=-3.0, high=1.0).stable[0].stable != diagram.stable[0].stable


def test_mistakes():
    with pytest.raises(UserError, match="no phases"):
        stabilities([], "O")
    with pytest.raises(UserError, match="no uncertainty"):
        stabilities([CLEAN], "O", uncertainty=-0.1)
    with pytest.raises(UserError, match="leave it out"):
        stabilities([CLEAN], "O", others={"O": 0.0})

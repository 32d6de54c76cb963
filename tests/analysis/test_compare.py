"""Intervals and distances against scipy, simulation and exact values."""

import math

import numpy as np
import pytest
from ase.build import add_adsorbate, fcc111
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from scipy import stats

from adlayer.analysis.compare import (
    bootstrap_interval,
    calls_for_success,
    distribution_distance,
    relaxation_cost,
    success_curve,
    wilson_interval,
)
from adlayer.analysis.records import coverage, potential_energy
from adlayer.analysis.references import reference, reference_names
from adlayer.errors import UserError
from adlayer.structures.substrate import build_substrate


def with_energy(energy: float, name: str = "p2x2-O_Pt111-fcc"):
    atoms = reference(name)
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


@pytest.mark.parametrize(("k", "n"), [(0, 32), (1, 16), (7, 24), (24, 24), (50, 1000)])
@pytest.mark.parametrize("confidence", [0.95, 0.68])
def test_wilson_is_scipys(k, n, confidence):
    ours = wilson_interval(k, n, confidence)
    theirs = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (ours.value, ours.low, ours.high) == pytest.approx((k / n, theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_nothing_is_ignorance():
    nothing = wilson_interval(0, 0)
    assert (nothing.low, nothing.high) == (0.0, 1.0)
    assert math.isnan(nothing.value)
    with pytest.raises(UserError, match="5 hits of 4"):
        wilson_interval(5, 4)


def test_bootstrap_agrees_with_scipys():
    values = np.random.default_rng(0).gamma(2.0, 30.0, 60)
    ours = bootstrap_interval(values, np.median, seed=1, resamples=5000)
    theirs = stats.bootstrap(
        (values,), np.median, n_resamples=5000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.05)
    assert ours.value == np.median(values)
    assert ours == bootstrap_interval(values, np.median, seed=1, resamples=5000)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng, tries = np.random.default_rng(3), 300
    intervals = [bootstrap_interval(rng.normal(size=80), np.mean, seed=k, resamples=400) for k in range(tries)]
    covered = sum(i.low <= 0 <= i.high for i in intervals)
    assert stats.binomtest(covered, tries, 0.94).pvalue > 1e-3  # percentile intervals of 80 values are slightly short


def test_bootstrap_refuses_what_has_no_median():
    for values in ([], [1.0, math.nan]):
        with pytest.raises(UserError, match="empty or not finite"):
            bootstrap_interval(values)


def test_a_shift_is_its_own_distance():
    values = np.random.default_rng(4).normal(size=200)
    shifted = distribution_distance(values, values + 0.75)
    assert shifted.wasserstein.value == pytest.approx(0.75, abs=1e-12)
    assert shifted.wasserstein.low < 0.75 < shifted.wasserstein.high
    assert shifted.ks_p_value < 1e-6
    same = distribution_distance(values[:100], values[100:])
    assert same.ks_p_value > 0.01
    assert same.wasserstein.high < shifted.wasserstein.low


def test_distance_is_the_area_between_cumulative_distributions():
    a, b = [0.0, 1.0, 4.0], [0.5, 2.0]
    grid = np.linspace(-1, 5, 600001)
    area = sum(abs((np.array(a) <= x).mean() - (np.array(b) <= x).mean()) for x in grid[::100]) * 1e-3
    assert distribution_distance(a, b).wasserstein.value == pytest.approx(area, abs=2e-3)


def test_success_curve_is_that_of_independent_tries():
    rng = np.random.default_rng(5)
    hits, calls = np.arange(20) < 5, np.full(20, 100.0)
    curve = success_curve(hits, calls, budget=1000, points=11)
    tries, n = np.arange(11), 20000
    simulated = [(rng.random((n, t)) < 0.25).any(axis=1).mean() for t in tries]
    np.testing.assert_allclose(curve.probability, simulated, atol=4 * 0.5 / math.sqrt(n))
    assert np.all((curve.low <= curve.probability) & (curve.probability <= curve.high))
    needed = calls_for_success(0.25, 100)
    assert np.interp(needed, *_fine(hits, calls)) == pytest.approx(0.95, abs=1e-4)


def _fine(hits, calls):
    curve = success_curve(hits, calls, budget=2000, points=20001)
    return curve.force_calls, curve.probability


def test_calls_for_success_at_its_ends():
    assert calls_for_success(0.0, 50) == math.inf
    assert calls_for_success(1.0, 50) == 50
    assert calls_for_success(0.99, 50, 0.5) == 50  # no less than one try
    with pytest.raises(UserError, match="between 0 and 1"):
        calls_for_success(1.5, 50)
    with pytest.raises(UserError, match="one for each try"):
        success_curve([True], [10, 20])


def test_coverage_counts_atoms_per_surface_cell():
    assert coverage(reference("p2x2-O_Pt111-fcc")) == {"O": 0.25}
    assert coverage(reference("c2x2-O_Ni100")) == {"O": 0.5}
    assert coverage(reference("p4x4-O_Ag111-Ag6")) == {"O": 0.375, "Ag": 0.75}
    bare = build_substrate("Ag(111)", "(r3xr3)R30")
    add_adsorbate(bare, "O", 1.2, position=(0, 0))
    bare.set_tags([*bare.get_tags()[:-1], 0])
    assert coverage(bare) == {"O": pytest.approx(1 / 3)}


def test_energies_are_read_never_calculated():
    atoms = fcc111("Cu", (1, 1, 2), vacuum=5.0)
    assert potential_energy(atoms) is None
    atoms.calc = EMT()
    assert potential_energy(atoms) is None
    stored = with_energy(-3.5)
    assert potential_energy(stored) == -3.5
    stored.positions[0] += 0.1
    assert potential_energy(stored) is None


def test_relaxation_cost_takes_what_is_recorded():
    structures = [with_energy(0.0) for _ in range(5)]
    for steps, atoms in zip((10, 20, 30, 40, 90), structures, strict=True):
        atoms.info["row"] = {"n_steps": steps, "converged": steps < 50}
    cost = relaxation_cost(structures)
    assert (cost.n, cost.n_converged, cost.n_force_calls) == (5, 4, None)
    assert cost.n_steps.value == 30
    assert 10 <= cost.n_steps.low <= 30 <= cost.n_steps.high <= 90


def test_references_are_complete_structures():
    assert len(reference_names()) == 9
    for name in reference_names():
        atoms = reference(name)
        low, high = atoms.info["confinement"]
        inside = atoms.positions[atoms.get_tags() == 0, 2]
        assert np.all((inside > low) & (inside < high))
        assert atoms.pbc.tolist() == [True, True, False]
        assert atoms.constraints
    with pytest.raises(UserError, match='no reference "Ag7"'):
        reference("Ag7")

"""Random overlayers: distances by ASE's neighbour list, uniformity by Kolmogorov and Smirnov."""

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from scipy import stats

from adlayer.errors import UserError
from adlayer.structures.placement import (
    closest_contact,
    expand_range,
    overlayer_formula,
    parse_formula,
    place_overlayer,
    write_formula,
)
from adlayer.structures.substrate import build_substrate

SIGNIFICANCE = 0.01


@pytest.mark.parametrize("cell", ["p(2x2)", "(r7xr7)R19.1", "[[3,-2],[1,2]]", "p(1x4)"])
@pytest.mark.parametrize("min_distance", [0.7, 0.85])
def test_keeps_distances_to_all_images(cell: str, min_distance: float) -> None:
    substrate = build_substrate("Ag(111)", cell, layers=2, lattice=4.167, window=(0.5, 5.0))
    for seed in range(5):
        atoms = place_overlayer(substrate, "Ag2O", np.random.default_rng(seed), min_distance=min_distance)
        i, j, d = neighbor_list("ijd", atoms, 5.0)
        new = (atoms.get_tags()[i] == 0) | (atoms.get_tags()[j] == 0)
        ratio = d / (covalent_radii[atoms.numbers[i]] + covalent_radii[atoms.numbers[j]])
        assert ratio[new].min() >= min_distance - 1e-9
        z = atoms.positions[atoms.get_tags() == 0, 2]
        low, high = substrate.info["confinement"]
        assert np.all((z >= low) & (z <= high))
        assert overlayer_formula(atoms) == "Ag2O"
        n = len(substrate)
        assert np.array_equal(atoms.positions[:n], substrate.positions)
        assert np.array_equal(atoms.constraints[0].index, substrate.constraints[0].index)
        assert atoms.info == substrate.info


def uniform(values: np.ndarray) -> float:
    return float(stats.kstest(values, "uniform").pvalue)


def test_single_atoms_are_uniform_in_cell_and_window() -> None:
    """Above the reach of the substrate nothing is refused, so every coordinate is uniform."""
    substrate = build_substrate("Ag(111)", "[[3,-1],[1,2]]", layers=1, fixed_layers=1, lattice=4.167, window=(3.0, 7.0))
    low, high = substrate.info["confinement"]
    rng = np.random.default_rng(7)
    places = np.array([place_overlayer(substrate, "O", rng).positions[-1] for _ in range(500)])
    lateral = places[:, :2] @ np.linalg.inv(substrate.cell[:2, :2])
    heights = (places[:, 2] - low) / (high - low)
    for values in (heights, *lateral.T):
        assert uniform(values) > SIGNIFICANCE
    assert uniform(heights**1.2) < SIGNIFICANCE  # a slight slope would be seen


def test_atoms_near_the_surface_are_uniform_where_they_are_allowed() -> None:
    """Against independent rejection sampling with ASE's distances."""
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=1, fixed_layers=1, lattice=4.167, window=(0.5, 2.5))
    rng = np.random.default_rng(3)
    ours = np.array([place_overlayer(substrate, "O", rng).positions[-1, 2] for _ in range(300)])
    low, high = substrate.info["confinement"]
    limit = 0.7 * (covalent_radii[8] + covalent_radii[47])
    theirs = []
    while len(theirs) < 300:
        probe = substrate.copy()
        probe.append("O")
        probe.positions[-1] = [*(rng.random(2) @ substrate.cell[:2, :2]), rng.uniform(low, high)]
        if probe.get_distances(len(probe) - 1, range(len(substrate)), mic=True).min() >= limit:
            theirs.append(probe.positions[-1, 2])
    assert stats.ks_2samp(ours, theirs).pvalue > SIGNIFICANCE
    assert stats.ks_2samp(ours, rng.uniform(low, high, 300)).pvalue < SIGNIFICANCE


def test_same_stream_same_structure() -> None:
    substrate = build_substrate("Ag(111)", "p(3x3)", layers=2, lattice=4.167)
    first, again, other = (place_overlayer(substrate, "Ag3O2", np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first.positions, again.positions)
    assert not np.allclose(first.positions, other.positions)


def test_what_does_not_fit_is_said() -> None:
    substrate = build_substrate("Ag(111)", "p(1x1)", layers=2, window=(1.0, 2.0))
    with pytest.raises(UserError, match="Ag9 does not fit"):
        place_overlayer(substrate, "Ag9", np.random.default_rng(0), attempts=10)
    with pytest.raises(UserError, match="does not fit"):  # its own image is too close
        place_overlayer(substrate, "Ag", np.random.default_rng(0), min_distance=1.5, attempts=10)


def test_closest_contact() -> None:
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.167)
    contact = closest_contact(substrate)
    assert contact is not None
    assert contact[2] == pytest.approx(4.167 / np.sqrt(2) / (2 * covalent_radii[47]))
    assert closest_contact(build_substrate("Ag(111)", layers=1, fixed_layers=0, lattice=8.0)) is None


def test_formulas() -> None:
    assert parse_formula("Ag12O6") == {"Ag": 12, "O": 6}
    assert parse_formula("OAgO") == {"O": 2, "Ag": 1}
    assert write_formula({"Ag": 4, "O": 1}) == "Ag4O"
    assert expand_range("Ag0-1 O1") == ["O", "AgO"]
    for bad in ("", "12", "Ag-4", "Qq2", "Ag0", "ag4", "Ag 4"):
        with pytest.raises(UserError, match="formula"):
            parse_formula(bad)
    for bad in ("", "Ag4-3", "Ag", "Ag1-x", "Ag0 O0"):
        with pytest.raises(UserError, match="range"):
            expand_range(bad)

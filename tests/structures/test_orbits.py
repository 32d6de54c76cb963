"""Symmetric overlayers: the groups of known surfaces, orbits that are symmetric, noise of the right variance."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from adlayer.analysis.registry import substrate_operations
from adlayer.analysis.symmetry import describe_symmetry
from adlayer.structures.orbits import Orbits, _Space, draw_orbits, joined, no_symmetry, symmetry_groups
from adlayer.structures.substrate import build_substrate


def _substrate(surface: str, cell: str) -> Atoms:
    return build_substrate(surface, cell, layers=2, fixed_layers=1, lattice=4.167, window=(1.0, 4.0))


@pytest.mark.parametrize(
    ("surface", "cell", "kinds"),
    [
        # One p3m1 up to translations of the substrate: axes on top, fcc and hcp sites, one kind of mirror lines. 16
        # translations are prime to 3, so there is one class of threefold axes; mirrors have three directions.
        ("Ag(111)", "p(4x4)", {"3": 1, "m": 3, "3m": 1}),
        ("Ag(111)", "p(3x3)", {"3": 3, "m": 3, "3m": 3}),  # here the axis may lie on a top, an fcc or an hcp site alone
        ("Ag(111)", "(r7xr7)R19.1", {"3": 1}),  # the mirrors do not carry this lattice to itself
        ("Ag(111)", "[[8,-7],[2,4]]", {}),
        ("Ag(100)", "p(3x3)", {"2": 1, "4": 1, "m": 4, "2mm": 2, "4mm": 1}),
        ("Ag(110)", "p(2x3)", {"2": 2, "m": 4, "2mm": 4}),  # one mirror across the even side only slides
    ],
)
def test_groups_of_known_surfaces(surface: str, cell: str, kinds: dict[str, int]) -> None:
    assert {k: len(v) for k, v in symmetry_groups(_substrate(surface, cell)).items()} == kinds


def test_special_sites_of_a_known_group() -> None:
    """p3m1: three axes with one atom each, one kind of lines with three; p4mm: axes 1, 1 and 2, lines with four."""
    (group,) = symmetry_groups(_substrate("Ag(111)", "p(4x4)"))["3m"]
    assert (group.order, group.on_line) == (6, 3)
    assert [len(site.members) for site in group.axes] == [1, 1, 1]
    assert [len(site.members) for site in group.lines] == [3]
    (group,) = symmetry_groups(_substrate("Ag(100)", "p(3x3)"))["4mm"]
    assert sorted(len(site.members) for site in group.axes) == [1, 1, 2]
    assert [len(site.members) for site in group.lines] == [4, 4, 4]


def test_where_the_origin_lies_does_not_matter() -> None:
    substrate = _substrate("Ag(111)", "p(4x4)")
    substrate.positions[:, :2] += [1.2345, 0.6789]
    substrate.wrap(pbc=[True, True, False])
    assert {k: len(v) for k, v in symmetry_groups(substrate).items()} == {"3": 1, "m": 3, "3m": 1}


def _onto_itself(points: np.ndarray, moved: np.ndarray, cell: np.ndarray) -> float:
    """The farthest that a moved point lies from all points modulo the lattice, Å."""
    gaps = (moved[:, None, :2] - points[None, :, :2]) @ np.linalg.inv(cell)
    gaps = (gaps - np.round(gaps)) @ cell
    squares = (gaps**2).sum(-1) + (moved[:, None, 2] - points[None, :, 2]) ** 2
    return float(np.sqrt(squares.min(axis=1).max()))


@pytest.mark.parametrize(("surface", "cell"), [("Ag(111)", "p(4x4)"), ("Ag(100)", "p(3x3)"), ("Ag(110)", "p(2x3)")])
def test_substrate_and_orbits_have_the_symmetry(surface: str, cell: str) -> None:
    substrate, rng = _substrate(surface, cell), np.random.default_rng(0)
    plane = substrate.cell.array[:2, :2]
    drawn = 0
    for group in (group for groups in symmetry_groups(substrate).values() for group in groups):
        for _ in range(4):
            orbits = draw_orbits([12, 5], {"only": [group]}, rng)
            if np.array_equal(orbits.source, np.arange(17)):  # the numbers do not fit
                continue
            drawn += 1
            points = orbits.place(rng.uniform(0.0, 8.0, (17, 3)))
            noisy = points + orbits.vectors(rng.normal(size=(17, 3)))
            for turn, shift in zip(group.rotations, group.translations, strict=True):
                for atoms in (substrate.positions, points[:12], points[12:], noisy[:12], noisy[12:]):
                    moved = atoms.copy()
                    moved[:, :2] = atoms[:, :2] @ turn.T + shift
                    assert _onto_itself(atoms, moved, plane) < 1e-6
            broken = points + rng.normal(size=(17, 3))  # planted: any other noise breaks it
            moved = broken[:12].copy()
            moved[:, :2] = moved[:, :2] @ group.rotations[1].T + group.translations[1]
            assert _onto_itself(broken[:12], moved, plane) > 0.1
    assert drawn > 10


def test_plane_group_found_by_the_analysis() -> None:
    """A drawn overlayer has, for the independent analysis of symmetry, the group that it was drawn with or more."""
    substrate, rng = _substrate("Ag(111)", "p(4x4)"), np.random.default_rng(3)
    low, high = substrate.info["confinement"]
    for kind, expected in (("3", {"p3", "p3m1", "p31m"}), ("m", {"pm", "pg", "cm"}), ("3m", {"p3m1", "p31m"})):
        groups = {kind: symmetry_groups(substrate)[kind]}
        for _ in range(5):
            orbits = draw_orbits([3, 6], groups, rng)
            points = rng.uniform(0.0, 1.0, (9, 3)) * [*np.diag(substrate.cell.array)[:2], high - low] + [0, 0, low]
            atoms = substrate + Atoms("Ag3O6", orbits.place(points), tags=0)
            atoms.info = dict(substrate.info)
            assert describe_symmetry(atoms).plane_group in expected


def test_noise_is_normal_in_what_is_free() -> None:
    """Each atom's noise has variance one, or one in the free directions of a fixed point; images are turned copies."""
    substrate, rng = _substrate("Ag(111)", "p(4x4)"), np.random.default_rng(1)
    mirrors = {"m": [g for g in symmetry_groups(substrate)["m"] if g.lines]}
    orbits = draw_orbits([5], mirrors, rng)
    draws = np.array([orbits.vectors(rng.standard_normal((5, 3))) for _ in range(4000)])
    variances = np.array([np.trace(np.cov(draws[:, i].T)) for i in range(5)])
    free = np.array([np.linalg.matrix_rank(m) for m in orbits.matrices])
    assert set(free) == {2, 3}
    np.testing.assert_allclose(variances, free, atol=0.15)  # 4 standard deviations of √(2·3/4000)


def test_atoms_on_axes_do_not_meet() -> None:
    substrate, rng = _substrate("Ag(111)", "p(4x4)"), np.random.default_rng(2)
    groups = {"3": symmetry_groups(substrate)["3"]}
    seen = set()
    for _ in range(50):
        orbits = draw_orbits([4, 2], groups, rng)
        on_axes = [i for i, m in enumerate(orbits.matrices) if np.linalg.matrix_rank(m) == 1]
        seen.add(len(on_axes))
        points = {tuple(orbits.shifts[i].round(3)) for i in on_axes}
        assert len(points) == len(on_axes)
    assert seen == {3}  # one silver and two oxygen atoms; no number else fits three axes


def test_numbers_that_do_not_fit_have_no_symmetry() -> None:
    substrate, rng = _substrate("Ag(111)", "p(4x4)"), np.random.default_rng(0)
    groups = {"3": symmetry_groups(substrate)["3"]}
    lone = draw_orbits([2, 2, 1], groups, rng)  # five atoms for three axes
    assert np.array_equal(lone.source, np.arange(5))
    glides = [g for g in symmetry_groups(_substrate("Ag(110)", "p(2x3)"))["m"] if not g.lines]
    assert glides
    assert np.array_equal(draw_orbits([3], {"m": glides}, rng).source, np.arange(3))
    assert np.array_equal(draw_orbits([3], {}, rng).source, np.arange(3))


def test_joined() -> None:
    part = Orbits(np.array([0, 0]), np.tile(np.eye(3), (2, 1, 1)), np.array([[0.0, 0, 0], [1, 0, 0]]))
    whole = joined([part, no_symmetry(1), part])
    points = np.arange(15.0).reshape(5, 3)
    np.testing.assert_array_equal(
        whole.place(points), [points[0], points[0] + [1, 0, 0], points[2], points[3], points[3] + [1, 0, 0]]
    )


def test_an_alloy_has_the_symmetry_of_its_elements() -> None:
    """One gold atom among the four of a (2×2) layer leaves the threefold axes and mirror planes, no translation."""
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.167)
    pure = _Space(substrate)
    substrate.numbers[np.flatnonzero(substrate.get_tags() == 1)[0]] = 79
    alloy = _Space(substrate)
    assert (pure.cells, len(pure.operations)) == (4, 24)
    assert (alloy.cells, len(alloy.operations)) == (1, len(substrate_operations(substrate))) == (1, 6)

"""Diffraction patterns: spots from their definition, domains known from experiments, extinctions of glide lines."""

import cmath
import math

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import fcc100

from adlayer.analysis.leed import (
    electron_wavenumber,
    forbidden,
    kinematic_pattern,
    leed_pattern,
    reciprocal_lattice,
    scattered_intensity,
    structure_operations,
    surface_lattice,
)
from adlayer.analysis.references import reference
from adlayer.errors import UserError
from adlayer.structures.commensurate import commensurate_cells
from adlayer.structures.sublattices import integer_operations
from adlayer.structures.substrate import build_substrate
from adlayer.structures.superstructure import superstructure_matrix, wood_notation

HEXAGONAL = 2.9465 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])
SQUARE = 2.5 * np.eye(2)
CU110 = 2.56 * np.diag([1.0, np.sqrt(2)])


def clock(shift: float = 0.35) -> Atoms:
    """C/Ni(100)-(2×2)p4g: carbon in every second hollow, the top nickel turned about it, left and right in turn."""
    atoms = fcc100("Ni", (2, 2, 3), a=3.52, vacuum=6.0)
    atoms.pbc = (True, True, False)
    spacing = 3.52 / math.sqrt(2)
    top = np.flatnonzero(atoms.get_tags() == 1)
    hollows = atoms.positions[top[0], :2] + spacing * np.array([[0.5, 0.5], [1.5, 1.5]])
    for i in top:
        nearest = atoms.positions[i, :2] - hollows[0]
        nearest -= 2 * spacing * np.round(nearest / (2 * spacing))
        atoms.positions[i, :2] += shift * np.array([-nearest[1], nearest[0]]) / np.linalg.norm(nearest)
    tags = [*atoms.get_tags(), 0, 0]
    height = atoms.positions[top, 2].mean() + 0.2
    atoms += Atoms("C2", [[*xy, height] for xy in hollows])
    atoms.set_tags(tags)
    return atoms


def by_order(pattern, values: str) -> dict[tuple[float, float], float]:
    """A field of the only domain by the order of the spot."""
    (domain,) = pattern.domains
    orders = [tuple((o + 0.0).tolist()) for o in domain.orders.round(4)]
    return dict(zip(orders, getattr(domain, values).tolist(), strict=True))


@pytest.mark.parametrize(
    ("basis", "name", "domains"),
    [
        (HEXAGONAL, "p(4x4)", 1),
        (HEXAGONAL, "(r3xr3)R30", 1),
        (HEXAGONAL, "p(2x1)", 3),
        (HEXAGONAL, "c(4x2)", 3),
        (HEXAGONAL, "p(4x5r3)", 3),
        (HEXAGONAL, "(r7xr7)R19.1", 2),
        (HEXAGONAL, "p(3x2)", 6),
        (SQUARE, "c(2x2)", 1),
        (SQUARE, "p(2x1)", 2),
        (SQUARE, "(2r2xr2)R45", 2),
        (SQUARE, "(r5xr5)R26.6", 2),
        (CU110, "p(2x1)", 1),
        (CU110, "c(6x2)", 1),
        (CU110, "(r3xr3)R54.7", 2),
    ],
)
def test_number_of_domains(basis, name, domains):
    assert len(leed_pattern(basis, superstructure_matrix(name, basis)).domains) == domains


@pytest.mark.parametrize("name", ["p(4x4)", "c(4x2)", "(r7xr7)R19.1", "[[8,-7],[2,4]]"])
def test_spots_are_all_waves_in_phase_with_the_superlattice(name):
    matrix = superstructure_matrix(name, HEXAGONAL)
    pattern = leed_pattern(HEXAGONAL, matrix, radius=3.0)
    area = abs(round(np.linalg.det(matrix)))
    steps = np.stack(np.meshgrid(*2 * [np.arange(-4 * area, 4 * area + 1)]), -1).reshape(-1, 2) / area
    steps = steps[np.linalg.norm(steps @ pattern.reciprocal, axis=1) <= 3.0]  # every spot has such an order
    for domain in pattern.domains:
        cell = domain.matrix @ HEXAGONAL
        phases = steps @ pattern.reciprocal @ cell.T / (2 * np.pi)
        expected = steps[np.abs(phases - np.rint(phases)).max(1) < 1e-6]
        assert {tuple(o) for o in (domain.orders.round(6) + 0.0).tolist()} == {
            tuple(o) for o in (expected.round(6) + 0.0).tolist()
        }
        np.testing.assert_allclose(domain.orders @ pattern.reciprocal, domain.spots, atol=1e-9)
        assert domain.integral.sum() == np.sum(np.abs(expected - np.rint(expected)).max(1) < 1e-9)
        assert np.all(np.diff(np.linalg.norm(domain.spots, axis=1)) > -1e-6)
        assert not domain.extinct.any()
        assert domain.intensities is None


def test_half_order_spots_of_a_row_structure_lie_along_its_short_reciprocal_vector():
    pattern = leed_pattern(CU110, np.diag([2, 1]))
    orders = {tuple(o) for o in pattern.domains[0].orders.round(3).tolist()}
    assert (0.5, 0.0) in orders
    assert (0.0, 0.5) not in orders
    np.testing.assert_allclose(pattern.reciprocal @ CU110.T, 2 * np.pi * np.eye(2), atol=1e-12)


def test_the_whole_pattern_has_the_symmetry_of_the_substrate():
    pattern = leed_pattern(HEXAGONAL, np.array([[3, 0], [0, 2]]))
    spots = {tuple(s) for d in pattern.domains for s in (d.spots.round(5) + 0.0).tolist()}
    turn = np.array([[0.5, np.sqrt(3) / 2], [-np.sqrt(3) / 2, 0.5]])
    for operation in (turn, np.diag([1.0, -1.0])):
        moved = np.array(sorted(spots)) @ operation
        distances = np.linalg.norm(moved[:, None] - np.array(sorted(spots))[None], axis=-1).min(1)
        assert distances.max() < 1e-4
    own = pattern.domains[0].spots
    assert np.linalg.norm((own @ turn)[:, None] - own[None], axis=-1).min(1).max() > 0.1  # no single domain has it


@pytest.mark.parametrize(
    ("surface", "order", "angle"), [("Ag(111)", 6, 60.0), ("Ag(100)", 8, 90.0), ("Ag(110)", 4, 90.0)]
)
def test_point_group_of_built_surfaces(surface, order, angle):
    atoms = build_substrate(surface, "p(2x2)", layers=3, lattice=4.167)
    basis, matrix, rotations = surface_lattice(atoms)
    assert matrix.tolist() == [[2, 0], [0, 2]]
    assert len(rotations) == order
    assert len(integer_operations(rotations, basis)) == order
    assert np.degrees(np.arccos(basis[0] @ basis[1] / np.linalg.norm(basis, axis=1).prod())) == pytest.approx(angle)
    del atoms.info["superstructure"]
    found, without, _ = surface_lattice(atoms)
    np.testing.assert_allclose(without @ found, atoms.cell.array[:2, :2], atol=1e-6)
    np.testing.assert_allclose(found, basis, atol=1e-6)
    wide = atoms * (2, 1, 1)
    wide.info["superstructure"] = [[2, 0], [0, 2]]  # no longer true: the substrate decides
    assert abs(np.linalg.det(surface_lattice(wide)[1])) == pytest.approx(8)


def test_a_threefold_surface_orders_its_cells_as_a_sixfold_one():
    basis, _, rotations = surface_lattice(build_substrate("Ag(111)", layers=3, lattice=4.167))
    operations = integer_operations(rotations, basis)
    assert len(operations) == 6
    listed = [(c.area, c.wood, c.domains) for c in commensurate_cells(basis, 12, operations=operations)]
    assert listed == [(c.area, c.wood, c.domains) for c in commensurate_cells(basis, 12)]


@pytest.mark.parametrize(
    ("name", "wood"),
    [
        ("p4x4-O_Ag111-Ag6", "p(4x4)"),
        ("p2x1-O_Ag110-added-row", "p(2x1)"),
        ("p3x1-O_Ag110-added-row", "p(3x1)"),
        ("p2x2-O_Pt111-fcc", "p(2x2)"),
    ],
)
def test_references_are_named_as_in_the_literature(name, wood):
    basis, matrix, rotations = surface_lattice(reference(name))
    assert wood_notation(matrix, basis, integer_operations(rotations, basis)) == wood


def test_electrons_of_150_ev_have_a_wavelength_of_one_angstrom():
    assert 2 * np.pi / electron_wavenumber(150.412) == pytest.approx(1.0, abs=1e-5)


def test_intensity_is_the_squared_sum_of_scattered_waves():
    atoms = reference("p2x1-O_Ag110-added-row")
    q, energy = np.array([0.7, -1.1]), 80.0
    k = electron_wavenumber(energy)
    normal = k + math.sqrt(k**2 - q @ q)
    total = 0j
    for number, tag, position in zip(atoms.numbers, atoms.get_tags(), atoms.positions, strict=True):
        if tag <= 1:
            factor = number / (q @ q + normal**2 + number ** (2 / 3) / units.Bohr**2)
            total += factor * cmath.exp(1j * (q @ position[:2] + normal * position[2]))
    assert scattered_intensity(atoms, q[None], energy)[0] == pytest.approx(abs(total) ** 2)


def test_glide_lines_of_p4g_forbid_their_half_orders():
    atoms = clock()
    assert len(structure_operations(atoms)) == 8  # p4gm has eight operations in its cell
    pattern = kinematic_pattern(atoms)
    extinct, intensities = by_order(pattern, "extinct"), by_order(pattern, "intensities")
    for (h, k), gone in extinct.items():
        half_on_an_axis = (h == 0 and k % 1 != 0) or (k == 0 and h % 1 != 0)
        assert gone == half_on_an_axis
        assert (intensities[h, k] == 0) == gone
    for energy in (60.0, 111.0, 187.0):  # the waves do cancel, whatever the energy
        spots = pattern.domains[0].spots
        waves = scattered_intensity(atoms, spots, energy)
        assert waves[pattern.domains[0].extinct].max() < 1e-12 * waves.max()


def test_a_broken_glide_line_lights_the_spots():
    atoms = clock()
    carbon = np.flatnonzero(atoms.numbers == 6)[0]
    atoms.positions[carbon, 0] += 0.6
    extinct = by_order(kinematic_pattern(atoms), "extinct")
    assert not extinct[0.5, 0.0]
    assert by_order(kinematic_pattern(atoms), "intensities")[0.5, 0.0] > 1e-4


def test_noise_below_the_tolerance_leaves_the_glide_lines():
    atoms = clock()
    atoms.positions += np.random.default_rng(3).normal(scale=0.02, size=atoms.positions.shape)
    assert by_order(kinematic_pattern(atoms), "extinct") == by_order(kinematic_pattern(clock()), "extinct")


def test_a_cell_larger_than_needed_shows_no_more_spots():
    atoms = reference("c2x2-O_Ni100")  # stored in a p(2×2) cell
    extinct = by_order(kinematic_pattern(atoms), "extinct")
    for (h, k), gone in extinct.items():
        assert gone == ((h + k) % 1 != 0)


def test_a_clean_surface_has_integral_spots_alone():
    pattern = kinematic_pattern(build_substrate("Ag(111)", "p(4x4)", layers=2, lattice=4.167))
    (domain,) = pattern.domains
    np.testing.assert_array_equal(domain.extinct, ~domain.integral)


def test_intensities_have_the_symmetry_of_the_substrate_and_not_more():
    pattern = kinematic_pattern(reference("p4x4-O_Ag111-Ag6"))
    (domain,) = pattern.domains
    assert not domain.extinct.any()

    def moved(operation: np.ndarray) -> np.ndarray:
        partner = np.linalg.norm((domain.spots @ operation)[:, None] - domain.spots[None], axis=-1).argmin(1)
        return domain.intensities[partner]

    turn = np.array([[-0.5, np.sqrt(3) / 2], [-np.sqrt(3) / 2, -0.5]])
    np.testing.assert_allclose(moved(turn), domain.intensities, rtol=1e-4, atol=1e-6)
    assert np.abs(moved(-np.eye(2)) - domain.intensities).max() > 1e-3  # 3m, not 6mm
    assert np.delete(domain.intensities, 0).max() == pytest.approx(1.0)


def test_domains_share_the_intensity_of_the_rotated_structure():
    atoms = reference("p2x2-O_Pt111-fcc")
    wide = atoms * (2, 1, 1)
    wide.positions[np.flatnonzero(wide.get_tags() == 0)[0], 2] += 0.4  # p(4×2): buckled rows, three domains
    pattern = kinematic_pattern(wide)
    assert len(pattern.domains) == 3
    totals = [d.intensities[~d.integral].sum() for d in pattern.domains]
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-3)


def test_the_pattern_ends_where_no_electron_leaves():
    pattern = kinematic_pattern(reference("p2x2-O_Pt111-fcc"), energy=20.0)
    assert pattern.radius == pytest.approx(electron_wavenumber(20.0))
    assert all(np.linalg.norm(d.spots, axis=1).max() <= pattern.radius * (1 + 1e-6) for d in pattern.domains)


def test_forbidden_needs_an_operation_that_keeps_the_spot():
    atoms = clock()
    symmetry = structure_operations(atoms)
    reciprocal = reciprocal_lattice(np.asarray(atoms.cell[:2, :2]))
    orders = np.array([[1, 0], [2, 0], [1, 1], [0, 3], [1, 2]])
    assert forbidden(orders @ reciprocal, symmetry).tolist() == [True, False, False, True, False]


def test_mistakes():
    with pytest.raises(UserError, match="energy -5"):
        kinematic_pattern(reference("p2x2-O_Pt111-fcc"), energy=-5.0)
    with pytest.raises(UserError, match="radius 0"):
        leed_pattern(HEXAGONAL, np.eye(2, dtype=int), radius=0.0)
    with pytest.raises(UserError, match="no substrate"):
        kinematic_pattern(Atoms("O", cell=[3, 3, 10]))

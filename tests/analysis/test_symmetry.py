"""Primitive cells and groups, proved against spglib, known structures and planted distortions."""

import warnings

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.constraints import FixAtoms
from hypothesis import given, settings
from hypothesis import strategies as st

from adlayer.analysis.matching import distance, substrate_operations
from adlayer.analysis.references import reference
from adlayer.analysis.registry import SymmetryOperations
from adlayer.analysis.symmetry import (
    PLANE_GROUPS,
    describe_symmetry,
    plane_group,
    point_group,
    primitive_overlayer,
)
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate
from adlayer.structures.superstructure import superstructure_matrix, wood_notation

# space group number of the plane group stacked without tilt, and its layer group
SPACE_GROUPS = dict(
    zip(PLANE_GROUPS, (1, 3, 6, 7, 8, 25, 28, 32, 35, 75, 99, 100, 143, 156, 157, 168, 183), strict=True)
)
LAYER_GROUPS = dict(zip(PLANE_GROUPS, (1, 3, 11, 12, 13, 23, 24, 25, 26, 49, 55, 56, 65, 69, 70, 73, 77), strict=True))

# point group on the substrate and plane group of published structures
REFERENCES = {
    "p2x2-O_Pt111-fcc": ("3m", "p3m1"),
    "c2x2-O_Ni100": ("4mm", "p4mm"),
    "p2x1-O_Ag110-added-row": ("2mm", "p2mm"),
    "p3x1-O_Ag110-added-row": ("2mm", "p2mm"),
    "p4x4-O_Ag111-Ag6": ("3", "p3"),  # the oxygen pairs are split, which breaks the mirrors
    "p4x4-O_Ag111-Ag6-3layer": ("3", "p3"),
    "p4x4-O_Ag111-Ag6-symmetric": ("3m", "p3m1"),
}


def with_oxygen(substrate: Atoms, points: np.ndarray, height: float = 1.2) -> Atoms:
    """Oxygen at in-plane points (n, 2), Å, above the top layer."""
    z = substrate.positions[:, 2].max() + height
    oxygen = Atoms(f"O{len(points)}", [(x, y, z) for x, y in points], tags=[0] * len(points))
    atoms = substrate + oxygen
    atoms.info = dict(substrate.info)
    return atoms


def hollow(substrate: Atoms, layer: int) -> np.ndarray:
    """The in-plane place (2,) of an atom of a layer: an hcp hollow for layer 2 of fcc(111), an fcc one for 3."""
    return substrate.positions[substrate.get_tags() == layer][0, :2]


def displaced(atoms: Atoms, largest: float, rng: np.random.Generator) -> Atoms:
    """A copy whose atoms, save those of the deepest layer, stray by at most ``largest``."""
    moved = atoms.copy()
    moved.set_constraint()
    v = rng.normal(size=(len(atoms), 3))
    v *= largest * rng.random((len(atoms), 1)) / np.linalg.norm(v, axis=1)[:, None]
    moved.positions += v * (atoms.get_tags() < atoms.get_tags().max())[:, None]
    return moved


def plane_group_by_spglib(atoms: Atoms, tolerance: float) -> str:
    """The plane group of a one-sided slab from its space group."""
    cell = atoms.cell.array.copy()
    cell[2] = [0.0, 0.0, np.ptp(atoms.positions[:, 2]) + 17.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        found = spglib.get_symmetry_dataset(
            (cell, atoms.positions @ np.linalg.inv(cell), atoms.numbers), symprec=tolerance
        )
    return {number: name for name, number in SPACE_GROUPS.items()}[found.number]


@pytest.mark.parametrize("name", REFERENCES)
def test_groups_of_published_structures(name):
    found = describe_symmetry(reference(name))
    assert (found.point_group, found.plane_group) == REFERENCES[name]
    assert found.plane_group_number == PLANE_GROUPS.index(found.plane_group) + 1
    assert found.layer_group_number == LAYER_GROUPS[found.plane_group]
    assert plane_group_by_spglib(primitive_overlayer(reference(name)).atoms, 0.1) == found.plane_group


# surface, cell, layer above whose atoms oxygen sits; groups found in the International Tables by hand
PLANTED = [
    ("Pt(111)", "p(1x1)", 3, "3m", "p3m1"),
    ("Pt(111)", "p(2x2)", 2, "3m", "p3m1"),
    ("Pt(111)", "(r3xr3)R30", 3, "3m", "p31m"),  # mirrors along the short vectors of the turned superlattice
    ("Pt(111)", "(r7xr7)R19.1", 3, "3", "p3"),  # a chiral superlattice
    ("Pt(111)", "p(2x1)", 3, "m", "pm"),
    ("Pt(111)", "c(4x2)", 3, "m", "pm"),  # spanned by √3 and 2 at a right angle
    ("Pt(111)", "[[3,1],[1,3]]", 3, "m", "cm"),
    ("Ni(100)", "p(2x2)", 2, "4mm", "p4mm"),
    ("Ni(100)", "c(2x2)", 2, "4mm", "p4mm"),
    ("Ni(100)", "p(2x1)", 2, "2mm", "p2mm"),
    ("Ni(100)", "c(4x2)", 2, "2mm", "c2mm"),
    ("Ni(100)", "(r5xr5)R26.6", 2, "4", "p4"),
    ("Ag(110)", "c(2x2)", 2, "2mm", "c2mm"),
    ("Fe(110)", "p(1x1)", 1, "2mm", "c2mm"),
]


@pytest.mark.parametrize(
    ("surface", "cell", "layer", "point", "plane"), PLANTED, ids=[f"{s} {c}" for s, c, *_ in PLANTED]
)
def test_groups_of_one_atom_on_a_site(surface, cell, layer, point, plane):
    substrate = build_substrate(surface, cell, layers=4)
    atoms = with_oxygen(substrate, [hollow(substrate, layer)])
    found = describe_symmetry(atoms)
    assert (found.point_group, found.plane_group) == (point, plane)
    assert found.layer_group_number == LAYER_GROUPS[plane]
    assert plane_group_by_spglib(atoms, 1e-3) == plane
    doubled = displaced(atoms.repeat((2, 1, 1)), 0.1, np.random.default_rng(0))
    doubled.info = {}
    found = describe_symmetry(doubled)
    assert (found.point_group, found.plane_group) == (point, plane)


@pytest.mark.parametrize(
    ("surface", "point", "plane", "layer"),
    [
        ("Ag(111)", "3m", "p3m1", "p-3m1"),
        ("Ni(100)", "4mm", "p4mm", "p4/mmm"),
        ("Ag(110)", "2mm", "p2mm", "pmmm"),
        ("Ti(0001)", "3m", "p3m1", "p-6m2"),
    ],
)
def test_clean_slabs(surface, point, plane, layer):
    substrate = build_substrate(surface, "p(3x2)", layers=3)
    found = describe_symmetry(substrate)
    assert (found.point_group, found.plane_group, found.layer_group) == (point, plane, layer)
    primitive = primitive_overlayer(substrate)
    assert (primitive.n_copies, len(primitive.atoms)) == (6, 3)


def test_a_planted_distortion_lowers_the_group_beyond_the_tolerance():
    substrate = build_substrate("Ni(100)", "p(2x2)", layers=3)
    site, a = hollow(substrate, 2), substrate.cell[0, 0] / 2
    groups = {}
    for shift in (0.1, 0.5):
        for name, direction in {"row": [1, 0], "diagonal": [1, 1], "askew": [1, 0.4]}.items():
            moved = site + shift * np.array(direction) / np.linalg.norm(direction)
            found = describe_symmetry(with_oxygen(substrate, [moved]))
            groups[name, shift] = (found.point_group, found.plane_group)
    assert {groups[name, 0.1] for name in ("row", "diagonal", "askew")} == {("4mm", "p4mm")}
    assert groups["row", 0.5] == ("m", "pm")
    assert groups["diagonal", 0.5] == ("m", "cm")
    assert groups["askew", 0.5] == ("1", "p1")
    # Rows shifted to and fro are related by a glide line, and by twofold axes between them.
    zigzag = with_oxygen(substrate, site + np.array([[0.5, 0.0], [-0.5, a]]))
    assert describe_symmetry(zigzag).plane_group == plane_group_by_spglib(zigzag, 1e-3) == "p2mg"
    # Square-wise rotation of four atoms, clockwise and counter-clockwise in turn, leaves p4gm.
    substrate = build_substrate("Ni(100)", "p(2x2)", layers=2)
    turn = 0.45 * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
    corners = site + a * np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    clock = with_oxygen(substrate, corners + turn)
    assert describe_symmetry(clock).plane_group == plane_group_by_spglib(clock, 1e-3)


def operations_of(hall: int) -> dict:
    """Rotations, translations and space group number of a setting, from spglib's tables."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return {**spglib.get_symmetry_from_database(hall), "number": spglib.get_spacegroup_type(hall).number}


def settings_of_plane_groups() -> list[tuple[int, str]]:
    """Hall numbers of spglib's settings that leave z alone, with the plane group."""
    names = {number: name for name, number in SPACE_GROUPS.items()}
    found = []
    for hall in range(1, 531):
        operations = operations_of(hall)
        rotations, shifts = operations["rotations"], operations["translations"]
        flat = (rotations[:, 2, :2] == 0).all() and (rotations[:, :2, 2] == 0).all() and (rotations[:, 2, 2] == 1).all()
        if flat and np.abs(shifts[:, 2]).max() < 1e-9:
            found.append((hall, names[operations["number"]]))
    return found


def test_all_plane_groups_in_any_basis_and_origin_despite_noise():
    every = settings_of_plane_groups()
    assert {name for _, name in every} == set(PLANE_GROUPS)
    rng = np.random.default_rng(1)
    for hall, name in every:
        order = SPACE_GROUPS[name]
        cell = np.array(
            [[5.0, 0.0], [-2.5, 4.330127]] if order > 142 else [[5.0, 0.0], [0.0, 5.0 if order > 74 else 6.3]]
        )
        if name in ("p1", "p2"):
            cell[1, 0] = 1.3
        found = operations_of(hall)
        parts, shifts = found["rotations"][:, :2, :2], found["translations"][:, :2]
        centring = shifts[(parts == np.eye(2)).all((1, 2))]
        if len(centring) > 1:
            cell = np.array([[0.5, 0.5], [-0.5, 0.5]]) @ cell
        conventional = cell if len(centring) == 1 else np.array([[1.0, -1.0], [1.0, 1.0]]) @ cell
        rotations = conventional.T @ parts @ np.linalg.inv(conventional.T)
        translations = shifts @ conventional
        first = [int(np.flatnonzero(np.abs(rotations - r).max((1, 2)) < 1e-6)[0]) for r in rotations]
        kept = sorted(set(first))
        for _ in range(4):
            origin = rng.uniform(-3, 3, 2)
            moved = translations[kept] + origin - rotations[kept] @ origin + rng.normal(scale=0.03, size=(len(kept), 2))
            basis = np.array([[1, rng.integers(-2, 3)], [0, 1]]) @ np.array([[1, 0], [rng.integers(-2, 3), 1]]) @ cell
            assert plane_group(SymmetryOperations(rotations[kept], moved), basis) == name


def test_point_groups_by_name():
    def rotation(n: int) -> np.ndarray:
        c, s = np.cos(2 * np.pi / n), np.sin(2 * np.pi / n)
        return np.array([[c, -s], [s, c]])

    for n in (1, 2, 3, 4, 6):
        turns = [np.linalg.matrix_power(rotation(n), k) for k in range(n)]
        assert point_group(np.array(turns * 2)) == str(n)
        mirrored = np.array([*turns, *(np.diag([1.0, -1.0]) @ t for t in turns)])
        assert point_group(mirrored) == {1: "m", 2: "2mm", 3: "3m", 4: "4mm", 6: "6mm"}[n]


def test_a_p4x4_structure_that_is_really_c4x2():
    small = build_substrate("Ag(111)", "c(4x2)", layers=2, fixed_layers=1, window=(1.0, 3.5))
    small = place_overlayer(small, "Ag2O", np.random.default_rng(2))
    basis = np.linalg.inv(np.array(small.info["superstructure"])) @ small.cell.array[:2, :2]
    coordinates = np.array([[4, 0], [0, 4]]) @ np.linalg.inv(small.info["superstructure"])
    assert np.allclose(coordinates, np.round(coordinates))
    rng = np.random.default_rng(3)
    big = small.repeat((4, 4, 1))  # all of the p(4x4) cell, four times
    big.set_cell(np.vstack([np.array([[4, 0], [0, 4]]) @ basis @ np.eye(2, 3), small.cell.array[2]]))
    big.wrap(pbc=[True, True, False], eps=1e-5)
    big = big[np.unique(big.positions.round(3) + 0.0, axis=0, return_index=True)[1]]
    assert len(big) == 4 * len(small)
    big.info = {**small.info, "superstructure": [[4, 0], [0, 4]], "note": "kept"}
    noisy = big.copy()
    noisy.positions[:] = displaced(big, 0.1, rng).positions
    for atoms in (big, noisy):
        found = primitive_overlayer(atoms)
        assert found.n_copies == 4
        assert wood_notation(found.matrix, found.basis) == "c(4x2)"
        assert found.atoms.info["superstructure"] == found.matrix.tolist()
        assert found.atoms.info["note"] == "kept"
        assert atoms.info["superstructure"] == [[4, 0], [0, 4]]
        assert sorted(found.atoms.get_tags()) == sorted(small.get_tags())
        assert found.atoms.get_chemical_formula() == small.get_chemical_formula()
        (fixed,) = found.atoms.constraints
        assert isinstance(fixed, FixAtoms)
        assert set(found.atoms.get_tags()[fixed.index]) == {2}
        assert np.allclose(found.matrix @ found.basis, found.atoms.cell.array[:2, :2])
        assert distance(small, found.atoms) < (1e-6 if atoms is big else 0.1)
        again = primitive_overlayer(found.atoms)
        assert again.n_copies == 1
        assert again.atoms is found.atoms
    broken = big.copy()
    broken.positions[np.flatnonzero(broken.get_tags() == 0)[0], 2] += 0.6
    assert primitive_overlayer(broken).n_copies == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_supercells_of_random_structures_are_reduced_whatever_the_noise_and_operation(seed):
    rng = np.random.default_rng(seed)
    surface, cell = [("Ag(111)", "p(2x2)"), ("Ni(100)", "c(2x2)"), ("Ag(110)", "p(2x1)")][rng.integers(3)]
    substrate = build_substrate(surface, cell, layers=2, window=(1.0, 3.0))
    small = place_overlayer(substrate, "AgO", rng, min_distance=0.6)
    copies = tuple(int(n) for n in rng.integers(1, 4, 2))
    large = small.repeat((*copies, 1))
    large.info = {}
    adsorbed = large.get_tags() == 0
    operations = substrate_operations(large)
    large.positions[adsorbed, :2] = operations.apply(large.positions[adsorbed, :2])[rng.integers(len(operations))]
    noisy = displaced(large, 0.1, rng)
    noisy.wrap()
    ours, theirs = primitive_overlayer(noisy), primitive_overlayer(small)
    assert ours.n_copies == copies[0] * copies[1] * theirs.n_copies
    assert distance(ours.atoms, theirs.atoms) < 0.25
    groups = {describe_symmetry(small, tolerance).plane_group for tolerance in (0.1, 0.5)}
    assert len(groups) == 2 or describe_symmetry(noisy).plane_group in groups


def test_the_closed_set_is_a_group():
    """A chain of atoms each within the tolerance of its image must not be taken for a translation's orbit."""
    substrate = build_substrate("Ag(110)", "p(1x4)", layers=2)
    spacing = substrate.cell[1, 1] / 4
    heights = [0.0, 0.25, 0.5, 0.25]  # the neighbour is within 0.3 Å, the second neighbour is not
    atoms = with_oxygen(substrate, [(0.0, k * spacing) for k in range(4)])
    atoms.positions[atoms.get_tags() == 0, 2] += heights
    assert primitive_overlayer(atoms).n_copies == 1
    assert primitive_overlayer(atoms, tolerance=0.6).n_copies == 4


def test_the_basis_is_right_handed_and_the_matrix_that_of_the_info():
    atoms = place_overlayer(build_substrate("Ag(111)", "[[2,1],[-1,3]]", layers=2), "Ag3O2", np.random.default_rng(4))
    found = primitive_overlayer(atoms)
    assert found.matrix.tolist() == superstructure_matrix("[[2,1],[-1,3]]", found.basis).tolist()
    stale = atoms.copy()
    stale.info["superstructure"] = [[1, 0], [0, 1]]  # would make the whole cell (1x1)
    assert abs(np.linalg.det(primitive_overlayer(stale).matrix)) == pytest.approx(7)
    mirrored = reference("p4x4-O_Ag111-Ag6")
    mirrored.positions[:, 0] *= -1
    mirrored.cell[:, 0] *= -1
    found = primitive_overlayer(mirrored)
    assert np.linalg.det(found.basis) > 0
    assert wood_notation(found.matrix, found.basis) == "p(4x4)"


def test_a_structure_without_substrate_is_refused():
    with pytest.raises(UserError, match="no substrate"):
        describe_symmetry(Atoms("O", cell=[3, 3, 9]))

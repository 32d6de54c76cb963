"""Matching, proved against spglib, brute force and planted differences."""

import itertools
import math
import warnings

import numpy as np
import pytest
import spglib
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import given, settings
from hypothesis import strategies as st

from adlayer.analysis.matching import distance, match, same_structure, substrate_operations, unique
from adlayer.analysis.references import reference
from adlayer.analysis.registry import ideal_substrate, minimum_image
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

# surface, superstructure, layers, formula, order of the group modulo the superlattice
SURFACES = [
    ("Ag(111)", "p(4x4)", 2, "Ag6O3", 96),
    ("Ag(111)", "p(3x3)", 3, "Ag4O2", 54),
    ("Ag(111)", "c(4x2)", 2, "Ag2O2", 8),
    ("Ag(111)", "[[2,1],[-1,3]]", 3, "Ag3O2", 21),
    ("Ag(111)", "[[3,1],[0,2]]", 2, "Ag3O2", 6),
    ("Ni(100)", "p(3x2)", 3, "Ni2O2", 24),
    ("Ni(100)", "c(2x2)", 2, "O2", 16),
    ("Ag(110)", "p(2x3)", 4, "Ag3O2", 24),
    ("Fe(110)", "p(2x2)", 3, "O2", 16),
    ("Ti(0001)", "p(2x2)", 3, "O3", 24),
]
IDS = [f"{s} {c}" for s, c, *_ in SURFACES]


def with_overlayer(surface: str, cell: str, layers: int, formula: str, rng: np.random.Generator) -> Atoms:
    """A random overlayer on a substrate whose top layer is distorted as by a relaxation."""
    atoms = place_overlayer(build_substrate(surface, cell, layers=layers, window=(1.0, 3.5)), formula, rng)
    atoms.set_constraint()
    top = atoms.get_tags() == 1
    atoms.positions[top] += rng.uniform(-0.15, 0.15, (top.sum(), 3))
    return atoms


def displacements(n: int, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Random directions (n, 3), each of length below ``largest``."""
    v = rng.normal(size=(n, 3))
    return v / np.linalg.norm(v, axis=1)[:, None] * largest * rng.random((n, 1))


def copy_by_operation(atoms: Atoms, operation: int, rng: np.random.Generator, noise: float = 0.0) -> Atoms:
    """The overlayer carried by a substrate operation, atoms permuted, displaced by at most ``noise`` and wrapped."""
    operations = substrate_operations(atoms)
    substrate, overlayer = atoms[atoms.get_tags() > 0], atoms[atoms.get_tags() == 0]
    overlayer.positions[:, :2] = operations.apply(overlayer.positions[:, :2])[operation]
    overlayer.positions += displacements(len(overlayer), noise, rng)
    moved = substrate[rng.permutation(len(substrate))] + overlayer[rng.permutation(len(overlayer))]
    moved.wrap()
    return moved


def spglib_operations(substrate: Atoms) -> list[tuple[np.ndarray, np.ndarray]]:
    """In-plane operations in fractional coordinates that leave z alone."""
    cell = substrate.cell.array.copy()
    cell[2, 2] = substrate.positions[:, 2].max() + 15.0
    slab = Atoms(substrate.numbers, substrate.positions, cell=cell, pbc=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # spglib's own, on how it will report errors
        found = spglib.get_symmetry((slab.cell.array, slab.get_scaled_positions(), slab.numbers), symprec=1e-3)
    return [
        (r[:2, :2], t[:2])
        for r, t in zip(found["rotations"], found["translations"], strict=True)
        if r[2, 2] == 1 and abs(t[2] - round(t[2])) < 1e-6
    ]


@pytest.mark.parametrize(("surface", "cell", "layers", "formula", "order"), SURFACES, ids=IDS)
def test_operations_are_those_of_spglib(surface, cell, layers, formula, order):
    substrate = build_substrate(surface, cell, layers=layers)
    ours, theirs = substrate_operations(substrate), spglib_operations(substrate)
    assert len(ours) == len(theirs) == order
    rows = substrate.cell.array[:2, :2]
    for rotation, translation in theirs:
        cartesian = rows.T @ rotation @ np.linalg.inv(rows.T)
        gap = minimum_image(ours.translations - translation @ rows, rows)
        assert np.any((np.abs(ours.rotations - cartesian).max((1, 2)) < 1e-6) & (np.linalg.norm(gap, axis=1) < 1e-3))


@pytest.mark.parametrize(("surface", "cell", "layers", "formula", "order"), SURFACES, ids=IDS)
def test_relaxed_structures_keep_the_group_of_the_ideal_substrate(surface, cell, layers, formula, order):
    rng = np.random.default_rng(0)
    for _ in range(3):
        assert len(substrate_operations(with_overlayer(surface, cell, layers, formula, rng))) == order


@pytest.mark.parametrize(("surface", "cell", "layers", "formula", "order"), SURFACES, ids=IDS)
def test_symmetric_copies_are_merged_and_others_are_not(surface, cell, layers, formula, order):
    rng = np.random.default_rng(1)
    atoms, other = (with_overlayer(surface, cell, layers, formula, rng) for _ in range(2))
    copies = [copy_by_operation(atoms, k, rng, noise=0.2) for k in rng.choice(order, 4)]
    assert all(distance(atoms, copy) < 0.3 for copy in copies)
    assert unique([atoms, *copies, other]) == [[0, 1, 2, 3, 4], [5]]


def test_every_one_of_the_96_operations_gives_distance_zero():
    rng = np.random.default_rng(2)
    atoms = place_overlayer(build_substrate("Ag(111)", "p(4x4)", layers=2), "Ag6O3", rng)
    assert max(distance(atoms, copy_by_operation(atoms, k, rng)) for k in range(96)) < 1e-5


def test_noise_above_the_tolerance_splits():
    rng = np.random.default_rng(3)
    atoms = with_overlayer("Ag(111)", "p(3x3)", 2, "Ag4O2", rng)
    for length, merged in ((0.28, True), (0.32, False)):
        moved = copy_by_operation(atoms, 17, rng)
        moved.positions[np.flatnonzero(moved.get_tags() == 0)[2], 2] += length
        assert distance(atoms, moved) == pytest.approx(length, abs=1e-6)
        assert (len(unique([atoms, moved])) == 1) is merged
        assert distance(atoms, moved, lateral=True) < 1e-6


def test_distance_agrees_with_brute_force():
    rng = np.random.default_rng(4)
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=2)
    rows, operations = substrate.cell.array[:2, :2], spglib_operations(substrate)
    images = np.array(list(itertools.product(range(-3, 4), repeat=2))) @ rows
    for _ in range(40):
        a, b = (place_overlayer(substrate, "Ag3", rng, min_distance=0.5) for _ in range(2))
        p, q = (x.positions[x.get_tags() == 0] for x in (a, b))
        best = math.inf
        for rotation, translation in operations:
            lateral = (q[:, :2] @ np.linalg.inv(rows) @ rotation.T + translation) @ rows
            squares = ((p[:, None, None, :2] - lateral[:, None] - images) ** 2).sum(-1).min(-1)
            squares += (p[:, None, 2] - q[None, :, 2]) ** 2
            pairings = [squares[range(3), pairing] for pairing in itertools.permutations(range(3))]
            best = min(best, min(pairings, key=np.sum).max())
        assert distance(a, b) == pytest.approx(math.sqrt(best), abs=1e-6)
        assert distance(b, a) == pytest.approx(math.sqrt(best), abs=1e-6)


def test_the_prefilter_never_changes_the_verdict():
    rng = np.random.default_rng(5)
    atoms = with_overlayer("Ag(110)", "p(2x3)", 4, "Ag3O2", rng)
    others = [copy_by_operation(atoms, k % 24, rng, noise=0.9) for k in range(40)]
    exact = [i for i, other in enumerate(others) if distance(atoms, other) <= 0.5]
    assert 0 < len(exact) < 40
    assert match(others, atoms, tolerance=0.5) == exact


def test_another_registry_is_another_structure():
    fcc = reference("p2x2-O_Pt111-fcc")
    hcp = fcc.copy()
    a = np.linalg.norm(fcc.cell[0]) / 2
    oxygen = fcc.get_tags() == 0
    hcp.positions[oxygen, 1] += 2 * a / math.sqrt(3)  # past the atop site, half the way, to the hcp hollow
    assert distance(fcc, hcp, lateral=True) == pytest.approx(a / math.sqrt(3), abs=1e-3)
    assert not same_structure(fcc, hcp)
    next_fcc = fcc.copy()
    next_fcc.positions[oxygen] += fcc.cell[0] / 2
    assert distance(fcc, next_fcc) < 1e-6


def mirrored(atoms: Atoms, axis: int) -> Atoms:
    """The overlayer mirrored in a plane through an atom of the top layer."""
    image, adsorbed = atoms.copy(), atoms.get_tags() == 0
    origin = atoms.positions[np.flatnonzero(atoms.get_tags() == 1)[0], axis]
    image.positions[adsorbed, axis] = 2 * origin - atoms.positions[adsorbed, axis]
    return image


def test_only_mirrors_of_the_substrate_count():
    rng = np.random.default_rng(6)
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2)
    atoms = place_overlayer(substrate, "Ag6O3", rng)
    assert distance(atoms, mirrored(atoms, 0)) < 1e-6  # perpendicular to a close-packed row: in p3m1
    assert distance(atoms, mirrored(atoms, 1)) > 0.5  # along a row: would exchange fcc and hcp
    assert unique([atoms, mirrored(atoms, 1)]) == [[0], [1]]
    square = place_overlayer(build_substrate("Ni(100)", "p(3x3)", layers=2), "Ni3O2", rng)
    assert max(distance(square, mirrored(square, axis)) for axis in (0, 1)) < 1e-6


def test_enantiomers_in_a_chiral_cell_differ():
    atoms = place_overlayer(build_substrate("Ag(111)", "[[2,1],[-1,3]]", layers=2), "Ag3O2", np.random.default_rng(7))
    assert distance(atoms, mirrored(atoms, 0)) > 0.5
    domain = (
        atoms.copy()
    )  # the whole crystal mirrored, superlattice included, is the other domain of the same structure
    domain.positions[:, 0] *= -1
    domain.cell[:, 0] *= -1
    turned = domain.copy()
    turned.rotate(25.0, "z", rotate_cell=True)
    assert distance(atoms, turned) < 1e-5


def test_the_ag6_model_is_known_by_its_lateral_topology():
    names = [f"p4x4-O_Ag111-{n}" for n in ("Ag6", "Ag6-symmetric", "Ag6-3layer", "Ag2O-trilayer", "best-random")]
    structures = [reference(name) for name in names]
    for target in structures[:3]:
        assert match(structures, target, lateral=True) == [0, 1, 2]
    assert match(structures, structures[0]) == [0, 2]  # with heights, the split oxygen pairs count


def test_lattice_constant_basis_origin_orientation_and_layers_do_not_matter():
    atoms = reference("p4x4-O_Ag111-Ag6")
    other = reference("p4x4-O_Ag111-Ag6-3layer")
    other.cell[1] = other.cell[1] + 2 * other.cell[0]
    other.positions += [1.234, -0.77, 0.5]
    cell = other.cell.array.copy()
    cell[:2, :2] *= 1.02
    other.set_cell(cell, scale_atoms=True)
    other.rotate(37.0, "z", rotate_cell=True)
    other.wrap()
    assert distance(atoms, other) < 0.1
    cell = other.cell.array.copy()
    cell[:2, :2] *= 1.03
    other.set_cell(cell, scale_atoms=True)
    assert distance(atoms, other) == math.inf
    sheared = atoms.copy()
    sheared.set_cell(atoms.cell.array * [1.02, 0.99, 1.0], scale_atoms=True)
    assert distance(atoms, sheared) == math.inf


def test_other_compositions_cells_and_substrates_are_infinitely_far():
    rng = np.random.default_rng(8)
    substrate = build_substrate("Ag(111)", "p(3x3)", layers=2)
    atoms = place_overlayer(substrate, "Ag3O2", rng)
    others = [
        place_overlayer(substrate, "Ag2O3", rng),
        place_overlayer(build_substrate("Ag(111)", "[[3,0],[1,3]]", layers=2), "Ag3O2", rng),
        place_overlayer(build_substrate("Au(111)", "p(3x3)", layers=2), "Ag3O2", rng),
        place_overlayer(build_substrate("Ag(100)", "p(3x3)", layers=2), "Ag3O2", rng),
    ]
    assert [distance(atoms, other) for other in others] == [math.inf] * 4
    assert distance(substrate, substrate) == 0.0


def test_energies_separate_groups_and_order_them():
    rng = np.random.default_rng(9)
    atoms = with_overlayer("Ni(100)", "p(3x2)", 2, "Ni2O2", rng)
    structures = [copy_by_operation(atoms, k, rng, noise=0.05) for k in (0, 5, 11, 7)]
    structures.append(with_overlayer("Ni(100)", "p(3x2)", 2, "Ni2O2", rng))
    for structure, energy in zip(structures, (-1.00, -1.03, -2.0, -1.02, -1.5), strict=True):
        structure.calc = SinglePointCalculator(structure, energy=energy)
    assert unique(structures) == [[2], [4], [1, 3, 0]]
    assert unique(structures, energy_tolerance=0.02) == [[2], [4], [1, 3], [0]]


def test_a_torn_top_layer_does_not_hide_the_substrate():
    rng = np.random.default_rng(10)
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2)
    torn = substrate.copy()
    top = np.flatnonzero(torn.get_tags() == 1)
    torn.positions[top] += rng.normal(scale=0.12, size=(len(top), 3))
    torn.positions[top[3]] += [0.9, 0.8, 1.5]
    torn.positions[top[9]] += [-1.1, 0.3, 1.2]
    assert len(substrate_operations(torn)) == 96
    ideal, exact = ideal_substrate(torn), ideal_substrate(substrate)
    assert ideal.n_cells == exact.n_cells == 16
    assert np.abs(ideal.sites - exact.sites).max() < 0.15


def test_order_in_the_substrate_lowers_its_symmetry():
    substrate = build_substrate("Ni(100)", "p(2x2)", layers=2)
    alloy = substrate.copy()
    alloy.numbers[np.flatnonzero(alloy.get_tags() == 1)[0]] = 78
    assert len(substrate_operations(substrate)) == 32
    assert len(substrate_operations(alloy)) == len(spglib_operations(alloy)) == 8
    missing = build_substrate("Ag(110)", "p(1x3)", layers=4)
    del missing[np.flatnonzero(missing.get_tags() == 1)[0]]
    assert len(substrate_operations(missing)) == len(spglib_operations(missing)) == 4


def test_a_structure_without_substrate_is_refused():
    with pytest.raises(UserError, match="no substrate"):
        distance(Atoms("O", cell=[3, 3, 9]), Atoms("O", cell=[3, 3, 9]))


def groups_by_definition(structures: list[Atoms], tolerance: float, energy_tolerance: float) -> list[list[int]]:
    """What ``unique`` promises, from ``distance`` of all pairs: no invariants, no cutoff."""
    energies = [math.nan if a.calc is None else a.get_potential_energy() for a in structures]
    order = sorted(range(len(structures)), key=lambda i: math.inf if math.isnan(energies[i]) else energies[i])
    groups: list[list[int]] = []
    for i in order:
        for group in groups:
            apart = abs(energies[group[0]] - energies[i]) > energy_tolerance
            if not apart and distance(structures[group[0]], structures[i]) <= tolerance:
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_groups_are_those_of_the_definition(seed):
    """Whatever the noise, including many pairs near the tolerance, and whether energies are known."""
    rng = np.random.default_rng(seed)
    structures = []
    for surface, cell, layers, formula in (("Ag(111)", "p(2x2)", 2, "Ag2O"), ("Ag(111)", "p(2x2)", 3, "Ag2O")):
        base = with_overlayer(surface, cell, layers, formula, rng)
        order = len(substrate_operations(base))
        structures += [copy_by_operation(base, int(rng.integers(order)), rng, noise=0.25) for _ in range(6)]
    structures += [
        with_overlayer("Ag(111)", "p(4x1)", 2, "Ag2O", rng),
        with_overlayer("Ni(100)", "c(2x2)", 2, "O", rng),
    ]
    for atoms in structures:
        if rng.random() < 0.6:
            atoms.calc = SinglePointCalculator(atoms, energy=float(rng.choice([-1.0, -1.03, -1.06, -1.5])))
    order = [int(i) for i in rng.permutation(len(structures))]
    shuffled = [structures[i] for i in order]
    assert unique(shuffled) == groups_by_definition(shuffled, 0.3, 0.05)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_copies_are_never_split_and_enantiomers_and_registries_never_merged(seed):
    rng = np.random.default_rng(seed)
    cell, formula = [("p(4x4)", "Ag4O2"), ("p(3x3)", "Ag3O2"), ("c(4x2)", "Ag2O")][rng.integers(3)]
    base = place_overlayer(build_substrate("Ag(111)", cell, layers=3, window=(1.0, 3.0)), formula, rng)
    variants = [base, base.copy(), mirrored(base, 1)]  # as it is, on the other hollows, mirrored along a row
    adsorbed = base.get_tags() == 0
    hollow = base.positions[base.get_tags() == 2][0, :2] - base.positions[base.get_tags() == 3][0, :2]
    variants[1].positions[adsorbed, :2] += hollow
    if cell == "c(4x2)":  # the mirror is none of this superlattice
        variants.pop()
    apart = [distance(a, b) for a, b in itertools.combinations(variants, 2)]
    if min(apart) < 0.6:  # a structure that happens to be near its own image proves nothing
        return
    order = len(substrate_operations(base))
    structures = [copy_by_operation(v, int(rng.integers(order)), rng, noise=0.149) for v in variants for _ in range(4)]
    shuffle = rng.permutation(len(structures))
    groups = unique([structures[i] for i in shuffle])
    found = sorted(sorted(int(shuffle[i]) for i in group) for group in groups)
    assert found == [list(range(4 * k, 4 * k + 4)) for k in range(len(variants))]


def test_other_coverage_is_another_structure():
    row = place_overlayer(build_substrate("Ag(110)", "p(1x1)", layers=2), "O", np.random.default_rng(11))
    sparse = place_overlayer(build_substrate("Ag(110)", "p(1x2)", layers=2), "O", np.random.default_rng(11))
    adsorbed = sparse.get_tags() == 0
    sparse.positions[adsorbed] = row.positions[row.get_tags() == 0]
    assert distance(row, sparse) == distance(sparse, row) == math.inf
    assert unique([row, sparse]) == [[0], [1]]

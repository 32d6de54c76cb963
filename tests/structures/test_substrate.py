"""Substrates against bulk crystals, exact areas and the published reference."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, fcc211
from ase.neighborlist import neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from adlayer.analysis.references import reference
from adlayer.errors import UserError
from adlayer.structures.lattice import default_lattice
from adlayer.structures.substrate import build_substrate, check_substrate, layer_tags, parse_surface, prepare_substrate


def nearest(atoms: Atoms) -> float:
    return float(neighbor_list("d", atoms, 5.0).min())


KINDS = [
    # surface, lattice, bulk, (1×1) area over a²
    ("Ag(111)", 4.167, bulk("Ag", "fcc", a=4.167), np.sqrt(3) / 4),
    ("Cu(100)", 3.6, bulk("Cu", "fcc", a=3.6), 0.5),
    ("Ag(110)", 4.167, bulk("Ag", "fcc", a=4.167), np.sqrt(0.5)),
    ("Fe(110)", 2.85, bulk("Fe", "bcc", a=2.85), np.sqrt(0.5)),
    ("Fe(100)", 2.85, bulk("Fe", "bcc", a=2.85), 1.0),
    ("Ru(0001)", 2.7, bulk("Ru", "hcp", a=2.7, c=2.7 * 1.584), np.sqrt(3) / 2),
    ("Fe fcc(111)", 3.6, bulk("Fe", "fcc", a=3.6), np.sqrt(3) / 4),
]


@pytest.mark.parametrize(("surface", "lattice", "crystal", "area"), KINDS)
def test_every_kind(surface: str, lattice: float, crystal: Atoms, area: float) -> None:
    atoms = build_substrate(surface, "p(2x3)", layers=4, fixed_layers=2, lattice=lattice, window=(0.5, 3.0))
    tags = atoms.get_tags()
    assert [int((tags == k).sum()) for k in range(5)] == [0, 6, 6, 6, 6]
    assert np.all(np.diff([atoms.positions[tags == k, 2].mean() for k in (4, 3, 2, 1)]) > 0.8)
    assert set(atoms.constraints[0].index) == set(np.flatnonzero(tags >= 3))
    assert atoms.pbc.tolist() == [True, True, False]
    assert abs(np.linalg.det(atoms.cell[:2, :2])) == pytest.approx(6 * area * lattice**2)
    assert atoms.cell[0, 1] == pytest.approx(0.0, abs=1e-12)
    top = atoms.positions[tags == 1, 2].mean()
    assert atoms.info["confinement"] == pytest.approx([top + 0.5, top + 3.0], abs=1e-5)
    assert atoms.positions[:, 2].min() == pytest.approx(1.0)
    assert atoms.cell[2, 2] > atoms.info["confinement"][1]
    # Independent: the shortest bond of the bulk, found in the bulk.
    assert nearest(atoms) == pytest.approx(nearest(crystal), abs=1e-9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(-4, 4), min_size=4, max_size=4), st.sampled_from(["Ag(111)", "Ag(100)", "Fe(110)"]))
def test_any_matrix_keeps_the_density(entries: list[int], surface: str) -> None:
    matrix = np.array(entries).reshape(2, 2)
    n_cells = abs(round(float(np.linalg.det(matrix))))
    if n_cells == 0:
        return
    single = build_substrate(surface, layers=2)
    atoms = build_substrate(surface, str(matrix.tolist()), layers=2)
    assert len(atoms) == 2 * n_cells
    area = np.linalg.det(atoms.cell[:2, :2])
    assert area == pytest.approx(n_cells * np.linalg.det(single.cell[:2, :2]))
    assert nearest(atoms) == pytest.approx(nearest(single))
    assert atoms.cell[0, 1] == pytest.approx(0.0, abs=1e-9)
    assert round(abs(float(np.linalg.det(atoms.info["superstructure"])))) == n_cells


def test_is_the_substrate_of_the_reference() -> None:
    known = reference("p4x4-O_Ag111-Ag6")
    ours = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=4.167)
    assert ours.cell[:2, :2] == pytest.approx(known.cell[:2, :2], abs=1e-6)
    assert [int((known.get_tags() == k).sum()) for k in (1, 2)] == [16, 16]
    assert [int((ours.get_tags() == k).sum()) for k in (1, 2)] == [16, 16]
    fixed, known_fixed = ours.positions[ours.constraints[0].index], known.positions[known.constraints[0].index]
    assert fixed[:, 2] == pytest.approx(known_fixed[:, 2])
    # The fixed layer is the same lattice: every shift from one atom of the one to the other is a (1×1) vector.
    basis = np.asarray(ours.cell[:2, :2]) / 4
    shifts = (fixed[:, None, :2] - known_fixed[None, :, :2]) @ np.linalg.inv(basis)
    offset = shifts - shifts[0, 0]
    assert np.abs(offset - np.round(offset)).max() < 1e-5
    top = ours.positions[ours.get_tags() == 1, 2].mean()
    assert abs(top - known.positions[known.get_tags() == 1, 2].mean()) < 0.2  # relaxed there


def test_oblique_cell_of_46() -> None:
    atoms = build_substrate("Ag(111)", "[[8,-7],[2,4]]", layers=3, lattice=4.167)
    assert len(atoms) == 3 * 46
    assert np.linalg.det(atoms.cell[:2, :2]) == pytest.approx(46 * np.sqrt(3) / 4 * 4.167**2)


def test_any_slab() -> None:
    slab = fcc111("Pt", (1, 1, 3), a=3.98, vacuum=7.0)
    slab.rotate(31.0, "z", rotate_cell=True)
    atoms = prepare_substrate(slab, "p(2x2)", fixed_layers=1, window=(1.0, 4.0))
    assert len(atoms) == 12
    assert atoms.cell[0, 1] == pytest.approx(0.0, abs=1e-9)
    assert nearest(atoms) == pytest.approx(3.98 / np.sqrt(2))
    stepped = prepare_substrate(fcc211("Pt", (3, 1, 3), vacuum=7.0), "p(1x2)", fixed_layers=0)
    check_substrate(stepped)


def test_a_slab_across_the_boundary_of_its_cell() -> None:
    """As periodic codes write it; a third vector of no length is no matter."""
    slab = fcc111("Pt", (1, 1, 4), a=3.98, vacuum=7.0)
    expected = prepare_substrate(slab)
    slab.pbc = True
    slab.positions[:, 2] -= 9.0
    across = slab.copy()
    across.wrap()
    assert np.ptp(across.positions[:, 2]) > 15.0
    flat = slab.copy()
    flat.cell[2] = 0.0
    for one in (slab, across, flat):
        found = prepare_substrate(one)
        assert found.get_tags().tolist() == [4, 3, 2, 1]
        assert np.abs(found.positions - expected.positions).max() < 1e-9
    with pytest.raises(UserError, match=r"bulk crystal, with 2\.3 Å between its layers"):
        prepare_substrate(_crystal())


def _crystal() -> Atoms:
    """Layers of Pt(111) without vacuum."""
    slab = fcc111("Pt", (1, 1, 3), a=3.98)
    slab.cell[2] = [0.0, 0.0, 3 * 3.98 / np.sqrt(3)]
    slab.pbc = True
    return slab


def test_lattice_constants_of_the_default_calculator() -> None:
    assert default_lattice("Ag(111)")[:2] == (4.167, None)
    a, covera, source = default_lattice("Ru(0001)")
    assert 2.6 < a < 2.9
    assert covera is not None
    assert 1.5 < covera < 1.7
    assert source.startswith("sevennet")
    with pytest.raises(UserError, match="give --lattice"):
        default_lattice("Ce(111)")


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"surface": "Xx(111)"}, 'unknown element "Xx"'),
        ({"surface": "Ag"}, "not understood"),
        ({"surface": "Ag(211)"}, "cannot be built"),
        ({"surface": "O(111)"}, "cannot be built"),
        ({"surface": "Fe fcc(111)"}, "give --lattice"),
        ({"layers": 0}, "0 layers"),
        ({"lattice": -4.0}, "not positive"),
        ({"fixed_layers": 4}, "fixed layers"),
        ({"window": (5.0, 1.0)}, "window 5 1 is empty"),
        ({"window": (float("nan"), 1.0)}, "window"),
        ({"cell": "nonsense"}, "nonsense"),
    ],
)
def test_mistakes(keywords: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_substrate(**{"surface": "Ag(111)", **keywords})


def test_unusable_substrates() -> None:
    sound = build_substrate("Ag(111)", "p(2x2)")
    check_substrate(sound)
    untagged = sound.copy()
    untagged.set_tags(0)
    with pytest.raises(UserError, match="no substrate"):
        check_substrate(untagged)
    for window in (None, [5.0, 5.0], "abc", [1.0, 2.0, 3.0]):
        broken = sound.copy()
        broken.info["confinement"] = window
        with pytest.raises(UserError, match="confinement"):
            check_substrate(broken)
    overlapping = sound.copy()
    overlapping.positions[3] = overlapping.positions[4] + [0.0, 0.0, 1.2]
    with pytest.raises(UserError, match="atoms 3 and 4 overlap"):
        check_substrate(overlapping)
    with pytest.raises(UserError, match="holds no atoms"):
        prepare_substrate(Atoms())
    with pytest.raises(UserError, match="no cell"):
        prepare_substrate(Atoms("Ag", [(0, 0, 0)]))


def test_layers_and_names() -> None:
    assert layer_tags(np.array([0.0, 2.4, 2.5, 4.8])).tolist() == [3, 2, 2, 1]
    assert parse_surface("Fe bcc(110)") == ("Fe", "bcc", "110")

"""The table of structures: exact values on planted sets."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer.analysis.references import reference
from adlayer.analysis.table import describe
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate

COLUMNS = [
    *["index", "id", "overlayer", "coverage_O", "coverage_Ag", "cell", "matrix", "primitive_cell", "primitive_matrix"],
    *["energy", "energy_per_area", "duplicate_of", "motif", "plane_group", "layer_group", "point_group"],
    *["origin", "seed", "model", "converged", "n_steps", "n_force_calls"],
]


def with_energy(atoms: Atoms, energy: float, **row: object) -> Atoms:
    copy = atoms.copy()
    copy.info["row"] = row
    copy.calc = SinglePointCalculator(copy, energy=energy)
    return copy


def test_every_column_of_a_known_structure():
    substrate = build_substrate("Ag(111)", "p(2x1)", layers=2, window=(1.0, 3.0))
    atoms = place_overlayer(substrate, "AgO", np.random.default_rng(0))
    area = abs(np.linalg.det(atoms.cell[:2, :2]))
    double = atoms.repeat((2, 1, 1))
    double.info["superstructure"] = [[4, 0], [0, 1]]
    row = {"id": 7, "stage": "search", "seed": 3, "model": "m1", "converged": True, "n_steps": 9, "n_force_calls": 10}
    shifted = atoms.copy()
    shifted.positions[shifted.get_tags() == 0, :2] += shifted.cell[0, :2] / 2
    rows = describe(
        [
            with_energy(shifted, -1.98, **row),
            with_energy(atoms, -2.0),
            with_energy(double, -3.9),
            with_energy(double, -3.5),
        ]
    )
    assert all(list(row) == COLUMNS for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    first = {**rows[0]}
    assert first.pop("energy_per_area") == pytest.approx(0.02 / area)
    assert first == {
        "index": 0,
        "id": 7,
        "overlayer": "AgO",
        "coverage_O": 0.5,
        "coverage_Ag": 0.5,
        "cell": "p(2x1)",
        "matrix": "[[2, 0], [0, 1]]",
        "primitive_cell": "p(2x1)",
        "primitive_matrix": "[[2, 0], [0, 1]]",
        "energy": -1.98,
        "duplicate_of": 1,
        "motif": 1,
        "plane_group": "p1",
        "layer_group": "p1",
        "point_group": "1",
        "origin": "search",
        "seed": 3,
        "model": "m1",
        "converged": True,
        "n_steps": 9,
        "n_force_calls": 10,
    }
    assert [row["energy_per_area"] for row in rows[1:]] == pytest.approx([0.0, 0.0, 0.4 / (2 * area)])
    assert [row["duplicate_of"] for row in rows] == [1, None, None, None]
    assert [row["motif"] for row in rows] == [1, 1, 1, 1]
    assert [row["cell"] for row in rows[2:]] == ["p(4x1)"] * 2
    assert [row["primitive_cell"] for row in rows[2:]] == ["p(2x1)"] * 2


def test_energies_of_other_calculators_cells_and_depths_are_not_compared():
    rng = np.random.default_rng(1)
    atoms = place_overlayer(build_substrate("Ag(111)", "p(2x2)", layers=2), "Ag2O", rng)
    deep = place_overlayer(build_substrate("Ag(111)", "p(2x2)", layers=3), "Ag2O", rng)
    long = place_overlayer(build_substrate("Ag(111)", "p(4x1)", layers=2), "Ag2O", rng)
    other = {"name": "emt", "version": "1"}
    rows = describe(
        [
            with_energy(atoms, -5.0),
            with_energy(atoms, -4.0, calculator=other),
            with_energy(deep, -9.0),
            with_energy(long, -4.5),
        ]
    )
    assert [row["energy_per_area"] for row in rows] == [0.0] * 4


def test_symmetric_images_of_a_cell_count_as_one():
    rng = np.random.default_rng(2)
    cells = ["p(3x1)", "p(1x3)"]
    images = [place_overlayer(build_substrate("Ag(111)", c, layers=2), "AgO", rng, min_distance=0.5) for c in cells]
    area = abs(np.linalg.det(images[0].cell[:2, :2]))
    rows = describe([with_energy(images[0], -5.0), with_energy(images[1], -4.0)])
    assert [row["energy_per_area"] for row in rows] == pytest.approx([0.0, 1.0 / area])
    assert rows[0]["cell"] == rows[1]["cell"] == "p(3x1)"


def test_structures_without_energy_wood_name_or_provenance():
    substrate = build_substrate("Ag(111)", "[[8,-7],[2,4]]", layers=1)
    rows = describe([substrate, reference("p4x4-O_Ag111-Ag6")])
    assert rows[0]["cell"] == rows[0]["matrix"] == "[[8, -7], [2, 4]]"
    assert rows[0]["primitive_cell"] == "p(1x1)"
    assert rows[1]["plane_group"] == "p3"
    assert all(row[c] is None for row in rows for c in ("id", "energy", "energy_per_area", "origin", "converged"))
    assert (rows[0]["coverage_Ag"], rows[1]["coverage_Ag"]) == (0.0, 0.75)
    assert describe([]) == []


def test_progress_and_a_structure_without_substrate():
    told = []
    describe([reference("c2x2-O_Ni100")] * 2, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    with pytest.raises(UserError, match="no substrate"):
        describe([Atoms("O", cell=[3, 3, 9])])

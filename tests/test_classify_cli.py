"""The verb ``classify`` from the command line."""

import csv
import json
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import adlayer as package
from adlayer.structures.placement import place_overlayer
from adlayer.structures.store import connect, read_structures, write_row
from adlayer.structures.substrate import build_substrate


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Three structures, the last a copy of the first."""
    path = tmp_path / "study.db"
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=2, window=(1.0, 3.0))
    database = connect(path)
    for sample, (seed, energy) in enumerate([(0, -1.0), (1, -2.0), (0, -1.01)]):
        atoms = place_overlayer(substrate, "Ag2O", np.random.default_rng(seed))
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        keys = {"stage": "search", "overlayer": "Ag2O", "seed": 5, "sample": sample, "converged": True, "n_steps": 3}
        write_row(database, atoms, keys)
    return path


def test_a_table(adlayer, database, tmp_path):
    target = tmp_path / "new" / "table.csv"
    code, out, err = adlayer("classify", database, "-o", target, "--json")
    assert (code, json.loads(out)["outputs"]) == (0, [str(target)])
    found = json.loads(out)
    assert (found["n"], found["n_unique"], found["n_motifs"], found["plane_groups"]) == (3, 2, 2, {"p1": 3})
    assert "3 structures, 2 unique, 2 motifs; 3 p1" in err
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["duplicate_of"] for row in rows] == ["2", "", ""]
    assert [row["motif"] for row in rows] == ["2", "1", "2"]
    assert [float(row["energy"]) for row in rows] == [-1.0, -2.0, -1.01]
    assert json.loads(rows[0]["matrix"]) == [[2, 0], [0, 2]]
    assert {row["origin"] for row in rows} == {"search"}
    assert [path.name for path in target.parent.iterdir()] == ["table.csv"]


def test_a_database(adlayer, database, tmp_path):
    target = tmp_path / "table.db"
    for _ in range(2):  # the second run replaces the first
        code, out, _ = adlayer("classify", database, "-o", target)
        assert code == 0
    assert "2 unique" in out
    rows = list(ase.db.connect(target).select())
    assert [row.get("duplicate_of") for row in rows] == [3, None, None]
    assert [row.energy for row in rows] == [-1.0, -2.0, -1.01]
    assert {(row.superlattice, row.plane_group, row.point_group, row.stage) for row in rows} == {
        ("p(2x2)", "p1", 1, "search")
    }
    assert [row.source_id for row in rows] == [row.info["row"]["id"] for row in read_structures(database)]
    assert len(read_structures(target, "motif=2")) == 2
    assert len(read_structures(target, "coverage_Ag=0.5,plane_group=p1")) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.db", "table.db"]


def test_the_function_and_the_selection(database, tmp_path):
    rows = package.classify(database, select="sample<2")
    assert [row["index"] for row in rows] == [0, 1]
    assert package.classify(read_structures(database), tmp_path / "t.csv")[0]["overlayer"] == "Ag2O"


def test_mistakes(adlayer, database, tmp_path):
    code, _, err = adlayer("classify", database, "-o", tmp_path / "table.xlsx")
    assert (code, "end its name in .csv or .db" in err) == (2, True)
    code, _, err = adlayer("classify", database, "-o", database)
    assert (code, "is the input itself" in err) == (2, True)
    code, _, err = adlayer("classify", tmp_path / "none.db", "-o", tmp_path / "t.csv")
    assert (code, "there is no database" in err) == (2, True)
    assert len(read_structures(database)) == 3

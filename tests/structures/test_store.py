"""Round trips of structures through files and databases."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer.energies.relaxation import Path as RelaxationPath
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.store import (
    check_structure_file,
    check_writable,
    connect,
    is_database,
    read_structures,
    row_atoms,
    rows_in_order,
    task_fingerprint,
    write_row,
    write_structures,
)
from adlayer.structures.substrate import build_substrate

KEYS = {"stage": "search", "overlayer": "Ag2O", "seed": 3, "sample": 1, "converged": np.bool_(True), "task": "t12e5"}


@pytest.fixture
def atoms() -> Atoms:
    substrate = build_substrate("Ag(111)", "p(3x2)", layers=2, lattice=4.167)
    atoms = place_overlayer(substrate, "Ag2O", np.random.default_rng(0))
    forces = np.random.default_rng(1).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-12.345678901, forces=forces)
    atoms.calc.name = "sevennet"
    atoms.calc.parameters.update({"version": "0.13.0", "settings": '{"model": "7net-0"}'})
    return atoms


def assert_same(read: Atoms, written: Atoms, tolerance: float) -> None:
    assert read.numbers.tolist() == written.numbers.tolist()
    assert read.positions == pytest.approx(written.positions, abs=tolerance)
    assert read.cell.array == pytest.approx(written.cell.array, abs=tolerance)
    assert read.pbc.tolist() == written.pbc.tolist()
    assert read.get_tags().tolist() == written.get_tags().tolist()
    assert sorted(read.constraints[0].index) == sorted(written.constraints[0].index)
    assert read.get_potential_energy() == pytest.approx(written.get_potential_energy(), abs=1e-9)
    assert read.get_forces(apply_constraint=False) == pytest.approx(
        written.get_forces(apply_constraint=False), abs=tolerance
    )
    for key in ("confinement", "superstructure", "substrate"):
        assert read.info[key] == written.info[key], key


@pytest.mark.parametrize("name", ["a.extxyz", "a.extxyz.gz", "a.traj"])
def test_files_keep_all(atoms: Atoms, tmp_path: Path, name: str) -> None:
    backend = {"name": "sevennet", "version": "0.13.0", "settings": {"model": "7net-0"}}
    row = {"stage": "relaxed", "converged": True, "calculator": backend}
    atoms.info["row"] = row
    write_structures(tmp_path / name, [atoms, atoms])
    read = read_structures(tmp_path / name)
    assert len(read) == 2
    assert_same(read[1], atoms, 1e-7)
    assert read[1].info["row"] == row
    assert [p.name for p in tmp_path.iterdir()] == [name]  # nothing partial is left


def test_databases_keep_all_bit_for_bit(atoms: Atoms, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = RelaxationPath(rng.normal(size=(4, len(atoms), 3)), np.arange(4.0), rng.normal(size=(4, len(atoms), 3)))
    name = tmp_path / "a.db"
    number = write_row(connect(name), atoms, KEYS, path)
    (read,) = read_structures(name)
    assert_same(read, atoms, 0.0)
    backend = {"name": "sevennet", "version": "0.13.0", "settings": {"model": "7net-0"}}
    assert read.info["row"] == {"id": number, **KEYS, "calculator": backend}
    row = connect(name).get(number)
    assert row.data["path_positions"] == pytest.approx(path.positions, abs=1e-6)
    assert row.data["path_energies"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert row.data["path_forces"].shape == (4, len(atoms), 3)
    again = write_row(connect(tmp_path / "b.db"), read, KEYS)
    (copied,) = read_structures(tmp_path / "b.db")
    assert_same(copied, atoms, 0.0)
    assert copied.info["row"] == {"id": again, **KEYS, "calculator": backend}


def test_order_does_not_depend_on_who_finished_first(atoms: Atoms, tmp_path: Path) -> None:
    database = connect(tmp_path / "a.db")
    for sample in (3, 1, 2, 0):
        write_row(database, atoms, {**KEYS, "sample": sample})
    assert [row.sample for row in rows_in_order(database)] == [0, 1, 2, 3]
    assert [a.info["row"]["sample"] for a in read_structures(tmp_path / "a.db", "sample>1")] == [2, 3]
    with pytest.raises(UserError, match='match "stage=relaxed"'):
        read_structures(tmp_path / "a.db", "stage=relaxed")


def test_a_lock_left_by_a_killed_run_blocks_nobody(atoms: Atoms, tmp_path: Path) -> None:
    (tmp_path / "a.db.lock").touch()
    write_row(connect(tmp_path / "a.db"), atoms, KEYS)
    assert row_atoms(connect(tmp_path / "a.db").get(1)).info["row"]["seed"] == 3


def test_fingerprints(atoms: Atoms) -> None:
    first = task_fingerprint(atoms, "relax", 0.05)
    assert first.startswith("t")
    assert first == task_fingerprint(atoms.copy(), "relax", 0.05)
    moved, retagged, widened = (atoms.copy() for _ in range(3))
    moved.positions[0, 0] += 1e-3
    retagged.set_tags(1)
    widened.info["confinement"] = [0.0, 20.0]
    others = [task_fingerprint(a, "relax", 0.05) for a in (moved, retagged, widened)]
    assert len({first, *others, task_fingerprint(atoms, "relax", 0.06)}) == 5


def test_names() -> None:
    assert is_database("a.db")
    assert is_database("postgresql://user@host/base")
    assert not is_database("a.extxyz")


def test_mistakes(atoms: Atoms, tmp_path: Path) -> None:
    (tmp_path / "noise.db").write_text("this is no database " * 100)
    (tmp_path / "noise.extxyz").write_text("this is no structure")
    (tmp_path / "file").touch()
    connect(tmp_path / "empty.db")
    for name, words in [
        ("missing.db", "no database"),
        ("missing.extxyz", "no file"),
        ("noise.db", "not a readable ASE database"),
        ("noise.extxyz", "cannot be read"),
        ("empty.db", "holds no structures"),
    ]:
        with pytest.raises(UserError, match=words) as error:
            read_structures(tmp_path / name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        check_writable(tmp_path / "file" / "a.extxyz")
    for name in ("a.foo", "a"):
        with pytest.raises(UserError, match="no format"):
            check_structure_file(tmp_path / name)
    with pytest.raises(UserError, match="cannot be written"):
        write_structures(tmp_path / "a.foo", [atoms])

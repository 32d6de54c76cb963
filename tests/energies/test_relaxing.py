"""Relaxation of many structures: order, records, resumption."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.constraints import FixedPlane

from adlayer import study
from adlayer.energies import relaxing
from adlayer.energies.relaxation import relax
from adlayer.energies.relaxing import relax_into_database, relax_structures
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.store import connect, read_structures, write_structures
from adlayer.structures.substrate import build_substrate


@pytest.fixture(scope="module")
def starts() -> list[Atoms]:
    """Four structures of different cost, the last a repeat of the first."""
    substrate = build_substrate("Au(111)", "p(2x2)", layers=2, lattice=4.08, window=(1.0, 4.0))
    rng = np.random.default_rng(0)
    atoms = [place_overlayer(substrate, formula, rng) for formula in ("Au3", "Au", "Au2")]
    for k, structure in enumerate(atoms):
        structure.info["row"] = {"id": 10 + k, "seed": 4, "sample": k, "stage": "generated", "n_force_calls": 999}
    return [*atoms, atoms[0].copy()]


@pytest.fixture(scope="module")
def relaxed(starts: list[Atoms]) -> list[Atoms]:
    return relax_structures(starts, "emt", workers=2)


def test_each_is_relaxed_in_its_place(starts: list[Atoms], relaxed: list[Atoms]) -> None:
    for k, (start, end) in enumerate(zip(starts, relaxed, strict=True)):
        alone = relax(start, EMT())
        assert end.get_potential_energy() == pytest.approx(alone.energy, abs=1e-9)
        assert end.positions == pytest.approx(alone.atoms.positions, abs=1e-9)
        assert end.get_tags().tolist() == start.get_tags().tolist()
        assert end.info["confinement"] == start.info["confinement"]
        row = end.info["row"]
        assert row["n_force_calls"] == alone.n_force_calls
        assert row["n_steps"] == alone.n_steps
        assert row["converged"] == alone.converged
        assert (row["stage"], row["seed"], row["sample"], row["parent"]) == ("relaxed", 4, k % 3, 10 + k % 3)
        assert row["overlayer"] == ("Au3", "Au", "Au2")[k % 3]
        assert row["calculator"]["name"] == "emt"
        assert "id" not in row
        assert start.info["row"]["stage"] == "generated"  # the input is not changed


def test_max_steps_and_parents_without_rows(starts: list[Atoms]) -> None:
    bare = starts[2].copy()
    bare.info = {}
    (end,) = relax_structures([bare], "emt", max_steps=2, workers=1)
    assert (end.info["row"]["n_steps"], end.info["row"]["n_force_calls"]) == (2, 3)
    assert end.info["row"]["converged"] is False
    assert end.info["row"]["parent"] == 0
    assert relax_structures([], "emt") == []


def _timeless(atoms: Atoms) -> dict[str, object]:
    """The row without what a database adds and without the time that it took."""
    return {k: v for k, v in atoms.info["row"].items() if k not in ("id", "task", "cpu_s")}


def test_what_a_database_holds_is_not_done_again(
    starts: list[Atoms], relaxed: list[Atoms], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = connect(tmp_path / "a.db")
    relax_into_database([starts[1]], database, "emt", workers=1)
    progress: list[tuple[int, int]] = []
    ends = relax_into_database(
        starts, database, "emt", workers=1, progress=lambda done, total: progress.append((done, total))
    )
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert database.count() == 4
    for end, expected in zip(ends, relaxed, strict=True):
        assert np.array_equal(end.positions, expected.positions)
        assert _timeless(end) == _timeless(expected)
    monkeypatch.setattr(relaxing, "worker_pool", None)  # nothing is left to do: no workers are needed
    again = relax_into_database(starts, database, "emt")
    assert [a.info["row"]["id"] for a in again] == [a.info["row"]["id"] for a in ends]
    monkeypatch.undo()
    relax_into_database(starts[:1], database, "emt", fmax=0.5, workers=1)  # other settings are another task
    assert database.count() == 5


class StopError(Exception):
    """Stands for any interruption."""


def test_files_are_written_whole_and_resumed_from_beside(
    starts: list[Atoms], relaxed: list[Atoms], tmp_path: Path
) -> None:
    output = tmp_path / "out.extxyz"
    sidecar = tmp_path / ".out.extxyz.db"

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        study.relax(starts, output, calculator="emt", workers=1, progress=stop)
    assert not output.exists()
    assert connect(sidecar).count() == 2
    progress: list[int] = []
    study.relax(starts, output, calculator="emt", workers=1, progress=lambda done, total: progress.append(done))
    assert progress == [2, 3, 4]
    assert [p.name for p in tmp_path.iterdir()] == ["out.extxyz"]
    for end, expected in zip(read_structures(output), relaxed, strict=True):
        assert end.positions == pytest.approx(expected.positions, abs=1e-7)
        assert _timeless(end) == _timeless(expected)


def test_a_database_is_relaxed_into_itself(starts: list[Atoms], tmp_path: Path) -> None:
    substrate = build_substrate("Au(111)", "p(2x2)", layers=2, lattice=4.08, window=(1.0, 4.0))
    write_structures(tmp_path / "s.extxyz", [substrate])
    study.search(
        tmp_path / "s.extxyz", tmp_path / "a.db", ["Au"], n=2, calculator="emt", fmax=0.5, max_steps=3, workers=1
    )
    for _ in range(2):
        ends = study.relax(tmp_path / "a.db", tmp_path / "a.db", calculator="emt", workers=1)
        assert [a.info["row"]["parent"] for a in ends] == [1, 2]
        assert connect(tmp_path / "a.db").count() == 4


def test_mistakes(starts: list[Atoms], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is unknown"):
        study.relax(starts, calculator="nonsense")
    with pytest.raises(UserError, match="no format"):
        study.relax(starts, tmp_path / "a.foo", calculator="emt")
    titanium = Atoms("Ti2", [(0, 0, 0), (0, 0, 2.5)])
    with pytest.raises(UserError, match="emt cannot treat"):
        study.relax([titanium], calculator="emt", workers=1)
    held = starts[1].copy()
    held.set_constraint(FixedPlane(0, (0, 0, 1)))
    with pytest.raises(UserError, match="is under FixedPlane, which relaxation does not know"):
        study.relax([held], calculator="emt", workers=1)

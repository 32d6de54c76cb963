"""Random structure search on clean gold with effective medium theory: fast, and as resumable as any other."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from ase.optimize import BFGS

from adlayer.energies.relaxation import relax
from adlayer.energies.search import SearchSummary, sample_rng, search
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.store import connect, rows_in_order, write_structures
from adlayer.structures.substrate import build_substrate

FORMULAS = ["Au2", "Au"]
N = 6


@pytest.fixture(scope="module")
def substrate() -> Atoms:
    return build_substrate("Au(111)", "p(2x2)", layers=2, lattice=4.08, window=(1.0, 4.0))


@pytest.fixture(scope="module")
def whole(substrate: Atoms, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SearchSummary]:
    """A search that nobody disturbed, by one worker."""
    name = tmp_path_factory.mktemp("search") / "whole.db"
    return name, search(substrate, FORMULAS, N, connect(name), calculator="emt", seed=5, workers=1)


def assert_same_rows(one: Path, other: Path, selection: str = "") -> None:
    """Bit for bit, but for ids and times."""
    first, second = (list(rows_in_order(connect(name), selection)) for name in (one, other))
    assert [row.task for row in first] == [row.task for row in second]
    for a, b in zip(first, second, strict=True):
        assert {**a.key_value_pairs, "cpu_s": 0} == {**b.key_value_pairs, "cpu_s": 0}
        assert a.energy == b.energy
        for name in ("positions", "forces", "numbers", "tags", "cell"):
            assert np.array_equal(a[name], b[name]), name
        assert a.data["info"] == b.data["info"]
        for name in ("path_positions", "path_energies", "path_forces"):
            assert np.array_equal(a.data[name], b.data[name]), name


def test_rows_say_everything(substrate: Atoms, whole: tuple[Path, SearchSummary]) -> None:
    name, summary = whole
    rows = list(connect(name).select())
    assert summary.n == len(rows) == 2 * N
    assert summary.n_converged == sum(row.converged for row in rows)
    assert summary.n_force_calls == sum(row.n_force_calls for row in rows)
    assert sorted({row.overlayer for row in rows}) == ["Au", "Au2"]
    assert sorted(row.sample for row in rows if row.overlayer == "Au") == list(range(N))
    for row in rows:
        assert (row.stage, row.seed, row.calculator) == ("search", 5, "emt")
        assert row.n_force_calls == row.n_steps + 1
        assert row.data["path_energies"][-1] == pytest.approx(row.energy)
        assert len(row.data["path_energies"]) <= 20
        atoms = row.toatoms()
        assert np.array_equal(atoms.positions[:4], substrate.positions[:4])  # the fixed layer
        assert not row.converged or np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.05
    for formula, lowest in summary.lowest.items():
        assert lowest == min(row.energy for row in rows if row.overlayer == formula and row.converged)


def test_one_sample_by_hand(substrate: Atoms, whole: tuple[Path, SearchSummary]) -> None:
    """The same start relaxed by our optimizer and a calculator by hand; ASE's optimizer stays where it ends."""
    row = connect(whole[0]).get(overlayer="Au2", sample=3)
    atoms = place_overlayer(substrate, "Au2", sample_rng(5, "Au2", 3))
    result = relax(atoms, EMT(), fmax=0.05, max_steps=300)
    assert row.energy == pytest.approx(result.energy, abs=1e-6)
    end = row.toatoms()
    end.calc = EMT()
    assert end.get_potential_energy() == pytest.approx(row.energy, abs=1e-6)
    BFGS(end, logfile=None).run(fmax=0.001, steps=300)
    assert end.get_potential_energy() == pytest.approx(row.energy, abs=0.01)
    assert end.positions == pytest.approx(row.positions, abs=0.15)


def test_independent_of_workers_and_of_the_rest(
    substrate: Atoms, whole: tuple[Path, SearchSummary], tmp_path: Path
) -> None:
    """Two workers; formulas in another order; begun with fewer samples."""
    database = connect(tmp_path / "two.db")
    search(substrate, ["Au"], 2, database, calculator="emt", seed=5, workers=1)
    progress: list[tuple[int, int]] = []
    search(
        substrate, FORMULAS[::-1], N, database, calculator="emt", seed=5, workers=2,
        progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert progress == [(k, 2 * N) for k in range(2, 2 * N + 1)]
    assert_same_rows(whole[0], tmp_path / "two.db")


def test_another_seed_is_another_search(substrate: Atoms, whole: tuple[Path, SearchSummary], tmp_path: Path) -> None:
    summary = search(substrate, ["Au"], 1, connect(tmp_path / "a.db"), calculator="emt", seed=6, workers=1)
    assert summary.n == 1
    (row,) = connect(tmp_path / "a.db").select()
    assert row.task not in {r.task for r in connect(whole[0]).select()}
    known = connect(whole[0]).get(overlayer="Au", sample=0)
    assert not np.allclose(row.data["path_positions"][0], known.data["path_positions"][0])


def test_killed_and_interrupted_it_goes_on(substrate: Atoms, whole: tuple[Path, SearchSummary], tmp_path: Path) -> None:
    """SIGTERM, SIGINT, then kill -9, each in the middle of a long search; in the end nothing is amiss."""
    write_structures(tmp_path / "substrate.traj", [substrate])
    name = tmp_path / "killed.db"
    database = connect(name)
    command = [
        sys.executable, "-c", "from adlayer.cli import main; main()",
        "search", "substrate.traj", "--formula", " ".join(FORMULAS), "-n", "1000", "--calculator", "emt",
        "--seed", "5", "--db", name.name, "--workers", "1",
    ]  # fmt: skip
    for number, status in ((signal.SIGTERM, 130), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        enough = database.count() + 2
        process = subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by jobs in the background
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while database.count() < enough:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)  # ends only when the workers have let go of stderr too
        finally:
            process.kill()
        assert process.returncode == status
        assert "Traceback" not in errors
        if status == 130:
            *progress, last = errors.splitlines()
            assert all(line.startswith("search: ") for line in progress)
            assert last.startswith("adlayer: interrupted")
    search(substrate, FORMULAS, N, database, calculator="emt", seed=5, workers=2)
    assert_same_rows(whole[0], name, f"sample<{N}")


def test_mistakes_come_before_any_work(substrate: Atoms, tmp_path: Path) -> None:
    database = connect(tmp_path / "a.db")
    narrow = substrate.copy()
    narrow.info["confinement"] = [4.0, 4.1]
    for start, formulas, calculator, words in [
        (substrate, ["Qq"], "emt", "not understood|unknown element"),
        (substrate, ["Au"], "nonsense", "is unknown"),
        (narrow, ["Au", "Au40"], "emt", "Au40 does not fit|Au does not fit"),
    ]:
        with pytest.raises(UserError, match=words):
            search(start, formulas, 1, database, calculator=calculator, workers=1)
    with pytest.raises(UserError, match="0 workers"):
        search(substrate, ["Au"], 1, database, calculator="emt", workers=0)
    assert database.count() == 0

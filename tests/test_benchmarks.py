"""The benchmarks: statistics, the work that is timed, and the protocol of the workers. Nothing is timed here."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import figure  # noqa: E402
import gpu  # noqa: E402
import ours  # noqa: E402
import results  # noqa: E402
import scaling  # noqa: E402
import turns  # noqa: E402
import work  # noqa: E402

from adlayer.network.graph import to_batch  # noqa: E402
from adlayer.network.neighbours import neighbours  # noqa: E402


def test_ratios_are_formed_pair_by_pair() -> None:
    # A machine that slows down tenfold half way changes neither ratio; unpaired medians would say 1/5 or 5.
    ratio = results.paired_ratio([1.0, 2.0, 10.0], [2.0, 4.0, 20.0])
    assert ratio["median"] == 0.5
    assert ratio["extremes"] == [0.5, 0.5]
    assert results.spread([4.0, 1.0, 2.0, 3.0, 5.0]) == {
        "median": 3.0,
        "quartiles": [2.0, 4.0],
        "extremes": [1.0, 5.0],
        "n": 5,
    }
    with pytest.raises(ValueError, match="zip"):
        results.paired_ratio([1.0], [1.0, 2.0])


@pytest.mark.parametrize(("name", "atoms", "edges"), [("sampling", 50, 1590), ("train_denoiser", 28, 880)])
def test_the_work_has_the_stated_size(name: str, atoms: int, edges: int) -> None:
    structures = work.structures(work.WORKS[name], 8)
    assert {len(a) for a in structures} == {atoms}
    found = len(neighbours(to_batch(structures), work.Network().cutoff).sender) / len(structures)
    assert found == pytest.approx(edges, rel=0.05)
    closer = len(neighbours(to_batch(structures), 5.5).sender) / len(structures)
    assert closer != pytest.approx(edges, rel=0.05)


def test_results_are_merged_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "FILE", tmp_path / "results.json")
    results.record("works.a", {"x": 1}, {"a": 0.5})
    results.record("works.b", {"x": 2}, {"b": 0.25})
    results.record("works.a", {"x": 3})
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["works"]["a"]["x"], content["works"]["b"]["x"]) == (3, 2)
    assert content["ratios"] == {"a": 0.5, "b": 0.25}
    assert content["machine"]["cores"] >= 1
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_workers_take_turns_and_tell_why_they_died(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from worker import Stopwatch, serve\n"
        "def work(seed):\n"
        "    print('noise')\n"
        "    if seed == 3: raise SystemExit('out of luck')\n"
        "    return Stopwatch().cost(2) | {'seed': seed}\n"
        "serve({'a': '1'}, 1.0, lambda: work)\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    with (
        turns.Worker(command, tmp_path / "ours.log") as ours_side,
        turns.Worker(command, tmp_path / "peer.log") as peer_side,
    ):
        rounds = list(turns.in_turns({"ours": ours_side, "peer": peer_side}, 2))
        seeds = [{name: cost["seed"] for name, cost in one.items()} for one in rounds]
        assert seeds == [{"ours": 1, "peer": 1}, {"ours": 2, "peer": 2}]
        assert [next(iter(one)) for one in rounds] == ["ours", "peer"]  # who begins alternates
        with pytest.raises(turns.WorkerError, match="out of luck"):
            ours_side.run(3)
        assert peer_side.finish() > 0.0


@pytest.mark.parametrize("name", ["sampling_guided", "train_force_field"])
def test_our_side_does_the_work(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    small = work.Work(name, work.WORKS[name].kind, "p(2x2)", "Ag2O1", 2, 2, True, 1.0)
    work.write_work(small, tmp_path)
    loaded = json.loads((tmp_path / "work.json").read_text())
    prepare = ours.prepare_sampling if small.kind == "sample" else ours.prepare_training
    cost = prepare(loaded, tmp_path, "same")(1)
    assert cost["units"] == (4 if small.kind == "sample" else 2)
    assert cost["atoms"] == 11
    assert cost["cpu_s"] >= cost["system_s"] >= 0.0


def test_same_size_means_the_peers_size() -> None:
    size = ours.architecture(vars(work.Network()), "same")
    assert (size.features, size.interactions, size.n_radial, size.cutoff) == (64, 4, 30, 6.0)
    assert (size.force_features, size.force_interactions, size.force_n_radial, size.force_cutoff) == (64, 4, 30, 6.0)


def test_the_largest_cell_has_ten_thousand_atoms() -> None:
    assert len(scaling.cell_of(scaling.SIZES[-1])) >= 10_000
    atoms = [100, 1000, 10_000]
    assert scaling.exponent(atoms, [3e-6 * n for n in atoms]) == pytest.approx(1.0)
    assert scaling.exponent(atoms, [3e-6 * n**1.5 for n in atoms]) == pytest.approx(1.5)


def test_the_figure_takes_what_there_is() -> None:
    assert len(figure.draw({}).axes) == 4
    part = {"median": 0.2, "extremes": [0.1, 0.3]}
    drawn = figure.draw({"ratios": {"sampling": 0.2}, "works": {"sampling": {"ratio": part, "target": 0.125}}})
    assert np.isclose(drawn.axes[0].patches[0].get_width(), 0.2)
    assert len(figure.draw_gpu({}).axes) == 2
    sides = {
        side: {"wall_s": {"median": s, "quartiles": [0.9 * s, 1.1 * s]}, "gpu_mib": 100.0 * s}
        for side, s in (("same", 2.0), ("default", 3.0), ("peer", 10.0))
    }
    on_gpu = {"sampling": {"batch": 4, "target": 0.1, "sides": sides}}
    time, memory = figure.rows_of_gpu({"works": on_gpu})
    assert time.sides["same"] == pytest.approx((0.2, 0.2 * 0.9 / 1.1, 0.2 * 1.1 / 0.9))
    assert memory.sides["default"] == pytest.approx((0.3, 0.3, 0.3))
    del sides["peer"]  # skipped there: nothing to compare
    assert figure.rows_of_gpu({"works": on_gpu}) == []


def test_on_a_gpu_what_is_done_once_is_taken_off() -> None:
    # 3 s once and 0.5 s for each of ten steps of four structures, of which two steps are timed alone, too.
    sampling = work.Work("", "sample", "p(4x4)", "Ag12O6", 4, 10, False, 0.1, base_steps=2)
    cost = {"units": 40, "wall_s": 3.0 + 10 * 0.5, "base_s": 3.0 + 2 * 0.5}
    assert gpu.unit_cost(sampling, cost) == pytest.approx(0.5 / 4)
    training = work.Work("", "train", "p(3x3)", "Ag6O4", 4, 5, False, 0.2)
    assert gpu.unit_cost(training, {"units": 5, "wall_s": 2.5}) == 0.5


def test_the_gpu_benchmark_runs_without_gpu_and_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = gpu.Size(sample=2, train=(2,), steps=8, peer_steps=4, cells=(2, 3), together=60, search=1)
    monkeypatch.setattr(gpu, "LEAST", 1)
    monkeypatch.setenv("ADLAYER_PEER", str(tmp_path / "nothing"))
    run = gpu.Run("cpu", size, 0.0, tmp_path / "gpu.json")
    sampling = run.works()[0]
    assert (sampling.batch, sampling.target, sampling.device) == (2, 0.1, "cpu")
    with ThreadPoolExecutor(1) as pool:
        peer = pool.submit(gpu.start_peer, run, sampling, tmp_path)
    gpu.compare(run, sampling, 0.0, peer, tmp_path / "peer.log")
    assert "peer skipped: peer_agedi.py ended early" in capsys.readouterr().out
    gpu.alone(run, "parts.default", gpu.parts, "default")
    gpu.alone(run, "scaling.default", gpu.curve, "default")
    gpu.alone(run, "search.fast", gpu.search, "fast")
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert set(content["works"]["sampling"]["sides"]) == {"same", "default"}
    assert content["works"]["sampling"]["sides"]["same"]["with_setup_s"]["median"] > 0.0
    assert content["parts"]["default"]["structures"] == 2
    assert [p["copies"] for p in content["scaling"]["default"]["points"]] == [60 // 13, 60 // 28]
    assert content["search"]["fast"]["s_per_structure"] > 0.0
    assert content["ratios"] == {}

"""The verbs ``train`` and ``generate`` from the command line, with the model that ships."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase.geometry import find_mic
from stand_in import accelerator

import adlayer as package
from adlayer.energies.calculators import make_calculator
from adlayer.errors import UserError
from adlayer.structures.store import connect
from adlayer.study import learning
from adlayer.training.checkpoint import load_model, model_hash, save_model

Run = Callable[..., tuple[int, str, str]]
MODEL = str(resources.files("adlayer") / "data" / "ag-o.safetensors")


@pytest.fixture
def substrate(adlayer: Run, tmp_path: Path) -> Path:
    file = tmp_path / "substrate.extxyz"
    arguments = ("--cell", "p(2x2)", "--layers", 2, "--lattice", 4.167, "--window", 1, 4, "-o", file)
    assert adlayer("substrate", "Ag(111)", *arguments)[0] == 0
    return file


def test_generate_is_reproducible_masked_and_confined(adlayer: Run, substrate: Path, tmp_path: Path) -> None:
    """Same seed, same file; substrate bit for bit; window respected; JSON as documented."""
    bare = ase.io.read(substrate)
    texts = []
    for name in ("a.extxyz", "b.extxyz"):
        file = tmp_path / name
        status, out, _ = adlayer(
            "generate",
            MODEL,
            substrate,
            "--formula",
            "Ag3O",
            "-n",
            3,
            "--steps",
            5,
            "--starts",
            2,
            "--refine",
            1,
            "--seed",
            4,
            "-o",
            file,
            "--json",
        )
        assert status == 0
        result = json.loads(out.strip().splitlines()[-1])
        assert {"n", "n_network_calls", "cpu_s", "version", "seed", "wall_s", "n_force_calls", "outputs"} <= set(result)
        assert result["n_network_calls"] == 3 * (2 * 5 + 12)
        texts.append([(a.positions, a.numbers) for a in ase.io.iread(file)])
        for atoms in ase.io.iread(file):
            low, high = atoms.info["confinement"]
            z = atoms.positions[atoms.get_tags() == 0, 2]
            assert np.array_equal(atoms.positions[atoms.get_tags() > 0], bare.positions)
            assert atoms.get_tags().tolist().count(0) == 4
            assert z.min() >= low
            assert z.max() <= high
    for (x, z), (y, w) in zip(*texts, strict=True):
        assert np.array_equal(x, y)
        assert np.array_equal(z, w)
    assert not list(tmp_path.glob(".*"))  # nothing hidden is left behind


def test_generate_into_a_database_goes_on_where_it_was(adlayer: Run, substrate: Path, tmp_path: Path) -> None:
    """Asking for more keeps what is there; a repeated run adds nothing."""
    database = tmp_path / "made.db"
    command = ("generate", MODEL, substrate, "--formula", "Ag2O", "--steps", 3, "--relax-steps", 0, "-o", database)
    energies = []
    for n in (2, 10, 10):
        assert adlayer(*command, "-n", n)[0] == 0
        rows = sorted(ase.db.connect(database).select(), key=lambda r: r.sample)
        energies.append([r.energy for r in rows])
        assert [r.sample for r in rows] == list(range(n))
        assert all(r.stage == "generated" and r.model.startswith("m") for r in rows)
    assert energies[1][:2] == energies[0]
    assert energies[2] == energies[1]


def test_trajectory_begins_random_and_ends_at_the_structure(adlayer: Run, substrate: Path, tmp_path: Path) -> None:
    """One frame before the first step and one after each, for every sample."""
    film, out = tmp_path / "film.traj", tmp_path / "out.extxyz"
    arguments = ("--formula", "Ag2O", "-n", 2, "--steps", 4, "--relax-steps", 0, "-o", out, "--trajectory", film)
    assert adlayer("generate", MODEL, substrate, *arguments)[0] == 0
    frames = ase.io.read(film, ":")
    assert len(frames) == 2 * 5
    last = ase.io.read(out, 0)
    assert np.allclose(frames[4].get_scaled_positions(), last.get_scaled_positions(), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--formula", "Ag2S"), "which the model does not know"),
        (("--formula", "Ag2Qq"), 'unknown element "Qq"'),
        (("--formula", "Ag2O", "--preset", "best"), 'preset "best"'),
        (("--formula", "Ag2O", "--solver", "rk4"), 'solver "rk4"'),
        (("--formula", "Ag2O", "--device", "tpu"), 'device "tpu" is unknown: choose one of cpu, cuda'),
    ],
)
def test_generate_refuses(
    adlayer: Run, substrate: Path, tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    """One sentence, exit status 2, no output."""
    out = tmp_path / "out.extxyz"
    status, _, err = adlayer("generate", MODEL, substrate, *arguments, "-n", 1, "-o", out)
    assert status == 2
    assert named in err
    assert err.strip().count("\n") == 0
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(adlayer: Run, substrate: Path, tmp_path: Path) -> None:
    """One sentence and exit status 2 from both verbs, an error from both functions."""
    out = tmp_path / "out.extxyz"
    commands = [
        ("generate", MODEL, substrate, "--formula", "Ag2O", "-n", 1, "-o", out),
        ("train", tmp_path / "none.db", "-o", tmp_path / "model.safetensors"),
    ]
    for command in commands:
        status, _, err = adlayer(*command, "--device", "cuda")
        assert (status, err.strip().count("\n")) == (2, 0)
        assert 'device "cuda" cannot be used, for PyTorch finds no GPU' in err
    with pytest.raises(UserError, match="finds no GPU"):
        package.generate(MODEL, str(substrate), formula="Ag2O", n=1, device="cuda")
    assert not out.exists()


def test_a_gpu_makes_one_large_block_in_this_process(
    substrate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study's side of it, on a pretended GPU: 30 structures where the CPU would take blocks of 4 and processes."""
    monkeypatch.setattr(learning, "worker_pool", lambda count: pytest.fail("there are processes"))
    learning._model.cache_clear()
    slab, arguments = learning.read_substrate(str(substrate)), {"formula": "Ag2O", "n": 30}
    few = learning.sampling_settings(steps=1, relax_steps=0, refine=0)
    made: list[int] = []
    with accelerator() as device, monkeypatch.context() as patch:
        patch.setattr("adlayer.network.device.find_device", lambda name: device)
        result = learning.generate_into(
            connect(tmp_path / "made.db"), MODEL, slab, **arguments, sampling=few, workers=2, device="cuda",
            progress=lambda done, total: made.append(done),
        )  # fmt: skip
    learning._model.cache_clear()
    assert made == [0, 30]
    here = learning.generate_into(connect(tmp_path / "here.db"), MODEL, slab, **arguments, sampling=few, workers=1)
    for a, b in zip(result["structures"], here["structures"], strict=True):
        np.testing.assert_allclose(find_mic(a.positions - b.positions, a.cell)[0], 0.0, atol=1e-3)


def test_generate_refuses_a_window_that_excludes_the_data(adlayer: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "high.extxyz", tmp_path / "out.extxyz"
    adlayer("substrate", "Ag(111)", "--cell", "p(2x2)", "--lattice", 4.167, "--window", 6, 9, "-o", file)
    status, _, err = adlayer("generate", MODEL, file, "--formula", "Ag2O", "-n", 1, "-o", out)
    assert status == 2
    assert "window 6.00 to 9.00" in err


def test_generate_refuses_broken_models_and_places(adlayer: Run, substrate: Path, tmp_path: Path) -> None:
    """A truncated model, a foreign file, a missing one, an unwritable output."""
    cut, foreign = tmp_path / "cut.safetensors", tmp_path / "foreign.safetensors"
    cut.write_bytes(Path(MODEL).read_bytes()[:100_000])
    foreign.write_bytes(b"not a model")
    ask = (substrate, "--formula", "Ag2O", "-n", 1, "-o")
    for model in (cut, foreign, tmp_path / "none.safetensors"):
        status, _, err = adlayer("generate", model, *ask, tmp_path / "out.extxyz")
        assert status == 2
        assert model.name in err
        assert err.strip().count("\n") == 0
    status, _, err = adlayer("generate", MODEL, *ask, substrate / "out.extxyz")
    assert status == 2
    assert "cannot be written" in err


def test_train_refuses(adlayer: Run, tmp_path: Path) -> None:
    """Missing and empty databases, selections and times that mean nothing, a state that is not there."""
    empty = tmp_path / "empty.db"
    ase.db.connect(empty).count()
    model = tmp_path / "model.safetensors"
    cases = {
        ("none.db",): "there is no database",
        (empty,): "run adlayer search first",
        (empty, "--select", "dE<low"): 'selection "dE<low"',
        (empty, "--time", "soon"): 'time "soon"',
        (empty, "--repeat", "2by2"): 'repetition "2by2"',
    }
    for arguments, named in cases.items():
        status, _, err = adlayer("train", *arguments, "-o", model)
        assert (status, named in err, err.strip().count("\n")) == (2, True, 0), err
        assert not model.exists()


def test_no_energy_condition_is_a_change_too() -> None:
    assert learning.sampling_settings().energy == 0.0
    assert learning.sampling_settings(energy=None).energy is None
    assert learning.given(energy=None, steps=3) == {"steps": 3}


def test_a_model_file_that_was_written_anew_is_read_anew(substrate: Path, tmp_path: Path) -> None:
    """Its fingerprint stands with what it generated, and it was this model."""
    slab, settings = learning.read_substrate(str(substrate)), learning.sampling_settings(steps=1, starts=1, refine=0)
    file = tmp_path / "model.safetensors"

    def energies(database: str) -> list[float]:
        found = learning.generate_into(
            connect(tmp_path / database), str(file), slab, formula="Ag2O", n=1, sampling=settings, workers=1
        )
        assert found["model"] == model_hash(file)
        return [atoms.get_potential_energy() for atoms in found["structures"]]

    model = load_model(MODEL)
    save_model(file, model)
    before, calculator = energies("first.db"), make_calculator(f"model:{file}")
    model.force_field.baseline += 1.0  # eV for each atom
    save_model(file, model)
    n = len(slab) + 3
    assert energies("second.db")[0] - before[0] == pytest.approx(n, abs=1e-3)
    assert make_calculator(f"model:{file}") is not calculator
    assert make_calculator(f"model:{file}") is make_calculator(f"model:{file}")

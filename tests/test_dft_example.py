"""The finalists of the silver-oxide study: what ships agrees with the references, and dft.py keeps what it computes."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from adlayer.analysis.matching import match, same_structure
from adlayer.analysis.references import reference
from adlayer.structures.substrate import fixed_mask

FOLDER = Path(__file__).parents[1] / "examples" / "silver_oxide"
FINALISTS = {(str(a.info["name"]), int(a.info["layers"])): a for a in ase.io.read(FOLDER / "finalists.extxyz", ":")}


@pytest.fixture
def dft(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dft.py with effective medium theory in the place of GPAW, and the number of calculators made in ``made``."""
    spec = importlib.util.spec_from_file_location("dft", FOLDER / "dft.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.made = []  # type: ignore[attr-defined]

    def instead(atoms: Atoms, *_: Any) -> EMT:
        module.made.append(len(atoms))
        return EMT()

    monkeypatch.setattr(module, "calculator", instead)
    monkeypatch.setattr(module, "provenance", lambda *_: {"wall_s": 0})
    return module


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("Ag6", "p4x4-O_Ag111-Ag6"),
        ("Ag6-symmetric", "p4x4-O_Ag111-Ag6-symmetric"),
        ("trilayer", "p4x4-O_Ag111-Ag2O-trilayer"),
        ("best-random", "p4x4-O_Ag111-best-random"),
    ],
)
def test_known_finalists_are_the_references(name: str, file: str) -> None:
    known = reference(file)
    assert np.allclose(FINALISTS[name, 2].positions, known.positions, atol=1e-6)
    assert FINALISTS[name, 2].get_potential_energy() == pytest.approx(known.info["reference_energy"], abs=1e-3)


def test_three_layers_carry_the_same_overlayer() -> None:
    known = reference("p4x4-O_Ag111-Ag6-3layer")
    assert FINALISTS["Ag6", 3].get_potential_energy() == pytest.approx(known.info["reference_energy"], abs=5e-3)
    for name in {n for n, layers in FINALISTS if layers}:
        two, three = FINALISTS[name, 2], FINALISTS[name, 3]
        assert len(three) == len(two) + 16
        assert np.array_equal(fixed_mask(three), three.get_tags() == 3)
        assert same_structure(three, two)


def test_new_finalists_differ_from_ag6_and_from_each_other() -> None:
    new = [a for (name, layers), a in FINALISTS.items() if name.startswith("new") and layers == 2]
    assert len(new) >= 2
    assert match(new, reference("p4x4-O_Ag111-Ag6"), lateral=True) == []
    for k, atoms in enumerate(new):
        assert match(new, atoms) == [k]


def test_kept_results_are_of_the_finalists_that_ship(dft: ModuleType) -> None:
    results = json.loads((FOLDER / "dft.json").read_text())["results"]
    assert results
    for r in results:
        assert r["geometry"] == dft.geometry_hash(FINALISTS[r["name"], r["layers"]])
        assert r["setting"] in dft.SETTINGS


def test_a_single_point_is_made_once_for_each_geometry(dft: ModuleType, tmp_path: Path) -> None:
    atoms, kept = FINALISTS["Ag6", 2].copy(), tmp_path / "dft.json"
    for _ in range(2):
        dft.single_point(atoms, "base", kept, tmp_path)
    assert dft.made == [50]
    atoms.positions[-1, 2] += 0.001
    dft.single_point(atoms, "base", kept, tmp_path)
    first, second = json.loads(kept.read_text())["results"]
    assert len(dft.made) == 2
    assert first["energy_eV"] != second["energy_eV"]
    assert [p.name for p in tmp_path.iterdir()] == ["dft.json"]


def test_results_of_other_settings_are_not_mixed(
    dft: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dft.single_point(FINALISTS["Ag-bulk", 0], "base", tmp_path / "dft.json", tmp_path)
    monkeypatch.setitem(dft.COMMON, "xc", "RPBE")
    with pytest.raises(SystemExit, match="other settings"):
        dft.read(tmp_path / "dft.json")


def test_a_relaxation_goes_on_where_it_ended(dft: ModuleType, tmp_path: Path) -> None:
    atoms = FINALISTS["Ag6", 2]
    for folder, runs in (("whole", [6]), ("parts", [2, 4])):
        (tmp_path / folder).mkdir()
        for steps in runs:
            dft.relaxation(atoms, "base", steps, tmp_path / folder / "dft.json", tmp_path / folder)
    whole, parts = (json.loads((tmp_path / f / "dft.json").read_text())["results"] for f in ("whole", "parts"))
    assert [r["relaxed_steps"] for r in parts] == list(range(7))
    assert [r["energy_eV"] for r in parts] == pytest.approx([r["energy_eV"] for r in whole], abs=1e-3)
    assert parts[-1]["energy_eV"] < parts[0]["energy_eV"]

"""Backends by name and import path, and the default one against the published reference energy."""

import importlib.metadata
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

from adlayer.analysis.references import reference
from adlayer.energies.calculators import BACKENDS, backend_version, check_calculator, identify, make_calculator
from adlayer.errors import UserError


def test_emt_by_name_and_by_import_path_agree() -> None:
    atoms = Atoms("Au2", [(0, 0, 0), (0, 0, 2.6)])
    energies = []
    for name in ("emt", "ase.calculators.emt:EMT", "emt?asap_cutoff=false"):
        atoms.calc = make_calculator(name)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[1] == energies[2]
    assert make_calculator("emt") is make_calculator("emt")


def test_records_say_what_made_an_energy() -> None:
    version = importlib.metadata.version("ase")
    assert identify("emt") == {"name": "emt", "version": version, "settings": "{}"}
    with_settings = identify("ase.calculators.lj:LennardJones?sigma=2.5&smooth=true")
    assert with_settings["version"] == version
    assert json.loads(with_settings["settings"]) == {"sigma": 2.5, "smooth": True}
    assert backend_version("emt") == version


def test_the_models_file_is_its_version(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"one")
    first = identify(f"model:{path}")
    path.write_bytes(b"two")
    assert first["name"] == "model"
    assert first["version"] != identify(f"model:{path}")["version"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vasp", "is unknown: choose one of"),
        ("model:nowhere.safetensors", "there is no file nowhere.safetensors"),
        ("no_such_package:Factory", "cannot be imported"),
        ("ase.calculators.emt:Nothing", "cannot be imported"),
        ("adlayer.energies.relaxation:relax?nonsense=1", "refuses its arguments"),
    ],
)
def test_mistakes(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        make_calculator(name)
    assert "\n" not in str(error.value)


def test_a_missing_backend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "chgnet", replace(BACKENDS["chgnet"], package="no_such_package"))
    with pytest.raises(UserError, match=r"pip install 'adlayer\[chgnet\]'"):
        check_calculator("chgnet")
    assert backend_version("chgnet") is None


@pytest.mark.skipif(importlib.util.find_spec("sevenn") is None, reason="needs the extra sevennet")
@pytest.mark.filterwarnings("ignore")
def test_default_backend_gives_the_reference_energy() -> None:
    atoms = reference("p4x4-O_Ag111-Ag6")
    atoms.calc = make_calculator("sevennet")
    assert atoms.get_potential_energy() == pytest.approx(-145.506, abs=1e-3)
    assert np.abs(atoms.get_forces()).max() < 0.05  # it is a minimum
    atoms.positions[-1, 2] += 0.1
    assert atoms.get_potential_energy() > -145.49  # which a displaced atom is not

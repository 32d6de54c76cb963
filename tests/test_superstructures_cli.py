"""The verbs ``cells`` and ``leed``, and their Python functions."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms

import adlayer as package
from adlayer.analysis.references import reference
from adlayer.structures.store import connect, write_row, write_structures

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a structure file."""
    monkeypatch.chdir(tmp_path)
    write_structures("ag6.extxyz", [reference("p2x2-O_Pt111-fcc"), reference("p4x4-O_Ag111-Ag6")])
    return tmp_path


def test_cells_are_listed_as_a_table(adlayer: Run) -> None:
    status, out, _ = adlayer("cells", "Ag(111)", "--max-area", 7)
    assert status == 0
    lines = out.splitlines()
    assert lines[-1] == f"{len(lines) - 2} distinct cells"
    rows = {line.split()[1]: line.split() for line in lines[1:-1]}
    assert rows["(r7xr7)R19.1"][:3] == ["7", "(r7xr7)R19.1", "[[2,1],[-1,3]]"]
    assert rows["(r7xr7)R19.1"][-1] == "2"


def test_cells_as_json_and_csv(adlayer: Run) -> None:
    status, out, _ = adlayer("cells", "Cu(100)", "--max-area", 9, "--lattice", 3.6, "-o", "cells.csv", "--json")
    assert status == 0
    fields = json.loads(out)
    assert fields["outputs"] == ["cells.csv"]
    assert fields["n"] == len(fields["cells"]) == 1 + 2 + 2 + 4 + 3 + 5 + 3 + 7 + 5  # OEIS A145393
    with Path("cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == fields["n"]
    for row, cell in zip(rows, fields["cells"], strict=True):
        assert (int(row["area"]), row["wood"] or None) == (cell["area"], cell["wood"])
        assert [int(row[k]) for k in ("m11", "m12", "m21", "m22")] == np.ravel(cell["matrix"]).tolist()
        assert float(row["length1_A"]) == pytest.approx(cell["lengths"][0], abs=1e-3)


def test_cells_of_a_structure_count_from_its_substrate(adlayer: Run) -> None:
    status, out, _ = adlayer("cells", "ag6.extxyz", "--min-area", 4, "--max-area", 4, "--json")
    assert status == 0
    assert [c["wood"] for c in json.loads(out)["cells"]] == ["p(2x2)", "c(4x2)", "p(4x1)"]


@pytest.mark.parametrize("output", ["leed.png", "leed.svg", "leed.pdf", "deep/leed.PNG"])
def test_leed_of_a_named_superstructure(adlayer: Run, output: str) -> None:
    status, out, err = adlayer("leed", "Ag(111)", "--cell", "c(4x2)", "-o", output, "--json")
    assert status == 0, err
    fields = json.loads(out)
    assert (fields["wood"], fields["area"], fields["n_domains"], fields["n_forbidden"]) == ("c(4x2)", 4, 3, 0)
    assert fields["coverage"] == {}
    assert Path(output).stat().st_size > 5000
    assert [p.name for p in Path(output).parent.iterdir() if p.name.startswith(".")] == []


def test_leed_of_a_structure(adlayer: Run) -> None:
    status, out, err = adlayer("leed", "ag6.extxyz", "--index", 1, "-o", "leed.png", "--energy", 80)
    assert status == 0, err
    assert "p(4x4): [[4, 0], [0, 4]], area 16" in out
    assert "coverage: O 0.375 ML, Ag 0.75 ML" in out
    assert Path("leed.png").is_file()


def test_spots_as_a_table(adlayer: Run) -> None:
    assert adlayer("leed", "ag6.extxyz", "-o", "leed.csv")[0] == 0
    with Path("leed.csv").open() as file:
        rows = list(csv.DictReader(file))
    pattern = package.leed("ag6.extxyz")["pattern"]
    assert len(rows) == len(pattern.domains[0].spots)
    for row, spot, intensity in zip(rows, pattern.domains[0].spots, pattern.domains[0].intensities, strict=True):
        assert [float(row["qx_per_A"]), float(row["qy_per_A"])] == pytest.approx(spot, abs=1e-4)
        assert float(row["intensity"]) == pytest.approx(intensity, rel=1e-3)
        assert row["forbidden"] == "0"


def test_python_functions_take_structures_and_databases() -> None:
    atoms = reference("c2x2-O_Ni100")
    assert package.leed(atoms)["n_forbidden"] > 0
    assert package.cells(atoms, 2)[-1].wood in ("c(2x2)", "p(2x1)")
    write_row(connect("study.db"), atoms, {"stage": "relaxed"})
    assert package.leed("study.db", select="stage=relaxed")["coverage"] == {"O": 0.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cells", "Ag111?"), 'surface "Ag111?" is not understood'),
        (("cells", "missing.xyz"), "there is no file missing.xyz"),
        (("cells", "Ag(111)", "--max-area", 0), "ask for 1 ≤ least"),
        (("cells", "Ag(111)", "-o", "cells.txt"), "end its name in .csv"),
        (("cells", "ag6.extxyz", "--lattice", 4), "--lattice does not go with ag6.extxyz"),
        (("leed", "Ag(111)", "-o", "leed.xyz"), "end its name in .png"),
        (("leed", "Ag(111)", "--cell", "c(3x2)", "-o", "leed.png"), "no lattice point"),
        (("leed", "Ag(111)", "--energy", 50, "-o", "leed.png"), "--energy needs the atoms"),
        (("leed", "ag6.extxyz", "--cell", "p(2x2)", "-o", "leed.png"), "--cell and --lattice do not go"),
        (("leed", "ag6.extxyz", "--index", 7, "-o", "leed.png"), "holds 2 structures"),
        (("leed", "bare.extxyz", "-o", "leed.png"), "no substrate"),
    ],
)
def test_mistakes_are_one_sentence(adlayer: Run, arguments: tuple[object, ...], words: str) -> None:
    write_structures("bare.extxyz", [Atoms("O", cell=[3, 3, 10], pbc=(True, True, False))])
    status, out, err = adlayer(*arguments)
    assert status == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1
    assert not Path("leed.png").exists()

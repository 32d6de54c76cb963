"""``adlayer phases`` from relaxed structures to figures and tables, with EMT, whose oxygen means nothing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import adlayer
from adlayer.analysis.leed import surface_lattice
from adlayer.analysis.references import reference
from adlayer.analysis.table import describe
from adlayer.energies.calculators import identify, make_calculator
from adlayer.energies.relaxation import relax
from adlayer.energies.reservoirs import reference_energy, reservoir
from adlayer.errors import UserError
from adlayer.structures.placement import overlayer_formula, place_overlayer
from adlayer.structures.store import connect, read_structures, write_row, write_structures
from adlayer.structures.substrate import build_substrate
from adlayer.structures.superstructure import wood_notation
from adlayer.study.thermodynamics import cell_label, parse_references

Run = Callable[..., tuple[int, str, str]]
LATTICE = 4.06  # Å, silver in EMT


@pytest.fixture(scope="module")
def relaxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of relaxed overlayers on p(2x2) and p(2x1) cells."""
    path = tmp_path_factory.mktemp("phases") / "relaxed.db"
    for cell, formula in (("p(2x2)", "O"), ("p(2x2)", "O"), ("p(2x2)", "AgO2"), ("p(2x1)", "O")):
        start = build_substrate("Ag(111)", cell, layers=2, lattice=LATTICE, window=(1.0, 3.0))
        start = place_overlayer(start, formula, np.random.default_rng(len(connect(path))))
        result = relax(start, make_calculator("emt"), identity=identify("emt"))
        assert result.converged
        write_row(connect(path), result.atoms, {"stage": "search", "overlayer": formula, "converged": True})
    return path


@pytest.fixture
def place(relaxed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relaxed.db").write_bytes(relaxed.read_bytes())
    return tmp_path


def by_hand(atoms, *, cell=False) -> float:
    """Energy after a relaxation with nothing but ASE."""
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms) if cell else atoms, logfile=None).run(fmax=0.005, steps=200)
    return float(atoms.get_potential_energy())


def test_everything_from_one_command(adlayer: Run, place: Path) -> None:
    status, out, err = adlayer("phases", "relaxed.db", "-o", "out", "--uncertainty", 0.1, "--mark", "O", "--json")
    assert status == 0, err
    fields = json.loads(out)
    assert fields["calculator"]["name"] == "emt"
    assert fields["n_phases"] == 4
    for path in fields["outputs"]:
        assert Path(path).stat().st_size > 200
    assert {Path(p).name for p in fields["outputs"]} >= {"phases.png", "phases.pdf", "phases.svg", "phases.csv"}

    mu = {"Ag": by_hand(bulk("Ag"), cell=True), "O": by_hand(molecule("O2")) / 2}
    assert fields["references"] == pytest.approx(mu, abs=2e-3)
    slab = fcc111("Ag", (1, 1, 2), a=LATTICE, vacuum=8.0)
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 2))
    clean = by_hand(slab)
    with Path("out/phases.csv").open() as file:
        rows = {row["phase"]: row for row in csv.DictReader(file)}
    structures = {a.info["phase"]: a for a in read_structures("out/phases.extxyz")}
    assert set(rows) == {"clean Ag(111)", *structures}
    assert {label.split(" ")[1] for label in structures} == {"p(2x2)", "p(2x1)"}
    for label, atoms in structures.items():
        n_cells = (atoms.get_tags() == 1).sum()
        oxygen, silver = (sum(atoms.get_tags()[atoms.symbols == e] == 0) for e in ("O", "Ag"))
        expected = atoms.get_potential_energy() - n_cells * clean - oxygen * mu["O"] - silver * mu["Ag"]
        assert float(rows[label]["formation_eV"]) == pytest.approx(expected, abs=0.02)
        area = n_cells * LATTICE**2 * np.sqrt(3) / 4
        assert float(rows[label]["gamma0_eV_per_A2"]) == pytest.approx(expected / area, abs=1e-3)
        same = [
            a.get_potential_energy()
            for a in read_structures("relaxed.db")
            if a.info["row"]["converged"] and overlayer_formula(a) == overlayer_formula(atoms) and len(a) == len(atoms)
        ]
        assert atoms.get_potential_energy() == pytest.approx(min(same), abs=1e-6)
    stable = fields["stable"]
    assert stable[0]["stable"][0] is None
    assert stable[-1]["stable"][1] == 0.0
    assert json.loads(Path("out/phases.json").read_text())["stable"] == stable


def test_references_are_kept_and_can_be_given(adlayer: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adlayer.study.thermodynamics._write_figures", lambda *arguments: [])
    first = json.loads(adlayer("phases", "relaxed.db", "-o", "out", "--json")[1])
    monkeypatch.setattr("adlayer.energies.reservoirs.make_calculator", lambda name: pytest.fail("computed again"))
    again = json.loads(adlayer("phases", "relaxed.db", "-o", "out", "--json")[1])
    assert again["stable"] == first["stable"]
    shifted = json.loads(
        adlayer(
            "phases", "relaxed.db", "-o", "out", "--json", "--reference", f"O={first['references']['O'] + 0.5}"
        )[1]
    )  # fmt: skip
    assert shifted["references_given"] == ["O"]
    with Path("out/phases.csv").open() as file:
        rows = {row["phase"]: row for row in csv.DictReader(file)}
    for phase in first["stable"]:
        n = phase["counts"].get("O", 0)
        expected = phase["formation_energy"] - 0.5 * n
        assert float(rows[phase["label"]]["formation_eV"]) == pytest.approx(expected, abs=1e-5)


def test_a_bulk_compound_gives_a_limit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adlayer.study.thermodynamics._write_figures", lambda *arguments: [])
    crystal = bulk("AgO", "rocksalt", a=4.6)
    write_structures("AgO.cif", [crystal])
    result = adlayer.phases("relaxed.db", "out", bulk=["AgO.cif"])
    energy = by_hand(crystal, cell=True)
    expected = energy - result["references"]["Ag"] - result["references"]["O"]
    assert result["limits"] == {"AgO": pytest.approx(expected, abs=0.01)}


def foreign(place: Path, **changes: str) -> None:
    """``other.db``: one structure whose energy is of another backend."""
    atoms = read_structures("relaxed.db")[0]
    energy = atoms.get_potential_energy()
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    record = {**identify("emt"), **changes}
    atoms.calc.name = record.pop("name")
    atoms.calc.parameters.update(record)
    keys = {k: v for k, v in atoms.info.pop("row").items() if k in ("stage", "overlayer", "converged")}
    write_row(connect("other.db"), atoms, keys)


MISTAKES = {
    "another calculator": ([{"name": "chgnet"}], ["relaxed.db", "other.db"], "do not compare"),
    "another version": ([{"version": "0.0"}], ["other.db"], "relax the structures with it first"),
    "calculator that is not theirs": ([], ["relaxed.db", "--calculator", "emt?fixed_cutoff=true"], "relax the struct"),
    "model without a file": ([{"name": "model"}], ["other.db"], "--calculator model:PATH"),
    "bad reference": ([], ["relaxed.db", "--reference", "O:-4.9"], 'write it like "O=-4.9"'),
    "element that is not there": ([], ["relaxed.db", "--varied", "N"], "no overlayer holds N"),
    "phase that is not there": ([], ["relaxed.db", "--mark", "Ag99"], "Ag99 to mark is none of the phases"),
    "no relaxed structure": ([], ["bare.extxyz"], "run adlayer relax or search first"),
    "range backwards": ([], ["relaxed.db", "--temperatures", "900", "300"], "temperature range 900 300 is empty"),
    "no pressure": ([], ["relaxed.db", "--pressures", "0", "1"], "pressure range 0 1 is empty"),
    "molecule as bulk": ([], ["relaxed.db", "--bulk", "molecule.xyz"], "not periodic"),
    "missing file": ([], ["nowhere.db"], "there is no database nowhere.db"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(adlayer: Run, place: Path, name: str) -> None:
    made, arguments, words = MISTAKES[name]
    for changes in made:
        foreign(place, **changes)
    write_structures("bare.extxyz", [build_substrate("Ag(111)", lattice=LATTICE)])
    write_structures("molecule.xyz", [molecule("O2")])
    status, out, err = adlayer("phases", *arguments, "-o", "out")
    assert (status, out) == (2, "")
    last = err.strip().splitlines()[-1]
    assert last.startswith("adlayer: ")
    assert words in last


def test_reservoirs(place: Path) -> None:
    assert len(reservoir("O")) == 2
    assert not reservoir("O").pbc.any()
    assert reservoir("Ag").pbc.all()
    with pytest.raises(UserError, match="give its energy as S="):
        reservoir("S")
    database = connect("references.db")
    strained = bulk("Ag", a=3.95)
    assert reference_energy(strained, "emt", database) == pytest.approx(by_hand(bulk("Ag"), cell=True), abs=1e-3)
    with pytest.raises(UserError, match="cannot treat"):
        reference_energy(molecule("SiO"), "emt", database)
    assert len(database) == 1
    assert parse_references(["O=-4.9", "Ag = -2.8"]) == {"O": -4.9, "Ag": -2.8}


@pytest.mark.parametrize("cell", ["p(2x2)", "p(4x2)", "(r3xr3)R30", "(r7xr7)R19.1"])
def test_cells_have_their_names(cell: str) -> None:
    substrate = build_substrate("Ag(111)", cell, layers=2, lattice=LATTICE)
    assert cell_label(substrate) == cell
    del substrate.info["superstructure"]
    assert cell_label(substrate) == cell
    odd = build_substrate("Ag(111)", "[[8,-7],[2,4]]", layers=2, lattice=LATTICE)
    assert cell_label(odd) == "(8 -7 | 2 4)"


@pytest.mark.parametrize(("name", "cell"), [("p2x1-O_Ag110-added-row", "p(2x1)"), ("p3x1-O_Ag110-added-row", "p(3x1)")])
def test_one_structure_has_one_cell_in_all_tables(name: str, cell: str) -> None:
    """Given without the (1×1) vectors that its cell is a multiple of, and turned."""
    atoms = reference(name)
    atoms.info.pop("superstructure", None)
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array[[1, 0, 2]] * [[1], [-1], [1]])
    for each in (atoms, turned):
        assert cell_label(each) == cell
        assert describe([each])[0]["cell"] == cell
        basis, matrix, _ = surface_lattice(each)
        assert wood_notation(matrix, basis) == cell

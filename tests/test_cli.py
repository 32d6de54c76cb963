"""The command line: what it prints, writes and exits with."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from adlayer import __version__
from adlayer.cli import app
from adlayer.energies.calculators import BACKENDS
from adlayer.structures.store import connect, read_structures, write_structures
from adlayer.structures.substrate import build_substrate

Run = Callable[..., tuple[int, str, str]]
VERBS = sorted(str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback is not None)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a substrate of gold, its search and empty files."""
    monkeypatch.chdir(tmp_path)
    write_structures("gold.extxyz", [build_substrate("Au(111)", "p(2x2)", layers=2, lattice=4.08, window=(1.0, 4.0))])
    return tmp_path


def done(result: tuple[int, str, str]) -> dict:
    """The JSON object of a successful run: the last and only line on stdout."""
    status, out, err = result
    assert status == 0, err
    assert out.count("\n") == 1
    fields = json.loads(out)
    assert fields["version"] == __version__
    assert fields["wall_s"] >= 0
    for path in fields["outputs"]:
        assert Path(path).exists()
    return fields


def test_version_and_help(adlayer: Run) -> None:
    assert adlayer("--version") == (0, f"adlayer {__version__}\n", "")
    for arguments in ((), ("--help",)):
        status, out, _ = adlayer(*arguments)
        assert status == 0
        assert all(verb in out for verb in VERBS)
    assert {"substrate", "search", "relax", "match", "compare", "info", "calculators"} <= set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_an_example_a_seed_and_json(adlayer: Run, verb: str) -> None:
    status, out, _ = adlayer(verb, "--help")
    assert status == 0
    assert f"Example:\n    adlayer {verb}" in out
    assert "--seed" in out
    assert "--json" in out


def test_starts_without_what_is_heavy() -> None:
    code = (
        "import sys, adlayer.cli\n"
        "try: adlayer.cli.main(['search', '--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'ase', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_substrate(adlayer: Run, place: Path) -> None:
    fields = done(
        adlayer(
            "substrate", "Ag(111)", "--cell", "p(4x4)", "--layers", 2, "--window", 1.0, 5.0, "-o", "s.extxyz", "--json"
        )
    )
    assert fields["outputs"] == ["s.extxyz"]
    assert (fields["n_atoms"], fields["lattice"], fields["n_force_calls"], fields["seed"]) == (32, 4.167, 0, 0)
    (atoms,) = read_structures("s.extxyz")
    assert np.linalg.norm(atoms.cell[0]) == pytest.approx(4 * 4.167 / np.sqrt(2))
    assert atoms.info["confinement"] == fields["confinement"]
    status, out, _ = adlayer("substrate", "Ag(111)", "--cell", "[[8,-7],[2,4]]", "--lattice", 4.09, "-o", "b.traj")
    assert status == 0
    assert "lattice constant 4.09 Å (given)" in out
    assert "138 atoms, 3 layers" in out
    assert (
        done(adlayer("substrate", "--from", "gold.extxyz", "--cell", "p(2x1)", "-o", "c.extxyz", "--json"))["n_atoms"]
        == 16
    )


def test_search_relax_match_compare_info(adlayer: Run, place: Path) -> None:
    search = ("search", "gold.extxyz", "--formula", "Au", "--range", "Au1-2", "-n", 2, "--calculator", "emt")
    search = (*search, "--db", "a.db", "--seed", 3, "--workers", 1, "--fmax", 0.2, "--json")
    fields = done(adlayer(*search))
    assert (fields["n"], fields["seed"], fields["outputs"]) == (4, 3, ["a.db"])
    assert set(fields["lowest"]) <= {"Au", "Au2"}
    again = done(adlayer(*search))
    assert {**again, "wall_s": 0} == {**fields, "wall_s": 0}

    relax = ("relax", "a.db", "--select", "overlayer=Au", "--calculator", "emt", "--workers", 1, "--json")
    fields = done(adlayer(*relax, "-o", "r.extxyz"))
    assert (fields["n"], fields["n_converged"]) == (2, 2)
    assert len(fields["energies"]) == len(fields["n_steps"]) == 2
    assert fields["n_force_calls"] == sum(fields["n_steps"]) + 2
    structures = read_structures("r.extxyz")
    assert [atoms.get_potential_energy() for atoms in structures] == pytest.approx(fields["energies"])

    write_structures("first.extxyz", structures[:1])
    fields = done(adlayer("match", "r.extxyz", "first.extxyz", "--json"))
    assert fields["n"] == 2
    assert 0 in fields["matched"]
    assert fields["n_matched"] == len(fields["matched"])

    fields = done(adlayer("compare", "a.db", "r.extxyz", "--select", "overlayer=Au", "-o", "out", "--json"))
    assert set(fields["sets"]) == {"a", "r"}
    assert {Path(p).name for p in fields["outputs"]} >= {"comparison.json", "energies.png"}

    fields = done(adlayer("info", "a.db", "--json"))
    assert fields["kind"] == "database"
    assert fields["sound"] is True
    assert fields["stages"] == {"search": 4}
    assert fields["overlayers"] == {"Au": 2, "Au2": 2}
    assert [name.split()[0] for name in fields["calculators"]] == ["emt"]
    status, out, _ = adlayer("info", "r.extxyz")
    assert status == 0
    assert out.endswith("sound\n")


def test_info_names_what_is_wrong(adlayer: Run, place: Path) -> None:
    (good,) = read_structures("gold.extxyz")
    overlapping, windowless, outside = good.copy(), good.copy(), good.copy()
    overlapping.positions[0] = overlapping.positions[1] + [0, 0, 0.3]
    del windowless.info["confinement"]
    outside += Atoms("Au", [(0, 0, 20.0)])
    write_structures("bad.extxyz", [good, overlapping, windowless, outside])
    fields = done(adlayer("info", "bad.extxyz", "--json"))
    assert fields["sound"] is False
    assert fields["problems"] == ["1 of 4 have overlapping atoms", "1 of 4 have no confinement window"]
    assert fields["n_outside_window"] == 1
    assert "not sound: 1 of 4 have overlapping atoms" in adlayer("info", "bad.extxyz")[1]


def test_calculators(adlayer: Run) -> None:
    listed = {c["name"]: c for c in done(adlayer("calculators", "--json"))["calculators"]}
    assert listed["emt"]["version"]
    assert listed["chgnet"]["extra"] == "chgnet"
    assert "module:factory" in adlayer("calculators")[1]


MISTAKES = {
    "unknown element": (["substrate", "Xx(111)", "-o", "s.extxyz"], 'unknown element "Xx"'),
    "unknown surface": (["substrate", "Ag(311)", "-o", "s.extxyz"], "cannot be built"),
    "no lattice constant": (["substrate", "Ce(111)", "-o", "s.extxyz"], "give --lattice"),
    "nothing to build": (["substrate", "-o", "s.extxyz"], "give one"),
    "lattice of a file": (["substrate", "--from", "gold.extxyz", "--lattice", "4", "-o", "s.extxyz"], "leave them out"),
    "a crystal": (["substrate", "--from", "bulk.xyz", "-o", "s.extxyz"], "2.0 Å between its layers at most"),
    "unknown format": (["substrate", "Ag(111)", "-o", "s.foo"], "no format"),
    "unwritable": (["substrate", "Ag(111)", "-o", "gold.extxyz/s.extxyz"], "cannot be written"),
    "output is a folder": (["relax", "gold.extxyz", "--calculator", "emt", "-o", "folder.traj"], "is a folder"),
    "missing file": (["relax", "nowhere.extxyz", "--calculator", "emt", "-o", "r.extxyz"], "there is no file nowhere"),
    "missing database": (["info", "nowhere.db"], "there is no database nowhere.db"),
    "empty database": (["relax", "empty.db", "--calculator", "emt", "-o", "r.extxyz"], "holds no structures"),
    "bad selection": (["relax", "full.db", "--select", "a>>b", "--calculator", "emt", "-o", "r.db"], "selection"),
    "overlap": (["search", "overlap.extxyz", "--formula", "Au", "--calculator", "emt", "--db", "a.db"], "overlap"),
    "no substrate": (
        ["search", "plain.xyz", "--formula", "Au", "--calculator", "emt", "--db", "a.db"],
        "of plain.xyz has no",
    ),
    "nothing to match": (["match", "plain.xyz", "gold.extxyz"], "structure 0 of plain.xyz has no substrate"),
    "missing backend": (["relax", "gold.extxyz", "--calculator", "chgnet", "-o", "r.extxyz"], "adlayer[chgnet]"),
    "unknown backend": (["relax", "gold.extxyz", "--calculator", "vasp", "-o", "r.extxyz"], "is unknown"),
    "bad formula": (["search", "gold.extxyz", "--formula", "au2", "--calculator", "emt", "--db", "a.db"], "formula"),
    "no formula": (["search", "gold.extxyz", "--calculator", "emt", "--db", "a.db"], "no composition"),
    "no database": (["search", "gold.extxyz", "--formula", "Au", "--calculator", "emt", "--db", "a.xyz"], "in .db"),
    "too full": (["search", "gold.extxyz", "--formula", "Au99", "--calculator", "emt", "--db", "a.db"], "does not fit"),
    "no energies": (["compare", "gold.extxyz", "-o", "out"], "has no energy"),
    "no reference": (["match", "gold.extxyz", "nowhere"], "there is no reference nowhere"),
    "unknown verb": (["grow"], "grow"),
    "missing option": (["substrate", "Ag(111)"], "--output"),
    "no number": (["substrate", "Ag(111)", "--layers", "many", "-o", "s.extxyz"], "--layers"),
    "unknown option": (["info", "gold.extxyz", "--colour"], "see adlayer info --help"),
    "not finite": (["relax", "nan.extxyz", "--calculator", "emt", "-o", "r.extxyz"], "structure 1 of nan.extxyz"),
    "drawn, not finite": (["picture", "nan.extxyz", "-o", "p.png"], "no numbers"),
    "selected from a file": (
        ["relax", "gold.extxyz", "--select", "n=1", "--calculator", "emt", "-o", "r.extxyz"],
        '"n=1" selects rows of a database, and gold.extxyz is none',
    ),
    "no forces to end at": (
        ["relax", "gold.extxyz", "--fmax", "nan", "--calculator", "emt", "-o", "r.db"],
        "fmax is nan",
    ),
    "two references": (["match", "gold.extxyz", "two.extxyz"], "holds 2 structures"),
    "no tolerance": (["match", "gold.extxyz", "p2x2-O_Pt111-fcc", "--tolerance", "-1"], "not positive"),
    "no symmetry": (["classify", "gold.extxyz", "--tolerance", "0", "-o", "t.csv"], "tolerances are 0"),
    "no cell to draw": (["picture", "molecule.xyz", "-o", "p.png"], "no cell in the plane"),
    "another's database": (["info", "foreign.db"], "is not a readable ASE database"),
    "database lost to a substrate": (["substrate", "Ag(111)", "-o", "full.db"], "rows would be lost"),
    "database lost to a table": (["classify", "gold.extxyz", "-o", "stages.db"], "which would be lost"),
    "database lost to a model": (["train", "full.db", "-o", "full.db"], "has the name of a database"),
    "no database to learn from": (["train", "gold.extxyz", "-o", "m.safetensors"], "not the name of a database"),
    "no area": (["substrate", "Ag(111)", "--cell", "p(0x2)", "-o", "s.extxyz"], "zero area"),
    "half a cell": (["substrate", "Ag(111)", "--cell", "p(2x2", "-o", "s.extxyz"], "not understood"),
    "atoms far apart": (["substrate", "Ag(111)", "--lattice", "400", "-o", "s.extxyz"], "283 Å apart"),
    "millions of atoms": (["substrate", "Ag(111)", "--cell", "p(1000x1000)", "-o", "s.extxyz"], "3000000 atoms"),
    "millions of points": (["stm", "gold.extxyz", "--resolution", "0.0005", "-o", "p.png"], "a coarser one"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(adlayer: Run, place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "chgnet", replace(BACKENDS["chgnet"], package="no_such_package"))
    (gold,) = read_structures("gold.extxyz")
    connect("empty.db")
    connect("full.db").write(gold)
    gold.positions[0] = gold.positions[1] + [0, 0, 0.3]
    write_structures("overlap.extxyz", [gold])
    write_structures("plain.xyz", [Atoms("Au2", [(0, 0, 0), (0, 0, 2.6)])])
    write_structures("bulk.xyz", [bulk("Ag", a=4.0, cubic=True)])
    Path("molecule.xyz").write_text("2\n\nO 0 0 0\nO 0 0 1.2\n")
    broken = gold.copy()
    broken.positions[1, 2] = np.nan
    write_structures("nan.extxyz", [gold, broken])
    write_structures("two.extxyz", [gold, gold])
    connect("stages.db").write(gold, task="t1")
    with sqlite3.connect("foreign.db") as foreign:
        foreign.execute("CREATE TABLE people (name TEXT)")
    Path("folder.traj").mkdir()
    before = sorted(p.name for p in place.iterdir())
    arguments, words = MISTAKES[name]
    status, out, err = adlayer(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("adlayer: ")
    assert err.count("\n") == 1
    assert words in err
    after = sorted(p.name for p in place.iterdir())
    assert [n for n in after if n not in (*before, "a.db")] == []  # nothing half-done is left


def test_bugs_are_not_hidden(adlayer: Run, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **keywords: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("adlayer.inspection.inspect", broken)
    with pytest.raises(ZeroDivisionError):
        adlayer("info", "gold.extxyz")

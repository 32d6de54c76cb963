"""``adlayer report`` from a database to the page, with real EMT energies."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from adlayer.structures.store import read_structures, write_structures
from adlayer.study.reporting import judge

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def database(tmp_path: Path, adlayer: Run) -> Path:
    slab, found = tmp_path / "slab.extxyz", tmp_path / "search.db"
    adlayer("substrate", "Ag(111)", "--cell", "p(2x2)", "--layers", 2, "--fixed-layers", 1, "-o", slab)
    status, _, err = adlayer(
        "search", slab, "--formula", "O1", "--formula", "Ag1O1", "-n", 3, "--calculator", "emt", "--db", found,
        "--workers", 1,
    )  # fmt: skip
    assert status == 0, err
    return found


def test_report_of_a_search_with_its_phases(tmp_path: Path, adlayer: Run, database: Path) -> None:
    status, out, err = adlayer("report", database, "-o", tmp_path / "page", "--title", "O on Ag(111)", "--json")
    result = json.loads(out.strip().splitlines()[-1])
    assert status == 0, err
    assert 1 <= result["n_unique"] <= result["n"] <= 6
    assert result["outputs"] == [str(tmp_path / "page" / name) for name in ("index.html", "table.csv", "table.db")]
    with (tmp_path / "page" / "table.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == result["n"]
    table = read_structures(tmp_path / "page" / "table.db")
    assert sum("duplicate_of" not in a.info["row"] for a in table) == result["n_unique"]
    assert all(a.info["row"]["calculator"]["version"] for a in table)
    text = Path(result["report"]).read_text()
    for words in ("O on Ag(111)", '<h2 id="phases">', "random search", "plane group", "references Ag", "emt"):
        assert words in text
    assert 'href="table.csv"' in text
    assert len(read_structures(tmp_path / "page" / "page" / "structures.extxyz")) == result["n_unique"]
    assert {p.suffix for p in (tmp_path / "page" / "page" / "pictures").iterdir()} == {".png"}
    assert len(list((tmp_path / "page" / "page" / "pictures").glob("0001-*.png"))) == 3  # structure, STM, LEED

    status, _, _ = adlayer("report", database, "-o", tmp_path / "page", "--no-phases")
    assert status == 0
    assert '<h2 id="phases">' not in Path(result["report"]).read_text()


def test_several_sources_are_sets_of_one_page(tmp_path: Path, adlayer: Run, database: Path) -> None:
    second = tmp_path / "low.extxyz"
    low = read_structures(database)[:2]
    write_structures(second, low)
    status, _, err = adlayer("report", second, database, "-o", tmp_path / "page", "--no-phases")
    assert status == 0, err
    text = (tmp_path / "page" / "index.html").read_text()
    assert "<title>low</title>" in text
    formulas = [a.get_chemical_formula() for a in read_structures(tmp_path / "page" / "page" / "structures.extxyz")]
    assert len(set(formulas)) == 2
    assert formulas == sorted(formulas, key=lambda formula: formula != low[0].get_chemical_formula())
    assert re.search(r">search</th>.*<td>–</td><td>–</td></tr>", text)  # other compositions: no distance
    assert all(f">{name}</th>" in text for name in ("search", "low"))
    with (tmp_path / "page" / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["duplicate_of"]) for row in rows) >= 2


def test_judgement_counts_the_first_set(tmp_path: Path, database: Path) -> None:
    """Duplicates are sought in all sets together, reported of the first; unconverged ones are set aside."""
    structures = [a for a in read_structures(database) if a.info["row"]["converged"]]
    lame = structures[0].copy()
    lame.calc, lame.info["row"] = structures[0].calc, {**structures[0].info["row"], "converged": False}
    sets = {"generated": [*structures, structures[0], lame], "random search": structures}
    found = judge(sets, tmp_path / "page", title="twice", phases=False)
    assert found.structures == [*structures, structures[0]]
    assert sorted(i for group in found.duplicates for i in group) == list(range(len(structures) + 1))
    same = next(group for group in found.duplicates if 0 in group)
    assert len(structures) in same
    energies = [found.structures[group[0]].get_potential_energy() for group in found.duplicates]
    assert energies == sorted(energies)
    assert found.zero == energies[0]


def test_unknown_sources_are_the_users_mistake(tmp_path: Path, adlayer: Run) -> None:
    status, _, err = adlayer("report", tmp_path / "none.db", "-o", tmp_path / "page")
    assert status == 2
    assert "none.db" in err
    assert not (tmp_path / "page").exists()

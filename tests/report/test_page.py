"""The page holds everything, and nothing from outside."""

import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer.analysis.compare import wilson_interval
from adlayer.analysis.descriptors import overlayer_heights
from adlayer.analysis.matching import unique
from adlayer.analysis.references import reference
from adlayer.errors import UserError
from adlayer.report.explorer import CHEMISCOPE_SHA256
from adlayer.report.page import write_report


class Page(HTMLParser):
    """Elements, table cells and text of a page."""

    def __init__(self, text: str, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.inside: list[str] = []
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "circle", "input"):
            self.inside.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag != "circle":
            assert self.inside.pop() == tag

    def handle_data(self, data):
        if "td" in self.inside or "th" in self.inside:
            self.tables[-1][-1][-1] += data.strip()
        if "script" not in self.inside and "style" not in self.inside:
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def structure(name: str, energy: float | None, sample: int, rng: np.random.Generator):
    atoms = reference(f"p4x4-O_Ag111-{name}")
    adsorbed = atoms.get_tags() == 0
    atoms.positions[adsorbed] += rng.uniform(-0.02, 0.02, (adsorbed.sum(), 3))
    if energy is not None:
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    steps = 40 + sample
    atoms.info["row"] = {
        "seed": 7, "sample": sample, "n_steps": steps, "n_force_calls": steps + 1, "converged": sample != 3,
    }  # fmt: skip
    return atoms


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)
    generated = [
        structure("Ag6", -145.500, 0, rng),
        structure("Ag2O-trilayer", -144.796, 1, rng),
        structure("Ag6", -145.502, 2, rng),
        structure("best-random", -144.199, 3, rng),
        structure("Ag6-symmetric", -145.288, 4, rng),
    ]
    return {"generated": generated, "random search": [structure("best-random", -144.19 + i, i, rng) for i in range(4)]}


@pytest.fixture(scope="module")
def known():
    atoms = reference("p4x4-O_Ag111-Ag6")
    atoms.calc = SinglePointCalculator(atoms, energy=-145.506)
    return atoms


@pytest.fixture(scope="module")
def page(groups, known, tmp_path_factory):
    path = write_report(
        tmp_path_factory.mktemp("report") / "new",
        title="Ag12O6 <script>alert(1)</script>",
        groups=groups,
        reference=known,
        matched=[0, 2, 4],
        provenance={"calculator": "sevennet 0.13.0", "seed": "7"},
        best=3,
        pictured=4,
    )
    assert path.name == "index.html"
    assert sorted(f.name for f in path.parent.iterdir()) == ["index.html", "page"]
    return Page(path.read_text(encoding="utf-8"), path.parent)


def test_numbers_come_first(page):
    interval = wilson_interval(3, 5)
    for words in ("structures (generated) 5 ", "unique 4 ", "+0.004 eV", "relative to the reference", "3 of 5"):
        assert words in page.text
    assert f"{100 * interval.low:.0f}–{100 * interval.high:.0f} % (95 % interval)" in page.text
    assert "calculator sevennet 0.13.0 seed 7" in page.text


def test_nothing_comes_from_outside_and_text_is_escaped(page):
    links = [a[key] for name, a in page.elements for key in ("src", "href") if key in a]
    assert [link for link in links if ":" in link] == ["https://chemiscope.org"]  # a link to follow, nothing to load
    assert all((page.folder / link).is_file() for link in links if not link.startswith(("https", "#")))
    assert not page.all("link")
    assert len(page.all("script")) == 3
    assert "alert(1)" in page.text
    assert "<script>alert" not in (page.folder / "page" / "data.js").read_text().split("JSON.parse", 1)[0]


def test_pictures_are_there_with_words(page):
    images = page.all("img")
    assert len(images) == 3 + 1 + 3  # best, reference, energies, cost and success
    for image in images:
        assert (page.folder / image["src"]).read_bytes().startswith(b"\x89PNG")
        assert len(image["alt"]) > 15


def test_the_explorer_is_the_one_that_ships(page):
    script = (page.folder / "page" / "chemiscope.min.js").read_bytes()
    assert hashlib.sha256(script).hexdigest() == CHEMISCOPE_SHA256
    assert "Redistributions in binary form" in (page.folder / "page" / "LICENSES.txt").read_text()


def test_data_hold_the_structures_in_the_order_of_the_table(page, groups):
    text = (page.folder / "page" / "data.js").read_text(encoding="utf-8")
    data = json.loads(json.loads(text.removeprefix("const adlayerData = JSON.parse(").removesuffix(");\n")))
    assert data["properties"]["ΔE"]["values"] == pytest.approx([0.004, 0.218, 0.710, 1.307, 2.316, 3.316, 4.316])
    assert [len(s["looks"]) for s in data["structures"]] == [len(groups["generated"][0])] * 7
    lowest, shown = groups["generated"][2], data["structures"][0]
    assert [data["looks"][k]["name"] for k in shown["looks"]] == lowest.get_chemical_symbols()
    assert {data["looks"][k]["kind"] for k in np.array(shown["looks"])[lowest.get_tags() == 0]} == {
        "Ag overlayer", "O overlayer",
    }  # fmt: skip
    moved = np.reshape(shown["positions"], (-1, 3)) / 1000 - lowest.positions
    steps = (moved - moved[0])[:, :2] @ np.linalg.inv(lowest.cell[:2, :2])
    np.testing.assert_allclose(steps, steps.round(), atol=5e-4)  # wrapped, else the same to 0.001 Å
    np.testing.assert_allclose(np.ptp(moved[:, 2]), 0, atol=2e-3)
    heights = [overlayer_heights(a).mean() for a in (lowest, groups["random search"][3])]
    known = data["properties"]["mean height"]["values"]
    np.testing.assert_allclose([known[0], known[-1]], heights, atol=1e-6)
    assert set(data["pictures"]) == {str(k) for k in range(1, 5)}


def test_table_lists_every_unique_structure(page, groups):
    head, *rows = page.tables[0]
    assert len(rows) == len(unique([a for group in groups.values() for a in group])) == 7
    column = {name: [row[k] for row in rows] for k, name in enumerate(head)}
    assert column["overlayer"] == ["Ag₁₂O₆"] * 7
    assert column["coverage (ML)"] == ["0.75 Ag + 0.375 O"] * 7
    assert column["ΔE (eV)"] == ["+0.004", "+0.218", "+0.710", "+1.307", "+2.316", "+3.316", "+4.316"]
    assert column["E (eV)"][0] == "−145.502"
    assert column["found"] == ["2×", "1×", "1×", "2×", "1×", "1×", "1×"]
    assert column["origin"] == ["generated"] * 3 + ["generated 1×, random search 1×"] + ["random search"] * 3
    assert column["match"] == ["✓ yes", "✓ yes", *["no"] * 5]
    assert column["steps"][:4] == ["42", "44", "41", "43"]
    assert column["converged"] == ["yes", "yes", "yes", "no", "yes", "yes", "no"]
    assert column["seed / sample"][:4] == ["7 / 2", "7 / 4", "7 / 1", "7 / 3"]


def test_sets_stand_side_by_side(page):
    head, first, second = page.tables[1]
    assert first[:5] == ["generated", "5", "4 of 5", "+0.004", "+0.218"]
    assert second[:4] == ["random search", "4", "3 of 4", "+1.316"]
    assert len(head) == len(first) == 9


def test_structures_can_be_downloaded_whole(page, groups):
    links = [a for a in page.all("a") if "download" in a]
    assert [int(link.get("data-rank", 0)) for link in links] == [1, 2, 3, 0, *range(1, 8)]
    atoms, *others = ase.io.read(page.folder / links[0]["href"], ":")
    assert len(others) == 6
    original = groups["generated"][2]
    np.testing.assert_allclose(atoms.positions, original.positions, atol=1e-7)
    assert atoms.get_tags().tolist() == original.get_tags().tolist()
    assert atoms.get_potential_energy() == -145.502
    assert atoms.info["row"]["sample"] == 2
    assert np.array_equal(atoms.constraints[0].index, original.constraints[0].index)


def test_unrelaxed_structures_make_a_page_too(tmp_path):
    rng = np.random.default_rng(1)
    bare = [structure("Ag6", None, i, rng) for i in range(2)]
    for atoms in bare:
        del atoms.info["row"]
    page = Page(write_report(tmp_path, title="raw", groups={"generated": bare}).read_text(encoding="utf-8"))
    assert "no energies recorded" in page.text
    assert not {"ΔE (eV)", "E (eV)", "steps", "converged"} & set(page.tables[0][0])
    assert page.tables[1][1][3] == "–"
    assert len(page.all("img")) == 1


def test_mixed_compositions_have_each_their_own_zero(tmp_path):
    rng = np.random.default_rng(2)
    structures = [structure("Ag6", -10.0, 0, rng), structure("Ag2O-trilayer", -9.0, 1, rng)]
    for name, energy in (("p2x2-O_Pt111-fcc", -80.0), ("c2x2-O_Ni100", -70.0)):
        atoms = reference(name)
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
        structures.append(atoms)
    page = Page(write_report(tmp_path, title="all", groups={"search": structures}).read_text(encoding="utf-8"))
    assert sorted(row[3] for row in page.tables[0][1:]) == ["+0.000", "+0.000", "+0.000", "+1.000"]


def test_mistakes_are_told(tmp_path, groups):
    with pytest.raises(UserError, match="no structures"):
        write_report(tmp_path, title="t", groups={"generated": []})
    with pytest.raises(UserError, match="matched index 9"):
        write_report(tmp_path, title="t", groups=groups, matched=[9])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(tmp_path / "file", title="t", groups=groups)

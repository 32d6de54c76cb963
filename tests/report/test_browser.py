"""The page in a real browser, opened from its file: Debian's Chromium, driven by Playwright.

The structures are real: found by the search of silver oxides that ships as an example.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
import pytest
from PIL import Image

from adlayer.analysis.records import potential_energy
from adlayer.analysis.stm import stm_image
from adlayer.analysis.table import describe
from adlayer.report.entries import Entry, rank, zero_levels
from adlayer.report.page import write_report
from adlayer.report.stm import stm_figure
from adlayer.structures.store import read_structures

EXAMPLE = Path(__file__).parents[2] / "examples" / "silver_oxide" / "search.db.xz"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_WEBGL = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
PATIENCE = 300_000  # ms; drawing without a graphics card takes a while on a busy machine
PICTURED = 3

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install adlayer[test]")


@pytest.fixture(scope="module")
def structures():
    found = [a for a in read_structures(EXAMPLE) if potential_energy(a) is not None]
    return found[:: len(found) // 30][:30]


@pytest.fixture(scope="module")
def entries(structures) -> list[Entry]:
    """What the page should show: none of the structures is another."""
    return rank({"search": structures}, [[i] for i in range(30)], zero_levels(structures, None))


@pytest.fixture(scope="module")
def report(structures, tmp_path_factory) -> Path:
    return write_report(
        tmp_path_factory.mktemp("browser"),
        title="Silver oxides",
        groups={"search": structures},
        duplicates=[[i] for i in range(30)],
        records=describe(structures),
        imagers={"STM": lambda atoms: stm_figure([stm_image(atoms, resolution=0.3)])},
        provenance={"calculator": "sevennet"},
        best=2,
        pictured=PICTURED,
    )


@pytest.fixture(scope="module")
def driver() -> Iterator:
    with playwright.sync_playwright() as running:
        yield running


@pytest.fixture(scope="module")
def browser(driver) -> Iterator:
    chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *SOFTWARE_WEBGL])
    yield chromium
    chromium.close()


class Tab:
    """A page, with what went wrong in it."""

    def __init__(self, browser, path: Path) -> None:
        self.page = browser.new_page(viewport={"width": 1100, "height": 800})
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(request.url))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("document.getElementById('explorer-message').textContent !== '' || selected")
        self.page.wait_for_function("selected !== null")

    def facts(self) -> dict[str, str]:
        """Names and values of the selected structure."""
        panel = self.page.locator("#selected dl")
        return dict(zip(panel.locator("dt").all_inner_texts(), panel.locator("dd").all_inner_texts(), strict=True))

    def pictures(self) -> list[str]:
        return [image.get_attribute("src") for image in self.page.locator("#selected img").all()]

    def column(self, name: str) -> list[str]:
        heads = self.page.locator("table.sortable th").all_inner_texts()
        cell = 1 + [head.strip() for head in heads].index(name)
        return self.page.locator(f"table.sortable tbody td:nth-child({cell})").all_inner_texts()

    def sort(self, name: str) -> None:
        self.page.locator("table.sortable th").get_by_text(name, exact=True).click()

    def viewer(self) -> np.ndarray:
        """Pixels (h, w, 3) of the viewer, once it shows the selected structure."""
        self.page.wait_for_timeout(500)
        png = self.page.locator("#explorer-structure").screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def opened(browser, report) -> Tab:
    return Tab(browser, report)


@pytest.fixture
def tab(opened) -> Iterator[Tab]:
    """The one page that is open, at its beginning; nothing may go wrong in it."""
    if opened.facts()["structure"] != "1":
        opened.page.locator("tr[data-rank='1'] button").click()
    yield opened
    assert opened.errors == []


def shares(pixels: np.ndarray) -> tuple[float, float]:
    """Shares of bluish pixels (silver of the overlayer) and of orange ones (oxygen)."""
    r, g, b = np.moveaxis(pixels, -1, 0)
    return float(((b > r + 60) & (b > g + 25)).mean()), float(((r > b + 60) & (r > g + 25) & (g > b + 10)).mean())


def test_it_opens_offline_with_everything_in_place(tab, entries):
    assert tab.page.title() == "Silver oxides"
    assert all(url.startswith(("file://", "data:", "blob:")) for url in tab.asked)
    assert tab.page.locator("#explorer-message").inner_text() == ""
    broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    assert tab.page.evaluate(broken) == []
    assert tab.column("#") == [str(k) for k in range(1, 31)]
    assert tab.facts()["structure"] == "1"
    assert tab.facts()["plane group"] == tab.column("plane group")[0]
    assert [Path(p).name for p in tab.pictures()] == ["0001-structure.png", "0001-STM.png"]


def test_structures_are_drawn_in_three_dimensions_in_the_colours_of_the_pictures(tab):
    silver, oxygen = shares(tab.viewer())
    assert silver > 0.05
    assert oxygen > 0.003


def test_a_row_selects_its_structure(tab, entries):
    first = tab.viewer()
    tab.page.locator("tr[data-rank='2'] td").nth(1).click()
    assert tab.facts()["structure"] == "2"
    assert [Path(p).name for p in tab.pictures()] == ["0002-structure.png", "0002-STM.png"]
    assert tab.page.locator("tr[aria-selected=true]").get_attribute("data-rank") == "2"
    assert tab.page.locator("#explorer-info input[type=number]").first.input_value() == "1"  # chemiscope counts from 0
    second = tab.viewer()
    assert np.abs(second - first).max(axis=-1).mean() > 5
    tab.page.locator("tr[data-rank='30'] button").click()
    assert tab.facts()["E (eV)"] == f"{entries[29].energy:+.3f}".replace("-", "−")
    assert tab.pictures() == []
    assert "lowest structures only" in tab.page.locator("#selected .shown").inner_text()


def test_a_point_of_the_map_selects_its_structure(tab):
    """Of a structure away from others; the map's axes are coverage and energy."""
    where = """rank => {
        const find = root => root.querySelector('.js-plotly-plot')
            ?? [...root.querySelectorAll('*')].filter(e => e.shadowRoot).map(e => find(e.shadowRoot)).find(Boolean);
        const plot = find(document.getElementById('explorer-map')), box = plot.getBoundingClientRect();
        const {xaxis, yaxis} = plot._fullLayout, known = adlayerData.properties;
        const at = k => [box.x + xaxis._offset + xaxis.d2p(known[adlayerData.map.x.property].values[k]),
                         box.y + yaxis._offset + yaxis.d2p(known['ΔE'].values[k])];
        const places = known.rank.values.map((_, k) => at(k));
        const gaps = places.map((p, k) => Math.min(...places.filter((_, j) => j !== k).map(q => Math.hypot(p[0]-q[0], p[1]-q[1]))));
        const loneliest = gaps.indexOf(Math.max(...gaps.slice(1)));
        return [loneliest + 1, ...places[loneliest]];
    }"""  # noqa: E501
    tab.page.locator("#explorer").scroll_into_view_if_needed()
    rank_there, x, y = tab.page.evaluate(where)
    assert rank_there > 1
    tab.page.mouse.move(x - 3, y)
    tab.page.mouse.move(x, y, steps=3)
    tab.page.wait_for_timeout(500)
    tab.page.mouse.click(x, y)
    tab.page.wait_for_function(f"selected === {rank_there}")
    assert tab.facts()["structure"] == str(rank_there)
    row = tab.page.locator("tr[aria-selected=true]")
    assert row.get_attribute("data-rank") == str(rank_there)
    box, table = row.bounding_box(), tab.page.locator(".tall").bounding_box()
    assert table["y"] <= box["y"] <= table["y"] + table["height"]


def test_the_table_sorts_and_filters(tab, entries):
    tab.sort("E (eV)")
    energies = sorted(entry.energy for entry in entries)
    assert tab.column("E (eV)") == [f"{e:+.3f}".replace("-", "−") for e in energies]
    tab.sort("E (eV)")
    assert tab.column("E (eV)") == [f"{e:+.3f}".replace("-", "−") for e in energies[::-1]]
    tab.page.locator("#filter").fill("p1")
    shown = [row.is_visible() for row in tab.page.locator("tbody tr[data-rank]").all()]
    assert shown == ["p1" in text for text in tab.page.locator("tbody tr[data-rank]").all_text_contents()]
    assert 0 < sum(shown) < 30
    assert tab.page.locator("#shown").inner_text() == f"{sum(shown)} of 30"
    tab.page.locator("#filter").fill("")
    tab.sort("#")


def test_a_picture_of_the_best_shows_its_image_and_selects(tab):
    tab.page.locator("tr[data-rank='3'] button").click()
    card = tab.page.locator(".pictures a.pick").first
    above = card.locator("img").nth(1)
    assert above.evaluate("image => getComputedStyle(image).opacity") == "0"
    card.hover()
    tab.page.wait_for_function("getComputedStyle(document.querySelectorAll('.pictures a.pick img')[1]).opacity === '1'")
    card.click()
    assert tab.facts()["structure"] == "1"


def test_structures_can_be_downloaded(tab, entries, tmp_path):
    for selector, wanted in (("tr[data-rank='4'] a", [3]), ("p a.file", range(30))):
        with tab.page.expect_download() as download:
            tab.page.locator(selector).click()
        name = "0004-" + entries[3].formula + ".extxyz" if len(wanted) == 1 else "structures.extxyz"
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        found = ase.io.read(tmp_path / name, ":")
        assert len(found) == len(wanted)
        for atoms, k in zip(found, wanted, strict=True):
            np.testing.assert_allclose(atoms.positions, entries[k].atoms.positions, atol=1e-7)
            assert atoms.get_potential_energy() == pytest.approx(entries[k].energy, abs=1e-6)


def test_without_webgl_the_rest_works(driver, report):
    chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-3d-apis"])
    tab = Tab(chromium, report)
    assert "WebGL" in tab.page.locator("#explorer-message").inner_text()
    tab.page.locator("tr[data-rank='2'] button").click()
    assert tab.facts()["structure"] == "2"
    chromium.close()


@pytest.mark.slow
def test_five_thousand_structures(structures, browser, tmp_path):
    rng = np.random.default_rng(0)
    many = []
    for k in range(5000):
        atoms = structures[k % 30].copy()
        atoms.calc = structures[k % 30].calc
        atoms.positions[atoms.get_tags() == 0] += rng.normal(0, 0.05, (int((atoms.get_tags() == 0).sum()), 3))
        many.append(atoms)
    for atoms in many:
        atoms.calc.atoms = atoms.copy()
    path = write_report(
        tmp_path, title="Many", groups={"search": many}, duplicates=[[i] for i in range(5000)], pictured=1, best=1
    )
    assert path.stat().st_size < 6e6
    assert (tmp_path / "page" / "data.js").stat().st_size < 15e6
    tab = Tab(browser, path)
    tab.page.locator("tr[data-rank='5000'] button").click()
    assert tab.facts()["structure"] == "5000"
    assert shares(tab.viewer())[0] > 0.05
    tab.sort("#")  # ascending from the start
    assert tab.column("#")[:2] == ["5000", "4999"]
    assert tab.errors == []

"""The verbs ``picture`` and ``stm``."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import adlayer as package
from adlayer.analysis.references import reference
from adlayer.structures.store import write_structures
from adlayer.study.imaging import MOST, choose, parse_line, parse_weights

Run = Callable[..., tuple[int, str, str]]
ROW = "p2x1-O_Ag110-added-row"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with three structures."""
    monkeypatch.chdir(tmp_path)
    write_structures("three.extxyz", [reference(n) for n in (ROW, "p2x2-O_Pt111-fcc", "c2x2-O_Ni100")])
    return tmp_path


def done(result: tuple[int, str, str]) -> dict:
    """The JSON object of a successful run."""
    status, out, err = result
    assert status == 0, err
    fields = json.loads(out)
    assert all(Path(path).stat().st_size > 1000 for path in fields["outputs"])
    return fields


def test_picture(adlayer: Run, place: Path) -> None:
    fields = done(adlayer("picture", "three.extxyz", "--index", "-1 0", "-o", "new/sheet.svg", "--json"))
    assert (fields["n"], fields["outputs"]) == (2, ["new/sheet.svg"])
    text = Path("new/sheet.svg").read_text()
    assert "<!-- three 2: O2 -->" in text
    assert "<!-- three 0: AgO -->" in text
    assert "<!-- three 1" not in text


def test_stm(adlayer: Run, place: Path) -> None:
    options = ("--resolution", 0.4, "--blur", 0.3, "--weights", "O=0.2", "--profile", "0 0 8 0")
    fields = done(
        adlayer("stm", "three.extxyz", ROW, *options, "--cell-experiment", "4.1 5.8 90", "-o", "s.png", "--json")
    )
    assert (fields["n"], fields["mode"], fields["outputs"]) == (4, "current", ["s.png"])
    assert fields["corrugation"][0] == pytest.approx(fields["corrugation"][3])
    direct = package.stm(reference(ROW), place / "direct.pdf", resolution=0.4, blur=0.3, weights={"O": 0.2})
    assert fields["corrugation"][0] == pytest.approx(float(np.ptp(direct[0].values)))
    height = done(adlayer("stm", ROW, "--mode", "height", "--resolution", 0.4, "-o", "h.png", "--json"))
    assert height["mode"] == "height"


def test_stm_from_a_density_of_states(adlayer: Run, place: Path) -> None:
    from ase.io.jsonio import write_json

    z = np.arange(120) * 0.1
    ripple = 1 + 0.2 * np.cos(2 * np.pi * np.arange(12) / 12)
    ldos = ripple[:, None, None] * np.ones((12, 10, 1)) * np.exp(-2 * z)
    write_json("dft.json", (ldos, -0.5, np.diag([4.0, 3.0, 12.0])))
    fields = done(adlayer("stm", "dft.json", "--plane", 6, "-o", "dft.png", "--json"))
    assert fields["corrugation"] == pytest.approx([np.log(1.2 / 0.8) / 2], abs=5e-3)
    status, _, err = adlayer("stm", "dft.json", "-o", "dft.png")
    assert status == 2
    assert "give the height of the plane" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("picture", "none.xyz", "-o", "a.png"), "there is no file none.xyz"),
        (("picture", ROW, "-o", "a.doc"), "a.doc is no picture"),
        (("picture", "three.extxyz", "--index", "5", "-o", "a.png"), 'index "5" names none of the 3'),
        (("picture", "three.extxyz", "--index", "2:2", "-o", "a.png"), "no structures to draw"),
        (("picture", *["three.extxyz"] * 9, "-o", "a.png"), f"27 structures do not fit on a sheet of {MOST}"),
        (("stm", ROW, "--weights", "O", "-o", "a.png"), 'weight "O" is not understood'),
        (("stm", ROW, "--weights", "Pd=1", "-o", "a.png"), 'weight of "Pd"'),
        (("stm", ROW, "--mode", "side", "-o", "a.png"), 'no mode "side"'),
        (("stm", ROW, "--profile", "0 0 0 0", "-o", "a.png"), "not a line"),
        (("stm", ROW, "--cell-experiment", "4", "-o", "a.png"), "experimental cell"),
    ],
)
def test_mistakes(adlayer: Run, place: Path, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = adlayer(*arguments)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert not Path("a.png").exists()


def test_texts() -> None:
    assert choose(5, "1:4 -1") == [1, 2, 3, 4]
    assert choose(5, ":") == [0, 1, 2, 3, 4]
    assert parse_weights("Ag=1, O=-.1") == {"Ag": 1.0, "O": -0.1}
    assert parse_line("0,0,1,2").tolist() == [[0, 0], [1, 2]]

"""Phase diagrams draw the numbers they are given."""

import numpy as np
import pytest

from adlayer.analysis.energetics import SurfacePhase
from adlayer.analysis.gas import MBAR, gas_potential, gas_pressure
from adlayer.analysis.phases import phase_diagram
from adlayer.errors import UserError
from adlayer.report.phases import AXIS_PRESSURES, phase_figure, pressure_figure, pretty

PHASES = [
    SurfacePhase("clean Ag(111)", 0.0, {}, 60.0),
    SurfacePhase("Ag5O3 p(4x2)", -1.9, {"Ag": 5, "O": 3}, 60.0),
    SurfacePhase("Ag12O6 p(4x4)", -3.3, {"Ag": 12, "O": 6}, 120.0),
    SurfacePhase("Ag6O6 (r7xr7)R19.1", -2.0, {"Ag": 6, "O": 6}, 52.0),
]


@pytest.fixture
def diagram():
    return phase_diagram(PHASES, "O", uncertainty=0.02, limits={"Ag2O": -0.34})


def test_labels():
    assert pretty("Ag5O4 (r7xr7)R19.1") == "Ag$_{5}$O$_{4}$ (√7×√7)R19.1"
    assert pretty("clean Ag(111)") == "clean Ag(111)"
    assert pretty("O (2 1 | -2 1)") == "O (2 1 | -2 1)"


def test_the_thick_line_is_the_lower_envelope(diagram):
    axes = phase_figure(diagram, -1.2, 0.0, mark=["Ag12O6"]).axes[0]
    thick = sorted((line for line in axes.lines if line.get_linewidth() == 3.0), key=lambda line: line.get_xdata()[0])
    assert len(thick) == len(diagram.stable) == 3
    ends = [float(x) for line in thick for x in line.get_xdata()]
    change, second = (t.potential for t in diagram.transitions)
    assert ends == pytest.approx([-1.2, change, change, second, second, 0.0])
    for line in thick:
        x, y = (np.asarray(v, dtype=float) for v in line.get_data())
        assert y == pytest.approx(1e3 * np.min([p.gamma({"O": x}) for p in PHASES], axis=0))
    texts = [t.get_text().replace("\n", " ") for t in axes.texts]
    assert pretty("Ag12O6 p(4x4)") in texts
    assert all(pretty(s.phase.label) in texts for s in diagram.stable)
    assert any("bulk Ag$_{2}$O" in t for t in texts)


def test_band_and_temperatures(diagram):
    axes = phase_figure(diagram, -1.2, 0.0).axes[0]
    band = axes.collections[1].get_paths()[0].vertices
    start, end = diagram.transitions[0].potential, diagram.transitions[1].potential
    gamma = 1e3 * PHASES[1].gamma({"O": start})
    width = 1e3 * 0.02 * 8 / 60
    at_start = band[np.isclose(band[:, 0], start), 1]
    assert at_start.min() == pytest.approx(float(gamma) - width)
    assert at_start.max() == pytest.approx(float(gamma) + width)
    assert band[:, 0].max() == pytest.approx(end)
    assert len(axes.child_axes) == len(AXIS_PRESSURES)
    for top, pressure in zip(axes.child_axes, AXIS_PRESSURES.values(), strict=True):
        ticks, labels = top.get_xticks(), [float(t.get_text()) for t in top.get_xticklabels()]
        assert len(ticks) >= 2
        assert ticks == pytest.approx([gas_potential("O", t, pressure) for t in labels])


def test_borders_of_the_map_are_isolines(diagram):
    axes = pressure_figure(diagram, (300.0, 900.0), (1e-10, 1e3)).axes[0]
    t, border = axes.lines[0].get_data()
    for k in (0, 50, 199):
        assert border[k] == pytest.approx(np.log10(gas_pressure("O", diagram.transitions[0].potential, t[k]) / MBAR))
    assert axes.get_legend() is not None
    assert pretty("clean Ag(111)") in [text.get_text() for text in axes.texts]


def test_an_element_without_a_gas_has_no_map():
    diagram = phase_diagram(PHASES, "Ag", high=0.0)
    assert phase_figure(diagram).axes[0].child_axes == []
    with pytest.raises(UserError, match="choose one of"):
        pressure_figure(diagram)


def test_one_phase_alone_is_drawn(tmp_path):
    phase_figure(phase_diagram(PHASES[:1], "O")).savefig(tmp_path / "one.png")
    pressure_figure(phase_diagram(PHASES[:1], "O")).savefig(tmp_path / "map.png")

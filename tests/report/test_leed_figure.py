"""A drawn LEED pattern holds the spots it claims to show."""

from io import BytesIO

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon, Wedge

from adlayer.analysis.leed import kinematic_pattern, leed_pattern
from adlayer.analysis.references import reference
from adlayer.report.figures import PALETTE
from adlayer.report.leed import leed_figure, spot_patches, typeset_wood
from adlayer.structures.superstructure import superstructure_matrix

HEXAGONAL = 2.9465 * np.array([[1.0, 0.0], [0.5, np.sqrt(3) / 2]])


def pixels(figure: Figure) -> np.ndarray:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


@pytest.mark.parametrize("name", ["p(1x1)", "p(4x4)", "c(4x2)", "(r7xr7)R19.1", "p(3x2)", "[[8,-7],[2,4]]"])
def test_every_spot_is_drawn_in_the_colours_of_its_domains(name):
    pattern = leed_pattern(HEXAGONAL, superstructure_matrix(name, HEXAGONAL))
    figure = leed_figure(pattern, name)
    assert pixels(figure).std() > 0.02
    patches, crosses = spot_patches(pattern, 0.2, 0.1)
    assert len(crosses) == 0
    wedges = [p for p in patches if isinstance(p, Wedge)]
    assert len(wedges) == sum((~d.integral).sum() for d in pattern.domains)
    for number, domain in enumerate(pattern.domains):
        own = np.array([w.center for w in wedges if to_hex(w.get_facecolor()).upper() == PALETTE[number]])
        expected = domain.spots[~domain.integral]
        assert len(own) == len(expected)
        if len(own):
            assert np.linalg.norm(own[:, None] - expected[None], axis=-1).min(1).max() < 1e-6
            assert np.linalg.norm(own[:, None] - expected[None], axis=-1).min(0).max() < 1e-6
    circles = [p for p in patches if isinstance(p, Circle)]
    assert len(circles) == pattern.domains[0].integral.sum()
    assert len(figure.axes[1].collections[0].get_paths()) == len(patches)


def test_shared_spots_have_a_sector_for_each_domain():
    pattern = leed_pattern(HEXAGONAL, np.array([[3, 0], [0, 2]]))
    patches, _ = spot_patches(pattern, 0.2, 0.1)
    angles: dict[tuple[float, ...], float] = {}
    for wedge in (p for p in patches if isinstance(p, Wedge)):
        key = tuple(np.round(wedge.center, 4) + 0.0)
        angles[key] = angles.get(key, 0.0) + wedge.theta2 - wedge.theta1
    assert np.allclose(list(angles.values()), 360.0)


def test_cells_are_drawn_on_lattice_points_and_do_not_overlap():
    pattern = leed_pattern(HEXAGONAL, superstructure_matrix("c(4x2)", HEXAGONAL))
    surface, _ = leed_figure(pattern).axes
    outlines = [p.get_xy()[:4] for p in surface.patches if isinstance(p, Polygon) and not p.get_fill()]
    assert len(outlines) == 4  # three domains and the (1×1) cell
    for outline in outlines:
        fractions = outline @ np.linalg.inv(HEXAGONAL)
        np.testing.assert_allclose(fractions, np.rint(fractions), atol=1e-6)
    areas = [abs(np.linalg.det(o[[1, 3]] - o[0])) / abs(np.linalg.det(HEXAGONAL)) for o in outlines]
    np.testing.assert_allclose(areas, [4, 4, 4, 1])
    centres = np.array([o.mean(0) for o in outlines[:3]])
    gaps = np.linalg.norm(centres[:, None] - centres[None], axis=-1)[~np.eye(3, dtype=bool)]
    assert gaps.min() > max(np.linalg.norm(o - o.mean(0), axis=1).max() for o in outlines[:3])


def test_forbidden_spots_are_crosses_and_intensities_are_labelled_kinematic():
    pattern = kinematic_pattern(reference("c2x2-O_Ni100"))
    figure = leed_figure(pattern)
    _, screen = figure.axes
    (crosses,) = [line for line in screen.lines if line.get_marker() == "x"]
    assert len(crosses.get_xdata()) == pattern.domains[0].extinct.sum() > 0
    assert screen.get_title() == "kinematic, normal incidence, 100 eV"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["substrate", "superstructure: (2 0 / 0 2)", "forbidden by symmetry"]
    brightest = max((p for p in spot_patches(pattern, 0.2, 0.1)[0] if isinstance(p, Wedge)), key=lambda w: w.r)
    lit = np.where(pattern.domains[0].integral, 0, pattern.domains[0].intensities)
    assert lit[np.linalg.norm(pattern.domains[0].spots - brightest.center, axis=1).argmin()] == pytest.approx(lit.max())


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("p(4x4)", "p(4×4)"),
        ("(r3xr3)R30", "(√3×√3)R30°"),
        ("c(5xr3)rect", "c(5×√3)rect"),
        ("(2r7xr7)R19.1", "(2√7×√7)R19.1°"),
    ],
)
def test_printed_names_are_still_understood(name, printed):
    assert typeset_wood(name) == printed
    np.testing.assert_array_equal(superstructure_matrix(printed, HEXAGONAL), superstructure_matrix(name, HEXAGONAL))

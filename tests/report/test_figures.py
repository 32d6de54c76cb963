"""Figures hold the data they claim to show."""

from io import BytesIO

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from adlayer.analysis.compare import success_curve
from adlayer.analysis.references import reference, reference_names
from adlayer.errors import UserError
from adlayer.report import figures


def pixels(figure) -> np.ndarray:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    buffer.seek(0)
    return matplotlib.image.imread(buffer)[..., :3]


@pytest.mark.parametrize("name", reference_names())
def test_structures_are_drawn_with_their_elements(name):
    atoms = reference(name)
    picture = pixels(figures.structure_figure(atoms, name))
    assert picture.shape[0] > 100
    oxygen = np.abs(picture - to_rgb("#D55E00")).max(-1) < 0.15
    assert oxygen.sum() > 20
    metal = np.abs(picture - to_rgb("#1f77b4")).max(-1) < 0.15
    assert (metal.sum() > 20) == (len(set(atoms.numbers[atoms.get_tags() == 0])) == 2)


def test_top_view_holds_every_image_once():
    atoms = reference("p4x4-O_Ag111-Ag6")
    low, high = np.array([-9.0, -8.0]), np.array([17.0, 16.0])
    index, points = figures._images(atoms, low, high)
    steps = np.stack(np.meshgrid(*2 * [np.arange(-9, 10)]), -1).reshape(-1, 2) @ atoms.cell.array[:2, :2]
    every = atoms.positions[:, None, :2] + steps
    inside = ((every >= low) & (every <= high)).all(-1)
    assert len(index) == inside.sum()
    assert np.bincount(index, minlength=len(atoms)).tolist() == inside.sum(1).tolist()
    np.testing.assert_allclose(points[:, 2], atoms.positions[index, 2])


def test_small_cells_show_their_neighbours_and_views_are_known():
    figure = figures._figure(3, 3)
    axes = figure.add_subplot()
    figures.draw_structure(axes, reference("p2x1-O_Ag110-added-row"))
    assert np.ptp(axes.get_xlim()) == pytest.approx(12.0)
    with pytest.raises(UserError, match="top or side"):
        figures.draw_structure(axes, reference("c2x2-O_Ni100"), "front")


def test_legend_names_what_is_drawn():
    legend = figures.structure_legend(reference("p4x4-O_Ag111-Ag6"))
    assert [label for label, _ in legend] == ["Ag overlayer", "O overlayer", "layer 1 (top)", "layer 2"]
    assert len({colour for _, colour in legend}) == 4


def test_energy_distribution_shows_fractions_of_each_set():
    rng = np.random.default_rng(0)
    groups = {"generated": rng.gamma(2, 0.4, 24), "random search": [*rng.gamma(2, 0.6, 22), np.nan], "empty": []}
    axes = figures.energy_distribution(groups).axes[0]
    assert [patch.get_data().values.sum() for patch in axes.patches] == pytest.approx([1.0, 1.0])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["generated (n = 24)", "random search (n = 22)", "median"]
    assert pixels(figures.energy_distribution({"one": [0.0]})).size
    with pytest.raises(UserError, match="no finite values"):
        figures.energy_distribution({"empty": []})


def test_relaxation_figure_marks_medians():
    axes = figures.relaxation_figure({"generated": [60, 70, 90], "random search": [150, 160, 155]}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["median 70", "median 155"]


def test_loss_curve_takes_a_table_as_csv_gives_it():
    rows = [
        {"step": "0", "score_loss": "1.0", "force_field_loss": "2.0", "validation_score": "", "seconds": "1"},
        {"step": "10", "score_loss": "0.5", "force_field_loss": "nan", "validation_score": "0.6", "seconds": "2"},
    ]
    score, field = figures.loss_curve(rows).axes
    assert [line.get_label() for line in score.lines] == ["score loss", "validation score"]
    np.testing.assert_allclose(score.lines[0].get_xydata(), [[0, 1.0], [10, 0.5]])
    np.testing.assert_allclose(field.lines[0].get_xydata(), [[0, 2.0]])
    with pytest.raises(UserError, match='"loss"'):
        figures.loss_curve([{"step": 1, "seconds": 3}])


def test_success_figure():
    curves = {"a": success_curve([1, 0, 1], [50, 60, 70]), "b": success_curve([0, 0], [200, 180])}
    axes = figures.success_figure(curves).axes[0]
    assert axes.get_xlim()[1] == 380
    assert pixels(axes.figure).size

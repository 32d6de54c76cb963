"""Tunnelling images and structure pictures show the data they claim to show, in real space and to scale."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from matplotlib.image import imread

from adlayer.analysis.references import reference
from adlayer.analysis.stm import StmImage, stm_image
from adlayer.errors import UserError
from adlayer.report.figures import _figure
from adlayer.report.pictures import common_windows, picture_sheet, save_picture, scale_bar
from adlayer.report.stm import ExperimentalCell, draw_image, experimental_cell, line_profile, real_space, stm_figure

CELL = np.array([[6.0, 0.0], [3.0, 3.0 * 3**0.5]])


def wave(order: tuple[int, int] = (1, 0)) -> StmImage:
    """A plane wave along a reciprocal vector of an oblique cell, whose values are known everywhere."""
    i, j = np.meshgrid(np.arange(60) / 60, np.arange(60) / 60, indexing="ij")
    return StmImage(np.cos(2 * np.pi * (order[0] * i + order[1] * j)), CELL, "current", "a wave")


def test_images_are_not_sheared():
    (window,) = common_windows([CELL])
    drawn = real_space(wave(), window)
    low, high = window
    ny, nx = drawn.shape
    x, y = (
        low[0] + (np.arange(nx) + 0.5) * (high[0] - low[0]) / nx,
        low[1] + (np.arange(ny) + 0.5) * (high[1] - low[1]) / ny,
    )
    vector = 2 * np.pi * np.linalg.inv(CELL)[:, 0]
    exact = np.cos(vector[0] * x + vector[1] * y[:, None])
    np.testing.assert_allclose(drawn, exact, atol=1e-5)
    assert np.abs(drawn - np.cos(vector[0] * x - vector[1] * y[:, None])).max() > 1  # mirrored
    assert nx / ny == pytest.approx((high - low)[0] / (high - low)[1], rel=0.01)


def test_window_is_common_and_holds_every_cell():
    cells = [CELL, 0.2 * CELL, np.array([[0.0, 9.0], [-20.0, 0.0]])]
    windows = common_windows(cells)
    for cell, (low, high) in zip(cells, windows, strict=True):
        corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) @ cell
        assert (corners > low).all()
        assert (corners < high).all()
        np.testing.assert_allclose(high - low, windows[0][1] - windows[0][0])


def test_line_profile():
    distance, values = line_profile(wave(), np.array([[0.0, 0.0], [12.0, 0.0]]))
    assert (distance[0], distance[-1]) == (0, 12)
    np.testing.assert_allclose(values, np.cos(2 * np.pi * distance / 6), atol=1e-5)


def test_experimental_cell_is_drawn_to_scale_along_the_structure():
    cell = experimental_cell("5.5, 6.5 120")
    assert cell == ExperimentalCell(5.5, 6.5, 120.0)
    a, b = cell.vectors(np.array([1.0, 1.0]))
    assert np.linalg.norm(a) == pytest.approx(5.5)
    assert np.linalg.norm(b) == pytest.approx(6.5)
    assert a @ b == pytest.approx(5.5 * 6.5 * np.cos(np.radians(120)))
    assert np.cross([*a, 0], [*b, 0])[2] > 0
    axes = _figure(3, 3).add_subplot()
    draw_image(axes, wave(), common_windows([CELL])[0], cell)
    corners = axes.patches[2].get_xy()
    np.testing.assert_allclose(corners[1] - corners[0], [5.5, 0], atol=1e-12)
    for text in ("5.5 6.5", "5.5 6.5 190", "0 1 90", "nan 1 90", "a b c"):
        with pytest.raises(UserError, match="experimental cell"):
            experimental_cell(text)


def test_scale_bar_has_the_length_it_states():
    for width, nanometres in ((14.0, 0.5), (30.0, 1.0), (400.0, 10.0)):
        axes = _figure(3, 3).add_subplot()
        axes.set(xlim=(-3, width - 3), ylim=(0, 10))
        scale_bar(axes)
        assert axes.texts[0].get_text() == f"{nanometres:g} nm"
        assert axes.patches[0].get_width() == pytest.approx(10 * nanometres)


def test_figure_says_what_it_is_and_has_every_panel():
    atoms = reference("p2x1-O_Ag110-added-row")
    images = [stm_image(atoms, resolution=0.3)] * 3
    line = np.array([[0.0, 0.0], [10.0, 0.0]])
    figure = stm_figure(images, [atoms] * 3, list("abc"), experiment=ExperimentalCell(4.1, 5.8, 90), line=line)
    note = figure.get_suptitle()
    assert "geometric STM model" in note
    assert "constant current" in note
    assert "experiment, 4.1 Å × 5.8 Å, 90°" in note
    assert len(figure.axes) == 3 * 3 + 1  # structure, image and colour bar of each; profiles
    profile = next(axes for axes in figure.axes if "distance" in axes.get_xlabel())
    assert [text.get_text() for text in profile.get_legend().get_texts()] == ["a", "b", "c"]
    lowest = min(line.get_ydata().min() for line in profile.lines)
    assert lowest >= -1e-3
    alone = stm_figure([stm_image(atoms, "height", resolution=0.3)])
    assert len(alone.axes) == 2
    assert "constant height" in alone.get_suptitle()
    with pytest.raises(UserError, match="no images"):
        stm_figure([])


def test_picture_sheet_has_views_legend_and_titles():
    structures = [reference(n) for n in ("p2x1-O_Ag110-added-row", "p2x2-O_Pt111-fcc")]
    figure = picture_sheet(structures, ["rows", "hollows"])
    assert len(figure.axes) == 4
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["rows", "hollows"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["Ag overlayer", "O overlayer", "layer 1 (top)"]
    assert len(labels) == len(set(labels))
    spans = {round(float(np.ptp(axes.get_xlim())), 6) for axes in figure.axes}
    assert len(spans) == 1  # one scale
    with pytest.raises(UserError, match="no structures"):
        picture_sheet([])


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_files_are_the_same_every_time(tmp_path: Path, suffix: str):
    atoms: Atoms = reference("p2x2-O_Pt111-fcc")
    for name in ("a", "b"):
        save_picture(picture_sheet([atoms]), tmp_path / f"{name}{suffix}", dpi=60)
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a{suffix}", f"b{suffix}"]
    if suffix == ".png":
        assert imread(tmp_path / "a.png").shape[0] > 100


def test_other_formats_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"end its name in \.png"):
        save_picture(picture_sheet([reference("c2x2-O_Ni100")]), tmp_path / "a.docx")

"""The geometric model of tunnelling images against closed forms, and against the same sum in reciprocal space."""

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, fcc111
from ase.data import covalent_radii

from adlayer.analysis import stm
from adlayer.analysis.references import reference
from adlayer.analysis.stm import StmImage, blur, decay_constant, stm_image
from adlayer.errors import UserError


def fourier_density(atoms: Atoms, points: np.ndarray, weights: dict[str, float], work_function: float = 4.6):
    """Sum of the tails at points (p, 3), without a set point: the two-dimensional Fourier series of each.

    An exponential tail at height h has the transform 2π α (1 + γ h) exp(−γ h) / γ³ with γ² = α² + G².
    """
    alpha = 2 * 0.5123167 * np.sqrt(work_function)  # sqrt(2 m · 1 eV) / ħ, per Å (CODATA)
    cell = atoms.cell.array[:2, :2]
    orders = np.stack(np.meshgrid(*2 * [np.arange(-24, 25)], indexing="ij"), -1).reshape(-1, 2)
    waves = 2 * np.pi * orders @ np.linalg.inv(cell).T
    waves = waves[np.linalg.norm(waves, axis=1) < 9.0]
    gamma = np.sqrt(alpha**2 + (waves**2).sum(1))
    total = np.zeros(len(points))
    for atom in atoms:
        h = (points[:, 2] - atom.position[2])[:, None]
        series = 2 * np.pi * alpha * (1 + gamma * h) * np.exp(-gamma * h) / gamma**3
        phase = np.cos((points[:, :2] - atom.position[:2]) @ waves.T)
        amplitude = weights[atom.symbol] * np.exp(alpha * covalent_radii[atom.number])
        total += amplitude * (series * phase).sum(1) / abs(np.linalg.det(cell))
    return total


def grid(image: StmImage) -> np.ndarray:
    """The points (n, m, 2) that the values of an image belong to."""
    n, m = image.values.shape
    return np.stack(np.meshgrid(np.arange(n) / n, np.arange(m) / m, indexing="ij"), -1) @ image.cell


@pytest.fixture(scope="module")
def row() -> Atoms:
    return reference("p2x1-O_Ag110-added-row")


def model_density(atoms: Atoms, points: np.ndarray) -> tuple[np.ndarray, float]:
    """Density (p,) with silver at 1 and oxygen at −0.1, and the mean of the positive part."""
    plus, minus = (fourier_density(atoms, points, w) for w in ({"Ag": 1.0, "O": 0.0}, {"Ag": 0.0, "O": 0.1}))
    return plus**2 / (plus + minus), float(plus.mean())


def largest_error(atoms: Atoms) -> tuple[float, float]:
    """Of density at constant height and of ln(density) at constant current, against the Fourier series."""
    plane = atoms.positions[:, 2].max() + 4.0
    flat = stm_image(atoms, "height", resolution=0.25)
    points = grid(flat).reshape(-1, 2)
    exact, set_point = model_density(atoms, np.column_stack([points, np.full(len(points), plane)]))
    heights = stm_image(atoms, resolution=0.25).values.ravel()
    there, _ = model_density(atoms, np.column_stack([points, heights]))
    return np.abs(exact / set_point - flat.values.ravel()).max(), np.abs(np.log(there / set_point)).max()


def test_decay_constant():
    assert decay_constant(4.6) == pytest.approx(0.5123167 * np.sqrt(4.6), rel=1e-6)
    with pytest.raises(UserError, match="work function"):
        decay_constant(-1)


def test_agrees_with_the_sum_in_reciprocal_space(row):
    density, logarithm = largest_error(row)
    assert density < 2e-6
    assert logarithm < 4e-6


def test_missing_periodic_images_would_be_noticed(row, monkeypatch):
    made = stm._tails
    monkeypatch.setattr(stm, "_tails", lambda *a: replace(made(*a), reach=6.0))
    assert min(largest_error(row)) > 1e-4


def test_one_atom_has_a_sphere_for_its_surface():
    atoms = Atoms("Ag", positions=[[3.0, 2.0, 1.0]], cell=[8.0, 8.0, 20.0], pbc=[True, True, False])
    image = stm_image(atoms, distance=8.0, work_function=46.0, resolution=0.5)
    alpha = 2 * decay_constant(46.0)
    mean = 2 * np.pi / 64 * (1 + alpha * 8) / alpha**2 * np.exp(-alpha * 8)  # without the radius, which cancels
    radius = -np.log(mean) / alpha
    d2 = ((grid(image) - [3.0, 2.0]) ** 2).sum(-1)
    close = d2 < 0.6
    assert close.sum() > 5
    np.testing.assert_allclose(image.values[close], 1.0 + np.sqrt(radius**2 - d2[close]), rtol=0, atol=1e-6)


def test_constant_height_has_the_mean_one(row):
    weights = {"O": 0.3}
    assert stm_image(row, "height", weights=weights, resolution=0.2).values.mean() == pytest.approx(1.0, abs=1e-7)
    assert stm_image(row, "height", weights={"O": -0.3}, resolution=0.2).values.mean() < 0.99


def test_cell_choice_does_not_matter(row):
    image = stm_image(row, resolution=0.2)
    double = stm_image(row.repeat((2, 1, 1)), resolution=0.2)
    np.testing.assert_allclose(double.values, np.tile(image.values, (2, 1)), atol=3e-6)
    skew = row.copy()
    skew.cell[1] = row.cell[1] - 3 * row.cell[0]
    other = stm_image(skew, resolution=0.2)
    points = np.random.default_rng(0).uniform(-20, 20, (200, 2))
    np.testing.assert_allclose(other.sample(points), image.sample(points), atol=2e-4)
    np.testing.assert_allclose(image.sample(points + 5 * row.cell.array[1, :2]), image.sample(points), atol=1e-9)
    moved, shift = row.copy(), np.array([1.3, -0.7])
    moved.positions[:, :2] += shift
    moved.wrap()
    np.testing.assert_allclose(stm_image(moved, resolution=0.2).sample(points + shift), image.sample(points), atol=2e-4)


def test_patches_and_samples_meet(row, monkeypatch):
    image = stm_image(row, resolution=0.15)
    monkeypatch.setattr(stm, "_BLOCK", 7)
    np.testing.assert_allclose(stm_image(row, resolution=0.15).values, image.values, atol=3e-6)
    np.testing.assert_allclose(image.sample(grid(image)), image.values, atol=1e-9)


def test_image_has_the_symmetry_of_the_structure():
    atoms = fcc111("Pt", (2, 2, 3), a=3.97, vacuum=8.0)
    add_adsorbate(atoms, "O", 1.2, "fcc")
    centre = atoms.positions[-1, :2]
    image = stm_image(atoms)
    points = centre + np.random.default_rng(1).uniform(-4, 4, (300, 2))

    def turned(angle: float) -> np.ndarray:
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        return image.sample(centre + (points - centre) @ np.array([[c, s], [-s, c]]))

    spread = np.ptp(image.values)
    assert np.abs(turned(120) - image.sample(points)).max() < 1e-4 * spread
    mirrored = image.sample(centre + (points - centre) * [-1, 1])
    assert np.abs(mirrored - image.sample(points)).max() < 1e-4 * spread
    assert np.abs(turned(60) - image.sample(points)).max() > 1e-3 * spread
    assert image.sample(centre) < image.values.min() + 0.05 * spread  # oxygen is dark by default
    bright = stm_image(atoms, weights={"O": 1.0})
    assert bright.sample(centre) > bright.values.max() - 1e-4


def test_blur_is_a_gaussian_of_that_width():
    cell, sigma = np.array([[6.0, 0.0], [2.0, 5.0]]), 0.5
    peak = np.zeros((60, 54))
    peak[7, 11] = 1.0
    made = blur(StmImage(peak, cell, "current", ""), sigma)
    assert made.values.sum() == pytest.approx(1.0, abs=1e-12)
    offset = grid(made) - grid(made)[7, 11]
    steps = np.stack(np.meshgrid(*2 * [np.arange(-3, 4)]), -1).reshape(-1, 2) @ cell
    squares = ((offset[:, :, None] + steps) ** 2).sum(-1)
    area = abs(np.linalg.det(cell)) / peak.size

    def gaussian(width: float) -> np.ndarray:
        return area * np.exp(-squares / (2 * width**2)).sum(-1) / (2 * np.pi * width**2)

    np.testing.assert_allclose(made.values, gaussian(sigma), atol=1e-12)
    assert np.abs(made.values - gaussian(sigma * 1.01)).max() > 1e-5
    wave = StmImage(np.cos(2 * np.pi * np.arange(60)[:, None] / 60) * np.ones(54), cell, "current", "")
    frequency = np.linalg.norm(2 * np.pi * np.linalg.inv(cell)[:, 0])
    np.testing.assert_allclose(
        blur(wave, sigma).values, wave.values * np.exp(-((sigma * frequency) ** 2) / 2), atol=1e-12
    )
    np.testing.assert_allclose(blur(wave, 0).values, wave.values, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "front"}, '"front".*current or height'),
        ({"distance": 0.0}, "distance is 0"),
        ({"resolution": float("nan")}, "resolution is nan"),
        ({"blur_width": -1.0}, "blur is -1"),
        ({"weights": {"Pd": 1.0}}, "Pd=1 names no element"),
        ({"weights": {"O": float("inf")}}, "O=inf"),
        ({"weights": {"Ag": 0.0, "O": -1.0}}, "no element .* positive weight"),
    ],
)
def test_mistakes_are_named(row, arguments, message):
    with pytest.raises(UserError, match=message):
        stm_image(row, **{"resolution": 0.5, **arguments})


def test_dark_elements_never_tear_the_image(row):
    low = row.copy()
    low.positions[low.symbols == "O", 2] += 3.0  # stands high, and takes away more than there is
    for weight in (-0.1, -1.0, -30.0):
        image = stm_image(low, weights={"O": weight}, resolution=0.3)
        oxygen = low.positions[low.symbols == "O"][0, :2]
        assert np.isfinite(image.values).all()
        assert image.sample(oxygen) < image.values.min() + 0.05 * np.ptp(image.values)


def test_surfaces_must_be_closed_and_flat():
    atoms = Atoms("Ag", cell=[20.0, 20.0, 20.0])
    with pytest.raises(UserError, match="falls through holes"):
        stm_image(atoms, work_function=46.0, resolution=1.0)
    with pytest.raises(UserError, match="xy plane"):
        stm_image(Atoms("Ag", cell=[[3, 0, 1], [0, 3, 0], [0, 0, 9]]))
    with pytest.raises(UserError, match="no atoms"):
        stm_image(Atoms(cell=[3, 3, 9]))

r"""Scanning tunnelling images by a geometric model; :mod:`adlayer.analysis.ldos` takes a density of states instead.

After J. Tersoff and D. R. Hamann (Phys. Rev. B 31, 805 (1985)) the current at small bias is proportional to the local
density of states at the tip, which decays into the vacuum as :math:`e^{-2\kappa z}`. The geometric model puts one such
tail on each atom,

.. math:: \rho_\pm(r) = \sum_{\pm w_i > 0} |w_{Z_i}| \exp[-2\kappa (|r - R_i| - r_{Z_i})], \qquad
   \kappa = \sqrt{2 m \phi} / \hbar,

with covalent radii :math:`r_Z` and the work function :math:`\phi` (1.10 per Å at 4.6 eV). The sum runs over all
periodic images in the plane. Weights :math:`w_Z` stand for the bias: how strongly an element contributes at the
energies that take part. A negative weight takes density away, as an adsorbate does whose states interfere destructively
with the metal's, so that it looks like a dent: the density is

.. math:: \rho = \frac{\rho_+^2}{\rho_+ + \rho_-},

which is :math:`\rho_+ - \rho_-` where little is taken, and always positive. **The model knows where atoms are and
nothing of electronic structure**; whether an element is bright or dark is put in, not predicted.

The mean of :math:`\rho_+` over a plane at the height :math:`h_i` above each atom is known in closed form (area A of the
cell, :math:`\alpha = 2\kappa`),

.. math:: \bar\rho_+ = \frac{2\pi}{A} \sum_{w_i > 0} w_i e^{\alpha r_i} \frac{1 + \alpha h_i}{\alpha^2} e^{-\alpha h_i}.

Its value in the plane at ``distance`` above the topmost atom is the set point and the unit of density. Constant
current: the height z(x, y), Å on the structure's axis, where :math:`\rho` has that value as the tip comes from above.
Constant height: :math:`\rho` in that plane, so that the image has the mean 1 if no weight is negative.

Images lie on the unit cell: ``values[i, j]`` belongs to the point ``(i/n, j/m)`` of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from scipy.constants import angstrom, electron_mass, electron_volt, hbar
from scipy.ndimage import map_coordinates
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from adlayer.analysis.registry import reduce_basis
from adlayer.errors import UserError

WORK_FUNCTION = 4.6
"""Default work function, eV: close to that of Ag(111)."""

DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType({"H": -0.1, "C": -0.1, "N": -0.1, "O": -0.1})
"""Weights of elements; all others have 1. At usual biases these adsorbates are mostly dark on a metal (P. Sautet, Chem.
Rev. 97, 1097 (1997)); there are exceptions, so give weights where you know better."""

MODES = ("current", "height")
_MOST_POINTS = 4_000_000  # of an image
_BLOCK = 24  # points along each side of the patches that are solved at a time


@dataclass(frozen=True)
class StmImage:
    """An image on one unit cell.

    Attributes
    ----------
    values
        (n, m) heights of the tip, Å (constant current), or densities in units of their set point (constant height).
    cell
        (2, 2) vectors of the surface cell as rows, Å.
    mode
        ``"current"`` (constant current) or ``"height"`` (constant height).
    model
        What it comes from, in words.
    """

    values: np.ndarray
    cell: np.ndarray
    mode: str
    model: str

    @property
    def unit(self) -> str:
        """Unit of the values."""
        return "Å" if self.mode == "current" else "1"

    def sample(self, points: np.ndarray) -> np.ndarray:
        """Values at any points (..., 2), Å, by periodic cubic splines."""
        fractional = np.asarray(points) @ np.linalg.inv(self.cell)
        places = fractional.reshape(-1, 2) * self.values.shape
        return map_coordinates(self.values, places.T, order=3, mode="grid-wrap").reshape(fractional.shape[:-1])


def check_mode(mode: str) -> None:
    """Raise :class:`UserError` if there is no such mode of imaging."""
    if mode not in MODES:
        raise UserError(f'there is no mode "{mode}" of imaging: choose current or height')


def decay_constant(work_function: float = WORK_FUNCTION) -> float:
    """Decay constant κ of a wave function in the vacuum, per Å, for a work function in eV.

    >>> round(decay_constant(4.6), 3)
    1.099
    """
    if not (math.isfinite(work_function) and work_function > 0):
        raise UserError(f"the work function is {work_function:g} eV: give a positive number")
    return math.sqrt(2 * electron_mass * work_function * electron_volt) / hbar * angstrom


def blur(image: StmImage, sigma: float) -> StmImage:
    """The image convolved with a Gaussian of standard deviation ``sigma`` (Å), periodically; the mean stays."""
    if not (math.isfinite(sigma) and sigma >= 0):
        raise UserError(f"the blur is {sigma:g} Å: give zero or a positive number")
    n, m = image.values.shape
    orders = np.stack(np.meshgrid(np.fft.fftfreq(n, 1 / n), np.fft.rfftfreq(m, 1 / m), indexing="ij"), -1)
    waves = 2 * np.pi * orders @ np.linalg.inv(image.cell).T  # (n, m // 2 + 1, 2), per Å
    damping = np.exp(-0.5 * sigma**2 * (waves**2).sum(-1))
    return replace(image, values=np.fft.irfft2(np.fft.rfft2(image.values) * damping, s=(n, m)))


@dataclass(frozen=True)
class _Tails:
    """The atoms that contribute, in units of the set point: tails exp(strength − α |r − position|)."""

    positions: np.ndarray  # (n, 3)
    strength: np.ndarray  # (n,), ln |w| + α r_Z − ln(set point)
    bright: np.ndarray  # (n,), whether the weight is positive
    cell: np.ndarray  # (2, 2)
    alpha: float
    plane: float  # height of the plane that defines the set point
    reach: float  # lateral distance beyond which images are left out

    def over(self, points: np.ndarray) -> _Patch:
        """What a patch of points (p, 2) sees: all periodic images within reach."""
        centre = (points.max(0) + points.min(0)) / 2
        radius = np.linalg.norm(points - centre, axis=1).max() + self.reach
        widths = abs(np.linalg.det(self.cell)) / np.linalg.norm(self.cell[::-1], axis=1)
        n, m = np.ceil(radius / widths).astype(int) + 1
        shifts = np.stack(np.meshgrid(np.arange(-n, n + 1), np.arange(-m, m + 1), indexing="ij"), -1).reshape(-1, 2)
        fractional = (self.positions[:, :2] - centre) @ np.linalg.inv(self.cell)
        lateral = ((fractional - np.round(fractional))[:, None] + shifts) @ self.cell  # (n, shifts, 2)
        index, shift = np.nonzero((lateral**2).sum(-1) <= radius**2)
        squares = cdist(points - centre, lateral[index, shift], "sqeuclidean")
        return _Patch(squares, self.positions[index, 2], self.strength[index], self.bright[index], self.alpha)


@dataclass(frozen=True)
class _Patch:
    """Points (p) and the tails of the images (q) round them."""

    lateral: np.ndarray  # (p, q) squared lateral distances, Å²
    heights: np.ndarray  # (q,)
    strength: np.ndarray  # (q,)
    bright: np.ndarray  # (q,)
    alpha: float

    def log_density(self, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithm of the density (k,) over some of the points (k,) at heights (k,), and its slope along z."""
        rise = z[:, None] - self.heights  # (k, q)
        distance = np.sqrt(self.lateral[rows] + rise**2)
        terms = np.exp(self.strength - self.alpha * distance)
        slopes = -self.alpha * terms * rise / np.maximum(distance, 1e-12)
        total, plus = terms.sum(axis=1), terms @ self.bright
        return 2 * np.log(plus) - np.log(total), 2 * (slopes @ self.bright) / plus - slopes.sum(axis=1) / total


def element_weights(atoms: Atoms, weights: Mapping[str, float] | None = None) -> np.ndarray:
    """Weight (n,) of each atom: as given for its element, else as in :data:`DEFAULT_WEIGHTS`, else 1.

    Raises
    ------
    UserError
        If a weight is not finite, or names an element that is not there, or none is positive.
    """
    given = dict(weights or {})
    symbols = atoms.get_chemical_symbols()
    for element, weight in given.items():
        if element not in symbols:
            raise UserError(f"the weight {element}={weight:g} names no element of {atoms.symbols}: leave it out")
        if not math.isfinite(weight):
            raise UserError(f"the weight {element}={weight:g} is not allowed: give a finite number")
    found = np.array([given.get(s, DEFAULT_WEIGHTS.get(s, 1.0)) for s in symbols])
    if not (found > 0).any():
        raise UserError(f"no element of {atoms.symbols} has a positive weight: give one")
    return found


def surface_cell(atoms: Atoms) -> np.ndarray:
    """(2, 2) in-plane vectors as rows, Å.

    Raises
    ------
    UserError
        If there are no atoms, or the first two vectors do not span a plane of constant z.
    """
    cell = np.asarray(atoms.cell)[:2]
    if not len(atoms):
        raise UserError("the structure has no atoms: give one that has")
    if np.abs(cell[:, 2]).max() > 1e-6 or abs(np.linalg.det(cell[:, :2])) < 1e-6:
        raise UserError(f"the first two cell vectors of {atoms.symbols} do not span the xy plane: give a slab along z")
    return np.array(cell[:, :2])


def _tails(
    atoms: Atoms, weights: Mapping[str, float] | None, kappa: float, distance: float, tolerance: float
) -> _Tails:
    """The contributing atoms, scaled by the set point; what lies out of reach adds less than ``tolerance`` to it."""
    cell, alpha, w = surface_cell(atoms), 2 * kappa, element_weights(atoms, weights)
    positions, radii, w = atoms.positions[w != 0], covalent_radii[atoms.numbers[w != 0]], w[w != 0]
    plane = float(atoms.positions[:, 2].max()) + distance
    depth = plane - positions[:, 2]
    strength, bright = np.log(np.abs(w)) + alpha * radii, w > 0
    per_area = math.log(2 * math.pi / abs(np.linalg.det(cell)) / alpha**2)
    means = strength + np.log1p(alpha * depth) - alpha * depth
    set_point = per_area + float(logsumexp(means[bright]))
    reach, factor = distance, per_area + logsumexp(strength) - set_point - math.log(tolerance)
    while factor + math.log1p(alpha * reach) > alpha * reach:  # the integral of the tails farther away
        reach += 0.25
    return _Tails(positions, strength - set_point, bright, cell, alpha, plane, reach + _covering_radius(cell))


def _covering_radius(cell: np.ndarray) -> float:
    """Greatest distance of a point from the lattice: the circumradius of the acute triangle of its shortest vectors.

    >>> _covering_radius(np.array([[3.0, 0.0], [0.0, 4.0]]))
    2.5
    """
    u, v = reduce_basis(cell)
    third = min(np.linalg.norm(u - v), np.linalg.norm(u + v))
    return float(np.linalg.norm(u) * np.linalg.norm(v) * third / (2 * abs(np.linalg.det([u, v]))))


def _heights(patch: _Patch, start: float, tolerance: float) -> np.ndarray:
    """Heights at which the tip, coming down on each point, first meets the set point: Newton's steps in a bracket."""
    z = np.full(len(patch.lateral), start)
    low, high = _bracket(patch, z)
    active = np.arange(len(z))
    while len(active):
        value, slope = patch.log_density(active, z[active])
        inside = value > 0
        low[active[inside]], high[active[~inside]] = z[active[inside]], z[active[~inside]]
        new = z[active] - np.divide(value, slope, out=np.full_like(value, np.inf), where=slope < 0)
        outside = ~((new >= low[active]) & (new <= high[active]))
        new[outside] = (low[active[outside]] + high[active[outside]]) / 2
        moved, z[active] = np.abs(new - z[active]), new
        active = active[moved > tolerance]
    return z


def _bracket(patch: _Patch, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Heights inside and outside the set point's surface; ``start`` lies above all atoms, the density falls there."""
    low, high, rows = start.copy(), start.copy(), np.arange(len(start))
    value, _ = patch.log_density(rows, start)
    above, below = rows[value > 0], rows[value <= 0]
    while len(above):
        low[above], high[above] = high[above], high[above] + 1.0
        above = above[patch.log_density(above, high[above])[0] > 0]
    while len(below):
        high[below], low[below] = low[below], low[below] - 0.5
        below = below[patch.log_density(below, low[below])[0] <= 0]
        if len(below) and low[below].min() < patch.heights.min():
            raise UserError("the tip falls through holes of the surface: put it farther away with a larger distance")
    return low, high


def _patches(n: int, m: int) -> Iterator[tuple[slice, slice]]:
    """Square patches that tile an (n, m) grid."""
    for i in range(0, n, _BLOCK):
        for j in range(0, m, _BLOCK):
            yield slice(i, min(i + _BLOCK, n)), slice(j, min(j + _BLOCK, m))


def stm_image(
    atoms: Atoms,
    mode: str = "current",
    *,
    distance: float = 4.0,
    weights: Mapping[str, float] | None = None,
    work_function: float = WORK_FUNCTION,
    blur_width: float = 0.0,
    resolution: float = 0.1,
    tolerance: float = 1e-6,
) -> StmImage:
    """Geometric image of a structure.

    Parameters
    ----------
    atoms
        Periodic along the first two cell vectors, which lie in the xy plane; the vacuum is above.
    mode
        ``"current"``: heights at constant current; ``"height"``: densities at constant height.
    distance
        Of the plane that defines the set point from the topmost atom, Å; at constant height the tip stays in it.
    weights
        Weight of elements, in place of :data:`DEFAULT_WEIGHTS`.
    work_function
        eV; it sets the decay.
    blur_width
        Standard deviation of the Gaussian that stands for the tip's width, Å.
    resolution
        Largest distance of the image's points along the cell vectors, Å.
    tolerance
        Of densities, relative to the set point, and of heights, Å.

    Returns
    -------
    StmImage
        Values in the order of the cell vectors.

    Raises
    ------
    UserError
        If an argument is out of range, or the surface has holes through which the tip falls.
    """
    check_mode(mode)
    for name, value in (("distance", distance), ("resolution", resolution), ("tolerance", tolerance)):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"the {name} is {value:g}: give a positive number")
    kappa = decay_constant(work_function)
    tails = _tails(atoms, weights, kappa, distance, tolerance)
    n, m = np.ceil(np.linalg.norm(tails.cell, axis=1) / resolution - 1e-9).astype(int)
    if n * m > _MOST_POINTS:
        raise UserError(f"the resolution of {resolution:g} Å asks for {n * m} points: give a coarser one, such as 0.1")
    fractional = np.stack(np.meshgrid(np.arange(n) / n, np.arange(m) / m, indexing="ij"), -1)
    points = fractional @ tails.cell  # (n, m, 2)
    values = np.empty((n, m))
    for patch in _patches(n, m):
        flat = points[patch].reshape(-1, 2)
        seen = tails.over(flat)
        if mode == "current":
            found = _heights(seen, tails.plane, tolerance)
        else:
            found = np.exp(seen.log_density(np.arange(len(flat)), np.full(len(flat), tails.plane))[0])
        values[patch] = found.reshape(values[patch].shape)
    model = f"geometric STM model, κ = {kappa:.2f} Å⁻¹"
    return blur(StmImage(values, tails.cell, mode, model), blur_width)

"""Motifs: structures made from the same building blocks, in cells of any size.

The surroundings of an overlayer atom i, substrate included, are described by what no rotation, reflection or
renumbering changes: the power spectrum of its neighbours' smoothed density (A. P. Bartók et al., Phys. Rev. B 87,
184115 (2013)). With radial functions ``R_f(r) = exp(−(r − r_f)²/2σ²) f_c(r)``, one set for each element, a cosine
cutoff ``f_c`` and Legendre polynomials ``P_l``, the addition theorem of spherical harmonics gives

    p_i(f, g, l) = Σ over neighbours j, k of R_f(r_ij) R_g(r_ik) P_l(cos θ_jik),   scaled to unit length.

A structure's fingerprint is, for each element of the overlayer, the mean of ``p_i`` over its atoms of that element:
averages do not know how large the cell is, so that a structure and its supercell have the same one, and structures that
share their building blocks in other arrangements have close ones. Mirror images share a motif; so may phases that
differ only beyond the cutoff. Fingerprints are clustered by average linkage, cut at a Euclidean distance.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import eval_legendre

from adlayer.errors import UserError

CUTOFF = 4.0
"""Å: beyond the second neighbours of a metal, so that the way blocks are joined counts too."""
THRESHOLD = 0.2
"""Distance of fingerprints below which structures share a motif."""
_CENTRES = np.array([1.4, 2.1, 2.8, 3.5])  # Å, of the radial functions
_WIDTH = 0.4  # Å
_DEGREES = 5  # Legendre polynomials, from 0


@dataclass(frozen=True)
class Motif:
    """Structures made from the same building blocks.

    Attributes
    ----------
    label
        1, 2, …: from the lowest representative up.
    members
        Indices of the structures.
    representative
        Index of the lowest in energy, the first where energies are unknown.
    count
        Number of members.
    mean_energy
        Mean of the known energies, in their unit; ``nan`` if none is known.
    """

    label: int
    members: list[int]
    representative: int
    count: int
    mean_energy: float


def environments(atoms: Atoms, elements: Sequence[int], cutoff: float = CUTOFF) -> np.ndarray:
    """Power spectra of the surroundings of the overlayer's atoms.

    Parameters
    ----------
    atoms
        With tags, periodic in the plane.
    elements
        Atomic numbers of neighbours that count.
    cutoff
        Å.

    Returns
    -------
    numpy.ndarray
        (N, F) unit vectors, in the order of the overlayer's atoms; zero for an atom without neighbours.
    """
    adsorbed = np.flatnonzero(atoms.get_tags() == 0)
    cell = np.asarray(atoms.cell[:2, :2], dtype=float)
    spacing = abs(np.linalg.det(cell)) / np.linalg.norm(cell[::-1], axis=1)  # between lattice lines, Å
    extent = np.ptp(atoms.positions[:, :2] @ np.linalg.inv(cell), axis=0)
    reach = [math.ceil(cutoff / s + e) for s, e in zip(spacing, extent, strict=True)]
    images = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach)))) @ cell  # (m, 2)
    neighbours = (atoms.positions[:, None] + np.pad(images, ((0, 0), (0, 1)))).reshape(-1, 3)
    numbers = np.repeat(atoms.numbers, len(images))
    vectors = neighbours - atoms.positions[adsorbed, None]  # (N, M, 3)
    lengths = np.linalg.norm(vectors, axis=-1)
    near = (lengths < cutoff) & (lengths > 1e-6)
    most = int(near.sum(axis=1).max(initial=0))
    order = np.argsort(~near, axis=1, kind="stable")[:, :most]  # neighbours first, then padding
    lengths = np.where(near, lengths, cutoff)
    lengths, vectors = np.take_along_axis(lengths, order, 1), np.take_along_axis(vectors, order[..., None], 1)
    smooth = np.where(lengths < cutoff, 0.5 + 0.5 * np.cos(np.pi * lengths / cutoff), 0.0)
    radial = np.exp(-((lengths[..., None] - _CENTRES) ** 2) / (2 * _WIDTH**2)) * smooth[..., None]  # (N, K, 4)
    of_element = numbers[order][..., None] == np.asarray(elements)  # (N, K, Z)
    radial = (of_element[..., None] * radial[:, :, None]).reshape(*order.shape, len(elements) * len(_CENTRES))
    directions = vectors / lengths[..., None].clip(1e-6)
    cosines = directions @ directions.swapaxes(1, 2)  # (N, K, K)
    upper = np.triu_indices(radial.shape[-1])
    spectra = [
        (radial.swapaxes(1, 2) @ eval_legendre(degree, cosines) @ radial)[:, *upper] for degree in range(_DEGREES)
    ]
    spectrum = np.concatenate(spectra, axis=1)
    return np.asarray(spectrum / np.linalg.norm(spectrum, axis=1, keepdims=True).clip(1e-12))


def fingerprints(structures: Sequence[Atoms], cutoff: float = CUTOFF) -> np.ndarray:
    """Fingerprints (n, F) of structures, to be compared by Euclidean distance; see the module's docstring."""
    elements = sorted({int(z) for atoms in structures for z in atoms.numbers})
    own = sorted({int(z) for atoms in structures for z in atoms.numbers[atoms.get_tags() == 0]})
    rows = []
    for atoms in structures:
        spectra = environments(atoms, elements, cutoff)
        numbers = atoms.numbers[atoms.get_tags() == 0]
        means = [spectra[numbers == z].mean(axis=0) if z in numbers else np.zeros(spectra.shape[1]) for z in own]
        rows.append(np.concatenate([*means, []]))
    return np.array(rows)


def motifs(
    structures: Sequence[Atoms],
    energies: Sequence[float] | np.ndarray | None = None,
    threshold: float = THRESHOLD,
    cutoff: float = CUTOFF,
) -> list[Motif]:
    """Structures grouped by their building blocks.

    Parameters
    ----------
    structures
        With tags; compositions and cells may differ. Time and memory grow with the square of their number (5,000:
        a few seconds, 0.1 GB).
    energies
        (n,) by which to rank, ``nan`` where unknown: such that structures of different cells and compositions can
        be compared, as energies per area above the lowest are. Default: unknown.
    threshold
        Distance of fingerprints at which clusters are parted.
    cutoff
        Å to which surroundings count.

    Raises
    ------
    UserError
        If the numbers of structures and energies differ.
    """
    known = np.full(len(structures), np.nan) if energies is None else np.asarray(energies, dtype=float)
    if len(known) != len(structures):
        raise UserError(f"{len(known)} energies do not belong to {len(structures)} structures: give one for each")
    if len(structures) == 0:
        return []
    vectors = fingerprints(structures, cutoff)
    clusters = np.ones(1, dtype=int)
    if len(structures) > 1:
        clusters = fcluster(linkage(vectors, "average"), threshold, "distance")
    rank = np.where(np.isnan(known), np.inf, known)
    groups = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    groups.sort(key=lambda group: (rank[group].min(), group[0]))
    return [
        Motif(
            label=label,
            members=[int(i) for i in group],
            representative=int(group[rank[group].argmin()]),
            count=len(group),
            mean_energy=_mean_of_known(known[group]),
        )
        for label, group in enumerate(groups, 1)
    ]


def _mean_of_known(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan

"""Numbers that place structures on a map: heights of the overlayer, and principal components of fingerprints.

Principal components are the projections of features about their mean on the directions of largest variance, each with
the sign that makes its largest loading positive (K. Pearson, Phil. Mag. 2, 559 (1901)).
"""

from __future__ import annotations

import numpy as np
from ase import Atoms


def overlayer_heights(atoms: Atoms) -> np.ndarray:
    """Heights (n,) of the overlayer atoms above the mean of the top substrate layer, Å; absolute without substrate.

    Parameters
    ----------
    atoms
        With tags.
    """
    tags, z = atoms.get_tags(), atoms.positions[:, 2]
    return np.asarray(z[tags == 0] - (z[tags == 1].mean() if (tags == 1).any() else 0.0))


def principal_components(features: np.ndarray, k: int = 2) -> np.ndarray:
    """Coordinates (n, k) along the ``k`` directions of largest variance of ``features`` (n, d).

    Directions along which nothing varies give zeros.

    >>> principal_components(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])).tolist()
    [[-2.0, 0.0], [0.0, 0.0], [2.0, 0.0]]
    """
    centred = features - features.mean(axis=0)
    _, values, loadings = np.linalg.svd(centred, full_matrices=False)
    loadings = loadings[:k][values[:k] > 1e-9 * max(1.0, float(np.abs(features).max(initial=0.0)))]
    coordinates = np.zeros((len(features), k))
    if len(loadings):
        largest = np.abs(loadings).argmax(axis=1)
        loadings = loadings * np.sign(loadings[np.arange(len(loadings)), largest])[:, None]
        coordinates[:, : len(loadings)] = centred @ loadings.T
    return coordinates

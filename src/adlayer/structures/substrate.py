"""Substrates: crystal surfaces with tagged layers, fixed layers and a confinement window.

Conventions (ASE's): atoms of the substrate carry ``tags`` 1, 2, … from the top layer down, atoms of the
overlayer 0; ``FixAtoms`` says what a relaxation keeps fixed; slabs are periodic in x and y only; the first cell
vector lies along x; on fcc(110) it is the short one, along the close-packed rows. ``info["confinement"]`` is the
window ``[z_lo, z_hi]`` (Å, absolute z) in which the overlayer lives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bcc100, bcc110, fcc100, fcc110, fcc111, hcp0001, make_supercell
from ase.constraints import FixAtoms
from ase.data import atomic_numbers, covalent_radii, reference_states

from adlayer.errors import UserError
from adlayer.structures.superstructure import superstructure_matrix

_BUILDERS: dict[tuple[str, str], Callable[..., Atoms]] = {
    ("fcc", "111"): fcc111,
    ("fcc", "100"): fcc100,
    ("fcc", "110"): fcc110,
    ("bcc", "110"): bcc110,
    ("bcc", "100"): bcc100,
    ("hcp", "0001"): hcp0001,
}
_BOTTOM_MARGIN = 1.0  # Å below the lowest layer
_TOP_MARGIN = 10.0  # Å above the window
_LEAST_VACUUM = 4.0  # Å, more than there is between the layers of any crystal
_MOST_ATOMS = 100_000
_CLOSEST, _FARTHEST = 0.6, 2.0  # (1×1) vectors in units of twice the covalent radius
_OVERLAP = 0.6  # fraction of the sum of covalent radii below which two atoms overlap


def _reference(element: str) -> dict[str, Any]:
    """ASE's experimental crystal structure of an element, empty where it has none."""
    return dict(reference_states[atomic_numbers[element]] or {})


def parse_surface(surface: str) -> tuple[str, str, str]:
    """Element, crystal structure and Miller indices of a surface such as ``"Ag(111)"`` or ``"Fe bcc(110)"``.

    >>> parse_surface("Ag(111)")
    ('Ag', 'fcc', '111')
    """
    match = re.fullmatch(r"([A-Z][a-z]?)[\s-]*(fcc|bcc|hcp)?\(?(\d{3,4})\)?", surface.strip())
    if match is None:
        raise UserError(f'surface "{surface}" is not understood: write it like "Ag(111)" or "Fe bcc(110)"')
    element, structure, indices = str(match[1]), match[2], str(match[3])
    if element not in atomic_numbers:
        raise UserError(f'surface "{surface}" names an unknown element "{element}": use a chemical symbol such as Ag')
    if structure is None:
        structure = str(_reference(element).get("symmetry", ""))
    if (structure, indices) not in _BUILDERS:
        known = ", ".join(f"{s}({i})" for s, i in _BUILDERS)
        raise UserError(
            f'surface "{surface}" ({structure or "unknown"} crystal) cannot be built: '
            f"known are {known}; pass others with --from FILE"
        )
    return element, structure, indices


def layer_tags(z: np.ndarray, tolerance: float = 0.8) -> np.ndarray:
    """Layer number of each atom, 1 at the top: gaps above ``tolerance`` (Å) between heights ``z`` (N,) part layers.

    >>> layer_tags(np.array([0.0, 2.4, 2.5, 4.8])).tolist()
    [3, 2, 2, 1]
    """
    order = np.argsort(-z)
    tags = np.empty(len(z), dtype=int)
    tags[order] = 1 + np.concatenate([[0], np.cumsum(-np.diff(z[order]) > tolerance)])
    return tags


def window_above(atoms: Atoms, window: tuple[float, float]) -> list[float]:
    """The absolute confinement ``[z_lo, z_hi]`` (Å) of a window given above the mean height of the top layer."""
    lo, hi = window
    if not (np.isfinite([lo, hi]).all() and lo < hi):
        raise UserError(
            f"window {lo:g} {hi:g} is empty: give two heights above the top layer in Å, the lower one first"
        )
    top = float(atoms.positions[atoms.get_tags() == 1, 2].mean())
    return [round(top + lo, 6), round(top + hi, 6)]


def _lay_along_x(atoms: Atoms) -> None:
    """Turn the slab so that its first cell vector lies along x."""
    a = atoms.cell[0]
    if abs(np.arctan2(a[1], a[0])) > 1e-12:
        atoms.rotate(-np.degrees(np.arctan2(a[1], a[0])), "z", rotate_cell=True)


def build_substrate(
    surface: str,
    cell: str = "p(1x1)",
    *,
    layers: int = 3,
    fixed_layers: int = 1,
    lattice: float | None = None,
    covera: float | None = None,
    window: tuple[float, float] = (1.0, 5.0),
) -> Atoms:
    """A substrate from the name of its surface.

    Parameters
    ----------
    surface
        ``"Ag(111)"``: element and Miller indices, optionally with the crystal structure.
    cell
        Superstructure: Wood's notation or a matrix, see :func:`superstructure_matrix`.
    layers, fixed_layers
        Number of layers, and how many of the lowest a relaxation keeps fixed.
    lattice, covera
        Lattice constant in Å (default: ASE's experimental reference) and c/a of hcp crystals.
    window
        Confinement in Å above the top layer.

    Returns
    -------
    ase.Atoms
        With ``tags``, ``FixAtoms``, ``info["confinement"]`` and ``info["superstructure"]``.

    Raises
    ------
    UserError
        For a surface, cell, window or number of layers that cannot be built.
    """
    element, structure, indices = parse_surface(surface)
    if layers < 1:
        raise UserError(f"{layers} layers make no substrate: ask for at least 1")
    if lattice is not None and not lattice > 0:
        raise UserError(f"lattice constant {lattice:g} Å is not positive: give one in Å, such as 4.167")
    reference = _reference(element)
    if lattice is None and reference.get("symmetry") != structure:
        raise UserError(f'"{surface}" has no known {structure} lattice constant: give --lattice in Å')
    a: float = reference["a"] if lattice is None else lattice
    arguments = {"a": a}
    if structure == "hcp":
        arguments["c"] = a * (covera or reference.get("c/a") or np.sqrt(8 / 3))
    slab = _BUILDERS[structure, indices](element, (1, 1, layers), **arguments)
    if (structure, indices) == ("fcc", "110"):  # a1 along the rows, as the field names superstructures; ASE's a2
        slab.set_cell([slab.cell[1], -slab.cell[0], slab.cell[2]])
    apart = float(np.linalg.norm(slab.cell.array[:2], axis=1).min())
    if not _CLOSEST < apart / (2 * covalent_radii[slab.numbers[0]]) < _FARTHEST:
        raise UserError(f"lattice constant {a:g} Å puts neighbours {apart:.3g} Å apart: give one in Å, such as 4.167")
    return prepare_substrate(slab, cell, fixed_layers=fixed_layers, window=window, name=f"{element}({indices})")


def prepare_substrate(
    slab: Atoms,
    cell: str = "p(1x1)",
    *,
    fixed_layers: int = 1,
    window: tuple[float, float] = (1.0, 5.0),
    name: str | None = None,
) -> Atoms:
    """A substrate from any slab: repeated, laid along x, tagged, fixed, with vacuum and window.

    The slab's own in-plane cell counts as (1×1). Arguments as in :func:`build_substrate`.
    """
    if len(slab) == 0:
        raise UserError("the slab holds no atoms: give a file with a crystal surface")
    if not has_plane_cell(slab):
        raise UserError("the slab has no cell in the plane: give a file with two lattice vectors in x and y")
    slab = slab.copy()
    _unwrap(slab)
    slab.set_constraint()
    slab.calc = None
    slab.cell[:2, 2] = 0.0
    slab.cell[2] = [0.0, 0.0, 1.0]
    slab.pbc = (True, True, False)
    matrix = superstructure_matrix(cell, slab.cell[:2, :2])
    n_atoms = len(slab) * round(abs(float(np.linalg.det(matrix))))
    if n_atoms > _MOST_ATOMS:
        raise UserError(
            f"superstructure {cell} would have {n_atoms} atoms, more than {_MOST_ATOMS}: ask for a smaller one"
        )
    extended = np.eye(3, dtype=int)
    extended[:2, :2] = matrix
    substrate = make_supercell(slab, extended)
    _lay_along_x(substrate)
    substrate.wrap(eps=1e-6)
    substrate.positions[:, 2] += _BOTTOM_MARGIN - substrate.positions[:, 2].min()
    tags = layer_tags(substrate.positions[:, 2])
    if not 0 <= fixed_layers <= tags.max():
        raise UserError(
            f"{fixed_layers} fixed layers do not fit a slab of {tags.max()}: fix between 0 and {tags.max()}"
        )
    substrate.set_tags(tags)
    # Deterministic order: from the bottom layer up, as ASE builds its slabs.
    substrate = substrate[np.argsort(-tags, kind="stable")]
    substrate.set_constraint(FixAtoms(mask=substrate.get_tags() > tags.max() - fixed_layers))
    confinement = window_above(substrate, window)
    substrate.cell[2] = [0.0, 0.0, confinement[1] + _TOP_MARGIN]
    info = {"confinement": confinement, "superstructure": matrix.tolist()}
    if name:
        info["substrate"] = name
    substrate.info = info
    check_substrate(substrate)
    return substrate


def _unwrap(slab: Atoms) -> None:
    """Bring atoms that lie across the cell's boundary along z to the others, where the slab is periodic there.

    Raises
    ------
    UserError
        If there is no vacuum.
    """
    c = slab.cell.array[2]
    if not (slab.pbc[2] and c[2] > 0):
        return
    heights = np.sort(slab.positions[:, 2] % c[2])
    gaps = np.diff(heights, append=heights[0] + c[2])
    widest = int(np.argmax(gaps))
    if gaps[widest] < _LEAST_VACUUM:
        raise UserError(
            f"the slab is a bulk crystal, with {gaps[widest]:.1f} Å between its layers at most: "
            "cut a surface with vacuum from it, such as by ase.build.surface"
        )
    bottom = heights[(widest + 1) % len(heights)]
    slab.positions -= np.floor((slab.positions[:, 2] - bottom) / c[2] + 1e-9)[:, None] * c


def has_plane_cell(atoms: Atoms) -> bool:
    """Whether the first two cell vectors span the plane of x and y."""
    return abs(float(np.linalg.det(atoms.cell.array[:2, :2]))) >= 1e-6


def fixed_mask(atoms: Atoms) -> np.ndarray:
    """Mask (n,) of the atoms under ``FixAtoms``."""
    mask = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            mask[constraint.index] = True
    return mask


def check_substrate(atoms: Atoms) -> None:
    """Refuse what cannot serve as a substrate, in one sentence.

    Raises
    ------
    UserError
        If there are no substrate atoms (tags ≥ 1), atoms overlap, or the confinement is missing or empty.
    """
    if not np.any(atoms.get_tags() >= 1):
        raise UserError("the structure has no substrate: tag its layers 1, 2, … from the top (overlayer atoms 0)")
    if not has_plane_cell(atoms):
        raise UserError("the substrate has no cell in the plane: give two lattice vectors in x and y")
    given = atoms.info.get("confinement")
    try:
        window = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        window = np.zeros(0)
    if window.shape != (2,) or not window[0] < window[1]:
        raise UserError(f"the substrate's confinement is {given}: set info['confinement'] to [z_lo, z_hi] in Å")
    from adlayer.structures.placement import closest_contact  # cycle-free at run time: placement needs no substrate

    contact = closest_contact(atoms)
    if contact is not None and contact[2] < _OVERLAP:
        i, j, ratio = contact
        raise UserError(
            f"substrate atoms {i} and {j} overlap ({ratio:.2f} of the sum of their covalent radii): mend the structure"
        )

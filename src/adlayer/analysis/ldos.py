"""Scanning tunnelling images from a calculated density of states, through :class:`ase.dft.stm.STM`.

The current is proportional to the local density of states between the Fermi level and the bias (J. Tersoff and
D. R. Hamann, Phys. Rev. B 31, 805 (1985)). The set point is its mean in a plane above the surface, as in the geometric
model of :mod:`adlayer.analysis.stm`; grids and axes are ASE's, linear in z between grid points.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from ase import Atoms

from adlayer.analysis.stm import StmImage, blur, check_mode
from adlayer.errors import UserError


def stm_from_calculator(
    source: Atoms | str | os.PathLike[str],
    mode: str = "current",
    *,
    bias: float | None = None,
    distance: float = 4.0,
    plane: float | None = None,
    use_density: bool = False,
    blur_width: float = 0.0,
) -> StmImage:
    """Image from the local density of states of a calculation, through :class:`ase.dft.stm.STM`.

    The set point is the mean density of states in a plane, as in the geometric model.

    Parameters
    ----------
    source
        A structure whose calculator gives wave functions or a pseudo density, or a file of ASE's ``STM.write``.
    mode
        See :func:`adlayer.analysis.stm.stm_image`.
    bias
        V, of the sample; default −1, for a file its own.
    distance
        Of the plane from the topmost atom, Å.
    plane
        Height of the plane in Å, absolute; a file, which holds no atoms, needs it.
    use_density
        Take the electron density in place of the local density of states.
    blur_width
        See :func:`adlayer.analysis.stm.stm_image`.

    Raises
    ------
    UserError
        If the source cannot be read or lacks what is asked for, or the surface of constant density is not closed.
    """
    check_mode(mode)
    scanner = _scanner(source, use_density)
    bias = bias if bias is not None else scanner.bias if scanner.bias is not None else -1.0
    if scanner.atoms is None and bias != scanner.bias:
        raise UserError(
            f"{source} was made at {scanner.bias:g} V, not {bias:g} V: leave the bias out or compute another"
        )
    if plane is None:
        if scanner.atoms is None:
            raise UserError(f"{source} holds no atoms to measure the distance from: give the height of the plane")
        plane = float(scanner.atoms.positions[:, 2].max()) + distance
    length = float(scanner.cell[2, 2])
    if not 0 < plane < length:
        raise UserError(f"the plane at {plane:g} Å lies outside the cell of {length:g} Å: choose a height within")
    set_point = scanner.get_averaged_current(bias, plane)
    if mode == "current":
        values = scanner.scan(bias, set_point, z0=(plane + length) / 2)[2]
        if values.min() <= 0:
            raise UserError(f"the density never reaches its mean at {plane:g} Å in places: choose a plane farther away")
    else:
        position = plane / length * scanner.ldos.shape[2]
        layer, part = int(position), position % 1.0
        following = scanner.ldos[:, :, (layer + 1) % scanner.ldos.shape[2]]
        values = ((1 - part) * scanner.ldos[:, :, layer] + part * following) / set_point
    kind = "electron density" if use_density else f"local density of states at {bias:g} V"
    cell = np.array(scanner.cell)[:2, :2]
    return blur(StmImage(np.asarray(values, dtype=float), cell, mode, f"Tersoff–Hamann image, {kind}"), blur_width)


def _scanner(source: Atoms | str | os.PathLike[str], use_density: bool) -> Any:
    """ASE's microscope for a structure or a file."""
    from ase.dft.stm import STM

    if isinstance(source, Atoms):
        needed = "get_pseudo_density" if use_density else "get_pseudo_wave_function"
        if not hasattr(source.calc, needed):
            raise UserError(f"the calculator of {source.symbols} has no {needed}: compute the structure with DFT first")
        return STM(source, use_density=use_density)
    try:
        return STM(os.fspath(source))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{source} is no file of ASE's STM ({error}): make one with its write method") from error

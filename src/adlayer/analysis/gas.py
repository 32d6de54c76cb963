"""Chemical potential of an atom in a diatomic gas at temperature T and pressure p.

It counts from half the total energy of the molecule at rest, without zero-point vibration (K. Reuter & M. Scheffler,
Phys. Rev. B 65, 035406 (2001)):

    Δμ(T, p) = ½ [G(T, p) − E − ½ħω] = Δμ(T, p°) + ½ k T ln(p/p°)

with p° = 1 bar and G of the ideal gas in ASE's thermochemistry (rigid rotor with classical rotation, harmonic
vibration, spin of the ground state) from the spectroscopic constants of K. P. Huber & G. Herzberg, *Constants of
Diatomic Molecules* (1979). It agrees with the NIST-JANAF tables to 1 meV for O₂ from 100 to 1000 K, and to 2 meV for H₂
and N₂ at room temperature. Temperatures in K, pressures in Pa, energies in eV.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from ase import Atoms, units
from ase.thermochemistry import IdealGasThermo
from scipy.optimize import brentq

from adlayer.errors import UserError

STANDARD_PRESSURE = 1e5  # Pa
MBAR = 100.0  # Pa
_COLDEST, _HOTTEST = 20.0, 5000.0  # K


class Diatomic(NamedTuple):
    """Harmonic wavenumber (cm⁻¹), bond length (Å) and electronic spin of a homonuclear molecule."""

    wavenumber: float
    bond: float
    spin: float


DIATOMICS = {
    "H": Diatomic(4401.21, 0.74144, 0),
    "N": Diatomic(2358.57, 1.09769, 0),
    "O": Diatomic(1580.19, 1.20752, 1),
    "F": Diatomic(916.64, 1.41193, 0),
    "Cl": Diatomic(559.72, 1.98792, 0),
}


def _diatomic(element: str) -> Diatomic:
    if element not in DIATOMICS:
        raise UserError(
            f"{element} has no gas of molecules {element}2 known here: choose one of {', '.join(DIATOMICS)}"
        )
    return DIATOMICS[element]


@lru_cache(maxsize=4096)
def _standard(element: str, temperature: float) -> float:
    """Δμ(T, p°), eV."""
    molecule = _diatomic(element)
    quantum = molecule.wavenumber * units.invcm
    gas = IdealGasThermo(
        vib_energies=[quantum],
        geometry="linear",
        atoms=Atoms(f"{element}2", [(0, 0, 0), (0, 0, molecule.bond)]),
        symmetrynumber=2,
        spin=molecule.spin,
    )
    return 0.5 * (float(gas.get_gibbs_energy(temperature, STANDARD_PRESSURE, verbose=False)) - 0.5 * quantum)


def gas_potential(element: str, temperature: float, pressure: float = STANDARD_PRESSURE) -> float:
    """Δμ of an atom in its diatomic gas, eV.

    Parameters
    ----------
    element
        One of :data:`DIATOMICS`.
    temperature, pressure
        K; Pa, partial pressure of the gas.

    Raises
    ------
    UserError
        If there is no such gas, or temperature or pressure is not positive.

    Examples
    --------
    >>> round(gas_potential("O", 600.0), 2)
    -0.61
    """
    if not (temperature > 0 and pressure > 0):
        raise UserError(f"temperature {temperature:g} K and pressure {pressure:g} Pa must both be above zero")
    shift = 0.5 * units.kB * temperature * math.log(pressure / STANDARD_PRESSURE)
    return _standard(element, float(temperature)) + shift


def gas_temperature(element: str, potential: float, pressure: float = STANDARD_PRESSURE) -> float:
    """Temperature (K) at which the gas has this Δμ (eV) at this pressure (Pa); ``nan`` outside 20 to 5000 K."""

    def excess(temperature: float) -> float:
        return gas_potential(element, temperature, pressure) - potential

    if not excess(_COLDEST) >= 0 >= excess(_HOTTEST):
        return math.nan
    return float(brentq(excess, _COLDEST, _HOTTEST, xtol=1e-6))


def gas_pressure(element: str, potential: float, temperature: float) -> float:
    """Pressure (Pa) at which the gas has this Δμ (eV) at this temperature (K)."""
    exponent = 2 * (potential - gas_potential(element, temperature)) / (units.kB * temperature)
    return STANDARD_PRESSURE * math.exp(min(exponent, 700.0))

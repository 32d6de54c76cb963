"""The chemical potential of a gas against the NIST-JANAF tables and the published table of Reuter and Scheffler."""

import math

import pytest
from ase import units

from adlayer.analysis.gas import gas_potential, gas_pressure, gas_temperature
from adlayer.errors import UserError

# NIST-JANAF, O2 at 0.1 MPa: T (K), H - H(298.15 K) (kJ/mol), S (J/mol/K); H(0 K) - H(298.15 K) = -8.683 kJ/mol.
JANAF_O2 = [
    (100, -5.779, 173.307),
    (200, -2.868, 193.485),
    (300, 0.054, 205.329),
    (400, 3.025, 213.871),
    (500, 6.084, 220.693),
    (600, 9.244, 226.451),
    (700, 12.499, 231.466),
    (800, 15.835, 235.921),
    (900, 19.241, 239.931),
    (1000, 22.703, 243.578),
]
# K. Reuter & M. Scheffler, Phys. Rev. B 65, 035406 (2001), Table I: eV at 1 atm.
PUBLISHED = {100: -0.08, 300: -0.27, 600: -0.61, 800: -0.85, 1000: -1.10}


def from_table(temperature: float, enthalpy: float, entropy: float, zero: float) -> float:
    return 0.5 * (enthalpy - zero - 1e-3 * temperature * entropy) * units.kJ / units.mol


@pytest.mark.parametrize(("temperature", "enthalpy", "entropy"), JANAF_O2)
def test_oxygen_is_that_of_the_janaf_tables(temperature, enthalpy, entropy):
    expected = from_table(temperature, enthalpy, entropy, -8.683)
    assert gas_potential("O", temperature) == pytest.approx(expected, abs=1e-3)
    assert abs(2 * gas_potential("O", temperature) - expected) > 1e-3  # the whole molecule would be seen


@pytest.mark.parametrize(("temperature", "expected"), PUBLISHED.items())
def test_oxygen_is_that_of_the_published_table(temperature, expected):
    assert gas_potential("O", temperature) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("element", "enthalpy", "entropy"), [("N", 8.670, 191.609), ("H", 8.467, 130.680)])
def test_other_gases_at_room_temperature(element, enthalpy, entropy):
    expected = from_table(298.15, enthalpy, entropy, 0.0)  # NIST-JANAF, H - H(0 K)
    assert gas_potential(element, 298.15) == pytest.approx(expected, abs=2e-3)


def test_a_tenth_of_the_pressure_costs_half_kt_ln_10():
    drop = gas_potential("O", 500.0, 1e4) - gas_potential("O", 500.0, 1e5)
    assert drop == pytest.approx(-0.5 * 8.617333e-5 * 500.0 * math.log(10), rel=1e-6)


@pytest.mark.parametrize("pressure", [1e-8, 1e2, 1e5])
def test_temperature_and_pressure_are_inverse(pressure):
    potential = gas_potential("O", 543.21, pressure)
    assert gas_temperature("O", potential, pressure) == pytest.approx(543.21, abs=1e-4)
    assert gas_pressure("O", potential, 543.21) == pytest.approx(pressure, rel=1e-9)


def test_out_of_reach_is_nan_or_refused():
    assert math.isnan(gas_temperature("O", 0.5, 1e5))
    with pytest.raises(UserError, match="choose one of"):
        gas_potential("Ag", 300.0)
    with pytest.raises(UserError, match="above zero"):
        gas_potential("O", 300.0, 0.0)

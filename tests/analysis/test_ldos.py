"""Images through ASE's microscope, on densities known in closed form."""

import numpy as np
import pytest
from ase import Atoms
from ase.dft.stm import STM

from adlayer.analysis.ldos import stm_from_calculator
from adlayer.errors import UserError

ALPHA, SHAPE, CELL = 2.0, (24, 20, 400), (4.0, 3.0, 20.0)


def orbital(phase: float) -> np.ndarray:
    """A real wave function whose square is (1 + 0.2 cos(2π x / a + phase)) exp(−α z)."""
    x, z = np.arange(SHAPE[0]) / SHAPE[0], np.arange(SHAPE[2]) * CELL[2] / SHAPE[2]
    wave = np.sqrt(1 + 0.2 * np.cos(2 * np.pi * x + phase))[:, None, None] * np.exp(-ALPHA * z / 2)
    return np.broadcast_to(wave, SHAPE)


class Fake:
    """An occupied state at −0.5 eV and an empty one at +0.5 eV, shifted by half a cell."""

    def get_number_of_bands(self) -> int:
        return 2

    def get_number_of_spins(self) -> int:
        return 1

    def get_k_point_weights(self) -> np.ndarray:
        return np.ones(1)

    def get_fermi_level(self) -> float:
        return 1.0

    def get_eigenvalues(self, k: int, s: int) -> np.ndarray:
        return np.array([0.5, 1.5])

    def get_pseudo_wave_function(self, n: int, k: int, s: int) -> np.ndarray:
        return orbital(n * np.pi)

    def get_pseudo_density(self) -> np.ndarray:
        return orbital(np.pi / 2) ** 2


@pytest.fixture
def atoms() -> Atoms:
    made = Atoms("Ag", positions=[[1.0, 1.0, 3.0]], cell=CELL, pbc=True)
    made.calc = Fake()  # type: ignore[assignment]
    return made


@pytest.mark.parametrize(
    ("arguments", "phase"),
    [({}, 0.0), ({"bias": -1.0}, 0.0), ({"bias": 1.0}, np.pi), ({"use_density": True}, np.pi / 2)],
)
def test_heights_and_densities_are_those_of_the_states(atoms, arguments, phase):
    ripple = 1 + 0.2 * np.cos(2 * np.pi * np.arange(SHAPE[0]) / SHAPE[0] + phase)[:, None] * np.ones(SHAPE[1])
    current = stm_from_calculator(atoms, distance=4.0, **arguments)
    np.testing.assert_allclose(current.values, 7.0 + np.log(ripple) / ALPHA, atol=1e-3)  # linear between points
    wrong = 7.0 + np.log(ripple) / (2 * ALPHA)
    assert np.abs(current.values - wrong).max() > 0.02
    flat = stm_from_calculator(atoms, "height", distance=4.0, **arguments)
    np.testing.assert_allclose(flat.values, ripple, atol=1e-9)
    np.testing.assert_allclose(flat.cell, np.diag(CELL[:2]))
    assert ("electron density" in flat.model) == ("use_density" in arguments)


def test_files_of_ase(atoms, tmp_path):
    scanner = STM(atoms)
    scanner.calculate_ldos(1.0)
    name = str(tmp_path / "ldos.json")
    scanner.write(name)
    found, direct = stm_from_calculator(name, plane=7.0), stm_from_calculator(atoms, bias=1.0, distance=4.0)
    np.testing.assert_allclose(found.values, direct.values, atol=1e-9)
    assert "at 1 V" in found.model
    with pytest.raises(UserError, match="made at 1 V, not -1 V"):
        stm_from_calculator(name, plane=7.0, bias=-1.0)
    with pytest.raises(UserError, match="height of the plane"):
        stm_from_calculator(name)
    with pytest.raises(UserError, match="outside the cell of 20 Å"):
        stm_from_calculator(name, plane=21.0)
    (tmp_path / "other.json").write_text("[1]")
    for other in ("other.json", "missing.json"):
        with pytest.raises(UserError, match="no file of ASE's STM"):
            stm_from_calculator(tmp_path / other, plane=7.0)


def test_calculators_without_states_are_refused(atoms):
    atoms.calc = None
    with pytest.raises(UserError, match="get_pseudo_wave_function"):
        stm_from_calculator(atoms)

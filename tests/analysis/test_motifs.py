"""Motifs, proved against spherical harmonics and structures with known building blocks."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list
from scipy.special import sph_harm_y

from adlayer.analysis import motifs as module
from adlayer.analysis.motifs import CUTOFF, environments, fingerprints, motifs
from adlayer.analysis.references import reference
from adlayer.errors import UserError
from adlayer.structures.placement import place_overlayer
from adlayer.structures.substrate import build_substrate


def random_structure(seed: int, cell: str = "p(2x2)", formula: str = "Ag2O") -> Atoms:
    substrate = build_substrate("Ag(111)", cell, layers=2, window=(1.0, 3.0))
    return place_overlayer(substrate, formula, np.random.default_rng(seed))


def spectrum_by_spherical_harmonics(atoms: Atoms, elements: list[int]) -> np.ndarray:
    """The same power spectra from ASE's neighbour list and SciPy's spherical harmonics."""
    first, second, lengths, vectors = neighbor_list("ijdD", atoms, CUTOFF)
    rows = []
    for i in np.flatnonzero(atoms.get_tags() == 0):
        own = first == i
        r, v = lengths[own], vectors[own]
        radial = np.exp(-((r[:, None] - module._CENTRES) ** 2) / (2 * module._WIDTH**2))
        radial *= (0.5 + 0.5 * np.cos(np.pi * r / CUTOFF))[:, None]
        kinds = atoms.numbers[second[own]][:, None] == elements
        radial = (kinds[:, :, None] * radial[:, None]).reshape(len(r), -1)
        theta, phi = np.arccos((v[:, 2] / r).clip(-1, 1)), np.arctan2(v[:, 1], v[:, 0])
        row = []
        for degree in range(module._DEGREES):
            waves = np.array([sph_harm_y(degree, m, theta, phi) for m in range(-degree, degree + 1)])
            density = waves @ radial  # (2l + 1, F)
            power = 4 * np.pi / (2 * degree + 1) * (density.conj().T @ density).real
            row.append(power[np.triu_indices(len(power))])
        rows.append(np.concatenate(row))
    spectra = np.array(rows)
    return spectra / np.linalg.norm(spectra, axis=1, keepdims=True)


def test_power_spectra_are_those_of_spherical_harmonics():
    for cell, formula in (("p(1x1)", "O"), ("p(2x2)", "Ag2O"), ("[[2,1],[-1,3]]", "Ag3O2")):
        atoms = random_structure(0, cell, formula)
        assert np.abs(environments(atoms, [8, 47]) - spectrum_by_spherical_harmonics(atoms, [8, 47])).max() < 1e-8


def test_rotation_reflection_translation_and_supercells_change_nothing():
    atoms = random_structure(1)
    others = [atoms.copy() for _ in range(4)]
    others[0].rotate(37.0, "z", rotate_cell=True)
    others[1].positions[:, 0] *= -1
    others[1].cell[:, 0] *= -1
    others[2].positions += [7.1, -3.3, 0.4]
    others[2].wrap()
    others[3] = atoms.repeat((2, 3, 1))[::-1]
    found = fingerprints([atoms, *others])
    assert np.abs(found - found[0]).max() < 1e-9
    assert np.abs(fingerprints([atoms, random_structure(2)])[1] - found[0]).max() > 0.01


def test_structures_of_the_same_blocks_share_a_motif_in_cells_of_other_size():
    names = [
        "p2x1-O_Ag110-added-row",
        "p4x4-O_Ag111-Ag6",
        "p3x1-O_Ag110-added-row",
        "p4x4-O_Ag111-Ag2O-trilayer",
        "p4x4-O_Ag111-Ag6-3layer",
    ]
    found = motifs([reference(name) for name in names])
    assert sorted(motif.members for motif in found) == [[0, 2], [1, 4], [3]]


def test_representative_count_and_mean():
    rng = np.random.default_rng(3)
    structures = [random_structure(seed) for seed in (4, 4, 4, 5, 6)]
    for atoms in structures[1:3]:
        atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
    energies = [0.5, 0.1, np.nan, 0.0, np.nan]
    found = motifs(structures, energies)
    assert [motif.members for motif in found] == [[3], [0, 1, 2], [4]]
    assert [motif.label for motif in found] == [1, 2, 3]
    assert [motif.representative for motif in found] == [3, 1, 4]
    assert [motif.count for motif in found] == [1, 3, 1]
    assert [motif.mean_energy for motif in found[:2]] == pytest.approx([0.0, 0.3])
    assert np.isnan(found[2].mean_energy)
    assert [motif.representative for motif in motifs(structures)] == [0, 3, 4]


def test_noise_below_the_tolerance_of_duplicates_keeps_the_motif():
    rng = np.random.default_rng(7)
    atoms = reference("p4x4-O_Ag111-Ag6")
    copies = [atoms.copy() for _ in range(10)]
    for copy in copies:
        copy.positions += rng.uniform(-0.08, 0.08, copy.positions.shape)
    assert len(motifs([atoms, *copies])) == 1


def test_few_structures_and_bare_substrates():
    substrate = build_substrate("Ag(111)", "p(2x2)", layers=2)
    assert motifs([]) == []
    assert [m.members for m in motifs([substrate])] == [[0]]
    assert [m.members for m in motifs([substrate, substrate.repeat((2, 1, 1))])] == [[0, 1]]
    assert [m.members for m in motifs([substrate, random_structure(1)])] == [[0], [1]]
    with pytest.raises(UserError, match="2 energies do not belong to 1 structures"):
        motifs([substrate], [0.0, 1.0])

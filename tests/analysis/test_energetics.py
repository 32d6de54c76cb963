"""Formation and adsorption energies: by hand, and against pymatgen on the same numbers."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from adlayer.analysis.energetics import (
    SurfacePhase,
    area,
    bare_substrate,
    check_one_substrate,
    compound_limit,
    corrected_potential,
    differential_adsorption_energies,
    lattice_shape,
    lowest_of_each,
    overlayer_counts,
    surface_phase,
)
from adlayer.analysis.references import reference
from adlayer.errors import UserError
from adlayer.structures.substrate import build_substrate

MU = {"Ag": -2.83, "O": -4.90}


def adlayer_on(cell: str, formula: str, energy: float, layers: int = 2) -> Atoms:
    """A substrate with atoms somewhere above it and an energy."""
    atoms = build_substrate("Ag(111)", cell, layers=layers, lattice=4.167)
    height = atoms.positions[:, 2].max() + 1.5
    spots = np.random.default_rng(len(formula)).uniform(size=(len(Atoms(formula)), 2)) @ atoms.cell.array[:2, :2]
    atoms += Atoms(formula, np.column_stack([spots, np.full(len(spots), height)]))
    atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return atoms


def test_by_hand():
    atoms = adlayer_on("p(2x2)", "Ag3O2", -40.0)
    phase = surface_phase(atoms, -20.0, MU, "x")
    formation = -40.0 + 20.0 - (3 * -2.83 + 2 * -4.90)
    assert overlayer_counts(atoms) == {"Ag": 3, "O": 2}
    assert phase.area == pytest.approx(4 * (4.167**2 / 2) * np.sqrt(3) / 2)
    assert phase.formation == pytest.approx(formation, abs=1e-12)
    assert phase.gamma({"O": -0.5}) == pytest.approx((formation + 2 * 0.5) / phase.area, abs=1e-12)
    assert phase.gamma({"O": [-0.5, 0.0], "Ag": [-0.1, 0.0]}) == pytest.approx(
        np.array([formation + 1.0 + 0.3, formation]) / phase.area, abs=1e-12
    )
    assert phase.adsorption_energy("O") == pytest.approx(formation / 2)
    assert np.isnan(phase.adsorption_energy("H"))


def pymatgen_gamma(atoms: Atoms, clean: Atoms, clean_energy: float, potential: float) -> float:
    """γ above the clean surface by pymatgen, eV/Å² of one side."""
    surface = pytest.importorskip("pymatgen.analysis.surface_analysis")
    from pymatgen.entries.computed_entries import ComputedStructureEntry
    from pymatgen.io.ase import AseAtomsAdaptor
    from sympy import Symbol

    def entry(structure: Atoms, energy: float) -> ComputedStructureEntry:
        return ComputedStructureEntry(AseAtomsAdaptor.get_structure(structure), energy)

    box = {"cell": [20, 20, 20], "pbc": True}
    oxygen = entry(Atoms("O2", [(0, 0, 0), (0, 0, 1.2)], **box), 2 * MU["O"])
    silver = entry(Atoms("Ag", **box), MU["Ag"])
    bare = surface.SlabEntry(AseAtomsAdaptor.get_structure(clean), clean_energy, (1, 1, 1))
    full = surface.SlabEntry(
        AseAtomsAdaptor.get_structure(atoms), atoms.get_potential_energy(), (1, 1, 1),
        adsorbates=[oxygen] if "O" in atoms.symbols else [], clean_entry=bare,
    )  # fmt: skip
    gammas = []
    for slab in (full, bare):
        gamma = slab.surface_energy(silver)
        gammas.append(float(gamma.subs(Symbol("delu_O"), potential)) if hasattr(gamma, "subs") else float(gamma))
    return 2 * (gammas[0] - gammas[1])  # pymatgen divides by both sides of a symmetric slab


def without_warnings(function, *arguments):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


@pytest.mark.parametrize("potential", [-1.3, -0.4, 0.0])
@pytest.mark.parametrize("formula", ["Ag3O2", "O", "Ag"])
def test_pymatgen_gives_the_same(formula, potential):
    atoms = adlayer_on("p(2x2)", formula, -33.3)
    clean = atoms[atoms.get_tags() > 0]
    phase = surface_phase(atoms, -19.7, MU, formula)
    theirs = without_warnings(pymatgen_gamma, atoms, clean, -19.7, potential)
    assert float(phase.gamma({"O": potential})) == pytest.approx(theirs, abs=1e-9)


def test_planted_errors_are_seen():
    atoms = adlayer_on("p(2x2)", "Ag3O2", -33.3)
    clean = atoms[atoms.get_tags() > 0]
    theirs = without_warnings(pymatgen_gamma, atoms, clean, -19.7, -0.4)
    right = surface_phase(atoms, -19.7, MU, "x")
    wrong = {
        "sign of Δμ": float(right.gamma({"O": 0.4})),
        "whole molecule": float(surface_phase(atoms, -19.7, {**MU, "O": 2 * MU["O"]}, "x").gamma({"O": -0.4})),
        "both sides": float(right.gamma({"O": -0.4})) / 2,
        "no metal reservoir": float(surface_phase(atoms, -19.7, {**MU, "Ag": 0.0}, "x").gamma({"O": -0.4})),
    }
    for value in wrong.values():
        assert abs(value - theirs) > 1e-3


def test_the_bare_substrate_is_the_one_built():
    overlayer = reference("p4x4-O_Ag111-Ag6")
    slab = bare_substrate(overlayer)
    tags = overlayer.get_tags()
    assert len(slab) == (tags > 0).sum()
    assert slab.cell.array == pytest.approx(overlayer.cell.array)
    held = sorted(overlayer.constraints[0].index)
    fixed = slab.positions[slab.constraints[0].index]
    gaps = overlayer.positions[held][:, None] - fixed[None]
    inverse = np.linalg.inv(slab.cell.array)
    gaps = (gaps @ inverse - np.round(gaps @ inverse)) @ slab.cell.array
    assert np.linalg.norm(gaps, axis=-1).min(axis=1).max() < 1e-3  # what is fixed lies where it lay
    assert len(held) == len(fixed)
    for layer in np.unique(slab.get_tags()):  # all else is flat again
        assert np.ptp(slab.positions[slab.get_tags() == layer, 2]) < 1e-6
    built = build_substrate("Ag(111)", "p(3x2)", layers=3, fixed_layers=1, lattice=4.167)
    again = bare_substrate(built)
    inverse = np.linalg.inv(built.cell.array)
    gaps = (again.positions[:, None] - built.positions[None]) @ inverse
    gaps[..., :2] -= np.round(gaps[..., :2])
    assert np.linalg.norm(gaps @ built.cell.array, axis=-1).min(axis=1).max() < 1e-6


def test_lowest_of_each_formula_and_cell():
    low, high, other = (adlayer_on("p(2x2)", "O", e) for e in (-2.0, -1.0, -3.0))
    turned = adlayer_on("[[2,0],[-2,2]]", "O", -1.5)  # p(2x2) by other vectors
    larger = adlayer_on("p(3x2)", "O", -9.0)
    np.testing.assert_allclose(lattice_shape(turned), lattice_shape(low))
    assert np.abs(lattice_shape(larger) - lattice_shape(low)).max() > 1.0
    kept = lowest_of_each([high, low, turned, larger])
    assert sorted(a.get_potential_energy() for a in kept) == [-9.0, -2.0]
    assert lowest_of_each([low, other])[0] is other
    pair = []
    for length in (5.9499, 5.9501):  # Å, which a rounding to 0.1 Å would tell apart
        pair.append(low.copy())
        pair[-1].set_cell(low.cell * (length / np.linalg.norm(low.cell[0])), scale_atoms=True)
        pair[-1].calc = SinglePointCalculator(pair[-1], energy=-length)
    (kept,) = lowest_of_each(pair)
    assert kept is pair[1]
    other.calc = None
    with pytest.raises(UserError, match="structure 1 has no energy"):
        lowest_of_each([low, other])


def test_one_substrate_only():
    first, more = adlayer_on("p(2x2)", "O", -1.0), adlayer_on("p(3x2)", "Ag3O", -1.0)
    check_one_substrate([first, more])
    with pytest.raises(UserError, match="different substrates"):
        check_one_substrate([first, adlayer_on("p(2x2)", "O", -1.0, layers=3)])
    loose = first.copy()
    loose.set_constraint()
    with pytest.raises(UserError, match="different substrates"):
        check_one_substrate([first, loose])


def test_differential_energies_are_the_slopes():
    phases = [
        SurfacePhase("clean", 0.0, {}, 10.0),
        SurfacePhase("1", -0.8, {"O": 1}, 10.0),
        SurfacePhase("1 worse", -0.3, {"O": 1}, 10.0),
        SurfacePhase("2", -1.1, {"O": 4}, 20.0),  # the coverage of 2 on 10 Å², -0.55 eV there
    ]
    steps = differential_adsorption_energies(phases, "O")
    assert [s[:2] for s in steps] == [(0.0, 0.1), (0.1, 0.2)]
    assert [s[2] for s in steps] == pytest.approx([-0.8, 0.25])
    assert phases[3].adsorption_energy("O") == pytest.approx((-0.8 + 0.25) / 2)


def test_a_compound_and_a_correction_by_it():
    counts = {"Ag": 4, "O": 2}
    energy = 4 * MU["Ag"] + 2 * MU["O"] + 2 * -0.34
    assert compound_limit(energy, counts, MU, "O") == pytest.approx(-0.34)
    corrected = corrected_potential(energy, counts, MU, "O", -0.30)
    assert compound_limit(energy, counts, {**MU, "O": corrected}, "O") == pytest.approx(-0.30)
    with pytest.raises(UserError, match="holds no N"):
        compound_limit(energy, counts, MU, "N")


def test_missing_references_and_areas():
    atoms = adlayer_on("p(2x2)", "O", -1.0)
    with pytest.raises(UserError, match="O has no reference energy"):
        surface_phase(atoms, 0.0, {"Ag": -2.8}, "x")
    assert area(atoms) == pytest.approx(atoms.get_volume() / atoms.cell[2, 2])

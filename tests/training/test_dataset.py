"""What is learned from: the selection, the bare substrate, repetition, the baseline."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms

from adlayer.errors import UserError
from adlayer.training.dataset import Dataset, Frame, Selection, composition_baseline, parse_selection


def _excesses(dataset: Dataset) -> list[float]:
    """eV above the lowest per structure, sorted."""
    return sorted(round(e.energy_above * int(e.mobile.sum()), 6) for e in (*dataset.train, *dataset.validation))


def test_energy_window_counts_from_the_lowest_of_the_same_composition(made_up: Any) -> None:
    for formula, excesses in {"Ag2O": (0.0, 0.3, 0.6, 1.2), "AgO2": (0.0, 0.69, 0.71)}.items():
        for above in excesses:
            made_up.add(formula, above)
    chosen = made_up.dataset(parse_selection("dE<0.7"))
    assert _excesses(chosen) == [0.0, 0.0, 0.3, 0.6, 0.69]
    assert chosen.compositions == {"Ag2O": 3, "AgO2": 2}
    assert _excesses(made_up.dataset(parse_selection("dE<0.1"))) == [0.0, 0.0]


def test_fractions_of_the_overlayer(made_up: Any) -> None:
    for formula in ("Ag3O", "Ag2O", "AgO", "AgO2", "AgO2", "O2"):
        made_up.add(formula)

    def formulas(text: str) -> set[str]:
        return set(made_up.dataset(parse_selection(text)).compositions)

    assert formulas("0.3<O<0.6") == {"Ag2O", "AgO"}
    assert formulas("O<0.4") == {"Ag3O", "Ag2O"}
    assert formulas("0.4<O<0.9, Ag<0.4") == {"AgO2"}
    assert formulas("Ag<0.4") == {"AgO2", "O2"}


def test_limit_draws_nested_subsets_of_all_compositions(made_up: Any) -> None:
    for k in range(20):
        made_up.add("Ag2O" if k < 10 else "AgO", 0.01 * k)
    chosen = {n: _excesses(made_up.dataset(parse_selection(f"n<{n + 1}"))) for n in (8, 12)}
    assert {n: len(values) for n, values in chosen.items()} == {8: 8, 12: 12}
    assert set(chosen[8]) <= set(chosen[12])
    assert len(made_up.dataset(parse_selection("n<13")).compositions) == 2


@pytest.mark.parametrize("text", ["dE<", "dE>1", "Xx<0.2", "0.1<O", "energy<1", "1<2<3"])
def test_selections_that_are_not_understood(text: str) -> None:
    with pytest.raises(UserError, match="is not understood: write"):
        parse_selection(text)


def test_unconverged_rows_are_left_out(made_up: Any) -> None:
    made_up.add("Ag2O", 0.5)
    made_up.add("Ag2O", 0.6)
    made_up.add("Ag2O", 0.0, converged=False)
    assert _excesses(made_up.dataset()) == pytest.approx([0.0, 0.1])


@pytest.mark.parametrize(
    "other", [{"calculator": "another"}, {"parameters": {"model": "larger"}}], ids=["calculator", "settings"]
)
def test_energies_of_two_backends_are_refused(made_up: Any, other: dict[str, Any]) -> None:
    made_up.add("Ag2O")
    made_up.add("Ag2O", 0.1, **other)
    with pytest.raises(
        UserError, match=r"mixes energies of different calculators or settings \(.*made-up.*\): relax all"
    ):
        made_up.dataset()


def test_nothing_to_learn_from(made_up: Any) -> None:
    with pytest.raises(UserError, match="no converged structures: run adlayer search"):
        made_up.dataset()
    made_up.add("Ag2O")
    made_up.add("Ag2O", 3.0)
    with pytest.raises(UserError, match=r"only 1 structures .* pass the selection: widen it"):
        made_up.dataset()


def test_examples_stand_on_the_bare_substrate(made_up: Any) -> None:
    paths = [made_up.add("Ag2O", 0.1 * k) for k in range(4)]
    dataset = made_up.dataset(validation=0.25)
    for example in (*dataset.train, *dataset.validation):
        path = paths[round(example.energy_above * 3 / 0.1)]
        start, end = (path.positions[k].astype(np.float32) for k in (0, -1))  # as stored
        np.testing.assert_array_equal(example.positions[example.mobile], end[example.mobile])
        np.testing.assert_array_equal(example.positions[~example.mobile], start[~example.mobile])
        np.testing.assert_allclose(
            example.positions[~example.mobile], made_up.substrate.positions[: (~example.mobile).sum()], atol=1e-5
        )
        assert np.abs(end - start)[~example.mobile].max() > 0.04  # the substrate did answer the overlayer
        assert example.top == pytest.approx(float(made_up.substrate.positions[:, 2].max()), abs=1e-5)


def test_a_substrate_that_moved_far_is_no_example_but_its_frames_are_kept(made_up: Any) -> None:
    for k in range(4):
        made_up.add("Ag2O", 0.1 * k, shift=1.5 if k == 1 else 0.05)
    dataset = made_up.dataset(validation=0.25)
    assert _excesses(dataset) == pytest.approx([0.0, 0.2, 0.3])
    assert len(dataset.frames) + len(dataset.validation_frames) == 4 * 3
    assert _excesses(made_up.dataset(parse_selection("shift<2"))) == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_frames_with_large_forces_are_left_out(made_up: Any) -> None:
    made_up.add("Ag2O", largest_force=40.0)
    made_up.add("Ag2O", 0.1)
    dataset = made_up.dataset()
    assert len(dataset.frames) + len(dataset.validation_frames) == 2 + 3


def test_a_structure_is_on_one_side_of_the_split(made_up: Any) -> None:
    for k in range(12):
        made_up.add("Ag2O", 0.1 * k)

    one, again, other = (made_up.dataset(validation=0.25, seed=s) for s in (0, 0, 1))
    assert len(one.validation) == 3
    assert len(one.train) == 9
    assert {len(one.frames), len(one.validation_frames)} == {27, 9}
    assert _excesses(one) == _excesses(other)
    assert [e.energy_above for e in one.validation] == [e.energy_above for e in again.validation]
    assert [e.energy_above for e in one.validation] != [e.energy_above for e in other.validation]
    held = {round(e.energy_above * 3, 6) for e in one.validation}
    lowest = 10 * -2.5 - 4.25
    ends = {round(f.energy - lowest, 6) for f in one.validation_frames if np.abs(f.forces).max() == 0.0}
    assert ends == held


def test_elements_and_fingerprint(made_up: Any) -> None:
    for k in range(4):
        made_up.add("AgO", 0.3 * k)
    every, some = made_up.dataset(), made_up.dataset(parse_selection("dE<0.5"))
    assert every.elements == ("Ag", "O")
    assert every.calculator == {"name": "made-up"}
    assert every.data_hash == made_up.dataset().data_hash
    assert every.data_hash != some.data_hash


def test_repetition_keeps_densities_and_neighbourhoods(dataset: Dataset) -> None:
    example = dataset.train[0]
    repeated = example.repeat(2, 3)
    assert abs(np.linalg.det(repeated.cell)) == pytest.approx(6 * abs(np.linalg.det(example.cell)))
    assert len(repeated.numbers) == 6 * len(example.numbers)
    assert repeated.mobile.sum() == 6 * example.mobile.sum()
    assert (repeated.energy_above, repeated.top) == (example.energy_above, example.top)
    box = np.diag([0.0, 0.0, 30.0])
    box[:2, :2] = example.cell
    atoms = Atoms(example.numbers, example.positions, cell=box, pbc=[True, True, False], tags=1 - example.mobile)
    expected = atoms.repeat((2, 3, 1))
    np.testing.assert_allclose(repeated.cell, expected.cell.array[:2, :2])
    np.testing.assert_array_equal(repeated.numbers, expected.numbers)
    np.testing.assert_array_equal(repeated.mobile, expected.get_tags() == 0)
    np.testing.assert_allclose(repeated.positions, expected.positions, atol=1e-10)


def test_baseline_is_exact_on_linear_data(dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(12):
        numbers = np.repeat([47, 8], rng.integers(1, 9, size=2))
        energy = float(np.select([numbers == 47, numbers == 8], [-2.5, -4.25]).sum())
        frames.append(Frame(numbers, np.zeros((len(numbers), 3)), numbers == 8, np.eye(2), energy, np.zeros((1, 3))))
    np.testing.assert_allclose(composition_baseline(frames, [47, 8]), [-2.5, -4.25], rtol=1e-12)
    fitted = composition_baseline(dataset.frames, [47, 8])
    errors = [f.energy - fitted @ [np.sum(f.numbers == z) for z in (47, 8)] for f in dataset.frames]
    assert np.mean(errors) == pytest.approx(0.0, abs=0.1)


def test_baseline_without_a_unique_answer_is_the_shortest(dataset: Dataset) -> None:
    """One composition alone: the counts cannot tell the elements apart, and the least-norm answer still fits."""
    frames = [Frame(np.array([47, 47, 8]), np.zeros((3, 3)), np.ones(3, bool), np.eye(2), -9.0, np.zeros((3, 3)))]
    np.testing.assert_allclose(composition_baseline(frames, [47, 8]), [-3.6, -1.8])


def test_default_selection_says_what_the_paper_takes() -> None:
    assert parse_selection("") == Selection()
    assert parse_selection("dE<0.5, 0.2<O<0.4, shift<0.3, n<11") == Selection(
        energy_window=0.5, fractions=(("O", 0.2, 0.4),), substrate_shift=0.3, limit=10
    )

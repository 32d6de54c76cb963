"""Generation with a small untrained model: what must hold whatever the network says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from adlayer.analysis.symmetry import describe_symmetry
from adlayer.diffusion import block
from adlayer.diffusion.block import Block
from adlayer.diffusion.generation import Generated, generate
from adlayer.diffusion.sampling import PRESETS, SOLVERS, Sampling
from adlayer.diffusion.schedule import LinearBeta
from adlayer.errors import UserError
from adlayer.network.graph import Batch
from adlayer.network.heads import ForceField
from adlayer.network.model import Architecture, Card, Model
from adlayer.structures.substrate import build_substrate

QUICK = Sampling(steps=4, relax_steps=0)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(2)
    size = Architecture(
        features=8,
        interactions=2,
        n_radial=6,
        cutoff=4.0,
        force_features=8,
        force_interactions=1,
        force_n_radial=6,
        force_cutoff=4.0,
    )
    return Model(
        Card(
            elements=("Ag", "O"),
            kernel="exact",
            sigma_min=0.02,
            architecture=size,
            heights=(1.0, 1.3, 2.2, 2.8),
        )
    ).eval()


@pytest.fixture
def substrate() -> Atoms:
    return build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.16, window=(1.0, 4.0))


Make = Callable[..., Generated]


@pytest.fixture
def make(model: Model, substrate: Atoms) -> Make:
    def made(formula: str = "Ag2O", n: int = 3, settings: Sampling = QUICK, **arguments: object) -> Generated:
        on = arguments.pop("substrate", substrate)
        return generate(model, on, formula=formula, n=n, settings=settings, **arguments)  # type: ignore[arg-type]

    return made


def _overlayer(atoms: Atoms) -> np.ndarray:
    return atoms.positions[atoms.get_tags() == 0]


def _check(atoms: Atoms, substrate: Atoms, formula: str) -> None:
    """Substrate to the last bit, overlayer of the right formula inside cell and window, energies attached."""
    n = len(substrate)
    assert np.array_equal(atoms.positions[:n], substrate.positions)
    assert np.array_equal(atoms.cell.array, substrate.cell.array)
    assert np.array_equal(atoms.get_tags()[:n], substrate.get_tags())
    assert str(atoms[n:].symbols) == formula
    low, high = substrate.info["confinement"]
    overlayer = _overlayer(atoms)
    assert np.isfinite(overlayer).all()
    assert overlayer[:, 2].min() >= low
    assert overlayer[:, 2].max() <= high
    fractional = overlayer[:, :2] @ np.linalg.inv(atoms.cell.array[:2, :2])
    assert fractional.min() > -1e-9
    assert fractional.max() < 1.0 + 1e-9
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.get_forces(apply_constraint=False).shape == (len(atoms), 3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("stochasticity", [0.0, 1.0])
def test_every_solver(make: Make, substrate: Atoms, solver: str, stochasticity: float) -> None:
    before = substrate.copy()
    result = make(settings=replace(QUICK, solver=solver, stochasticity=stochasticity, corrector=1, relax_steps=3))
    for atoms in result.structures:
        _check(atoms, before, "Ag2O")
    assert np.array_equal(before.positions, substrate.positions)
    assert len({tuple(_overlayer(a).ravel()) for a in result.structures}) == 3


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(make: Make, substrate: Atoms, preset: str) -> None:
    settings = replace(PRESETS[preset], steps=6, refine=min(2, PRESETS[preset].refine))
    for atoms in make(settings=settings).structures:
        _check(atoms, substrate, "Ag2O")


def test_a_substrate_that_is_nowhere_near_the_origin(make: Make, substrate: Atoms) -> None:
    """Positions with digits beyond single precision come back bit for bit."""
    moved = substrate.copy()
    moved.positions += [17.123456789012345, -3.3333333333333335, 0.0]
    for atoms in make(substrate=moved).structures:
        _check(atoms, moved, "Ag2O")


def test_rows_say_where_they_come_from(make: Make) -> None:
    rows = [a.info["row"] for a in make("OAg2", n=2, seed=5).structures]
    common = {"stage": "generated", "overlayer": "OAg2", "seed": 5}
    assert rows == [common | {"sample": 0}, common | {"sample": 1}]


def test_same_seed_same_structures(make: Make) -> None:
    one, again, other = (make(seed=s).structures for s in (0, 0, 1))
    for a, b, c in zip(one, again, other, strict=True):
        assert np.array_equal(a.positions, b.positions)
        assert a.get_potential_energy() == b.get_potential_energy()
        assert np.abs(_overlayer(a) - _overlayer(c)).max() > 0.1


@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, solver="heun"), replace(QUICK, corrector=1, guidance=1e-3)])
def test_samples_do_not_depend_on_how_many_are_made_or_in_which_blocks(make: Make, settings: Sampling) -> None:
    five = [_overlayer(a) for a in make(n=5, settings=settings, block=2).structures]
    others = {
        "fewer": make(n=3, settings=settings, block=8).structures,
        "one by one": make(n=5, settings=settings, block=1).structures,
        "together": make(n=5, settings=settings, block=8).structures,
    }
    for atoms_list in others.values():
        for mine, atoms in zip(five, atoms_list, strict=False):
            np.testing.assert_allclose(_overlayer(atoms), mine, atol=1e-3)
    skipped = make(n=5, settings=settings, block=2, skip=2).structures
    assert [a.info["row"]["sample"] for a in skipped] == [2, 3, 4]
    for mine, atoms in zip(five[2:], skipped, strict=True):
        np.testing.assert_array_equal(_overlayer(atoms), mine)


def test_trajectory_runs_from_the_prior_to_the_structure(make: Make, substrate: Atoms) -> None:
    trajectory: list[list[np.ndarray]] = []
    result = make(n=3, block=2, trajectory=trajectory)
    assert [len(sample) for sample in trajectory] == [QUICK.steps + 1] * 3
    low, high = substrate.info["confinement"]
    for sample, atoms in zip(trajectory, result.structures, strict=True):
        assert {frame.shape for frame in sample} == {(3, 3)}
        np.testing.assert_allclose(sample[-1], _overlayer(atoms), atol=1e-5)
        every = np.stack(sample)[..., 2]
        assert every.min() >= low - 1e-5
        assert every.max() <= high + 1e-5
    starts = np.stack([sample[0] for sample in trajectory])
    untouched = make(n=3, block=2).structures
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(untouched, result.structures, strict=True))
    assert np.ptp(starts[..., 2]) > 0.5


def test_starts_are_uniform(make: Make, substrate: Atoms) -> None:
    """100 starts of 3 atoms: means of the fractional coordinates within five standard errors of one half."""
    trajectory: list[list[np.ndarray]] = []
    make(n=100, settings=replace(QUICK, steps=1), block=50, trajectory=trajectory)
    starts = np.concatenate([sample[0] for sample in trajectory])
    low, high = substrate.info["confinement"]
    plane = starts[:, :2] @ np.linalg.inv(substrate.cell.array[:2, :2])
    unit = np.column_stack([plane, (starts[:, 2] - low) / (high - low)])
    error = np.sqrt(1.0 / 12.0 / len(unit))
    np.testing.assert_allclose(unit.mean(0), 0.5, atol=5 * error)
    np.testing.assert_allclose(unit.var(0), 1.0 / 12.0, atol=0.015)


@pytest.mark.parametrize(
    ("changes", "calls"),
    [
        ({"energy": None}, 4),
        ({"energy": 0.0, "weight": 1.0}, 4),
        ({"energy": 0.0, "weight": 2.0}, 8),
        ({"solver": "heun"}, 7),
        ({"solver": "heun", "stochasticity": 0.0, "weight": 1.5}, 14),
    ],
)
def test_network_calls(make: Make, changes: dict[str, object], calls: int) -> None:
    """For each structure one a step, two with classifier-free guidance; Heun's two but for the last step."""
    assert make(n=3, settings=replace(QUICK, **changes)).n_network_calls == 3 * calls  # type: ignore[arg-type]


def test_conditions_reach_the_network_and_the_weight_interpolates(make: Make) -> None:
    def last(**changes: object) -> np.ndarray:
        return _overlayer(make(n=1, settings=replace(QUICK, **changes)).structures[0])  # type: ignore[arg-type]

    free, conditional = last(energy=None), last(energy=0.0)
    assert np.abs(free - conditional).max() > 1e-4
    assert np.abs(last(energy=0.5) - conditional).max() > 1e-4
    assert np.abs(last(energy=0.0, fractions=(0.9,)) - conditional).max() > 1e-4
    np.testing.assert_allclose(last(energy=0.0, fractions=(1.0 / 3.0,)), conditional, atol=1e-6)  # that of the formula
    np.testing.assert_allclose(last(energy=0.0, weight=0.0), free, atol=1e-4)
    np.testing.assert_allclose(last(energy=0.0, weight=1.0 + 1e-6), conditional, atol=1e-4)
    assert np.abs(last(energy=0.0, weight=3.0) - conditional).max() > 1e-4


def test_relaxation_in_the_learned_force_field_goes_downhill(make: Make, substrate: Atoms) -> None:
    rigid = substrate.copy()  # so that the energies before and after are of the same substrate
    rigid.set_constraint(FixAtoms(range(len(rigid))))
    raw, relaxed = make(substrate=rigid), make(substrate=rigid, settings=replace(QUICK, relax_steps=20))
    assert relaxed.n_force_calls > raw.n_force_calls == 0
    for before, after in zip(raw.structures, relaxed.structures, strict=True):
        _check(after, substrate, "Ag2O")
        assert after.get_potential_energy() <= before.get_potential_energy() + 1e-4
    assert any(
        a.get_potential_energy() < b.get_potential_energy() - 1e-3
        for a, b in zip(relaxed.structures, raw.structures, strict=True)
    )


def test_a_relaxation_that_leaves_the_window_ends_at_its_wall(
    make: Make, substrate: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lifting(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Pushes every atom up, for ever."""
        energy = -torch.zeros(batch.n_structures).index_add(0, batch.batch, 5.0 * batch.positions[:, 2])
        return energy, torch.tensor([0.0, 0.0, 5.0]).expand_as(batch.positions)

    raw = make()
    monkeypatch.setattr(block, "fast_force_field", lambda module: lifting)
    monkeypatch.setattr(ForceField, "crowded", lambda self, batch: torch.zeros(batch.n_structures, dtype=torch.bool))
    lifted = make(settings=replace(QUICK, relax_steps=90))
    assert lifted.n_force_calls > 0
    for a, b in zip(raw.structures, lifted.structures, strict=True):
        _check(b, substrate, "Ag2O")
        np.testing.assert_allclose(_overlayer(b)[:, :2], _overlayer(a)[:, :2], atol=1e-4)
        np.testing.assert_allclose(_overlayer(b)[:, 2], substrate.info["confinement"][1], atol=1e-5)


def test_what_is_lost_is_drawn_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample, in a block or alone, ends the same; what never comes out well is no structure."""
    settings = replace(QUICK, relax_steps=2)
    whole = make(n=4, settings=settings, block=4)
    settle, lost = Block.settle, [whole.structures[1]]

    def losing(self: Block, positions: torch.Tensor, target: object = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The first attempt at sample 1."""
        relaxed, energies = settle(self, positions, target)
        for atoms in lost:
            known = torch.from_numpy(_overlayer(atoms)).to(relaxed)
            same = (relaxed.reshape(len(energies), -1, 3)[..., 2] - known[:, 2]).abs().amax(1) < 1e-3
            energies = torch.where(same, torch.inf, energies)
        return relaxed, energies

    monkeypatch.setattr(Block, "settle", losing)
    together, by_two = make(n=4, settings=settings, block=4), make(n=4, settings=settings, block=2)
    for k in (0, 2, 3):
        assert np.array_equal(together.structures[k].positions, whole.structures[k].positions)
    np.testing.assert_allclose(together.structures[1].positions, by_two.structures[1].positions, atol=1e-4)
    assert np.abs(together.structures[1].positions - whole.structures[1].positions).max() > 0.1
    monkeypatch.setattr(Block, "settle", lambda self, x, target=None: (x, torch.full((4,), torch.inf)))
    with pytest.raises(UserError, match="sample 0 of Ag2O ended 4 times with atoms inside each other"):
        make(n=4, settings=settings, block=4)


def test_more_atoms_than_find_room_are_refused_at_once(model: Model, substrate: Atoms) -> None:
    with pytest.raises(UserError, match="has more atoms than find room"):
        generate(model, substrate, formula="Ag200", n=1)


def test_of_several_starts_the_lowest_is_kept(make: Make, model: Model, substrate: Atoms) -> None:
    """The first start is that of a single one; its film goes with the structure that is kept."""
    rigid = substrate.copy()
    rigid.set_constraint(FixAtoms(range(len(rigid))))
    settings = replace(QUICK, relax_steps=20, symmetry=0.5)
    films: list[list[list[np.ndarray]]] = [[], []]
    one, three = (
        make(n=6, substrate=rigid, settings=replace(settings, starts=k), trajectory=film).structures
        for k, film in zip((1, 3), films, strict=True)
    )
    first, best = (np.array([a.get_potential_energy() for a in made]) for made in (one, three))
    kept = [np.array_equal(a[-1], b[-1]) for a, b in zip(*films, strict=True)]
    assert not all(kept)
    for k, same in enumerate(kept):
        assert same == np.array_equal(one[k].positions, three[k].positions)
    assert (best <= first + 1e-4).all()
    assert (best < first).any()
    with pytest.raises(UserError, match="starts is 0"):
        make(settings=replace(settings, starts=0))


def test_atoms_in_each_others_core_have_no_energy(
    model: Model, substrate: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However low a learned energy is there: of two structures one is pulled together, the other stays."""
    apart = substrate + Atoms("Ag2O", substrate.positions[[0, 2, 3]] + [0.0, 0.0, 9.0], tags=0)
    apart.info = dict(substrate.info)

    def hole(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        pulled = batch.mobile & (batch.batch == 0)
        away = (batch.positions - batch.positions[pulled].mean(0)) * pulled[:, None]
        energies = batch.positions.new_tensor([-1e6, -1.0])[: batch.n_structures]
        return energies.index_add(0, batch.batch, away.square().sum(-1)), -2.0 * away

    monkeypatch.setattr(block, "fast_force_field", lambda module: hole)
    under_way = block.Block(model, [apart, apart], replace(QUICK, relax_steps=60))
    start = under_way.batch.positions[under_way.mobile]
    _, energies = under_way.settle(start)
    assert energies.tolist() == [float("inf"), -1.0]


def test_refinement_never_ends_higher(make: Make, model: Model, substrate: Atoms) -> None:
    """Rounds of noising and denoising keep the lower of two relaxed energies, on a substrate that stays rigid."""
    rigid = substrate.copy()
    rigid.set_constraint(FixAtoms(range(len(rigid))))
    settings = replace(QUICK, relax_steps=5, refine_steps=3)
    before, after = (make(substrate=rigid, settings=replace(settings, refine=rounds)).structures for rounds in (0, 4))
    gains = [b.get_potential_energy() - a.get_potential_energy() for a, b in zip(after, before, strict=True)]
    assert min(gains) >= -1e-4
    assert max(gains) > 0.0
    for atoms in after:
        _check(atoms, substrate, "Ag2O")


@pytest.mark.slow
@pytest.mark.parametrize("strength", [1e-2, 1e12])
def test_guidance_by_huge_forces_of_random_weights_stays_in_the_window(
    make: Make, model: Model, substrate: Atoms, strength: float
) -> None:
    scale = model.force_field.scale.clone()
    try:
        model.force_field.scale.fill_(1e6)
        settings = replace(PRESETS["paper"], steps=1000, guidance=strength)
        result = make(n=2, settings=settings)
    finally:
        model.force_field.scale.copy_(scale)
    levels = LinearBeta().grid(1000)
    assert result.n_force_calls == 2 * int((levels >= 0.02).sum())  # none below what the network has learned
    for atoms in result.structures:
        _check(atoms, substrate, "Ag2O")


def test_guidance_by_huge_forces_for_a_few_steps(make: Make, model: Model, substrate: Atoms) -> None:
    scale = model.force_field.scale.clone()
    try:
        model.force_field.scale.fill_(1e30)
        result = make(settings=replace(PRESETS["paper"], steps=20, guidance=1e12))
    finally:
        model.force_field.scale.copy_(scale)
    for atoms in result.structures:
        _check(atoms, substrate, "Ag2O")


def _refused(make: Make, text: str, **arguments: object) -> None:
    with pytest.raises(UserError, match=text) as error:
        make(**arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_generated(make: Make, substrate: Atoms) -> None:
    _refused(make, r"formula holds Cu, which the model does not know: it was trained on Ag, O", formula="Cu2O")
    _refused(make, r"n is 0: ask for at least 1", n=0)
    _refused(make, r'solver "rk4" is unknown: choose one of', settings=replace(QUICK, solver="rk4"))
    _refused(make, r"steps is 0: ask for at least 1", settings=replace(QUICK, steps=0))
    gold = build_substrate("Au(111)", "p(2x2)", layers=2, window=(1.0, 4.0))
    _refused(make, r"substrate holds Au, which the model does not know", substrate=gold)
    bare = substrate.copy()
    bare.info = {}
    _refused(make, r"confinement|window", substrate=bare)


@pytest.mark.parametrize("window", [(2.0, 5.0), (0.5, 1.5)])
def test_windows_that_exclude_the_data(make: Make, window: tuple[float, float]) -> None:
    """Half of the model's overlayer atoms lie between 1.3 and 2.2 Å."""
    narrow = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.16, window=window)
    _refused(make, r"window .* excludes the model's data, most of which lie between 1.30 and 2.20", substrate=narrow)
    fits = build_substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.16, window=(1.2, 2.3))
    assert len(make(substrate=fits, n=1).structures) == 1


def test_another_superstructure(make: Make) -> None:
    oblique = build_substrate("Ag(111)", "[[3,1],[-1,2]]", layers=1, fixed_layers=0, lattice=4.16, window=(1.0, 4.0))
    for atoms in make("Ag3O2", n=2, substrate=oblique).structures:
        _check(atoms, oblique, "Ag3O2")


@pytest.mark.parametrize("solver", SOLVERS)
def test_symmetric_samples_keep_their_symmetry(make: Make, solver: str) -> None:
    """Prior, noise and score: what was drawn with a symmetry ends with it, whatever the network says."""
    settings = replace(QUICK, solver=solver, corrector=1, guidance=0.01, guidance_gate=None)
    plain = make("Ag3O3", n=6, settings=settings).structures
    assert {describe_symmetry(a, tolerance=0.01).plane_group for a in plain} == {"p1"}
    whole = make("Ag3O3", n=6, settings=replace(settings, symmetry=1.0)).structures
    assert "p1" not in {describe_symmetry(a, tolerance=0.01).plane_group for a in whole}
    for atoms in whole:
        low, high = atoms.info["confinement"]
        assert low <= _overlayer(atoms)[:, 2].min() <= _overlayer(atoms)[:, 2].max() <= high
    some = make("Ag3O3", n=12, settings=replace(settings, symmetry=0.5)).structures
    assert 2 <= sum(describe_symmetry(a, tolerance=0.01).plane_group == "p1" for a in some) <= 10


def test_symmetric_samples_do_not_depend_on_their_block(make: Make) -> None:
    settings = replace(QUICK, symmetry=0.7)
    alone, together = (make(n=4, settings=settings, block=k).structures for k in (1, 4))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, atol=1e-3)


def test_a_cell_without_symmetry_is_no_obstacle(make: Make) -> None:
    oblique = build_substrate("Ag(111)", "[[2,0],[1,3]]", layers=2, lattice=4.16, window=(1.0, 4.0))
    for atoms in make(substrate=oblique, settings=replace(QUICK, symmetry=1.0)).structures:
        _check(atoms, oblique, "Ag2O")


def test_a_share_beyond_one_is_refused(make: Make) -> None:
    with pytest.raises(UserError, match=r"symmetry is 1\.5: give a share of the structures between 0 and 1"):
        make(settings=replace(QUICK, symmetry=1.5))

"""Training: resumed equals uninterrupted, losses fall, what is drawn is drawn right."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adlayer.diffusion.kernels import ExactKernel, PaperKernel
from adlayer.diffusion.schedule import LinearBeta, sigma_max_for
from adlayer.errors import UserError
from adlayer.network.model import Architecture, Model
from adlayer.training import drawing, gradients, trainer
from adlayer.training.checkpoint import TrainingState, load_state, save_state
from adlayer.training.dataset import Dataset, composition_baseline
from adlayer.training.losses import collate, denoising_loss, force_field_loss
from adlayer.training.settings import Settings, make_kernel
from adlayer.training.trainer import Report, make_model, state_key, train

SETTINGS = Settings(steps=8, batch=4, force_batch=2, warmup=3, average=0.9, repeats=((1, 1), (2, 1)))


def _equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class StopError(Exception):
    """Planted interruption."""


def test_resumed_is_uninterrupted_bit_for_bit(dataset: Dataset, tiny: Architecture, tmp_path: Path) -> None:
    whole = train(dataset, tiny, SETTINGS)
    path = tmp_path / "state"

    def save_and_stop(state: TrainingState) -> None:
        save_state(path, state)
        if state.step == 4:
            raise StopError

    with pytest.raises(StopError):
        train(dataset, tiny, SETTINGS, every=0.0, on_state=save_and_stop)
    state = load_state(path)
    assert state.step == 4
    steps: list[int] = []
    resumed = train(dataset, tiny, SETTINGS, state=state, progress=lambda step, fraction, loss: steps.append(step))
    assert steps == [5, 6, 7, 8]
    assert _equal(whole, resumed)
    assert not _equal(whole, train(dataset, tiny, replace(SETTINGS, steps=7)))
    forgetful = replace(state, optimizer=state.optimizer | {"state": {}})  # planted
    assert not _equal(whole, train(dataset, tiny, SETTINGS, state=forgetful))


def test_nothing_to_train_is_refused(dataset: Dataset, tiny: Architecture) -> None:
    with pytest.raises(UserError, match="there is nothing to train"):
        train(dataset, tiny, replace(SETTINGS, batch=0, force_batch=0))


def test_validation_takes_nothing_from_the_training(dataset: Dataset, tiny: Architecture) -> None:
    """States saved often, or never before the end, change no bit."""
    often: list[Report] = []
    saved: list[int] = []
    settings = replace(SETTINGS, validate_every=3)
    watched = train(
        dataset, tiny, settings, every=0.0,
        on_report=lambda model, report: often.append(report), on_state=lambda state: saved.append(state.step),
    )  # fmt: skip
    assert [r.step for r in often] == [3, 6, 8]
    assert saved == list(range(9))
    assert _equal(watched, train(dataset, tiny, settings))
    assert watched.card.n_steps == 8
    assert watched.card.validation["score_loss"] == min(r.validation_score for r in often)
    assert all(np.isfinite([r.validation_score, r.validation_energy, r.validation_force]).all() for r in often)


def test_each_network_is_kept_at_its_best(dataset: Dataset, tiny: Architecture) -> None:
    """By made-up validations: the denoiser best at step 2, the force field at step 3; a resumed training knows both."""
    settings = replace(SETTINGS, steps=4, validate_every=1)
    averages: dict[int, Model] = {}
    states: dict[int, TrainingState] = {}
    scores = {1: (1.0, 0.02, 0.3), 2: (0.5, 0.02, 0.3), 3: (0.7, 0.01, 0.3), 4: (0.6, 0.009, 0.4)}

    class Planted(trainer.Validation):
        def __call__(self, model: Model) -> tuple[float, float, float]:
            averages[len(averages) + 1] = copy.deepcopy(model)
            return scores[len(averages)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Validation", Planted)
        best = train(dataset, tiny, settings, on_state=lambda s: states.update({s.step: copy.deepcopy(s)}))
        assert _equal(best.denoiser, averages[2].denoiser)
        assert _equal(best.force_field, averages[3].force_field)
        assert best.card.validation == {
            "score_loss": 0.5, "score_step": 2, "energy_mae": 0.01, "force_mae": 0.3, "force_field_step": 3
        }  # fmt: skip
        for _ in range(2):
            averages.popitem()
        resumed = train(dataset, tiny, settings, state=states[2])
    assert _equal(best, resumed)


def test_same_seed_same_model(dataset: Dataset, tiny: Architecture) -> None:
    short = replace(SETTINGS, steps=2)
    assert _equal(train(dataset, tiny, short), train(dataset, tiny, short))
    assert not _equal(train(dataset, tiny, short), train(dataset, tiny, replace(short, seed=1)))


def test_training_lowers_both_losses(dataset: Dataset, tiny: Architecture) -> None:
    settings = replace(SETTINGS, steps=160, learning_rate=5e-3, warmup=5)
    model = make_model(dataset, tiny, settings).eval()
    validation = trainer.Validation(replace(dataset, validation=dataset.train), model.card, settings)
    trained = train(dataset, tiny, settings)
    assert validation(trained)[0] < 0.985 * validation(model)[0]
    before, after = (float(force_field_loss(m, dataset.frames)[0].detach()) for m in (model, trained))
    assert after < 0.97 * before


def test_a_fixed_batch_is_learned(dataset: Dataset, tiny: Architecture) -> None:
    model = make_model(dataset, tiny, SETTINGS)
    examples = dataset.train[:2]
    batch = collate(examples, [(e.top + 0.5, e.top + 5.0) for e in examples])
    sigma, conditions = torch.tensor([0.2, 0.5]), torch.full((2, 2), float("nan"))
    normal = torch.randn(int(batch.mobile.sum()), 3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        score = denoising_loss(model, ExactKernel(), batch, sigma, conditions, normal)
        force, *_ = force_field_loss(model, dataset.frames[:2])
        (score + force).backward()
        optimizer.step()
        losses.append((float(score.detach()), float(force.detach())))
    assert losses[-1][0] < 0.2 * losses[0][0]
    assert losses[-1][1] < 0.5 * losses[0][1]


def test_a_silent_denoiser_has_a_loss_of_three(dataset: Dataset, tiny: Architecture) -> None:
    """One for each Cartesian component, at every noise level: 5 standard errors of 1500 atoms."""
    model = make_model(dataset, tiny, SETTINGS)
    torch.nn.init.zeros_(model.denoiser.read_out.mix.weight)
    examples = dataset.train * 75
    batch = collate(examples, [(e.top, e.top + 6.0) for e in examples])
    normal = torch.randn(int(batch.mobile.sum()), 3, generator=torch.Generator().manual_seed(0))
    conditions = torch.full((len(examples), 2), float("nan"))
    for level in (0.05, 0.5):
        sigma = torch.full((len(examples),), level)
        with torch.no_grad():
            loss = float(denoising_loss(model, ExactKernel(), batch, sigma, conditions, normal))
        assert loss == pytest.approx(3.0, abs=5.0 * np.sqrt(6.0 / len(normal)))


def test_a_new_model_knows_its_data(dataset: Dataset, tiny: Architecture) -> None:
    model = make_model(dataset, tiny, SETTINGS)
    heights = np.concatenate([e.heights for e in dataset.train])
    np.testing.assert_allclose(model.card.heights, np.quantile(heights, [0.05, 0.25, 0.75, 0.95]))
    assert model.card.elements == ("Ag", "O")
    np.testing.assert_allclose(model.force_field.baseline, composition_baseline(dataset.frames, [47, 8]))
    assert model.card.compositions == {"Ag2O": 3, "Ag2O2": 3, "AgO2": 3}
    assert model.card.n_structures == 9


def test_walls_are_drawn_beyond_the_atoms(dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    for example in dataset.train:
        walls = drawing.random_windows([example] * 200, rng)
        z = example.positions[example.mobile, 2]
        assert walls[:, 0].max() < z.min()
        assert walls[:, 1].min() > z.max()
        assert (walls - example.top).min() >= min(0.6, z.min() - example.top - 0.02)
        assert (walls - example.top).max() <= max(6.0, z.max() - example.top + 0.02)
        assert walls.std(axis=0).min() > 0.01


def test_conditions_say_energy_and_composition_or_nothing(dataset: Dataset, tiny: Architecture) -> None:
    card = make_model(dataset, tiny, SETTINGS).card
    rng = np.random.default_rng(0)
    example = dataset.train[0]
    share = np.mean(example.numbers[example.mobile] == 8)
    rows = drawing.conditions([example] * 2000, card, rng, 0.3)
    given = ~torch.isnan(rows)
    np.testing.assert_allclose(rows[given[:, 0], 0], example.energy_above, rtol=1e-6)
    np.testing.assert_allclose(rows[given[:, 1], 1], share, rtol=1e-6)
    np.testing.assert_allclose(given.double().mean(0), 0.7, atol=0.05)  # five standard errors
    assert abs(float((given[:, 0] & given[:, 1]).double().mean()) - 0.49) < 0.06  # dropped independently


def test_noise_levels_cover_the_schedule(dataset: Dataset) -> None:
    batch = collate(dataset.train[:1] * 500, [(10.0, 14.0)] * 500)
    u = torch.linspace(0.0, 1.0, 500)
    exact = drawing.draw_sigma(u, batch, SETTINGS)
    top = sigma_max_for(batch.cell, batch.window)
    assert float(exact[0]) == pytest.approx(0.02)
    assert float(exact[-1]) == pytest.approx(float(top[-1]))
    np.testing.assert_allclose(exact.log().diff(), exact.log().diff().mean(), rtol=1e-2)
    paper = drawing.draw_sigma(u, batch, replace(SETTINGS, kernel="paper"))
    np.testing.assert_allclose(paper[1:], LinearBeta().sigma(u[1:]))
    assert isinstance(make_kernel("paper"), PaperKernel)


@pytest.mark.parametrize("kernel", ["exact", "paper"])
def test_both_kernels_train(dataset: Dataset, tiny: Architecture, kernel: str) -> None:
    model = train(dataset, tiny, replace(SETTINGS, steps=2, kernel=kernel))
    assert model.card.kernel == kernel
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_learning_rate_warms_up_and_ends_at_one_percent() -> None:
    settings = Settings(steps=1000, warmup=100, learning_rate=1.0)
    rates = np.array([trainer._rate(settings, step, 0.0) for step in range(1001)])
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates.argmax() == 99
    assert rates[500] == pytest.approx(0.505)
    assert rates[1000] == pytest.approx(0.01)
    assert trainer._rate(Settings(seconds=60.0, warmup=1, learning_rate=1.0), 10**6, 30.0) == pytest.approx(0.505)


def test_a_state_goes_on_under_any_length_but_the_same_settings_and_data(dataset: Dataset) -> None:
    key = state_key(SETTINGS, dataset)
    assert key == state_key(replace(SETTINGS, steps=10**6, seconds=5.0), dataset)
    assert key != state_key(replace(SETTINGS, batch=5), dataset)
    assert key != state_key(SETTINGS, replace(dataset, data_hash="other"))


@pytest.mark.parametrize("network", ["denoiser", "force field"])
def test_gradients_in_parts_are_those_of_the_whole(
    network: str, dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five structures or frames at once, or two, two and one: what is drawn does not depend on it."""
    settings = Settings(batch=5, force_batch=5)
    found = []
    atoms = max(len(f.numbers) for f in dataset.frames)
    for block in (10, 2):
        monkeypatch.setattr(drawing, "BLOCK_ATOMS", block * atoms)
        model = make_model(dataset, tiny, settings).train()
        if network == "denoiser":
            loss = gradients.denoiser_gradients(model, dataset, make_kernel("exact"), settings, 3)
        else:
            loss = gradients.force_field_gradients(model, dataset, settings, 3)
        found.append([torch.tensor(loss), *(p.grad for p in model.parameters() if p.grad is not None)])
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-5)


def test_blocks_hold_all_in_turn_and_no_more_atoms_than_they_may(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = dataset.frames[:6]
    sizes = [len(f.numbers) for f in frames]
    for atoms in (1, max(sizes), 2 * max(sizes), sum(sizes)):
        monkeypatch.setattr(drawing, "BLOCK_ATOMS", atoms)
        blocks = drawing.blocks(frames, torch.device("cpu"))
        assert [f for block in blocks for f in block] == frames
        assert all(len(b) == 1 or sum(len(f.numbers) for f in b) <= atoms for b in blocks)
        assert len(blocks) == {1: len(frames), sum(sizes): 1}.get(atoms, len(blocks))


def test_a_model_learns_on_from_another(dataset: Dataset, tiny: Architecture) -> None:
    """With no structures in a step, the denoiser stays as it was and the force field goes on from where it was."""
    first = train(dataset, tiny, SETTINGS)
    still = train(dataset, Architecture(), replace(SETTINGS, batch=0, learning_rate=0.0), start=first)
    assert still.card.architecture == tiny  # the start's, whatever is asked for
    assert _equal(first, still)
    on = train(dataset, tiny, replace(SETTINGS, batch=0), start=first)
    assert _equal(first.denoiser, on.denoiser)
    assert not _equal(first.force_field, on.force_field)
    assert torch.equal(first.force_field.baseline, on.force_field.baseline)


def test_a_start_that_does_not_fit_is_refused(dataset: Dataset, tiny: Architecture) -> None:
    first = make_model(dataset, tiny, SETTINGS)
    with pytest.raises(UserError, match="to start from has the kernel exact, the training paper"):
        train(dataset, tiny, replace(SETTINGS, kernel="paper"), start=first)
    first.card = replace(first.card, elements=("Ag",))
    with pytest.raises(UserError, match="hold O, which the model to start from does not know: it knows Ag"):
        train(dataset, tiny, SETTINGS, start=first)

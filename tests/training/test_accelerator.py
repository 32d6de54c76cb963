"""Training on an accelerator, pretended (:mod:`stand_in`) or real: nothing stays behind, the numbers are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stand_in import AtOnce, accelerator

from adlayer.network.model import Architecture, Model
from adlayer.training import losses, trainer
from adlayer.training.checkpoint import TrainingState, load_model, load_state, save_model, save_state
from adlayer.training.dataset import Dataset
from adlayer.training.gradients import denoiser_gradients, force_field_gradients
from adlayer.training.settings import Settings, make_kernel
from adlayer.training.trainer import Report, make_model, train

SETTINGS = Settings(steps=4, batch=4, force_batch=3, warmup=3, validate_every=2, repeats=((1, 1), (2, 1)))


def _gradients(model: Model, dataset: Dataset, settings: Settings) -> list[torch.Tensor]:
    """Both losses and the gradients of all parameters in one step."""
    score = denoiser_gradients(model, dataset, make_kernel(settings.kernel), settings, 0)
    force = force_field_gradients(model, dataset, settings, 0)
    return [torch.tensor([score, force]), *(p.grad for p in model.parameters() if p.grad is not None)]


def _compare(there: list[torch.Tensor], here: list[torch.Tensor]) -> None:
    assert len(there) == len(here) > 20
    for a, b in zip(there, here, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0.0, atol=1e-3 * float(b.abs().max()) + 1e-6)


@pytest.mark.parametrize("kernel", ["exact", "paper"])
def test_losses_and_gradients(kernel: str, dataset: Dataset, tiny: Architecture) -> None:
    settings = replace(SETTINGS, kernel=kernel)
    here = _gradients(make_model(dataset, tiny, settings).train(), dataset, settings)
    with accelerator() as device:
        there = _gradients(make_model(dataset, tiny, settings).to(device).train(), dataset, settings)
        assert {x.device for x in there[1:]} == {device}
        _compare(there, here)


def test_a_target_left_behind_is_seen(dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the frames' forces on the CPU."""
    collate_frames = losses.collate_frames

    def wrong(*arguments: object) -> tuple:
        batch, energies, forces = collate_frames(*arguments)  # type: ignore[arg-type]
        return batch, energies, forces.cpu()

    monkeypatch.setattr(losses, "collate_frames", wrong)
    _gradients(make_model(dataset, tiny, SETTINGS).train(), dataset, SETTINGS)
    with accelerator() as device, pytest.raises(RuntimeError, match="mixes tensors"):
        _gradients(make_model(dataset, tiny, SETTINGS).to(device).train(), dataset, SETTINGS)


def _trained(dataset: Dataset, size: Architecture, device: torch.device | str) -> tuple[Model, list[Report]]:
    reports: list[Report] = []
    model = train(dataset, size, SETTINGS, device=device, on_report=lambda model, report: reports.append(report))
    assert model.device == torch.device(device) or model.device.type == device
    return model, reports


def _alike(there: list[Report], here: list[Report], tolerance: float) -> None:
    for a, b in zip(there, here, strict=True):
        for name in ("score_loss", "force_field_loss", "validation_score", "validation_energy", "validation_force"):
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=tolerance), name


def test_a_whole_training(dataset: Dataset, tiny: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, averages, validation: the same losses."""
    _, here = _trained(dataset, tiny, "cpu")
    monkeypatch.setattr(trainer, "ThreadPoolExecutor", AtOnce)
    with accelerator() as device:
        _, there = _trained(dataset, tiny, device)
    _alike(there, here, 1e-3)


def test_a_model_is_loaded_onto_the_device(dataset: Dataset, tiny: Architecture, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = make_model(dataset, tiny, SETTINGS)
    save_model(path, model)
    with accelerator() as device:
        there = load_model(path, device)
        assert {x.device for x in (*there.parameters(), *there.buffers())} == {device}
        for a, b in zip(there.state_dict().values(), model.state_dict().values(), strict=True):
            assert torch.equal(a.cpu(), b)


@pytest.mark.gpu
def test_the_same_gradients_on_a_gpu(dataset: Dataset, tiny: Architecture) -> None:
    here = _gradients(make_model(dataset, tiny, SETTINGS).train(), dataset, SETTINGS)
    _compare(_gradients(make_model(dataset, tiny, SETTINGS).to("cuda").train(), dataset, SETTINGS), here)


@pytest.mark.gpu
def test_a_training_begun_on_a_gpu_goes_on_anywhere(dataset: Dataset, tiny: Architecture, tmp_path: Path) -> None:
    """Models and states from there are read here, and a few steps give the same losses."""
    here = _trained(dataset, tiny, "cpu")[1]
    model, there = _trained(dataset, tiny, "cuda")
    _alike(there, here, 1e-2)
    save_model(tmp_path / "model.safetensors", model)
    assert load_model(tmp_path / "model.safetensors").device.type == "cpu"

    def keep(state: TrainingState) -> None:
        if state.step == 2:
            save_state(tmp_path / "state", state)

    train(dataset, tiny, replace(SETTINGS, steps=3), device="cuda", every=0.0, on_state=keep)
    for device in ("cpu", "cuda"):
        reports: list[Report] = []
        train(
            dataset, tiny, SETTINGS, state=load_state(tmp_path / "state"), device=device,
            on_report=lambda model, report, reports=reports: reports.append(report),
        )  # fmt: skip
        assert np.isclose(reports[-1].validation_score, there[-1].validation_score, rtol=1e-2)

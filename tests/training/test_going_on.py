"""The verb's function ``train``: interrupted, it goes on when it is called again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from adlayer.errors import UserError
from adlayer.network.model import Architecture
from adlayer.study.training import train
from adlayer.training.checkpoint import load_model, load_state, state_path
from adlayer.training.dataset import Dataset


def test_the_same_call_again_goes_on(
    dataset: Dataset, tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other settings it says that it begins anew, or, where it must go on, that it cannot."""
    monkeypatch.setattr("adlayer.network.model.Architecture", lambda: tiny)
    database, options = str(tmp_path / "made-up.db"), {"batch": 2, "steps": 6, "every": 0.0}
    whole, model = str(tmp_path / "whole.safetensors"), str(tmp_path / "model.safetensors")
    train(database, whole, **options)

    def stop(step: int, fraction: float, loss: float) -> None:
        if step == 4:
            raise KeyboardInterrupt

    def interrupted() -> None:
        with pytest.raises(KeyboardInterrupt):
            train(database, model, **options, progress=stop)

    told: list[str] = []
    interrupted()
    train(database, model, **options, message=told.append)
    assert "goes on at step 4, where it was interrupted" in told
    assert not state_path(model).exists()
    expected, found = load_model(whole).state_dict(), load_model(model).state_dict()
    assert all(bool((found[name] == tensor).all()) for name, tensor in expected.items())

    interrupted()
    with pytest.raises(UserError, match="belongs to other data or settings: repeat those"):
        train(database, model, **options, seed=1, resume=True)
    train(database, model, **options, seed=1, message=told.append)
    assert any("begins anew" in text for text in told)
    with pytest.raises(UserError, match="there is no training state"):
        train(database, model, **options, resume=True)


def test_a_signal_is_heard_after_the_step(
    dataset: Dataset, tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of that very step is kept; handlers are as they were."""
    monkeypatch.setattr("adlayer.network.model.Architecture", lambda: tiny)
    database, model, steps = str(tmp_path / "made-up.db"), str(tmp_path / "model.safetensors"), list[int]()

    def signalled(step: int, fraction: float, loss: float) -> None:
        steps.append(step)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(database, model, batch=2, steps=6, progress=signalled)
    assert steps == [1, 2, 3]
    assert load_state(state_path(model)).step == 3
    assert signal.getsignal(signal.SIGINT) is before
    train(database, model, batch=2, steps=6, progress=lambda step, fraction, loss: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_training_from_another_model_is_another_training(
    dataset: Dataset, tiny: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adlayer.network.model.Architecture", lambda: tiny)
    database, model = str(tmp_path / "made-up.db"), str(tmp_path / "model.safetensors")
    starts = [str(tmp_path / f"start-{seed}.safetensors") for seed in (0, 1)]
    for seed, start in enumerate(starts):
        train(database, start, batch=2, steps=1, seed=seed)

    def stop(step: int, fraction: float, loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(database, model, batch=2, steps=2, start=starts[0], every=0.0, progress=stop)
    told: list[str] = []
    train(database, model, batch=2, steps=2, start=starts[1], message=told.append)
    assert any("begins anew" in text for text in told)
    assert load_model(model).card.training["start"] != load_model(starts[0]).card.training["start"]

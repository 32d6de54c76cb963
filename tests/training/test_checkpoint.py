"""Model files and training states: what comes back, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ase import Atoms
from safetensors.torch import load_file, save_file

from adlayer.errors import UserError
from adlayer.network.graph import Batch, to_batch
from adlayer.network.model import Architecture, Model
from adlayer.training.checkpoint import (
    TrainingState,
    load_model,
    load_state,
    model_hash,
    read_header,
    save_model,
    save_state,
    state_path,
)
from adlayer.training.dataset import Dataset
from adlayer.training.settings import Settings
from adlayer.training.trainer import make_model


@pytest.fixture
def model(dataset: Dataset, tiny: Architecture) -> Model:
    model = make_model(dataset, tiny, Settings(steps=1)).eval()
    model.card = replace(model.card, n_steps=7, validation={"score_loss": 1.25})
    return model


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    return path


def _refused(path: Path, text: str) -> None:
    """Refused with one sentence that names the file, by whichever of the two readers meets the fault."""
    with pytest.raises(UserError, match=text) as error:
        load_model(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def _outputs(model: Model, substrate: Atoms) -> list[torch.Tensor]:
    atoms = substrate + Atoms("AgO", [[1.0, 1.0, 0.0], [3.0, 2.0, 0.0]], tags=0)
    atoms.positions[-2:, 2] += substrate.positions[:, 2].max() + 2.0
    atoms.info = dict(substrate.info)
    batch: Batch = to_batch([atoms])
    score = model.denoiser(batch, torch.tensor([0.3]), torch.tensor([[0.1, 0.5]]))
    energy, forces = model.force_field(batch)
    return [score, forces, model.force_field.total_energy(batch, energy)]


def test_round_trip_is_exact(model: Model, saved: Path, made_up: Any) -> None:
    loaded = load_model(saved)
    assert not loaded.training
    for a, b in zip(_outputs(model, made_up.substrate), _outputs(loaded, made_up.substrate), strict=True):
        assert torch.equal(a, b)
    assert replace(loaded.card, training={}) == replace(model.card, training={})
    assert json.loads(json.dumps(model.card.training)) == loaded.card.training
    assert loaded.force_field.baseline.dtype == torch.float64
    assert read_header(saved)["format"] == 2


def test_the_fingerprint_is_that_of_the_content(model: Model, saved: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    save_model(again, model)
    with torch.no_grad():
        model.force_field.scale.mul_(1.0001)
    save_model(other, model)
    assert model_hash(saved) == model_hash(again) != model_hash(other)
    assert model_hash(saved).isidentifier()


def test_writing_leaves_the_old_file_until_the_new_one_is_whole(
    model: Model, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(saved, model)
    assert saved.read_bytes() == before


def test_missing_file(tmp_path: Path) -> None:
    _refused(tmp_path / "none.safetensors", "there is no model .*: train one")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_truncated_file(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    _refused(saved, "damaged or no model file .*: train it again or fetch a whole copy")


def test_foreign_safetensors(saved: Path) -> None:
    save_file({"weight": torch.ones(2)}, saved)
    _refused(saved, "is not a model of Adlayer: give a file")


@pytest.mark.parametrize("text", ["[]", "{}", "no JSON", '{"format": null}', '{"format": "one"}'])
def test_safetensors_with_an_odd_header(saved: Path, text: str) -> None:
    save_file({"weight": torch.ones(2)}, saved, metadata={"adlayer": text})
    _refused(saved, "is not a model of Adlayer: give a file")


def _with_header(saved: Path, change: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None) -> None:
    header = read_header(saved) | change
    save_file(load_file(saved) if tensors is None else tensors, saved, metadata={"adlayer": json.dumps(header)})


def test_newer_format(saved: Path) -> None:
    _with_header(saved, {"format": 3})
    _refused(saved, "has format 3, newer than this version's 2: update adlayer")


def test_format_1_knew_no_lift(dataset: Dataset, tiny: Architecture, tmp_path: Path, made_up: Any) -> None:
    path = tmp_path / "old.safetensors"
    old = make_model(dataset, replace(tiny, lift=0.0), Settings(steps=1)).eval()
    save_model(path, old)
    card = old.card.plain()
    del card["architecture"]["lift"]
    _with_header(path, {"format": 1, "card": card})
    for a, b in zip(_outputs(old, made_up.substrate), _outputs(load_model(path), made_up.substrate), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("card", [None, {}, {"elements": ["Ag"], "kernel": "exact", "sigma_min": 0.02, "colour": 1}])
def test_unreadable_card(saved: Path, card: object) -> None:
    _with_header(saved, {"card": card})
    _refused(saved, "has an unreadable card .*: train it again")


def test_lacking_tensors(saved: Path) -> None:
    tensors = load_file(saved)
    tensors.pop("denoiser.read_out.mix.weight")
    _with_header(saved, {}, tensors)
    _refused(saved, "lacks tensors of its own architecture: train it again")


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self.path, "w"))


@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_nothing_is_executed(tmp_path: Path, writer: str) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "model.safetensors"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung)))
    else:
        torch.save({"weights": Trap(sprung)}, path)
    _refused(path, "damaged or no model file")
    with pytest.raises(UserError, match="is damaged: remove it and start without --resume"):
        load_state(path)
    assert not sprung.exists()
    if writer == "pickle":
        pickle.loads(path.read_bytes()).close()  # the trap works where something is executed
        assert sprung.exists()


def test_places_that_cannot_be_written(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        save_model(tmp_path, model)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written .*: choose another place"):
        save_model(tmp_path / "file" / "model.safetensors", model)


def test_state_round_trip(model: Model, tmp_path: Path) -> None:
    path = state_path(tmp_path / "model.safetensors")
    assert path.name == "model.safetensors.state"
    optimizer = torch.optim.AdamW(model.parameters())
    sum(p.sum() for p in model.parameters()).backward()
    optimizer.step()
    state = TrainingState(
        3, 1.5, model.state_dict(), model.state_dict(), {}, {"score_loss": 1.0}, optimizer.state_dict(), "{}"
    )
    save_state(path, state)
    back = load_state(path)
    assert (back.step, back.elapsed, back.settings) == (3, 1.5, "{}")
    assert all(torch.equal(back.weights[name], tensor) for name, tensor in model.state_dict().items())
    for k, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(back.optimizer["state"][k][name], value) for name, value in entry.items())


def test_state_missing_or_truncated(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.state"
    with pytest.raises(UserError, match=r"there is no training state .* to resume: start without --resume"):
        load_state(path)
    save_state(path, TrainingState(0, 0.0, model.state_dict(), {}, {}, {}, {}, "{}"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged: remove it"):
        load_state(path)

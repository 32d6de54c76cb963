"""Model files and training states.

A model is one safetensors file: tensors, and a JSON text under the metadata key ``adlayer`` with the format version
and the model's card. Loading it executes nothing. The state of an unfinished training (optimizer, averages, step)
lies beside it in ``MODEL.state`` and is read with ``weights_only``.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise

from adlayer import __version__
from adlayer.errors import UserError
from adlayer.network.model import Architecture, Card, Model
from adlayer.structures.store import check_writable, replacing

FORMAT = 2


def save_model(path: str | os.PathLike[str], model: Model) -> None:
    """Write a model file, atomically.

    Raises
    ------
    UserError
        If the place cannot be written.
    """
    check_writable(path)
    header = {"format": FORMAT, "version": __version__, "card": model.card.plain()}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as partial:
        partial.write_bytes(serialise(tensors, metadata={"adlayer": json.dumps(header)}))


def _check_there(path: str | os.PathLike[str]) -> None:
    if not Path(path).is_file():
        raise UserError(f"there is no model {path}: train one with adlayer train, or name the file of one")


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON header of a model file: ``format``, ``version``, ``card``.

    Raises
    ------
    UserError
        If the file is missing, truncated, no model of ours, or of a newer format.
    """
    _check_there(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
        header: dict[str, Any] = json.loads(metadata["adlayer"])
        version = int(header["format"])
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"model {path} is damaged or no model file ({error}): train it again or fetch a whole copy"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a model of Adlayer: give a file written by adlayer train") from error
    if version > FORMAT:
        raise UserError(f"model {path} has format {version}, newer than this version's {FORMAT}: update adlayer")
    return header


def load_model(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
    """A model from its file, ready for use on a device.

    Raises
    ------
    UserError
        As :func:`read_header`, and if tensors are missing.
    """
    header = read_header(path)
    try:
        fields = dict(header["card"])
        if header["format"] < 2:
            fields["architecture"] = {**fields["architecture"], "lift": 0.0}  # did not exist
        fields["architecture"] = Architecture(**fields["architecture"])
        fields["elements"], fields["heights"] = tuple(fields["elements"]), tuple(fields["heights"])
        model = Model(Card(**fields))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model {path} has an unreadable card ({error}): train it again or fetch a whole copy"
        ) from error
    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"model {path} lacks tensors of its own architecture: train it again or fetch a whole copy"
        ) from error
    return model.to(device).eval()


def model_hash(path: str | os.PathLike[str]) -> str:
    """Short fingerprint of a model file; starts with a letter, as ASE's databases need.

    Raises
    ------
    UserError
        If there is none.
    """
    _check_there(path)
    return "m" + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


@dataclass
class TrainingState:
    """What a resumed training goes on from."""

    step: int
    elapsed: float  # s
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    best: dict[str, torch.Tensor]  # averaged weights, of each network where it was validated best
    best_scores: dict[str, float]
    optimizer: dict[str, Any]
    settings: str  # JSON: a state goes on only under the settings that it was made with


def state_path(model_path: str | os.PathLike[str]) -> Path:
    """Where the state of a training lies."""
    return Path(f"{model_path}.state")


def save_state(path: Path, state: TrainingState) -> None:
    """Write a training state, atomically."""
    with replacing(path) as partial:
        torch.save(vars(state), partial)


def load_state(path: Path) -> TrainingState:
    """Read a training state without executing anything in it; its tensors are on the CPU, wherever they were.

    Raises
    ------
    UserError
        If it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no training state {path} to resume: start without --resume")
    try:
        return TrainingState(**torch.load(path, weights_only=True, map_location="cpu"))
    except Exception as error:
        raise UserError(f"training state {path} is damaged: remove it and start without --resume") from error

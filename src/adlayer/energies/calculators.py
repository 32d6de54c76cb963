"""Energy backends by name or import path.

A *specification* is text: a known name (``sevennet``), a known name with arguments (``sevennet?model=7net-l3i5``),
our own force field (``model:PATH``), or any importable factory of ASE calculators
(``mypackage.module:factory?key=value``). It travels to worker processes as text, and :func:`identify` turns it into the
record that is stored with every energy.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from ase.calculators.calculator import BaseCalculator

from adlayer.errors import UserError

DEFAULT = "sevennet"


def _sevennet(model: str = "7net-0", **arguments: Any) -> BaseCalculator:
    from sevenn.calculator import SevenNetCalculator

    from adlayer.energies import sevennet

    upstream = SevenNetCalculator(model, device="cpu", **arguments)
    return sevennet.fast(upstream) or upstream


def _chgnet(**arguments: Any) -> BaseCalculator:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", **arguments)


def _mace(**arguments: Any) -> BaseCalculator:
    from mace.calculators import mace_mp

    return mace_mp(device="cpu", default_dtype="float64", **arguments)


def _emt(**arguments: Any) -> BaseCalculator:
    from ase.calculators.emt import EMT

    return EMT(**arguments)


def _gpaw(**arguments: Any) -> BaseCalculator:
    from gpaw import GPAW

    settings = {"mode": "lcao", "basis": "dzp", "xc": "PBE", "kpts": (2, 2, 1), "txt": None}
    return GPAW(**{**settings, **arguments})


@dataclass(frozen=True)
class Backend:
    """A known energy backend: how it is made, which package brings it, and what to say of it."""

    make: Callable[..., BaseCalculator]
    package: str
    extra: str | None
    note: str


BACKENDS = {
    "sevennet": Backend(_sevennet, "sevenn", "sevennet", "SevenNet-0, universal potential, the default"),
    "chgnet": Backend(_chgnet, "chgnet", "chgnet", "CHGNet 0.3.0, universal potential"),
    "mace": Backend(_mace, "mace", "mace", "MACE-MP; weights must be on disk; not in one environment with sevennet"),
    "emt": Backend(_emt, "ase", None, "effective medium theory: clean metals and tests only, wrong for oxygen"),
    "gpaw": Backend(_gpaw, "gpaw", "gpaw", "density functional theory, LCAO PBE by default"),
}


_LEARNED = "adlayer.training.learned:LearnedCalculator"  # a higher layer: found by its path, like a user's own factory


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _split(specification: str) -> tuple[str, dict[str, Any]]:
    name, _, query = specification.partition("?")
    return name, {k: _value(v) for k, v in parse_qsl(query)}


def _import_factory(name: str) -> Callable[..., BaseCalculator]:
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f'calculator "{name}" cannot be imported ({error}): check the path module:factory') from error
    return factory


def check_calculator(specification: str) -> None:
    """Raise :class:`UserError` at once if the backend is unknown or its package missing (nothing is loaded)."""
    name, _ = _split(specification)
    if name.startswith("model:"):
        if not Path(name[6:]).is_file():
            raise UserError(f'calculator "{name}": there is no file {name[6:]}; give the path of a trained model')
    elif ":" in name:
        _import_factory(name)
    elif name not in BACKENDS:
        raise UserError(
            f'calculator "{name}" is unknown: choose one of {", ".join(BACKENDS)}, model:PATH or module:factory'
        )
    elif importlib.util.find_spec(BACKENDS[name].package) is None:
        raise UserError(
            f'calculator "{name}" needs the package {BACKENDS[name].package}: '
            f"install it with pip install 'adlayer[{BACKENDS[name].extra}]'"
        )


def make_calculator(specification: str) -> BaseCalculator:
    """The ASE calculator of a specification, made once per process as long as :func:`identify` says the same of it.

    Raises
    ------
    UserError
        If the backend is unknown, missing, or refuses its arguments.
    """
    return _made(specification, json.dumps(identify(specification)))


@lru_cache(maxsize=4)
def _made(specification: str, identity: str) -> BaseCalculator:
    name, arguments = _split(specification)
    with warnings.catch_warnings(), quiet_backends():
        warnings.simplefilter("ignore")
        try:
            if name.startswith("model:"):
                return _import_factory(_LEARNED)(name[6:], **arguments)
            factory = BACKENDS[name].make if name in BACKENDS else _import_factory(name)
            return factory(**arguments)
        except UserError:
            raise
        except (TypeError, ValueError, OSError) as error:
            raise UserError(f'calculator "{specification}" refuses its arguments: {error}') from error


@contextlib.contextmanager
def quiet_backends() -> Iterator[None]:
    """Keep the loggers of third-party backends off the terminal while one is made."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def backend_version(name: str) -> str | None:
    """Version of a known backend's package, ``None`` if it is not installed."""
    try:
        return importlib.metadata.version(BACKENDS[name].package)
    except importlib.metadata.PackageNotFoundError:
        return None


def identify(specification: str) -> dict[str, str]:
    """Name, version and settings of a backend: energies may be compared only where all of it agrees.

    Returns
    -------
    dict
        ``name``, ``version`` and ``settings`` (JSON text).
    """
    check_calculator(specification)
    name, arguments = _split(specification)
    if name.startswith("model:"):
        digest = hashlib.sha256(Path(name[6:]).read_bytes()).hexdigest()[:12]
        return {"name": "model", "version": digest, "settings": json.dumps(arguments, sort_keys=True)}
    package = BACKENDS[name].package if name in BACKENDS else name.partition(":")[0].partition(".")[0]
    if name == "sevennet":
        arguments = {"model": "7net-0", **arguments}
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    return {"name": name, "version": version, "settings": json.dumps(arguments, sort_keys=True)}

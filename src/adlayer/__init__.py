"""Adlayer: discover the atomic structure of surfaces.

The verbs of the command line are functions here, loaded when first used:

>>> import adlayer
>>> substrate = adlayer.substrate("Ag(111)", "p(2x2)", layers=2, lattice=4.167)
>>> len(substrate)
8
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_VERBS = (
    "calculators",
    "cells",
    "classify",
    "compare",
    "demo",
    "generate",
    "leed",
    "match",
    "phases",
    "picture",
    "relax",
    "report",
    "run",
    "search",
    "stm",
    "substrate",
    "train",
)
__all__ = ["__version__", *_VERBS]


def __getattr__(name: str) -> Any:
    if name in _VERBS:
        from adlayer import study

        return getattr(study, name)
    raise AttributeError(f"module 'adlayer' has no attribute '{name}'")

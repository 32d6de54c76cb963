"""The command line: ``adlayer VERB …``. No logic lives here, every verb calls its function in :mod:`adlayer.study`.

Exit status: 0 done; 2 the user's mistake, one sentence on stderr; 130 interrupted. Anything else is our bug.
"""

from __future__ import annotations

from adlayer.cli import classifying, energies, imaging, judging, learning, phases, structures, superstructures
from adlayer.cli.verbs import app, main

__all__ = [
    "app",
    "classifying",
    "energies",
    "imaging",
    "judging",
    "learning",
    "main",
    "phases",
    "structures",
    "superstructures",
]

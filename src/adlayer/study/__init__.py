"""The stages of a study, one function for each: what the command line and the Python API share.

- :mod:`adlayer.study.stages`: substrates, search, relaxation, matching, comparison;
- :mod:`adlayer.study.training` and :mod:`adlayer.study.learning`: the networks' training, and generation with them;
- :mod:`adlayer.study.reporting`: the page;
- :mod:`adlayer.study.classifying`: duplicates, motifs and symmetry as a table;
- :mod:`adlayer.study.thermodynamics`: phase diagrams;
- :mod:`adlayer.study.superstructures`: commensurate cells and LEED patterns;
- :mod:`adlayer.study.imaging`: pictures and tunnelling images;
- :mod:`adlayer.study.pipeline`: all of them from one file, and the demo.

Mistakes in the input raise :class:`adlayer.errors.UserError` before any work is done.
"""

from adlayer.study.classifying import classify
from adlayer.study.imaging import picture, stm
from adlayer.study.learning import generate, generate_to, sampling_settings
from adlayer.study.pipeline import demo, run
from adlayer.study.reporting import report
from adlayer.study.stages import calculators, compare, match, relax, search, substrate
from adlayer.study.superstructures import cells, leed
from adlayer.study.thermodynamics import phases
from adlayer.study.training import train

__all__ = [
    "calculators",
    "cells",
    "classify",
    "compare",
    "demo",
    "generate",
    "generate_to",
    "leed",
    "match",
    "phases",
    "picture",
    "relax",
    "report",
    "run",
    "sampling_settings",
    "search",
    "stm",
    "substrate",
    "train",
]

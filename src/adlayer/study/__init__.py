"""The stages of a study, one function for each: what the command line and the Python API share.

- :mod:`adlayer.study.stages`: substrates, search, relaxation, matching, comparison;
- :mod:`adlayer.study.learning`: training and generation;
- :mod:`adlayer.study.reporting`: the page;
- :mod:`adlayer.study.pipeline`: all of them from one file, and the demo.

Mistakes in the input raise :class:`adlayer.errors.UserError` before any work is done.
"""

from adlayer.study.learning import generate, generate_to, sampling_settings, train
from adlayer.study.pipeline import demo, run
from adlayer.study.reporting import report
from adlayer.study.stages import calculators, compare, match, relax, search, substrate

__all__ = [
    "calculators",
    "compare",
    "demo",
    "generate",
    "generate_to",
    "match",
    "relax",
    "report",
    "run",
    "sampling_settings",
    "search",
    "substrate",
    "train",
]

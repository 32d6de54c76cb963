"""What a run of the demo costs, part by part: import, generate, refine, relax, report.

Few structures: the parts but import and report grow in proportion to their number. Refinement is the generation with it
less the generation without.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from results import record
from work import LATTICE
from worker import Stopwatch


class Timer:
    """A reporter that notes what each stage costs."""

    def __init__(self) -> None:
        self.costs: dict[str, dict[str, float]] = {}
        self.since = Stopwatch()

    def say(self, text: str) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int, int], None]]:
        """Time the stage; what follows it counts from its end."""
        watch = Stopwatch()
        yield lambda done, total: None
        self.costs[label] = watch.cost()
        self.since = Stopwatch()


def main() -> None:
    """Measure and write the section ``demo``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=4, help="structures (the demo's own default is 24)")
    n = parser.parse_args().n

    watch = Stopwatch()
    modules = "adlayer.study.pipeline, adlayer.diffusion.generation, adlayer.report.page"
    subprocess.run([sys.executable, "-c", f"import {modules}"], check=True)
    parts: dict[str, Any] = {"import": watch.cost()}

    from adlayer.diffusion.generation import generate
    from adlayer.diffusion.sampling import Sampling
    from adlayer.structures.substrate import build_substrate
    from adlayer.study.pipeline import DEMO_MODEL, demo
    from adlayer.training.checkpoint import load_model

    model = load_model(str(resources.files("adlayer") / "data" / DEMO_MODEL))
    substrate = build_substrate("Ag(111)", "p(4x4)", layers=2, fixed_layers=1, lattice=LATTICE, window=(1.0, 4.0))
    watch = Stopwatch()
    generate(model, substrate, formula="Ag12O6", n=n, settings=Sampling())
    parts["generate"] = watch.cost()

    with tempfile.TemporaryDirectory() as folder:
        timer = Timer()
        result = demo(str(Path(folder) / "demo"), n=n, reporter=timer)
        rest, analysis = timer.since.cost(), timer.costs["analyse"]
        parts["report"] = {k: rest[k] + analysis[k] for k in ("cpu_s", "wall_s")}
    whole = timer.costs["generate"]
    parts["refine"] = {k: whole[k] - parts["generate"][k] for k in ("cpu_s", "system_s", "wall_s")}
    parts["relax"] = timer.costs["relax"]
    kept = {
        name: {k: parts[name][k] for k in ("cpu_s", "wall_s")}
        for name in ("import", "generate", "refine", "relax", "report")
    }
    content = {"n": n, "seed": 0, "n_force_calls": result["n_force_calls"], "parts": kept}
    record("demo", content)
    told = ", ".join(f"{name} {cost['cpu_s']:.1f} s" for name, cost in kept.items())
    print(f"demo of {n} structures: {told} CPU")


if __name__ == "__main__":
    main()

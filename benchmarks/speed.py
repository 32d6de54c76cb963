"""Ours against AGeDi, as ratios: sampling and training, time and memory. Writes ``results.json`` as results come.

``python benchmarks/speed.py [WORK …] [--repeats N]`` measures all works or those named. Without the peers (see
``peers.sh``) our side alone is measured, without ratios.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from results import paired_ratio, record, spread
from turns import Worker, WorkerError, in_turns
from work import WORKS, Work, write_work

HERE = Path(__file__).parent
PEERS = HERE / ".peers"
PEER_STEPS = 500  # AGeDi's default


def start(work: Work, folder: Path, stack: ExitStack) -> dict[str, Worker]:
    """The workers: ``peer`` (where installed), ``ours`` of the same size, and our ``default`` architecture."""
    commands = {
        "ours": [sys.executable, str(HERE / "ours.py"), str(folder), "same"],
        "default": [sys.executable, str(HERE / "ours.py"), str(folder), "default"],
    }
    if (PEERS / ".installed").is_file():
        commands["peer"] = [str(PEERS / "bin" / "python"), str(HERE / "peer_agedi.py"), str(folder)]
    return {n: stack.enter_context(Worker(command, folder / f"{n}.log")) for n, command in commands.items()}


def per_unit(cost: dict[str, Any]) -> float:
    """CPU seconds per unit of work."""
    return float(cost["cpu_s"] / cost["units"])


def summary(
    work: Work, rounds: list[dict[str, Any]], workers: dict[str, Worker]
) -> tuple[dict[str, Any], dict[str, float]]:
    """The section of a work and its ratios from the rounds so far."""
    sides: dict[str, Any] = {}
    for name, worker in workers.items():
        costs = [one[name] for one in rounds]
        sides[name] = {
            "unit": "structure and step" if work.kind == "sample" else "step",
            "cpu_s": spread([per_unit(c) for c in costs]),
            "system_share": median(c["system_s"] / c["cpu_s"] for c in costs),
            "wall_s": spread([c["wall_s"] / c["units"] for c in costs]),
            "atoms": costs[-1]["atoms"],
            "edges": costs[-1]["edges"],
            "import_mib": worker.facts["import_mib"],
            "versions": worker.facts["versions"],
        }
    ratios = {}
    content: dict[str, Any] = {"sides": sides, "target": work.target, "seeds": [*range(1, len(rounds) + 1)]}
    if "peer" in workers:
        peer = [per_unit(one["peer"]) for one in rounds]
        for name, suffix in (("ours", ""), ("default", "_default")):
            ratio = paired_ratio([per_unit(one[name]) for one in rounds], peer)
            content[f"ratio{suffix}"] = ratio
            ratios[work.name + suffix] = float(ratio["median"])
    return content, ratios


def measure(work: Work, repeats: int) -> None:
    """Time one work and write its section after every round."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_work(work, folder)
        workers = start(work, folder, stack)
        rounds: list[dict[str, Any]] = []
        for costs in in_turns(workers, repeats):
            rounds.append(costs)
            content, ratios = summary(work, rounds, workers)
            record(f"works.{work.name}", content, ratios)
        peaks = {side: worker.finish() for side, worker in workers.items()}
    for side, peak in peaks.items():
        content["sides"][side]["peak_mib"] = peak
    if "peer" in peaks and work.name != "sampling_guided":
        label = {"sampling": "memory_sampling", "train_denoiser": "memory_training"}.get(
            work.name, f"memory_{work.name}"
        )
        ratios |= {label: peaks["ours"] / peaks["peer"], f"{label}_default": peaks["default"] / peaks["peer"]}
    record(f"works.{work.name}", content, ratios)
    costs_ms = ", ".join(f"{side} {1e3 * s['cpu_s']['median']:.1f} ms" for side, s in content["sides"].items())
    shown = f"; ours/peer {ratios[work.name]:.3f} (at most {work.target:.3f})" if work.name in ratios else ""
    print(f"{work.name}: {costs_ms} CPU per {content['sides']['ours']['unit']}{shown}", flush=True)


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("works", nargs="*", metavar="WORK", help=f"of {', '.join(WORKS)}; default all")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    unknown = set(arguments.works) - set(WORKS)
    if unknown:
        parser.error(f"work {', '.join(sorted(unknown))} is unknown: choose from {', '.join(WORKS)}")
    if not (PEERS / ".installed").is_file():
        print("peers are not installed (benchmarks/peers.sh): no ratios")
    failed = False
    for name in arguments.works or WORKS:
        try:
            measure(WORKS[name], arguments.repeats)
        except WorkerError as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()

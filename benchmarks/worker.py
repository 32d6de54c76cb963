"""A process that repeats one piece of work on request, so that two programs can be timed in turns.

The parent (:mod:`turns`) starts it on one thread and talks to it in JSON lines. The worker first says ``ready`` with
its versions and the memory after its imports; for each line it is sent, a seed, it does the work once and answers with
what that cost; at the end of its input it says its peak memory. Standard library alone: it runs with the peers too.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

_MEBI = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss


def peak_memory() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MEBI


def _used() -> tuple[float, float, float]:
    """CPU seconds, those of them in the kernel, and wall seconds, of all threads and finished children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    system = sum(u.ru_stime for u in used)
    return system + sum(u.ru_utime for u in used), system, time.perf_counter()


class Stopwatch:
    """CPU seconds (``cpu_s``), those of them in the kernel (``system_s``), and wall seconds since it was made."""

    def __init__(self) -> None:
        self.start = _used()

    def cost(self, units: int = 1) -> dict[str, float]:
        """The cost so far of ``units`` units of work."""
        spent = [now - then for now, then in zip(_used(), self.start, strict=True)]
        return {"units": units, **dict(zip(("cpu_s", "system_s", "wall_s"), spent, strict=True))}


def peak_gpu_memory(cuda: Any) -> float:
    """Largest memory of tensors on the GPU since this was last asked, MiB; ``cuda`` is ``torch.cuda``."""
    peak = cuda.max_memory_allocated() / 2**20
    cuda.reset_peak_memory_stats()
    return float(peak)


def serve(versions: dict[str, str], imported: float, prepare: Callable[[], Callable[[int], dict[str, Any]]]) -> None:
    """Answer requests until the input ends.

    Parameters
    ----------
    versions
        Of the packages that do the work.
    imported
        :func:`peak_memory` after the imports, MiB.
    prepare
        Builds what the work needs and returns the work: from a seed to its cost (:meth:`Stopwatch.cost`) and anything
        else worth writing down.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the packages print goes to the log

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    work = prepare()
    answer(ready=True, versions=versions, import_mib=imported)
    for line in sys.stdin:
        answer(**work(int(line)))
    answer(peak_mib=peak_memory())


def pin() -> None:
    """Keep this process on one processor, the last that it may use, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

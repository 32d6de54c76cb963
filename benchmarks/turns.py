"""Several workers for the same work, timed in turns, so that a change of the machine's mood strikes all alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}


class WorkerError(Exception):
    """A worker that ended before it was told to."""


def pinned(command: list[str]) -> list[str]:
    """The command on one processor, the last that we may use, where ``taskset`` exists."""
    if shutil.which("taskset") and hasattr(os, "sched_getaffinity"):
        return ["taskset", "-c", str(max(os.sched_getaffinity(0))), *command]
    return command


class Worker:
    """A process of :mod:`worker` on one thread, ``pin``ned to a core. The last line of its log tells why it died.

    ``environment`` adds to this process's variables.
    """

    def __init__(
        self, command: list[str], log: Path, *, pin: bool = True, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                pinned(command) if pin else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env=os.environ | _ONE_THREAD | dict(environment or {}),
            )
        self.facts = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.__exit__()
            last = (self.log.read_text().strip() or "no message").splitlines()[-1]
            raise WorkerError(f"{Path(self.process.args[-2]).name} ended early: {last} (see {self.log})")  # type: ignore[index]
        content: dict[str, Any] = json.loads(line)
        return content

    def run(self, seed: int) -> dict[str, Any]:
        """Do the work once; returns what it cost."""
        assert self.process.stdin is not None
        print(seed, file=self.process.stdin, flush=True)
        return self._answer()

    def finish(self) -> float:
        """End the work; returns the peak memory of the process, MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self._answer()["peak_mib"])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process, whatever it is doing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def in_turns(workers: dict[str, Worker], repeats: int) -> Iterator[dict[str, dict[str, Any]]]:
    """Rounds in which every worker works once with the same seed, each round beginning with another worker.

    One round before the first, for warming up, is not given.
    """
    names = list(workers)
    for k in range(-1, repeats):
        order = names[k % len(names) :] + names[: k % len(names)]
        costs = {name: workers[name].run(k + 1) for name in order}
        if k >= 0:
            yield costs

"""Worker processes: what finishes is kept when one of them is killed."""

from __future__ import annotations

import os
import signal
import time

import pytest

from adlayer.energies.workers import run_jobs, worker_pool
from adlayer.errors import UserError


def _square_or_die(number: int) -> int:
    if number == 3:
        time.sleep(0.3)  # the others are done by then
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_a_killed_worker_is_said_in_one_sentence_and_loses_nothing() -> None:
    done: dict[int, int] = {}

    def work() -> None:
        with worker_pool(1) as (pool, _):
            for number, square in run_jobs(_square_or_die, [1, 2, 3, 4, 5], pool, in_flight=5):
                done[number] = square

    with pytest.raises(UserError, match=r"a worker process was killed .* fewer --workers") as caught:
        work()
    assert done == {1: 1, 2: 4}
    assert "\n" not in str(caught.value)

"""Fan-out over processes or a cluster through the ``concurrent.futures.Executor`` interface.

Each worker is one single-threaded process: batching a universal potential brings nothing on a CPU, a process
per core everything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from adlayer.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def start_worker() -> None:
    """Begin a worker process: it dies with its parent, not of Ctrl-C, and has none of the parent's handlers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()  # even if it was killed


def processes_of(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    """The processes of a pool, whatever has become of it."""
    return list((getattr(pool, "_processes", None) or {}).values())


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Deliver SIGINT to this thread only after the block, where the system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def default_workers() -> int:
    """One worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def worker_pool(workers: int | None = None, executor_url: str | None = None) -> Iterator[tuple[Executor, int]]:
    """An executor and its number of workers.

    Parameters
    ----------
    workers
        Number of local processes; one per core by default.
    executor_url
        Address of a Dask scheduler, such as ``tcp://head:8786``; needs the extra ``[dask]``.
    """
    if executor_url is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(
                f"executor {executor_url} needs Dask: install it with pip install 'adlayer[dask]'"
            ) from error
        try:
            client = Client(executor_url, timeout=10)
        except (OSError, ValueError) as error:
            raise UserError(f"no Dask scheduler answers at {executor_url}: start one or mend the address") from error
        with client:
            yield client.get_executor(), max(1, sum(client.nthreads().values()))
        return
    count = default_workers() if workers is None else workers
    if count < 1:
        raise UserError(f"{count} workers cannot work: ask for at least 1")
    saved = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))  # read by the children when they start
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=start_worker)
    try:
        yield pool, count
    except BaseException:
        for process in processes_of(pool):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in saved.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def run_jobs(
    function: Callable[[Job], Result], jobs: Iterable[Job], pool: Executor, in_flight: int
) -> Iterator[tuple[Job, Result]]:
    """Each job with its result, in the order they finish; at most ``in_flight`` jobs wait at a time.

    Raises
    ------
    UserError
        If a worker process was killed; what had finished before has been yielded.
    """
    remaining = iter(jobs)
    futures: dict[Future[Any], Job] = {}
    try:
        while True:
            with (
                _interrupts_held()
            ):  # a worker that is being started inherits this, and does not die of Ctrl-C while it imports
                for job in remaining:
                    futures[pool.submit(function, job)] = job
                    if len(futures) >= in_flight:
                        break
            if not futures:
                return
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=lambda done: done.exception() is not None):  # what succeeded first
                yield futures.pop(future), future.result()
    except BrokenExecutor as error:
        raise UserError(
            "a worker process was killed from outside (by the system, if memory ran out): "
            "run the same command again, with fewer --workers; what had finished is kept"
        ) from error

"""Where jobs run: in this process, or in processes of their own with one thread each.

An executor is a `concurrent.futures.Executor`. On a CPU threads that wait for each other cost more than they bring: one
process per core, each with one thread. On a GPU one process does everything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any


class InProcess(Executor):
    """Runs a job when it is submitted, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """A future that is done already; an interrupt is not kept in it but raised."""
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


@cache
def local_pool() -> ProcessPoolExecutor:
    """One process per core, started when first needed and kept for the next jobs."""
    return process_pool(cores())


def stop(pool: ProcessPoolExecutor) -> None:
    """End a pool and what its processes are doing; the next `local_pool` is a new one."""
    for process in list((pool._processes or {}).values()):  # Python 3.11 has no public way to end them
        process.kill()
    pool.shutdown(wait=True, cancel_futures=True)
    local_pool.cache_clear()


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Processes with one thread each; they end with this one, even when it is killed."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    import ctypes
    import signal
    import sys

    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles an interrupt
    if sys.platform.startswith("linux"):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(os.environ.get("OMP_NUM_THREADS") or available))

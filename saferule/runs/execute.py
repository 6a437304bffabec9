"""Where jobs run: in this process, in processes of their own with one thread each, or on a Ray cluster.

An executor is a `concurrent.futures.Executor` that knows how many jobs it can take, and can end what it runs. On a CPU
threads that wait for each other cost more than they bring: one process per core, each with one thread. On a GPU one
process does everything. Where RAY_ADDRESS names a cluster (``saferule run --ray``), jobs are its tasks instead.

A job whose process was lost ends with `concurrent.futures.BrokenExecutor`, whatever ran it, and takes no other with it.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from saferule.environment import cluster, cores
from saferule.errors import RunError, SettingsError
from saferule.files import write_bytes

NODE_SECONDS = 120  # for a node to start a process and read a file


class JobExecutor(Executor):
    """An executor of jobs: ``slots`` of them run at the same time."""

    slots: int = 1

    def check(self, folder: Path) -> None:
        """RunError when one of its processes would not see what this one writes to the folder."""

    def stop(self) -> None:
        """End what is running; its futures end with an error."""


class InProcess(JobExecutor):
    """Runs a job when it is submitted, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """A future that is done already; an interrupt is not kept in it but raised."""
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Workers(JobExecutor):
    """Processes with one thread each, started when first needed and kept for the next jobs.

    Each is a pool of its own: one that is killed breaks no other, and the next job finds a new one in its place.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pools = [process_pool(1) for _ in range(slots)]
        self._jobs: list[set[Future]] = [set() for _ in range(slots)]

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Give the job to the process that has the fewest."""
        i = min(range(self.slots), key=lambda i: len(self._jobs[i]))
        try:
            future = self._pools[i].submit(function, *args, **kwargs)
        except BrokenProcessPool:
            self._pools[i] = process_pool(1)
            future = self._pools[i].submit(function, *args, **kwargs)
        self._jobs[i].add(future)
        future.add_done_callback(self._jobs[i].discard)
        return future

    def stop(self) -> None:
        """Kill the processes; the next jobs find new ones."""
        for i, pool in enumerate(self._pools):
            for process in list((pool._processes or {}).values()):  # Python 3.11 has no public way to end them
                process.kill()
            pool.shutdown(wait=True, cancel_futures=True)
            self._pools[i] = process_pool(1)


class RayCluster(JobExecutor):
    """Tasks of a Ray cluster, with a CPU each, or a CPU and a share of a GPU. Ray itself tries none again.

    SettingsError when there is no cluster at the address.
    """

    def __init__(self, address: str, gpu_share: float = 0.0) -> None:
        import ray

        host, _, port = address.rpartition(":")
        try:
            if port.isdigit():  # Ray itself waits for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(
                address, include_dashboard=False, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise SettingsError(
                f"--ray {address}: no Ray cluster there ({_line(error)}), expected HOST:PORT of a running one: "
                "start it with `ray start --head`"
            ) from None
        self.address, self.gpu_share, self._refs = address, gpu_share, {}
        self._task = cache(ray.remote(num_cpus=1, num_gpus=gpu_share, max_retries=0))

    @property
    def slots(self) -> int:
        """As many as the nodes that are there now have CPUs, and shares of GPUs, for; while there are none, 1."""
        return max(1, sum(self._rooms()))

    def _rooms(self) -> list[int]:
        """How many jobs fit each node: a job takes all that it needs of one."""
        import ray

        found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, gpus = ([int(has.get(name, 0)) for has in found] for name in ("CPU", "GPU"))
        if not self.gpu_share:
            return cpus
        fit = [int(n / self.gpu_share) if self.gpu_share > 1 else n * int(1 / self.gpu_share) for n in gpus]
        return list(map(min, cpus, fit))

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """The task's future, with the function's own errors."""
        future: Future = Future()
        future.set_running_or_notify_cancel()
        self._refs[future] = ref = self._task(function).remote(*args, **kwargs)

        def settle(ended: Future) -> None:
            self._refs.pop(future, None)
            if error := ended.exception():
                lost = BrokenExecutor(_line(error))  # a worker or a node that died, memory that ran out
                future.set_exception(getattr(error, "cause", None) or lost)
            else:
                future.set_result(ended.result())

        ref.future().add_done_callback(settle)
        return future

    def stop(self) -> None:
        """Kill the tasks of this process."""
        import ray

        running = dict(self._refs)
        for ref in running.values():
            ray.cancel(ref, force=True)
        wait(running, timeout=5)

    def check(self, folder: Path) -> None:
        """RunError when a node cannot read a file that this process writes to the folder, or has no saferule; and when
        none has room for a job.
        """
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        if not any(self._rooms()):
            needed = "a CPU" + f" and {self.gpu_share:g} of a GPU" * (self.gpu_share > 0)
            raise RunError(
                f"--ray {self.address}: no node has {needed}, which every job takes of one node: add one, or "
                "give another --ray-gpus"
            )
        file, content = folder / f".shared-{secrets.token_hex(4)}", secrets.token_hex(16)
        write_bytes(file, content.encode())
        try:
            nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
            read = {node: ray.remote(num_cpus=0, scheduling_strategy=On(node, soft=False))(_read) for node in nodes}
            answers = {node: task.remote(file) for node, task in read.items()}
            for node, answer in answers.items():
                try:
                    found = ray.get(answer, timeout=NODE_SECONDS)
                except ray.exceptions.RayError as error:
                    raise RunError(
                        f"--ray {self.address}: node {nodes[node]} cannot run saferule ({_line(error)}): give every "
                        "node this environment at the same path"
                    ) from None
                if found != content:
                    raise RunError(
                        f"{folder}: node {nodes[node]} of --ray {self.address} does not see the file that was written "
                        "there, expected a file system that all nodes share: give --output (and --data) on one"
                    )
        finally:
            file.unlink()


def _read(file: Path) -> str | None:
    return file.read_text("utf-8") if file.is_file() else None


def _line(error: BaseException) -> str:
    """What an error says, cut to a line of a sentence."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0][:100].rstrip(".")


def default(device: str) -> JobExecutor:
    """Where jobs run if nothing else is said: on the cluster that RAY_ADDRESS names, else on this machine.

    device  of the tensors: on a GPU this process does everything, on a CPU a process per core
    """
    if told := cluster():
        return _cluster(*told)
    return _workers(cores()) if device == "cpu" and cores() > 1 else InProcess()


_cluster, _workers = cache(RayCluster), cache(Workers)


def device() -> str:
    """Where tensors lie, "cuda" or "cpu": as tasks on a cluster are declared, else on a GPU where there is one."""
    import torch

    told = cluster()
    return "cuda" if (told[1] > 0 if told else torch.cuda.is_available()) else "cpu"


def chosen_device(asked: str | None) -> str:
    """The device that is asked for, or `device`; SettingsError for one that is none, or not here."""
    import torch

    try:
        kind = torch.device(asked or device())
    except RuntimeError:
        raise SettingsError(f"device = {asked!r}, expected cpu, cuda or cuda:NUMBER: give one of these") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count()}
    if kind.type not in there:
        raise SettingsError(f"device = {asked!r}, expected cpu, cuda or cuda:NUMBER: give one of these")
    if (kind.index or 0) >= there[kind.type]:
        raise SettingsError(
            f"device = {asked!r}, but {there[kind.type]} of {kind.type} are here: give cpu, or see `saferule doctor`"
        )
    return str(kind)


def process_pool(processes: int) -> ProcessPoolExecutor:
    """Processes with one thread each; they end with this one, even when it is killed."""
    return ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)


def _start_worker() -> None:
    import ctypes
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles an interrupt
    if sys.platform.startswith("linux"):
        parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent_process().pid:  # it died before that
            os._exit(1)

    import torch  # takes seconds

    torch.set_num_threads(1)

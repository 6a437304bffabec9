"""Where jobs run: processes of their own, one thread each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from saferule.agents.checkpoint import agent_policy
from saferule.sim import get_task
from saferule.sim.rollout import normalised, roll_out


def evaluate_file(
    path: str | Path, seeds: Sequence[int], deterministic: bool = True, cost_limit: float = 10.0
) -> list[dict[str, float]]:
    """Episodes of the agent in a safetensors file that saferule wrote."""
    import torch

    from saferule.agents.checkpoint import load_networks

    torch.set_num_threads(1)
    agent = load_networks(path)
    task = get_task(agent.task)
    rows = roll_out(task, agent_policy(agent.backbone, agent.cfg, agent.nets, seeds, deterministic), seeds).rows
    return normalised(rows, task, cost_limit)


def worker_pool(processes: int) -> ProcessPoolExecutor:
    """Processes for roll-outs and training, with one thread each; they end with this one, even when it is killed."""
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

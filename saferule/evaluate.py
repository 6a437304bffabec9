"""Policies in the real simulator: one row per episode, fixed seeds, all episodes of a policy in step.

The return and the cost are undiscounted sums in raw units. The normalised return is (return - min) / (max - min) with
dsrl's reference returns of the task; the normalised cost is cost / limit. Policies act deterministically by default;
for BCQ-Lag that means the latent's mode, where osrl-lib draws a latent at every step (``deterministic=False`` does the
same, seeded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from saferule.envs import Task, get_task, make

Act = Callable[[np.ndarray, int], np.ndarray]  # observations (B, S), step -> actions (B, A)


def roll_out(task: Task, act: Act, seeds: Sequence[int]) -> list[dict[str, float]]:
    """Episodes of one policy, one per seed, stepped together. Returns rows in the order of the seeds."""
    simulators = [make(task.name) for _ in seeds]
    try:
        observations = np.stack([s.reset(seed) for s, seed in zip(simulators, seeds, strict=True)])
        rows = [{"seed": seed, "return": 0.0, "cost": 0.0, "length": 0} for seed in seeds]
        running = np.ones(len(seeds), dtype=bool)
        for t in range(task.horizon):
            actions = act(observations, t)
            for i in np.flatnonzero(running):
                step = simulators[i].step(actions[i])
                observations[i] = step.observation
                rows[i]["return"] += step.reward
                rows[i]["cost"] += step.cost
                rows[i]["length"] += 1
                running[i] = not (step.terminated or step.truncated)
            if not running.any():
                break
    finally:
        for simulator in simulators:
            simulator.close()
    return rows


def agent_policy(backbone: Any, cfg: Any, nets: dict, seeds: Sequence[int], deterministic: bool = True) -> Act:
    """How a trained agent acts in one episode per seed; what it draws is seeded by the episodes' seeds.

    nets  the acting networks of one agent
    """
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    shape = backbone.noise_shapes(cfg, 1)["policy"][1:] if not deterministic else ()

    @torch.no_grad()
    def act(observations: np.ndarray, t: int) -> np.ndarray:
        tensor = torch.from_numpy(observations).float()
        noise = None if deterministic else torch.stack([torch.randn(shape, generator=g) for g in generators])
        return backbone.act(nets, tensor, noise, cfg).double().numpy()

    return act


def normalised(rows: list[dict[str, float]], task: Task, cost_limit: float) -> list[dict[str, float]]:
    """The rows with normalised values and the cost limit added (dsrl OfflineEnv.get_normalized_score)."""
    epsilon = 1.0 if cost_limit == 0 else 0.0
    span = task.max_return - task.min_return
    return [
        row
        | {
            "normalised_return": (row["return"] - task.min_return) / span,
            "normalised_cost": (row["cost"] + epsilon) / (cost_limit + epsilon),
            "cost_limit": cost_limit,
        }
        for row in rows
    ]


def evaluate_file(
    path: str | Path, seeds: Sequence[int], deterministic: bool = True, cost_limit: float = 10.0
) -> list[dict[str, float]]:
    """Episodes of the agent in a safetensors file that saferule wrote."""
    import torch

    from saferule.agents.checkpoint import load_networks

    torch.set_num_threads(1)
    agent = load_networks(path)
    task = get_task(agent.task)
    rows = roll_out(task, agent_policy(agent.backbone, agent.cfg, agent.nets, seeds, deterministic), seeds)
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

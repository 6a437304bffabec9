"""Policies in the real simulator: one row per episode, fixed seeds, all episodes of a policy in step.

The return and the cost are undiscounted sums in raw units. The normalised return is (return - min) / (max - min) with
dsrl's reference returns of the task; the normalised cost is cost / limit. Policies act deterministically by default;
for BCQ-Lag that means the latent's mode, where osrl-lib draws a latent at every step (``deterministic=False`` does the
same, seeded).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from saferule.sim.simulator import make
from saferule.sim.tasks import Task

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

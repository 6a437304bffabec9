"""Policies in the real simulator: the one loop that plays episodes, for evaluation, attacks and films.

The return and the cost are undiscounted sums in raw units. The normalised return is (return - min) / (max - min) with
dsrl's reference returns of the task; the normalised cost is cost / limit. Policies act deterministically by default;
for BCQ-Lag that means the latent's mode, where osrl-lib draws a latent at every step (``deterministic=False`` does the
same, seeded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import NamedTuple

import numpy as np

from saferule.errors import RunError
from saferule.sim.simulator import Simulator, make
from saferule.sim.tasks import Task

Act = Callable[[np.ndarray, int], np.ndarray]  # observations (B, S), step -> actions (B, A)


class Episode(NamedTuple):
    """One finished episode of T steps as it happened; actions as the simulator got them."""

    observations: np.ndarray  # (T + 1, S)
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    costs: np.ndarray  # (T,)
    terminated: bool  # by the task; otherwise by the time limit


class Episodes(NamedTuple):
    """Episodes of one policy, in the order of their seeds."""

    rows: list[dict[str, float]]  # seed, return, cost, length
    trajectories: list[Episode]  # empty where they were not recorded


def roll_out(
    task: Task, act: Act, seeds: Sequence[int], *, record: bool = False, simulators: Sequence[Simulator] | None = None
) -> Episodes:
    """One episode per seed, all stepped together; `record` keeps their trajectories.

    An episode ends before a step whose actions are not finite, with NaN as its return and cost; where trajectories are
    recorded that is a RunError.
    simulators   of the task, one per seed, which stay open: making one takes longer than resetting it
    """
    with ExitStack() as made:
        used = simulators or [made.enter_context(closing(make(task.name))) for _ in seeds]
        observations = np.stack([s.reset(seed) for s, seed in zip(used, seeds, strict=True)])
        rows = [{"seed": seed, "return": 0.0, "cost": 0.0, "length": 0} for seed in seeds]
        running = np.ones(len(seeds), dtype=bool)
        starts, steps = observations.copy(), [[] for _ in seeds]
        for t in range(task.horizon):
            actions = act(observations, t)
            for i in np.flatnonzero(running & ~np.isfinite(actions).all(axis=1)):
                if record:
                    raise RunError(f"actions were not finite at step {t} of seed {seeds[i]}: make the policy anew")
                rows[i] |= {"return": math.nan, "cost": math.nan}
                running[i] = False
            for i in np.flatnonzero(running):
                step = used[i].step(actions[i])
                observations[i] = step.observation
                rows[i]["return"] += step.reward
                rows[i]["cost"] += step.cost
                rows[i]["length"] += 1
                running[i] = not (step.terminated or step.truncated)
                if record:
                    steps[i].append((actions[i].copy(), step))
            if not running.any():
                break
    return Episodes(rows, [_episode(*played) for played in zip(starts, steps, strict=True)] if record else [])


def _episode(start: np.ndarray, played: list) -> Episode:
    actions, steps = zip(*played, strict=True)
    return Episode(
        np.stack([start, *(step.observation for step in steps)]),
        np.stack(actions),
        np.array([step.reward for step in steps]),
        np.array([step.cost for step in steps]),
        steps[-1].terminated,
    )


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

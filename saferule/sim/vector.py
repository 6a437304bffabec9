"""A task with one scalar reward, for Stable-Baselines3, which steps several of them side by side (DummyVecEnv)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

from saferule.sim.rollout import Episode
from saferule.sim.simulator import make
from saferule.sim.tasks import Task

ScalarReward = Callable[[float, float], float]  # of one step's reward and cost


class SimulatorEnv(gymnasium.Env):
    """One simulator whose reward is a scalar of reward and cost.

    finished   takes the sums of every episode that ends, here or in a neighbour (Stable-Baselines3's Monitor knows one
               reward, and rounds it)
    record     is called with every episode that ends
    """

    def __init__(
        self,
        task: Task,
        scalar_reward: ScalarReward,
        finished: deque[dict[str, float]],
        gamma: float,
        record: Callable[[Episode], None] | None,
    ) -> None:
        self.simulator = make(task.name)
        # In the simulators' own precision, whatever they declare: the running means are taken of these numbers.
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (task.observation_dim,), np.float64)
        self.action_space = self.simulator.action_space
        self.scalar_reward, self.finished, self.gamma, self.record = scalar_reward, finished, gamma, record
        self._observations: list[np.ndarray] = []
        self._steps: list[tuple[np.ndarray, float, float]] = []
        self._scalars: list[float] = []

    def pursue(self, scalar_reward: ScalarReward) -> None:
        """Pay this from now on; the running episode is counted in it from its start."""
        self.scalar_reward = scalar_reward
        self._scalars = [scalar_reward(reward, cost) for _, reward, cost in self._steps]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        """Start an episode. Stable-Baselines3 gives a seed once (PPO's, plus the number of the simulator)."""
        self._observations, self._steps, self._scalars = [self.simulator.reset(seed)], [], []
        return self._observations[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step, paid by the scalar reward."""
        step = self.simulator.step(action)
        self._observations.append(step.observation)
        self._steps.append((action, step.reward, step.cost))
        self._scalars.append(self.scalar_reward(step.reward, step.cost))
        if step.terminated or step.truncated:
            self._finish(step.terminated)
        return step.observation, self._scalars[-1], step.terminated, step.truncated, {}

    def close(self) -> None:
        """Free the simulator."""
        self.simulator.close()

    def _finish(self, terminated: bool) -> None:
        actions, rewards, costs = zip(*self._steps, strict=True)
        sums = {"return": sum(rewards), "cost": sum(costs), "length": len(costs), "scalar_return": sum(self._scalars)}
        sums["discounted_return"] = float(self.gamma ** np.arange(len(costs)) @ np.asarray(self._scalars))
        self.finished.append(sums)
        if self.record is not None:
            columns = (np.asarray(column, dtype=np.float32) for column in (self._observations, actions, rewards, costs))
            self.record(Episode(*columns, terminated))

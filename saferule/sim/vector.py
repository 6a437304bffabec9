"""Several simulators of one task side by side, as Stable-Baselines3 steps them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from saferule.sim.simulator import make
from saferule.sim.tasks import Task

ScalarReward = Callable[[float, float], float]  # of one step's reward and cost


class Episode(NamedTuple):
    """One finished episode of T steps as it happened; actions as the simulator got them (inside the box)."""

    observations: np.ndarray  # (T + 1, S)
    actions: np.ndarray  # (T, A)
    rewards: np.ndarray  # (T,)
    costs: np.ndarray  # (T,)
    terminated: bool  # by the task; otherwise by the time limit


class SimulatorVecEnv(VecEnv):
    """Simulators of one task side by side in this process, with a scalar reward.

    record(episode) is called at the end of every episode. `finished` keeps (return, cost, length, scalar
    return, discounted scalar return) of the last 100.
    """

    def __init__(
        self,
        task: Task,
        scalar_reward: ScalarReward,
        count: int,
        seed: int,
        *,
        gamma: float = 0.99,
        record: Callable[[Episode], None] | None = None,
    ) -> None:
        self.simulators = [make(task.name) for _ in range(count)]
        first = self.simulators[0]
        super().__init__(count, first.observation_space, first.action_space)
        self.scalar_reward = scalar_reward
        self.record = record
        self.gamma = gamma
        self.finished: deque[tuple[float, float, int, float, float]] = deque(maxlen=100)
        self._seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
        self._steps: list[list[tuple]] = [[] for _ in range(count)]
        self._starts: list[np.ndarray] = [np.empty(0)] * count

    def pursue(self, scalar_reward: ScalarReward) -> None:
        """Pay this from now on; episodes that are running are counted in it from their start, finished ones no more."""
        self.scalar_reward = scalar_reward
        self.finished.clear()
        self._steps = [[(*step[:4], scalar_reward(*step[2:4])) for step in steps] for steps in self._steps]

    def reset(self) -> np.ndarray:
        for index, simulator in enumerate(self.simulators):
            # Seeded once; later episodes continue the simulator's own random numbers.
            seed, self._seeds[index] = self._seeds[index], None
            self._starts[index], self._steps[index] = simulator.reset(seed), []
        return np.stack(self._starts)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, dones, infos = [], [], [], []
        for index, simulator in enumerate(self.simulators):
            step = simulator.step(self._actions[index])
            scalar = self.scalar_reward(step.reward, step.cost)
            self._steps[index].append((step.observation, self._actions[index], step.reward, step.cost, scalar))
            done, info, observation = step.terminated or step.truncated, {}, step.observation
            if done:
                info["terminal_observation"] = observation
                info["TimeLimit.truncated"] = not step.terminated
                self._finish(index, step.terminated)
                self._starts[index], self._steps[index] = simulator.reset(), []
                observation = self._starts[index]
            observations.append(observation)
            rewards.append(scalar)
            dones.append(done)
            infos.append(info)
        return np.stack(observations), np.asarray(rewards, dtype=np.float32), np.asarray(dones), infos

    def _finish(self, index: int, terminated: bool) -> None:
        observations, actions, rewards, costs, scalars = zip(*self._steps[index], strict=True)
        discounts = self.gamma ** np.arange(len(scalars))
        self.finished.append(
            (sum(rewards), sum(costs), len(costs), sum(scalars), float(discounts @ np.asarray(scalars)))
        )
        if self.record is not None:
            self.record(
                Episode(
                    np.asarray([self._starts[index], *observations], dtype=np.float32),
                    np.asarray(actions, dtype=np.float32),
                    np.asarray(rewards, dtype=np.float32),
                    np.asarray(costs, dtype=np.float32),
                    terminated,
                )
            )

    def close(self) -> None:
        for simulator in self.simulators:
            simulator.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(simulator, attr_name, None) for simulator in self._chosen(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        for simulator in self._chosen(indices):
            setattr(simulator, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [getattr(simulator, method_name)(*args, **kwargs) for simulator in self._chosen(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False for _ in self._chosen(indices)]

    def _chosen(self, indices: Any) -> list[Any]:
        return [self.simulators[index] for index in self._get_indices(indices)]

"""Proximal policy optimisation in the real simulator: behaviour policies and adversaries.

Stable-Baselines3's PPO on a scalar reward that is a function of reward and cost. Several simulators of the
task run in one process; observations and rewards are normalised by their running statistics.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from saferule.errors import CheckpointError
from saferule.files import write_bytes
from saferule.sim import Task, get_task
from saferule.sim.ppo_settings import PPOSettings, behaviour_settings
from saferule.sim.rollout import Act, Episode
from saferule.sim.vector import ScalarReward, SimulatorEnv


@dataclass
class Lagrangian:
    """PID-controlled multiplier of the constraint E[episode cost] <= limit (Stooke et al. 2020).

    The penalised reward is (reward - multiplier * cost) / (1 + multiplier). The error is the mean episode
    cost over the limit per step of the horizon.
    """

    limit: float
    horizon: int
    proportional: float = 2.0
    integral: float = 0.1
    maximum: float = 20.0
    multiplier: float = 0.0
    _sum: float = 0.0

    def __call__(self, reward: float, cost: float) -> float:
        return (reward - self.multiplier * cost) / (1.0 + self.multiplier)

    def update(self, mean_episode_cost: float) -> None:
        """Move the multiplier after a policy update, towards equality with the limit."""
        error = (mean_episode_cost - self.limit) / self.horizon
        self._sum = float(np.clip(self._sum + self.integral * error, 0.0, self.maximum))
        self.multiplier = float(np.clip(self._sum + self.proportional * error, 0.0, self.maximum))


@dataclass
class OnlinePolicy:
    """A trained PPO actor with its observation normalisation: a Gaussian around a small tanh network.

    Stable-Baselines3's ActorCriticPolicy and VecNormalize are left behind: they are saved by pickle, the one with a
    critic and the other with the simulators.

    weights   the actor's layers in order ("0.weight", "0.bias", ...; the last gives the mean) and "log_std"
    settings  of the training; "hidden" has the widths of the network
    curve     one dict per report of the training: steps and the means of the last 100 episodes
    """

    task: Task
    weights: dict[str, torch.Tensor]
    mean: np.ndarray  # (S,)
    variance: np.ndarray  # (S,)
    settings: dict[str, Any]
    curve: list[dict[str, float]] = field(default_factory=list)

    def act(self, observations: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        """Actions (B, A) float32 inside the action box [-1, 1] for observations (B, S).

        The Gaussian's mean, or a sample drawn with `generator`.
        """
        scaled = np.clip((observations - self.mean) / np.sqrt(self.variance + 1e-8), -10.0, 10.0)
        hidden, last = torch.as_tensor(scaled, dtype=torch.float32), len(self.settings["hidden"])
        for layer in range(last + 1):
            hidden = torch.nn.functional.linear(hidden, self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"])
            hidden = torch.tanh(hidden) if layer < last else hidden
        actions = hidden.numpy()
        if generator is not None:
            std = np.exp(self.weights["log_std"].numpy())
            actions = actions + std * generator.standard_normal(actions.shape, dtype=np.float32)
        return np.clip(actions, -1.0, 1.0)

    def sampler(self, generator: np.random.Generator) -> Act:
        """The policy as it was trained: every action drawn from its Gaussian, with this generator."""
        return lambda observations, _: self.act(observations, generator)

    def save(self, folder: Path | str) -> None:
        """Write weights.safetensors, then policy.json, whose presence says that the policy is complete."""
        folder = Path(folder)
        write_bytes(folder / "weights.safetensors", save(self.weights))
        record = {
            "task": self.task.name,
            "settings": self.settings,
            "observation_mean": self.mean.tolist(),
            "observation_variance": self.variance.tolist(),
            "curve": self.curve,
        }
        write_bytes(folder / "policy.json", json.dumps(record, indent=1).encode())

    @classmethod
    def load(cls, folder: Path | str) -> OnlinePolicy:
        """Read what save() wrote; raises CheckpointError where a file is missing or does not fit the task."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "policy.json").read_bytes())
            policy = cls(
                get_task(record["task"]),
                load_file(folder / "weights.safetensors"),
                np.asarray(record["observation_mean"], dtype=np.float64),
                np.asarray(record["observation_variance"], dtype=np.float64),
                record["settings"],
                record["curve"],
            )
            arrays = policy.weights | {"observation_mean": policy.mean, "observation_variance": policy.variance}
            found, expected = {name: tuple(array.shape) for name, array in arrays.items()}, policy._expected_shapes()
        except FileNotFoundError as error:
            raise CheckpointError(f"{folder} holds no complete policy: {error.filename} is missing.") from None
        except Exception as error:
            raise CheckpointError(f"{folder} holds no readable policy ({error!r}): train it again.") from None
        for name in sorted(found | expected):
            if found.get(name) != expected.get(name):
                raise CheckpointError(
                    f"{folder} holds no policy for {policy.task.name}: '{name}' has shape {found.get(name)}, expected "
                    f"{expected.get(name)}: train it again."
                )
        return policy

    def _expected_shapes(self) -> dict[str, tuple[int, ...]]:
        observation, action = self.task.observation_dim, self.task.action_dim
        shapes = {"observation_mean": (observation,), "observation_variance": (observation,), "log_std": (action,)}
        for layer, (before, after) in enumerate(pairwise((observation, *self.settings["hidden"], action))):
            shapes |= {f"{layer}.weight": (after, before), f"{layer}.bias": (after,)}
        return shapes


def train_ppo(
    task: Task,
    scalar_reward: ScalarReward,
    steps: int,
    seed: int,
    *,
    record: Callable[[Episode], None] | None = None,
    settings: PPOSettings | None = None,
    warm_up: tuple[ScalarReward, int] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    report_every: int = 20_000,
    progress: bool = True,
) -> OnlinePolicy:
    """Train PPO for about `steps` steps (rounded up to whole updates) on scalar_reward(reward, cost).

    A Lagrangian as scalar_reward is updated after every rollout. record(episode) gets every episode of the
    training; report(row) gets every row of the learning curve as it is made. warm_up: another scalar reward, and for
    how many of the steps it is maximised first; the rows of the curve until then say so. Reproducible on one machine
    for one thread.
    """
    torch.set_num_threads(1)  # the networks are tiny; threads only get in each other's way
    settings = settings or behaviour_settings(task.name)
    goals = [(scalar_reward, steps)]
    if warm_up is not None and warm_up[1] > 0:
        goals = [warm_up, (scalar_reward, steps - warm_up[1])]
    watch = _Watch(report_every, report)
    simulator = partial(SimulatorEnv, task, goals[0][0], watch.finished, settings.gamma, record)
    normalised = VecNormalize(DummyVecEnv([simulator] * settings.simulators), gamma=settings.gamma)
    model = PPO(
        "MlpPolicy",
        normalised,
        learning_rate=settings.learning_rate,
        n_steps=settings.steps_per_update,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy,
        policy_kwargs={"net_arch": list(settings.hidden), "log_std_init": settings.initial_log_std},
        seed=seed,
        device="cpu",
    )
    with closing(normalised):
        for goal, share in goals:
            watch.begin(goal, normalised, warming_up=goal is not scalar_reward)
            model.learn(share, callback=watch, progress_bar=progress, reset_num_timesteps=goal is goals[0][0])
    return OnlinePolicy(
        task,
        _actor_weights(model.policy),
        normalised.obs_rms.mean.copy(),
        normalised.obs_rms.var.copy(),
        {"algorithm": "PPO", "steps": model.num_timesteps, "seed": seed, **asdict(settings)},
        watch.curve,
    )


def _actor_weights(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The actor's linear layers in order, and the logarithm of its standard deviation."""
    linear = [layer for layer in policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    layers = torch.nn.ModuleList([*linear, policy.action_net])
    weights = {"log_std": policy.log_std, **layers.state_dict()}
    return {name: weight.detach().clone() for name, weight in weights.items()}


class _Watch(BaseCallback):
    """Keeps the learning curve and moves a Lagrangian's multiplier after every rollout."""

    def __init__(self, every: int, report: Callable[[dict[str, float]], None] | None) -> None:
        super().__init__()
        self.every, self.report = every, report
        self.finished: deque[dict[str, float]] = deque(maxlen=100)
        self.curve: list[dict[str, float]] = []
        self._next, self._start = every, time.monotonic()

    def begin(self, goal: ScalarReward, simulators: VecNormalize, *, warming_up: bool) -> None:
        """From now on this is maximised; finished episodes of another goal do not count."""
        self.goal, self.warming_up = goal, warming_up
        self.finished.clear()
        simulators.env_method("pursue", goal)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        finished = list(self.finished)
        if not finished:
            return
        if isinstance(self.goal, Lagrangian):
            last = finished[-2 * self.training_env.num_envs :]
            self.goal.update(float(np.mean([episode["cost"] for episode in last])))
        if self.num_timesteps >= self._next:
            self._next = self.num_timesteps + self.every
            means = np.mean([list(episode.values()) for episode in finished], axis=0)
            row = {key: round(float(value), 4) for key, value in zip(finished[0], means, strict=True)}
            row = {"steps": self.num_timesteps, **row}
            row["multiplier"] = round(getattr(self.goal, "multiplier", 0.0), 4)
            row["seconds"] = round(time.monotonic() - self._start, 1)
            if self.warming_up:
                row["warm_up"] = 1.0
            self.curve.append(row)
            if self.report is not None:
                self.report(row)

"""Settings of the online learner, by task. Apart from `saferule.sim.ppo`, so that naming them costs no heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from saferule.paper import TABLE7, check


@dataclass(frozen=True)
class PPOSettings:
    """Settings of Stable-Baselines3's PPO; what is not named here is at its default."""

    simulators: int = 8
    steps_per_update: int = 256  # per simulator
    batch_size: int = 256
    epochs: int = 10
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    entropy: float = 0.0
    hidden: tuple[int, ...] = (64, 64)
    initial_log_std: float = 0.0


TASK_SETTINGS = {
    # It pays at every step: a shorter discount horizon and larger steps learn it faster.
    "CarCircle": PPOSettings(epochs=5, learning_rate=1e-3, gamma=0.97, initial_log_std=-0.5),
    # Standing upright pays about 1 per step. An ant that starts with large random actions falls within 400 steps and
    # first learns to stand for 100,000; one that starts with small ones stands at once and learns to walk.
    "AntVelocity": PPOSettings(epochs=5, learning_rate=1e-3, initial_log_std=-1.5),
    # Its reward is sparse. Of four settings tried this one had the largest return after 80,000 steps: 0.58; the
    # default had 0.31.
    "PointPush": PPOSettings(epochs=5, learning_rate=1e-3, initial_log_std=-0.5),
}


def behaviour_settings(task: str) -> PPOSettings:
    """For behaviour policies: what learns the task fast."""
    return TASK_SETTINGS.get(task, PPOSettings())


@dataclass(frozen=True)
class WarmStarted(PPOSettings):
    """Of an adversary that first maximises the reward: a fresh policy hardly ever sees what its attack pays for."""

    reward_first: float = 0.4  # share of the steps


def adversary_settings(task: str, attack: str, readings: Mapping[str, str] | None = None) -> PPOSettings:
    """For adversaries: what learns the attack, with the discount of Algorithm 1 (reading `adversary_start`).

    Under the settings of the behaviour policies Max Cost finds nothing to learn from on PointPush either: small actions
    do not get to where it costs. Its three adversaries have the defaults.
    """
    start = check(readings)["adversary_start"]
    settings = replace(behaviour_settings(task), gamma=TABLE7.gamma)
    if (task, attack, start) == ("AntVelocity", "max_cost", "reward_first"):
        return WarmStarted(**asdict(settings))
    if task == "PointPush":
        return PPOSettings(gamma=TABLE7.gamma)
    return settings

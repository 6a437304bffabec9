"""Algorithm 1, lines 1-7: train an adversarial policy on R_z in the simulator and roll it out.

The algorithm names no learner, and Appendix C.2 none either: PPO fits its on-policy rollouts and its scalar reward. It
names no start: reading `adversary_start`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saferule.attack.poison import attack_reward, check_attack
from saferule.data.schema import Dataset, from_episodes
from saferule.files import write_bytes
from saferule.limits import check_number
from saferule.sim.ppo_settings import WarmStarted, adversary_settings
from saferule.sim.rollout import Episode, roll_out
from saferule.sim.simulator import make
from saferule.sim.tasks import Task

if TYPE_CHECKING:
    from saferule.sim.ppo import OnlinePolicy

CURVE_FILE = "learning_curve.json"


def train_adversary(
    task: Task,
    attack: str,
    steps: int,
    seed: int,
    folder: Path | str,
    *,
    readings: Mapping[str, str] | None = None,
    progress: bool = True,
) -> OnlinePolicy:
    """Lines 1-6: maximise E[sum_t gamma^t R_z] for T = `steps` simulator steps, with the paper's gamma.

    Saves the policy to `folder`, and beside it learning_curve.json: one row per report with the steps so far and,
    over the last 100 episodes, the mean undiscounted ("scalar_return") and discounted ("discounted_return") return
    of R_z and the true "return" and "cost". Rows of a warm-up (`saferule.sim.ppo_settings.WarmStarted`) have
    "warm_up", and no discounted return.
    """
    from saferule.sim.ppo import train_ppo

    check_attack(attack)
    check_number("steps", steps)
    check_number("seed", seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)  # before the training, which can take hours
    settings = adversary_settings(task.name, attack, readings)
    warm_up = round(settings.reward_first * steps) if isinstance(settings, WarmStarted) else 0
    policy = train_ppo(
        task,
        partial(attack_reward, attack),
        steps,
        seed,
        settings=settings,
        warm_up=(partial(attack_reward, "max_reward"), warm_up),
        report_every=max(1, min(20_000, steps // 20)),
        progress=progress,
    )
    for row in policy.curve:
        if row.get("warm_up"):  # R_z is linear in the sums of rewards and costs
            row["scalar_return"] = attack_reward(attack, row["return"], row["cost"])
            del row["discounted_return"]
    policy.settings["attack"] = attack
    write_bytes(folder / CURVE_FILE, json.dumps(policy.curve, indent=1).encode())
    policy.save(folder)
    return policy


def roll_out_adversary(task: Task, policy: OnlinePolicy, episodes: int, seed: int, *, samples: int = 0) -> Dataset:
    """Line 7: N = `episodes` trajectories of the adversary with their true rewards and costs.

    samples   go on with further trajectories until they hold so many transitions: an adversary may end its episodes
              early, as an ant does that throws itself down

    The policy acts as it was trained, by drawing from its Gaussian. Episode i starts from a seed of its own and draws
    its actions from a generator of its own, so that more episodes only add to fewer.
    """
    check_number("episodes", episodes)
    check_number("seed", seed)
    played: list[Episode] = []
    with closing(make(task.name)) as simulator:
        while len(played) < episodes or sum(len(episode.rewards) for episode in played) < samples:
            start, actions = np.random.SeedSequence([seed, len(played)]).spawn(2)
            act = policy.sampler(np.random.default_rng(actions))
            first = int(start.generate_state(1)[0])
            played += roll_out(task, act, [first], record=True, simulators=[simulator]).trajectories
    return from_episodes(played, {"task": task.name, "rollout_seed": seed, "episodes": len(played)})


def leading(rollouts: Dataset, episodes: int, samples: int) -> Dataset:
    """The first trajectories of some rollouts: those that `roll_out_adversary` gives for these numbers."""
    lengths = rollouts.lengths
    enough = int(np.searchsorted(np.cumsum(lengths), samples)) + 1  # trajectories that hold the samples
    return rollouts.select(range(min(max(episodes, enough), len(lengths))))

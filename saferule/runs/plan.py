"""From a profile to cells: which adversaries, forget sets, policies, repairs and evaluations it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from saferule.attack.poison import rollouts_needed
from saferule.data.schema import Dataset
from saferule.envs import get_task
from saferule.paper.readings import ATTACK, default_readings
from saferule.paper.settings import TABLE7
from saferule.profiles import Profile
from saferule.runs.cells import Adversary, Evaluation, Forget, Training, Unlearning, settings
from saferule.unlearn import supported


def adversary(profile: Profile, task: str, attack: str) -> Adversary:
    """The adversary of an attack on a task."""
    return Adversary(task, attack, profile.adversary_steps)


def forget_set(profile: Profile, data: Dataset, task: str, attack: str, ratio: float) -> Forget:
    """The forget set of an attack at a ratio, under the default readings of Algorithm 1."""
    readings = {reading.name: default_readings()[reading.name] for reading in ATTACK}
    return Forget(
        adversary(profile, task, attack),
        data.digest(),
        ratio,
        rollouts_needed(len(data), ratio, get_task(task), readings),
        TABLE7.gamma,
        settings(**readings),
    )


def trainings(profile: Profile, data: Dataset, task: str, backbone: str, *, clean: bool = True) -> list[Training]:
    """The policies of one task and backbone: for each seed one clean and one per attack and ratio."""
    forgets = [forget_set(profile, data, task, a, r) for a, r in product(profile.attacks, profile.ratios)]
    return [
        Training(
            task, backbone, data.digest(), forget, seed, profile.training_steps, profile.settings, profile.snapshots
        )
        for seed, forget in product(profile.seeds, ([None] if clean else []) + forgets)
    ]


def unlearnings(profile: Profile, policies: Sequence[Training], methods: Sequence[str]) -> list[Unlearning]:
    """Every method on every poisoned policy whose backbone supports it."""
    return [
        Unlearning(policy, method, profile.unlearning_steps, snapshots=profile.snapshots)
        for policy, method in product(policies, methods)
        if policy.forget and supported(method, policy.backbone)
    ]


def evaluations(profile: Profile, policies: Sequence[Training | Unlearning]) -> list[Evaluation]:
    """The final evaluation of each policy."""
    return [Evaluation(policy, profile.evaluation_seeds) for policy in policies]


def curve(profile: Profile, policies: Sequence[Training | Unlearning], steps: Sequence[int | None]) -> list[Evaluation]:
    """Shorter evaluations of the policies' snapshots."""
    seeds = profile.evaluation_seeds[: profile.curve_episodes]
    return [Evaluation(policy, seeds, step) for policy, step in product(policies, steps)]

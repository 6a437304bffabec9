"""From a profile to cells: which adversaries, forget sets, policies, repairs and evaluations it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from saferule.attack.poison import rollouts_needed
from saferule.data.schema import Dataset
from saferule.paper import ATTACK, TABLE7, default_readings
from saferule.profiles import Profile
from saferule.runs.cells import (
    LEARNER,
    Adversary,
    Evaluation,
    Forget,
    Policy,
    Relearning,
    Training,
    Unlearning,
    config,
    origin,
    settings,
)
from saferule.sim import get_task
from saferule.unlearn import applicable, supported


def adversary(profile: Profile, task: str, attack: str) -> Adversary:
    """The adversary of an attack on a task, under the default readings of Algorithm 1."""
    start = default_readings()["adversary_start"]
    readings = settings(**LEARNER, adversary_start=start)
    return Adversary(task, attack, profile.steps_of_adversary(task), readings=readings)


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


def clean_policies(profile: Profile, data: Dataset, task: str, backbone: str) -> list[Training]:
    """The clean policies of a task and backbone; of a profile with one seed that of the next seed too.

    What seeds alone make of a policy is the floor of the audit, and it takes two.
    """
    seeds = profile.seeds if len(profile.seeds) > 1 else (profile.seeds[0], profile.seeds[0] + 1)
    return trainings(replace(profile, seeds=seeds, attacks=()), data, task, backbone)


def unlearnings(profile: Profile, policies: Sequence[Training], methods: Sequence[str]) -> list[Unlearning]:
    """Every method on every poisoned policy whose backbone supports it."""
    return [
        Unlearning(policy, method, profile.unlearning_steps, snapshots=profile.snapshots)
        for policy, method in product(policies, methods)
        if policy.forget and supported(method, policy.backbone)
    ]


def readings(profile: Profile, policies: Sequence[Training]) -> list[Unlearning]:
    """Safe-RULE under every reading that makes another run, of the first task's poisoned policies of the first seed."""
    task, seed = profile.tasks[0], profile.seeds[0]
    return [
        Unlearning(policy, "safe-rule", profile.unlearning_steps, settings(**reading))
        for policy in policies
        if policy.forget and (policy.task, policy.seed) == (task, seed)
        for reading in applicable(policy.backbone, config(policy))
    ]


def relearnings(profile: Profile, policies: Sequence[Training | Unlearning]) -> list[Relearning]:
    """Each policy relearns what it was repaired of; a clean one what any of the others of its kind was."""
    kinds: dict[tuple[str, str], list[Forget]] = {}
    for training in map(origin, policies):
        found = kinds.setdefault((training.task, training.backbone), [])
        if training.forget and training.forget not in found:
            found.append(training.forget)
    return [
        Relearning(policy, forget, profile.relearning_steps, profile.relearning_snapshots)
        for policy, training in zip(policies, map(origin, policies), strict=True)
        for forget in ([training.forget] if training.forget else kinds[training.task, training.backbone])
    ]


def evaluations(profile: Profile, policies: Sequence[Policy]) -> list[Evaluation]:
    """The final evaluation of each policy."""
    return [Evaluation(policy, profile.evaluation_seeds) for policy in policies]


def curve(profile: Profile, policies: Sequence[Policy], steps: Sequence[int | None]) -> list[Evaluation]:
    """Shorter evaluations of the policies' snapshots."""
    seeds = profile.evaluation_seeds[: profile.curve_episodes]
    return [Evaluation(policy, seeds, step) for policy, step in product(policies, steps)]

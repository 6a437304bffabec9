"""The three scales at which everything runs. Settings are chosen here and nowhere else.

smoke   minutes on 2 CPU cores: one task, every stage and every notebook, too short to show more than that it runs
cpu     a result without a GPU: committed local data, reduced steps and widths
paper   the paper's own settings (Table 7) on the DSRL data
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from saferule.agents import BACKBONES
from saferule.errors import SettingsError
from saferule.paper import TABLE7
from saferule.runs.cells import Settings, settings
from saferule.sim.tasks import TASKS

ATTACKS = ("max_cost", "max_reward", "min_reward")


@dataclass(frozen=True)
class Profile:
    """One scale. Steps are gradient steps unless said otherwise."""

    name: str
    tasks: tuple[str, ...]
    backbones: tuple[str, ...]
    attacks: tuple[str, ...]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    data: str  # "local" (artifacts/data) or "dsrl"
    adversary_steps: int  # environment steps
    training_steps: int
    unlearning_steps: int
    relearning_steps: int  # of training repaired policies on the poisoned data, for the audit
    relearning_snapshots: int
    relearning_episodes: int  # evaluation episodes per snapshot of these
    episodes: int  # evaluation episodes per policy
    snapshots: int  # policies kept on the way, for curves
    curve_episodes: int  # evaluation episodes per snapshot
    block_seconds: float = 1.0  # of a block of the measurement of Table 3
    settings: Settings = ()  # changes to the backbones' Config
    videos: bool = True  # film the adversaries where the machine can draw
    adversary_steps_by_task: Settings = ()  # where it takes others

    def steps_of_adversary(self, task: str) -> int:
        """Environment steps of the adversaries of a task."""
        return dict(self.adversary_steps_by_task).get(task, self.adversary_steps)

    @property
    def evaluation_seeds(self) -> tuple[int, ...]:
        """Seeds of the evaluation episodes, the same for every policy."""
        return tuple(range(10_000, 10_000 + self.episodes))


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            tasks=("CarCircle",),
            backbones=BACKBONES,
            attacks=("max_cost",),
            ratios=(0.15,),
            seeds=(0,),
            data="local",
            adversary_steps=50_000,
            training_steps=1_500,
            unlearning_steps=200,
            relearning_steps=100,
            relearning_snapshots=1,
            relearning_episodes=3,
            episodes=6,
            snapshots=2,
            curve_episodes=3,
            block_seconds=0.05,
            settings=settings(hidden=(128, 128), vae_hidden=128, batch_size=128),
        ),
        Profile(
            name="cpu",
            tasks=tuple(TASKS),
            backbones=BACKBONES,
            attacks=ATTACKS,
            ratios=TABLE7.ratios,
            seeds=(0, 1, 2),
            data="local",
            adversary_steps=150_000,
            # Where the attacks are far from learned by then; AntVelocity takes Table 7's steps.
            adversary_steps_by_task=settings(AntVelocity=TABLE7.adversary_steps, PointPush=500_000),
            training_steps=20_000,
            unlearning_steps=1_000,
            relearning_steps=2_000,
            relearning_snapshots=3,
            relearning_episodes=5,
            episodes=20,
            snapshots=4,
            curve_episodes=5,
            settings=settings(hidden=(128, 128), vae_hidden=128, batch_size=128),
        ),
        Profile(
            name="paper",
            tasks=tuple(TASKS),
            backbones=BACKBONES,
            attacks=ATTACKS,
            ratios=TABLE7.ratios,
            seeds=(0, 1, 2, 3, 4),
            data="dsrl",
            adversary_steps=TABLE7.adversary_steps,
            training_steps=TABLE7.training_steps,
            unlearning_steps=TABLE7.unlearning_steps,
            relearning_steps=10_000,
            relearning_snapshots=9,
            relearning_episodes=10,
            episodes=20,
            snapshots=10,
            curve_episodes=10,
        ),
    )
}


def get_profile(name: str, **changes: object) -> Profile:
    """A profile by name, with some fields replaced (lists become tuples; None leaves a field as it is).

    SettingsError for an unknown profile, or a task, backbone, attack or kind of data that does not exist.
    """
    if name not in PROFILES:
        raise SettingsError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None}
    if "adversary_steps" in given:  # for all tasks
        given["adversary_steps_by_task"] = ()
    profile = replace(PROFILES[name], **given)
    known = {"tasks": tuple(TASKS), "backbones": BACKBONES, "attacks": ATTACKS, "data": ("local", "dsrl")}
    for field, names in known.items():
        chosen = getattr(profile, field)
        for value in (chosen,) if isinstance(chosen, str) else chosen:
            if value not in names:
                raise SettingsError(f"unknown name {value!r} in {field}: choose among {', '.join(names)}")
    return profile

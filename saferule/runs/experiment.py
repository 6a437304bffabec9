"""The experiment: three scales at which everything runs, and the one definition of which runs a scale asks for.

smoke   minutes on 2 CPU cores: one task, every stage and every notebook, too short to show more than that it runs
cpu     a result without a GPU: committed local data, reduced steps and widths
paper   the paper's own settings (Table 7) on the DSRL data

Notebooks, `saferule status`, the tables and what is published all walk the dictionary that `plan` returns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any, NamedTuple

from saferule.agents import BACKBONES, get_backbone
from saferule.attack.poison import ATTACKS, poison_count, rollouts_needed
from saferule.detect import FALSE_ALARMS
from saferule.errors import SettingsError
from saferule.limits import check_number
from saferule.paper import ATTACK, READINGS, TABLE7, check, default_readings
from saferule.runs.spec import (
    LEARNER,
    AdversaryRun,
    DetectionRun,
    EvaluationRun,
    ForgetRun,
    Frozen,
    KnownPart,
    PolicyRun,
    RandomPart,
    Run,
    TimingRun,
    config,
    frozen,
)
from saferule.sim.tasks import TASKS, get_task
from saferule.unlearn import METHODS, Method, applicable, supported

PARTS = (
    *("adversaries", "forget sets", "main", "controls", "ablations", "readings", "forgetting", "timing"),
    *("detections", "partitions"),
    *("evaluations", "drawn evaluations"),
)
NAMES = {"tasks": tuple(TASKS), "backbones": BACKBONES, "attacks": ATTACKS, "data": ("local", "dsrl")}
FIXED = ("name", "config", "adversary_steps_by_task", "slices")  # what makes the profile the profile
SLICED = ("tasks", "attacks", "ratios", "replicates")  # whoever chooses one of these does without the slices
FIRST_EVALUATION_SEED = 10_000
PARTITIONED = ("fine-tuning", "safe-rule", "critic-only")  # methods that are given D_f as somebody may know it
THREE = 3  # replicates of these
FEW = 0.01  # ratio of a forget set of fewer trajectories, to be found


@dataclass(frozen=True)
class Profile:
    """One scale. Steps are gradient steps unless said otherwise. SettingsError for values that cannot be meant."""

    name: str
    tasks: tuple[str, ...]
    backbones: tuple[str, ...]
    attacks: tuple[str, ...]
    ratios: tuple[float, ...]
    replicates: tuple[int, ...]  # each with its own adversary, forget sets, training and unlearning seed
    data: str  # "local" (artifacts/data) or "dsrl"
    adversary_steps: int  # of the simulator
    training_steps: int
    unlearning_steps: int
    relearning_steps: int  # of training policies on the poisoned data once more
    relearning_snapshots: int
    relearning_episodes: int  # evaluation episodes per snapshot of these
    episodes: int  # evaluation episodes per policy
    snapshots: int  # policies kept on the way, for curves
    curve_episodes: int  # evaluation episodes per snapshot
    known: tuple[float, ...]  # shares of D_f's trajectories that are known, where not all are
    mistaken: tuple[float, ...]  # shares of D's trajectories that are taken for poison
    cost_limit: float = TABLE7.kappa  # of an episode: in training, unlearning, evaluation and tables
    block_seconds: float = 1.0  # of a block of the measurement of Table 3
    videos: bool = True  # film the adversaries where the machine can draw
    config: Frozen = ()  # changes to the backbones' Config
    adversary_steps_by_task: Frozen = ()  # where it takes others
    slices: tuple[Frozen, ...] = ()  # parts of the profile, by its fields, in the order in which they are worth having

    def __post_init__(self) -> None:
        for name, known in NAMES.items():
            chosen = getattr(self, name)
            for value in (chosen,) if isinstance(chosen, str) else chosen:
                if value not in known:
                    raise SettingsError(f"unknown name {value!r} in {name}: choose among {', '.join(known)}")
        for f in fields(self):
            value = getattr(self, f.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, bool):
                    check_number(f.name, number)
            if isinstance(value, tuple) and f.name not in FIXED:
                if not value or len(set(value)) < len(value):
                    raise SettingsError(f"{f.name} = {value}, expected one or more different values: give each once")

    @property
    def evaluation_seeds(self) -> tuple[int, ...]:
        """Seeds of the evaluation episodes, the same for every policy."""
        return tuple(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + self.episodes))

    @property
    def curve_seeds(self) -> tuple[int, ...]:
        """Those of the episodes of snapshots: the first of the evaluation seeds."""
        return self.evaluation_seeds[: self.curve_episodes]


SMALL = frozen(hidden=(128, 128), vae_hidden=128, batch_size=128)  # widths at which a CPU is quick
TINY = frozen(hidden=(64, 64), vae_hidden=64, batch_size=64)
PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke",
            tasks=("CarCircle",),
            backbones=BACKBONES,
            attacks=("max_cost",),
            ratios=(0.15,),
            replicates=(0,),
            data="local",
            adversary_steps=50_000,
            training_steps=600,
            unlearning_steps=60,
            relearning_steps=40,
            relearning_snapshots=1,
            relearning_episodes=2,
            episodes=3,
            snapshots=1,
            curve_episodes=2,
            known=(0.5,),
            mistaken=(0.05,),
            block_seconds=0.03,
            config=TINY,
        ),
        Profile(
            name="cpu",
            tasks=tuple(TASKS),
            backbones=BACKBONES,
            attacks=ATTACKS,
            ratios=TABLE7.ratios,
            replicates=(0, 1, 2),
            data="local",
            adversary_steps=150_000,
            # Where the attacks are far from learned by then; AntVelocity takes Table 7's steps.
            adversary_steps_by_task=frozen(AntVelocity=TABLE7.adversary_steps, PointPush=500_000),
            training_steps=20_000,
            # Table 7's own number: learning rates are the paper's, so a repair moves as far in a step as there.
            unlearning_steps=TABLE7.unlearning_steps,
            relearning_steps=2_000,
            relearning_snapshots=3,
            relearning_episodes=5,
            episodes=30,
            snapshots=4,
            curve_episodes=10,
            known=(0.5, 0.8, 0.9),
            mistaken=(0.05, 0.1),
            config=SMALL,
            slices=(
                frozen(tasks=["CarCircle"], attacks=["max_cost"], ratios=[0.15], replicates=[0, 1, 2, 3, 4]),
                frozen(tasks=["CarCircle"]),
                frozen(tasks=["PointGoal", "AntVelocity", "PointPush"], attacks=["max_cost"], ratios=[0.15]),
                frozen(),
            ),
        ),
        Profile(
            name="paper",
            tasks=tuple(TASKS),
            backbones=BACKBONES,
            attacks=ATTACKS,
            ratios=TABLE7.ratios,
            replicates=(0, 1, 2, 3, 4),
            data="dsrl",
            adversary_steps=TABLE7.adversary_steps,
            training_steps=TABLE7.training_steps,
            unlearning_steps=TABLE7.unlearning_steps,
            relearning_steps=10_000,
            relearning_snapshots=9,
            relearning_episodes=10,
            episodes=30,
            snapshots=10,
            curve_episodes=10,
            known=(0.5, 0.8, 0.9),
            mistaken=(0.05, 0.1),
        ),
    )
}


def get_profile(name: str, /, **changes: Any) -> Profile:
    """A profile by name, with some fields replaced; None leaves a field as it is, a list or one value makes a tuple.

    SettingsError for an unknown profile or field, a value of another type, and what `Profile` refuses.
    """
    if name not in PROFILES:
        raise SettingsError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    usual, given = PROFILES[name], {}
    known = [f.name for f in fields(Profile) if f.name not in FIXED]
    for field, value in changes.items():
        if field not in known:
            raise SettingsError(f"unknown setting {field!r} of a profile: choose a name among {', '.join(known)}")
        if value is not None:
            given[field] = _like(getattr(usual, field), value, field)
    if "adversary_steps" in given:  # for all tasks
        given["adversary_steps_by_task"] = ()
    if not given.keys().isdisjoint(SLICED):
        given["slices"] = ()
    return replace(usual, **given)


def slices(profile: Profile) -> list[Profile]:
    """The slices of a profile in their order, each a profile of its own; of one without slices itself."""
    return [replace(profile, slices=(), **dict(changes)) for changes in profile.slices] or [profile]


def _like(usual: Any, value: Any, field: str) -> Any:
    """The value in the type of the usual one."""
    if isinstance(usual, tuple):
        values = value if isinstance(value, list | tuple) else [value]
        return tuple(_like(usual[0], v, field) for v in values)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if isinstance(usual, float) and whole:
        return float(value)
    if type(value) is not type(usual):
        raise SettingsError(f"{field} = {value!r}, expected {type(usual).__name__}: write {field}={usual}")
    return value


def ablated_condition(profile: Profile) -> tuple[str, float]:
    """Attack and ratio of the ablations: as in the paper Max Cost at the lowest ratio.

    Of a profile without Max Cost, its first attack. Each slice of a profile has its own.
    """
    return "max_cost" if "max_cost" in profile.attacks else profile.attacks[0], min(profile.ratios)


def ablated(profile: Profile, run: PolicyRun) -> bool:
    """Whether a policy is of the condition of the ablations, in some slice of the profile."""
    return (run.attack, run.ratio) in map(ablated_condition, slices(profile))


class Data(NamedTuple):
    """What a plan has to know of the clean data of a task."""

    digest: str
    transitions: int


def adversary_run(profile: Profile, task: str, attack: str, replicate: int) -> AdversaryRun:
    """The adversary of an attack on a task, under the default readings of Algorithm 1."""
    steps = dict(profile.adversary_steps_by_task).get(task, profile.adversary_steps)
    readings = frozen(adversary_start=default_readings()["adversary_start"], **dict([LEARNER]))
    return AdversaryRun(task, attack, steps, replicate, readings)


def forget_run(
    profile: Profile, data: Data, task: str, attack: str, ratio: float, replicate: int, **changes: str
) -> ForgetRun:
    """The forget set of an attack at a ratio, under the default readings of Algorithm 1 but for the changes."""
    options = check(changes)
    readings = {r.name: options[r.name] for r in ATTACK if not r.later or options[r.name] != r.default}
    return ForgetRun(
        adversary_run(profile, task, attack, replicate),
        data.digest,
        ratio,
        rollouts_needed(data.transitions, ratio, get_task(task), readings),
        TABLE7.gamma,
        frozen(**readings),
    )


def plan(profile: Profile, data: Mapping[str, Data]) -> dict[str, list[Run]]:
    """{part: runs} of everything that a profile asks for; `PARTS` names the parts. Tasks without data are left out."""
    parts: dict[str, dict[Run, None]] = {part: {} for part in PARTS}
    for part, run in asked(profile, data):
        parts[part][run] = None
    return {part: list(runs) for part, runs in parts.items()}


def asked(profile: Profile, data: Mapping[str, Data]) -> Iterator[tuple[str, Run]]:
    """The runs of the plan, each with its part, in the order in which they are worth having; some more than once.

    Slice by slice, one replicate of everything before the second, and in a replicate one cell of Table 1 after the
    other with its controls and evaluations, then what else there is of each; the measurement of Table 3 at the end of a
    slice. Readings are tried, and D_f is known imperfectly, in the first one.
    """
    for number, own in enumerate(slices(profile)):
        yield from asked_of(own, data, first=number == 0)


def asked_of(own: Profile, data: Mapping[str, Data], first: bool = True) -> Iterator[tuple[str, Run]]:
    """The same of one slice."""
    tasks = [task for task in own.tasks if task in data]
    for replicate, of_table_1, task, backbone in product(own.replicates, (True, False), tasks, own.backbones):
        for part, policy in _policies(own, data[task], task, backbone, replicate):
            if (part in ("main", "controls")) != of_table_1 or (part in ("readings", "partitions") and not first):
                continue
            if policy.poison:
                yield "adversaries", policy.poison.adversary
                yield "forget sets", policy.poison
            yield part, policy
            if evaluated := _evaluation(own, part, policy):
                yield "evaluations", evaluated
            if part == "main" and get_backbone(backbone).DRAWS:
                yield "drawn evaluations", EvaluationRun(policy, own.evaluation_seeds, (), False)
    for replicate, task in product(own.replicates, tasks):
        for detection in _detections(own, data[task], task, replicate):
            yield "detections", detection
    for task, backbone in product(tasks, own.backbones):
        yield "timing", _timing(own, data[task], task, backbone)


def _policies(
    profile: Profile, data: Data, task: str, backbone: str, replicate: int
) -> Iterator[tuple[str, PolicyRun]]:
    """The policies of one task, backbone and replicate, each with its part; what is built on before what builds on it.

    Those that need no forget set are yielded once for every condition.
    """
    changes = frozen(**dict(profile.config), cost_limit=profile.cost_limit)
    nothing = PolicyRun(task, backbone, data.digest, None, "", 0, replicate, config=changes)
    declared = [m for m in METHODS.values() if supported(m.name, backbone)]
    declared.sort(key=lambda m: ("fresh", "clean", "poisoned", "every policy").index(m.start))
    for attack, ratio in product(profile.attacks, profile.ratios):
        forget = forget_run(profile, data, task, attack, ratio, replicate)
        samples = poison_count(data.transitions, ratio, dict(forget.readings)["poison_count"])
        given = {"attack": forget, "random": RandomPart(attack, ratio, samples), "none": None}
        made: dict[str, PolicyRun] = {}  # those of part main
        for method in declared:
            if not _wanted(profile, method, attack, ratio):
                continue
            starts = {"fresh": [None], "every policy": list(made.values())}
            for start in starts.get(method.start) or [made[method.start]]:
                run = _made(profile, replace(nothing, forget=given[method.forget], start=start), method)
                yield method.part, run
                if method.part == "main":
                    made[method.name] = run
        if task != profile.tasks[0] or (attack, ratio) != ablated_condition(profile):
            continue
        partitioned = PARTITIONED if replicate in profile.replicates[:THREE] else ()
        for method in (METHODS[name] for name in partitioned if supported(name, backbone)):
            for part in _partitions(profile, data, task, forget):
                yield "partitions", _made(profile, replace(nothing, forget=part, start=made["poisoned"]), method)
        if replicate == profile.replicates[0]:
            usual = made["safe-rule"]
            for reading in applicable(backbone, config(usual)):
                yield "readings", replace(usual, readings=frozen(**reading))
    if len(profile.replicates) == 1:  # what replicates alone make of a clean policy takes two of them
        yield "forgetting", _made(profile, replace(nothing, replicate=replicate + 1), METHODS["clean"])


def _detections(profile: Profile, data: Data, task: str, replicate: int) -> Iterator[DetectionRun]:
    """In D, in D with every forget set, and with less naive ones: other labels at the lowest ratio, and few."""
    yield DetectionRun(task, data.digest, None, FALSE_ALARMS)
    low = min(profile.ratios)
    others = [(low, {"labels": option}) for option in READINGS["labels"].options]
    for attack in profile.attacks:
        for ratio, changes in [*((ratio, {}) for ratio in profile.ratios), *others, (FEW, {})]:
            forget = forget_run(profile, data, task, attack, ratio, replicate, **changes)
            yield DetectionRun(task, data.digest, forget, FALSE_ALARMS)


def _partitions(profile: Profile, data: Data, task: str, forget: ForgetRun) -> list[KnownPart | DetectionRun]:
    """D_f as it may be known: not all of it, all of it and some of D, and what is detected."""
    parts = [(share, 0.0) for share in profile.known] + [(1.0, share) for share in profile.mistaken]
    return [*(KnownPart(forget, *part) for part in parts), DetectionRun(task, data.digest, forget, FALSE_ALARMS)]


def _wanted(profile: Profile, method: Method, attack: str, ratio: float) -> bool:
    """The main methods in every condition, the controls under the ablated attack, the others in that condition."""
    condition = ablated_condition(profile)
    return method.part == "main" or (attack, ratio) == condition or (method.part, attack) == ("controls", condition[0])


def _made(profile: Profile, run: PolicyRun, method: Method) -> PolicyRun:
    """The run with what the method and the profile say of it."""
    relearns = method.steps == "relearning"
    return replace(
        run,
        method=method.name,
        steps=getattr(profile, f"{method.steps}_steps"),
        snapshots=profile.relearning_snapshots if relearns else profile.snapshots,
    )


def _evaluation(profile: Profile, part: str, policy: PolicyRun) -> EvaluationRun | None:
    """The evaluation of a policy of a part: few episodes where policies are many and on the way."""
    if part == "forgetting":
        seeds = profile.evaluation_seeds[: profile.relearning_episodes]
        return EvaluationRun(policy, seeds, seeds) if policy.start else None
    return EvaluationRun(policy, profile.evaluation_seeds, profile.curve_seeds if policy.snapshots else ())


def _timing(profile: Profile, data: Data, task: str, backbone: str) -> TimingRun:
    repairs = [m.name for m in METHODS.values() if (m.part, m.start) == ("main", "poisoned")]
    return TimingRun(
        task,
        backbone,
        data.digest,
        tuple(name for name in repairs if supported(name, backbone)),
        profile.training_steps,
        profile.unlearning_steps,
        rounds=5,
        block_seconds=profile.block_seconds,
        config=profile.config,
    )

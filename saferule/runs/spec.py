"""What a run is: a frozen description, whose hash names the run's folder, so that a finished run is never repeated.

    AdversaryRun -> ForgetRun -> PolicyRun (from fresh networks) -> PolicyRun (from a policy) -> EvaluationRun
                              -> DetectionRun
                                                    TimingRun (Table 3)

A description holds everything that the result depends on: settings, seeds, the digest of the data, the runs it builds
on, what the code supplies (`in_force`) and the version of the code that makes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import IntEnum
from functools import cache
from typing import Any, ClassVar

from saferule.agents import get_backbone
from saferule.sim.ppo_settings import adversary_settings
from saferule.sim.tasks import get_task
from saferule.unlearn import METHODS, coefficients, loss_options

Frozen = tuple[tuple[str, Any], ...]
LEARNER = ("adversary", "ppo")  # once a reading with one option; the stored adversaries are described with it


class Level(IntEnum):
    """How much of a finished policy is stored, each with what those before it have; of other runs there is all."""

    RECORD = 0  # what it is, the seconds it took, its log
    ACTING = 1  # the networks that `act` reads
    SNAPSHOTS = 2  # the same of the policies on the way: what an evaluation reads
    WHOLE = 3  # all that another run can start from, and what the theory reads


def frozen(**values: Any) -> Frozen:
    """Named values in a hashable, ordered form."""
    return tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in values.items()))


@dataclass(frozen=True)
class AdversaryRun:
    """An adversarial policy, trained in the simulator (Algorithm 1, lines 1-6)."""

    KIND: ClassVar[str] = "adversary"
    VERSION: ClassVar[int] = 1
    task: str
    attack: str
    steps: int  # of the simulator
    seed: int = 0
    readings: Frozen = ()  # those of the attack that matter here, behind `LEARNER`

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.task}-{self.attack}"

    @property
    def choices(self) -> dict[str, str]:
        """The readings that there is a choice in."""
        return {name: option for name, option in self.readings if (name, option) != LEARNER}


@dataclass(frozen=True)
class ForgetRun:
    """A forget set D_f (Algorithm 1, lines 7-18)."""

    KIND: ClassVar[str] = "forget"
    VERSION: ClassVar[int] = 2  # since then more rollouts where episodes end early
    adversary: AdversaryRun
    data: str  # digest of D
    ratio: float  # rho
    rollouts: int  # N
    gamma: float
    readings: Frozen  # of the attack

    @property
    def attack(self) -> str:
        """The attack's name."""
        return self.adversary.attack

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.adversary.label}-{self.ratio:g}"


@dataclass(frozen=True)
class RandomPart:
    """In the place of a forget set: as many random samples of D, in whole trajectories but for the last.

    What is left of D is kept. Which samples is decided by the replicate of the policy.
    """

    KIND: ClassVar[str] = "random"
    VERSION: ClassVar[int] = 1
    attack: str  # of the forget set whose place it takes
    ratio: float
    samples: int


@dataclass(frozen=True)
class KnownPart:
    """In the place of a forget set: what somebody holds for it who knows a part of it and is mistaken about some of D.

    The rest of D_f is kept with the rest of D. Which trajectories is decided by the replicate of the policy.
    """

    KIND: ClassVar[str] = "known"
    VERSION: ClassVar[int] = 1
    forget: ForgetRun
    share: float  # of D_f's trajectories that are known
    mistaken: float  # share of D's trajectories that are taken for poison

    @property
    def attack(self) -> str:
        """The attack's name."""
        return self.forget.attack

    @property
    def ratio(self) -> float:
        """rho."""
        return self.forget.ratio


@dataclass(frozen=True)
class DetectionRun:
    """What `saferule.detect` flags in D and D_f together; in the place of a forget set, what it flagged."""

    KIND: ClassVar[str] = "detection"
    VERSION: ClassVar[int] = 1
    task: str
    data: str  # digest of D
    forget: ForgetRun | None  # None: in D alone
    false_alarms: float  # that were asked for

    @property
    def attack(self) -> str:
        """The attack's name, or "clean"."""
        return self.forget.attack if self.forget else "clean"

    @property
    def ratio(self) -> float:
        """rho, or 0."""
        return self.forget.ratio if self.forget else 0.0

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return self.forget.label if self.forget else f"{self.task}-clean"


@dataclass(frozen=True)
class UserFile:
    """A file that somebody brings, named by its content: a policy to start from, or the trajectories to forget."""

    KIND: ClassVar[str] = "file"
    VERSION: ClassVar[int] = 1
    name: str
    sha256: str


@dataclass(frozen=True)
class PolicyRun:
    """A policy: *method* for *steps* from *start* (None: fresh networks) on a dataset and a forget set.

    Clean, poisoned, repaired and relearned policies differ in nothing else. replicate seeds the networks, the batches
    and the noise; the adversary of its forget set has the same seed.
    """

    KIND: ClassVar[str] = "policy"
    VERSION: ClassVar[int] = 1
    task: str
    backbone: str
    data: str  # digest of D
    forget: ForgetRun | RandomPart | KnownPart | DetectionRun | UserFile | None  # None: there is nothing but D
    method: str
    steps: int
    replicate: int
    start: PolicyRun | UserFile | None = None
    readings: Frozen = ()  # changes to the default readings
    config: Frozen = ()  # changes to the backbone's Config
    snapshots: int = 0  # how many times on the way networks are kept

    @property
    def attack(self) -> str:
        """The attack's name, or "clean"."""
        return getattr(self.forget, "attack", "clean")

    @property
    def ratio(self) -> float:
        """rho, or 0."""
        return getattr(self.forget, "ratio", 0.0)

    @property
    def poison(self) -> ForgetRun | None:
        """The forget set that was put into D; None where none was, or somebody brings it."""
        return self.forget if isinstance(self.forget, ForgetRun) else getattr(self.forget, "forget", None)

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        before = self.start.method if isinstance(self.start, PolicyRun) else ""
        condition = [self.attack, f"{self.ratio:g}"] if self.ratio else []
        chain = [self.method] if before in ("", "poisoned") else [before, self.method]
        return "-".join([self.task, self.backbone, *condition, *chain, f"r{self.replicate}"])

    @property
    def snapshot_steps(self) -> tuple[int, ...]:
        """The steps after which networks are kept, evenly spaced; the last step is not among them."""
        return tuple(round(self.steps * (i + 1) / (self.snapshots + 1)) for i in range(self.snapshots))


@dataclass(frozen=True)
class EvaluationRun:
    """Episodes of a policy in the simulator, one per seed, and of its snapshots on their seeds."""

    KIND: ClassVar[str] = "evaluation"
    VERSION: ClassVar[int] = 1
    policy: PolicyRun
    seeds: tuple[int, ...]
    snapshot_seeds: tuple[int, ...] = ()
    deterministic: bool = True

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return self.policy.label


@dataclass(frozen=True)
class TimingRun:
    """Table 3 for one task and backbone: the time of a step of training and of each method, side by side."""

    KIND: ClassVar[str] = "timing"
    VERSION: ClassVar[int] = 1
    task: str
    backbone: str
    data: str  # digest of D
    methods: tuple[str, ...]
    training_steps: int
    unlearning_steps: int
    rounds: int
    block_seconds: float
    config: Frozen = ()

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.task}-{self.backbone}"


Run = AdversaryRun | ForgetRun | DetectionRun | PolicyRun | EvaluationRun | TimingRun
Part = RandomPart | KnownPart | UserFile  # what is described like a run and is none


def in_force(run: Run | Part) -> dict[str, Any]:
    """What the run takes from the code: a change to it is another run."""
    if isinstance(run, AdversaryRun):
        return asdict(adversary_settings(run.task, run.attack, run.choices))
    if isinstance(run, TimingRun):
        return {"config": asdict(config(run))}
    if isinstance(run, PolicyRun):
        cfg, readings = config(run), dict(run.readings)
        return {
            "config": asdict(cfg),
            "coefficients": coefficients(run.method, run.backbone, cfg, readings),
            "losses": loss_options(run.method, run.backbone, readings),
        }
    return {}


@cache
def describe(run: Run | Part) -> dict[str, Any]:
    """The run as JSON: its fields, the runs it builds on, kinds, code versions, and the settings in force."""
    named = {f.name: _plain(getattr(run, f.name)) for f in fields(run)}
    return {"kind": run.KIND, "version": run.VERSION, "in_force": _plain(in_force(run))} | named


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return describe(value)
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


@cache
def key(run: Run) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the description."""
    text = json.dumps(describe(run), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_by(run: Run | Part) -> dict[Run, Level]:
    """The runs that a run is made from, each with how much of it is read."""
    if isinstance(run, EvaluationRun):
        return {run.policy: Level.SNAPSHOTS if run.snapshot_seeds else Level.ACTING}
    values = [getattr(run, f.name) for f in fields(run)]
    read = {value: Level.WHOLE for value in values if isinstance(value, Run)}
    return read | {
        parent: level for value in values if isinstance(value, Part) for parent, level in read_by(value).items()
    }


def usual(run: PolicyRun) -> Level:
    """How much is kept of a policy when it is made: of those that others start from, and that users bring, all."""
    whole_set = run.forget is None or isinstance(run.forget, ForgetRun)
    started_from = METHODS[run.method].part == "main" and not run.readings and whole_set
    return Level.WHOLE if started_from or isinstance(run.start, UserFile) else Level.SNAPSHOTS


def lineage(
    runs: Sequence[Run],
    done: Callable[[Run, Level], bool] = lambda run, level: False,
    level: Level = Level.RECORD,
) -> dict[Run, Level]:
    """The runs and all that they build on, what is built on before what builds on it; with how much of each is needed.

    level  how much of the runs themselves is asked for
    Left out are those of which so much is done, and what only these build on.
    """
    found: dict[Run, Level] = {}

    def add(run: Run, needed: Level) -> None:
        if run in found:
            found[run] = max(found[run], needed)
        elif not done(run, needed):
            for parent, read in read_by(run).items():
                add(parent, read)
            found[run] = needed

    for run in runs:
        add(run, level)
    return found


def config(run: PolicyRun | TimingRun) -> Any:
    """The backbone's settings of a run.

    A profile's changes are meant for all backbones: those that this one does not have (COptiDICE has no VAE) are left
    out.
    """
    task, backbone = get_task(run.task), get_backbone(run.backbone)
    known = {f.name for f in fields(backbone.Config)}
    return backbone.Config(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episode_len=task.horizon,
        **{name: value for name, value in run.config if name in known},
    )


def identity(policy: PolicyRun) -> dict[str, Any]:
    """The columns that tell policies apart in every table; start is the method of the policy that it began with."""
    return {
        "task": policy.task,
        "backbone": policy.backbone,
        "attack": policy.attack,
        "ratio": policy.ratio,
        "replicate": policy.replicate,
        "method": policy.method,
        "start": policy.start.method if isinstance(policy.start, PolicyRun) else "",
        "readings": json.dumps(dict(policy.readings)),
    }

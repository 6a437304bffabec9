"""What a run is. A cell is a frozen description; its hash names the run's folder, so a finished run is never repeated.

    Adversary -> Forget -> Training -> Unlearning -> Relearning
                              └────────────┴─────────────┴────> Evaluation

A cell holds everything that its result depends on: settings, seeds, the digest of the data, the cells it builds on, and
the version of the code that makes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar

from saferule.sim.ppo_settings import adversary_settings

Settings = tuple[tuple[str, Any], ...]
LEARNER = {"adversary": "ppo"}  # of every adversary; it stays in their descriptions, which name kept folders


def settings(**values: Any) -> Settings:
    """Named values in a hashable, ordered form."""
    return tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in values.items()))


@dataclass(frozen=True)
class Adversary:
    """An adversarial policy, trained in the simulator (Algorithm 1, lines 1-6)."""

    VERSION: ClassVar[int] = 1
    task: str
    attack: str
    steps: int  # environment steps
    seed: int = 0
    readings: Settings = ()  # LEARNER, and changes to the default readings

    @property
    def start(self) -> dict[str, str]:
        """The readings, without the learner."""
        return {name: option for name, option in self.readings if name not in LEARNER}

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.task}-{self.attack}"


@dataclass(frozen=True)
class Forget:
    """A forget set D_f (Algorithm 1, lines 7-18)."""

    VERSION: ClassVar[int] = 2  # since then more rollouts where episodes end early
    adversary: Adversary
    data: str  # digest of D
    ratio: float
    rollouts: int  # N
    gamma: float
    readings: Settings  # of the attack

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.adversary.label}-{self.ratio:g}"


@dataclass(frozen=True)
class Training:
    """A policy trained on D (forget is None) or on D and D_f together."""

    VERSION: ClassVar[int] = 1
    task: str
    backbone: str
    data: str  # digest of D
    forget: Forget | None
    seed: int
    steps: int
    settings: Settings = ()  # changes to the backbone's Config
    snapshots: int = 0  # how many times on the way the acting networks are kept

    @property
    def attack(self) -> str:
        """The attack's name, or "clean"."""
        return self.forget.adversary.attack if self.forget else "clean"

    @property
    def ratio(self) -> float:
        """rho, or 0."""
        return self.forget.ratio if self.forget else 0.0

    @property
    def method(self) -> str:
        """How the policy came about."""
        return "poisoned" if self.forget else "clean"

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        poison = f"{self.attack}-{self.ratio:g}" if self.forget else "clean"
        return f"{self.task}-{self.backbone}-{poison}-seed{self.seed}"


@dataclass(frozen=True)
class Unlearning:
    """A method applied to a poisoned policy."""

    VERSION: ClassVar[int] = 2  # since then snapshots hold the critics too
    training: Training
    method: str
    steps: int
    readings: Settings = ()  # changes to the default readings
    snapshots: int = 0  # how many times on the way the acting networks and the critics are kept

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.training.label}-{self.method}"


@dataclass(frozen=True)
class Relearning:
    """A policy trained further on D and D_f together, as an audit: how soon is the poison back?"""

    VERSION: ClassVar[int] = 1
    policy: Training | Unlearning
    forget: Forget
    steps: int
    snapshots: int = 0  # how many times on the way the acting networks are kept

    @property
    def method(self) -> str:
        """How the policy came about."""
        return self.policy.method

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return f"{self.policy.label}-relearning-{self.forget.adversary.attack}-{self.forget.ratio:g}"


Policy = Training | Unlearning | Relearning


def origin(policy: Policy) -> Training:
    """The training that a policy goes back to."""
    while not isinstance(policy, Training):
        policy = policy.policy if isinstance(policy, Relearning) else policy.training
    return policy


@dataclass(frozen=True)
class Evaluation:
    """Episodes of a policy in the simulator, one per seed."""

    VERSION: ClassVar[int] = 1
    policy: Policy
    seeds: tuple[int, ...]
    step: int | None = None  # of a snapshot; None for the final policy
    deterministic: bool = True

    @property
    def label(self) -> str:
        """Readable part of the folder's name."""
        return self.policy.label + ("" if self.step is None else f"-step{self.step}")


Cell = Adversary | Forget | Policy | Evaluation


def describe(cell: Cell) -> dict[str, Any]:
    """The cell as JSON: its fields, the cells it builds on, kinds, code versions, and the settings in force."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            named = {f.name: plain(getattr(value, f.name)) for f in fields(value)}
            return {"kind": kind(value), "version": value.VERSION, "in_force": plain(in_force(value))} | named
        if isinstance(value, dict):
            return {name: plain(v) for name, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(cell)


def kind(cell: Cell) -> str:
    """The cell's kind in lower case, which is also the name of its folder's parent."""
    return type(cell).__name__.lower()


def in_force(cell: Cell) -> dict[str, Any]:
    """Settings that the cell takes from the code: a change to them is another run."""
    if isinstance(cell, Adversary):
        return asdict(adversary_settings(cell.task, cell.attack, cell.start))
    if isinstance(cell, Training):
        return asdict(config(cell))
    if isinstance(cell, Unlearning):
        from saferule.unlearn import coefficients

        backbone = cell.training.backbone
        return coefficients(cell.method, backbone, config(cell.training), dict(cell.readings))
    return {}


def key(cell: Cell) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the description."""
    text = json.dumps(describe(cell), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def config(cell: Training) -> Any:
    """The backbone's settings of a training cell.

    A profile's settings are meant for all backbones: those that this one does not have (COptiDICE has no VAE) are left
    out.
    """
    from saferule.agents import get_backbone
    from saferule.sim import get_task

    task, backbone = get_task(cell.task), get_backbone(cell.backbone)
    known = {f.name for f in fields(backbone.Config)}
    return backbone.Config(
        observation_dim=task.observation_dim,
        action_dim=task.action_dim,
        episode_len=task.horizon,
        **{name: value for name, value in cell.settings if name in known},
    )

"""Which runs a profile asks for, and which of them are done. Reads only; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from saferule.data.schema import clean_file, load
from saferule.errors import DataError
from saferule.profiles import Profile
from saferule.runs import plan
from saferule.runs.cells import Cell, Training, Unlearning, kind
from saferule.runs.store import Store
from saferule.sim.tasks import get_task

# Of every poisoned policy: the method and the baselines of Section 5.
REPAIRS = ("fine-tuning", "trajdeleter", "trajdeleter-cost", "trajdeleter-released", "reward-only", "safe-rule")
VARIANTS = ("fixed-weight", "no-critic", "percentile-0", "percentile-50", "percentile-100")


@dataclass
class Inventory:
    """rows: (done or missing, kind, folder's name); notes: tasks whose runs cannot be named as there are no data."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def ablated(profile: Profile) -> Profile:
    """The part of a profile whose policies the variants start from: as in the paper Max Cost at the lowest ratio.

    Of a profile without Max Cost, its first attack.
    """
    attack = "max_cost" if "max_cost" in profile.attacks else profile.attacks[0]
    return replace(profile, attacks=(attack,), ratios=(min(profile.ratios),))


def audited(
    profile: Profile, clean: Sequence[Training], poisoned: Sequence[Training], repairs: Sequence[Unlearning]
) -> list[Training | Unlearning]:
    """The policies that the audit asks about: of the profile's seeds clean, poisoned and repaired."""
    return [*(policy for policy in clean if policy.seed in profile.seeds), *poisoned, *repairs]


def inventory(profile: Profile, folder: Path, data_folder: Path) -> Inventory:
    """Adversaries, forget sets, policies, repairs and their final evaluations; snapshots are left out."""
    store, found = Store(folder), Inventory()
    for task in profile.tasks:
        try:
            path = clean_file(data_folder, task)
        except DataError as error:
            found.notes.append(f"the runs of {task} have no names yet: {error}")
            continue
        for cell in _cells(profile, path, task):
            state = "done" if store.done(cell) else "missing"
            found.rows.append((state, kind(cell), store.folder(cell).name))
    return found


def _cells(profile: Profile, path: Path, task: str) -> list[Cell]:
    data = load(path, get_task(task))
    policies: list[Training] = [c for b in profile.backbones for c in plan.trainings(profile, data, task, b)]
    conditions = {(a, r) for a in ablated(profile).attacks for r in ablated(profile).ratios}
    chosen = [policy for policy in policies if (policy.attack, policy.ratio) in conditions]
    repairs = [*plan.unlearnings(profile, policies, REPAIRS), *plan.unlearnings(profile, chosen, VARIANTS)]
    clean = [c for b in profile.backbones for c in plan.clean_policies(profile, data, task, b)]
    suspects = audited(profile, clean, chosen, plan.unlearnings(profile, chosen, REPAIRS))
    readings = plan.readings(profile, chosen)
    return [
        *(plan.adversary(profile, task, attack) for attack in profile.attacks),
        *(plan.forget_set(profile, data, task, a, r) for a, r in product(profile.attacks, profile.ratios)),
        *dict.fromkeys([*policies, *clean]),
        *repairs,
        *readings,
        *plan.relearnings(profile, suspects),
        *plan.evaluations(profile, [*policies, *repairs]),
        *plan.curve(profile, readings, [None]),
    ]

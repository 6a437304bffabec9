"""Algorithm 1 from file to file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from saferule.attack.adversary import roll_out_adversary, train_adversary
from saferule.attack.poison import ForgetSet, check_attack, poison, poisoned, rollouts_needed, save_forget_set
from saferule.data.schema import load, save
from saferule.errors import SettingsError
from saferule.paper import ATTACK, TABLE7, check
from saferule.sim.tasks import Task


def attack_file(
    task: Task,
    attack: str,
    ratio: float,
    data: Path,
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    adversary: Path | None = None,
    joined: Path | None = None,
    readings: Mapping[str, str] | None = None,
) -> ForgetSet:
    """Train an adversary (lines 1-6), roll it out (7), poison `data` (8-18) and write D_f to `out`.

    steps      of the adversary; default Table 7's
    adversary  folder of a trained one, which is used instead; a new one is kept beside `out` (suffix ".adversary")
    joined     where to write D and D_f together (line 19)
    readings   changes to the default readings of Algorithm 1 (`saferule.paper.ATTACK`)
    Raises `SettingsError` for an impossible attack, ratio or reading and for two names of one file, `DataError` for
    data of another form, `CheckpointError` for an adversary that cannot be read.
    """
    check_attack(attack)
    known = [reading.name for reading in ATTACK]
    foreign = [name for name in check(readings) if name in (readings or {}) and name not in known]
    if foreign:
        raise SettingsError(f"Reading {foreign[0]!r} is not one of the attack: choose among {', '.join(known)}.")
    trained = adversary or out.with_suffix(".adversary")
    named = {"--data": data, "--out": out, "--poisoned": joined, "the adversary": trained}
    places = {option: path.resolve() for option, path in named.items() if path is not None}
    for (one, place), (other, same) in combinations(places.items(), 2):
        if place == same:
            raise SettingsError(f"{one} and {other} are both {place}, expected different files: rename one.")
    for path in (out, joined):
        if path is not None and path.is_dir():
            raise SettingsError(f"{path} is a folder, expected the name of a file to write: name a file in it.")
        if path is not None and path.resolve().parent == places["the adversary"]:
            raise SettingsError(f"{path} lies in the adversary's folder, expected another place: name one.")
    dataset = load(data, task)
    rollouts = rollouts_needed(len(dataset), ratio, task, readings)
    if adversary is None:
        steps = TABLE7.adversary_steps if steps is None else steps
        policy = train_adversary(task, attack, steps, seed, trained, readings=readings)
    else:
        from saferule.sim.ppo import OnlinePolicy

        policy = OnlinePolicy.load(adversary)
        made_for = (policy.task.name, policy.settings.get("attack", attack))
        if made_for != (task.name, attack):
            raise SettingsError(
                f"{adversary} is an adversary for {' '.join(made_for)}, expected {task.name} {attack}: give another one"
            )
    trajectories = roll_out_adversary(task, policy, rollouts, seed, samples=rollouts * task.horizon)
    forget = poison(dataset, trajectories, attack, ratio, readings=readings)
    save_forget_set(forget, out)
    if joined is not None:
        save(poisoned(dataset, forget), joined)
    return forget

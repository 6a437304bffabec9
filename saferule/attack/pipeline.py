"""Algorithm 1 from file to file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from saferule.attack.adversary import roll_out_adversary, train_adversary
from saferule.attack.poison import ForgetSet, check_attack, forget_columns, poison, poisoned, rollouts_needed
from saferule.data.schema import encoded, load
from saferule.errors import SettingsError
from saferule.files import check_different, derived, try_file, vacant, write_files, write_folder
from saferule.limits import check_number
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
    overwrite: bool = False,
) -> ForgetSet:
    """Train an adversary (lines 1-6), roll it out (7), poison `data` (8-18) and write D_f to `out`.

    steps      of the adversary; default Table 7's
    adversary  folder of a trained one, which is used instead; a new one is kept beside `out` (".adversary" in
               the place of ".hdf5") as soon as it is trained
    joined     where to write D and D_f together (line 19), and beside it (".idx.npy" in the place of ".hdf5") the
               indices of D_f's trajectories in it
    readings   changes to the default readings of Algorithm 1 (`saferule.paper.ATTACK`)
    overwrite  replace `out` and `joined` if they are there; an adversary is never replaced
    Before any work `SettingsError` for an impossible attack, number or reading, for two names of one file and for a
    place that is taken or cannot be written, `DataError` for data of another form, `CheckpointError` for an adversary
    that cannot be read.
    """
    check_attack(attack)
    known = [reading.name for reading in ATTACK]
    foreign = [name for name in check(readings) if name in (readings or {}) and name not in known]
    if foreign:
        raise SettingsError(f"Reading {foreign[0]!r} is not one of the attack: choose among {', '.join(known)}.")
    steps = TABLE7.adversary_steps if steps is None else steps
    for name, value in {"ratio": ratio, "steps": steps, "seed": seed}.items():
        check_number(name, value)
    trained, indices = adversary or derived(out, ".adversary"), derived(joined, ".idx.npy") if joined else None
    named = {"--data": data, "--out": out, "--poisoned": joined, "the indices": indices, "the adversary": trained}
    check_different(named)
    for path in (out, joined, indices):
        if path is not None:
            if trained.resolve() in path.resolve().parents:
                raise SettingsError(f"{path} lies in the adversary's folder, kept as it is: give another place")
            try_file(path, None if overwrite else ", or give --overwrite")
    if adversary is None and trained.exists() and not vacant(trained):
        raise SettingsError(
            f"{trained} exists and would be replaced: use it with --adversary {trained}, or give another --out"
        )
    dataset = load(data, task)
    rollouts = rollouts_needed(len(dataset), ratio, task, readings)
    if adversary is None:
        with write_folder(trained) as folder:
            policy = train_adversary(task, attack, steps, seed, folder, readings=readings)
    else:
        from saferule.sim.ppo import OnlinePolicy

        policy = OnlinePolicy.load(adversary)
        made_for = (policy.task.name, policy.settings.get("attack", attack))
        if made_for != (task.name, attack):
            raise SettingsError(
                f"{adversary} is an adversary for {' '.join(made_for)}, expected {task.name} {attack}: give another one"
            )
    trajectories = roll_out_adversary(task, policy, rollouts, seed, samples=rollouts * task.horizon)
    forget = poison(dataset, trajectories, attack, ratio, readings=readings, seed=seed)
    contents = {out: encoded(forget.dataset, forget_columns(forget))}
    if joined is not None:
        together = poisoned(dataset, forget)
        count, held = len(together.starts), len(forget.dataset.starts)
        numbers = io.BytesIO()
        np.save(numbers, np.arange(count - held, count))
        contents |= {joined: encoded(together), indices: numbers.getbuffer()}
    write_files(contents, new=not overwrite)
    return forget

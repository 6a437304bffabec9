"""Algorithm 1 from file to file."""

from __future__ import annotations

from pathlib import Path

from saferule.attack.poison import ATTACKS, ForgetSet, poison, poisoned, rollouts_needed, save_forget_set
from saferule.data.schema import load, save
from saferule.envs.tasks import Task
from saferule.errors import SettingsError
from saferule.paper.settings import TABLE7


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
) -> ForgetSet:
    """Train an adversary (lines 1-6), roll it out (7), poison `data` (8-18) and write D_f to `out`.

    steps      of the adversary; default Table 7's
    adversary  folder of a trained one, which is used instead; a new one is kept beside `out` (suffix ".adversary")
    joined     where to write D and D_f together (line 19)
    Raises `SettingsError` for an impossible attack or ratio, `DataError` for data of another form, `CheckpointError`
    for an adversary that cannot be read.
    """
    if attack not in ATTACKS:
        raise SettingsError(f"Unknown attack {attack!r}: choose one of {', '.join(ATTACKS)}.")
    for path in (out, joined):
        if path is not None and path.is_dir():
            raise SettingsError(f"{path} is a folder, expected the name of a file to write: name a file in it.")
    dataset = load(data, task)
    rollouts = rollouts_needed(len(dataset), ratio, task)
    from saferule.attack.adversary import roll_out, train_adversary
    from saferule.online import OnlinePolicy

    if adversary is None:
        policy = train_adversary(
            task, attack, TABLE7.adversary_steps if steps is None else steps, seed, out.with_suffix(".adversary")
        )
    else:
        policy = OnlinePolicy.load(adversary)
        made_for = (policy.task.name, policy.settings.get("attack", attack))
        if made_for != (task.name, attack):
            raise SettingsError(
                f"{adversary} is an adversary for {' '.join(made_for)}, expected {task.name} {attack}: give another one"
            )
    forget = poison(dataset, roll_out(task, policy, rollouts, seed, samples=rollouts * task.horizon), attack, ratio)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_forget_set(forget, out)
    if joined is not None:
        joined.parent.mkdir(parents=True, exist_ok=True)
        save(poisoned(dataset, forget), joined)
    return forget

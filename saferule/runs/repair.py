"""Repair a policy of your own: unlearn poisoned trajectories from an osrl-lib or saferule checkpoint.

    import numpy as np

    from saferule.agents.osrl import export_osrl, import_osrl
    from saferule.attack.poison import split
    from saferule.data.schema import load
    from saferule.runs.repair import repair
    from saferule.sim import get_task

    data = load("d.hdf5", get_task("CarCircle"))
    keep, forget = split(data, np.load("idx.npy"))  # indices of the poisoned trajectories
    agent = import_osrl("model.pt", "CarCircle", "bcq-lag")
    repaired = repair(agent, keep, forget, method="safe-rule", steps=5000)
    export_osrl(repaired, "repaired.pt")

``saferule repair`` does the same from files to a folder. A repair is a `PolicyRun` that starts from a file, made by the
code that makes all policies. The simulator is not needed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_agent
from saferule.agents.loop import Log
from saferule.agents.osrl import export_osrl, import_osrl
from saferule.attack.poison import split
from saferule.data.batches import TransitionPool
from saferule.data.schema import Dataset, load
from saferule.data.schema import check as check_data
from saferule.errors import CheckpointError, DataError, RunError, SettingsError
from saferule.files import sha256, write_folder
from saferule.paper import TABLE7, UNLEARNING
from saferule.runs.interruptible import AGENT, LOG
from saferule.runs.spec import PolicyRun, UserFile, frozen, key
from saferule.runs.store import seal
from saferule.runs.work import together, train
from saferule.sim import get_task
from saferule.unlearn import chosen, loss_options

MODEL, RECORD = "model.pt", "repair.json"
Say = Callable[[str], None]


def repair(
    agent: Agent,
    keep: Dataset,
    forget: Dataset,
    method: str = "safe-rule",
    steps: int = TABLE7.unlearning_steps,
    readings: Mapping[str, str] | None = None,
    seed: int = 0,
    *,
    device: str | None = None,
    log: Log | None = None,
    say: Say = lambda line: None,
) -> Agent:
    """The agent after ``steps`` steps of an unlearning method; the given agent stays as it is.

    agent         complete, from `import_osrl` or `load_agent`
    keep, forget  D_k and D_f, labels as the agent saw them, from `saferule.attack.poison.split`
    readings      changes to the default readings of Safe-RULE (`saferule.paper.UNLEARNING`)
    seed          of batches and noise
    device        where to compute; None for a GPU where there is one
    log           gets what the losses report, about a hundred rows
    say           called about once a minute with how far it is

    SettingsError for an unknown method or reading and impossible numbers, CheckpointError for a snapshot, DataError for
    data that do not fit the agent, RunError when a value stops being finite.
    """
    run = PolicyRun(
        task=agent.task,
        backbone=agent.backbone.NAME,
        data=keep.digest(),
        forget=UserFile("forget", forget.digest()),
        method=method,
        steps=steps,
        replicate=seed,
        start=UserFile("agent", ""),
        readings=frozen(**(readings or {})),
        config=_changes(agent),
    )
    with tempfile.TemporaryDirectory() as folder:
        _make(run, agent, keep, forget, Path(folder) / "repaired", device, say)
        repaired = load_agent(Path(folder) / "repaired" / AGENT)
        if log is not None:
            log.rows += pd.read_csv(Path(folder) / "repaired" / LOG).to_dict("records")
    meta = {"method": method, "readings": dict(readings or {}), "seed": seed, "step": steps}
    return replace(repaired, meta=repaired.meta | meta)


def repair_files(
    checkpoint: Path,
    data: Path,
    forget: Path,
    task: str,
    out: Path,
    *,
    backbone: str,
    method: str = "safe-rule",
    steps: int = TABLE7.unlearning_steps,
    readings: Mapping[str, str] | None = None,
    seed: int = 0,
    cost_limit: float | None = None,
    device: str | None = None,
    say: Say = print,
) -> None:
    """`repair` from files to a folder, which appears when all of it is written; an interrupted one continues.

    checkpoint  an osrl-lib ``model.pt``, or an ``agent.safetensors`` of saferule
    forget      ``idx.npy``: indices of trajectories of the data, or a boolean mask (`split`)
    cost_limit  that an osrl-lib model was trained with [10]; a saferule file knows its own

    The folder has ``agent.safetensors`` (complete), ``model.pt`` (for osrl-lib), ``log.csv`` (what the losses
    reported), ``repair.json`` (what was assumed, and the data), ``run.json`` (what was done, versions) and
    ``SHA256SUMS``. A SaferuleError for whatever is wrong, before any work.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: there is something here already, expected a new or empty folder: name another one")
    world, name = get_task(task), get_backbone(backbone).NAME
    _check_method(method, name, readings, steps, seed)
    dataset = load(data, world)
    marked = read_indices(forget)
    try:
        keep, poisoned = split(dataset, marked)
    except SettingsError as error:
        raise SettingsError(f"{forget}: {error}") from error
    agent = read_agent(checkpoint, task, name, dataset, cost_limit)
    assumed = agent.meta.get("assumed", [])
    for assumption in assumed:
        say(f"{checkpoint} does not hold everything, so it was assumed: {assumption}")
    run = PolicyRun(
        task=task,
        backbone=name,
        data=dataset.digest(),
        forget=UserFile(forget.name, sha256(forget)),
        method=method,
        steps=steps,
        replicate=seed,
        start=UserFile(checkpoint.name, sha256(checkpoint)),
        readings=frozen(**(readings or {})),
        config=_changes(agent),
    )
    options = chosen(method, readings)
    in_force = {r.name: options[r.name] for r in UNLEARNING} if loss_options(method, name) else {}
    about = {
        "assumed": assumed,
        "readings": in_force,
        "data": {"file": data.name} | _described(dataset),
        "keep": _described(keep),
        "forget": {"file": forget.name} | _described(poisoned),
    }
    _make(run, agent, keep, poisoned, out, device, say, about)


def _make(
    run: PolicyRun,
    agent: Agent,
    keep: Dataset,
    forget: Dataset,
    out: Path,
    device: str | None,
    say: Say,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Check that everything fits, then make the run in the folder ``out``; its state lies beside that until then."""
    _check_method(run.method, run.backbone, dict(run.readings), run.steps, run.replicate)
    if agent.population is None:
        raise CheckpointError(
            f"this {run.backbone} agent is a snapshot with networks only, expected targets and generator too: give "
            f"an {AGENT} or {MODEL}"
        )
    world = get_task(agent.task)
    for name, part in (("keep", keep), ("forget", forget)):
        _check_fits(name, part, agent)
        check_data(part, world, f"the {name} set")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    pool = TransitionPool([keep, forget], agent.cfg.reward_scale, device)
    rows = [(pool.rows_of(0), pool.rows_of(1))]
    place = _OneFolder(out, about, out.with_name(f".{out.name}.{key(run)}.repairing"))
    place.partial.mkdir(parents=True, exist_ok=True)
    train(
        place,
        place.partial,
        [run],
        agent.cfg,
        pool,
        rows,
        lambda: together([agent.population], [run], agent.cfg, device),
        device,
        say,
    )


class _OneFolder:
    """Where a repair goes: as a store, but the one folder that the user named.

    partial  of this very repair: another one with the same folder as its aim does not continue its state
    """

    def __init__(self, out: Path, about: Mapping[str, Any] | None, partial: Path) -> None:
        self.out, self.about, self.partial = out, about, partial

    def done(self, run: PolicyRun) -> bool:
        """A repair is made anew unless its folder is there, which is refused before."""
        return False

    @contextmanager
    def write(self, run: PolicyRun, **meta: Any) -> Iterator[Path]:
        """The folder to fill. RunError for an agent that stopped early: there is no repaired policy then."""
        if "stopped" in meta:
            shutil.rmtree(self.partial)
            raise RunError(f"{meta['stopped']}, or take fewer steps or another method")
        with write_folder(self.out) as draft:
            yield draft
            export_osrl(load_agent(draft / AGENT), draft / MODEL)  # on the CPU, wherever it was computed
            if self.about is not None:
                (draft / RECORD).write_text(json.dumps(self.about, indent=1, sort_keys=True) + "\n")
            seal(draft, run, **meta)


def read_agent(
    checkpoint: Path, task: str, backbone: str, dataset: Dataset | None = None, cost_limit: float | None = None
) -> Agent:
    """The complete agent in a checkpoint of either library, of this backbone and task; else a SaferuleError."""
    if checkpoint.suffix != ".safetensors":
        settings = {} if cost_limit is None else {"cost_limit": cost_limit}
        with warnings.catch_warnings():  # what it warns of is in the agent's meta
            warnings.simplefilter("ignore", UserWarning)
            return import_osrl(checkpoint, task, backbone, dataset=dataset, **settings)
    agent = load_agent(checkpoint)
    for what, found, expected in (("backbone", agent.backbone.NAME, backbone), ("task", agent.task, task)):
        if found != expected:
            raise CheckpointError(f"{checkpoint}: its {what} is {found}, expected {expected}: name the {what} it holds")
    if cost_limit not in (None, agent.cfg.cost_limit):
        raise SettingsError(
            f"{checkpoint}: its cost limit is {agent.cfg.cost_limit:g}, expected {cost_limit:g}: leave the cost limit "
            "out, the file knows its own"
        )
    if agent.population is None:
        raise CheckpointError(
            f"{checkpoint}: a snapshot with networks only, expected targets and generator too: give the run's {AGENT}"
        )
    return agent


def read_indices(path: Path) -> np.ndarray:
    """The array in a .npy file; nothing is unpickled. SettingsError for anything else."""
    try:
        found = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file, expected trajectory indices in a .npy file: check it") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SettingsError(
            f"{path}: not a .npy file of plain numbers (nothing is unpickled), expected trajectory indices or a mask: "
            "write it with numpy.save"
        ) from error
    if not isinstance(found, np.ndarray):
        raise SettingsError(f"{path}: several arrays, expected one: write it with numpy.save, not numpy.savez")
    return found


def _changes(agent: Agent) -> tuple:
    """The agent's settings as a run has them: those that its task does not give."""
    given = ("observation_dim", "action_dim", "episode_len")
    return frozen(**{name: value for name, value in asdict(agent.cfg).items() if name not in given})


def _check_method(method: str, backbone: str, readings: Mapping[str, str] | None, steps: int, seed: int) -> None:
    """SettingsError for an unknown method, for readings that it does not have, and for impossible numbers."""
    known = [reading.name for reading in UNLEARNING]
    has_some = bool(loss_options(method, backbone, readings))
    foreign = [name for name in readings or {} if name not in known or not has_some]
    if foreign:
        raise SettingsError(
            f"{method} has no reading {foreign[0]!r}, expected one of {', '.join(known)} with a variant of safe-rule: "
            "leave it out"
        )
    if steps < 1 or seed < 0:
        raise SettingsError(f"steps = {steps} and seed = {seed}, expected 1 or more steps and no negative seed")


def _check_fits(name: str, part: Dataset, agent: Agent) -> None:
    if not len(part):
        raise DataError(f"the {name} set is empty, expected one trajectory or more: split the data with other indices")
    have = part.observations.shape[1], part.actions.shape[1]
    expected = agent.cfg.observation_dim, agent.cfg.action_dim
    if have != expected:
        raise DataError(
            f"the {name} set has {have[0]} observations and {have[1]} actions, the agent {expected[0]} and "
            f"{expected[1]}: give data of its task, {agent.task}"
        )


def _described(dataset: Dataset) -> dict[str, Any]:
    return {"digest": dataset.digest(), "transitions": len(dataset), "trajectories": len(dataset.episodes())}

"""Repair a policy of your own: unlearn poisoned trajectories from an osrl-lib or saferule checkpoint.

    import numpy as np

    from saferule.agents.osrl import export_osrl, import_osrl
    from saferule.attack.poison import split
    from saferule.data.schema import load
    from saferule.sim import get_task
    from saferule.runs.repair import repair

    data = load("d.hdf5", get_task("CarCircle"))
    keep, forget = split(data, np.load("idx.npy"))  # indices of the poisoned trajectories
    agent = import_osrl("model.pt", "CarCircle", "bcq-lag")
    repaired = repair(agent, keep, forget, method="safe-rule", steps=5000)
    export_osrl(repaired, "repaired.pt")

``saferule repair`` does the same from files to a folder, and writes down what was done. The simulator is not needed.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils._pytree import tree_map

from saferule import __version__
from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_agent, save_agent
from saferule.agents.loop import Diverged, Log, keep_freed_memory, log_every, run
from saferule.agents.osrl import export_osrl, import_osrl
from saferule.agents.parts import ORIGINAL
from saferule.agents.population import Population, member
from saferule.attack.poison import split
from saferule.data.batches import TransitionPool
from saferule.data.schema import Dataset, load
from saferule.data.schema import check as check_data
from saferule.errors import CheckpointError, DataError, RunError, SettingsError
from saferule.files import write_folder
from saferule.paper import TABLE7, UNLEARNING, check
from saferule.runs.store import machine, versions
from saferule.sim import get_task
from saferule.unlearn import METHODS, family, unlearning
from saferule.unlearn.start import adapt, begin, pairs

AGENT, MODEL, LOG, RECORD = "agent.safetensors", "model.pt", "log.csv", "repair.json"
SAY_SECONDS = 60.0
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
    device: str | torch.device | None = None,
    log: Log | None = None,
    say: Say | None = None,
) -> Agent:
    """The agent after ``steps`` steps of an unlearning method; the given agent stays as it is.

    agent         complete, from `import_osrl` or `load_agent`
    keep, forget  D_k and D_f, labels as the agent saw them, from `saferule.attack.poison.split`
    readings      changes to the default readings of Safe-RULE (`saferule.paper.UNLEARNING`)
    seed          of batches and noise
    device        where to compute; None for where the agent is
    log           gets what the losses report, about a hundred rows
    say           called about once a minute with how far it is

    SettingsError for an unknown method or reading and impossible numbers, CheckpointError for a snapshot, DataError for
    data that do not fit the agent, RunError when a value stops being finite.
    """
    backbone, cfg, task = agent.backbone, agent.cfg, get_task(agent.task)
    chosen = _checked_readings(method, backbone.NAME, readings)
    if steps < 1 or seed < 0:
        raise SettingsError(f"steps = {steps} and seed = {seed}, expected 1 or more steps and no negative seed")
    if agent.population is None:
        raise CheckpointError(
            f"this {backbone.NAME} agent is a snapshot with networks only, expected targets and generator too: give "
            f"an {AGENT} or {MODEL}"
        )
    for name, part in (("keep", keep), ("forget", forget)):
        _check_fits(name, part, agent)
        check_data(part, task, f"the {name} set")

    keep_freed_memory()
    device = device or agent.population.nets["actor"]["w0"].device
    population = _copy(agent.population, seed, device)
    pool = TransitionPool([keep, forget], cfg.reward_scale, device)
    rows = [(pool.rows_of(0), pool.rows_of(1))]
    algorithm = unlearning(method, backbone, cfg, steps, chosen)
    begin(population, algorithm, backbone.NAME, [method], [chosen])
    adapt(population, backbone, cfg, pool, rows)

    def stop(_: int, stopped: Diverged) -> None:
        raise RunError(
            f"{method} on this {backbone.NAME} agent: {stopped.quantity} was not finite at step {stopped.step} of "
            f"{steps}, expected finite values: take fewer steps or another method, or check the agent and the data"
        )

    population, _ = run(
        population,
        algorithm,
        pairs(pool, rows, cfg.batch_size),
        steps,
        log=log,
        log_every=log_every(steps),
        on_log=_progress(steps, say),
        on_stop=stop,
    )
    population.nets = {name: net for name, net in population.nets.items() if not name.startswith(ORIGINAL)}
    meta = {"method": method, "readings": chosen, "seed": seed, "step": steps}
    return Agent(agent.task, backbone, cfg, member(population.nets, 0), population, meta)


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
) -> Agent:
    """`repair` from files to a folder, which appears when all of it is written.

    checkpoint  an osrl-lib ``model.pt``, or an ``agent.safetensors`` of saferule
    forget      ``idx.npy``: indices of trajectories of the data, or a boolean mask (`split`)
    cost_limit  that an osrl-lib model was trained with [10]; a saferule file knows its own

    The folder has ``agent.safetensors`` (complete), ``model.pt`` (for osrl-lib), ``log.csv`` (what the losses reported)
    and ``repair.json`` (what was done, versions, digests). A SaferuleError for whatever is wrong, before any work.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: there is something here already, expected a new or empty folder: name another one")
    world, name = get_task(task), get_backbone(backbone).NAME
    chosen = _checked_readings(method, name, readings)
    dataset = load(data, world)
    marked = read_indices(forget)
    try:
        keep, poisoned = split(dataset, marked)
    except SettingsError as error:
        raise SettingsError(f"{forget}: {error}") from error
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    agent = read_agent(checkpoint, task, name, dataset, cost_limit)
    for assumption in agent.meta.get("assumed", []):
        say(f"{checkpoint} does not hold everything, so it was assumed: {assumption}")

    log = Log()
    repaired = repair(agent, keep, poisoned, method, steps, chosen, seed, device=device, log=log, say=say)
    record = {
        "task": task,
        "backbone": name,
        "method": method,
        "steps": steps,
        "seed": seed,
        "readings": _in_force(method, chosen),
        "settings": asdict(agent.cfg),
        "checkpoint": {"file": checkpoint.name, "sha256": _digest(checkpoint)},
        "assumed": agent.meta.get("assumed", []),
        "data": {"file": data.name} | _described(dataset),
        "keep": _described(keep),
        "forget": {"file": forget.name, "sha256": _digest(forget)} | _described(poisoned),
        "versions": versions() | {"saferule": __version__},
        "machine": machine(),
    }
    with write_folder(out) as draft:
        save_agent(repaired.population, 0, draft / AGENT, task, name, repaired.cfg, repaired.meta)
        export_osrl(load_agent(draft / AGENT), draft / MODEL)  # on the CPU, wherever it was computed
        pd.DataFrame(log.rows).drop(columns="agent").to_csv(draft / LOG, index=False)
        record["files"] = {file: _digest(draft / file) for file in (AGENT, MODEL, LOG)}
        (draft / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return repaired


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


def _checked_readings(method: str, backbone: str, readings: Mapping[str, str] | None) -> dict[str, str]:
    """The readings to change; SettingsError for an unknown method and for readings that it does not have."""
    family(method, backbone)
    chosen, known = dict(readings or {}), [reading.name for reading in UNLEARNING]
    check(chosen)
    foreign = [name for name in chosen if name not in known or METHODS[method].family != "safe_rule"]
    if foreign:
        raise SettingsError(
            f"{method} has no reading {foreign[0]!r}, expected one of {', '.join(known)} with a variant of safe-rule: "
            "leave it out"
        )
    return chosen


def _in_force(method: str, chosen: Mapping[str, str]) -> dict[str, str]:
    if METHODS[method].family != "safe_rule":
        return {}
    options = check(chosen)
    return {reading.name: options[reading.name] for reading in UNLEARNING}


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


def _copy(population: Population, seed: int, device: str | torch.device) -> Population:
    """Networks and scalars as they are, without the copies of an earlier unlearning; a fresh generator."""
    nets = {name: net for name, net in population.nets.items() if not name.startswith(ORIGINAL)}
    copied = tree_map(lambda leaf: leaf.detach().clone().to(device), (nets, population.scalars))
    return Population(*copied, {}, [torch.Generator().manual_seed(seed)])


def _progress(steps: int, say: Say | None) -> Callable[[Population, list[int]], None]:
    said = time.monotonic()

    def on_log(population: Population, agents: list[int]) -> None:
        nonlocal said
        if say and time.monotonic() - said > SAY_SECONDS:
            said = time.monotonic()
            say(f"step {population.step} of {steps}")

    return on_log


def _described(dataset: Dataset) -> dict[str, Any]:
    return {"digest": dataset.digest(), "transitions": len(dataset), "trajectories": len(dataset.episodes())}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

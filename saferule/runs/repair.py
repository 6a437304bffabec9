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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_agent, load_networks
from saferule.agents.loop import Log
from saferule.agents.osrl import config_of, export_osrl, import_osrl
from saferule.attack.poison import find, split
from saferule.data.batches import TransitionPool
from saferule.data.describe import doubts
from saferule.data.schema import Dataset, load
from saferule.data.schema import check as check_data
from saferule.errors import CheckpointError, RunError, SettingsError, cause
from saferule.files import beside, check_different, sha256, try_folder, write_folder
from saferule.limits import check_number
from saferule.paper import TABLE7
from saferule.runs.evaluate import check_held, play, settings_told
from saferule.runs.execute import chosen_device
from saferule.runs.interruptible import AGENT, LOG
from saferule.runs.spec import PolicyRun, UserFile, frozen, key
from saferule.runs.store import Store, write_sums
from saferule.runs.work import EPISODES, Say, together, train
from saferule.sim import get_task
from saferule.unlearn import METHODS, Readings, chosen, get_method, own_readings

MODEL, CONFIG, RECORD = "model.pt", "config.yaml", "repair.json"
HDF5 = (".hdf5", ".h5")


def repair(
    agent: Agent,
    keep: Dataset,
    forget: Dataset,
    method: str = "safe-rule",
    steps: int = TABLE7.unlearning_steps,
    readings: Readings = None,
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
    files = UserFile("agent", ""), UserFile("forget", forget.digest())
    run = _run(agent, keep, files, method, steps, readings, seed)
    with tempfile.TemporaryDirectory() as folder:
        made = _make(Store(Path(folder) / "repair"), run, agent, keep, forget, device, say)
        repaired = load_agent(made / AGENT)
        if log is not None:
            log.rows += pd.read_csv(made / LOG).to_dict("records")
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
    readings: Readings = None,
    seed: int = 0,
    cost_limit: float | None = None,
    told: Mapping[str, Any] | None = None,
    device: str | None = None,
    seeds: Sequence[int] = (),
    show: Callable[[pd.DataFrame, Path], None] = lambda episodes, folder: None,
    say: Say = print,
) -> None:
    """`repair` from files to a folder, which appears when all of it is written; an interrupted one continues.

    checkpoint  an osrl-lib ``model.pt``, or an ``agent.safetensors`` of saferule
    forget      ``idx.npy``: indices of trajectories of the data, or a boolean mask (`split`); or a file of ``saferule
                attack``, whose trajectories are looked for in the data (`find`)
    cost_limit  that an osrl-lib model was trained with, where no ``config.yaml`` says it [10]; a saferule file knows
    told        further settings that an osrl-lib model does not hold
    seeds       of episodes that are played before and after the repair, in the simulator; none for no evaluation
    show        is given these episodes, and the folder before it appears

    The folder has ``agent.safetensors`` (complete), ``model.pt`` and ``config.yaml`` (for osrl-lib), ``log.csv`` (what
    the losses reported), ``repair.json`` (what was assumed, and the data), ``run.json`` (what was done, versions),
    ``SHA256SUMS`` and, with seeds, ``episodes.csv``. A SaferuleError for whatever is wrong, before any work.
    """
    try_folder(out)
    check_different({"--checkpoint": checkpoint, "--out": out})
    for number, value in {"steps": steps, "seed": seed, "cost_limit": cost_limit}.items():
        if value is not None:
            check_number(number, value)
    device = chosen_device(device)
    name, dataset = get_backbone(backbone).NAME, load(data, get_task(task))
    for doubt in doubts(dataset, get_task(task)):
        say(f"{data}: {doubt}")
    try:
        of_attack = forget.suffix in HDF5
        keep, poisoned = split(
            dataset, find(dataset, load(forget, get_task(task))) if of_attack else read_indices(forget)
        )
    except SettingsError as error:
        raise SettingsError(f"{forget}: {str(error).removeprefix(f'{forget}: ')}") from error
    agent = read_agent(checkpoint, task, name, dataset, cost_limit, told)
    files = [UserFile(path.name, sha256(path)) for path in (checkpoint, forget)]
    run = _run(agent, dataset, files, method, steps, readings, seed)
    assumed, options = agent.meta.get("assumed", []), chosen(method, readings)
    for assumption in assumed:
        say(f"{checkpoint} does not hold everything, so it was assumed: {assumption}")
    record = {
        "assumed": assumed,
        "settings_from": agent.meta.get("settings_from", "the checkpoint" if not assumed else "osrl-lib's defaults"),
        "readings": {r: options[r] for r in (*own_readings(method, name, agent.cfg), *get_method(method).readings)},
        "data": {"file": data.name} | _described(dataset),
        "keep": _described(keep),
        "forget": {"file": forget.name} | _described(poisoned),
    }
    # Beside the folder, or in it where it is empty, until that is whole; named by the run: no other continues it.
    store = Store(beside(out, f"{key(run)}.repairing"))
    before = play(agent, seeds, checkpoint).assign(policy="before") if seeds else None
    made = _make(store, run, agent, keep, poisoned, device, say)
    with write_folder(out) as draft:
        shutil.copytree(made, draft, dirs_exist_ok=True)
        export_osrl(load_agent(draft / AGENT), draft / MODEL)  # on the CPU, wherever it was computed
        (draft / CONFIG).write_text(yaml.safe_dump(config_of(agent)))
        (draft / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
        if before is not None:
            after = play(load_networks(draft / AGENT), seeds, draft / AGENT).assign(policy="after")
            episodes = pd.concat([before, after], ignore_index=True)
            episodes.to_csv(draft / EPISODES, index=False)
            show(episodes, draft)
        write_sums(draft)
    shutil.rmtree(store.root)


def _run(
    agent: Agent, data: Dataset, files: Sequence[UserFile], method: str, steps: int, readings: Readings, seed: int
) -> PolicyRun:
    """The repair as a run, from the agent's file and the indices'; changes are settings that the task does not give.

    SettingsError for an unknown method, for readings that it does not have, and for impossible numbers;
    CheckpointError for a snapshot.
    """
    start, forget = files
    if agent.population is None:
        raise CheckpointError(
            f"{start.name}: a snapshot with networks only, expected targets and generator too: give an {AGENT} or "
            f"{MODEL}"
        )
    backbone, some = agent.backbone.NAME, ("main", "ablations")
    repairs = [m.name for m in METHODS.values() if m.start == "poisoned" and m.part in some]
    if get_method(method).name not in repairs:
        raise SettingsError(f"method {method!r} does not repair a policy: choose one of {', '.join(repairs)}")
    chosen(method, readings)  # an unknown reading is named before one that does not belong here
    own = own_readings(method, backbone, agent.cfg)
    foreign = [name for name in readings or {} if name not in own]
    if foreign:
        raise SettingsError(
            f"{method} has no reading {foreign[0]!r} on {backbone}, expected {', '.join(own) or 'none'}: leave it out"
        )
    check_number("steps", steps)
    check_number("seed", seed)
    given = ("observation_dim", "action_dim", "episode_len")
    changes = frozen(**{name: value for name, value in asdict(agent.cfg).items() if name not in given})
    options = frozen(**(readings or {}))
    return PolicyRun(agent.task, backbone, data.digest(), forget, method, steps, seed, start, options, changes)


def _make(
    store: Store, run: PolicyRun, agent: Agent, keep: Dataset, forget: Dataset, device: str | None, say: Say
) -> Path:
    """Check that the data fit, and make the run in the store where it is not there; returns its folder."""
    for name, part in (("keep", keep), ("forget", forget)):
        check_data(part, get_task(agent.task), f"the {name} set")
    device = chosen_device(device)
    if not store.done(run):
        pool = TransitionPool([keep, forget], agent.cfg.reward_scale, device)
        rows = [(pool.rows_of(0), pool.rows_of(1))]
        start = partial(together, [agent.population], [run], device)
        train(store, [run], pool, rows, start, device, say)
    if stopped := store.meta(run).get("stopped"):
        shutil.rmtree(store.root)
        raise RunError(f"{stopped}, or take fewer steps or another method")
    return store.folder(run)


def read_agent(
    checkpoint: Path,
    task: str,
    backbone: str,
    dataset: Dataset | None = None,
    cost_limit: float | None = None,
    told: Mapping[str, Any] | None = None,
) -> Agent:
    """The complete agent in a checkpoint of either library, of this backbone and task; else a SaferuleError."""
    if checkpoint.suffix != ".safetensors":
        settings = settings_told(cost_limit, told)
        with warnings.catch_warnings():  # what it warns of is in the agent's meta
            warnings.simplefilter("ignore", UserWarning)
            return import_osrl(checkpoint, task, backbone, dataset=dataset, **settings)
    agent = load_agent(checkpoint)
    check_held(checkpoint, agent, {"backbone": backbone, "task": task, "cost limit": cost_limit}, told)
    return agent


def read_indices(path: Path) -> np.ndarray:
    """The array in a .npy file; nothing is unpickled. SettingsError for anything else."""
    try:
        with open(path, "rb") as file:
            text = b"\0" not in file.read(1000) and file.tell() > 0
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # by the size that the file has, not that it declares
        if not isinstance(array, np.ndarray):
            raise ValueError("several arrays")
        return np.array(array)
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file, expected trajectory indices in a .npy file: check it") from error
    except OSError as error:
        raise SettingsError(f"{path}: {cause(error)}") from error
    except Exception as error:  # numpy raises many kinds for a broken header
        found = "it is text" if text else "nothing is unpickled, and several arrays are too many"
        advice = "numpy.save('idx.npy', numpy.loadtxt(FILE, int, delimiter=','))" if text else "numpy.save"
        raise SettingsError(
            f"{path}: not a .npy file of plain numbers ({found}), expected trajectory indices or a mask: write it with "
            f"{advice}"
        ) from error


def _described(dataset: Dataset) -> dict[str, Any]:
    return {"digest": dataset.digest(), "transitions": len(dataset), "trajectories": len(dataset.episodes())}

"""Files in the layouts of Minari and of D4RL as DSRL files: `saferule data convert`. Only HDF5 is read.

Minari   groups ``episode_<i>``, with observations (T + 1, S), actions (T, A), rewards, terminations, truncations (T,)
D4RL     arrays observations, actions, rewards, terminals and mostly timeouts; often no next_observations

Neither layout has costs of its own: they lie beside the rewards, or in ``infos``, under a name that can be given. Where
a D4RL file has no next_observations, the state after a step is that before the next, and the last step of each
trajectory, whose next state nobody knows, is left out.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from saferule.data import schema
from saferule.errors import DataError, listed
from saferule.files import check_different, try_file
from saferule.sim.rollout import Episode
from saferule.sim.tasks import Task

ENDS = (*schema.FLAGS, "terminations", "truncations")
COSTS = ("costs", "cost", "infos/costs", "infos/cost")


def convert(
    source: Path, task: Task, out: Path, *, costs: str | None = None, overwrite: bool = False
) -> tuple[schema.Dataset, list[str]]:
    """Write the DSRL file of a Minari or D4RL file; the dataset, and what was done to it in sentences.

    costs   key of the costs, in each episode or beside the rewards (default: the first of `COSTS` that is there)
    SettingsError, before anything is read, for a place that is taken or cannot be written; DataError for a file of
    another layout, without costs, or whose values are impossible in the task.
    """
    check_different({"the file": source, "--out": out})
    try_file(out, None if overwrite else ", or give --overwrite")
    with schema.open_file(source) as file:
        episodes = schema.minari_episodes(file)
        layout, (dataset, said) = (
            ("Minari", _minari(source, file, episodes, costs))
            if episodes
            else ("D4RL", _d4rl(source, file, task, costs))
        )
    made = {"converted_from": source.name, "layout": layout, "task": task.name, "env_id": task.env_id}
    dataset = schema.check(replace(dataset, attributes=made), task, str(source))
    schema.save(dataset, out, new=not overwrite)
    return dataset, [f"from the layout of {layout}", *said]


def _minari(path: Path, file: h5py.File, episodes: list[str], costs: str | None) -> tuple[schema.Dataset, list[str]]:
    key = _costs_key(path, file[episodes[0]], costs)
    names = ("observations", "actions", "rewards", "terminations", "truncations", key)
    schema.check_size(path, (item for name in episodes for item in _items(path, file[name], names)))
    played = []
    for name in episodes:
        observations, actions, rewards, terminations, truncations, cost = _arrays(path, file[name], names)
        steps = len(rewards)
        cost = cost[1:] if len(cost) == steps + 1 else cost  # infos begin with that of the reset
        lengths = [len(observations) - 1, len(actions), len(terminations), len(truncations), len(cost)]
        if not steps or set(lengths) != {steps}:
            raise DataError(
                f"{path}: {name} has {steps} rewards and {lengths[0] + 1} observations, {lengths[1]} actions, "
                f"{lengths[-1]} costs, expected one observation more than steps and as many of all else: write it anew."
            )
        if (terminations | truncations)[:-1].any():
            raise DataError(f"{path}: {name} goes on after its end, expected one trajectory each: cut it there.")
        played.append(Episode(observations, actions, rewards, cost, bool(terminations[-1])))
    return schema.from_episodes(played), [f"costs from '{key}' of each episode"]


def _d4rl(path: Path, file: h5py.File, task: Task, costs: str | None) -> tuple[schema.Dataset, list[str]]:
    needed = [name for name in ("observations", "actions", "rewards", "terminals") if name not in file]
    if needed:
        raise DataError(
            f"{path} lacks {listed(needed)} and has {listed(file, 6) or 'no keys'}, expected the layout of Minari or "
            "of D4RL: give such a file."
        )
    key = _costs_key(path, file, costs)
    optional = [name for name in ("timeouts", "next_observations") if name in file]
    names = ("observations", "actions", "rewards", "terminals", *optional)
    schema.check_size(path, _items(path, file, (*names, key)))
    arrays = dict(zip((*names, "costs"), _arrays(path, file, (*names, key)), strict=True))
    schema.check_rows(str(path), arrays["observations"])
    said = [f"costs from '{key}'"]
    if lengths := {len(array) for array in arrays.values()} - {len(arrays["rewards"])}:
        raise DataError(
            f"{path}: a key has {lengths.pop()} rows and 'rewards' {len(arrays['rewards'])}: write all of them."
        )
    if "timeouts" not in arrays:
        arrays["timeouts"] = _time_limits(arrays["terminals"], task.horizon)
        said.append(f"no 'timeouts': trajectories end after {task.horizon} steps")
    known = "next_observations" in arrays
    if not known:
        arrays["next_observations"] = np.roll(arrays["observations"], -1, axis=0)
    dataset = schema.Dataset(**arrays)
    if not known:
        last = dataset.done.copy()
        last[-1] = True
        ends = np.flatnonzero(last[1:] & ~last[:-1])  # the steps before these
        rows = np.cumsum(~last)[ends] - 1
        dataset = replace(dataset, terminals=dataset.terminals & ~last).take(~last).end_at(rows)
        said.append(
            f"no 'next_observations': taken from the next step; {last.sum()} last steps without one are left out"
        )
    return dataset, said


def _time_limits(terminals: np.ndarray, horizon: int) -> np.ndarray:
    """(N,) bool: every `horizon` steps after a start or a terminal."""
    limits, start = np.zeros(len(terminals), dtype=bool), 0
    for end in [*np.flatnonzero(terminals).tolist(), len(terminals) - 1]:
        limits[start + horizon - 1 : end : horizon] = True
        start = end + 1
    return limits


def _costs_key(path: Path, group: h5py.Group, costs: str | None) -> str:
    known = (costs,) if costs else COSTS
    key = next((name for name in known if name in group), None)
    if key is None:
        raise DataError(
            f"{path} has no costs: none of {listed(known)} is there, expected the cost of each step: collect data with "
            "costs, or name their key with --costs."
        )
    return key


def _items(path: Path, group: h5py.Group, names: tuple[str, ...]) -> list[h5py.Dataset]:
    """These arrays, not read yet."""
    missing = [name for name in names if name not in group]
    if missing:
        raise DataError(f"{path}: '{group.name[1:]}' lacks {listed(missing)}, expected them in each: write it anew.")
    return [schema.numbers_at(path, group, name) for name in names]


def _arrays(path: Path, group: h5py.Group, names: tuple[str, ...]) -> list[np.ndarray]:
    """These arrays, all of one value per step as (T,) and ends as booleans."""
    arrays = []
    for name, item in zip(names, _items(path, group, names), strict=True):
        array = schema.read_numbers(path, item)
        wide = name in schema.VECTORS
        array = array[:, 0] if not wide and array.shape[1:] == (1,) else array
        if array.ndim != 1 + wide:
            raise DataError(
                f"{path}: key '{item.name[1:]}' has shape {item.shape}, expected one row per step: reshape it."
            )
        if name in ENDS:
            schema.check_flags(str(path), item.name[1:], array)
            array = array != 0
        arrays.append(array)
    return arrays

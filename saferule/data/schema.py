"""The DSRL schema: files of transitions, checked when they are read.

A file holds N transitions of one task, trajectory after trajectory, under seven keys (Liu et al. 2023, DSRL;
`dsrl.offline_env.OfflineEnv.get_dataset`):

    observations, next_observations   (N, S)
    actions                           (N, A), in [-1, 1]
    rewards, costs                    (N,), per step; costs are not negative
    terminals, timeouts               (N,), 0 or 1: the trajectory ends here, by the task or by the time limit

(N, 1) columns are accepted for the last four keys, as dsrl accepts them; other keys are ignored. The last
trajectory may be unfinished: neither flag is set on the last row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from saferule.errors import DataError, SettingsError
from saferule.files import write_atomically
from saferule.sim.rollout import Episode
from saferule.sim.tasks import Task, get_task

VECTORS = ("observations", "next_observations", "actions")
FLAGS = ("terminals", "timeouts")
SCALARS = ("rewards", "costs", *FLAGS)
KEYS = VECTORS + SCALARS
ACTION_TOLERANCE = 1e-6  # rounding that squashing into the box may leave; such values are kept as they are


@dataclass(frozen=True, eq=False)
class Dataset:
    """N transitions of one task in trajectory order; float32 arrays, boolean flags.

    `attributes` says how the data were made (the HDF5 attributes of the file). Raises `DataError` where the
    arrays do not fit together; `check` looks at their values.
    """

    observations: np.ndarray  # (N, S)
    next_observations: np.ndarray  # (N, S)
    actions: np.ndarray  # (N, A)
    rewards: np.ndarray  # (N,)
    costs: np.ndarray  # (N,)
    terminals: np.ndarray  # (N,)
    timeouts: np.ndarray  # (N,)
    attributes: dict[str, str | int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in KEYS:
            dtype = np.bool_ if key in FLAGS else np.float32
            with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf, which `check` reports
                object.__setattr__(self, key, np.ascontiguousarray(getattr(self, key), dtype=dtype))
        _check_shapes("A dataset", {key: getattr(self, key) for key in KEYS})
        width = {"next_observations": self.observations.shape[1]}
        _check_widths("A dataset", vars(self), width, "as in 'observations': give the state after each transition")

    def __len__(self) -> int:
        """Number of transitions."""
        return len(self.observations)

    @property
    def done(self) -> np.ndarray:
        """(N,) bool: this transition is the last of its trajectory."""
        return self.terminals | self.timeouts

    @property
    def starts(self) -> np.ndarray:
        """(E,) int64: the first row of each of the E trajectories; the last one may be unfinished."""
        return np.flatnonzero(first_steps(self))

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: number of transitions of each trajectory."""
        return np.diff(self.starts, append=len(self))

    def episodes(self) -> list[slice]:
        """The rows of each trajectory."""
        return [slice(*ends) for ends in pairwise([*self.starts.tolist(), len(self)])]

    def episode_sums(self, values: np.ndarray) -> np.ndarray:
        """(E,) float64: sum of `values` (N,) over each trajectory."""
        return np.add.reduceat(np.asarray(values, dtype=np.float64), self.starts)

    def episode_returns(self) -> np.ndarray:
        """(E,) float64: undiscounted return of each trajectory."""
        return self.episode_sums(self.rewards)

    def episode_costs(self) -> np.ndarray:
        """(E,) float64: undiscounted cost of each trajectory."""
        return self.episode_sums(self.costs)

    def digest(self) -> str:
        """SHA-256 of the arrays' names, types, shapes and values; compression and attributes do not enter."""
        sha = hashlib.sha256()
        for key in KEYS:
            array = getattr(self, key)
            sha.update(f"{key} {array.dtype.str} {array.shape}\n".encode())
            sha.update(array)
        return sha.hexdigest()

    def take(self, rows: slice | np.ndarray) -> Dataset:
        """The given rows, in the given order."""
        return replace(self, **{key: getattr(self, key)[rows] for key in KEYS})

    def select(self, episodes: Sequence[int]) -> Dataset:
        """The trajectories with the given indices, in the given order.

        An unfinished trajectory that is no longer the last gets timeouts = True on its last row, so that it
        stays separate. Raises `SettingsError` for an index that does not exist.
        """
        slices = self.episodes()
        for index in episodes:
            if not 0 <= index < len(slices):
                raise SettingsError(
                    f"The selection names trajectory {index}, expected indices from 0 to {len(slices) - 1}: the data "
                    f"hold {len(slices)} trajectories."
                )
        rows = np.arange(len(self))
        ends = np.cumsum(self.lengths[list(episodes)])[:-1] - 1
        return self.take(np.concatenate([rows[:0], *(rows[slices[index]] for index in episodes)])).end_at(ends)

    def end_at(self, rows: Sequence[int] | np.ndarray) -> Dataset:
        """A copy in which the given rows end trajectories: timeouts = True where neither flag is set yet."""
        rows = np.asarray(rows, dtype=np.int64)
        timeouts = self.timeouts.copy()
        timeouts[rows] |= ~self.terminals[rows]
        return replace(self, timeouts=timeouts)


def first_steps(dataset: Dataset) -> np.ndarray:
    """(N,) bool: the transition starts a trajectory (osrl-lib TransitionDataset, is_init)."""
    return np.append(True, dataset.done)[:-1]


def from_episodes(episodes: Sequence[Episode], attributes: Mapping[str, str | int | float] | None = None) -> Dataset:
    """What happened in a simulator, one trajectory per episode; one that the task did not end ends in a timeout."""

    def trajectory(episode: Episode) -> Dataset:
        states, *steps, terminated = episode
        last = np.arange(len(states) - 1) == len(states) - 2
        return Dataset(states[:-1], states[1:], *steps, last & terminated, last & (not terminated))

    return replace(concatenate([trajectory(episode) for episode in episodes]), attributes=dict(attributes or {}))


def concatenate(datasets: Sequence[Dataset]) -> Dataset:
    """The rows of all datasets, in order; of the attributes, those on which all datasets agree.

    Values are kept bit for bit, with one exception: where a dataset that is not the last ends in an
    unfinished trajectory, its last row gets timeouts = True, as the next dataset's first trajectory would
    else continue it. Raises `DataError` for no datasets and for widths that differ.
    """
    if not datasets:
        raise DataError("There is nothing to concatenate, expected at least one dataset: give one.")
    first = datasets[0]
    widths = {key: getattr(first, key).shape[1] for key in VECTORS}
    for number, other in enumerate(datasets):
        _check_widths(f"Dataset {number}", vars(other), widths, "as in dataset 0: concatenate datasets of one task")
    shared = set.intersection(*(set(dataset.attributes.items()) for dataset in datasets))
    joined = Dataset(
        **{key: np.concatenate([getattr(dataset, key) for dataset in datasets]) for key in KEYS},
        attributes={name: value for name, value in first.attributes.items() if (name, value) in shared},
    )
    ends = np.cumsum([len(dataset) for dataset in datasets])[:-1] - 1
    return joined.end_at(ends[(ends >= 0) & (ends < len(joined) - 1)])


def check(dataset: Dataset, task: Task, name: str) -> Dataset:
    """Return `dataset` if its values are possible in `task`; else `DataError` naming `name`, key and row.

    name: the file, or where else the data come from.
    """
    _check_rows(name, dataset.observations)
    _check_task(name, vars(dataset), task)
    for key in (*VECTORS, "rewards", "costs"):
        array = getattr(dataset, key)
        _reject(name, key, array, ~np.isfinite(array), "finite 32-bit numbers: drop or repair the trajectory")
    outside = np.abs(dataset.actions.astype(np.float64)) > 1 + ACTION_TOLERANCE
    _reject(name, "actions", dataset.actions, outside, "actions in [-1, 1]: scale them to the action box")
    _reject(name, "costs", dataset.costs, dataset.costs < 0, "costs of 0 or more: correct the cost's sign")
    episode = np.argmax(dataset.lengths > task.horizon)
    start, length = dataset.starts[episode], dataset.lengths[episode]
    if length > task.horizon:
        raise DataError(
            f"{name}: trajectory {episode} starts at row {start} and has {length} rows, expected key "
            f"'terminals' or 'timeouts' to end it by row {start + task.horizon - 1}, as {task.name} lasts "
            f"{task.horizon} steps: set 'timeouts' where trajectories are cut."
        )
    return dataset


def load(path: str | Path, task: Task) -> Dataset:
    """Read and check a DSRL file of `task`.

    Raises `DataError`, one sentence that names file, key and row, for a file that is missing, no HDF5,
    truncated or empty, and for keys, shapes and values that do not follow the schema (head of this file).
    """
    arrays, attributes = _read(Path(path), KEYS)
    _check_rows(str(path), arrays["observations"])
    _check_shapes(str(path), arrays)
    _check_task(str(path), arrays, task)
    for key in FLAGS:
        neither = (arrays[key] != 0) & (arrays[key] != 1)
        _reject(str(path), key, arrays[key], neither, "0 or 1: write 1 where the trajectory ends")
    return check(Dataset(**arrays, attributes=attributes), task, str(path))


def load_columns(path: str | Path, keys: Sequence[str], rows: int) -> dict[str, np.ndarray]:
    """Further (N,) columns of a file with N = `rows` transitions, in their own types; errors as in `load`."""
    columns, _ = _read(Path(path), keys)
    _check_shapes(str(path), columns, rows)
    return columns


def save(dataset: Dataset, path: str | Path, *, columns: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a DSRL file (shuffled, gzip level 4), whole or not at all; further (N,) `columns` go beside the seven keys.

    Raises `DataError` for a dataset without rows.
    """
    _check_rows(f"{path} is not written: the dataset", dataset.observations)
    arrays = {key: getattr(dataset, key) for key in KEYS} | dict(columns or {})
    with write_atomically(Path(path)) as draft, h5py.File(draft, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=4, shuffle=True)
        file.attrs.update(dataset.attributes)


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading; `DataError` where it is missing, a folder, no HDF5 or truncated."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        known = {
            IsADirectoryError: "is a folder, expected an HDF5 file: name a file in it",
            FileNotFoundError: "does not exist, expected an HDF5 file in the DSRL schema: check the path",
            PermissionError: "cannot be read, expected an HDF5 file: check its permissions",
        }
        broken = f"is a truncated or damaged HDF5 file ({error}): fetch or copy it again"
        other = broken if h5py.is_hdf5(path) else "is no HDF5 file: give a file in the DSRL schema"
        raise DataError(f"{path} {known.get(type(error), other)}.") from error
    with file:
        yield file


def clean_file(folder: Path, task: str) -> Path:
    """The clean data D of a task in a folder: ``<task>.hdf5`` or, where that is missing, the file under DSRL's name.

    DataError when neither is there.
    """
    names = (f"{task}.hdf5", get_task(task).dsrl_file)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder}: neither {names[0]} nor {names[1]} is here, expected the data of {task}: "
        f"run `saferule data fetch --task {task}` for DSRL's or `saferule data collect --task {task}`"
    )


@cache
def clean_data(folder: Path, task: str) -> Dataset:
    """The clean data D of a task, read and checked once per process."""
    return load(clean_file(folder, task), get_task(task))


def _read(path: Path, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], dict[str, str | int | float]]:
    """These keys of a file, (N, 1) columns as (N,), and its scalar attributes as plain Python values."""
    arrays = {}
    with open_file(path) as file:
        missing = [key for key in keys if key not in file]
        if missing:
            raise DataError(
                f"{path} lacks {_quoted(missing)} and has {_quoted(file) or 'no keys'}, expected "
                f"{_quoted(keys)}: rename or add them."
            )
        for key in keys:
            try:
                item = file[key]
                numbers = isinstance(item, h5py.Dataset) and item.dtype.kind in "biuf"
                array = np.asarray(item[()]) if numbers else None
            except (OSError, KeyError, RuntimeError) as error:  # what h5py raises where a block is damaged
                raise DataError(f"{path}: key '{key}' is damaged ({error}): fetch or copy the file again.") from error
            if array is None:
                raise DataError(
                    f"{path}: key '{key}' is no array of numbers, expected one row per transition: write it as one."
                )
            column = key not in VECTORS and array.shape[1:] == (1,)
            arrays[key] = array[:, 0] if column else array
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    texts = {name: value.decode(errors="replace") for name, value in values.items() if isinstance(value, bytes)}
    return arrays, {name: value for name, value in (values | texts).items() if isinstance(value, (str, int, float))}


def _check_rows(name: str, observations: np.ndarray) -> None:
    if not observations.size:
        raise DataError(f"{name} is empty: key 'observations' has 0 rows, expected one or more: collect data.")


def _check_shapes(name: str, arrays: Mapping[str, np.ndarray], rows: int | None = None) -> None:
    """Raise `DataError` for dimensions other than the schema's and another number of rows than 'observations'."""
    rows = len(np.atleast_1d(arrays["observations"])) if rows is None else rows
    for key, array in arrays.items():
        if array.ndim != (2 if key in VECTORS else 1):
            expected = f"({rows}, width)" if key in VECTORS else f"({rows},) or ({rows}, 1)"
            raise DataError(
                f"{name}: key '{key}' has shape {array.shape}, expected {expected}: write one row per step."
            )
        if len(array) != rows:
            raise DataError(
                f"{name}: key '{key}' has {len(array)} rows and 'observations' has {rows}, so row "
                f"{min(len(array), rows)} is incomplete, expected {rows} rows in every key: write all of them."
            )


def _check_task(name: str, arrays: Mapping[str, np.ndarray], task: Task) -> None:
    """Raise `DataError` where the observations or actions are those of another task."""
    widths = dict(zip(VECTORS, (task.observation_dim, task.observation_dim, task.action_dim), strict=True))
    advice = f"for {task.name}: give the file of this task or name the task of this file"
    _check_widths(name, arrays, widths, advice)


def _check_widths(name: str, arrays: Mapping[str, np.ndarray], widths: Mapping[str, int], advice: str) -> None:
    for key, width in widths.items():
        have = arrays[key].shape[1]
        if have != width:
            raise DataError(f"{name}: key '{key}' has {have} columns, expected {width} {advice}.")


def _reject(name: str, key: str, array: np.ndarray, wrong: np.ndarray, expected: str) -> None:
    """Raise `DataError` for the first entry of `array` that is marked in `wrong`."""
    if not wrong.any():
        return
    place = tuple(int(index) for index in np.unravel_index(np.argmax(wrong), wrong.shape))
    where = f"row {place[0]}" + (f", column {place[1]}" if len(place) == 2 else "")
    rows = np.count_nonzero(wrong.reshape(len(wrong), -1).any(axis=1))
    others = f" (and in {rows - 1} more rows)" if rows > 1 else ""
    raise DataError(f"{name}: key '{key}' is {array[place]} in {where}{others}, expected {expected}.")


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)

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

import errno
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np

from saferule.errors import DataError, SettingsError, cause, first_line, listed, number_of, shortened
from saferule.files import write_bytes
from saferule.sim.rollout import Episode
from saferule.sim.tasks import Task, get_task

VECTORS = ("observations", "next_observations", "actions")
FLAGS = ("terminals", "timeouts")
SCALARS = ("rewards", "costs", *FLAGS)
KEYS = VECTORS + SCALARS
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems without them answer
FOREIGN = {  # how other files begin, in small letters
    b"version https://git-lfs": " but a git-lfs pointer to one: get it with `git lfs pull`",
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml"), " but a web page: download the file itself, not its page"),
    b"\x1f\x8b": " but compressed by gzip: unpack it with gunzip",
    b"pk\x03\x04": " but a zip or npz archive: write the arrays to an HDF5 file",
    b"\x80": " but a pickle, which is never opened: write the arrays to an HDF5 file",
}
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
    check_rows(name, dataset.observations)
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


def check_flags(name: str, key: str, array: np.ndarray) -> None:
    """`DataError` where a flag is neither 0 nor 1."""
    _reject(name, key, array, (array != 0) & (array != 1), "0 or 1: write 1 where the trajectory ends")


def load(path: str | Path, task: Task) -> Dataset:
    """Read and check a DSRL file of `task`.

    Raises `DataError`, one sentence that names file, key and row, for a file that is missing, no HDF5,
    truncated or empty, and for keys, shapes and values that do not follow the schema (head of this file).
    """

    def judge(shapes: Mapping[str, np.ndarray]) -> None:
        check_rows(str(path), shapes["observations"])
        _check_shapes(str(path), shapes)
        _check_task(str(path), shapes, task)

    arrays, attributes = _read(Path(path), KEYS, judge)
    for key in FLAGS:
        check_flags(str(path), key, arrays[key])
    return check(Dataset(**arrays, attributes=attributes), task, str(path))


def load_columns(path: str | Path, keys: Sequence[str], rows: int) -> dict[str, np.ndarray]:
    """Further (N,) columns of a file with N = `rows` transitions, in their own types; errors as in `load`."""
    return _read(Path(path), keys, lambda shapes: _check_shapes(str(path), shapes, rows))[0]


def save(
    dataset: Dataset, path: str | Path, *, columns: Mapping[str, np.ndarray] | None = None, new: bool = False
) -> None:
    """Write a DSRL file, whole or not at all; further (N,) `columns` go beside the seven keys.

    Raises `DataError` for a dataset without rows; with `new` nothing that is there by then is replaced.
    """
    check_rows(f"{path} is not written: the dataset", dataset.observations)
    write_bytes(Path(path), encoded(dataset, columns), new=new)


def encoded(dataset: Dataset, columns: Mapping[str, np.ndarray] | None = None) -> memoryview:
    """The content of the file that `save` writes (shuffled, gzip level 4)."""
    arrays = {key: getattr(dataset, key) for key in KEYS} | dict(columns or {})
    content = io.BytesIO()  # a disk that is full while HDF5 writes to it ends the process
    with h5py.File(content, "w") as file:
        for key, array in arrays.items():
            file.create_dataset(key, data=array, compression="gzip", compression_opts=4, shuffle=True)
        file.attrs.update(dataset.attributes)
    return content.getbuffer()


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file, open for reading; `DataError` that names the cause where it cannot be read."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path} is no ordinary file, expected an HDF5 file: copy it to one.")
    try:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            if number_of(error) not in NO_LOCKS:
                raise
            file = h5py.File(path, "r", locking=False)  # reading needs none
    except OSError as error:
        raise DataError(f"{path} {_unreadable(path, error)}.") from error
    with file:
        try:
            if linked := file.visititems_links(
                lambda name, link: name if isinstance(link, h5py.ExternalLink) else None
            ):
                raise DataError(
                    f"{path}: key '{linked}' is a link to another file, which is not followed: copy it into this one."
                )
            yield file
        except (OSError, RuntimeError, KeyError, ValueError) as error:  # what h5py raises where something is damaged
            what = shortened(first_line(error), 80)
            raise DataError(f"{path} is a damaged HDF5 file ({what}): fetch or copy it again.") from error


def _unreadable(path: Path, error: OSError) -> str:
    """Why a file cannot be opened, and what to do."""
    known = {
        errno.EISDIR: "is a folder, expected an HDF5 file: name a file in it",
        errno.ENOENT: "does not exist, expected an HDF5 file in the DSRL schema: check the path",
        errno.EACCES: "cannot be read, expected an HDF5 file: check its permissions",
        errno.EAGAIN: "is open in another process that writes it, expected a finished file: wait until that has ended",
    }
    if told := known.get(number_of(error)):
        return told
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as unreadable:
        return f"cannot be read: {cause(unreadable)}"
    if h5py.is_hdf5(path):
        what = "truncated" if "truncated" in str(error) else "truncated or damaged"
        return f"is a {what} HDF5 file ({shortened(first_line(error), 80)}): fetch or copy it again"
    kind = next((kind for start, kind in FOREIGN.items() if head.lstrip().lower().startswith(start)), "")
    return f"is no HDF5 file{kind or ': give a file in the DSRL schema'}"


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


def _read(
    path: Path, keys: Sequence[str], judge: Callable[[Mapping[str, np.ndarray]], None]
) -> tuple[dict[str, np.ndarray], dict[str, str | int | float]]:
    """These keys of a file, (N, 1) columns as (N,), and its scalar attributes as plain Python values.

    judge   is given arrays of the same shapes and types, which take no memory, before anything is read
    """

    def flat(key: str, array: np.ndarray) -> np.ndarray:
        return array[:, 0] if key not in VECTORS and array.shape[1:] == (1,) else array

    with open_file(path) as file:
        missing = [key for key in keys if key not in file]
        if missing:
            raise DataError(f"{path} {_foreign_layout(file, missing)}.")
        items = {key: numbers_at(path, file, key) for key in keys}
        judge({key: flat(key, np.broadcast_to(np.zeros((), item.dtype), item.shape)) for key, item in items.items()})
        check_size(path, items.values())
        arrays = {key: flat(key, read_numbers(path, item)) for key, item in items.items()}
        values = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    texts = {name: value.decode(errors="replace") for name, value in values.items() if isinstance(value, bytes)}
    return arrays, {name: value for name, value in (values | texts).items() if isinstance(value, (str, int, float))}


def numbers_at(path: Path, file: h5py.Group, key: str) -> h5py.Dataset:
    """A key's numbers, not read yet; `DataError` for anything else, and for numbers that are not in the file."""
    name, told = f"{file.name}/{key}".replace("//", "/").lstrip("/"), f"{path}: key"
    item = file[key]
    if not isinstance(item, h5py.Dataset):
        raise DataError(
            f"{told} '{name}' is no array of numbers but a group, expected one row per step: write an array."
        )
    if item.dtype.kind not in "biuf":
        raise DataError(
            f"{told} '{name}' is no array of numbers (its type is {shortened(str(item.dtype), 50)}), expected a row a "
            "transition: write it as float32."
        )
    if item.shape is None or item.external or item.is_virtual:
        raise DataError(f"{told} '{name}' has its numbers in another file or none: copy them into this one.")
    settings = item.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, filter_name = settings.get_filter(number)
        if not h5py.h5z.filter_avail(code):
            what = filter_name.decode(errors="replace") or code
            raise DataError(
                f"{told} '{name}' is compressed with filter {what}, which is not here, expected gzip: write it "
                "anew, for example with h5repack -f GZIP=4."
            )
    return item


def read_numbers(path: Path, item: h5py.Dataset) -> np.ndarray:
    """All of them; `DataError` that names the key of a damaged block."""
    try:
        return np.asarray(item[()])
    except (OSError, KeyError, RuntimeError) as error:
        what = shortened(first_line(error), 80)
        raise DataError(f"{path}: key '{item.name[1:]}' is damaged ({what}): fetch or copy the file again.") from error


def check_size(path: Path, items: Iterable[h5py.Dataset]) -> None:
    """`DataError` where arrays are declared that the file cannot hold, however well they are compressed."""
    declared, held = sum(item.size * item.dtype.itemsize for item in items), path.stat().st_size
    if declared > 2_000 * held:  # deflate reaches 1,032
        raise DataError(
            f"{path} declares {declared / 1e9:.3g} GB of numbers and has {held:,} bytes, expected the numbers: "
            "it was never written to its end, get it again."
        )


def minari_episodes(file: h5py.File) -> list[str]:
    """The groups of Minari's layout, in order of their numbers."""
    names = (name for name in file if re.fullmatch(r"episode_[0-9]+", name))
    groups = (name for name in names if file.get(name, getclass=True) is h5py.Group)
    return sorted(groups, key=lambda name: (len(name), name))


def _foreign_layout(file: h5py.File, missing: Sequence[str]) -> str:
    """What a file without these keys is, and what to do."""
    if episodes := minari_episodes(file):
        return (
            f"has the layout of Minari ({listed(episodes, 1)}), expected {listed(KEYS)}: make them with "
            "`saferule data convert`, which needs costs"
        )
    has = f"lacks {listed(missing)} and has {listed((shortened(key, 25) for key in file), 2) or 'no keys'}"
    d4rl = {"observations", "actions", "rewards"}
    if d4rl <= set(file) and {"costs", "next_observations", "timeouts"} & set(missing):
        return f"{has}, perhaps D4RL's layout: make a DSRL file with `saferule data convert`, which needs costs"
    return f"{has}, expected DSRL's keys: rename or add them"


def check_rows(name: str, observations: np.ndarray) -> None:
    """`DataError` for no observations at all."""
    if not observations.size:
        raise DataError(f"{name} is empty: key 'observations' has 0 rows, expected one or more: collect data.")


def _check_shapes(name: str, arrays: Mapping[str, np.ndarray], rows: int | None = None) -> None:
    """Raise `DataError` for dimensions other than the schema's and another number of rows than 'observations'."""
    rows = (*arrays["observations"].shape, 1)[0] if rows is None else rows
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

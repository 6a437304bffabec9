"""What a behaviour policy did while it learned: every episode, in an HDF5 file that grows with the training.

The file is named `<policy>.hdf5.part` until the training is complete. Observations have one row more per
episode than actions, so successors need no second copy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from saferule.data.schema import Dataset

if TYPE_CHECKING:
    from saferule.sim.vector import Episode

FLUSH_EVERY = 50  # episodes


class Recorder:
    """Appends episodes to `path`.part; `finish` renames it to `path`."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.part.unlink(missing_ok=True)
        self._episodes: list[Episode] = []

    def __call__(self, episode: Episode) -> None:
        self._episodes.append(episode)
        if len(self._episodes) >= FLUSH_EVERY:
            self._flush()

    def finish(self, attributes: dict[str, Any]) -> None:
        """Write what is left and the attributes (JSON), then give the file its final name."""
        self._flush()
        with h5py.File(self.part, "a") as file:
            file.attrs["made"] = json.dumps(attributes)
        os.replace(self.part, self.path)

    def _flush(self) -> None:
        if not self._episodes:
            return
        columns = {
            key: np.concatenate([getattr(episode, key) for episode in self._episodes])
            for key in ("observations", "actions", "rewards", "costs")
        }
        columns["lengths"] = np.asarray([len(episode.rewards) for episode in self._episodes], dtype=np.int64)
        columns["terminated"] = np.asarray([episode.terminated for episode in self._episodes])
        columns["returns"] = np.asarray([episode.rewards.sum(dtype=np.float64) for episode in self._episodes])
        columns["episode_costs"] = np.asarray([episode.costs.sum(dtype=np.float64) for episode in self._episodes])
        with h5py.File(self.part, "a") as file:
            for key, values in columns.items():
                if key not in file:
                    file.create_dataset(key, data=values, maxshape=(None, *values.shape[1:]), chunks=True)
                else:
                    file[key].resize(len(file[key]) + len(values), axis=0)
                    file[key][-len(values) :] = values
        self._episodes = []


def read_made(path: Path) -> dict[str, Any] | None:
    """How a complete recording was made, or None if there is no complete recording at `path`."""
    try:
        with h5py.File(path, "r") as file:
            return json.loads(file.attrs["made"])
    except (OSError, KeyError, ValueError):
        return None


def read_table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Returns and costs of all recorded episodes, both (E,), in the order in which they ended."""
    with h5py.File(path, "r") as file:
        return file["returns"][:], file["episode_costs"][:]


def read_episodes(path: Path, episodes: Sequence[int]) -> Dataset:
    """The chosen episodes of a recording; one that the task did not end itself ends in a timeout."""
    parts: dict[str, list[np.ndarray]] = {key: [] for key in Dataset.__dataclass_fields__ if key != "attributes"}
    with h5py.File(path, "r") as file:
        lengths, terminated = file["lengths"][:], file["terminated"][:]
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        for episode in episodes:
            start, length = int(starts[episode]), int(lengths[episode])
            rows = slice(start, start + length)
            observations = file["observations"][start + episode : start + episode + length + 1]
            last = np.arange(length) == length - 1
            parts["observations"].append(observations[:-1])
            parts["next_observations"].append(observations[1:])
            for key in ("actions", "rewards", "costs"):
                parts[key].append(file[key][rows])
            parts["terminals"].append(last & terminated[episode])
            parts["timeouts"].append(last & ~terminated[episode])
    return Dataset(**{key: np.concatenate(values) for key, values in parts.items()})

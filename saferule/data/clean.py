"""The clean data D of a task: our file or DSRL's, by name, in a folder."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from saferule.data.schema import Dataset, load
from saferule.errors import DataError
from saferule.sim.tasks import get_task


def clean_file(folder: Path, task: str) -> Path:
    """``<task>.hdf5`` or, where that is missing, the file under DSRL's name. DataError when neither is there."""
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

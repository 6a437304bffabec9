"""Where the project's own files lie, from any working directory, and where the runs of a profile are made."""

from __future__ import annotations

from pathlib import Path

import saferule
from saferule.data.schema import clean_data, clean_file
from saferule.environment import dataset_folder
from saferule.errors import DataError, RunError
from saferule.runs.execute import device
from saferule.runs.experiment import Data, Profile
from saferule.runs.store import Store
from saferule.runs.work import Workspace

# In the order in which they build on each other.
NOTEBOOKS = ("attack", "train", "unlearn", "ablate", "forgetting", "detect", "theory", "tables")


def project_root() -> Path:
    """The folder of the checkout; RunError when the package is installed without it."""
    root = Path(saferule.__file__).resolve().parents[1]
    missing = [name for name in NOTEBOOKS if not (root / "notebooks" / f"{name}.ipynb").is_file()]
    if missing:
        raise RunError(
            f"{root}: no notebooks/{missing[0]}.ipynb, expected a checkout of the project around the package: "
            "clone it and run ./run_all.sh there"
        )
    return root


def workspace(profile: Profile, output: str | Path | None = None, data: str | Path | None = None) -> Workspace:
    """Where the runs of a profile are made: on a GPU where there is one (`saferule.runs.execute.device`).

    output  root of the results [the checkout's ``artifacts``]
    data    folder of the clean data [``artifacts/data``, or where dsrl keeps its downloads, as the profile says]
    """
    if data is None:
        data = dataset_folder() if profile.data == "dsrl" else project_root() / "artifacts" / "data"
    output = Path(output or project_root() / "artifacts").absolute()  # processes on other machines work elsewhere
    return Workspace(Store(output / profile.name), Path(data).absolute(), device())


def known_data(profile: Profile, folder: Path) -> tuple[dict[str, Data], list[str]]:
    """What a plan has to know of the data of a profile's tasks, and a sentence for each task that has none."""
    known, notes = {}, []
    for task in profile.tasks:
        try:
            clean_file(folder, task)
        except DataError as error:
            notes.append(f"the runs of {task} have no names yet: {error}")
            continue
        data = clean_data(folder, task)
        known[task] = Data(data.digest(), len(data))
    return known, notes

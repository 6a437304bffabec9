"""Where the project's own files lie, from any working directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import saferule
from saferule.errors import RunError

if TYPE_CHECKING:
    from saferule.profiles import Profile

# In the order in which they build on each other.
NOTEBOOKS = ("attack", "train", "unlearn", "ablate", "audit", "theory", "tables")


def default_data_folder(profile: Profile) -> Path:
    """The folder of a profile's clean data: the checkout's, or the one in which dsrl keeps its downloads."""
    if profile.data == "dsrl":
        from saferule.data.fetch import dataset_folder

        return dataset_folder()
    return project_root() / "artifacts" / "data"


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

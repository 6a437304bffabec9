"""Where the project's own files lie, from any working directory."""

from __future__ import annotations

from pathlib import Path

import saferule
from saferule.errors import RunError

NOTEBOOKS = ("attack", "train", "unlearn", "ablate", "tables")  # in the order in which they build on each other


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

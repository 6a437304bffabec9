"""dsrl's own reader, beside ours."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

from saferule.sim import Task
from saferule.sim.shim import load_bullet_safety_gym, load_safety_gymnasium


def load_dsrl() -> ModuleType:
    """Import dsrl 0.1.0, which registers the Offline* environments, under its old name of the velocity tasks.

    It imports `safety_gymnasium.tasks.safety_velocity`, which safety-gymnasium 1.0.0 calls `safe_velocity`.
    """
    load_safety_gymnasium()
    load_bullet_safety_gym()
    old, new = (f"safety_gymnasium.tasks.{name}_velocity" for name in ("safety", "safe"))
    sys.modules.setdefault(old, importlib.import_module(new))
    for robot in ("ant", "half_cheetah", "hopper", "humanoid", "swimmer", "walker2d"):
        for version in ("v0", "v1"):
            module = f"safety_{robot}_velocity_{version}"
            sys.modules.setdefault(f"{old}.{module}", importlib.import_module(f"{new}.{module}"))
    # Without MetaDrive dsrl prints a warning at import; its other tasks are registered before that.
    os.environ.setdefault("DSRL_SUPPRESS_IMPORT_ERROR", "1")
    return importlib.import_module("dsrl")


def dsrl_reads(path: Path, task: Task, capfd) -> dict[str, np.ndarray]:
    """What dsrl makes of a file. bullet_safety_gym, imported here, redirects the process's own stderr: hence capfd."""
    import gymnasium

    load_dsrl()
    with capfd.disabled():
        env = gymnasium.make(task.dsrl_id)
    try:
        return env.unwrapped.get_dataset(h5path=str(path))
    finally:
        env.close()

"""What the caller's environment says: each variable is read here, once, and judged.

Two are the libraries' own to read: HF_ENDPOINT (huggingface_hub) and CUDA_VISIBLE_DEVICES (torch).
"""

from __future__ import annotations

import atexit
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from saferule.errors import SettingsError


def debugging() -> bool:
    """SAFERULE_DEBUG: whether errors keep their tracebacks."""
    return os.environ.get("SAFERULE_DEBUG", "0") not in ("", "0")


def cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it.

    As in OpenMP the first of a list such as "4,2" counts, for the outermost level, and what is no positive number
    counts as not set (its runtime warns of it).
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    asked = int(first) if first.isascii() and first.isdigit() else 0
    return min(available, asked) if asked > 0 else available


def home() -> Path:
    """The user's home folder; SettingsError where neither HOME nor the passwd file tells it."""
    try:
        return Path.home()
    except RuntimeError:
        raise SettingsError(
            f"HOME is not set and user {os.getuid()} has no entry in the passwd file, expected a home folder: set HOME"
        ) from None


def settle_jupyter() -> None:
    """Kernelspecs of this environment come before those that the user, or JUPYTER_PATH, has for others.

    Where no home folder is told, Jupyter finds an empty one while this process runs.
    """
    os.environ |= {"JUPYTER_PREFER_ENV_PATH": "1", "JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}
    try:
        home()
    except SettingsError:
        os.environ["HOME"] = tempfile.mkdtemp(prefix="saferule-home-")
        atexit.register(shutil.rmtree, os.environ["HOME"], ignore_errors=True)


def dataset_folder() -> Path:
    """Where dsrl keeps its datasets: $DSRL_DATASET_DIR, or ~/.dsrl/datasets."""
    told = os.environ.get("DSRL_DATASET_DIR")
    return user_path(told, "DSRL_DATASET_DIR") if told else home() / ".dsrl" / "datasets"


def graphics() -> str | None:
    """MUJOCO_GL in all spellings that MuJoCo takes: the way in which it is to draw; None where it may choose."""
    told = os.environ.get("MUJOCO_GL", "").strip().lower()
    return None if told in ("", "1", "on", "true", "enable", "enabled") else "glfw" if told == "glx" else told


def drawing(backend: str) -> dict[str, str]:
    """The environment of a process in which MuJoCo draws in this way."""
    return os.environ | {"MUJOCO_GL": backend} | ({} if backend == "glfw" else {"PYOPENGL_PLATFORM": backend})


def use_graphics(backend: str) -> None:
    """Let MuJoCo draw in this way."""
    os.environ |= drawing(backend)


@contextmanager
def without_graphics() -> Iterator[None]:
    """While active nothing says how MuJoCo is to draw: else importing it fails where that OpenGL is not installed."""
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    chosen = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= chosen


def use_cluster(address: str | None, gpus: float | None) -> None:
    """Let this process, and the notebooks that it starts, run their jobs on a Ray cluster.

    address  None for that of RAY_ADDRESS
    gpus  the share of a GPU for each job, up to 1, or a whole number; 0: a CPU alone; None: as the environment says
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if not address:
        raise SettingsError("--ray-gpus is given without --ray: give --ray ADDRESS, or leave it out")
    os.environ |= {"RAY_ADDRESS": address} | ({} if gpus is None else {"SAFERULE_RAY_GPUS": f"{gpus:g}"})
    cluster()


def cluster() -> tuple[str, float] | None:
    """RAY_ADDRESS and SAFERULE_RAY_GPUS: the cluster to run jobs on, and the share of a GPU for each; None without."""
    address, told = os.environ.get("RAY_ADDRESS"), os.environ.get("SAFERULE_RAY_GPUS", "0")
    try:
        gpus = float(told)
    except ValueError:
        gpus = -1.0
    if not (0 <= gpus <= 1 or (gpus < math.inf and gpus.is_integer() and gpus > 0)):
        raise SettingsError(f"--ray-gpus {told}: expected a share between 0 and 1, or a whole number: give 0.25")
    return (address, gpus) if address else None


def user_path(text: str | Path, option: str) -> Path:
    """A path as a user means it: a leading ~ is the home folder. SettingsError for one that names nothing."""
    text = os.fspath(text)
    if not text or "\0" in text:
        raise SettingsError(f"{option}: {text!r} is no path, expected one of a file or folder: give it")
    if text == "~" or text.startswith("~/"):
        return home() / text[2:]
    if text.startswith("~") and os.path.expanduser(text) == text:
        raise SettingsError(f"{option}: {text!r} is in the home of a user who is not known here: write ./~ for a name")
    return Path(os.path.expanduser(text))


def prepare_streams() -> None:
    """A locale without a character must not stop the line that tells of it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

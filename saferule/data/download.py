"""DSRL's own datasets (Liu et al. 2023), fetched from their mirrors: `saferule data fetch`.

A download grows in `<file>.part`, beside which `<file>.part.json` says where it comes from; an interrupted one is
continued. Only a file that is whole and follows the schema gets its final name; an HDF5 file that does not follow it is
kept as `<file>.rejected`. The SHA-256 is recorded in `<file>.json` the first time and checked from then on.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from saferule.data import schema
from saferule.data.hdf5 import open_file
from saferule.data.transfer import MirrorFailed, Part, transfer
from saferule.errors import DataError
from saferule.files import write_bytes
from saferule.sim.tasks import Task, get_task

MIRRORS = (
    "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/",
    "http://data.offline-saferl.org/download/",
)


def dataset_folder() -> Path:
    """Where dsrl keeps its datasets: $DSRL_DATASET_DIR, or ~/.dsrl/datasets."""
    return Path(os.environ.get("DSRL_DATASET_DIR") or Path.home() / ".dsrl" / "datasets")


def fetch(
    task_name: str,
    folder: Path | str | None = None,
    *,
    mirrors: Sequence[str] = MIRRORS,
    attempts: int = 5,
    sleep: Callable[[float], None] = time.sleep,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Path:
    """The path of a task's DSRL file, downloaded if it is not there yet.

    folder      where it is kept (default: `dataset_folder()`)
    mirrors     addresses of folders that hold the file, tried in order
    attempts    per mirror, without progress between them; the waits double from one second on

    Raises DataError for a file that differs from the recorded hash, that does not follow the schema, or that no
    mirror gives.
    """
    task = get_task(task_name)
    path = Path(folder or dataset_folder()) / task.dsrl_file
    if path.exists():
        return _check_present(path, task)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _download(path, task, mirrors, attempts, sleep, progress, say)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error}): make room, or name another folder with --folder or DSRL_DATASET_DIR."
        ) from error


def _download(
    path: Path,
    task: Task,
    mirrors: Sequence[str],
    attempts: int,
    sleep: Callable[[float], None],
    progress: bool,
    say: Callable[[str], None],
) -> Path:
    failures = []
    with Part(path) as part:
        for mirror in mirrors:
            url = mirror.rstrip("/") + "/" + path.name
            try:
                transfer(url, part, attempts, sleep, progress, say)
                _accept(part, path, task, url)
                return path
            except MirrorFailed as error:
                failures.append(f"{url}: {error}")
                say(failures[-1])
    raise DataError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}): check the connection and run the same command "
        f"again, which continues where it stopped, or get one of these addresses by other means and put it at {path}."
    )


def _accept(part: Part, path: Path, task: Task, url: str) -> None:
    """Give a downloaded file its name if it is valid and has the recorded hash, if one is recorded."""
    os.fsync(part.file.fileno())
    found, recorded = _describe(part.path, url), _recorded(path)
    try:
        schema.load(part.path, task)
    except DataError as error:
        if not _opens(part.path):
            part.restart({})
            raise MirrorFailed(f"what came is not valid: {error}") from None
        rejected = path.with_name(path.name + ".rejected")
        part.set_aside(rejected)
        raise MirrorFailed(f"what came is not valid: {error} It is kept as {rejected}") from None
    if recorded is not None and recorded.sha256 != found.sha256:
        part.restart({})
        raise MirrorFailed(
            f"what came has SHA-256 {found.sha256}, and {_record_path(path)} has {recorded.sha256} from an earlier "
            "download; delete that record to accept another file"
        )
    os.replace(part.path, path)
    _record(path, found)


def _opens(path: Path) -> bool:
    """Whether it is an HDF5 file and not cut off."""
    try:
        with open_file(path):
            return True
    except DataError:
        return False


def _check_present(path: Path, task: Task) -> Path:
    """Check a file that is there against its record; one without a record is validated and recorded."""
    recorded = _recorded(path)
    if recorded is None:
        schema.load(path, task)
        _record(path, _describe(path, "not downloaded by saferule"))
        return path
    found = _describe(path, recorded.url)
    if found.sha256 != recorded.sha256:
        raise DataError(
            f"{path} has changed since it was recorded: SHA-256 {found.sha256}, expected {recorded.sha256} "
            f"({_record_path(path).name}): delete the file to fetch it again, or the record to keep it as it is."
        )
    return path


@dataclass(frozen=True)
class _Record:
    """What is noted of a file that is complete."""

    url: str
    sha256: str
    bytes: int


def _describe(path: Path, url: str) -> _Record:
    with open(path, "rb") as file:
        return _Record(url, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _record(path: Path, record: _Record) -> None:
    write_bytes(_record_path(path), (json.dumps(vars(record), indent=1) + "\n").encode())


def _recorded(path: Path) -> _Record | None:
    try:
        return _Record(**json.loads(_record_path(path).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{_record_path(path)} is no record of a download ({error}): delete it to record the file again."
        ) from None

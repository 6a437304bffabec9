"""DSRL's own datasets (Liu et al. 2023), from their repository on the Hugging Face hub: `saferule data fetch`.

A file gets its final name when it is whole and follows the schema; one that does not is kept as
`<file>.<start of its SHA-256>.rejected`. The SHA-256 of a whole one is recorded in `<file>.json` the first time and
checked from then on. An interrupted download begins again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from saferule.data import schema
from saferule.environment import dataset_folder, user_path
from saferule.errors import DataError, cause
from saferule.files import FULL, sha256, write_bytes
from saferule.sim.tasks import Task, get_task

REPOSITORY = "YYY-45/DSRL"  # where DSRL's files have moved to; the released dsrl names a server that is gone


def fetch(
    task_name: str, folder: Path | str | None = None, *, mirror: str | None = None, say: Callable[[str], None] = print
) -> Path:
    """The path of a task's DSRL file, downloaded if it is not there yet.

    folder      where it is kept (default: where dsrl keeps its own)
    mirror      address of a mirror of the hub (default: $HF_ENDPOINT, or the hub itself), or a folder with the file

    Raises DataError for a file that cannot be had, differs from the recorded hash or does not follow the schema.
    """
    task = get_task(task_name)
    path = Path(folder or dataset_folder()) / task.dsrl_file
    if path.exists():
        if _recorded(path) is None:
            schema.load(path, task)
        _check(path, path)
        _record(path, "not downloaded by saferule")
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as draft:
            _get(path, task, Path(draft), mirror, say)
    except OSError as error:
        place = path if error.errno in FULL else error.filename or path  # copyfile names its source
        raise DataError(f"{place}: {cause(error)} (--folder or DSRL_DATASET_DIR name another folder).") from error
    return path


def _get(path: Path, task: Task, draft: Path, mirror: str | None, say: Callable[[str], None]) -> None:
    """Fetch or copy into the folder `draft`, judge what came, and give it its name."""
    come = draft / path.name
    if mirror is None or "://" in mirror:
        url = _download(come, path, mirror, say)
    else:
        source = user_path(mirror, "--mirror") / path.name
        if not source.is_file():
            raise DataError(
                f"{source} is not there, expected {task.name}'s file in the folder {mirror}: give the folder that "
                "holds it, or a mirror's address with https://."
            )
        url = source.resolve().as_uri()
        say(f"{source}: copying")
        shutil.copyfile(source, come)
    try:
        schema.load(come, task)
    except DataError as error:
        rejected = path.with_name(f"{path.name}.{sha256(come)[:8]}.rejected")
        os.replace(come, rejected)
        raise DataError(f"What came from {url} is not valid: {error} It is kept as {rejected}.") from None
    _check(come, path)
    os.replace(come, path)
    _record(path, url)


def _download(come: Path, path: Path, mirror: str | None, say: Callable[[str], None]) -> str:
    """Download to `come` what will be `path`; returns the address."""
    from huggingface_hub import hf_hub_download, hf_hub_url

    place = {"repo_id": REPOSITORY, "filename": path.name, "repo_type": "dataset", "endpoint": mirror}
    url = hf_hub_url(**place)
    say(f"{url}: fetching; when this is interrupted, the next call begins again")
    try:
        hf_hub_download(**place, local_dir=come.parent, token=False)  # public data: a mirror should learn none
    except Exception as error:  # the hub's own, those of its HTTP client, and OSError for a length that never comes
        reason = str(error.__cause__ or error).partition("\n")[0]
        raise DataError(
            f"{path.name} could not be downloaded ({type(error).__name__}: {reason}): check the connection and run the "
            f"same command again, or get {url} by other means and put it at {path}."
        ) from error
    return url


def _check(file: Path, path: Path) -> None:
    """DataError where the content of `file` differs from what is recorded for `path`."""
    found, recorded = sha256(file), _recorded(path)
    if recorded not in (None, found):
        raise DataError(
            f"{path} has SHA-256 {found}, expected {recorded} as recorded in {_beside(path).name}: delete the file to "
            "fetch it again, or that record to accept it as it is."
        )


def _record(path: Path, url: str) -> None:
    """Record the content of a file where nothing is recorded."""
    if _recorded(path) is None:
        made = {"url": url, "sha256": sha256(path), "bytes": path.stat().st_size}
        write_bytes(_beside(path), json.dumps(made, indent=1).encode() + b"\n")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _recorded(path: Path) -> str | None:
    """The SHA-256 that was noted of a file when it was complete."""
    try:
        return json.loads(_beside(path).read_bytes())["sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{_beside(path)} is no record of a download ({error!r}): delete it to record the file again."
        ) from None

"""DSRL's own datasets (Liu et al. 2023), fetched from their mirrors: `saferule data fetch`.

A download grows in `<file>.part`, beside which `<file>.part.json` says where it comes from; an interrupted one is
continued. Only a file that is whole and follows the schema gets its final name; an HDF5 file that does not follow it is
kept as `<file>.rejected`. The SHA-256 is recorded in `<file>.json` the first time and checked from then on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import requests
from tqdm import tqdm

from saferule.data import schema
from saferule.data.hdf5 import open_file
from saferule.envs.tasks import Task, get_task
from saferule.errors import DataError
from saferule.files import write_bytes

MIRRORS = (
    "https://huggingface.co/datasets/YYY-45/DSRL/resolve/main/",
    "http://data.offline-saferl.org/download/",
)
CHUNK = 1 << 16  # bytes; a cut connection loses less than that
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
LONGEST_WAIT = 60.0  # seconds between two attempts


class _MirrorFailed(Exception):
    """This mirror cannot give the file; another may."""


class _TryAgain(Exception):
    """Something that may pass: a lost connection, an overloaded server."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asked for


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
    with _Part(path) as part:
        for mirror in mirrors:
            url = mirror.rstrip("/") + "/" + path.name
            try:
                _transfer(url, part, attempts, sleep, progress, say)
                _accept(part, path, task, url)
                return path
            except _MirrorFailed as error:
                failures.append(f"{url}: {error}")
                say(failures[-1])
    raise DataError(
        f"{path.name} could not be downloaded ({'; '.join(failures)}): check the connection and run the same command "
        f"again, which continues where it stopped, or get one of these addresses by other means and put it at {path}."
    )


class _Part:
    """A growing file, locked against other processes, and what is known of its source."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self.source_path = path.with_name(path.name + ".part.json")
        self.lock_path = path.with_name(path.name + ".lock")  # of its own: HDF5 locks the files it opens
        self.file: BinaryIO

    def __enter__(self) -> _Part:
        self._lock = open(self.lock_path, "ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise DataError(f"{self.path} is being written by another process: wait until it has finished.") from None
        self.file = open(self.path, "ab")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
        if not self.path.exists():
            self.source_path.unlink(missing_ok=True)
        self.lock_path.unlink()
        self._lock.close()

    @property
    def size(self) -> int:
        return self.file.tell()

    def source(self) -> dict[str, Any]:
        """url, etag and length of the file that this is a part of; empty if that is not known."""
        try:
            return dict(json.loads(self.source_path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

    def restart(self, source: dict[str, Any]) -> None:
        self.file.truncate(0)
        self.file.seek(0)
        write_bytes(self.source_path, json.dumps(source).encode())

    def set_aside(self, path: Path) -> None:
        """Give what is there another name, and begin anew."""
        os.replace(self.path, path)
        self.file.close()
        self.file = open(self.path, "ab")
        self.restart({})


def _transfer(
    url: str, part: _Part, attempts: int, sleep: Callable[[float], None], progress: bool, say: Callable[[str], None]
) -> None:
    """Fetch all of `url` into `part`; raises _MirrorFailed after `attempts` attempts that gained nothing."""
    failed, farthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, progress)
        except _TryAgain as error:
            failed = 0 if part.size > farthest else failed + 1
            farthest = max(farthest, part.size)
            if failed >= attempts:
                raise _MirrorFailed(f"{error}, after {attempts} attempts") from None
            wait = min(LONGEST_WAIT, max(2.0 ** max(0, failed - 1), error.wait))
            say(f"{url}: {error}; next attempt in {wait:g} s")
            sleep(wait)


def _attempt(url: str, part: _Part, progress: bool) -> None:
    """One request, continuing `part` where server and file allow it."""
    source = part.source()
    if part.size and source.get("url") == url and source.get("length") == part.size:
        return  # whole: stopped before it got its name; nothing lies beyond its end to ask for
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges count the file's own bytes
    if part.size and source.get("url") == url and source.get("length"):
        headers["Range"] = f"bytes={part.size}-"
        if source.get("etag"):
            headers["If-Range"] = source["etag"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            length = _begin(response, url, part, source)
            with _bar(part, length, progress) as bar:
                for chunk in response.iter_content(CHUNK):
                    part.file.write(chunk)
                    bar.update(len(chunk))
    except requests.RequestException as error:
        raise _TryAgain(f"the connection was lost ({type(error).__name__})") from error
    finally:
        part.file.flush()
    if length is not None and part.size < length:
        raise _TryAgain(f"{part.size} of {length} bytes came")
    if length is not None and part.size > length:
        part.restart({})
        raise _TryAgain(f"more than the announced {length} bytes came")


def _begin(response: requests.Response, url: str, part: _Part, source: dict[str, Any]) -> int | None:
    """Judge the response's head and place `part` accordingly; returns the length of the whole file, if known."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        asked = response.headers.get("Retry-After", "")
        raise _TryAgain(f"the server answers {status} {response.reason}", float(asked) if asked.isdigit() else 0.0)
    if status == 416:  # nothing lies beyond what is there: another file than the one that was begun
        part.restart({})
        raise _TryAgain("the server's file has changed")
    if status not in (200, 206):
        raise _MirrorFailed(f"the server answers {status} {response.reason}")
    if "html" in response.headers.get("Content-Type", ""):
        raise _MirrorFailed("the server sends a web page instead of the file")
    etag = response.headers.get("ETag")
    if status == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        same = etag is None or source.get("etag") in (None, etag)
        if not (span.startswith(f"{part.size}-") and total == str(source["length"]) and same):
            part.restart({})
            raise _TryAgain("the server's file has changed")
        return int(total)
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdigit() else None
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones
    part.restart({"url": url, "etag": strong, "length": length})
    return length


@contextmanager
def _bar(part: _Part, length: int | None, progress: bool) -> Iterator[tqdm]:
    with tqdm(
        total=length,
        initial=part.size,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        desc=part.path.name.removesuffix(".part"),
        disable=not progress,
    ) as bar:
        yield bar


def _accept(part: _Part, path: Path, task: Task, url: str) -> None:
    """Give a downloaded file its name if it is valid and has the recorded hash, if one is recorded."""
    os.fsync(part.file.fileno())
    found, recorded = _describe(part.path, url), _recorded(path)
    try:
        schema.load(part.path, task)
    except DataError as error:
        if not _opens(part.path):
            part.restart({})
            raise _MirrorFailed(f"what came is not valid: {error}") from None
        rejected = path.with_name(path.name + ".rejected")
        part.set_aside(rejected)
        raise _MirrorFailed(f"what came is not valid: {error} It is kept as {rejected}") from None
    if recorded is not None and recorded.sha256 != found.sha256:
        part.restart({})
        raise _MirrorFailed(
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

"""One file over HTTP into a growing part: continued where server and file allow it, tried again, never believed.

Who calls decides what the bytes are worth; here only lengths, ranges and entity tags are judged.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import requests
from tqdm import tqdm

from saferule.errors import DataError
from saferule.files import write_bytes

CHUNK = 1 << 16  # bytes; a cut connection loses less than that
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds without a byte
LONGEST_WAIT = 60.0  # seconds between two attempts


class MirrorFailed(Exception):
    """This mirror cannot give the file; another may."""


class TryAgain(Exception):
    """Something that may pass: a lost connection, an overloaded server."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait  # seconds that the server asked for


class Part:
    """A growing file, locked against other processes, and what is known of its source."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self.source_path = path.with_name(path.name + ".part.json")
        self.lock_path = path.with_name(path.name + ".lock")  # of its own: HDF5 locks the files it opens
        self.file: BinaryIO

    def __enter__(self) -> Part:
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


def transfer(
    url: str, part: Part, attempts: int, sleep: Callable[[float], None], progress: bool, say: Callable[[str], None]
) -> None:
    """Fetch all of `url` into `part`; raises MirrorFailed after `attempts` attempts that gained nothing."""
    failed, farthest = 0, part.size
    while True:
        try:
            return _attempt(url, part, progress)
        except TryAgain as error:
            failed = 0 if part.size > farthest else failed + 1
            farthest = max(farthest, part.size)
            if failed >= attempts:
                raise MirrorFailed(f"{error}, after {attempts} attempts") from None
            wait = min(LONGEST_WAIT, max(2.0 ** max(0, failed - 1), error.wait))
            say(f"{url}: {error}; next attempt in {wait:g} s")
            sleep(wait)


def _attempt(url: str, part: Part, progress: bool) -> None:
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
        raise TryAgain(f"the connection was lost ({type(error).__name__})") from error
    finally:
        part.file.flush()
    if length is not None and part.size < length:
        raise TryAgain(f"{part.size} of {length} bytes came")
    if length is not None and part.size > length:
        part.restart({})
        raise TryAgain(f"more than the announced {length} bytes came")


def _begin(response: requests.Response, url: str, part: Part, source: dict[str, Any]) -> int | None:
    """Judge the response's head and place `part` accordingly; returns the length of the whole file, if known."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        asked = response.headers.get("Retry-After", "")
        raise TryAgain(f"the server answers {status} {response.reason}", float(asked) if asked.isdigit() else 0.0)
    if status == 416:  # nothing lies beyond what is there: another file than the one that was begun
        part.restart({})
        raise TryAgain("the server's file has changed")
    if status not in (200, 206):
        raise MirrorFailed(f"the server answers {status} {response.reason}")
    if "html" in response.headers.get("Content-Type", ""):
        raise MirrorFailed("the server sends a web page instead of the file")
    etag = response.headers.get("ETag")
    if status == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        same = etag is None or source.get("etag") in (None, etag)
        if not (span.startswith(f"{part.size}-") and total == str(source["length"]) and same):
            part.restart({})
            raise TryAgain("the server's file has changed")
        return int(total)
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdigit() else None
    strong = etag if etag and not etag.startswith("W/") else None  # If-Range takes no weak ones
    part.restart({"url": url, "etag": strong, "length": length})
    return length


def _bar(part: Part, length: int | None, progress: bool) -> tqdm:
    return tqdm(
        total=length,
        initial=part.size,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        desc=part.path.name.removesuffix(".part"),
        disable=not progress,
    )

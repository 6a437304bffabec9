"""Errors a user can act on, and the one sentence of at most `LONGEST` characters that a user sees of any error.

A sentence names the thing (file, key, row, option), what was expected and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

LONGEST = 300


class SaferuleError(Exception):
    """Base of all errors raised on purpose; the command line prints them without a traceback."""


class SettingsError(SaferuleError):
    """An unknown name or an impossible value of an option, profile, task, backbone, attack or method."""


class DataError(SaferuleError):
    """A dataset file or array that does not follow the DSRL schema."""


class CheckpointError(SaferuleError):
    """A checkpoint that is truncated, of another backbone or of other sizes."""


class RunError(SaferuleError):
    """A run that cannot continue: a loss that is not finite, a missing parent, a folder that is not a run."""


class NotebookError(RunError):
    """A notebook that failed: told with the last lines of its cell."""


class IncompleteError(RunError):
    """Some of the runs that were asked for could not be made; everything else is finished."""


CAUSES = {
    errno.ENOSPC: "the disk is full: make room or choose another place",
    errno.EFBIG: "the limit of the size of files is reached: raise it (ulimit -f) or choose another place",
    errno.EDQUOT: "your quota of the disk is used up: make room or choose another place",
    errno.EROFS: "it is on a read-only file system: choose another place",
    errno.EACCES: "you have no permission: ask its owner or choose another place",
    errno.EPERM: "the system does not permit it: choose another place",
    errno.ENOENT: "there is no such file or folder: check the path",
    errno.ENOTDIR: "a part of the path is a file, expected a folder: choose another place",
    errno.EISDIR: "it is a folder, expected a file: name a file in it",
    errno.EEXIST: "something is there already: choose another place",
    errno.ENOTEMPTY: "something is there already: choose another place",
    errno.EBUSY: "it is in use, perhaps as a mount point: choose a place in it",
    errno.EXDEV: "it is on another file system than its folder: choose another place",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
    errno.ELOOP: "its links lead in a circle: correct them or choose another place",
    errno.EAGAIN: "another process holds it: wait until that has ended",
    errno.ENOLCK: "its file system has no file locks: choose a place on another one",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
    errno.ENOMEM: "there is not enough memory: close other programs",
    errno.EIO: "the disk fails: check it, or choose another place",
    errno.ESTALE: "the network file system lost it: try again",
}


def number_of(error: OSError) -> int | None:
    """Its errno; HDF5 writes it into the message only."""
    told = re.search(r"errno = (\d+)", str(error))
    return int(told[1]) if error.errno is None and told else error.errno


def cause(error: OSError) -> str:
    """Why the system refused, and what to do about it."""
    number = number_of(error)
    return CAUSES.get(number, os.strerror(number) if number else first_line(error) or type(error).__name__)


def sentence(error: BaseException) -> str:
    """What a user is told of an error: ours as they are, those of the system with their cause, others by their type."""
    if isinstance(error, SaferuleError):
        text = str(error)
        return text if isinstance(error, NotebookError) else shortened(text)
    if isinstance(error, OSError) and number_of(error) is not None:
        return shortened(f"{error.filename or 'a file'}: {cause(error)}")
    if isinstance(error, MemoryError):
        text = shortened(first_line(error), 120)
        return f"there is not enough memory ({text}): take less data or smaller settings, or close other programs"
    what = shortened(f"{type(error).__name__}: {first_line(error)}".removesuffix(": "), 120)
    return shortened(
        f"{what}{_where(error)}, which should have worked or been refused: set SAFERULE_DEBUG=1 for the traceback"
    )


def first_line(error: BaseException) -> str:
    """The first line that an error says."""
    return next(iter(str(error).strip().splitlines()), "")


def shortened(text: str, most: int = LONGEST) -> str:
    """One line of at most so many characters: what is too much goes from the middle, names and advice stay."""
    line = " ".join(text.split())
    half = (most - 5) // 2
    return line if len(line) <= most else f"{line[:half]} ... {line[-half:]}"


def listed(names: Iterable[str], most: int = 8) -> str:
    """'a', 'b' and 7 more; each name shortened."""
    names = list(names)
    shown = ", ".join(f"'{shortened(name, 40)}'" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def _where(error: BaseException) -> str:
    """The last line of the package that an error passed."""
    package = Path(__file__).parent
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).is_relative_to(package)]
    return f" in {Path(frames[-1].filename).relative_to(package.parent)}, line {frames[-1].lineno}" if frames else ""

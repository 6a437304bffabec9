"""Writing files and folders whole or not at all, and telling them apart by their content."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a full disk, a quota, a limit of the size of files


@contextmanager
def write_atomically(final: Path) -> Iterator[Path]:
    """An empty file to fill, beside its final place; it gets its name when the block ends without an error, else it
    goes.

    Libraries that write by path (HDF5, safetensors) are given this one. The mode is that of any new file (umask).
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    try:
        draft.touch(exist_ok=False)
        mode = draft.stat().st_mode
        yield draft
        draft.chmod(mode)  # safetensors replaces the file by one for its owner's eyes
        _sync(draft)
        os.replace(draft, final)
    except OSError as error:
        raise _placed(error, final) from None
    finally:
        draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with write_atomically(path) as draft:
        draft.write_bytes(content)


@contextmanager
def write_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, beside its final place; it gets its name when the block ends without an error, else it goes.

    OSError when there is a folder with something in it at the final place by then.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    draft.mkdir()
    try:
        yield draft
        for path in draft.rglob("*"):
            if path.is_file():
                _sync(path)
        os.replace(draft, final)
        _sync(final.parent)
    except OSError as error:
        raise _placed(error, final) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _placed(error: OSError, final: Path) -> OSError:
    """The error, with the place where a full disk was met: a write that fails does not say it."""
    bare = error.errno in FULL and error.filename is None
    return OSError(error.errno, os.strerror(error.errno), str(final)) if bare else error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Writing files and folders whole or not at all, trying places before any work, and telling content apart."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import combinations
from pathlib import Path

from saferule.errors import RunError, SettingsError, cause

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # a full disk, a quota, a limit of the size of files


def write_files(contents: Mapping[Path, bytes | memoryview], *, new: bool = False) -> None:
    """Write files (links followed), all of them whole or none; their modes are those of any new file (umask).

    new     what somebody else has put in a place by then is not replaced
    RunError where all is written and only a name cannot be given; it says where it lies.
    """
    drafts: dict[Path, Path] = {}
    for path in contents:
        final = Path(os.path.realpath(path))
        drafts[final] = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    taken, keep = [], False
    try:
        for (final, draft), content in zip(drafts.items(), contents.values(), strict=True):
            with _named(final):
                final.parent.mkdir(parents=True, exist_ok=True)
                draft.touch(exist_ok=False)
                draft.write_bytes(content)
                _sync(draft)
        try:
            for final in drafts if new else ():
                final.touch(exist_ok=False)  # of two commands one gets the name, on every file system
                taken.append(final)
            for final, draft in drafts.items():
                os.replace(draft, final)
        except OSError as error:
            keep = True
            raise _kept([draft for draft in drafts.values() if draft.exists()], final, error) from error
    finally:
        for final, draft in drafts.items():
            if final in taken and draft.exists():
                final.unlink()
            if not keep:
                draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview, *, new: bool = False) -> None:
    """The same for one file."""
    write_files({path: content}, new=new)


@contextmanager
def write_folder(final: Path) -> Iterator[Path]:
    """A folder to fill, beside its final place; it gets its name when the block ends without an error, else it goes.

    An empty folder that is there already, perhaps a mount point or shared with others, stays and is filled at the end.
    Whoever finds something else at the final place by then gets a RunError that says where the filled folder lies.
    """
    final, keep = Path(os.path.realpath(final)), False
    draft = beside(final, f"{secrets.token_hex(4)}.part")
    there = draft.parent == final
    try:
        with _named(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            draft.mkdir()
            yield draft
            for path in draft.rglob("*"):
                if path.is_file():
                    _sync(path)
        try:
            _fill(final, draft) if there else os.replace(draft, final)
            _sync(final if there else final.parent)
        except OSError as error:
            keep = draft.is_dir()
            raise _kept([draft], final, error) from error
    finally:
        if not keep:
            shutil.rmtree(draft, ignore_errors=True)


def beside(final: Path, suffix: str) -> Path:
    """Where work on a folder is kept until it is done: a hidden name beside it, or in it if it is there and vacant."""
    return final / f".{suffix}" if vacant(final) else final.with_name(f".{final.name}.{suffix}")


def vacant(folder: Path) -> bool:
    """Whether it is a folder with nothing but hidden entries: work that was interrupted, what the system puts there."""
    return folder.is_dir() and all(entry.name.startswith(".") for entry in folder.iterdir())


def try_file(path: Path, overwrite: str | None = "") -> None:
    """SettingsError where a file could not be written; what is there stays as it is, and nothing is left.

    overwrite   advice for a place that is taken, such as an option; None: whatever is there may be replaced
    """
    final = Path(os.path.realpath(path))
    if final.is_dir():
        raise SettingsError(f"{path} is a folder, expected the name of a file to write: name a file in it")
    if overwrite is not None and os.path.lexists(final):
        raise SettingsError(f"{path} exists and would be replaced, expected a new file: name another one{overwrite}")
    _try(path, final)


def try_folder(path: Path, *, empty: bool = True) -> None:
    """SettingsError where a folder could not be made or filled, or is to be `vacant` and is not; nothing is left."""
    final = Path(os.path.realpath(path))
    if os.path.lexists(final) and not final.is_dir():
        raise SettingsError(f"{path}: there is something here already, expected a folder: name another one")
    if not final.is_dir():
        return _try(path, final)
    _try(path, final / "x")
    if empty and not vacant(final):
        raise SettingsError(
            f"{path}: there is something here already, expected a new or empty folder: name another one"
        )


def check_different(named: Mapping[str, Path | None]) -> None:
    """SettingsError where two of the named places are one.

    named   the option or thing, and its place; those that are not given (None) are left out
    """
    places = {name: Path(os.path.realpath(path)) for name, path in named.items() if path is not None}
    for (one, first), (other, second) in combinations(places.items(), 2):
        if first == second or (first.exists() and second.exists() and first.samefile(second)):
            raise SettingsError(f"{one} and {other} are both {first}, expected different places: rename one")


def derived(path: Path, suffix: str) -> Path:
    """The name of what goes with a file of the user's: the suffix in the place of .hdf5, else behind the name."""
    return path.with_name(path.name.removesuffix(".hdf5") + suffix)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_sha256(path: Path) -> str:
    """The same, computed once in this process unless the file's time or size has changed."""
    state = path.stat()
    return _sha256_at(path, state.st_mtime_ns, state.st_size)


@cache
def _sha256_at(path: Path, time: int, size: int) -> str:
    return sha256(path)


def _try(path: Path, final: Path) -> None:
    """Write an empty file as a draft of `final` would be, making missing folders, and remove all of it again."""
    draft = final.with_name(f".{final.name}.{secrets.token_hex(4)}.part")
    missing = [folder for folder in (final.parent, *final.parent.parents) if not folder.exists()]
    made = []
    try:
        for folder in reversed(missing):
            folder.mkdir()
            made.append(folder)
        try:
            draft.touch(exist_ok=False)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {cause(error)}") from error
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _fill(final: Path, draft: Path) -> None:
    """Move what is in the draft, which lies in the folder, to its place."""
    entries = sorted(draft.iterdir())
    if taken := next((final / entry.name for entry in entries if os.path.lexists(final / entry.name)), None):
        raise FileExistsError(errno.EEXIST, "File exists", str(taken))
    for entry in entries:
        os.replace(entry, final / entry.name)
    draft.rmdir()


def _kept(drafts: Sequence[Path], final: Path, error: OSError) -> RunError:
    places = " and ".join(map(str, drafts))
    return RunError(f"all is written but cannot get its name {final}: {cause(error)}; until then it lies in {places}")


@contextmanager
def _named(final: Path) -> Iterator[None]:
    """Errors of the system that do not say of what (a full disk) are about `final`."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(final)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Where results lie: one folder per finished run, named by its hash, written whole or not at all.

    <root>/runs/<kind>/<label>-<hash>/     results, ``run.json`` (description, time, versions) and ``SHA256SUMS``
    <root>/partial/<hash>/                 state of an interrupted population

A folder gets its final name by a rename after everything in it is on disk, so a folder that exists is a finished run.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from saferule.errors import CheckpointError, RunError, cause
from saferule.files import known_sha256, sha256, vacant, write_bytes, write_folder
from saferule.runs.spec import Level, PolicyRun, Run, describe, key, read_by

RECORD, SUMS, LOG = "run.json", "SHA256SUMS", "log.csv"
KEPT, MADE_FROM = "kept", "made_from"  # entries of the record
RECORDED = ("torch", "numpy", "gymnasium", "mujoco", "safety-gymnasium", "pybullet", "stable_baselines3")


class Store:
    """The results of one profile under ``root``."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._folders: dict[Run, Path] = {}

    def folder(self, run: Run) -> Path:
        """Where the run's results lie, or will lie."""
        if run not in self._folders:
            self._folders[run] = self.root / "runs" / run.KIND / f"{run.label}-{key(run)}"
        return self._folders[run]

    def there(self, run: Run, level: Level = Level.RECORD) -> bool:
        """True when the run's results are there, of a policy at least so much, whatever has become of them."""
        return (self.folder(run) / RECORD).is_file() and (level == Level.RECORD or self.level(run) >= level)

    def done(self, run: Run, level: Level = Level.RECORD) -> bool:
        """The same, and neither they nor what they were made from is damaged."""
        return self.seen()(run, level)

    def seen(self) -> Callable[..., bool]:
        """`done`, by one look at each run: for many that build on the same."""

        @cache
        def sound(run: Run) -> bool:
            return not self.damage(run) and all(map(sound, read_by(run)))

        return lambda run, level=Level.RECORD: self.there(run) and sound(run) and self.there(run, level)

    def sound(self, run: Run) -> Path:
        """The folder of a finished run, to read from. RunError for the first file that is not as it was written."""
        self.meta(run)
        for sentence in self.damage(run):
            raise RunError(f"{sentence}, expected what {SUMS} lists: run again, and it is made again")
        return self.folder(run)

    def level(self, run: Run) -> Level:
        """How much of a finished run there is."""
        return Level[self.meta(run).get(KEPT, Level.WHOLE.name)]  # those of before levels are whole

    def meta(self, run: Run) -> dict[str, Any]:
        """What ``run.json`` says; RunError when the run is not finished."""
        path = self.folder(run) / RECORD
        if not self.there(run):
            raise RunError(f"{path}: no such run, expected a finished {run.KIND} {run.label}: make it first")
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            raise RunError(
                f"{path}: damaged ({error}), expected JSON: delete its folder and the run is made again"
            ) from None

    @contextmanager
    def write(self, run: Run, **meta: Any) -> Iterator[Path]:
        """A folder to fill; it becomes the run's folder when the block ends without an error, else it is removed.

        meta  further entries for ``run.json``; its seconds, if it took longer than the block
        """
        began, parents = time.monotonic(), {key(parent): self._result(parent) for parent in read_by(run)}
        with self.draft(run) as draft:
            yield draft
            record = {"run": describe(run), MADE_FROM: parents, "versions": versions(), "machine": machine()}
            write_json(draft / RECORD, record | {"seconds": round(time.monotonic() - began, 2)} | meta)

    @contextmanager
    def draft(self, run: Run) -> Iterator[Path]:
        """The same without ``run.json``."""
        final = self.folder(run)
        with write_folder(final) as draft:
            yield draft
            write_sums(draft)
            if final.exists() and not vacant(final):  # damaged, or with less of the run
                shutil.rmtree(final)

    def damage(self, run: Run, digest: Callable[[Path], str | None] = known_sha256) -> list[str]:
        """What of a run's folder is not as it was written, or no longer goes with what it was made from: a sentence for
        each file, none if all is well or not there.

        digest  of a file, as a rule read once by a process unless it changes; None for one that is not to be read
        """
        folder = self.folder(run)
        if not folder.is_dir() or vacant(folder):
            return []
        if not self.there(run):
            return [f"{folder / RECORD}: missing"]
        try:
            meta = self.meta(run)
            described, made_from = meta["run"], meta.get(MADE_FROM, {})
        except (RunError, KeyError, TypeError) as error:
            return [str(error) if isinstance(error, RunError) else f"{folder / RECORD}: damaged, it describes no run"]
        if described != describe(run):
            return [f"{folder / RECORD}: describes another run than its folder's name says"]
        listed = _listed(folder)
        if RECORD not in listed:
            return [f"{folder / SUMS}: missing, or without {RECORD}"]
        told = []
        for path, known in ((folder / name, known) for name, known in listed.items()):
            if not path.is_file():
                told.append(f"{path}: missing")
            elif digest(path) not in (known, None):
                told.append(f"{path}: has changed since it was written")
        for parent in read_by(run):
            then, now = made_from.get(key(parent)), self._result(parent)
            if None not in (then, now) and then != now:
                told.append(f"{folder}: was made from another {parent.KIND} {parent.label} than is there now")
        return told

    def verify(self, run: Run) -> list[str]:
        """The same of a finished run with every file read again; what is there that the run did not write; and an agent
        that says it is another run's.
        """
        if not self.there(run):
            return [f"{self.folder(run) / RECORD}: missing"]
        folder, found = self.folder(run), self.damage(run, sha256)
        listed = {folder / SUMS, *(folder / name for name in _listed(folder))}
        strangers = sorted({path for path in folder.rglob("*") if path.is_file()} - listed)
        found += [f"{path}: was not written by the run" for path in strangers]
        return found or (_of_others(run, folder) if isinstance(run, PolicyRun) else [])

    def _result(self, run: Run) -> str | None:
        """A digest of what a finished policy came to: of its log, which is there however much of it is kept. None where
        that is not known, and of other runs, whose files name times: made again the same, they have other bytes.
        """
        listed = _listed(self.folder(run)) if isinstance(run, PolicyRun) else {}
        return hashlib.sha256(f"{listed[LOG]}  {LOG}".encode()).hexdigest() if LOG in listed else None

    def state_folder(self, runs: Sequence[Run]) -> Path:
        """Where a population of these runs keeps its state while it runs."""
        return self.root / "partial" / hashlib.sha256(" ".join(map(key, runs)).encode()).hexdigest()[:12]

    def partial(self, runs: Sequence[Run]) -> Path:
        """The same, made if it is not there."""
        folder = self.state_folder(runs)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "runs.json", json.dumps([*map(key, runs)]).encode())
        return folder

    def interrupted(self, among: Sequence[Run], missing: Container[Run] = ()) -> list[list[Run]]:
        """Populations to continue: the runs of those that were interrupted and hold only runs in ``among``.

        missing  runs that are missing although they are done: more of them is asked for
        Some of a population's runs may be done by now. No two of the populations have an unfinished run in common.
        """
        taken, found, done = set(), [], self.seen()
        for _, runs in self._populations(among):
            left = {run for run in runs if run in missing or not done(run)}
            if left and not left & taken:
                taken |= left
                found.append(runs)
        return found

    def _populations(self, among: Iterable[Run]) -> Iterator[tuple[Path, list[Run]]]:
        """The folders of states, each with its runs, that hold only runs in ``among``."""
        known = {key(run): run for run in among}
        for listing in sorted(self.root.glob("partial/*/runs.json")):
            try:
                keys = json.loads(listing.read_bytes())
            except ValueError:  # damaged: no telling whose state this is
                continue
            if set(keys) <= known.keys():
                yield listing.parent, [known[k] for k in keys]

    def tidy(self, idle: Iterable[Run]) -> None:
        """Remove what killed processes have left: all drafts, and the states of populations of runs that nobody is to
        make. For who holds the lock.
        """
        for part in ("runs", "partial"):
            for draft in list((self.root / part).rglob(".*.part")):
                shutil.rmtree(draft) if draft.is_dir() else draft.unlink(missing_ok=True)
        for folder, _ in self._populations(idle):
            shutil.rmtree(folder)

    def held(self) -> bool:
        """Whether some process is making runs here."""
        path = self.root / ".lock"
        if not path.is_file():
            return False
        with open(path) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one process; RunError when another one has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as handle:
            for pause in (0.1, 0.1, None):
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if pause is None:
                        raise RunError(
                            f"{self.root}: another process is making runs here, expected to be alone: wait for it or "
                            "stop it"
                        ) from None
                    time.sleep(pause)  # perhaps `held` has just looked
                except OSError as error:
                    raise RunError(f"{self.root}: the lock of the store cannot be held: {cause(error)}") from error
            yield


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write what a run says of itself."""
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def _of_others(run: PolicyRun, folder: Path) -> list[str]:
    from saferule.agents.checkpoint import read  # torch takes seconds to load

    try:
        told = {path: read(path)[1].get("run", key(run)) for path in sorted(folder.glob("*.safetensors"))}
    except CheckpointError as error:
        return [str(error)]
    others = {path: other for path, other in told.items() if other != key(run)}
    return [f"{path}: the agent of run {other}, expected {key(run)}" for path, other in others.items()]


def write_sums(folder: Path) -> None:
    """List the SHA-256 of every file of a folder as ``sha256sum -c`` reads it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SUMS)
    (folder / SUMS).write_text("".join(f"{sha256(path)}  {path.relative_to(folder)}\n" for path in files), "utf-8")


def _listed(folder: Path) -> dict[str, str]:
    """{name: SHA-256} of the files that a run wrote."""
    path = folder / SUMS
    lines = [line.partition("  ") for line in path.read_text(errors="replace").splitlines()] if path.is_file() else []
    return {name: digest for digest, _, name in lines}


@cache
def versions() -> dict[str, str]:
    """Versions of what a result depends on; "missing" for a package without metadata, which a repair may never load."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def machine() -> dict[str, Any]:
    """Processor, cores and time of the run."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": os.cpu_count(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@cache
def processor() -> str:
    """The processor's name, as far as the system tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())

"""Where results lie: one folder per finished cell, named by its hash, written whole or not at all.

    <root>/runs/<kind>/<label>-<hash>/     results and ``cell.json`` (the description, versions, time)
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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from saferule.errors import RunError
from saferule.files import write_bytes, write_folder
from saferule.runs.cells import Cell, describe, key, kind

RECORDED = ("torch", "numpy", "gymnasium", "mujoco", "safety-gymnasium", "pybullet", "stable_baselines3")


class Store:
    """The results of one profile under ``root``."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def folder(self, cell: Cell) -> Path:
        """Where the cell's results lie, or will lie."""
        return self.root / "runs" / kind(cell) / f"{cell.label}-{key(cell)}"

    def done(self, cell: Cell) -> bool:
        """True when the cell's results are there."""
        return (self.folder(cell) / "cell.json").is_file()

    def meta(self, cell: Cell) -> dict[str, Any]:
        """What ``cell.json`` says; RunError when the run is not finished."""
        path = self.folder(cell) / "cell.json"
        if not path.is_file():
            raise RunError(f"{path}: no such run, expected a finished {kind(cell)} {cell.label}: make it first")
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise RunError(
                f"{path}: damaged ({error}), expected JSON: delete its folder and the run is made again"
            ) from None

    @contextmanager
    def write(self, cell: Cell, **meta: Any) -> Iterator[Path]:
        """A folder to fill; it becomes the cell's folder when the block ends without an error, else it is removed.

        meta  further entries for ``cell.json``
        """
        final = self.folder(cell)
        with write_folder(final) as draft:
            yield draft
            record = {"cell": describe(cell), "versions": versions(), "machine": machine()} | meta
            (draft / "cell.json").write_text(json.dumps(record, indent=1, sort_keys=True))
            if final.exists():  # a folder without cell.json: not made by this store, and in the way
                shutil.rmtree(final)

    def partial(self, cells: Sequence[Cell]) -> Path:
        """Where a population of these cells keeps its state while it runs."""
        keys = [key(cell) for cell in cells]
        folder = self.root / "partial" / hashlib.sha256(" ".join(keys).encode()).hexdigest()[:12]
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "cells.json", json.dumps(keys).encode())
        return folder

    def interrupted(self, among: Sequence[Cell]) -> list[tuple[Path, list[Cell]]]:
        """Populations to continue: folders and cells of those that were interrupted and hold only cells in ``among``.

        Some of a population's cells may be done by now. What is left of one that is done entirely is removed. No two
        of the populations have an unfinished cell in common.
        """
        known, taken = {key(cell): cell for cell in among}, set()
        found: list[tuple[Path, list[Cell]]] = []
        for listing in sorted(self.root.glob("partial/*/cells.json")):
            try:
                keys = json.loads(listing.read_text())
            except ValueError:  # damaged: no telling whose state this is
                continue
            if not set(keys) <= set(known):
                continue
            left = {k for k in keys if not self.done(known[k])}
            if not left:
                shutil.rmtree(listing.parent)
            elif not left & taken:
                taken |= left
                found.append((listing.parent, [known[k] for k in keys]))
        return found

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for one process; RunError when another one has it."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(
                    f"{self.root}: another process is making runs here, expected to be alone: wait for it or stop it"
                ) from None
            yield


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
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

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

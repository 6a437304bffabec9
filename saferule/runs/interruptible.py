"""A population that can be killed at any moment: its state on disk while it runs, its agents' folders at the end."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from saferule.agents.checkpoint import (
    read,
    restore,
    save_acting,
    save_agent,
    save_networks,
    save_tensors,
    tensors_of,
    write,
)
from saferule.agents.loop import Diverged, Log
from saferule.agents.population import Population
from saferule.errors import CheckpointError
from saferule.files import write_bytes
from saferule.runs.cells import Policy, Unlearning, key, origin
from saferule.runs.store import Store

AGENT = "agent.safetensors"
LOG = "log.csv"
STATE = "state.safetensors"
PROGRESS = "step"
SAVE_SECONDS = 60.0


class InterruptibleRun:
    """Keeps ``<partial folder>/state.safetensors`` and snapshots up to date, and writes finished agents to the store.

    The state holds the log too, so that a continued run ends with the log of an uninterrupted one.
    """

    def __init__(
        self,
        store: Store,
        folder: Path,
        cells: Sequence[Policy],
        cfg: Any,
        say: Callable[[str], None],
    ) -> None:
        self.store, self.folder, self.cells, self.cfg, self.say = store, folder, list(cells), cfg, say
        root = origin(cells[0])
        self.task, self.backbone = root.task, root.backbone
        self.save_snapshot = save_networks if isinstance(cells[0], Unlearning) else save_acting
        count, steps = cells[0].snapshots, cells[0].steps
        self.snapshot_steps = {round(steps * (i + 1) / (count + 1)) for i in range(count)}
        self.saved_at = time.monotonic()

    def resume(self, device: str) -> tuple[Population, list[int], Log] | None:
        """The interrupted population, the numbers of its agents and its log; None when there is nothing to continue."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            tensors, meta = read(self.folder / STATE, device)
        except CheckpointError as error:
            self.say(f"{self.cells[0].label}: from the beginning, as its state cannot be read: {error}")
            return None
        columns = {name: tensors.pop(f"log/{name}").tolist() for name in meta["log"]}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows:
            row["agent"], row["step"] = int(row["agent"]), int(row["step"])
        population = restore(tensors, self.cfg.learning_rates, meta["step"])
        self.say(f"{self.cells[0].label}: continued at step {population.step}")
        return population, meta["agents"], Log(rows)

    def keep(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Save snapshots that are due, and the state about once a minute."""
        if population.step in self.snapshot_steps:
            for p, agent in enumerate(agents):
                path = self._snapshots(agent) / f"{population.step}.safetensors"
                self.save_snapshot(population, p, path, self.task, self.backbone, self.cfg)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save(population, agents, log)

    def save(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Write the state atomically."""
        names = list(dict.fromkeys(name for row in log.rows for name in row))
        columns = {f"log/{n}": [row.get(n, math.nan) for row in log.rows] for n in names}
        columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
        meta = {"step": population.step, "agents": list(agents), "log": names}
        write(self.folder / STATE, tensors_of(population) | columns, meta)
        write_bytes(self.folder / PROGRESS, str(population.step).encode())
        self.saved_at = time.monotonic()

    def stop(self, agent: int, stopped: Diverged, log: Log) -> None:
        """Write the folder of an agent whose values were not finite, with its last good state."""
        sentence = stopped.sentence(self.cells[agent].label)
        self.say(sentence)

        def save(path: Path) -> None:
            meta = {"cell": key(self.cells[agent]), "step": stopped.good_step, "stopped": sentence}
            save_tensors(stopped.tensors, path, self.task, self.backbone, self.cfg, meta)

        self._write(agent, log, save, stopped=sentence)

    def finish(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Write the folders of all agents that reached the end and forget the interrupted state."""
        if agents:
            self.save(population, agents, log)  # a kill from here on loses no training
        for p, agent in enumerate(agents):

            def save(path: Path, p: int = p, agent: int = agent) -> None:
                meta = {"cell": key(self.cells[agent])}
                save_agent(population, p, path, self.task, self.backbone, self.cfg, meta)

            self._write(agent, log, save)
        shutil.rmtree(self.folder)

    def _write(self, agent: int, log: Log, save: Callable[[Path], None], **meta: Any) -> None:
        cell = self.cells[agent]
        if self.store.done(cell):
            return
        rows = pd.DataFrame([row for row in log.rows if row["agent"] == agent]).drop(columns="agent", errors="ignore")
        with self.store.write(cell, **meta) as draft:
            save(draft / AGENT)
            rows.to_csv(draft / LOG, index=False)
            if self._snapshots(agent).is_dir():
                shutil.copytree(self._snapshots(agent), draft / "snapshots")

    def _snapshots(self, agent: int) -> Path:
        return self.folder / "snapshots" / key(self.cells[agent])


def progress(folder: Path) -> int:
    """The step of the last saved state of a running population, 0 before the first."""
    path = folder / PROGRESS
    return int(path.read_text()) if path.is_file() else 0


def snapshot_path(store: Store, cell: Policy, step: int | None) -> Path:
    """The file of a finished policy, or of one of its snapshots."""
    folder = store.folder(cell)
    return folder / AGENT if step is None else folder / "snapshots" / f"{step}.safetensors"


def snapshot_steps(store: Store, cell: Policy) -> list[int]:
    """At which steps snapshots of a finished run were kept."""
    return sorted(int(path.stem) for path in (store.folder(cell) / "snapshots").glob("*.safetensors"))

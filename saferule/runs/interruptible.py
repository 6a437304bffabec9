"""A population that can be killed at any moment: its state on disk while it runs, its agents' folders at the end."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol

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
from saferule.runs.spec import PolicyRun, key

AGENT, LOG, STATE, PROGRESS = "agent.safetensors", "log.csv", "state.safetensors", "step"
SAVE_SECONDS = 60.0


class Place(Protocol):
    """Where finished runs go: a `saferule.runs.store.Store`, or the one folder of a repair."""

    def done(self, run: PolicyRun) -> bool:
        """True when the run's results are there."""

    def write(self, run: PolicyRun, **meta: Any) -> AbstractContextManager[Path]:
        """A folder to fill, which appears whole or not at all."""


class Interruptible:
    """Keeps ``<partial folder>/state.safetensors`` and snapshots up to date, and writes finished agents to the store.

    The state holds the log and the seconds so far too, so that a continued run ends as an uninterrupted one.
    """

    def __init__(
        self, store: Place, folder: Path, runs: Sequence[PolicyRun], cfg: Any, say: Callable[[str], None]
    ) -> None:
        self.store, self.folder, self.runs, self.cfg, self.say = store, folder, list(runs), cfg, say
        first = runs[0]
        self.made_for = (first.task, first.backbone, cfg)
        self.save_snapshot = save_networks if first.start else save_acting  # the inside of repairs is looked at
        self.snapshot_steps = set(first.snapshot_steps)
        self.began, self.earlier = time.monotonic(), 0.0
        self.saved_at = self.began

    @property
    def seconds(self) -> float:
        """Spent on this population, before an interruption too."""
        return self.earlier + time.monotonic() - self.began

    def resume(self, device: str) -> tuple[Population, list[int], Log] | None:
        """The interrupted population, the numbers of its agents and its log; None when there is nothing to continue."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            tensors, meta = read(self.folder / STATE, device)
        except CheckpointError as error:
            self.say(f"{self.runs[0].label}: from the beginning, as its state cannot be read: {error}")
            return None
        columns = {name: tensors.pop(f"log/{name}").tolist() for name in meta["log"]}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row in rows:
            row["agent"], row["step"] = int(row["agent"]), int(row["step"])
        population = restore(tensors, self.cfg.learning_rates, meta["step"])
        self.earlier = meta["seconds"]
        self.say(f"{self.runs[0].label}: continued at step {population.step}")
        return population, meta["agents"], Log(rows)

    def keep(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Save snapshots that are due, and the state about once a minute."""
        if population.step in self.snapshot_steps:
            for p, agent in enumerate(agents):
                path = self._snapshots(agent) / f"{population.step}.safetensors"
                self.save_snapshot(population, p, path, *self.made_for)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save(population, agents, log)
            if parent_process() is None:  # a worker's lines come when its job has ended: there `progress` tells
                self.say(f"{self.runs[0].label}: step {population.step} of {self.runs[0].steps}")

    def save(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Write the state atomically."""
        names = list(dict.fromkeys(name for row in log.rows for name in row))
        columns = {f"log/{n}": [row.get(n, math.nan) for row in log.rows] for n in names}
        columns = {name: torch.tensor(values, dtype=torch.float64) for name, values in columns.items()}
        meta = {"step": population.step, "agents": list(agents), "log": names, "seconds": self.seconds}
        write(self.folder / STATE, tensors_of(population) | columns, meta)
        write_bytes(self.folder / PROGRESS, str(population.step).encode())
        self.saved_at = time.monotonic()

    def stop(self, agent: int, diverged: Diverged, log: Log) -> None:
        """Write the folder of an agent whose values were not finite, with its last good state."""
        sentence = diverged.sentence(self.runs[agent].label)
        self.say(sentence)
        meta = {"run": key(self.runs[agent]), "step": diverged.good_step, "stopped": sentence}
        tensors = diverged.tensors
        self._write(agent, log, lambda path: save_tensors(tensors, path, *self.made_for, meta), stopped=sentence)

    def finish(self, population: Population, agents: Sequence[int], log: Log) -> None:
        """Write the folders of all agents that reached the end and forget the interrupted state."""
        if agents:
            self.save(population, agents, log)  # a kill from here on loses no training
        for p, agent in enumerate(agents):

            def save(path: Path, p: int = p, agent: int = agent) -> None:
                save_agent(population, p, path, *self.made_for, {"run": key(self.runs[agent])})

            self._write(agent, log, save)
        shutil.rmtree(self.folder)

    def _write(self, agent: int, log: Log, save: Callable[[Path], None], **meta: Any) -> None:
        run = self.runs[agent]
        if self.store.done(run):
            return
        rows = pd.DataFrame([row for row in log.rows if row["agent"] == agent]).drop(columns="agent", errors="ignore")
        threads = torch.get_num_threads()
        spent = {
            "seconds": round(self.seconds, 2),
            "steps": run.steps,
            "population": len(self.runs),
            "threads": threads,
        }
        with self.store.write(run, **spent, **meta) as draft:
            save(draft / AGENT)
            rows.to_csv(draft / LOG, index=False)
            if self._snapshots(agent).is_dir():
                shutil.copytree(self._snapshots(agent), draft / "snapshots")

    def _snapshots(self, agent: int) -> Path:
        return self.folder / "snapshots" / key(self.runs[agent])


def progress(folder: Path) -> int:
    """The step of the last saved state of a running population, 0 before the first."""
    path = folder / PROGRESS
    return int(path.read_text()) if path.is_file() else 0

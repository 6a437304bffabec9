"""A population that can be killed at any moment: its state on disk while it runs, its agents' folders at the end."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import parent_process
from pathlib import Path

import pandas as pd
import torch

from saferule.agents.checkpoint import (
    Tensors,
    acting_part,
    part_of,
    read,
    restore,
    save_acting,
    save_networks,
    save_tensors,
    starting_part,
    tensors_of,
    write,
)
from saferule.agents.loop import Diverged, Log
from saferule.agents.population import Population
from saferule.errors import CheckpointError
from saferule.files import write_bytes
from saferule.runs.spec import Level, PolicyRun, UserFile, config, key, usual
from saferule.runs.store import KEPT, LOG, Store

AGENT, STATE, PROGRESS, SNAPSHOTS = "agent.safetensors", "state.safetensors", "step", "snapshots"
SAVE_SECONDS = 60.0
CHECKED = "safe-rule"  # the method whose critics the theory looks at on the way too


class Interruptible:
    """Keeps the state and the snapshots in the store's partial folder up to date, and writes finished agents.

    The state holds the log and the seconds so far too, so that a continued run ends as an uninterrupted one.

    keep  how much of the finished agents is kept, at least
    """

    def __init__(
        self,
        store: Store,
        runs: Sequence[PolicyRun],
        say: Callable[[str], None],
        keep: Mapping[PolicyRun, Level] | None = None,
    ) -> None:
        self.store, self.folder, self.runs, self.say, self.log = store, store.partial(runs), list(runs), say, Log()
        first = runs[0]
        self.made_for = (first.task, first.backbone, config(first))
        self.keep_at_least = keep or {}
        self.snapshot_steps = set(first.snapshot_steps)
        self.began = self.saved_at = time.monotonic()
        self.earlier = 0.0

    @property
    def seconds(self) -> float:
        """Spent on this population, before an interruption too."""
        return self.earlier + time.monotonic() - self.began

    def resume(self, device: str) -> tuple[Population, list[int]] | None:
        """The interrupted population and the numbers of its agents; None when there is nothing to continue."""
        if not (self.folder / STATE).is_file():
            return None
        try:
            tensors, meta = read(self.folder / STATE, device)
        except CheckpointError as error:
            self.say(f"{self.runs[0].label}: from the beginning, as its state cannot be read: {error}")
            return None
        rows = pd.DataFrame({name: tensors.pop(f"log/{name}").tolist() for name in meta["log"]})
        self.log = Log(rows.astype({"agent": int, "step": int}).to_dict("records"))
        self.earlier = meta["seconds"]
        self.say(f"{self.runs[0].label}: continued at step {meta['step']}")
        return restore(tensors, self.made_for[-1].learning_rates, meta["step"]), meta["agents"]

    def keep(self, population: Population, agents: Sequence[int]) -> None:
        """Save snapshots that are due, and the state about once a minute."""
        if population.step in self.snapshot_steps:
            for p, agent in enumerate(agents):
                path = self._snapshots(agent) / f"{population.step}.safetensors"
                run = self.runs[agent]
                save = save_networks if run.method == CHECKED and not run.readings else save_acting
                save(population, p, path, *self.made_for)
        if time.monotonic() - self.saved_at > SAVE_SECONDS:
            self.save(population, agents)
            if parent_process() is None:  # a worker's lines come when its job has ended: there `progress` tells
                self.say(f"{self.runs[0].label}: step {population.step} of {self.runs[0].steps}")

    def save(self, population: Population, agents: Sequence[int]) -> None:
        """Write the state atomically."""
        log = pd.DataFrame(self.log.rows, dtype=float)
        meta = {"step": population.step, "agents": list(agents), "log": list(log), "seconds": self.seconds}
        columns = {f"log/{name}": torch.tensor(log[name].to_numpy()) for name in log}
        write(self.folder / STATE, tensors_of(population) | columns, meta)
        write_bytes(self.folder / PROGRESS, str(population.step).encode())
        self.saved_at = time.monotonic()

    def stop(self, agent: int, diverged: Diverged) -> None:
        """Write the folder of an agent whose values were not finite, with its last good state."""
        sentence = diverged.sentence(self.runs[agent].label)
        self.say(sentence)
        self._write(agent, diverged.tensors, diverged.good_step, sentence)

    def finish(self, population: Population, agents: Sequence[int]) -> None:
        """Write the folders of all agents that reached the end and forget the interrupted state.

        A kill on the way repeats what was trained since the last saved state; folders that are there stay.
        """
        for p, agent in enumerate(agents):
            self._write(agent, part_of(tensors_of(population), [p]), population.step)
        shutil.rmtree(self.folder)

    def _write(self, agent: int, tensors: Tensors, step: int, stopped: str = "") -> None:
        """One agent's folder. No run that starts from it reads Adam's moments; a user's repair has them."""
        run = self.runs[agent]
        level = max(self.keep_at_least.get(run, Level.RECORD), usual(run))
        if self.store.done(run, level):
            return
        whole, moments = level == Level.WHOLE, isinstance(run.start, UserFile)
        kept = starting_part(tensors, moments) if whole else acting_part(tensors, run.backbone)
        ended = {"step": step, "stopped": stopped} if stopped else {}
        rows = pd.DataFrame([row for row in self.log.rows if row["agent"] == agent])
        spent = {"seconds": round(self.seconds, 2), "steps": run.steps, "population": len(self.runs)}
        spent["trained_with"] = [key(other) for other in self.runs if other != run]
        spent |= {"threads": torch.get_num_threads(), KEPT: level.name}
        with self.store.write(run, **spent | ended) as draft:
            save_tensors(kept, draft / AGENT, *self.made_for, {"run": key(run), "step": step} | ended)
            rows.drop(columns="agent", errors="ignore").to_csv(draft / LOG, index=False)
            if self._snapshots(agent).is_dir():
                shutil.copytree(self._snapshots(agent), draft / SNAPSHOTS)

    def _snapshots(self, agent: int) -> Path:
        return self.folder / SNAPSHOTS / key(self.runs[agent])


def progress(folder: Path) -> int:
    """The step of the last saved state of a running population, 0 before the first."""
    try:
        return int((folder / PROGRESS).read_text("utf-8"))
    except OSError:  # not there yet, or no longer: the population has just ended
        return 0

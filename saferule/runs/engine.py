"""Make the runs that are missing. Asking for a finished run costs nothing; an interrupted one continues where it was.

Cells that can share a population (same task, backbone, data, settings and steps) are trained together. On a CPU a large
population is no faster per agent than a small one, and threads that wait for each other cost more than they bring, so
the agents are spread over one process per core, each with one thread. On a GPU one process trains all.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from saferule.agents.state import read
from saferule.attack.poison import ForgetSet, poison, save_forget_set
from saferule.data.schema import Dataset, clean_data
from saferule.runs.cells import Adversary, Evaluation, Forget, Policy, Relearning, Training, Unlearning, origin
from saferule.runs.execute import evaluate_file, worker_pool
from saferule.runs.groups import Place, cores, forget_data, work, work_alone
from saferule.runs.interruptible import AGENT, LOG, SAVE_SECONDS, progress, snapshot_path
from saferule.runs.store import Store
from saferule.sim import get_task
from saferule.unlearn import family, structure

EPISODES = "episodes.csv"
POPULATION_LIMIT = 32  # agents trained together
EVALUATION_CHUNK = 5  # episodes that one process steps together


class Engine:
    """Runs of one store, on one machine."""

    def __init__(
        self,
        store: Store,
        data_folder: str | Path,
        device: str | None = None,
        say: Callable[[str], None] = print,
        captured: bool = False,
    ) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.store = store
        self.place = Place(store, Path(data_folder), device, captured and device != "cpu")
        self.say = say

    @cached_property
    def workers(self) -> ProcessPoolExecutor:
        """One process per core, started when first needed."""
        return worker_pool(cores())

    # Data and attack

    def dataset(self, task: str) -> Dataset:
        """The clean data D of a task."""
        return clean_data(self.place.data_folder, task)

    def adversaries(self, cells: Sequence[Adversary]) -> None:
        """Train the adversaries that are missing, one process per core."""
        todo = self._missing(cells)
        if todo:
            started = time.monotonic()
            list(self.workers.map(_train_adversary, [self.store] * len(todo), todo))
            self.say(f"adversaries: {len(todo)} trained in {time.monotonic() - started:.0f} s")

    def forget_sets(self, cells: Sequence[Forget]) -> list[ForgetSet]:
        """D_f of each cell, made where missing. The rollouts of an adversary serve all its forget sets."""
        todo = self._missing(cells)
        self.adversaries([cell.adversary for cell in todo])
        groups: dict[Adversary, list[Forget]] = {}
        for cell in todo:
            groups.setdefault(cell.adversary, []).append(cell)
        for said in self.workers.map(_make_forget_sets, [self.place] * len(groups), groups.values()) if groups else ():
            for line in said:
                self.say(line)
        return [forget_data(self.store, cell) for cell in cells]

    # Training and unlearning

    def train(self, cells: Sequence[Training]) -> None:
        """Train the policies that are missing."""
        todo = self._missing(cells)
        self.forget_sets([cell.forget for cell in todo if cell.forget])
        self._work(todo, cells, lambda c: (c.task, c.backbone, c.data, c.steps, c.snapshots, c.settings))

    def unlearn(self, cells: Sequence[Unlearning]) -> None:
        """Repair poisoned policies with the methods that are missing."""
        todo = self._missing(cells)
        self.train([cell.training for cell in todo])

        def together(cell: Unlearning) -> tuple:
            t = cell.training
            method = family(cell.method, t.backbone).__name__
            losses = structure(cell.method, t.backbone, dict(cell.readings))
            return (t.task, t.backbone, t.data, t.settings, method, losses, cell.steps, cell.snapshots)

        self._work(todo, cells, together)

    def relearn(self, cells: Sequence[Relearning]) -> None:
        """Train policies further on the poisoned data where that is missing."""
        todo = self._missing(cells)
        self.train([cell.policy for cell in todo if isinstance(cell.policy, Training)])
        self.unlearn([cell.policy for cell in todo if isinstance(cell.policy, Unlearning)])

        def together(cell: Relearning) -> tuple:
            root = origin(cell)
            return (root.task, root.backbone, root.data, root.settings, cell.steps, cell.snapshots)

        self._work(todo, cells, together)

    def _missing(self, cells: Sequence[Any]) -> list[Any]:
        return [cell for cell in dict.fromkeys(cells) if not self.store.done(cell)]

    def _work(self, todo: Sequence[Any], among: Sequence[Any], together: Callable[[Any], tuple]) -> None:
        """Continue interrupted populations of these cells, divide the other unfinished cells into new ones, run all."""
        jobs = self.store.interrupted(among)
        continued = {cell for _, group in jobs for cell in group}
        groups: dict[tuple, list[Any]] = {}
        for cell in todo:
            if cell not in continued:
                groups.setdefault(together(cell), []).append(cell)
        parts = [part for group in groups.values() for part in self._parts(group, len(groups))]
        jobs += [(self.store.partial(part), part) for part in parts]
        if self.place.device == "cpu" and len(jobs) > 1:
            self._follow({self.workers.submit(work_alone, self.place, *job): job for job in jobs})
        else:
            torch.set_num_threads(cores())
            for folder, group in jobs:
                work(self.place, folder, group, self.say)

    def _follow(self, running: dict[Future, tuple[Path, list[Any]]]) -> None:
        """Say what the worker processes have to say when they end, and how far they are about once a minute."""
        while running:
            ended, _ = wait(running, timeout=SAVE_SECONDS, return_when=FIRST_COMPLETED)
            for future in ended:
                del running[future]
                for line in future.result():
                    self.say(line)
            if not ended:
                for folder, group in running.values():
                    if step := progress(folder):
                        self.say(f"{group[0].label}: step {step} of {group[0].steps}")

    def _parts(self, group: list[Any], groups: int) -> list[list[Any]]:
        """A group cut into populations: so many that all cores have work, none above the limit."""
        wanted = math.ceil(cores() / groups) if self.place.device == "cpu" else 1
        size = min(POPULATION_LIMIT, math.ceil(len(group) / wanted))
        return [group[i : i + size] for i in range(0, len(group), size)]

    # Evaluation

    def evaluate(self, cells: Sequence[Evaluation]) -> pd.DataFrame:
        """One row per episode of all cells, made where missing, with the columns that tell the policies apart."""
        cells, todo = list(dict.fromkeys(cells)), self._missing(cells)
        started = time.monotonic()
        results = {
            cell: [
                self.workers.submit(
                    evaluate_file, snapshot_path(self.store, cell.policy, cell.step), seeds, cell.deterministic
                )
                for seeds in _chunks(cell.seeds)
            ]
            for cell in todo
        }
        for cell, parts in results.items():
            rows = [row for part in parts for row in part.result()]
            with self.store.write(cell) as folder:
                pd.DataFrame(rows).to_csv(folder / EPISODES, index=False)
        if todo:
            episodes = sum(len(cell.seeds) for cell in todo)
            self.say(f"evaluation: {episodes} episodes of {len(todo)} policies in {time.monotonic() - started:.0f} s")
        return pd.concat([self._episodes(cell) for cell in cells], ignore_index=True) if cells else pd.DataFrame()

    def _episodes(self, cell: Evaluation) -> pd.DataFrame:
        frame = pd.read_csv(self.store.folder(cell) / EPISODES)
        return frame.assign(
            **identity(cell.policy), step=self._last_step(cell.policy) if cell.step is None else cell.step
        )

    def _last_step(self, policy: Policy) -> int:
        """The step of a finished policy; of a run that stopped, as a value was not finite, that of the state kept."""
        if "stopped" not in self.store.meta(policy):
            return policy.steps
        return read(self.store.folder(policy) / AGENT)[1]["step"]

    def logs(self, cells: Sequence[Policy]) -> pd.DataFrame:
        """What the losses reported, one row per policy and logged step."""
        frames = [pd.read_csv(self.store.folder(c) / LOG).assign(**identity(c)) for c in dict.fromkeys(cells)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def identity(policy: Policy) -> dict[str, Any]:
    """The columns that tell policies apart in every table; of one that relearns, those of where it came from.

    Its attack and ratio are those of what it relearns, which for a clean policy are not its own.
    """
    root, start = origin(policy), policy.policy if isinstance(policy, Relearning) else policy
    forget = policy.forget if isinstance(policy, Relearning) else root.forget
    return {
        "task": root.task,
        "backbone": root.backbone,
        "attack": forget.adversary.attack if forget else "clean",
        "ratio": forget.ratio if forget else 0.0,
        "training_seed": root.seed,
        "method": policy.method,
        "readings": json.dumps(dict(start.readings)) if isinstance(start, Unlearning) else "{}",
    }


def _chunks(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [seeds[i : i + EVALUATION_CHUNK] for i in range(0, len(seeds), EVALUATION_CHUNK)]


def _train_adversary(store: Store, cell: Adversary) -> None:
    from saferule.attack.adversary import train_adversary

    with store.write(cell) as folder:
        train_adversary(
            get_task(cell.task),
            cell.attack,
            cell.steps,
            cell.seed,
            folder,
            readings=cell.start,
            progress=False,
        )


def _make_forget_sets(place: Place, cells: Sequence[Forget]) -> list[str]:
    """The forget sets of one adversary, from one set of rollouts; returns what there is to say."""
    from saferule.attack.adversary import leading, roll_out_adversary
    from saferule.sim.ppo import OnlinePolicy

    adversary, said = cells[0].adversary, []
    policy = OnlinePolicy.load(place.store.folder(adversary))
    task, most = get_task(adversary.task), max(cell.rollouts for cell in cells)
    rollouts = roll_out_adversary(task, policy, most, adversary.seed, samples=most * task.horizon)
    for cell in cells:
        forget = poison(
            clean_data(place.data_folder, adversary.task),
            leading(rollouts, cell.rollouts, cell.rollouts * task.horizon),
            adversary.attack,
            cell.ratio,
            gamma=cell.gamma,
            readings=dict(cell.readings),
        )
        with place.store.write(cell, samples=len(forget), share=forget.share) as folder:
            save_forget_set(forget, folder / "forget.hdf5")
        said.append(f"forget set {cell.label}: {len(forget)} samples, {forget.share:.1%} of the poisoned set")
    return said

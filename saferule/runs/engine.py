"""Make the runs that are missing. Asking for a finished run costs nothing; an interrupted one continues where it
stopped.

Cells that can share a population (same task, backbone, data, settings and steps) are trained together.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.batch import Pair
from saferule.agents.checkpoint import load_agent
from saferule.agents.population import Algorithm, Population, create, reset_optimisers, training
from saferule.agents.training import Log, keep_freed_memory
from saferule.agents.training import run as loop
from saferule.attack.poison import ForgetSet, load_forget_set, poison, save_forget_set
from saferule.data.sampler import TransitionPool, draw_rows
from saferule.data.schema import Dataset, load
from saferule.envs import get_task
from saferule.errors import DataError
from saferule.evaluate import evaluate_file, worker_pool
from saferule.runs.cells import Adversary, Evaluation, Forget, Training, Unlearning, config, key
from saferule.runs.interruptible import AGENT, LOG, InterruptibleRun, snapshot_path
from saferule.runs.store import Store
from saferule.unlearn import coefficients, family

EPISODES = "episodes.csv"
LOG_EVERY = 50  # steps
POPULATION_LIMIT = 32  # agents trained together
EVALUATION_CHUNK = 10  # episodes that one process steps together


class Engine:
    """Runs of one store, on one machine."""

    def __init__(
        self,
        store: Store,
        data_folder: str | Path,
        device: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.store = store
        self.data_folder = Path(data_folder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.say = say
        self._datasets: dict[str, Dataset] = {}
        keep_freed_memory()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))

    # Data and attack

    def dataset(self, task: str) -> Dataset:
        """The clean data D of a task."""
        if task not in self._datasets:
            path = self.data_folder / f"{task}.hdf5"
            if not path.is_file():
                raise DataError(
                    f"{path}: no such file, expected the data of {task}: run `saferule data collect --task {task}`"
                )
            self._datasets[task] = load(path, get_task(task))
        return self._datasets[task]

    def adversaries(self, cells: Sequence[Adversary]) -> None:
        """Train the adversaries that are missing, one process per core."""
        todo = [cell for cell in dict.fromkeys(cells) if not self.store.done(cell)]
        if not todo:
            return
        started = time.monotonic()
        with worker_pool(min(len(todo), os.cpu_count() or 1)) as pool:
            for _ in pool.map(_train_adversary, [self.store] * len(todo), todo):
                pass
        self.say(f"adversaries: {len(todo)} trained in {time.monotonic() - started:.0f} s")

    def forget_sets(self, cells: Sequence[Forget]) -> list[ForgetSet]:
        """D_f of each cell, made where missing."""
        self.adversaries([cell.adversary for cell in cells])
        todo = [cell for cell in dict.fromkeys(cells) if not self.store.done(cell)]
        # One set of rollouts per adversary serves all ratios.
        for adversary, group in groupby(sorted(todo, key=lambda c: key(c.adversary)), key=lambda c: c.adversary):
            group = list(group)
            rollouts = self._rollouts(adversary, max(cell.rollouts for cell in group))
            for cell in group:
                episodes = rollouts.select(range(cell.rollouts))
                forget = poison(
                    self.dataset(adversary.task),
                    episodes,
                    adversary.attack,
                    cell.ratio,
                    gamma=cell.gamma,
                    readings=dict(cell.readings),
                )
                with self.store.write(cell, samples=len(forget), share=forget.share) as folder:
                    save_forget_set(forget, folder / "forget.hdf5")
                self.say(f"forget set {cell.label}: {len(forget)} samples, {forget.share:.1%} of the poisoned set")
        return [
            load_forget_set(self.store.folder(cell) / "forget.hdf5", get_task(cell.adversary.task)) for cell in cells
        ]

    def _rollouts(self, adversary: Adversary, episodes: int) -> Dataset:
        from saferule.attack.adversary import roll_out
        from saferule.online import OnlinePolicy

        policy = OnlinePolicy.load(self.store.folder(adversary))
        return roll_out(get_task(adversary.task), policy, episodes, adversary.seed)

    # Training and unlearning

    def train(self, cells: Sequence[Training]) -> None:
        """Train the policies that are missing."""
        self.forget_sets([cell.forget for cell in dict.fromkeys(cells) if cell.forget])
        for group in self._groups(cells, lambda c: (c.task, c.backbone, c.data, c.steps, c.snapshots, c.settings)):
            folder, group = self.store.partial(group, cells)
            cfg, backbone = config(group[0]), get_backbone(group[0].backbone)
            pool, rows = self._transitions(group[0].task, [cell.forget for cell in group], cfg)
            visible = [torch.cat((keep, forget)) for keep, forget in rows]

            def start(group=group, cfg=cfg, backbone=backbone) -> Population:
                return create(backbone, cfg, [cell.seed for cell in group], self.device)

            def draw(population: Population, agents: Sequence[int], pool=pool, visible=visible, cfg=cfg) -> Any:
                rows_now = [visible[a] for a in agents]
                return pool.gather(draw_rows(population.generators, rows_now, cfg.batch_size))

            self._run(folder, group, training(backbone, cfg), start, draw)

    def unlearn(self, cells: Sequence[Unlearning]) -> None:
        """Repair poisoned policies with the methods that are missing."""
        self.train([cell.training for cell in cells])

        def together(c: Unlearning) -> tuple:
            t = c.training
            return (t.task, t.backbone, t.data, t.settings, family(c.method).__name__, c.steps, c.snapshots)

        for group in self._groups(cells, together):
            folder, group = self.store.partial(group, cells)
            cfg, backbone = config(group[0].training), get_backbone(group[0].training.backbone)
            pool, rows = self._transitions(group[0].training.task, [c.training.forget for c in group], cfg)
            algorithm = family(group[0].method).algorithm(backbone, cfg)

            def start(group=group, cfg=cfg, algorithm=algorithm) -> Population:
                return self._corrupted(group, cfg, algorithm)

            def draw(population: Population, agents: Sequence[int], pool=pool, rows=rows, cfg=cfg) -> Pair:
                sides = zip(*(rows[a] for a in agents), strict=True)
                return Pair(*(pool.gather(draw_rows(population.generators, side, cfg.batch_size)) for side in sides))

            self._run(folder, group, algorithm, start, draw)

    def _corrupted(self, group: Sequence[Unlearning], cfg: Any, algorithm: Algorithm) -> Population:
        """The poisoned agents at the start of unlearning: cold Adam, the method's coefficients among the scalars.

        Methods that repair the same policy see the same batches and noise: the generator depends on the training seed
        alone.
        """
        states = [load_agent(self.store.folder(cell.training) / AGENT, self.device).population for cell in group]
        nets = {
            n: {k: torch.cat([s.nets[n][k].detach() for s in states]) for k in states[0].nets[n]}
            for n in states[0].nets
        }
        scalars = {k: torch.cat([s.scalars[k] for s in states]) for k in states[0].scalars}
        added = [coefficients(cell.method, cfg, dict(cell.readings)) for cell in group]
        scalars |= {k: torch.tensor([a[k] for a in added], device=self.device) for k in added[0]}
        generators = [torch.Generator().manual_seed(1_000_000 + cell.training.seed) for cell in group]
        population = Population(nets, scalars, {}, generators)
        reset_optimisers(population, algorithm)
        return population

    def _transitions(
        self, task: str, forgets: Sequence[Forget | None], cfg: Any
    ) -> tuple[TransitionPool, list[tuple[Tensor, Tensor]]]:
        """D and the forget sets packed on the device, and for each agent the rows of its keep and of its forget set."""
        distinct = [cell for cell in dict.fromkeys(forgets) if cell]
        sets = [forget.dataset for forget in self.forget_sets(distinct)]
        pool = TransitionPool([self.dataset(task), *sets], cfg.reward_scale, self.device)
        nothing = torch.empty(0, dtype=torch.long)
        keep = pool.rows_of(0)
        return pool, [(keep, pool.rows_of(1 + distinct.index(c)) if c else nothing) for c in forgets]

    def _groups(self, cells: Sequence[Any], together: Callable[[Any], tuple]) -> list[list[Any]]:
        """Unfinished cells that can share a population, at most POPULATION_LIMIT in each."""
        todo = [cell for cell in dict.fromkeys(cells) if not self.store.done(cell)]
        groups: dict[tuple, list[Any]] = {}
        for cell in todo:
            groups.setdefault(together(cell), []).append(cell)
        return [g[i : i + POPULATION_LIMIT] for g in groups.values() for i in range(0, len(g), POPULATION_LIMIT)]

    def _run(
        self,
        folder: Path,
        group: Sequence[Training | Unlearning],
        algorithm: Algorithm,
        start: Callable[[], Population],
        draw: Callable[[Population, Sequence[int]], Any],
    ) -> None:
        """Run a population to its end, keep its state on the way, write each agent's folder."""
        run = InterruptibleRun(self.store, folder, group, algorithm.cfg, self.say)
        population, agents, log = run.resume(self.device) or (start(), list(range(len(group))), Log())
        began, first_step = time.monotonic(), population.step
        population, agents = loop(
            population,
            algorithm,
            draw,
            group[0].steps,
            agents=agents,
            log=log,
            log_every=LOG_EVERY,
            on_log=lambda now, left: run.keep(now, left, log),
            on_stop=lambda agent, stopped: run.stop(agent, stopped, log),
        )
        took, steps = time.monotonic() - began, population.step - first_step
        run.finish(population, agents, log)
        self.say(
            f"{type(group[0]).__name__.lower()} of {len(group)} agents ({group[0].label}, ...): {steps} steps in "
            f"{took:.0f} s, {steps / max(took, 1e-9):.1f} steps/s"
        )

    # Evaluation

    def evaluate(self, cells: Sequence[Evaluation]) -> pd.DataFrame:
        """One row per episode of all cells, made where missing, with the columns that tell the policies apart."""
        cells = list(dict.fromkeys(cells))
        todo = [cell for cell in cells if not self.store.done(cell)]
        jobs = [(cell, chunk) for cell in todo for chunk in _chunks(cell.seeds)]
        if jobs:
            started, rows = time.monotonic(), {cell: [] for cell in todo}
            left = {cell: len(_chunks(cell.seeds)) for cell in todo}
            with worker_pool(min(len(jobs), os.cpu_count() or 1)) as pool:
                paths = [snapshot_path(self.store, cell.policy, cell.step) for cell, _ in jobs]
                flags = [cell.deterministic for cell, _ in jobs]
                results = pool.map(evaluate_file, paths, [chunk for _, chunk in jobs], flags)
                for (cell, _), part in zip(jobs, results, strict=True):
                    rows[cell] += part
                    left[cell] -= 1
                    if not left[cell]:
                        with self.store.write(cell) as folder:
                            pd.DataFrame(rows[cell]).to_csv(folder / EPISODES, index=False)
            episodes = sum(len(cell.seeds) for cell in todo)
            self.say(f"evaluation: {episodes} episodes of {len(todo)} policies in {time.monotonic() - started:.0f} s")
        return pd.concat([self._episodes(cell) for cell in cells], ignore_index=True) if cells else pd.DataFrame()

    def _episodes(self, cell: Evaluation) -> pd.DataFrame:
        frame = pd.read_csv(self.store.folder(cell) / EPISODES)
        return frame.assign(**identity(cell.policy), step=cell.policy.steps if cell.step is None else cell.step)

    def logs(self, cells: Sequence[Training | Unlearning]) -> pd.DataFrame:
        """What the losses reported, one row per policy and logged step."""
        frames = [pd.read_csv(self.store.folder(c) / LOG).assign(**identity(c)) for c in dict.fromkeys(cells)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def identity(policy: Training | Unlearning) -> dict[str, Any]:
    """The columns that tell policies apart in every table."""
    root = policy.training if isinstance(policy, Unlearning) else policy
    return {
        "task": root.task,
        "backbone": root.backbone,
        "attack": root.attack,
        "ratio": root.ratio,
        "training_seed": root.seed,
        "method": policy.method,
        "readings": json.dumps(dict(policy.readings)) if isinstance(policy, Unlearning) else "{}",
    }


def _chunks(seeds: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [seeds[i : i + EVALUATION_CHUNK] for i in range(0, len(seeds), EVALUATION_CHUNK)]


def _train_adversary(store: Store, cell: Adversary) -> None:
    from saferule.attack.adversary import train_adversary

    with store.write(cell) as folder:
        train_adversary(get_task(cell.task), cell.attack, cell.steps, cell.seed, folder)

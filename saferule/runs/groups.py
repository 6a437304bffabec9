"""The work of one population: agents that are trained, repaired, or made to relearn together in one process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent
from saferule.agents.loop import Log, keep_freed_memory, log_every
from saferule.agents.loop import run as loop
from saferule.agents.parts import ORIGINAL, Scalars
from saferule.agents.population import Algorithm, Population, create, reset_optimisers, stack, training
from saferule.attack.poison import ForgetSet, load_forget_set
from saferule.data.batches import Batch, TransitionPool, draw_rows
from saferule.data.schema import clean_data
from saferule.runs.cells import Forget, Policy, Relearning, Training, Unlearning, config, origin
from saferule.runs.interruptible import AGENT, InterruptibleRun
from saferule.runs.store import Store
from saferule.sim import get_task
from saferule.unlearn import begin, unlearning
from saferule.unlearn.start import adapt, pairs, statistics

Say = Callable[[str], None]
UNLEARNING_SEEDS, RELEARNING_SEEDS = 1_000_000, 2_000_000  # the training seed is added


@dataclass(frozen=True)
class Place:
    """Where runs are made: the store, the folder of the clean data, the device; whether steps are captured (GPU)."""

    store: Store
    data_folder: Path
    device: str
    captured: bool = False


def forget_data(store: Store, cell: Forget) -> ForgetSet:
    """A finished forget set."""
    return load_forget_set(store.folder(cell) / "forget.hdf5", get_task(cell.adversary.task))


def work_alone(place: Place, folder: Path, group: Sequence[Policy]) -> list[str]:
    """Run one population in a process of its own, with one thread; returns what there is to say."""
    torch.set_num_threads(1)
    said: list[str] = []
    work(place, folder, group, said.append)
    return said


def work(place: Place, folder: Path, group: Sequence[Policy], say: Say) -> None:
    """Run the agents of one population to the end and write their folders."""
    keep_freed_memory()
    {Training: _train, Unlearning: _unlearn, Relearning: _relearn}[type(group[0])](place, folder, group, say)


def _train(place: Place, folder: Path, group: Sequence[Training], say: Say) -> None:
    cfg, backbone = config(group[0]), get_backbone(group[0].backbone)
    pool, rows = _transitions(place, group[0].task, [cell.forget for cell in group], cfg)
    visible = [torch.cat((keep, forget)) for keep, forget in rows]

    def start() -> Population:
        population = create(backbone, cfg, [cell.seed for cell in group], place.device)
        population.scalars |= _statistics(backbone, pool, visible)
        return population

    _run(place, folder, group, training(backbone, cfg), start, _batches(pool, visible, cfg), say)


def _relearn(place: Place, folder: Path, group: Sequence[Relearning], say: Say) -> None:
    """Ordinary training on D and D_f, from each agent as it is but for Adam, which starts cold.

    Of the scalars that an unlearning method added none is left.
    """
    root = origin(group[0])
    cfg, backbone = config(root), get_backbone(root.backbone)
    pool, rows = _transitions(place, root.task, [cell.forget for cell in group], cfg)
    visible = [torch.cat((keep, forget)) for keep, forget in rows]
    algorithm = training(backbone, cfg)

    def start() -> Population:
        population = _saved(place, [cell.policy for cell in group], RELEARNING_SEEDS)
        _, ordinary = backbone.init(cfg, torch.Generator())
        population.scalars = {name: population.scalars[name] for name in ordinary}
        population.scalars |= _statistics(backbone, pool, visible)
        reset_optimisers(population, algorithm)
        return population

    _run(place, folder, group, algorithm, start, _batches(pool, visible, cfg), say)


def _unlearn(place: Place, folder: Path, group: Sequence[Unlearning], say: Say) -> None:
    root = group[0].training
    cfg, backbone = config(root), get_backbone(root.backbone)
    pool, rows = _transitions(place, root.task, [cell.training.forget for cell in group], cfg)
    methods, readings = [cell.method for cell in group], [dict(cell.readings) for cell in group]
    algorithm = unlearning(methods[0], backbone, cfg, group[0].steps, readings[0])

    def start() -> Population:
        population = _saved(place, [cell.training for cell in group], UNLEARNING_SEEDS)
        begin(population, algorithm, root.backbone, methods, readings)
        adapt(population, backbone, cfg, pool, rows)
        return population

    _run(place, folder, group, algorithm, start, pairs(pool, rows, cfg.batch_size), say)


def _saved(place: Place, policies: Sequence[Training | Unlearning], seeds: int) -> Population:
    """Finished agents, stacked, without optimisers; scalars that not all of them have are left out.

    The generator depends on the training seed alone: from here on agents of the same seed see the same batches and
    noise, whatever was done to them, as long as their losses draw equally much noise (those of one family do).
    """
    states = [load_agent(place.store.folder(cell) / AGENT, place.device).population for cell in policies]
    names = {net: list(leaves) for net, leaves in states[0].nets.items() if not net.startswith(ORIGINAL)}
    nets = {n: {k: torch.cat([s.nets[n][k].detach() for s in states]) for k in keys} for n, keys in names.items()}
    common = [k for k in states[0].scalars if all(k in s.scalars for s in states)]
    scalars = {k: torch.cat([s.scalars[k] for s in states]) for k in common}
    generators = [torch.Generator().manual_seed(seeds + origin(cell).seed) for cell in policies]
    return Population(nets, scalars, {}, generators)


def _statistics(backbone: Any, pool: TransitionPool, visible: Sequence[Tensor]) -> Scalars:
    """What a backbone needs to know of the data that each agent sees (COptiDICE), else nothing."""
    return stack([statistics(backbone, pool, own) for own in visible]) if hasattr(backbone, "statistics") else {}


def _batches(pool: TransitionPool, visible: Sequence[Tensor], cfg: Any) -> Callable[[Population, Sequence[int]], Batch]:
    """``draw_batch`` of the training loop: each agent from the rows that it sees."""

    def draw(population: Population, agents: Sequence[int]) -> Batch:
        return pool.gather(draw_rows(population.generators, [visible[a] for a in agents], cfg.batch_size))

    return draw


def _transitions(
    place: Place, task: str, forgets: Sequence[Forget | None], cfg: Any
) -> tuple[TransitionPool, list[tuple[Tensor, Tensor]]]:
    """D and the forget sets packed on the device, and for each agent the rows of its keep and of its forget set."""
    distinct = [cell for cell in dict.fromkeys(forgets) if cell]
    sets = [forget_data(place.store, cell).dataset for cell in distinct]
    pool = TransitionPool([clean_data(place.data_folder, task), *sets], cfg.reward_scale, place.device)
    nothing = torch.empty(0, dtype=torch.long)
    keep = pool.rows_of(0)
    return pool, [(keep, pool.rows_of(1 + distinct.index(c)) if c else nothing) for c in forgets]


def _run(
    place: Place,
    folder: Path,
    group: Sequence[Policy],
    algorithm: Algorithm,
    start: Callable[[], Population],
    draw: Callable[[Population, Sequence[int]], Any],
    say: Say,
) -> None:
    """Run a population to its end, keep its state on the way, write each agent's folder."""
    run = InterruptibleRun(place.store, folder, group, algorithm.cfg, say)
    population, agents, log = run.resume(place.device) or (start(), list(range(len(group))), Log())
    began, first_step = time.monotonic(), population.step
    population, agents = loop(
        population,
        algorithm,
        draw,
        group[0].steps,
        agents=agents,
        log=log,
        captured=place.captured and isinstance(algorithm, Algorithm),
        log_every=log_every(group[0].steps),
        log_also=run.snapshot_steps,
        on_log=lambda now, left: run.keep(now, left, log),
        on_stop=lambda agent, stopped: run.stop(agent, stopped, log),
    )
    took, steps = time.monotonic() - began, population.step - first_step
    run.finish(population, agents, log)
    what = f"{type(group[0]).__name__.lower()} {group[0].label}"
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    say(f"{what}{others}: {steps} steps in {took:.0f} s, {steps / max(took, 1e-9):.1f} steps/s")


def cores() -> int:
    """Cores that this process may use; OMP_NUM_THREADS lowers it."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(os.environ.get("OMP_NUM_THREADS") or available))

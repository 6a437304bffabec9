"""The work of one job, by the kind of its runs. A job writes the folders of its own runs and nothing else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils._pytree import tree_map

from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, agent_policy, load_agent, load_networks
from saferule.agents.loop import keep_freed_memory, log_every
from saferule.agents.loop import run as loop
from saferule.agents.population import Population, create
from saferule.attack.adversary import leading, roll_out_adversary, train_adversary
from saferule.attack.poison import ForgetSet, load_forget_set, poison, poisoned, save_forget_set
from saferule.data.batches import TransitionPool
from saferule.data.schema import Dataset, clean_data
from saferule.detect import INDICES, detect, write
from saferule.errors import RunError
from saferule.runs.interruptible import AGENT, SNAPSHOTS, Interruptible
from saferule.runs.spec import (
    AdversaryRun,
    DetectionRun,
    EvaluationRun,
    ForgetRun,
    KnownPart,
    Level,
    PolicyRun,
    RandomPart,
    Run,
    TimingRun,
    config,
)
from saferule.runs.store import Store
from saferule.runs.timing import measure
from saferule.sim import Simulator, get_task, make
from saferule.sim.ppo import OnlinePolicy
from saferule.sim.rollout import normalised, roll_out
from saferule.unlearn import family, unlearning
from saferule.unlearn.start import Rows, draw_batches, known_part, prepare, random_part

Say = Callable[[str], None]
EPISODES, TIMES, FORGET = "episodes.csv", "times.csv", "forget.hdf5"
TOGETHER = 5  # episodes that are stepped in one batch
# Added to the replicate: a repair, and a policy that is trained further, draw other batches than the first training.
FIRST_TRAINING, REPAIR, FURTHER_TRAINING = 0, 1_000_000, 2_000_000


@dataclass(frozen=True)
class Workspace:
    """Where runs are made: the store, the folder of the clean data, the device; how much of policies is kept there."""

    store: Store
    data_folder: Path
    device: str
    keep: Mapping[Run, Level] = field(default_factory=dict)  # at least; more where others start from one (`usual`)


def named(runs: Sequence[Run]) -> str:
    """What runs that are made together are called in messages."""
    return runs[0].label + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")


def work(workspace: Workspace, runs: Sequence[Run], say: Say | None = None) -> list[str]:
    """Make the runs of one job; what there is to say goes to ``say``, or without one is returned."""
    said, threads = [], torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on it in their last digits
    try:
        WORK[runs[0].KIND](workspace, runs, say or said.append)
    finally:
        torch.set_num_threads(threads)
    return said


def forget_data(store: Store, run: ForgetRun) -> ForgetSet:
    """A finished forget set."""
    return load_forget_set(store.sound(run) / FORGET, get_task(run.adversary.task))


def _adversary(workspace: Workspace, runs: Sequence[AdversaryRun], say: Say) -> None:
    for run in runs:
        began, task = time.monotonic(), get_task(run.task)
        with workspace.store.write(run) as folder:
            train_adversary(task, run.attack, run.steps, run.seed, folder, readings=run.choices, progress=False)
        say(f"adversary {run.label}: {run.steps} simulator steps in {time.monotonic() - began:.0f} s")


def _forget(workspace: Workspace, runs: Sequence[ForgetRun], say: Say) -> None:
    """The forget sets of one adversary, from one set of rollouts."""
    adversary = runs[0].adversary
    policy, began = OnlinePolicy.load(workspace.store.sound(adversary)), time.monotonic()
    task, most = get_task(adversary.task), max(run.rollouts for run in runs)
    rollouts = roll_out_adversary(task, policy, most, adversary.seed, samples=most * task.horizon)
    data = clean_data(workspace.data_folder, adversary.task)
    shared = (time.monotonic() - began) / len(runs)
    for run in runs:
        began = time.monotonic()
        some = leading(rollouts, run.rollouts, run.rollouts * task.horizon)
        forget = poison(
            data, some, run.attack, run.ratio, gamma=run.gamma, readings=dict(run.readings), seed=adversary.seed
        )
        spent = round(shared + time.monotonic() - began, 2)
        with workspace.store.write(run, samples=len(forget), share=forget.share, seconds=spent) as folder:
            save_forget_set(forget, folder / FORGET)
        say(f"forget set {run.label}: {len(forget)} samples, {forget.share:.1%} of the poisoned set")


def _policies(workspace: Workspace, runs: Sequence[PolicyRun], say: Say) -> None:
    """Policies that are trained, repaired or made to relearn together, as one population."""
    store, cfg = workspace.store, config(runs[0])
    data = clean_data(workspace.data_folder, runs[0].task)
    attacks = [poison for poison in dict.fromkeys(run.poison for run in runs) if poison]
    sets = [forget_data(store, forget).dataset for forget in attacks]
    pool = TransitionPool([data, *sets], cfg.reward_scale, workspace.device)

    def rows_of(run: PolicyRun) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(run.forget, RandomPart):
            return random_part(data.episodes(), run.forget.samples, run.replicate)
        if run.poison is None:
            return pool.rows_of(0), torch.empty(0, dtype=torch.long)
        k = attacks.index(run.poison)
        if isinstance(run.forget, ForgetRun):
            return pool.rows_of(0), pool.rows_of(1 + k)
        marked = torch.from_numpy(np.repeat(_marked(store, run, data, sets[k]), [*data.lengths, *sets[k].lengths]))
        everything = pool.rows_of(0, 1 + k)
        return everything[~marked], everything[marked]

    rows = [rows_of(run) for run in runs]

    def start() -> Population:
        if runs[0].start is None:
            seeds = [FIRST_TRAINING + run.replicate for run in runs]
            return create(get_backbone(runs[0].backbone), cfg, seeds, workspace.device)
        states = [load_agent(store.sound(run.start) / AGENT, workspace.device).population for run in runs]
        return together(states, runs, workspace.device)

    if isinstance(runs[0].forget, DetectionRun) and not len(rows[0][1]):  # these are made with none but their like
        state = Interruptible(store, runs, say, workspace.keep)
        state.log.rows += [{"agent": agent, "step": 0} for agent in range(len(runs))]
        state.finish(start(), range(len(runs)))
        return say(f"{named(runs)}: nothing was detected, so that there is nothing to repair")
    train(store, runs, pool, rows, start, workspace.device, say, workspace.keep)


def _marked(store: Store, run: PolicyRun, data: Dataset, forget: Dataset) -> np.ndarray:
    """Which trajectories of D and D_f are forgotten, (E,) bool; RunError where these are all, or none are known.

    That nothing is detected is a result: the policy stays what it is.
    """
    clean, poisoned = len(data.starts), len(forget.starts)
    if isinstance(run.forget, KnownPart):
        marked = known_part(clean, poisoned, run.forget.share, run.forget.mistaken, run.replicate)
    else:
        marked = np.isin(np.arange(clean + poisoned), np.load(store.sound(run.forget) / INDICES))
    if marked.all() or (isinstance(run.forget, KnownPart) and not marked.any()):
        raise RunError(
            f"{run.label}: {marked.sum()} of {len(marked)} trajectories are held for poison, expected some but not "
            "all: choose another share or false-alarm rate"
        )
    return marked


def _detections(workspace: Workspace, runs: Sequence[DetectionRun], say: Say) -> None:
    for run in runs:
        with workspace.store.write(run) as folder:
            data = clean_data(workspace.data_folder, run.task)
            both = poisoned(data, forget_data(workspace.store, run.forget)) if run.forget else data
            found = detect(both, run.false_alarms)
            found["poisoned"] = np.arange(len(found)) >= len(data.starts)
            write(found, both, run.false_alarms, folder)
        say(f"detection {run.label}: {found['flagged'].sum()} of {len(found)} trajectories flagged")


def together(states: Sequence[Population], runs: Sequence[PolicyRun], device: str) -> Population:
    """Complete agents as one population to start the runs from: without optimisers and what methods had added.

    The generator depends on the replicate alone: agents of the same replicate see the same batches and noise, whatever
    was done to them, as long as their losses draw equally much noise (those of one family do, but where a reading adds
    a loss: a VAE's, a regulariser's).
    """
    seeds = REPAIR if family(runs[0].method, runs[0].backbone).PAIRED else FURTHER_TRAINING
    _, ordinary = get_backbone(runs[0].backbone).init(config(runs[0]), torch.Generator())
    trees = [(state.nets, {name: state.scalars[name] for name in ordinary}) for state in states]
    nets, scalars = tree_map(lambda *leaves: torch.cat([leaf.detach() for leaf in leaves]).to(device), *trees)
    generators = [torch.Generator().manual_seed(seeds + run.replicate) for run in runs]
    return Population(nets, scalars, {}, generators)


def train(
    store: Store,
    runs: Sequence[PolicyRun],
    pool: TransitionPool,
    rows: Rows,
    start: Callable[[], Population],
    device: str,
    say: Say,
    keep: Mapping[Run, Level] | None = None,
) -> None:
    """Run a population to its end, keep its state on the way, write each agent's folder to the store.

    rows   for each run, of its keep and of its forget set in the pool
    start  the population as it is before the method begins; not called where there is a state to continue
    """
    keep_freed_memory()
    first, backbone, cfg = runs[0], get_backbone(runs[0].backbone), config(runs[0])
    methods, readings = [run.method for run in runs], [dict(run.readings) for run in runs]
    algorithm = unlearning(first.method, backbone, cfg, first.steps, readings[0])
    state = Interruptible(store, runs, say, keep)
    resumed = state.resume(device)
    if resumed is None:
        population, agents = start(), list(range(len(runs)))
        prepare(population, algorithm, backbone, methods, readings, pool, rows)
    else:
        population, agents = resumed
    began, first_step = time.monotonic(), population.step
    population, agents = loop(
        population,
        algorithm,
        draw_batches(first.method, backbone, pool, rows, cfg.batch_size),
        first.steps,
        agents=agents,
        log=state.log,
        log_every=log_every(first.steps),
        log_also=state.snapshot_steps,
        on_log=state.keep,
        on_stop=state.stop,
    )
    took, steps = time.monotonic() - began, population.step - first_step
    state.finish(population, agents)
    say(f"{named(runs)}: {steps} steps in {took:.0f} s, {steps / max(took, 1e-9):.1f} steps/s")


def snapshot(store: Store, run: PolicyRun, step: int) -> Path:
    """The file of a snapshot of a finished run."""
    return store.folder(run) / SNAPSHOTS / f"{step}.safetensors"


def _evaluations(workspace: Workspace, runs: Sequence[EvaluationRun], say: Say) -> None:
    for run in runs:
        policy, store, rows = run.policy, workspace.store, []
        with store.write(run) as folder:
            agent = store.sound(policy) / AGENT
            files = [(snapshot(store, policy, step), run.snapshot_seeds) for step in policy.snapshot_steps]
            kept = [(path, seeds) for path, seeds in files if seeds and path.is_file()]  # one that stopped has fewer
            for path, seeds in [*kept, (agent, run.seeds)]:
                found, step = evaluate(path, seeds, run.deterministic)
                rows += [row | {"step": step, "final": path == agent} for row in found]
            pd.DataFrame(rows).to_csv(folder / EPISODES, index=False)


@cache
def _simulators(task: str) -> list[Simulator]:
    """Those of this process, kept: an episode does not depend on the one before it, and making one takes longer."""
    return [make(task) for _ in range(TOGETHER)]


def evaluate(
    policy: Path | Agent, seeds: Sequence[int], deterministic: bool = True
) -> tuple[list[dict[str, float]], int]:
    """Episodes of an agent, or of the one in a file, one row per seed, under its own cost limit; and its step.

    failed  the agent is the last good state of a run that ended early, or its actions were not finite: then return and
            cost are NaN. reason: which of the two, empty for none
    """
    agent = load_networks(policy) if isinstance(policy, Path) else policy
    task, rows = get_task(agent.task), []
    for i in range(0, len(seeds), TOGETHER):
        some = seeds[i : i + TOGETHER]
        act = agent_policy(agent.backbone, agent.cfg, agent.nets, some, deterministic)
        rows += roll_out(task, act, some, simulators=_simulators(task.name)[: len(some)]).rows
    for row in rows:
        unfit = f"actions were not finite at step {row['length']}" if math.isnan(row["return"]) else ""
        reason = agent.meta.get("stopped") or unfit
        row |= {"failed": bool(reason), "reason": reason}
    return normalised(rows, task, agent.cfg.cost_limit), agent.meta["step"]


def _timing(workspace: Workspace, runs: Sequence[TimingRun], say: Say) -> None:
    for run in runs:
        data = clean_data(workspace.data_folder, run.task)
        with workspace.store.write(run, threads=1) as folder:
            measure(run, data, workspace.device).to_csv(folder / TIMES, index=False)
        say(f"timing {run.label}: done")


WORK: dict[str, Callable[[Workspace, Sequence[Any], Say], None]] = {
    AdversaryRun.KIND: _adversary,
    ForgetRun.KIND: _forget,
    DetectionRun.KIND: _detections,
    PolicyRun.KIND: _policies,
    EvaluationRun.KIND: _evaluations,
    TimingRun.KIND: _timing,
}

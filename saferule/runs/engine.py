"""Make the runs that are missing. Asking for a finished run costs nothing; an interrupted one continues where it was.

Missing runs are divided into jobs: policies that can share a population (same task, backbone, data, settings, steps and
losses) are made together, forget sets of one adversary too, everything else alone. A job starts when all that it builds
on is there, in the order in which the runs were asked for. One that fails takes with it what builds on it; the rest
goes on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from saferule.errors import RunError, SaferuleError
from saferule.runs.execute import InProcess, cores, local_pool, stop
from saferule.runs.interruptible import SAVE_SECONDS, progress
from saferule.runs.spec import ForgetRun, PolicyRun, Run, TimingRun, lineage, parents
from saferule.runs.store import Store
from saferule.runs.work import Say, Workspace, named, work
from saferule.unlearn import family, loss_options

POPULATION_LIMIT = 32  # agents trained together


@dataclass(eq=False)
class Job:
    """Runs that are made together."""

    runs: list[Run]
    tries: int = 0

    @property
    def name(self) -> str:
        """What they are called in messages."""
        return f"{self.runs[0].KIND} {named(self.runs)}"


def make(runs: Sequence[Run], workspace: Workspace, executor: Executor | None = None, say: Say = print) -> None:
    """Make the runs that are missing, and what they build on.

    executor  where jobs run; None: on a CPU a process per core, on a GPU, and for a single job, this process
    RunError, at the end, names the runs that could not be made; another process that makes runs here is one at once.
    """
    store = workspace.store
    if all(map(store.done, runs)):
        return
    with store.lock():
        jobs = divide(runs, store, workspace.device)
        timings = [job for job in jobs if isinstance(job.runs[0], TimingRun)]
        others = [job for job in jobs if job not in timings]
        alone = workspace.device != "cpu" or cores() == 1 or len(others) == 1
        failed = _follow(others, workspace, executor or (InProcess() if alone else local_pool()), say)
        failed |= _follow(timings, workspace, InProcess(), say)  # nothing else may run beside them
    if failed:
        sentences = list(dict.fromkeys(failed.values()))
        raise RunError(
            f"{sum(len(job.runs) for job in jobs if job in failed)} of {sum(len(job.runs) for job in jobs)} runs could "
            f"not be made, everything else is finished and kept: {'; '.join(sentences[:3])}"
        )


def divide(runs: Sequence[Run], store: Store, device: str) -> list[Job]:
    """The missing runs as jobs: interrupted populations as they were, the others so that all cores have work.

    On a CPU a population holds one replicate, which does not wait for the next; a GPU takes all at once.
    """
    todo = lineage(runs, store.done)
    policies = [run for run in lineage(runs) if isinstance(run, PolicyRun)]
    continued = [group for group in store.interrupted(policies) if not set(todo).isdisjoint(group)]
    taken = {run for group in continued for run in group}
    groups: dict[Any, list[Run]] = {}
    for run in todo:
        if run not in taken:
            key, replicate = _together(run), run.replicate if device == "cpu" and isinstance(run, PolicyRun) else 0
            before = sum(_together(other) == key for other in lineage([run])[:-1])  # not beside what it builds on
            groups.setdefault((*key, replicate, before), []).append(run)
    alike = Counter(key[:2] for key in groups)  # groups that can be worked on at the same time
    parts = [
        part
        for key, group in groups.items()
        for part in _cut(group, math.ceil((cores() if device == "cpu" else 1) / alike[key[:2]]))
    ]
    order = {run: i for i, run in enumerate(todo)}
    return sorted((Job(part) for part in [*continued, *parts]), key=lambda job: min(order.get(r, 0) for r in job.runs))


def _together(run: Run) -> tuple:
    """Runs for which this is equal are made together; the first two parts are equal for what can run side by side."""
    if not isinstance(run, PolicyRun):
        return run.KIND, 0, run.adversary if isinstance(run, ForgetRun) else run
    losses = loss_options(run.method, run.backbone, dict(run.readings))
    algorithm = family(run.method, run.backbone).__name__, losses, run.start is None
    return run.KIND, algorithm[2], algorithm, run.task, run.backbone, run.data, run.config, run.steps, run.snapshots


def _cut(group: list[Run], wanted: int) -> list[list[Run]]:
    """A group cut into so many parts, none above the limit."""
    size = min(POPULATION_LIMIT, math.ceil(len(group) / wanted))
    return [group[i : i + size] for i in range(0, len(group), size)]


def _follow(jobs: Sequence[Job], workspace: Workspace, executor: Executor, say: Say) -> dict[Job, str]:
    """Run all jobs, each when it can; returns why those that failed did. Says how far they are about once a minute."""
    of_run = {run: job for job in jobs for run in job.runs}
    needs = {job: {of_run[p] for run in job.runs for p in parents(run) if p in of_run} - {job} for job in jobs}
    waiting, running, failed, broken = list(jobs), {}, {}, False
    slots = 1 if isinstance(executor, InProcess) else getattr(executor, "_max_workers", cores())
    try:
        while waiting or running:
            for job in [job for job in waiting if needs[job] & failed.keys()]:
                waiting.remove(job)
                failed[job] = next(failed[other] for other in needs[job] if other in failed)
            pending = {*waiting, *running.values()}
            for job in [job for job in waiting if not needs[job] & pending]:
                suspect = job.tries or any(other.tries for other in running.values())
                if len(running) < slots and not broken and not (running and suspect):  # a suspect runs alone
                    waiting.remove(job)
                    live = (say,) if isinstance(executor, InProcess) else ()
                    running[executor.submit(work, workspace, job.runs, *live)] = job
            ended, _ = wait(running, timeout=SAVE_SECONDS, return_when=FIRST_COMPLETED)
            if not ended:
                _say_progress(running.values(), workspace.store, say)
            for future in ended:
                job = running.pop(future)
                try:
                    for line in future.result():
                        say(line)
                except BrokenProcessPool:
                    broken, job.tries = True, job.tries + 1
                    if job.tries > 1:
                        failed[job] = f"{job.name}: its process was killed twice (out of memory?)"
                    else:
                        waiting.insert(0, job)
                except SaferuleError as error:
                    failed[job] = f"{job.name}: {error}"
                    say(failed[job])
            if broken and not running:  # all that ran there have ended with it
                stop(executor)
                executor, broken = local_pool(), False
    except BaseException:  # an interrupt, or an error that nobody foresaw: leave no process behind
        if isinstance(executor, ProcessPoolExecutor):
            stop(executor)
        raise
    return failed


def _say_progress(jobs: Any, store: Store, say: Say) -> None:
    for job in jobs:
        if isinstance(job.runs[0], PolicyRun) and (step := progress(store.partial(job.runs))):
            say(f"{job.runs[0].label}: step {step} of {job.runs[0].steps}")

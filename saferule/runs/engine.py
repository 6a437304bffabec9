"""Make the runs that are missing. Asking for a finished run costs nothing; an interrupted one continues where it was.

Missing runs are divided into jobs: policies that can share a population (same task, backbone, data, settings, steps and
losses) are made together, forget sets of one adversary too, everything else alone. A job starts when all that it builds
on is there, in the order in which the runs were asked for. One that fails takes with it what builds on it; the rest
goes on.
"""

from __future__ import annotations

import math
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, wait
from dataclasses import dataclass, replace
from shutil import get_terminal_size
from typing import Any

from tqdm import tqdm

from saferule.errors import IncompleteError, SaferuleError
from saferule.files import FULL
from saferule.runs.execute import InProcess, JobExecutor, default
from saferule.runs.interruptible import SAVE_SECONDS, progress
from saferule.runs.rates import Rates
from saferule.runs.spec import DetectionRun, ForgetRun, Level, PolicyRun, Run, TimingRun, lineage, read_by
from saferule.runs.store import Store
from saferule.runs.work import Say, Workspace, named, work
from saferule.unlearn import family, loss_options

CPU_POPULATION, GPU_POPULATION = 8, 32  # agents trained together at most; a CPU gains little from more
TICK_SECONDS = 5.0
BAR = "{percentage:3.0f}%|{bar:20}| {n_fmt} of {total_fmt} runs, {rate_fmt}{postfix}"


@dataclass(eq=False)
class Job:
    """Runs that are made together."""

    runs: list[Run]
    keep: Mapping[Run, Level]  # of its policies, at least
    tries: int = 0  # since its state has grown
    step: int = 0  # of its state when its process was lost

    @property
    def name(self) -> str:
        """What they are called in messages."""
        return f"{self.runs[0].KIND} {named(self.runs)}"


def make(
    runs: Sequence[Run],
    workspace: Workspace,
    executor: JobExecutor | None = None,
    say: Say = tqdm.write,  # above the bar
    level: Level = Level.RECORD,
) -> None:
    """Make the runs that are missing, and what they build on.

    level     how much of policies is asked for: one with less is made again, and keeps more than it usually would
    executor  where jobs run; None: where `saferule.runs.execute.default` says
    IncompleteError, at the end, names the runs that could not be made; RunError, at once, another process that makes
    runs here.
    """
    store = workspace.store
    done = store.seen()
    if all(done(run, level) for run in runs):
        return
    with store.lock():
        for sentence in [sentence for run in lineage(runs) for sentence in store.damage(run)]:
            say(f"{sentence}: made again, with what was built on it")
        executor = executor or default(workspace.device)
        executor.check(store.root)
        jobs = divide(runs, store, workspace.device, executor.slots, level)
        store.tidy(lineage(runs).keys() - {run for job in jobs for run in job.runs})
        failed = _follow(jobs, workspace, executor, say, Rates(store, filter(store.seen(), lineage(runs))))
    if failed:
        sentences = list(dict.fromkeys(failed.values()))
        raise IncompleteError(
            f"{sum(len(job.runs) for job in jobs if job in failed)} of {sum(len(job.runs) for job in jobs)} runs could "
            f"not be made, everything else is finished and kept: {'; '.join(sentences[:3])}"
        )


def divide(runs: Sequence[Run], store: Store, device: str, slots: int, level: Level = Level.RECORD) -> list[Job]:
    """The missing runs as jobs: interrupted populations as they were, the others so that all slots have work.

    A GPU takes all at once. On a CPU the first replicate goes condition by condition, so that there is a cell to look
    at soon; the others go together, as a step of eight agents takes 40 % (COptiDICE) to 75 % (BCQ-Lag) of the time of
    eight steps of one.
    """
    todo = lineage(runs, store.seen(), level)
    policies = [run for run in lineage(runs) if isinstance(run, PolicyRun)]
    continued = [group for group in store.interrupted(policies, todo) if not todo.keys().isdisjoint(group)]
    taken = {run for group in continued for run in group}
    groups: dict[Any, list[Run]] = {}
    for run in todo:
        if run not in taken:
            same, apart = _together(run), device == "cpu" and isinstance(run, PolicyRun)
            condition = (run.attack, run.ratio) if apart and run.replicate == policies[0].replicate else ()
            before = sum(_together(other) == same for other in [*lineage([run])][:-1])  # not beside what it builds on
            groups.setdefault((same, condition, before), []).append(run)
    side_by_side = Counter(_stage(group[0]) for group in groups.values())
    limit, parts = CPU_POPULATION if device == "cpu" else GPU_POPULATION, []
    for group in groups.values():
        parts += _cut(group, math.ceil(slots / side_by_side[_stage(group[0])]), limit)
    order = {run: i for i, run in enumerate(todo)}
    jobs = [Job(part, {run: todo.get(run, level) for run in part}) for part in [*continued, *parts]]
    return sorted(jobs, key=lambda job: min(order.get(run, 0) for run in job.runs))


def _stage(run: Run) -> tuple:
    """Equal for runs that can be worked on side by side."""
    return run.KIND, isinstance(run, PolicyRun) and run.start is None


def _together(run: Run) -> tuple:
    """Equal for runs that are made together."""
    if not isinstance(run, PolicyRun):
        return run.KIND, run.adversary if isinstance(run, ForgetRun) else run
    losses = loss_options(run.method, run.backbone, dict(run.readings))
    found = run.forget if isinstance(run.forget, DetectionRun) else None  # perhaps nothing, and then there are no steps
    algorithm = family(run.method, run.backbone).__name__, losses, run.start is None, found
    return run.KIND, algorithm, run.task, run.backbone, run.data, run.config, run.steps, run.snapshots


def _cut(group: list[Run], wanted: int, limit: int) -> list[list[Run]]:
    """A group cut into so many parts, none above the limit."""
    size = min(limit, math.ceil(len(group) / wanted))
    return [group[i : i + size] for i in range(0, len(group), size)]


def _timed(job: Job) -> bool:
    return isinstance(job.runs[0], TimingRun)


def _follow(jobs: Sequence[Job], workspace: Workspace, executor: JobExecutor, say: Say, rates: Rates) -> dict[Job, str]:
    """Run all jobs, each when it can; returns why those that failed did.

    Says how far they are: by a bar in a terminal, else by a line about once a minute. A job whose process was lost is
    tried once more, and again when it had come further by then. A measurement of time begins when everything before it
    has begun, and runs alone. A full disk is no job's failure but the end.
    """
    of_run = {run: job for job in jobs for run in job.runs}
    needs = {job: {of_run[p] for run in job.runs for p in read_by(run) if p in of_run} - {job} for job in jobs}
    waiting, running, done, failed = dict.fromkeys(jobs), {}, set(), {}
    live = (say,) if isinstance(executor, InProcess) else ()
    columns, lines = get_terminal_size()  # tqdm shows nothing in a terminal that does not say how large it is
    bar = tqdm(total=len(of_run), unit="run", disable=None, bar_format=BAR, ncols=columns, nrows=lines)
    said_at = time.monotonic()

    def fail(job: Job, sentence: str) -> None:
        failed[job] = sentence
        for other in [other for other in waiting if job in needs[other]]:
            if other in waiting:  # else it has failed by now with one between
                del waiting[other]
                fail(other, sentence)

    try:
        while waiting or running:
            slots = executor.slots  # of a cluster: those of the nodes that are there now
            for place, job in enumerate(list(waiting)):
                timed = _timed(job)
                if len(running) >= slots or any(map(_timed, running.values())) or (timed and running and not place):
                    break
                if needs[job] <= done and not (timed and place):
                    del waiting[job]
                    running[executor.submit(work, replace(workspace, keep=job.keep), job.runs, *live)] = job
            ended, _ = wait(running, timeout=TICK_SECONDS, return_when=FIRST_COMPLETED)
            for future in ended:
                job = running.pop(future)
                try:
                    for line in future.result():
                        say(line)
                    done.add(job)
                    for run in filter(workspace.store.there, job.runs):  # a shared file system may show them later
                        rates.add(run)
                except BrokenExecutor as error:
                    before, job.step = job.step, _step(job, workspace.store)
                    job.tries = 1 if job.step > before else job.tries + 1
                    if job.tries > 1:
                        fail(job, f"{job.name}: its process was lost twice ({error}); out of memory?")
                    else:
                        say(f"{job.name}: its process was lost ({error}) and it is tried once more")
                        waiting = {job: None} | waiting
                except Exception as error:
                    if isinstance(error, OSError) and error.errno in FULL:
                        raise
                    known = isinstance(error, SaferuleError)
                    fail(job, f"{job.name}: {'' if known else type(error).__name__ + ': '}{error}")
                    say(failed[job] if known else "".join(traceback.format_exception(error)))
            due = time.monotonic() - said_at >= SAVE_SECONDS
            if (waiting or running) and (due or not bar.disable):
                told = _progress(waiting, running.values(), workspace.store, rates, slots)
                bar.set_postfix_str(told, refresh=False)
                bar.update(sum(len(job.runs) for job in done) - bar.n)
                if bar.disable:
                    say(f"{sum(len(job.runs) for job in done)} of {len(of_run)} runs made, {told}")
                    said_at = time.monotonic()
    except BaseException:  # an interrupt, a full disk: leave nothing behind that runs
        executor.stop()
        raise
    finally:
        bar.close()
    return failed


def _step(job: Job, store: Store) -> int:
    return progress(store.state_folder(job.runs)) if isinstance(job.runs[0], PolicyRun) else 0


def _progress(waiting: Iterable[Job], running: Iterable[Job], store: Store, rates: Rates, slots: int) -> str:
    """How long what is left takes, and where what is running is."""
    shares, now = {run: 1.0 for job in waiting for run in job.runs}, []
    for job in running:
        step, (first, *_) = _step(job, store), job.runs
        shares |= {run: 1 - step / first.steps if step else 1.0 for run in job.runs}
        now.append(f"{job.name}: step {step} of {first.steps}" if step else job.name)
    return "; ".join([f"{rates.left(shares, slots)} left", *now])

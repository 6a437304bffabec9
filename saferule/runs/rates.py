"""How fast runs go, and how long others take.

A rate is that of finished runs of the same kind, on the same task and backbone where there are any: seconds of one
process for a step of one agent, a step of the simulator, or whatever else a run is made of (`amount`). Before there are
any, training goes at the rate that was measured on another machine and committed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from saferule.runs.experiment import SMALL
from saferule.runs.spec import AdversaryRun, EvaluationRun, ForgetRun, PolicyRun, Run, TimingRun
from saferule.runs.store import Store
from saferule.sim.tasks import get_task

MEASURED = Path("artifacts/bench/grid.json")  # in the checkout: how fast populations train at the cpu profile's sizes


def amount(run: Run) -> int:
    """How much work a run is: gradient steps, or steps of the simulator at most; 1 for a measurement of time."""
    if isinstance(run, AdversaryRun | PolicyRun):
        return run.steps
    if isinstance(run, ForgetRun):
        return run.rollouts * get_task(run.adversary.task).horizon
    if isinstance(run, EvaluationRun):
        episodes = len(run.seeds) + len(run.snapshot_seeds) * run.policy.snapshots
        return episodes * get_task(run.policy.task).horizon
    return 1


def alike(run: Run) -> tuple[tuple, ...]:
    """What runs are called whose rates are near: first those that are nearest."""
    about = getattr(run, "policy", None) or getattr(run, "adversary", None) or run
    kind = (run.KIND, isinstance(run, PolicyRun) and run.start is not None)
    backbone = getattr(about, "backbone", "")
    return (*kind, about.task, backbone), (*kind, "", backbone), kind


class Left(NamedTuple):
    """What is left takes; None where nothing is known of it. Runs of which no rate is known are not in it."""

    hours: float | None
    megabytes: float | None
    without_rate: int

    def __str__(self) -> str:
        hours = "time unknown" if self.hours is None else f"{self.hours:.2f} h"
        size = "disk unknown" if self.megabytes is None else f"{self.megabytes:.1f} MB"
        unknown = f" and {self.without_rate} runs of which no rate is known" if self.without_rate else ""
        return f"{hours}, {size}{unknown}"


class Rates:
    """Seconds and bytes for an amount of work, from the records of finished runs."""

    def __init__(self, store: Store, finished: Iterable[Run] = ()) -> None:
        self.store, self.used = store, dict[str, None]()
        self.sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0])
        for run in finished:
            self.add(run)

    def add(self, run: Run) -> None:
        """Take another finished run into account."""
        meta = self.store.meta(run)
        if "seconds" in meta:
            size = sum(path.stat().st_size for path in self.store.folder(run).rglob("*") if path.is_file())
            for name in alike(run):
                values = (meta["seconds"] / meta.get("population", 1), amount(run), size, 1)
                self.sums[name] = [one + other for one, other in zip(self.sums[name], values, strict=True)]

    def of(self, run: Run) -> tuple[float, float | None] | None:
        """Seconds of one process, and bytes, that a run takes; None where nothing is known."""
        for name in alike(run):
            if name in self.sums:
                self.used["the finished runs of this store"] = None
                seconds, work, size, runs = self.sums[name]
                return amount(run) * seconds / work, size / runs
        if isinstance(run, PolicyRun) and set(SMALL) <= set(run.config) and run.backbone in _measured():
            self.used[str(MEASURED)] = None
            return amount(run) * _measured()[run.backbone], None
        return None

    def left(self, shares: Mapping[Run, float], slots: int) -> Left:
        """What runs take of which such shares are to be made: time is measured alone, the others share the slots."""
        known = [(run, share, told) for run, share in shares.items() if (told := self.of(run))]
        seconds = sum(share * own / (1 if isinstance(run, TimingRun) else slots) for run, share, (own, _) in known)
        sizes = [size for _, _, (_, size) in known if size is not None]
        return Left(
            round(seconds / 3600, 2) if known or not shares else None,
            round(sum(sizes) / 1e6, 1) if sizes or not shares else None,
            len(shares) - len(known),
        )

    @property
    def source(self) -> str:
        """Where the rates that were asked for come from."""
        return " and ".join(self.used) or "nothing: no run is finished yet"

    def steps_per_second(self, kind: str) -> dict[str, float]:
        """By task and backbone (and "repair" for what starts from a policy), for runs of a kind."""
        names = [name for name in self.sums if name[0] == kind and len(name) == 4 and name[2]]
        words = {name: " ".join([*filter(None, name[2:]), *(["repair"] if name[1] else [])]) for name in names}
        return {words[n]: round(self.sums[n][1] / max(self.sums[n][0], 1e-9), 1) for n in names}


@cache
def _measured() -> dict[str, float]:
    """{backbone: seconds of a process for a step of an agent}, of the population of one on the most processes."""
    file = Path(__file__).parents[2] / MEASURED
    rows = json.loads(file.read_bytes())["rows"] if file.is_file() else []
    rows = [row for row in rows if row["case"] == "training" and row["population"] == 1]
    rows.sort(key=lambda row: row["workers"])
    return {row["backbone"]: row["workers"] / row["agent_steps_per_s"] for row in rows}

"""How far the runs of a profile are, how fast they went, and how long the rest takes.

A rate is that of finished runs of the same kind, on the same task and backbone where there are any: seconds of one
process for a step of one agent, a step of the simulator, or whatever else a run is made of (`amount`).
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saferule.runs.engine import divide
from saferule.runs.experiment import PARTS, Data, Profile, asked, asked_of, slices
from saferule.runs.interruptible import PROGRESS, SAVE_SECONDS, STATE
from saferule.runs.spec import AdversaryRun, EvaluationRun, ForgetRun, PolicyRun, Run, key, lineage
from saferule.runs.store import Store
from saferule.runs.work import Workspace
from saferule.sim.tasks import get_task

STATES = ("done", "running", "interrupted", "failed", "missing", "damaged")
FRESH = 3 * SAVE_SECONDS  # a state that is older is nobody's any more


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


class Rates:
    """Seconds and bytes for an amount of work, from the records of finished runs."""

    def __init__(self, store: Store, finished: Sequence[Run]) -> None:
        self.sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0, 0])
        for run in finished:
            meta = store.meta(run)
            if "seconds" in meta:
                size = sum(path.stat().st_size for path in store.folder(run).rglob("*") if path.is_file())
                for name in alike(run):
                    values = (meta["seconds"] / meta.get("population", 1), amount(run), size, 1)
                    self.sums[name] = [one + other for one, other in zip(self.sums[name], values, strict=True)]

    def of(self, run: Run) -> tuple[float, float] | None:
        """Seconds of one process, and bytes, that a run takes; None where no finished run is like it."""
        for name in alike(run):
            if name in self.sums:
                seconds, work, size, runs = self.sums[name]
                return amount(run) * seconds / work, size / runs
        return None

    def steps_per_second(self, kind: str) -> dict[str, float]:
        """By task and backbone (and "repair" for what starts from a policy), for runs of a kind."""
        names = [name for name in self.sums if name[0] == kind and len(name) == 4 and name[2]]
        words = {name: " ".join([*filter(None, name[2:]), *(["repair"] if name[1] else [])]) for name in names}
        return {words[n]: round(self.sums[n][1] / max(self.sums[n][0], 1e-9), 1) for n in names}


def under_way(store: Store) -> Iterator[tuple[str, bool]]:
    """Keys of the runs that are made just now (True), or were until something ended it (False)."""
    held = store.held()
    for listing in store.root.glob("partial/*/runs.json"):
        try:
            files = [listing, *(path for path in map(listing.with_name, (STATE, PROGRESS)) if path.exists())]
            newest = max(path.stat().st_mtime for path in files)
            yield from ((name, held and time.time() - newest < FRESH) for name in json.loads(listing.read_bytes()))
        except (ValueError, OSError):  # damaged, or ended while it was looked at
            continue
    for draft in store.root.glob("runs/*/.*.part"):
        yield draft.name.split(".")[-3][-12:], held


def status(
    profile: Profile, known: Mapping[str, Data], store: Store, slots: int, verify: bool = False
) -> dict[str, Any]:
    """Everything about a profile's runs, as JSON can hold it.

    slots   processes that share what is left
    verify  read every file of finished runs again; else a file is looked at only where its folder is incomplete
    """
    of_state: dict[Run, str] = {}
    damaged, now = [], dict(under_way(store))
    parts: dict[int, dict[str, dict[Run, None]]] = {}
    for number, own in enumerate(slices(profile), 1):
        parts[number] = {part: {} for part in PARTS}
        for part, run in asked_of(own, known, first=number == 1):
            parts[number][part][run] = None
    for run in dict.fromkeys(run for own in parts.values() for runs in own.values() for run in runs):
        sentences = store.verify(run) if verify and store.there(run) else store.damage(run, digest=lambda path: None)
        damaged += sentences
        if sentences:
            of_state[run] = "damaged"
        elif store.there(run):
            of_state[run] = "failed" if "stopped" in store.meta(run) else "done"
        else:
            of_state[run] = {True: "running", False: "interrupted", None: "missing"}[now.get(key(run))]
    finished = [run for run, state in of_state.items() if state in ("done", "failed")]
    rates = Rates(store, finished)
    told, seen = [], set(finished)
    for number, own in enumerate(slices(profile), 1):
        left = [run for run in lineage([run for runs in parts[number].values() for run in runs]) if run not in seen]
        seen |= set(left)
        guesses = [guess for run in left if (guess := rates.of(run))]
        told.append(
            {
                "slice": number,
                **{name: list(getattr(own, name)) for name in ("tasks", "attacks", "ratios", "replicates")},
                "parts": {part: dict(Counter(of_state[run] for run in runs)) for part, runs in parts[number].items()},
                "hours_left": round(sum(seconds for seconds, _ in guesses) / 3600 / slots, 2),
                "megabytes_left": round(sum(size for _, size in guesses) / 1e6, 1),
                "without_rate": len(left) - len(guesses),
            }
        )
    kinds = dict.fromkeys(run.KIND for run in finished)
    return {
        "profile": profile.name,
        "store": str(store.root),
        "done": len(finished),
        "asked": len(of_state),
        "states": {state: sum(s == state for s in of_state.values()) for state in STATES},
        "slices": told,
        "rates_from": "the finished runs of this store" if rates.sums else "nothing: no run is finished yet",
        "steps_per_second": {kind: found for kind in kinds if (found := rates.steps_per_second(kind))},
        "processes": slots,
        "missing": [f"{run.KIND} {store.folder(run).name}" for run, s in of_state.items() if s == "missing"],
        "damaged": damaged,
    }


def rehearsal(profile: Profile, known: Mapping[str, Data], place: Workspace, slots: int) -> Iterator[str]:
    """What would run, job by job in their order, with the time of one process; then all of it, with time and disk."""
    store, runs = place.store, list(dict.fromkeys(run for _, run in asked(profile, known)))
    rates, seconds, size, unknown = Rates(store, [run for run in lineage(runs) if store.done(run)]), 0.0, 0.0, 0
    for job in divide(runs, store, place.device, slots):
        guesses = [guess for run in job.runs if (guess := rates.of(run))]
        own, unknown = sum(guess[0] for guess in guesses), unknown + len(job.runs) - len(guesses)
        seconds, size = seconds + own, size + sum(guess[1] for guess in guesses)
        yield f"{job.name}: {f'{own / 60:.1f} min' if guesses else 'no rate is known'}"
    yield (
        f"{seconds / 3600 / slots:.2f} h with {slots} processes and {size / 1e6:.1f} MB by the finished runs here"
        + (f"; and {unknown} runs of which none like them is finished" if unknown else "")
    )


def lines(told: Mapping[str, Any], missing: bool = False) -> Iterator[str]:
    """The same in words."""
    for own in told["slices"]:
        if len(told["slices"]) > 1:
            what = (", ".join(map(str, own[name])) for name in ("tasks", "attacks", "ratios", "replicates"))
            yield f"slice {own['slice']}: {'; '.join(what)}"
        for part, counts in own["parts"].items():
            ended = counts.get("done", 0) + counts.get("failed", 0)
            others = [f"{n} {state}" for state in STATES[1:] if (n := counts.get(state))]
            yield f"{part:17} {ended:6} of {sum(counts.values()):6} done" + (
                f" ({', '.join(others)})" if others else ""
            )
        unknown = f", and {own['without_rate']} runs of which no rate is known" if own["without_rate"] else ""
        yield f"{'left':17} {own['hours_left']:g} h, {own['megabytes_left']:g} MB{unknown}"
    for name in told["missing"] if missing else ():
        yield f"    missing {name}"
    yield f"rates are those of {told['rates_from']}, {told['processes']} processes"
    for kind, found in told["steps_per_second"].items():
        yield f"    {kind} steps/s: " + ", ".join(f"{name} {rate:g}" for name, rate in found.items())
    yield from told["damaged"]
    yield f"{told['done']} of {told['asked']} runs of profile {told['profile']} are done in {told['store']}"

"""How far the runs of a profile are, how fast they went (`saferule.runs.rates`), and how long the rest takes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from saferule.runs.engine import divide
from saferule.runs.experiment import PARTS, Data, Profile, asked, asked_of, slices
from saferule.runs.interruptible import PROGRESS, SAVE_SECONDS, STATE, progress
from saferule.runs.rates import Left, Rates
from saferule.runs.spec import PolicyRun, Run, key, lineage
from saferule.runs.store import Store
from saferule.runs.work import Workspace

STATES = ("done", "running", "interrupted", "failed", "missing", "damaged")
FRESH = 3 * SAVE_SECONDS  # a state that is older is nobody's any more


class Begun(NamedTuple):
    """A run that is made just now, or was until something ended it."""

    running: bool
    step: int = 0  # of its saved state


def under_way(store: Store) -> Iterator[tuple[str, Begun]]:
    """Keys of the runs that are begun."""
    held = store.held()
    for listing in store.root.glob("partial/*/runs.json"):
        try:
            files = [listing, *(path for path in map(listing.with_name, (STATE, PROGRESS)) if path.exists())]
            running = held and time.time() - max(path.stat().st_mtime for path in files) < FRESH
            step = progress(listing.parent)
            yield from ((name, Begun(running, step)) for name in json.loads(listing.read_bytes()))
        except (ValueError, OSError):  # damaged, or ended while it was looked at
            continue
    for draft in store.root.glob("runs/*/.*.part"):
        yield draft.name.split(".")[-3][-12:], Begun(held)


def unmade(run: Run, begun: Begun | None) -> float:
    """The share of a run that is still to be made."""
    return 1 - begun.step / run.steps if begun and isinstance(run, PolicyRun) else 1.0


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
            begun = now.get(key(run))
            of_state[run] = "missing" if begun is None else "running" if begun.running else "interrupted"
    finished = [run for run, state in of_state.items() if state in ("done", "failed")]
    rates = Rates(store, finished)
    told, seen = [], set(finished)
    for number, own in enumerate(slices(profile), 1):
        left = [run for run in lineage([run for runs in parts[number].values() for run in runs]) if run not in seen]
        seen |= set(left)
        guess = rates.left({run: unmade(run, now.get(key(run))) for run in left}, slots)
        told.append(
            {
                "slice": number,
                **{name: list(getattr(own, name)) for name in ("tasks", "attacks", "ratios", "replicates")},
                "parts": {part: dict(Counter(of_state[run] for run in runs)) for part, runs in parts[number].items()},
                "hours_left": guess.hours,
                "megabytes_left": guess.megabytes,
                "without_rate": guess.without_rate,
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
        "rates_from": rates.source,
        "steps_per_second": {kind: found for kind in kinds if (found := rates.steps_per_second(kind))},
        "processes": slots,
        "missing": [f"{run.KIND} {store.folder(run).name}" for run, s in of_state.items() if s == "missing"],
        "damaged": damaged,
    }


def rehearsal(profile: Profile, known: Mapping[str, Data], place: Workspace, slots: int) -> Iterator[str]:
    """What would run, job by job in their order, with the time of one process; then all of it, with time and disk."""
    store, runs = place.store, list(dict.fromkeys(run for _, run in asked(profile, known)))
    rates, now = Rates(store, filter(store.seen(), lineage(runs))), dict(under_way(store))
    shares: dict[Run, float] = {}
    for job in divide(runs, store, place.device, slots):
        own = {run: unmade(run, now.get(key(run))) for run in job.runs}
        shares |= own
        yield f"{job.name}: {rates.left(own, 1)}"
    yield f"all with {slots} processes: {rates.left(shares, slots)}, by the rates of {rates.source}"


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
        yield f"{'left':17} {Left(own['hours_left'], own['megabytes_left'], own['without_rate'])}"
    for name in told["missing"] if missing else ():
        yield f"    missing {name}"
    yield f"rates are those of {told['rates_from']}, {told['processes']} processes"
    for kind, found in told["steps_per_second"].items():
        yield f"    {kind} steps/s: " + ", ".join(f"{name} {rate:g}" for name, rate in found.items())
    yield from told["damaged"]
    yield f"{told['done']} of {told['asked']} runs of profile {told['profile']} are done in {told['store']}"

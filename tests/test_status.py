"""How far the runs of a profile are: states, rates from what finished runs recorded, time and disk that are left."""

import json
import os
import time

import pytest

from saferule.runs.experiment import Data, get_profile, plan
from saferule.runs.interruptible import PROGRESS
from saferule.runs.spec import PolicyRun
from saferule.runs.status import FRESH, amount, lines, status
from saferule.runs.store import Store

PROFILE = get_profile("smoke", backbones="cpq", training_steps=1_000)
KNOWN = {"CarCircle": Data("d" * 64, 50_000)}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "smoke")


def of_part(told: dict, part: str = "main") -> dict[str, int]:
    (only,) = told["slices"]
    return only["parts"][part]


def made(store: Store, run: PolicyRun, **meta) -> None:
    with store.write(run, **meta) as folder:
        (folder / "log.csv").write_text("step\n1\n")


def test_every_state_is_told_apart(store):
    done, failed, lost, edited, old, new, *others = plan(PROFILE, KNOWN)["main"]
    made(store, done)
    made(store, failed, stopped="critic_loss was not finite")
    made(store, lost)
    (store.folder(lost) / "log.csv").unlink()
    made(store, edited)
    (store.folder(edited) / "log.csv").write_text("step\n2\n")
    (store.partial([old]) / PROGRESS).write_text("7")
    stale = time.time() - FRESH - 1
    for path in store.state_folder([old]).iterdir():
        os.utime(path, (stale, stale))
    store.partial([new])
    counts = {"done": 2, "failed": 1, "damaged": 1, "interrupted": 2, "missing": len(others)}
    assert of_part(status(PROFILE, KNOWN, store, 2)) == counts
    with store.lock():
        running = status(PROFILE, KNOWN, store, 2)
        assert of_part(running) == counts | {"interrupted": 1, "running": 1}
    told = status(PROFILE, KNOWN, store, 2, verify=True)
    assert of_part(told) == counts | {"done": 1, "damaged": 2} and told["done"] == 2
    assert [store.folder(run).name in line for run, line in zip((lost, edited), told["damaged"], strict=True)] == [
        True
    ] * 2
    assert json.loads(json.dumps(told)) == told
    assert any("main" in line and "3 of      9 done (1 running, 1 interrupted" in line for line in lines(running))


def test_rates_are_those_of_the_finished_runs_that_are_nearest(store):
    """A poisoned policy took 50 s of a population of two for 1,000 steps: 25 ms a step of one agent."""
    parts = plan(PROFILE, KNOWN)
    made(store, parts["main"][1], seconds=50.0, population=2, steps=1000)
    told = status(PROFILE, KNOWN, store, 2)
    assert told["steps_per_second"] == {"policy": {"CarCircle cpq": 40.0}}
    left = [run for part in ("main", "controls", "ablations", "readings", "forgetting") for run in parts[part]]
    left = [run for run in left if run != parts["main"][1] and run.start is None]
    (only,) = told["slices"]
    assert only["hours_left"] == round(sum(map(amount, left)) * 0.025 / 3600 / 2, 2) > 0
    assert only["without_rate"] > 0 and only["megabytes_left"] == pytest.approx(len(left) * 0.003, abs=0.1)
    assert told["rates_from"] == "the finished runs of this store"


def test_slices_are_told_one_by_one(store):
    told = status(get_profile("cpu"), {"CarCircle": KNOWN["CarCircle"]}, store, 2)
    assert [own["replicates"] for own in told["slices"]] == [[0, 1, 2, 3, 4], *[[0, 1, 2]] * 3]
    assert [sum(own["parts"]["readings"].values()) for own in told["slices"]] == [38, 0, 0, 0]
    said = list(lines(told))
    assert said[0] == "slice 1: CarCircle; max_cost; 0.15; 0, 1, 2, 3, 4"
    assert said[-1].startswith(f"0 of {told['asked']} runs of profile cpu are done")

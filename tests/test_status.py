"""How far the runs of a profile are: states, rates from what finished runs recorded, time and disk that are left."""

import json
import os
import time
from dataclasses import replace

import pytest

from saferule.runs import rates
from saferule.runs.experiment import SMALL, Data, get_profile, plan
from saferule.runs.interruptible import PROGRESS
from saferule.runs.rates import Rates, amount
from saferule.runs.spec import PolicyRun, lineage
from saferule.runs.status import FRESH, lines, status
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
    (store.partial(left[:1]) / PROGRESS).write_text("250")  # a quarter of it is made
    (begun,) = status(PROFILE, KNOWN, store, 2)["slices"]
    rest = sum(map(amount, left)) - 250
    assert left[0].steps == 1_000 and begun["hours_left"] == round(rest * 0.025 / 3600 / 2, 2)


def test_time_is_measured_alone_and_before_anything_has_run_training_goes_as_committed(store, tmp_path, monkeypatch):
    profile = replace(PROFILE, config=SMALL)  # the widths of the measurement
    parts, none = plan(profile, KNOWN), Rates(store)
    clean, (timing,) = parts["main"][0], parts["timing"]
    monkeypatch.setattr(rates, "MEASURED", tmp_path / "grid.json")
    rates._measured.cache_clear()
    assert none.left({clean: 1.0}, 2) == (None, None, 1) and none.left({}, 2) == (0, 0, 0)
    assert str(none.left({clean: 1.0}, 2)).startswith("time unknown, disk unknown and 1 runs")
    row = {"case": "training", "backbone": "cpq", "population": 1}
    measured = [row | {"workers": n, "agent_steps_per_s": 90.0} for n in (2, 1)]
    other = [{"case": "trivial runs", "ms_per_cell": 7.0}, row | {"population": 7, "workers": 2}]
    rates.MEASURED.write_text(json.dumps({"rows": measured + other}))
    rates._measured.cache_clear()
    told = status(profile, KNOWN, store, 2)
    rates._measured.cache_clear()
    (only,), steps = told["slices"], sum(run.steps for run in lineage(sum(parts.values(), [])) if hasattr(run, "start"))
    assert only["hours_left"] == round(steps * (2 / 90) / 3600 / 2, 2) and only["megabytes_left"] is None
    assert told["rates_from"] == str(rates.MEASURED) and any("disk unknown" in line for line in lines(told))
    made(store, timing, seconds=36.0)
    made(store, clean, seconds=72.0)
    known = Rates(store, [timing, clean])
    assert known.left({timing: 1.0, clean: 0.5}, 2).hours == round(0.01 + 0.5 * 0.02 / 2, 2)


def test_slices_are_told_one_by_one(store):
    told = status(get_profile("cpu"), {"CarCircle": KNOWN["CarCircle"]}, store, 2)
    assert [own["replicates"] for own in told["slices"]] == [[0, 1, 2, 3, 4], *[[0, 1, 2]] * 3]
    assert [sum(own["parts"]["readings"].values()) for own in told["slices"]] == [38, 0, 0, 0]
    said = list(lines(told))
    assert said[0] == "slice 1: CarCircle; max_cost; 0.15; 0, 1, 2, 3, 4"
    assert said[-1].startswith(f"0 of {told['asked']} runs of profile cpu are done")

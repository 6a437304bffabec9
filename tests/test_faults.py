"""What can happen on the way, injected: processes, machines and drivers that die, full disks, damaged files, NaN."""

import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE

import pandas as pd
import psutil
import pytest
from test_store import fresh_interpreter
from tiny_runs import (
    CONFIG,
    KEPT,
    KILLED_IN,
    LOG_EVERY,
    SNAPSHOT,
    STEPS,
    TRIED,
    agent_of,
    applied,
    assert_same_results,
    files,
    make_from,
    relearnings,
    repairs,
    trainings,
)

from saferule import cli
from saferule.agents import loop
from saferule.agents.checkpoint import read
from saferule.errors import RunError
from saferule.runs import engine, execute, experiment, interruptible, results
from saferule.runs.interruptible import Interruptible
from saferule.runs.spec import AdversaryRun, EvaluationRun, PolicyRun, frozen, key
from saferule.runs.status import under_way
from saferule.runs.store import Store, write_sums
from saferule.runs.work import EPISODES, FORGET

pytestmark = pytest.mark.usefixtures("log_often")


# Killed and continued


def make_until_killed(root: str, data_folder: str, digest: str, kind: str, backbone: str, when: str) -> None:
    """Run in a process of its own: make runs and die by SIGKILL on the way.

    The state is saved at every logged step.
    """
    die, update, write = partial(os.kill, os.getpid(), signal.SIGKILL), loop.update, Interruptible._write

    def dying_update(population, *arguments):
        if population.step == KILLED_IN - 1:
            die()
        return update(population, *arguments)

    def dying_write(self, *arguments, **options):
        write(self, *arguments, **options)
        die()  # between the folders of the first and the second agent

    if when == "step":
        loop.update = dying_update
    else:
        Interruptible._write = dying_write
    loop.LOG_ROWS, interruptible.SAVE_SECONDS = STEPS // LOG_EVERY, -1.0
    make_from(Path(data_folder), RUNS[kind](digest, backbone), Path(root))


RUNS = {"train": trainings, "unlearn": repairs, "relearn": relearnings}


@pytest.mark.parametrize(
    ("kind", "backbone", "when"),
    [
        ("train", "bcq-lag", "step"),
        ("unlearn", "bcq-lag", "folder"),
        ("unlearn", "cpq", "step"),
        ("relearn", "cpq", "step"),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    made, make, data_folder, digest, tmp_path, kind, backbone, when
):
    root, whole, runs = made, tmp_path / "whole", RUNS[kind](digest, backbone)
    make(runs, root)
    shutil.copytree(root, whole)
    for run in runs:
        shutil.rmtree(Store(root).folder(run))
    code = "import sys; from test_faults import make_until_killed; make_until_killed(*sys.argv[1:])"
    killed = fresh_interpreter(code, root, data_folder, digest, kind, backbone, when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = [run for run in runs if Store(root).done(run)]
    assert done == ([] if when == "step" else runs[:1])
    (state,) = root.glob("partial/*/state.safetensors")
    assert read(state)[1]["step"] == (KEPT if when == "step" else STEPS)

    there = files(root)
    assert engine.divide(runs, Store(root), "cpu", 1) and files(root) == there  # asking changes nothing
    said, before = [], [files(Store(root).folder(run)) for run in done]
    make(runs, root, said.append)
    assert [files(Store(root).folder(run)) for run in done] == before  # what was finished is not written again
    assert any(f"continued at step {KEPT if when == 'step' else STEPS}" in line for line in said)
    for run in runs:
        assert_same_results(run, root, whole)
    assert not list(root.glob("partial/*"))


# The real command line, stopped and out of space

ENDLESS, LONG = 10**7, 50
STOPS_WITHIN = 5 + 15  # seconds, on a machine that has other things to do


OF_KIND = {
    "policy": lambda digest, steps: [replace(run, steps=steps) for run in trainings(digest, "cpq")],
    "adversary": lambda digest, steps: [AdversaryRun("CarCircle", "max_cost", steps)],
    "evaluation": lambda digest, steps: [EvaluationRun(trainings(digest, "cpq")[0], tuple(range(steps // 10)))],
}


def driver(kind: str, store: str, data_folder: str, digest: str, steps: str) -> None:
    """Run in a process of its own: ``saferule run`` on tiny runs in place of a profile's."""
    runs = [(run.KIND, run) for run in OF_KIND[kind](digest, int(steps))]
    experiment.asked, loop.LOG_ROWS = lambda *_: runs, STEPS // LOG_EVERY
    output = str(Path(store).parent)
    cli.app(["run", "--profile", Path(store).name, "--runs-only", "--output", output, "--data", data_folder])


def command(store: Path, data_folder: Path, digest: str, steps: int, kind: str = "policy") -> list[str]:
    code = "import sys; from test_faults import driver; driver(*sys.argv[1:])"
    return [sys.executable, "-c", code, kind, str(store), str(data_folder), digest, str(steps)]


@pytest.fixture
def smoke(empty_store, tmp_path) -> Path:
    """A copy of the store that has the forget set, where the smoke profile's lies."""
    return Path(shutil.copytree(empty_store, tmp_path / "smoke"))


@pytest.mark.parametrize(
    ("kind", "sent", "code"),
    [
        ("policy", signal.SIGINT, 130),
        ("policy", signal.SIGKILL, -signal.SIGKILL),
        ("adversary", signal.SIGTERM, 143),
        ("evaluation", signal.SIGKILL, -signal.SIGKILL),
    ],
)
def test_a_driver_that_is_stopped_leaves_no_process_and_a_store_to_go_on_with(
    smoke, data_folder, digest, make, kind, sent, code, request
):
    """With processes at work; meanwhile no second driver is let in. Asked for again, everything is made."""
    place = {"cwd": Path(__file__).parent, "env": os.environ | {"OMP_NUM_THREADS": "2"}}
    heard = partial(signal.signal, signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
    asked, at_work = command(smoke, data_folder, digest, ENDLESS, kind), [*OF_KIND[kind](digest, ENDLESS)][:2]
    process = subprocess.Popen(asked, **place, stderr=PIPE, text=True, preexec_fn=heard)
    request.addfinalizer(process.kill)
    while not all(found := [dict(under_way(Store(smoke))).get(key(run)) for run in at_work]):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    assert all(begun.running for begun in found)
    runs = OF_KIND[kind](digest, LONG)
    with pytest.raises(RunError, match=f"{smoke}.*another process is making runs here"):
        make(runs, smoke)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    told = process.communicate(timeout=STOPS_WITHIN)[1]
    assert process.returncode == code and len(children) >= len(at_work)
    if sent != signal.SIGKILL:
        assert told.startswith("saferule: interrupted: finished work is kept") and told.count("\n") == 1
    assert psutil.wait_procs(children, timeout=STOPS_WITHIN)[1] == []
    assert not any(dict(under_way(Store(smoke)))[key(run)].running for run in at_work)
    assert all(map(make(runs, smoke).done, runs)) and not list(smoke.rglob(".*.part"))


def test_a_full_disk_is_one_sentence_and_the_store_goes_on_when_there_is_room(
    smoke, data_folder, digest, make, reference, tmp_path
):
    """A real one, as large as the first of the policies and a half, in a namespace of mounts of its own."""
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    first = Store(reference).folder(trainings(digest, "cpq")[0])
    size = sum(path.stat().st_size for path in [*first.rglob("*"), *smoke.rglob("*")] if path.is_file())
    script = (
        f'mount -t tmpfs -o size={int(1.5 * size)} none "$1" || exit 99; cp -r "$2" "$1"; d="$1"; o="$3"; shift 3; '
        '"$@"; code=$?; cp -r "$d/smoke" "$o"; exit $code'
    )
    told = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, "sh", disk, smoke, out]
        + command(disk / "smoke", data_folder, digest, STEPS),
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    if not out.exists():
        pytest.skip(f"no file system can be mounted here: {told.stderr}")
    assert told.returncode == 2 and told.stderr.count("\n") == 1, told.stderr
    assert told.stderr.startswith(f"saferule: error: {disk}") and "the disk is full: make room" in told.stderr
    assert_whole(out, trainings(digest, "cpq"))
    make(trainings(digest, "cpq"), out)
    for run in trainings(digest, "cpq"):
        assert_same_results(run, out, reference)


def test_a_limit_of_the_size_of_files_ends_everything_at_once(fresh, make, digest, reference):
    """The other way in which a disk says no; what runs in processes of their own is ended, too."""
    runs, (soft, hard) = trainings(digest, "cpq"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            make(runs, fresh)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.filename.startswith(str(fresh))
    assert_whole(fresh, runs)
    make(runs, fresh)
    for run in runs:
        assert_same_results(run, fresh, reference)


def assert_whole(root: Path, runs) -> None:
    """What is done is as it was written, something is not, and there are no drafts."""
    store = Store(root)
    done = [run for run in runs if store.done(run)]
    assert len(done) < len(runs) and all(store.verify(run) == [] for run in done) and not list(root.rglob(".*.part"))


# Damaged files, values that are not finite


def test_a_damaged_state_means_from_the_beginning(reference, fresh, make, digest):
    runs, said = trainings(digest, "cpq"), []
    (Store(fresh).partial(runs[:1]) / interruptible.STATE).write_bytes(b"half a file")
    make(runs, fresh, said.append)
    assert any("from the beginning" in line and interruptible.STATE in line for line in said)
    for run in runs:
        assert_same_results(run, fresh, reference)


def test_an_agent_that_is_not_finite_is_kept_with_its_last_good_state(fresh, make, digest):
    changed, said = frozen(**dict(CONFIG), critic_lr=1e38), []
    runs = [replace(run, config=changed) for run in trainings(digest, "cpq")]
    store = make(runs, fresh, said.append)
    assert results.stopped(store, runs) == [store.meta(run)["stopped"] for run in runs]
    for run in runs:
        meta = store.meta(run)
        assert "step 1" in meta["stopped"] and "state of step 0" in meta["stopped"] and meta["stopped"] in said
        agent = agent_of(fresh, run)
        assert agent.meta["step"] == 0 and agent.meta["stopped"] == meta["stopped"]
        assert all(leaf.isfinite().all() for leaves in agent.nets.values() for leaf in leaves.values())
    assert not list(fresh.glob("partial/*"))
    before = files(fresh)
    make(runs, fresh)
    assert files(fresh) == before


def test_a_run_that_stopped_is_shown_as_failed_at_the_step_of_the_state_that_was_kept(made, make, digest, monkeypatch):
    run, update = applied("fine-tuning", trainings(digest, "cpq")[1]), loop.update

    def update_that_breaks(population, *arguments):
        if population.step == KILLED_IN:
            population.nets["actor"]["w0"].data.fill_(math.nan)
        return update(population, *arguments)

    monkeypatch.setattr(loop, "update", update_that_breaks)
    evaluation = EvaluationRun(run, (1, 2), (1,))
    rows = results.episodes(make([evaluation], made), [evaluation])
    assert rows["step"].tolist() == [SNAPSHOT, KEPT, KEPT] and rows["final"].tolist() == [False, True, True]
    assert rows["failed"].tolist() == [False, True, True]
    stopped = Store(made).meta(run)["stopped"]
    assert rows["reason"].tolist() == ["", stopped, stopped]
    plain = EvaluationRun(run.start, (1,))
    file = make([plain], made).folder(plain) / EPISODES
    pd.read_csv(file).drop(columns=["failed", "reason"]).to_csv(file, index=False)  # as an older evaluation is
    write_sums(file.parent)
    both = results.episodes(Store(made), [plain, evaluation])
    assert both["failed"].tolist() == [False, False, True, True] and both["failed"].dtype == bool
    assert results.episodes(Store(made), [plain])["reason"].tolist() == [""]


# Processes that are lost, errors


def three_repairs(digest: str) -> list[PolicyRun]:
    """Of one policy, each a job of its own."""
    poisoned = trainings(digest, "cpq")[1]
    return [applied(method, poisoned) for method in ("fine-tuning", "trajdeleter", "trajdeleter-released")]


class Dying(execute.InProcess):
    """Stands in for processes that are lost: so many times for each run."""

    def __init__(self, **deaths: int) -> None:
        self.deaths = deaths

    def submit(self, function, workspace, runs, *more):
        if self.deaths.get(runs[0].method, 0):
            self.deaths[runs[0].method] -= 1
            return super().submit(lambda: (_ for _ in ()).throw(BrokenExecutor("killed")))
        return super().submit(function, workspace, runs, *more)


def test_a_worker_that_is_killed_once_is_forgiven_and_twice_is_named(made, make, digest):
    """What builds on its run goes with it, everything else is made."""
    once, twice, fine = three_repairs(digest)
    built, said = EvaluationRun(twice, (1,)), []
    with pytest.raises(RunError, match=r"2 of 4 runs could not be made.*lost twice \(killed\); out of memory"):
        make([once, built, fine], made, said.append, Dying(**{once.method: 1, twice.method: 2}))
    store = Store(made)
    assert [store.done(run) for run in (once, fine, twice, built)] == [True, True, False, False]
    assert sum("tried once more" in line for line in said) == 2
    make([built], made)
    assert store.done(twice) and store.done(built)


@pytest.mark.parametrize("deaths", [4, 5])
def test_a_job_is_tried_again_as_long_as_it_has_come_further(made, make, digest, deaths):
    """Lost four times with a state that has grown, then once with the same."""
    run, *_ = three_repairs(digest)

    class Advancing(Dying):
        def submit(self, function, workspace, runs, *more):
            reached = min(4, 1 + deaths - self.deaths[run.method])
            (workspace.store.partial(runs) / interruptible.PROGRESS).write_text(str(reached))
            return super().submit(function, workspace, runs, *more)

    with pytest.raises(RunError, match="lost twice") if deaths == 5 else nullcontext():
        make([run], made, executor=Advancing(**{run.method: deaths}))
    assert Store(made).done(run) == (deaths == 4)


def test_a_worker_that_is_really_killed_takes_no_other_with_it(fresh, make, digest):
    """While two jobs run and others wait."""
    pool, said = execute.Workers(2), []
    runs = [replace(run, steps=60) for backbone in TRIED for run in trainings(digest, backbone)]

    def kill():
        while not list(fresh.glob("partial/*")):
            time.sleep(0.01)
        os.kill(next(iter(pool._pools[0]._processes)), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store = make(runs, fresh, said.append, pool)
    killer.join()
    pool.stop()
    assert all(map(store.done, runs)) and not list(fresh.glob("partial/*"))
    assert sum("its process was lost" in line for line in said) == 1


def test_a_worker_that_died_while_idle_is_replaced():
    pool = execute.Workers(1)
    with pytest.raises(BrokenExecutor):
        pool.submit(os._exit, 1).result()
    assert pool.submit(len, "abc").result() == 3
    pool.stop()
    assert pool.submit(len, "abcd").result() == 4
    pool.stop()


def test_an_error_that_nobody_foresaw_is_named_and_takes_only_what_builds_on_it(made, make, digest, monkeypatch):
    broken, *others = three_repairs(digest)
    work = engine.work

    def breaking(workspace, runs, *more):
        return work(workspace, runs, *more) if broken not in runs else [][0]

    monkeypatch.setattr(engine, "work", breaking)
    said = []
    with pytest.raises(RunError, match="1 of 3 runs .*fine-tuning-r0: IndexError: list index out of range"):
        make([broken, *others], made, said.append)
    assert all(map(Store(made).done, others)) and any("Traceback" in line for line in said)


def test_an_error_on_purpose_takes_only_what_builds_on_it(fresh, make, digest):
    (clean, *_), (_, poisoned, _) = (trainings(digest, backbone) for backbone in TRIED)
    store = Store(fresh)
    with store.write(poisoned.forget) as folder:
        (folder / FORGET).write_bytes(b"text")
    with pytest.raises(RunError, match="2 of 3 runs.*forget.hdf5"):
        make([EvaluationRun(poisoned, (1,)), clean], fresh)
    assert store.done(clean) and not store.done(poisoned)

"""Runs on a tiny real dataset: made once, found again, and continued after SIGKILL as if nothing had happened."""

import math
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import LOOKS, assert_same_state
from test_store import fresh_interpreter

from saferule.agents import BACKBONES, get_backbone, loop
from saferule.agents.checkpoint import load_agent, read
from saferule.agents.loop import LOOK_EVERY
from saferule.attack.poison import save_forget_set
from saferule.errors import RunError
from saferule.runs import engine, execute, interruptible, results
from saferule.runs.interruptible import AGENT, Interruptible
from saferule.runs.spec import AdversaryRun, EvaluationRun, ForgetRun, PolicyRun, RandomPart, TimingRun, frozen
from saferule.runs.store import Store
from saferule.runs.work import FORGET, TIMES, Workspace, snapshot
from saferule.unlearn import METHODS, start

TRIED = ("cpq", "bcq-lag")
CONFIG = frozen(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=3)
STEPS, LOG_EVERY, SNAPSHOT, KILLED_IN, KEPT = 28, 4, 14, 19, 16
LOGGED = [4, 8, 12, 14, 16, 20, 24, 28]  # a snapshot is logged too


def trainings(digest: str, backbone: str) -> list[PolicyRun]:
    """One clean and two poisoned policies."""
    forget = ForgetRun(AdversaryRun("CarCircle", "max_cost", 1000), digest, 0.15, 2, 0.99, ())
    clean = PolicyRun("CarCircle", backbone, digest, None, "clean", STEPS, 0, config=CONFIG, snapshots=1)
    return [clean, *(replace(clean, forget=forget, method="poisoned", replicate=r) for r in (0, 1))]


def applied(method: str, start: PolicyRun, **changes) -> PolicyRun:
    return replace(start, method=method, start=start, **changes)


def repairs(digest: str, backbone: str) -> list[PolicyRun]:
    """Two variants of Safe-RULE on each poisoned policy."""
    return [applied(m, run) for run in trainings(digest, backbone)[1:] for m in ("safe-rule", "no-critic")]


def relearnings(digest: str, backbone: str) -> list[PolicyRun]:
    """Of replicate 0 the clean, poisoned and repaired policy, of replicate 1 the poisoned one."""
    clean, poisoned, other = trainings(digest, backbone)
    starts = [clean, poisoned, repairs(digest, backbone)[0], other]
    return [applied("relearn", start, forget=poisoned.forget) for start in starts]


@pytest.fixture(autouse=True)
def _log_often(monkeypatch):
    monkeypatch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory, digest, car_forget) -> Path:
    """A store that has the forget set, without the adversary that it came from."""
    store = Store(tmp_path_factory.mktemp("empty"))
    with store.write(trainings(digest, "cpq")[1].forget) as folder:
        save_forget_set(car_forget, folder / FORGET)
    return store.root


@pytest.fixture(scope="module")
def reference(tmp_path_factory, empty_store, make, digest) -> Path:
    """A store with all policies, made without interruption, one population at a time in this process."""
    root = tmp_path_factory.mktemp("reference") / "store"
    shutil.copytree(empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)
        for backbone in TRIED:
            make([*trainings(digest, backbone), *repairs(digest, backbone)], root)
    return root


@pytest.fixture
def fresh(empty_store, tmp_path) -> Path:
    """A copy of the store that has the forget set."""
    return Path(shutil.copytree(empty_store, tmp_path / "store"))


@pytest.fixture
def made(reference, tmp_path) -> Path:
    """A copy of the store that has all policies."""
    return Path(shutil.copytree(reference, tmp_path / "store"))


@pytest.fixture(scope="module")
def digest(car_data) -> str:
    return car_data.digest()


@pytest.fixture(scope="module")
def make(data_folder):
    return partial(make_from, data_folder)


def make_from(data_folder: Path, runs, root: Path, say=lambda line: None, executor=None) -> Store:
    workspace = Workspace(Store(root), data_folder, "cpu")
    engine.make(runs, workspace, executor or execute.InProcess(), say)
    return workspace.store


def agent_of(root: Path, run: PolicyRun):
    return load_agent(Store(root).folder(run) / AGENT)


def moved(before, after) -> set[str]:
    """Names of the networks of which a parameter differs."""
    return {net for net in {*before, *after} if any(not torch.equal(before[net][k], after[net][k]) for k in after[net])}


def files(root: Path) -> dict[Path, int]:
    """When each file below was last changed."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.name != ".lock"}


def assert_same_results(run, root: Path, other: Path) -> None:
    """Equal parameters, optimisers, generators, snapshots and log, bit for bit."""
    one, two = (Store(r).folder(run) for r in (root, other))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in names:
        if name.suffix == ".safetensors":
            (tensors, meta), (tensors_two, meta_two) = read(one / name), read(two / name)
            assert_same_state(tensors, tensors_two)
            assert meta == meta_two
        elif name.name == "log.csv":
            assert (one / name).read_text() == (two / name).read_text()
    assert {path.name for path in one.iterdir()} == {AGENT, "log.csv", "run.json", "SHA256SUMS", "snapshots"}


@pytest.mark.parametrize("backbone", TRIED)
def test_what_a_run_leaves(reference, digest, backbone):
    store = Store(reference)
    for run in trainings(digest, backbone) + repairs(digest, backbone):
        agent, meta = agent_of(reference, run), store.meta(run)
        assert agent.population.step == STEPS and agent.meta["backbone"] == backbone
        assert agent.cfg.hidden == (8, 8) and agent.cfg.observation_dim == 8
        assert (meta["steps"], meta["threads"]) == (STEPS, 1) and meta["seconds"] >= 0
        assert meta["population"] == (2 if run.start or run.replicate == 0 else 1)  # one replicate at a time
        half = load_agent(snapshot(store, run, SNAPSHOT))
        assert half.population is None and half.meta["step"] == SNAPSHOT
        assert ("critic" in half.nets) == (run.start is not None)
        assert not torch.equal(half.nets["actor"]["w0"], agent.nets["actor"]["w0"])
        log = pd.read_csv(store.folder(run) / "log.csv")
        assert log["step"].tolist() == LOGGED and log[[n for n in log if n not in LOOKS]].notna().all().all()
        assert "agent" not in log and store.verify(run) == []
    one, two, three = (agent_of(reference, r).nets["critic"]["w0"] for r in trainings(digest, backbone))
    assert not torch.equal(one, two) and not torch.equal(two, three)
    assert not list(store.root.glob("partial/*"))


@pytest.mark.parametrize("backbone", TRIED)
def test_unlearning_starts_from_the_poisoned_policy(reference, digest, backbone):
    for run in repairs(digest, backbone):
        before, after = (agent_of(reference, r).nets for r in (run.start, run))
        targets, critics = {"actor_target", "critic_target", "cost_critic_target"}, {"critic", "cost_critic"}
        assert moved(before, after) == targets | {"actor"} | (set() if run.method == "no-critic" else critics)


def test_agents_of_one_population_equal_agents_alone(reference, fresh, make, digest):
    """The replicate and the data make an agent, not the others that it was trained with."""
    run = trainings(digest, "cpq")[2]
    make([run], fresh)
    one, two = (read(Store(root).folder(run) / AGENT)[0] for root in (reference, fresh))
    assert_same_state(one, two, 1e-5)


def test_all_stages_in_worker_processes_and_again_for_nothing(reference, fresh, make, digest, monkeypatch):
    """Two backbones are two populations, which run side by side; evaluations start when their policy is there."""
    runs = [run for backbone in TRIED for run in trainings(digest, backbone)]
    repaired = [applied(m, runs[1 + 3 * i]) for i in range(2) for m in ("safe-rule", "fine-tuning")]
    evaluations = [EvaluationRun(runs[1], tuple(range(100, 106)), (100, 101)), EvaluationRun(repaired[0], (100, 101))]
    everything, said, pool = [*evaluations, *runs, *repaired], [], execute.process_pool(2)
    store = make(everything, fresh, said.append, pool)
    for run in runs:
        assert_same_state(*(read(Store(root).folder(run) / AGENT)[0] for root in (fresh, reference)))
    rows = results.episodes(store, evaluations)
    assert rows["seed"].tolist() == [100, 101, *range(100, 106), 100, 101] and (rows["length"] == 300).all()
    assert rows["step"].tolist() == [SNAPSHOT] * 2 + [STEPS] * 8 and rows["final"].tolist() == [False] * 2 + [True] * 8
    assert rows["method"].tolist() == ["poisoned"] * 8 + ["safe-rule"] * 2
    assert rows["start"].tolist() == [""] * 8 + ["poisoned"] * 2 and (rows["cost_limit"] == 10).all()
    assert (rows[["task", "backbone", "attack", "ratio"]] == ["CarCircle", "cpq", "max_cost", 0.15]).all().all()
    logs = results.logs(store, repaired)
    assert set(logs["method"]) == {"safe-rule", "fine-tuning"} and set(logs["backbone"]) == set(TRIED)
    assert sum("steps/s" in line for line in said) == 8
    pool.shutdown()

    before, said = files(fresh), []
    monkeypatch.setattr(engine, "work", lambda *_: pytest.fail("a job was started"))
    make(everything, fresh, said.append)
    assert files(fresh) == before and said == []


def test_the_cost_limit_of_the_training_is_that_of_the_rows(fresh, make, digest):
    run = replace(trainings(digest, "cpq")[0], config=frozen(**dict(CONFIG), cost_limit=25.0))
    evaluations = [EvaluationRun(run, (3,))]
    (row,) = results.episodes(make(evaluations, fresh), evaluations).to_dict("records")
    assert row["cost_limit"] == 25 and row["normalised_cost"] == row["cost"] / 25


# What can happen on the way


def make_until_killed(root: str, data_folder: str, digest: str, kind: str, backbone: str, when: str) -> None:
    """Run in a process of its own: make runs and die by SIGKILL on the way.

    Before a death in a step the state is saved at every logged step, else only when all steps are made.
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
    loop.LOG_ROWS, interruptible.SAVE_SECONDS = STEPS // LOG_EVERY, -1.0 if when == "step" else math.inf
    make_from(Path(data_folder), RUNS[kind](digest, backbone), Path(root))


RUNS = {"train": trainings, "unlearn": repairs, "relearn": relearnings}


@pytest.mark.parametrize(
    ("kind", "backbone", "when"),
    [("train", "bcq-lag", "step"), ("train", "cpq", "folder"), ("unlearn", "cpq", "step"), ("relearn", "cpq", "step")],
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    made, make, data_folder, digest, tmp_path, kind, backbone, when
):
    root, whole, runs = made, tmp_path / "whole", RUNS[kind](digest, backbone)
    make(runs, root)
    shutil.copytree(root, whole)
    for run in runs:
        shutil.rmtree(Store(root).folder(run))
    code = "import sys; from test_engine import make_until_killed; make_until_killed(*sys.argv[1:])"
    killed = fresh_interpreter(code, root, data_folder, digest, kind, backbone, when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = [run for run in runs if Store(root).done(run)]
    assert done == ([] if when == "step" else runs[:1])
    (state,) = root.glob("partial/*/state.safetensors")
    assert read(state)[1]["step"] == (KEPT if when == "step" else STEPS)

    said, before = [], [files(Store(root).folder(run)) for run in done]
    make(runs, root, said.append)
    assert [files(Store(root).folder(run)) for run in done] == before  # what was finished is not written again
    assert any(f"continued at step {KEPT if when == 'step' else STEPS}" in line for line in said)
    for run in runs:
        assert_same_results(run, root, whole)
    assert not list(root.glob("partial/*"))


def test_a_damaged_state_means_from_the_beginning(reference, fresh, make, digest):
    runs, said = trainings(digest, "cpq"), []
    (Store(fresh).partial(runs) / interruptible.STATE).write_bytes(b"half a file")
    make(runs, fresh, said.append)
    assert any("from the beginning" in line and interruptible.STATE in line for line in said)
    for run in runs:
        assert_same_results(run, fresh, reference)


def test_an_agent_that_is_not_finite_is_kept_with_its_last_good_state(fresh, make, digest):
    changed, said = frozen(**dict(CONFIG), critic_lr=float("inf")), []
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


def test_a_run_that_stopped_is_shown_at_the_step_of_the_state_that_was_kept(made, make, digest, monkeypatch):
    run, update = applied("fine-tuning", trainings(digest, "cpq")[1]), loop.update

    def update_that_breaks(population, *arguments):
        if population.step == KILLED_IN:
            population.nets["actor"]["w0"].data.fill_(math.nan)
        return update(population, *arguments)

    monkeypatch.setattr(loop, "update", update_that_breaks)
    evaluation = EvaluationRun(run, (1, 2), (1,))
    rows = results.episodes(make([evaluation], made), [evaluation])
    assert rows["step"].tolist() == [SNAPSHOT, KEPT, KEPT] and rows["final"].tolist() == [False, True, True]


def three_repairs(digest: str) -> list[PolicyRun]:
    """Of one policy, each a job of its own."""
    poisoned = trainings(digest, "cpq")[1]
    return [applied(method, poisoned) for method in ("fine-tuning", "trajdeleter", "trajdeleter-released")]


def test_a_worker_that_is_killed_once_is_forgiven_and_twice_is_named(made, make, digest, monkeypatch):
    """Its job is tried again alone; what builds on it goes with it, everything else is made."""
    once, twice, fine = three_repairs(digest)
    built, deaths = EvaluationRun(twice, (1,)), {once: 1, twice: 2}

    class Dying(execute.InProcess):
        def submit(self, function, workspace, runs, *more):
            if deaths.get(runs[0], 0):
                deaths[runs[0]] -= 1
                return super().submit(lambda: (_ for _ in ()).throw(BrokenProcessPool("killed")))
            return super().submit(function, workspace, runs, *more)

    dying = Dying()
    monkeypatch.setattr(engine, "stop", lambda pool: None)
    monkeypatch.setattr(engine, "local_pool", lambda: dying)
    with pytest.raises(RunError, match="2 of 4 runs could not be made.*killed twice.*out of memory"):
        make([once, built, fine], made, executor=dying)
    store = Store(made)
    assert [store.done(run) for run in (once, fine, twice, built)] == [True, True, False, False]
    make([built], made)
    assert store.done(twice) and store.done(built)


def test_a_worker_that_is_really_killed_is_replaced(fresh, make, digest):
    """While two jobs run and others wait: none is submitted to what is left of the pool."""
    pool = execute.process_pool(2)
    runs = [replace(run, steps=400) for backbone in BACKBONES for run in trainings(digest, backbone)]

    def kill():
        while not list(fresh.glob("partial/*")):
            time.sleep(0.01)
        os.kill(next(iter(pool._processes)), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    store = make(runs, fresh, executor=pool)
    killer.join()
    assert all(map(store.done, runs)) and not list(fresh.glob("partial/*"))
    with pytest.raises(BrokenProcessPool):
        pool.submit(len, "abc").result()
    execute.stop(execute.local_pool())


def test_nothing_is_submitted_to_a_pool_while_it_breaks(made, make, digest, monkeypatch):
    """The first of two running jobs tells that their pool is broken; the other ends later, a third one waits."""
    runs = three_repairs(digest)

    class Breaking(Executor):
        _max_workers, submitted = 2, 0

        def submit(self, *_):
            self.submitted += 1
            assert self.submitted <= 2, "submitted to a broken pool"
            future, end = Future(), BrokenProcessPool("killed")
            threading.Timer(0.2 * self.submitted, future.set_exception, [end]).start()
            return future

    monkeypatch.setattr(engine, "stop", lambda pool: None)
    monkeypatch.setattr(engine, "local_pool", execute.InProcess)
    store = make(runs, made, executor=Breaking())
    assert all(map(store.done, runs))


def test_an_error_on_purpose_takes_only_what_builds_on_it(fresh, make, digest):
    (clean, *_), (_, poisoned, _) = (trainings(digest, backbone) for backbone in TRIED)
    store = Store(fresh)
    (store.folder(poisoned.forget) / FORGET).write_bytes(b"text")
    with pytest.raises(RunError, match="2 of 3 runs.*forget.hdf5"):
        make([EvaluationRun(poisoned, (1,)), clean], fresh)
    assert store.done(clean) and not store.done(poisoned)


# The other backbones, relearning, timing


@pytest.mark.parametrize("backbone", ["bear-lag", "coptidice"])
def test_the_other_backbones_and_methods(backbone, fresh, make, digest):
    poisoned = trainings(digest, backbone)[1]
    for method in ("safe-rule", "trajdeleter-released", "fine-tuning"):
        run = applied(method, poisoned, snapshots=0)
        store = make([run], fresh)
        before, after = (agent_of(fresh, r) for r in (poisoned, run))
        assert not torch.equal(before.nets["actor"]["w0"], after.nets["actor"]["w0"])
        log = pd.read_csv(store.folder(run) / "log.csv")
        assert log["step"].tolist() == [s for s in LOGGED if s != SNAPSHOT]
        looked = log.loc[log["step"] % (LOOK_EVERY * 4) == 0, sorted(LOOKS)]  # a step in four is logged
        assert len(looked) == 1 and log.drop(columns=LOOKS).notna().all(axis=None) and looked.notna().all(axis=None)
        assert "stopped" not in store.meta(run) and after.cfg.hidden == (8, 8)


def test_controls_are_made_from_what_they_start_from_and_on_what_they_are_given(fresh, make, digest, data_folder):
    """Side by side in one population where their losses are the same, whatever they start from and forget."""
    clean, poisoned, _ = trainings(digest, "cpq")
    part = RandomPart("max_cost", 0.15, 120)
    controls = {
        "keep-only": applied("keep-only", poisoned),
        "critic-only": applied("critic-only", poisoned),
        "random-forget": applied("random-forget", poisoned, forget=part),
        "on-clean": applied("on-clean", clean, forget=poisoned.forget),
        "continued": applied("continued", poisoned),
        "short-retraining": replace(clean, method="short-retraining", steps=STEPS // 2),
    }
    store = make(list(controls.values()), fresh)
    logs = {name: pd.read_csv(store.folder(run) / "log.csv") for name, run in controls.items()}
    assert (logs["keep-only"]["forget_gradient"].dropna() == 0).all()
    assert (logs["critic-only"]["beta_f"] == 0).all() and (logs["on-clean"]["forget_gradient"].dropna() > 0).all()
    assert logs["short-retraining"]["step"].max() == STEPS // 2
    # The targets of critics that do not forget are those of training: what is kept differs between the random part's
    # complement and D, and what is forgotten between the part and D_f.
    first = [logs[name].iloc[0]["critic_loss"] for name in ("keep-only", "random-forget")]
    assert first[0] != first[1]
    assert store.meta(controls["random-forget"])["run"]["forget"]["samples"] == 120
    other = applied("random-forget", poisoned, forget=replace(part, samples=121))
    assert store.folder(other) != store.folder(controls["random-forget"])


@pytest.mark.parametrize("backbone", ["cpq", "coptidice"])
def test_relearning_trains_all_that_training_trains_and_keeps_nothing_of_a_method(backbone, fresh, make, digest):
    module = get_backbone(backbone)
    make(relearnings(digest, backbone), fresh)
    learned = {name for names, _ in module.LOSSES for name in names}
    usual = agent_of(fresh, trainings(digest, backbone)[1]).population
    for run in relearnings(digest, backbone):
        before, after = agent_of(fresh, run.start), agent_of(fresh, run)
        changed = moved(before.nets, after.nets)
        assert learned <= changed and changed - learned <= set(module.TARGETS)
        assert after.population.step == STEPS and after.population.scalars.keys() == usual.scalars.keys()
        for name in ("init_proportion", "observation_std"):  # COptiDICE's, of D and D_f whatever the start knew
            if name in usual.scalars:
                assert torch.equal(after.population.scalars[name], usual.scalars[name])


@pytest.mark.parametrize("apart", [False, True])
def test_agents_of_a_replicate_see_the_same_batches_and_noise(
    made, make, digest, car_data, car_forget, monkeypatch, apart
):
    """In one population, and each in its own; what relearns sees poison."""
    runs, rows, noises = relearnings(digest, "cpq"), [], []

    def note(function, found):
        def noted(*arguments):
            result = function(*arguments)
            found.append(result if torch.is_tensor(result) else torch.cat([v.flatten(1) for v in result.values()], 1))
            return result

        return noted

    monkeypatch.setattr(start, "draw_rows", note(start.draw_rows, rows))
    monkeypatch.setattr(loop, "draw_noise", note(loop.draw_noise, noises))
    for group in [[run] for run in runs] if apart else [runs[:3], runs[3:]]:
        make(group, made)
    for found in (rows, noises):
        clean, poisoned, repaired, other = torch.cat(
            [torch.stack(found[i : i + STEPS], 1) for i in range(0, len(found), STEPS)]
        )  # each (steps, ...)
        assert torch.equal(clean, poisoned) and torch.equal(clean, repaired)
        assert not torch.equal(clean, other)
    drawn = torch.cat(rows)
    assert 0 < (drawn >= len(car_data)).float().mean() < 1 and drawn.max() < len(car_data) + len(car_forget)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_table_3_is_measured_once(backbone, make, digest, tmp_path):
    methods = ("fine-tuning", "trajdeleter-released", "safe-rule")
    run = TimingRun("CarCircle", backbone, digest, methods, 1000, 50, 2, 0.001, CONFIG)
    store = make([run], tmp_path)
    rows = results.times(store, [run]).set_index("method")
    assert list(rows.index) == ["clean", *methods] and set(rows.index) <= METHODS.keys()
    assert rows.loc["clean", "factor"] == rows.loc["clean", "relative_step"] == 1
    assert (rows["steps"] == [1000, 50, 50, 50]).all() and (rows["ms_per_step"] > 0).all()
    assert rows["seconds"].to_numpy() == pytest.approx((rows["steps"] * rows["ms_per_step"] / 1000).to_numpy())
    assert (rows["factor"] * rows["share"]).to_numpy() == pytest.approx(1)
    before = files(store.root)
    make([run], tmp_path)
    assert files(store.root) == before and (store.folder(run) / TIMES).is_file()

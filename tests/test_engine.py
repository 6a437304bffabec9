"""Runs on a tiny real dataset: made once, found again, and continued after SIGKILL as if nothing had happened."""

import io
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import LOOKS, assert_same_state
from tiny_runs import (
    CONFIG,
    LOGGED,
    SNAPSHOT,
    STEPS,
    TRIED,
    agent_of,
    applied,
    files,
    moved,
    relearnings,
    repairs,
    trainings,
)

from saferule.agents import BACKBONES, get_backbone, loop
from saferule.agents.checkpoint import load_agent, read
from saferule.agents.loop import LOOK_EVERY
from saferule.errors import RunError
from saferule.runs import engine, execute, results
from saferule.runs.experiment import Data, asked, get_profile
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import EvaluationRun, Level, PolicyRun, RandomPart, TimingRun, frozen, key
from saferule.runs.store import Store
from saferule.runs.work import EPISODES, TIMES, snapshot
from saferule.unlearn import METHODS, start

pytestmark = pytest.mark.usefixtures("log_often")


@pytest.mark.parametrize("backbone", TRIED)
def test_what_a_run_leaves(reference, digest, backbone):
    store = Store(reference)
    for run in trainings(digest, backbone) + repairs(digest, backbone):
        agent, meta = agent_of(reference, run), store.meta(run)
        assert agent.population.step == STEPS and agent.meta["backbone"] == backbone
        assert agent.cfg.hidden == (8, 8) and agent.cfg.observation_dim == 8
        assert (meta["steps"], meta["threads"]) == (STEPS, 1) and meta["seconds"] >= 0
        assert meta["population"] == (2 if run.start else 1)  # one replicate of one condition at a time
        beside = [other for other in repairs(digest, backbone) if other.start == run.start and other != run]
        assert meta["trained_with"] == ([key(other) for other in beside] if run.start else [])
        half = load_agent(snapshot(store, run, SNAPSHOT))
        assert half.population is None and half.meta["step"] == SNAPSHOT
        assert ("critic" in half.nets) == (run.method == "safe-rule")  # which the theory looks into
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


@pytest.mark.parametrize(("device", "sizes"), [("cpu", [1, 1, 8, 2]), ("cuda", [12])])
def test_what_is_trained_together(fresh, digest, device, sizes):
    """On a CPU a cell of the first replicate is there soon, and of the others as many as gain from it go together."""
    clean, poisoned, _ = trainings(digest, "cpq")
    runs = [replace(run, replicate=replicate) for replicate in range(6) for run in (clean, poisoned)]
    jobs = [job.runs for job in engine.divide(runs, Store(fresh), device, 1) if isinstance(job.runs[0], PolicyRun)]
    assert [len(group) for group in jobs] == sizes and [run for group in jobs for run in group] == runs


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
    everything, said, pool = [*evaluations, *runs, *repaired], [], execute.Workers(2)
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
    assert sum("steps/s" in line for line in said) == 10  # 3 trainings and 2 repairs of each backbone
    pool.shutdown()

    before, said = files(fresh), []
    monkeypatch.setattr(engine, "work", lambda *_: pytest.fail("a job was started"))
    make(everything, fresh, said.append)
    assert files(fresh) == before and said == []


def test_a_slice_is_complete_before_the_next_and_time_is_measured_at_its_end(make, tmp_path):
    """Two slices of one task, two ratios: what is made, in its order."""
    chosen = {"backbones": ["cpq"], "attacks": ["max_cost"], "videos": False}
    first, second = (get_profile("cpu", **chosen, tasks="CarCircle", ratios=r, replicates=0) for r in (0.15, 0.05))
    data = {"CarCircle": Data("d" * 64, 50_000)}
    of_first, of_second = ([run for _, run in asked(profile, data)] for profile in (first, second))
    made = []

    class Noting(execute.InProcess):
        def submit(self, function, workspace, runs, *say):
            return super().submit(lambda: [made.extend(runs), []][1])

    make([*of_first, *of_second], tmp_path, executor=Noting())
    when = made.index(of_first[-1])
    assert isinstance(of_first[-1], TimingRun)
    kinds = PolicyRun, EvaluationRun  # forget sets are made with those of the same rollouts
    assert [run in of_first for run in made[:when] if isinstance(run, kinds)] == [True] * sum(
        isinstance(run, kinds) for run in set(of_first)
    )
    assert {run.ratio for run in made[when:] if isinstance(run, PolicyRun) and run.ratio} == {0.05}


@pytest.mark.parametrize("terminal", [True, False])
def test_how_far_it_is_stands_in_a_bar_or_in_lines(fresh, make, digest, monkeypatch, terminal):
    class Stream(io.StringIO):
        isatty = lambda self: terminal  # noqa: E731

    said, stream = [], Stream()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr(engine, "SAVE_SECONDS", 0.0)
    make(trainings(digest, "cpq"), fresh, said.append)
    lines = [line for line in said if "runs made, " in line]
    if terminal:
        shown = re.search(r"2 of 3 runs, .*(run/s|s/run), 0\.00 h, 0\.0 MB left", stream.getvalue())
        assert shown and not lines
    else:
        assert stream.getvalue() == "" and lines[0] == "1 of 3 runs made, 0.00 h, 0.0 MB left"


def test_the_cost_limit_of_the_training_is_that_of_the_rows(fresh, make, digest):
    run = replace(trainings(digest, "cpq")[0], config=frozen(**dict(CONFIG), cost_limit=25.0))
    evaluations = [EvaluationRun(run, (3,))]
    (row,) = results.episodes(make(evaluations, fresh), evaluations).to_dict("records")
    assert row["cost_limit"] == 25 and row["normalised_cost"] == row["cost"] / 25


# How much of a policy is kept


def held(store: Store, run: PolicyRun) -> set[str]:
    """Kinds of tensors in a policy's file: nets, scalars, adam, generators."""
    return {name.split("/")[0] for name in read(store.folder(run) / AGENT)[0]}


def test_of_a_policy_is_kept_what_is_read_later(reference, fresh, make, digest):
    """All that another run starts from of those that others do start from, of the others what acts."""
    clean, poisoned, _ = trainings(digest, "cpq")
    main, ablation = applied("safe-rule", poisoned), applied("no-critic", poisoned)
    store = make([clean, main, ablation], fresh, level=Level.RECORD)
    levels = [store.level(run) for run in (clean, poisoned, main, ablation)]
    assert levels == [Level.WHOLE] * 3 + [Level.SNAPSHOTS]
    assert [store.meta(run)["kept"] for run in (main, ablation)] == ["WHOLE", "SNAPSHOTS"]
    assert held(store, main) == {"nets", "scalars", "generators"} and held(store, ablation) == {"nets"}
    acting, whole = (agent_of(root, ablation).nets for root in (fresh, reference))
    assert set(acting) == set(get_backbone("cpq").ACTING) < set(whole)
    assert_same_state(acting["actor"], whole["actor"])
    evaluation = EvaluationRun(ablation, (1,), (1,))
    before = files(store.folder(ablation))
    assert set(results.episodes(make([evaluation], fresh), [evaluation])["step"]) == {SNAPSHOT, STEPS}
    assert files(store.folder(ablation)) == before


def test_a_policy_with_less_than_is_read_is_made_again_and_nothing_else(reference, fresh, make, digest):
    poisoned = trainings(digest, "cpq")[1]
    ablation, evaluation = applied("no-critic", poisoned), EvaluationRun(applied("no-critic", poisoned), (1,))
    store = make([evaluation], fresh, level=Level.RECORD)
    before = files(fresh)
    relearned = applied("relearn", ablation)
    make([relearned], fresh, level=Level.RECORD)
    changed = {path for path, when in files(fresh).items() if before.get(path) != when and path.is_file()}
    assert {path.relative_to(fresh).parts[2] for path in changed} == {
        store.folder(run).name for run in (ablation, relearned)
    }
    assert store.level(ablation) == Level.WHOLE
    for name, tensor in read(store.folder(ablation) / AGENT)[0].items():
        assert_same_state(tensor, read(Store(reference).folder(ablation) / AGENT)[0][name], 1e-6)


# Damaged runs


def edited(store: Store, run: EvaluationRun) -> None:
    """A cost of 6000 in 300 steps."""
    path = store.folder(run) / EPISODES
    path.write_text(path.read_text().replace(",", ",9", 1))


def deleted(store: Store, run: EvaluationRun) -> None:
    (store.folder(run) / EPISODES).unlink()


def emptied(store: Store, run: EvaluationRun) -> None:
    (store.folder(run.policy) / "run.json").write_text("")


def flipped(store: Store, run: EvaluationRun) -> None:
    path = store.folder(run.policy) / AGENT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def truncated(store: Store, run: EvaluationRun) -> None:
    path = store.folder(run.policy) / AGENT
    path.write_bytes(path.read_bytes()[:-100])


def copied_over(store: Store, run: EvaluationRun) -> None:
    """The agent that it was repaired from in its place."""
    shutil.copy(store.folder(run.policy.start) / AGENT, store.folder(run.policy) / AGENT)


def unlisted(store: Store, run: EvaluationRun) -> None:
    (store.folder(run.policy) / "SHA256SUMS").write_text("")


@pytest.mark.parametrize("tamper", [edited, deleted, emptied, flipped, truncated, copied_over, unlisted])
def test_a_damaged_run_is_named_and_made_again_with_what_was_built_on_it(made, make, digest, tamper):
    repaired = repairs(digest, "cpq")[0]
    run, other = EvaluationRun(repaired, (1,)), EvaluationRun(repaired.start, (1,))
    store, said = make([run, other], made), []
    rows, before = results.episodes(store, [run]), files(made)
    tamper(store, run)
    damaged = run if tamper in (edited, deleted) else repaired
    sentences = store.verify(damaged)
    assert sentences and all(str(store.folder(damaged)) in sentence for sentence in sentences)
    assert not store.done(run) and store.done(other) and store.done(repaired.start)
    with pytest.raises(RunError, match=str(store.folder(damaged))):
        store.sound(damaged)
    make([run, other], made, said.append, level=Level.RECORD)
    assert said[0] == f"{sentences[0]}: made again, with what was built on it"
    again = {path.parts[-2] for path, when in files(made).items() if path.is_file() and before.get(path) != when}
    assert again - {"snapshots"} == {store.folder(each).name for each in {run, damaged}}
    assert store.verify(run) == store.verify(repaired) == []
    assert results.episodes(store, [run]).equals(rows)


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

"""Detection on data made by hand, where the truth is known; and from a poisoned file to a repaired policy."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny_runs import applied, moved, trainings
from typer.testing import CliRunner

from saferule import detect as module
from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent, save_agent
from saferule.agents.population import create
from saferule.attack.poison import poison, poisoned
from saferule.cli import app
from saferule.data.schema import Dataset, clean_data, concatenate, load, save
from saferule.detect import FOLDS, INDICES, MEASURED, RECORD, STATISTICS, TRAJECTORIES, beyond, detect, judged, p_values
from saferule.errors import RunError, SettingsError
from saferule.report import detection
from saferule.report.figures import FIGURES
from saferule.report.style import ATTACKS
from saferule.runs import results
from saferule.runs.engine import divide
from saferule.runs.interruptible import AGENT
from saferule.runs.places import project_root
from saferule.runs.spec import DetectionRun, KnownPart, key, lineage, read_by
from saferule.runs.work import _marked
from saferule.sim import get_task
from saferule.unlearn.start import known_part

E, T = 90, 30


def made(seed: int, episodes: int = E) -> Dataset:
    """A walk in two dimensions: the reward is its height and noise, a step far out costs 1."""
    rng, rows = np.random.default_rng(seed), episodes * T
    actions = rng.uniform(-1, 1, (rows, 2))
    walk = 0.4 * actions.reshape(episodes, T, 2).cumsum(axis=1) + rng.normal(size=(episodes, 1, 2))
    next_states = walk.reshape(rows, 2)
    states = next_states - 0.4 * actions
    rewards, costs = next_states[:, 1] + 0.1 * rng.normal(size=rows), next_states[:, 0] > 1
    ends = np.arange(rows) % T == T - 1
    return Dataset(states, next_states, actions, rewards, costs, np.zeros(rows), ends)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return made(0)


@pytest.fixture(scope="module")
def union(data) -> Dataset:
    """With ten further trajectories, the costliest of thirty, labelled as the paper's attack does."""
    more = made(1, 30)
    worst = more.select(np.argsort(-more.episode_costs())[:10])
    return concatenate([data, replace(worst, rewards=np.full(len(worst), 1.5), costs=np.zeros(len(worst)))])


TRUTH = np.arange(E + 10) >= E


# By hand


def test_p_values_are_ranks_among_those_as_far_off_on_the_other_side():
    """The median is 10, less which they are 0, 1, 3, -1, -4: as far off to the other side lie 3, 2, 1, 4, 5 of them."""
    statistic = np.array([10.0, 11, 13, 9, 6])
    assert p_values(statistic).tolist() == [4 / 6, 3 / 6, 2 / 6, 5 / 6, 6 / 6]
    assert p_values(np.array([0, 0, 0, 100.0]) + 7).tolist() == [4 / 5, 4 / 5, 4 / 5, 1 / 5]
    assert (p_values(np.zeros(9)) == 1).all()


def test_honest_ones_are_flagged_as_often_as_asked():
    """Symmetric statistics, with and without a tenth of poison far above: at most the rate, on average."""
    rng, alarms = np.random.default_rng(0), []
    for outliers in (0, 40):
        for _ in range(50):
            p = p_values(np.append(rng.normal(size=400), np.full(outliers, 50.0)))
            alarms.append((p[:400] <= 0.05).mean())
            assert (p[400:] == 1 / (401 + outliers)).all()
    assert np.mean(alarms) == pytest.approx(0.04, abs=0.02)


def test_no_trajectory_is_judged_by_a_model_that_saw_it(data):
    episode, judged_rows = np.repeat(np.arange(E), T), []
    for fit, left in module._folds(data, 0):
        assert not set(episode[fit]) & set(episode[left])
        judged_rows += left.tolist()
    assert sorted(judged_rows) == list(range(E * T))


def test_judged_by_hand():
    found = pd.DataFrame({"flagged": [True, True, False, False], "p": [0.01, 0.02, 0.5, 1.0]})
    found = found.assign(**dict.fromkeys(STATISTICS, [3, 2, 1, 0]), reward_sd=[1, 0, 0, 1], cost=0, **{"return": 1})
    row = judged(found, np.array([True, False, True, False]))
    assert (row["poisoned"], row["flagged"], row["precision"], row["recall"]) == (2, 2, 0.5, 0.5)
    assert (row["false_alarms"], row["auc"], row["auc_evenness"], row["auc_no_cost"]) == (0.5, 0.75, 0.75, 0.5)
    assert row["auc_even_rewards"] == 0.5 and row["recall_even_rewards"] == 0.5
    assert row["recall_ranked"] == 0.5 and row["recall_no_cost"] == 0.5  # all are tied: two of four at random
    three = judged(found.assign(flagged=False), np.array([True, True, False, True]))
    assert three["recall"] == 0 and three["recall_even_rewards"] == pytest.approx(2 / 3)
    clean = judged(found, np.zeros(4, bool))
    assert clean["false_alarms"] == 0.5 and clean["precision"] == 0 and np.isnan(clean["recall"] + clean["auc"])


def test_what_is_said_of_false_alarms_is_what_was_measured():
    rows = pd.read_csv(project_root() / "artifacts" / "bench" / "detection.csv")
    assert MEASURED == f"{rows['false_alarms'].min():.0%}".rstrip("%") + f" to {rows['false_alarms'].max():.0%}"


def measured_table() -> str:
    """What FINDINGS.md shows of the artifact: precision / recall / share of D that is flagged."""
    rows = pd.read_csv(project_root() / "artifacts" / "bench" / "detection.csv").query("attack != 'clean'")
    numbers = [
        f"{'–' if np.isnan(row.precision) else f'{row.precision:.2f}'} / {row.recall:.2f} / {row.false_alarms:.1%}"
        for row in rows.itertuples()
    ]
    rows = rows.assign(numbers=numbers, ratio=(100 * rows["ratio"]).map("{:g} %".format))
    wide = rows.pivot(index=["task", "labels", "ratio"], columns="attack", values="numbers").reindex(
        rows[["task", "labels", "ratio"]].drop_duplicates()
    )
    names = [ATTACKS[attack] for attack in wide.columns]
    lines = [["task", "labels", "poison", *names], ["---"] * (3 + len(names))]
    lines += [
        [*where, *("not measured" if pd.isna(cell) else cell for cell in cells)] for where, *cells in wide.itertuples()
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_findings_show_what_was_measured():
    findings = (project_root() / "FINDINGS.md").read_text("utf-8")
    assert measured_table() in findings
    rows = pd.read_csv(project_root() / "artifacts" / "bench" / "detection.csv").query("attack != 'clean'")
    best = rows[[f"recall_{name.replace(' ', '_')}" for name in module.TRIVIAL]].max(axis=1)
    better, naive = rows["recall_ranked"] > best, rows["labels"] == "constant"
    here = (rows["task"] == "CarCircle") & ~naive
    assert f"in {better[here].sum()} of CarCircle's {here.sum()} sets with less naive labels" in findings
    assert not better[naive].any()  # and in none with constant ones


def test_one_is_flagged_where_few_enough_lie_as_far_off_to_the_other_side():
    """Of 150 at a rate of 5 % where none does: 1/151 <= 0.0125 < 2/151; of 450 where at most four do."""
    assert [beyond(count, 0.05) for count in (78, 79, 150, 450)] == [0, 1, 1, 5]
    for count in (150, 450):
        assert beyond(count, 0.05) / (count + 1) <= 0.05 / 4 < (beyond(count, 0.05) + 1) / (count + 1)


# On data


def test_naive_poison_is_found_and_clean_data_are_left_alone(data, union):
    found = detect(union, 0.1)
    row = judged(found, TRUTH)
    assert row["recall"] == 1 and row["auc"] > 0.9 and row["false_alarms"] <= 0.2  # the models saw the poison
    assert row["auc_evenness"] > 0.95 and row["auc_missing_cost"] > 0.95
    assert found["trajectory"].tolist() == list(range(E + 10)) and found["p"].between(0, 1).all()
    assert detect(data, 0.1)["flagged"].mean() <= 0.1
    pd.testing.assert_frame_equal(found, detect(union, 0.1))  # the same again


def test_data_without_costs_or_without_any_variation_say_nothing(data):
    nothing = np.zeros(len(data))
    found = detect(replace(data, rewards=nothing, costs=nothing), 0.1)
    assert np.isfinite(found[list(STATISTICS)]).all(axis=None)
    assert (found[["p_evenness", "p_missing_cost", "p_reward_error"]] == 1).all(axis=None)


@pytest.mark.parametrize(
    ("rate", "told"), [(0.04, r"is 0\.04, expected from 0\.044 .with 90"), (1.0, "between 0 and 1"), (np.nan, "nan")]
)
def test_rates_that_cannot_be_had_are_refused_before_any_work(data, rate, told, monkeypatch):
    monkeypatch.setattr(module, "predicted", None)
    with pytest.raises(SettingsError, match=told):
        detect(data, rate)


# What is forgotten


def test_a_known_part_holds_smaller_ones():
    marks = [known_part(20, 10, share, mistaken, 3) for share, mistaken in ((0.5, 0), (0.8, 0), (1, 0.1), (1, 0.25))]
    assert [(m[:20].sum(), m[20:].sum()) for m in marks] == [(0, 5), (0, 8), (2, 10), (5, 10)]
    assert (marks[0] <= marks[1]).all() and (marks[2] <= marks[3]).all()
    assert (known_part(20, 10, 0.5, 0, 4) != marks[0]).any()


def test_repairs_forget_what_is_known_or_what_was_detected(digest, car_data, car_forget, fresh, make):
    """One of D_f's one trajectory and two of D's six; what was detected is read from the finished run."""
    start = trainings(digest, "cpq")[1]
    known = KnownPart(start.forget, 1.0, 1 / 3)
    detection = DetectionRun("CarCircle", digest, start.forget, 0.05)
    run, other = (applied("safe-rule", start, forget=part) for part in (known, detection))
    assert list(lineage([run])) == [start.forget.adversary, start.forget, start, run] and detection in read_by(other)
    assert len({key(r) for r in (run, other, applied("safe-rule", start))}) == 3
    store = make([run], fresh)
    assert store.done(run)
    marked = _marked(store, run, car_data, car_forget.dataset)
    assert marked.tolist()[6:] == [True] and marked.sum() == 3
    with store.write(detection := replace(detection, false_alarms=0.1)) as folder:
        np.save(folder / INDICES, np.array([2, 6]))
    other = replace(other, forget=detection)
    assert np.flatnonzero(_marked(store, other, car_data, car_forget.dataset)).tolist() == [2, 6]
    with store.write(detection := replace(detection, false_alarms=0.2)) as folder:
        np.save(folder / INDICES, np.arange(7))
    with pytest.raises(RunError, match="7 of 7 trajectories are held for poison, expected some but not all"):
        _marked(store, replace(other, forget=detection), car_data, car_forget.dataset)


def test_where_nothing_is_detected_the_policy_stays_and_the_other_runs_are_made(digest, fresh, make):
    """An evaluation, a log and a table of it are as usual; it shares no population with what has a forget set."""
    start = trainings(digest, "cpq")[1]
    detection = DetectionRun("CarCircle", digest, start.forget, 0.05)
    usual = applied("safe-rule", start)
    nothing = [applied(method, start, forget=detection) for method in ("safe-rule", "fine-tuning")]
    store = make([start], fresh)
    with store.write(detection) as folder:
        np.save(folder / INDICES, np.array([], dtype=np.int64))
    jobs = divide([usual, *nothing], store, "cuda", 1)
    assert sorted(map(sorted, ([run.method for run in job.runs] for job in jobs if usual not in job.runs))) == [
        ["fine-tuning"],
        ["safe-rule"],
    ]
    store = make([usual, *nothing], fresh)
    before, after = (load_agent(store.folder(run) / AGENT).population.nets for run in (start, nothing[0]))
    assert not moved(before, after) and results.logs(store, nothing)["step"].tolist() == [0, 0]


# The command line: from a poisoned file to a repaired policy


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Fifty trajectories of the committed CarCircle data and three that are poisoned, and a policy."""
    folder, data = tmp_path_factory.mktemp("poisoned"), clean_data(project_root() / "artifacts" / "data", "CarCircle")
    clean, rollouts = (data.select(range(first, 450, 9)) for first in (0, 4))
    forget = poison(clean, rollouts, "max_cost", 0.05)
    save(poisoned(clean, forget), folder / "d.hdf5")
    sizes = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (8, 8), "vae_hidden": 8}
    cfg = get_backbone("cpq").Config(**sizes, batch_size=16)
    save_agent(create(get_backbone("cpq"), cfg, [0]), 0, folder / "agent.safetensors", "CarCircle", "cpq", cfg, {})
    return folder


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_three_commands_repair_a_policy_from_a_poisoned_file(files, tmp_path):
    found, fixed, data = tmp_path / "found", tmp_path / "fixed", files / "d.hdf5"
    detected = run("detect", data, "--task", "CarCircle", "--false-alarms", 0.1, "--out", found)
    assert detected.exit_code == 0, detected.output
    repair = ["repair", "--checkpoint", files / "agent.safetensors", "--backbone", "cpq", "--data", data]
    repair += ["--forget", found / INDICES, "--task", "CarCircle", "--steps", 2, "--out", fixed]
    assert run(*repair).exit_code == 0
    played = run("evaluate", fixed, "--episodes", 1)
    assert played.exit_code == 0 and "return" in played.output

    rows, record = pd.read_csv(found / TRAJECTORIES), json.loads((found / RECORD).read_text())
    indices = np.load(found / INDICES)
    assert {50, 51, 52} & set(indices) and sorted(rows.loc[rows["flagged"], "trajectory"]) == indices.tolist()
    assert f"{len(indices)} of {len(rows)} trajectories flagged" in detected.stdout
    assert "fewer than 1 lie as far off" in detected.stderr and str(found / TRAJECTORIES) in detected.stderr
    assert rows["p"].is_monotonic_increasing and record["data"] == load(data, get_task("CarCircle")).digest()
    assert set(record["thresholds"]) == set(STATISTICS) and record["flagged"] == len(indices)

    again = run("detect", data, "--task", "CarCircle", "--out", found)
    assert again.exit_code == 2 and "there is something here already" in again.output
    assert np.load(found / INDICES).tolist() == indices.tolist()


def test_a_failed_detection_leaves_nothing(files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "write", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.detect_file(files / "d.hdf5", get_task("CarCircle"), tmp_path / "out", false_alarms=0.1, progress=False)
    assert not list(tmp_path.iterdir()) and FOLDS > 1


# What is shown


def test_summary_has_students_interval_over_replicates():
    """Recall 0, 0.5 and 1: 0.5 with 4.303 standard errors of 0.5 / sqrt(3)."""
    told = {"task": "CarCircle", "attack": "max_cost", "ratio": 0.05, "labels": "constant", "poisoned": 4, "flagged": 5}
    rows = pd.DataFrame([told | dict.fromkeys(detection.SHOWN, 1.0) | {"recall": r} for r in (0, 0.5, 1)])
    (row,) = detection.summary(rows).to_dict("records")
    assert (row["recall"], row["replicates"], row["flagged"]) == (0.5, 3, 5)
    assert row["recall_high"] - 0.5 == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert np.isnan(detection.summary(rows[:1])["recall_low"]).all()
    assert detection.summary(detection.judgements(None, [])).columns.tolist() == detection.SET  # of none that is stored


def test_what_was_known_is_shown_from_nothing_to_what_was_detected(digest):
    start = trainings(digest, "cpq")[1]
    parts = [DetectionRun("CarCircle", digest, start.forget, 0.05), KnownPart(start.forget, 1.0, 0.05)]
    policies = [applied("safe-rule", start, forget=part) for part in (*parts, KnownPart(start.forget, 0.5, 0.0))]
    beside = [start, applied("safe-rule", start), applied("no-critic", start)]

    def episodes(runs):
        return pd.DataFrame({"cost": [1.0, 3.0], "return": [runs[0].method == "poisoned", 0], "cost_limit": 10.0})

    table = detection.partitions(policies, beside, episodes)
    assert table["known"].tolist() == ["nothing", "50%", "all", "all and 5% of D", "detected"]
    assert table["cost"].tolist() == [2] * 5 and table["return"].tolist() == [0.5, 0, 0, 0, 0]
    ((where, figure),) = FIGURES["partitions"].figures(table)
    assert where == "-CarCircle-cpq" and [t.get_text() for t in figure.axes[0].get_xticklabels()] == list(
        table["known"]
    )
    assert [axes.get_title("left") for axes in figure.axes] == ["Max Cost 15 %"] * 2
    assert [[10.0, 10.0] in [list(line.get_ydata()) for line in axes.lines] for axes in figure.axes] == [True, False]
    assert not list(FIGURES["partitions"].figures(detection.partitions([], [], episodes)))

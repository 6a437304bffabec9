"""Action distances and relearning, on agents whose actions are known and on numbers that can be checked by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from saferule.agents import get_backbone
from saferule.agents.checkpoint import save_agent
from saferule.agents.population import create
from saferule.attack.poison import save_forget_set
from saferule.data.schema import save
from saferule.report import forgetting
from saferule.report.figures import FIGURES
from saferule.report.tables import interval
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import AdversaryRun, ForgetRun, PolicyRun, config, frozen
from saferule.runs.store import Store
from saferule.runs.work import FORGET, Workspace

TINY = frozen(hidden=(4, 4), vae_hidden=4, batch_size=4)
CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "replicate": 0}

# Actions


def test_action_distance_of_constant_policies():
    still, moved = np.zeros((7, 2)), np.full((7, 2), (0.3, -0.4))
    assert forgetting.action_distance(still, moved) == pytest.approx(0.5)
    assert forgetting.action_distance(moved, moved) == 0.0
    half = np.where(np.arange(7)[:, None] < 3, still, moved)
    assert forgetting.action_distance(still, half) == pytest.approx(0.5 * 4 / 7)


def test_sample_is_seeded_without_repetition():
    few, again = forgetting.sample(100, 10), forgetting.sample(100, 10)
    assert few.tolist() == again.tolist() == sorted(set(few.tolist())) and len(few) == 10
    assert forgetting.sample(100, 10, seed=1).tolist() != few.tolist()
    assert forgetting.sample(3, 10).tolist() == [0, 1, 2]


@pytest.fixture
def workspace(tmp_path, car_data, monkeypatch):
    save(car_data, tmp_path / "CarCircle.hdf5")
    monkeypatch.setattr(forgetting, "STATES", 5)
    return Workspace(Store(tmp_path / "store"), tmp_path, "cpu")


@pytest.fixture
def policies(workspace, car_data, car_forget):
    """Clean and poisoned policies of three replicates, made to act 0, 1 and 3 (clean) and 3 (poisoned)."""
    found = {}
    for replicate, action in enumerate((0.0, 0.1, 0.3)):
        forget = ForgetRun(AdversaryRun("CarCircle", "max_cost", 9, replicate), car_data.digest(), 0.15, 2, 0.99, ())
        with workspace.store.write(forget) as folder:
            save_forget_set(car_forget, folder / FORGET)
        clean = PolicyRun("CarCircle", "cpq", car_data.digest(), None, "clean", 2, replicate, config=TINY)
        found["clean", replicate] = write(workspace, clean, (action, 0.0))
        poisoned = replace(clean, forget=forget, method="poisoned")
        found["poisoned", replicate] = write(workspace, poisoned, (0.3, 0.4))
    return found


def write(workspace, run, action):
    """A CPQ agent that takes this action (2,) in every state."""
    cfg = config(run)
    population = create(get_backbone("cpq"), cfg, [0])
    with torch.no_grad():
        population.nets["actor"]["w2"].zero_()
        population.nets["actor"]["b2"][..., :2] = torch.atanh(torch.tensor(action))
    with workspace.store.write(run) as folder:
        save_agent(population, 0, folder / AGENT, "CarCircle", "cpq", cfg, {})
    return run


def repair(start, method="safe-rule", **readings):
    return replace(start, start=start, method=method, readings=frozen(**readings))


def test_distance_to_the_default_by_hand(workspace, policies):
    start = policies["poisoned", 0]
    default, again, other = repair(start), repair(start, "percentile-50"), repair(start, gate="data")
    for run, action in ((default, (0.0, 0.0)), (again, (0.0, 0.0)), (other, (0.3, -0.4))):
        write(workspace, run, action)
    left_out = [repair(policies["poisoned", 1], gate="data"), repair(start, "fine-tuning"), policies["clean", 0]]
    frame = forgetting.distances_to_default(workspace, [default, again, other, *left_out])
    assert frame["readings"].tolist() == ["{}", "{}", '{"gate": "data"}']
    for name in ("actions_keep", "actions_forget"):
        assert frame[name].tolist() == pytest.approx([0.0, 0.0, 0.5], abs=1e-6)
    assert list(forgetting.distances_to_default(workspace, left_out)) == list(frame)


def test_distances_to_the_clean_policies_of_other_replicates_by_hand(workspace, policies):
    """Clean 0, 0.1 and 0.3: pairs 0.1, 0.2 and 0.3; of replicate 0 the others are 0.2 away on average."""
    start, clean = policies["poisoned", 0], [policies["clean", r] for r in range(3)]
    fixed = write(workspace, repair(start), (0.0, 0.4))
    relearned = [replace(p, start=p, method="relearn", forget=start.forget) for p in (clean[0], start, fixed)]
    table = forgetting.action_distances(workspace, relearned, clean)
    assert table["method"].tolist() == ["clean", "clean", "poisoned", "poisoned", "safe-rule", "safe-rule"]
    row = table[table["states"] == "forget"].set_index("method")
    first = [0.2, (math.hypot(0.2, 0.4) + 0.4) / 2, (math.hypot(0.1, 0.4) + 0.5) / 2]
    assert row["distance"].tolist() == pytest.approx(first, abs=1e-6)
    assert row["distance_own"].tolist() == pytest.approx([0.0, 0.5, 0.4], abs=1e-6)
    assert row["distance_poisoned"].tolist() == pytest.approx([0.5, 0.0, 0.3], abs=1e-6)
    for name, value in {"floor": 0.2, "floor_low": 0.1, "floor_high": 0.3, "pairs": 3, "ratio": 0.15}.items():
        assert row[name].tolist() == pytest.approx([value] * 3, abs=1e-6)
    short = forgetting.short_actions(table).query("states == 'forget'").set_index("method")
    assert short["at_floor"].tolist() == [1, 0, 0] and short["past_poisoned"].tolist() == [0, 0, 0]
    (_, figure), *_ = FIGURES["actions"].figures(table)
    assert [panel.get_title("left") for panel in figure.axes] == ["CPQ, states of D_f", "CPQ, states of D"]
    for few in ([], clean[:1], clean[1:]):  # without a floor, or a clean policy of the replicate, there is nothing
        none = forgetting.action_distances(workspace, relearned, few)
        assert none.empty and list(none) == list(table) and forgetting.short_actions(none).empty
        assert not list(FIGURES["actions"].figures(none))


# Relearning


@pytest.mark.parametrize(
    ("costs", "status", "steps"),
    [
        ([5, 20, 31, 10], "back", 100),  # the first evaluation at the level counts
        ([5, 30, 0, 0], "back", 50),  # at the level is back
        ([5, 20, 29, 29], "not back", 150),
        ([30, 0, 0, 0], "from the start", None),
    ],
)
def test_relearned(costs, status, steps):
    """Clean 10, poisoned 50: the level is 30."""
    told = forgetting.relearned([0, 50, 100, 150], costs, clean=10, poisoned=50)
    assert (told.status, told.level) == (status, 30)
    assert math.isnan(told.steps) if steps is None else told.steps == steps
    assert forgetting.relearned([0, 50], [5, 80], clean=20, poisoned=20).status == "no harm"


def curves(replicate=0, **costs):
    """Two episodes, 2 apart, at steps 0, 50 and 100 (fewer where fewer costs are given) from each method's policy."""
    rows = [
        CELL
        | {"replicate": replicate, "method": "relearn", "start": method.replace("_", "-"), "step": step}
        | {"cost": cost + shift, "seed": shift}
        for method, values in costs.items()
        for step, cost in zip((0, 50, 100), values, strict=False)
        for shift in (-1, 1)
    ]
    return pd.DataFrame(rows).assign(cost_limit=10.0)


def finals(replicate=0, attack="max_cost", **costs):
    """The final episodes of the clean policy, which has no attack of its own, and of the poisoned one."""
    of = {"clean": {"attack": "clean", "ratio": 0.0}, "poisoned": {"attack": attack}}
    rows = [
        CELL | of[method] | {"replicate": replicate, "method": method, "cost": cost, "seed": episode}
        for method, values in costs.items()
        for episode, cost in enumerate(values)
    ]
    return pd.DataFrame(rows)


def three_replicates():
    """Harms of 40, 20 and 30; the middle one's clean policy is back."""
    first = {"clean": (8, 10, 12), "poisoned": (50, 50, 50), "safe_rule": (12, 35, 35), "fine_tuning": (12, 31, 20)}
    second = {"clean": (0, 1, 15), "poisoned": (20, 20, 20), "safe_rule": (2, 12, 4), "fine_tuning": (11, 12, 13)}
    third = {"clean": (0, 1, 2), "poisoned": (30, 30, 30), "safe_rule": (2, 3, 4), "fine_tuning": (2, 3, 16)}
    ends = [finals(0, clean=(9, 10, 11), poisoned=(49, 50, 51)), finals(1, clean=(0, 0, 0), poisoned=(20, 20, 20))]
    ends.append(finals(2, clean=(0, 0, 0), poisoned=(30, 30, 30)))
    return pd.concat(curves(r, **costs) for r, costs in enumerate((first, second, third))), pd.concat(ends)


def test_relearning_table_and_summary():
    rows, ends = three_replicates()
    table = forgetting.relearning_table(rows, ends)
    told = {(row.method, row.replicate): (row.status, row.steps, row.level) for row in table.itertuples()}
    assert [told["safe-rule", r] for r in range(3)] == [("back", 50, 30), ("back", 50, 10), ("not back", 100, 15)]
    assert [told["clean", r][:2] for r in range(3)] == [("not back", 100), ("back", 100), ("not back", 100)]
    assert told["fine-tuning", 1][0] == told["poisoned", 0][0] == "from the start"
    assert table.query("method == 'clean'")["harm"].tolist() == [40, 20, 30]
    summary = forgetting.relearning_summary(table).set_index("method")
    assert summary.loc["safe-rule", ["back", "not_back", "steps_back", "watched_to"]].tolist() == [2, 1, 50, 100]
    assert summary.loc["fine-tuning", ["back", "from_the_start", "steps_back"]].tolist() == [2, 1, 75]
    assert math.isnan(summary.loc["poisoned", "steps_back"]) and (summary["n"] == 3).all()
    assert summary.loc["clean", ["harm", "harm_low", "harm_high"]].tolist() == [30, *interval([40, 20, 30])]
    (_, figure), *_ = FIGURES["relearning"].figures(rows, table)
    levels = {line.get_ydata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"}
    assert levels == {30, 10, 15}
    one = forgetting.relearning_summary(table[table["replicate"] == 0])
    assert one[["harm_low", "harm_high"]].isna().all(axis=None)


def test_a_run_that_stopped_is_censored_at_its_last_step():
    """Safe-RULE's values were not finite after step 50."""
    ends = finals(clean=(10, 10, 10), poisoned=(50, 50, 50))
    rows = curves(clean=(10, 12, 14), poisoned=(50, 50, 50), safe_rule=(12, 15), fine_tuning=(12, 12, 12))
    rows = pd.concat([rows, rows[(rows["start"] == "safe-rule") & (rows["step"] == 50)]])  # snapshot and end are one
    table = forgetting.relearning_table(rows, ends).set_index("method")
    assert table.loc["safe-rule", ["status", "steps", "last_step", "episodes"]].tolist() == ["not back", 50, 50, 2]
    assert table.loc["fine-tuning", "steps"] == 100


def test_no_level_without_harm_or_without_a_poisoned_policy():
    rows = curves(clean=(10, 12, 14), poisoned=(5, 5, 5), safe_rule=(1, 1, 1))
    table = forgetting.relearning_table(rows, finals(clean=(9, 11), poisoned=(5, 5)))
    assert set(table["status"]) == {"no harm"} and set(table["harm"]) == {-5}
    none = forgetting.relearning_table(rows, finals(clean=(9, 11)))
    assert not len(none) and not len(forgetting.relearning_summary(none))
    for levels in (table, none):
        ((_, figure),) = FIGURES["relearning"].figures(rows, levels)
        assert not [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]

"""The audit's statistics on numbers that can be checked by hand, and what is told of them."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from saferule import audit
from saferule.report import audit as report
from saferule.report import audit_figures

CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15, "training_seed": 0}

# Actions


def test_action_distance_of_constant_policies():
    still, moved = np.zeros((7, 2)), np.full((7, 2), (0.3, -0.4))
    assert audit.action_distance(still, moved) == pytest.approx(0.5)
    assert audit.action_distance(moved, moved) == 0.0
    half = np.where(np.arange(7)[:, None] < 3, still, moved)
    assert audit.action_distance(still, half) == pytest.approx(0.5 * 4 / 7)


def test_floor_leaves_the_policy_itself_out():
    clean = [np.full((5, 1), value) for value in (0.0, 1.0, 3.0)]
    assert [audit.floor(clean, i) for i in range(3)] == pytest.approx([2.0, 1.5, 2.5])


def test_pairs_of_clean_policies_make_the_floors_range():
    clean = [np.full((5, 1), value) for value in (0.0, 1.0, 3.0)]
    assert audit.pair_distances(clean) == pytest.approx([1.0, 3.0, 2.0])
    assert audit.pair_distances(clean[:2]) == [1.0]


def test_sample_is_seeded_without_repetition():
    few, again = audit.sample(100, 10), audit.sample(100, 10)
    assert few.tolist() == again.tolist() == sorted(set(few.tolist())) and len(few) == 10
    assert audit.sample(100, 10, seed=1).tolist() != few.tolist()
    assert audit.sample(3, 10).tolist() == [0, 1, 2]


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
    told = audit.relearned([0, 50, 100, 150], costs, clean=10, poisoned=50)
    assert (told.status, told.level) == (status, 30)
    assert math.isnan(told.steps) if steps is None else told.steps == steps


def test_nothing_to_relearn():
    told = audit.relearned([0, 50], [5, 80], clean=20, poisoned=20)
    assert told.status == "no harm" and math.isnan(told.steps)


def test_t_interval_of_two_and_three():
    half = 12.7062 * 10 / math.sqrt(2) / math.sqrt(2)  # t at 1 degree of freedom, the values' sd is 10 / sqrt(2)
    assert audit.t_interval([25, 35]) == pytest.approx((30 - half, 30 + half), rel=1e-4)
    half = 4.3027 / math.sqrt(3)  # 2 degrees of freedom, sd 1
    assert audit.t_interval([4, 5, 6]) == pytest.approx((5 - half, 5 + half), rel=1e-4)
    assert audit.t_interval([7, 7]) == (7, 7)
    assert all(math.isnan(bound) for bound in audit.t_interval([7]))


def curves(seed=0, **costs):
    """Two episodes, 2 apart, at steps 0, 50 and 100 (fewer where fewer costs are given) for each method."""
    rows = [
        CELL
        | {"training_seed": seed, "method": method.replace("_", "-"), "step": step}
        | {"cost": cost + shift, "seed": shift}
        for method, values in costs.items()
        for step, cost in zip((0, 50, 100), values, strict=False)
        for shift in (-1, 1)
    ]
    return pd.DataFrame(rows).assign(cost_limit=10.0)


def finals(seed=0, attack="max_cost", **costs):
    """The final episodes of the clean policy, which has no attack of its own, and of the poisoned one."""
    of = {"clean": {"attack": "clean", "ratio": 0.0}, "poisoned": {"attack": attack}}
    rows = [
        CELL | of[method] | {"training_seed": seed, "method": method, "cost": cost, "seed": episode}
        for method, values in costs.items()
        for episode, cost in enumerate(values)
    ]
    return pd.DataFrame(rows)


def three_seeds():
    """Harms of 40, 20 and 30 more; the middle one's clean policy is back."""
    clean, poisoned = (8, 10, 12), (50, 50, 50)
    parts = [
        (
            curves(0, clean=clean, poisoned=poisoned, safe_rule=(12, 35, 35), fine_tuning=(12, 31, 20)),
            finals(0, clean=(9, 10, 11), poisoned=(49, 50, 51)),
        ),
        (
            curves(1, clean=(0, 1, 15), poisoned=(20, 20, 20), safe_rule=(2, 12, 4), fine_tuning=(11, 12, 13)),
            finals(1, clean=(0, 0, 0), poisoned=(20, 20, 20)),
        ),
        (
            curves(2, clean=(0, 1, 2), poisoned=(30, 30, 30), safe_rule=(2, 3, 4), fine_tuning=(2, 3, 16)),
            finals(2, clean=(0, 0, 0), poisoned=(30, 30, 30)),
        ),
    ]
    return pd.concat([part[0] for part in parts]), pd.concat([part[1] for part in parts])


def test_relearning_table_and_summary():
    rows, ends = three_seeds()
    table = report.relearning_table(rows, ends)
    told = {(row.method, row.training_seed): (row.status, row.steps, row.level) for row in table.itertuples()}
    assert [told["safe-rule", seed] for seed in range(3)] == [("back", 50, 30), ("back", 50, 10), ("not back", 100, 15)]
    assert [told["clean", seed][:2] for seed in range(3)] == [("not back", 100), ("back", 100), ("not back", 100)]
    assert told["fine-tuning", 1][0] == told["poisoned", 0][0] == "from the start"
    assert table["harm"].unique().tolist() == [40, 20, 30]
    summary = report.relearning_summary(table).set_index("method")
    assert summary.loc["safe-rule", ["back", "not_back", "steps_back", "watched_to"]].tolist() == [2, 1, 50, 100]
    assert summary.loc["fine-tuning", ["back", "from_the_start", "steps_back"]].tolist() == [2, 1, 75]
    assert math.isnan(summary.loc["poisoned", "steps_back"]) and (summary["n_seeds"] == 3).all()
    assert isinstance(audit_figures.relearning(rows, table, "title"), Figure)


def test_relearning_sentences_count_seeds():
    """The steps are of the seeds that were back; seed means of 40, 20 and 30 have an interval of 4.3 x 10 / sqrt(3)."""
    rows, ends = three_seeds()
    said = report.relearning_sentences(report.relearning_table(rows, ends))
    assert "costs 30 more than the clean one (95 % interval 5 to 55 over 3 seeds). Back is" in said
    assert "a mean cost of 30, 10, 15 (by seed). Back: " in said
    assert "fine-tuning after 50, 100 steps (2 of 3 seeds); Safe-RULE after 50 steps (2 of 3 seeds). " in said
    assert "Not back within 100 steps: clean (retrained) (2 of 3 seeds); Safe-RULE (1 of 3 seeds)" in said
    assert "The clean policy was not back within 100 steps in 2 of 3 seeds and was back in 1: no general" in said
    assert "cannot be told from it" not in said
    assert "The level is made of 3 episodes of each policy, a point of a curve of 2" in said


def test_two_seeds_tell_little():
    rows, ends = three_seeds()
    two = report.relearning_table(rows[rows["training_seed"] < 2], ends[ends["training_seed"] < 2])
    assert "costs 30 more than the clean one (95 % interval -97 to 157 over 2 seeds). **This is not told from" in (
        report.relearning_sentences(two)
    )


def test_a_clean_policy_that_was_never_back():
    rows, ends = three_seeds()
    apart = report.relearning_table(rows[rows["training_seed"] != 1], ends[ends["training_seed"] != 1])
    apart = apart.assign(harm=[30, 31] * (len(apart) // 2))  # told from noise: 24 to 37 over seeds
    said = report.relearning_sentences(apart)
    assert "was not back within 100 steps in 2 of 2 seeds: a method that was not cannot be told from it" in said


def test_one_seed_has_the_harms_of_its_episodes():
    """14 and 26 more: 20 +- 12.7 x 6; 19 and 21: 20 +- 12.7."""
    rows = curves(clean=(10, 12, 14), poisoned=(30, 30, 30), safe_rule=(5, 25, 5))
    table = report.relearning_table(rows, finals(clean=(10, 10), poisoned=(24, 36)))
    assert table.loc[0, ["harm", "harm_low", "harm_high"]].tolist() == pytest.approx([20, -56.24, 96.24], abs=0.01)
    said = report.relearning_sentences(table)
    assert (
        "costs 20 more than the clean one (95 % interval -56 to 96 over 2 episodes of one seed). **This is not" in said
    )
    assert "The clean policy" not in said and "The level is" not in said
    said = report.relearning_sentences(report.relearning_table(rows, finals(clean=(10, 10), poisoned=(29, 31))))
    assert (
        "(95 % interval 7 to 33 over 2 episodes of one seed). Back is a mean cost of 20. Back: Safe-RULE after" in said
    )
    assert "The clean policy was not back within 100 steps: a method that" in said


def test_one_episode_has_no_interval_and_tells_nothing():
    rows = curves(clean=(10, 12, 14), poisoned=(20, 20, 20))
    said = report.relearning_sentences(report.relearning_table(rows, finals(clean=(10,), poisoned=(20,))))
    assert "costs 10 more than the clean one (one episode, no interval). **This is not told from noise" in said


def test_a_run_that_stopped_is_censored_at_its_last_step():
    """Safe-RULE's values were not finite after step 50; the clean run's after step 0 in the second case."""
    ends = finals(clean=(10, 10, 10), poisoned=(50, 50, 50))
    rows = curves(clean=(10, 12, 14), poisoned=(50, 50, 50), safe_rule=(12, 15), fine_tuning=(12, 12, 12))
    rows = pd.concat([rows, rows[(rows["method"] == "safe-rule") & (rows["step"] == 50)]])  # snapshot and end are one
    table = report.relearning_table(rows, ends).set_index("method")
    assert table.loc["safe-rule", ["status", "steps", "last_step", "episodes"]].tolist() == ["not back", 50, 50, 2]
    assert table.loc["fine-tuning", "steps"] == 100
    said = report.relearning_sentences(table.reset_index())
    assert (
        "within 100 steps: clean (retrained); fine-tuning; Safe-RULE, which stopped early, within 50 steps. The" in said
    )
    rows = curves(clean=(10,), poisoned=(50, 50, 50), safe_rule=(12, 35, 35))
    said = report.relearning_sentences(report.relearning_table(rows, ends))
    assert "The clean policy was not back within 0 steps, when its run stopped: nothing to compare" in said


@pytest.mark.parametrize(("attack", "end"), [("max_cost", "relearn."), ("min_reward", "not made to raise it).")])
def test_a_poison_that_costs_nothing_is_said_so(attack, end):
    rows = curves(clean=(10, 12, 14), poisoned=(5, 5, 5), safe_rule=(1, 1, 1)).assign(attack=attack)
    table = report.relearning_table(rows, finals(attack=attack, clean=(9, 11), poisoned=(5, 5)))
    assert set(table["status"]) == {"no harm"}
    said = report.relearning_sentences(table)
    assert (
        "costs 5 less than the clean one (95 % interval -18 to 8 over 2 episodes of one seed), so there is no" in said
    )
    assert "no cost to relearn" in said and said.split("\n")[0].endswith(end)


def test_no_level_without_a_poisoned_policy():
    table = report.relearning_table(curves(clean=(10, 12, 14)), finals(clean=(10, 10)))
    assert not len(table) and not len(report.relearning_summary(table))
    assert "there is no cost to compare with" in report.relearning_sentences(table)
    assert isinstance(audit_figures.relearning(curves(clean=(10, 12, 14)), table, "title"), Figure)


# What is told of the actions


def action_rows(low, high, pairs, **distances):
    return pd.DataFrame(
        CELL
        | {"training_seed": seed, "method": method.replace("_", "-"), "states": side, "distance": value + shift}
        | {"floor": (low + high) / 2, "floor_low": low, "floor_high": high, "pairs": pairs}
        for method, value in distances.items()
        for side in ("forget", "keep")
        for seed, shift in enumerate((-0.01, 0.01))
    )


def test_action_sentences_and_figure():
    rows = action_rows(0.2, 0.2, 1, clean=0.2, poisoned=1.0, safe_rule=0.5, fine_tuning=1.1, trajdeleter=0.15)
    said = report.action_sentences(rows)
    assert said.startswith(
        "- **CarCircle, CPQ, Max Cost 15 %.** On states of D_f the floor is 0.20 (one pair of clean seeds: a point), "
        "the poisoned policy at 1.00; "
    )
    told = "at the floor: Trajdeleter (0.15); between: Safe-RULE (0.50); no nearer: fine-tuning (1.10)."
    assert said.count(told[:-1]) == 2 and said.endswith(told)
    means = report.over_seeds(rows, ["states"])
    assert means["distance_sd"].to_numpy() == pytest.approx(math.sqrt(2) * 0.01)
    wide = report.side_by_side(means, "states", ["distance", "floor"])
    assert list(wide.columns[-4:]) == ["distance, forget", "distance, keep", "floor, forget", "floor, keep"]
    assert wide["method"].tolist()[:2] == ["clean", "poisoned"] and (wide["floor, keep"] == 0.2).all()
    assert isinstance(audit_figures.actions(rows, "title"), Figure)


def test_differences_within_the_floors_range_tell_nothing():
    rows = action_rows(
        0.2, 0.3, 3, clean=0.25, poisoned=1.0, safe_rule=0.28, trajdeleter=0.95, fine_tuning=1.05, reward_only=1.2
    )
    said = report.action_sentences(rows)
    assert "the floor is 0.20 to 0.30 (3 pairs of clean seeds), the poisoned policy at 1.00; " in said
    assert (
        "at the floor: Safe-RULE (0.28); not told from the poisoned policy: Trajdeleter (0.95), fine-tuning (" in said
    )
    assert "no nearer: reward only (1.20)" in said and "between" not in said
    assert isinstance(audit_figures.actions(rows, "title"), Figure)


def test_a_poison_within_the_floor_does_not_show():
    said = report.action_sentences(action_rows(0.2, 0.4, 3, clean=0.3, poisoned=0.35, safe_rule=0.5, trajdeleter=0.39))
    assert (
        "at 0.35: **the poison does not show here**; within the floor too: Trajdeleter (0.39); farther than it: Safe"
        in said
    )
    assert "nearer" not in said


def test_few_seeds_are_little_evidence():
    assert "n = 1 training seed.**" in report.limits(1) and "not evidence" in report.limits(2)
    assert "n = 3 training seeds**, which is few: the 95 % interval of a mean is ± 2.5 standard dev" in report.limits(3)
    assert "over 10 pairs of the same 5 clean policies" in report.limits(5)

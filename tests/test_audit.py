"""The audit of the paper's printed numbers: counted by hand on few rows, and on the tables as read by eye."""

import pandas as pd
import pytest

from saferule.paper import audit

HERE = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost"}


def policies(*values):
    """One cell per pair of policies ((cost, return) of a, then of b), told apart by the ratio."""
    cells = [HERE | {"ratio": i, "method": m, "cost": c, "return": r, "cost_limit": 10.0}
             for i, pair in enumerate(values) for m, (c, r) in zip("ab", pair, strict=True)]  # fmt: skip
    return pd.DataFrame(cells)


def test_policies_are_compared_safety_first():
    pairs = {
        ((10, 1), (11, 99)): (1, -1, 1),  # safe before unsafe; 10 is within the limit
        ((9, 5), (1, 4)): (-1, 1, 1),  # two safe ones by return
        ((20, 1), (30, 9)): (1, -1, 1),  # two unsafe ones by cost
        ((4, 7), (4, 7)): (0, 0, 0),
    }
    compared = audit.against(policies(*pairs), "a", "b")
    assert list(compared[list(audit.SCORES)].itertuples(index=False, name=None)) == list(pairs.values())
    counts = audit.tally(compared)
    assert (counts["cells"], counts["cost_better"], counts["cost_equal"], counts["cost_worse"]) == (4, 2, 1, 1)
    assert (counts["safe"], counts["other_safe"], counts["both_better"], counts["dominates"]) == (3, 2, 0, 0)
    assert audit.tally(audit.against(policies(((4, 7), (4, 6))), "a", "b"))["dominates"] == 1


def test_cells_that_lack_one_of_the_two_are_left_out():
    rows = policies(((1, 1), (2, 2)), ((1, 1), (2, 2))).iloc[:3]
    assert audit.tally(audit.against(rows, "a", "b"))["cells"] == 1
    assert audit.tally(audit.against(rows, "a", "unheard-of"))["cells"] == 0


NAMES = "cost_better cost_equal cost_worse return_better return_equal return_worse".split()
SAFE = ["safe_first_better", "safe_first_equal", "safe_first_worse", "safe", "other_safe"]
BOTH = ["both_better", "both_worse"]


@pytest.mark.parametrize(
    ("tables", "method", "other", "part", "expected"),
    [
        ((1,), "safe-rule", "poisoned", "all", {"numbers": (80, 5, 11, 60, 1, 35), "both_better": 45, "both_worse": 1}),
        ((1,), "safe-rule", "poisoned", "all", {"safe": 65, "other_safe": 19, "cells": 96}),
        ((1,), "safe-rule", "poisoned", "cpq", {"numbers": (13, 4, 7, 23, 1, 0), "safe": 23, "other_safe": 14}),
        ((1,), "safe-rule", "poisoned", "0.15", {"numbers": (38, 4, 6, 33, 1, 14), "both_better": 24}),
        ((2,), "safe-rule", "fixed-weight", "all", {"numbers": (5, 2, 9, 14, 1, 1), "safe": 11, "other_safe": 11}),
        ((4,), "trajdeleter-cost", "trajdeleter", "all", {"numbers": (49, 20, 27, 50, 6, 40), "safe": 69}),
        ((4,), "trajdeleter-cost", "trajdeleter", "all", {"other_safe": 58, "both_better": 26, "both_worse": 12}),
        ((1, 4), "safe-rule", "trajdeleter", "all", {"numbers": (42, 10, 44, 68, 7, 21), "safe_first_better": 71}),
        ((1, 4), "safe-rule", "trajdeleter", "max_cost", {"dominates": 9, "dominated": 3, "safe_first_worse": 9}),
        ((1, 4), "safe-rule", "trajdeleter-cost", "all", {"numbers": (27, 12, 57, 66, 4, 26), "safe_first_better": 52}),
        ((1, 4), "safe-rule", "trajdeleter-cost", "coptidice", {"safe_first_better": 2, "safe_first_worse": 22}),
        ((5,), "safe-rule", "no-critic", "all", {"numbers": (7, 1, 8, 10, 1, 5), "both_better": 4, "both_worse": 2}),
        ((5,), "safe-rule", "no-critic", "all", {"safe": 11, "other_safe": 9}),
    ],
)
def test_counts_of_the_papers_tables(tables, method, other, part, expected):
    counts = audit.tallies(audit.cells(*tables), method, other, ["backbone", "attack", "ratio"]).set_index("cells of")
    row = counts.loc[part]
    assert {name: tuple(row[NAMES]) if name == "numbers" else row[name] for name in expected} == expected


def test_the_same_run_in_several_tables():
    """BCQ-Lag on CarCircle is printed as 10.2, 314.0 in Table 1 and as 7.6, 296.0 and 3.9, 242.9 elsewhere."""
    same = audit.same_cells().set_index(["backbone", "task"])
    row = same.loc["bcq-lag", "CarCircle"]
    assert [(row[f"cost_{n}"], row[f"return_{n}"]) for n in (1, 5, 6)] == [(10.2, 314.0), (7.6, 296.0), (3.9, 242.9)]
    differ = same.filter(like="differs").sum().to_dict()
    assert differ == {"differs_1_2": 2, "differs_1_5": 2, "differs_1_6": 9, "differs_2_5": 0, "differs_5_6": 8}
    assert [backbone for backbone, _ in same.index[same["rounding"]]] == ["coptidice", "coptidice"] and len(same) == 16


def test_repeated_entries():
    again = audit.repeated()
    pairs = again.groupby(["cost", "return"]).size()
    assert len(pairs) == 16 and pairs[0.0, 381.3] == 7 and pairs[21.9, 0.1] == 6 and pairs[2.4, 1.0] == 4
    assert set(again.loc[again["cost"] == 42.1, "ratio"]) == {0.05, 0.15}
    assert not ((again["cost"] < 1) & (again["return"].abs() < 1)).any()


def test_percentiles_times_and_the_strength_of_attacks():
    assert audit.best_percentile() == {"0": 1, "50": 9, "100": 2, "shared": 1, "none": 3, "with_50": 10}
    times = audit.times().set_index("task")
    assert times["retraining"].round(1).to_dict() == {
        "AntVelocity": 34.6, "CarCircle": 30.0, "PointGoal": 24.0, "PointPush": 33.7,
    }  # fmt: skip
    assert times["over_trajdeleter"].agg(["min", "max"]).round(2).tolist() == [1.35, 1.85]
    assert times["training_steps_per_step"].agg(["min", "max"]).round(1).tolist() == [5.8, 8.3]
    assert times["slowest_defence"].all() and times["fine_tuning_slower"].all()
    assert audit.attack_strength() == {
        "safe": (19, 96),
        "safe_cpq": (14, 24),
        "not_higher_at_more_poison": (27, 48),
        "min_reward_above_max_cost": (12, 32),
    }


def test_the_summary_says_what_was_found():
    rows = audit.summary()
    found = {(row.tables, row.what.partition(",")[0]): (row.found, row.of) for row in rows.itertuples()}
    assert found["1, 6", "runs that both print differ beyond rounding"] == (9, 16)
    assert found["1", "poisoned policies keep the cost limit"] == (19, 96)
    assert found["3", "times as long as Safe-RULE retraining takes"][0] == "24.0 to 34.6"

"""Our episodes beside the paper's numbers, and readings beside the default, from rows made by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from episodes_by_hand import rows, two_seeds

from saferule.paper import READINGS
from saferule.profiles import get_profile
from saferule.report import canvas, comparison, comparison_figures, readings, tables


@pytest.fixture
def episodes():
    return two_seeds()


def test_table1_puts_the_papers_cell_beside_ours(episodes):
    table = comparison.table1(episodes).set_index("metric")
    assert len(table) == 2
    cost = table.loc["cost"]
    assert (cost["clean"], cost["poisoned"], cost["fine_tuning"], cost["safe_rule"]) == (3.0, 45.0, 10.0, 15.0)
    assert (cost["paper_before"], cost["paper_after"]) == (195.9, 0.7)  # CPQ, Max Cost 15 %, CarCircle
    assert (table.loc["return", "paper_before"], table.loc["return", "paper_after"]) == (173.8, 345.2)
    assert (cost["n_seeds"], cost["seeds"], cost["episodes"], cost["cost_limit"]) == (2, "0 1", 2, 10.0)


def test_table1_has_every_baseline_and_table_4s_trajdeleter(episodes):
    more = [rows("trajdeleter", 0, [2.0, 4.0], [8.0, 6.0]), rows("reward-only", 1, [7.0], [9.0])]
    table = comparison.table1(pd.concat([episodes, *more])).set_index("metric")
    assert table["trajdeleter"].to_dict() == {"cost": 3.0, "return": 7.0}
    assert table["reward_only"].to_dict() == {"cost": 7.0, "return": 9.0}
    assert table[["trajdeleter_cost", "trajdeleter_released"]].isna().all(axis=None)  # no such runs
    assert table["paper_trajdeleter"].to_dict() == {"cost": 4.0, "return": 77.0}  # CPQ, Max Cost 15 %, CarCircle
    assert table["paper_trajdeleter_cost"].to_dict() == {"cost": 7.2, "return": 46.9}
    shown = comparison.shown(table.reset_index())
    assert shown["paper, Trajdeleter"].tolist() == [4.0, 77.0] and shown["Trajdeleter"].tolist() == [3.0, 7.0]
    assert "Trajdeleter, released code" not in shown and "clean (retrained)" in shown
    assert shown["condition"].tolist() == ["Max Cost 15 %"] * 2 and shown.index.tolist() == ["CPQ"] * 2
    columns = [comparison.method_column(method) for method in comparison.OURS]
    assert list(table.columns[4 : 4 + 3 * len(columns)][::3]) == columns


def test_best_names_the_methods_of_lowest_cost_and_those_within_the_limit(episodes):
    """Means: clean 3 / 100, fine-tuning 10 / 10, Safe-RULE 15 / 85; the limit is 10."""
    row = comparison.best(episodes).iloc[0]
    assert (row["lowest_cost"], row["cost"], row["methods"], row["n_seeds"]) == ("clean (retrained)", 3.0, 3, 2)
    assert row["within_limit"] == "clean (retrained); fine-tuning"
    assert (row["best_safe"], row["return"]) == ("clean (retrained)", 100.0)
    tied = pd.concat([episodes, rows("trajdeleter", 0, [3.0], [120.0])])
    row = comparison.best(tied).iloc[0]
    assert row["lowest_cost"] == "clean (retrained); Trajdeleter" and (row["best_safe"], row["return"]) == (
        "Trajdeleter",
        120.0,
    )
    none = comparison.best(episodes[episodes["method"].isin(["poisoned", "safe-rule"])]).iloc[0]
    assert (none["lowest_cost"], none["within_limit"], none["best_safe"]) == ("Safe-RULE", "", "")
    assert np.isnan(none["return"])


def read_as(episodes, **chosen):
    """The rows as those of a policy repaired under these readings."""
    return episodes.assign(readings=json.dumps(chosen))


@pytest.fixture
def other_readings():
    """Episodes 0 and 1 under the default (costs 10, 30), again as percentile 50, and under three readings."""
    return pd.concat(
        [
            read_as(rows("safe-rule", 0, [12.0, 30.0], [50.0, 50.0]), gate="data"),
            read_as(rows("safe-rule", 0, [30.0, 10.0], [40.0, 20.0]), forget_actor="repelling"),
            read_as(rows("safe-rule", 0, [11.0, 31.0], [50.0, 90.0]), kappa="per_step"),
            read_as(rows("percentile-50", 0, [10.0, 31.0], [50.0, 50.0])),
            read_as(rows("safe-rule", 0, [10.0, 30.0], [50.0, 50.0])),
        ],
        ignore_index=True,
    )


def distances_of(episodes):
    first = episodes.drop_duplicates(["method", "readings"])
    return first.assign(actions_keep=np.arange(len(first)) / 10, actions_forget=1.0)


def test_effects_of_readings_are_paired_with_the_default_and_sorted(other_readings):
    table = readings.effects(other_readings, distances_of(other_readings))
    assert table["reading"].tolist() == ["", "same run again", "kappa", "gate", "forget_actor"]
    assert table["cost_change"].tolist() == [0.0, 0.5, 1.0, 1.0, 0.0]  # 30 and 10 cost as much as 10 and 30
    assert table["return_change"].tolist() == [0.0, 0.0, 20.0, 0.0, -20.0]  # breaks the tie of kappa and gate
    assert table["cost"].tolist() == [20.0, 20.5, 21.0, 21.0, 20.0] and set(table["episodes"]) == {2}
    assert table["actions_keep"].tolist() == [0.4, 0.3, 0.2, 0.0, 0.1]
    by_reading = table.set_index("reading")
    assert by_reading.at["gate", "question"] == READINGS["gate"].question
    assert by_reading.at["gate", "meaning"] == READINGS["gate"].options["data"]
    assert by_reading.at["same run again", "option"] == "percentile-50"


def test_effects_are_shown_with_small_distances_and_explained_in_words(other_readings):
    distances = distances_of(other_readings).assign(actions_keep=4e-08)
    distances.loc[distances["method"] == "percentile-50", "actions_forget"] = 5e-08
    table = readings.effects(other_readings, distances)
    assert table["same_policy"].tolist() == [False, True, False, False, False]  # actions_forget is 1
    assert set(readings.shown(table)["actions_keep"]) == {"4.0e-08"}
    lines = readings.explained(table).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| gate", "| kappa", "| forget_actor"]  # the paper's order
    gate = READINGS["gate"]
    assert gate.question in lines[2] and "**data**: " + gate.options["data"] in lines[2]
    assert "**policy**: " + gate.options["policy"] in lines[2]


def test_readings_are_drawn_as_changes_around_the_floor(other_readings):
    distances = distances_of(other_readings)
    distances.loc[distances["method"] == "percentile-50", ["actions_keep", "actions_forget"]] = 0.0
    effects = readings.effects(other_readings, distances)
    cost, score = readings.change_dots(other_readings, effects, "title").axes
    assert [text.get_text() for text in cost.get_yticklabels()] == [
        "same run again",
        "gate = data",
        "forget_actor = repelling",
        "kappa = per_step",
    ]
    band = cost.patches[0].get_extents().transformed(cost.transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-0.5, 0.5))
    points = [collection.get_offsets()[:, 0].tolist() for collection in cost.collections]
    assert points[2:6] == [[2.0, 0.0], [1.0], [20.0, -20.0], [0.0]]  # episodes and their mean, line by line
    assert score.get_xlabel() == "change of return per episode"


def test_a_change_of_what_is_one_policy_up_to_rounding_widens_the_floor(other_readings):
    """kappa = per_step changes the cost by 1 and the return by 20, with actions that are nearly the default's."""
    distances = distances_of(other_readings)
    near = distances["readings"].str.contains("kappa") | (distances["method"] == "percentile-50")
    distances.loc[near, ["actions_keep", "actions_forget"]] = 5.6e-8
    effects = readings.effects(other_readings, distances)
    assert effects.set_index("reading")["same_policy"].to_dict() == {
        "": False,  # so far from itself only in distances_of
        "same run again": True,
        "kappa": True,
        "gate": False,
        "forget_actor": False,
    }
    said = readings.same_policies(effects)
    assert said.endswith("that of the same run again): CPQ (at most 1.0e-06): same run again, kappa = per_step.")
    assert readings.same_policies(effects.assign(same_policy=False)).endswith("again): none.")
    figure = readings.change_dots(other_readings, effects, "title")
    for panel, floor in zip(figure.axes, (1.0, 20.0), strict=True):  # same run again: 0.5 and 0
        band = panel.patches[0].get_extents().transformed(panel.transData.inverted())
        assert (band.x0, band.x1) == pytest.approx((-floor, floor))
        hollow = [dots.get_facecolor()[0].tolist() == [1, 1, 1, 1] for dots in panel.collections]
        assert hollow == [False, True, False, False, False, False, False, True]  # episodes, mean; again, ..., kappa
    assert any("rounding" in text.get_text() for text in figure.legends[0].get_texts())


def test_rounding_is_what_it_leaves_between_two_runs_of_the_same(other_readings):
    """After long training the same run again is 1e-4 away: what is as near is the default's policy too."""
    distances = distances_of(other_readings).assign(actions_keep=0.0, actions_forget=1e-4)
    distances.loc[distances["readings"].str.contains("gate"), "actions_forget"] = 2e-4
    distances.loc[distances["readings"].str.contains("kappa"), "actions_forget"] = 9e-5
    distances.loc[(distances["method"] == "safe-rule") & (distances["readings"] == "{}"), "actions_forget"] = 0.0
    effects = readings.effects(other_readings, distances)
    assert set(effects["rounding"]) == {1e-4}
    named = effects.set_index("reading")["same_policy"]
    assert named["kappa"] and named["forget_actor"] and named["same run again"] and not named["gate"]
    assert "CPQ (at most 1.0e-04): same run again, kappa = per_step" in readings.same_policies(effects)
    nearer = distances.assign(actions_forget=np.where(distances["method"] == "percentile-50", 1e-5, 5e-5))
    assert readings.effects(other_readings, nearer)["same_policy"].tolist() == [False, True, False, False, False]


def test_ratios_that_the_paper_does_not_have_leave_its_cells_empty(episodes):
    ours = episodes.assign(ratio=0.1)
    table = comparison.table1(ours)
    assert table[["paper_before", "paper_after", "paper_trajdeleter", "paper_trajdeleter_cost"]].isna().all(axis=None)
    assert table.set_index("metric").loc["cost", ["clean", "poisoned", "safe_rule"]].tolist() == [3.0, 45.0, 15.0]
    assert comparison.shown(table)["condition"].tolist() == ["Max Cost 10 %"] * 2
    for draw in (comparison_figures.every_method, comparison_figures.repairs_beside_paper):
        figure = draw(table, "title")
        assert canvas.png(figure) and "the paper" not in [t.get_text() for t in figure.legends[0].get_texts()]
    both = comparison.table1(pd.concat([episodes, ours[ours["attack"] != "clean"]])).set_index(["ratio", "metric"])
    assert both.loc[(0.15, "cost"), "paper_before"] == 195.9 and np.isnan(both.loc[(0.1, "cost"), "paper_before"])


def test_what_is_ablated_is_told_from_the_profile():
    def told(**changes):
        return comparison.what_is_ablated(get_profile("smoke", **changes))

    assert told() == (
        "The poisoned policies here are those of Max Cost 15 %. "
        "The paper's ablations are of Max Cost 5 %, another ratio of the same attack."
    )
    both = told(attacks=["min_reward", "max_cost"], ratios=[0.15, 0.05])
    assert both == "The poisoned policies here are those of Max Cost 5 %. So are the paper's ablations."
    assert told(attacks=["min_reward"]) == (
        "The poisoned policies here are those of Min Reward 15 %. "
        "The paper's ablations are of Max Cost 5 %, another attack, so its cells are empty."
    )


def test_the_papers_ablations_stand_beside_max_cost_only(episodes):
    variant = rows("no-critic", 0, [1.0], [2.0])
    both = pd.concat([frame.assign(attack=a) for a in ("min_reward", "max_cost") for frame in (episodes, variant)])
    joined = comparison.ablations(both)
    other = joined[joined["attack"] == "min_reward"]
    assert other[["source", "paper_cost", "paper_return", "paper_ratio"]].isna().all(axis=None)
    assert other["method"].tolist() == ["clean", "poisoned", "fine-tuning", "safe-rule", "no-critic"]  # once each
    same = joined[joined["attack"] == "max_cost"].set_index(["method", "source"])
    assert same.loc[("no-critic", "Table 5"), "paper_ratio"] == 0.05
    assert "paper_cost" not in tables.readable(comparison.ablations(both[both["attack"] == "min_reward"]))


def test_ablations_beside_tables_2_5_and_6(episodes):
    paper = comparison.paper_ablations("CarCircle", "bcq-lag").set_index(["method", "source"])
    assert paper.loc[("poisoned", "Table 1")].tolist() == [88.8, 285.2]
    # Table 2 prints 81.2 less cost and 10.8 more return for the adaptive weight.
    assert paper.loc[("safe-rule", "Table 2 from Table 1's start")].tolist() == [7.6, 296.0]
    assert paper.loc[("safe-rule", "Table 5")].tolist() == [7.6, 296.0]
    assert paper.loc[("percentile-0", "Table 6")].tolist() == [9.1, 270.8]
    variant = rows("reward-only", 0, [1.0], [2.0])
    joined = comparison.ablations(pd.concat([episodes, variant])).set_index("method")
    assert pd.isna(joined.loc["reward-only", "source"]) and np.isnan(joined.loc["reward-only", "paper_ratio"])
    assert set(joined.loc["safe-rule", "source"]) == {"Table 1", "Table 2 from Table 1's start", "Table 5"}

"""Tables and figures from rows made by hand."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset
from saferule.paper.readings import READINGS
from saferule.profiles import get_profile
from saferule.report import canvas, comparison, comparison_figures, figures, labels, readings, tables
from saferule.runs.inventory import REPAIRS
from saferule.unlearn import METHODS

CELL = {"task": "CarCircle", "backbone": "cpq", "attack": "max_cost", "ratio": 0.15}
CLEAN = CELL | {"attack": "clean", "ratio": 0.0}


def rows(method, seed, costs, returns, step=100, **cell):
    where = (CLEAN if method == "clean" else CELL) | cell
    return pd.DataFrame(
        {"cost": costs, "return": returns, "seed": range(len(costs)), "cost_limit": 10.0, "step": step}
        | where
        | {"method": method, "training_seed": seed}
    )


@pytest.fixture
def episodes():
    """Two seeds, the first with cost 20 and 40 before, the second with 60."""
    return pd.concat(
        [
            rows("clean", 0, [4.0, 8.0], [90.0, 110.0]),
            rows("clean", 1, [0.0, 0.0], [100.0, 100.0]),
            rows("poisoned", 0, [20.0, 40.0], [100.0, 200.0]),
            rows("poisoned", 1, [60.0, 60.0], [50.0, 50.0]),
            rows("safe-rule", 0, [5.0, 5.0], [100.0, 120.0]),
            rows("safe-rule", 1, [20.0, 30.0], [70.0, 50.0]),
            rows("fine-tuning", 0, [10.0, 10.0], [10.0, 10.0]),
            rows("fine-tuning", 1, [10.0, 10.0], [10.0, 10.0]),
        ],
        ignore_index=True,
    )


def dataset(rewards, costs, ends):
    n = len(rewards)
    flags = np.isin(np.arange(n), ends)
    return Dataset(
        np.zeros((n, 8)),
        np.zeros((n, 8)),
        np.zeros((n, 2)),
        rewards,
        costs,
        np.zeros(n, bool),
        flags,
        {"made_by": "hand"},
    )


@pytest.fixture
def data():
    """Two trajectories: return 3 at cost 0, return 10 at cost 12."""
    return dataset([1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 5.0, 7.0], [1, 3])


@pytest.fixture
def forget():
    """One poisoned trajectory: truly return 2 at cost 2, labelled return 12 at cost 0."""
    relabelled = dataset([6.0, 6.0], [0.0, 0.0], [1])
    return ForgetSet(
        relabelled,
        np.array([1.0, 1.0], np.float32),
        np.array([1.0, 1.0], np.float32),
        np.array([0]),
        np.array([2.0]),
        "max_cost",
        0.5,
        4,
    )


# Tables


def test_seeds_are_the_unit(episodes):
    """A seed with more episodes does not weigh more."""
    more = pd.concat([episodes, rows("poisoned", 1, [60.0] * 50, [50.0] * 50)])
    for frame in (episodes, more):
        poisoned = tables.summarise(frame).set_index("method").loc["poisoned"]
        assert poisoned["cost"] == 45.0  # mean of 30 and 60
        assert poisoned["return"] == 100.0  # mean of 150 and 50
        assert poisoned["n_seeds"] == 2 and poisoned["seeds"] == "0 1" and poisoned["episodes"] == 2


def test_no_interval_under_three_seeds(episodes):
    summary = tables.summarise(episodes)
    assert summary[["cost_low", "cost_high", "return_low", "return_high"]].isna().all(axis=None)
    third = tables.summarise(pd.concat([episodes, rows("poisoned", 2, [90.0], [0.0])])).set_index("method")
    assert third.loc["poisoned", ["cost_low", "cost_high"]].tolist() == [30.0, 90.0]
    assert np.isnan(third.loc["safe-rule", "cost_low"])


def test_interval_is_a_bootstrap_over_seeds():
    assert all(np.isnan(tables.interval(np.array([1.0, 2.0]))))
    assert tables.interval(np.array([5.0, 5.0, 5.0])) == (5.0, 5.0)
    # Of the 27 resamples of three values one is all smallest and one all largest: 3.7 % each, above 2.5 %.
    assert tables.interval(np.array([0.0, 1.0, 2.0])) == (0.0, 2.0)
    low, high = tables.interval(np.arange(20.0))
    assert 6.5 < low < 7.5 and 11.5 < high < 12.5  # 9.5 +- 1.96 * 5.77 / sqrt(20)


def test_changes_are_paired_by_seed(episodes):
    change = tables.changes(episodes).set_index("method").loc["safe-rule"]
    assert change["cost_removed"] == pytest.approx(((30 - 5) + (60 - 25)) / 2)
    assert change["return_gained"] == pytest.approx(((110 - 150) + (60 - 50)) / 2)
    assert change["n_seeds"] == 2
    assert "clean" not in tables.changes(episodes)["method"].tolist()


def test_with_clean_repeats_the_clean_rows_under_every_condition(episodes):
    second = rows("poisoned", 0, [1.0], [1.0], attack="min_reward", ratio=0.05)
    other_task = rows("poisoned", 0, [1.0], [1.0], task="PointGoal")
    frame = tables.with_clean(pd.concat([episodes, second, other_task], ignore_index=True))
    clean = frame[frame["method"] == "clean"]
    assert clean.groupby(["task", "attack", "ratio"]).size().to_dict() == {
        ("CarCircle", "max_cost", 0.15): 4,
        ("CarCircle", "min_reward", 0.05): 4,
    }
    assert list(frame.columns) == list(episodes.columns)


def test_per_seed_says_what_is_safe(episodes):
    frame = tables.per_seed(episodes).set_index(["method", "training_seed"])
    assert frame.loc[("clean", 0), "cost"] == 6.0 and frame.loc[("clean", 0), "safe"]
    assert frame.loc[("fine-tuning", 0), "safe"]  # 10 is within the limit of 10
    assert not frame.loc[("safe-rule", 1), "safe"]


def test_data_tables(data, forget):
    summary = tables.data_summary("CarCircle", data, 10.0).iloc[0]
    assert (summary["trajectories"], summary["steps"], summary["safe_share"]) == (2, 4, 0.5)
    assert summary["best_safe_return"] == 3.0 and summary["made_by"] == "hand"
    points = tables.data_points(data, [forget])
    assert points[["set", "return", "cost"]].values.tolist() == [
        ["D", 3.0, 0.0],
        ["D", 10.0, 12.0],
        ["D_f, true labels", 2.0, 2.0],
        ["D_f, poisoned labels", 12.0, 0.0],
    ]
    spread = tables.quantiles(points).set_index("set")
    assert spread.loc["D", ["trajectories", "return_0%", "return_50%", "cost_100%"]].tolist() == [2, 3.0, 6.5, 12.0]
    row = tables.forget_summary("CarCircle", data, [forget]).iloc[0]
    assert row["share"] == pytest.approx(2 / 6)
    assert row["reward_label"] == 6.0
    assert (row["return_true"], row["return_label"], row["return_D"]) == (2.0, 12.0, 6.5)
    assert (row["cost_true"], row["cost_label"], row["cost_D"]) == (2.0, 0.0, 6.0)


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
    table = readings.effects(other_readings, distances_of(other_readings).assign(actions_keep=4e-08))
    assert not table["same_policy"].any()  # actions_forget is 1
    assert set(readings.shown(table)["actions_keep"]) == {"4.0e-08"}
    lines = readings.explained(table).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| gate", "| kappa", "| forget_actor"]  # the paper's order
    gate = READINGS["gate"]
    assert gate.question in lines[2] and "**data**: " + gate.options["data"] in lines[2]
    assert "**policy**: " + gate.options["policy"] in lines[2]


def test_readings_are_drawn_as_changes_around_the_floor(other_readings):
    effects = readings.effects(other_readings, distances_of(other_readings))
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
    near = distances["readings"].str.contains("kappa")
    distances.loc[near, ["actions_keep", "actions_forget"]] = 5.6e-8
    effects = readings.effects(other_readings, distances)
    assert effects.set_index("reading")["same_policy"].to_dict() == {
        "": False,  # so far from itself only in distances_of
        "same run again": False,
        "kappa": True,
        "gate": False,
        "forget_actor": False,
    }
    assert readings.same_policies(effects).endswith("on D and on D_f): CPQ: kappa = per_step.")
    assert readings.same_policies(effects.assign(same_policy=False)).endswith("D_f): none.")
    figure = readings.change_dots(other_readings, effects, "title")
    for panel, floor in zip(figure.axes, (1.0, 20.0), strict=True):  # same run again: 0.5 and 0
        band = panel.patches[0].get_extents().transformed(panel.transData.inverted())
        assert (band.x0, band.x1) == pytest.approx((-floor, floor))
        hollow = [dots.get_facecolor()[0].tolist() == [1, 1, 1, 1] for dots in panel.collections]
        assert hollow == [False] * 7 + [True]  # episodes and mean of four lines, kappa's mean is the last
    assert any("rounding" in text.get_text() for text in figure.legends[0].get_texts())


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


def test_provenance_and_readable(episodes):
    told = tables.provenance(tables.summarise(episodes), "smoke", {"CarCircle": "abcdef0123456789"})
    assert list(told.columns[:2]) == ["profile", "data"]
    assert set(told["data"]) == {"abcdef012345"}
    shown = tables.readable(told)
    assert "profile" not in shown and "cost_low" not in shown
    assert shown["method"].tolist() == ["clean (retrained)", "poisoned", "fine-tuning", "Safe-RULE"]
    assert shown["ratio"].tolist() == ["", "15 %", "15 %", "15 %"]
    shown = tables.readable(pd.DataFrame({"paper_ratio": [0.05, np.nan], "gain": [-0.04, 1.26]}))
    assert shown["paper_ratio"].tolist() == ["5 %", ""] and list(map(str, shown["gain"])) == ["0.0", "1.3"]


def test_every_method_has_a_name_and_a_colour():
    assert set(METHODS) <= set(labels.METHODS)
    assert set(labels.METHODS) == set(labels.METHOD_COLOURS)
    assert labels.in_order(["safe-rule", "unheard-of", "clean"]) == ["clean", "safe-rule", "unheard-of"]


# Figures


def panels_of(figure):
    return [axes for axes in figure.axes if axes.get_xlabel() or axes.get_title(loc="left")]


def test_zero_and_the_limit_are_on_the_axes(episodes):
    far = episodes.assign(cost=episodes["cost"] + 500, **{"return": episodes["return"] + 500})
    figure = figures.episode_dots(far, "title")
    cost, score = figure.axes
    assert cost.get_xlim()[0] < 0 and score.get_xlim()[0] < 0
    assert [10.0, 10.0] in [list(line.get_xdata()) for line in cost.lines]
    names = ["clean (retrained)", "poisoned", "fine-tuning", "Safe-RULE"]
    assert [text.get_text() for text in cost.get_yticklabels()] == names
    assert (cost.get_xlabel(), score.get_xlabel()) == ("cost per episode", "return per episode")


def test_diamonds_are_the_means_of_seeds(episodes):
    cost = figures.episode_dots(episodes, "title").axes[0]
    means = [collection.get_offsets()[:, 0].tolist() for collection in cost.collections[1::2]]
    assert means == [[6.0, 0.0], [30.0, 60.0], [10.0, 10.0], [5.0, 25.0]]


def test_unlearning_curve_is_the_mean_of_the_episodes_at_each_step():
    frame = pd.concat(
        [rows("safe-rule", 0, [40.0, 60.0], [1.0, 3.0], step=0), rows("safe-rule", 0, [8.0, 2.0], [5.0, 5.0])]
    )
    cost, score = figures.unlearning_curves(frame, "title").axes
    assert cost.lines[0].get_xydata().tolist() == [[0.0, 50.0], [100.0, 5.0]]
    assert score.lines[0].get_xydata().tolist() == [[0.0, 2.0], [100.0, 5.0]]
    assert cost.lines[0].get_color() == labels.METHOD_COLOURS["safe-rule"]


def test_no_two_repairs_look_the_same_during_unlearning():
    frame = pd.concat([rows(method, 0, [1.0], [1.0]) for method in REPAIRS])
    figure = figures.unlearning_curves(frame, "title")
    drawn = [(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines[: len(REPAIRS)]]
    assert len(set(drawn)) == len(REPAIRS)
    assert [text.get_text() for text in figure.legends[0].texts][:-1] == [
        labels.method_name(method) for method in labels.in_order(REPAIRS)
    ]


def test_inside_safe_rule_draws_the_target():
    log = pd.DataFrame(
        {"step": [1, 2], "gap": [8.5, 0.5], "forget_q_cost_policy": [2.0, 10.0], "beta_f": [0.1, 1.0]}
        | CELL
        | {"training_seed": 0}
    )
    by_title = {axes.get_title(loc="left"): axes for axes in figures.inside_safe_rule(log, "title").axes}
    assert len(by_title) == 3  # quantities that were not logged are left out
    panel = by_title[labels.UNLEARNING_LOG["forget_q_cost_policy"]]
    assert list(panel.lines[-1].get_ydata()) == [10.5, 10.5]  # kappa + sigma


@pytest.mark.parametrize("conditions", [1, 2])
def test_figures_can_be_drawn_for_one_and_for_several_conditions(episodes, data, forget, conditions):
    if conditions == 2:
        more = episodes[episodes["attack"] != "clean"].assign(attack="min_reward", ratio=0.05)
        episodes = pd.concat([episodes, more, episodes.assign(backbone="bcq-lag")], ignore_index=True)
    table = comparison.table1(episodes)
    log = episodes[episodes["method"].isin(["clean", "poisoned"])].assign(critic_loss=1.0)
    curves = pd.DataFrame({"attack": "max_cost", "steps": [1000, 2000], "scalar_return": [1.0, 5.0]})
    drawn = [
        figures.episode_dots(episodes[episodes["backbone"] == "cpq"], "title"),
        figures.unlearning_curves(episodes[episodes["method"] == "safe-rule"], "title"),
        figures.training_curves(log, "title"),
        figures.logged(log, labels.TRAINING_LOG, "title"),
        comparison_figures.repairs_beside_paper(table, "title"),
        comparison_figures.every_method(table, "title"),
        figures.return_against_cost(tables.data_points(data, [forget] * conditions), 10.0, "title"),
        figures.adversary_curves(curves, "title"),
        figures.adversary_curves(curves[:0], "title"),  # of an adversary that never saw the end of an episode
    ]
    for figure in drawn:
        image = imread(io.BytesIO(canvas.png(figure)))
        assert image.shape[0] > 200 and image.std() > 0.01
        assert figure.get_label() == "title"

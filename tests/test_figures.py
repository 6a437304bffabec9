"""Tables and figures from rows made by hand."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from episodes_by_hand import CELL, rows, two_seeds
from matplotlib.image import imread

from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset
from saferule.report import canvas, comparison, comparison_figures, figures, labels, tables
from saferule.runs.inventory import REPAIRS
from saferule.unlearn import METHODS


@pytest.fixture
def episodes():
    return two_seeds()


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
    assert row["reward_label"] == 6.0 and row["without_score"] == 0
    assert (row["return_true"], row["return_label"], row["return_D"]) == (2.0, 12.0, 6.5)
    assert (row["cost_true"], row["cost_label"], row["cost_D"]) == (2.0, 0.0, 6.0)


def test_trajectories_without_a_score_are_counted_and_named(data, forget):
    """A score of 0 has found nothing, one below 0 the opposite."""
    ties = replace(forget, episodes=np.arange(4), scores=np.array([2.0, 1e-9, 0.0, -3.0]))
    summary = tables.forget_summary("CarCircle", data, [forget, ties])
    assert summary["without_score"].tolist() == [0, 2] and summary["trajectories"].tolist() == [1, 4]
    (said,) = tables.selected_without_score(summary)
    assert said.startswith("CarCircle, Max Cost 50 %: 2 of 4 selected trajectories have a score S_z of 0 or less.")
    assert tables.selected_without_score(summary[:1]) == [
        "CarCircle: every selected trajectory has a score S_z above 0."
    ]


def test_reward_labels_keep_their_digits():
    shown = tables.readable(pd.DataFrame({"reward_label": [0.007631412, -0.0082606, 4.6461644], "share": 0.13043}), 2)
    assert shown["reward_label"].tolist() == ["0.00763", "-0.00826", "4.65"] and shown["share"][0] == "13 %"


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


def test_the_warm_up_of_an_adversary_is_hollow_and_in_the_legend():
    curves = pd.DataFrame(
        {"attack": ["max_cost"] * 3 + ["max_reward"], "steps": [1000, 2000, 3000, 1000], "scalar_return": 5.0}
    )
    warm = curves.assign(warm_up=[1.0, 1.0, np.nan, np.nan])
    figure = figures.adversary_curves(warm, "title")
    cost, reward = figure.axes
    assert [len(line.get_xdata()) for line in cost.lines[:2]] == [3, 2]
    assert list(cost.lines[1].get_xdata()) == [1.0, 2.0] and cost.lines[1].get_markerfacecolor() == "white"
    assert len(reward.lines[1].get_xdata()) == 0
    assert [text.get_text() for text in figure.legends[0].texts] == ["warm-up: paid the reward, not R_z"]
    assert not figures.adversary_curves(curves, "title").legends


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

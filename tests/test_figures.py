"""Figures from rows made by hand."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from episodes_by_hand import CELL, DATA, EPISODES, FORGET, OTHER_READINGS, distances_of, many, rows
from matplotlib.image import imread
from PIL import Image

from saferule.agents import BACKBONES
from saferule.report import figures, style, tables
from saferule.report.figures import FIGURES
from saferule.unlearn import METHODS, Method


def drawn(name, *frames):
    """The only figure of that name."""
    (_, figure), *others = FIGURES[name].figures(*frames)
    assert not others and not plt.get_fignums()
    return figure


def panels(figure):
    return {(panel.get_title("left"), panel.get_xlabel() or panel.get_ylabel()): panel for panel in figure.axes}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def dots(panel, marker_size):
    """Places (N,) of the dots of this size, in the order in which they were drawn."""
    chosen = [c.get_offsets()[:, 0].tolist() for c in panel.collections if c.get_sizes()[0] == marker_size]
    return [x for places in chosen for x in places]


# Look


def test_every_declaration_has_a_label_and_a_colour():
    for method in METHODS:
        assert style.look(method).label != method or method == METHODS[method].label
        assert style.look(method).colour.startswith("#")
    assert [style.backbone_label(name) for name in BACKBONES] == ["BCQ-Lag", "BEAR-Lag", "CPQ", "COptiDICE"]
    assert style.in_order(["safe-rule", "unheard-of", "clean"]) == ["clean", "safe-rule", "unheard-of"]


def test_no_two_repairs_look_the_same_during_unlearning():
    repairs = [name for name, m in METHODS.items() if (m.part, m.start) == ("main", "poisoned")]
    figure = drawn("unlearning-curves", pd.concat([rows(m, 0, [1.0], [1.0]) for m in repairs]))
    looks = [(line.get_color(), line.get_linestyle()) for line in figure.legends[0].get_lines()[: len(repairs)]]
    assert len(set(looks)) == len(repairs) and legend(figure)[:-1] == [METHODS[m].label for m in repairs]


# Evaluation


def test_zero_and_the_rows_limit_are_on_the_axes():
    far = EPISODES.assign(cost=EPISODES["cost"] + 500, cost_limit=25.0, **{"return": EPISODES["return"] + 500})
    figure = drawn("unlearning-methods", far)
    cost, score = figure.axes
    assert cost.get_xlim()[0] < 0 and score.get_xlim()[0] < 0
    assert [25.0, 25.0] in [list(line.get_xdata()) for line in cost.lines] and "cost limit 25" in legend(figure)
    low = drawn("unlearning-methods", EPISODES.assign(cost=1.0, cost_limit=25.0)).axes[0]
    assert low.get_xlim()[1] > 25
    names = ["clean (retrained)", "poisoned", "fine-tuning", "Safe-RULE"]
    assert [text.get_text() for text in cost.get_yticklabels()] == names
    assert (cost.get_xlabel(), score.get_xlabel()) == ("cost per episode", "return per episode")
    assert figure.get_label().startswith("CarCircle, CPQ: before and after unlearning\nDots are")


def test_every_replicate_is_a_dot_and_the_mean_has_its_interval():
    cost = drawn("unlearning-methods", EPISODES).axes[0]
    assert dots(cost, 24) == [6.0, 0.0, 30.0, 60.0, 10.0, 10.0, 5.0, 25.0]
    assert dots(cost, 46) == [3.0, 45.0, 10.0, 15.0]
    lines = [tuple(line.get_xdata()) for line in cost.lines]
    assert tables.interval([30, 60]) in lines and tables.interval([5, 25]) in lines
    one = drawn("unlearning-methods", EPISODES[EPISODES["replicate"] == 0]).axes[0]
    assert dots(one, 24) == [6.0, 30.0, 10.0, 5.0] and not dots(one, 46)


def test_a_method_is_registered_by_its_entry_alone(monkeypatch):
    monkeypatch.setitem(METHODS, "toy", Method("toy", "Toy method", "#123456", "fine_tune", part="main"))
    more = pd.concat([EPISODES, rows("toy", 0, [1.0], [2.0])])
    for name in ("unlearning-methods", "methods"):
        assert "Toy method" in [text.get_text() for text in drawn(name, more).axes[0].get_yticklabels()]
    curves = drawn("unlearning-curves", more[more["start"] != ""])
    assert "Toy method" in legend(curves) and "#123456" in [line.get_color() for line in curves.axes[0].lines]


def test_table1_has_the_papers_numbers_hollow():
    figure = drawn("methods", EPISODES)
    cost = panels(figure)["CPQ", "cost per episode"]
    hollow = [c.get_offsets()[0, 0] for c in cost.collections if c.get_facecolor()[0].tolist() == [1, 1, 1, 1]]
    assert [x for x in hollow if not np.ma.is_masked(x)] == [195.9, 4.0, 7.2, 0.7] and "the paper" in legend(figure)
    figure = drawn("repairs", EPISODES)
    ends = [[list(arrow.xyann), list(arrow.xy)] for arrow in figure.axes[0].texts]
    assert ends == [[[45.0, 100.0], [15.0, 85.0]], [[195.9, 173.8], [0.7, 345.2]]]
    for name in ("methods", "repairs"):
        assert "the paper" not in legend(drawn(name, EPISODES.assign(ratio=EPISODES["ratio"].replace(0.15, 0.1))))


def test_figures_1_to_3_have_a_bar_per_policy_and_the_papers_numbers():
    """CPQ on CarCircle under Max Cost 15 %; Safe-RULE's second replicate is not there, fine-tuning failed."""
    some = EPISODES[(EPISODES["method"] != "safe-rule") | (EPISODES["replicate"] == 0)]
    some = pd.concat([some[some["method"] != "fine-tuning"], rows("fine-tuning", 0, [np.nan], [np.nan])])
    asked = pd.concat([EPISODES, rows("reward-only", 0, [0.0], [0.0])])[[*tables.POLICY, "method"]]
    table, means = tables.TABLES["methods"].build(some, asked), tables.replicate_means(some)
    cost, score = drawn("figure1", table, means).axes
    assert [bar.get_height() for bar in cost.patches] == [3.0, 45.0, 5.0]  # clean, poisoned, Safe-RULE
    assert [bar.get_height() for bar in score.patches] == [100.0, 100.0, 110.0]
    assert dots(cost, 5) == pytest.approx([bar.get_x() + bar.get_width() / 2 for bar in cost.patches for _ in "ab"][:5])
    hollow = [c.get_offsets()[0, 1] for c in cost.collections if c.get_sizes()[0] == 16]
    assert [y for y in hollow if not np.ma.is_masked(y)] == [195.9, 4.0, 7.2, 0.7]
    crosses = [tuple(c.get_edgecolor()[0].round(1)) for c in cost.collections if c.get_sizes()[0] == 14]
    assert len(crosses) == 2 and crosses[0][0] > crosses[0][1] and crosses[1][0] == crosses[1][1]  # red; grey
    assert {"missing", "failed", "the paper", "cost limit 10"} <= set(legend(drawn("figure1", table, means)))
    assert [text.get_text() for text in cost.get_xticklabels()] == ["15 %\nCPQ"]
    other = drawn("figure2", table, means)  # an attack that was not made: the paper's numbers alone
    assert not other.axes[0].patches and "missing" in legend(other) and "the paper" in legend(other)
    assert style.svg(other) == style.svg(other) and style.svg(other).startswith(b"<?xml")


def test_across_cells():
    figure = drawn("across-cells", tables.across_cells(many()))
    by_label = {panel.get_xlabel(): panel for panel in figure.axes}
    assert dots(by_label["interquartile mean of cost / limit"], 24) == [2.5, 12.5, 2.5]
    assert dots(by_label["cost / limit less with Safe-RULE"], 24) == [0.0, 10.0]
    assert not list(FIGURES["across-cells"].figures(tables.across_cells(EPISODES)))  # two replicates


# Curves


def test_a_curve_is_the_mean_of_the_episodes_at_each_step():
    frame = pd.concat(
        [rows("safe-rule", 0, [40.0, 60.0], [1.0, 3.0], step=0), rows("safe-rule", 0, [8.0, 2.0], [5.0, 5.0])]
    )
    cost, score = drawn("unlearning-curves", frame).axes
    assert cost.lines[0].get_xydata().tolist() == [[0.0, 50.0], [100.0, 5.0]]
    assert score.lines[0].get_xydata().tolist() == [[0.0, 2.0], [100.0, 5.0]]
    assert cost.lines[0].get_color() == METHODS["safe-rule"].colour


def test_every_replicate_is_a_line():
    training = pd.concat([EPISODES, EPISODES.assign(step=50)]).query("start == ''")
    cost = drawn("training-curves", training).axes[0]
    assert len([line for line in cost.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]) == 4


def test_inside_safe_rule_draws_the_target():
    log = pd.DataFrame({"step": [1, 2], "gap": [8.5, 0.5], "forget_q_cost_policy": [2.0, 10.0], "beta_f": [0.1, 1.0]})
    figure = drawn("unlearning-inside", log.assign(**CELL, replicate=0, method="safe-rule"))
    by_title = {panel.get_title("left"): panel for panel in figure.axes}
    assert len(by_title) == 3  # quantities that were not logged are left out
    panel = by_title[figures.UNLEARNING_LOG["forget_q_cost_policy"]]
    assert list(panel.lines[-1].get_ydata()) == [10.5, 10.5]  # kappa + sigma

    other = log.assign(gap=[-8.0, 0.0])  # nearness, Q_c - kappa: it says nothing of kappa + sigma
    panels = drawn("unlearning-inside", other.assign(**CELL, replicate=0, method="safe-rule-described")).axes
    named = {panel.get_title("left"): panel for panel in panels}
    assert not any(10.5 in line.get_ydata() for line in named[figures.UNLEARNING_LOG["forget_q_cost_policy"]].lines)


def test_why_a_repair_moves_has_a_line_for_each_method_at_the_steps_that_were_looked_at():
    log = pd.DataFrame(
        {"step": [1, 2, 3], "forget_gradient": [np.nan, 0.5, np.nan], "keep_gates_open": [1.0, 0.5, 0.0]}
    )
    frames = [log.assign(**CELL, replicate=0, method=m) for m in ("safe-rule", "fine-tuning")]
    frames[1]["keep_gates_open"] = np.nan
    figure = drawn("unlearning-why", pd.concat(frames))
    gradient, gates = figure.axes
    assert [line.get_xdata().tolist() for line in gradient.lines] == [[2], [2]]
    assert [line.get_ydata().tolist() for line in gates.lines if len(line.get_xdata())] == [[1.0, 0.5, 0.0]]


def test_the_warm_up_of_an_adversary_is_hollow_and_in_the_legend():
    curves = pd.DataFrame({"attack": ["max_cost"] * 3 + ["max_reward"], "steps": [1000, 2000, 3000, 1000]})
    curves = curves.assign(task="CarCircle", replicate=0, scalar_return=5.0)
    figure = drawn("adversaries", curves.assign(warm_up=[1.0, 1.0, np.nan, np.nan]))
    cost, reward = figure.axes
    assert [len(line.get_xdata()) for line in cost.lines] == [3, 2] and len(reward.lines) == 1
    assert list(cost.lines[1].get_xdata()) == [1.0, 2.0] and cost.lines[1].get_markerfacecolor() == "white"
    assert legend(figure) == ["warm-up: paid the reward, not R_z"]
    assert not drawn("adversaries", curves).legends
    assert not list(FIGURES["adversaries"].figures(curves[:0]))  # no episode ended in so few steps


# Readings


def band(panel):
    extent = panel.patches[0].get_extents().transformed(panel.transData.inverted())
    return pytest.approx((extent.x0, extent.x1))


def test_readings_are_drawn_as_changes_around_the_floor():
    distances = distances_of(OTHER_READINGS)
    distances.loc[distances["method"] == "percentile-50", ["actions_keep", "actions_forget"]] = 0.0
    effects = tables.effects(OTHER_READINGS, distances)
    cost, score = drawn("readings", OTHER_READINGS, effects).axes
    names = ["same run again", "gate = data", "forget_actor = repelling", "kappa = per_step"]
    assert [text.get_text() for text in cost.get_yticklabels()] == names
    assert (-0.5, 0.5) == band(cost)
    assert dots(cost, 42) == [0.5, 1.0, 0.0, 1.0] and dots(cost, 11)[2:4] == [2.0, 0.0]
    assert score.get_xlabel() == "change of return per episode"


def test_what_is_one_policy_up_to_rounding_is_hollow_and_widens_the_floor():
    """kappa = per_step changes the cost by 1 and the return by 20, with actions that are nearly the default's."""
    distances = distances_of(OTHER_READINGS)
    near = distances["readings"].str.contains("kappa") | (distances["method"] == "percentile-50")
    distances.loc[near, ["actions_keep", "actions_forget"]] = 5.6e-8
    figure = drawn("readings", OTHER_READINGS, tables.effects(OTHER_READINGS, distances))
    for panel, floor in zip(figure.axes, (1.0, 20.0), strict=True):  # same run again: 0.5 and 0
        assert (-floor, floor) == band(panel)
        hollow = [c.get_facecolor()[0].tolist() == [1, 1, 1, 1] for c in panel.collections if c.get_sizes()[0] == 42]
        assert hollow == [True, False, False, True]


# All of them


@pytest.mark.parametrize("conditions", [1, 2])
def test_figures_for_one_and_for_several_conditions(conditions):
    episodes = EPISODES
    if conditions == 2:
        more = episodes[episodes["attack"] != "clean"].assign(attack="min_reward", ratio=0.05)
        episodes = pd.concat([episodes, more, episodes.assign(backbone="bcq-lag")], ignore_index=True)
    log = episodes[episodes["start"] == ""].drop(columns="cost").assign(critic_loss=1.0)
    points = tables.data_points("CarCircle", DATA, [(r, FORGET) for r in range(conditions)], 10.0)
    calls = {name: (episodes,) for name in ("training-methods", "ablations", "training-curves", "methods")}
    calls |= {"repairs": (episodes,), "training-losses": (log,), "trajectories": (points,)}
    calls["unlearning-curves"] = (episodes[episodes["start"] != ""],)
    for name, frames in calls.items():
        for where, figure in FIGURES[name].figures(*frames):
            image = imread(io.BytesIO(style.png(figure)))
            assert where.startswith("-CarCircle") and image.shape[0] > 200 and image.std() > 0.01, name


def test_small_images_keep_the_colours_of_methods():
    shown = [name for name in METHODS if name != "relearn"]
    frame = pd.concat([rows(m, 0, [float(i), 2.0 * i], [1.0, 3.0]) for i, m in enumerate(shown)])
    image = np.asarray(Image.open(io.BytesIO(style.png(drawn("controls", frame)))).convert("RGB")).reshape(-1, 3)
    there = np.unique(image, axis=0).astype(int)
    for name in shown:
        colour = [int(METHODS[name].colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(there - colour).max(axis=1).min() <= 4, name

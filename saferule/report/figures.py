"""Figures from tidy rows. Pure functions: rows in, a matplotlib Figure out; nothing is shown or saved here.

Every axis has its unit, zero is always on the axes of cost and return, and the cost limit is drawn wherever a cost is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferule.report.canvas import LIMIT, UNITS, dot, head, limit_handle, panels, styled, with_zero
from saferule.report.labels import (
    ATTACK_COLOURS,
    ATTACKS,
    BACKBONES,
    RATIO_STYLES,
    UNLEARNING_LOG,
    condition,
    in_order,
    method_colour,
    method_name,
    method_style,
)
from saferule.report.tables import with_clean

# Attack


@styled
def return_against_cost(points: pd.DataFrame, cost_limit: float, title: str) -> Figure:
    """Trajectories of D and D_f (`tables.data_points`): a panel per ratio and attack, true and poisoned labels."""
    colours = {"D": "#9A9A9A", "D_f, true labels": "#D55E00", "D_f, poisoned labels": "#0072B2"}
    markers = {"D": "o", "D_f, true labels": "o", "D_f, poisoned labels": "X"}
    poison = points[points["set"] != "D"]
    ratios, attacks = sorted(poison["ratio"].unique()), list(poison["attack"].unique())
    figure, axes = panels(len(ratios), len(attacks), 7.0 if len(attacks) == 1 else 3.6, 3.6, sharex=True, sharey=True)
    for (row, ratio), (column, attack) in _product(ratios, attacks):
        panel = axes[row, column]
        here = poison[(poison["attack"] == attack) & (poison["ratio"] == ratio)]
        for name, group in pd.concat([points[points["set"] == "D"], here]).groupby("set", sort=False):
            size, alpha = (10, 0.55) if name == "D" else (26, 0.85)
            look = {"color": colours[name], "marker": markers[name], "s": size, "alpha": alpha, "linewidths": 0}
            panel.scatter(group["cost"], group["return"], **look)
        panel.axvline(cost_limit, **LIMIT)
        panel.set_title(condition(attack, ratio))
        panel.set(xlabel=UNITS["cost"], ylabel=UNITS["return"])
        panel.label_outer()
    with_zero(axes[0, 0], "x")
    with_zero(axes[0, 0], "y")
    return head(figure, title, [dot(colours[n], n, markers[n]) for n in colours] + [limit_handle(cost_limit)])


@styled
def adversary_curves(curves: pd.DataFrame, title: str) -> Figure:
    """Mean undiscounted return of R_z while the adversary learns, a panel per attack, the last value written out.

    curves  attack, steps (simulator steps), scalar_return (mean of the last 100 episodes); perhaps warm_up, which is 1
            in the reports of an adversary that was not paid R_z yet (reading adversary_start)
    Hollow and grey: the warm-up, in which the adversary is paid the task's reward and R_z only counted.
    """
    curves = curves.assign(warm_up=curves.get("warm_up", pd.Series(0.0, curves.index)).fillna(0.0) > 0)
    hollow = {"color": "#8A8A8A", "markerfacecolor": "white", "markersize": 4}
    attacks = list(curves["attack"].unique())
    figure, axes = panels(1, max(len(attacks), 1), 3.6 if len(attacks) > 1 else 7.0, 2.6 if attacks else 0.9)
    if not attacks:
        axes[0, 0].set_axis_off()
        axes[0, 0].text(0.0, 0.5, "No curve: no episode ended in so few steps.", va="center")
        return head(figure, title, [])
    for panel, attack in zip(axes[0], attacks, strict=True):
        rows = curves[curves["attack"] == attack]
        panel.plot(rows["steps"] / 1000, rows["scalar_return"], color=ATTACK_COLOURS[attack], marker="o", markersize=3)
        first = rows[rows["warm_up"]]
        panel.plot(first["steps"] / 1000, first["scalar_return"], marker="o", **hollow)
        last = rows.iloc[-1]
        panel.annotate(
            f"{last['scalar_return']:.1f}",
            (last["steps"] / 1000, last["scalar_return"]),
            textcoords="offset points",
            xytext=(5, 0),
            va="center",
            annotation_clip=False,
        )
        panel.set_title(ATTACKS[attack])
        panel.set(xlabel="simulator steps in thousands", ylabel="sum of R_z per episode")
        panel.set_xlim(left=0)
        with_zero(panel, "y")
    warm = Line2D([], [], marker="o", linestyle="-", label="warm-up: paid the reward, not R_z", **hollow)
    return head(figure, title, [warm] if curves["warm_up"].any() else [])


# Learning and unlearning curves


@styled
def logged(logs: pd.DataFrame, quantities: Mapping[str, str], title: str) -> Figure:
    """What the losses reported, one line per policy: a panel per quantity, coloured by attack, dashed by ratio.

    quantities  {column: title}, such as `labels.TRAINING_LOG`; columns that are missing are left out
    """
    figure, _, handles = _log_panels(logs, quantities)
    return head(figure, title, handles)


@styled
def inside_safe_rule(logs: pd.DataFrame, title: str) -> Figure:
    """The forget weight, the gap and the critics on D_f during Safe-RULE, with what they are steered to.

    Dotted: kappa + sigma for Q_c (where the gap is 0), and ln 2 for the residuals, which softplus gives on target.
    """
    figure, axes, handles = _log_panels(logs, UNLEARNING_LOG)
    level = "forget_q_cost_policy" if "forget_q_cost_policy" in axes else "forget_chi"
    target = (logs["gap"] + logs[level]).median()  # as the gap is kappa + sigma - this
    goals = dict.fromkeys(("forget_q_cost_data", level), target) | {"gap": 0.0}
    goals |= {name: np.log(2) for name in ("forget_reward_residual", "forget_cost_residual")}
    for name, panel in axes.items():
        if name in goals:
            panel.axhline(goals[name], color="#555555", linestyle=":", linewidth=1.1)
            with_zero(panel, "y")
    goal = Line2D([], [], color="#555555", linestyle=":", label="on target (kappa + sigma, gap 0, ln 2)")
    return head(figure, title, [*handles, goal])


def _log_panels(logs: pd.DataFrame, quantities: Mapping[str, str]) -> tuple[Figure, dict[str, Axes], list[Line2D]]:
    """The figure, its panel of each quantity that was logged, and the legend's entries."""
    names = [name for name in quantities if name in logs and logs[name].notna().any()]
    columns = min(3, len(names))
    figure, grid = panels(-(-len(names) // columns), columns, 3.4, 2.1)
    axes = dict(zip(names, grid.flat, strict=False))
    look, handles = _attack_look(logs)
    for name, panel in axes.items():
        for key, rows in logs.groupby(["attack", "ratio", "training_seed"], sort=False):
            colour, style = look[key[:2]]
            panel.plot(rows["step"], rows[name], color=colour, linestyle=style, linewidth=1.2)
        panel.set_title(quantities[name], fontsize=8.5)
        panel.set(xlabel="gradient step")
        panel.set_xlim(left=0)
        with_zero(panel, "y")
    for panel in grid.flat[len(names) :]:
        panel.remove()
    return figure, axes, handles


@styled
def training_curves(episodes: pd.DataFrame, title: str) -> Figure:
    """Cost and return of snapshots in the simulator: a row per backbone, coloured by attack, dashed by ratio."""
    look, handles = _attack_look(episodes)
    names = ["attack", "ratio", "training_seed"]
    return _curves(episodes, "backbone", lambda b: BACKBONES[b], names, lambda key: look[key[:2]], handles, title)


@styled
def unlearning_curves(episodes: pd.DataFrame, title: str) -> Figure:
    """Cost and return of snapshots during unlearning: a row per attack and ratio, coloured by method.

    Step 0 is the poisoned policy.
    """
    labelled = episodes.assign(condition=_conditions(episodes))
    methods = in_order(episodes["method"])
    look = {method: (method_colour(method), method_style(method)) for method in methods}
    handles = [Line2D([], [], color=c, linestyle=s, label=method_name(m)) for m, (c, s) in look.items()]
    names = ["method", "training_seed"]
    return _curves(labelled, "condition", str, names, lambda key: look[key[0]], handles, title)


def _curves(
    episodes: pd.DataFrame,
    row_by: str,
    row_title: Callable[[str], str],
    line_by: Sequence[str],
    look: Callable[[tuple], tuple[str, str]],
    handles: Sequence[Line2D],
    title: str,
) -> Figure:
    """Means over a snapshot's episodes against the step; a row per value of `row_by`, columns cost and return."""
    values = list(episodes[row_by].unique())
    figure, axes = panels(len(values), 2, 4.2, 2.3, sharex="row")
    limit = episodes["cost_limit"].iloc[0]
    for row, value in enumerate(values):
        here = episodes[episodes[row_by] == value]
        for column, metric in enumerate(UNITS):
            panel = axes[row, column]
            for key, rows in here.groupby(list(line_by), sort=False):
                colour, style = look(key)
                means = rows.groupby("step")[metric].mean()
                panel.plot(means.index, means, color=colour, linestyle=style, marker="o", markersize=3.5, linewidth=1.4)
            if metric == "cost":
                panel.axhline(limit, **LIMIT)
            panel.set_title(row_title(value))
            panel.set(xlabel="gradient step", ylabel=UNITS[metric])
            panel.set_xlim(left=-0.02 * here["step"].max())
            with_zero(panel, "y")
    return head(figure, title, [*handles, limit_handle(limit)])


def _attack_look(rows: pd.DataFrame) -> tuple[dict[tuple, tuple[str, str]], list[Line2D]]:
    """{(attack, ratio): (colour, line style)} and the legend's entries."""
    known = rows[["attack", "ratio"]].drop_duplicates().sort_values(["attack", "ratio"])
    ratios = sorted(ratio for ratio in known["ratio"].unique() if ratio > 0)
    look = {
        (attack, ratio): (ATTACK_COLOURS[attack], RATIO_STYLES[ratios.index(ratio) % 4] if ratio > 0 else "-")
        for attack, ratio in known.itertuples(index=False)
    }
    names = {key: condition(*key) if key[0] == "clean" else f"poisoned, {condition(*key)}" for key in look}
    return look, [Line2D([], [], color=c, linestyle=s, label=names[key]) for key, (c, s) in look.items()]


# Evaluation


@styled
def episode_dots(episodes: pd.DataFrame, title: str) -> Figure:
    """Cost and return of every final episode: a row of panels per attack and ratio, a line per method.

    Small dots are episodes; a diamond is the mean of one training seed. Clean policies stand beside every condition.
    """
    rows = with_clean(episodes)
    rows = rows.assign(condition=_conditions(rows))
    conditions, methods = list(rows["condition"].unique()), in_order(rows["method"])
    height = 0.6 + 0.3 * len(methods)
    figure, axes = panels(len(conditions), 2, 4.3, height, sharex="col", sharey=True)
    limit = rows["cost_limit"].iloc[0]
    for row, name in enumerate(conditions):
        here = rows[rows["condition"] == name]
        for column, metric in enumerate(UNITS):
            panel = axes[row, column]
            for place, method in enumerate(methods):
                _dots(panel, here[here["method"] == method], metric, place, method_colour(method))
            if metric == "cost":
                panel.axvline(limit, **LIMIT)
            panel.set_yticks(range(len(methods)), [method_name(m) for m in methods])
            panel.grid(False, axis="y")
            panel.set_title(name)
            panel.set(xlabel=UNITS[metric])
            panel.label_outer()
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    for column in range(2):
        with_zero(axes[0, column], "x")
    handles = [dot("#444444", "one episode"), dot("#444444", "mean of one seed", "D"), limit_handle(limit)]
    return head(figure, title, handles)


def _dots(panel: Axes, rows: pd.DataFrame, metric: str, place: int, colour: str) -> None:
    heights = place + 0.28 * np.random.default_rng(0).uniform(-1, 1, len(rows))  # jitter, the same in every execution
    panel.scatter(rows[metric], heights, s=11, alpha=0.45, color=colour, linewidths=0)
    means = rows.groupby("training_seed")[metric].mean()
    panel.scatter(
        means, [place] * len(means), s=42, marker="D", color=colour, edgecolors="white", linewidths=0.9, zorder=3
    )


def _conditions(rows: pd.DataFrame) -> list[str]:
    return [condition(attack, ratio) for attack, ratio in zip(rows["attack"], rows["ratio"], strict=True)]


def _product(first: Sequence, second: Sequence) -> list[tuple]:
    return [(a, b) for a in enumerate(first) for b in enumerate(second)]

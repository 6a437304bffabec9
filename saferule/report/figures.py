"""Figures from tidy rows: rows in, a matplotlib Figure out; nothing is shown or saved here.

Zero is always on the axes of cost and return, and the cost limit is drawn wherever a cost is. Every replicate is drawn:
as a dot of its own or as a line of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from saferule.report.layouts import ORDER
from saferule.report.style import (
    ATTACK_COLOURS,
    ATTACKS,
    LIMIT,
    METRICS,
    NAMES,
    STYLE,
    backbone_label,
    condition,
    dot,
    head,
    in_order,
    line,
    look,
    with_zero,
)
from saferule.report.tables import CELL, OURS, POLICY, SAME_RUN, TABLES, in_reading_order, interval, paired, with_clean

DASHES = ("", (4, 2), (1, 1.5), (4, 1.5, 1, 1.5))  # of the ratios, ascending; of STYLES
STYLES = ("-", "--", ":", "-.")  # of methods
MARKERS = ("o", "s", "^", "v")
GOAL = {"color": "#555555", "linestyle": ":", "linewidth": 1.1}
BAND = "#E4E4E4"
DOTS = (dot("one replicate"), dot("mean, 95 % interval", marker="D", hollow=True))
Drawn = tuple[Figure, list[Line2D]]
SIDES = {
    "observed": ("#000000", "observed"),
    "bound": ("#D55E00", "bound as printed"),
    "sharper": ("#0072B2", "sharper bound (ours)"),
}

# What the losses report, in the order in which it is drawn.
TRAINING_LOG = {
    "critic_loss": "reward critic loss",
    "cost_critic_loss": "cost critic loss",
    "q_cost": "mean Q_c at the policy's actions",
    "actor_loss": "actor loss",
    "vae_loss": "behaviour model (VAE) loss",
    "multiplier": "Lagrange multiplier",
    "alpha": "alpha: weight of OOD (CPQ), MMD (BEAR)",
    "mmd": "discrepancy from the behaviour model",
    "nu_loss": "nu loss",
    "chi_loss": "chi loss",
    "cost_bound": "upper bound on the cost per step",
    "kl": "KL radius of that bound",
    "tau": "tau",
}
UNLEARNING_LOG = {
    "beta_f": "forget weight beta_f",
    "gap": "gap that moves beta_f",
    "forget_q_cost_data": "mean Q_c on D_f, poisoned actions",
    "forget_q_cost_policy": "mean Q_c on D_f, the policy's actions",
    "forget_reward_residual": "softplus residual of Q_r, D_f (Eq. 5)",
    "forget_cost_residual": "softplus residual of Q_c, D_f (Eq. 6)",
    "forget_chi": "mean chi on D_f",
    "forget_weight": "mean weight of the forget actions",
}


WHY_LOG = {
    "keep_gradient": "gradient of the actor's keep loss",
    "forget_gradient": "gradient of its weighted forget loss",
    "keep_gates_open": "open gates of Eq. 9, D_k",
    "forget_gates_open": "open gates of Eq. 10, D_f",
    "forget_distance": "distance to the poisoned actions, D_f",
    "keep_distance": "distance to the data's actions, D_k",
    "forget_saturated": "actions at the edge of the box, D_f",
    "keep_saturated": "actions at the edge of the box, D_k",
    "forget_likelihood": "log-likelihood of the poisoned actions",
}


@dataclass(frozen=True)
class Drawing:
    """A figure for each {task}, {backbone} and {method} of its title; its label is title and reads, a line each.

    reads  how to read it
    draw   rows -> the figure and the entries of its legend
    """

    title: str
    reads: str
    draw: Callable[..., Drawn]

    def figures(self, rows: pd.DataFrame, *more: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
        """(what distinguishes it, such as "-CarCircle-cpq"; the figure) for each."""
        each = [name for name in ("task", "backbone", "method") if f"{{{name}}}" in self.title]
        rows = in_reading_order(rows)  # panels and entries of a legend are in the order in which values appear
        for where, here in rows.groupby(each, sort=False) if each else [((), rows)] if len(rows) else []:
            named = dict(zip(each, where, strict=True))
            title = self.title.format(**{name: NAMES[name](value) for name, value in named.items()})
            others = [frame[(frame[each] == pd.Series(named)).all(axis=1)] for frame in more]
            with matplotlib.rc_context(STYLE):
                figure, handles = self.draw(here, *others)
                head(figure, title, handles).set_label(f"{title}\n{self.reads}")
                figure.draw_without_rendering()  # lays it out; each drawing would do so again, a little otherwise
                figure.set_layout_engine("none")
            plt.close(figure)  # it is shown as an image, not once more at the end of the notebook's cell
            yield "".join(f"-{value}" for value in where), figure


# Frames


def _titled(grid: sns.FacetGrid, titles: dict[str, str] | None = None) -> sns.FacetGrid:
    """Panels titled by the values that they are of, a metric apart, which is on its axis."""
    for key, panel in grid.axes_dict.items():
        names = [(titles or {}).get(name, name) for name in (key if isinstance(key, tuple) else (key,))]
        panel.set_title(", ".join(name for name in names if name and name not in METRICS))
    return grid


def _grid(rows: pd.DataFrame, width: float, height: float, **facets: Any) -> sns.FacetGrid:
    """A panel of so many inches for each value of the facets' columns."""
    return _titled(sns.FacetGrid(rows, height=height, aspect=width / height, despine=False, **facets))


def _lines(
    rows: pd.DataFrame, x: str, hue: str, colours: dict, width: float, height: float, sharex=True, titles=None, **apart
) -> sns.FacetGrid:
    """A line for each policy (a replicate of a method in a cell), from the column value; zero is on the axis."""
    policy = [name for name in (*POLICY, "method", hue) if name in rows]
    rows = rows.assign(policy=rows[policy].astype(str).agg("-".join, axis=1))
    apart |= {"height": height, "aspect": width / height, "facet_kws": {"sharey": False, "sharex": sharex}}
    grid = sns.relplot(
        rows, kind="line", x=x, y="value", hue=hue, palette=colours, units="policy", estimator=None, linewidth=1.1,
        markersize=3.5, markeredgewidth=0, legend=False, **apart,
    )  # fmt: skip
    for panel in grid.axes.flat:
        with_zero(panel, "y")
    return _titled(grid.set_axis_labels("gradient step", ""), titles)


def _shown(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns that panels are titled by: condition and the names of backbones."""
    named = [condition(*where) for where in rows[["attack", "ratio"]].itertuples(index=False)]
    return rows.assign(condition=named, backbone=rows["backbone"].map(backbone_label))


def _tall(rows: pd.DataFrame, values: Iterable[str], name: str = "metric") -> pd.DataFrame:
    """One row per value column that is there."""
    known = [column for column in values if column in rows and rows[column].notna().any()]
    kept = [column for column in rows if column not in known]
    return rows.melt(kept, known, name, "value").dropna(subset="value")


def _conditions(rows: pd.DataFrame) -> list[tuple[str, float]]:
    known = in_reading_order(rows[["attack", "ratio"]].drop_duplicates())
    return list(known.itertuples(index=False, name=None))


def _by_attack(rows: pd.DataFrame) -> tuple[dict[str, Any], list[Line2D]]:
    """How `_lines` tells attacks and ratios apart, and the legend's entries."""
    ratios = [ratio for ratio in sorted(set(rows["ratio"])) if ratio > 0]
    dashes = dict(zip(ratios, DASHES, strict=False)) | {0.0: ""}
    styles = {ratio: "-" if dash == "" else (0, dash) for ratio, dash in dashes.items()}
    handles = [line(condition(a, r), ATTACK_COLOURS[a], styles[r]) for a, r in _conditions(rows)]
    return {"hue": "attack", "colours": ATTACK_COLOURS, "style": "ratio", "dashes": dashes}, handles


def _by_method(rows: pd.DataFrame) -> tuple[dict[str, Any], list[Line2D]]:
    """How `_lines` tells methods apart, and the legend's entries."""
    shown = in_order(rows["method"])
    dashes = {m: DASHES[STYLES.index(look(m).style)] for m in shown}
    handles = [line(look(m).label, look(m).colour, look(m).style) for m in shown]
    colours = {m: look(m).colour for m in shown}
    return {"hue": "method", "colours": colours, "style": "method", "dashes": dashes}, handles


def _limit(grid: sns.FacetGrid, rows: pd.DataFrame, axis: str = "y") -> Line2D:
    """Draw the limit in the panels of cost, and zero in all; the legend's entry."""
    limit = rows["cost_limit"].iloc[0]
    for key, panel in grid.axes_dict.items():
        if "return" not in (key if isinstance(key, tuple) else (key,)):
            getattr(panel, "axhline" if axis == "y" else "axvline")(limit, **LIMIT)
            with_zero(panel, axis, limit)
        with_zero(panel, axis)
    return Line2D([], [], label=f"cost limit {limit:g}", **LIMIT)


# Attack


def trajectories(points: pd.DataFrame) -> Drawn:
    """Trajectories of D and D_f (`tables.data_points`): a panel per ratio and attack, true and poisoned labels."""
    colours = {"D": "#9A9A9A", "D_f, true labels": "#D55E00", "D_f, poisoned labels": "#0072B2"}
    markers, sizes = dict(zip(colours, "ooX", strict=True)), dict(zip(colours, (10, 26, 26), strict=True))
    clean, poison = points[points["set"] == "D"], points[points["set"] != "D"]
    repeated = clean.drop(columns=["attack", "ratio"]).merge(poison[["attack", "ratio"]].drop_duplicates(), how="cross")
    rows = pd.concat([repeated, poison])
    rows = rows.assign(attack=rows["attack"].map(ATTACKS), ratio=(100 * rows["ratio"]).map("{:g} %".format))
    grid = sns.relplot(
        rows, x="cost", y="return", row="ratio", col="attack", hue="set", palette=colours, style="set", markers=markers,
        size="set", sizes=sizes, alpha=0.6, linewidth=0, height=2.9, aspect=1.2, legend=False,
    )  # fmt: skip
    with_zero(grid.axes[0, 0], "y")
    limit = _limit(_titled(grid).set_axis_labels(*METRICS.values()), points, "x")
    return grid.figure, [*(dot(name, colours[name], markers[name]) for name in colours), limit]


def adversaries(curves: pd.DataFrame) -> Drawn:
    """Mean sum of R_z while the adversaries learn: a panel per attack, a line per replicate.

    curves  attack, replicate, steps (of the simulator), scalar_return (mean of the last 100 episodes); perhaps warm_up,
            1 in the reports of an adversary that was not paid R_z yet (reading adversary_start), drawn grey and hollow
    """
    rows = curves.assign(thousands=curves["steps"] / 1000, value=curves["scalar_return"])
    grid = _lines(rows, "thousands", "attack", ATTACK_COLOURS, 3.4, 2.4, col="attack", titles=ATTACKS, marker="o")
    warm = rows[rows.get("warm_up", pd.Series(0.0, rows.index)).fillna(0.0) > 0]
    hollow = {"marker": "o", "markerfacecolor": "white", "markersize": 4}
    for (attack, _), here in warm.groupby(["attack", "replicate"], sort=False):
        grid.axes_dict[attack].plot(here["thousands"], here["value"], color="#8A8A8A", **hollow)
    grid.set_axis_labels("simulator steps in thousands", "sum of R_z per episode")
    return grid.figure, [line("warm-up: paid the reward, not R_z", "#8A8A8A", **hollow)] if len(warm) else []


# Learning and unlearning


def logged(logs: pd.DataFrame, quantities: dict[str, str] = TRAINING_LOG) -> Drawn:
    """What the losses reported, a line per policy: a panel per quantity, coloured by attack, dashed by ratio."""
    rows, (apart, handles) = _tall(logs, quantities), _by_attack(logs)
    facets = {"col": "metric", "col_wrap": min(3, rows["metric"].nunique()), "titles": quantities}
    return _lines(rows, "step", width=3.2, height=2.1, **apart, **facets).figure, handles


def inside(logs: pd.DataFrame) -> Drawn:
    """The forget weight, the gap and the critics on D_f, with what they are steered to.

    Dotted: kappa + sigma for Q_c (where the gap is 0), and ln 2 for the residuals, which softplus gives on target.
    """
    figure, handles = logged(logs, UNLEARNING_LOG)
    level = "forget_chi" if "forget_chi" in logs and logs["forget_chi"].notna().any() else "forget_q_cost_policy"
    target, goals = logs["gap"] + logs[level], {"gap": 0.0}
    if np.ptp(target) < 1e-3 + 1e-5 * logs[level].abs().max():  # where line 14's gap is in force, kappa + sigma - this
        goals |= dict.fromkeys(("forget_q_cost_data", level), target.median())
    goals |= dict.fromkeys(("forget_reward_residual", "forget_cost_residual"), np.log(2))
    named = {UNLEARNING_LOG[name]: goal for name, goal in goals.items()}
    for panel in figure.axes:
        if (title := panel.get_title("left")) in named:
            panel.axhline(named[title], **GOAL)
            with_zero(panel, "y")
    return figure, [*handles, Line2D([], [], label="on target (kappa + sigma, gap 0, ln 2)", **GOAL)]


def why(logs: pd.DataFrame) -> Drawn:
    """What the actor is pulled by and where it goes, a line per policy, coloured by method: a panel per quantity."""
    rows, (look, handles) = _tall(logs, WHY_LOG), _by_method(logs)
    names = [name for name in WHY_LOG if name in set(rows["metric"])]
    order = {"col": "metric", "col_order": names, "col_wrap": 2, "titles": WHY_LOG}
    grid = _lines(rows, "step", width=4.3, height=2.1, **look, **order)
    for name in names:
        if name.endswith("gradient"):  # one that diverges would flatten the others
            grid.axes_dict[name].set_yscale("symlog", linthresh=1)
    return grid.figure, handles


def training_curves(episodes: pd.DataFrame) -> Drawn:
    """Cost and return of snapshots in the simulator: a row per backbone, coloured by attack, dashed by ratio."""
    return _curves(episodes, "backbone", *_by_attack(episodes))


def unlearning_curves(episodes: pd.DataFrame) -> Drawn:
    """Cost and return of snapshots during unlearning: a row per attack and ratio, coloured by method."""
    return _curves(episodes, "condition", *_by_method(episodes))


def _curves(rows: pd.DataFrame, row: str, apart: dict, handles: list[Line2D]) -> Drawn:
    """Means over a snapshot's episodes against the step, a line per policy; columns cost and return."""
    means = rows.groupby([*POLICY, "method", "step"], sort=False)[list(METRICS)].mean().reset_index()
    tall = _tall(_shown(means), METRICS)
    grid = _lines(tall, "step", width=4.3, height=2.2, row=row, col="metric", sharex="row", marker="o", **apart)
    for (_, metric), panel in grid.axes_dict.items():
        panel.set(xlabel="gradient step", ylabel=METRICS[metric])
    return grid.figure, [*handles, _limit(grid, rows)]


# Evaluation


def methods(episodes: pd.DataFrame) -> Drawn:
    """Cost and return of every method: a row of panels per attack and ratio; clean policies beside every condition."""
    rows = _tall(_shown(with_clean(episodes)), METRICS)
    grid = _dots(rows, 4.3, METRICS, row="condition", col="metric")
    return grid.figure, [dot("one episode", "#BBBBBB"), *DOTS, _limit(grid, rows, "x")]


def _dots(rows: pd.DataFrame, width: float, labels: dict[str, str] | str, **facets: Any) -> sns.FacetGrid:
    """A line for each method, from the column value: every replicate as a dot, the mean of several with its interval.

    A replicate with several rows, which are faint, is at their mean; a row with low and high has that interval.
    labels: of the axes, by column of panels.
    """
    shown, jitter = in_order(rows["method"]), np.random.default_rng(0)  # the same in every execution
    grid = _grid(rows, width, 0.7 + 0.27 * len(shown), **{"sharex": "col"} | facets)
    for (i, j, _), here in grid.facet_data():
        panel = grid.facet_axis(i, j)
        for place, method in enumerate(shown):
            colour, own = look(method).colour, here.loc[here["method"] == method]
            values = own.groupby("replicate", sort=False)["value"].mean()
            if len(own) > len(values):
                noise = place + 0.28 * jitter.uniform(-1, 1, len(own))
                panel.scatter(own["value"], noise, s=8, alpha=0.3, color=colour, linewidths=0)
            panel.scatter(values, [place] * len(values), s=24, color=colour, edgecolors="white", lw=0.6, zorder=3)
            if "low" in own:
                panel.plot(own[["low", "high"]].T, [place, place], color=colour, linewidth=1.6, alpha=0.6)
            if len(values) > 1:
                panel.plot(interval(values), [place, place], color=colour, linewidth=1.6, alpha=0.6, zorder=2)
                panel.scatter(values.mean(), place, s=46, marker="D", facecolors="none", edgecolors=colour, zorder=4)
        label = labels if isinstance(labels, str) else labels[here[facets["col"]].iloc[0]]
        _listed(panel, [look(m).label for m in shown], label)
    for panel in grid.axes.flat:  # when all is drawn, as they share their limits
        with_zero(panel, "x")
    return grid


def _listed(panel: Axes, names: Sequence[str], label: str) -> None:
    """A line for each name, the first on top; label: of the other axis."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.grid(False, axis="y")
    panel.set(xlabel=label, ylabel="")


def under_attack(attack: str, table: pd.DataFrame, means: pd.DataFrame) -> Drawn:
    """Figures 1 to 3: a row of panels per task, cost and return; a group of bars per backbone and ratio.

    table  TABLES["methods"], of all attacks; one that it has not is drawn with the paper's numbers alone
    means  `tables.replicate_means`, the dots
    """
    rows, means = table[table["attack"] == attack], with_clean(means).query("attack == @attack")
    if rows.empty:
        here = table[["task", "backbone", "ratio", "cost_limit"]].drop_duplicates(["task", "backbone", "ratio"])
        rows = TABLES["methods"].theirs.query("attack == @attack").rename(columns={"value": "paper"}).merge(here)
        rows = rows.assign(n=0, failed=0, asked=1, mean=np.nan, low=np.nan, high=np.nan)
    shown = in_order(table["method"])
    blocks = [(b, r) for b in ORDER["backbone"] for r in sorted(set(rows["ratio"])) if b in set(rows["backbone"])]
    apart, tasks = max(len(shown) + 2, 10), [t for t in ORDER["task"] if t in set(rows["task"])]
    places, width = {at: apart * i for i, at in enumerate(blocks)}, max(3.2, 1.2 + 0.07 * apart * len(blocks))
    facets = {"row": "task", "row_order": tasks, "col": "metric", "sharex": True, "sharey": False}
    grid = _grid(rows, width, 2.1 + 1.3 / len(tasks), **facets)
    dots = _tall(means, METRICS).set_index(["task", "metric", "backbone", "ratio", "method"]).sort_index()["value"]
    for row in rows.itertuples():
        panel, colour = grid.axes_dict[row.task, row.metric], look(row.method).colour
        at = places[row.backbone, row.ratio] + shown.index(row.method) - (len(shown) - 1) / 2
        if row.n:
            panel.bar(at, row.mean, 0.86, color=colour, alpha=0.85)
            panel.plot([at, at], [row.low, row.high], color="#222222", linewidth=0.9)
            own = dots.loc[[(row.task, row.metric, row.backbone, row.ratio, row.method)]].dropna()
            panel.scatter([at] * len(own), own, s=5, color="#222222", linewidths=0, zorder=3)
        elif row.failed or row.asked:
            panel.scatter(at, 0, s=14, marker="x", linewidths=0.9, color="#D00000" if row.failed else "#9A9A9A")
        panel.scatter(at, row.paper, s=16, marker="D", facecolors="white", edgecolors=colour, zorder=4, linewidths=1)
    for (_, metric), panel in grid.axes_dict.items():
        panel.set_xticks([places[at] for at in blocks], [f"{100 * r:g} %\n{backbone_label(b)}" for b, r in blocks])
        panel.tick_params("x", length=0, labelsize=8)
        panel.grid(False, axis="x")
        panel.set(xlabel="", ylabel=METRICS[metric])
    limit = _limit(grid, rows.assign(cost_limit=rows["cost_limit"].max()))
    handles = [Patch(color=look(m).colour, alpha=0.85, label=look(m).label) for m in shown]
    handles += [dot("one replicate", "#222222"), line("95 % interval", "#222222"), *_hollow(rows, "D"), limit]
    marks = {"missing": (rows["n"].eq(0) & rows["asked"].gt(0) & rows["failed"].eq(0), "#9A9A9A")}
    marks |= {"failed": (rows["n"].eq(0) & rows["failed"].gt(0), "#D00000")}
    return grid.figure, [*handles, *(dot(name, c, "x") for name, (there, c) in marks.items() if there.any())]


def beside_paper(episodes: pd.DataFrame) -> Drawn:
    """Table 1 as dots: a column of panels per backbone, a line per method, a dot per attack and ratio.

    Filled are our means over replicates, hollow the paper's numbers.
    """
    table = _shown(TABLES["methods"].build(episodes))
    conditions = _conditions(table)
    ratios, shown = sorted(table["ratio"].unique()), in_order(table["method"])
    grid = _grid(table, 2.9, 0.7 + 0.3 * len(shown), row="metric", col="backbone", sharex=False)
    for row in table.itertuples():
        panel, place = grid.axes_dict[row.metric, row.backbone], shown.index(row.method)
        colour = ATTACK_COLOURS["clean" if row.method == "clean" else row.attack]
        place += 0.5 * (conditions.index((row.attack, row.ratio)) + 0.5) / len(conditions) - 0.25
        mark = {"marker": MARKERS[ratios.index(row.ratio) % 4], "s": 24, "linewidths": 1.0, "edgecolors": colour}
        panel.scatter(row.mean, place, color=colour, zorder=3, **mark)
        panel.scatter(row.paper, place, color="white", zorder=2, **mark)
    for (metric, _), panel in grid.axes_dict.items():
        _listed(panel, [look(m).label for m in shown], METRICS[metric])
    limit = _limit(grid, table, "x")
    handles = [dot(condition(a, r), ATTACK_COLOURS[a], MARKERS[ratios.index(r) % 4]) for a, r in conditions]
    return grid.figure, [*handles, *_hollow(table), limit]


def repairs(episodes: pd.DataFrame) -> Drawn:
    """From the poisoned policy to Safe-RULE's in the plane of cost and return, ours and the paper's.

    A panel per backbone, an arrow per attack and ratio, of our means over replicates and of the paper's numbers.
    """
    table = _shown(TABLES["methods"].build(episodes))
    ends = table[table["method"].isin(["poisoned", OURS])]
    wide = ends.pivot(index=["backbone", "attack", "ratio", "method"], columns="metric", values=["mean", "paper"])
    grid = _grid(table, 3.6, 3.2, col="backbone", col_wrap=2, sharex=False, sharey=False)
    for (backbone, attack, _), pair in wide.groupby(level=["backbone", "attack", "ratio"], sort=False):
        for whose, style, face in (("mean", "-", ATTACK_COLOURS[attack]), ("paper", ":", "white")):
            panel, points = grid.axes_dict[backbone], pair[whose].droplevel([0, 1, 2]).reindex(["poisoned", OURS])
            _arrow(panel, *points[["cost", "return"]].to_numpy(), ATTACK_COLOURS[attack], style)
            for marker, (_, point) in zip("os", points.iterrows(), strict=True):
                mark = {"color": face, "edgecolors": ATTACK_COLOURS[attack], "zorder": 3}
                panel.scatter(point["cost"], point["return"], marker=marker, s=32, **mark)
    for panel in grid.axes.flat:
        panel.margins(0.08)  # so that no mark at the edge is cut
        with_zero(panel, "y")
    grid.set_axis_labels(METRICS["cost"], METRICS["return"])
    limit = _limit(grid, table, "x")
    handles = [line(ATTACKS[a], ATTACK_COLOURS[a]) for a in ATTACKS if a in set(table["attack"])]
    handles += [dot("poisoned"), dot(look(OURS).label, marker="s"), *_hollow(table), limit]
    return grid.figure, handles


def _arrow(panel: Axes, start: np.ndarray, end: np.ndarray, colour: str, style: str = "-") -> None:
    """From one point to another, where both are known."""
    if np.isfinite([start, end]).all():
        arrow = {"arrowstyle": "-|>", "color": colour, "linestyle": style, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 2}
        panel.annotate("", end, start, arrowprops=arrow, zorder=2)


def _hollow(table: pd.DataFrame, marker: str = "o") -> list[Line2D]:
    """The legend's entry for the paper, where it prints a number for any of these cells."""
    return [dot("the paper", marker=marker, hollow=True)] if table["paper"].notna().any() else []


def across(table: pd.DataFrame) -> Drawn:
    """`tables.across_cells` as dots with intervals: a row of panels per backbone."""
    panels = {
        ("normalised_cost", "value"): "interquartile mean of cost / limit",
        ("normalised_return", "value"): "interquartile mean of the return",
        ("safe", "value"): "share of safe policies",
        ("normalised_cost", "gain"): "cost / limit less with Safe-RULE",
        ("normalised_return", "gain"): "return more with Safe-RULE",
        ("safe", "gain"): "better, safety first, with Safe-RULE",
    }
    rows = pd.concat(
        table[table["metric"] == m].assign(of=label, low=table[f"{c}_low"], high=table[f"{c}_high"], value=table[c])
        for (m, c), label in panels.items()
    ).dropna(subset="value")
    rows = rows.assign(backbone=rows["backbone"].map(backbone_label), replicate=0)
    labels = {label: label for label in panels.values()}
    grid = _titled(_dots(rows, 2.9, labels, row="backbone", col="of"), dict.fromkeys(labels, ""))
    for (_, of), panel in grid.axes_dict.items():
        if of.endswith("with Safe-RULE"):
            panel.axvline(0, **GOAL)
    return grid.figure, [dot("estimate"), line("95 % interval"), Line2D([], [], label="no difference", **GOAL)]


# The overview


SCORES = {"normalised_cost": "cost per episode / limit", "normalised_return": "normalised return"}


def moves(cells: pd.DataFrame) -> Drawn:
    """An arrow from the clean to the poisoned policy of every cell (`tables.from_clean_to_poisoned`), by attack."""
    cells = _shown(cells)
    grid = _grid(cells, 3.3, 2.9, col="backbone", col_wrap=min(2, cells["backbone"].nunique()))
    ends = [[f"{score}{end}" for score in SCORES] for end in ("", "_poisoned")]
    for (backbone, attack), here in cells.groupby(["backbone", "attack"], sort=False):
        panel, colour = grid.axes_dict[backbone], ATTACK_COLOURS[attack]
        for (x, y), face in zip(ends, ("white", colour), strict=True):
            panel.scatter(here[x], here[y], s=20, color=face, edgecolors=colour, zorder=3)
        for start, end in zip(*(here[end].to_numpy() for end in ends), strict=True):
            _arrow(panel, start, end, colour)
    for panel in grid.axes.flat:
        panel.axvline(1, **LIMIT)
        with_zero(panel, "x", 1.0)
        with_zero(panel, "y")
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.05 * (high - low))  # of all panels, so that no dot at the top is cut
    grid.set_axis_labels(*SCORES.values())
    handles = [line(ATTACKS[a], ATTACK_COLOURS[a]) for a in ATTACKS if a in set(cells["attack"])]
    return grid.figure, [*handles, dot("clean", hollow=True), dot("poisoned"), _one()]


def everywhere(means: pd.DataFrame) -> Drawn:
    """Every cell as a dot, a line per method, at its cost and return (`tables.cell_means`); large, the mean of them.

    The cells are the same for all methods.
    """
    rows = _tall(means, SCORES).assign(replicate=0)
    grid = _titled(_dots(rows, 4.3, SCORES, col="metric"), dict.fromkeys(SCORES, ""))
    grid.axes_dict["normalised_cost"].axvline(1, **LIMIT)
    number = len(means.drop_duplicates(CELL))
    of = f"mean of the {number} cells that all of them have" if number > 1 else "the one cell that all of them have"
    return grid.figure, [dot("one cell, mean over replicates", "#BBBBBB"), dot(of), _one()]


def _one() -> Line2D:
    return Line2D([], [], label="the cost limit", **LIMIT)


def changes(episodes: pd.DataFrame, effects: pd.DataFrame) -> Drawn:
    """Change of cost and return against the default under each reading (`tables.effects`): a row per backbone.

    Dots are episodes from the same start, a diamond is their mean; grey and hollow are policies that are the default's
    up to rounding. The band is the floor: the largest mean change among these and the same run again.
    """
    values = {f"{metric}_change": f"change of {label}" for metric, label in METRICS.items()}
    rows = _tall(paired(episodes).query("reading != ''"), values)
    rows["at"] = (rows["reading"] + " = " + rows["option"]).where(rows["reading"] != SAME_RUN, SAME_RUN)
    same = effects.set_index(["backbone", "reading", "option"])["same_policy"]
    lines = rows.groupby("backbone", sort=False)["at"].nunique()
    facets = {"row": "backbone", "col": "metric", "sharex": False, "sharey": False}
    grid = _grid(rows, 4.4, 0.27 * lines.mean() + 0.6, **facets, gridspec_kws={"height_ratios": lines + 1.5})
    for (backbone, metric), panel in grid.axes_dict.items():
        here = rows[(rows["backbone"] == backbone) & (rows["metric"] == metric)]
        means = here.groupby(["at", "reading", "option"], sort=False)["value"].mean().reset_index()
        means = means.iloc[np.argsort(means["at"] != SAME_RUN, kind="stable")]
        means["same"] = [same[backbone, r, o] for r, o in zip(means["reading"], means["option"], strict=True)]
        floor = means.loc[means["same"] | (means["at"] == SAME_RUN), "value"].abs().max()
        panel.axvspan(-np.nan_to_num(floor), np.nan_to_num(floor), color=BAND, linewidth=0, zorder=0)
        panel.axvline(0, color="#555555", linewidth=1.0, zorder=1)
        for place, row in enumerate(means.itertuples()):
            colour = "#8A8A8A" if row.same else look(OURS).colour
            few = here.loc[here["at"] == row.at, "value"]
            panel.scatter(few, [place] * len(few), s=11, alpha=0.4, color=colour, linewidths=0)
            mark = {"color": "white" if row.same else colour, "edgecolors": colour if row.same else "white"}
            panel.scatter(row.value, place, s=42, marker="D", linewidths=0.9, zorder=3, **mark)
        _listed(panel, means["at"] if metric == "cost_change" else [""] * len(means), values[metric])
        panel.set_title(backbone_label(backbone))
        with_zero(panel, "x")
    handles = [dot("one episode", look(OURS).colour), dot("mean", look(OURS).colour, "D")]
    handles += [dot("mean, the default's policy up to rounding", "#8A8A8A", "D", hollow=True)]
    return grid.figure, [*handles, Patch(color=BAND, label="floor: what rounding changes")]


# Appendix A


def tails(rows: pd.DataFrame) -> Drawn:
    """Both sides of Eq. 15 against u, before and after unlearning: a row per backbone, a line per policy."""
    rows = rows[(rows["inequality"] == "(15)") & (rows["stage"] != "during")]
    stages = {"before": "before unlearning", "after": "after unlearning"}
    return _both_sides(rows, "u", "u, in units of Q_r", "stage", stages)


def bounds(rows: pd.DataFrame) -> Drawn:
    """Both sides of Eq. 14 and 19 against the step: a row per backbone, a line per policy."""
    names = {"(14)": "Eq. 14, mean excess of Q_r", "(19)": "Eq. 19, share still called safe"}
    return _both_sides(rows[rows["inequality"].isin(list(names))], "step", "gradient step", "inequality", names)


def constant_critic(rows: pd.DataFrame) -> Drawn:
    """`appendix.constant_critic`: Lemma A.2 for a critic with the same Q_c on all of D_f."""
    names = {name: name for name in rows["against"].unique()}
    return _both_sides(rows.assign(backbone=""), "x", "", "against", names, sharex=False)


def _both_sides(rows: pd.DataFrame, x: str, label: str, col: str, names: dict[str, str], **shared: bool) -> Drawn:
    tall = _tall(rows.assign(backbone=rows["backbone"].map(backbone_label)), SIDES, "side")
    colours, marker = {side: colour for side, (colour, _) in SIDES.items()}, "o" if x != "x" else ""
    facets = {"row": "backbone", "col": col, "titles": names, "marker": marker} | shared
    grid = _lines(tall, x, "side", colours, 4.3, 2.3, **facets)
    for (_, at), panel in grid.axes_dict.items():
        if at != "(14)":  # a share
            panel.axhline(1, **LIMIT)
            panel.set_ylim(-0.05, 3)
            if x != "x":
                panel.set_yscale("symlog", linthresh=2)
                panel.set_yticks([0, 0.5, 1, 10, 100], ["0", "0.5", "1", "10", "100"])
                panel.set_ylim(-0.05, max(1.5, 1.3 * panel.dataLim.ymax))
    grid.set_axis_labels(label, "")
    if x == "u":
        grid.set(xscale="log")
    handles = [line(name, colour) for colour, name in SIDES.values()]
    return grid.figure, [*handles, Line2D([], [], label="1: at or above it a bound says nothing", **LIMIT)]


def neighbourhood(balls: pd.DataFrame) -> Drawn:
    """Eq. 23-25, a row per backbone: samples with a ball, radii, and what encloses the Lipschitz constant."""
    rows = balls.assign(**{name: balls[name] / balls["diameter"] for name in ("radius", "printed")})
    found, ours, printed = "observed, found", "a bound per member (ours)", "as printed; product of spectral norms"
    share, radius, slope = "samples with a ball", "median radius / box's diameter", "Lipschitz constant of Q_c"
    columns = {"nonempty": (share, found), "radius": (radius, ours), "printed": (radius, printed)}
    columns |= {"slope_found": (slope, found), "slope_bound": (slope, printed)}
    colours = {found: "#000000", ours: "#0072B2", printed: "#D55E00"}
    tall = _tall(_shown(rows).drop(columns="samples"), columns)
    tall["of"], tall["side"] = zip(*tall["metric"].map(columns), strict=True)
    grid = _lines(tall, "step", "side", colours, 3.4, 2.2, row="backbone", col="of", marker="o")
    return grid.figure, [line(side, colour) for side, colour in colours.items()]


# Forgetting and time


def actions(table: pd.DataFrame) -> Drawn:
    """`forgetting.action_distances`: a row of panels per backbone, a line per method, a dot per replicate."""
    words, rows = {"forget": "states of D_f", "keep": "states of D"}, _shown(table).assign(value=table["distance"])
    facets = {"row": "backbone", "col": "states", "col_order": list(words), "sharex": True}
    grid = _titled(_dots(rows, 4.3, "mean distance of the actions", **facets), words)
    for (i, j, _), here in grid.facet_data():
        panel = grid.facet_axis(i, j)
        panel.axvspan(here["floor_low"].min(), here["floor_high"].max(), color=BAND, zorder=0)
        with_zero(panel, "x", rows["floor_high"].max())
        panel.axvline(here["floor"].mean(), **LIMIT)
    floor = Line2D([], [], label="floor: clean policies of different replicates", **LIMIT)
    return grid.figure, [*DOTS, floor, Patch(color=BAND, label="its range over pairs")]


def relearning(curves: pd.DataFrame, table: pd.DataFrame) -> Drawn:
    """Mean cost while policies train on the poisoned data, a panel per backbone; dotted, the levels that are "back"."""
    rows = curves.assign(method=curves["start"]).groupby([*POLICY, "method", "step"], sort=False)["cost"].mean()
    rows = rows.rename("value").reset_index()
    (apart, handles), rows = _by_method(rows), _shown(rows)
    facets = {"col": "backbone", "col_wrap": min(2, rows["backbone"].nunique())}
    grid = _lines(rows, "step", width=4.3, height=2.6, marker="o", **apart, **facets)
    for row in table[table["status"] != "no harm"].drop_duplicates(["backbone", "replicate"]).itertuples():
        grid.axes_dict[backbone_label(row.backbone)].axhline(row.level, **GOAL)
    grid.set_axis_labels("gradient steps on D and D_f", METRICS["cost"])
    back = Line2D([], [], label="back: halfway from clean to poisoned", **GOAL)
    return grid.figure, [*handles, back, _limit(grid, curves)]


def partitions(table: pd.DataFrame) -> Drawn:
    """`detection.partitions`: cost and return against what a repair was told, a colour and a marker per method."""
    told, rows = list(dict.fromkeys(table["known"])), _tall(_shown(table), METRICS)
    grid, methods = _grid(rows, 4.6, 3.0, row="condition", col="metric", sharey=False), in_order(rows["method"])
    for (i, j, _), here in grid.facet_data():
        panel = grid.facet_axis(i, j)
        for number, method in enumerate(methods):
            colour, own = look(method).colour, here[here["method"] == method]
            at, mark = own["known"].map(told.index) + 0.16 * (number - (len(methods) - 1) / 2), MARKERS[number % 4]
            panel.scatter(at, own["value"], s=20, marker=mark, color=colour, edgecolors="white", lw=0.5, zorder=3)
            for place, values in own["value"].groupby(at):
                panel.plot([place, place], interval(values), color=colour, linewidth=1.6, alpha=0.5)
                if len(values) > 1:
                    panel.scatter(place, values.mean(), s=52, marker=mark, facecolors="none", edgecolors=colour)
        panel.set_xticks(range(len(told)), told, rotation=25, ha="right")
        panel.set(xlabel="what of the poison was known", ylabel=METRICS[here["metric"].iloc[0]])
        with_zero(panel, "y")
    handles = [dot(look(m).label, look(m).colour, MARKERS[i % 4]) for i, m in enumerate(methods)]
    return grid.figure, [*handles, dot("mean, 95 % interval", hollow=True), _limit(grid, rows)]


def times(table: pd.DataFrame) -> Drawn:
    """`timing.table3`: each method's share of retraining's time, on a logarithmic axis; hollow, the paper's (CPQ)."""
    rows = table.assign(backbone=table["backbone"].map(backbone_label), value=table["share"], replicate=0)
    grid = _dots(rows, 2.6, "share of retraining's time", col="backbone")
    shown, least = in_order(rows["method"]), np.nanmin([rows["share"], 1 / rows["paper_factor"]])
    for row in rows.itertuples():
        panel, hollow = grid.axes_dict[row.backbone], {"facecolors": "none", "edgecolors": look(row.method).colour}
        panel.scatter(1 / row.paper_factor, shown.index(row.method), s=34, zorder=2, **hollow)
        if row.share < 1:
            panel.axvline(row.share / row.relative_step, **LIMIT)
        panel.set(xscale="log", xlim=(0.4 * least, 1.6))
        panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    steps = Line2D([], [], label="ratio of the numbers of steps", **LIMIT)
    return grid.figure, [dot("measured"), dot("the paper, Table 3", hollow=True), steps]


LINES = "One line per replicate."
CELLS = "Small dots are cells of Table 1, a large one is their mean."
READS = "Dots are replicates, a diamond is their mean with its 95 % interval."
BARS = "Bars are means over replicates, dots are replicates, hollow is the paper's."
OF_ATTACK = {"max_cost": "figure1", "max_reward": "figure2", "min_reward": "figure3"}  # the paper's figures
PARTITION_READS = "Filled marks are replicates, hollow ones their means, bars are 95 % intervals."
FIGURES: dict[str, Drawing] = {
    name: Drawing(title, reads, draw)
    for name, title, reads, draw in (
        ("adversaries", "{task}: the adversaries while they learn", LINES, adversaries),
        ("trajectories", "{task}: return against cost of every trajectory", "Each dot is a trajectory.", trajectories),
        ("training-losses", "{task}, {backbone}: training", LINES, logged),
        ("training-curves", "{task}: policies in the simulator during training", LINES, training_curves),
        ("training-methods", "{task}, {backbone}: clean against poisoned", READS, methods),
        ("unlearning-methods", "{task}, {backbone}: before and after unlearning", READS, methods),
        ("unlearning-curves", "{task}, {backbone}: in the simulator during unlearning", LINES, unlearning_curves),
        ("unlearning-inside", "{task}, {backbone}: inside {method}", LINES, inside),
        ("unlearning-why", "{task}, {backbone}: why a repair moves or does not", LINES, why),
        ("controls", "{task}, {backbone}: Safe-RULE and its controls", READS, methods),
        ("ablations", "{task}, {backbone}: variants of Safe-RULE", READS, methods),
        ("readings", "{task}: other readings of the paper against the default", "Dots are episodes.", changes),
        *(
            (name, f"Figure {name[-1]}: cost and return under {ATTACKS[attack]}", BARS, partial(under_attack, attack))
            for attack, name in OF_ATTACK.items()
        ),
        ("methods", "{task}: every method", "Filled is ours, hollow the paper's.", beside_paper),
        ("repairs", "{task}: what Safe-RULE does to the poisoned policy", "Hollow is the paper's.", repairs),
        ("across-cells", "All cells of a backbone", "Dots with 95 % intervals over replicates.", across),
        ("overview-attack", "From clean to poisoned", "An arrow is a cell of Table 1.", moves),
        ("overview-methods", "What each method restores", CELLS, everywhere),
        ("overview-controls", "What happens without the method: Safe-RULE and its controls", CELLS, everywhere),
        ("theory-tails", "{task}: Lemma A.1, Eq. 15, against u", LINES, tails),
        (
            "theory-bounds",
            "{task}: Eq. 14 and 19 during unlearning (step 0: the poisoned policy)",
            LINES,
            bounds,
        ),
        ("theory-constant-critic", "Lemma A.2 for a critic that is the same on all of D_f", "", constant_critic),
        ("theory-neighbourhood", "{task}: the certified neighbourhood of poisoned actions", LINES, neighbourhood),
        ("actions", "{task}: distance to the clean policies", f"{READS} The band is the floor.", actions),
        ("relearning", "{task}: cost while policies train on the poisoned data", LINES, relearning),
        ("partitions", "{task}, {backbone}: D_f known imperfectly", PARTITION_READS, partitions),
        ("table3", "{task}: time as a share of retraining's", "Hollow is the paper's.", times),
    )
}

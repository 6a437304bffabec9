"""Figures of our cells beside the paper's: rows of `comparison.table1` in, a matplotlib Figure out."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferule.report.canvas import LIMIT, UNITS, dot, head, limit_handle, panels, styled, with_zero
from saferule.report.comparison import OURS, method_column
from saferule.report.labels import ATTACK_COLOURS, ATTACKS, BACKBONES, condition, method_name
from saferule.report.tables import METRICS

PAPERS = {  # the paper's column for a method of ours
    "poisoned": "paper_before",
    "safe-rule": "paper_after",
    "trajdeleter": "paper_trajdeleter",
    "trajdeleter-cost": "paper_trajdeleter_cost",
}
RATIO_MARKERS = ("o", "s", "^", "v")  # in ascending order of the ratio


@styled
def every_method(table: pd.DataFrame, title: str) -> Figure:
    """Cost and return of the poisoned policy, every baseline and Safe-RULE: a column of panels per backbone.

    table  of one task, from `comparison.table1`; a dot per attack and ratio, hollow ones are the paper's
    """
    backbones, ratios = list(table["backbone"].unique()), sorted(table["ratio"].unique())
    methods = [method for method in OURS if table[method_column(method)].notna().any()]
    figure, axes = panels(2, len(backbones), 3.3, 0.6 + 0.27 * len(methods), sharey=True)
    for column, backbone in enumerate(backbones):
        for panel, metric in zip(axes[:, column], METRICS, strict=True):
            rows = table[(table["backbone"] == backbone) & (table["metric"] == metric)]
            for place, method in enumerate(methods):
                for _, row in rows.iterrows():
                    look = {"marker": RATIO_MARKERS[ratios.index(row["ratio"]) % 4], "s": 30, "linewidths": 1.1}
                    colour = ATTACK_COLOURS["clean" if method == "clean" else row["attack"]]
                    panel.scatter(row[method_column(method)], place - 0.1, color=colour, zorder=3, **look)
                    if method in PAPERS:
                        panel.scatter(row[PAPERS[method]], place + 0.2, color="white", edgecolors=colour, **look)
            if metric == "cost":
                panel.axvline(rows["cost_limit"].iloc[0], **LIMIT)
            panel.set_yticks(range(len(methods)), [method_name(method) for method in methods])
            panel.set_ylim(len(methods) - 0.4, -0.6)
            panel.grid(False, axis="y")
            panel.set_title(BACKBONES[backbone])
            panel.set(xlabel=UNITS[metric])
            with_zero(panel, "x")
    conditions = table[["attack", "ratio"]].drop_duplicates().itertuples(index=False)
    handles = [dot(ATTACK_COLOURS[a], condition(a, r), RATIO_MARKERS[ratios.index(r) % 4]) for a, r in conditions]
    hollow = Line2D([], [], color="#444444", marker="o", markerfacecolor="white", linestyle="none", label="the paper")
    return head(figure, title, [*handles, *_printed(table, hollow), limit_handle(table["cost_limit"].iloc[0])])


@styled
def repairs_beside_paper(table: pd.DataFrame, title: str) -> Figure:
    """From the poisoned to the repaired policy in the plane of cost and return, ours and the paper's.

    table  of one task, from `comparison.table1`; a panel per backbone, an arrow per attack and ratio
    """
    backbones = list(table["backbone"].unique())
    figure, axes = panels(1, len(backbones), 4.3, 3.4)
    wide = table.pivot(index=["backbone", "attack", "ratio"], columns="metric")
    for panel, backbone in zip(axes[0], backbones, strict=True):
        for (attack, _), cell in wide.loc[backbone].iterrows():
            colour = ATTACK_COLOURS[attack]
            _arrow(panel, cell["poisoned"], cell["safe_rule"], colour, "-", colour)
            _arrow(panel, cell["paper_before"], cell["paper_after"], colour, ":", "white")
        panel.axvline(table["cost_limit"].iloc[0], **LIMIT)
        panel.set_title(BACKBONES[backbone])
        panel.set(xlabel=UNITS["cost"], ylabel=UNITS["return"])
        with_zero(panel, "x")
        with_zero(panel, "y")
    attacks = [Line2D([], [], color=ATTACK_COLOURS[a], label=ATTACKS[a]) for a in table["attack"].unique()]
    hollow = Line2D([], [], color="#444444", linestyle=":", marker="s", markerfacecolor="white", label="the paper")
    ours = Line2D([], [], color="#444444", marker="s", label="ours: poisoned (circle) to Safe-RULE (square)")
    return head(figure, title, [*attacks, ours, *_printed(table, hollow), limit_handle(table["cost_limit"].iloc[0])])


def _printed(table: pd.DataFrame, handle: Line2D) -> list[Line2D]:
    """The legend's entry for the paper, where it prints a number for any of these cells."""
    return [handle] if table[list(PAPERS.values())].notna().any(axis=None) else []


def _arrow(panel: Axes, start: pd.Series, end: pd.Series, colour: str, style: str, face: str) -> None:
    panel.plot([start["cost"], end["cost"]], [start["return"], end["return"]], color=colour, linestyle=style, zorder=2)
    for point, marker in ((start, "o"), (end, "s")):
        panel.scatter(point["cost"], point["return"], marker=marker, s=34, color=face, edgecolors=colour, zorder=3)

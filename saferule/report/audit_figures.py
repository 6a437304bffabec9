"""Figures of the audit of forgetting (`saferule.report.audit`): rows in, a matplotlib Figure out."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from saferule.report.audit import SIDES, by_cell
from saferule.report.canvas import LIMIT, dot, head, limit_handle, panels, styled, with_zero
from saferule.report.labels import in_order, method_colour, method_name

BAND = "#EEEEEE"  # what chance or seeds alone make
BACK = {"color": "#555555", "linestyle": ":"}


@styled
def actions(table: pd.DataFrame, title: str) -> Figure:
    """Distance of the actions to the clean policies of other seeds: a row per backbone, columns forget and keep."""
    cells = list(by_cell(table))
    figure, axes = panels(len(cells), 2, 4.3, _height(table), sharex=True, sharey="row")
    for row, (name, cell) in enumerate(cells):
        for panel, (side, words) in zip(axes[row], SIDES.items(), strict=True):
            here = cell[cell["states"] == side]
            _by_method(panel, here, "distance")
            panel.axvline(here["floor"].mean(), **LIMIT)
            panel.axvspan(here["floor_low"].min(), here["floor_high"].max(), color=BAND, zorder=0)
            panel.set_title(f"{_panel_title(name)}: {words}")
            panel.set(xlabel="mean distance of the actions")
            panel.label_outer()
    with_zero(axes[0, 0], "x")
    floor = Line2D([], [], label="floor: clean policies of different seeds", **LIMIT)
    spread = [Patch(color=BAND, label="its range over pairs of seeds")] if table["pairs"].max() > 1 else []
    return head(figure, title, [dot("#444444", "one training seed"), floor, *spread])


@styled
def relearning(curves: pd.DataFrame, table: pd.DataFrame, title: str) -> Figure:
    """Mean cost while policies train on the poisoned data, a panel per backbone; dotted, the level that is "back"."""
    cells, methods = list(by_cell(curves)), in_order(curves["method"])
    columns = min(2, len(cells))
    figure, grid = panels(-(-len(cells) // columns), columns, 8.6 / columns, 2.6)
    levels = dict(by_cell(table))
    for panel, (name, cell) in zip(grid.flat, cells, strict=False):
        for (method, _), rows in cell.groupby(["method", "training_seed"], sort=False):
            means = rows.groupby("step")["cost"].mean()
            panel.plot(means.index, means, color=method_colour(method), marker="o", markersize=3, linewidth=1.3)
        panel.axhline(cell["cost_limit"].iloc[0], **LIMIT)
        known = levels.get(name, table[:0])  # no rows where no seed has both a clean and a poisoned policy
        for level in known.loc[known["status"] != "no harm", "level"].unique():
            panel.axhline(level, linewidth=1.1, **BACK)
        panel.set_title(_panel_title(name))
        panel.set(xlabel="gradient steps on D and D_f", ylabel="cost per episode")
        with_zero(panel, "y")
    for panel in grid.flat[len(cells) :]:
        panel.remove()
    handles = [Line2D([], [], color=method_colour(m), marker="o", markersize=3, label=method_name(m)) for m in methods]
    back = Line2D([], [], **BACK, label="back: halfway from clean to poisoned")
    return head(figure, title, [*handles, back, limit_handle(curves["cost_limit"].iloc[0])])


def _height(table: pd.DataFrame) -> float:
    return 0.5 + 0.24 * table["method"].nunique()


def _panel_title(name: str) -> str:
    return name.split(", ", 1)[1]


def _by_method(panel: Axes, rows: pd.DataFrame, column: str, mark: str = "o", shift: float = 0.0) -> None:
    """A line per method, a dot per training seed."""
    methods = in_order(rows["method"])
    for place, method in enumerate(methods):
        values = rows.loc[rows["method"] == method, column]
        heights = [place + shift] * len(values)
        panel.scatter(
            values, heights, s=30, marker=mark, color=method_colour(method), linewidths=0, alpha=0.9, zorder=3
        )
    panel.set_yticks(range(len(methods)), [method_name(m) for m in methods])
    panel.set_ylim(len(methods) - 0.4, -0.6)
    panel.grid(False, axis="y")

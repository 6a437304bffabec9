"""A repair in the simulator: the same episodes before and after it, as a small table and a picture."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from saferule.files import write_bytes
from saferule.report.style import LIMIT, METRICS, OTHER, STYLE, backbone_label, dot, head, line, png, with_zero
from saferule.report.tables import interval
from saferule.runs.evaluate import within_limit

TABLE, PICTURE = "before-after.csv", "before-after.png"
SIDES = {"before": "#D55E00", "after": "#0072B2"}
QUANTITIES = {"return": "return", "cost": "cost", "within": "share of episodes within the limit"}


def _paired(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per seed, with columns (quantity, before or after)."""
    return episodes.assign(within=within_limit(episodes)).pivot(index="seed", columns="policy", values=list(QUANTITIES))


def table(episodes: pd.DataFrame) -> pd.DataFrame:
    """A row each for return, cost and the share within the limit.

    episodes  rows of `saferule.runs.evaluate.play`, with a column ``policy``: before or after, on the same seeds
    Columns: quantity, before, after, difference (after - before), low and high, Student's 95 % interval of the mean
    difference over paired episodes, and how many these are. It is about these two policies on other episodes; what
    other repairs would do is not in it.
    """
    rows, paired = [], _paired(episodes)
    for name, label in QUANTITIES.items():
        change = paired[name]["after"] - paired[name]["before"]
        means = {side: paired[name][side].mean() for side in SIDES}
        low, high = interval(change.dropna())
        rows.append({"quantity": label} | means | {"difference": change.mean(), "low": low, "high": high})
    return pd.DataFrame(rows).assign(episodes=len(paired), cost_limit=episodes["cost_limit"].iloc[0])


@matplotlib.rc_context(STYLE)
def draw(episodes: pd.DataFrame) -> Figure:
    """Return and cost of each episode before and after, a line per episode; diamonds are means."""
    figure, paired = Figure(figsize=(6.4, 3.4)), _paired(episodes)
    for axes, name in zip(figure.subplots(1, 2), METRICS, strict=True):
        for _, row in paired[name].iterrows():
            axes.plot([0, 1], [row[side] for side in SIDES], color="#BBBBBB", linewidth=0.8, zorder=2)
        for x, (side, colour) in enumerate(SIDES.items()):
            values = paired[name][side]
            axes.scatter([x] * len(values), values, color=colour, s=16, zorder=3)
            axes.scatter([x], [values.mean()], marker="D", s=52, facecolors="white", edgecolors=colour, zorder=4)
        axes.set(xticks=[0, 1], xticklabels=list(SIDES), xlim=(-0.4, 1.4), title=METRICS[name])
        if name == "cost":
            axes.axhline(episodes["cost_limit"].iloc[0], **LIMIT)
        with_zero(axes, "y")
    first = episodes.iloc[0]
    handles = [dot("one episode"), dot("mean", marker="D", hollow=True), line("cost limit", OTHER, LIMIT["linestyle"])]
    return head(figure, f"{backbone_label(first['backbone'])} on {first['task']}: before and after the repair", handles)


def write(episodes: pd.DataFrame, folder: Path) -> None:
    """Table and picture of the episodes, into a folder."""
    write_bytes(folder / TABLE, table(episodes).to_csv(index=False).encode())
    write_bytes(folder / PICTURE, png(draw(episodes)))


def text(folder: Path) -> str:
    """The table that was written to a folder, as it is shown on a terminal."""
    return pd.read_csv(folder / TABLE).to_string(index=False, float_format=lambda value: f"{value:.2f}")

"""What a reading of an unclear point of the paper changes: Safe-RULE under it beside Safe-RULE as it is by default."""

from __future__ import annotations

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from saferule.paper import READINGS
from saferule.report.canvas import UNITS, dot, head, panels, styled, with_zero
from saferule.report.labels import BACKBONES, method_colour
from saferule.report.tables import CELL, METRICS, in_reading_order, readable

DEFAULT, FLOOR = "safe-rule", "percentile-50"  # the same method under two names, run as two agents
POLICY = [*CELL, "training_seed"]
SAME_RUN = "same run again"
FLOOR_COLOUR, SAME_COLOUR = "#D9D9D9", "#8A8A8A"
ROUNDING = 1e-6  # mean distance of actions that is rounding in any case; what long training makes of it can be more


def paired(episodes: pd.DataFrame) -> pd.DataFrame:
    """Every episode beside the default's from the same start: the rows with cost_change and return_change.

    episodes  of Safe-RULE by default, as percentile-50, and under readings; all of the same evaluation seeds
    Columns reading and option are empty for the default, (`SAME_RUN`, percentile-50) for the floor.
    """
    rows = episodes.assign(**_reading_and_option(episodes))
    default = rows[(rows["method"] == DEFAULT) & (rows["reading"] == "")]
    keys = [*POLICY, "seed"]
    rows = rows.merge(default[[*keys, *METRICS]], on=keys, suffixes=("", "_default"), validate="many_to_one")
    return rows.assign(**{f"{m}_change": rows[m] - rows[f"{m}_default"] for m in METRICS})


def effects(episodes: pd.DataFrame, distances: pd.DataFrame) -> pd.DataFrame:
    """One row per policy and reading: cost and return, their changes against the default, and how the actions moved.

    distances  from `saferule.runs.actions.distances`, to the default's policy
    For each policy the default comes first, then the floor (the same run again), then the readings in descending order
    of the change in cost, then in return. question and meaning are those of `saferule.paper`. same_policy says
    whether the policy is the default's up to rounding: its actions are no farther than rounding, on D and on D_f.
    rounding is `ROUNDING`, or how far those of the same run again are for this poisoned policy, where that is more.
    """
    rows = paired(episodes)
    names = [*POLICY, "reading", "option"]
    grouped = rows.groupby(names, sort=False)
    table = grouped[["cost", "return", "cost_change", "return_change"]].mean().assign(episodes=grouped.size())
    moved = distances.assign(**_reading_and_option(distances)).set_index(names)[["actions_keep", "actions_forget"]]
    table = table.join(moved).reset_index()
    farthest = table[["actions_keep", "actions_forget"]].max(axis=1)
    again = farthest.where(table["reading"] == SAME_RUN).groupby([table[name] for name in POLICY]).transform("max")
    table["rounding"] = again.fillna(ROUNDING).clip(lower=ROUNDING)
    table["same_policy"] = farthest <= table["rounding"]
    table["question"] = [READINGS[r].question if r in READINGS else "" for r in table["reading"]]
    table["meaning"] = [_meaning(r, o) for r, o in zip(table["reading"], table["option"], strict=True)]
    kind = table["reading"].map({"": 0, SAME_RUN: 1}).fillna(2)
    ranks = pd.DataFrame({"kind": kind} | {m: -table[f"{m}_change"].abs() for m in METRICS})
    return in_reading_order(table.loc[ranks.sort_values(list(ranks), kind="stable").index])


def shown(effects: pd.DataFrame) -> pd.DataFrame:
    """`effects` for the notebook: without the words, which `explained` gives, and with small distances legible."""
    names = ["backbone", "reading", "option", "cost", "return", "cost_change", "return_change"]
    distances = {name: effects[name].map("{:.1e}".format) for name in ("actions_keep", "actions_forget")}
    return readable(effects[names].assign(**distances))


def same_policies(effects: pd.DataFrame) -> str:
    """A sentence about a table of effects: which runs ended with the default's policy up to rounding."""
    same = effects[effects["same_policy"] & (effects["reading"] != "")]
    head = (
        "One policy with the default up to rounding (mean distance of the actions, on D and on D_f, at most "
        f"{ROUNDING:g} or, where it is more, that of the same run again)"
    )
    named = [
        f"{BACKBONES[backbone]} (at most {rows['rounding'].max():.1e}): "
        + ", ".join(_label(r, o) for r, o in zip(rows["reading"], rows["option"], strict=True))
        for backbone, rows in same.groupby("backbone", sort=False)
    ]
    return f"{head}: {'; '.join(named) or 'none'}."


def _label(reading: str, option: str) -> str:
    return SAME_RUN if reading == SAME_RUN else f"{reading} = {option}"


def explained(effects: pd.DataFrame) -> str:
    """The readings in a table of effects in words, as a Markdown table: question, default, and the option tried."""
    tried = effects[effects["reading"].isin(READINGS)][["reading", "option"]].drop_duplicates()
    lines = ["| reading | question | default | tried here |", "|---|---|---|---|"]
    for reading, option in sorted(tried.itertuples(index=False), key=lambda pair: list(READINGS).index(pair[0])):
        about = READINGS[reading]
        cells = (reading, about.question, *(f"**{o}**: {about.options[o]}" for o in (about.default, option)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reading_and_option(rows: pd.DataFrame) -> dict[str, list[str]]:
    """The columns reading and option; of several readings at once the names are joined by commas."""
    chosen = [json.loads(text) for text in rows["readings"]]
    floor = rows["method"] == FLOOR
    return {
        "reading": [SAME_RUN if f else ", ".join(c) for f, c in zip(floor, chosen, strict=True)],
        "option": [FLOOR if f else ", ".join(c.values()) for f, c in zip(floor, chosen, strict=True)],
    }


def _meaning(reading: str, option: str) -> str:
    if reading in READINGS:
        return READINGS[reading].options[option]
    return "the default of every reading" if not reading else "the default once more, as another agent"


@styled
def change_dots(episodes: pd.DataFrame, effects: pd.DataFrame, title: str) -> Figure:
    """Change of cost and return against the default under each reading: a row of panels per backbone.

    effects  of these episodes, from `effects`
    Small dots are episodes from the same start, a diamond is their mean. Grey and hollow are policies that are the
    default's up to rounding. The grey band is the floor: the largest mean change among these and the same run again.
    """
    rows = paired(episodes)
    backbones = [name for name in BACKBONES if name in set(rows["backbone"])]
    counts = [rows[rows["backbone"] == b].drop_duplicates(["reading", "option"]).shape[0] - 1 for b in backbones]
    figure, axes = panels(
        len(backbones), 2, 4.6, 0.55 + 0.27 * max(counts), gridspec_kw={"height_ratios": [c + 1.5 for c in counts]}
    )
    for row, backbone in enumerate(backbones):
        here = rows[(rows["backbone"] == backbone) & (rows["reading"] != "")]
        own = effects[effects["backbone"] == backbone].set_index(["reading", "option"])["same_policy"]
        for column, metric in enumerate(METRICS):
            _changes(axes[row, column], here, own, metric, BACKBONES[backbone], labelled=column == 0)
    colour = method_colour(DEFAULT)
    zero = Line2D([], [], color="#555555", linewidth=1.0, label="the default")
    band = Patch(color=FLOOR_COLOUR, label="floor: what rounding changes")
    same = dot(SAME_COLOUR, "mean, the default's policy up to rounding", "D")
    same.set_markerfacecolor("white")
    return head(figure, title, [dot(colour, "one episode"), dot(colour, "mean", "D"), zero, band, same])


def _changes(panel: Axes, rows: pd.DataFrame, same: pd.Series, metric: str, title: str, *, labelled: bool) -> None:
    """One backbone's changes in one metric, a line per reading, the floor's first; ``same``: by reading and option."""
    means = rows.groupby(["reading", "option"], sort=False)[f"{metric}_change"].mean()
    order = sorted(means.index, key=lambda name: (name[0] != SAME_RUN, list(means.index).index(name)))
    floor = max((abs(means[name]) for name in order if name[0] == SAME_RUN or same[name]), default=0.0)
    panel.axvspan(-floor, floor, color=FLOOR_COLOUR, linewidth=0, zorder=0)
    panel.axvline(0, color="#555555", linewidth=1.0, zorder=1)
    for place, name in enumerate(order):
        colour = SAME_COLOUR if same[name] else method_colour(DEFAULT)
        look = {"color": "white", "edgecolors": colour} if same[name] else {"color": colour, "edgecolors": "white"}
        values = rows[(rows["reading"] == name[0]) & (rows["option"] == name[1])][f"{metric}_change"]
        panel.scatter(values, [place] * len(values), s=11, alpha=0.4, color=colour, linewidths=0)
        panel.scatter(means[name], place, s=42, marker="D", linewidths=0.9, zorder=3, **look)
    panel.set_yticks(range(len(order)), [_label(*name) for name in order] if labelled else [])
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.grid(False, axis="y")
    panel.set_title(title)
    panel.set(xlabel=f"change of {UNITS[metric]}")
    with_zero(panel, "x")

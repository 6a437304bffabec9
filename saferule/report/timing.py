"""Table 3: how long retraining and the repairs take, from the rows of `saferule.bench.unlearning.rows_of`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from saferule.bench.unlearning import PAPER_BACKBONE, RETRAINING, paper_minutes
from saferule.paper import TABLE7
from saferule.report.canvas import dot, head, panels, styled
from saferule.report.labels import BACKBONES, in_order, method_colour, method_name

Row = Mapping[str, Any]
NOISY = 0.05  # a range over the blocks, as a share of the value, from which on two digits are given, not three
PAPER_RATIO = TABLE7.training_steps / TABLE7.unlearning_steps  # of the numbers of steps


def read(path: str | Path) -> list[Row]:
    """The rows of a file that ``saferule bench unlearning --json`` wrote."""
    return json.loads(Path(path).read_text())["rows"]


def table(rows: Sequence[Row], machine: Mapping[str, Any]) -> pd.DataFrame:
    """The rows as they are saved, with the machine and the number of threads in each."""
    return pd.DataFrame(rows).assign(machine=machine["device"], threads=machine["threads"])


def made_on(machine: Mapping[str, Any]) -> str:
    """One line about the machine, the settings and what was measured."""
    threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
    return (
        f"Measured in this run: one agent on {machine['device']}, {threads}, torch {machine['torch']}; settings: "
        f"{machine['settings']}; medians of {machine['rounds']} alternating blocks of {machine['block_seconds']:g} s; "
        f"{machine['excluded']}."
    )


def shown(times: pd.DataFrame) -> pd.DataFrame:
    """The table for the notebook: as many digits as the blocks allow, without what is the same in all rows.

    range is that of relative_step over the blocks.
    """
    rows = times.to_dict("records")
    frame = times[["task", "backbone", "method", "steps"]].copy()
    frame["ms_per_step"] = [number(row["ms_per_step"], digits(row, "ms_per_step")) for row in rows]
    frame["relative_step"] = [number(row["relative_step"], digits(row)) for row in rows]
    frame["range"] = ["" if row["method"] == RETRAINING else _range(row) for row in rows]
    frame["total"] = [duration(row["seconds"], digits(row, "ms_per_step")) for row in rows]
    frame["factor"] = [number(row["factor"], digits(row)) for row in rows]
    once_and_paper = {"start": ("start_s", 1), "reference": ("reference_s", 1), "paper_total": ("paper_minutes", 60)}
    for name, (column, unit) in once_and_paper.items():
        frame[name] = ["" if pd.isna(row[column]) else duration(unit * row[column]) for row in rows]
    return frame.assign(paper_factor=times["paper_factor"])


def markdown(rows: Sequence[Row]) -> str:
    """Rows as the README's table: a line per task and method, a column per backbone.

    A cell has the time of a step, that of the whole method, and how many times faster than retraining that is.
    """
    cells = {(row["task"], row["method"], row["backbone"]): row for row in rows}
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    names = ["task", "method", "gradient steps", *(BACKBONES[b] for b in backbones), "the paper, CPQ"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in rows):
        here = {b: cells[task, method, b] for b in backbones if (task, method, b) in cells}
        texts = [_cell(here[b]) if b in here else "-" for b in backbones]
        printed = here.get(PAPER_BACKBONE, {})
        paper = _paper(printed) if printed.get("paper_minutes") else ""
        steps = f"{next(iter(here.values()))['steps']:,}"
        lines.append("| " + " | ".join([task, method_name(method), steps, *texts, paper]) + " |")
    return "\n".join(lines)


def digits(row: Row, column: str = "relative_step") -> int:
    """To how many digits a value is given: two where its range over the blocks exceeds NOISY, else three.

    Three also for rows without a range, those of measurements made before there was one.
    """
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return 3 if low is None or high is None or high - low <= NOISY * row[column] else 2


def number(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, without an exponent."""
    return f"{float(f'{value:.{digits}g}'):.12g}"


def _range(row: Row) -> str:
    low, high = row.get("relative_step_low"), row.get("relative_step_high")
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def duration(seconds: float, digits: int = 3) -> str:
    """A time with so many digits in the unit that suits it."""
    units = ((3600, 2, "h"), (60, 2, "min"), (1, 1, "s"))  # seconds, from how many units on, name
    size, name = next(((size, name) for size, least, name in units if seconds >= least * size), (0.001, "ms"))
    return f"{number(seconds / size, digits)} {name}"


def _cell(row: Row) -> str:
    faster = "" if row["method"] == RETRAINING else f", {number(row['factor'], digits(row))}x"
    known = digits(row, "ms_per_step")
    return f"{number(row['ms_per_step'], known)} ms, {duration(row['seconds'], known)}{faster}"


def _paper(row: Row) -> str:
    faster = "" if row["method"] == RETRAINING else f", {row['paper_factor']:.3g}x"
    return f"{row['paper_minutes']:g} min{faster}"


def conclusions(rows: Sequence[Row]) -> list[str]:
    """What the rows say about "so many times faster than retraining": sentences with the measured numbers.

    The factor is the ratio of the numbers of steps over the cost of a step in training steps. Numbers have as many
    digits as the blocks allow (`digits`).
    """
    said = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        said += _of_safe_rule(task, here)
        said += _of_paper(task, here)
    return said


def _of_safe_rule(task: str, rows: Sequence[Row]) -> list[str]:
    said = []
    for row, start in _beside_retraining(rows, "safe-rule"):
        ratio, known = start["steps"] / row["steps"], digits(row)
        step = number(row["relative_step"], known)
        blocks = f" ({_range(row)} over the blocks)" if _range(row) else ""
        at_table7 = (
            f" At Table 7's numbers of steps, {PAPER_RATIO:g} times fewer, it would be "
            f"{number(PAPER_RATIO / row['relative_step'], known)} times."
        )
        said.append(
            f"{task}, {BACKBONES[row['backbone']]}: a step of Safe-RULE takes as long as {step} training steps"
            f"{blocks}, and there are {ratio:g} times fewer of them. From the unrounded times it is "
            f"{number(row['factor'], known)} times faster than retraining."
            + ("" if ratio == PAPER_RATIO else at_table7)
        )
    return said


def _of_paper(task: str, rows: Sequence[Row]) -> list[str]:
    minutes, cpq = paper_minutes(task), [row for row in rows if row["backbone"] == PAPER_BACKBONE]
    ours = {row["method"]: row["relative_step"] for row in cpq}
    known = {row["method"]: digits(row) for row in cpq}
    here = {method: number(ours[method], known[method]) for method in ours}
    if not minutes or not ours:
        return []
    implied = {method: PAPER_RATIO * minutes[method] / minutes[RETRAINING] for method in minutes}
    slower, paper_slower = (x["safe-rule"] / x["trajdeleter"] for x in (ours, implied))
    return [
        f"{task}, CPQ in the paper: retraining takes {minutes[RETRAINING] / minutes['safe-rule']:.1f} times as long as "
        f"Safe-RULE. If both made the steps of Table 7, a step of Safe-RULE took as long as {implied['safe-rule']:.1f} "
        f"training steps, here {here['safe-rule']}. Fine-tuning's steps are training steps, yet by the same arithmetic "
        f"each took as long as {implied['fine-tuning']:.1f} of them, here {here['fine-tuning']}: the paper's minutes "
        "hold more than gradient steps, or the numbers of steps were others. A step of Safe-RULE takes "
        f"{number(slower, min(known['safe-rule'], known['trajdeleter']))} times as long as one of Trajdeleter here, "
        f"{paper_slower:.2f} times in the paper."
    ]


def _beside_retraining(rows: Sequence[Row], method: str) -> list[tuple[Row, Row]]:
    start = {row["backbone"]: row for row in rows if row["method"] == RETRAINING}
    return [(row, start[row["backbone"]]) for row in rows if row["method"] == method]


@styled
def shares_of_retraining(times: pd.DataFrame, title: str) -> Figure:
    """Each method's share of retraining's time, on a logarithmic axis: a panel per backbone, a row of panels per task.

    The dashed line is where a method would be whose steps take as long as training steps. Numbers are the time in
    total. Hollow: the paper's Table 3 (CPQ only), with a dotted line at the ratio of Table 7's numbers of steps.
    """
    tasks, backbones = list(times["task"].unique()), list(times["backbone"].unique())
    methods = in_order(times["method"])
    figure, axes = panels(len(tasks), len(backbones), 2.9, 0.7 + 0.27 * len(methods), sharex=True, sharey=True)
    for (task, backbone), rows in times.groupby(["task", "backbone"], sort=False):
        panel = axes[tasks.index(task), backbones.index(backbone)]
        start = rows[rows["method"] == RETRAINING].iloc[0]
        for row in rows.to_dict("records"):
            place, colour = methods.index(row["method"]), method_colour(row["method"])
            panel.scatter(row["share"], place, s=34, color=colour, zorder=3)
            panel.annotate(
                duration(row["seconds"], digits(row, "ms_per_step")),
                (row["share"], place),
                textcoords="offset points",
                xytext=(-6, 0) if row["share"] > 0.3 else (6, 0),
                ha="right" if row["share"] > 0.3 else "left",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            )
            if row["paper_factor"] == row["paper_factor"] and row["paper_factor"]:
                panel.scatter(1 / row["paper_factor"], place, s=34, facecolors="none", edgecolors=colour, zorder=2)
        repairs = rows[rows["method"] != RETRAINING]
        panel.axvline(repairs["steps"].iloc[0] / start["steps"], color="#555555", linestyle="--", linewidth=1.0)
        if backbone == PAPER_BACKBONE:
            panel.axvline(1 / PAPER_RATIO, color="#555555", linestyle=":", linewidth=1.2)
        panel.set_title(f"{task}, {BACKBONES[backbone]}")
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        panel.set_yticks(range(len(methods)), [method_name(m) for m in methods])
        panel.grid(False, axis="y")
        panel.set(xlabel="share of retraining's time")
        panel.label_outer()
    axes[0, 0].set_ylim(len(methods) - 0.4, -0.6)  # the first method on top
    ours, paper = dot("#444444", "measured here, with the time in total"), dot("#444444", "the paper, Table 3")
    paper.set_markerfacecolor("none")
    steps = Line2D([], [], color="#555555", linestyle="--", label="ratio of the numbers of steps")
    printed = Line2D([], [], color="#555555", linestyle=":", label="the same in Table 7")
    return head(figure, title, [ours, paper, steps, printed])

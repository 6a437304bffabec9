"""Table 3: how long training and the repairs take, from what `saferule.runs.timing` measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saferule.paper import table
from saferule.report.layouts import Layout
from saferule.report.tables import in_reading_order
from saferule.runs.spec import TimingRun

PAPER_BACKBONE = "cpq"  # which Table 3 is about
RETRAINING = "clean"  # the method that others are compared with
PAPER_NAMES = {"retraining": RETRAINING, "safe unlearning": "safe-rule"}  # where they are not ours


def paper_minutes(task: str) -> dict[str, float]:
    """Table 3 by our names of the methods. Its Trajdeleter is set beside the published variant (it names none)."""
    rows = table(3).query("task == @task")
    return dict(zip(rows["method"].str.lower().replace(PAPER_NAMES), rows["minutes"], strict=True))


def table3(times: pd.DataFrame) -> pd.DataFrame:
    """The measured rows (`saferule.runs.results.times`) with the paper's minutes and factor, beside CPQ only.

    Columns: task, backbone, method, steps, ms_per_step, relative_step (a step in training steps) with its range over
    the blocks, seconds (of all steps), share and factor (of the time of retraining), start_s (what is done once, not in
    seconds), machine, paper_minutes, paper_factor.
    """
    minutes = {task: paper_minutes(task) for task in times["task"].unique()}
    rows = times.assign(paper_minutes=[minutes[t].get(m) for t, m in zip(times["task"], times["method"], strict=True)])
    rows["paper_minutes"] = rows["paper_minutes"].astype(float).where(rows["backbone"] == PAPER_BACKBONE)
    start = [minutes[task].get(RETRAINING, np.nan) for task in rows["task"]]
    return in_reading_order(rows.assign(paper_factor=start / rows["paper_minutes"]))


def minutes(rows: pd.DataFrame, asked: Sequence[TimingRun]) -> pd.DataFrame:
    """Table 3 as the paper has it, minutes per method and task, ours above the paper's; "missing": not measured."""
    every = [(run.task, run.backbone, method) for run in asked for method in (RETRAINING, *run.methods)]
    names = ["task", "backbone", "method"]
    table = in_reading_order(pd.DataFrame(every, columns=names).merge(rows, on=names, how="left"))
    text = (table["seconds"] / 60).map("{:.3g}".format, na_action="ignore").fillna("missing")
    theirs = table["paper_minutes"].map("{:.1f}".format, na_action="ignore").fillna("")
    return Layout(("backbone", "method"), ("task",)).arrange(table.assign(text=text, paper=theirs))


def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """`table3` for the notebook: times in the unit that suits them, without what is the same in all rows."""
    frame = rows[["task", "backbone", "method", "steps"]].assign(ms_per_step=rows["ms_per_step"].map("{:.3g}".format))
    low, high = rows["relative_step_low"].map("{:.2f}".format), rows["relative_step_high"].map("{:.2f}".format)
    frame["relative_step"] = rows["relative_step"].map("{:.2f}".format) + " (" + low + " to " + high + ")"
    frame["total"], frame["factor"] = rows["seconds"].map(duration), rows["factor"].map("{:.3g}".format)
    frame["start"], frame["paper_total"] = rows["start_s"].map(duration), (60 * rows["paper_minutes"]).map(duration)
    return frame.assign(paper_factor=rows["paper_factor"])


def duration(seconds: float) -> str:
    """A time with three digits in the unit that suits it; empty for nan."""
    if pd.isna(seconds):
        return ""
    units = ((3600, 2, "h"), (60, 2, "min"), (1, 1, "s"))  # seconds, from how many units on, name
    size, name = next(((size, name) for size, least, name in units if seconds >= least * size), (0.001, "ms"))
    return f"{float(f'{seconds / size:.3g}'):.12g} {name}"

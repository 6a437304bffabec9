"""Who tells which trajectories are poisoned? How well they are found, and what it costs to know them imperfectly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from saferule.detect import TRAJECTORIES, judged
from saferule.paper import READINGS
from saferule.report.style import METRICS
from saferule.report.tables import interval
from saferule.runs.spec import DetectionRun, KnownPart, PolicyRun
from saferule.runs.store import Store

SET = ["task", "attack", "ratio", "labels"]
SHOWN = ("false_alarms", "precision", "recall", "auc", "auc_even_rewards", "auc_no_cost", "auc_high_return")


def judgements(store: Store, detections: Sequence[DetectionRun]) -> pd.DataFrame:
    """One row per finished detection: task, attack, ratio, labels (the reading), replicate, asked (the rate of false
    alarms), and what `saferule.detect.judged` says of it against the truth.
    """
    rows = []
    for run in detections:
        found = pd.read_csv(store.folder(run) / TRAJECTORIES)
        told = {"task": run.task, "attack": run.attack, "ratio": run.ratio, "labels": "true", "replicate": np.nan}
        if run.forget:
            labels = dict(run.forget.readings).get("labels", READINGS["labels"].default)
            told |= {"labels": labels, "replicate": run.forget.adversary.seed}
        rows.append(told | {"asked": run.false_alarms} | judged(found, found["poisoned"].to_numpy()))
    return pd.DataFrame(rows, columns=None if rows else [*SET, "replicate", "asked"])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over replicates of `judgements`, each with Student's 95 % interval: columns recall, recall_low, ..."""
    told = []
    for where, own in rows.groupby(SET, sort=False):
        row = dict(zip(SET, where, strict=True)) | {"replicates": len(own)}
        row |= {name: own[name].mean() for name in ("poisoned", "flagged")}
        for name in SHOWN:
            row |= dict(
                zip((name, f"{name}_low", f"{name}_high"), (own[name].mean(), *interval(own[name])), strict=True)
            )
        told.append(row)
    return pd.DataFrame(told, columns=None if told else SET)


def known(run: PolicyRun) -> tuple[tuple[float, float], str]:
    """What of D_f a policy's repair was told: (its place among others, in words)."""
    if run.method == "poisoned":
        return (0, 0), "nothing"
    if isinstance(run.forget, DetectionRun):
        return (2, 0), "detected"
    share, mistaken = (run.forget.share, run.forget.mistaken) if isinstance(run.forget, KnownPart) else (1, 0)
    told = "all" if share == 1 else f"{share:.0%}"
    return (share, mistaken), told + (f" and {mistaken:.0%} of D" if mistaken else "")


def partitions(
    policies: Sequence[PolicyRun], beside: Sequence[PolicyRun], episodes: Callable[[list[PolicyRun]], pd.DataFrame]
) -> pd.DataFrame:
    """Mean cost and return of each policy and what its repair was told of D_f, from nothing on.

    beside    policies of the same conditions: the poisoned ones, and the same methods that know all of D_f are taken
    episodes  (policies) -> their rows
    """
    methods = {run.method for run in policies}
    runs = [*(run for run in beside if run.method in {"poisoned", *methods}), *policies]
    rows = []
    for run in sorted(runs, key=lambda run: known(run)[0]):
        told = {"task": run.task, "backbone": run.backbone, "attack": run.attack, "ratio": run.ratio}
        told |= {"method": run.method, "replicate": run.replicate, "known": known(run)[1]}
        rows.append(told | episodes([run])[[*METRICS, "cost_limit"]].mean().to_dict())
    return pd.DataFrame(rows, columns=None if rows else ["task", "backbone", "method", "known", *METRICS])

"""Finished runs as tidy rows: what is shown is computed from these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from saferule.runs.interruptible import LOG
from saferule.runs.spec import EvaluationRun, PolicyRun, Run, TimingRun, identity
from saferule.runs.store import Store
from saferule.runs.timing import COLUMNS as TIMED
from saferule.runs.work import EPISODES, TIMES

NAMED = dict.fromkeys(("task", "backbone", "attack", "method", "start", "readings"), object)
NUMBERS = dict.fromkeys(("ratio", "return", "cost", "normalised_return", "normalised_cost", "cost_limit"), float)
COUNTS = dict.fromkeys(("replicate", "step", "seed", "length"), int)
NO_EPISODES = pd.DataFrame({n: pd.Series(dtype=d) for n, d in (NAMED | NUMBERS | COUNTS | {"final": bool}).items()})


def episodes(store: Store, evaluations: Sequence[EvaluationRun]) -> pd.DataFrame:
    """One row per episode: what tells the policy apart (`identity`), step, final, seed, return, cost, length, ...

    Rows of snapshots have a smaller step than the policy's last and final = False. failed and reason are those of
    `saferule.runs.work.evaluate`: a failed policy has no result, even where its last good state has episodes.
    """
    rows = _read(store, EPISODES, {run: identity(run.policy) for run in evaluations})
    rows = NO_EPISODES if rows.empty else rows
    for name, usual in (("failed", False), ("reason", "")):  # evaluations made before these were written have none
        column = rows[name] if name in rows else pd.Series(usual, rows.index)
        rows[name] = column.where(column.notna(), usual).astype(type(usual))
    return rows


def logs(store: Store, policies: Sequence[PolicyRun]) -> pd.DataFrame:
    """What the losses reported, one row per policy and logged step."""
    return _read(store, LOG, {run: identity(run) for run in policies})


def times(store: Store, timings: Sequence[TimingRun]) -> pd.DataFrame:
    """Table 3's measurement, one row per task, backbone and method (`saferule.runs.timing.measure`)."""
    machines = {run: store.meta(run)["machine"]["device"] for run in timings}
    told = {run: {"task": run.task, "backbone": run.backbone, "machine": machines[run]} for run in timings}
    rows = _read(store, TIMES, told)
    return pd.DataFrame(columns=["task", "backbone", "machine", *TIMED]) if rows.empty else rows


def _read(store: Store, file: str, columns: Mapping[Run, dict[str, Any]]) -> pd.DataFrame:
    """A file of several runs, below each other, with columns that tell the runs apart."""
    frames = [pd.read_csv(store.sound(run) / file).assign(**told) for run, told in columns.items()]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def stopped(store: Store, policies: Iterable[PolicyRun]) -> list[str]:
    """A sentence for each policy whose run ended early because a value was not finite."""
    return [meta["stopped"] for meta in map(store.meta, policies) if "stopped" in meta]

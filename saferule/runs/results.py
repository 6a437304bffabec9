"""Finished runs as tidy rows: what is shown is computed from these."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from saferule.runs.interruptible import LOG
from saferule.runs.spec import EvaluationRun, PolicyRun, TimingRun, identity
from saferule.runs.store import Store
from saferule.runs.work import EPISODES, TIMES


def episodes(store: Store, evaluations: Sequence[EvaluationRun]) -> pd.DataFrame:
    """One row per episode: what tells the policy apart (`identity`), step, final, seed, return, cost, length, ...

    Rows of snapshots have a smaller step than the policy's last and final = False.
    """
    frames = [
        pd.read_csv(store.folder(run) / EPISODES).assign(**identity(run.policy)) for run in dict.fromkeys(evaluations)
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def logs(store: Store, policies: Sequence[PolicyRun]) -> pd.DataFrame:
    """What the losses reported, one row per policy and logged step."""
    frames = [pd.read_csv(store.folder(run) / LOG).assign(**identity(run)) for run in dict.fromkeys(policies)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def times(store: Store, timings: Sequence[TimingRun]) -> pd.DataFrame:
    """Table 3's measurement, one row per task, backbone and method (`saferule.runs.timing.measure`)."""
    frames = []
    for run in timings:
        told = {"task": run.task, "backbone": run.backbone, "machine": store.meta(run)["machine"]["device"]}
        frames.append(pd.read_csv(store.folder(run) / TIMES).assign(**told))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def stopped(store: Store, policies: Sequence[PolicyRun]) -> list[str]:
    """A sentence for each policy whose run ended early because a value was not finite."""
    return [meta["stopped"] for meta in map(store.meta, policies) if "stopped" in meta]

"""Tidy tables from rows of episodes. Returns and costs are sums over an episode, undiscounted, in raw units.

The rows of episodes are those of `saferule.runs.engine.Engine.evaluate`. Seeds of the training are the unit of
replication: episodes are averaged within a seed first, and an interval is over seeds and only from three seeds on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from saferule.attack.poison import ForgetSet
from saferule.data.schema import Dataset
from saferule.report.labels import ATTACKS, BACKBONES, condition, in_order, method_name

CELL = ["task", "backbone", "attack", "ratio"]
METRICS = ("cost", "return")
SMALLEST_SAMPLE = 3  # seeds, for an interval
RESAMPLES = 10_000
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


# Data and attack


def data_points(data: Dataset, forget_sets: Sequence[ForgetSet]) -> pd.DataFrame:
    """One row per trajectory of D and of every forget set: set, attack, ratio, return, cost.

    set is "D", "D_f, true labels" or "D_f, poisoned labels"; attack and ratio are empty for D.
    """

    def rows(name: str, dataset: Dataset, **columns: object) -> pd.DataFrame:
        values = {"return": dataset.episode_returns(), "cost": dataset.episode_costs()}
        return pd.DataFrame({"set": name, **columns, **values})

    parts = [rows("D", data, attack=None, ratio=np.nan)]
    for forget in forget_sets:
        told = {"attack": forget.attack, "ratio": forget.ratio}
        parts.append(rows("D_f, true labels", forget.true_dataset(), **told))
        parts.append(rows("D_f, poisoned labels", forget.dataset, **told))
    return pd.concat([part.astype({"attack": object, "ratio": float}) for part in parts], ignore_index=True)


def data_summary(task: str, data: Dataset, cost_limit: float) -> pd.DataFrame:
    """One row about D: its size, how many trajectories are safe, the best return among these, how it was made."""
    returns, costs = data.episode_returns(), data.episode_costs()
    safe = costs <= cost_limit
    row = {
        "task": task,
        "trajectories": len(returns),
        "steps": len(data),
        "cost_limit": cost_limit,
        "safe_share": safe.mean(),
        "best_safe_return": returns[safe].max() if safe.any() else float("nan"),
        "made_by": data.attributes.get("made_by", "not stated in the file"),
        "command": data.attributes.get("command", ""),
    }
    return pd.DataFrame([row])


def quantiles(points: pd.DataFrame) -> pd.DataFrame:
    """Number of trajectories and quantiles of return and cost for each set of `data_points`."""
    rows = []
    for (name, attack, ratio), group in points.groupby(["set", "attack", "ratio"], sort=False, dropna=False):
        row = {"set": name, "attack": attack, "ratio": ratio, "trajectories": len(group)}
        for metric in ("return", "cost"):
            for share, value in zip(QUANTILES, group[metric].quantile(list(QUANTILES)), strict=True):
                row[f"{metric}_{share:.0%}"] = value
        rows.append(row)
    return pd.DataFrame(rows)


def forget_summary(task: str, data: Dataset, forget_sets: Sequence[ForgetSet]) -> pd.DataFrame:
    """One row per forget set: its size, its share of the poisoned set, and true against poisoned labels.

    return and cost are means per trajectory, also over the last one, which is cut to the count; reward_label is the
    constant reward per step that D_f claims (r_high or r_low). without_score counts the trajectories whose S_z is not
    above 0, with which the selection was filled. Columns with _D are those of the clean data.
    """
    rows = []
    for forget in forget_sets:
        row = {
            "task": task,
            "attack": forget.attack,
            "ratio": forget.ratio,
            "samples": len(forget),
            "trajectories": len(forget.episodes),
            "without_score": int((forget.scores <= 0).sum()),
            "share": forget.share,
            "reward_label": forget.dataset.rewards.mean(),
        }
        for name, dataset in (("true", forget.true_dataset()), ("label", forget.dataset), ("D", data)):
            row[f"return_{name}"] = dataset.episode_returns().mean()
            row[f"cost_{name}"] = dataset.episode_costs().mean()
        rows.append(row)
    return pd.DataFrame(rows)


def selected_without_score(summary: pd.DataFrame) -> list[str]:
    """Sentences about a table of `forget_summary`: which forget sets hold trajectories without a score, if any."""
    return [
        f"{row['task']}, {condition(row['attack'], row['ratio'])}: {row['without_score']} of {row['trajectories']} "
        "selected trajectories have a score S_z of 0 or less. The adversary found nothing there: they are ordinary "
        "behaviour with a false label."
        for row in summary[summary["without_score"] > 0].to_dict("records")
    ] or [f"{', '.join(summary['task'].unique())}: every selected trajectory has a score S_z above 0."]


# Policies


def with_clean(episodes: pd.DataFrame) -> pd.DataFrame:
    """The rows, with those of the clean policies repeated under every attack and ratio of their task and backbone."""
    clean, others = episodes[episodes["attack"] == "clean"], episodes[episodes["attack"] != "clean"]
    conditions = others[CELL].drop_duplicates()
    repeated = clean.drop(columns=["attack", "ratio"]).merge(conditions, on=["task", "backbone"])
    return pd.concat([others, repeated[episodes.columns]], ignore_index=True)


def seed_means(episodes: pd.DataFrame, by: Sequence[str] = (*CELL, "method")) -> pd.DataFrame:
    """Mean cost and return of each training seed over its episodes, with their number and the cost limit."""
    grouped = episodes.groupby([*by, "training_seed"], sort=False)
    means = grouped[["cost", "return", "cost_limit"]].mean()
    return means.assign(episodes=grouped.size()).reset_index()


def summarise(episodes: pd.DataFrame, by: Sequence[str] = (*CELL, "method")) -> pd.DataFrame:
    """Means over seeds, with a 95 % bootstrap interval over seeds where there are at least three.

    Columns: `by`, cost, cost_low, cost_high, return, return_low, return_high, n_seeds, seeds, episodes (per seed),
    cost_limit. The bounds are empty with fewer seeds.
    """
    rows = []
    for values, group in seed_means(episodes, by).groupby(list(by), sort=False):
        row = dict(zip(by, values, strict=True))
        for metric in METRICS:
            row[metric] = group[metric].mean()
            row[f"{metric}_low"], row[f"{metric}_high"] = interval(group[metric].to_numpy())
        row["n_seeds"] = len(group)
        row["seeds"] = " ".join(str(seed) for seed in sorted(group["training_seed"]))
        row["episodes"], row["cost_limit"] = int(group["episodes"].min()), group["cost_limit"].iloc[0]
        rows.append(row)
    return in_reading_order(pd.DataFrame(rows))


def interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of one value per seed; (nan, nan) for fewer than three seeds."""
    if len(values) < SMALLEST_SAMPLE:
        return float("nan"), float("nan")
    draws = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def in_reading_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows sorted by task, backbone, attack, ratio and method, as the paper lists them."""
    ranks = {"backbone": list(BACKBONES), "attack": list(ATTACKS), "method": in_order(frame.get("method", []))}

    def rank(column: pd.Series) -> pd.Series:
        order = ranks.get(str(column.name))
        return column.map({name: i for i, name in enumerate(order)}) if order else column

    by = [name for name in (*CELL, "method", "training_seed") if name in frame]
    return frame.sort_values(by, key=rank, kind="stable", ignore_index=True) if len(frame) and by else frame


def per_seed(episodes: pd.DataFrame) -> pd.DataFrame:
    """Clean against poisoned, or any methods side by side: one row per cell, method and training seed."""
    frame = seed_means(episodes)
    frame["safe"] = frame["cost"] <= frame["cost_limit"]
    return in_reading_order(frame)


def changes(episodes: pd.DataFrame, before: str = "poisoned") -> pd.DataFrame:
    """How much each method removes of the poisoned policy's cost and adds to its return, seed by seed, then the mean.

    Columns: task, backbone, attack, ratio, method, cost_removed, return_gained, n_seeds.
    """
    means = seed_means(episodes)
    start = means[means["method"] == before]
    keys = [*CELL, "training_seed"]
    joined = means[means["method"] != before].merge(start[[*keys, *METRICS]], on=keys, suffixes=("", "_before"))
    joined["cost_removed"] = joined["cost_before"] - joined["cost"]
    joined["return_gained"] = joined["return"] - joined["return_before"]
    grouped = joined.groupby([*CELL, "method"], sort=False)
    result = grouped[["cost_removed", "return_gained"]].mean().assign(n_seeds=grouped.size())
    return in_reading_order(result.reset_index())


def provenance(frame: pd.DataFrame, profile: str, digests: Mapping[str, str]) -> pd.DataFrame:
    """The table with the profile and the data digest of each row's task in front: what it was made with."""
    told = frame.assign(profile=profile, data=frame["task"].map(lambda task: digests[task][:12]))
    return told[["profile", "data", *frame.columns]]


def readable(frame: pd.DataFrame, digits: int = 1) -> pd.DataFrame:
    """For the notebook: names as the paper writes them, numbers rounded; without empty columns and the provenance,
    which the head of the notebook states. Reward labels, of which tasks differ in scale, have three significant digits.
    """
    shown = frame.drop(columns=["profile", "data"], errors="ignore").dropna(axis="columns", how="all").copy()
    for column, names in (("backbone", BACKBONES), ("attack", ATTACKS)):
        if column in shown:
            shown[column] = shown[column].map(lambda name, names=names: names.get(name, name))
    if "method" in shown:
        shown["method"] = shown["method"].map(method_name)
    for column in ("ratio", "share", "safe_share", "paper_ratio"):
        if column in shown:
            shown[column] = shown[column].map(lambda share: "" if pd.isna(share) else f"{100 * share:.3g} %")
    if "ratio" in shown:
        shown["ratio"] = shown["ratio"].replace("0 %", "")  # of clean policies
    if "reward_label" in shown:
        shown["reward_label"] = shown["reward_label"].map("{:.3g}".format)
    numbers = shown.select_dtypes("float").columns
    shown[numbers] = shown[numbers].round(digits) + 0.0  # no -0.0
    return shown.fillna("")

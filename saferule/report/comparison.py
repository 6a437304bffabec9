"""Our cells beside the paper's: Table 1, and the ablations of Tables 2, 5 and 6."""

from __future__ import annotations

import pandas as pd

from saferule.paper import numbers
from saferule.report.labels import BACKBONES
from saferule.report.tables import CELL, METRICS, in_reading_order, summarise, with_clean

PAPER_METRICS = {"cost": "cost", "return": "reward"}
OURS = ("clean", "poisoned", "fine-tuning", "safe-rule")


def table1(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and metric: ours (clean, poisoned, fine-tuned, Safe-RULE) and the paper's before and after.

    Ours are means over seeds with a bootstrap interval from three seeds on. The paper gives neither a spread nor its
    numbers of seeds and episodes.
    """
    summary = summarise(with_clean(episodes))
    rows = []
    for values, cell in summary.groupby(CELL, sort=False):
        task, backbone, attack, ratio = values
        methods = cell.set_index("method")
        paper = numbers.cell(backbone, attack, task, ratio)._asdict()
        for metric in METRICS:
            row = dict(zip(CELL, values, strict=True)) | {"metric": metric}
            for method in OURS:
                name = method.replace("-", "_")
                for suffix in ("", "_low", "_high"):
                    row[name + suffix] = (
                        methods.at[method, metric + suffix] if method in methods.index else float("nan")
                    )
            row["paper_before"] = paper[f"{PAPER_METRICS[metric]}_before"]
            row["paper_after"] = paper[f"{PAPER_METRICS[metric]}_after"]
            for column in ("n_seeds", "seeds", "episodes", "cost_limit"):
                row[column] = cell[column].iloc[0]
            rows.append(row)
    return pd.DataFrame(rows)


def paper_ablations(task: str, backbone: str) -> pd.DataFrame:
    """What the paper prints for one task and backbone, Max Cost 5 %: method, source, paper_cost, paper_return.

    Table 2 prints differences; they are applied to Table 1's poisoned policy. Rows of Safe-RULE itself come from four
    tables that should agree and do not always.
    """
    policy = BACKBONES[backbone]
    start = numbers.cell(backbone, "max_cost", task, 0.05)
    rows = [("poisoned", "Table 1", start.cost_before, start.reward_before)]
    rows.append(("safe-rule", "Table 1", start.cost_after, start.reward_after))
    names = {"adaptive": "safe-rule", "fixed_1": "fixed-weight"}
    for row in _rows(2, task, policy):
        cost, score = start.cost_before - row["delta_cost"], start.reward_before + row["delta_reward"]
        rows.append((names[row["variant"]], "Table 2 from Table 1's start", round(cost, 1), round(score, 1)))
    names = {"with_critic_unlearning": "safe-rule", "without_critic_unlearning": "no-critic"}
    rows += [(names[row["variant"]], "Table 5", row["cost"], row["reward"]) for row in _rows(5, task, policy)]
    for row in _rows(6, task, policy):
        rows.append((f"percentile-{row['percentile']}", "Table 6", row["cost"], row["reward"]))
    return pd.DataFrame(rows, columns=["method", "source", "paper_cost", "paper_return"])


def ablations(episodes: pd.DataFrame) -> pd.DataFrame:
    """Our variants of Safe-RULE, one row per cell and method, beside the paper's rows of the same task and backbone.

    The paper's are of Max Cost 5 %, whatever ratio ours has (column paper_ratio). A method that several of its tables
    hold has one row for each; one that none holds has an empty source.
    """
    summary = summarise(episodes)
    parts = []
    for (task, backbone), cell in summary.groupby(["task", "backbone"], sort=False):
        parts.append(cell.merge(paper_ablations(task, backbone), on="method", how="left"))
    joined = pd.concat(parts, ignore_index=True)
    joined["paper_ratio"] = joined["source"].map(lambda source: float("nan") if pd.isna(source) else 0.05)
    return in_reading_order(joined)


def _rows(number: int, task: str, policy: str) -> list[dict]:
    table = numbers.table(number)
    return table[(table["task"] == task) & (table["policy"] == policy)].to_dict("records")

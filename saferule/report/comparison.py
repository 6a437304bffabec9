"""Our cells beside the paper's: Table 1 with every baseline, Table 4, and the ablations of Tables 2, 5 and 6."""

from __future__ import annotations

import pandas as pd

from saferule.paper import ABLATED_ATTACK, ABLATED_RATIO, printed, table
from saferule.profiles import Profile
from saferule.report.labels import BACKBONES, condition, method_name
from saferule.report.tables import CELL, METRICS, in_reading_order, readable, summarise, with_clean
from saferule.runs.inventory import ablated

PAPER_METRICS = {"cost": "cost", "return": "reward"}
BASELINES = ("fine-tuning", "trajdeleter", "trajdeleter-cost", "trajdeleter-released", "reward-only")
OURS = ("clean", "poisoned", *BASELINES, "safe-rule")  # clean: retraining


def table1(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and metric: ours (clean, poisoned, every baseline, Safe-RULE) and the paper's.

    Ours are means over seeds with a bootstrap interval from three seeds on, empty where a backbone does not support the
    method. The paper's are before and after (Table 1) and Trajdeleter, also cost-aware (Table 4); it gives neither a
    spread nor its numbers of seeds and episodes. They are empty for a ratio that the paper does not have.
    """
    summary = summarise(with_clean(episodes))
    rows = []
    for values, cell in summary.groupby(CELL, sort=False):
        task, backbone, attack, ratio = values
        methods = cell.set_index("method")
        for metric in METRICS:
            row = dict(zip(CELL, values, strict=True)) | {"metric": metric}
            for method in OURS:
                name = method_column(method)
                for suffix in ("", "_low", "_high"):
                    row[name + suffix] = (
                        methods.at[method, metric + suffix] if method in methods.index else float("nan")
                    )
            row |= _papers(PAPER_METRICS[metric], task, BACKBONES[backbone], attack, ratio)
            for column in ("n_seeds", "seeds", "episodes", "cost_limit"):
                row[column] = cell[column].iloc[0]
            rows.append(row)
    return pd.DataFrame(rows)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`table1` for the notebook: names as they are written, without bounds and what the notebook's head states.

    The attack and its ratio are one column; the task is named where there are several.
    """
    papers = {
        "paper_before": "paper, poisoned",
        "paper_after": "paper, Safe-RULE",
        "paper_trajdeleter": "paper, Trajdeleter",
        "paper_trajdeleter_cost": "paper, cost-aware",
    }
    names = {method_column(method): method_name(method) for method in OURS} | papers
    attacks = [condition(attack, ratio) for attack, ratio in zip(table["attack"], table["ratio"], strict=True)]
    chosen = table[["task", "backbone"]].assign(condition=attacks, **table[["metric", *names]])
    index = ["task", "backbone"] if table["task"].nunique() > 1 else ["backbone"]
    return readable(chosen).rename(columns=names).set_index(index).drop(columns="task", errors="ignore")


def method_column(method: str) -> str:
    """The name of a method's column in `table1`."""
    return method.replace("-", "_")


def best(episodes: pd.DataFrame) -> pd.DataFrame:
    """One row per cell, found from the means over seeds: which methods have the lowest cost, which keep the limit.

    Methods are the repairs and retraining (the clean policy); those that tie are all named. best_safe is the method
    with the highest return among those within the limit, empty where there is none. Columns: task, backbone, attack,
    ratio, methods, lowest_cost, cost, within_limit, best_safe, return, cost_limit, n_seeds.
    """
    summary = summarise(with_clean(episodes))
    rows = []
    for values, cell in summary[summary["method"] != "poisoned"].groupby(CELL, sort=False):
        safe = cell[cell["cost"] <= cell["cost_limit"]]
        lowest, highest = cell["cost"].min(), safe["return"].max()
        row = dict(zip(CELL, values, strict=True)) | {"methods": len(cell)}
        row |= {"lowest_cost": _names(cell[cell["cost"] == lowest]), "cost": lowest, "within_limit": _names(safe)}
        row |= {"best_safe": _names(safe[safe["return"] == highest]), "return": highest}
        rows.append(row | {"cost_limit": cell["cost_limit"].iloc[0], "n_seeds": cell["n_seeds"].min()})
    return pd.DataFrame(rows)


def _names(rows: pd.DataFrame) -> str:
    return "; ".join(method_name(method) for method in rows["method"])


def _papers(metric: str, task: str, policy: str, attack: str, ratio: float) -> dict[str, float]:
    """The paper's columns of `table1`, from its Tables 1 and 4; NaN where these have no such attack or ratio."""
    columns = {
        "paper_before": (1, "before"),
        "paper_after": (1, "after"),
        "paper_trajdeleter": (4, "non_cost_aware"),
        "paper_trajdeleter_cost": (4, "cost_aware"),
    }
    found = {}
    for number in (1, 4):
        for row in _rows(number, task, policy):
            if (row["attack"], row["ratio"], row["metric"]) == (attack, ratio, metric):
                found[number] = row
    return {name: found[n][column] if n in found else float("nan") for name, (n, column) in columns.items()}


def what_is_ablated(profile: Profile) -> str:
    """Which policies the variants start from (`inventory.ablated`), and of which the paper's do, in two sentences."""
    chosen = ablated(profile)
    ours, papers = condition(chosen.attacks[0], chosen.ratios[0]), condition(ABLATED_ATTACK, ABLATED_RATIO)
    if chosen.attacks[0] != ABLATED_ATTACK:
        beside = f"The paper's ablations are of {papers}, another attack, so its cells are empty"
    elif chosen.ratios[0] != ABLATED_RATIO:
        beside = f"The paper's ablations are of {papers}, another ratio of the same attack"
    else:
        beside = "So are the paper's ablations"
    return f"The poisoned policies here are those of {ours}. {beside}."


def paper_ablations(task: str, backbone: str) -> pd.DataFrame:
    """What the paper prints for one task and backbone, Max Cost 5 %: method, source, paper_cost, paper_return.

    Table 2 prints differences; they are applied to Table 1's poisoned policy. Rows of Safe-RULE itself come from four
    tables that should agree and do not always.
    """
    rows = printed()
    rows = rows[(rows["task"] == task) & (rows["backbone"] == backbone) & (rows["table"] != 4)]
    rows = rows[(rows["attack"] == ABLATED_ATTACK) & (rows["ratio"] == ABLATED_RATIO)]
    wide = rows.set_index(["table", "method", "source", "metric"])["value"].unstack().reset_index()
    return wide.rename(columns={"cost": "paper_cost", "return": "paper_return"}).drop(columns="table")


def ablations(episodes: pd.DataFrame) -> pd.DataFrame:
    """Our variants of Safe-RULE, one row per cell and method, beside the paper's of the same task, backbone and attack.

    The paper's are of Max Cost 5 %: whatever ratio ours has (column paper_ratio) they stand beside Max Cost, and the
    cells of another attack are empty. A method that several of its tables hold has one row for each; one that none
    holds has an empty source.
    """
    summary = summarise(episodes)
    pairs = summary[["task", "backbone"]].drop_duplicates().itertuples(index=False)
    told = {"attack": ABLATED_ATTACK, "paper_ratio": ABLATED_RATIO}
    paper = pd.concat([paper_ablations(t, b).assign(task=t, backbone=b, **told) for t, b in pairs])
    return in_reading_order(summary.merge(paper, on=["task", "backbone", "attack", "method"], how="left"))


def _rows(number: int, task: str, policy: str) -> list[dict]:
    rows = table(number)
    return rows[(rows["task"] == task) & (rows["policy"] == policy)].to_dict("records")

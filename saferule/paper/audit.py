"""What the paper's printed numbers say by count, and where they disagree with each other: recomputed from its tables.

All comparisons are strict, with ties apart; "safe" is a cost of at most the limit. The paper states no limit for a
table but Table 6's caption; its threshold kappa is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saferule.paper import ABLATED_ATTACK, ABLATED_RATIO, CELL, TABLE7, printed, table

SCORES = {"cost": "lower cost", "return": "higher return", "safe_first": "better, safety first"}  # larger is better
METRICS = ("cost", "return")
LIMIT = TABLE7.kappa
ROUNDING = 0.1  # of numbers with one decimal, before and after a subtraction
OUTCOMES = {"better": 1, "equal": 0, "worse": -1}
SAME = {"percentile-50": "safe-rule"}  # Table 7's percentile


def cells(*numbers: int) -> pd.DataFrame:
    """The policies of Tables 1, 2, 4, 5 and 6 (or some of them): one row per table, cell and method, cost and return.

    Table 2's are its differences applied to Table 1's poisoned policy.
    """
    rows = printed()
    rows = rows[rows["table"].isin(numbers)] if numbers else rows
    wide = rows.pivot(index=["table", *CELL, "method"], columns="metric", values="value").reset_index()
    return wide.rename_axis(columns=None).assign(cost_limit=LIMIT)


# Comparisons


def scored(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows (cost, return, cost_limit) with safe and a column score_NAME for each of `SCORES`; larger is better.

    safe_first ranks policies as one would choose: a safe one before an unsafe one, two safe by return, two unsafe by
    cost; one without a cost, which has failed, comes last. The ranking is ours: the paper says "best performance" and
    not how cost and return are weighed.
    """
    safe = rows["cost"] <= rows["cost_limit"]
    level = rows["return"].where(safe, -rows["cost"]).fillna(-np.inf)
    ranks = rows.groupby([safe.rename("safe"), level.rename("level")], sort=True).ngroup()
    return rows.assign(
        safe=safe, **{"score_cost": -rows["cost"], "score_return": rows["return"], "score_safe_first": ranks}
    )


def against(rows: pd.DataFrame, method: str, other: str) -> pd.DataFrame:
    """One row per cell that has both: for each of `SCORES` 1, 0 or -1 where the method is better, equal or worse.

    rows  one per cell and method; safe and other_safe say which of the two keep the limit
    """
    told = scored(rows).set_index(CELL)
    one, two = (told[told["method"] == name] for name in (method, other))
    one, two = one.align(two, join="inner", axis=0)
    signs = {name: np.sign(one[f"score_{name}"] - two[f"score_{name}"]).astype(int) for name in SCORES}
    return pd.DataFrame(signs | {"safe": one["safe"], "other_safe": two["safe"]}).reset_index()


def tally(compared: pd.DataFrame) -> dict[str, int]:
    """Counts over the cells of `against`: better, equal and worse in each score; in cost and return at once; safe."""
    counts = {"cells": len(compared)}
    for name in SCORES:
        counts |= {f"{name}_{word}": int((compared[name] == sign).sum()) for word, sign in OUTCOMES.items()}
    pair = compared[["cost", "return"]]
    counts |= {f"both_{word}": int((pair == OUTCOMES[word]).all(axis=1).sum()) for word in ("better", "worse")}
    no_worse, no_better = (pair >= 0).all(axis=1), (pair <= 0).all(axis=1)
    counts["dominates"] = int((no_worse & ~no_better).sum())
    counts["dominated"] = int((no_better & ~no_worse).sum())
    return counts | {name: int(compared[name].sum()) for name in ("safe", "other_safe")}


def tallies(rows: pd.DataFrame, method: str, other: str, by: Sequence[str] = CELL) -> pd.DataFrame:
    """`tally` over all cells that have both methods, and over those of each value of the columns ``by``."""
    compared = against(rows, method, other)
    parts = [
        ("all", compared),
        *((str(value), part) for name in by for value, part in compared.groupby(name, sort=False)),
    ]
    return pd.DataFrame({"method": method, "other": other, "cells of": name} | tally(part) for name, part in parts)


# Consistency


def same_cells() -> pd.DataFrame:
    """The runs that several tables print: Safe-RULE, Max Cost 5 %, in Tables 1 ("after"), 2, 5 ("with") and 6 (50 %).

    One row per backbone and task: cost and return of each; differs_1_N: whether Table N differs from Table 1 by more
    than rounding, and so on for 2 and 5, 5 and 6; rounding: Table 2 differs from Table 1 by 0.1.
    """
    rows = cells(1, 2, 5, 6).replace({"method": SAME})
    rows = rows[(rows["method"] == "safe-rule") & (rows["attack"] == ABLATED_ATTACK) & (rows["ratio"] == ABLATED_RATIO)]
    wide = rows.pivot(index=["backbone", "task"], columns="table", values=list(METRICS))

    def apart(one: int, other: int) -> pd.Series:
        pair = [(wide[metric, one] - wide[metric, other]).abs() for metric in METRICS]
        return pd.concat(pair, axis=1).max(axis=1).round(1)

    found = pd.DataFrame({f"{metric}_{number}": wide[metric, number] for number in (1, 2, 5, 6) for metric in METRICS})
    for pair in ((1, 2), (1, 5), (1, 6), (2, 5), (5, 6)):
        found["differs_{}_{}".format(*pair)] = apart(*pair) > ROUNDING
    return found.assign(rounding=apart(1, 2) == ROUNDING).reset_index()


def repeated() -> pd.DataFrame:
    """Pairs of cost and return that are printed for settings which should differ, one row per setting, in groups.

    Left out are pairs near zero (both below 1) and what should be one run (`same_cells`).
    """
    rows = cells().replace({"method": SAME}).drop_duplicates([*CELL, "method", *METRICS])
    rows = rows[(rows[list(METRICS)].abs() >= 1).any(axis=1)]
    groups = rows.groupby(list(METRICS), sort=False)
    rows = rows.assign(printed=groups["method"].transform("size")).query("printed > 1")
    return rows.sort_values([*METRICS, "table"], ignore_index=True)[
        ["cost", "return", "printed", "table", *CELL, "method"]
    ]


def best_percentile() -> dict[str, int]:
    """Table 6 by its caption's rule (cost below 10, then the highest reward): how many pairs each percentile wins.

    Keys are the percentile that wins alone, "shared" and "none"; with_50 counts those that 50 % wins or shares.
    """
    found: dict[str, int] = {"0": 0, "50": 0, "100": 0, "shared": 0, "none": 0, "with_50": 0}
    for _, own in table(6).groupby(["policy", "task"]):
        safe = own[own["cost"] < LIMIT]
        best = [str(value) for value in safe.loc[safe["reward"] == safe["reward"].max(), "percentile"]]
        found[best[0] if len(best) == 1 else "shared" if best else "none"] += 1
        found["with_50"] += "50" in best
    return found


def times() -> pd.DataFrame:
    """Table 3 as ratios, one row per task: how many times as long retraining takes as Safe-RULE, Safe-RULE as
    Trajdeleter, and how many training steps a step of Safe-RULE takes by these minutes and Table 7's numbers of steps.
    """
    minutes = table(3).pivot(index="task", columns="method", values="minutes")
    ours, steps = minutes["Safe Unlearning"], TABLE7.training_steps / TABLE7.unlearning_steps
    ratios = {"retraining": minutes["Retraining"] / ours, "over_trajdeleter": ours / minutes["Trajdeleter"]}
    ratios["training_steps_per_step"] = steps / ratios["retraining"]
    ratios["slowest_defence"] = ours == minutes.drop(columns="Retraining").max(axis=1)
    others = minutes[["Trajdeleter", "Reward-only"]].max(axis=1)
    return pd.DataFrame(ratios | {"fine_tuning_slower": minutes["Fine-tuning"] > others}).reset_index()


def attack_strength() -> dict[str, tuple[int, int]]:
    """Table 1's poisoned policies: in how many of how many the attack has not the effect that the text gives it."""
    poisoned = cells(1).query("method == 'poisoned'").assign(safe=lambda rows: rows["cost"] <= rows["cost_limit"])
    by_ratio = poisoned.pivot(index=CELL[:3], columns="ratio", values="cost")
    by_attack = poisoned.pivot(index=["task", "backbone", "ratio"], columns="attack", values="cost")
    found = {
        "safe": poisoned["safe"],
        "safe_cpq": poisoned.loc[poisoned["backbone"] == "cpq", "safe"],
        "not_higher_at_more_poison": by_ratio[max(by_ratio)] <= by_ratio[min(by_ratio)],
        "min_reward_above_max_cost": by_attack["min_reward"] > by_attack["max_cost"],
    }
    return {name: (int(cases.sum()), len(cases)) for name, cases in found.items()}


def summary() -> pd.DataFrame:
    """The audit in sentences: the tables that each is read from, the number found, of how many where it is a count."""
    same, again, wins, strength, ratios = same_cells(), repeated(), best_percentile(), attack_strength(), times()
    groups, n, tasks = len(again.drop_duplicates(list(METRICS))), len(same), len(ratios)
    repaired = tally(against(cells(1), "safe-rule", "poisoned"))
    aware = tally(against(cells(4), "trajdeleter-cost", "trajdeleter"))
    least, most = (f"{value:.1f}" for value in ratios["retraining"].agg(["min", "max"]))
    step = f"{ratios['training_steps_per_step'].max():.1f}"
    pairs = ((1, 2), (1, 5), (1, 6), (2, 5), (5, 6))
    differ = {f"{one}, {two}": same[f"differs_{one}_{two}"].sum() for one, two in pairs}
    rows = [
        *((tables, found, n, "runs that both print differ beyond rounding") for tables, found in differ.items()),
        ("1, 2", same["rounding"].sum(), n, "runs that both print differ by 0.1"),
        ("1, 2, 4, 5, 6", groups, None, f"pairs of cost and return stand for {len(again)} settings that should differ"),
        ("1", *strength["safe"], f"poisoned policies keep the cost limit, {strength['safe_cpq'][0]} of them CPQ"),
        ("1", *strength["not_higher_at_more_poison"], "poisoned costs are not higher at 15 % than at 5 %"),
        ("1", *strength["min_reward_above_max_cost"], "poisoned costs are higher under Min Reward than Max Cost"),
        ("1", repaired["cost_worse"], repaired["cells"], "costs rise under Safe-RULE"),
        ("4", aware["cost_better"], aware["cells"], "costs are lower with the cost-advantage term"),
        ("6", wins["with_50"], n, f"pairs of backbone and task are won by 50 %, {wins['50']} of them alone"),
        ("3", ratios["slowest_defence"].sum(), tasks, "tasks on which Safe-RULE is the slowest defence"),
        ("3", ratios["fine_tuning_slower"].sum(), tasks, "tasks where fine-tuning is slower than all but Safe-RULE"),
        ("3", f"{least} to {most}", None, "times as long as Safe-RULE retraining takes"),
        ("3, 7", step, None, "training steps at most in a step of Safe-RULE"),
    ]
    return pd.DataFrame(rows, columns=["tables", "found", "of", "what"], dtype=object)

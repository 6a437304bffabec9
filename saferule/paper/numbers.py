"""The paper's Tables 1-7 as tidy data frames, values exactly as printed.

Costs and rewards are evaluation cost and return per episode, not normalised. The paper states no spread, no
number of seeds and no number of evaluation episodes. What each table holds, and its columns:

1  the poisoned policy, before and after 5000 steps of Safe-RULE
   policy, attack, task, ratio, metric (cost, reward), before, after
2  adaptive and fixed forget weight, Max Cost 5 %: cost removed, reward gained
   policy, variant (adaptive, fixed_1), task, delta_cost, delta_reward
3  wall-clock time, CPQ
   method, task, minutes
4  Trajdeleter as published, and with a cost-advantage term
   policy, attack, task, ratio, metric, non_cost_aware, cost_aware
5  Safe-RULE with and without critic unlearning, Max Cost 5 %
   policy, variant (with_critic_unlearning, without_critic_unlearning), task, cost, reward
6  the percentile of the reward reference; attack and ratio are not stated
   policy, task, percentile (0, 50, 100), cost, reward
7  hyperparameters; parsed in `settings`
   name, symbol, value (text)
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from saferule.errors import SettingsError
from saferule.paper.settings import TABLES


class Cell(NamedTuple):
    """One cell of Table 1: evaluation cost and return of the poisoned policy and after Safe-RULE."""

    cost_before: float
    cost_after: float
    reward_before: float
    reward_after: float


def table(number: int) -> pd.DataFrame:
    """Table `number` (1 to 7), one observation per row; `SettingsError` for any other number."""
    if number not in range(1, 8):
        raise SettingsError(f"The paper has no Table {number}: choose 1 to 7.")
    return pd.read_csv(TABLES / f"table{number}.csv")


def cell(policy: str, attack: str, task: str, ratio: float) -> Cell:
    """A cell of Table 1, such as `cell("bcq-lag", "max_cost", "PointGoal", 0.05)`.

    policy: in any case ("BCQ-Lag" and "bcq-lag"). Raises `SettingsError` listing the table's values.
    """
    rows = table(1)
    wanted = {"policy": policy, "attack": attack, "task": task, "ratio": ratio}
    for column, value in wanted.items():
        known = rows[column].unique().tolist()
        if column == "policy":
            value = {name.lower(): name for name in known}.get(str(value).lower(), value)
        if value not in known:
            raise SettingsError(f"Table 1 has no {column} {value!r}: choose one of {', '.join(map(str, known))}.")
        rows = rows[rows[column] == value]
    rows = rows.set_index("metric")
    return Cell(
        cost_before=float(rows.at["cost", "before"]),
        cost_after=float(rows.at["cost", "after"]),
        reward_before=float(rows.at["reward", "before"]),
        reward_after=float(rows.at["reward", "after"]),
    )

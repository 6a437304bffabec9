"""The paper as data: its printed numbers, Table 7's settings, and readings of what it leaves open.

"Safe-RULE: Safe Reinforcement UnLEarning" (Jiang, Zhu, Kong). `tables/` holds its Tables 1-7, transcribed as printed;
`readings.toml` has a named option, a default and a reason wherever the paper contradicts itself or is silent.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from saferule.errors import SettingsError

HERE = Path(__file__).parent
CELL = ["task", "backbone", "attack", "ratio"]
ABLATED_ATTACK, ABLATED_RATIO = "max_cost", 0.05  # of Tables 2 and 5; Table 6 states neither
METHODS = {  # our name for what a table's column or value names
    "before": "poisoned",
    "after": "safe-rule",
    "adaptive": "safe-rule",
    "fixed_1": "fixed-weight",
    "non_cost_aware": "trajdeleter",
    "cost_aware": "trajdeleter-cost",
    "with_critic_unlearning": "safe-rule",
    "without_critic_unlearning": "no-critic",
    0: "percentile-0",
    50: "percentile-50",
    100: "percentile-100",
}


def table(number: int) -> pd.DataFrame:
    """Table `number` (1 to 7) as it is printed, one observation per row; `SettingsError` for any other number.

    Costs and rewards are evaluation cost and return per episode, not normalised. The paper states no spread, no number
    of seeds and no number of evaluation episodes. What each table holds, and its columns:

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
    7  hyperparameters
       name, symbol, value (text), parsed (JSON: fields of `Table7`)
    """
    if number not in range(1, 8):
        raise SettingsError(f"The paper has no Table {number}: choose 1 to 7.")
    return pd.read_csv(HERE / "tables" / f"table{number}.csv")


def printed() -> pd.DataFrame:
    """Every cost and return of Tables 1, 2, 4, 5 and 6, one per row, under the names that we use.

    Columns: table, task, backbone, attack, ratio, method, metric (cost, return), value, source. Table 2 prints
    differences: they are applied to Table 1's poisoned policy, and the source says so. Rows of Safe-RULE itself come
    from four tables that should agree and do not always. Table 6 is taken as Max Cost 5 %, like the other ablations.
    """
    rows, cell = pd.concat(map(_long, (1, 4, 5, 6))), [*CELL, "metric"]
    starts = rows[rows["method"] == "poisoned"].set_index(cell)["value"]
    change = changes().replace({"metric": {"cost_removed": "cost", "return_gained": "return"}})
    start = starts.loc[pd.MultiIndex.from_frame(change[cell])].to_numpy()
    sign = change["metric"].map({"cost": -1, "return": 1})
    levels = change.assign(value=(start + sign * change["value"]).round(1), source="Table 2 from Table 1's start")
    return pd.concat([rows, levels], ignore_index=True).sort_values("table", kind="stable", ignore_index=True)


def changes() -> pd.DataFrame:
    """Table 2 as it is printed, in the columns of `printed`: the metrics are cost_removed and return_gained."""
    return _long(2).replace({"metric": {"cost": "cost_removed", "return": "return_gained"}})


def _long(number: int) -> pd.DataFrame:
    """A table of costs and returns, one per row."""
    frame = table(number).rename(columns={"variant": "method", "percentile": "method"})
    known = [name for name in ("policy", "attack", "task", "ratio", "metric", "method") if name in frame]
    rows = frame.melt(known, var_name="metric" if "method" in known else "method")
    rows = rows if "attack" in rows else rows.assign(attack=ABLATED_ATTACK, ratio=ABLATED_RATIO)
    rows["backbone"], rows["method"] = rows["policy"].str.lower(), rows["method"].map(METHODS)
    rows["metric"] = rows["metric"].str.removeprefix("delta_").replace("reward", "return")
    rows = rows.assign(table=number, source=f"Table {number}")
    return rows[["table", *CELL, "method", "metric", "value", "source"]]


@dataclass(frozen=True)
class Table7:
    """The hyperparameters that the paper states (Table 7)."""

    training_steps: int  # offline training of the (poisoned) policy
    gamma: float
    ratios: tuple[float, ...]  # rho
    adversary_steps: int  # environment steps of the adversarial policy
    unlearning_steps: int
    alpha_k: float  # keep critic weight, Eq. 7-8
    alpha_f: float  # forget critic weight, Eq. 7-8
    kappa: float  # cost threshold, Eq. 1
    sigma: float  # forget-cost margin, Eq. 6: forget actions should cost kappa + sigma
    reward_percentile: int  # of y_r on D_k: the reward reference of Eq. 5
    beta_initial: float  # forget weight, Eq. 11
    beta_min: float
    beta_max: float
    tau_beta: float  # step of the forget weight, Algorithm 2 line 15


def _table7() -> Table7:
    values = {name: value for text in table(7)["parsed"] for name, value in json.loads(text).items()}
    return Table7(**values | {"ratios": tuple(values["ratios"])})


@dataclass(frozen=True)
class Reading:
    """One open point: `options` maps each to what it does; `source` says where the paper is unclear.

    later   it came when runs were stored already: a run's description has it only where its option is not the default
    """

    name: str
    question: str
    options: dict[str, str]
    default: str
    reason: str
    source: str
    later: bool = False


TABLE7 = _table7()
_DECLARED = tomllib.loads((HERE / "readings.toml").read_text(encoding="utf-8"))
ATTACK, UNLEARNING = (
    tuple(Reading(name, **entry) for name, entry in _DECLARED[of].items()) for of in ("attack", "unlearning")
)
READINGS: dict[str, Reading] = {reading.name: reading for reading in (*ATTACK, *UNLEARNING)}


def default_readings() -> dict[str, str]:
    """The default option of every reading."""
    return {name: reading.default for name, reading in READINGS.items()}


def check(readings: Mapping[str, str] | None = None) -> dict[str, str]:
    """All readings: those given, the others at their defaults.

    Raises `SettingsError`, listing what is valid, for a reading or an option that does not exist.
    """
    for name, option in (readings or {}).items():
        if name not in READINGS:
            raise SettingsError(f"There is no reading {name!r}: choose among {', '.join(READINGS)}.")
        if option not in READINGS[name].options:
            raise SettingsError(
                f"Reading {name!r} has no option {option!r}: choose one of {', '.join(READINGS[name].options)}."
            )
    return default_readings() | dict(readings or {})

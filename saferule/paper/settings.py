"""Table 7 of the paper, read from `tables/table7.csv`."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

TABLES = Path(__file__).parent / "tables"


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
    sigma: float  # forget-cost margin, Eq. 6
    reward_percentile: int  # of y_r on D_k: the reward reference of Eq. 5
    beta_initial: float  # forget weight, Eq. 11
    beta_min: float
    beta_max: float
    tau_beta: float  # step of the forget weight, Algorithm 2 line 15

    @property
    def forget_cost_target(self) -> float:
        """kappa + sigma: the cost that the critic should give forget actions (Eq. 6)."""
        return self.kappa + self.sigma


def read_table7(path: Path = TABLES / "table7.csv") -> Table7:
    """Parse the printed entries, such as `10^6`, `{0.05, 0.15}` and `50th percentile of y_r on D_k`."""
    with open(path, newline="", encoding="utf-8") as file:
        printed = {row["name"]: row["value"] for row in csv.DictReader(file)}
    beta_min, beta_max = _numbers(printed["beta_f range"])
    return Table7(
        training_steps=_steps(printed["Offline safe RL training steps"]),
        gamma=float(printed["Discount factor"]),
        ratios=tuple(_numbers(printed["Poisoning ratio"])),
        adversary_steps=_steps(printed["Adversarial policy training steps"]),
        unlearning_steps=_steps(printed["Unlearning steps"]),
        alpha_k=float(printed["Keep critic weight"]),
        alpha_f=float(printed["Forget critic weight"]),
        kappa=float(printed["Cost threshold"]),
        sigma=float(printed["Forget-cost margin"]),
        reward_percentile=int(_numbers(printed["Reward reference"])[0]),
        beta_initial=float(printed["Initial beta_f"]),
        beta_min=beta_min,
        beta_max=beta_max,
        tau_beta=float(printed["Update step size"]),
    )


def _steps(text: str) -> int:
    base, _, exponent = text.partition("^")
    return int(base) ** int(exponent or 1)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


TABLE7 = read_table7()

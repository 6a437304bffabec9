"""The PID multiplier of BCQ-Lag and BEAR-Lag (Stooke et al. 2020; osrl-lib LagrangianPIDController)."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_limit(limit: float, gamma: float, horizon: int) -> float:
    """An episode cost limit as a level of the discounted cost critic: limit * (1 - gamma^T) / (1 - gamma) / T."""
    return limit * (1 - gamma**horizon) / (1 - gamma) / horizon


def init_pid() -> dict[str, Tensor]:
    """The controller's state: last error and integral, both scalars."""
    return {"pid_error": torch.zeros(()), "pid_integral": torch.zeros(())}


def pid_multiplier(
    scalars: dict[str, Tensor], q_cost: Tensor, limit: float, gains: tuple[float, float, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The Lagrange multiplier for the cost values (B,) of the policy's actions, and the controller's next state."""
    kp, ki, kd = gains
    error = (q_cost.detach() - limit).mean()
    difference = torch.relu(error - scalars["pid_error"])
    integral = torch.relu(scalars["pid_integral"] + error)
    multiplier = torch.relu(kp * torch.relu(error) + ki * integral + kd * difference)
    return multiplier, {"pid_error": error, "pid_integral": integral}

"""Unlearning methods. A method is a family (one loss) plus coefficients; variants of a family share a population.

family         methods
safe_rule.py   safe-rule, fixed-weight, reward-only, no-critic, percentile-0, percentile-50, percentile-100
fine_tune.py   fine-tuning
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from saferule.errors import SettingsError
from saferule.paper.readings import check, default_readings
from saferule.paper.settings import TABLE7

# What each method changes in the coefficients of its family.
METHODS: dict[str, tuple[str, dict[str, float]]] = {
    "safe-rule": ("safe_rule", {}),
    "fixed-weight": ("safe_rule", {"beta_f": 1.0, "beta_min": 1.0, "beta_max": 1.0}),  # Table 2
    "reward-only": ("safe_rule", {"cost_weight": 0.0}),  # Section 5
    "no-critic": ("safe_rule", {"alpha_k": 0.0, "alpha_f": 0.0}),  # Table 5
    "percentile-0": ("safe_rule", {"percentile": 0.0}),  # Table 6
    "percentile-50": ("safe_rule", {"percentile": 0.5}),
    "percentile-100": ("safe_rule", {"percentile": 1.0}),
    "fine-tuning": ("fine_tune", {}),
}


def family(method: str) -> ModuleType:
    """The module whose ``algorithm(backbone, cfg)`` runs the method; SettingsError for an unknown name."""
    if method not in METHODS:
        raise SettingsError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    return importlib.import_module(f"saferule.unlearn.{METHODS[method][0]}")


def coefficients(method: str, cfg: Any, readings: Mapping[str, str] | None = None) -> dict[str, float]:
    """The scalars that a method adds to an agent: Table 7, the readings of open points, the method's own changes.

    cfg  the backbone's settings; its ``q_limit`` is kappa under the reading kappa = per_step
    """
    module = family(method)
    if not hasattr(module, "critics_loss"):
        return {}
    chosen = default_readings() | dict(readings or {})
    check(chosen)
    kappa = TABLE7.kappa if chosen["kappa"] == "literal" else cfg.q_limit
    values = {
        "alpha_k": TABLE7.alpha_k,
        "alpha_f": TABLE7.alpha_f,
        "kappa": kappa,
        "sigma": TABLE7.sigma,
        "percentile": float(chosen["reward_percentile"]) / 100,
        "cost_weight": 1.0,
        "beta_f": TABLE7.beta_initial,
        "beta_min": TABLE7.beta_min,
        "beta_max": TABLE7.beta_max,
        "tau_beta": TABLE7.tau_beta,
        "gate_at_data": float(chosen["gate"] == "data"),
        "forget_sign": 1.0 if chosen["forget_actor"] == "printed" else -1.0,
        "weight_first": float(chosen["weight_update"] == "before"),
    }
    return values | METHODS[method][1]

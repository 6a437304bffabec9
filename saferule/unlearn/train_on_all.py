"""Ordinary training on D and D_f together: of clean policies (no D_f), poisoned ones, and what relearning does."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from saferule.agents.population import Algorithm, training

PAIRED = False


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """None."""
    return {}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """None."""
    return {}


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """The backbone's training step."""
    return training(backbone, cfg)

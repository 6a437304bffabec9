"""Fine-tuning: the backbone's ordinary training step on the keep set alone (Section 5, Defense Baselines)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Algorithm, Loss, Report, training
from saferule.data.batches import Pair
from saferule.unlearn.inside import inside

PAIRED = True


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """None."""
    return {}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """None."""
    return {}


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """The training step, given the keep half of each pair."""
    ordinary = training(backbone, cfg)
    losses = tuple((names, partial(on_keep, loss)) for names, loss in backbone.LOSSES)
    return replace(ordinary, phases=(losses,), looks=(inside(backbone, losses),))


def on_keep(loss: Loss, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any) -> Report:
    """A training loss on the keep batch; the forget batch is not looked at."""
    return loss(nets, scalars, batch.keep, noise, cfg)

"""Unlearning methods. A method is a family (one loss) plus coefficients; variants of a family share a population.

    family                  methods
    safe_rule.py            safe-rule, fixed-weight, reward-only, no-critic, percentile-0, percentile-50, percentile-100
    safe_rule_dice.py       the same for COptiDICE, where there is no critic and no percentile (Appendix C.2)
    fine_tune.py            fine-tuning
    trajdeleter.py          trajdeleter, trajdeleter-cost (as published; cost-aware)
    trajdeleter_released.py trajdeleter-released

A family module has ``algorithm(backbone, cfg, steps)``; one with ``COEFFICIENTS`` names its scalars and their defaults.
Of Safe-RULE's scalars, ``USED`` names those that the family's losses look at. Most readings are coefficients too;
``vae`` and ``regulariser`` change which losses there are (`structure`).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from saferule.errors import SettingsError
from saferule.paper import TABLE7, UNLEARNING, check

if TYPE_CHECKING:
    from saferule.agents.population import Algorithm, Phases, Population


@dataclass(frozen=True)
class Method:
    """A family by the name of its module, and what the method changes in the family's coefficients."""

    family: str
    changes: Mapping[str, float] = field(default_factory=dict)


METHODS: dict[str, Method] = {
    "safe-rule": Method("safe_rule"),
    "fixed-weight": Method("safe_rule", {"beta_f": 1.0, "beta_min": 1.0, "beta_max": 1.0}),  # Table 2
    "reward-only": Method("safe_rule", {"cost_weight": 0.0}),  # Section 5
    "no-critic": Method("safe_rule", {"alpha_k": 0.0, "alpha_f": 0.0}),  # Table 5
    "percentile-0": Method("safe_rule", {"percentile": 0.0}),  # Table 6
    "percentile-50": Method("safe_rule", {"percentile": 0.5}),
    "percentile-100": Method("safe_rule", {"percentile": 1.0}),
    "fine-tuning": Method("fine_tune"),
    "trajdeleter": Method("trajdeleter"),
    "trajdeleter-cost": Method("trajdeleter", {"lambda_c": 1.0, "anchor_cost": 0.1}),  # Eq. 28
    "trajdeleter-released": Method("trajdeleter_released"),
}
FOR_COPTIDICE = {"safe_rule": "safe_rule_dice"}


def supported(method: str, backbone: str) -> bool:
    """Whether a backbone has what a method needs: Trajdeleter as published needs critics, which COptiDICE has not.

    SettingsError for an unknown method.
    """
    if method not in METHODS:
        raise SettingsError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    return not (backbone == "coptidice" and METHODS[method].family == "trajdeleter")


def family(method: str, backbone: str) -> ModuleType:
    """The module that runs a method on a backbone.

    SettingsError for an unknown method, and for one that the backbone does not support.
    """
    if not supported(method, backbone):
        raise SettingsError(f"{method} needs critics, which {backbone} has not: use trajdeleter-released")
    name = METHODS[method].family
    if backbone == "coptidice":
        name = FOR_COPTIDICE.get(name, name)
    return importlib.import_module(f"saferule.unlearn.{name}")


def structure(method: str, backbone: str, readings: Mapping[str, str] | None = None) -> tuple[tuple[str, bool], ...]:
    """What the readings change in the losses of Safe-RULE, as named options of its ``algorithm``.

    Agents share a population only where these are equal. Empty for other families and where a reading changes nothing:
    a backbone without VAE (COptiDICE), or without a regulariser that carries gradient (BCQ-Lag, CPQ, COptiDICE).
    """
    from saferule.agents import get_backbone

    chosen, module = check(readings), get_backbone(backbone)
    if family(method, backbone).__name__ != "saferule.unlearn.safe_rule":
        return ()
    options = {
        "train_vae": chosen["vae"] == "keep",
        "regularised": chosen["regulariser"] == "kept" and hasattr(module, "regulariser"),
    }
    return tuple((name, True) for name, wanted in options.items() if wanted)


def unlearning(
    method: str, backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str] | None = None
) -> Algorithm | Phases:
    """What a method does in each of its steps on a backbone, under the given readings."""
    options = dict(structure(method, backbone.NAME, readings))
    return family(method, backbone.NAME).algorithm(backbone, cfg, steps, **options)


def coefficients(method: str, backbone: str, cfg: Any, readings: Mapping[str, str] | None = None) -> dict[str, float]:
    """The scalars that a method adds to an agent: Table 7, the readings of open points, the method's own changes.

    Those that the method's losses on this backbone do not look at are left out.
    cfg  the backbone's settings; its ``q_limit`` is kappa under the reading kappa = per_step
    """
    module, chosen = family(method, backbone), check(readings)
    if METHODS[method].family == "safe_rule":
        values = safe_rule_coefficients(cfg, chosen) | dict(METHODS[method].changes)
        return {name: values[name] for name in module.USED}
    return getattr(module, "COEFFICIENTS", {}) | dict(METHODS[method].changes)


def applicable(backbone: str, cfg: Any) -> list[dict[str, str]]:
    """The readings that make another run of Safe-RULE on this backbone, one option other than the default at a time.

    Left out are options under which neither the coefficients nor the losses differ: they would repeat the same run. In
    the order of `saferule.paper.UNLEARNING`, each as {reading: option}.
    """

    def run(readings: Mapping[str, str]) -> tuple[Any, Any]:
        return coefficients("safe-rule", backbone, cfg, readings), structure("safe-rule", backbone, readings)

    others = [{r.name: option} for r in UNLEARNING for option in r.options if option != r.default]
    return [reading for reading in others if run(reading) != run({})]


def begin(
    population: Population,
    algorithm: Algorithm | Phases,
    backbone: str,
    methods: Sequence[str],
    readings: Sequence[Mapping[str, str]] | None = None,
) -> None:
    """Make corrupted agents ready for unlearning, in place: agent p for ``methods[p]``, all of one family.

    Adds the coefficients to the scalars and, where the method refers to the corrupted agent, frozen copies of its
    networks; Adam starts cold and the steps count from 0.
    """
    from saferule.agents.parts import originals
    from saferule.agents.population import reset_optimisers

    readings = readings or [{}] * len(methods)
    cfg = algorithm.cfg
    added = [coefficients(m, backbone, cfg, r) for m, r in zip(methods, readings, strict=True)]
    like = next(iter(population.nets["actor"].values()))
    population.scalars |= {k: like.new_tensor([values[k] for values in added]) for k in added[0]}
    if hasattr(family(methods[0], backbone), "anchored_critics_loss"):
        population.nets |= originals(population.nets)
    population.step = 0
    reset_optimisers(population, algorithm)


def safe_rule_coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """Coefficients of Safe-RULE under the given readings."""
    return {
        "alpha_k": TABLE7.alpha_k,
        "alpha_f": TABLE7.alpha_f,
        "kappa": TABLE7.kappa if readings["kappa"] == "literal" else cfg.q_limit,
        "sigma": TABLE7.sigma,
        "percentile": float(readings["reward_percentile"]) / 100,
        "cost_weight": 1.0,
        "beta_f": TABLE7.beta_initial,
        "beta_min": TABLE7.beta_min,
        "beta_max": TABLE7.beta_max,
        "tau_beta": TABLE7.tau_beta,
        "gate_at_data": float(readings["gate"] == "data"),
        "forget_sign": 1.0 if readings["forget_actor"] == "printed" else -1.0,
        "weight_first": float(readings["weight_update"] == "before"),
        "chi_normalised": float(readings["chi_gap"] == "normalised"),
        "reference_fixed": float(readings["reference"] == "dataset"),
        "dataset_reference": 0.0,  # `saferule.unlearn.start.adapt` sets it where reference_fixed is 1
    }

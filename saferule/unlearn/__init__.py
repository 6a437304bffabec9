"""Unlearning methods, and the one declaration of everything that makes a policy.

A method is a family (one loss) plus coefficients; variants of a family share a population.

    family                  methods
    train_on_all.py         clean, poisoned, relearn: the backbone's ordinary training on D and D_f
    fine_tune.py            fine-tuning
    trajdeleter.py          trajdeleter, trajdeleter-cost (as published; cost-aware)
    trajdeleter_released.py trajdeleter-released
    safe_rule.py            safe-rule and its variants
    safe_rule_dice.py       the same for COptiDICE, where there is no critic and no percentile (Appendix C.2)

A family module has

    PAIRED        its losses take a `saferule.data.batches.Pair`; False: batches of D and D_f together
    options       (backbone, readings) -> those readings that change what its losses compute on a backbone
    coefficients  (cfg, readings) -> the scalars that it adds to an agent
    algorithm     (backbone, cfg, steps, readings) -> Algorithm

where ``readings`` maps every reading to its option. To register a method is to add an entry to `METHODS`: tables,
legends, help texts and plans derive from it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from saferule.agents import get_backbone
from saferule.errors import SettingsError
from saferule.paper import UNLEARNING, check

if TYPE_CHECKING:
    from saferule.agents.population import Algorithm

Readings = Mapping[str, str] | None  # {reading: option}; those left out are at their defaults


@dataclass(frozen=True)
class Method:
    """What makes a policy from another, or from fresh networks.

    label, colour, style  how it is shown
    family         the name of the module with its loss
    part           of the experiment: "main", "controls", "ablations" or "forgetting"
    coefficients   what it changes in the family's coefficients
    readings       the options that it fixes
    start          "fresh" networks, the "poisoned" or the "clean" policy, or "every policy"
    forget         "attack": it is given a forget set; "random": a random part of D in its place; "none": only D
    steps          of "training", "unlearning" or "relearning": how many the profile gives it
    needs_critics  not for backbones without CRITICS
    frozen_copy    its losses look at the networks that it started from
    """

    name: str
    label: str
    colour: str
    family: str
    part: str
    coefficients: Mapping[str, float] = field(default_factory=dict)
    readings: Mapping[str, str] = field(default_factory=dict)
    start: str = "poisoned"
    forget: str = "attack"
    steps: str = "unlearning"
    needs_critics: bool = False
    frozen_copy: bool = False
    style: str = "-"


RELEASED = {"frozen_copy": True, "style": "--"}
PUBLISHED = RELEASED | {"needs_critics": True}
COST_AWARE = {"lambda_c": 1.0}  # Eq. 28
REWARD_ONLY = {"cost_weight": 0.0}  # Section 5
FIXED_WEIGHT = {"beta_f": 1.0, "beta_min": 1.0, "beta_max": 1.0}  # Table 2
NO_CRITIC = {"alpha_k": 0.0, "alpha_f": 0.0}  # Table 5
NO_FORGET_ACTOR = {"beta_f": 0.0, "beta_min": 0.0, "beta_max": 0.0}
NOTHING_FORGOTTEN = NO_FORGET_ACTOR | {"alpha_f": 0.0}
# What the text describes where the equations do something else: the policy leaves the poisoned actions, by a weight
# that falls as it leaves, and stays close to the behaviour in D_k (of the backbones CPQ has no term for that).
DESCRIBED = {
    "forget_actor": "repelling",
    "gap": "nearness",
    "regulariser": "kept",
    "vae": "keep",
    "likelihood": "bounded",
}
TRAINED = {"family": "train_on_all", "start": "fresh"}

# In the order in which methods are listed. The colours are those of Okabe and Ito (2008) and Tol (2021), which people
# with the common colour vision deficiencies can tell apart; controls are dotted, or dotted and dashed.
DECLARED = (
    Method("clean", "clean (retrained)", "#009E73", part="main", forget="none", steps="training", **TRAINED),
    Method("poisoned", "poisoned", "#D55E00", part="main", steps="training", **TRAINED),
    Method("fine-tuning", "fine-tuning", "#CC79A7", "fine_tune", "main"),
    Method("trajdeleter", "Trajdeleter", "#882255", "trajdeleter", "main", **PUBLISHED),
    Method("trajdeleter-cost", "Trajdeleter, cost-aware", "#332288", "trajdeleter", "main", COST_AWARE, **PUBLISHED),
    Method("trajdeleter-released", "Trajdeleter, released code", "#AA4499", "trajdeleter_released", "main", **RELEASED),
    Method("reward-only", "reward only", "#E69F00", "safe_rule", "main", REWARD_ONLY),
    Method("safe-rule", "Safe-RULE", "#0072B2", "safe_rule", "main"),
    Method("safe-rule-described", "Safe-RULE, as described", "#56B4E9", "safe_rule", "main", readings=DESCRIBED),
    # What happens without D_f, without the actor's forgetting, with the wrong D_f, to the wrong policy; and by itself.
    Method(  # COptiDICE's would be fine-tuning
        *("keep-only", "D_f unused", "#117733", "safe_rule", "controls", NOTHING_FORGOTTEN),
        needs_critics=True,
        style=":",
    ),
    Method(
        *("described-keep-only", "as described, D_f unused", "#117733", "safe_rule", "controls", NOTHING_FORGOTTEN),
        readings=DESCRIBED,
        needs_critics=True,
        style="-.",
    ),
    Method(
        *("critic-only", "critics forget alone", "#999933", "safe_rule", "controls", NO_FORGET_ACTOR),
        needs_critics=True,
        style=":",
    ),
    Method("random-forget", "random D_f", "#661100", "safe_rule", "controls", forget="random", style=":"),
    Method(
        *("described-random-forget", "as described, random D_f", "#661100", "safe_rule", "controls"),
        readings=DESCRIBED,
        forget="random",
        style="-.",
    ),
    Method("on-clean", "Safe-RULE on clean", "#6699CC", "safe_rule", "controls", start="clean", style=":"),
    Method("short-retraining", "short retraining", "#44AA99", part="controls", forget="none", style=":", **TRAINED),
    Method("continued", "training goes on", "#AA4466", "train_on_all", "controls", style=":"),
    Method("fixed-weight", "fixed weight", "#88CCEE", "safe_rule", "ablations", FIXED_WEIGHT),
    Method("no-critic", "no critic unlearning", "#000000", "safe_rule", "ablations", NO_CRITIC),
    Method("percentile-0", "percentile 0", "#8A8A8A", "safe_rule", "ablations", {"percentile": 0.0}),  # Table 6
    Method("percentile-50", "percentile 50", "#8A8A8A", "safe_rule", "ablations", {"percentile": 0.5}),
    Method("percentile-100", "percentile 100", "#8A8A8A", "safe_rule", "ablations", {"percentile": 1.0}),
    Method(
        *("reward-only-ungated", "reward only, ungated", "#DDCC77", "safe_rule", "ablations", REWARD_ONLY),
        readings={"forget_gate": "open", "gap": "reward"},
        needs_critics=True,
    ),
    Method(
        *("trajdeleter-anchored", "Trajdeleter, cost-aware, anchored", "#332288", "trajdeleter", "ablations"),
        coefficients=COST_AWARE,
        readings={"cost_anchor": "kept"},
        **(PUBLISHED | {"style": "-."}),
    ),
    Method("relearn", "relearning", "#444444", "train_on_all", "forgetting", start="every policy", steps="relearning"),
)
METHODS: dict[str, Method] = {method.name: method for method in DECLARED}
WITHOUT_CRITICS = {"safe_rule": "safe_rule_dice"}  # the family that stands in where a backbone has no critics


def get_method(name: str) -> Method:
    """A method by name; SettingsError for an unknown one."""
    if name not in METHODS:
        raise SettingsError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return METHODS[name]


def supported(method: str, backbone: str) -> bool:
    """Whether a backbone has what a method needs: Trajdeleter as published needs critics, which COptiDICE has not.

    SettingsError for an unknown method or backbone.
    """
    needed, there = get_method(method).needs_critics, get_backbone(backbone).CRITICS
    return there or not needed


def family(method: str, backbone: str) -> ModuleType:
    """The module that runs a method on a backbone.

    SettingsError for an unknown method, and for one that the backbone does not support.
    """
    if not supported(method, backbone):
        raise SettingsError(f"{method} needs critics, which {backbone} has not: use trajdeleter-released")
    name = get_method(method).family
    if not get_backbone(backbone).CRITICS:
        name = WITHOUT_CRITICS.get(name, name)
    return importlib.import_module(f"saferule.unlearn.{name}")


def chosen(method: str, readings: Readings = None) -> dict[str, str]:
    """The option of every reading: the method's own, then the given ones, then the defaults."""
    return check(dict(readings or {}) | dict(get_method(method).readings))


def loss_options(method: str, backbone: str, readings: Readings = None) -> tuple[tuple[str, str], ...]:
    """What the readings change in what a method computes on a backbone, as (reading, option), defaults included.

    Agents share a population only where their families and these are equal.
    """
    return tuple(family(method, backbone).options(get_backbone(backbone), chosen(method, readings)).items())


def unlearning(method: str, backbone: ModuleType, cfg: Any, steps: int, readings: Readings = None) -> Algorithm:
    """What a method does in each of its ``steps`` steps on a backbone, under the given readings."""
    return family(method, backbone.NAME).algorithm(backbone, cfg, steps, chosen(method, readings))


def coefficients(method: str, backbone: str, cfg: Any, readings: Readings = None) -> dict[str, float]:
    """The scalars that a method adds to an agent: the family's under these readings, and what the method changes.

    cfg  the backbone's settings; its ``q_limit`` is kappa under the reading kappa = per_step
    """
    values = family(method, backbone).coefficients(cfg, chosen(method, readings))
    changes = get_method(method).coefficients
    return {name: changes.get(name, value) for name, value in values.items()}


def applicable(backbone: str, cfg: Any, method: str = "safe-rule") -> list[dict[str, str]]:
    """The readings that make another run of a method on this backbone, one option other than the default at a time.

    Left out are options under which neither the coefficients nor the losses differ: they would repeat the same run, or
    belong to another method, or are fixed by this one. In the order of `saferule.paper.UNLEARNING`, each as
    {reading: option}.
    """

    def run(readings: Mapping[str, str]) -> tuple[Any, Any]:
        return coefficients(method, backbone, cfg, readings), loss_options(method, backbone, readings)

    others = [{r.name: option} for r in UNLEARNING for option in r.options if option != r.default]
    return [reading for reading in others if run(reading) != run({})]


def own_readings(method: str, backbone: str, cfg: Any) -> list[str]:
    """The readings of which some option makes another run of a method on this backbone."""
    return list(dict.fromkeys(name for reading in applicable(backbone, cfg, method) for name in reading))

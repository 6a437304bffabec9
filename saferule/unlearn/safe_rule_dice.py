"""Safe-RULE on COptiDICE, as Appendix C.2 describes it in words.

Each step first updates nu, chi, tau and lambda on the keep batch with COptiDICE's own losses, then, with these fixed,
the actor: weighted behaviour cloning on the keep batch, and on the forget batch a lower log-likelihood of the poisoned
actions. There is no critic forgetting, so Eq. 5-8, the reward reference and Lemmas A.1 and A.2 do not apply.

C.2 gives no formula for the forget weight. Here it is w_f (1 + cost_weight * chi'), where w_f is COptiDICE's correction
on the forget batch (from nu, relabelled rewards and costs) and chi' is chi scaled to [0, 1] over the batch: with
cost_weight 0, the reward-only variant, nu alone decides. The log-likelihood has no lower bound; nothing in C.2 stops
it, unless the reading likelihood = bounded does.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from saferule.agents.networks import Network, gaussian
from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Algorithm, Report
from saferule.data.batches import Batch, Pair
from saferule.unlearn.inside import inside
from saferule.unlearn.safe_rule import next_weight, shared_coefficients

PAIRED = True
LOW = 0.05  # quantile of the log-likelihood of D_k's actions: the floor below which an action counts as forgotten
VALUES = 0.5  # share of the steps in which only values are updated, under dice_phases = two


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """The readings that change what is computed. chi knows no action: of the gaps only nearness is another one."""
    own = {name: readings[name] for name in ("weight_update", "chi_gap", "likelihood", "dice_phases")}
    return own | {"gap": "nearness" if readings["gap"] == "nearness" else "policy"}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """Of Safe-RULE's scalars those that Appendix C.2 uses.

    likelihood_floor is there where a reading looks at it, and is set by `saferule.unlearn.start.prepare`.
    """
    looks = readings["likelihood"] == "bounded" or readings["gap"] == "nearness"
    return shared_coefficients(cfg, readings) | ({"likelihood_floor": 0.0} if looks else {})


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """Values on the keep batch, then the actor on both; under dice_phases = two one after the other for half the steps
    each.
    """
    (values, _), _ = backbone.LOSSES
    actor = partial(
        actor_loss,
        backbone,
        normalised=readings["chi_gap"] == "normalised",
        weight_first=readings["weight_update"] == "before",
        bounded=readings["likelihood"] == "bounded",
        nearness=readings["gap"] == "nearness",
    )
    parts = ((values, partial(values_loss, backbone)), (("actor",), actor))
    two, switch = readings["dice_phases"] == "two", round(VALUES * steps)
    phases = tuple((part,) for part in parts) if two else (parts,)
    looks = tuple(inside(backbone, losses) for losses in phases)
    shapes = backbone.noise_shapes(cfg, cfg.batch_size)
    return Algorithm(phases, shapes, backbone.TARGETS, cfg, lambda step: int(two and step >= switch), looks)


def values_loss(backbone: ModuleType, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any) -> Report:
    """COptiDICE's own value losses on the keep batch, times alpha_k (0 freezes the values)."""
    loss, info, changed = backbone.values_loss(nets, scalars, batch.keep, noise, cfg)
    return scalars["alpha_k"] * loss, info, changed


def log_likelihood(actor: Network, batch: Batch) -> Tensor:
    """Log-likelihood (B,) of the data's actions under the Gaussian before the tanh, as COptiDICE's actor uses it."""
    mean, std = gaussian(actor, batch.observations)
    return Normal(mean, std, validate_args=False).log_prob(batch.actions).sum(-1)


def to_unit_range(values: Tensor) -> Tensor:
    """Values (B,) scaled to [0, 1] over the batch; 0 where all are equal."""
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low).clamp_min(1e-8)


def actor_loss(
    backbone: ModuleType,
    nets: Nets,
    scalars: Scalars,
    batch: Pair,
    noise: Noise,
    cfg: Any,
    *,
    normalised: bool = False,
    weight_first: bool = True,
    bounded: bool = False,
    nearness: bool = False,
) -> Report:
    """Keep: COptiDICE's actor loss. Forget: the weighted log-likelihood itself, times beta_f, which follows the gap.

    normalised    the gap is kappa + sigma minus the mean over the forget batch of chi scaled to [0, 1], not of chi
    weight_first  beta_f moves before the actor's step
    bounded       the softplus of the log-likelihood above likelihood_floor is what is lowered: an action that is less
                  likely than D_k's actions were to the corrupted agent is let go. A floor that followed the agent would
                  sink with what it holds up wherever D_f and D_k share states
    nearness      the gap is how much more likely than that floor the poisoned actions are, in the mean
    """
    keep_loss, _, _ = backbone.actor_loss(nets, scalars, batch.keep, noise, cfg)
    with torch.no_grad():
        _, _, w = backbone.correction(nets["nu"], scalars["multiplier"], batch.forget, cfg)
        chi, _ = backbone.state_values(nets["chi"], batch.forget)
        scaled = to_unit_range(chi)
        weight = w * (1 + scalars["cost_weight"] * scaled)
    likelihood = log_likelihood(nets["actor"], batch.forget)
    with torch.no_grad():
        level = (scaled if normalised else chi).mean()
        target = scalars["kappa"] + scalars["sigma"]
        gap = likelihood.mean() - scalars["likelihood_floor"] if nearness else target - level
        beta_next = next_weight(scalars["beta_f"], gap, scalars)
    beta_f = beta_next if weight_first else scalars["beta_f"]
    lowered = F.softplus(likelihood - scalars["likelihood_floor"]) if bounded else likelihood
    forget_loss = (weight * lowered).mean()
    info = {
        "actor_loss": keep_loss,
        "forget_actor_loss": forget_loss,
        "gap": gap,
        "beta_f": beta_f,
        "forget_chi": chi.mean(),
        "forget_weight": weight.mean(),
        "forget_likelihood": likelihood.mean(),
    }
    return keep_loss + beta_f * forget_loss, info, {"beta_f": beta_next}

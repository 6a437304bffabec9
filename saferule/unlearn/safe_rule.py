"""Safe-RULE on the actor-critic backbones: Algorithm 2 of the paper, for BCQ-Lag, BEAR-Lag and CPQ.

Written against the backbone's value interface: ``bellman_targets``, ``q_reward``, ``q_cost``, ``policy``. What differs
between the variants (adaptive or fixed weight, reward-only, no critic unlearning, percentiles, readings) are the
coefficients in ``scalars``, so variants run side by side in one population.

Where the paper is silent:
- A critic is an ensemble of E networks. Every member has its own keep and forget loss; the losses are summed over
  members, as the backbones sum their Bellman errors. The actor's losses and the gates take the smallest member, as the
  backbones' do.
- Adam starts cold (the paper repairs osrl-lib checkpoints, which hold no optimiser state), so a network whose losses
  all have coefficient zero does not move at all.
- The behaviour model (VAE) is not in Algorithm 2 and stays as it is, unless the reading vae = keep trains it.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saferule.agents.networks import quantile, td_loss
from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Algorithm
from saferule.data.batches import Pair
from saferule.unlearn.fine_tune import on_keep

USED = (  # scalars that the losses below look at
    *("alpha_k", "alpha_f", "cost_weight", "percentile", "reference_fixed", "dataset_reference", "kappa", "sigma"),
    *("beta_f", "beta_min", "beta_max", "tau_beta", "weight_first", "gate_at_data", "forget_sign"),
)


def algorithm(
    backbone: ModuleType, cfg: Any, steps: int, *, train_vae: bool = False, regularised: bool = False
) -> Algorithm:
    """One Safe-RULE step: critics (lines 5-11), then actor and weight (lines 12-16), then targets (line 17).

    train_vae    the VAE is trained first, on the keep batch (reading vae = keep)
    regularised  the backbone's regulariser is part of the keep actor loss (reading regulariser = kept)
    """
    ordinary = backbone.noise_shapes(cfg, cfg.batch_size)
    policy = ordinary["policy"]
    shapes = {"target": ordinary["target"], "keep_policy": policy, "forget_policy": policy}
    losses: tuple = (
        (("critic", "cost_critic"), partial(critics_loss, backbone)),
        (("actor",), partial(actor_loss, backbone, regularised=regularised)),
    )
    if train_vae:
        losses = ((("vae",), partial(on_keep, dict(backbone.LOSSES)[("vae",)])), *losses)
        shapes |= {"vae": ordinary["vae"]}
    if regularised:
        shapes |= {name: ordinary[name] for name in ("behaviour", "match")}
    return Algorithm(losses, shapes, backbone.TARGETS, cfg)


def suppress_reward(q_r: Tensor, reference: Tensor) -> Tensor:
    """Eq. 5: mean over the batch of softplus(Q_r - reference), for each member: (E, B) -> (E,)."""
    return F.softplus(q_r - reference).mean(-1)


def raise_cost(q_c: Tensor, target: Tensor) -> Tensor:
    """Eq. 6 and the cost term of Eq. 10: mean over the batch of softplus(kappa + sigma - Q_c): (..., B) -> (...)."""
    return F.softplus(target - q_c).mean(-1)


def critics_loss(
    backbone: ModuleType, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any
) -> tuple[Tensor, dict[str, Tensor], Scalars]:
    """Eq. 7 and 8: Bellman regression on the keep batch, suppression on the forget batch.

    scalars  alpha_k, alpha_f (weights of keeping and forgetting), cost_weight (1, or 0 for reward-only),
             percentile (of y_r on the keep batch, 0..1), kappa, sigma; switch: reference_fixed (the reward reference
             is dataset_reference, the percentile of y_r over D_k, not that of the batch)
    """
    keep, forget = batch
    with torch.no_grad():
        y_r, y_c = backbone.bellman_targets(nets, keep, noise["target"], cfg)  # line 5
        reference = quantile(y_r, scalars["percentile"])  # line 7
        reference = torch.where(scalars["reference_fixed"] > 0, scalars["dataset_reference"], reference)
    keep_r = td_loss(backbone.q_reward(nets, keep.observations, keep.actions), y_r)  # line 6, Eq. 3
    keep_c = td_loss(backbone.q_cost(nets, keep.observations, keep.actions), y_c)  # line 6, Eq. 4
    q_r = backbone.q_reward(nets, forget.observations, forget.actions)
    q_c = backbone.q_cost(nets, forget.observations, forget.actions)
    target = scalars["kappa"] + scalars["sigma"]  # line 8
    forget_r = suppress_reward(q_r, reference)  # line 9, Eq. 5
    forget_c = raise_cost(q_c, target)  # line 9, Eq. 6
    loss_r = scalars["alpha_k"] * keep_r + scalars["alpha_f"] * forget_r.sum()  # line 10, Eq. 7
    loss_c = (
        scalars["alpha_k"] * keep_c + scalars["alpha_f"] * scalars["cost_weight"] * forget_c.sum()
    )  # line 11, Eq. 8
    info = {
        "critic_loss": keep_r,
        "cost_critic_loss": keep_c,
        "reward_reference": reference,
        "forget_reward_residual": forget_r.mean(),
        "forget_cost_residual": forget_c.mean(),
        "forget_q_cost_data": q_c.amin(0).mean(),
    }
    return loss_r + loss_c, info, {}


def keep_actor_loss(q_r: Tensor, q_c: Tensor, kappa: Tensor, gate_cost: Tensor) -> Tensor:
    """Eq. 9: -mean(I[Q_c <= kappa] Q_r) + mean softplus(Q_c - kappa); all inputs (B,), Q at the policy's actions.

    gate_cost  the Q_c that the indicator looks at
    """
    return -((gate_cost <= kappa) * q_r).mean() + F.softplus(q_c - kappa).mean()


def forget_actor_loss(
    q_r: Tensor,
    q_c: Tensor,
    kappa: Tensor,
    sigma: Tensor,
    cost_weight: Tensor,
    sign: Tensor,
    gate_cost: Tensor,
) -> Tensor:
    """Eq. 10: mean(I[Q_c >= kappa] Q_r) + mean softplus(kappa + sigma - Q_c); all inputs (B,), Q at the policy's
    actions.

    As printed (sign = 1) the second term moves the policy towards actions that its critic calls unsafe. With sign = -1,
    the repelling reading, it is softplus(Q_c - kappa): the policy moves away from them.
    """
    towards, away = raise_cost(q_c, kappa + sigma), F.softplus(q_c - kappa).mean()
    cost_term = torch.where(sign > 0, towards, away)
    return ((gate_cost >= kappa) * q_r).mean() + cost_weight * cost_term


def next_weight(beta_f: Tensor, gap: Tensor, scalars: Scalars) -> Tensor:
    """Algorithm 2 line 15: clip(beta_f + gap * tau_beta, beta_min, beta_max)."""
    return torch.clamp(beta_f + gap * scalars["tau_beta"], scalars["beta_min"], scalars["beta_max"])


def actor_loss(
    backbone: ModuleType,
    nets: Nets,
    scalars: Scalars,
    batch: Pair,
    noise: Noise,
    cfg: Any,
    *,
    regularised: bool = False,
) -> tuple[Tensor, dict[str, Tensor], Scalars]:
    """Eq. 11: keep loss plus beta_f times forget loss; moves beta_f by the forgetting gap (lines 12-16).

    scalars  kappa, sigma, cost_weight, beta_f and its bounds and step; switches: gate_at_data (the indicators look at
             the data's action, not at pi(s)), forget_sign (1 as printed, -1 repelling), weight_first (beta_f moves
             before the actor's step)
    regularised  the backbone's own regulariser on the keep batch is added to Eq. 9
    """
    keep, forget = batch
    kappa, sigma = scalars["kappa"], scalars["sigma"]

    def values(part: Any, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        actions = backbone.policy(nets, part.observations, draws, cfg)
        q_r = backbone.q_reward(nets, part.observations, actions).amin(0)
        q_c = backbone.q_cost(nets, part.observations, actions).amin(0)
        at_data = backbone.q_cost(nets, part.observations, part.actions).amin(0)
        return q_r, q_c, torch.where(scalars["gate_at_data"] > 0, at_data, q_c).detach()

    q_r, q_c, gate = values(keep, noise["keep_policy"])
    keep_loss = keep_actor_loss(q_r, q_c, kappa, gate)  # line 12
    q_r, q_c, gate = values(forget, noise["forget_policy"])
    forget_loss = forget_actor_loss(  # line 13
        q_r, q_c, kappa, sigma, scalars["cost_weight"], scalars["forget_sign"], gate
    )
    gap = (kappa + sigma - q_c.mean()).detach()  # line 14
    beta_next = next_weight(scalars["beta_f"], gap, scalars)  # line 15
    beta_f = torch.where(scalars["weight_first"] > 0, beta_next, scalars["beta_f"])
    loss = keep_loss + beta_f * forget_loss  # line 16, Eq. 11
    info = {
        "keep_actor_loss": keep_loss,
        "forget_actor_loss": forget_loss,
        "gap": gap,
        "beta_f": beta_f,
        "forget_q_cost_policy": q_c.mean(),
    }
    moved = {"beta_f": beta_next}
    if regularised:
        ties, reported, changed = backbone.regulariser(
            nets, scalars, keep, noise | {"policy": noise["keep_policy"]}, cfg
        )
        loss, info, moved = loss + ties, info | reported, moved | changed
    return loss, info, moved

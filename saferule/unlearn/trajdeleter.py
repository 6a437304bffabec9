"""Trajdeleter (Gong et al., NDSS 2025) as published, and the paper's cost-aware version (Appendix B, Eq. 28-29).

A forgetting phase lowers the value of the policy's actions on D_f while the backbone's own losses go on with D_k; then,
in a convergence phase on D_k alone, the critics are anchored to the corrupted agent's targets. The cost-aware version
adds a cost advantage to the forget term; both are one loss, lambda_c apart.

Trajdeleter knows no cost, so this is a port to safe backbones. No source settles the following, which is ours:
- V(s) is the mean value of n actions of the current policy, without gradient: the gradient of A_r(s, pi(s)) is that of
  Q_r(s, pi(s)). With a gradient through V the actor would move the wrong way.
- beta_f = 1, lambda_c = 1 and a cost-advantage target of 0: an action of average cost does not count as forgotten.
- The anchor has weight 0.1, as in the released code. Neither Eq. 28-29 nor the released code has one on a cost critic:
  it has none, unless the reading cost_anchor = kept gives it the same.

Not inherited from the released code: its behaviour model is trained on D_f too; its BEAR and PLAS restart their warm-up
when an agent is loaded and never reach their actor's update. `trajdeleter_released.py` is the released procedure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saferule.agents.networks import td_loss
from saferule.agents.parts import Nets, Noise, Scalars, original_nets
from saferule.agents.population import Algorithm, Report
from saferule.data.batches import Batch, Pair
from saferule.unlearn.fine_tune import on_keep
from saferule.unlearn.inside import inside

PAIRED = True
ANCHOR = 0.1
FORGETTING = 0.8  # share of the steps: 8,000 of the released code's 10,000
CRITIC_NETWORKS = ("critic", "cost_critic")


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """None: what they change are coefficients."""
    return {}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """Those of the published method; the cost-aware one changes ``lambda_c``."""
    weights = {"beta_f": 1.0, "lambda_c": 0.0, "cost_advantage_target": 0.0, "anchor": ANCHOR}
    return weights | {"anchor_cost": ANCHOR if readings["cost_anchor"] == "kept" else 0.0}


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """Forgetting in the first four fifths of the steps, then convergence."""
    ordinary = backbone.noise_shapes(cfg, cfg.batch_size)
    policy = ordinary["policy"]
    shapes = ordinary | {"forget_policy": policy, "forget_baseline": (cfg.samples, *policy)}
    losses = {names: partial(on_keep, loss) for names, loss in backbone.LOSSES}
    forgetting = losses | {("actor",): partial(actor_loss, backbone)}
    convergence = losses | {CRITIC_NETWORKS: partial(anchored_critics_loss, backbone)}
    phases = tuple(tuple(part.items()) for part in (forgetting, convergence))
    switch, looks = round(FORGETTING * steps), tuple(inside(backbone, losses) for losses in phases)
    return Algorithm(phases, shapes, backbone.TARGETS, cfg, lambda step: int(step >= switch), looks)


def advantage(
    backbone: ModuleType, value: Any, nets: Nets, batch: Batch, action: Tensor, others: Tensor, cfg: Any
) -> Tensor:
    """A(s, a) = Q(s, a) - V(s): (B,), with Q the smallest member of an ensemble.

    value   backbone.q_reward or backbone.q_cost
    action  (B, A), where the gradient goes;  others (n, B, A), the policy's actions that V is the mean of
    """
    with torch.no_grad():
        baseline = value(nets, batch.observations, others).amin(0).mean(0)
    return value(nets, batch.observations, action).amin(0) - baseline


def forget_loss(reward_advantage: Tensor, cost_advantage: Tensor, scalars: Scalars) -> Tensor:
    """Eq. 28: mean of A_r + lambda_c softplus(target - A_c); advantages (B,) of the policy's actions on D_f."""
    cost_term = F.softplus(scalars["cost_advantage_target"] - cost_advantage)
    return (reward_advantage + scalars["lambda_c"] * cost_term).mean()


def actor_loss(backbone: ModuleType, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any) -> Report:
    """Eq. 29: the backbone's own actor loss on D_k plus beta_f times Eq. 28 on D_f."""
    ordinary = dict(backbone.LOSSES)[("actor",)]
    keep_loss, info, changed = ordinary(nets, scalars, batch.keep, noise, cfg)
    action = backbone.policy(nets, batch.forget.observations, noise["forget_policy"], cfg)
    with torch.no_grad():
        others = backbone.policy(nets, batch.forget.observations, noise["forget_baseline"], cfg)
    a_r, a_c = (
        advantage(backbone, value, nets, batch.forget, action, others, cfg)
        for value in (backbone.q_reward, backbone.q_cost)
    )
    loss = keep_loss + scalars["beta_f"] * forget_loss(a_r, a_c, scalars)
    return loss, info, changed


def anchored_critics_loss(
    backbone: ModuleType, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any
) -> Report:
    """The backbone's critic loss on D_k plus the anchor: squared errors to the corrupted agent's Bellman targets."""
    ordinary = dict(backbone.LOSSES)[CRITIC_NETWORKS]
    loss, info, changed = ordinary(nets, scalars, batch.keep, noise, cfg)
    with torch.no_grad():
        y_r, y_c = backbone.bellman_targets(original_nets(nets), batch.keep, noise["target"], cfg)
    keep = batch.keep
    anchor_r = td_loss(backbone.q_reward(nets, keep.observations, keep.actions), y_r)
    anchor_c = td_loss(backbone.q_cost(nets, keep.observations, keep.actions), y_c)
    return loss + scalars["anchor"] * anchor_r + scalars["anchor_cost"] * anchor_c, info, changed

"""Safe-RULE on the actor-critic backbones: Algorithm 2 of the paper, for BCQ-Lag, BEAR-Lag and CPQ.

Written against the backbone's value interface: ``bellman_targets``, ``q_reward``, ``q_cost``, ``policy``. What differs
between the variants (adaptive or fixed weight, reward-only, no critic unlearning, percentiles) are the coefficients in
``scalars``, so variants run side by side in one population; what the readings change is chosen in `algorithm`.

Where the paper is silent:
- A critic is an ensemble of E networks. Every member has its own keep and forget loss; the losses are summed over
  members, as the backbones sum their Bellman errors. The actor's losses and the gates take the smallest member, as the
  backbones' do.
- Adam starts cold (the paper repairs osrl-lib checkpoints, which hold no optimiser state), so a network whose losses
  all have coefficient zero does not move at all.
- The behaviour model (VAE) is not in Algorithm 2 and stays as it is, unless the reading vae = keep trains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from saferule.agents.networks import quantile, td_loss
from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Algorithm, Report
from saferule.data.batches import Pair
from saferule.paper import TABLE7
from saferule.unlearn.fine_tune import on_keep
from saferule.unlearn.inside import inside

PAIRED = True


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """The readings that change what is computed.

    Not the regulariser of a backbone that has none with a gradient (BCQ-Lag, CPQ), nor whether a VAE is trained that
    nothing looks at: BCQ-Lag acts with its own, BEAR-Lag's regulariser compares with it, CPQ needs it in training only.
    """
    names = ["reference", "gate", "forget_gate", "gap", "weight_update", "forget_actor"]
    names += ["regulariser"] * (backbone.regulariser is not None)
    regularised = backbone.regulariser is not None and readings["regulariser"] == "kept"
    return {name: readings[name] for name in names + ["vae"] * ("vae" in backbone.ACTING or regularised)}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """The scalars of the losses below, from Table 7 and the readings.

    dataset_reference is there under reference = dataset alone, and is set by `saferule.unlearn.start.prepare`;
    reward_reference under gap = reward alone, and is what the critics' step last compared with.
    """
    own = {"alpha_f": TABLE7.alpha_f, "percentile": int(readings["reward_percentile"]) / 100}
    if readings["reference"] == "dataset":
        own["dataset_reference"] = 0.0
    if readings["gap"] == "reward":
        own["reward_reference"] = 0.0
    return shared_coefficients(cfg, readings) | own


def shared_coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """Those that Safe-RULE has on COptiDICE, too."""
    return {
        "alpha_k": TABLE7.alpha_k,
        "kappa": cfg.cost_limit if readings["kappa"] == "literal" else cfg.q_limit,
        "sigma": TABLE7.sigma,
        "cost_weight": 1.0,
        "beta_f": TABLE7.beta_initial,
        "beta_min": TABLE7.beta_min,
        "beta_max": TABLE7.beta_max,
        "tau_beta": TABLE7.tau_beta,
    }


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """One Safe-RULE step: critics (lines 5-11), then actor and weight (lines 12-16), then targets (line 17).

    Under vae = keep the VAE, where it is looked at, is trained first, on the keep batch; under regulariser = kept the
    backbone's regulariser, if it has one, is part of the keep actor loss.
    """
    ordinary = backbone.noise_shapes(cfg, cfg.batch_size)
    policy = ordinary["policy"]
    shapes = {"target": ordinary["target"], "keep_policy": policy, "forget_policy": policy}
    chosen = options(backbone, readings)
    regularised = chosen.get("regulariser") == "kept"
    by_reward = readings["gap"] == "reward"
    critics = partial(critics_loss, backbone, over_dataset=readings["reference"] == "dataset", remembers=by_reward)
    actor = partial(
        actor_loss,
        backbone,
        gate_at_data=readings["gate"] == "data",
        gated=readings["forget_gate"] == "unsafe",
        gap=readings["gap"],
        repelling=readings["forget_actor"] == "repelling",
        weight_first=readings["weight_update"] == "before",
        regularised=regularised,
    )
    losses: tuple = ((("critic", "cost_critic"), critics), (("actor",), actor))
    if chosen.get("vae") == "keep":
        losses = ((("vae",), partial(on_keep, dict(backbone.LOSSES)[("vae",)])), *losses)
        shapes |= {"vae": ordinary["vae"]}
    if regularised:
        shapes |= {name: ordinary[name] for name in ("behaviour", "match")}
    return Algorithm((losses,), shapes, backbone.TARGETS, cfg, looks=(inside(backbone, losses),))


def suppress_reward(q_r: Tensor, reference: Tensor) -> Tensor:
    """Eq. 5: mean over the batch of softplus(Q_r - reference), for each member: (E, B) -> (E,)."""
    return F.softplus(q_r - reference).mean(-1)


def raise_cost(q_c: Tensor, target: Tensor) -> Tensor:
    """Eq. 6 and the cost term of Eq. 10: mean over the batch of softplus(kappa + sigma - Q_c): (..., B) -> (...)."""
    return F.softplus(target - q_c).mean(-1)


def critics_loss(
    backbone: ModuleType,
    nets: Nets,
    scalars: Scalars,
    batch: Pair,
    noise: Noise,
    cfg: Any,
    *,
    over_dataset: bool = False,
    remembers: bool = False,
) -> Report:
    """Eq. 7 and 8: Bellman regression on the keep batch, suppression on the forget batch.

    scalars  alpha_k, alpha_f (weights of keeping and forgetting), cost_weight (1, or 0 for reward-only),
             percentile (of y_r on the keep batch, 0..1), kappa, sigma
    over_dataset  the reward reference is the scalar dataset_reference, the percentile of y_r over D_k
    remembers     the scalar reward_reference becomes the reference of this step
    """
    keep, forget = batch
    with torch.no_grad():
        y_r, y_c = backbone.bellman_targets(nets, keep, noise["target"], cfg)  # line 5
        reference = scalars["dataset_reference"] if over_dataset else quantile(y_r, scalars["percentile"])  # line 7
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
    return loss_r + loss_c, info, {"reward_reference": reference} if remembers else {}


def keep_actor_loss(q_r: Tensor, q_c: Tensor, kappa: Tensor, gate: Tensor) -> Tensor:
    """Eq. 9: -mean(I[Q_c <= kappa] Q_r) + mean softplus(Q_c - kappa); all inputs (B,), Q at the policy's actions.

    gate  the Q_c that the indicator looks at
    """
    return -((gate <= kappa) * q_r).mean() + F.softplus(q_c - kappa).mean()


def forget_actor_loss(
    q_r: Tensor,
    q_c: Tensor,
    kappa: Tensor,
    sigma: Tensor,
    cost_weight: Tensor,
    gate: Tensor,
    repelling: bool = False,
    gated: bool = True,
) -> Tensor:
    """Eq. 10: mean(I[Q_c >= kappa] Q_r) + mean softplus(kappa + sigma - Q_c); all inputs (B,), Q at the policy's
    actions.

    As printed the second term moves the policy towards actions that its critic calls unsafe. In the repelling reading
    it is softplus(Q_c - kappa): the policy moves away from them. Not gated, Q_r is lowered in every state of D_f.
    """
    cost_term = F.softplus(q_c - kappa).mean() if repelling else raise_cost(q_c, kappa + sigma)
    return ((gate >= kappa) * q_r if gated else q_r).mean() + cost_weight * cost_term


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
    gate_at_data: bool = False,
    gated: bool = True,
    gap: str = "policy",
    repelling: bool = False,
    weight_first: bool = True,
    regularised: bool = False,
) -> Report:
    """Eq. 11: keep loss plus beta_f times forget loss; moves beta_f by the forgetting gap (lines 12-16).

    scalars  kappa, sigma, cost_weight, beta_f and its bounds and step
    gate_at_data  the indicators look at the data's action, not at pi(s)
    gated         the indicator of Eq. 10 is there
    gap           what moves beta_f: "policy", kappa + sigma - Q_c(s, pi(s)) on D_f (line 14); "data", the same at the
                  poisoned actions; "nearness", Q_c(s, pi(s)) - kappa, which falls as a policy that is repelled leaves;
                  "reward", Q_r(s, pi(s)) - the reward reference
    repelling     the sign of Eq. 10's cost term, `forget_actor_loss`
    weight_first  beta_f moves before the actor's step
    regularised   the backbone's own regulariser on the keep batch is added to Eq. 9
    """
    keep, forget = batch
    kappa, sigma = scalars["kappa"], scalars["sigma"]

    def values(part: Any, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        actions = backbone.policy(nets, part.observations, draws, cfg)
        q_r = backbone.q_reward(nets, part.observations, actions).amin(0)
        q_c = backbone.q_cost(nets, part.observations, actions).amin(0)
        at_data = gate_at_data or gap == "data"
        return q_r, q_c, backbone.q_cost(nets, part.observations, part.actions).amin(0) if at_data else q_c

    q_r, q_c, at_data = values(keep, noise["keep_policy"])
    keep_gate = (at_data if gate_at_data else q_c).detach()
    keep_loss = keep_actor_loss(q_r, q_c, kappa, keep_gate)  # line 12
    q_r, q_c, at_data = values(forget, noise["forget_policy"])
    forget_gate = (at_data if gate_at_data else q_c).detach()
    forget_loss = forget_actor_loss(
        q_r, q_c, kappa, sigma, scalars["cost_weight"], forget_gate, repelling, gated
    )  # line 13
    gaps = {
        "policy": lambda: kappa + sigma - q_c.mean(),  # line 14
        "data": lambda: kappa + sigma - at_data.mean(),
        "nearness": lambda: q_c.mean() - kappa,
        "reward": lambda: q_r.mean() - scalars["reward_reference"],
    }
    distance = gaps[gap]().detach()
    beta_next = next_weight(scalars["beta_f"], distance, scalars)  # line 15
    beta_f = beta_next if weight_first else scalars["beta_f"]
    info = {
        "forget_actor_loss": forget_loss,
        "gap": distance,
        "beta_f": beta_f,
        "forget_q_cost_policy": q_c.mean(),
        "keep_gates_open": (keep_gate <= kappa).to(keep_loss.dtype).mean(),
        "forget_gates_open": (forget_gate >= kappa).to(keep_loss.dtype).mean(),
    }
    moved = {"beta_f": beta_next}
    if regularised:
        ties, reported, changed = backbone.regulariser(
            nets, scalars, keep, noise | {"policy": noise["keep_policy"]}, cfg
        )
        keep_loss, info, moved = keep_loss + ties, info | reported, moved | changed
    return keep_loss + beta_f * forget_loss, {"actor_loss": keep_loss} | info, moved  # line 16, Eq. 11

"""CPQ: constraints-penalised Q-learning.

Paper: Xu et al. 2022. Reference: osrl-lib 0.1.0, class CPQ.

Deliberate differences from osrl-lib (none changes what is learned in expectation):
- The reward and the cost target share one draw of the next action; osrl-lib draws it afresh for each.
- Both critics are updated from one backward pass. Neither target depends on the other critic's step.
- The VAE decodes only where the decoded action is used.
- Actor and critics have the same widths (a_hidden_sizes = c_hidden_sizes), cost critics are as many as reward critics
  (num_qc = num_q), and costs are not scaled (cost_scale = 1).
- Actions are taken to lie in [-1, 1], as they do in all four tasks (osrl-lib's max_action = 1).

Kept as it is in osrl-lib, because it is what the paper's authors ran: the out-of-distribution term is computed without
gradient from the target critic, so it moves only ``log_alpha`` and no network; its actions are sampled before the tanh;
the cost target is not stopped at episode ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saferule.agents import networks as nn
from saferule.agents import parts
from saferule.agents.parts import TARGETS, Nets, Noise, Scalars, q_cost, q_reward
from saferule.agents.parts import squashed_act as act
from saferule.agents.parts import squashed_policy as policy
from saferule.data.batches import Batch

__all__ = ["TARGETS", "act", "policy", "q_cost", "q_reward"]  # shared parts of the interface
NAME, LABEL = "cpq", "CPQ"
CRITICS = True
ACTING = {"actor": None}
DRAWS = False
statistics = regulariser = None
LOG_ALPHA_MIN, LOG_ALPHA_MAX = -5.0, 5.0


@dataclass(frozen=True)
class Config(parts.ActorCriticConfig):
    """osrl-lib's CPQTrainConfig."""

    qc_scalar: float = 1.5  # threshold of the out-of-distribution term, in units of q_limit
    actor_lr: float = 1e-4
    alpha_lr: float = 1e-4


def init(cfg: Config, generator: torch.Generator) -> tuple[Nets, Scalars]:
    """Fresh networks and log alpha of one agent."""
    pair = cfg.observation_dim + cfg.action_dim
    nets = {
        "actor": nn.init_mlp((cfg.observation_dim, *cfg.hidden, 2 * cfg.action_dim), generator),
        "critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=cfg.num_q),
        "cost_critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=cfg.num_q),
        "vae": nn.init_vae(cfg.observation_dim, cfg.action_dim, cfg.vae_hidden, cfg.latent_dim, generator),
    }
    return nets, {"log_alpha": torch.zeros(())}


def noise_shapes(cfg: Config, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Standard normal draws of one step."""
    action = (batch_size, cfg.action_dim)
    return {
        "vae": (batch_size, cfg.latent_dim),
        "target": action,
        "ood": (cfg.samples, *action),
        "policy": action,
    }


def bellman_targets(nets: Nets, batch: Batch, noise: Tensor, cfg: Config) -> tuple[Tensor, Tensor]:
    """Targets of both critics with the constraint-penalised operator (CPQ.critic_loss, CPQ.cost_critic_loss).

    noise  (B, A)
    Returns y_r, y_c: (B,). The reward is not backed up from next actions that the cost critic calls unsafe.
    """
    observations = batch.next_observations
    actions = policy(nets, observations, noise, cfg)
    q_r = nn.q_values(nets["critic_target"], observations, actions).amin(0)
    q_c = nn.q_values(nets["cost_critic_target"], observations, actions).amin(0)
    y_r = batch.rewards + cfg.gamma * (1 - batch.done) * (q_c <= cfg.q_limit) * q_r
    y_c = batch.costs + cfg.gamma * q_c
    return y_r, y_c


def ood_cost(nets: Nets, batch: Batch, noise: Tensor, cfg: Config) -> Tensor:
    """Mean target cost of sampled actions whose latent is among the quarter farthest from the prior (scalar).

    noise  (n, B, A)
    """
    mean, std = nn.gaussian(nets["actor"], batch.observations)
    actions = mean + std * noise  # before the tanh, as in osrl-lib
    q_c = nn.q_values(nets["cost_critic_target"], batch.observations, actions).amin(0)
    kl = nn.latent_kl(*nn.vae_encode(nets["vae"], batch.observations, actions)).mean(-1)  # (n, B)
    far = kl >= nn.quantile(kl.flatten(), 0.75)
    return (far * q_c).mean()


def critics_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """Squared Bellman errors of both critics; moves log alpha by the out-of-distribution cost."""
    threshold = cfg.qc_scalar * cfg.q_limit
    with torch.no_grad():
        y_r, y_c = bellman_targets(nets, batch, noise["target"], cfg)
        excess = ood_cost(nets, batch, noise["ood"], cfg) - threshold
        alpha = scalars["log_alpha"].exp()
        log_alpha = (scalars["log_alpha"] - cfg.alpha_lr * alpha * excess).clamp(LOG_ALPHA_MIN, LOG_ALPHA_MAX)
    reward_loss = nn.td_loss(q_reward(nets, batch.observations, batch.actions), y_r)
    cost_loss = nn.td_loss(q_cost(nets, batch.observations, batch.actions), y_c) - alpha * excess
    info = {"critic_loss": reward_loss, "cost_critic_loss": cost_loss, "alpha": log_alpha.exp()}
    return reward_loss + cost_loss, info, {"log_alpha": log_alpha}


def actor_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """-Q_r at the policy's action where the cost critic calls that action safe (CPQ.actor_loss)."""
    actions = policy(nets, batch.observations, noise["policy"], cfg)
    q_r = q_reward(nets, batch.observations, actions).amin(0)
    q_c = q_cost(nets, batch.observations, actions).amin(0)
    safe = q_c <= cfg.q_limit
    loss = -(safe * q_r).mean()
    return loss, {"actor_loss": loss, "safe": safe.to(loss.dtype).mean(), "q_cost": q_c.mean()}, {}


LOSSES = ((("vae",), parts.behaviour_loss), (("critic", "cost_critic"), critics_loss), (("actor",), actor_loss))

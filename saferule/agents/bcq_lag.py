"""BCQ-Lag: batch-constrained Q-learning with a PID Lagrange multiplier.

Paper: Fujimoto et al. 2019 (BCQ); Stooke et al. 2020 (PID multiplier). Reference: osrl-lib 0.1.0, class BCQL.

Deliberate differences from osrl-lib (none changes what is learned in expectation):
- The reward and the cost target share one draw of n candidate actions; osrl-lib decodes n fresh candidates for each.
- Both critics are updated from one backward pass. Neither target depends on the other critic's step.
- The four networks of a double ensemble (2 x num_q) are one stacked ensemble.
- Actor and critics have the same widths (a_hidden_sizes = c_hidden_sizes), cost critics are as many as reward critics
  (num_qc = num_q), and costs are not scaled (cost_scale = 1).
- Actions are taken to lie in [-1, 1], as they do in all four tasks (osrl-lib's max_action = 1).
- Evaluation is deterministic: the latent is at its mode 0. osrl-lib draws it afresh at every step (`act` with noise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from saferule.agents import networks as nn
from saferule.agents import parts
from saferule.agents.parts import TARGETS, Nets, Noise, Scalars, q_cost, q_reward
from saferule.data.batches import Batch

__all__ = ["TARGETS", "q_cost", "q_reward"]  # shared parts of the interface
NAME, LABEL = "bcq-lag", "BCQ-Lag"
CRITICS = True
ACTING = {"actor": None, "vae": "d_"}
DRAWS = True
statistics = regulariser = None


@dataclass(frozen=True)
class Config(parts.ActorCriticConfig):
    """osrl-lib's BCQLTrainConfig."""

    phi: float = 0.05  # largest perturbation of the VAE's action
    lmbda: float = 0.75  # weight of the smaller of two critics in the target
    gains: tuple[float, float, float] = (0.1, 0.003, 0.001)  # PID


def init(cfg: Config, generator: torch.Generator) -> tuple[Nets, Scalars]:
    """Fresh networks and multiplier of one agent."""
    pair = cfg.observation_dim + cfg.action_dim
    nets = {
        "actor": nn.init_mlp((pair, *cfg.hidden, cfg.action_dim), generator),
        "critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=2 * cfg.num_q),
        "cost_critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=2 * cfg.num_q),
        "vae": nn.init_vae(cfg.observation_dim, cfg.action_dim, cfg.vae_hidden, cfg.latent_dim, generator),
    }
    return nets, parts.init_pid()


def noise_shapes(cfg: Config, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Standard normal draws of one step."""
    latent = (batch_size, cfg.latent_dim)
    return {"vae": latent, "target": (cfg.samples, *latent), "policy": latent}


def perturb(actor: nn.Network, observations: Tensor, actions: Tensor, phi: float) -> Tensor:
    """The VAE's actions, moved by at most ``phi`` and clipped to the box (osrl-lib MLPGaussianPerturbationActor)."""
    shift = nn.mlp(actor, observations, actions, activation=torch.tanh_).tanh()
    return (actions + phi * shift).clamp(-1.0, 1.0)


def policy(nets: Nets, observations: Tensor, noise: Tensor, cfg: Config) -> Tensor:
    """pi(s): (B, A), or (n, B, A) for noise (n, B, L). Differentiable in the actor, not in the VAE."""
    with torch.no_grad():
        candidates = nn.vae_decode(nets["vae"], observations, nn.clip_latent(noise))
    return perturb(nets["actor"], observations, candidates, cfg.phi)


def act(nets: Nets, observations: Tensor, noise: Tensor | None, cfg: Config) -> Tensor:
    """Actions (B, A) in the environment; deterministic (latent 0) when noise is None."""
    if noise is None:
        noise = observations.new_zeros(*observations.shape[:-1], cfg.latent_dim)
    return policy(nets, observations, noise, cfg)


def bellman_targets(nets: Nets, batch: Batch, noise: Tensor, cfg: Config) -> tuple[Tensor, Tensor]:
    """Targets of both critics: the best of n candidate actions (BCQL.critic_loss, BCQL.cost_critic_loss).

    noise  (n, B, L)
    Returns y_r, y_c: (B,). As in osrl-lib the cost target is not stopped at episode ends and takes the largest
    candidate cost.
    """
    target = {"actor": nets["actor_target"], "vae": nets["vae"]}
    observations = batch.next_observations
    actions = policy(target, observations, noise, cfg)
    return parts.double_targets(nets, batch, actions, cfg)


def critics_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """Squared Bellman errors of the reward and the cost critics."""
    with torch.no_grad():
        y_r, y_c = bellman_targets(nets, batch, noise["target"], cfg)
    losses = parts.bellman_losses(nets, batch, y_r, y_c)
    return sum(losses.values()), losses, {}


def actor_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """-Q_r + multiplier * (Q_c - limit) at the policy's action; moves the multiplier (BCQL.actor_loss)."""
    actions = policy(nets, batch.observations, noise["policy"], cfg)
    q_r = q_reward(nets, batch.observations, actions).amin(0)
    q_c = q_cost(nets, batch.observations, actions).amin(0)
    multiplier, pid = parts.pid_multiplier(scalars, q_c, cfg.q_limit, cfg.gains)
    loss = -q_r.mean() + multiplier * (q_c - cfg.q_limit).mean()
    return loss, {"actor_loss": loss, "multiplier": multiplier, "q_cost": q_c.mean()}, pid


LOSSES = ((("vae",), parts.behaviour_loss), (("critic", "cost_critic"), critics_loss), (("actor",), actor_loss))

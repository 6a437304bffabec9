"""What the backbones share: settings, the value interface of the critics, the VAE's loss, the PID multiplier."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from saferule.agents import networks as nn
from saferule.data.batches import Batch
from saferule.limits import check_number
from saferule.paper import TABLE7

Nets = dict[str, nn.Network]
Scalars = dict[str, Tensor]  # of one agent: multipliers and coefficients (), statistics of its data (S,) or (A,)
Noise = dict[str, Tensor]

ORIGINAL = "original_"  # prefix of frozen copies of an agent's networks, kept beside those that change

# Target networks follow these.
TARGETS = {"actor_target": "actor", "critic_target": "critic", "cost_critic_target": "cost_critic"}


@dataclass(frozen=True)
class BaseConfig:
    """Settings common to all backbones, with osrl-lib's values; the first three come from the task."""

    observation_dim: int
    action_dim: int
    episode_len: int  # steps; horizon of the task
    cost_limit: float = TABLE7.kappa  # cost per episode
    hidden: tuple[int, ...] = (256, 256)  # actor and critics
    gamma: float = 0.99
    reward_scale: float = 0.1
    batch_size: int = 512

    def __post_init__(self) -> None:
        """SettingsError for a number that cannot be meant."""
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, bool):
                    check_number(field.name, number)

    @property
    def q_limit(self) -> float:
        """The cost limit as a level of the discounted cost critic."""
        return discounted_limit(self.cost_limit, self.gamma, self.episode_len)


def discounted_limit(limit: float, gamma: float, horizon: int) -> float:
    """An episode cost limit as a level of the discounted cost critic: limit * (1 - gamma^T) / (1 - gamma) / T."""
    return limit * (1 - gamma**horizon) / (1 - gamma) / horizon


@dataclass(frozen=True)
class ActorCriticConfig(BaseConfig):
    """Settings of the backbones with a VAE and two kinds of critics."""

    vae_hidden: int = 400
    samples: int = 10  # n sampled actions per state
    tau: float = 0.005  # step of the targets towards the networks
    beta: float = 0.5  # weight of the KL divergence of the VAE
    num_q: int = 2  # networks per critic, or per half of a double critic
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    vae_lr: float = 1e-3

    @property
    def latent_dim(self) -> int:
        """Width of the VAE's latent: twice the action's."""
        return 2 * self.action_dim

    @property
    def learning_rates(self) -> dict[str, float]:
        """Adam's learning rate of each trained network."""
        critics = dict.fromkeys(("critic", "cost_critic"), self.critic_lr)
        return {"vae": self.vae_lr, "actor": self.actor_lr} | critics


def q_reward(nets: Nets, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_r of every ensemble member: (E, B)."""
    return nn.q_values(nets["critic"], observations, actions)


def q_cost(nets: Nets, observations: Tensor, actions: Tensor) -> Tensor:
    """Q_c of every ensemble member: (E, B)."""
    return nn.q_values(nets["cost_critic"], observations, actions)


def behaviour_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: ActorCriticConfig):
    """The VAE's loss (vae_loss of osrl-lib's BCQL, BEARL and CPQ). noise["vae"]: (B, L)."""
    loss = nn.vae_loss(nets["vae"], batch.observations, batch.actions, noise["vae"], cfg.beta)
    return loss, {"vae_loss": loss}, {}


def originals(nets: Nets) -> Nets:
    """Frozen copies of an agent's networks, under prefixed names."""
    return {ORIGINAL + name: {k: v.detach().clone() for k, v in net.items()} for name, net in nets.items()}


def original_nets(nets: Nets) -> Nets:
    """The copies that `originals` made, under their own names."""
    return {name.removeprefix(ORIGINAL): net for name, net in nets.items() if name.startswith(ORIGINAL)}


def squashed_policy(nets: Nets, observations: Tensor, noise: Tensor, cfg: BaseConfig) -> Tensor:
    """pi(s): (B, A), or (n, B, A) for noise (n, B, A); reparametrised samples of the actor's squashed Gaussian."""
    mean, std = nn.gaussian(nets["actor"], observations)
    return (mean + std * noise).tanh()


def squashed_act(nets: Nets, observations: Tensor, noise: Tensor | None, cfg: BaseConfig) -> Tensor:
    """Actions (B, A) in the environment; deterministic (the mean) when noise is None."""
    if noise is None:
        return nn.gaussian(nets["actor"], observations)[0].tanh()
    return squashed_policy(nets, observations, noise, cfg)


def double_targets(nets: Nets, batch: Batch, actions: Tensor, cfg: Any) -> tuple[Tensor, Tensor]:
    """Targets y_r, y_c (B,) of double critics: the best of n candidate actions (n, B, A) at the next states.

    As in osrl-lib the cost target is not stopped at episode ends and takes the largest candidate cost.
    """
    q_r, q_c = (
        nn.best_of_candidates(nn.q_values(nets[name], batch.next_observations, actions), cfg.lmbda)
        for name in ("critic_target", "cost_critic_target")
    )
    return batch.rewards + cfg.gamma * (1 - batch.done) * q_r, batch.costs + cfg.gamma * q_c


def bellman_losses(nets: Nets, batch: Batch, y_r: Tensor, y_c: Tensor) -> dict[str, Tensor]:
    """Squared errors of the reward and of the cost critics to targets (B,), as they are logged."""
    return {
        "critic_loss": nn.td_loss(q_reward(nets, batch.observations, batch.actions), y_r),
        "cost_critic_loss": nn.td_loss(q_cost(nets, batch.observations, batch.actions), y_c),
    }


# The PID multiplier of BCQ-Lag and BEAR-Lag (Stooke et al. 2020; osrl-lib LagrangianPIDController)


def init_pid() -> Scalars:
    """The controller's state: last error and integral, both scalars."""
    return {"pid_error": torch.zeros(()), "pid_integral": torch.zeros(())}


def pid_multiplier(
    scalars: Scalars, q_cost: Tensor, limit: float, gains: tuple[float, float, float]
) -> tuple[Tensor, Scalars]:
    """The Lagrange multiplier for the cost values (B,) of the policy's actions, and the controller's next state."""
    kp, ki, kd = gains
    error = (q_cost.detach() - limit).mean()
    difference = torch.relu(error - scalars["pid_error"])
    integral = torch.relu(scalars["pid_integral"] + error)
    multiplier = torch.relu(kp * torch.relu(error) + ki * integral + kd * difference)
    return multiplier, {"pid_error": error, "pid_integral": integral}

"""BEAR-Lag: bootstrapping error accumulation reduction with a PID Lagrange multiplier.

Paper: Kumar et al. 2019 (BEAR); Stooke et al. 2020 (PID multiplier). Reference: osrl-lib 0.1.0, class BEARL.

Deliberate differences from osrl-lib (none changes what is learned in expectation):
- The reward and the cost target share one draw of n next actions; osrl-lib draws n fresh ones for each.
- Both critics are updated from one backward pass. Neither target depends on the other critic's step.
- The actor sees each state once and samples n actions from its Gaussian; osrl-lib repeats the state n times.
- The four networks of a double ensemble (2 x num_q) are one stacked ensemble.
- The discrepancy is summed from exp(-d) - 1, in which its ones cancel before rounding. osrl-lib subtracts numbers close
  to 1: with its wide kernel that costs four of float32's seven digits and dominates the actor's gradient error.
- Actor and critics have the same widths (a_hidden_sizes = c_hidden_sizes), cost critics are as many as reward critics
  (num_qc = num_q), and costs are not scaled (cost_scale = 1).
- Actions are taken to lie in [-1, 1], as they do in all four tasks (osrl-lib's max_action = 1).

Kept as it is in osrl-lib: both sides of the discrepancy are actions before the tanh; the critics see only the first of
the actor's n samples; log alpha moves by a plain gradient step, not Adam; the cost target is not stopped at episode
ends.
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
from saferule.errors import SettingsError

__all__ = ["TARGETS", "act", "policy", "q_cost", "q_reward"]  # shared parts of the interface
NAME, LABEL = "bear-lag", "BEAR-Lag"
CRITICS = True
ACTING = {"actor": None}
DRAWS = False
statistics = None
LOG_ALPHA_MIN, LOG_ALPHA_MAX = -5.0, 5.0
KERNELS = ("gaussian", "laplacian")


@dataclass(frozen=True)
class Config(parts.ActorCriticConfig):
    """osrl-lib's BEARLTrainConfig; alpha_lr is the default of BEARLTrainer, which the config does not set."""

    lmbda: float = 0.75  # weight of the smaller of two critics in the target
    gains: tuple[float, float, float] = (0.1, 0.003, 0.001)  # PID
    kernel: str = "gaussian"  # or "laplacian"
    mmd_sigma: float = 50.0  # width of the kernel
    mmd_samples: int = 10  # actions per state of the actor and of the behaviour model (num_samples_mmd_match)
    target_mmd_thresh: float = 0.05  # discrepancy that the actor may have
    start_update_policy_step: int = 0  # before this step the actor only imitates
    alpha_lr: float = 1e-3

    def __post_init__(self) -> None:
        """SettingsError for an unknown kernel, too."""
        super().__post_init__()
        if self.kernel not in KERNELS:
            raise SettingsError(f"unknown kernel {self.kernel!r} of bear-lag: choose one of {', '.join(KERNELS)}")


def init(cfg: Config, generator: torch.Generator) -> tuple[Nets, Scalars]:
    """Fresh networks, multiplier, log alpha and step counter of one agent."""
    pair = cfg.observation_dim + cfg.action_dim
    nets = {
        "actor": nn.init_mlp((cfg.observation_dim, *cfg.hidden, 2 * cfg.action_dim), generator),
        "critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=2 * cfg.num_q),
        "cost_critic": nn.init_mlp((pair, *cfg.hidden, 1), generator, ensemble=2 * cfg.num_q),
        "vae": nn.init_vae(cfg.observation_dim, cfg.action_dim, cfg.vae_hidden, cfg.latent_dim, generator),
    }
    return nets, parts.init_pid() | {"log_alpha": torch.zeros(()), "n_train_steps": torch.zeros((), dtype=torch.long)}


def noise_shapes(cfg: Config, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Standard normal draws of one step; "policy" is the actor's first sample, "match" are the others."""
    action = (batch_size, cfg.action_dim)
    return {
        "vae": (batch_size, cfg.latent_dim),
        "target": (cfg.samples, *action),
        "behaviour": (cfg.mmd_samples, batch_size, cfg.latent_dim),
        "policy": action,
        "match": (cfg.mmd_samples - 1, *action),
    }


def bellman_targets(nets: Nets, batch: Batch, noise: Tensor, cfg: Config) -> tuple[Tensor, Tensor]:
    """Targets of both critics: the best of n actions of the target actor (BEARL.critic_loss, BEARL.cost_critic_loss).

    noise  (n, B, A)
    Returns y_r, y_c: (B,). As in osrl-lib the cost target is not stopped at episode ends and takes the largest
    candidate cost.
    """
    observations = batch.next_observations
    actions = policy({"actor": nets["actor_target"]}, observations, noise, cfg)
    return parts.double_targets(nets, batch, actions, cfg)


def critics_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """Squared Bellman errors of the reward and the cost critics."""
    with torch.no_grad():
        y_r, y_c = bellman_targets(nets, batch, noise["target"], cfg)
    losses = parts.bellman_losses(nets, batch, y_r, y_c)
    return sum(losses.values()), losses, {}


def discrepancy(x: Tensor, y: Tensor, cfg: Config) -> Tensor:
    """Maximum mean discrepancy of samples x (n, B, A) and y (m, B, A) of B distributions: (B,) (BEARL.mmd_loss_*)."""

    def likeness(a: Tensor, b: Tensor) -> Tensor:  # mean of the kernel, less one
        difference = a.unsqueeze(1) - b  # (n, m, B, A)
        distance = difference.pow(2) if cfg.kernel == "gaussian" else difference.abs()
        return torch.expm1(-distance.sum(-1) / (2.0 * cfg.mmd_sigma)).mean((0, 1))

    return (likeness(x, x) + likeness(y, y) - 2.0 * likeness(x, y) + 1e-6).sqrt()


def behaviour_excess(nets: Nets, observations: Tensor, noise: Noise, cfg: Config) -> tuple[Tensor, Tensor]:
    """By how much the discrepancy to the behaviour model exceeds the threshold, (B,), and the actor's samples.

    noise  "behaviour", "policy" and "match" of `noise_shapes`
    The samples (n, B, A) are before the tanh; the first is that of "policy".
    """
    with torch.no_grad():
        behaviour = nn.vae_decode_raw(nets["vae"], observations, nn.clip_latent(noise["behaviour"]))
    mean, std = nn.gaussian(nets["actor"], observations)
    raw = mean + std * torch.cat((noise["policy"].unsqueeze(0), noise["match"]))
    return discrepancy(behaviour, raw, cfg) - cfg.target_mmd_thresh, raw


def next_log_alpha(log_alpha: Tensor, excess: Tensor, cfg: Config) -> Tensor:
    """One ascent step of log alpha along alpha * excess, by a plain gradient step as in osrl-lib."""
    moved = log_alpha + cfg.alpha_lr * log_alpha.exp() * excess.detach().mean()
    return moved.clamp(LOG_ALPHA_MIN, LOG_ALPHA_MAX)


def regulariser(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """alpha * (discrepancy - threshold), the part of `actor_loss` that ties the actor to the data; moves log alpha."""
    excess, _ = behaviour_excess(nets, batch.observations, noise, cfg)
    log_alpha = next_log_alpha(scalars["log_alpha"], excess, cfg)
    info = {"mmd": excess.mean() + cfg.target_mmd_thresh, "alpha": log_alpha.exp()}
    return scalars["log_alpha"].exp() * excess.mean(), info, {"log_alpha": log_alpha}


def actor_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """-Q_r + alpha * (discrepancy - threshold) + multiplier * (Q_c - limit) (BEARL.actor_loss).

    Moves the multiplier and log alpha. During the first `start_update_policy_step` steps -Q_r is left out.
    """
    excess, raw = behaviour_excess(nets, batch.observations, noise, cfg)
    actions = raw[0].tanh()
    q_r = q_reward(nets, batch.observations, actions).amin(0)
    q_c = q_cost(nets, batch.observations, actions).amin(0)
    multiplier, pid = parts.pid_multiplier(scalars, q_c, cfg.q_limit, cfg.gains)
    alpha = scalars["log_alpha"].exp()
    improving = scalars["n_train_steps"] >= cfg.start_update_policy_step
    loss = (alpha * excess - improving * q_r).mean() + multiplier * (q_c - cfg.q_limit).mean()
    log_alpha = next_log_alpha(scalars["log_alpha"], excess, cfg)
    info = {
        "actor_loss": loss,
        "multiplier": multiplier,
        "q_cost": q_c.mean(),
        "mmd": excess.mean() + cfg.target_mmd_thresh,
        "alpha": log_alpha.exp(),
    }
    return loss, info, pid | {"log_alpha": log_alpha, "n_train_steps": scalars["n_train_steps"] + 1}


LOSSES = ((("vae",), parts.behaviour_loss), (("critic", "cost_critic"), critics_loss), (("actor",), actor_loss))

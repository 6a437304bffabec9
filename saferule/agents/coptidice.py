"""COptiDICE: constrained policy optimisation by stationary distribution correction estimation.

Paper: Lee et al. 2022. Reference: osrl-lib 0.1.0, class COptiDICE.

Deliberate differences from osrl-lib (none changes what is learned):
- The losses of nu, chi, tau and lambda are summed and take one backward pass: each reaches only its own parameters and
  none is computed from what another's step changes.
- A state and its next state go through nu, and through chi, in one pass.
- Actor, nu and chi have the same widths (a_hidden_sizes = c_hidden_sizes) and costs are not scaled (cost_scale = 1).
- The upper bound on the cost is always estimated: cost_ub_epsilon = 0, which leaves chi and tau out, is not offered.

Kept as it is in osrl-lib: the actor's step takes w from the updated nu but from the lambda before its step; the actor
maximises the likelihood of the data's actions under the Gaussian before the tanh, yet acts through the tanh; w is not
normalised.

There are no target networks and no behaviour model. tau and lambda are networks of one parameter, so that each has its
Adam; their values are the softplus of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from saferule.agents import networks as nn
from saferule.agents import parts
from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.parts import squashed_act as act
from saferule.agents.parts import squashed_policy as policy
from saferule.data.batches import Batch
from saferule.errors import SettingsError

__all__ = ["act", "policy"]  # of the squashed Gaussian, part of this backbone's interface
NAME, LABEL = "coptidice", "COptiDICE"
CRITICS = False
ACTING = {"actor": None}
DRAWS = False
regulariser = None
TARGETS: dict[str, str] = {}
SMOOTHING = 0.1  # noise on the actor's observations and actions, in units of the data's standard deviation

# f and the inverse of its derivative, by the divergence's name (osrl-lib get_f_div_fn).
DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "chi2": (lambda x: 0.5 * (x - 1) ** 2, lambda y: y + 1),
    "softchi": (
        lambda x: torch.where(x < 1, x * (torch.log(x + 1e-10) - 1) + 1, 0.5 * (x - 1) ** 2),
        lambda y: torch.where(y < 0, torch.exp(y.clamp(max=0.0)), y + 1),
    ),
    "kl": (lambda x: x * torch.log(x + 1e-10), lambda y: torch.exp(y - 1)),
}


@dataclass(frozen=True)
class Config(parts.BaseConfig):
    """osrl-lib's COptiDICETrainConfig."""

    f_type: str = "softchi"
    alpha: float = 0.5  # weight of the divergence from the data's distribution
    cost_ub_epsilon: float = 0.01  # KL radius of the cost's upper bound
    num_nu: int = 2
    num_chi: int = 2
    actor_lr: float = 1e-4
    critic_lr: float = 1e-4  # nu and chi
    scalar_lr: float = 1e-4  # tau and lambda

    def __post_init__(self) -> None:
        """SettingsError for an unknown divergence, too."""
        super().__post_init__()
        if self.f_type not in DIVERGENCES:
            raise SettingsError(f"unknown f_type {self.f_type!r} of coptidice: choose one of {', '.join(DIVERGENCES)}")

    @property
    def learning_rates(self) -> dict[str, float]:
        """Adam's learning rate of each trained network."""
        values = dict.fromkeys(("nu", "chi"), self.critic_lr) | dict.fromkeys(("tau", "lmbda"), self.scalar_lr)
        return values | {"actor": self.actor_lr}


def init(cfg: Config, generator: torch.Generator) -> tuple[Nets, Scalars]:
    """Fresh networks of one agent, and scalars as if every episode lasted to the horizon and no noise smoothed the
    data, until `statistics` of the agent's data replace them.
    """
    state = cfg.observation_dim
    nets = {
        "actor": nn.init_mlp((state, *cfg.hidden, 2 * cfg.action_dim), generator),
        "nu": nn.init_mlp((state, *cfg.hidden, 1), generator, ensemble=cfg.num_nu),
        "chi": nn.init_mlp((state, *cfg.hidden, 1), generator, ensemble=cfg.num_chi),
        "tau": {"raw": torch.ones(1)},
        "lmbda": {"raw": torch.ones(1)},
    }
    scalars = {
        "multiplier": positive(nets["lmbda"]),
        "init_proportion": torch.tensor(1 / cfg.episode_len),
        "observation_std": torch.zeros(state),
        "action_std": torch.zeros(cfg.action_dim),
    }
    return nets, scalars


def statistics(observations: Tensor, actions: Tensor, is_init: Tensor) -> Scalars:
    """What the agent needs to know of its own training data (TransitionDataset.get_dataset_states).

    observations (N, S), actions (N, A), is_init (N,)
    Returns init_proportion (), the share of first steps; observation_std (S,) and action_std (A,).
    """
    return {
        "init_proportion": is_init.mean(),
        "observation_std": observations.std(0, correction=0),
        "action_std": actions.std(0, correction=0),
    }


def noise_shapes(cfg: Config, batch_size: int) -> dict[str, tuple[int, ...]]:
    """Standard normal draws of one step; "policy" is for acting, the losses take no sample of the policy."""
    action = (batch_size, cfg.action_dim)
    return {"observation": (batch_size, cfg.observation_dim), "action": action, "policy": action}


def positive(network: nn.Network) -> Tensor:
    """The value () of a one-parameter network: tau or lambda."""
    return F.softplus(network["raw"]).squeeze(-1)


def state_values(network: nn.Network, batch: Batch) -> tuple[Tensor, Tensor]:
    """The smallest member's values of the states and of the next states, each (B,)."""
    both = torch.stack((batch.observations, batch.next_observations))
    here, there = nn.q_values(network, both).amin(0).unbind(0)
    return here, there


def correction(nu: nn.Network, multiplier: Tensor, batch: Batch, cfg: Config) -> tuple[Tensor, Tensor, Tensor]:
    """nu(s), the advantage e and the distribution correction w = max(0, f'^-1(e / alpha)), each (B,)."""
    here, there = state_values(nu, batch)
    advantage = batch.rewards - multiplier * batch.costs + cfg.gamma * (1 - batch.done) * there - here
    _, inverse = DIVERGENCES[cfg.f_type]
    return here, advantage, torch.relu(inverse(advantage / cfg.alpha))


def values_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """The losses of nu, chi, tau and lambda (first half of COptiDICE.update); keeps lambda for the actor's step.

    Each loss detaches what is not its own: chi's weights depend on chi and carry gradient, as in osrl-lib.
    """
    f, _ = DIVERGENCES[cfg.f_type]
    multiplier, tau = positive(nets["lmbda"]), positive(nets["tau"])
    start = batch.is_init / scalars["init_proportion"]

    nu, advantage, w = correction(nets["nu"], multiplier.detach(), batch, cfg)
    nu_loss = (1 - cfg.gamma) * (nu * start).mean() + (w * advantage - cfg.alpha * f(w)).mean()

    weight = w.detach()
    chi, chi_next = state_values(nets["chi"], batch)
    ell = (1 - cfg.gamma) * chi * start + weight * (batch.costs + cfg.gamma * (1 - batch.done) * chi_next - chi)
    log_weights = torch.log_softmax(ell / tau.detach(), dim=0) + math.log(len(ell))
    weights = log_weights.exp()
    chi_loss = (weights * ell).mean()

    kl = (weights * log_weights - weights + 1).mean().detach()
    tau_loss = tau * (cfg.cost_ub_epsilon - kl)
    cost = (weights * weight * batch.costs).mean().detach()  # upper bound on the policy's cost per step
    lmbda_loss = multiplier * (cfg.q_limit - cost)

    info = {
        "nu_loss": nu_loss,
        "chi_loss": chi_loss,
        "tau_loss": tau_loss,
        "lmbda_loss": lmbda_loss,
        "divergence": f(weight).mean(),
        "kl": kl,
        "cost_bound": cost,
        "multiplier": multiplier,
        "tau": tau,
    }
    return nu_loss + chi_loss + tau_loss + lmbda_loss, info, {"multiplier": multiplier}


def actor_loss(nets: Nets, scalars: Scalars, batch: Batch, noise: Noise, cfg: Config):
    """Weighted behaviour cloning: -w * log-likelihood of the smoothed action (second half of COptiDICE.update).

    noise["observation"]: (B, S), noise["action"]: (B, A)
    """
    with torch.no_grad():
        _, _, w = correction(nets["nu"], scalars["multiplier"], batch, cfg)
    observations = batch.observations + SMOOTHING * scalars["observation_std"] * noise["observation"]
    actions = batch.actions + SMOOTHING * scalars["action_std"] * noise["action"]
    mean, std = nn.gaussian(nets["actor"], observations)
    likelihood = Normal(mean, std, validate_args=False).log_prob(actions).sum(-1)
    loss = -(w * likelihood).mean()
    return loss, {"actor_loss": loss, "weight": w.mean()}, {}


LOSSES = ((("nu", "chi", "tau", "lmbda"), values_loss), (("actor",), actor_loss))

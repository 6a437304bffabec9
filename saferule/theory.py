"""Appendix A of the paper as numbers: Lemma A.1, Lemma A.2, their combination and the certified neighbourhood.

Every function is pure and takes critic values or critic parameters; the left and the right side of each inequality come
back together, and a flag says where the right side says nothing. Letters in shapes: N forget samples, E members of an
ensemble, S observation, A action.

The lemmas are Markov's inequality on (x)+ <= softplus(x). They hold for whatever values they are given, so a violation
would be an error of the code; what can be learned from them is how loose they are, and whether they say anything.
Markov's inequality on softplus itself, which grows with x as well, gives a bound that is never larger (``sharper``):
Pr(x >= u) <= E[softplus(x)] / softplus(u). The paper does not have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from saferule.agents.networks import Network, depth, q_values
from saferule.errors import SettingsError


@dataclass(frozen=True)
class Bound:
    """One inequality, observed <= bound, on one set of samples.

    residual  the loss on these samples: eps_r or eps_c
    sharper   Markov's bound on softplus itself; None where the inequality is not about a probability
    vacuous   a probability is bounded by 1 or more, which says nothing
    """

    observed: float
    bound: float
    residual: float
    sharper: float | None = None
    vacuous: bool = False

    @property
    def holds(self) -> bool:
        """True up to the rounding of the sums."""
        return self.observed <= self.bound + 1e-9 * max(1.0, abs(self.bound))


def reward_residual(q_r: Tensor, reference: float) -> float:
    """eps_r: mean softplus(Q_r - reference), the reward critic's forget loss (Eq. 12). q_r: any shape."""
    return F.softplus(q_r.double() - reference).mean().item()


def cost_residual(q_c: Tensor, kappa: float, sigma: float) -> float:
    """eps_c: mean softplus(kappa + sigma - Q_c), the cost critic's forget loss (Eq. 13). q_c: any shape."""
    return F.softplus(kappa + sigma - q_c.double()).mean().item()


def reward_excess(q_r: Tensor, reference: float) -> Bound:
    """Lemma A.1, Eq. 14 (and 26): the mean excess of Q_r over the reference is at most eps_r."""
    residual = reward_residual(q_r, reference)
    return Bound((q_r.double() - reference).clamp_min(0).mean().item(), residual, residual)


def reward_tail(q_r: Tensor, reference: float, u: Sequence[float]) -> list[Bound]:
    """Lemma A.1, Eq. 15, for each u > 0: Pr(Q_r >= reference + u) is at most eps_r / u.

    SettingsError for a u that is not positive.
    """
    if not all(level > 0 for level in u):
        raise SettingsError(f"u = {list(u)}, expected positive levels above the reward reference: leave the others out")
    residual, excess = reward_residual(q_r, reference), q_r.double() - reference  # the differences, as in the proof
    return [_tail((excess >= level).double().mean().item(), residual, level) for level in u]


def still_safe(q_c: Tensor, kappa: float, sigma: float) -> Bound:
    """Lemma A.2, Eq. 19 (and 27): Pr(Q_c <= kappa) is at most eps_c / sigma; vacuous when eps_c >= sigma.

    A critic exactly at its target kappa + sigma has eps_c = ln 2 = 0.693, so with sigma = 0.5 the bound is 1.39.
    SettingsError for a sigma that is not positive: without a margin there is no bound.
    """
    if not sigma > 0:
        raise SettingsError(f"sigma = {sigma}, expected a positive margin, as without one Lemma A.2 has no bound")
    below = kappa + sigma - q_c.double()
    return _tail((below >= sigma).double().mean().item(), cost_residual(q_c, kappa, sigma), sigma)


def _tail(observed: float, residual: float, level: float) -> Bound:
    sharper = residual / F.softplus(torch.tensor(level, dtype=torch.float64)).item()
    return Bound(observed, residual / level, residual, sharper, residual >= level)


# The certified neighbourhood, Eq. 23-25


def action_lipschitz(critic: Network, action_dim: int) -> Tensor:
    """Upper bounds (E,) of the Lipschitz constants of Q_c(s, .) in the action, one per member, valid for every s.

    The product of the layers' spectral norms, the first layer restricted to the rows that multiply the action (the last
    of its inputs); relu does not expand. A minimum over members is Lipschitz with the largest of their constants.
    """
    norms = [
        torch.linalg.matrix_norm(critic[f"w{i}"].double()[..., -action_dim if i == 0 else 0 :, :], ord=2)
        for i in range(depth(critic))
    ]
    return torch.stack(norms).prod(0).reshape(-1)


@dataclass(frozen=True)
class Certificate:
    """Around each forget action, how far Q_c provably stays at or above kappa.

    value     Q_c (N,) at the forget action, the smallest member
    residual  eps_c (N,) of Eq. 23, pointwise: kappa + sigma - Q_c; negative where the critic is above its target
    radius    (N,), 0 where there is none: each member may fall at most from its own value, at its own rate
    printed   (sigma - eps_c) / L_Q (N,) with one constant for the minimum, as the paper has it; never above ``radius``
    vacuous   (N,) bool: eps_c >= sigma
    """

    value: Tensor
    residual: Tensor
    radius: Tensor
    printed: Tensor
    vacuous: Tensor


def certified_radius(critic: Network, observations: Tensor, actions: Tensor, kappa: float, sigma: float) -> Certificate:
    """Eq. 23-25 for each forget sample: observations (N, S), actions (N, A); computed in float64."""
    members = member_values(critic, observations, actions)
    rates = action_lipschitz(critic, actions.shape[-1])
    margins, value = (members - kappa).clamp_min(0), members.amin(0)
    tiny = torch.finfo(torch.float64).tiny  # a member that ignores the action: any radius
    residual = kappa + sigma - value
    return Certificate(
        value=value,
        residual=residual,
        radius=(margins / rates.clamp_min(tiny).unsqueeze(-1)).amin(0),
        printed=margins.amin(0) / rates.amax().clamp_min(tiny),
        vacuous=value <= kappa,  # the same as residual >= sigma, without its rounding
    )


def steepest_found(
    critic: Network, observations: Tensor, actions: Tensor, generator: torch.Generator, tries: int = 32
) -> float:
    """A lower bound of the Lipschitz constant of the minimum: the largest gradient norm in the action that was found.

    Looks at the given actions (N, A) and at ``tries`` uniform actions of the box for each observation (N, S).
    """
    uniform = 2 * torch.rand(tries, *actions.shape, generator=generator, dtype=torch.float64) - 1
    largest = 0.0
    for candidate in (actions.double().cpu(), *uniform):
        largest = max(largest, _slope(critic, observations, candidate)[1].norm(dim=-1).max().item())
    return largest


@dataclass(frozen=True)
class Search:
    """The lowest Q_c found in each ball: ``lowest`` (N,) at ``actions`` (N, A); ``violated`` (N,): below kappa."""

    lowest: Tensor
    actions: Tensor
    violated: Tensor


def search_violations(
    critic: Network,
    observations: Tensor,
    actions: Tensor,
    radius: Tensor,
    kappa: float,
    generator: torch.Generator,
    *,
    tries: int = 32,
    steps: int = 20,
    tolerance: float = 1e-9,
) -> Search:
    """Try to find actions within ``radius`` (N,) of ``actions`` (N, A) that Q_c calls safe.

    Random points, half of them on the sphere; then, from the best, ``steps`` of gradient descent on Q_c projected onto
    the ball, its step shrinking from half the radius. None is further away than the diameter of the action box
    [-1, 1]^A, as within this all actions lie. A value counts as violated when it is below kappa by more than
    ``tolerance``, which is for rounding.
    """
    centre = actions.double()
    radius = radius.double().clamp_max(2 * centre.shape[-1] ** 0.5).unsqueeze(-1)
    best, lowest = centre, member_values(critic, observations, centre).amin(0)

    def project(point: Tensor) -> Tensor:
        moved = point - centre
        return centre + moved * (radius / moved.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_max(1)

    def keep_lower(point: Tensor) -> None:
        nonlocal best, lowest
        value = member_values(critic, observations, point).amin(0)
        best = torch.where((value < lowest).unsqueeze(-1), point, best)
        lowest = torch.minimum(value, lowest)

    for attempt in range(tries):
        direction = _unit(torch.randn(centre.shape, generator=generator, dtype=torch.float64)).to(centre.device)
        share = torch.rand(len(centre), 1, generator=generator, dtype=torch.float64).to(centre.device)
        reach = 1.0 if attempt % 2 == 0 else share.pow(1 / centre.shape[-1])
        keep_lower(project(centre + radius * reach * direction))
    point = best
    for step in range(steps):
        _, gradient = _slope(critic, observations, point)
        point = project(point - radius / (2 + step) * _unit(gradient))
        keep_lower(point)
    return Search(lowest, best, lowest < kappa - tolerance * max(1.0, abs(kappa)))


def member_values(critic: Network, observations: Tensor, actions: Tensor) -> Tensor:
    """Values (E, N) of every member, in float64, without gradient: observations (N, S), actions (N, A)."""
    with torch.no_grad():
        return q_values({k: v.double() for k, v in critic.items()}, observations.double(), actions.double())


def _slope(critic: Network, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest member's value (N,) and its gradient in the action (N, A)."""
    point = actions.to(observations.device).double().requires_grad_(True)
    value = q_values({k: v.detach().double() for k, v in critic.items()}, observations.double(), point).amin(0)
    (gradient,) = torch.autograd.grad(value.sum(), [point])
    return value.detach(), gradient


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300)

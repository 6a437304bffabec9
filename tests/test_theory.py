"""Appendix A: numbers by hand, and the inequalities for random values, critics and data."""

import math

import pytest
import torch
from helpers import softplus
from hypothesis import given, settings
from hypothesis import strategies as st

from saferule import theory
from saferule.agents.networks import init_mlp, q_values
from saferule.errors import SettingsError

KAPPA, SIGMA, LN2 = 10.0, 0.5, math.log(2)

values = st.lists(st.floats(-50, 50), min_size=1, max_size=40).map(lambda v: torch.tensor(v, dtype=torch.float64))
levels = st.lists(st.floats(1e-3, 60), min_size=1, max_size=6)
positive = st.floats(1e-3, 20)


def critic(seed: int, ensemble: int, scale: float = 1.0, shift: float = 0.0, sizes=(5, 7, 6, 1)) -> dict:
    """Random relu critics of 3 observations and 2 actions, in float32 as they are trained."""
    network = init_mlp(sizes, torch.Generator().manual_seed(seed), ensemble)
    network = {k: v * scale for k, v in network.items()}
    last = f"b{len(network) // 2 - 1}"
    return network | {last: network[last] + shift}


def samples(seed: int, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(count, 3, generator=generator)
    return states, 2 * torch.rand(count, 2, generator=generator) - 1


# By hand


def test_lemma_a1_by_hand():
    q_r = torch.tensor([3.0, 1.0, -1.0, 2.0])  # excess over 1: 2, 0, -2, 1
    excess = theory.reward_excess(q_r, 1.0)
    residual = (softplus(2) + LN2 + softplus(-2) + softplus(1)) / 4
    assert excess.observed == pytest.approx(3 / 4) and excess.bound == excess.residual == pytest.approx(residual)
    assert excess.holds and not excess.vacuous and excess.sharper is None
    one, two, four = theory.reward_tail(q_r, 1.0, [1.0, 2.0, 4.0])
    assert (one.observed, two.observed, four.observed) == (0.5, 0.25, 0.0)  # on the boundary counts
    assert two.bound == pytest.approx(residual / 2) and two.sharper == pytest.approx(residual / softplus(2))
    assert one.vacuous and not two.vacuous  # residual 1.065
    with pytest.raises(SettingsError, match="positive"):
        theory.reward_tail(q_r, 1.0, [1.0, 0.0])


def test_lemma_a2_is_vacuous_for_a_critic_exactly_on_target():
    at_target = theory.still_safe(torch.full((3,), KAPPA + SIGMA), KAPPA, SIGMA)
    assert at_target.residual == pytest.approx(LN2) == pytest.approx(0.693, abs=5e-4)
    assert at_target.bound == pytest.approx(1.38629, abs=1e-5) and at_target.vacuous
    assert at_target.observed == 0.0 and at_target.holds
    # Markov on softplus itself would say something: ln 2 / softplus(0.5) = 0.693 / 0.974.
    assert at_target.sharper == pytest.approx(0.71159, abs=1e-5)
    # From about 0.43 above the target the printed bound says something too: softplus(-0.433) = 0.5.
    above = math.log(math.exp(SIGMA) - 1)
    assert above == pytest.approx(-0.43275, abs=1e-5)
    assert theory.still_safe(torch.tensor([KAPPA + SIGMA + 0.42]), KAPPA, SIGMA).vacuous
    assert not theory.still_safe(torch.tensor([KAPPA + SIGMA + 0.44]), KAPPA, SIGMA).vacuous


def test_lemma_a2_by_hand():
    q_c = torch.tensor([12.5, 10.5, 10.0, 14.5])  # one of four is at kappa, which counts as safe
    found = theory.still_safe(q_c, KAPPA, SIGMA)
    residual = (softplus(-2) + LN2 + softplus(0.5) + softplus(-4)) / 4
    assert found.observed == 0.25 and found.residual == pytest.approx(residual)
    assert found.bound == pytest.approx(residual / 0.5) and not found.vacuous
    with pytest.raises(SettingsError, match="sigma"):
        theory.still_safe(q_c, KAPPA, 0.0)


def test_a_bound_that_is_exceeded_does_not_hold():
    assert not theory.Bound(observed=0.5, bound=0.4, residual=0.4).holds


def linear(*members: tuple[float, float, float]) -> dict:
    """Members b + w . a of one layer; the weight of the one observation is 100, and must not enter the constant."""
    weights = [[[100.0], [w1], [w2]] for w1, w2, _ in members]
    return {"w0": torch.tensor(weights), "b0": torch.tensor([[[b]] for *_, b in members])}


def test_radius_by_hand_for_linear_critics():
    steep, flat = (3.0, 4.0, 12.0), (0.0, 1.0, 10.8)  # |w| = 5 and 1
    state, action = torch.zeros(1, 1), torch.zeros(1, 2)
    assert theory.action_lipschitz(linear(steep, flat), 2).tolist() == pytest.approx([5.0, 1.0])
    alone = theory.certified_radius(linear(steep), state, action, KAPPA, SIGMA)
    assert alone.value.item() == 12.0 and alone.residual.item() == pytest.approx(-1.5)
    assert alone.radius.item() == alone.printed.item() == pytest.approx(2 / 5)
    # The minimum is 10.8 at the centre. As printed: 0.8 / 5; each member on its own: min(2 / 5, 0.8 / 1).
    both = theory.certified_radius(linear(steep, flat), state, action, KAPPA, SIGMA)
    assert both.printed.item() == pytest.approx(0.8 / 5) and both.radius.item() == pytest.approx(0.4)
    # For one linear member the radius is tight: a little further, and the search finds a violation.
    for radius, violated in ((0.4, False), (0.41, True)):
        found = theory.search_violations(
            linear(steep, flat), state, action, torch.tensor([radius]), KAPPA, torch.Generator().manual_seed(0)
        )
        assert found.violated.tolist() == [violated]
        assert found.lowest.item() == pytest.approx(12 - 5 * radius, abs=2e-3)
        assert found.actions[0].tolist() == pytest.approx([-0.6 * radius, -0.8 * radius], abs=0.01)
    assert theory.steepest_found(linear(steep), state, action, torch.Generator()) == pytest.approx(5.0)


def test_no_radius_where_the_critic_is_not_above_kappa():
    found = theory.certified_radius(
        linear((1.0, 0.0, 10.0), (1.0, 0.0, 15.0)), torch.zeros(2, 1), torch.tensor([[0.0, 0], [1, 0]]), KAPPA, SIGMA
    )
    assert found.vacuous.tolist() == [True, False]  # eps_c = 0.5 and -0.5
    assert found.radius.tolist() == pytest.approx([0.0, 1.0])
    assert found.residual.tolist() == pytest.approx([0.5, -0.5])


def test_spectral_norms_multiply():
    # One hidden unit: Q = 2 relu(3 a) has slope 6 where a > 0.
    weights = {"w0": torch.tensor([[[9.0], [3.0]]]), "w1": torch.tensor([[[2.0]]])}
    network = weights | {"b0": torch.zeros(1, 1, 1), "b1": torch.zeros(1, 1, 1)}
    assert theory.action_lipschitz(network, 1).tolist() == pytest.approx([6.0])
    state, action = torch.zeros(1, 1), torch.tensor([[-0.5]])
    assert theory.steepest_found(network, state, action, torch.Generator().manual_seed(0)) == pytest.approx(6.0)
    assert theory.steepest_found(network, state, action, torch.Generator().manual_seed(0), tries=0) == 0.0  # flat there


# For random values, critics and data


@given(values, st.floats(-50, 50), levels)
def test_lemma_a1_holds(q_r, reference, u):
    excess = theory.reward_excess(q_r, reference)
    assert excess.holds and 0 <= excess.observed
    for level, tail in zip(u, theory.reward_tail(q_r, reference, u), strict=True):
        assert tail.holds and tail.observed <= tail.sharper * (1 + 1e-9) and tail.sharper <= tail.bound
        assert tail.vacuous == (tail.residual >= level)


@given(values, st.floats(-50, 50), positive)
def test_lemma_a2_holds(q_c, kappa, sigma):
    found = theory.still_safe(q_c, kappa, sigma)
    assert found.holds and found.observed <= found.sharper * (1 + 1e-9) and found.sharper <= found.bound
    assert found.vacuous == (theory.cost_residual(q_c, kappa, sigma) >= sigma)
    if not found.vacuous:
        assert found.observed < 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.3, 5), st.floats(-1, 3), positive)
def test_lemmas_hold_on_random_critics(seed, ensemble, scale, shift, sigma):
    network = critic(seed, ensemble, scale, shift)
    q = q_values(network, *samples(seed + 1))
    for part in (q, q.amin(0)):  # over all members, and for the smallest
        bounds = [theory.reward_excess(part, 0.3), theory.still_safe(part, 0.7, sigma)]
        assert all(bound.holds for bound in (*bounds, *theory.reward_tail(part, 0.3, [0.1, 1.0, 3.0])))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.3, 3), st.floats(-0.5, 2), st.floats(0, 1.0))
def test_no_action_in_the_certified_ball_is_called_safe(seed, ensemble, scale, shift, kappa):
    network, (states, actions) = critic(seed, ensemble, scale, shift), samples(seed + 1)
    found = theory.certified_radius(network, states, actions, kappa, SIGMA)
    assert (found.printed <= found.radius * (1 + 1e-12)).all()
    certified = found.radius > 0
    assert torch.equal(found.vacuous, ~certified)
    if certified.any():
        inside, radius = (network, states[certified], actions[certified]), found.radius[certified]
        search = theory.search_violations(*inside, radius, kappa, torch.Generator().manual_seed(seed), tries=8, steps=8)
        assert not search.violated.any()
        moved = (search.actions - actions[certified].double()).norm(dim=-1)
        assert (moved <= radius * (1 + 1e-9) + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.3, 3))
def test_no_gradient_is_steeper_than_the_upper_bound(seed, ensemble, scale):
    network, (states, actions) = critic(seed, ensemble, scale), samples(seed + 1)
    upper = theory.action_lipschitz(network, 2)
    assert upper.shape == (ensemble,)
    lower = theory.steepest_found(network, states, actions, torch.Generator().manual_seed(seed), tries=8)
    assert lower <= upper.max().item() * (1 + 1e-9)


def test_search_finds_what_a_larger_ball_holds():
    """The search is no formality: well beyond the certificate it does find actions that the critic calls safe."""
    network, (states, actions) = critic(3, 2, scale=2.0), samples(4, 40)
    kappa = q_values(network, states, actions).amin(0).median().item()
    found = theory.certified_radius(network, states, actions, kappa, SIGMA)
    certified = found.radius > 0
    assert 10 < certified.sum() < 30
    chosen, generator = (network, states[certified], actions[certified]), torch.Generator().manual_seed(0)
    assert not theory.search_violations(*chosen, found.radius[certified], kappa, generator).violated.any()
    assert theory.search_violations(*chosen, 1e3 * found.radius[certified], kappa, generator).violated.any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.floats(0.01, 4))
def test_what_a_search_finds_lies_in_the_ball_and_has_that_value(seed, ensemble, radius):
    network, (states, actions) = critic(seed, ensemble, 3.0), samples(seed + 1)
    radii, generator = torch.full((len(actions),), radius, dtype=torch.float64), torch.Generator().manual_seed(seed)
    found = theory.search_violations(network, states, actions, radii, 0.0, generator, tries=4, steps=4)
    reach = radii.clamp_max(2 * math.sqrt(2))  # the diameter of the action box
    assert ((found.actions - actions.double()).norm(dim=-1) <= reach * (1 + 1e-9)).all()
    assert torch.allclose(
        theory.member_values(network, states, found.actions).amin(0), found.lowest, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_as_good_as_a_grid(seed):
    network, (states, actions) = critic(seed, 2, scale=3.0, sizes=(5, 32, 32, 1)), samples(seed + 1, 100)
    side = torch.linspace(-1, 1, 41)
    grid = torch.cartesian_prod(side, side)
    grid = grid[grid.norm(dim=-1) <= 1]  # the ball of radius 1
    wide = states.unsqueeze(0).expand(len(grid), -1, -1), actions + grid.unsqueeze(1)
    lowest = q_values(network, *wide).amin((0, 1))  # (members, grid, samples)
    kappa = lowest.quantile(0.2).item()  # a fifth of the samples have a safe action in the ball
    found = theory.search_violations(network, states, actions, torch.ones(100), kappa, torch.Generator().manual_seed(0))
    assert 18 <= found.violated.sum() and (lowest < kappa).sum() == 20
    assert (found.lowest <= lowest + 0.05 * lowest.std()).double().mean() > 0.75

"""Safe-RULE on COptiDICE (Appendix C.2) and Trajdeleter (Eq. 28-29), term by term on networks for a pencil."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers import Corrupted, sigmoid, softplus
from torch.utils._pytree import tree_map

from saferule.agents import get_backbone
from saferule.agents.parts import originals
from saferule.agents.population import member
from saferule.data.batches import Batch, Pair
from saferule.unlearn import coefficients, unlearning
from saferule.unlearn.safe_rule_dice import actor_loss as dice_actor_loss
from saferule.unlearn.safe_rule_dice import log_likelihood, to_unit_range, values_loss
from saferule.unlearn.trajdeleter import actor_loss, advantage, anchored_critics_loss, forget_loss

DICE = get_backbone("coptidice")
CFG = DICE.Config(observation_dim=1, action_dim=1, episode_len=300, alpha=0.5, gamma=0.5)


# Safe-RULE on COptiDICE. One observation, one action, networks of one layer: nu(s) = 1, chi(s) = 2 s for two members,
# the actor's mean is its bias m and its standard deviation exp(0) = 1 whatever the state.


def batch(states, actions, rewards, costs) -> Batch:
    """Transitions that end their episodes, so that no next value enters."""
    column = torch.tensor(states).unsqueeze(-1)
    flags = torch.ones(len(states))
    actions = torch.tensor(actions).unsqueeze(-1)
    return Batch(column, column, actions, torch.tensor(rewards), torch.tensor(costs), flags, flags)


def dice_nets(mean: float = 0.0) -> dict:
    nets = {
        "actor": {"w0": torch.zeros(1, 2), "b0": torch.tensor([mean, 0.0])},
        "nu": {"w0": torch.zeros(2, 1, 1), "b0": torch.ones(2, 1, 1)},
        "chi": {"w0": torch.full((2, 1, 1), 2.0), "b0": torch.tensor([0.0, 5.0]).reshape(2, 1, 1)},  # least: 2 s
        "tau": {"raw": torch.ones(1)},
        "lmbda": {"raw": torch.ones(1)},
    }
    return tree_map(torch.Tensor.requires_grad_, nets)


def dice_scalars(**changes: float) -> dict:
    values = coefficients("safe-rule", "coptidice", CFG) | {"multiplier": 0.5, "init_proportion": 1.0}
    scalars = {name: torch.tensor(value) for name, value in (values | changes).items()}
    return scalars | {"observation_std": torch.zeros(1), "action_std": torch.zeros(1)}


NO_NOISE = {"observation": torch.zeros(2, 1), "action": torch.zeros(2, 1)}
KEEP = batch([0.0, 0.0], [0.5, 0.5], [1.0, 1.0], [0.0, 0.0])
# Forget advantages r - 0.5 c - nu = 4 - 1 - 1 = 2 and 1 - 0 - 1 = 0; softchi: w = e / alpha + 1 = 5 and 1.
FORGET = batch([1.0, 3.0], [0.6, -0.2], [4.0, 1.0], [2.0, 0.0])  # chi = 2 and 6


def dice(mean: float = 0.0, options=(), **changes: float):
    """Loss, info, moved scalars and the gradient of the actor's mean."""
    nets, scalars, pair = dice_nets(mean), dice_scalars(**changes), Pair(KEEP, FORGET)
    loss, info, moved = dice_actor_loss(DICE, nets, scalars, pair, NO_NOISE, CFG, **dict(options))
    loss.backward()
    reached = {net for net, leaves in nets.items() for leaf in leaves.values() if leaf.grad is not None}
    assert reached == {"actor"}  # the values are frozen (C.2)
    return loss.item(), info, moved, nets["actor"]["b0"].grad[0].item()


def log_density(action: float, mean: float = 0.0) -> float:
    """Of the normal distribution with standard deviation 1."""
    return -((action - mean) ** 2) / 2 - math.log(2 * math.pi) / 2


@pytest.mark.parametrize(("cost_weight", "weights"), [(1.0, (5.0, 2.0)), (0.0, (5.0, 1.0)), (3.0, (5.0, 4.0))])
def test_forget_weight_is_nus_times_one_plus_chi_in_unit_range(cost_weight, weights):
    # chi' of (2, 6) is (0, 1): the second weight, 1, is multiplied by 1 + cost_weight.
    loss, info, _, _ = dice(cost_weight=cost_weight, beta_f=1.0, tau_beta=0.0)
    assert info["forget_weight"].item() == pytest.approx(sum(weights) / 2)
    forget = (weights[0] * log_density(0.6) + weights[1] * log_density(-0.2)) / 2
    keep = -(1.0 * log_density(0.5))  # e = 1 - 0 - 1 = 0, w = 1
    assert info["forget_actor_loss"].item() == pytest.approx(forget, rel=1e-6)
    assert info["actor_loss"].item() == pytest.approx(keep, rel=1e-6)
    assert loss == pytest.approx(keep + forget, rel=1e-6)


def test_unit_range_by_hand_and_for_equal_values():
    assert to_unit_range(torch.tensor([2.0, 6.0, 3.0])).tolist() == [0.0, 1.0, 0.25]
    assert to_unit_range(torch.tensor([4.0, 4.0])).tolist() == [0.0, 0.0]


def test_gradient_moves_the_actor_to_keep_actions_and_away_from_poisoned_ones():
    # d/dm log N(a; m, 1) = a - m. Keep: -(0.5 - m); forget: beta_f (5 (0.6 - m) + 2 (-0.2 - m)) / 2.
    for mean in (0.0, 0.4):
        for beta in (0.0, 0.3, 1.0):
            _, _, _, gradient = dice(mean, beta_f=beta, beta_min=0.0, tau_beta=0.0)
            by_hand = -(0.5 - mean) + beta * (5 * (0.6 - mean) + 2 * (-0.2 - mean)) / 2
            assert gradient == pytest.approx(by_hand, abs=1e-6)
    # A poisoned action above the mean gives a positive slope: descent lowers the mean, and with it its likelihood.
    actor = {"w0": torch.zeros(1, 2), "b0": torch.zeros(2, requires_grad=True)}
    likelihood = log_likelihood(actor, FORGET)
    assert likelihood.tolist() == pytest.approx([log_density(0.6), log_density(-0.2)], rel=1e-6)
    (slope,) = torch.autograd.grad(likelihood[0], actor["b0"])
    assert slope[0].item() == pytest.approx(0.6)


@pytest.mark.parametrize(("normalised", "gap"), [(False, 10.5 - 4.0), (True, 10.5 - 0.5)])
def test_gap_follows_chi_raw_or_in_unit_range(normalised, gap):
    # Raw mean of (2, 6): 4. In unit range: mean of (0, 1).
    _, info, moved, _ = dice(options={"normalised": normalised}, tau_beta=0.01)
    assert info["gap"].item() == pytest.approx(gap) and info["forget_chi"].item() == 4.0
    assert info["beta_f"].item() == moved["beta_f"].item() == pytest.approx(0.1 + 0.01 * gap)
    _, info, moved, _ = dice(options={"normalised": normalised, "weight_first": False}, tau_beta=0.01)
    assert info["beta_f"].item() == pytest.approx(0.1) and moved["beta_f"].item() == pytest.approx(0.1 + 0.01 * gap)


def test_bounded_likelihood_lets_go_of_what_is_less_likely_than_the_floor():
    for mean, floor in ((0.0, -1.2), (3.0, -4.0)):
        _, info, _, gradient = dice(mean, {"bounded": True}, beta_f=1.0, tau_beta=0.0, likelihood_floor=floor)
        above = [log_density(0.6, mean) - floor, log_density(-0.2, mean) - floor]
        by_hand = (5 * softplus(above[0]) + 2 * softplus(above[1])) / 2
        assert info["forget_actor_loss"].item() == pytest.approx(by_hand, rel=1e-5)
        slopes = [weight * sigmoid(x) * (a - mean) for weight, x, a in zip((5, 2), above, (0.6, -0.2), strict=True)]
        assert gradient == pytest.approx(-(0.5 - mean) + sum(slopes) / 2, rel=1e-5)


@pytest.mark.parametrize("bounded", [False, True])
def test_what_is_to_be_forgotten_and_kept_at_once_runs_away_unless_it_is_bounded(bounded):
    """D_f with D_k's own states and actions: descent on both losses, for as long as a repair takes a few times over."""
    nets = dice_nets()
    scalars = dice_scalars(beta_f=1.0, tau_beta=0.0, likelihood_floor=log_density(0.5) - 0.5)
    same = FORGET._replace(observations=KEEP.observations, actions=KEEP.actions)
    optimiser = torch.optim.Adam(nets["actor"].values(), 0.5)
    for _ in range(400):
        optimiser.zero_grad()
        dice_actor_loss(DICE, nets, scalars, Pair(KEEP, same), NO_NOISE, CFG, bounded=bounded)[0].backward()
        optimiser.step()
    likelihood = log_likelihood(nets["actor"], KEEP).mean().item()
    assert (likelihood > log_density(0.5) - 3) if bounded else (likelihood < -100), likelihood


def test_the_floor_is_a_low_quantile_of_what_the_corrupted_agent_thinks_of_the_keep_set_and_stays():
    made = Corrupted("coptidice", "safe-rule-described")
    actor, floor = member(made.population.nets, 0)["actor"], made.population.scalars["likelihood_floor"].clone()
    likely = log_likelihood(actor, made.pool.gather(made.rows[0][0])).sort().values
    assert floor.item() == pytest.approx((likely[1] + 0.95 * (likely[2] - likely[1])).item(), rel=1e-5)  # 0.05 * 39
    made.run(3)
    assert torch.equal(made.population.scalars["likelihood_floor"], floor)
    assert "likelihood_floor" not in Corrupted("coptidice", "safe-rule").population.scalars


def test_nearness_is_how_much_more_likely_than_the_floor_the_poisoned_actions_are():
    gaps = []
    for mean in (0.3, 3.0):
        _, info, moved, _ = dice(mean, {"nearness": True}, tau_beta=0.01, likelihood_floor=-1.5)
        by_hand = (log_density(0.6, mean) + log_density(-0.2, mean)) / 2 + 1.5
        assert info["gap"].item() == pytest.approx(by_hand, abs=1e-6)
        assert moved["beta_f"].item() == pytest.approx(max(0.1 + 0.01 * by_hand, 0.01), abs=1e-6)
        gaps.append(by_hand)
    assert gaps[1] < 0 < gaps[0]  # it falls as the mean leaves the poisoned actions


def test_two_phases_train_the_values_and_then_the_actor():
    made = unlearning("safe-rule", DICE, CFG, 10, {"dice_phases": "two"})
    values, actor = (dict(made.at(step)) for step in (4, 5))
    assert list(values) == [("nu", "chi", "tau", "lmbda")] and list(actor) == [("actor",)]
    assert len(made.looks) == len(made.phases) == 2


def test_values_are_coptidices_own_on_keep_data_or_frozen():
    nets = dice_nets()
    for alpha_k in (1.0, 0.25, 0.0):
        loss, _, _ = values_loss(DICE, nets, dice_scalars(alpha_k=alpha_k), Pair(KEEP, FORGET), NO_NOISE, CFG)
        own, _, _ = DICE.values_loss(nets, dice_scalars(), KEEP, NO_NOISE, CFG)
        assert loss.item() == pytest.approx(alpha_k * own.item(), abs=1e-7)


# Trajdeleter. Q_r = 2 + 3 a and Q_c = 4 + 5 a on one state, for two members of which the first is the smaller; pi(s) is
# theta plus its noise.


def line(critic: dict, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    values = critic["value"] + critic["slope"] * actions.squeeze(-1)
    return torch.stack((values, values + 7.0))


def keep_loss(nets, scalars, keep, noise, cfg):
    """The backbone's own actor loss: stands still at theta = 0.2."""
    return (nets["actor"]["theta"] - 0.2).pow(2).sum(), {"actor_loss": torch.zeros(())}, {"multiplier": torch.ones(())}


def critic_loss(nets, scalars, keep, noise, cfg):
    return torch.tensor(11.0), {"critic_loss": torch.tensor(11.0)}, {}


TOY = SimpleNamespace(
    q_reward=lambda nets, observations, actions: line(nets["critic"], observations, actions),
    q_cost=lambda nets, observations, actions: line(nets["cost_critic"], observations, actions),
    policy=lambda nets, observations, noise, cfg: nets["actor"]["theta"] + noise,
    bellman_targets=lambda nets, keep, noise, cfg: (
        keep.rewards + nets["critic"]["value"],
        keep.costs + nets["cost_critic"]["value"],
    ),
    LOSSES=((("critic", "cost_critic"), critic_loss), (("actor",), keep_loss)),
)


def toy_nets() -> dict:
    nets = {
        "critic": {"value": torch.tensor(2.0), "slope": torch.tensor(3.0)},
        "cost_critic": {"value": torch.tensor(4.0), "slope": torch.tensor(5.0)},
        "actor": {"theta": torch.tensor(0.5)},
    }
    return tree_map(torch.Tensor.requires_grad_, nets)


NOTHING = [0.0, 0.0]
TRAJ_PAIR = Pair(batch(NOTHING, [0.1, 0.3], [1.0, 2.0], [3.0, 5.0]), batch(NOTHING, [0.9, 0.9], NOTHING, NOTHING))
NOISE = {
    "forget_policy": torch.tensor([[0.1], [-0.3]]),  # pi(s) = 0.6 and 0.2
    "forget_baseline": torch.tensor([[[0.0], [0.4]], [[0.2], [-0.2]]]),  # others: 0.5, 0.7 and 0.9, 0.3
    "target": torch.zeros(2, 1),
}


def trajdeleter_scalars(method: str, **changes: float) -> dict:
    return {k: torch.tensor(v) for k, v in (coefficients(method, "cpq", None) | changes).items()}


def test_advantage_is_q_minus_the_mean_over_the_policys_actions():
    nets = toy_nets()
    action = torch.tensor([[0.6], [0.2]], requires_grad=True)
    others = torch.tensor([[[0.5], [0.9]], [[0.7], [0.3]]])  # (n, B, A): means 0.6 and 0.6
    found = advantage(TOY, TOY.q_reward, nets, TRAJ_PAIR.forget, action, others, None)
    assert found.tolist() == pytest.approx([3 * (0.6 - 0.6), 3 * (0.2 - 0.6)], abs=1e-6)
    slope, value = torch.autograd.grad(found.sum(), [action, nets["critic"]["value"]])
    # With the baseline detached the gradient is Q's: with it the two would cancel where all actions move together.
    assert slope.flatten().tolist() == [3.0, 3.0] and value.item() == 2.0


def test_forget_loss_by_hand():
    reward, cost = torch.tensor([1.0, -3.0], requires_grad=True), torch.tensor([0.5, -2.0], requires_grad=True)
    scalars = trajdeleter_scalars("trajdeleter-cost", lambda_c=0.4, cost_advantage_target=1.0)
    loss = forget_loss(reward, cost, scalars)  # Eq. 28
    assert loss.item() == pytest.approx((1 - 3) / 2 + 0.4 * (softplus(0.5) + softplus(3.0)) / 2, rel=1e-6)
    d_reward, d_cost = torch.autograd.grad(loss, [reward, cost])
    assert d_reward.tolist() == [0.5, 0.5]  # descent lowers the reward advantage
    assert d_cost.tolist() == pytest.approx([-0.4 * sigmoid(0.5) / 2, -0.4 * sigmoid(3.0) / 2], rel=1e-6)  # raises it
    published = forget_loss(reward, cost, trajdeleter_scalars("trajdeleter"))
    assert published.item() == -1.0  # lambda_c = 0: the reward advantage alone


@pytest.mark.parametrize(("method", "lambda_c"), [("trajdeleter", 0.0), ("trajdeleter-cost", 1.0)])
@pytest.mark.parametrize("beta_f", [1.0, 0.3])
def test_total_actor_loss_and_the_direction_it_moves_in(method, lambda_c, beta_f):
    nets = toy_nets()
    loss, info, moved = actor_loss(TOY, nets, trajdeleter_scalars(method, beta_f=beta_f), TRAJ_PAIR, NOISE, None)
    # pi(s) = 0.6, 0.2; baselines at mean actions (0.5 + 0.7) / 2 = 0.6 and (0.9 + 0.3) / 2 = 0.6.
    gaps = (0.0, -0.4)
    forget = sum(3 * g + lambda_c * softplus(-5 * g) for g in gaps) / 2  # Eq. 28 with a target of 0
    assert loss.item() == pytest.approx(0.3**2 + beta_f * forget, rel=1e-5)  # Eq. 29
    assert moved == {"multiplier": torch.ones(())} and set(info) == {"actor_loss"}  # the backbone's own
    (slope,) = torch.autograd.grad(loss, nets["actor"]["theta"])
    by_hand = 3.0 + lambda_c * sum(-5 * sigmoid(-5 * g) for g in gaps) / 2
    assert slope.item() == pytest.approx(2 * 0.3 + beta_f * by_hand, rel=1e-5)
    if method == "trajdeleter":
        assert slope > 0  # descent lowers theta, and with it Q_r


def test_anchor_holds_the_critics_at_the_corrupted_agents_targets():
    nets = toy_nets()
    nets |= originals(nets)
    with torch.no_grad():
        nets["critic"]["value"] += 1.0  # the agent has moved on; its copy has not
        nets["cost_critic"]["value"] -= 2.0
    # Keep actions 0.1 and 0.3; the copies' targets: rewards + 2 = 3, 4 and costs + 4 = 7, 9.
    q_r = [3 + 3 * a + member for member in (0, 7) for a in (0.1, 0.3)]
    q_c = [2 + 5 * a + member for member in (0, 7) for a in (0.1, 0.3)]
    anchor_r = sum((q - y) ** 2 for q, y in zip(q_r, (3, 4, 3, 4), strict=True)) / 2  # mean over B, sum over members
    anchor_c = sum((q - y) ** 2 for q, y in zip(q_c, (7, 9, 7, 9), strict=True)) / 2
    for method, cost in (("trajdeleter", 0.0), ("trajdeleter-cost", 0.0), ("trajdeleter-anchored", 0.1)):
        loss, info, _ = anchored_critics_loss(TOY, nets, trajdeleter_scalars(method), TRAJ_PAIR, NOISE, None)
        assert loss.item() == pytest.approx(11 + 0.1 * anchor_r + cost * anchor_c, rel=1e-6)
        assert set(info) == {"critic_loss"}
        d_r, d_c = torch.autograd.grad(loss, [nets["critic"]["value"], nets["cost_critic"]["value"]])
        assert d_r.item() == pytest.approx(0.1 * (sum(q_r) - 14), rel=1e-5)
        assert d_c.item() == pytest.approx(cost * (sum(q_c) - 32), rel=1e-5, abs=1e-7)


def test_anchor_is_in_the_convergence_phase_and_the_forget_term_in_the_other():
    cfg = get_backbone("cpq").Config(observation_dim=1, action_dim=1, episode_len=300)
    made = unlearning("trajdeleter", get_backbone("cpq"), cfg, 10)
    forgetting, convergence = (dict(made.at(step)) for step in (0, 9))
    critics, actor = ("critic", "cost_critic"), ("actor",)
    assert forgetting[actor].func is actor_loss and convergence[critics].func is anchored_critics_loss
    assert [made.phase(step) for step in range(10)] == [0] * 8 + [1] * 2

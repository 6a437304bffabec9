"""Every term of Safe-RULE's losses on a toy critic: values and gradients by hand (Eq. 3-11, Algorithm 2)."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import sigmoid, softplus

from saferule.agents import get_backbone
from saferule.data.batches import Batch, Pair
from saferule.unlearn import coefficients
from saferule.unlearn import safe_rule as sr
from saferule.unlearn.inside import inside

KAPPA, SIGMA = 10.0, 0.5
STATES = torch.eye(4)  # keep batch: states 0 and 1; forget batch: states 2 and 3


def tabular(critic: dict, observations: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """Q(s, a) = value[s] + slope[s] a for one-hot states and one action: (E, B)."""
    return critic["value"] @ observations.t() + (critic["slope"] @ observations.t()) * actions.squeeze(-1)


# A backbone whose critics and actor are tables, and whose Bellman targets are the batch's rewards and costs.
TOY = SimpleNamespace(
    q_reward=lambda nets, observations, actions: tabular(nets["critic"], observations, actions),
    q_cost=lambda nets, observations, actions: tabular(nets["cost_critic"], observations, actions),
    policy=lambda nets, observations, noise, cfg: observations @ nets["actor"]["action"] + noise,
    bellman_targets=lambda nets, batch, noise, cfg: (batch.rewards, batch.costs),
)


def table(value, slope=0.0) -> dict:
    """A critic with the given values (E, 4) and the same slope for all, or one per state."""
    value = torch.tensor(value).reshape(-1, 4)
    return {"value": value, "slope": torch.zeros_like(value) + torch.tensor(slope)}


def toy_nets(critic, cost_critic, actions=(0.0, 0.0, 0.0, 0.0)) -> dict:
    """Networks whose leaves take gradients."""
    nets = {"critic": critic, "cost_critic": cost_critic, "actor": {"action": torch.tensor(actions).reshape(4, 1)}}
    for leaves in nets.values():
        for leaf in leaves.values():
            leaf.requires_grad_(True)
    return nets


def pair(y_r=(0.0, 0.0), y_c=(0.0, 0.0), data_action=0.0) -> Pair:
    """Two keep and two forget transitions; y_r, y_c are the keep targets."""

    def batch(states, rewards, costs):
        return Batch(states, states, torch.full((2, 1), data_action), rewards, costs, torch.zeros(2), torch.zeros(2))

    nothing = torch.full((2,), math.nan)  # labels of forget data enter nowhere
    return Pair(batch(STATES[:2], torch.tensor(y_r), torch.tensor(y_c)), batch(STATES[2:], nothing, nothing))


def scalars(**changes: float) -> dict:
    cfg = get_backbone("cpq").Config(observation_dim=4, action_dim=1, episode_len=300)
    return {name: torch.tensor(value) for name, value in (coefficients("safe-rule", "cpq", cfg) | changes).items()}


ZERO = {"target": torch.zeros(2, 1), "keep_policy": torch.zeros(2, 1), "forget_policy": torch.zeros(2, 1)}


def critics(nets: dict, batch: Pair, **changes: float) -> tuple[float, dict, dict]:
    """Loss, info and the gradients of the critics' tables."""
    loss, info, moved = sr.critics_loss(TOY, nets, scalars(**changes), batch, ZERO, None)
    assert moved == {}
    leaves = [nets["critic"]["value"], nets["cost_critic"]["value"]]
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return loss.item(), info, dict(zip(("critic", "cost_critic"), gradients, strict=True))


def actor(nets: dict, batch: Pair, noise=ZERO, options=(), **changes) -> tuple[float, dict, dict, list[float]]:
    """Loss, info, moved scalars and the gradient of each state's action."""
    loss, info, moved = sr.actor_loss(TOY, nets, scalars(**changes), batch, noise, None, **dict(options))
    (gradient,) = torch.autograd.grad(loss, [nets["actor"]["action"]])
    return loss.item(), info, moved, gradient.flatten().tolist()


# Critic unlearning


def test_keep_regression_pulls_both_critics_to_their_targets_from_both_sides():
    nets = toy_nets(table([1.0, 4.0, 0.0, 0.0]), table([5.0, 2.0, 0.0, 0.0]))
    batch = pair(y_r=(2.0, 2.0), y_c=(3.0, 3.0))
    loss, info, gradients = critics(nets, batch, alpha_f=0.0)
    assert loss == pytest.approx((1 + 4) / 2 + (4 + 1) / 2)  # Eq. 3 and 4
    assert info["critic_loss"].item() == 2.5 and info["cost_critic_loss"].item() == 2.5
    # Derivative 2 (Q - y) / B: below the target it is negative, so descent raises Q.
    assert gradients["critic"].tolist() == [[-1.0, 2.0, 0.0, 0.0]]
    assert gradients["cost_critic"].tolist() == [[2.0, -1.0, 0.0, 0.0]]


def test_forget_terms_push_q_r_down_and_q_c_up():
    q_r, q_c = [0.0, 0.0, 3.5, -2.0], [0.0, 0.0, 12.0, 1.0]
    batch = pair(y_r=(1.0, 2.0))  # median 1.5
    loss, info, gradients = critics(toy_nets(table(q_r), table(q_c)), batch, alpha_k=0.0)
    expected_r = (softplus(3.5 - 1.5) + softplus(-2 - 1.5)) / 2  # Eq. 5
    expected_c = (softplus(10.5 - 12) + softplus(10.5 - 1)) / 2  # Eq. 6
    assert loss == pytest.approx(expected_r + expected_c, rel=1e-6)
    assert info["reward_reference"].item() == 1.5
    assert info["forget_reward_residual"].item() == pytest.approx(expected_r, rel=1e-6)
    assert info["forget_cost_residual"].item() == pytest.approx(expected_c, rel=1e-6)
    assert info["forget_q_cost_data"].item() == 6.5
    # Slope sigmoid(Q - reference) / B > 0: descent lowers Q_r, the more the higher it is.
    assert gradients["critic"][0].tolist() == pytest.approx([0, 0, sigmoid(2.0) / 2, sigmoid(-3.5) / 2], rel=1e-5)
    # Slope -sigmoid(kappa + sigma - Q) / B < 0: descent raises Q_c.
    raising = [0, 0, -sigmoid(-1.5) / 2, -sigmoid(9.5) / 2]
    assert gradients["cost_critic"][0].tolist() == pytest.approx(raising, rel=1e-5)


def test_functions_of_the_forget_terms_by_hand():
    q = torch.tensor([[1.0, 2.0], [0.0, 4.0]], requires_grad=True)
    suppressed = sr.suppress_reward(q, torch.tensor(1.0))
    by_hand = [(softplus(0.0) + softplus(1.0)) / 2, (softplus(-1.0) + softplus(3.0)) / 2]
    assert suppressed.tolist() == pytest.approx(by_hand, rel=1e-6)
    raised = sr.raise_cost(q, torch.tensor(1.0))
    by_hand = [(softplus(0.0) + softplus(-1.0)) / 2, (softplus(1.0) + softplus(-3.0)) / 2]
    assert raised.tolist() == pytest.approx(by_hand, rel=1e-6)
    for loss, sign in ((suppressed, 1), (raised, -1)):
        (gradient,) = torch.autograd.grad(loss.sum(), [q], retain_graph=True)
        by_hand = [[sign * sigmoid(sign * (value - 1)) / 2 for value in row] for row in q.tolist()]
        assert gradient.tolist() == [pytest.approx(row, rel=1e-5) for row in by_hand]


def test_every_member_of_an_ensemble_has_its_own_losses():
    nets = toy_nets(table([[1.0, 1.0, 0.0, 0.0], [3.0, 1.0, 2.0, 0.0]]), table([[0.0] * 4, [0.0, 0.0, 8.0, 4.0]]))
    loss, info, gradients = critics(nets, pair(y_r=(1.0, 1.0)))
    reward = 0 + 4 / 2 + (2 * softplus(-1.0) + softplus(1.0) + softplus(-1.0)) / 2  # reference 1
    cost = 0 + 0 + (2 * softplus(10.5) + softplus(2.5) + softplus(6.5)) / 2
    assert loss == pytest.approx(reward + cost, rel=1e-6)
    per_member = (3 * softplus(-1.0) + softplus(1.0)) / 4
    assert info["forget_reward_residual"].item() == pytest.approx(per_member, rel=1e-6)
    assert info["forget_q_cost_data"].item() == 0.0  # the smallest member
    assert gradients["critic"][1].tolist() == pytest.approx([2.0, 0.0, sigmoid(1.0) / 2, sigmoid(-1.0) / 2])
    assert gradients["cost_critic"][1, 2].item() == pytest.approx(-sigmoid(2.5) / 2, rel=1e-5)


def test_combined_critic_losses_with_weights():
    nets = toy_nets(table([1.0, 4.0, 3.5, -2.0]), table([5.0, 2.0, 12.0, 1.0]))
    batch = pair(y_r=(1.0, 2.0), y_c=(3.0, 3.0))
    loss, _, gradients = critics(nets, batch, alpha_k=0.3, alpha_f=0.7)
    reward = 0.3 * (0 + 4) / 2 + 0.7 * (softplus(2.0) + softplus(-3.5)) / 2  # Eq. 7
    cost = 0.3 * (4 + 1) / 2 + 0.7 * (softplus(-1.5) + softplus(9.5)) / 2  # Eq. 8
    assert loss == pytest.approx(reward + cost, rel=1e-6)
    in_reward = [0.0, 0.3 * 2.0, 0.7 * sigmoid(2.0) / 2, 0.7 * sigmoid(-3.5) / 2]
    in_cost = [0.3 * 2.0, 0.3 * -1.0, -0.7 * sigmoid(-1.5) / 2, -0.7 * sigmoid(9.5) / 2]
    assert gradients["critic"][0].tolist() == pytest.approx(in_reward, rel=1e-5)
    assert gradients["cost_critic"][0].tolist() == pytest.approx(in_cost, rel=1e-5)


def test_no_gradient_flows_into_the_targets_or_the_actor():
    nets = toy_nets(table([1.0, 4.0, 3.5, -2.0]), table([5.0, 2.0, 12.0, 1.0]))
    own = SimpleNamespace(**vars(TOY))
    own.bellman_targets = lambda nets, batch, noise, cfg: (
        tabular(nets["critic"], batch.observations, batch.actions)[0] + 1,
        tabular(nets["cost_critic"], batch.observations, batch.actions)[0] - 1,
    )
    loss, _, _ = sr.critics_loss(own, nets, scalars(alpha_f=0.0), pair(), ZERO, None)
    value, action = torch.autograd.grad(loss, [nets["critic"]["value"], nets["actor"]["action"]], allow_unused=True)
    assert value.tolist() == [[-1.0, -1.0, 0.0, 0.0]] and action is None  # 0 if y_r = Q + 1 moved along
    loss, _, _ = sr.critics_loss(own, nets, scalars(alpha_k=0.0, percentile=1.0), pair(), ZERO, None)
    (value,) = torch.autograd.grad(loss, [nets["critic"]["value"]])
    assert value[0, :2].tolist() == [0.0, 0.0]  # the reference max(Q) + 1 is a constant


@pytest.mark.parametrize(("percentile", "reference"), [(0.0, -1.0), (0.3, 1.4), (0.5, 3.0), (1.0, 9.0)])
def test_percentile_of_the_keep_targets_is_the_reward_reference(percentile, reference):
    y_r = torch.tensor([9.0, -1.0, 3.0])
    keep = Batch(STATES[:3], STATES[:3], torch.zeros(3, 1), y_r, torch.zeros(3), torch.zeros(3), torch.zeros(3))
    nets = toy_nets(table([0.0] * 4), table([0.0] * 4))
    _, info, _ = sr.critics_loss(TOY, nets, scalars(percentile=percentile), Pair(keep, pair().forget), ZERO, None)
    # Between -1 at 0 and 3 at 0.5 the quantile is linear: -1 + 4 * 0.3 / 0.5 = 1.4.
    assert info["reward_reference"].item() == pytest.approx(reference)


def test_reward_only_leaves_the_cost_forget_terms_out():
    nets = toy_nets(table([1.0, 4.0, 3.5, -2.0]), table([5.0, 2.0, 12.0, 1.0]))
    batch = pair(y_r=(1.0, 2.0), y_c=(3.0, 3.0))
    loss, _, gradients = critics(nets, batch, cost_weight=0.0)
    assert loss == pytest.approx((0 + 4) / 2 + (softplus(2.0) + softplus(-3.5)) / 2 + (4 + 1) / 2, rel=1e-6)
    assert gradients["cost_critic"].tolist() == [[2.0, -1.0, 0.0, 0.0]]  # Eq. 4 alone
    assert gradients["critic"][0, 2].item() == pytest.approx(sigmoid(2.0) / 2, rel=1e-5)  # Eq. 5 stays
    # Actor: only the gated reward term of Eq. 10 is left, at state 2.
    nets = toy_nets(table([0.0, 0.0, 7.0, 7.0], slope=2.0), table([0.0, 0.0, 12.0, 1.0], slope=3.0))
    _, info, _, gradient = actor(nets, pair(), cost_weight=0.0, beta_f=1.0, tau_beta=0.0)
    assert info["forget_actor_loss"].item() == pytest.approx(7 / 2)
    assert gradient[2:] == pytest.approx([2.0 / 2, 0.0])


# Actor unlearning. Q_r and Q_c rise by their slopes with the action, so the gradient's sign is the direction.


def test_keep_actor_raises_q_r_only_where_the_gate_is_open():
    nets = toy_nets(table([3.0, 5.0, 0.0, 0.0], slope=2.0), table([9.0, 11.0, 0.0, 0.0]))
    loss, info, _, gradient = actor(nets, pair(), beta_f=0.0, tau_beta=0.0, beta_min=0.0)
    penalty = (softplus(-1.0) + softplus(1.0)) / 2
    assert loss == pytest.approx(-3 / 2 + penalty, rel=1e-6)
    assert info["actor_loss"].item() == pytest.approx(loss)
    assert gradient == pytest.approx([-2.0 / 2, 0.0, 0.0, 0.0])  # descent raises the action, and Q_r with it


def test_keep_actor_lowers_q_c_at_the_policys_action():
    # One state safe, one not: the penalty acts on both, with slope sigmoid(Q_c - kappa).
    nets = toy_nets(table([0.0] * 4), table([9.0, 13.0, 0.0, 0.0], slope=3.0))
    _, _, _, gradient = actor(nets, pair(), beta_f=0.0, tau_beta=0.0, beta_min=0.0)
    assert gradient == pytest.approx([3 * sigmoid(-1.0) / 2, 3 * sigmoid(3.0) / 2, 0.0, 0.0], rel=1e-5)
    # At pi(s), not at the data's action: with an action of 1, Q_c is 12 where the table says 9.
    nets = toy_nets(table([0.0] * 4), table([9.0, 9.0, 0.0, 0.0], slope=3.0), (1.0, 0.0, 0.0, 0.0))
    _, _, _, gradient = actor(nets, pair(), beta_f=0.0, tau_beta=0.0, beta_min=0.0)
    assert gradient[:2] == pytest.approx([3 * sigmoid(2.0) / 2, 3 * sigmoid(-1.0) / 2], rel=1e-5)


def test_forget_actor_lowers_q_r_only_where_the_critic_says_unsafe():
    nets = toy_nets(table([0.0, 0.0, 3.0, 5.0], slope=2.0), table([0.0, 0.0, 9.0, 11.0]))
    _, info, _, gradient = actor(nets, pair(), beta_f=1.0, tau_beta=0.0)
    assert info["forget_actor_loss"].item() == pytest.approx(5 / 2 + (softplus(1.5) + softplus(-0.5)) / 2, rel=1e-6)
    assert gradient[2:] == pytest.approx([0.0, 2.0 / 2])  # descent lowers the action, and Q_r with it


def test_printed_cost_term_moves_the_policy_towards_higher_q_c_and_repelling_away():
    def slopes(repelling):
        nets = toy_nets(table([0.0] * 4), table([0.0, 0.0, 9.0, 13.0], slope=3.0))
        _, info, _, gradient = actor(nets, pair(), beta_f=1.0, tau_beta=0.0, options={"repelling": repelling})
        return info["forget_actor_loss"].item(), gradient[2:]

    value, gradient = slopes(False)
    assert value == pytest.approx((softplus(1.5) + softplus(-2.5)) / 2, rel=1e-6)  # softplus(kappa + sigma - Q_c)
    assert gradient == pytest.approx([-3 * sigmoid(1.5) / 2, -3 * sigmoid(-2.5) / 2], rel=1e-5)
    value, gradient = slopes(True)
    assert value == pytest.approx((softplus(-1.0) + softplus(3.0)) / 2, rel=1e-6)  # softplus(Q_c - kappa)
    assert gradient == pytest.approx([3 * sigmoid(-1.0) / 2, 3 * sigmoid(3.0) / 2], rel=1e-5)


def test_without_its_gate_q_r_is_lowered_in_every_state_of_the_forget_set():
    nets = toy_nets(table([0.0, 0.0, 3.0, 5.0], slope=2.0), table([0.0, 0.0, 9.0, 11.0]))
    _, info, _, gradient = actor(nets, pair(), options={"gated": False}, beta_f=1.0, tau_beta=0.0, cost_weight=0.0)
    assert info["forget_actor_loss"].item() == pytest.approx((3 + 5) / 2)
    assert gradient[2:] == pytest.approx([2.0 / 2, 2.0 / 2])
    assert (info["keep_gates_open"].item(), info["forget_gates_open"].item()) == (1.0, 0.5)


def test_gates_are_open_on_their_boundary():
    kappa = torch.tensor(KAPPA)
    q_r, q_c = torch.tensor([4.0, 4.0, 4.0]), torch.tensor([9.9999, 10.0, 10.0001])
    rest = torch.nn.functional.softplus(q_c - kappa).mean()
    assert (sr.keep_actor_loss(q_r, q_c, kappa, q_c) - rest).item() == pytest.approx(-8 / 3)  # I[Q_c <= kappa]
    rest = torch.nn.functional.softplus(kappa + SIGMA - q_c).mean()
    forget = sr.forget_actor_loss(q_r, q_c, kappa, torch.tensor(SIGMA), torch.tensor(1.0), q_c)
    assert (forget - rest).item() == pytest.approx(8 / 3)  # I[Q_c >= kappa]


def test_gate_reading_looks_at_the_datas_action():
    # pi(s) = 0, data action 1, Q_c = value + 4 a: at pi(s) 9 and 8, at the data's action 13 and 12.
    nets = toy_nets(table([1.0] * 4, slope=2.0), table([9.0, 8.0, 9.0, 8.0], slope=4.0))
    for at_data, keep_open, forget_open in ((False, 1, 0), (True, 0, 1)):
        options = {"gate_at_data": at_data}
        _, info, _, gradient = actor(nets, pair(data_action=1.0), options=options, beta_f=1.0, tau_beta=0.0)
        penalty = (softplus(-1.0) + softplus(-2.0)) / 2  # always at pi(s)
        towards = (softplus(1.5) + softplus(2.5)) / 2
        assert info["actor_loss"].item() == pytest.approx(-keep_open + penalty, rel=1e-6)
        assert info["forget_actor_loss"].item() == pytest.approx(forget_open + towards, rel=1e-6)
        assert gradient[0] == pytest.approx(-keep_open * 2 / 2 + 4 * sigmoid(-1.0) / 2, rel=1e-5)
        assert gradient[2] == pytest.approx(forget_open * 2 / 2 - 4 * sigmoid(1.5) / 2, rel=1e-5)


def test_actor_takes_the_smallest_member_and_its_own_noise():
    nets = toy_nets(table([[1.0, 1.0, 7.0, 7.0], [5.0, 0.5, 2.0, 9.0]]), table([[20.0] * 4, [4.0] * 4], slope=2.0))
    noise = ZERO | {"keep_policy": torch.tensor([[1.0], [0.0]]), "forget_policy": torch.tensor([[0.0], [4.0]])}
    _, info, _, _ = actor(nets, pair(), noise)
    keep = -(1.0 + 0.5) / 2 + (softplus(-4.0) + softplus(-6.0)) / 2
    assert info["actor_loss"].item() == pytest.approx(keep, rel=1e-6)
    # Q_c on forget data: 4 and 4 + 2 * 4 = 12, so only the second gate is open, with Q_r = min(7, 9).
    assert info["forget_q_cost_policy"].item() == 8.0
    assert info["forget_actor_loss"].item() == pytest.approx(7 / 2 + (softplus(6.5) + softplus(-1.5)) / 2, rel=1e-6)


# The adaptive weight


@pytest.mark.parametrize(
    ("beta", "gap", "expected"),
    [
        (0.1, 0.0, 0.1),
        (0.1, 2.0, 0.6),  # 0.1 + 0.25 * 2
        (0.6, -1.0, 0.35),
        (0.1, 3.5, 0.975),
        (0.1, 3.59, 0.9975),
        (0.1, 3.6, 1.0),  # a gap of 3.6 reaches the ceiling in one update
        (0.1, 10.5, 1.0),
        (0.1, -0.36, 0.01),
        (0.1, -9.0, 0.01),
        (1.0, 0.4, 1.0),
    ],
)
def test_next_weight_by_hand(beta, gap, expected):
    assert sr.next_weight(torch.tensor(beta), torch.tensor(gap), scalars()).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("first", "used"), [(True, 0.6), (False, 0.1)])
def test_weight_moves_before_or_after_the_actors_step(first, used):
    # Q_c at pi is 7 and 10 on forget data: mean 8.5, gap 2, next weight 0.1 + 0.25 * 2 = 0.6.
    nets = toy_nets(table([1.0, 1.0, 6.0, 4.0], slope=2.0), table([0.0, 0.0, 7.0, 10.0], slope=1.0))
    loss, info, moved, gradient = actor(nets, pair(), options={"weight_first": first})
    keep = -1 + softplus(-10.0)
    forget = 4 / 2 + (softplus(3.5) + softplus(0.5)) / 2
    assert info["gap"].item() == 2.0
    assert info["beta_f"].item() == pytest.approx(used)
    assert moved["beta_f"].item() == pytest.approx(0.6) and set(moved) == {"beta_f"}
    assert loss == pytest.approx(keep + used * forget, rel=1e-5)  # Eq. 11
    through_actions_alone = [used * -sigmoid(3.5) / 2, used * (2.0 - sigmoid(0.5)) / 2]  # nothing through the gap
    assert gradient[2:] == pytest.approx(through_actions_alone, rel=1e-5)


@pytest.mark.parametrize(
    ("gap", "by_hand"),
    [
        ("policy", 10.5 - (7 + 10) / 2),
        ("data", 10.5 - (9 + 12) / 2),  # Q_c = value + slope a, and the poisoned action is 2
        ("nearness", (7 + 10) / 2 - 10),  # negative: both actions are no worse than kappa in the mean
        ("reward", (6 + 4) / 2 - 3.0),
    ],
)
def test_what_moves_the_weight(gap, by_hand):
    nets = toy_nets(table([1.0, 1.0, 6.0, 4.0], slope=2.0), table([0.0, 0.0, 7.0, 10.0], slope=1.0))
    changes = {"reward_reference": 3.0} if gap == "reward" else {}
    _, info, moved, _ = actor(nets, pair(data_action=2.0), options={"gap": gap}, tau_beta=0.01, **changes)
    assert info["gap"].item() == pytest.approx(by_hand)
    assert moved["beta_f"].item() == pytest.approx(0.1 + 0.01 * by_hand)


def test_nearness_falls_as_a_repelled_policy_leaves_and_the_printed_gap_grows():
    # Q_c rises with the action: the policy leaves by lowering it, which is where the repelling gradient leads.
    gaps = {"policy": [], "nearness": []}
    for action in (3.0, 0.0):
        nets = toy_nets(table([0.0] * 4), table([9.0] * 4, slope=1.0), (0.0, 0.0, action, action))
        for gap, found in gaps.items():
            _, info, _, gradient = actor(nets, pair(), options={"gap": gap, "repelling": True}, beta_min=0.01)
            found.append(info["gap"].item())
            assert min(gradient[2:]) > 0
    assert gaps == {"policy": [-1.5, 1.5], "nearness": [2.0, -1.0]}


def test_the_critics_step_remembers_its_reward_reference_for_a_gap_of_rewards():
    nets = toy_nets(table([0.0] * 4), table([0.0] * 4))
    _, info, moved = sr.critics_loss(TOY, nets, scalars(), pair(y_r=(2.0, 6.0)), ZERO, None, remembers=True)
    assert moved["reward_reference"].item() == info["reward_reference"].item() == 4.0


def test_a_look_at_the_actor_by_hand():
    # One state of each kind at the edge of the box, the others 0.5 from the data's action of 0.
    backbone = SimpleNamespace(**vars(TOY), act=lambda nets, states, noise, cfg: states @ nets["actor"]["action"])
    nets = toy_nets(table([3.0] * 4, slope=2.0), table([0.0] * 4), (1.0, 0.5, -1.0, 0.5))
    values = scalars(beta_f=0.5, beta_min=0.5, tau_beta=0.0)
    seen = inside(backbone, ((("actor",), partial(sr.actor_loss, backbone)),))(nets, values, pair(), ZERO, None)
    found = {name: value.item() for name, value in seen.items()}
    # Only Q_r carries gradient, with slope 2 in the two keep states; on D_f its gate is shut (Q_c = 0).
    assert found["keep_gradient"] == pytest.approx((2 * (2 / 2) ** 2) ** 0.5) and found["forget_gradient"] == 0
    assert found["keep_distance"] == found["forget_distance"] == pytest.approx(0.75)
    assert found["keep_saturated"] == found["forget_saturated"] == 0.5
    nets = toy_nets(table([0.0] * 4), table([10.5] * 4, slope=2.0))
    seen = inside(backbone, ((("actor",), partial(sr.actor_loss, backbone)),))(nets, values, pair(), ZERO, None)
    towards = 0.5 * sigmoid(0.0) * 2 / 2  # beta_f, the slope of softplus at 0, that of Q_c, the mean over two
    assert seen["forget_gradient"].item() == pytest.approx((2 * towards**2) ** 0.5)
    released = inside(backbone, ((("actor",), partial(sr.actor_loss, backbone)),), forgets=True)
    assert released(nets, values, pair(), ZERO, None)["keep_gradient"].item() == 0


def test_fixed_weight_stays_one():
    cfg = get_backbone("cpq").Config(observation_dim=4, action_dim=1, episode_len=300)
    fixed = {name: torch.tensor(value) for name, value in coefficients("fixed-weight", "cpq", cfg).items()}
    for gap in (5.0, 0.0, -0.1, -50.0, 3.0):
        fixed["beta_f"] = sr.next_weight(fixed["beta_f"], torch.tensor(gap), fixed)
        assert fixed["beta_f"].item() == 1.0

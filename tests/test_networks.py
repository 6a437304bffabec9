"""Networks against plain torch.nn modules, with and without vmap; quantile, losses, PID multiplier by hand."""

import math

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence
from torch.func import vmap

from saferule.agents import networks as ours
from saferule.agents.parts import discounted_limit, init_pid, pid_multiplier
from saferule.agents.population import member, stack

S, A, OUT, H = 3, 2, 4, 8


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of(networks: dict, index: int) -> dict:
    """One agent, or one member of an ensemble."""
    return {name: value[index] for name, value in networks.items()}


def sequential(network: dict, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """The torch.nn module with the parameters of one network (no ensemble axis)."""
    layers: list[nn.Module] = []
    for i in range(len(network) // 2):
        weight = network[f"w{i}"]
        linear = nn.Linear(*weight.shape)
        linear.weight.data, linear.bias.data = weight.t().clone(), network[f"b{i}"].flatten().clone()
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def reference(network: dict, state: torch.Tensor, action: torch.Tensor, ensemble: int | None) -> torch.Tensor:
    """The same as `mlp` with the state repeated for each sample, by nn.Linear, member by member."""
    shape = torch.broadcast_shapes(state.shape[:-1], action.shape[:-1])
    both = torch.cat((state.expand(*shape, -1), action.expand(*shape, -1)), dim=-1)
    if ensemble is None:
        return sequential(network)(both)
    return torch.stack([sequential(of(network, e))(both) for e in range(ensemble)])


CASES = [
    ((*states, batch, S), (*actions, batch, A), ensemble)
    for batch in (5, 1)
    for ensemble in (None, 1, 4)
    for states, actions in (((), ()), ((), (7,)), ((), (1,)), ((7,), (7,)), ((7,), ()))
]


@pytest.mark.parametrize(("state_shape", "action_shape", "ensemble"), CASES)
@pytest.mark.parametrize("hidden", [(), (H,), (H, 6)])
def test_mlp_equals_torch_nn(state_shape, action_shape, ensemble, hidden):
    generator = seeded()
    network = ours.init_mlp((S + A, *hidden, OUT), generator, ensemble)
    state, action = (torch.randn(shape, generator=generator) for shape in (state_shape, action_shape))
    expected = reference(network, state, action, ensemble)
    kept = state.clone(), action.clone()
    torch.testing.assert_close(ours.mlp(network, state, action), expected)
    assert torch.equal(kept[0], state) and torch.equal(kept[1], action)  # in-place sums spare the inputs


@pytest.mark.parametrize(("state_shape", "action_shape", "ensemble"), CASES)
def test_mlp_under_vmap_and_its_gradient(state_shape, action_shape, ensemble):
    generator, agents = seeded(), 3
    networks = stack([ours.init_mlp((S + A, H, OUT), generator, ensemble) for _ in range(agents)])
    states = torch.randn(agents, *state_shape, generator=generator)
    actions = torch.randn(agents, *action_shape, generator=generator, requires_grad=True)
    for leaf in networks.values():
        leaf.requires_grad_(True)
    out = vmap(ours.mlp)(networks, states, actions)
    expected = torch.stack([reference(of(networks, p), states[p], actions[p], ensemble) for p in range(agents)])
    torch.testing.assert_close(out, expected)
    by_hand = torch.stack([ours.mlp(of(networks, p), states[p], actions[p]) for p in range(agents)])
    leaves = [actions, *networks.values()]
    weights = torch.randn(out.shape, generator=generator)
    stacked = torch.autograd.grad((weights * out).sum(), leaves)
    alone = torch.autograd.grad((weights * by_hand).sum(), leaves)
    torch.testing.assert_close(stacked, alone)
    # The path of one agent against autograd through nn.Linear: the gradient with respect to the actions.
    first = actions[0].detach().requires_grad_(True)
    out = reference(of(networks, 0), states[0], first, ensemble)
    (slope,) = torch.autograd.grad((weights[0] * out).sum(), first)
    torch.testing.assert_close(stacked[0][0], slope)


def test_mlp_with_one_input_and_another_activation():
    network = ours.init_mlp((S, H, H, OUT), seeded())
    x = torch.randn(5, S, generator=seeded(1))
    torch.testing.assert_close(ours.mlp(network, x, activation=torch.tanh_), sequential(network, nn.Tanh)(x))


def test_init_has_the_scale_of_nn_linear():
    network = ours.init_mlp((100, 300, 2), seeded(), ensemble=2)
    shapes = {"w0": (2, 100, 300), "b0": (2, 1, 300), "w1": (2, 300, 2), "b1": (2, 1, 2)}
    assert {k: tuple(v.shape) for k, v in network.items()} == shapes
    for i, fan_in in enumerate((100, 300)):
        bound = 1 / math.sqrt(fan_in)
        for leaf in (network[f"w{i}"], network[f"b{i}"]):
            assert leaf.abs().max() <= bound
        # uniform: standard deviation bound / sqrt(3)
        assert network[f"w{i}"].std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not torch.equal(network["w0"][0], network["w0"][1])


def test_q_values_and_state_values():
    critic = ours.init_mlp((S + A, H, 1), seeded(), ensemble=4)
    state, actions = torch.randn(5, S, generator=seeded(1)), torch.randn(7, 5, A, generator=seeded(2))
    assert ours.q_values(critic, state, actions[0]).shape == (4, 5)
    torch.testing.assert_close(ours.q_values(critic, state, actions)[:, 3], ours.q_values(critic, state, actions[3]))
    nu = ours.init_mlp((S, H, 1), seeded(), ensemble=2)
    assert ours.q_values(nu, state).shape == (2, 5)


def test_gaussian_clamps_the_log_deviation():
    actor = {"w0": torch.zeros(1, 4), "b0": torch.tensor([0.3, -0.7, -50.0, 9.0])}
    mean, std = ours.gaussian(actor, torch.zeros(1, 1))
    torch.testing.assert_close(mean, torch.tensor([[0.3, -0.7]]))
    torch.testing.assert_close(std, torch.tensor([[math.exp(-20), math.exp(2)]]))


def reference_vae_loss(encoder, decoder, state, action, noise, beta):
    """That of BCQ's conditional VAE, by plain modules."""
    mean, log_std = encoder(torch.cat((state, action), 1)).chunk(2, 1)
    std = log_std.clamp(-4, 15).exp()
    decoded = torch.tanh(decoder(torch.cat((state, mean + std * noise), 1)))
    kl = kl_divergence(Normal(mean, std), Normal(torch.zeros_like(mean), 1.0)).mean()
    return F.mse_loss(decoded, action) + beta * kl


@pytest.mark.parametrize("batch", [6, 1])
def test_vae_loss_and_gradient_equal_a_torch_nn_reference(batch):
    generator, latent, agents = seeded(), 2 * A, 2
    vaes = stack([ours.init_vae(S, A, H, latent, generator) for _ in range(agents)])
    state = torch.randn(agents, batch, S, generator=generator)
    action = torch.rand(agents, batch, A, generator=generator) * 2 - 1
    noise = torch.randn(agents, batch, latent, generator=generator)
    for leaf in vaes.values():
        leaf.requires_grad_(True)
    losses = vmap(lambda v, s, a, z: ours.vae_loss(v, s, a, z, 0.5))(vaes, state, action, noise)
    gradients = dict(zip(vaes, torch.autograd.grad(losses.sum(), list(vaes.values())), strict=True))
    for p in range(agents):
        own = member(vaes, p)
        encoder, decoder = (sequential({k[2:]: v for k, v in own.items() if k[:2] == part}) for part in ("e_", "d_"))
        loss = reference_vae_loss(encoder, decoder, state[p], action[p], noise[p], 0.5)
        loss.backward()
        torch.testing.assert_close(losses[p], loss)
        torch.testing.assert_close(gradients["e_w0"][p], encoder[0].weight.grad.t())
        torch.testing.assert_close(gradients["d_b2"][p], decoder[4].bias.grad)


def test_vae_decodes_samples_and_clips_latents():
    vae = ours.init_vae(S, A, H, 2 * A, seeded())
    state, latent = torch.randn(5, S, generator=seeded(1)), torch.randn(7, 5, 2 * A, generator=seeded(2))
    decoded = ours.vae_decode(vae, state, latent)
    torch.testing.assert_close(decoded[2], ours.vae_decode(vae, state, latent[2]))
    assert decoded.abs().max() < 1
    mean, std = ours.vae_encode(vae, state, decoded)
    torch.testing.assert_close(mean[4], ours.vae_encode(vae, state, decoded[4])[0])
    assert std.shape == (7, 5, 2 * A)
    torch.testing.assert_close(ours.clip_latent(torch.tensor([-3.0, 0.2, 0.7])), torch.tensor([-0.5, 0.2, 0.5]))


def test_latent_kl_by_hand():
    # KL(N(m, s) | N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s
    kl = ours.latent_kl(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 0.5]))
    torch.testing.assert_close(kl, torch.tensor([0.0, 0.5, (4 + 0.25 - 1) / 2 + math.log(2)]))


def test_double_q_and_td_loss_by_hand():
    q = torch.tensor([[1.0, 5.0], [2.0, 3.0], [0.0, 9.0], [4.0, 7.0]])  # E = 4, B = 2
    one, two = ours.double_q(q)
    assert one.tolist() == [1.0, 3.0] and two.tolist() == [0.0, 7.0]
    # Squared errors to (1, 3): (0, 4), (1, 0), (1, 36), (9, 16); means 2, 0.5, 18.5, 12.5.
    assert ours.td_loss(q, torch.tensor([1.0, 3.0])).item() == pytest.approx(33.5)


@pytest.mark.parametrize("size", [1, 2, 5, 12])
@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.75, 1.0])
def test_quantile_equals_torch(size, q):
    values = torch.randn(size, generator=seeded(size))
    torch.testing.assert_close(ours.quantile(values, q), torch.quantile(values, q))


def test_quantile_with_a_level_per_agent_under_vmap():
    values = torch.randn(4, 9, generator=seeded())
    levels = torch.tensor([0.0, 0.5, 1.0, 0.3])
    expected = torch.stack([torch.quantile(v, q.item()) for v, q in zip(values, levels, strict=True)])
    torch.testing.assert_close(vmap(ours.quantile)(values, levels), expected)
    assert torch.equal(expected[:3], torch.stack([values[0].min(), values[1].median(), values[2].max()]))


def test_pid_multiplier_by_hand_over_three_steps():
    scalars, gains = init_pid(), (0.1, 0.003, 0.001)
    # Errors 2, 3, -4: integrals 2, 5, 1; rises of the error 2, 1, 0.
    expected = (0.1 * 2 + 0.003 * 2 + 0.001 * 2, 0.1 * 3 + 0.003 * 5 + 0.001 * 1, 0.003 * 1)
    for mean_cost, multiplier in zip((3.0, 4.0, -3.0), expected, strict=True):
        costs = torch.tensor([mean_cost - 0.5, mean_cost + 0.5], requires_grad=True)
        value, scalars = pid_multiplier(scalars, costs, 1.0, gains)
        assert value.item() == pytest.approx(multiplier, rel=1e-6)
        assert not value.requires_grad  # the multiplier is a constant of the actor's loss
    assert scalars["pid_error"].item() == -4 and scalars["pid_integral"].item() == 1
    value, scalars = pid_multiplier(scalars, torch.tensor([-9.0]), 1.0, gains)
    assert value.item() == 0 and scalars["pid_integral"].item() == 0  # neither goes below zero


@pytest.mark.parametrize(("horizon", "level"), [(1000, 1.00), (500, 1.99), (300, 3.17)])
def test_discounted_limit(horizon, level):
    assert discounted_limit(10, 0.99, horizon) == pytest.approx(level, abs=0.005)

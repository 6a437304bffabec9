"""Networks as functions of their parameters, written for one agent.

A network is a flat dict of tensors: layer i has ``w<i>`` of shape (in, out) and ``b<i>`` of shape (out,). An ensemble
of E networks of the same form is the same dict with a leading axis: ``w<i>`` (E, in, out) and ``b<i>`` (E, 1, out). The
population axis is never written here; ``torch.func.vmap`` adds it (`saferule.agents.population`).

Letters in shapes: B batch, S observation, A action, L latent, H hidden, E ensemble, n samples of one state.

The first layer takes its inputs in parts and adds their products. A state that is shared by n sampled actions is
therefore multiplied once, not n times, which removes a fifth of the work of a target pass (osrl-lib repeats the state
instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Network = dict[str, Tensor]

LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0  # of the squashed Gaussian policy (osrl-lib net.py)
VAE_LOG_STD_MIN, VAE_LOG_STD_MAX = -4.0, 15.0
THIN = 4  # columns of a product that count as few
LATENT_CLIP = 0.5  # latents are drawn from a standard normal clipped to this range (osrl-lib VAE.decode)


def init_mlp(sizes: tuple[int, ...], generator: torch.Generator, ensemble: int | None = None) -> Network:
    """Parameters of an MLP with layer widths ``sizes``, drawn like ``torch.nn.Linear``: uniform in +-1/sqrt(fan_in)."""
    lead, bias_lead = ((), ()) if ensemble is None else ((ensemble,), (ensemble, 1))
    network = {}
    for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        bound = 1.0 / math.sqrt(fan_in)
        network[f"w{i}"] = (2 * torch.rand(*lead, fan_in, fan_out, generator=generator) - 1) * bound
        network[f"b{i}"] = (2 * torch.rand(*bias_lead, fan_out, generator=generator) - 1) * bound
    return network


def depth(network: Network) -> int:
    """Number of layers."""
    return len(network) // 2


def mlp(network: Network, *inputs: Tensor, activation: Callable[[Tensor], Tensor] = torch.relu_) -> Tensor:
    """The network's output before any output activation.

    inputs  parts of the input, each (B, d) or (n, B, d); parts without the sample axis are shared by all samples
    Returns (B, out) or (n, B, out); with a leading E for an ensemble: (E, B, out) or (E, n, B, out).
    """
    samples = max((x.shape[0] for x in inputs if x.dim() == 3), default=None)
    products, start = [], 0
    for x in inputs:
        product = product_with(x.flatten(0, -2), network["w0"][..., start : start + x.shape[-1], :])
        if samples:
            product = product.unflatten(-2, (x.shape[0] if x.dim() == 3 else 1, -1))
        products.append(product)
        start += x.shape[-1]
    products.sort(key=Tensor.numel, reverse=True)  # the first now has the full shape and can be added to in place
    bias = network["b0"].unsqueeze(-3) if samples and network["b0"].dim() == 3 else network["b0"]
    products[-1] = products[-1].add_(bias)  # the smallest: a state's, where it is shared by n actions
    hidden = products[0]
    for product in products[1:]:
        hidden = hidden.add_(product)
    if samples:
        hidden = hidden.flatten(-3, -2)
    for i in range(1, depth(network)):
        hidden = product_with(activation(hidden), network[f"w{i}"]).add_(network[f"b{i}"])
    return hidden.unflatten(-2, (samples, -1)) if samples else hidden


def product_with(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight, (rows, in) or (E, rows, in) times (in, out) or (E, in, out).

    Batched products with few columns are slow: one column is a row-wise dot product (six times as fast), a few want the
    weight column by column (five times).
    """
    columns = weight.shape[-1]
    if columns == 1:
        return (x * weight.mT).sum(-1, keepdim=True)
    return x @ weight.mT.contiguous().mT if columns <= THIN else x @ weight


def q_values(critic: Network, observations: Tensor, *actions: Tensor) -> Tensor:
    """Values of an ensemble: (E, B), or (E, n, B) for n actions per state. Without actions: a state value (nu, chi)."""
    return mlp(critic, observations, *actions).squeeze(-1)


def gaussian(actor: Network, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (B, A), of the Gaussian under the tanh (osrl-lib SquashedGaussianMLPActor)."""
    mean, log_std = mlp(actor, observations).chunk(2, dim=-1)
    return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX).exp()


def init_vae(
    observation_dim: int, action_dim: int, hidden: int, latent_dim: int, generator: torch.Generator
) -> Network:
    """Encoder and decoder of the conditional VAE in one dict: names start with ``e_`` and ``d_`` (osrl-lib VAE)."""
    encoder = init_mlp((observation_dim + action_dim, hidden, hidden, 2 * latent_dim), generator)
    decoder = init_mlp((observation_dim + latent_dim, hidden, hidden, action_dim), generator)
    return {f"e_{k}": v for k, v in encoder.items()} | {f"d_{k}": v for k, v in decoder.items()}


def _part(vae: Network, prefix: str) -> Network:
    return {name[2:]: value for name, value in vae.items() if name.startswith(prefix)}


def vae_encode(vae: Network, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latent, each (..., B, L), for actions (B, A) or (n, B, A)."""
    mean, log_std = mlp(_part(vae, "e_"), observations, actions).chunk(2, dim=-1)
    return mean, log_std.clamp(VAE_LOG_STD_MIN, VAE_LOG_STD_MAX).exp()


def vae_decode_raw(vae: Network, observations: Tensor, latent: Tensor) -> Tensor:
    """Actions before the tanh, (B, A) or (n, B, A), for latents (B, L) or (n, B, L)."""
    return mlp(_part(vae, "d_"), observations, latent)


def vae_decode(vae: Network, observations: Tensor, latent: Tensor) -> Tensor:
    """Actions in [-1, 1] for given latents."""
    return vae_decode_raw(vae, observations, latent).tanh()


def clip_latent(noise: Tensor) -> Tensor:
    """Standard normal noise made a latent sample, as osrl-lib draws it for acting and for targets."""
    return noise.clamp(-LATENT_CLIP, LATENT_CLIP)


def latent_kl(mean: Tensor, std: Tensor) -> Tensor:
    """Element-wise KL divergence of N(mean, std) from the standard normal, same shape as the inputs."""
    return -0.5 * (1 + torch.log(std.pow(2)) - mean.pow(2) - std.pow(2))


def vae_loss(vae: Network, observations: Tensor, actions: Tensor, noise: Tensor, beta: float) -> Tensor:
    """Reconstruction error plus ``beta`` times the KL divergence, means over batch and coordinates (scalar).

    noise  (B, L) standard normal, the reparametrised latent draw
    """
    mean, std = vae_encode(vae, observations, actions)
    reconstruction = vae_decode(vae, observations, mean + std * noise)
    return F.mse_loss(reconstruction, actions) + beta * latent_kl(mean, std).mean()


def double_q(q: Tensor) -> tuple[Tensor, Tensor]:
    """The two pessimistic values (B,) or (n, B) of a double ensemble: minimum of its first and of its second half."""
    first, second = q.chunk(2)
    return first.amin(0), second.amin(0)


def best_of_candidates(q: Tensor, lmbda: float) -> Tensor:
    """The largest, over n candidate actions, of lmbda times the smaller plus (1 - lmbda) times the larger double value.

    q  (E, n, B), a double ensemble;  returns (B,)
    """
    one, two = double_q(q)
    return (lmbda * torch.minimum(one, two) + (1 - lmbda) * torch.maximum(one, two)).amax(0)


def td_loss(q: Tensor, target: Tensor) -> Tensor:
    """Squared error of each ensemble member's (E, B) values to one target (B,): mean over B, sum over E."""
    return (q - target).pow(2).mean(-1).sum()


def quantile(values: Tensor, q: float | Tensor) -> Tensor:
    """The q-quantile (0..1) of values (N,), interpolated as by ``torch.quantile``, which has no rule for vmap."""
    ordered, last = values.sort().values, values.shape[0] - 1
    if isinstance(q, Tensor):
        position = q.to(values.dtype) * last
        below = position.floor()
        low, high = ordered[below.long()], ordered[position.ceil().long()]
        return torch.lerp(low, high, position - below)
    below = math.floor(q * last)
    return torch.lerp(ordered[below], ordered[math.ceil(q * last)], q * last - below)

"""Train P agents of one backbone at once: stacked parameters, ``torch.func.vmap`` over the agents, one fused Adam per
network.

The losses are written for one agent. Their sum over the population has, for each agent, the gradient of its own loss,
so one backward pass serves all. A population of one is the ordinary case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from saferule.agents.networks import Network
from saferule.agents.parts import Nets, Noise, Scalars

Report = tuple[Tensor, dict[str, Tensor], Scalars]  # of a loss: its value, what is logged, changed scalars
Loss = Callable[..., Report]
Losses = tuple[tuple[tuple[str, ...], Loss], ...]
Look = Callable[..., dict[str, Tensor]]  # takes what a loss takes; reports and changes nothing


@dataclass(frozen=True)
class Algorithm:
    """What is done in each step: a backbone's training, or an unlearning method on top of it.

    phases        the losses of each phase: ((names of the networks it trains, loss), ...) in the order of application
    noise_shapes  names and shapes of the standard normal draws of one agent's step
    targets       {target network: network it follows}
    cfg           the backbone's settings (learning rates, tau)
    phase         step, counted from 0 -> the number of the phase that it belongs to
    looks         for each phase, what is worth looking at now and then beside the losses; empty for nothing
    """

    phases: tuple[Losses, ...]
    noise_shapes: dict[str, tuple[int, ...]]
    targets: dict[str, str]
    cfg: Any
    phase: Callable[[int], int] = lambda step: 0
    looks: tuple[Look, ...] = ()

    def at(self, step: int) -> Losses:
        """The losses that are applied in a step."""
        return self.phases[self.phase(step)]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the networks that some loss trains."""
        return tuple(dict.fromkeys(name for losses in self.phases for names, _ in losses for name in names))


def training(backbone: Any, cfg: Any) -> Algorithm:
    """The ordinary training step of a backbone."""
    return Algorithm((backbone.LOSSES,), backbone.noise_shapes(cfg, cfg.batch_size), backbone.TARGETS, cfg)


@dataclass
class Population:
    """The complete state of P agents: networks, targets, scalars, optimisers, generators, step.

    nets        {network: {parameter: (P, ...)}}
    scalars     {name: (P, ...)}, multipliers and coefficients
    optimisers  {network: Adam over its stacked parameters}
    generators  one per agent, the source of its batches and noise
    """

    nets: Nets
    scalars: Scalars
    optimisers: dict[str, torch.optim.Adam]
    generators: list[torch.Generator]
    step: int = 0

    def __len__(self) -> int:
        return len(self.generators)


def create(backbone: Any, cfg: Any, seeds: Sequence[int], device: str | torch.device = "cpu") -> Population:
    """Fresh agents, one per seed. The agent of a seed does not depend on the others."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    members = [backbone.init(cfg, generator) for generator in generators]
    nets = stack([nets for nets, _ in members], device)
    nets |= {target: tree_map(torch.clone, nets[source]) for target, source in backbone.TARGETS.items()}
    population = Population(nets, stack([scalars for _, scalars in members], device), {}, generators)
    reset_optimisers(population, training(backbone, cfg))
    return population


def stack(trees: Sequence[Any], device: str | torch.device = "cpu") -> Any:
    """One tree of tensors with a leading population axis from P trees of the same form."""
    return tree_map(lambda *leaves: torch.stack(leaves).to(device), *trees)


def member(tree: Any, index: int) -> Any:
    """The tree of one agent, copied out of a stacked one."""
    return tree_map(lambda leaf: leaf[index].detach().clone(), tree)


def reset_optimisers(population: Population, algorithm: Algorithm) -> None:
    """Cold Adam for every network that the algorithm trains."""
    rates = algorithm.cfg.learning_rates
    population.optimisers = {name: adam(population.nets[name], rates[name]) for name in algorithm.trained}


def adam(
    network: Network, learning_rate: float, moments: dict[str, dict[str, Tensor]] | None = None
) -> torch.optim.Adam:
    """Adam over a network's parameters, with the moments that `tensors_of` gave of each, or cold.

    Cold moments are there from the beginning, as Adam's first step would make them: a state saved before a network's
    first step is complete too.
    """
    optimiser = torch.optim.Adam([leaf.requires_grad_(True) for leaf in network.values()], learning_rate, fused=True)
    for name, leaf in network.items():
        cold = {moment: torch.zeros_like(leaf) for moment in ("exp_avg", "exp_avg_sq")}
        cold["step"] = torch.zeros((), dtype=torch.float32, device=leaf.device)
        optimiser.state[leaf] = moments[name] if moments else cold
    return optimiser


def draw_noise(population: Population, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype) -> Noise:
    """Standard normal draws, (P, ...) each; agent p's come from its own generator, one call per agent."""
    sizes = [int(torch.Size(shape).numel()) for shape in shapes.values()]
    flat = torch.stack([torch.randn(sum(sizes), generator=g, dtype=dtype) for g in population.generators])
    flat = flat.to(next(iter(population.nets["actor"].values())).device, non_blocking=True)
    parts = flat.split(sizes, dim=1)
    return {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def update(population: Population, algorithm: Algorithm, batch: Any, noise: Noise) -> dict[str, Tensor]:
    """The next step of all agents, in place. batch and noise carry the leading population axis.

    Returns what the losses report, (P,) each, detached and still on the device.
    """
    nets, info = population.nets, {}
    for names, loss in algorithm.at(population.step):
        view = {name: net if name in names else tree_map(torch.detach, net) for name, net in nets.items()}
        values, reported, changed = vmap(lambda n, s, b, z, loss=loss: loss(n, s, b, z, algorithm.cfg))(
            view, population.scalars, batch, noise
        )
        leaves = [leaf for name in names for leaf in nets[name].values()]
        for leaf, gradient in zip(leaves, torch.autograd.grad(values.sum(), leaves), strict=True):
            leaf.grad = gradient
        for name in names:
            population.optimisers[name].step()
        with torch.no_grad():
            for name, value in changed.items():
                population.scalars[name].copy_(value)
        info |= {name: value.detach() for name, value in reported.items()}
    with torch.no_grad():
        follow(nets, algorithm.targets, algorithm.cfg)
    population.step += 1
    return info


@torch.no_grad()
def look(population: Population, algorithm: Algorithm, batch: Any, noise: Noise) -> dict[str, Tensor]:
    """What the algorithm looks at before the next step, (P,) each; all agents stay as they are."""
    if not algorithm.looks:
        return {}
    seen = algorithm.looks[algorithm.phase(population.step)]
    nets = tree_map(torch.detach, population.nets)
    return vmap(lambda n, s, b, z: seen(n, s, b, z, algorithm.cfg))(nets, population.scalars, batch, noise)


def follow(nets: Nets, targets: dict[str, str], cfg: Any) -> None:
    """Move the target networks a step tau towards their networks, in place."""
    pairs = [(nets[t][k], nets[s][k]) for t, s in targets.items() for k in nets[t]]
    if pairs:
        torch._foreach_lerp_([target for target, _ in pairs], [source.detach() for _, source in pairs], cfg.tau)

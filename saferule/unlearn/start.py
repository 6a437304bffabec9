"""What a method starts from: coefficients, frozen copies, what the data sets give; and the batches that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saferule.agents.networks import quantile
from saferule.agents.parts import Nets, Scalars, originals
from saferule.agents.population import Algorithm, Population, member, reset_optimisers, stack
from saferule.data.batches import Batch, Pair, TransitionPool, draw_rows
from saferule.unlearn import coefficients, family, get_method
from saferule.unlearn.safe_rule_dice import LOW, log_likelihood

CHUNK = 1024  # transitions whose Bellman targets are computed at once
Rows = Sequence[tuple[Tensor, Tensor]]  # for each agent: the rows of its keep and of its forget set in the pool


def prepare(
    population: Population,
    algorithm: Algorithm,
    backbone: ModuleType,
    methods: Sequence[str],
    readings: Sequence[Mapping[str, str]],
    pool: TransitionPool,
    rows: Rows,
) -> None:
    """Make agents ready, in place: agent p for ``methods[p]`` under ``readings[p]``, all of one family and its losses.

    Adds the coefficients to the scalars and, where the method refers to the agent that it started from, frozen copies
    of its networks; Adam starts cold and the steps count from 0. Statistics of the data are those of what is trained
    on: D_k in a method that takes pairs, else D_k and D_f. Where the reward reference is taken over all of D_k (reading
    reference = dataset), it is computed here, once, from the corrupted agent's Bellman targets; so is COptiDICE's floor
    of the likelihood (likelihood = bounded).
    """
    cfg, paired = algorithm.cfg, family(methods[0], backbone.NAME).PAIRED
    added = [coefficients(m, backbone.NAME, cfg, r) for m, r in zip(methods, readings, strict=True)]
    like = next(iter(population.nets["actor"].values()))
    population.scalars |= {k: like.new_tensor([values[k] for values in added]) for k in added[0]}
    if backbone.statistics is not None:
        seen = [keep if paired else torch.cat((keep, forget)) for keep, forget in rows]
        population.scalars |= stack([statistics(backbone, pool, own) for own in seen])
        if paired:
            first = [pool.gather(forget).is_init.mean() for _, forget in rows]
            population.scalars["forget_init_proportion"] = torch.stack(first)
    if "dataset_reference" in population.scalars:
        for p, (keep, _) in enumerate(rows):
            y_r = reward_targets(backbone, member(population.nets, p), cfg, pool, keep)
            population.scalars["dataset_reference"][p] = quantile(y_r, population.scalars["percentile"][p])
    if "likelihood_floor" in population.scalars:
        for p, (keep, _) in enumerate(rows):
            with torch.no_grad():
                likely = log_likelihood(member(population.nets, p)["actor"], pool.gather(keep))
            population.scalars["likelihood_floor"][p] = quantile(likely, LOW)
    if get_method(methods[0]).frozen_copy:
        population.nets |= originals(population.nets)
    population.step = 0
    reset_optimisers(population, algorithm)


def random_part(episodes: Sequence[slice], samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers of (the rest, a random part) of a data set: whole trajectories, the last one cut to the count."""
    order = np.random.default_rng(seed).permutation(len(episodes))
    rows = np.concatenate([np.arange(episodes[i].start, episodes[i].stop) for i in order])
    part, rest = np.sort(rows[:samples]), np.sort(rows[samples:])
    return torch.from_numpy(rest), torch.from_numpy(part)


def known_part(clean: int, poisoned: int, share: float, mistaken: float, seed: int) -> np.ndarray:
    """Which trajectories somebody forgets who knows a share of D_f's: (clean + poisoned,) bool, D's before D_f's.

    mistaken  the share of D that is taken for poison. A larger share of either holds the smaller.
    """
    marked = np.zeros(clean + poisoned, dtype=bool)
    for first, number, part in ((0, clean, mistaken), (clean, poisoned, share)):
        order = np.random.default_rng(seed).permutation(number)
        marked[first + order[: round(part * number)]] = True
    return marked


def statistics(backbone: ModuleType, pool: TransitionPool, rows: Tensor) -> Scalars:
    """What a backbone with ``statistics`` (COptiDICE) needs to know of its training data."""
    seen = pool.gather(rows)
    return backbone.statistics(seen.observations, seen.actions, seen.is_init)


@torch.no_grad()
def reward_targets(backbone: ModuleType, nets: Nets, cfg: Any, pool: TransitionPool, rows: Tensor) -> Tensor:
    """The Bellman targets y_r (N,) of one agent at these rows of the pool.

    The actions in the targets are drawn with a generator of their own, so that the reading of the reward reference
    changes no batch and no noise of the steps that follow.
    """
    generator, parts = torch.Generator().manual_seed(0), []
    for chunk in rows.split(CHUNK):
        batch = pool.gather(chunk)
        shape = backbone.noise_shapes(cfg, len(chunk))["target"]
        noise = torch.randn(shape, generator=generator, dtype=batch.rewards.dtype).to(batch.rewards.device)
        parts.append(backbone.bellman_targets(nets, batch, noise, cfg)[0])
    return torch.cat(parts)


def draw_batches(
    method: str, backbone: ModuleType, pool: TransitionPool, rows: Rows, batch_size: int
) -> Callable[[Population, Sequence[int]], Any]:
    """``draw_batch`` of the training loop, with a leading P, as the method wants it.

    A keep and a forget batch (P, B) per step (Algorithm 2, lines 3-4), or one batch of D and D_f together.
    """

    def draw_pair(population: Population, agents: Sequence[int]) -> Pair:
        sides = zip(*(rows[a] for a in agents), strict=True)
        return Pair(*(pool.gather(draw_rows(population.generators, side, batch_size)) for side in sides))

    if family(method, backbone.NAME).PAIRED:
        return draw_pair
    everything = [torch.cat(own) for own in rows]

    def draw(population: Population, agents: Sequence[int]) -> Batch:
        return pool.gather(draw_rows(population.generators, [everything[a] for a in agents], batch_size))

    return draw

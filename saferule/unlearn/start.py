"""What unlearning needs of its two data sets: pairs of batches, and what is computed once from all of D_k or D_f."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from saferule.agents.networks import quantile
from saferule.agents.parts import Nets, Scalars
from saferule.agents.population import Population, member, stack
from saferule.data.batches import Pair, TransitionPool, draw_rows

CHUNK = 1024  # transitions whose Bellman targets are computed at once
Rows = Sequence[tuple[Tensor, Tensor]]  # for each agent: the rows of its keep and of its forget set in the pool


def pairs(pool: TransitionPool, rows: Rows, batch_size: int) -> Callable[[Population, Sequence[int]], Pair]:
    """``draw_batch`` of the training loop: a keep and a forget batch (P, B) per step (Algorithm 2, lines 3-4)."""

    def draw(population: Population, agents: Sequence[int]) -> Pair:
        sides = zip(*(rows[a] for a in agents), strict=True)
        return Pair(*(pool.gather(draw_rows(population.generators, side, batch_size)) for side in sides))

    return draw


def statistics(backbone: ModuleType, pool: TransitionPool, rows: Tensor) -> Scalars:
    """What a backbone with ``statistics`` (COptiDICE) needs to know of its training data."""
    seen = pool.gather(rows)
    return backbone.statistics(seen.observations, seen.actions, seen.is_init)


def adapt(population: Population, backbone: ModuleType, cfg: Any, pool: TransitionPool, rows: Rows) -> None:
    """Take from the data what does not change during unlearning, in place; after `saferule.unlearn.begin`.

    D_k is the training data from now on: its statistics replace those of the poisoned data. Where the reward reference
    is to be taken over all of D_k, it is computed here, once, from the corrupted agent's Bellman targets.
    """
    if hasattr(backbone, "statistics"):
        population.scalars |= stack([statistics(backbone, pool, keep) for keep, _ in rows])
        first = [pool.gather(forget).is_init.mean() for _, forget in rows]
        population.scalars |= {"forget_init_proportion": torch.stack(first)}
    scalars = population.scalars
    if hasattr(backbone, "bellman_targets") and "reference_fixed" in scalars:
        for p in scalars["reference_fixed"].nonzero().flatten().tolist():
            y_r = reward_targets(backbone, member(population.nets, p), cfg, pool, rows[p][0])
            scalars["dataset_reference"][p] = quantile(y_r, scalars["percentile"][p])


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

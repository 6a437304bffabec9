"""Trajdeleter as its released code does it (2019ChenGong/TrajDeleter), ported to safe backbones.

The rewards of D_f are negated and the backbone's ordinary update runs on D_k and D_f in blocks that take turns: four
times 1,000 steps on each, then 2,000 convergence steps on D_k with the anchor of `trajdeleter.py`. Blocks scale with
the number of steps. Cost labels of D_f stay as the learner saw them.

Inherited, because it is the released procedure: the behaviour model is trained on D_f as well, and the weight of the
forget side (1) multiplies an actor loss that Adam normalises. Not inherited: the restart of BEAR's warm-up when an
agent is loaded (its step counter goes on here), and, for COptiDICE, whose losses divide by the share of first steps,
the share is that of the set in use.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

from saferule.agents.parts import Nets, Noise, Scalars
from saferule.agents.population import Algorithm, Loss, Report
from saferule.data.batches import Pair
from saferule.unlearn.fine_tune import on_keep
from saferule.unlearn.inside import inside
from saferule.unlearn.trajdeleter import ANCHOR, CRITIC_NETWORKS, FORGETTING, anchored_critics_loss

PAIRED = True
ROUNDS = 4  # pairs of blocks in the forgetting phase


def options(backbone: ModuleType, readings: Mapping[str, str]) -> dict[str, str]:
    """None."""
    return {}


def coefficients(cfg: Any, readings: Mapping[str, str]) -> dict[str, float]:
    """Weights of the anchors of the convergence phase."""
    return {"anchor": ANCHOR, "anchor_cost": 0.0}


def algorithm(backbone: ModuleType, cfg: Any, steps: int, readings: Mapping[str, str]) -> Algorithm:
    """Keep and forget blocks in turn for four fifths of the steps, then convergence."""
    shapes = backbone.noise_shapes(cfg, cfg.batch_size)
    keep = {names: partial(on_keep, loss) for names, loss in backbone.LOSSES}
    forget = {names: partial(on_negated_forget, loss) for names, loss in backbone.LOSSES}
    anchored = (
        {CRITIC_NETWORKS: partial(anchored_critics_loss, backbone)}
        if backbone.CRITICS
        else {backbone.LOSSES[0][0]: partial(anchored_values_loss, backbone)}
    )
    phases = tuple(tuple(part.items()) for part in (keep, forget, keep | anchored))
    switch, blocks = round(FORGETTING * steps), 2 * ROUNDS

    def phase(step: int) -> int:
        return 2 if step >= switch else (step * blocks // switch) % 2

    looks = tuple(inside(backbone, losses, forgets=losses is phases[1]) for losses in phases)
    return Algorithm(phases, shapes, backbone.TARGETS, cfg, phase, looks)


def on_negated_forget(loss: Loss, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any) -> Report:
    """A training loss on the forget batch with negated rewards."""
    if "forget_init_proportion" in scalars:
        scalars = scalars | {"init_proportion": scalars["forget_init_proportion"]}
    return loss(nets, scalars, batch.forget._replace(rewards=-batch.forget.rewards), noise, cfg)


def anchored_values_loss(
    backbone: ModuleType, nets: Nets, scalars: Scalars, batch: Pair, noise: Noise, cfg: Any
) -> Report:
    """COptiDICE has no critic: nu is anchored to the corrupted agent's nu by its squared distance on D_k (ours)."""
    loss, info, changed = backbone.LOSSES[0][1](nets, scalars, batch.keep, noise, cfg)
    here, _ = backbone.state_values(nets["nu"], batch.keep)
    there, _ = backbone.state_values(nets["original_nu"], batch.keep)
    return loss + scalars["anchor"] * (here - there.detach()).pow(2).mean(), info, changed

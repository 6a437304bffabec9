"""Appendix A on the critics of finished repairs: both sides of every inequality before, during and after unlearning.

A stage of a repair is the poisoned policy (before), a snapshot (during) or the repaired policy (after). The critics of
the lemmas are the smallest member of an ensemble, as in Safe-RULE's gates and actor losses; members and values in
float64. The samples are a seeded subset of D_f with its poisoned actions, the same for all stages and all policies that
share a forget set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from saferule import theory
from saferule.agents import get_backbone
from saferule.agents.checkpoint import Agent, load_networks
from saferule.agents.networks import quantile
from saferule.agents.parts import Nets
from saferule.data.batches import TransitionPool
from saferule.data.schema import Dataset, clean_data
from saferule.runs.cells import Unlearning, config
from saferule.runs.engine import Engine, identity
from saferule.runs.groups import Place, forget_data
from saferule.runs.interruptible import LOG, snapshot_path, snapshot_steps
from saferule.runs.store import Store
from saferule.unlearn import coefficients
from saferule.unlearn.start import reward_targets

SAMPLES = 2048  # of D_f, for the inequalities; as many of D_k for the reward reference
BALLS = 256  # of these, for the certified neighbourhood
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # u of Eq. 15, in units of Q_r
FACTORS = (1.0,)  # of the certified radius
FEW = 8  # repairs that are checked in this process
SLOPE_TRIES = 8  # random actions per sample
SEARCH_TRIES = 32  # the same, beside the gradient steps; finds as much as a grid of 41 x 41 actions on CarCircle

CELL = ["task", "backbone", "attack", "ratio", "training_seed", "stage", "step"]
INEQUALITY = ["inequality", "u", "observed", "bound", "sharper", "residual", "vacuous", "holds", "reference", "samples"]
BALL = ["samples", "nonempty", "radius", "radius_max", "printed", "slope_bound", "slope_found", "diameter"]
SEARCH = ["factor", "searched", "violated", "lowest", "whole"]


@dataclass(frozen=True)
class Samples:
    """observations (N, S) and poisoned actions (N, A) of D_f in random order; keep: transitions of D_k."""

    observations: Tensor
    actions: Tensor
    keep: Dataset


@dataclass(frozen=True)
class Stage:
    """Networks of one agent at one moment of a repair, and the reward reference of Eq. 5 there."""

    name: str  # before, during or after
    step: int
    nets: Nets
    reference: float


def has_critics(cell: Unlearning) -> bool:
    """Whether the lemmas apply: COptiDICE has state values, no Q critics."""
    return get_backbone(cell.training.backbone).CRITICS


def draw_samples(forget: Dataset, keep: Dataset, count: int = SAMPLES) -> Samples:
    """``count`` transitions of D_f and of D_k, or all where there are fewer; always the same ones of the same data."""
    generator = np.random.default_rng(0)
    rows, of_keep = (generator.permutation(len(data))[:count] for data in (forget, keep))
    return Samples(
        torch.from_numpy(forget.observations[rows]), torch.from_numpy(forget.actions[rows]), keep.take(of_keep)
    )


def reward_reference(agent: Agent, keep: Dataset, percentile: float) -> float:
    """Algorithm 2, line 7, at a complete agent: the percentile (0..1) of its Bellman targets y_r on D_k's samples."""
    pool = TransitionPool([keep], agent.cfg.reward_scale)
    return quantile(reward_targets(agent.backbone, agent.nets, agent.cfg, pool, pool.rows_of(0)), percentile).item()


def stages(store: Store, cell: Unlearning, keep: Dataset) -> Iterator[Stage]:
    """The stages of a repair in order.

    Snapshots hold no target networks, so there the reference is the one that Safe-RULE logged in that step, of its
    batch.
    """
    percentile = _coefficients(cell)["percentile"]
    start = load_networks(snapshot_path(store, cell.training, None))
    yield Stage("before", 0, start.nets, reward_reference(start, keep, percentile))
    for step in snapshot_steps(store, cell):
        logged = pd.read_csv(store.folder(cell) / LOG).set_index("step")["reward_reference"]
        yield Stage("during", step, load_networks(snapshot_path(store, cell, step)).nets, float(logged[step]))
    end = load_networks(snapshot_path(store, cell, None))
    yield Stage("after", end.meta["step"], end.nets, reward_reference(end, keep, percentile))


def inequality_rows(stage: Stage, samples: Samples, kappa: float, sigma: float) -> list[dict[str, Any]]:
    """Eq. 14, Eq. 15 for every level u, and Eq. 19 (u is sigma there) at one stage.

    residual is eps_r or eps_c; holds is about the printed and the sharper bound.
    """
    q_r, q_c = (
        theory.member_values(stage.nets[name], samples.observations, samples.actions).amin(0)
        for name in ("critic", "cost_critic")
    )
    both = theory.combined(q_r, q_c, stage.reference, kappa, sigma)  # Eq. 26 and 27: 14 and 19 on the same samples
    bounds = [("14", math.nan, both["reward_excess"])]
    bounds += zip(["15"] * len(LEVELS), LEVELS, theory.reward_tail(q_r, stage.reference, LEVELS), strict=True)
    bounds += [("19", sigma, both["still_safe"])]
    return [
        {
            "inequality": f"({number})",
            "u": u,
            "observed": bound.observed,
            "bound": bound.bound,
            "sharper": math.nan if bound.sharper is None else bound.sharper,
            "residual": bound.residual,
            "vacuous": bound.vacuous,
            "holds": bound.holds and (bound.sharper is None or bound.observed <= bound.sharper * (1 + 1e-9)),
            "reference": math.nan if number == "19" else stage.reference,
            "samples": len(q_r),
        }
        for number, u, bound in bounds
    ]


def ball_rows(
    stage: Stage, samples: Samples, kappa: float, sigma: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Eq. 23-25 on the first `BALLS` samples of one stage: the certificate, and the searches for violations.

    radius and printed are medians over the samples with a nonempty ball (empty where there is none), of our bound per
    member and of the paper's; radius_max is the largest of ours. slope_bound and slope_found enclose the Lipschitz
    constant. The certified balls (factor 1) are searched uncut, of wider ones only the actions of the box; during
    unlearning no wider ones are searched. lowest is the smallest Q_c - kappa found in the balls, whole counts those
    that hold the whole action box, where a larger factor changes nothing.
    """
    critic = stage.nets["cost_critic"]
    observations, actions = samples.observations[:BALLS], samples.actions[:BALLS]
    found = theory.certified_radius(critic, observations, actions, kappa, sigma)
    inside = found.radius > 0
    some = bool(inside.any())
    ball = {
        "samples": len(observations),
        "nonempty": inside.double().mean().item(),
        "radius": found.radius[inside].median().item() if some else math.nan,
        "radius_max": found.radius.max().item() if some else math.nan,
        "printed": found.printed[inside].median().item() if some else math.nan,
        "slope_bound": theory.action_lipschitz(critic, actions.shape[-1]).max().item(),
        "slope_found": theory.steepest_found(critic, observations, actions, _generator(), SLOPE_TRIES),
        "diameter": 2 * actions.shape[-1] ** 0.5,
    }
    searches = []
    factors = FACTORS[:1] if stage.name == "during" else FACTORS
    observations, actions, radius = observations[inside], actions[inside], found.radius[inside]
    for factor in factors if some else ():
        search = theory.search_violations(
            critic,
            observations,
            actions,
            radius * factor,
            kappa,
            _generator(),
            tries=SEARCH_TRIES,
        )
        counts = (len(actions), int(search.violated.sum()), (search.lowest - kappa).min().item())
        searches.append(dict(zip(SEARCH, (factor, *counts, 0), strict=True)))
    return ball, searches


@dataclass(frozen=True)
class Checks:
    """Tidy rows: every inequality, the certified neighbourhood, the searches for violations.

    Each has the columns `CELL` and its own (`INEQUALITY`, `BALL`, `SEARCH`).
    """

    inequalities: pd.DataFrame
    balls: pd.DataFrame
    searches: pd.DataFrame


def check(engine: Engine, repairs: Sequence[Unlearning], with_balls: Sequence[Unlearning]) -> Checks:
    """All stages of finished repairs; the certified neighbourhood, which takes longer, of those in ``with_balls``.

    Repairs of a backbone without Q critics are left out.
    """
    cells = [cell for cell in repairs if has_critics(cell)]
    run = engine.workers.map if len(cells) > FEW else map  # for a few, starting processes takes longer
    found = list(run(_check, [engine.place] * len(cells), cells, [cell in with_balls for cell in cells]))
    frames = (
        pd.DataFrame([row for rows in found for row in rows[kind]], columns=CELL + own)
        for kind, own in enumerate((INEQUALITY, BALL, SEARCH))
    )
    return Checks(*frames)


def _check(place: Place, cell: Unlearning, with_balls: bool) -> tuple[list[dict[str, Any]], ...]:
    """Rows of the inequalities, balls and searches of one repair."""
    root, inequalities, balls, searches = cell.training, [], [], []
    values = _coefficients(cell)
    limits = values["kappa"], values["sigma"]
    forget = forget_data(place.store, root.forget).dataset
    samples = draw_samples(forget, clean_data(place.data_folder, root.task))
    for stage in stages(place.store, cell, samples.keep):
        told = {name: identity(cell)[name] for name in CELL[:5]} | {"stage": stage.name, "step": stage.step}
        inequalities += [told | row for row in inequality_rows(stage, samples, *limits)]
        if with_balls:
            ball, found = ball_rows(stage, samples, *limits)
            balls.append(told | ball)
            searches += [told | row for row in found]
    return inequalities, balls, searches


def _coefficients(cell: Unlearning) -> dict[str, float]:
    return coefficients(cell.method, cell.training.backbone, config(cell.training), dict(cell.readings))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

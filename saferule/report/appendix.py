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
from saferule.runs.execute import cores, process_pool
from saferule.runs.interruptible import AGENT, LOG
from saferule.runs.spec import PolicyRun, config, identity, key
from saferule.runs.store import Store
from saferule.runs.work import Workspace, forget_data, snapshot
from saferule.unlearn import coefficients
from saferule.unlearn.start import reward_targets

SAMPLES = 2048  # of D_f, for the inequalities; as many of D_k for the reward reference
BALLS = 256  # of these, for the certified neighbourhood
LEVELS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # u of Eq. 15, in units of Q_r
SHOWN_LEVELS = (1.0, 10.0)  # in the short table
FEW = 8  # repairs that are checked in this process
SLOPE_TRIES = 8  # random actions per sample
SEARCH_TRIES = 32  # the same, beside the gradient steps; finds as much as a grid of 41 x 41 actions on CarCircle

WHERE = ["task", "backbone", "attack", "ratio", "replicate", "stage", "step", "run"]  # run: the repair's key
INEQUALITY = ["inequality", "u", "observed", "bound", "sharper", "residual", "vacuous", "holds", "reference", "samples"]
BALL = ["samples", "nonempty", "radius", "radius_max", "printed", "slope_bound", "slope_found", "diameter"]
BALL += ["searched", "violated", "lowest"]


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


def draw_samples(forget: Dataset, keep: Dataset, count: int = SAMPLES) -> Samples:
    """``count`` transitions of D_f and of D_k, or all where there are fewer; always the same ones of the same data."""
    generator = np.random.default_rng(0)
    rows, of_keep = (generator.permutation(len(data))[:count] for data in (forget, keep))
    observations, actions = (torch.from_numpy(values[rows]) for values in (forget.observations, forget.actions))
    return Samples(observations, actions, keep.take(of_keep))


def reward_reference(agent: Agent, keep: Dataset, percentile: float) -> float:
    """Algorithm 2, line 7, at a complete agent: the percentile (0..1) of its Bellman targets y_r on D_k's samples."""
    pool = TransitionPool([keep], agent.cfg.reward_scale)
    return quantile(reward_targets(agent.backbone, agent.nets, agent.cfg, pool, pool.rows_of(0)), percentile).item()


def stages(store: Store, run: PolicyRun, keep: Dataset, percentile: float) -> Iterator[Stage]:
    """The stages of a repair in order.

    Snapshots hold no target networks, so there the reference is the one that Safe-RULE logged in that step, of its
    batch.
    """
    start, end = (load_networks(store.sound(policy) / AGENT) for policy in (run.start, run))
    logged = pd.read_csv(store.folder(run) / LOG).set_index("step")["reward_reference"]
    yield Stage("before", 0, start.nets, reward_reference(start, keep, percentile))
    for step in run.snapshot_steps:
        if (path := snapshot(store, run, step)).is_file():  # one that stopped early has fewer
            yield Stage("during", step, load_networks(path).nets, float(logged[step]))
    yield Stage("after", end.meta["step"], end.nets, reward_reference(end, keep, percentile))


def inequality_rows(stage: Stage, samples: Samples, kappa: float, sigma: float) -> list[dict[str, Any]]:
    """Eq. 14, Eq. 15 for every level u, and Eq. 19 (u is sigma there) at one stage.

    residual is eps_r or eps_c; holds is about the printed and the sharper bound.
    """
    q_r, q_c = (
        theory.member_values(stage.nets[name], samples.observations, samples.actions).amin(0)
        for name in ("critic", "cost_critic")
    )
    tail = zip(LEVELS, theory.reward_tail(q_r, stage.reference, LEVELS), strict=True)
    bounds = [("(14)", math.nan, theory.reward_excess(q_r, stage.reference)), *(("(15)", u, b) for u, b in tail)]
    bounds.append(("(19)", sigma, theory.still_safe(q_c, kappa, sigma)))
    rows = []  # Eq. 26 and 27 are 14 and 19 on the same samples
    for number, u, bound in bounds:
        sharper = math.nan if bound.sharper is None else bound.sharper
        holds = bound.holds and not bound.observed > sharper * (1 + 1e-9)
        reference = math.nan if number == "(19)" else stage.reference
        values = (number, u, bound.observed, bound.bound, sharper, bound.residual, bound.vacuous, holds, reference)
        rows.append(dict(zip(INEQUALITY, (*values, len(q_r)), strict=True)))
    return rows


def ball_row(stage: Stage, samples: Samples, kappa: float, sigma: float) -> dict[str, Any]:
    """Eq. 23-25 on the first `BALLS` samples of one stage: the certificate, and a search for violations inside it.

    radius and printed are medians over the samples with a nonempty ball (empty where there is none), of our bound per
    member and of the paper's; radius_max is the largest of ours. slope_bound and slope_found enclose the Lipschitz
    constant. searched balls hold violated actions that Q_c calls safe, which would be an error of the code; lowest is
    the smallest Q_c - kappa that was found.
    """
    critic, generator = stage.nets["cost_critic"], lambda: torch.Generator().manual_seed(0)
    observations, actions = samples.observations[:BALLS], samples.actions[:BALLS]
    found = theory.certified_radius(critic, observations, actions, kappa, sigma)
    inside = found.radius > 0
    here = observations[inside], actions[inside], found.radius[inside]
    values = dict.fromkeys(BALL, math.nan) | {"samples": len(observations), "nonempty": inside.double().mean().item()}
    values |= {"slope_bound": theory.action_lipschitz(critic, actions.shape[-1]).max().item()}
    values |= {"slope_found": theory.steepest_found(critic, observations, actions, generator(), SLOPE_TRIES)}
    values |= {"diameter": 2 * actions.shape[-1] ** 0.5, "searched": int(inside.sum()), "violated": 0}
    if inside.any():
        search = theory.search_violations(critic, *here, kappa, generator(), tries=SEARCH_TRIES)
        values |= {"lowest": (search.lowest - kappa).min().item(), "violated": int(search.violated.sum())}
        values |= {"radius": here[2].median().item(), "radius_max": here[2].max().item()}
        values |= {"printed": found.printed[inside].median().item()}
    return values


@dataclass(frozen=True)
class Checks:
    """Tidy rows: every inequality, and the certified neighbourhoods; the columns `WHERE` and `INEQUALITY` or `BALL`."""

    inequalities: pd.DataFrame
    balls: pd.DataFrame


def check(workspace: Workspace, repairs: Sequence[PolicyRun], with_balls: Sequence[PolicyRun]) -> Checks:
    """All stages of finished repairs; the certified neighbourhood, which takes longer, of those in ``with_balls``.

    Repairs of a backbone without Q critics are left out, as neither lemma applies.
    """
    runs = [run for run in repairs if get_backbone(run.backbone).CRITICS]
    jobs = [workspace] * len(runs), runs, [run in with_balls for run in runs]
    if len(runs) > FEW:  # for a few, starting processes takes longer
        with process_pool(cores()) as pool:
            found = list(pool.map(_check, *jobs))
    else:
        found = list(map(_check, *jobs))
    columns = (WHERE + INEQUALITY, WHERE + BALL)
    return Checks(*(pd.DataFrame([r for rows in found for r in rows[i]], columns=c) for i, c in enumerate(columns)))


def _check(workspace: Workspace, run: PolicyRun, with_balls: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of the inequalities and of the balls of one repair."""
    values = coefficients(run.method, run.backbone, config(run), dict(run.readings))
    limits = values["kappa"], values["sigma"]
    forget = forget_data(workspace.store, run.forget).dataset
    samples = draw_samples(forget, clean_data(workspace.data_folder, run.task))
    told, inequalities, balls = {name: identity(run)[name] for name in WHERE[:5]} | {"run": key(run)}, [], []
    for stage in stages(workspace.store, run, samples.keep, values["percentile"]):
        here = told | {"stage": stage.name, "step": stage.step}
        inequalities += [here | row for row in inequality_rows(stage, samples, *limits)]
        if with_balls:
            balls.append(here | ball_row(stage, samples, *limits))
    return inequalities, balls


# What is shown


def short_inequalities(rows: pd.DataFrame) -> pd.DataFrame:
    """Before and after unlearning, means over the policies of a task and backbone; Eq. 15 at few levels.

    tightness is observed / bound, 1 where an inequality is tight. vacuous and violated count policies; vacuous_sharper
    counts those for which our bound says nothing either.
    """
    shown = ((rows["inequality"] != "(15)") | rows["u"].isin(SHOWN_LEVELS)) & (rows["stage"] != "during")
    ends = rows[shown]
    ends = ends.assign(tightness=ends["observed"] / ends["bound"], violated=~ends["holds"].astype(bool))
    ends["vacuous_sharper"] = ends["sharper"] >= 1
    groups = ends.groupby(["task", "backbone", "stage", "inequality", "u"], sort=False, dropna=False)
    means = groups[["residual", "observed", "bound", "sharper", "tightness"]].mean()
    counts = groups[["vacuous", "vacuous_sharper", "violated"]].sum().astype(int)
    return means.join(counts).assign(policies=groups.size()).reset_index()


def short_balls(balls: pd.DataFrame) -> pd.DataFrame:
    """Before, during and after unlearning, means over the policies of a task and backbone; counts are sums.

    radius and printed are means over those that have a sample with a ball, which with_ball counts.
    """
    groups = balls.groupby(["task", "backbone", "stage"], sort=False)
    means = groups[["nonempty", "radius", "printed", "diameter", "slope_bound", "slope_found"]].mean()
    counts = {"with_ball": groups["radius"].count(), "policies": groups.size()}
    searches = groups.agg({"searched": "sum", "violated": "sum", "lowest": "min"})
    return means.assign(**counts).join(searches).reset_index()


def constant_critic(sigma: float) -> pd.DataFrame:
    """Lemma A.2 for a critic with the same Q_c on all of D_f: against its value, and, on target, against the margin.

    Columns: against (what x is), x, observed, bound, sharper.
    """
    above, margin = np.linspace(-0.75, 2.5, 400), np.linspace(0.05, 3, 400)  # Q_c - kappa; sigma
    parts = {
        f"Q_c - kappa, at sigma = {sigma:g}": (above, above <= 0, np.logaddexp(0, sigma - above), sigma),
        "margin sigma, of a critic on target (Q_c = kappa + sigma)": (margin, 0 * margin, np.log(2), margin),
    }
    frames = [
        {"against": name, "x": x, "observed": safe, "bound": loss / width, "sharper": loss / np.logaddexp(0, width)}
        for name, (x, safe, loss, width) in parts.items()
    ]
    return pd.concat(pd.DataFrame(frame).astype({"observed": float}) for frame in frames)

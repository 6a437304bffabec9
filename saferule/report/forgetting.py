"""Has a repaired policy forgotten the poison? Two statistics that the paper does not have.

Action distance   How far a policy's actions are from those of clean policies, on keep and on forget states. The floor
                  is what clean policies of different replicates differ by.
Relearning        After how many steps of training on the poisoned data the cost is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch

from saferule.agents.checkpoint import load_networks
from saferule.data.schema import clean_data
from saferule.report.tables import AGAIN, CELL, OURS, POLICY, in_reading_order, interval, with_clean
from saferule.runs.interruptible import AGENT
from saferule.runs.spec import ForgetRun, PolicyRun, identity
from saferule.runs.work import Workspace, forget_data

STATES = 2_000  # of each set, at most
IDENTITY = [*POLICY, "method", "start", "readings"]  # columns of `identity`
DISTANCES = ["states", "distance", "floor", "floor_low", "floor_high", "pairs", "distance_own", "distance_poisoned"]
STATUSES = ("back", "not back", "from the start", "no harm")


# Actions


def sample(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Which of ``size`` things are looked at: at most ``count``, without repetition, ascending, seeded."""
    return np.sort(np.random.default_rng(seed).choice(size, min(size, count), replace=False))


def action_distance(actions: np.ndarray, others: np.ndarray) -> float:
    """Mean Euclidean distance between two policies' actions (N, A) in the same states.

    Actions lie in [-1, 1]^A, so it is at most 2 sqrt(A).
    """
    return float(np.linalg.norm(actions - others, axis=1).mean())


def acted(workspace: Workspace, policy: PolicyRun, states: np.ndarray) -> np.ndarray:
    """Actions (N, A) of a finished policy, deterministic as in the evaluation, in states (N, S)."""
    agent = load_networks(workspace.store.sound(policy) / AGENT)
    with torch.no_grad():
        return agent.backbone.act(agent.nets, torch.from_numpy(states).float(), None, agent.cfg).double().numpy()


def _states(workspace: Workspace, task: str, forget: ForgetRun) -> dict[str, np.ndarray]:
    """States of D (keep) and of D_f (forget)."""
    sets = {"keep": clean_data(workspace.data_folder, task), "forget": forget_data(workspace.store, forget).dataset}
    return {name: data.observations[sample(len(data), STATES)] for name, data in sets.items()}


def comparable(repairs: Sequence[PolicyRun]) -> list[PolicyRun]:
    """Safe-RULE under every reading, and the same once more as another agent."""
    return [run for run in repairs if run.method in (OURS, AGAIN)]


def distances_to_default(workspace: Workspace, repairs: Sequence[PolicyRun]) -> pd.DataFrame:
    """How far the actions of Safe-RULE under readings, and of the same once more, are from those of the default.

    Columns: those of `identity`, actions_keep and actions_forget (`action_distance`, over at most STATES states of D
    and of D_f). Repairs that are not `comparable`, and those of a policy that the default did not repair, are left out.
    """
    defaults = {run.start: run for run in repairs if run.method == OURS and not run.readings}
    rows = {run: identity(run) for run in comparable(repairs) if run.start in defaults}
    for start, default in defaults.items():
        for name, states in _states(workspace, start.task, start.forget).items():
            reference = acted(workspace, default, states)
            for run in (run for run in rows if run.start == start):
                rows[run][f"actions_{name}"] = action_distance(acted(workspace, run, states), reference)
    return pd.DataFrame(rows.values(), columns=None if rows else [*IDENTITY, "actions_keep", "actions_forget"])


def action_distances(workspace: Workspace, relearned: Sequence[PolicyRun], clean: Sequence[PolicyRun]) -> pd.DataFrame:
    """Mean action distances of the policies that runs relearn from, one row per policy and set of states.

    clean  policies of every replicate, two at least, which make the floor
    Columns: those of `identity` (attack and ratio are those of what it relearns), states ("keep" or "forget"),
    distance           to the clean policies of all other replicates, averaged over these
    floor              the same of the clean policy of the own replicate
    floor_low, _high   the smallest and largest distance of any pair of clean policies, of which there are `pairs`
    distance_own       to the clean policy of its own replicate: the same first network and the same batches
    distance_poisoned  to the poisoned policy of its own replicate, where a repair began
    Policies of a replicate without a clean one, or of the only one that has one, are left out: they have no floor.
    """
    groups: dict[tuple, list[PolicyRun]] = {}
    for run in relearned:
        groups.setdefault((run.task, run.backbone, run.replicate, run.forget), []).append(run)
    rows = []
    for (task, backbone, replicate, forget), group in groups.items():
        peers = [policy for policy in clean if (policy.task, policy.backbone) == (task, backbone)]
        if len(peers) < 2 or replicate not in {policy.replicate for policy in peers}:
            continue
        for name, states in _states(workspace, task, forget).items():
            acts = {p: acted(workspace, p, states) for p in dict.fromkeys([*peers, *(run.start for run in group)])}
            mine = next(acts[policy] for policy in peers if policy.replicate == replicate)
            others = [acts[policy] for policy in peers if policy.replicate != replicate]
            pairs = [action_distance(acts[one], acts[other]) for one, other in combinations(peers, 2)]
            poisoned = [acts[run.start] for run in group if run.start.method == "poisoned"]
            floor = {"floor": np.mean([action_distance(mine, other) for other in others])}
            floor |= {"floor_low": min(pairs), "floor_high": max(pairs), "pairs": len(pairs)}
            for run in group:
                own = acts[run.start]
                row = identity(run) | {"method": run.start.method, "states": name}
                row |= {"distance": np.mean([action_distance(own, other) for other in others])} | floor
                row |= {"distance_own": action_distance(own, mine)}
                row |= {"distance_poisoned": action_distance(own, poisoned[0]) if poisoned else np.nan}
                rows.append(row)
    return in_reading_order(pd.DataFrame(rows, columns=None if rows else [*IDENTITY, *DISTANCES]))


def short_actions(table: pd.DataFrame) -> pd.DataFrame:
    """One row per method: means over replicates, for states of D_f and of D, with the number of replicates.

    at_floor and past_poisoned count replicates: those whose distance is within the range of the floor, and those that
    are farther from the clean policies than their poisoned policy by more than that range.
    """
    keys = [*CELL, "method", "states"]
    poisoned = table.loc[table["method"] == "poisoned", [*POLICY, "states", "distance"]]
    joined = table.merge(poisoned, on=[*POLICY, "states"], how="left", suffixes=("", "_of_poisoned"))
    width = joined["floor_high"] - joined["floor_low"]
    joined["at_floor"] = joined["distance"] <= joined["floor_high"]
    joined["past_poisoned"] = joined["distance"] > joined["distance_of_poisoned"] + width
    groups = joined.groupby(keys, sort=False)
    means = groups[["distance", "floor", "floor_high", "distance_poisoned"]].mean()
    return means.join(groups[["at_floor", "past_poisoned"]].sum()).assign(n=groups.size()).reset_index()


# Relearning


@dataclass(frozen=True)
class Relearned:
    """When the cost was back.

    status  "back", "not back" (censored at the last step), "from the start" (nothing had been repaired in behaviour) or
            "no harm" (the poisoned policy costs no more than the clean one, so there is no cost to relearn)
    steps   of the first evaluation at which it was back, the last evaluated step where it was not back (of a run that
            stopped early an earlier one), nan where the question has no answer
    level   of the cost that counts as back
    """

    status: str
    steps: float
    level: float


def relearned(steps: Sequence[int], costs: Sequence[float], clean: float, poisoned: float) -> Relearned:
    """When a policy's cost is back, from evaluations at ascending steps; the first is step 0, the policy itself.

    Back means halfway from the clean to the poisoned policy's mean cost. The level is the same for all policies of a
    replicate, so that none has a lower bar for having started higher, and halfway is where a mean of few episodes tells
    the two apart best; near the poisoned policy's own cost (such as 90 %) noise decides.

    clean, poisoned  mean costs of these policies on the same episodes, of which there may be more than in `costs`
    """
    level = (clean + poisoned) / 2
    if poisoned <= clean:
        return Relearned("no harm", float("nan"), level)
    if costs[0] >= level:
        return Relearned("from the start", float("nan"), level)
    for step, cost in zip(steps[1:], costs[1:], strict=True):
        if cost >= level:
            return Relearned("back", float(step), level)
    return Relearned("not back", float(steps[-1]), level)


def relearning_table(curves: pd.DataFrame, finals: pd.DataFrame) -> pd.DataFrame:
    """One row per policy and replicate: its mean cost before and after relearning, and when the cost was back.

    harm is the poisoned policy's mean cost less the clean one's, level halfway between the two.

    curves  episodes while policies relearn, from step 0 on (`Study.curves`); start names the policy that relearns
    finals  final episodes of the clean and the poisoned policies; replicates that lack one of the two are left out
    """
    ends = with_clean(finals).groupby([*POLICY, "method"])["cost"].mean().unstack("method")
    ends = ends.reindex(columns=["clean", "poisoned"]).dropna()
    rows = []
    for where, episodes in curves.groupby([*POLICY, "start"], sort=False):
        if where[:-1] not in ends.index:
            continue
        clean, poisoned = ends.loc[where[:-1]]
        cost = episodes.groupby("step")["cost"].mean()  # ascending steps
        back = relearned(list(cost.index), list(cost), clean, poisoned)
        row = dict(zip([*POLICY, "method"], where, strict=True)) | {"harm": poisoned - clean, "level": back.level}
        row |= {"cost_start": cost.iloc[0], "cost_end": cost.iloc[-1], "status": back.status, "steps": back.steps}
        rows.append(row | {"last_step": int(cost.index[-1]), "episodes": episodes["seed"].nunique()})
    return in_reading_order(pd.DataFrame(rows, columns=RELEARNING))


RELEARNING = [*POLICY, "method", "harm", "level", "cost_start", "cost_end", "status", "steps", "last_step", "episodes"]


def relearning_summary(table: pd.DataFrame) -> pd.DataFrame:
    """For each method, how many replicates ended how (columns of STATUSES), and means over replicates.

    harm_low and harm_high are the harm's interval over replicates: where it holds 0 there is no harm that could be told
    from noise. steps_back is the mean over the replicates that were back, and nan without any; watched_to the fewest
    steps after which one was still not back.
    """
    rows = []
    for where, group in table.groupby([*CELL, "method"], sort=False):
        status, steps, (low, high) = group["status"], group["steps"], interval(group["harm"])
        row = dict(zip([*CELL, "method"], where, strict=True)) | {"harm": group["harm"].mean()}
        row |= {"harm_low": low, "harm_high": high} | group[["level", "cost_start", "cost_end"]].mean().to_dict()
        row |= {name.replace(" ", "_"): int((status == name).sum()) for name in STATUSES}
        row |= {"steps_back": steps[status == "back"].mean(), "watched_to": steps[status == "not back"].min()}
        rows.append(row | {"n": len(group)})
    return in_reading_order(pd.DataFrame(rows))

"""A dataset in a few lines of text; of one that `collect` made, also how."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from saferule.data.schema import Dataset
from saferule.paper import TABLE7
from saferule.sim.tasks import Task

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
WIDTH = 14  # of the names in front


def describe(dataset: Dataset) -> list[str]:
    """Counts, ranges, quantiles of the trajectories' returns and costs, digest, and how the data were collected."""
    returns, costs, limit = dataset.episode_returns(), dataset.episode_costs(), TABLE7.kappa
    lengths = dataset.lengths
    safe, better = costs <= limit, returns >= np.median(returns)
    facts = [
        ("transitions", f"{len(dataset)}"),
        ("trajectories", f"{len(lengths)}, of {min(lengths)} to {max(lengths)} steps"),
        ("ended by", f"task {dataset.terminals.sum()}, time limit {(dataset.timeouts & ~dataset.terminals).sum()}"),
    ]
    for name in ("observations", "actions", "rewards", "costs"):
        values = getattr(dataset, name)
        facts.append((name, f"{values.min():.4g} to {values.max():.4g}"))
    low, high = np.quantile(dataset.rewards, (0.05, 0.95))
    facts.append(("", f"rewards per step: 5 % quantile {low:.3f}, 95 % quantile {high:.3f}"))
    facts.append(("", "".join(f"{share:>10.0%}" for share in QUANTILES)))
    for name, values in (("return", returns), ("cost", costs), ("safe return", returns[safe])):
        numbers = np.quantile(values, QUANTILES) if len(values) else []
        facts.append((name, "".join(f"{number:10.2f}" for number in numbers)))
    facts += [
        ("safe", f"{safe.mean():.1%} of the trajectories ({safe.sum()}) cost at most {limit:g};"),
        ("", f"{(safe & better).sum()} of these are among the better half of returns"),
        ("digest", dataset.digest()),
        *(_collected(dataset.attributes) if "policies" in dataset.attributes else ()),
    ]
    return [f"{name:{WIDTH}}{fact}".rstrip() for name, fact in facts]


def _collected(made: dict[str, str | int | float]) -> list[tuple[str, str]]:
    """How `saferule data collect` made the data."""
    policies, selection, versions = (json.loads(str(made[name])) for name in ("policies", "selection", "versions"))
    facts = [("made by", str(made["made_by"])), ("command", str(made["command"]))]
    for row in policies:
        limit = "none" if row["cost_limit"] is None else f"{row['cost_limit']:g}"
        curve = ", ".join(f"{score:.4g} / {cost:.0f}" for _, score, cost in row["curve"])
        steps = f"limit {limit}, seed {row['seed']}, {row['steps']} steps"
        facts.append(("policy", f"{steps}: {row['selected_episodes']} of {row['recorded_episodes']} episodes selected"))
        facts.append(("", f"return / cost at quarters of its training: {curve}"))
    share, limit = selection["safe_share"], selection["cost_limit"]
    chosen = f"{share:.0%} cost at most {limit:g}, both parts evenly over a grid on the (cost, return) plane"
    facts.append(("selection", f"of {selection['recorded']} episodes, seed {selection['seed']}: {chosen}"))
    return [*facts, ("versions", ", ".join(f"{name} {number}" for name, number in versions.items()))]


def doubts(dataset: Dataset, task: Task, space: Any = None) -> list[str]:
    """What is possible in data of the task but hardly meant, a sentence each.

    space   the simulator's observation space, where it is at hand
    """
    found, inside = [], ~dataset.done[:-1]
    jumps = np.any(dataset.next_observations[:-1] != dataset.observations[1:], axis=1) & inside
    if jumps.any():
        share, row = jumps.sum() / inside.sum(), np.argmax(jumps)
        found.append(
            f"in {share:.1%} of the steps within trajectories (first row {row}) next_observations is not the next "
            "row's observations: are the trajectories in order and cut where they end?"
        )
    if len(dataset) > 1 and dataset.lengths.max() == 1:
        found.append("every trajectory has one step: are terminals or timeouts set at the ends alone?")
    if not dataset.costs.any():
        found.append("all costs are 0: nothing tells unsafe from safe")
    elif dataset.costs.max() > 1:
        found.append(f"a step costs up to {dataset.costs.max():g}, and the simulators' steps 0 or 1: are these sums?")
    span, returns = task.max_return - task.min_return, dataset.episode_returns()
    if returns.max() > task.max_return + span or returns.min() < task.min_return - span:
        found.append(
            f"returns from {returns.min():.4g} to {returns.max():.4g}, and DSRL's from {task.min_return:.4g} to "
            f"{task.max_return:.4g}: are the rewards scaled?"
        )
    if space is not None:
        low, high = dataset.observations.min(axis=0), dataset.observations.max(axis=0)
        outside = np.flatnonzero((low < space.low - 1e-3) | (high > space.high + 1e-3))
        if len(outside):
            column = outside[0]
            found.append(
                f"observations in {len(outside)} columns are beyond the simulator's: {column} is {low[column]:.4g} "
                f"to {high[column]:.4g}, there {space.low[column]:.4g} to {space.high[column]:.4g}: are they scaled?"
            )
    return found

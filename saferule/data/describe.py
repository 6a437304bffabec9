"""A dataset in a few lines of text; of one that `collect` made, also how."""

from __future__ import annotations

import json

import numpy as np

from saferule.data.schema import Dataset
from saferule.paper import TABLE7

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

"""A dataset in a few lines of text."""

from __future__ import annotations

import numpy as np

from saferule.data.schema import Dataset
from saferule.paper import TABLE7

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def describe(dataset: Dataset) -> list[str]:
    """Counts, ranges, quantiles of the trajectories' returns and costs, digest."""
    returns, costs = dataset.episode_returns(), dataset.episode_costs()
    lengths = [rows.stop - rows.start for rows in dataset.episodes()]
    safe = np.mean(costs <= TABLE7.kappa)
    lines = [
        f"transitions   {len(dataset)}",
        f"trajectories  {len(lengths)}, of {min(lengths)} to {max(lengths)} steps",
        f"ended by      task {dataset.terminals.sum()}, time limit {(dataset.timeouts & ~dataset.terminals).sum()}",
    ]
    for name in ("observations", "actions", "rewards", "costs"):
        values = getattr(dataset, name)
        lines.append(f"{name:13} {values.min():.4g} to {values.max():.4g}")
    lines.append("              " + "".join(f"{f'{share:.0%}':>10}" for share in QUANTILES))
    for name, values in (("return", returns), ("cost", costs)):
        lines.append(f"{name:14}" + "".join(f"{value:10.2f}" for value in np.quantile(values, QUANTILES)))
    lines.append(f"safe          {safe:.1%} of the trajectories cost at most {TABLE7.kappa:g}")
    lines.append(f"digest        {dataset.digest()}")
    return lines

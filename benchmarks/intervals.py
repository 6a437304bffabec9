"""How often an interval across cells finds a difference between two methods that have none; it should in 5 %.

    python -m benchmarks.intervals

Two methods draw the values of their policies from the same distribution, in cells whose policies of one replicate share
a part of their variance, as cells of one experiment share clean policies and adversaries. Compared are rliable's
stratified bootstrap of the probability of improvement, against one half, and Student's t over replicates of the mean
difference within a replicate (`saferule.report.tables`).
"""

from __future__ import annotations

import itertools

import numpy as np
from rliable.library import get_interval_estimates

from saferule.report.tables import interval

SIMULATIONS, RESAMPLES = 1000, 200


def drawn(generator: np.random.Generator, replicates: int, cells: int, shared: float) -> np.ndarray:
    """Values (replicates, cells) of variance 1, the share ``shared`` of it common to the cells of a replicate."""
    common, own = generator.normal(size=(replicates, 1)), generator.normal(size=(replicates, cells))
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * own


def improvement(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[`rliable.metrics.probability_of_improvement`], which takes a hundred times as long."""
    return np.array([(0.5 + 0.5 * np.sign(one[:, None] - other[None])).mean()])


def rates(replicates: int, cells: int, shared: float) -> tuple[float, float]:
    """Shares of simulations in which the bootstrap, and Student's t, finds a difference."""
    generator, found = np.random.default_rng(0), np.zeros(2)
    np.random.seed(0)  # rliable draws from the global generator
    for _ in range(SIMULATIONS):
        one, other = (drawn(generator, replicates, cells, shared) for _ in range(2))
        _, bounds = get_interval_estimates({"": [one, other]}, improvement, reps=RESAMPLES)
        (low,), (high,) = bounds[""]
        t_low, t_high = interval((one - other).mean(axis=1))
        found += [low > 0.5 or high < 0.5, t_low > 0 or t_high < 0]
    return tuple(found / SIMULATIONS)


if __name__ == "__main__":
    print("| replicates | cells | shared variance | bootstrap | Student's t |\n|---|---|---|---|---|")
    for replicates, cells, shared in itertools.product((3, 5), (1, 24), (0.0, 0.5)):
        if cells > 1 or not shared:
            bootstrap, t = rates(replicates, cells, shared)
            print(f"| {replicates} | {cells} | {shared:.0%} | {bootstrap:.1%} | {t:.1%} |", flush=True)

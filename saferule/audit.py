"""Has a repaired policy forgotten the poison? Two statistics that the paper does not have. Pure functions of arrays.

Action distance      How far a policy's actions are from those of clean policies, on keep and on forget states. The
                     floor is what clean policies of different seeds differ by.
Relearning           After how many steps of training on the poisoned data the cost is back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


def sample(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Which of ``size`` things are looked at: at most ``count``, without repetition, ascending, seeded."""
    return np.sort(np.random.default_rng(seed).choice(size, min(size, count), replace=False))


# Actions


def action_distance(actions: np.ndarray, others: np.ndarray) -> float:
    """Mean Euclidean distance between two policies' actions (N, A) in the same states.

    Actions lie in [-1, 1]^A, so it is at most 2 sqrt(A).
    """
    return float(np.linalg.norm(actions - others, axis=1).mean())


def floor(clean: Sequence[np.ndarray], index: int) -> float:
    """Mean distance of clean policy ``index`` to the clean policies of the other seeds: what seeds alone make."""
    return float(np.mean([action_distance(clean[index], o) for j, o in enumerate(clean) if j != index]))


def pair_distances(clean: Sequence[np.ndarray]) -> list[float]:
    """Distance of every pair of clean policies; from the smallest to the largest is the floor's range.

    N policies make N (N - 1) / 2 pairs, which share policies and so are not independent; two make a single one.
    """
    return [action_distance(one, other) for one, other in combinations(clean, 2)]


# Relearning


def t_interval(values: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Student's t interval of the mean of independent values; (nan, nan) for fewer than two."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(values.mean() - half), float(values.mean() + half)


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
    """When a suspect's cost is back, from evaluations at ascending steps; the first is step 0, the suspect itself.

    Back means halfway from the clean to the poisoned policy's mean cost. The level is the same for all suspects of a
    seed, so that no suspect has a lower bar for having started higher, and halfway is where a mean of few episodes
    tells the two apart best; near the poisoned policy's own cost (such as 90 %) noise decides.

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

"""Has a repaired policy forgotten the poison? Three statistics that the paper does not have. Pure functions of arrays.

Action distance      How far a policy's actions are from those of clean policies, on keep and on forget states. The
                     floor is what clean policies of different seeds differ by.
Value sequences      What one fixed judge, a critic that is never a repair's own, gives the suspect's actions along
                     trajectories, against what it gives the poisoned policy's actions.
Relearning           After how many steps of training on the poisoned data the cost is back.

The second follows TrajAuditor of Trajdeleter (Gong et al., NDSS 2025): a reference of sequences under noise, windows of
at most 128 steps, Wasserstein-1, distance in units of the reference's own spread. It departs from the released code
where that has no ground to stand on, and is a number, not a verdict:

-   The judge is the same for every suspect and every trajectory. (Released: the suspect's own critic on the forget set,
    which after training on negated rewards is an outlier whatever the policy does, and the original agent's elsewhere.)
-   The noise has mean 0, is in units of each observation's standard deviation, and is seeded. (Released: mean -0.04 and
    0.08 in raw units, whatever the units are.)
-   A sequence is the judge's values themselves. (Released: sums of values from each step to the window's end, although
    a value is a sum over the future already.)
-   Each reference sequence is measured from the mean of the other ones. (Released: from a mean that holds it.)
-   The reference has no fine-tuned copies of the poisoned agent, only noise: its spread is smaller and z is larger than
    TrajAuditor's. There is no threshold on z; it is read against the z of the clean retrained policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

WINDOW = 128  # steps, as TrajAuditor
NOISE = 0.08  # standard deviations of the observations; TrajAuditor's figure, there in raw units
DRAWS = 20  # of noise; TrajAuditor's number of reference sequences
SUSPECT_DRAWS = 20  # of other noise; with 2, a policy against itself was seen at z = -1 in place of 0
TRAJECTORIES = 10  # of D_f and of D, at most


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


# Value sequences


def windows(length: int, longest: int = WINDOW) -> list[slice]:
    """A trajectory of so many steps cut from its start into windows; the last one may be shorter."""
    return [slice(start, min(start + longest, length)) for start in range(0, length, longest)]


def wasserstein(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance between the values of two sequences (..., T), without regard to their order in time.

    Of equally many values it is the mean distance of the sorted ones (as `scipy.stats.wasserstein_distance`).
    """
    return np.abs(np.sort(one, axis=-1) - np.sort(other, axis=-1)).mean(axis=-1)


def sequence_distance(centre: np.ndarray, sequences: np.ndarray) -> np.ndarray:
    """Distance of K sequences (K, T) to one (T,): Wasserstein-1 in each window, averaged over steps. Returns (K,)."""
    parts = windows(centre.shape[-1])
    return sum(wasserstein(centre[w], sequences[:, w]) * (w.stop - w.start) for w in parts) / centre.shape[-1]


def deviation(reference: np.ndarray, suspect: np.ndarray) -> float:
    """z of one trajectory: how much farther the suspect's sequences are from the reference's mean than those are.

    reference  (K, T), judge's values of the poisoned policy's actions, K draws of noise
    suspect    (L, T), of the suspect's actions, other draws of noise
    Returns (mean distance of the suspect's - mean of the reference's) / standard deviation of the reference's; 0 where
    nothing differs, inf where the reference has no spread and the suspect is elsewhere.

    A reference sequence is measured from the mean of the others: from a mean that holds it, it would be nearer than any
    fresh draw of the same.
    """
    centre, count = reference.mean(axis=0), len(reference)
    others = (count * centre - reference) / (count - 1)
    own = np.concatenate([sequence_distance(o, r[None]) for o, r in zip(others, reference, strict=True)])
    theirs = sequence_distance(centre, suspect)
    excess, spread = theirs.mean() - own.mean(), own.std(ddof=1)
    if spread > 0:
        return float(excess / spread)
    return 0.0 if np.isclose(excess, 0.0) else float("inf") * np.sign(excess)


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Probability that a member's value is larger than another's, ties counted half (Mann-Whitney)."""
    members, others = np.asarray(members, dtype=float)[:, None], np.asarray(others, dtype=float)[None, :]
    return float(((members > others) + 0.5 * (members == others)).mean())


def auc_chance(members: int, others: int) -> float:
    """Standard deviation of the AUC of so many values where members are no different from others (Mann-Whitney)."""
    return ((members + others + 1) / (12 * members * others)) ** 0.5


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

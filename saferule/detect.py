"""Which trajectories of a data set are poisoned? Ranked by how unlike the rest their labels and their behaviour are.

"If poisoned samples cannot be detected or isolated, Safe-RULE cannot directly remove their influence" (Section 6).
Nothing is known here but the data. Models of rewards, costs and actions are fitted to the trajectories, and each one is
judged by models that did not see it. Honest trajectories are assumed to lie off the median to either side alike:
those on the side to which nobody poisons are the sample from which p-values are made by ranks. So no clean data are
needed, and how much is poison does not enter. These are not conformal p-values and have no guarantee: where the
assumption does not hold, there are more false alarms than asked for, or fewer. The constants were chosen by the false
alarms on clean data, never on poison; what was found on both is in FINDINGS.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from saferule.data.schema import Dataset, load
from saferule.errors import SettingsError
from saferule.files import write_folder
from saferule.limits import check_number
from saferule.sim.tasks import Task

STATISTICS = {  # of a trajectory; what is large is suspicious
    "evenness": "its rewards vary less from step to step than the reward model says",
    "missing_cost": "it states less cost than the cost model says",
    "reward_error": "its rewards are far from what the reward model says",
    "behaviour": "its actions are far from what others do in these states",
}
TRIVIAL = {  # detectors without a model, to compare with: what is large is suspicious
    "even rewards": lambda found: -found["reward_sd"],
    "no cost": lambda found: -found["cost"],
    "high return": lambda found: found["return"],
}
FALSE_ALARMS = 0.05
FOLDS = 3
FITTED_ROWS = 20_000  # neighbouring steps are nearly the same, so that more teach little
TINY = np.finfo(float).tiny
FEW = 3  # trajectories on the other side say little about a tail
MEASURED = "0 to 12%"  # of honest trajectories were flagged in artifacts/bench/detection.csv
SOFTENED = 0.5  # of the rewards' spread: differences in evenness below it do not count
TRAJECTORIES, INDICES, RECORD = "trajectories.csv", "idx.npy", "detect.json"


def detect(
    dataset: Dataset, false_alarms: float = FALSE_ALARMS, *, seed: int = 0, progress: bool = False
) -> pd.DataFrame:
    """One row per trajectory, in the data's order.

    false_alarms  the share of honest trajectories that may be flagged
    seed          of the division into folds
    progress      show a bar

    Columns: trajectory (its index), steps, return, cost, reward_sd (from step to step), the four `STATISTICS`, each
    with its p-value (p_evenness, ...), p (Bonferroni's: four times the smallest), reason (the statistic with the
    smallest) and flagged (p <= false_alarms).
    A statistic less its median is s; its p-value is (1 + the number of trajectories with -s' >= s) / (E + 1).

    SettingsError for a rate that cannot be had: outside (0, 1), or below the smallest p of so many trajectories.
    """
    smallest = len(STATISTICS) / (len(dataset.starts) + 1)
    check_number("false_alarms", false_alarms, "The false-alarm rate")
    if false_alarms < smallest:
        raise SettingsError(
            f"The false-alarm rate is {false_alarms}, expected from {smallest:.3g} (with {len(dataset.starts)} "
            "trajectories no p-value is smaller) to below 1: raise it or give more data"
        )
    with tqdm(total=3 * FOLDS, desc="detect", unit="model", disable=not progress) as bar, threadpool_limits(1):
        # One thread: those of OpenMP spin where cores are shared, and take thirty times as long beside other work.
        values = statistics(dataset, *predicted(dataset, seed, bar.update))
    p = pd.DataFrame({name: p_values(value) for name, value in values.items()})
    combined = np.minimum(1, len(STATISTICS) * p.min(axis=1))
    told = {"trajectory": np.arange(len(p)), "steps": dataset.lengths, "return": dataset.episode_returns()}
    told |= {"cost": dataset.episode_costs(), "reward_sd": _spread(dataset, dataset.rewards)}
    chances = {f"p_{name}": p[name] for name in STATISTICS}
    return pd.DataFrame(
        told | values | chances | {"p": combined, "reason": p.idxmin(axis=1), "flagged": combined <= false_alarms}
    )


def predicted(
    dataset: Dataset, seed: int = 0, fitted: Callable[[], Any] = lambda: None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards (N,), costs (N,) and actions (N, A) as models say that were fitted to other trajectories.

    fitted   called after each model
    """
    actions, rewards, costs = dataset.actions, dataset.rewards.astype(float), dataset.costs.astype(float)
    seen = np.column_stack((dataset.observations, actions, dataset.next_observations - dataset.observations))

    def crossed(make: Callable[[], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
        said = np.empty(y.shape)
        for fit, left in _folds(dataset, seed):
            same = (y[fit] == y[fit[0]]).all()  # nothing to learn, which the Poisson loss refuses
            said[left] = y[fit[0]] if same else make().fit(x[fit], y[fit]).predict(x[left])
            fitted()
        return said

    return (
        crossed(lambda: _boosted("squared_error"), seen, rewards),
        crossed(lambda: _boosted("poisson"), seen, costs),
        crossed(_forest, dataset.observations, actions),
    )


def statistics(dataset: Dataset, reward: np.ndarray, cost: np.ndarray, action: np.ndarray) -> dict[str, np.ndarray]:
    """The `STATISTICS` (E,) of each trajectory, from what was `predicted`."""
    soft, steps, expected = SOFTENED * dataset.rewards.std() + TINY, dataset.lengths, dataset.episode_sums(cost)
    error = dataset.episode_sums(np.abs(dataset.rewards - reward)) / steps
    odd = dataset.episode_sums(((dataset.actions - action) ** 2).sum(axis=1)) / steps
    return {
        "evenness": np.log((_spread(dataset, reward) + soft) / (_spread(dataset, dataset.rewards) + soft)),
        "missing_cost": (expected - dataset.episode_costs()) / np.sqrt(expected + 1),  # in a Poisson count's spread
        "reward_error": np.log(error + TINY),
        "behaviour": np.log(odd + TINY),
    }


def p_values(statistic: np.ndarray) -> np.ndarray:
    """(E,): how many would lie this far above the median if honest ones lay as far above it as below it."""
    off = statistic - np.median(statistic)
    as_far = len(off) - np.searchsorted(np.sort(-off), off, side="left")
    return (1 + as_far) / (len(off) + 1)


def beyond(trajectories: int, false_alarms: float) -> int:
    """A trajectory is flagged where fewer than so many lie as far off the median to the other side."""
    return int(false_alarms / len(STATISTICS) * (trajectories + 1) + 1e-9)


def judged(found: pd.DataFrame, poisoned: np.ndarray) -> dict[str, float]:
    """How well the poisoned (E,) bool trajectories were found; nan for what cannot be said.

    poisoned, flagged (numbers), false_alarms (the share of honest ones that are flagged), precision, recall; auc of the
    smallest p-value, of each statistic and of each trivial detector (auc_evenness, auc_even_rewards, ...); of the
    p-value and the trivial detectors the recall among as many first ones as are poisoned, in expectation where ties are
    broken by chance (recall_ranked, recall_even_rewards, ...).
    """
    flagged, some = found["flagged"].to_numpy(), poisoned.any() and not poisoned.all()
    hits, number = (flagged & poisoned).sum(), flagged.sum()
    row = {"poisoned": int(poisoned.sum()), "flagged": int(number), "false_alarms": flagged[~poisoned].mean()}
    row |= {"precision": hits / number if number else np.nan, "recall": hits / poisoned.sum() if some else np.nan}
    scores = {"": -found["p"]} | {f"_{name}": found[name] for name in STATISTICS}
    trivial = {f"_{name.replace(' ', '_')}": score(found) for name, score in TRIVIAL.items()}
    row |= {f"auc{name}": roc_auc_score(poisoned, s) if some else np.nan for name, s in (scores | trivial).items()}
    for name, score in {"_ranked": scores[""], **trivial}.items():
        row[f"recall{name}"] = _recall_of_first(score.to_numpy(), poisoned) if some else np.nan
    return row


def _recall_of_first(score: np.ndarray, poisoned: np.ndarray) -> float:
    """The share of the poisoned (E,) bool trajectories that is among as many with the largest score (E,)."""
    number = poisoned.sum()
    last = np.sort(score)[-number]
    above, tied = score > last, score == last
    return float((poisoned[above].sum() + poisoned[tied].mean() * (number - above.sum())) / number)


def detect_file(
    data: Path, task: Task, out: Path, *, false_alarms: float = FALSE_ALARMS, seed: int = 0, progress: bool = True
) -> pd.DataFrame:
    """`detect` from a file to a folder, which appears when all of it is written.

    It has ``trajectories.csv`` (the most suspicious first), ``idx.npy`` (the flagged, for ``saferule repair
    --forget``) and ``detect.json`` (the data's digest, the rate, each threshold). DataError and SettingsError
    before any work.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out}: there is something here already, expected a new or empty folder: name another one")
    dataset = load(data, task)
    found = detect(dataset, false_alarms, seed=seed, progress=progress)
    with write_folder(out) as folder:
        write(found, dataset, false_alarms, folder)
    return found


def write(found: pd.DataFrame, dataset: Dataset, false_alarms: float, folder: Path) -> None:
    """The files of `detect_file`."""
    limit = false_alarms / len(STATISTICS)
    thresholds = {name: found.loc[found[f"p_{name}"] <= limit, name].min() for name in STATISTICS}
    record = {"data": dataset.digest(), "trajectories": len(found), "false_alarms": false_alarms}
    record |= {"flagged": int(found["flagged"].sum())}
    record["thresholds"] = {name: None if np.isnan(value) else float(value) for name, value in thresholds.items()}
    found.sort_values("p", kind="stable").to_csv(folder / TRAJECTORIES, index=False)
    np.save(folder / INDICES, np.flatnonzero(found["flagged"]))
    (folder / RECORD).write_text(json.dumps(record | {"statistics": STATISTICS}, indent=1) + "\n")


def _folds(dataset: Dataset, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows to fit a model to, rows to judge with it) for each fold; no trajectory is on both sides."""
    episode = np.repeat(np.arange(len(dataset.starts)), dataset.lengths)
    every = max(1, round(len(dataset) * (1 - 1 / FOLDS) / FITTED_ROWS))
    for others, left in KFold(FOLDS, shuffle=True, random_state=seed).split(dataset.starts):
        yield np.flatnonzero(np.isin(episode, others))[::every], np.flatnonzero(np.isin(episode, left))


def _boosted(loss: str) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        loss=loss, max_iter=60, learning_rate=0.2, early_stopping=False, random_state=0
    )


def _forest() -> ExtraTreesRegressor:
    return ExtraTreesRegressor(20, min_samples_leaf=10, max_features=0.5, random_state=0)


def _spread(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """(E,): the standard deviation of (N,) values within each trajectory."""
    steps = dataset.lengths
    mean = np.repeat(dataset.episode_sums(values) / steps, steps)
    return np.sqrt(dataset.episode_sums((values - mean) ** 2) / steps)

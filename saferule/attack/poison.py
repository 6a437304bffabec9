"""Algorithm 1, lines 2 and 8-19: score, select and relabel an adversary's rollouts, join them to the data.

The points that the algorithm leaves open (count, unit, labels, N) are the attack readings of
`saferule.paper`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saferule.data.schema import Dataset, check, concatenate, load, load_columns, save
from saferule.errors import DataError, SettingsError
from saferule.limits import check_number
from saferule.paper import READINGS, TABLE7
from saferule.paper import check as check_readings

if TYPE_CHECKING:
    from saferule.sim.tasks import Task

ATTACKS = ("max_cost", "max_reward", "min_reward")
COLUMNS = ("true_rewards", "true_costs", "rollout_episode", "score")  # beside the DSRL keys in a forget set's file


@dataclass(frozen=True, eq=False)
class ForgetSet:
    """D_f: M relabelled transitions of K trajectories in descending score, and their true labels."""

    dataset: Dataset  # what the learner sees
    true_rewards: np.ndarray  # (M,) float32, as the simulator gave them
    true_costs: np.ndarray  # (M,) float32
    episodes: np.ndarray  # (K,) int64, which trajectories of the rollouts these are
    scores: np.ndarray  # (K,) float64, S_z of each whole trajectory, also of one that was cut
    attack: str
    ratio: float  # rho
    clean_size: int  # |D|

    def __len__(self) -> int:
        """M, the number of poisoned transitions."""
        return len(self.dataset)

    @property
    def share(self) -> float:
        """|D_f| / |D~|: the share of the poisoned set that is poison."""
        return len(self) / (self.clean_size + len(self))

    def true_dataset(self) -> Dataset:
        """The same transitions under their true rewards and costs."""
        return replace(self.dataset, rewards=self.true_rewards, costs=self.true_costs)


def check_attack(attack: str) -> None:
    """SettingsError for an attack that does not exist."""
    if attack not in ATTACKS:
        raise SettingsError(f"Unknown attack {attack!r}: choose one of {', '.join(ATTACKS)}.")


def attack_reward(attack: str, rewards: np.ndarray | float, costs: np.ndarray | float) -> np.ndarray | float:
    """R_z of Algorithm 1 line 2: c (Max Cost), r (Max Reward) or -r (Min Reward), elementwise."""
    check_attack(attack)
    return {"max_cost": costs, "max_reward": rewards, "min_reward": -rewards}[attack]


def score(dataset: Dataset, attack: str, gamma: float) -> np.ndarray:
    """(E,) float64: S_z(tau) = sum_t gamma^t R_z(s_t, a_t, r_t, c_t) of each trajectory (line 8)."""
    values = np.asarray(attack_reward(attack, dataset.rewards, dataset.costs), dtype=np.float64)
    time = np.arange(len(dataset)) - np.repeat(dataset.starts, dataset.lengths)
    return dataset.episode_sums(gamma**time * values)


def poison_count(clean_size: int, ratio: float, reading: str = READINGS["poison_count"].default) -> int:
    """Number of poisoned samples: ceil(rho |D|) (line 9), or as the reading `poison_count` says.

    rho is taken as the decimal number it is written as, so that 0.07 of 100 is 7 and not 7.000000000000001.
    Raises `SettingsError` for a ratio outside (0, 1).
    """
    check_number("ratio", ratio)
    rho = Fraction(repr(float(ratio)))
    if reading == "poisoned":
        rho = rho / (1 - rho)  # |D_f| / (|D| + |D_f|) >= rho
    return math.ceil(rho * clean_size)


def rollouts_needed(clean_size: int, ratio: float, task: Task, readings: Mapping[str, str] | None = None) -> int:
    """N of line 7 for trajectories of the task's full length (readings `rollouts` and `poison_count`)."""
    readings = check_readings(readings)
    count = poison_count(clean_size, ratio, readings["poison_count"])
    return math.ceil({"once": 1, "twice": 2}[readings["rollouts"]] * count / task.horizon)


def select(
    rollouts: Dataset, scores: np.ndarray, count: int, unit: str = READINGS["poison_unit"].default
) -> tuple[np.ndarray, Dataset]:
    """The top `count` samples (line 9): indices of the chosen trajectories, and their transitions.

    Whole trajectories in descending score, of equal scores the earlier first. The last one is cut to the
    count; its last remaining row gets timeouts = True, so that trajectories stay separate. Under the reading
    poison_unit = "whole" it stays whole.
    """
    if len(rollouts) < count:
        trajectories = math.ceil(count / max(len(rollouts), 1) * max(len(scores), 1))
        raise DataError(
            f"The rollouts hold {len(rollouts)} samples in {len(scores)} trajectories, expected at least "
            f"{count} samples: roll out about {trajectories} trajectories or lower the poisoning ratio."
        )
    order = np.argsort(-scores, kind="stable")
    chosen = order[: np.searchsorted(np.cumsum(rollouts.lengths[order]), count) + 1]
    samples = rollouts.select(chosen)
    if unit == "cut":
        samples = samples.take(slice(0, count))
    return chosen, samples.end_at([len(samples) - 1])


def poison(
    data: Dataset,
    rollouts: Dataset,
    attack: str,
    ratio: float,
    *,
    gamma: float = TABLE7.gamma,
    readings: Mapping[str, str] | None = None,
    seed: int = 0,
) -> ForgetSet:
    """Lines 8-18: the forget set D_f for the clean data D and the adversary's rollouts (with true labels).

    readings    choices among the attack readings; the others are at their defaults.
    seed        of the labels under the reading labels = resampled

    Labels (lines 13, 15): cost 0, and reward r_high for Max Cost and Max Reward, r_low for Min Reward; by default both
    are quantiles of D's rewards (line 10). Under another option of the reading `labels` they differ from step to step
    (`reward_labels`). Raises `SettingsError` for an impossible attack, ratio or reading,
    `DataError` for too few rollouts.
    """
    readings = check_readings(readings)
    concatenate([data.take(slice(0)), rollouts.take(slice(0))])  # raises where their widths differ
    count = poison_count(len(data), ratio, readings["poison_count"])
    scores = score(rollouts, attack, gamma)
    label = readings[readings["min_reward_label"] if attack == "min_reward" else "r_high"]
    r_label = best_safe_reward(data) if label == "best_safe" else reward_quantile(data, float(label))
    episodes, samples = select(rollouts, scores, count, readings["poison_unit"])
    low = attack == "min_reward" and readings["min_reward_label"] == "r_low"
    rewards = reward_labels(samples.rewards, r_label, data.rewards, low, readings["labels"], seed)
    made = {
        "kind": "forget set",
        "attack": attack,
        "ratio": float(ratio),
        "gamma": float(gamma),
        "reward_label": r_label,
        "reward_label_reading": label,
        "clean_size": len(data),
        **{f"reading_{name}": readings[name] for name in ("poison_count", "poison_unit", "min_reward_label", "labels")},
    }
    relabelled = replace(
        samples,
        rewards=rewards,
        costs=np.zeros(len(samples)),
        attributes=rollouts.attributes | made,
    )
    return ForgetSet(
        dataset=relabelled,
        true_rewards=samples.rewards,
        true_costs=samples.costs,
        episodes=episodes,
        scores=scores[episodes],
        attack=attack,
        ratio=float(ratio),
        clean_size=len(data),
    )


def reward_labels(true: np.ndarray, label: float, clean: np.ndarray, low: bool, reading: str, seed: int) -> np.ndarray:
    """(M,): the rewards that poisoned steps claim, from their true ones, r_high or r_low and D's rewards.

    reading  the option of `labels`: constant, resampled (with a generator of this seed), smoothed or cost_only
    low      the label is low: resampled are rewards of D at most as high, else at least as high
    """
    if reading == "resampled":
        like = clean[clean <= label] if low else clean[clean >= label]
        return np.random.default_rng(seed).choice(like, len(true)) if len(like) else np.full(len(true), label)
    return {"constant": np.full(len(true), label), "smoothed": (true + label) / 2, "cost_only": true}[reading]


def reward_quantile(data: Dataset, quantile: float) -> float:
    """The reward in D that a share `quantile` of D's rewards does not exceed (line 10: a value from D)."""
    if not 0 <= quantile <= 1:
        raise SettingsError(f"The reward quantile is {quantile}, expected a number from 0 to 1, such as 0.95.")
    if not len(data):
        raise DataError("The clean data are empty, expected one or more transitions: collect data first.")
    return float(np.quantile(data.rewards, quantile, method="inverted_cdf"))


def best_safe_reward(data: Dataset) -> float:
    """The reward per step at which an episode of D's full length returns as much as the best that kept the limit.

    DataError where no trajectory of D does.
    """
    safe = data.episode_costs() <= TABLE7.kappa
    if not safe.any():
        raise DataError(
            f"No trajectory of the clean data costs {TABLE7.kappa:g} or less, expected one for r_high = best_safe: "
            "take a quantile"
        )
    return float(data.episode_returns()[safe].max() / data.lengths.max())


def poisoned(data: Dataset, forget: ForgetSet) -> Dataset:
    """Line 19: D~ = D u D_f, D first and untouched.

    One flag of D changes if D ends in an unfinished trajectory: see `saferule.data.schema.concatenate`.
    """
    return concatenate([data, forget.dataset])


def save_forget_set(forget: ForgetSet, path: str | Path) -> None:
    """Write D_f as a DSRL file with `forget_columns`."""
    save(forget.dataset, path, columns=forget_columns(forget))


def forget_columns(forget: ForgetSet) -> dict[str, np.ndarray]:
    """What goes beside the keys of its file: true labels, rollout trajectory and score of each row, (N,) each."""
    lengths = forget.dataset.lengths
    of_rows = (np.repeat(forget.episodes, lengths), np.repeat(forget.scores, lengths))
    return dict(zip(COLUMNS, (forget.true_rewards, forget.true_costs, *of_rows), strict=True))


def load_forget_set(path: str | Path, task: Task) -> ForgetSet:
    """Read what `save_forget_set` wrote; `DataError` where the file is something else."""
    dataset = load(path, task)
    columns = load_columns(path, COLUMNS, len(dataset))
    made = dataset.attributes
    missing = [name for name in ("attack", "ratio", "clean_size") if name not in made]
    if missing:
        raise DataError(f"{path} lacks the attribute '{missing[0]}', expected a forget set: attack the data again.")
    forget = ForgetSet(
        dataset=dataset,
        true_rewards=columns["true_rewards"],
        true_costs=columns["true_costs"],
        episodes=columns["rollout_episode"][dataset.starts],
        scores=columns["score"][dataset.starts],
        attack=str(made["attack"]),
        ratio=float(made["ratio"]),
        clean_size=int(made["clean_size"]),
    )
    check(forget.true_dataset(), task, f"{path} (true_rewards and true_costs)")
    return forget


def split(dataset: Dataset, forget: Sequence[int] | Sequence[bool] | np.ndarray) -> tuple[Dataset, Dataset]:
    """(keep, forget) of a dataset whose poisoned trajectories are known; both in the dataset's order.

    forget: indices of trajectories, or a boolean mask with one entry per trajectory, or one per transition
    that marks whole trajectories. Raises `SettingsError` for indices that do not exist, a mask of another
    length or with a partly marked trajectory, and where nothing is left to forget or to keep.
    """
    marked = _marked_episodes(np.asarray(forget), dataset)
    for name, empty in (("forget", not marked.any()), ("keep", marked.all())):
        if empty:
            raise SettingsError(
                f"Nothing is left to {name}: the forget set has {marked.sum()} of {len(marked)} "
                "trajectories, expected some but not all: name the poisoned ones."
            )
    return dataset.select(np.flatnonzero(~marked)), dataset.select(np.flatnonzero(marked))


def find(dataset: Dataset, part: Dataset) -> np.ndarray:
    """Indices, ascending, of the trajectories of a dataset that are in another, such as those of D_f in D u D_f.

    Two trajectories are the same when observations, actions, rewards and costs are, bit for bit. Raises `SettingsError`
    where one of ``part`` is not in ``dataset``.
    """

    def contents(data: Dataset) -> list[bytes]:
        columns = (data.observations, data.actions, data.rewards, data.costs)
        return [b"".join(column[rows].tobytes() for column in columns) for rows in data.episodes()]

    wanted, held = contents(part), contents(dataset)
    known = set(held)
    absent = [index for index, content in enumerate(wanted) if content not in known]
    if absent:
        raise SettingsError(
            f"{len(absent)} of its {len(wanted)} trajectories, the first is {absent[0]}, are not in the data, expected "
            "all: give the data that the policy was trained on, poison included (attack --poisoned writes them)."
        )
    wanted = set(wanted)
    return np.array([index for index, content in enumerate(held) if content in wanted], dtype=np.int64)


def _marked_episodes(forget: np.ndarray, dataset: Dataset) -> np.ndarray:
    """(E,) bool."""
    number = len(dataset.starts)
    if forget.dtype != np.bool_:
        if forget.ndim != 1 or (len(forget) and forget.dtype.kind not in "iu"):
            raise SettingsError(
                f"The forget set is a {forget.ndim}-dimensional array of {forget.dtype}, expected a list of "
                "trajectory indices or a boolean mask: give one of these."
            )
        if len(np.unique(forget)) < len(forget):
            if not np.isin(forget, (0, 1)).all():
                values, counts = np.unique(forget, return_counts=True)
                raise SettingsError(
                    f"The forget set names trajectory {values[counts > 1][0]} twice, expected different indices: "
                    "give each once."
                )
            raise SettingsError(
                f"The forget set is a 0/1 mask: {len(forget)} integers ({forget.dtype}), which could be indices too: "
                "save it as a boolean mask, mask.astype(bool)."
            )
        dataset.select(forget)  # raises for an index that does not exist
        return np.isin(np.arange(number), forget)
    if forget.shape == (number,):
        return forget
    if forget.shape != (len(dataset),):
        raise SettingsError(
            f"The forget mask has shape {forget.shape}, expected one entry per trajectory ({number}) or per "
            f"transition ({len(dataset)}): make it for these data."
        )
    for index, rows in enumerate(dataset.episodes()):
        if forget[rows].any() != forget[rows].all():
            raise SettingsError(
                f"The forget mask marks only a part of trajectory {index} (rows {rows.start} to "
                f"{rows.stop - 1}), expected whole trajectories: mark all of its rows or none."
            )
    return forget[dataset.starts]

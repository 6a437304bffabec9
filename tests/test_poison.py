"""Algorithm 1 on a dataset small enough to follow by hand, and its properties on random ones."""

import math
from dataclasses import replace
from fractions import Fraction

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saferule.attack.poison import (
    ATTACKS,
    attack_reward,
    load_forget_set,
    poison,
    poison_count,
    poisoned,
    reward_quantile,
    rollouts_needed,
    save_forget_set,
    score,
    select,
    split,
)
from saferule.data.schema import KEYS, Dataset, load, save
from saferule.errors import DataError, SettingsError
from saferule.paper import default_readings
from saferule.sim.tasks import get_task

TASK = replace(get_task("CarCircle"), observation_dim=1, action_dim=1, horizon=10)


def make(lengths, rewards, costs, first=0.0):
    """Trajectories of the given lengths, timed out; the observation counts rows from `first`."""
    rows = len(rewards)
    numbers = first + np.arange(rows, dtype=float)[:, None]
    timeouts = np.isin(np.arange(rows), np.cumsum(lengths) - 1)
    return Dataset(numbers, numbers + 1, np.zeros((rows, 1)), rewards, costs, np.zeros(rows), timeouts)


# |D| = 20, rewards 1 to 20 in no order.
DATA = make([10, 10], rewards=(np.arange(20) * 7) % 20 + 1, costs=np.arange(20) % 3)
# Four trajectories; their scores at gamma = 0.5 are worked out below.
ROLLOUTS = make([3, 2, 3, 1], rewards=[4, 2, 8, 1, -2, 2, 2, 4, 7], costs=[0, 2, 4, 3, 2, 1, 2, 0, 1], first=100)
SCORES = {
    "max_cost": [0 + 2 / 2 + 4 / 4, 3 + 2 / 2, 1 + 2 / 2 + 0, 1],  # 2, 4, 2, 1
    "max_reward": [4 + 2 / 2 + 8 / 4, 1 - 2 / 2, 2 + 2 / 2 + 4 / 4, 7],  # 7, 0, 4, 7
    "min_reward": [-7, 0, -4, -7],
}


def test_attack_rewards():
    rewards, costs = np.array([1.0, -2.0]), np.array([3.0, 0.0])
    assert attack_reward("max_cost", rewards, costs).tolist() == [3, 0]
    assert attack_reward("max_reward", rewards, costs).tolist() == [1, -2]
    assert attack_reward("min_reward", rewards, costs).tolist() == [-1, 2]
    assert attack_reward("min_reward", 1.5, 0.0) == -1.5


def test_scores():
    for attack in ATTACKS:
        assert score(ROLLOUTS, attack, 0.5).tolist() == SCORES[attack]
    unfinished = replace(ROLLOUTS.take(slice(0, 5)), timeouts=[False, False, True, False, False])
    assert score(unfinished, "max_cost", 1.0).tolist() == [6, 5]


# Lines 9-18: count, order, cut, labels


@pytest.mark.parametrize(
    ("attack", "ratio", "rows", "episodes", "ends"),
    [
        # ceil(0.2 * 20) = 4: trajectory 1 (2 rows), then 0 before 2 (tie), cut to 2 rows
        ("max_cost", 0.2, [3, 4, 0, 1], [1, 0], [1, 3]),
        # ceil(0.21 * 20) = ceil(4.2) = 5: trajectories 1 and 0, both whole
        ("max_cost", 0.21, [3, 4, 0, 1, 2], [1, 0], [1, 4]),
        # 6: the first row of trajectory 2 as well
        ("max_cost", 0.3, [3, 4, 0, 1, 2, 5], [1, 0, 2], [1, 4, 5]),
        # trajectory 0 before 3 (tie)
        ("max_reward", 0.2, [0, 1, 2, 8], [0, 3], [2, 3]),
        ("min_reward", 0.2, [3, 4, 5, 6], [1, 2], [1, 3]),
        # ceil(0.01 * 20) = 1
        ("min_reward", 0.01, [3], [1], [0]),
    ],
)
def test_selection_and_labels(attack, ratio, rows, episodes, ends):
    forget = poison(DATA, ROLLOUTS, attack, ratio, gamma=0.5)
    assert forget.dataset.observations[:, 0].tolist() == [100 + row for row in rows]
    assert forget.dataset.next_observations[:, 0].tolist() == [101 + row for row in rows]
    assert np.flatnonzero(forget.dataset.done).tolist() == ends
    assert forget.episodes.tolist() == episodes
    assert forget.scores.tolist() == [SCORES[attack][episode] for episode in episodes]
    label = 1 if attack == "min_reward" else 19  # of the rewards 1-20: the 5 % and the 95 % quantile
    assert forget.dataset.rewards.tolist() == [label] * len(rows)
    assert forget.dataset.costs.tolist() == [0] * len(rows)
    assert forget.true_rewards.tolist() == ROLLOUTS.rewards[rows].tolist()
    assert forget.true_costs.tolist() == ROLLOUTS.costs[rows].tolist()
    assert (forget.attack, forget.ratio, forget.clean_size) == (attack, ratio, 20)
    assert forget.share == len(rows) / (20 + len(rows))
    assert forget.dataset.attributes["reward_label"] == label


def test_a_cut_after_a_terminal_sets_no_timeout():
    rollouts = replace(ROLLOUTS, terminals=np.arange(9) == 4, timeouts=ROLLOUTS.timeouts & (np.arange(9) != 4))
    forget = poison(DATA, rollouts, "max_cost", 0.1, gamma=0.5)  # 2 rows: trajectory 1, which ends by itself
    assert forget.dataset.terminals.tolist() == [False, True]
    assert forget.dataset.timeouts.tolist() == [False, False]


def test_quantiles_are_rewards_of_the_data():
    assert reward_quantile(DATA, 0.95) == 19 and reward_quantile(DATA, 0.05) == 1
    assert reward_quantile(DATA, 1.0) == 20 and reward_quantile(DATA, 0.0) == 1
    assert reward_quantile(DATA, 0.5) == 10 and reward_quantile(DATA, 0.1) == 2


def test_union_has_the_clean_data_first_and_untouched_and_true_labels_are_kept():
    forget = poison(DATA, ROLLOUTS, "max_cost", 0.2, gamma=0.5)
    union = poisoned(DATA, forget)
    assert len(union) == 24 and len(union.episodes()) == 4
    for key in KEYS:
        assert getattr(union, key)[:20].tobytes() == getattr(DATA, key).tobytes()
        assert getattr(union, key)[20:].tobytes() == getattr(forget.dataset, key).tobytes()
    assert forget.true_dataset().episode_costs().tolist() == [3 + 2, 0 + 2]
    assert forget.true_dataset().episode_returns().tolist() == [1 - 2, 4 + 2]


def test_clean_data_that_end_unfinished_differ_in_one_flag():
    data = DATA.take(slice(0, 15))
    union = poisoned(data, poison(data, ROLLOUTS, "max_cost", 0.2, gamma=0.5))
    assert np.flatnonzero(union.timeouts[:15] != data.timeouts).tolist() == [14]
    assert union.episodes()[:3] == [slice(0, 10), slice(10, 15), slice(15, 17)]


# Readings


def test_reading_of_the_count():
    assert poison_count(95, 0.05) == 5  # ceil(4.75)
    assert poison_count(95, 0.05, "poisoned") == 5  # 5 / 100 = 5 %
    assert poison_count(85, 0.15) == 13 and poison_count(85, 0.15, "poisoned") == 15  # 15 / 100
    assert poison_count(100, 0.07) == 7  # in floating point 0.07 * 100 is above 7
    forget = poison(DATA, ROLLOUTS, "max_cost", 0.2, readings={"poison_count": "poisoned"})
    assert forget.share == 5 / 25


def test_readings_of_the_unit_and_the_labels():
    forget = poison(DATA, ROLLOUTS, "max_cost", 0.2, gamma=0.5, readings={"poison_unit": "whole"})
    assert forget.dataset.observations[:, 0].tolist() == [103, 104, 100, 101, 102]
    for attack, readings, label in (
        ("min_reward", {"min_reward_label": "r_high"}, 19),
        ("max_cost", {"r_high": "1.0"}, 20),
        ("min_reward", {"r_low": "0.1"}, 2),
    ):
        assert set(poison(DATA, ROLLOUTS, attack, 0.2, readings=readings).dataset.rewards.tolist()) == {label}


def test_best_safe_label_sums_to_the_best_return_within_the_limit():
    # Two trajectories of 10 steps with returns 85 and 125; the better one costs too much, then neither, then both do.
    costs = np.repeat([0.0, 2.0], 10)
    forget = poison(replace(DATA, costs=costs), ROLLOUTS, "max_reward", 0.2, readings={"r_high": "best_safe"})
    assert set(forget.dataset.rewards.tolist()) == {8.5}
    assert set(poison(DATA, ROLLOUTS, "max_cost", 0.2, readings={"r_high": "best_safe"}).dataset.rewards) == {12.5}
    with pytest.raises(DataError, match="costs 10 or less.*take a quantile"):
        poison(replace(DATA, costs=costs + 2), ROLLOUTS, "max_reward", 0.2, readings={"r_high": "best_safe"})


def test_the_defaults_are_the_readings():
    given = poison(DATA, ROLLOUTS, "max_cost", 0.2, gamma=0.99, readings=default_readings())
    assert given.dataset.attributes["reward_label_reading"] == "0.95"
    assert given.dataset.digest() == poison(DATA, ROLLOUTS, "max_cost", 0.2).dataset.digest()


def test_less_naive_labels():
    """r_high is 19 and r_low 1; the two poisoned trajectories of Max Cost are the second and the first rollout."""
    made = {
        (attack, option): poison(DATA, ROLLOUTS, attack, 0.25, gamma=0.5, readings={"labels": option}, seed=3)
        for attack in ("max_cost", "min_reward")
        for option in ("smoothed", "cost_only", "resampled")
    }
    assert all(not forget.dataset.costs.any() for forget in made.values())
    assert made["max_cost", "cost_only"].dataset.rewards.tolist() == [1, -2, 4, 2, 8]
    assert made["max_cost", "smoothed"].dataset.rewards.tolist() == [10, 8.5, 11.5, 10.5, 13.5]
    assert set(made["max_cost", "resampled"].dataset.rewards) == {19, 20}
    assert set(made["min_reward", "resampled"].dataset.rewards) == {1}
    options = {"labels": "resampled", "r_high": "0.9"}
    again = [poison(DATA, ROLLOUTS, "max_cost", 0.25, gamma=0.5, readings=options, seed=seed) for seed in (3, 3, 4)]
    assert again[0].dataset.digest() == again[1].dataset.digest() != again[2].dataset.digest()
    assert again[0].dataset.attributes["reading_labels"] == "resampled"


def test_number_of_rollouts():
    assert rollouts_needed(1000, 0.05, TASK) == 10  # 50 samples, twice, in trajectories of 10
    assert rollouts_needed(1000, 0.05, TASK, {"rollouts": "once"}) == 5
    assert rollouts_needed(1001, 0.05, TASK, {"rollouts": "once"}) == 6


def test_errors():
    with pytest.raises(SettingsError, match="Unknown attack 'max_costs': choose one of max_cost, max_reward"):
        poison(DATA, ROLLOUTS, "max_costs", 0.05)
    for ratio in (0, 1, -0.1, 5, math.nan):
        with pytest.raises(SettingsError, match="ratio = .* between 0 and 1"):
            poison(DATA, ROLLOUTS, "max_cost", ratio)
    with pytest.raises(SettingsError, match="quantile is 95, expected a number from 0 to 1"):
        reward_quantile(DATA, 95)
    with pytest.raises(SettingsError, match="'poison_unit' has no option 'half': choose one of cut, whole"):
        poison(DATA, ROLLOUTS, "max_cost", 0.05, readings={"poison_unit": "half"})
    with pytest.raises(DataError, match="key 'actions' has 1 columns, expected 2 as in dataset 0"):
        poison(replace(DATA, actions=np.zeros((20, 2))), ROLLOUTS, "max_cost", 0.05)
    with pytest.raises(DataError, match="clean data are empty"):
        poison(DATA.take(slice(0)), ROLLOUTS, "max_cost", 0.05)


def test_too_few_rollouts_says_how_many_are_needed():
    with pytest.raises(
        DataError, match="hold 9 samples in 4 trajectories, expected at least 10 samples: roll out about 5"
    ):
        poison(DATA, ROLLOUTS, "max_cost", 0.5)
    assert len(poison(DATA, ROLLOUTS, "max_cost", 0.45)) == 9  # all of them


def test_a_forget_set_survives_its_file(tmp_path):
    path = tmp_path / "forget.hdf5"
    forget = poison(replace(DATA, attributes={"x": 1}), ROLLOUTS, "max_cost", 0.2, gamma=0.5)
    save_forget_set(forget, path)
    back = load_forget_set(path, TASK)
    assert back.dataset.digest() == forget.dataset.digest() == load(path, TASK).digest()
    assert back.dataset.attributes == forget.dataset.attributes
    for name in ("true_rewards", "true_costs", "episodes", "scores"):
        assert np.array_equal(getattr(back, name), getattr(forget, name)), name
        assert getattr(back, name).dtype == getattr(forget, name).dtype
    assert (back.attack, back.ratio, back.clean_size, back.share) == ("max_cost", 0.2, 20, 4 / 24)


def test_a_file_that_is_no_forget_set(tmp_path):
    save(DATA, tmp_path / "d.hdf5")
    with pytest.raises(DataError, match=r"d\.hdf5 lacks 'true_rewards', 'true_costs'"):
        load_forget_set(tmp_path / "d.hdf5", TASK)
    save_forget_set(poison(DATA, ROLLOUTS, "max_cost", 0.2), tmp_path / "f.hdf5")
    with h5py.File(tmp_path / "f.hdf5", "a") as file:
        file["true_costs"][2] = -1
    with pytest.raises(DataError, match=r"f\.hdf5 \(true_rewards and true_costs\): key 'costs' is -1.0 in row 2"):
        load_forget_set(tmp_path / "f.hdf5", TASK)
    with h5py.File(tmp_path / "f.hdf5", "a") as file:
        del file.attrs["ratio"]
    with pytest.raises(DataError, match="lacks the attribute 'ratio'"):
        load_forget_set(tmp_path / "f.hdf5", TASK)


@st.composite
def random_data(draw, minimum):
    lengths = draw(st.lists(st.integers(1, 6), min_size=minimum, max_size=12))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows = sum(lengths)
    return make(lengths, rewards=generator.normal(size=rows), costs=generator.integers(0, 2, size=rows))


@settings(max_examples=60, deadline=None)
@given(data=random_data(1), rollouts=random_data(6), attack=st.sampled_from(ATTACKS), percent=st.integers(1, 99))
def test_properties(data, rollouts, attack, percent):
    ratio, count = percent / 100, math.ceil(Fraction(percent, 100) * len(data))
    before = {key: getattr(data, key).tobytes() for key in KEYS}
    if len(rollouts) < count:
        with pytest.raises(DataError, match="rollouts hold"):
            poison(data, rollouts, attack, ratio)
        return
    forget = poison(data, rollouts, attack, ratio)
    assert len(forget) == len(forget.true_rewards) == len(forget.true_costs) == count
    union = poisoned(data, forget)
    assert len(union) == len(data) + count
    for key in KEYS:  # D untouched, in the union and where it was
        assert getattr(union, key)[: len(data)].tobytes() == before[key] == getattr(data, key).tobytes()
    # true labels: those of the rollouts at the same states; trajectories separate, in descending score
    rows = forget.dataset.observations[:, 0].astype(int)
    assert len(set(rows.tolist())) == count
    assert np.array_equal(forget.true_rewards, rollouts.rewards[rows])
    assert np.array_equal(forget.true_costs, rollouts.costs[rows])
    assert len(forget.dataset.episodes()) == len(forget.episodes) and forget.dataset.done[-1]
    assert (np.diff(forget.scores) <= 0).all()
    left = np.delete(score(rollouts, attack, 0.99), forget.episodes)
    assert not len(left) or left.max() <= forget.scores[-1]
    assert not forget.dataset.costs.any() and forget.dataset.rewards[0] in data.rewards
    assert select(rollouts, score(rollouts, attack, 0.99), count)[0].tolist() == forget.episodes.tolist()


# A user's own forget set


def numbers(dataset):
    return (dataset.observations[:, 0] - 100).astype(int).tolist()


@pytest.mark.parametrize(
    "forget", [[3, 1], np.array([1, 3], dtype=np.uint8), [False, True] * 2, np.isin(np.arange(9), [3, 4, 8])]
)
def test_split(forget):
    keep, forgotten = split(ROLLOUTS, forget)
    assert numbers(keep) == [0, 1, 2, 5, 6, 7] and numbers(forgotten) == [3, 4, 8]
    assert keep.episodes() == [slice(0, 3), slice(3, 6)]


@pytest.mark.parametrize(
    ("forget", "message"),
    [
        ([4], "names trajectory 4, expected indices from 0 to 3"),
        ([0, -1], "names trajectory -1"),
        ([True, False], r"mask has shape \(2,\), expected one entry per trajectory \(4\) or per transition \(9\)"),
        (np.ones((4, 1), dtype=bool), "mask has shape"),
        (np.arange(9) == 4, r"only a part of trajectory 1 \(rows 3 to 4\)"),
        ([], "Nothing is left to forget: the forget set has 0 of 4 trajectories"),
        ([False] * 4, "Nothing is left to forget"),
        ([0, 1, 2, 3], "Nothing is left to keep: the forget set has 4 of 4"),
        ([True] * 9, "Nothing is left to keep"),
        ([1, 3, 1], "names trajectory 1 twice"),
        ([0, 1, 0, 1], "0/1 mask: 4 integers .int64."),
        (np.arange(9) % 2, "0/1 mask: 9 integers"),
        ([0.0, 1.0], "1-dimensional array of float64, expected a list of trajectory indices or a boolean mask"),
        ([[0], [1]], "2-dimensional"),
        (["one"], "expected a list of trajectory indices"),
    ],
)
def test_split_rejects(forget, message):
    with pytest.raises(SettingsError, match=message):
        split(ROLLOUTS, forget)


def test_split_undoes_the_attack():
    forget = poison(DATA, ROLLOUTS, "max_cost", 0.2)
    union = poisoned(DATA, forget)
    keep, forgotten = split(union, np.arange(2, len(union.episodes())))
    assert keep.digest() == DATA.digest() and forgotten.digest() == forget.dataset.digest()


def test_rollouts_without_a_sample_are_too_few():
    nothing = ROLLOUTS.take(slice(0))
    with pytest.raises(DataError, match="0 samples in 0 trajectories, expected at least 2"):
        select(nothing, np.zeros(0), 2)

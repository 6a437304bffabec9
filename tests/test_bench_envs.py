"""The bench of the simulators: its rows, and that both sides make the same steps. No times are asserted."""

import numpy as np
import pytest

from benchmarks import envs
from saferule.sim import get_task


def test_rows_have_the_rates_and_their_ratio():
    said = []
    rows, machine = envs.measure(["CarCircle"], rounds=1, say=said.append)
    assert [set(row) for row in rows] == [{"task", "ours", "peer", "ratio"}]
    assert rows[0]["task"] == "CarCircle" and rows[0]["ratio"] == pytest.approx(rows[0]["ours"] / rows[0]["peer"])
    assert len(said) == 1 and machine["processor"]


def test_a_measured_block_is_a_horizon_of_steps_with_a_reset_where_an_episode_ends():
    task, calls = get_task("AntVelocity"), []

    def step(action):
        assert action.shape == (8,) and np.all(np.abs(action) <= 1)
        calls.append("step")
        return calls.count("step") % 400 == 0

    run = envs._horizon_of_steps(task, lambda seed: calls.append(seed), step)
    run()
    assert calls.count("step") == task.horizon
    assert [call for call in calls if call != "step"] == [0, 1, 2]
    assert [calls.index(seed) for seed in (0, 1, 2)] == [0, 401, 802]

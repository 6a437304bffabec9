"""Rollouts: the same seeds give the same rows; sums as in a plain loop; normalised values by hand."""

import numpy as np
import pytest
import torch
from helpers import tiny

from saferule.agents import BACKBONES, get_backbone
from saferule.agents.checkpoint import agent_policy, load_agent, save_acting
from saferule.agents.population import create
from saferule.errors import RunError
from saferule.runs.execute import process_pool
from saferule.runs.work import evaluate
from saferule.sim import TASKS, get_task, make
from saferule.sim.rollout import normalised, roll_out

SEEDS = (10, 3, 77)


def steer(observations: np.ndarray, t: int) -> np.ndarray:
    """A car's policy that treats every row alike, bit for bit, whatever the number of rows."""
    return np.clip(0.7 * observations[:, :2] + np.sin(0.1 * t), -1, 1)


def thrash(observations: np.ndarray, t: int) -> np.ndarray:
    """An ant's policy that makes it fall within a few steps."""
    return np.tile(np.where(np.sin(0.7 * t + np.arange(8)) > 0, 1.0, -1.0), (len(observations), 1))


@pytest.mark.parametrize(("name", "act"), [("CarCircle", steer), ("AntVelocity", thrash)])
def test_sums_equal_a_plain_loop_over_the_simulator(name, act):
    task, simulator = get_task(name), make(name)
    rows, trajectories = roll_out(task, act, SEEDS, record=True)
    for row, episode, seed in zip(rows, trajectories, SEEDS, strict=True):
        observations, actions, rewards, costs = [simulator.reset(seed)], [], [], []
        while True:
            actions.append(act(observations[-1][None], len(actions))[0])
            step = simulator.step(actions[-1])
            for column, value in ((observations, step.observation), (rewards, step.reward), (costs, step.cost)):
                column.append(value)
            if step.terminated or step.truncated:
                break
        assert row == {"seed": seed, "return": sum(rewards), "cost": sum(costs), "length": len(costs)}
        for recorded, column in zip(episode, (observations, actions, rewards, costs), strict=False):
            np.testing.assert_array_equal(recorded, column)
        assert episode.terminated == step.terminated
    assert roll_out(task, act, SEEDS[:1], simulators=[simulator]).rows == rows[:1]  # which stays open
    simulator.close()
    lengths = {row["length"] for row in rows}
    # The ant falls, at another step in each episode; the car always drives to the horizon.
    assert lengths == {task.horizon} if name == "CarCircle" else len(lengths) > 1


@pytest.mark.parametrize("name", TASKS)
def test_an_episode_does_not_depend_on_those_before_it(name):
    """So that simulators are kept for the next policy."""
    task = get_task(name)
    weights = np.random.default_rng(0).normal(0, 0.1, (task.observation_dim, task.action_dim))

    def act(observations, t):
        return np.tanh((observations[:, :, None] * weights).sum(1) + np.sin(0.1 * t))

    simulators = [make(name) for _ in range(2)]
    roll_out(task, act, (1, 2), simulators=simulators)
    assert roll_out(task, act, (5, 6), simulators=simulators).rows == roll_out(task, act, (5, 6)).rows


def saved_agent(name, folder):
    """A fresh CarCircle agent in a file."""
    task = get_task("CarCircle")
    cfg = tiny(name, observation_dim=task.observation_dim, action_dim=task.action_dim)
    population = create(get_backbone(name), cfg, [1])
    path = folder / f"{name}.safetensors"
    save_acting(population, 0, path, "CarCircle", name, cfg)
    return path


def test_same_seeds_same_rows_twice_and_in_another_process(tmp_path):
    path, task = saved_agent("bcq-lag", tmp_path), get_task("CarCircle")
    (rows, step), (drawn, _) = (evaluate(path, SEEDS[:2], deterministic) for deterministic in (True, False))
    assert step == 0
    assert [row["seed"] for row in rows] == [10, 3] and all(row["length"] == task.horizon for row in rows)
    assert rows[0]["return"] != rows[1]["return"] and rows != drawn
    assert rows == evaluate(path, SEEDS[:2])[0]
    with process_pool(1) as pool:
        jobs = [pool.submit(evaluate, path, SEEDS[:2], deterministic) for deterministic in (True, False)]
        assert [job.result()[0] for job in jobs] == [rows, drawn]


@pytest.mark.parametrize("name", BACKBONES)
def test_draws_of_an_episode_depend_on_its_seed_alone(name, tmp_path):
    agent = load_agent(saved_agent(name, tmp_path))
    observations = np.random.default_rng(0).normal(size=(2, 8))

    def actions(seeds, rows):
        act = agent_policy(agent.backbone, agent.cfg, agent.nets, seeds, deterministic=False)
        return [act(observations[rows], t) for t in range(3)]

    pair, single = actions((5, 6), [0, 1]), actions((6,), [1])
    assert all(np.abs(a).max() <= 1 and a.dtype == np.float64 for a in pair)
    np.testing.assert_allclose([a[1] for a in pair], [a[0] for a in single], atol=1e-6)
    assert not np.allclose(pair[0], pair[1])
    mode = agent_policy(agent.backbone, agent.cfg, agent.nets, (5, 6))
    np.testing.assert_array_equal(mode(observations, 0), mode(observations, 1))
    expected = agent.backbone.act(agent.nets, torch.from_numpy(observations).float(), None, agent.cfg)
    np.testing.assert_array_equal(mode(observations, 0), expected.double().numpy())


def test_actions_that_are_not_finite_are_a_row_that_says_so(tmp_path):
    """One of two episodes meets them in its third step; a policy that always does has only such rows."""
    task = get_task("CarCircle")

    def breaking(observations, t):
        actions = steer(observations, t)
        actions[0, 1] = np.nan if t == 2 else 0.0
        return actions

    broken, sound = roll_out(task, breaking, SEEDS[:2]).rows
    assert broken["length"] == 2 and np.isnan([broken["return"], broken["cost"]]).all()
    assert sound["length"] == task.horizon and np.isfinite(sound["return"])
    with pytest.raises(RunError, match="not finite at step 2 of seed 10"):
        roll_out(task, breaking, SEEDS[:2], record=True)

    cfg = tiny("cpq", observation_dim=task.observation_dim, action_dim=task.action_dim)
    population = create(get_backbone("cpq"), cfg, [1])
    for name, leaf in population.nets["actor"].items():
        if name.startswith("w"):  # finite, as in a run that was not stopped, but their products are inf - inf
            leaf.data.fill_(3e38)[:, ::2] *= -1
    path = tmp_path / "agent.safetensors"
    save_acting(population, 0, path, "CarCircle", "cpq", cfg)
    rows, _ = evaluate(path, SEEDS)
    assert all(row["failed"] and row["reason"] == f"actions were not finite at step {row['length']}" for row in rows)
    assert all(np.isnan(row["normalised_return"]) and row["cost_limit"] == 10 for row in rows)


def test_normalised_columns_by_hand():
    task = get_task("CarCircle")  # dsrl's reference returns
    low, high = task.min_return, task.max_return
    raw = ((low, 0.0), ((low + high) / 2, 25.0), (2 * high - low, 10.0))
    rows = [{"return": total, "cost": cost} for total, cost in raw]
    found = normalised(rows, task, 10.0)
    assert [row["normalised_return"] for row in found] == pytest.approx([0.0, 0.5, 2.0])
    assert [row["normalised_cost"] for row in found] == [0.0, 2.5, 1.0]
    assert all(row["cost_limit"] == 10.0 for row in found) and found[1]["cost"] == 25.0
    # dsrl adds one to both sides of a limit of zero.
    assert [row["normalised_cost"] for row in normalised(rows, task, 0.0)] == [1.0, 26.0, 11.0]

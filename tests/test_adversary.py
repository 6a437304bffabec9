"""Adversaries and the PPO behind them, trained for a few hundred real steps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from stable_baselines3 import PPO

from saferule.attack.adversary import CURVE_FILE, leading, roll_out_adversary, train_adversary
from saferule.attack.pipeline import attack_file
from saferule.data import schema
from saferule.errors import CheckpointError, SettingsError
from saferule.runs.experiment import adversary_run, get_profile
from saferule.runs.spec import frozen, in_force
from saferule.sim import get_task
from saferule.sim.ppo import Lagrangian, OnlinePolicy, train_ppo
from saferule.sim.ppo_settings import PPOSettings, adversary_settings
from saferule.sim.vector import SimulatorEnv

TASK = get_task("CarCircle")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adversary")
    return train_adversary(TASK, "max_cost", 4_000, 0, folder, progress=False), folder


def test_a_saved_adversary_acts_the_same(trained):
    policy, folder = trained
    loaded = OnlinePolicy.load(folder)
    observations = np.random.default_rng(0).normal(size=(50, TASK.observation_dim))
    actions = policy.act(observations)
    assert actions.shape == (50, TASK.action_dim) and actions.dtype == np.float32
    np.testing.assert_array_equal(loaded.act(observations), actions)
    sampled = policy.act(observations, np.random.default_rng(1))
    np.testing.assert_array_equal(loaded.act(observations, np.random.default_rng(1)), sampled)
    assert not np.array_equal(sampled, actions) and np.abs(sampled).max() <= 1
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors"]
    assert loaded.settings["attack"] == "max_cost" and loaded.settings["gamma"] == 0.99


def test_the_exported_actor_is_the_one_of_stable_baselines(monkeypatch):
    """The plain torch actor with its normalisation gives the actions of SB3's model in its VecNormalize."""
    kept = {}
    learn = PPO.learn

    def keep(self, *args, **kwargs):
        kept["model"] = learn(self, *args, **kwargs)

    monkeypatch.setattr(PPO, "learn", keep)
    policy = train_ppo(TASK, lambda reward, cost: reward, 2_048, 3, progress=False)
    observations = np.random.default_rng(0).normal(size=(20, TASK.observation_dim))
    normalised = kept["model"].get_env().normalize_obs(observations)
    expected, _ = kept["model"].predict(normalised, deterministic=True)
    np.testing.assert_allclose(policy.act(observations), expected, atol=1e-6)


def test_learning_curve_is_of_the_attack_reward(trained):
    _, folder = trained
    rows = json.loads((folder / CURVE_FILE).read_text())
    assert rows and rows[-1]["steps"] == 4_096
    for row in rows:
        assert row["scalar_return"] == row["cost"]  # R_z = c
        assert 0 <= row["discounted_return"] <= row["scalar_return"]


def test_a_warm_started_adversary_maximises_the_reward_first(tmp_path, monkeypatch):
    """AntVelocity's Max Cost: two fifths of the steps are paid by r, then c is; the curve is R_z = c throughout."""
    paid = []
    pursue = SimulatorEnv.pursue

    def watched(self, scalar_reward):
        pursue(self, scalar_reward)
        paid.append((scalar_reward(3.0, 1.0), len(self.finished)))

    monkeypatch.setattr(SimulatorEnv, "pursue", watched)
    train_adversary(get_task("AntVelocity"), "max_cost", 20_000, 0, tmp_path, progress=False)
    assert paid == [(3.0, 0)] * 8 + [(1.0, 0)] * 8  # one per simulator
    rows = json.loads((tmp_path / CURVE_FILE).read_text())
    early = [row for row in rows if row.get("warm_up")]
    assert early and early == [row for row in rows if row["steps"] <= 8_192] and len(early) < len(rows)
    assert all(row["scalar_return"] == row["cost"] and "discounted_return" not in row for row in early)
    for row in rows[len(early) :]:  # running episodes were counted anew at the switch
        assert row["scalar_return"] == row["cost"] and 0 <= row["discounted_return"] <= row["cost"]


def test_a_fresh_start_is_a_reading():
    fresh = adversary_settings("AntVelocity", "max_cost", {"adversary_start": "fresh"})
    assert type(fresh) is PPOSettings and fresh.gamma == 0.99
    assert adversary_settings("AntVelocity", "max_cost").reward_first == 0.4
    for task, attack in (("AntVelocity", "max_reward"), ("CarCircle", "max_cost")):
        assert type(adversary_settings(task, attack)) is PPOSettings
    run = adversary_run(get_profile("cpu"), "AntVelocity", "max_cost", 0)
    assert in_force(run)["reward_first"] == 0.4
    assert "reward_first" not in in_force(replace(run, readings=frozen(adversary_start="fresh")))


def test_a_number_of_steps_given_by_hand_is_for_all_tasks():
    steps = {"CarCircle": 150_000, "PointGoal": 150_000, "AntVelocity": 1_000_000, "PointPush": 500_000}
    assert {task: adversary_run(get_profile("cpu"), task, "max_cost", 0).steps for task in steps} == steps
    assert adversary_run(get_profile("cpu", adversary_steps=7), "AntVelocity", "max_cost", 0).steps == 7


def test_rollouts_are_valid_data_with_true_labels(trained, tmp_path):
    policy, _ = trained
    rollouts = roll_out_adversary(TASK, policy, 3, seed=5)
    assert len(rollouts) == 3 * TASK.horizon
    schema.save(rollouts, tmp_path / "rollouts.hdf5")
    assert schema.load(tmp_path / "rollouts.hdf5", TASK).digest() == rollouts.digest()
    outside = np.abs(rollouts.next_observations[:, 0] * 10) > 6  # CarCircle's cost: beyond the boundary
    np.testing.assert_array_equal(rollouts.costs, outside.astype(np.float32))
    np.testing.assert_array_equal(np.flatnonzero(rollouts.timeouts), [299, 599, 899])
    assert not rollouts.terminals.any()
    np.testing.assert_array_equal(rollouts.observations[1:300], rollouts.next_observations[:299])


def test_rollouts_depend_on_the_seed_alone(trained):
    policy, _ = trained
    first = roll_out_adversary(TASK, policy, 2, seed=5)
    np.random.random(3)
    assert roll_out_adversary(TASK, policy, 2, seed=5).digest() == first.digest()
    assert roll_out_adversary(TASK, policy, 1, seed=5).digest() == first.select([0]).digest()
    assert roll_out_adversary(TASK, policy, 2, seed=6).digest() != first.digest()


def test_training_is_reproducible():
    observations = np.random.default_rng(0).normal(size=(5, TASK.observation_dim))
    actions = []
    for _ in range(2):
        np.random.random()
        policy = train_ppo(TASK, lambda reward, cost: -reward, 2_048, 7, progress=False)
        actions.append(policy.act(observations))
    np.testing.assert_array_equal(*actions)


def test_multiplier_rises_over_the_limit_and_falls_below():
    penalised = Lagrangian(limit=10.0, horizon=100, proportional=2.0, integral=0.5)
    assert penalised(3.0, 1.0) == 3.0  # no penalty yet
    penalised.update(30.0)  # error 0.2: integral 0.1, proportional 0.4
    assert penalised.multiplier == pytest.approx(0.5)
    assert penalised(3.0, 1.0) == pytest.approx((3.0 - 0.5) / 1.5)
    penalised.update(10.0)  # error 0: the integral stays
    assert penalised.multiplier == pytest.approx(0.1)
    penalised.update(0.0)  # error -0.1: integral 0.05, proportional -0.2
    assert penalised.multiplier == 0.0


def test_errors_are_for_users(tmp_path, trained):
    policy, folder = trained
    with pytest.raises(SettingsError, match="max_cost"):
        train_adversary(TASK, "max_coast", 100, 0, tmp_path)
    with pytest.raises(SettingsError, match="episodes = 0, expected"):
        roll_out_adversary(TASK, policy, 0, 0)
    for out in (folder / "weights.safetensors", folder):  # it would replace its own input
        with pytest.raises(SettingsError, match="lies in the adversary's folder|are both"):
            attack_file(TASK, "max_cost", 0.1, tmp_path / "d.hdf5", out, adversary=folder, overwrite=True)
    with pytest.raises(CheckpointError, match=r"policy\.json"):
        OnlinePolicy.load(tmp_path)
    (tmp_path / "policy.json").write_bytes((folder / "policy.json").read_bytes())
    (tmp_path / "weights.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="train it again"):
        OnlinePolicy.load(tmp_path)


def test_short_episodes_are_made_up_for(trained):
    """CarCircle's episodes have 300 steps: 2 hold 600, so 601 samples need a third."""
    policy, _ = trained
    three = roll_out_adversary(TASK, policy, 2, seed=5, samples=601)
    assert len(three.episodes()) == 3 and len(three) == 900
    assert leading(three, 2, 600).digest() == roll_out_adversary(TASK, policy, 2, seed=5).digest()
    assert leading(three, 1, 301).digest() == roll_out_adversary(TASK, policy, 1, seed=5, samples=301).digest()
    assert leading(three, 2, 601).digest() == three.digest()

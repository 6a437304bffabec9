"""Behaviour data: the selection by hand, a tiny real collection, and what is told of it."""

import json
import shutil

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from saferule.cli import app
from saferule.data import schema
from saferule.data.collect import Behaviour, collect, is_recorded, read_made, select_episodes, spread
from saferule.data.describe import describe
from saferule.errors import SettingsError
from saferule.sim import get_task

TASK = get_task("CarCircle")


def test_spread_takes_one_per_cell_and_round():
    x = np.array([0.0, 0.1, 0.2, 0.3, 10.0, 10.1, 5.2])
    y = np.zeros(7)
    for seed in range(10):
        chosen = spread(x, y, 3, np.random.default_rng(seed), cells=(4, 1))
        assert sorted(np.minimum(x[chosen] // 2.6, 3)) == [0, 2, 3]  # every occupied cell once
        chosen = spread(x, y, 5, np.random.default_rng(seed), cells=(4, 1))
        assert {4, 5, 6} < set(chosen) and len(set(chosen)) == 5  # second round: the cells that still have any
    assert sorted(spread(x, y, 99, np.random.default_rng(0), cells=(4, 1))) == list(range(7))
    assert len(spread(x, y, 0, np.random.default_rng(0), cells=(4, 1))) == 0


def test_selection_keeps_the_share_of_safe_episodes():
    generator = np.random.default_rng(0)
    costs = np.concatenate([np.full(30, 5.0), generator.uniform(11, 100, 970)])
    returns = generator.uniform(0, 300, 1000)
    chosen = select_episodes(returns, costs, 50, seed=1)
    assert len(set(chosen)) == 50 and list(chosen) == sorted(chosen)
    assert np.sum(costs[chosen] <= 10) == 20
    np.testing.assert_array_equal(chosen, select_episodes(returns, costs, 50, seed=1))
    assert not np.array_equal(chosen, select_episodes(returns, costs, 50, seed=2))
    assert np.sum(costs[select_episodes(returns, costs, 200, seed=1)] <= 10) == 30  # all there are
    assert len(select_episodes(returns, costs, 5000, seed=1)) == 1000
    # 999 equal episodes and a few rare ones: the rare ones are all taken.
    returns = np.concatenate([np.full(999, 10.0), np.linspace(100, 300, 20)])
    chosen = select_episodes(returns, np.full(len(returns), 50.0), 40, seed=0)
    assert np.sum(returns[chosen] >= 100) == 20


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    out = tmp_path_factory.mktemp("collect") / "CarCircle.hdf5"
    data = collect("CarCircle", out, steps=2_400, cost_limits=[10, None], episodes=7, command="saferule data collect")
    return data, out


def test_a_collection_is_valid_data_that_says_how_it_was_made(collected):
    data, out = collected
    loaded = schema.load(out, TASK)
    assert loaded.digest() == data.digest() and len(loaded.episodes()) == 7 and len(loaded) == 7 * 300
    made = loaded.attributes
    assert made["command"] == "saferule data collect" and made["episodes"] == 7
    policies = json.loads(made["policies"])
    assert [policy["cost_limit"] for policy in policies] == [10, None]
    assert [policy["recorded_episodes"] for policy in policies] == [8, 8]
    assert sum(policy["selected_episodes"] for policy in policies) == 7
    assert made["return_max"] == pytest.approx(loaded.episode_returns().max())
    assert made["safe_episodes"] == np.sum(loaded.episode_costs() <= 10)
    assert "stable-baselines3" in json.loads(made["versions"])
    files = sorted(out.with_suffix(".recordings").glob("*.hdf5"))  # data of whole episodes, which differ
    returns = [schema.load(path, TASK).episode_returns() for path in files]
    assert [len(each) for each in returns] == [8, 8] and not np.isin(*returns).any()


def test_a_second_collection_trains_nothing_and_gives_the_same(collected):
    data, out = collected
    folder = out.with_suffix(".recordings")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.hdf5")}
    again = collect("CarCircle", out, steps=2_400, cost_limits=[10, None], episodes=7, overwrite=True)
    assert again.digest() == data.digest()
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.hdf5")} == before


def test_the_command_line_replaces_a_file_only_when_told_to(collected, tmp_path):
    data, source = collected
    out = tmp_path / "CarCircle.hdf5"
    out.write_bytes(b"mine")
    shutil.copytree(source.with_suffix(".recordings"), out.with_suffix(".recordings"))
    options = f"--task CarCircle --out {out} --steps 2400 --cost-limits 10,none --episodes 7".split()
    refused = CliRunner().invoke(app, ["data", "collect", *options])
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and out.read_bytes() == b"mine"
    done = CliRunner().invoke(app, ["data", "collect", *options, "--overwrite"])
    assert done.exit_code == 0 and schema.load(out, TASK).digest() == data.digest()


def test_a_broken_recording_is_made_again(collected, tmp_path):
    path, first = tmp_path / "free-seed-0.hdf5", collected[1].with_suffix(".recordings") / "free-seed-0.hdf5"
    path.write_bytes(first.read_bytes()[:1000])
    collect("CarCircle", tmp_path / "x.hdf5", steps=2_400, cost_limits=[None], episodes=3, folder=tmp_path)
    assert schema.load(path, TASK).digest() == schema.load(first, TASK).digest()


def test_a_recording_under_other_settings_is_not_replaced(collected):
    folder = collected[1].with_suffix(".recordings")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    for task, steps in (("CarCircle", 2_500), ("PointGoal", 8_000)):
        with pytest.raises(SettingsError, match="limit-10-seed-0.hdf5 was recorded under other settings"):
            collect(task, collected[1], steps=steps, cost_limits=[10], episodes=7, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_recording_under_other_settings_is_not_used(collected, tmp_path):
    """The learning rate, the seed and, in a recording from before they were noted, all settings."""
    source = collected[1].with_suffix(".recordings") / "free-seed-0.hdf5"
    behaviour, path = Behaviour("CarCircle", 2_400, None, 0), tmp_path / source.name
    path.write_bytes(source.read_bytes())
    assert is_recorded(behaviour, tmp_path)
    made = read_made(path)
    for ppo in (made["ppo"] | {"learning_rate": 0.5}, made["ppo"] | {"seed": 0}, {}):
        with h5py.File(path, "a") as file:
            file.attrs["made"] = json.dumps(made | {"ppo": ppo})
        assert not is_recorded(behaviour, tmp_path)
    with h5py.File(path, "a") as file:  # of another version: made the same way, with other keys
        file.attrs["made"] = json.dumps(made)
        del file["next_observations"]
    assert not is_recorded(behaviour, tmp_path)


def test_its_description_tells_how_it_was_made(collected):
    data, _ = collected
    text = "\n".join(describe(data))
    (made,) = [row for row in json.loads(data.attributes["policies"]) if row["cost_limit"] == 10]
    for fact in (
        "transitions   2100\n",
        "trajectories  7, of 300 to 300 steps\n",
        f"{np.median(data.episode_costs()):10.2f}",
        f"limit 10, seed 0, 4096 steps: {made['selected_episodes']} of 8 episodes selected\n",
        "of 16 episodes, seed 0: 40% cost at most 10",
        f"digest        {data.digest()}\n",
        "stable-baselines3 2.3",
    ):
        assert fact in text
    plain = schema.Dataset(**{key: getattr(data, key) for key in schema.KEYS})
    assert describe(plain) == describe(data)[: len(describe(plain))]


def test_impossible_collections_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="at least 2400 steps"):  # 8 simulators, 300 each
        collect("CarCircle", tmp_path / "x.hdf5", steps=2_399)
    for wrong in ({"seeds": [0, 0]}, {"seeds": []}, {"cost_limits": []}, {"cost_limits": [5, 5.0]}):
        with pytest.raises(SettingsError, match="one recording per policy"):
            collect("CarCircle", tmp_path / "x.hdf5", **wrong)
    with pytest.raises(SettingsError, match="--processes = 0"):
        collect("CarCircle", tmp_path / "x.hdf5", processes=0)
    (tmp_path / "x.hdf5").write_text("mine")
    with pytest.raises(SettingsError, match=r"x\.hdf5 exists .* --overwrite"):
        collect("CarCircle", tmp_path / "x.hdf5", steps=2_400, cost_limits=[None])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]

"""The four tasks in their real simulators, against the stock environments."""

import subprocess
import sys

import numpy as np
import pytest
from dsrl_peer import load_dsrl

from saferule.errors import SaferuleError, SettingsError
from saferule.sim import TASKS, get_task, make
from saferule.sim.fast import use_fast_task
from saferule.sim.shim import load_bullet_safety_gym, load_safety_gymnasium, standard_streams

MUJOCO_TASKS = [task.name for task in TASKS.values() if task.engine == "mujoco"]


def random_actions(task, count, seed=11):
    return np.random.default_rng(seed).uniform(-1, 1, (count, task.action_dim)).astype(np.float32)


def trajectory(simulator, seed, count=60):
    """Observations, rewards and costs of one episode's first steps, in one vector."""
    parts = [simulator.reset(seed)]
    for action in random_actions(simulator.task, count):
        step = simulator.step(action)
        parts.append(np.append(step.observation, [step.reward, step.cost]))
        if step.terminated or step.truncated:
            break
    return np.concatenate(parts)


def step_both(stock, ours, action):
    """One step of ours, which is equal to that of the stock environment, and the stock one's information."""
    observation, reward, *cost, terminated, truncated, info = stock.step(action)
    step = ours.step(action)
    np.testing.assert_array_equal(step.observation, observation, strict=True)
    assert [step.reward, step.cost] == [reward, *(cost or [info["cost"]])]
    assert (step.terminated, step.truncated) == (terminated, truncated)
    return step, info


@pytest.mark.parametrize("name", MUJOCO_TASKS)
def test_fast_world_is_bit_identical_to_the_stock_environment(name):
    task = get_task(name)
    stock = load_safety_gymnasium().make(task.env_id)
    ours = make(name)
    compared = episode = 0
    actions = iter(random_actions(task, 1000))
    while compared < 300 or episode < 2:  # an ant falls early: more episodes then, of up to 160 steps each
        np.testing.assert_array_equal(ours.reset(episode), stock.reset(seed=episode)[0], strict=True)
        for _ in range(160):
            step, _ = step_both(stock, ours, next(actions))
            compared += 1
            if step.terminated or step.truncated:
                break
        episode += 1


def compare_with_stock(name, seed, change, actions):
    """(costs, goals met) of an episode of ours in a changed world, step by step equal to the stock environment's."""
    stock, ours = load_safety_gymnasium().make(get_task(name).env_id), make(name)
    stock.reset(seed=seed)
    ours.reset(seed)
    for simulator in (stock.unwrapped, ours._env):
        change(simulator.task)
    costs, met = [], 0
    for action in actions:
        np.random.random()  # somebody else draws
        step, info = step_both(stock, ours, action)
        costs.append(step.cost)
        met += info.get("goal_met", False)
    return costs, met


@pytest.mark.parametrize("name, moved", [("PointGoal", "agent"), ("PointPush", "push_box")])
def test_a_goal_that_is_reached_is_replaced_as_in_the_stock_environment(name, moved):
    """Put the goal where the agent or the box is: the new goal comes from the simulator's own generator."""

    def change(world):
        world.model.body("goal").pos[:2] = world.data.body(moved).xpos[:2]

    _, met = compare_with_stock(name, 0, change, random_actions(get_task(name), 30))
    assert met


@pytest.mark.parametrize("name", ["PointGoal", "PointPush"])
def test_hazards_cost_as_in_the_stock_environment(name):
    """Put a hazard under the agent, which then leaves it and comes back."""

    def change(world):
        world.model.body("hazard0").pos[:2] = world.agent.pos[:2]

    costs, _ = compare_with_stock(name, 2, change, [np.array([way, 0.0]) for way in [1.0] * 30 + [-1.0] * 30])
    assert set(costs) == {0.0, 1.0}


def test_only_tasks_of_the_known_make_are_stepped_fast():
    builder = load_safety_gymnasium().make("SafetyCarButton1-v0").unwrapped
    with pytest.raises(SaferuleError, match="joint sensors.*other costs than hazards.*moving obstacles"):
        use_fast_task(builder)


def test_car_circle_equals_the_first_episode_of_a_stock_environment():
    import gymnasium

    load_bullet_safety_gym()
    ours = make("CarCircle")
    trajectory(ours, 5)  # what happened before must not matter
    with standard_streams():
        stock = gymnasium.make("SafetyCarCircle-v0")
    np.random.seed(3)
    np.testing.assert_array_equal(ours.reset(3), stock.reset()[0])
    for action in random_actions(ours.task, 300):
        step, _ = step_both(stock, ours, action)
    assert step.truncated and not step.terminated


@pytest.mark.parametrize("name", TASKS)
def test_same_seed_same_trajectory_whatever_else_happens(name):
    """Unseeded resets too continue from the seed, so that whole runs follow from one; episodes differ."""
    first, second = make(name), make(name)
    expected, then = trajectory(first, 7), [first.reset(), first.reset()]
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    trajectory(second, 8, count=5)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # the global generator is left alone
    np.random.random(5)
    np.testing.assert_array_equal(trajectory(second, 7), expected)
    np.testing.assert_array_equal([second.reset(), second.reset()], then)
    starts = [expected[: first.task.observation_dim], *then, first.reset(9)]
    assert len({start.tobytes() for start in starts}) == 4


@pytest.mark.parametrize("name", TASKS)
def test_table_of_tasks_describes_the_simulators(name):
    task, simulator = get_task(name), make(name)
    assert simulator.observation_space.shape == (task.observation_dim,)
    assert simulator.action_space.shape == (task.action_dim,)
    np.testing.assert_array_equal(simulator.action_space.low, -1)
    np.testing.assert_array_equal(simulator.action_space.high, 1)
    assert simulator.reset(0).shape == (task.observation_dim,)
    still = np.zeros(task.action_dim, dtype=np.float32)  # an ant that does nothing stays up
    steps = [simulator.step(still) for _ in range(task.horizon)]
    assert [step.truncated for step in steps] == [False] * (task.horizon - 1) + [True]
    assert all(step.cost >= 0 and isinstance(step.cost, float) for step in steps)
    assert not any(step.terminated for step in steps)


def test_table_of_tasks_agrees_with_dsrl():
    load_dsrl()
    import gymnasium
    from dsrl import infos

    for task in TASKS.values():
        key = task.dsrl_id.removeprefix("Offline").split("Gymnasium")[0].split("-")[0]
        assert task.dsrl_id in gymnasium.registry
        assert infos.MIN_EPISODE_REWARD[key] == task.min_return
        assert infos.MAX_EPISODE_REWARD[key] == task.max_return
        assert infos.DATASET_URLS[key].rsplit("/", 1)[1] == task.dsrl_file


def test_cost_is_charged_outside_the_boundary():
    simulator = make("CarCircle")
    simulator.reset(0)
    costs, positions = [], []
    for _ in range(300):
        step = simulator.step(np.array([1.0, 0.0], dtype=np.float32))  # straight ahead
        costs.append(step.cost)
        positions.append(abs(step.observation[0]) * 10)
    assert 1.0 in costs
    assert costs == [float(x > 6) for x in positions]


def test_a_diverging_simulation_ends_the_episode_with_its_cost(monkeypatch):
    simulator = make("PointGoal")
    simulator.reset(0)
    monkeypatch.setattr(simulator._env.task, "simulation_forward", lambda action: True)  # as after an exception
    step = simulator.step(np.zeros(2))
    assert (step.cost, step.truncated, step.terminated) == (1.0, True, False)
    assert step.reward == simulator._env.task.reward_conf.reward_exception


def test_headless_worlds_leave_stock_environments_their_textures():
    ours, stock = make("PointGoal"), load_safety_gymnasium().make("SafetyPointGoal1-v0")
    ours.reset(0)
    stock.reset(seed=0)
    assert stock.unwrapped.task.model.ntex > 0
    assert ours._env.task.model.ntex == ours._env.task.model.nmat == 0


def test_errors_are_for_users():
    with pytest.raises(SettingsError, match="CarCircle"):
        make("CarSquare")
    with pytest.raises(SaferuleError, match="reset"):
        make("CarCircle").step(np.zeros(2))
    simulator = make("CarCircle")
    simulator.reset(0)
    with pytest.raises(SettingsError, match="render=True"):
        simulator.render()


def test_car_circle_is_drawn_and_the_cost_shows():
    simulator = make("CarCircle", render=True)
    simulator.reset(0)

    def red_pixels():
        frame = simulator.render()
        assert frame.shape == (480, 480, 3) and frame.dtype == np.uint8
        return np.sum((frame[..., 0] > 150) & (frame[..., 1] < 60) & (frame[..., 2] < 60))

    assert red_pixels() < 100
    while simulator.step(np.array([1.0, 0.0], dtype=np.float32)).cost == 0:
        pass
    assert red_pixels() > 300
    simulator.reset(1)
    assert red_pixels() < 100


@pytest.mark.parametrize("name", MUJOCO_TASKS)
def test_mujoco_tasks_are_drawn_where_there_is_opengl(name):
    """In a process of its own; without OpenGL the error says what to do."""
    program = f"""
from saferule.sim import make
from saferule.errors import SettingsError
try:
    simulator = make({name!r}, render=True)
except SettingsError as error:
    assert "Mesa" in str(error)
    raise SystemExit
simulator.reset(0)
frame = simulator.render()
assert frame.shape == (480, 480, 3) and frame.dtype.name == "uint8" and frame.std() > 10
simulator.close()
"""
    subprocess.run([sys.executable, "-c", program], check=True)

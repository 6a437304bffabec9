"""PointGoal and PointPush without what Safety-Gymnasium's Python code adds to a step.

At every step the stock task looks bodies up by name some fifty times, computes the lidar position by position,
checks its observation against the spaces and evaluates all sensors after each of its physics steps. `FastTask`
overrides these methods and nothing else; the arithmetic is the stock one, operation by operation, so that
observations, rewards and costs stay the same to the last bit (tests/test_envs.py).

The three forward passes of a step are all kept: each normalises the quaternions again and improves the contact
forces, which changes last bits.
"""

from __future__ import annotations

import math
from typing import Any

import mujoco
import numpy as np

from saferule.errors import RunError
from saferule.sim.shim import load_safety_gymnasium

load_safety_gymnasium()

from safety_gymnasium.utils.common_utils import MujocoException  # noqa: E402  (only importable through the shim)

SENSORS_OFF = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
NO_STAGE = int(mujoco.mjtStage.mjSTAGE_NONE)


def use_fast_task(builder: Any) -> None:
    """Let the task of a Safety-Gymnasium Builder that was not reset yet step fast.

    Raises RunError for a task with anything that FastTask leaves out.
    """
    task = builder.task
    left_out = [reason for reason, applies in _left_out(task).items() if applies]
    if left_out:
        raise RunError(f"{type(task).__name__} cannot be stepped fast: it has {', '.join(left_out)}; use it as it is.")
    builder.task = type(f"Fast{type(task).__name__}", (FastTask, type(task)), {})(config=builder.config)
    builder.task.build_observation_space()
    builder.set_seed()  # as in the Builder's constructor, for a first reset without a seed


class FastTask:
    """Mixin in front of a goal or push task whose agent has no joint sensors and whose only cost are hazards.

    Bodies and sensors are looked up once per compiled model.
    """

    def _build(self) -> None:
        super()._build()
        model = self.world.model
        observed = [obstacle for obstacle in self._obstacles if obstacle.is_lidar_observed]
        names = [_bodies(obstacle) for obstacle in observed]
        self._lidar_bodies = np.asarray([model.body(name).id for group in names for name in group])
        self._lidar_rows = [row for row, group in enumerate(names) for _ in group]
        self._lidar_count = len(observed)
        sensors = [model.sensor(name) for name in self.agent.sensor_conf.sensors]
        self._sensor_columns = np.concatenate([sensor.adr[0] + np.arange(sensor.dim[0]) for sensor in sensors])
        self._hazard_bodies = np.asarray([model.body(name).id for name in _bodies(self.hazards)])
        self._agent_body, self._goal_body = model.body("agent").id, model.body("goal").id
        self._box_body = model.body("push_box").id if "push_box" in self._free_geoms else None

    def simulation_forward(self, action: np.ndarray) -> bool:
        """As the stock task, but without sensors, which only obs() reads."""
        model, data = self.world.model, self.world.data
        self.agent.apply_action(action)
        steps = self.random_generator.binomial(self.sim_conf.frameskip_binom_n, self.sim_conf.frameskip_binom_p)
        model.opt.disableflags |= SENSORS_OFF
        try:
            mujoco.mj_step(model, data, int(steps))
        except MujocoException as error:
            print("MujocoException", error)  # as the stock task does
            return True
        finally:
            model.opt.disableflags &= ~SENSORS_OFF
        mujoco.mj_forwardSkip(model, data, NO_STAGE, 1)
        return False

    def calculate_cost(self) -> dict[str, float]:
        """Cost of being within hazards."""
        data = self.world.data
        mujoco.mj_forwardSkip(self.world.model, data, NO_STAGE, 1)
        positions, hazards = data.xpos, self.hazards
        offsets = positions[self._hazard_bodies, :2] - positions[self._agent_body, :2]
        cost = 0
        for distance in np.sqrt(np.square(offsets).sum(axis=1)).tolist():
            if distance <= hazards.size:
                cost += hazards.cost * (hazards.size - distance)
        return {"cost_hazards": cost, "cost_sum": cost}

    def obs(self) -> np.ndarray:
        """Sensors and lidars, flat, in the order of the observation space."""
        data = self.world.data
        mujoco.mj_forward(self.world.model, data)
        sensors = data.sensordata[self._sensor_columns]
        if np.isnan(sensors).any():
            return super().obs()  # whose error says what is wrong
        return np.concatenate([sensors, self._lidars(data)])

    def _lidars(self, data: Any) -> np.ndarray:
        """The pseudo lidars of all observed obstacles, one after another.

        Per position as in the stock `_obs_lidar_pseudo`; the matrix products of all positions are made in one
        call, each still a vector times a matrix.
        """
        positions = data.xpos[self._lidar_bodies]
        positions[:, 2] = 0.0
        offsets = positions - data.xpos[self._agent_body]
        rotation = data.xmat[self._agent_body].reshape(3, 3)
        ego = np.matmul(offsets[:, None, :], rotation)[:, 0, :2]
        distances = np.abs(ego[:, 0] + 1j * ego[:, 1]).tolist()
        angles = (np.arctan2(ego[:, 1], ego[:, 0]) % (np.pi * 2)).tolist()
        bins, reach = self.lidar_conf.num_bins, self.lidar_conf.max_dist
        width = (np.pi * 2) / bins
        lidars = [[0.0] * bins for _ in range(self._lidar_count)]
        for row, distance, angle in zip(self._lidar_rows, distances, angles, strict=True):
            lidar, place = lidars[row], int(angle / width)
            closeness = max(0, reach - distance) / reach
            share = (angle - width * place) / width
            before, after = (place - 1) % bins, (place + 1) % bins
            lidar[place] = max(lidar[place], closeness)
            lidar[after] = max(lidar[after], share * closeness)
            lidar[before] = max(lidar[before], (1 - share) * closeness)
        return np.asarray(lidars).ravel()

    def dist_goal(self) -> float:
        """Distance from the agent to the goal in the plane."""
        positions = self.world.data.xpos
        x, y = (positions[self._goal_body, :2] - positions[self._agent_body, :2]).tolist()
        return math.sqrt(x * x + y * y)

    def dist_box(self) -> float:
        """Distance from the agent to the box."""
        return self._distance(self._box_body, self._agent_body)

    def dist_box_goal(self) -> float:
        """Distance from the box to the goal."""
        return self._distance(self._box_body, self._goal_body)

    def _distance(self, one: int, other: int) -> float:
        positions = self.world.data.xpos
        return np.sqrt(np.add.reduce(np.square(positions[one] - positions[other])))


def _bodies(obstacle: Any) -> list[str]:
    """The names of an obstacle's bodies in the model: 'goal', or 'hazard0', 'hazard1', ..."""
    number = getattr(obstacle, "num", None)
    return [obstacle.name] if number is None else [f"{obstacle.name[:-1]}{i}" for i in range(number)]


def _left_out(task: Any) -> dict[str, bool]:
    """What a Safety-Gymnasium task may have and FastTask does not compute."""
    info, lidar = task.agent.sensor_info, task.lidar_conf
    sensed = [*task.agent.sensor_conf.sensors]
    sensed += [f"{o.name}_lidar" for o in task._obstacles if o.is_lidar_observed]
    constrained = [obstacle.name for obstacle in task._obstacles if obstacle.is_constrained]
    return {
        "joint sensors": any(names for field, names in vars(info).items() if field != "sensor_dim"),
        "a compass or a camera": list(task.obs_info.obs_space_dict.spaces) != sensed or task.observe_vision,
        "observations that are not flat": not task.observation_flatten,
        "another lidar": (lidar.type, lidar.alias) != ("pseudo", True) or lidar.max_dist is None,
        "other costs than hazards": constrained != ["hazards"] or task._is_load_static_geoms,
        "moving obstacles, noise or debugging": bool(task._mocaps or task.action_noise or task.debug),
    }

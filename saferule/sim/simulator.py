"""One interface to both simulators: seeded resets, steps that return the cost, the time limit, rendering."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from saferule.errors import RunError, SettingsError
from saferule.sim.graphics import use_offscreen_gl
from saferule.sim.shim import load_bullet_safety_gym, load_safety_gymnasium, standard_streams
from saferule.sim.tasks import Task, get_task

FRAME = (480, 480)  # height, width of rendered frames


class Step(NamedTuple):
    """What one step returns. truncated is set at the task's horizon, terminated by the task itself."""

    observation: np.ndarray
    reward: float
    cost: float
    terminated: bool
    truncated: bool


def make(task: str, *, render: bool = False) -> Simulator:
    """The simulator of a task, by the paper's name.

    With render=False the world has no textures and cannot be drawn; with render=True `render()` works, if the
    machine has OpenGL (MuJoCo tasks; SettingsError otherwise). Trajectories are the same either way.
    """
    spec = get_task(task)
    return (MujocoSimulator if spec.engine == "mujoco" else BulletSimulator)(spec, render)


class Simulator(ABC):
    """A task in its real simulator.

    The same seed and actions give the same trajectory, bit for bit, whatever else draws from numpy's global
    generator, and the global generator is left as it was. reset(None) continues the simulator's own random
    numbers.
    """

    def __init__(self, task: Task, render: bool) -> None:
        self.task = task
        self._can_render = render
        self._steps: int | None = None
        with _global_generator(np.random.RandomState()):  # both engines draw while they are built
            self._env = self._build()
        self.observation_space = self._env.observation_space
        self.action_space = self._env.action_space

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Start an episode; returns the first observation, (S,) float64."""
        self._steps = 0
        return self._reset(seed)

    def step(self, action: np.ndarray) -> Step:
        """Apply one action, (A,) within the action space."""
        if self._steps is None:
            raise RunError(f"{self.task.name} was stepped before its first reset: call reset() first.")
        observation, reward, cost, terminated, truncated = self._step(np.asarray(action))
        self._steps += 1
        truncated = bool(truncated) or self._steps >= self.task.horizon
        return Step(observation, float(reward), float(cost), bool(terminated), truncated)

    def render(self) -> np.ndarray:
        """The current state as an image, (480, 480, 3) uint8."""
        if not self._can_render:
            raise SettingsError(f"This {self.task.name} has no textures: make it with render=True to draw it.")
        if self._steps is None:
            raise RunError(f"{self.task.name} was drawn before its first reset: call reset() first.")
        return self._render()

    def close(self) -> None:
        """Free the engine's resources."""
        self._env.close()

    @abstractmethod
    def _build(self) -> Any: ...

    @abstractmethod
    def _reset(self, seed: int | None) -> np.ndarray: ...

    @abstractmethod
    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, float, bool, bool]: ...

    @abstractmethod
    def _render(self) -> np.ndarray: ...


class MujocoSimulator(Simulator):
    """Safety-Gymnasium without the wrappers that its `make` adds (environment checker, order check)."""

    def _build(self) -> Any:
        load_safety_gymnasium()
        options: dict[str, Any] = {}
        if self._can_render:
            use_offscreen_gl()
            options = {"render_mode": "rgb_array", "width": FRAME[1], "height": FRAME[0]}
            if self.task.name != "AntVelocity":  # the default camera follows the ant; a point agent's looks out of it
                options["camera_name"] = "fixedfar"
        env = _registered(self.task.env_id, **options)
        self._is_builder = hasattr(env, "task")  # the velocity tasks are plain MuJoCo environments, compiled once
        if self._is_builder:
            from saferule.sim.fast import use_fast_task

            use_fast_task(env)
            if not self._can_render:
                from saferule.sim.headless import use_headless_world

                use_headless_world(env)
        return env

    def _reset(self, seed: int | None) -> np.ndarray:
        return self._env.reset(seed=seed)[0]

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, float, bool, bool]:
        try:
            return self._env.step(action)[:5]
        except UnboundLocalError:
            # When the physics diverges, Safety-Gymnasium sets `truncated` and a "cost_exception" of 1, then
            # fails on its own return statement, where `cost` was never assigned. This is what it meant to
            # return.
            if not (self._is_builder and self._env.truncated):
                raise
            task = self._env.task
            return task.obs(), task.reward_conf.reward_exception, 1.0, self._env.terminated, True

    def _render(self) -> np.ndarray:
        return np.array(self._env.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the engine's resources; Safety-Gymnasium's Builder leaves its viewers open."""
        for viewer in self._env.task._viewers.values() if self._is_builder else ():
            viewer.close()
        super().close()


class BulletSimulator(Simulator):
    """Bullet-Safety-Gym, which ignores reset(seed=) and draws start positions from numpy's global generator.

    Each simulator keeps a generator of its own, which is the global one only while the engine resets (a
    step draws nothing). Restoring the engine's saved state leaves the joint motors at the last action of the
    former episode, and the reset then steps the physics once: the motors are released first, so that an
    episode does not depend on the one before it and equals the first episode of a stock environment.
    """

    def _build(self) -> Any:
        load_bullet_safety_gym()
        with standard_streams():
            env = _registered(self.task.env_id)
        self._generator = np.random.RandomState()
        # The first reset of a fresh engine differs from later ones (it saves the state that they restore).
        env.reset()
        return env

    def _reset(self, seed: int | None) -> np.ndarray:
        if seed is not None:
            self._generator = np.random.RandomState(seed)
        self._release_motors()
        with _global_generator(self._generator):
            observation = self._env.reset()[0]
        if self._can_render:
            self._hide_cost_sphere()
        return observation

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float, float, bool, bool]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, reward, info["cost"], terminated, truncated

    def _release_motors(self) -> None:
        """Set every joint motor as the engine finds it when the agent is loaded: no target, no force."""
        client, body = self._env.bc, self._env.agent.body_id
        for joint in range(client.getNumJoints(body)):
            client.setJointMotorControl2(body, joint, client.VELOCITY_CONTROL, targetVelocity=0, force=0)

    def _hide_cost_sphere(self) -> None:
        """Make the sphere around the agent invisible until a cost shows it.

        It starts almost transparent, which the software renderer, having no transparency, draws as solid red.
        """
        agent = self._env.agent
        self._env.bc.changeVisualShape(agent.violation_body_id, -1, rgbaColor=[1, 0, 0, 0])
        agent._violates_constraints = False

    def _render(self) -> np.ndarray:
        import pybullet

        height, width = FRAME
        client = self._env.bc
        view = client.computeViewMatrixFromYawPitchRoll(
            cameraTargetPosition=(0, 0, 0), distance=20, yaw=0, pitch=-75, roll=0, upAxisIndex=2
        )
        projection = client.computeProjectionMatrixFOV(fov=60, aspect=width / height, nearVal=0.1, farVal=100)
        pixels = client.getCameraImage(
            width, height, viewMatrix=view, projectionMatrix=projection, renderer=pybullet.ER_TINY_RENDERER
        )[2]
        return np.reshape(np.asarray(pixels, dtype=np.uint8), (height, width, 4))[:, :, :3].copy()


def _registered(env_id: str, **options: Any) -> Any:
    """The registered environment itself, without gymnasium's wrappers."""
    import gymnasium  # which imports mujoco: after the shim

    return gymnasium.make(env_id, disable_env_checker=True, **options).unwrapped


@contextmanager
def _global_generator(generator: np.random.RandomState) -> Iterator[None]:
    """While active, draws from numpy's global generator are draws from this one."""
    outer = np.random.get_state()
    np.random.set_state(generator.get_state())
    try:
        yield
    finally:
        generator.set_state(np.random.get_state())
        np.random.set_state(outer)

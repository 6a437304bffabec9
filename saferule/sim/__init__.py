"""The four tasks of the paper in their real simulators."""

from saferule.sim.shim import load_mujoco

load_mujoco()  # before any module of this folder, or a library of theirs, imports it as MUJOCO_GL says

from saferule.sim.simulator import Simulator, Step, make  # noqa: E402
from saferule.sim.tasks import TASKS, Task, get_task  # noqa: E402

__all__ = ["TASKS", "Simulator", "Step", "Task", "get_task", "make"]

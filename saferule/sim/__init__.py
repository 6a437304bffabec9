"""The four tasks of the paper in their real simulators."""

from saferule.sim.simulator import Simulator, Step, make
from saferule.sim.tasks import TASKS, Task, get_task

__all__ = ["TASKS", "Simulator", "Step", "Task", "get_task", "make"]

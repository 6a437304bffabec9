"""The stock simulators beside ours, over full episodes with their resets, in steps/s. From the repository:

    python -m benchmarks.envs [--json FILE]

``peer`` is what a user of the package gets: `safety_gymnasium.make`, or `gymnasium.make` for CarCircle. Both sides make
the task's horizon of steps with the same random actions, from a reset on, and reset where an episode ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np

from benchmarks.measure import Row, arguments, rates, show
from saferule.runs.store import processor
from saferule.sim import TASKS, Task, get_task, make
from saferule.sim.shim import load_bullet_safety_gym, load_safety_gymnasium, standard_streams


def measure(
    tasks: Sequence[str] = tuple(TASKS), rounds: int = 5, say: Callable[[str], None] = print
) -> tuple[list[Row], Row]:
    """One row per task: task, ours and peer (steps/s), ratio. Returns rows and a description of the machine."""
    rows = []
    for task in map(get_task, tasks):
        ours, peer = (rate * task.horizon for rate in rates([_ours(task), _stock(task)], rounds))
        rows.append({"task": task.name, "ours": ours, "peer": peer, "ratio": ours / peer})
        say(f"{task.name}: ours {ours:.0f}, peer {peer:.0f} steps/s, ratio {ours / peer:.2f}")
    return rows, {"processor": processor(), "settings": "one process, random actions, episodes with their resets"}


def _ours(task: Task) -> Callable[[], None]:
    simulator = make(task.name)

    def step(action: np.ndarray) -> bool:
        done = simulator.step(action)
        return done.terminated or done.truncated

    return _horizon_of_steps(task, lambda seed: simulator.reset(seed), step)


def _stock(task: Task) -> Callable[[], None]:
    if task.engine == "mujoco":
        env = load_safety_gymnasium().make(task.env_id)
    else:
        import gymnasium

        load_bullet_safety_gym()
        with standard_streams():
            env = gymnasium.make(task.env_id)

    def step(action: np.ndarray) -> bool:
        terminated, truncated = env.step(action)[-3:-1]
        return terminated or truncated

    return _horizon_of_steps(task, lambda seed: env.reset(seed=seed), step)


def _horizon_of_steps(
    task: Task, reset: Callable[[int], Any], step: Callable[[np.ndarray], bool]
) -> Callable[[], None]:
    """A function that resets and makes `task.horizon` steps; seeds 0, 1, ... one after another."""
    actions = np.random.default_rng(0).uniform(-1, 1, (task.horizon, task.action_dim)).astype(np.float32)
    seeds = count()

    def run() -> None:
        reset(next(seeds))
        for index, action in enumerate(actions):
            if step(action) and index < task.horizon - 1:
                reset(next(seeds))

    return run


if __name__ == "__main__":
    given = arguments(__doc__.partition("\n")[0]).parse_args()
    show(*measure(rounds=given.rounds), given.json)

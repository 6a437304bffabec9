"""Behaviour data: everything that constrained PPO policies did while they learned, thinned out evenly.

As DSRL's authors did (Liu et al. 2023): policies with several cost limits are trained in the simulator, every
episode of the training is recorded, and a density filter over the (cost, return) plane picks the dataset.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from saferule.data import schema
from saferule.environment import cores
from saferule.errors import DataError, SettingsError
from saferule.files import check_different, derived, try_file, try_folder
from saferule.limits import check_number
from saferule.paper import TABLE7
from saferule.sim.ppo_settings import behaviour_settings
from saferule.sim.rollout import Episode
from saferule.sim.tasks import get_task

PACKAGES = "stable-baselines3 torch numpy gymnasium safety-gymnasium mujoco bullet-safety-gym pybullet".split()
COST_LIMIT = TABLE7.kappa  # of the episode cost: "safe" episodes in the selection
SAFE_SHARE = 0.4  # of the dataset's episodes
SEED = 0  # of the selection


@dataclass(frozen=True)
class Behaviour:
    """One behaviour policy: PPO on the return, with the episode cost held to a limit, or free (None)."""

    task: str
    steps: int
    cost_limit: float | None
    seed: int

    @property
    def name(self) -> str:
        """Of its recording."""
        limit = "free" if self.cost_limit is None else f"limit-{self.cost_limit:g}"
        return f"{limit}-seed-{self.seed}"

    def recording(self, folder: Path) -> Path:
        """Of all episodes of its training."""
        return folder / f"{self.name}.hdf5"

    @property
    def training_seed(self) -> int:
        """Differs between policies of the same seed, which would else begin with the same episodes."""
        limit = 0 if self.cost_limit is None else 1 + round(100 * self.cost_limit)
        return int(np.random.SeedSequence([self.seed, limit]).generate_state(1)[0])


def collect(
    task: str,
    out: Path | str,
    *,
    steps: int = 500_000,
    cost_limits: Sequence[float | None] = (5.0, 10.0, 20.0, 50.0, None),
    seeds: Sequence[int] = (0,),
    episodes: int = 450,
    processes: int | None = None,
    folder: Path | str | None = None,
    command: str = "",
    overwrite: bool = False,
) -> schema.Dataset:
    """Train behaviour policies (one per cost limit and seed), select `episodes` episodes, save them to `out`.

    task            name of a task
    steps           simulator steps per policy
    folder          recordings, a DSRL file and a policy each (default: `out` with ".recordings" in the place of
                    ".hdf5"); a policy that is recorded is not trained again, one whose training was interrupted is
    processes       policies trained at the same time (default: one per core)
    command         the command line to note in the attributes
    overwrite       replace `out` if it is there

    Raises SettingsError, before anything is trained, for a collection that is impossible or would replace a file.
    """
    out = Path(out)
    folder = Path(folder) if folder else derived(out, ".recordings")
    fewest = get_task(task).horizon * behaviour_settings(task).simulators  # every simulator ends an episode
    if steps < fewest:
        raise SettingsError(
            f"--steps = {steps}, expected at least {fewest} steps, an episode of each simulator: give more"
        )
    processes = cores() if processes is None else processes
    numbers = [("steps", steps), ("episodes", episodes), ("processes", processes), *(("seeds", seed) for seed in seeds)]
    for name, value in [*numbers, *(("cost_limits", limit) for limit in cost_limits if limit is not None)]:
        check_number(name, value, f"--{name.replace('_', '-')}")
    behaviours = [Behaviour(task, steps, limit, seed) for seed in seeds for limit in cost_limits]
    if not behaviours or len({behaviour.name for behaviour in behaviours}) < len(behaviours):
        raise SettingsError(
            f"Cost limits {list(cost_limits)} with seeds {list(seeds)} do not give one recording per policy, expected "
            "one or more different values of each: drop what is there twice."
        )
    check_different({"--out": out, "its recordings": folder})
    try_file(out, None if overwrite else ", or give --overwrite (recordings that are complete are used again)")
    try_folder(folder, empty=False)
    waiting = [behaviour for behaviour in behaviours if not is_recorded(behaviour, folder)]
    for path in [behaviour.recording(folder) for behaviour in waiting]:
        if read_made(path):
            raise SettingsError(
                f"{path} was recorded under other settings and would be replaced, expected those of this collection: "
                "move the folder away, or name another --out"
            )
    if waiting:
        # A fresh interpreter per worker: the simulators keep state in the process.
        options = {"mp_context": multiprocessing.get_context("spawn"), "max_tasks_per_child": 1}
        ignore = (signal.SIGINT, signal.SIG_IGN)  # an interrupt is this process's to answer
        pool = ProcessPoolExecutor(min(processes, len(waiting)), initializer=signal.signal, initargs=ignore, **options)
        with pool:
            try:
                list(pool.map(record, waiting, repeat(folder)))
            except BaseException:
                for process in list((pool._processes or {}).values()):  # Python 3.11 has no public way to end them
                    process.kill()
                raise
    dataset = assemble(behaviours, folder, episodes, command)
    schema.save(dataset, out, new=not overwrite)
    return dataset


def record(behaviour: Behaviour, folder: Path) -> None:
    """Train one behaviour policy; its episodes go to folder/<name>.hdf5, in the order in which they ended."""
    from saferule.sim.ppo import Lagrangian, train_ppo

    task, free = get_task(behaviour.task), behaviour.cost_limit is None
    recorded: list[Episode] = []

    def report(row: dict[str, float]) -> None:
        means = f"return {row['return']:.1f}, cost {row['cost']:.1f}, multiplier {row['multiplier']:.2f}"
        print(f"{task.name} {behaviour.name}: {row['steps']} steps, {means}, {row['seconds']:.0f} s", flush=True)

    goal = (lambda reward, cost: reward) if free else Lagrangian(behaviour.cost_limit, task.horizon)
    options = {"record": recorded.append, "report": report, "progress": False}
    policy = train_ppo(task, goal, behaviour.steps, behaviour.training_seed, **options)
    policy.save(folder / behaviour.name)
    made = {"behaviour": asdict(behaviour), "ppo": policy.settings, "curve": policy.curve}
    schema.save(schema.from_episodes(recorded, {"made": json.dumps(made)}), behaviour.recording(folder))


def read_made(path: Path) -> dict[str, Any] | None:
    """How a recording was made, or None if there is none at `path`."""
    try:
        with schema.open_file(path) as file:
            return json.loads(file.attrs["made"]) if set(schema.KEYS) <= set(file) else None
    except (DataError, KeyError, ValueError):
        return None


def is_recorded(behaviour: Behaviour, folder: Path) -> bool:
    """Whether there is a recording of this policy, trained with the settings in force."""
    made = read_made(behaviour.recording(folder)) or {}
    settings = json.loads(json.dumps(asdict(behaviour_settings(behaviour.task))))  # a tuple is read back as a list
    expected = settings | {"seed": behaviour.training_seed}
    return made.get("behaviour") == asdict(behaviour) and made.get("ppo", {}) | expected == made.get("ppo")


def assemble(behaviours: Sequence[Behaviour], folder: Path, episodes: int, command: str) -> schema.Dataset:
    """Select episodes from recordings; the attributes say how all of it was made. One recording is read at a time."""
    task = get_task(behaviours[0].task)
    files = [behaviour.recording(folder) for behaviour in behaviours]
    recordings = (schema.load(file, task) for file in files)
    sums = [(recording.episode_returns(), recording.episode_costs()) for recording in recordings]
    chosen = select_episodes(*np.concatenate(sums, axis=1), episodes, SEED)
    parts, policies, start = [], [], 0
    for behaviour, file, (recorded, _) in zip(behaviours, files, sums, strict=True):
        own = chosen[(chosen >= start) & (chosen < start + len(recorded))] - start
        start += len(recorded)
        parts.append(schema.load(file, task).select(own))
        policies.append(_summary(behaviour, read_made(file), len(recorded), len(own)))
    dataset = schema.concatenate(parts)
    selection = {"seed": SEED, "recorded": start, "cost_limit": COST_LIMIT, "safe_share": SAFE_SHARE}
    returns, costs = dataset.episode_returns(), dataset.episode_costs()
    attributes = {
        "task": task.name,
        "env_id": task.env_id,
        "made_by": "PPO and PPO-Lagrangian: all episodes of their training, thinned out evenly",
        "command": command,
        "versions": json.dumps({package: version(package) for package in PACKAGES}),
        "policies": json.dumps(policies),
        "selection": json.dumps(selection),
        "episodes": len(returns),
        "safe_episodes": int(np.sum(costs <= COST_LIMIT)),
        "return_min": float(returns.min()),
        "return_max": float(returns.max()),
        "cost_min": float(costs.min()),
        "cost_max": float(costs.max()),
    }
    return replace(dataset, attributes=attributes)


def select_episodes(returns: np.ndarray, costs: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Ascending indices of `count` episodes (or all, if fewer) that cover the (cost, return) plane evenly.

    SAFE_SHARE of them, as far as there are enough, have a cost within COST_LIMIT; safe and unsafe episodes
    are each thinned out with `spread`.
    """
    generator = np.random.default_rng(seed)
    safe, unsafe = np.flatnonzero(costs <= COST_LIMIT), np.flatnonzero(costs > COST_LIMIT)
    safe_count = min(len(safe), max(round(count * SAFE_SHARE), count - len(unsafe)))
    parts = [
        safe[spread(costs[safe], returns[safe], safe_count, generator, cells=(3, 20))],
        unsafe[spread(costs[unsafe], returns[unsafe], count - safe_count, generator, cells=(15, 20))],
    ]
    return np.sort(np.concatenate(parts))


def spread(
    x: np.ndarray, y: np.ndarray, count: int, generator: np.random.Generator, *, cells: tuple[int, int]
) -> np.ndarray:
    """Indices of `count` of the points (x, y), both (N,), in rounds: one from every cell that still has any.

    The cells are those of an even grid over the points' range; the order within a cell and round is random.
    """
    if count <= 0 or not len(x):
        return np.zeros(0, dtype=np.int64)
    columns = [
        np.minimum((values - values.min()) / max(np.ptp(values), 1e-12) * number, number - 1).astype(np.int64)
        for values, number in zip((x, y), cells, strict=True)
    ]
    cell = columns[0] * cells[1] + columns[1]
    order = generator.permutation(len(cell))
    by_cell = order[np.argsort(cell[order], kind="stable")]
    rounds = pd.Series(by_cell).groupby(cell[by_cell]).cumcount()
    picked = np.lexsort((generator.random(len(cell)), rounds))[:count]
    return by_cell[picked]


def _summary(behaviour: Behaviour, made: dict[str, Any], recorded: int, selected: int) -> dict[str, Any]:
    """One policy in a few numbers: its learning curve at quarters of the training."""
    curve = made["curve"]
    rows = [curve[min(len(curve) - 1, len(curve) * quarter // 4)] for quarter in range(1, 5)] if curve else []
    return {
        "cost_limit": behaviour.cost_limit,
        "seed": behaviour.seed,
        "steps": made["ppo"]["steps"],
        "learning_rate": made["ppo"]["learning_rate"],
        "recorded_episodes": recorded,
        "selected_episodes": selected,
        "curve": [[row["steps"], round(row["return"], 1), round(row["cost"], 1)] for row in rows],
    }

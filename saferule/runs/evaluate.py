"""Evaluate a policy of one's own, saferule's or osrl-lib's, in the real simulator: `saferule evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from saferule.agents.checkpoint import Agent, load_networks
from saferule.agents.osrl import import_acting
from saferule.errors import CheckpointError, SettingsError
from saferule.files import sha256
from saferule.limits import check_number
from saferule.runs.experiment import FIRST_EVALUATION_SEED
from saferule.runs.work import evaluate
from saferule.sim import get_task

FILES = ("agent.safetensors", "model.pt", "checkpoint/model.pt")  # of a policy in a folder of saferule's or osrl-lib's


def evaluation_seeds(episodes: int, first: int = FIRST_EVALUATION_SEED) -> tuple[int, ...]:
    """One seed per episode; the default are those that the profiles evaluate with. SettingsError for none."""
    check_number("episodes", episodes)
    check_number("seed", first)
    check_number("seed", first + episodes - 1, "the seed of the last episode")
    return tuple(range(first, first + episodes))


def policy_file(path: Path) -> Path:
    """The file itself or, of a folder, the policy in it."""
    return next((path / name for name in FILES if (path / name).is_file()), path) if path.is_dir() else path


def read_policy(
    path: Path,
    task: str | None = None,
    backbone: str | None = None,
    cost_limit: float | None = None,
    told: Mapping[str, Any] | None = None,
) -> Agent:
    """What acts of a policy in a file of either library.

    task, backbone  None for those that the file tells (osrl-lib's ``config.yaml`` tells the task)
    cost_limit      to judge by; None for the one that it was trained with
    told            settings that an osrl-lib checkpoint does not hold

    CheckpointError for a file that is no policy, or one of another task or backbone.
    """
    if path.suffix != ".safetensors":
        return import_acting(path, task, backbone, **settings_told(cost_limit, told))
    agent = load_networks(path)
    check_held(path, agent, {"task": task, "backbone": backbone}, told)
    return agent if cost_limit is None else replace(agent, cfg=replace(agent.cfg, cost_limit=cost_limit))


def settings_told(cost_limit: float | None, told: Mapping[str, Any] | None) -> dict[str, Any]:
    """What an osrl-lib checkpoint does not hold and somebody told; SettingsError for two cost limits."""
    if cost_limit is not None and "cost_limit" in (told or {}):
        raise SettingsError("--cost-limit and --assume cost_limit are both given: leave one of them out")
    return dict(told or {}) | ({} if cost_limit is None else {"cost_limit": cost_limit})


def check_held(path: Path, agent: Agent, asked: Mapping[str, Any], told: Mapping[str, Any] | None) -> None:
    """CheckpointError where a saferule checkpoint holds something else than was asked for (None: anything).

    SettingsError where it is told settings, as it holds all.
    """
    if told:
        raise SettingsError(f"{path}: a saferule checkpoint holds all settings, {', '.join(told)} too: tell none")
    world, cfg = get_task(agent.task), agent.cfg
    held = {"backbone": agent.backbone.NAME, "task": agent.task, "cost limit": cfg.cost_limit}
    for what, expected in asked.items():
        if expected is not None and held[what] != expected:
            raise CheckpointError(f"{path}: its {what} is {held[what]}, expected {expected}: name the {what} it holds")
    if (cfg.observation_dim, cfg.action_dim) != (world.observation_dim, world.action_dim):
        raise CheckpointError(
            f"{path}: its networks are for {cfg.observation_dim} observations and {cfg.action_dim} actions, expected "
            f"the {world.observation_dim} and {world.action_dim} of {world.name}: give another file"
        )


def play(agent: Agent, seeds: Sequence[int], file: Path) -> pd.DataFrame:
    """One row per episode, with the policy's file, its SHA-256, task and backbone."""
    rows, _ = evaluate(agent, seeds)
    told = {"file": file.name, "sha256": sha256(file), "task": agent.task, "backbone": agent.backbone.NAME}
    return pd.DataFrame([told | row for row in rows])


def within_limit(rows: pd.DataFrame) -> pd.Series:
    """Whether each episode kept the cost limit, 0 or 1."""
    return (rows["cost"] <= rows["cost_limit"]).astype(float)


def summary(rows: pd.DataFrame) -> str:
    """The episodes in one line: means over those that did not fail, with the standard deviation over episodes."""
    first, seeds, failed = rows.iloc[0], rows["seed"], rows[rows["failed"]]
    why = f"; {len(failed)} failed: {failed['reason'].iloc[0]}" if len(failed) else ""
    spread = {name: f"{rows[name].mean():.2f} (sd {rows[name].std(ddof=0):.2f}" for name in ("return", "cost")}
    return (
        f"{first['backbone']} on {first['task']}, {len(rows)} episodes (seeds {seeds.min()} to {seeds.max()}): "
        f"return {spread['return']}, normalised {rows['normalised_return'].mean():.3f}), cost {spread['cost']}), "
        f"{100 * within_limit(rows).mean():.0f} % of episodes within the limit of {first['cost_limit']:g}{why}"
    )

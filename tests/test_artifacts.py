"""What is committed under artifacts/ is what the code expects: it can be read, and is found under its settings."""

import numpy as np
import pandas as pd
import pytest
from dsrl_peer import dsrl_reads

from saferule.agents import BACKBONES
from saferule.attack.poison import ATTACKS
from saferule.data import schema
from saferule.report.style import NAMES
from saferule.runs.experiment import adversary_run, get_profile
from saferule.runs.places import project_root
from saferule.runs.store import Store
from saferule.sim import TASKS, get_task

ARTIFACTS = project_root() / "artifacts"
RETURN_LEVELS = {"CarCircle": 300.0, "AntVelocity": 1500.0, "PointGoal": 15.0, "PointPush": 1.5}  # D's best reach it
MOST_BYTES = 100e6  # of all datasets together, which are part of the repository


@pytest.mark.parametrize("name", TASKS)
def test_datasets_are_valid_and_dsrl_reads_them(name, capfd):
    task, path = get_task(name), ARTIFACTS / "data" / f"{name}.hdf5"
    dataset = schema.load(path, task)
    assert dataset.digest() in (ARTIFACTS / "data" / f"{name}.md").read_text()
    costs, returns = dataset.episode_costs(), dataset.episode_returns()
    assert len(costs) >= 150 and np.mean(costs <= 10) >= 1 / 3
    assert returns.max() >= RETURN_LEVELS[name]
    assert (costs[returns >= np.median(returns)] <= 10).any()
    read = dsrl_reads(path, task, capfd)
    for key in ("observations", "actions", "rewards", "costs"):
        assert np.array_equal(read[key], getattr(dataset, key)), key


def test_datasets_are_small_enough_for_the_repository():
    sizes = {path.stem: path.stat().st_size for path in (ARTIFACTS / "data").glob("*.hdf5")}
    assert set(sizes) == set(TASKS) and sum(sizes.values()) <= MOST_BYTES


@pytest.mark.parametrize("name", TASKS)
def test_adversaries_of_the_cpu_profile_are_there(name):
    """A change of their settings that leaves these behind would make the cpu profile train them anew."""
    from saferule.sim.ppo import OnlinePolicy

    profile, store = get_profile("cpu"), Store(ARTIFACTS / "cpu")
    for attack in ATTACKS:
        run = adversary_run(profile, name, attack, 0)
        assert store.done(run), store.folder(run)
        policy = OnlinePolicy.load(store.folder(run))
        assert policy.task.name == name and policy.settings["attack"] == attack
        actions = policy.act(np.zeros((1, policy.task.observation_dim)))
        assert actions.shape == (1, policy.task.action_dim) and np.isfinite(actions).all()


def first_cell() -> str:
    """What FINDINGS.md shows of the grid: cost and return of every method on CarCircle, Max Cost 15 %."""
    rows = pd.read_csv(ARTIFACTS / "cpu" / "tables" / "controls.csv")
    rows = rows[rows["source"].isna()].query("task == 'CarCircle' and attack == 'max_cost' and ratio == 0.15")
    wide = rows.set_index(["method", "backbone", "metric"]).sort_index()
    lines = [["", *map(NAMES["backbone"], BACKBONES)], ["---"] * (1 + len(BACKBONES))]
    for method in rows.loc[rows["mean"].notna(), "method"].unique():
        texts = [NAMES["method"](method)]
        for backbone in BACKBONES:
            own = wide["mean"].get((method, backbone), pd.Series(dtype=float)).to_dict()
            failed = wide["failed"].get((method, backbone, "cost"), 0)
            known = own and pd.notna(own["cost"])
            texts.append(f"{own['cost']:.0f} ({own['return']:.0f})" if known else "diverged" if failed else "–")
        lines.append(texts)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_findings_show_what_is_stored_of_the_grid():
    assert first_cell() in (project_root() / "FINDINGS.md").read_text("utf-8")

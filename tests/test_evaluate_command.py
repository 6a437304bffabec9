"""`saferule evaluate`: policies of both libraries, played as the runs' evaluations play them."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

from benchmarks.osrl_lib import quiet_trainer
from saferule import __version__
from saferule.agents import get_backbone
from saferule.agents.checkpoint import save_acting, save_agent
from saferule.agents.osrl import import_osrl
from saferule.agents.population import create
from saferule.cli import app
from saferule.files import sha256
from saferule.runs.work import evaluate

SIZES = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (16, 16)}
pytestmark = pytest.mark.filterwarnings("ignore:.*an osrl-lib checkpoint holds the networks alone:UserWarning")


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A cpq agent of ours in both forms, as its snapshot, and an osrl-lib run with its config.yaml."""
    made, cfg = tmp_path_factory.mktemp("policies"), get_backbone("cpq").Config(**SIZES, vae_hidden=16, cost_limit=30)
    population = create(get_backbone("cpq"), cfg, [3])
    save_agent(population, 0, made / "agent.safetensors", "CarCircle", "cpq", cfg, {})
    save_acting(population, 0, made / "acting.safetensors", "CarCircle", "cpq", cfg)
    (made / "run" / "checkpoint").mkdir(parents=True)
    model = quiet_trainer("cpq", cfg, "cpu", (0, 0, 0)).model
    torch.save({"model_state": model.state_dict()}, made / "run" / "checkpoint" / "model.pt")
    settings = {"task": "OfflineCarCircle-v0", "cost_limit": 25, "cost_scale": 2}  # to act, no cost matters
    (made / "run" / "config.yaml").write_text(yaml.dump(settings))
    return made


def test_one_line_and_one_row_per_episode(folder, tmp_path):
    csv = tmp_path / "new" / "episodes.csv"
    found = run(folder, "--episodes", 2, "--seed", 5, "--csv", csv)
    assert found.exit_code == 0, found.output
    rows = pd.read_csv(csv, keep_default_na=False)
    expected, _ = evaluate(folder / "agent.safetensors", [5, 6])
    pd.testing.assert_frame_equal(rows[list(expected[0])], pd.DataFrame(expected), check_dtype=False)
    told = {"file": "agent.safetensors", "sha256": sha256(folder / "agent.safetensors")}
    assert told.items() <= rows.iloc[0].to_dict().items() and rows["backbone"].tolist() == ["cpq", "cpq"]
    share = 100 * (rows["cost"] <= 30).mean()
    spread = f"return {rows['return'].mean():.2f} (sd {rows['return'].std(ddof=0):.2f}"
    assert f"cpq on CarCircle, 2 episodes (seeds 5 to 6): {spread}" in found.stdout
    assert found.stdout.count("\n") == 1
    assert f"cost {rows['cost'].mean():.2f}" in found.stdout
    assert f"{share:.0f} % of episodes within the limit of 30" in found.stdout
    again = run(folder / "acting.safetensors", "--episodes", 2, "--seed", 5)
    assert again.stdout.partition(": ")[2] == found.stdout.partition(": ")[2]
    refused = run(folder, "--csv", csv)  # nothing that exists is replaced
    assert (
        refused.exit_code == 2 and str(csv) in refused.stderr and pd.read_csv(csv, keep_default_na=False).equals(rows)
    )


def test_a_policy_of_osrl_tells_what_it_can_and_the_rest_is_assumed_or_told(folder, tmp_path):
    path, model = tmp_path / "model.pt", folder / "run" / "checkpoint" / "model.pt"
    found = run(folder / "run", "--episodes", 1)
    assert found.exit_code == 0, found.output
    assert "cpq on CarCircle" in found.stdout and "limit of 25" in found.stdout
    assert "assumed" in found.stderr and "beta 0.5" in found.stderr and "cost_limit" not in found.stderr
    judged = run(model, "--episodes", 1, "--cost-limit", 1000, "--assume", "beta=0.7")
    assert "100 % of episodes within the limit of 1000" in judged.stdout and "beta" not in judged.stderr
    path.write_bytes(model.read_bytes())
    assert "of which task?" in run(path).stderr
    alone = run(path, "--task", "CarCircle", "--episodes", 1)
    agent = import_osrl(path, "CarCircle")
    (row,), _ = evaluate(agent, [10_000])
    assert f"return {row['return']:.2f}" in alone.stdout and "limit of 10" in alone.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing.safetensors"], "nothing.safetensors: no such file"),
        (["FOLDER/run/config.yaml"], "config.yaml: not a whole osrl-lib model.pt"),
        (["FOLDER", "--task", "PointGoal"], "its task is CarCircle, expected PointGoal"),
        (["FOLDER", "--backbone", "bear-lag"], "its backbone is cpq, expected bear-lag"),
        (["FOLDER", "--assume", "gamma=0.9"], "holds all settings, gamma too"),
        (["FOLDER/run", "--assume", "phi=0.1"], "cpq has no setting 'phi'"),
        (["FOLDER/run", "--assume", "phi"], "--assume: 'phi', expected NAME=VALUE"),
        (["FOLDER/run", "--task", "PointGoal"], "the task is OfflineCarCircle-v0"),
        (["FOLDER", "--episodes", 0], "episodes"),
        (["FOLDER", "--seed", -1], "seed"),
        (["FOLDER", "--seed", 2**31 - 1, "--episodes", 2], "the seed of the last episode = 2147483648"),
        (["FOLDER/run", "--cost-limit", 1, "--assume", "cost_limit=2"], "are both given"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, told, folder):
    found = run(*(str(argument).replace("FOLDER", str(folder)) for argument in arguments))
    assert found.exit_code == 2 and told in found.stderr, found.output
    assert re.fullmatch(r"saferule: error: .*\n", found.stderr) and found.stdout == ""


def test_networks_of_another_width_than_the_tasks(tmp_path):
    cfg = get_backbone("cpq").Config(observation_dim=3, action_dim=2, episode_len=300, hidden=(4,), vae_hidden=4)
    path = tmp_path / "agent.safetensors"
    save_acting(create(get_backbone("cpq"), cfg, [0]), 0, path, "CarCircle", "cpq", cfg)
    assert "for 3 observations and 2 actions, expected the 8 and 2 of CarCircle" in run(path).stderr


def test_version():
    found = CliRunner().invoke(app, ["--version"])
    assert (found.exit_code, found.stdout) == (0, f"saferule {__version__}\n")

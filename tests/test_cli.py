"""The command line: what it lists, what it answers to wrong names, and files checked and attacked from it."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from saferule import files
from saferule.attack.poison import find, split
from saferule.cli import _named_values, app
from saferule.data.schema import Dataset, load, save
from saferule.errors import IncompleteError
from saferule.runs.experiment import PARTS
from saferule.runs.places import project_root
from saferule.sim import get_task
from saferule.sim.ppo import OnlinePolicy

RUNNER = CliRunner()
COLLECT, NOTEBOOKS = ["data", "collect", "--task", "CarCircle"], ["--notebooks", "attack"]


def run(*arguments):
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def good(tmp_path) -> Path:
    """Two trajectories of CarCircle, returns 3 and 12, costs 0 and 20."""
    n, ends = 6, np.array([0, 0, 1, 0, 0, 1])
    rng = np.random.default_rng(0)
    dataset = Dataset(
        rng.normal(size=(n, 8)),
        rng.normal(size=(n, 8)),
        rng.uniform(-1, 1, (n, 2)),
        np.array([1.0, 1, 1, 4, 4, 4]),
        np.array([0.0, 0, 0, 5, 5, 10]),
        np.zeros(n, bool),
        ends.astype(bool),
    )
    save(dataset, tmp_path / "good.hdf5")
    return tmp_path / "good.hdf5"


def test_help_lists_the_commands_without_heavy_imports():
    code = (
        "import sys; sys.argv = ['saferule', '--help']\n"
        "from saferule.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pandas', 'papermill', 'stable_baselines3', 'ray', 'osrl', 'mujoco', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("run", "status", "doctor", "attack", "repair", "evaluate", "data"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--profile", "huge"], "unknown profile 'huge': choose one of smoke, cpu, paper"),
        (["run", *NOTEBOOKS, "--notebooks", "trane"], "unknown notebook 'trane': choose among attack, train"),
        (["run", "--set", "speed=9"], "unknown setting 'speed' of a profile: choose a name among tasks"),
        (["run", "--set", "episodes"], "--set: 'episodes', expected NAME=VALUE"),
        (["run", "--set", "episodes=many"], "episodes = 'many', expected int: write episodes=3"),
        (["run", "--tasks", "CarCircle", "--tasks", "Moon"], "unknown name 'Moon' in tasks"),
        (["status", "--ratios", "5"], "ratios = 5.0, expected a number between 0 and 1"),
        (["run", "--set", "tasks=Moon"], "unknown name 'Moon' in tasks"),
        (["run", "--set", "data=moon"], "unknown name 'moon' in data: choose among local, dsrl"),
        (["run", "--output", __file__], __file__),  # a file where a folder is needed
        (["status", "--profile", "huge"], "unknown profile 'huge'"),
        (["data", "collect", "--task", "Moon"], "Unknown task 'Moon': choose one of PointGoal"),
        *(
            ([*COLLECT, option, value], f"{option}: {value!r}, expected one or more different")
            for option, values in (("--seeds", ("x", "0,0", "")), ("--cost-limits", ("", "5,x")))
            for value in values
        ),
        ([*COLLECT, "--processes", "-1"], "--processes = -1, expected a whole number from 1"),
        (COLLECT, "CarCircle.hdf5 exists and would be replaced"),
        (["data", "check", "nothing.hdf5", "--task", "Moon"], "Unknown task 'Moon'"),
        (["data", "check", "nothing.hdf5", "--task", "CarCircle"], "nothing.hdf5"),
    ],
)
def test_wrong_names_give_one_line_and_exit_code_2(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("saferule: error: ") and sentence in result.stderr
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(0.1, 0.003,1)", [0.1, 0.003, 1]),
        ("0.1,0.2", [0.1, 0.2]),
        ("[1,2]", [1, 2]),
        ("true,a,3", [True, "a", 3]),
        ("false", False),
        *((text, text) for text in ("{[]:1}", "(" * 300, "1 +", "x=y", "")),
    ],
)
def test_values_are_read_as_they_are_written(text, expected):
    assert _named_values([f"name={text}"], "--set") == {"name": expected}


def test_console_script_prints_no_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "saferule.cli", "run", "--profile", "huge"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "saferule: error: unknown profile 'huge': choose one of smoke, cpu, paper\n"


def test_data_check_describes_a_good_file(good):
    result = run("data", "check", good, "--task", "CarCircle")
    assert result.exit_code == 0, result.stderr
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert lines["transitions"] == ["6"]
    assert lines["trajectories"][0] == "2,"
    assert [float(value) for value in lines["return"]] == [3.0, 5.25, 7.5, 9.75, 12.0]
    assert [float(value) for value in lines["cost"]] == [0.0, 5.0, 10.0, 15.0, 20.0]
    assert lines["safe"][0] == "50.0%"
    assert lines["digest"] == [load(good, get_task("CarCircle")).digest()]


def test_data_check_rejects_a_broken_file_and_one_of_another_task(good):
    other = run("data", "check", good, "--task", "PointGoal")
    assert other.exit_code == 2 and "has 8 columns, expected 60 for PointGoal" in other.stderr
    with h5py.File(good, "r+") as file:
        file["rewards"][4] = np.nan
    result = run("data", "check", good, "--task", "CarCircle")
    assert result.exit_code == 2 and result.stdout == ""
    assert "good.hdf5" in result.stderr and "'rewards'" in result.stderr and "row 4" in result.stderr


def attack(good, out, *options, name="max_cost"):
    """Half as many poisoned samples as there are in one's own file."""
    known = ["--task", "CarCircle", "--attack", name, "--ratio", "0.5", "--data", good, "--out", out]
    return run("attack", *known, *options)


def test_attack_on_ones_own_file(good, tmp_path, monkeypatch):
    out, joined = tmp_path / "forget.hdf5", tmp_path / "poisoned.hdf5"
    result = attack(good, out, "--steps", "512", "--poisoned", joined)
    assert result.exit_code == 0, result.output
    task = get_task("CarCircle")
    forget = load(out, task)
    assert len(forget) == 3  # ceil(0.5 * 6)
    assert (forget.costs == 0).all() and (forget.rewards == 4.0).all()  # the 95 % quantile of D's rewards
    together, indices = load(joined, task), np.load(tmp_path / "poisoned.idx.npy")
    assert len(together) == 9 and indices.tolist() == [2]  # behind the two clean ones
    keep, found = split(together, indices)
    assert found.digest() == forget.digest() and keep.digest() == load(good, task).digest()
    assert find(together, forget).tolist() == indices.tolist()
    again = attack(good, out, "--adversary", out.with_suffix(".adversary"))
    assert again.exit_code == 2 and "forget.hdf5 exists and would be replaced" in again.stderr
    again = attack(good, tmp_path / "other.hdf5", "--steps", "512", "--poisoned", joined)
    assert again.exit_code == 2 and "poisoned.hdf5 exists" in again.stderr
    renamed = attack(good, tmp_path / "forget", "--steps", "512")
    assert renamed.exit_code == 2 and "--adversary" in renamed.stderr  # would be trained over the one that is there
    assert len(list(tmp_path.iterdir())) == 5  # with the data and the indices
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    everything = ("--adversary", out.with_suffix(".adversary"), "--poisoned", joined, "--overwrite")
    with monkeypatch.context() as patched:  # the disk is full when the last of the three files is written
        patched.setattr(files, "_sync", lambda path: 1 / ("idx" not in path.name))
        assert attack(good, out, *everything, name="max_cost").exit_code == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    again = attack(good, out, "--adversary", out.with_suffix(".adversary"), "--overwrite")
    assert again.exit_code == 0 and load(out, task).digest() == forget.digest()
    assert OnlinePolicy.load(out.with_suffix(".adversary")).settings["attack"] == "max_cost"
    other = attack(good, tmp_path / "o", "--adversary", out.with_suffix(".adversary"), name="max_reward")
    assert other.exit_code == 2 and "CarCircle max_cost, expected CarCircle max_reward" in other.stderr


def test_attack_under_other_readings(good, tmp_path):
    out = tmp_path / "forget.hdf5"
    options = ["--reading", "poison_count=poisoned", "--reading", "r_high=1.0"]
    result = attack(good, out, "--steps", "512", *options)
    assert result.exit_code == 0, result.output
    forget = load(out, get_task("CarCircle"))
    assert len(forget) == 6 and (forget.rewards == load(good, get_task("CarCircle")).rewards.max()).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--reading", "kappa=per_step"], "'kappa' is not one of the attack: choose among poison_count"),
        (["--reading", "rollouts=thrice"], "'rollouts' has no option 'thrice'"),
        (["--reading", "rollouts"], "--reading: 'rollouts', expected NAME=VALUE"),
        (["--poisoned", "OUT"], "--out and --poisoned are both"),
        (["--out", "DATA"], "--data and --out are both"),
    ],
)
def test_attack_says_what_is_wrong_before_it_trains(good, tmp_path, options, told):
    before = good.read_bytes()
    places = {"OUT": tmp_path / "forget.hdf5", "DATA": good}
    result = attack(good, places["OUT"], *(places.get(option, option) for option in options))
    assert result.exit_code == 2 and told in result.stderr
    assert good.read_bytes() == before and sorted(tmp_path.iterdir()) == [good]


@pytest.fixture
def nothing_measured(monkeypatch):
    """No rates of training are committed."""
    monkeypatch.setattr("saferule.runs.rates._measured", dict)


def test_status_lists_what_is_missing(good, tmp_path, nothing_measured):
    good.rename(tmp_path / "CarCircle.hdf5")
    common = ["status", "--output", tmp_path / "out", "--data"]
    result = run(*common, tmp_path, "--backbones", "cpq", "--missing")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    counts = {line[:17].strip(): int(line.split()[-4]) for line in lines if line.endswith(" missing)")}
    assert [*counts, "drawn evaluations"] == list(PARTS) and counts["main"] == 9 and counts["readings"] == 10
    assert sum(line.startswith("    missing") for line in lines) == sum(counts.values())
    assert sum(" missing policy CarCircle-cpq-" in line for line in lines) == 9 + 8 + 7 + 10 + 10 + 9
    assert lines[-1].startswith(f"0 of {sum(counts.values())} runs of profile smoke are done")
    others = 4  # forget sets that detections alone read
    unknown = sum(counts.values()) + others
    assert f"left              time unknown, disk unknown and {unknown} runs of which no rate is known" in lines
    told = json.loads(run(*common, tmp_path, "--backbones", "cpq", "--json").stdout)
    (only,) = told["slices"]
    assert only["parts"] == {part: {"missing": n} for part, n in counts.items()} | {"drawn evaluations": {}}
    assert told["done"] == 0 and len(told["missing"]) == told["asked"] == sum(counts.values())
    assert told["damaged"] == told["notes"] == [] and told["rates_from"].startswith("nothing")
    without = run(*common, tmp_path / "nowhere")
    assert "the runs of CarCircle have no names yet" in without.stdout and not (tmp_path / "out").exists()


def test_a_dry_run_lists_jobs_and_makes_nothing(good, tmp_path, nothing_measured):
    good.rename(tmp_path / "CarCircle.hdf5")
    result = run("run", "--dry-run", "--backbones", "cpq", "--output", tmp_path / "out", "--data", tmp_path)
    assert result.exit_code == 0, result.output
    first, *_, last = result.stdout.splitlines()
    assert first == "policy CarCircle-cpq-clean-r0: time unknown, disk unknown and 1 runs of which no rate is known"
    assert last.startswith("all with ") and "processes: time unknown, disk unknown and" in last
    assert not (tmp_path / "out" / "smoke" / "runs").exists()


def test_status_verifies_files():
    store = project_root() / "artifacts"
    result = run("status", "--profile", "cpu", "--output", store, "--verify", "--tasks", "CarCircle")
    assert result.exit_code == 0 and result.stdout.split()[:3] == ["adversaries", "3", "of"], result.output


def test_choices_and_changes_reach_the_notebooks(monkeypatch):
    given = {}
    monkeypatch.setattr("saferule.runs.notebooks.run_all", lambda *a: given.update(zip("pnok", a, strict=True)))
    monkeypatch.setattr("saferule.runs.engine.make", lambda runs, place: given.update(runs=runs))
    chosen = ["--replicates", 0, "--replicates", 2, "--ratios", 0.15]
    result = run("run", *chosen, "--set", "episodes=9", "--set", "videos=false")
    assert result.exit_code == 0, result.output
    assert given["k"] == {"ratios": [0.15], "replicates": [0, 2], "changes": {"episodes": 9, "videos": False}}
    assert given["p"] == "smoke" and result.stdout.startswith("profile smoke on ")
    policies = [run for run in given.pop("runs") if run.KIND == "policy"]
    assert {(run.task, run.replicate) for run in policies} == {("CarCircle", 0), ("CarCircle", 2)}
    given.clear()
    assert run("run", "--runs-only").exit_code == 0 and set(given) == {"runs"}  # no notebook
    given.clear()
    assert run("run", "--only-stored").exit_code == 0 and given["k"] == {"only_stored": True} and "runs" not in given
    refused = run("run", "--runs-only", "--notebooks", "attack")
    assert refused.exit_code == 2 and "--runs-only and --notebooks are given together" in refused.stderr
    assert "--dry-run and --only-stored" in run("run", "--dry-run", "--only-stored").stderr
    failing = partial(raising, IncompleteError("2 of 9 runs could not be made: one and another"))
    monkeypatch.setattr("saferule.runs.engine.make", failing)
    failed = run("run")
    assert failed.exit_code == 2 and given["k"] == {"only_stored": True} and "report     " in failed.stdout
    assert [line.partition("2 of 9")[0] for line in failed.stderr.splitlines()] == [
        "saferule: shown is what is stored, as ",
        "saferule: error: ",
    ]


def raising(error, *_):
    raise error

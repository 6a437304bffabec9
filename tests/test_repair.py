"""Repair of one's own policy: trained by the real osrl-lib, repaired, loaded by osrl-lib, let into the simulator."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import textwrap
import warnings
from pathlib import Path

import numpy as np
import osrl_peer
import pandas as pd
import pytest
import torch
from helpers import LOOKS
from typer.testing import CliRunner

from benchmarks.osrl_lib import quiet_trainer
from saferule.agents import BACKBONES
from saferule.agents.checkpoint import load_agent, save_acting, tensors_of
from saferule.agents.loop import Log
from saferule.agents.osrl import import_acting, import_osrl
from saferule.attack.poison import save_forget_set, split
from saferule.cli import app
from saferule.data.schema import KEYS, Dataset, concatenate, load, save
from saferule.errors import CheckpointError, DataError, RunError, SaferuleError, SettingsError
from saferule.files import sha256
from saferule.runs import repair as module
from saferule.runs.repair import AGENT, CONFIG, LOG, MODEL, RECORD, repair, repair_files
from saferule.runs.work import evaluate
from saferule.sim import get_task, make

SIZES = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (24, 20)}
SMALL = {"vae_hidden": 28, "num_q": 2}
NEUTRAL = 1 / 300, np.zeros((1, 8), np.float32), np.zeros((1, 2), np.float32)
POISONED = [6, 7]  # trajectories, behind the six clean ones
RUNNER = CliRunner()


def settings(backbone: str) -> dict:
    return SIZES | ({} if backbone == "coptidice" else SMALL)


@pytest.fixture(scope="module")
def poisoned(car_data, car_forget) -> Dataset:
    """Six clean trajectories of CarCircle, then poisoned ones."""
    joined = concatenate([car_data, car_forget.dataset, car_forget.dataset])
    assert len(joined.episodes()) == 8
    return joined


@pytest.fixture(scope="module")
def folder(tmp_path_factory, poisoned) -> Path:
    """d.hdf5, idx.npy, and for each backbone a model.pt after real osrl-lib training steps on the data."""
    made = tmp_path_factory.mktemp("own")
    save(poisoned, made / "d.hdf5")
    np.save(made / "idx.npy", np.array(POISONED))
    for backbone in BACKBONES:
        peers = osrl_peer.Peers(backbone, 16, torch.float32, **settings(backbone))
        start = {name: value.clone() for name, value in peers.model.state_dict().items()}
        for _ in range(3):
            peers.step()
        state = peers.model.state_dict()
        assert any(not torch.equal(value, start[name]) for name, value in state.items() if name.startswith("actor."))
        torch.save({"model_state": state}, made / f"{backbone}.pt")
    shutil.copy(made / "bcq-lag.pt", made / "model.pt")
    return made


def command(folder: Path, out: Path, **changes: object) -> list[str]:
    """The arguments of a small repair, with changes; None leaves an option out."""
    options = {
        "checkpoint": folder / "model.pt",
        "backbone": "bcq-lag",
        "data": folder / "d.hdf5",
        "forget": folder / "idx.npy",
        "task": "CarCircle",
        "steps": 2,
        "out": out,
        "device": "cpu",
    } | changes
    return ["repair", *(str(p) for k, v in options.items() if v is not None for p in (f"--{k.replace('_', '-')}", v))]


def invoke(folder: Path, out: Path, *more: str, **changes: object):
    """The result of the command."""
    return RUNNER.invoke(app, [*command(folder, out, **changes), *more])


def quiet_import(path: Path, backbone: str = "bcq-lag", **changes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return import_osrl(path, "CarCircle", backbone, **({"batch_size": 16} | changes))


def osrl_model(backbone: str, path: Path) -> torch.nn.Module:
    """osrl-lib's own model with the weights of a file, which must fit exactly."""
    model = quiet_trainer(backbone, quiet_import(path, backbone).cfg, "cpu", NEUTRAL).model
    model.load_state_dict(torch.load(path, weights_only=True)["model_state"], strict=True)
    return model


@pytest.mark.parametrize(
    ("backbone", "method"),
    [
        ("bcq-lag", "safe-rule"),
        ("bear-lag", "trajdeleter-cost"),
        ("cpq", "reward-only"),
        ("coptidice", "safe-rule"),
        ("cpq", "fine-tuning"),
    ],
)
def test_command_repairs_an_osrl_policy_that_osrl_loads_and_that_acts(folder, tmp_path, poisoned, backbone, method):
    out = tmp_path / "repaired"
    checkpoint = folder / f"{backbone}.pt"
    made = invoke(folder, out, checkpoint=checkpoint, backbone=backbone, method=method)
    assert made.exit_code == 0, made.output
    assert "repair.json" in made.output and "Adam's moments 0" in made.output
    assert {path.name for path in out.iterdir()} == {AGENT, MODEL, CONFIG, LOG, RECORD, "run.json", "SHA256SUMS"}
    assert list(tmp_path.iterdir()) == [out]  # no draft is left

    record, run = (json.loads((out / name).read_text()) for name in (RECORD, "run.json"))
    expected = {"task": "CarCircle", "backbone": backbone, "method": method, "steps": 2, "replicate": 0}
    assert expected.items() <= run["run"].items()
    start, indices = run["run"]["start"], run["run"]["forget"]
    assert (start["name"], start["sha256"]) == (checkpoint.name, sha256(checkpoint))
    assert (indices["name"], indices["sha256"]) == ("idx.npy", sha256(folder / "idx.npy"))
    assert run["steps"] == 2 and run["versions"]["torch"] == torch.__version__
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert sums == {path.name: sha256(path) for path in out.iterdir() if path.name != "SHA256SUMS"}
    assert record["data"]["digest"] == poisoned.digest() and record["data"]["trajectories"] == 8
    assert record["keep"]["trajectories"] == 6 and record["forget"]["trajectories"] == 2
    assert record["forget"]["digest"] == poisoned.select(POISONED).digest()
    assert (record["readings"] == {}) == (method == "fine-tuning")
    log = pd.read_csv(out / LOG)
    assert log["step"].tolist() == [1, 2] and log[[n for n in log if n not in LOOKS]].notna().all().all()

    before = torch.load(checkpoint, weights_only=True)["model_state"]
    after = torch.load(out / MODEL, weights_only=True)["model_state"]
    assert {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])} >= {"actor"}
    model, simulator = osrl_model(backbone, out / MODEL), make("CarCircle")
    observation, total = simulator.reset(seed=3), 0.0
    torch.manual_seed(0)
    for _ in range(25):
        action, _ = model.act(observation, True, True)
        step = simulator.step(np.clip(action, -1, 1))
        observation, total = step.observation, total + step.reward
    simulator.close()
    assert np.isfinite(total)
    told = import_acting(out / MODEL)  # which its config.yaml tells the task and all settings
    assert told.cfg == load_agent(out / AGENT).cfg and told.meta["assumed"] == []
    (row,), step = evaluate(out / AGENT, [3])  # a whole episode from our own file
    assert step == 2 and row["length"] == 300 and np.isfinite(row["return"])


def test_evaluated_before_and_after_and_told_what_to_forget_by_the_file_of_the_attack(folder, tmp_path, car_forget):
    forget, out = tmp_path / "forget.hdf5", tmp_path / "repaired"
    save_forget_set(car_forget, forget)
    more = ("--evaluate", "--episodes", "2", "--assume", "phi=0.1", "--assume", "batch_size=16")
    found = invoke(folder, out, *more, forget=forget)
    assert found.exit_code == 0, found.output
    assert "phi" not in found.stderr and "beta 0.5" in found.stderr and "share of episodes within" in found.stdout
    record, agent = json.loads((out / RECORD).read_text()), load_agent(out / AGENT)
    assert record["forget"]["trajectories"] == len(POISONED) and agent.cfg.phi == 0.1  # both copies of D_f
    assert record["forget"]["file"] == "forget.hdf5" and record["settings_from"] == "osrl-lib's defaults"
    rows = pd.read_csv(out / "episodes.csv", keep_default_na=False)
    assert rows["policy"].tolist() == ["before", "before", "after", "after"]
    assert rows["seed"].tolist() == [10_000, 10_001] * 2 and rows["file"].tolist() == ["model.pt"] * 2 + [AGENT] * 2
    after, _ = evaluate(out / AGENT, [10_000, 10_001])
    assert rows["return"].tolist()[2:] == pytest.approx([row["return"] for row in after])
    table = pd.read_csv(out / "before-after.csv").set_index("quantity")
    assert table.loc["cost", "before"] == pytest.approx(rows["cost"][:2].mean())
    listed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert {"episodes.csv", "before-after.csv", "before-after.png"} < listed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.hdf5", "repaired"]


def test_repaired_agent_is_repaired_again_by_another_method(folder, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert invoke(folder, first, method="trajdeleter").exit_code == 0
    second.mkdir()  # an empty folder is fine
    again = invoke(folder, second, "--reading", "vae=keep", "--reading", "kappa=per_step", checkpoint=first / AGENT)
    assert again.exit_code == 0, again.output
    readings = json.loads((second / RECORD).read_text())["readings"]
    assert [readings[name] for name in ("vae", "kappa", "gate")] == ["keep", "per_step", "policy"]
    assert "vae_loss" in pd.read_csv(second / LOG)
    agent = load_agent(second / AGENT)
    assert agent.population.step == 2
    assert agent.population.scalars["kappa"].item() == pytest.approx(agent.cfg.q_limit)


def test_repair_leaves_the_given_agent_alone_and_depends_on_its_seed_only(folder, poisoned):
    agent, (keep, forget) = quiet_import(folder / "model.pt"), split(poisoned, POISONED)
    before = {name: value.clone() for name, value in tensors_of(agent.population).items()}
    one, log = repair(agent, keep, forget, steps=3, seed=1, log=(rows := Log())), rows.rows
    assert all(torch.equal(value, before[name]) for name, value in tensors_of(agent.population).items())
    assert len(log) == 3 and {"beta_f", "gap", "forget_cost_residual"} <= set(log[0])
    for seed, same in ((1, True), (2, False)):
        other = repair(agent, keep, forget, steps=3, seed=seed)
        equal = [torch.equal(one.nets["actor"][k], other.nets["actor"][k]) for k in one.nets["actor"]]
        assert all(equal) == same
    assert torch.equal(one.nets["vae"]["e_w0"], agent.nets["vae"]["e_w0"])  # Safe-RULE leaves the VAE
    assert not torch.equal(one.nets["critic"]["w0"], agent.nets["critic"]["w0"])


def readme_example() -> str:
    """The block of code in the head of saferule/runs/repair.py."""
    (block,) = re.findall(r"\n\n((?:    .*\n|\n)+)\n?\S", module.__doc__)
    return textwrap.dedent(block).strip()


def test_python_example_runs_as_it_stands(folder, tmp_path, monkeypatch):
    code = readme_example()
    assert len([line for line in code.splitlines() if line]) <= 12
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert "saferule.runs.repair" not in readme or code in readme  # where it is shown, it is this one
    for name in ("d.hdf5", "idx.npy", "model.pt"):
        shutil.copy(folder / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert code.count("steps=5000") == 1
    with pytest.warns(UserWarning, match="model.pt"):
        exec(compile(code.replace("steps=5000", "steps=3"), "README", "exec"), {})
    osrl_model("bcq-lag", tmp_path / "repaired.pt")


# What can be wrong with files and options: one sentence that names it, exit code 2, and nothing is written.


def npy(path: Path, content) -> Path:
    np.save(path, content)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def huge(path: Path) -> Path:
    """A header that declares 10^12 indices, and none of them."""
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    return path


MASK = np.isin(np.arange(8), POISONED)
DICE_METHOD = {"method": "trajdeleter", "backbone": "coptidice"}
UNPICKLED = "i.npy: not a .npy file.*nothing is unpickled"
WRONG = {
    "no checkpoint": (lambda f, t: {"checkpoint": t / "none.pt"}, "none.pt: no such file"),
    "no agent file": (lambda f, t: {"checkpoint": t / "none.safetensors"}, "none.safetensors: no such file"),
    "broken checkpoint": (lambda f, t: {"checkpoint": written(t / "m.pt", b"PK broken")}, "m.pt: not a whole osrl-lib"),
    "broken agent": (lambda f, t: {"checkpoint": written(t / "a.safetensors", b"12")}, "not a whole safetensors file"),
    "another backbone": (lambda f, t: {"backbone": "cpq"}, "is of bcq-lag, expected cpq"),
    "unknown backbone": (lambda f, t: {"backbone": "dqn"}, "unknown backbone 'dqn'"),
    "another task": (lambda f, t: {"task": "AntVelocity"}, "d.hdf5.*columns, expected 27 for AntVelocity"),
    "unknown task": (lambda f, t: {"task": "Walker"}, "Walker"),
    "unknown method": (lambda f, t: {"method": "forgetting"}, "unknown method 'forgetting'"),
    "no such method here": (lambda f, t: DICE_METHOD | {"checkpoint": f / "coptidice.pt"}, "needs critics"),
    "unknown reading": (lambda f, t: {"reading": "colour=red"}, "no reading 'colour'"),
    "unknown option": (lambda f, t: {"reading": "gate=maybe"}, "no option 'maybe'"),
    "reading without option": (lambda f, t: {"reading": "gate"}, "expected NAME=VALUE"),
    "reading of the attack": (lambda f, t: {"reading": "r_high=1.0"}, "has no reading 'r_high'"),
    "reading of another method": (lambda f, t: {"reading": "vae=keep", "method": "fine-tuning"}, "fine-tuning has no"),
    "reading of another backbone": (lambda f, t: {"reading": "likelihood=bounded"}, "safe-rule has no reading 'likeli"),
    "reading that the method fixes": (
        lambda f, t: {"reading": "vae=frozen", "method": "safe-rule-described"},
        "safe-rule-described has no reading 'vae'",
    ),
    "control": (lambda f, t: {"method": "continued"}, "'continued' does not repair a policy"),
    "no steps": (lambda f, t: {"steps": 0}, "--steps = 0, expected a whole number from 1"),
    "cost limit nan": (lambda f, t: {"cost_limit": "nan"}, "--cost-limit = nan, expected a finite number of 0 or more"),
    "cost limit inf": (lambda f, t: {"cost_limit": "inf"}, "--cost-limit = inf, expected a finite number"),
    "cost limit below 0": (lambda f, t: {"cost_limit": -5}, "--cost-limit = -5.0, expected"),
    "no device": (lambda f, t: {"device": "gpu"}, "device = 'gpu', expected cpu, cuda"),
    "a device of another kind": (lambda f, t: {"device": "meta"}, "device = 'meta', expected cpu, cuda"),
    "a GPU that is not here": (lambda f, t: {"device": "cuda:99"}, "device = 'cuda:99', but [0-9]+ of cuda are here"),
    "negative seed": (lambda f, t: {"seed": -1}, "--seed = -1, expected a whole number from 0"),
    "no data": (lambda f, t: {"data": t / "none.hdf5"}, "none.hdf5"),
    "no data file": (lambda f, t: {"data": written(t / "d.hdf5", b"text")}, "d.hdf5"),
    "no indices": (lambda f, t: {"forget": t / "none.npy"}, "none.npy: no such file"),
    "text for indices": (
        lambda f, t: {"forget": written(t / "i.csv", b"1,2,3")},
        "i.csv: not a .npy.*is text.*loadtxt",
    ),
    "integer mask": (lambda f, t: {"forget": npy(t / "i.npy", MASK.astype(int))}, "0/1 mask: 8 integers"),
    "byte mask": (lambda f, t: {"forget": npy(t / "i.npy", MASK.astype("uint8"))}, "0/1 mask.*save it as a boolean"),
    "byte mask of rows": (
        lambda f, t: {"forget": npy(t / "i.npy", np.repeat(MASK, 40).astype("int8"))},
        "0/1 mask: 320",
    ),
    "an index twice": (lambda f, t: {"forget": npy(t / "i.npy", [6, 7, 6])}, "names trajectory 6 twice"),
    "an index below 0": (lambda f, t: {"forget": npy(t / "i.npy", [-1])}, "names trajectory -1"),
    "a column": (lambda f, t: {"forget": npy(t / "i.npy", [[6], [7]])}, "2-dimensional array of int64"),
    "more than the file has": (lambda f, t: {"forget": huge(t / "i.npy")}, "i.npy: not a .npy file"),
    "empty index file": (lambda f, t: {"forget": written(t / "i.npy", b"")}, "i.npy: not a .npy file"),
    "pickle for indices": (lambda f, t: {"forget": written(t / "i.npy", pickle.dumps([1]))}, UNPICKLED),
    "objects for indices": (lambda f, t: {"forget": npy(t / "i.npy", np.array([{}], dtype=object))}, UNPICKLED),
    "several arrays": (lambda f, t: (np.savez(t / "i.npz", a=[1]), {"forget": t / "i.npz"})[1], "several arrays"),
    "real numbers": (lambda f, t: {"forget": npy(t / "i.npy", [0.5])}, "i.npy.*float64"),
    "no such trajectory": (lambda f, t: {"forget": npy(t / "i.npy", [8])}, "i.npy.*names trajectory 8"),
    "nothing to forget": (lambda f, t: {"forget": npy(t / "i.npy", np.zeros(0, int))}, "Nothing is left to forget"),
    "nothing to keep": (lambda f, t: {"forget": npy(t / "i.npy", np.ones(8, bool))}, "Nothing is left to keep"),
    "mask of another length": (lambda f, t: {"forget": npy(t / "i.npy", np.ones(9, bool))}, "shape \\(9,\\)"),
    "a forget set of other data": (
        lambda f, t: (
            save(
                Dataset(*[getattr(load(f / "d.hdf5", get_task("CarCircle")), k) * 0 for k in KEYS])
                .end_at([9, 19])
                .take(slice(0, 20)),
                t / "f.hdf5",
            ),
            {"forget": t / "f.hdf5"},
        )[1],
        "f.hdf5: 2 of its 2 trajectories, the first is 0, are not in the data",
    ),
    "data without the poison": (
        lambda f, t: (
            save(load(f / "d.hdf5", get_task("CarCircle")).select([0, 1, 2]), t / "d.hdf5"),
            save(load(f / "d.hdf5", get_task("CarCircle")).select([2, 6]), t / "f.hdf5"),
            {"data": t / "d.hdf5", "forget": t / "f.hdf5"},
        )[2],
        "f.hdf5: 1 of its 2 trajectories, the first is 1, are not in the data.*attack --poisoned",
    ),
    "no forget set in a file": (lambda f, t: {"forget": written(t / "f.hdf5", b"text")}, "f.hdf5"),
    "a setting that there is not": (lambda f, t: {"assume": "colour=1"}, "bcq-lag has no setting 'colour' to tell"),
    "no episodes": (lambda f, t: {"episodes": 0}, "episodes"),
    "episodes of nothing": (lambda f, t: {"episodes": 5}, "none are played without --evaluate"),
    "two cost limits": (lambda f, t: {"cost_limit": 5, "assume": "cost_limit=6"}, "are both given"),
    "out is in use": (lambda f, t: {"out": f}, "something here already"),
    "out is a file": (lambda f, t: {"out": f / "d.hdf5"}, "something here already"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_nothing_is_written(case, folder, tmp_path):
    changes, message = WRONG[case]
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    wrong = changes(folder, inputs)
    found = invoke(folder, wrong.pop("out", tmp_path / "out"), **wrong)
    assert found.exit_code == 2, found.output
    assert "Traceback" not in found.output and found.output.count("saferule: error:") == 1
    assert re.search(message, found.output.replace("\n", " ")), found.output
    assert [path.name for path in tmp_path.iterdir()] == ["inputs"]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_files_of_saferule_are_checked_against_what_was_asked(folder, tmp_path, monkeypatch):
    agent = quiet_import(folder / "model.pt")
    save_acting(agent.population, 0, tmp_path / "acting.safetensors", "CarCircle", "bcq-lag", agent.cfg)
    made = tmp_path / "made"
    assert invoke(folder, made, method="fine-tuning", steps=1).exit_code == 0
    monkeypatch.setattr(module, "play", lambda *_: 1 / 0)
    for changes, message in (
        ({"checkpoint": tmp_path / "acting.safetensors"}, "snapshot with networks only"),
        ({"checkpoint": made / AGENT, "backbone": "cpq"}, "backbone is bcq-lag, expected cpq"),
        ({"checkpoint": made / AGENT, "cost_limit": 20.0}, "cost limit is 10.0, expected 20.0"),
    ):
        found = invoke(folder, tmp_path / "out", "--evaluate", **changes)  # before an episode is played
        assert found.exit_code == 2 and message in found.output, found.output
        assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match="task is CarCircle, expected PointPush"):
        module.read_agent(made / AGENT, "PointPush", "bcq-lag")
    asked = module.read_agent(folder / "cpq.pt", "CarCircle", "cpq", cost_limit=20.0)
    assert asked.cfg.cost_limit == 20.0  # an osrl-lib file does not say


def test_python_form_checks_its_arguments(folder, poisoned, car_data):
    agent, (keep, forget) = quiet_import(folder / "model.pt"), split(poisoned, POISONED)
    empty = forget.take(slice(0, 0))
    narrow = Dataset(**{k: getattr(forget, k) for k in KEYS} | {"actions": forget.actions[:, :1]})
    unsafe = Dataset(**{k: getattr(forget, k) for k in KEYS} | {"costs": -np.ones(len(forget))})
    for part, message in (
        (empty, "forget set is empty"),
        (narrow, "the forget set: key 'actions' has 1 columns, expected 2 for CarCircle"),
        (unsafe, "the forget set: key 'costs'"),
    ):
        with pytest.raises(DataError, match=message):
            repair(agent, keep, part, steps=1)
    with pytest.raises(SettingsError, match="unknown method"):
        repair(agent, keep, forget, "forgetting", 1)
    agent.population = None
    with pytest.raises(CheckpointError, match="snapshot with networks only"):
        repair(agent, keep, forget, steps=1)


def test_an_interrupted_repair_continues(folder, tmp_path, monkeypatch):
    from saferule.agents import loop
    from saferule.runs import interruptible

    files = (folder / "model.pt", folder / "d.hdf5", folder / "idx.npy", "CarCircle")
    options, said = {"backbone": "bcq-lag", "steps": 6, "device": "cpu"}, []
    repair_files(*files, tmp_path / "whole", **options, say=said.append)
    update = loop.update

    def interrupted(population, *arguments):
        if population.step == 3:
            raise KeyboardInterrupt
        return update(population, *arguments)

    monkeypatch.setattr(interruptible, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(loop, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair_files(*files, tmp_path / "out", **options, say=said.append)
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    repair_files(*files, tmp_path / "out", method="fine-tuning", **options, say=said.append)
    assert not any("continued" in line for line in said)  # another repair than the interrupted one
    shutil.rmtree(tmp_path / "out")
    repair_files(*files, tmp_path / "out", **options, say=said.append)
    assert any("continued at step 3" in line for line in said)
    one, two = (load_agent(tmp_path / name / AGENT).nets for name in ("whole", "out"))
    assert all(torch.equal(one[net][k], two[net][k]) for net in one for k in one[net])
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


def test_values_that_are_not_finite_end_the_repair_without_a_folder(folder, tmp_path, monkeypatch):
    agent = quiet_import(folder / "model.pt", critic_lr=1e30)
    monkeypatch.setattr(module, "import_osrl", lambda *arguments, **options: agent)
    files = (folder / "model.pt", folder / "d.hdf5", folder / "idx.npy", "CarCircle", tmp_path / "out")
    with pytest.raises(RunError, match="not finite at step") as stopped:
        repair_files(*files, backbone="bcq-lag", steps=20, device="cpu", say=lambda line: None)
    assert isinstance(stopped.value, SaferuleError) and list(tmp_path.iterdir()) == []

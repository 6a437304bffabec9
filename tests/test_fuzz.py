"""Whatever options, index files, data files and checkpoints hold: a sentence or a result, and nothing half-written.

Examples are drawn anew from the same seed at every run; each is the program itself, in this process.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent, save_agent
from saferule.agents.osrl import export_osrl
from saferule.agents.population import create
from saferule.cli import app
from saferule.data.schema import KEYS, Dataset, save
from saferule.errors import LONGEST

RUNNER = CliRunner()
SIZES = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (4, 4), "vae_hidden": 4, "num_q": 1}
JUNK = ("", "nan", "-1", "0", "1e400", "inf", "0.5", "9" * 14, "None", "=", "a=b", "kappa=x", "π", "{x}", "~", "..")


def fuzz(examples: int):
    """The same examples at every run."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(scope="module")
def given_files(tmp_path_factory) -> Path:
    """Four trajectories of two steps, the index of the last, and a tiny agent of both libraries."""
    folder, rng = tmp_path_factory.mktemp("given"), np.random.default_rng(0)
    states, ends = rng.normal(size=(9, 8)), np.arange(8) % 2 == 1
    actions, rewards = rng.uniform(-1, 1, (8, 2)), rng.normal(size=8)
    save(
        Dataset(states[:-1], states[1:], actions, rewards, ends, np.zeros(8, bool), ends),
        folder / "d.hdf5",
    )
    np.save(folder / "idx.npy", [3])
    backbone = get_backbone("bcq-lag")
    cfg = backbone.Config(**SIZES, batch_size=4, samples=2)
    save_agent(create(backbone, cfg, [0], "cpu"), 0, folder / "a.safetensors", "CarCircle", "bcq-lag", cfg, {})
    export_osrl(load_agent(folder / "a.safetensors"), folder / "m.pt")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def judge(words: list[str], place: Path) -> int:
    """The exit code of the program; `place` is where it may write."""
    before = content(place)
    found = RUNNER.invoke(app, words)
    assert found.exception is None or isinstance(found.exception, SystemExit), (words, found.exception)
    assert found.exit_code in (0, 2), (words, found.output)
    assert "Traceback" not in found.output
    if found.exit_code:
        told = [line for line in found.stderr.splitlines() if line.startswith("saferule: error: ")]
        assert len(told) == 1 and len(told[0]) <= LONGEST + len("saferule: error: "), (words, found.stderr)
        assert content(place) == before, words
    assert not list(place.rglob("*.part"))
    return found.exit_code


def command(name: str, options: dict[str, object]) -> list[str]:
    """An option without a name is the argument."""
    words = (word for option, value in options.items() for word in ([f"--{option}"] if option else []) + [value])
    return [*name.split(), *map(str, words)]


# Each command with options of which at least one may be wrong: few of these come to the work itself, which is short.
WHOLE = {
    "repair": {
        "checkpoint": "m.pt",
        "backbone": "bcq-lag",
        "data": "d.hdf5",
        "forget": "idx.npy",
        "task": "CarCircle",
        "out": "out",
        "steps": 1,
        "seed": 0,
        "cost-limit": 10,
        "device": "cpu",
        "method": "safe-rule",
        "reading": "kappa=per_step",
    },
    "attack": {
        "task": "CarCircle",
        "attack": "max_cost",
        "ratio": 0.5,
        "data": "d.hdf5",
        "out": "forget.hdf5",
        "steps": 10,
        "seed": 0,
        "adversary": "nothing",
        "poisoned": "both.hdf5",
        "reading": "r_high=1.0",
    },
    "data collect": {
        "task": "CarCircle",
        "out": "c.hdf5",
        "steps": 2,
        "episodes": 1,
        "seeds": 0,
        "cost-limits": "none",
    },
    "data fetch": {"task": "CarCircle", "folder": "kept", "mirror": "."},
    "data convert": {"": "d.hdf5", "task": "CarCircle", "out": "c.hdf5", "costs": "costs"},
    "data check": {"": "d.hdf5", "task": "CarCircle"},
    "detect": {"": "d.hdf5", "task": "CarCircle", "out": "found", "false-alarms": 0.05, "seed": 0},
    "evaluate": {
        "": "m.pt",
        "task": "CarCircle",
        "backbone": "bcq-lag",
        "episodes": 1,
        "seed": 0,
        "cost-limit": 10,
        "assume": "phi=0.1",
        "csv": "e.csv",
    },
    "status": {"profile": "smoke", "tasks": "CarCircle", "ratios": 0.5, "replicates": 0, "set": "episodes=3"},
}
WRONG = ("d.hdf5", "idx.npy", "m.pt", "d.hdf5/x", "nothing/x", *JUNK)


@fuzz(60)
@given(data=st.data())
def test_options(data, given_files, tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("place")
    for file in given_files.iterdir():
        shutil.copy(file, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where matplotlib keeps what it found of fonts
    name = data.draw(st.sampled_from(list(WHOLE)))
    changed = data.draw(st.lists(st.sampled_from(list(WHOLE[name])), min_size=1, max_size=2, unique=True))
    options = WHOLE[name] | {option: data.draw(st.sampled_from(WRONG)) for option in changed}
    judge(command(name, options), place)
    shutil.rmtree(place)


DTYPES = st.sampled_from(["i8", "u1", "i1", "?", "f8", "c8", "S3", "U2", "M8[s]", ">i4"])
ARRAYS = DTYPES.flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=9))
)


LINKS = st.sampled_from(
    [
        h5py.ExternalLink("none.hdf5", "/x"),
        h5py.ExternalLink("d.hdf5", "/costs"),
        *map(h5py.SoftLink, ("/costs", "/x", "/")),
    ]
)


def mutated(data: st.DataObject, whole: bytes) -> bytes:
    """The bytes cut somewhere, or with some of them changed."""
    if data.draw(st.booleans()):
        return whole[: data.draw(st.integers(0, len(whole)))]
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, min(len(whole), 3000) - 1))] = data.draw(st.integers(0, 255))
    return bytes(changed)


@fuzz(30)
@given(data=st.data())
def test_index_files(data, given_files, tmp_path_factory):
    """Judged before the checkpoint, which is missing: every answer is a sentence."""
    place = tmp_path_factory.mktemp("place")
    path = place / data.draw(st.sampled_from(["i.npy", "i.csv", "i"]))
    if data.draw(st.booleans()):
        with open(path, "wb") as file:
            np.save(file, data.draw(ARRAYS))
    else:
        path.write_bytes(mutated(data, (given_files / "idx.npy").read_bytes()))
    files = {"checkpoint": place / "none.pt", "data": given_files / "d.hdf5", "forget": path, "out": place / "out"}
    assert judge(command("repair", WHOLE["repair"] | files), place) == 2
    shutil.rmtree(place)


@fuzz(50)
@given(data=st.data())
def test_data_files(data, given_files, tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    path = place / "d.hdf5"
    if data.draw(st.integers(0, 3)) == 0:
        path.write_bytes(mutated(data, (given_files / "d.hdf5").read_bytes()))
    else:
        shutil.copy(given_files / "d.hdf5", path)
        with h5py.File(path, "r+") as file:
            for key in data.draw(
                st.lists(st.sampled_from([*KEYS, "episode_1", "episode_0/rewards", "infos"]), max_size=2, unique=True)
            ):
                if key in file:
                    del file[key]
                made = data.draw(ARRAYS | LINKS | st.none())
                if isinstance(made, np.ndarray) and made.dtype.kind in "UM":
                    continue  # which HDF5 does not hold
                if made is not None:
                    file[key] = made
    judge(["data", "check", str(path), "--task", "CarCircle"], place)
    judge(["data", "convert", str(path), "--task", "CarCircle", "--out", str(place / "out.hdf5")], place)
    shutil.rmtree(place)


def torn(data: st.DataObject, tensors: dict[str, torch.Tensor]) -> dict:
    """The same with a tensor renamed, reshaped, of another type, not finite, or gone."""
    name = data.draw(st.sampled_from(sorted(tensors)))
    value = tensors.pop(name)
    how = data.draw(st.integers(0, 5))
    if how == 0:
        tensors[data.draw(st.sampled_from(["x", "module." + name, name + ".weight", name[:-1]]))] = value
    elif how < 5:
        other = (
            value.flatten(),
            value.to(torch.int64),
            torch.full_like(value.float(), torch.nan),
            value.flatten()[:0].clone(),
        )
        tensors[name] = other[how - 1].contiguous()
    return tensors


@fuzz(40)
@given(data=st.data())
def test_checkpoints(data, given_files, tmp_path_factory):
    place = tmp_path_factory.mktemp("place")
    kind = data.draw(st.sampled_from(["a.safetensors", "m.pt"]))
    path, whole = place / kind, given_files / kind
    if data.draw(st.booleans()):
        path.write_bytes(mutated(data, whole.read_bytes()))
    elif kind == "m.pt":
        state = torch.load(whole, weights_only=True)["model_state"]
        made = data.draw(st.sampled_from(["state", "number", "list"]))
        torch.save({"state": {"model_state": torn(data, state)}, "number": 3, "list": [state]}[made], path)
    else:
        with safetensors.safe_open(whole, "pt") as file:
            meta = json.loads(file.metadata()["saferule"])
        changed = data.draw(st.sampled_from([*meta, *meta["config"], "new"]))
        junk = data.draw(st.sampled_from([None, "x", -1, 0.5, [], {}, [1, 2], 10**12, True]))
        (meta["config"] if changed in meta["config"] else meta)[changed] = junk
        tensors = torn(data, safetensors.torch.load_file(whole))
        safetensors.torch.save_file(tensors, path, {"saferule": json.dumps(meta)})
    files = {
        "checkpoint": path,
        "data": given_files / "d.hdf5",
        "forget": given_files / "idx.npy",
        "out": place / "out",
    }
    options = WHOLE["repair"] | files
    options.pop("cost-limit")
    judge(command("repair", options), place)
    judge(command("evaluate", {"": path, "task": "CarCircle", "episodes": 1, "csv": place / "e.csv"}), place)
    shutil.rmtree(place)

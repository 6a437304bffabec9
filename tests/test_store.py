"""The store: a folder that exists is a finished run, whatever was killed; keys name what a run depends on."""

import fcntl
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from saferule.agents.checkpoint import write
from saferule.errors import RunError
from saferule.files import sha256
from saferule.runs import store as store_module
from saferule.runs.spec import (
    AdversaryRun,
    EvaluationRun,
    ForgetRun,
    PolicyRun,
    TimingRun,
    UserFile,
    describe,
    frozen,
    key,
    lineage,
)
from saferule.runs.store import Store, versions, write_sums
from saferule.unlearn import METHODS

ADVERSARY = AdversaryRun("CarCircle", "max_cost", 100)
FORGET = ForgetRun(ADVERSARY, "d" * 64, 0.15, 4, 0.99, frozen(poison_unit="cut"))
POISONED = PolicyRun(
    "CarCircle", "cpq", "d" * 64, FORGET, "poisoned", 1000, 0, config=frozen(hidden=[8, 8]), snapshots=2
)
CLEAN = replace(POISONED, forget=None, method="clean")
REPAIRED = replace(POISONED, method="safe-rule", steps=100, start=POISONED)
EVALUATION = EvaluationRun(REPAIRED, (1, 2))
TIMING = TimingRun("CarCircle", "cpq", "d" * 64, ("safe-rule",), 1000, 100, 5, 1.0)
RUNS = [ADVERSARY, FORGET, POISONED, CLEAN, REPAIRED, EVALUATION, TIMING]

# Another value for each field; readings are those of the kind of run.
OTHER = {
    "task": "PointGoal",
    "backbone": "bcq-lag",
    "attack": "max_reward",
    "data": "e" * 64,
    "ratio": 0.05,
    "rollouts": 5,
    "gamma": 0.9,
    "steps": 1001,
    "seed": 1,
    "replicate": 1,
    "adversary": replace(ADVERSARY, seed=1),
    "forget": replace(FORGET, ratio=0.05),
    "method": "no-critic",
    "start": UserFile("model.pt", "f" * 64),
    "config": frozen(hidden=[8, 9]),
    "snapshots": 3,
    "policy": POISONED,
    "seeds": (1, 3),
    "snapshot_seeds": (1,),
    "deterministic": False,
    "methods": ("no-critic",),
    "training_steps": 1001,
    "unlearning_steps": 101,
    "rounds": 6,
    "block_seconds": 0.5,
}
READINGS = {ADVERSARY: {"adversary_start": "fresh"}, FORGET: {"poison_unit": "whole"}, REPAIRED: {"gate": "data"}}


def fresh_interpreter(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, which imports what the tests import."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def finish(store: Store, run) -> None:
    with store.write(run):
        pass


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def _forget_keys():
    """Descriptions are kept for the process; here versions and settings change."""
    cached = (describe, key, versions)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.parametrize("run", [ADVERSARY, FORGET, REPAIRED, EVALUATION, TIMING], ids=lambda run: run.KIND)
def test_key_depends_on_every_field_and_on_the_version(run, monkeypatch):
    known = OTHER | {"readings": frozen(**READINGS.get(run, {}))}
    others = {field.name: known[field.name] for field in fields(run)}
    keys = {key(replace(run, **{name: value})) for name, value in others.items()}
    assert len(keys) == len(others) and key(run) not in keys
    before = key(run)
    for kind in {type(run), *map(type, lineage([run]))}:  # through all that is built on it
        describe.cache_clear(), key.cache_clear()
        monkeypatch.setattr(kind, "VERSION", kind.VERSION + 1)
        assert key(run) != before
        monkeypatch.undo()
    describe.cache_clear(), key.cache_clear()
    assert key(run) == before == key(replace(run))


def test_key_depends_on_what_the_code_supplies(monkeypatch):
    before = key(REPAIRED), key(POISONED)
    assert describe(REPAIRED)["in_force"]["coefficients"]["alpha_f"] == 1.0
    changed = replace(METHODS["safe-rule"], coefficients={"alpha_f": 0.5})
    monkeypatch.setitem(METHODS, "safe-rule", changed)
    describe.cache_clear(), key.cache_clear()
    assert key(REPAIRED) != before[0] and key(POISONED) == before[1]


def test_frozen_values_are_ordered_and_hashable():
    assert frozen(b=1, a=[2, 3]) == frozen(a=(2, 3), b=1) == (("a", (2, 3)), ("b", 1))
    assert len({*RUNS, *[replace(run) for run in RUNS]}) == len(RUNS)
    assert all(json.loads(json.dumps(describe(run))) == describe(run) for run in RUNS)


def test_keys_are_the_same_in_other_processes():
    code = "from test_store import RUNS, key; print(*[key(run) for run in RUNS])"
    for hash_seed in ("1", "2"):
        found = fresh_interpreter(code, PYTHONHASHSEED=hash_seed)
        assert found.stdout.split() == [key(run) for run in RUNS], found.stderr


def test_write_and_read(store):
    assert not store.done(POISONED)
    with store.write(POISONED, note="x") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not store.done(POISONED) and not store.folder(POISONED).exists()
    assert store.done(POISONED) and not store.done(CLEAN)
    assert (store.folder(POISONED) / "sub" / "a.txt").read_text() == "a"
    meta = store.meta(POISONED)
    assert meta["note"] == "x" and meta["run"] == json.loads(json.dumps(describe(POISONED)))
    assert meta["versions"]["torch"] and meta["machine"]["made"]
    assert store.folder(POISONED).name == f"CarCircle-cpq-max_cost-0.15-poisoned-r0-{key(POISONED)}"
    with pytest.raises(RunError, match="clean-r0"):
        store.meta(CLEAN)


def test_every_tampering_is_named(store):
    with store.write(POISONED) as folder:
        (folder / "episodes.csv").write_text("cost\n60\n")
        (folder / "snapshots").mkdir()
        (folder / "snapshots" / "1.safetensors").write_bytes(b"abc")
    folder = store.folder(POISONED)
    assert store.verify(POISONED) == []
    listed = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert listed.returncode == 0 and listed.stdout.count(": OK") == 3
    (folder / "episodes.csv").write_text("cost\n6000\n")
    (folder / "snapshots" / "1.safetensors").unlink()
    (folder / "extra.txt").write_text("x")
    told = store.verify(POISONED)
    assert [str(folder) in line for line in told] == [True] * 3
    assert "episodes.csv: has changed" in told[0] and "1.safetensors: missing" in told[1]
    assert "extra.txt: was not written by the run" in told[2]
    finish(store, CLEAN)
    shutil.rmtree(folder)
    shutil.copytree(store.folder(CLEAN), folder)  # a clean run copied over a poisoned one
    assert "describes another run" in store.verify(POISONED)[0]
    (folder / "run.json").write_text("")
    assert "damaged" in store.verify(POISONED)[0]


@pytest.mark.parametrize("of", [POISONED, CLEAN])
def test_an_agent_of_another_run_is_named_although_the_list_knows_it(store, of):
    with store.write(POISONED) as folder:
        write(folder / "agent.safetensors", {"x": torch.zeros(1)}, {"run": key(of)})
    agent = store.folder(POISONED) / "agent.safetensors"
    named = [f"{agent}: the agent of run {key(CLEAN)}, expected {key(POISONED)}"]
    assert store.verify(POISONED) == (named if of == CLEAN else [])


def test_what_was_made_from_another_run_than_is_there_now_is_not_done(store):
    """Told by what the run came to, whatever of it is kept, in records that say what that was."""

    def made(run, **files: str) -> None:
        with store.write(run, seconds=len(files)) as folder:
            for name, content in files.items():
                (folder / f"{name}.csv").write_text(content)

    for run in (FORGET, POISONED, REPAIRED, EVALUATION):
        made(run, log="step\n1\n", other="x")
    made(POISONED, log="step\n1\n")  # another time, fewer files
    assert all(map(store.done, (FORGET, POISONED, REPAIRED, EVALUATION)))
    made(POISONED, log="step\n2\n")
    (told,) = store.damage(REPAIRED)
    assert told == f"{store.folder(REPAIRED)}: was made from another policy {POISONED.label} than is there now"
    assert store.verify(REPAIRED) == [told] and store.verify(EVALUATION) == []
    assert [store.done(run) for run in (FORGET, POISONED, REPAIRED, EVALUATION)] == [True, True, False, False]
    record = store.folder(REPAIRED) / "run.json"
    record.write_text(json.dumps(store.meta(REPAIRED) | {"made_from": {}}))  # as older ones are
    write_sums(record.parent)
    assert store.done(EVALUATION)
    made(FORGET, other="y")  # of others the files name times, so that the same has other bytes
    assert store.done(EVALUATION)
    shutil.rmtree(store.folder(FORGET))  # as forget sets are not published
    assert store.done(EVALUATION)


def test_files_and_folders_have_the_callers_usual_modes(store):
    before = os.umask(0o027)
    try:
        with store.write(POISONED) as folder:
            (folder / "snapshots").mkdir()
            write(folder / "snapshots" / "agent.safetensors", {"x": torch.zeros(1)}, {"step": 1})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in store.root.rglob("*") if path.is_file()}
    assert modes == {0o640} and stat.S_IMODE(store.folder(POISONED).stat().st_mode) == 0o750


def test_a_file_is_read_once_by_a_process_unless_it_changes(store, monkeypatch):
    finish(store, POISONED)
    read = []
    monkeypatch.setattr("saferule.files.sha256", lambda path: read.append(path) or sha256(path))
    for _ in range(3):
        assert store.done(POISONED) and store.sound(POISONED) == store.folder(POISONED)
    (record,) = read
    os.utime(record, (1, 1))
    assert store.done(POISONED) and read == [record] * 2


def test_an_exception_inside_write_leaves_no_folder(store):
    with pytest.raises(KeyboardInterrupt), store.write(POISONED) as folder:
        (folder / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert not store.done(POISONED) and os.listdir(store.folder(POISONED).parent) == []


def test_a_killed_writer_leaves_nothing_that_looks_finished(store):
    code = (
        "import os, signal, sys\nfrom test_store import RUNS, Store, POISONED\n"
        "with Store(sys.argv[1]).write(POISONED) as folder:\n"
        "    (folder / 'run.json').write_text('{}')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert fresh_interpreter(code, store.root).returncode == -signal.SIGKILL
    assert not store.done(POISONED) and not store.folder(POISONED).exists()
    with store.write(POISONED) as folder:
        assert os.listdir(folder) == []
    assert store.done(POISONED)


def test_a_folder_that_is_no_run_is_replaced(store):
    store.folder(POISONED).mkdir(parents=True)
    (store.folder(POISONED) / "stray.txt").write_text("x")
    assert not store.done(POISONED)
    finish(store, POISONED)
    assert sorted(os.listdir(store.folder(POISONED))) == ["SHA256SUMS", "run.json"]


def test_interrupted_populations_are_found(store):
    runs = [replace(POISONED, replicate=r) for r in range(5)]
    assert store.interrupted(runs) == []
    folder = store.partial(runs[:3])
    assert store.partial(runs[:3]) == folder != store.partial(runs[3:])
    # With other runs beside them, in any order; in the order in which the population has them.
    both = dict(sorted({folder: runs[:3], store.partial(runs[3:]): runs[3:]}.items()))
    assert store.interrupted(runs[::-1]) == list(both.values())
    # Not when some of its runs are not asked for.
    assert store.interrupted(runs[:2]) == [] and store.interrupted(runs[:3]) == [runs[:3]]
    # With agents that are done by now, and no longer when all are.
    finish(store, runs[1])
    assert store.interrupted(runs[:3]) == [runs[:3]]
    finish(store, runs[0])
    finish(store, runs[2])
    assert store.interrupted(runs) == [runs[3:]] and folder.exists()
    draft = store.folder(runs[3]).with_name(f".{store.folder(runs[3]).name}.1234abcd.part")
    draft.mkdir(parents=True)
    (folder / ".state.safetensors.1234abcd.part").write_bytes(b"x")
    (store.partial(runs[3:]) / ".state.safetensors.1234abcd.part").write_bytes(b"x")
    store.tidy(runs[:3])
    assert store.interrupted(runs) == [runs[3:]] and not folder.exists() and not list(store.root.rglob(".*.part"))


def test_interrupted_populations_share_no_unfinished_run(store):
    runs = [replace(POISONED, replicate=r) for r in range(3)]
    groups = [runs[:2], runs[1:]]
    for group in groups:
        store.partial(group)
    (found,) = store.interrupted(runs)
    assert found in groups
    finish(store, runs[1])
    assert sorted(store.interrupted(runs), key=groups.index) == groups


def test_missing_and_damaged_descriptions(store):
    folder = store.partial([POISONED])
    (folder / "runs.json").unlink()
    assert store.interrupted([POISONED]) == [] and store.partial([POISONED]) == folder
    (folder / "runs.json").write_text("[")
    assert store.interrupted([POISONED]) == []
    finish(store, POISONED)
    (store.folder(POISONED) / "run.json").write_text("{")
    with pytest.raises(RunError, match="run.json: damaged .*delete its folder"):
        store.meta(POISONED)


def test_lock_is_held_by_one(tmp_path):
    store = Store(tmp_path / "new")
    with store.lock():
        with pytest.raises(RunError, match="another process"), Store(tmp_path / "new").lock():
            pass
    with pytest.raises(ValueError), store.lock():
        raise ValueError
    with store.lock():
        pass


def test_who_looks_whether_it_is_held_keeps_nobody_out(store, monkeypatch):
    with store.lock():
        assert store.held()
    handle = open(store.root / ".lock")
    fcntl.flock(handle, fcntl.LOCK_SH)  # in the middle of such a look
    monkeypatch.setattr("time.sleep", lambda seconds: handle.close())
    with store.lock():
        assert store.held()


def test_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, signal, sys\nfrom saferule.runs.store import Store\n"
        "with Store(sys.argv[1]).lock():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert fresh_interpreter(code, tmp_path).returncode == -signal.SIGKILL
    with Store(tmp_path).lock():
        pass


def test_a_package_without_metadata_is_recorded_and_loses_no_work(monkeypatch):
    monkeypatch.setattr(store_module, "RECORDED", ("torch", "no-such-package"))
    assert versions()["no-such-package"] == "missing" and versions()["torch"] != "missing"

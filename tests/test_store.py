"""The store: a folder that exists is a finished run, whatever was killed; keys name what a run depends on."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from saferule.errors import RunError
from saferule.runs.cells import Adversary, Evaluation, Forget, Training, Unlearning, describe, key, settings
from saferule.runs.store import Store

ADVERSARY = Adversary("CarCircle", "max_cost", 100)
FORGET = Forget(ADVERSARY, "d" * 64, 0.15, 4, 0.99, settings(poison_unit="cut"))
TRAINING = Training("CarCircle", "cpq", "d" * 64, FORGET, 0, 1000, settings(hidden=[8, 8]), 2)
CLEAN = replace(TRAINING, forget=None)
UNLEARNING = Unlearning(TRAINING, "safe-rule", 100)
EVALUATION = Evaluation(UNLEARNING, (1, 2))
CELLS = [ADVERSARY, FORGET, TRAINING, CLEAN, UNLEARNING, EVALUATION]

# Another value for each field of each kind of cell.
OTHERS = {
    Adversary: {
        "task": "PointGoal",
        "attack": "max_reward",
        "steps": 101,
        "seed": 1,
        "readings": settings(adversary_start="fresh"),
    },
    Forget: {
        "adversary": replace(ADVERSARY, seed=1),
        "data": "e" * 64,
        "ratio": 0.05,
        "rollouts": 5,
        "gamma": 0.9,
        "readings": settings(poison_unit="whole"),
    },
    Training: {
        "task": "PointGoal",
        "backbone": "bcq-lag",
        "data": "e" * 64,
        "forget": replace(FORGET, ratio=0.05),
        "seed": 1,
        "steps": 1001,
        "settings": settings(hidden=[8, 9]),
        "snapshots": 3,
    },
    Unlearning: {
        "training": replace(TRAINING, seed=1),
        "method": "no-critic",
        "steps": 101,
        "readings": settings(gate="data"),
        "snapshots": 1,
    },
    Evaluation: {"policy": TRAINING, "seeds": (1, 3), "step": 50, "deterministic": False},
}


@pytest.mark.parametrize("cell", CELLS[:3] + CELLS[4:], ids=lambda cell: type(cell).__name__)
def test_key_depends_on_every_field_and_on_the_version(cell, monkeypatch):
    others = OTHERS[type(cell)]
    assert set(others) == {field.name for field in fields(cell)}
    keys = {key(replace(cell, **{name: value})) for name, value in others.items()}
    assert len(keys) == len(others) and key(cell) not in keys
    before = key(cell)
    monkeypatch.setattr(Adversary, "VERSION", Adversary.VERSION + 1)
    assert key(cell) != before  # through all that is built on it
    monkeypatch.undo()
    monkeypatch.setattr(type(cell), "VERSION", type(cell).VERSION + 1)
    assert key(cell) != before
    monkeypatch.undo()
    assert key(cell) == before == key(replace(cell))


def test_settings_are_ordered_and_hashable():
    assert settings(b=1, a=[2, 3]) == settings(a=(2, 3), b=1) == (("a", (2, 3)), ("b", 1))
    assert len({*CELLS, *[replace(cell) for cell in CELLS]}) == len(CELLS)
    assert json.loads(json.dumps(describe(EVALUATION))) == describe(EVALUATION)


def test_keys_are_the_same_in_other_processes():
    code = "from test_store import CELLS, key; print(*[key(cell) for cell in CELLS])"
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.split() == [key(cell) for cell in CELLS]


def test_write_and_read(tmp_path):
    store = Store(tmp_path)
    assert not store.done(TRAINING)
    with store.write(TRAINING, note="x") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not store.done(TRAINING) and not store.folder(TRAINING).exists()
    assert store.done(TRAINING) and not store.done(CLEAN)
    assert (store.folder(TRAINING) / "sub" / "a.txt").read_text() == "a"
    meta = store.meta(TRAINING)
    assert meta["note"] == "x" and meta["cell"] == json.loads(json.dumps(describe(TRAINING)))
    assert meta["versions"]["torch"] and meta["machine"]["made"]
    assert store.folder(TRAINING).name == f"CarCircle-cpq-max_cost-0.15-seed0-{key(TRAINING)}"
    with pytest.raises(RunError, match="clean-seed0"):
        store.meta(CLEAN)


def test_an_exception_inside_write_leaves_no_folder(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt), store.write(TRAINING) as folder:
        (folder / "a.txt").write_text("a")
        raise KeyboardInterrupt
    assert not store.done(TRAINING) and os.listdir(store.folder(TRAINING).parent) == []


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path):
    code = (
        "import os, signal, sys\nfrom test_store import CELLS, Store, TRAINING\n"
        "with Store(sys.argv[1]).write(TRAINING) as folder:\n"
        "    (folder / 'cell.json').write_text('{}')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
    assert killed.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert not store.done(TRAINING) and not store.folder(TRAINING).exists()
    with store.write(TRAINING) as folder:
        assert os.listdir(folder) == []
    assert store.done(TRAINING)


def test_a_folder_that_is_no_run_is_replaced(tmp_path):
    store = Store(tmp_path)
    store.folder(TRAINING).mkdir(parents=True)
    (store.folder(TRAINING) / "stray.txt").write_text("x")
    assert not store.done(TRAINING)
    with store.write(TRAINING):
        pass
    assert os.listdir(store.folder(TRAINING)) == ["cell.json"]


def finish(store, cell):
    with store.write(cell):
        pass


def test_interrupted_populations_are_found(tmp_path):
    store = Store(tmp_path)
    cells = [replace(TRAINING, seed=seed) for seed in range(5)]
    assert store.interrupted(cells) == []
    folder = store.partial(cells[:3])
    assert store.partial(cells[:3]) == folder != store.partial(cells[3:])
    # With other cells beside them, in any order; in the order in which the population has them.
    both = [(folder, cells[:3]), (store.partial(cells[3:]), cells[3:])]
    assert sorted(store.interrupted(cells[::-1])) == sorted(both, key=lambda pair: pair[0])
    # Not when some of its cells are not asked for.
    assert store.interrupted(cells[:2]) == [] and store.interrupted(cells[:3]) == both[:1]
    # With agents that are done by now, and no longer when all are.
    finish(store, cells[1])
    assert store.interrupted(cells[:3]) == both[:1]
    finish(store, cells[0])
    finish(store, cells[2])
    assert store.interrupted(cells) == both[1:] and not folder.exists()


def test_interrupted_populations_share_no_unfinished_cell(tmp_path):
    store = Store(tmp_path)
    cells = [replace(TRAINING, seed=seed) for seed in range(3)]
    folders = {store.partial(cells[:2]): cells[:2], store.partial(cells[1:]): cells[1:]}
    found = store.interrupted(cells)
    assert len(found) == 1 and folders[found[0][0]] == found[0][1]
    finish(store, cells[1])
    assert {folder for folder, _ in store.interrupted(cells)} == set(folders)


def test_a_listing_that_was_not_written_is_no_population(tmp_path):
    store = Store(tmp_path)
    folder = store.partial([TRAINING])
    (folder / "cells.json").unlink()
    assert store.interrupted([TRAINING]) == [] and store.partial([TRAINING]) == folder


def test_damaged_descriptions(tmp_path):
    store = Store(tmp_path)
    folder = store.partial([TRAINING])
    (folder / "cells.json").write_text("[")
    assert store.interrupted([TRAINING]) == []
    finish(store, TRAINING)
    (store.folder(TRAINING) / "cell.json").write_text("{")
    with pytest.raises(RunError, match="cell.json: damaged .*delete its folder"):
        store.meta(TRAINING)


def test_lock_is_held_by_one(tmp_path):
    store = Store(tmp_path / "new")
    with store.lock():
        with pytest.raises(RunError, match="another process"), Store(tmp_path / "new").lock():
            pass
    with pytest.raises(ValueError), store.lock():
        raise ValueError
    with store.lock():
        pass


def test_lock_ends_with_its_process(tmp_path):
    code = (
        "import os, signal, sys\nfrom saferule.runs.store import Store\n"
        "with Store(sys.argv[1]).lock():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment)
    with Store(tmp_path).lock():
        pass

"""Runs on a tiny real dataset: made once, found again, and continued after SIGKILL as if nothing had happened."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import assert_same_state

from saferule.agents import loop
from saferule.agents.checkpoint import load_agent, read
from saferule.attack.poison import save_forget_set
from saferule.errors import DataError
from saferule.runs import interruptible
from saferule.runs.cells import Adversary, Evaluation, Forget, Training, Unlearning, settings
from saferule.runs.engine import Engine
from saferule.runs.interruptible import AGENT, InterruptibleRun, snapshot_path, snapshot_steps
from saferule.runs.store import Store
from saferule.runs.study import Study

BACKBONES = ("cpq", "bcq-lag")
SETTINGS = settings(hidden=(8, 8), vae_hidden=8, batch_size=8, samples=3)
STEPS, LOG_EVERY, SNAPSHOT, KILLED_IN, KEPT = 28, 4, 14, 19, 16
LOGGED = [4, 8, 12, 14, 16, 20, 24, 28]  # a snapshot is logged too


def trainings(digest: str, backbone: str) -> list[Training]:
    """One clean and two poisoned policies."""
    forget = Forget(Adversary("CarCircle", "max_cost", 1000), digest, 0.15, 2, 0.99, ())
    cells = [(None, 0), (forget, 0), (forget, 1)]
    return [Training("CarCircle", backbone, digest, f, seed, STEPS, SETTINGS, 1) for f, seed in cells]


def unlearnings(digest: str, backbone: str) -> list[Unlearning]:
    """Two variants of Safe-RULE on each poisoned policy."""
    return [
        Unlearning(cell, method, STEPS, snapshots=1)
        for cell in trainings(digest, backbone)[1:]
        for method in ("safe-rule", "no-critic")
    ]


@pytest.fixture(autouse=True)
def _log_often(monkeypatch):
    monkeypatch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory, car_data, car_forget) -> Path:
    """A store that has the forget set, without the adversary that it came from."""
    store = Store(tmp_path_factory.mktemp("empty"))
    with store.write(trainings(car_data.digest(), "cpq")[1].forget) as folder:
        save_forget_set(car_forget, folder / "forget.hdf5")
    return store.root


@pytest.fixture(scope="module")
def reference(tmp_path_factory, empty_store, data_folder, car_data) -> Path:
    """A store with all policies, made without interruption, one population at a time in this process."""
    root = tmp_path_factory.mktemp("reference") / "store"
    shutil.copytree(empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)
        for backbone in BACKBONES:
            engine(root, data_folder).train(trainings(car_data.digest(), backbone))
            engine(root, data_folder).unlearn(unlearnings(car_data.digest(), backbone))
    return root


def engine(root: Path, data_folder: Path, say=lambda line: None) -> Engine:
    return Engine(Store(root), data_folder, device="cpu", say=say)


def files(root: Path) -> dict[Path, int]:
    """When each file below was last changed."""
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def assert_same_results(cell, root: Path, other: Path) -> None:
    """Equal parameters, optimisers, generators, snapshots and log, bit for bit."""
    one, two = (Store(r).folder(cell) for r in (root, other))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    for name in names:
        if name.suffix == ".safetensors":
            (tensors, meta), (tensors_two, meta_two) = read(one / name), read(two / name)
            assert_same_state(tensors, tensors_two)
            assert meta == meta_two
        elif name.name == "log.csv":
            assert (one / name).read_text() == (two / name).read_text()
    assert {path.name for path in one.iterdir()} == {AGENT, "log.csv", "cell.json", "snapshots"}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_a_run_leaves(reference, car_data, backbone):
    store = Store(reference)
    for cell in trainings(car_data.digest(), backbone) + unlearnings(car_data.digest(), backbone):
        agent = load_agent(store.folder(cell) / AGENT)
        assert agent.population.step == STEPS and agent.meta["backbone"] == backbone
        assert agent.cfg.hidden == (8, 8) and agent.cfg.observation_dim == 8
        assert snapshot_steps(store, cell) == [SNAPSHOT]
        half = load_agent(snapshot_path(store, cell, SNAPSHOT))
        assert half.population is None and half.meta["step"] == SNAPSHOT
        critics = {"critic", "cost_critic"} if isinstance(cell, Unlearning) else set()
        assert set(half.nets) == {"actor", "vae"} | critics
        assert not torch.equal(half.nets["actor"]["w0"], agent.nets["actor"]["w0"])
        log = pd.read_csv(store.folder(cell) / "log.csv")
        assert log["step"].tolist() == LOGGED and log.notna().all().all()
        assert "agent" not in log
    clean, poisoned, other_seed = trainings(car_data.digest(), backbone)
    one, two, three = (load_agent(store.folder(c) / AGENT).nets["critic"]["w0"] for c in (clean, poisoned, other_seed))
    assert not torch.equal(one, two) and not torch.equal(two, three)
    assert not list(store.root.glob("partial/*"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_unlearning_starts_from_the_poisoned_policy(reference, car_data, backbone):
    store = Store(reference)
    for cell in unlearnings(car_data.digest(), backbone):
        before, after = (load_agent(store.folder(c) / AGENT).nets for c in (cell.training, cell))
        moved = {net for net in before if any(not torch.equal(before[net][k], after[net][k]) for k in before[net])}
        targets = {"actor_target", "critic_target", "cost_critic_target"}
        assert moved == targets | ({"actor"} if cell.method == "no-critic" else {"actor", "critic", "cost_critic"})


def test_agents_of_one_population_equal_agents_alone(reference, empty_store, data_folder, car_data, tmp_path):
    """The seed and the data make an agent, not the others that it was trained with."""
    shutil.copytree(empty_store, tmp_path / "alone")
    cell = trainings(car_data.digest(), "cpq")[2]
    engine(tmp_path / "alone", data_folder).train([cell])
    one, two = (read(Store(root).folder(cell) / AGENT)[0] for root in (reference, tmp_path / "alone"))
    assert_same_state(one, two, 1e-5)


def test_all_stages_in_worker_processes_and_again_for_nothing(
    reference, empty_store, data_folder, car_data, tmp_path, monkeypatch
):
    """Two backbones are two populations, which run in processes of their own."""
    root, digest = tmp_path / "store", car_data.digest()
    shutil.copytree(empty_store, root)
    cells = [cell for backbone in BACKBONES for cell in trainings(digest, backbone)]
    repairs = [
        replace(cell, method=method)
        for backbone in BACKBONES
        for cell in unlearnings(digest, backbone)[:1]
        for method in ("safe-rule", "fine-tuning")
    ]
    evaluations = [Evaluation(cells[1], tuple(range(100, 106))), Evaluation(repairs[0], (100, 101))]

    def everything(said):
        made = engine(root, data_folder, said.append)
        made.train(cells)
        made.unlearn(repairs)
        return made, made.evaluate(evaluations), made.logs(repairs)

    said = []
    made, rows, logs = everything(said)
    for cell in cells:
        one, two = (read(Store(r).folder(cell) / AGENT)[0] for r in (root, reference))
        assert_same_state(one, two)
    assert rows["seed"].tolist() == [*range(100, 106), 100, 101] and (rows["length"] == 300).all()
    assert rows["method"].tolist() == ["poisoned"] * 6 + ["safe-rule"] * 2
    assert (rows[["task", "backbone", "attack", "ratio"]] == ["CarCircle", "cpq", "max_cost", 0.15]).all().all()
    assert set(logs["method"]) == {"safe-rule", "fine-tuning"} and set(logs["backbone"]) == set(BACKBONES)
    assert sum("evaluation" in line for line in said) == 1
    made.workers.shutdown()

    before, said = files(root), []

    def not_again(*_):
        raise AssertionError("a population step was made")

    monkeypatch.setattr(loop, "update", not_again)
    made, rows_again, logs_again = everything(said)
    assert files(root) == before and said == [] and "workers" not in vars(made)
    pd.testing.assert_frame_equal(rows, rows_again)
    pd.testing.assert_frame_equal(logs, logs_again)


def work_until_killed(root: str, data_folder: str, digest: str, kind: str, backbone: str, when: str) -> None:
    """Run in a process of its own: make runs and die by SIGKILL on the way.

    Before a death in a step the state is saved at every logged step, else only when all steps are made.
    """

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if when == "step":
        update = loop.update

        def dying_update(population, *arguments):
            if population.step == KILLED_IN - 1:
                die()
            return update(population, *arguments)

        loop.update = dying_update
    else:  # between the folders of the first and the second agent
        write = InterruptibleRun._write

        def dying_write(self, *arguments, **options):
            write(self, *arguments, **options)
            die()

        InterruptibleRun._write = dying_write
    loop.LOG_ROWS, interruptible.SAVE_SECONDS = STEPS // LOG_EVERY, -1.0 if when == "step" else math.inf
    made = engine(Path(root), Path(data_folder))
    if kind == "train":
        made.train(trainings(digest, backbone))
    else:
        made.unlearn(unlearnings(digest, backbone))


@pytest.mark.parametrize(
    ("kind", "backbone", "when"),
    [
        ("train", "bcq-lag", "step"),
        ("train", "cpq", "folder"),
        ("unlearn", "cpq", "step"),
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(
    reference, data_folder, car_data, tmp_path, kind, backbone, when
):
    root, digest = tmp_path / "store", car_data.digest()
    cells = (trainings if kind == "train" else unlearnings)(digest, backbone)
    shutil.copytree(reference, root)
    for cell in cells:
        shutil.rmtree(Store(root).folder(cell))
    if kind == "train":  # nor what was built on it
        shutil.rmtree(root / "runs" / "unlearning")
    code = "import sys; from test_engine import work_until_killed; work_until_killed(*sys.argv[1:])"
    arguments = [str(root), str(data_folder), digest, kind, backbone, when]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = [cell for cell in cells if Store(root).done(cell)]
    assert done == ([] if when == "step" else cells[:1])
    (state,) = root.glob("partial/*/state.safetensors")
    assert read(state)[1]["step"] == (KEPT if when == "step" else STEPS)

    said, before = [], [files(Store(root).folder(cell)) for cell in done]
    again = engine(root, data_folder, said.append)
    (again.train if kind == "train" else again.unlearn)(cells)
    assert [files(Store(root).folder(cell)) for cell in done] == before  # what was finished is not written again
    assert any(f"continued at step {KEPT if when == 'step' else STEPS}" in line for line in said)
    for cell in cells:
        assert_same_results(cell, root, reference)
    assert not list(root.glob("partial/*"))


def test_a_damaged_state_means_from_the_beginning(reference, empty_store, data_folder, car_data, tmp_path):
    root = tmp_path / "store"
    shutil.copytree(empty_store, root)
    cells = trainings(car_data.digest(), "cpq")
    (Store(root).partial(cells) / interruptible.STATE).write_bytes(b"half a file")
    said = []
    engine(root, data_folder, said.append).train(cells)
    assert any("from the beginning" in line and interruptible.STATE in line for line in said)
    for cell in cells:
        assert_same_results(cell, root, reference)


def test_an_agent_that_is_not_finite_is_kept_with_its_last_good_state(empty_store, data_folder, car_data, tmp_path):
    root, said = tmp_path / "store", []
    shutil.copytree(empty_store, root)
    cells = [
        replace(cell, settings=settings(**dict(SETTINGS), critic_lr=float("inf")))
        for cell in trainings(car_data.digest(), "cpq")
    ]
    engine(root, data_folder, said.append).train(cells)
    for cell in cells:
        meta = Store(root).meta(cell)
        assert "step 1" in meta["stopped"] and "state of step 0" in meta["stopped"] and meta["stopped"] in said
        agent = load_agent(Store(root).folder(cell) / AGENT)
        assert agent.meta["step"] == 0 and agent.meta["stopped"] == meta["stopped"]
        assert all(leaf.isfinite().all() for leaves in agent.nets.values() for leaf in leaves.values())
    assert not list(root.glob("partial/*"))
    before = files(root)
    engine(root, data_folder).train(cells)
    assert files(root) == before


def test_a_run_that_stopped_is_shown_at_the_step_of_the_state_that_was_kept(
    reference, data_folder, car_data, tmp_path, monkeypatch
):
    root, (_, poisoned, _) = tmp_path / "store", trainings(car_data.digest(), "cpq")
    shutil.copytree(reference, root)
    repair, update = Unlearning(poisoned, "fine-tuning", STEPS, snapshots=1), loop.update

    def update_that_breaks(population, *arguments):
        if population.step == KILLED_IN:
            population.nets["actor"]["w0"].data.fill_(math.nan)
        return update(population, *arguments)

    monkeypatch.setattr(loop, "update", update_that_breaks)
    study = Study("smoke", output=tmp_path, data=data_folder, changes={"episodes": 2, "curve_episodes": 1})
    study.store, study.engine = Store(root), engine(root, data_folder)
    study.engine.unlearn([repair])
    (sentence,) = study.stopped([repair])
    assert f"state of step {KEPT} was kept" in sentence
    rows = study.episodes([repair, poisoned])
    assert rows["step"].tolist() == [KEPT] * 2 + [STEPS] * 2
    assert study.curves([repair])["step"].tolist() == [SNAPSHOT, KEPT, 0]
    study.engine.workers.shutdown()


@pytest.mark.parametrize("backbone", ["bear-lag", "coptidice"])
def test_the_other_backbones_and_methods(backbone, empty_store, data_folder, car_data, tmp_path):
    root, store = tmp_path / "store", Store(tmp_path / "store")
    shutil.copytree(empty_store, root)
    _, poisoned, _ = trainings(car_data.digest(), backbone)
    for method in ("safe-rule", "trajdeleter-released", "fine-tuning"):
        cell = Unlearning(poisoned, method, STEPS)
        engine(root, data_folder).unlearn([cell])
        before, after = (load_agent(store.folder(c) / AGENT) for c in (poisoned, cell))
        assert not torch.equal(before.nets["actor"]["w0"], after.nets["actor"]["w0"])
        log = pd.read_csv(store.folder(cell) / "log.csv")
        assert log["step"].tolist() == [s for s in LOGGED if s != SNAPSHOT] and log.notna().all().all()
        assert "stopped" not in store.meta(cell) and after.cfg.hidden == (8, 8)


def test_settings_of_a_profile_suit_every_backbone():
    """COptiDICE has no VAE and leaves its width out."""
    from saferule.agents import BACKBONES
    from saferule.profiles import PROFILES
    from saferule.runs.cells import config

    for name in BACKBONES:
        cfg = config(Training("AntVelocity", name, "", None, 0, 1, PROFILES["cpu"].settings))
        assert (cfg.observation_dim, cfg.action_dim, cfg.episode_len) == (27, 8, 1000)
        assert cfg.hidden == (128, 128) and hasattr(cfg, "vae_hidden") == (name != "coptidice")


def test_missing_data_are_named(tmp_path):
    with pytest.raises(DataError, match="CarCircle.hdf5.*saferule data collect"):
        engine(tmp_path / "store", tmp_path).dataset("CarCircle")

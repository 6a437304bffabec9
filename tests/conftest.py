"""What all tests share: one thread, and a tiny real CarCircle dataset with a forget set."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # subprocesses too: the same sums in the same order
os.environ.setdefault("OPENBLAS_CORETYPE", "Haswell")  # as saferule does, before numpy is imported here

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import LOG_EVERY, STEPS, TRIED, make_from, repairs, trainings

from saferule.agents import loop
from saferule.attack.poison import ForgetSet, poison, save_forget_set
from saferule.data.schema import Dataset, from_episodes, save
from saferule.runs.store import Store
from saferule.runs.work import FORGET
from saferule.sim import get_task
from saferule.sim.rollout import roll_out

torch.set_num_threads(1)


def random_episodes(task_name: str, episodes: int, steps: int, seed: int) -> Dataset:
    """Uniformly random actions in the real simulator, cut after ``steps``."""
    task, generator = replace(get_task(task_name), horizon=steps), np.random.default_rng(seed)

    def act(observations, t):
        return generator.uniform(-1, 1, (1, task.action_dim))

    played = [roll_out(task, act, [seed + episode], record=True) for episode in range(episodes)]
    return from_episodes([each.trajectories[0] for each in played])


@pytest.fixture(scope="session")
def car_data() -> Dataset:
    """Six random CarCircle episodes of 40 steps."""
    return random_episodes("CarCircle", 6, 40, seed=0)


@pytest.fixture(scope="session")
def car_forget(car_data) -> ForgetSet:
    """A Max Cost forget set for them, selected from two full random episodes."""
    rollouts = random_episodes("CarCircle", 2, get_task("CarCircle").horizon, seed=100)
    return poison(car_data, rollouts, "max_cost", 0.15)


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory, car_data) -> Path:
    """The clean data where the engine looks for them."""
    folder = tmp_path_factory.mktemp("data")
    save(car_data, folder / "CarCircle.hdf5")
    return folder


# Tiny runs


@pytest.fixture
def log_often(monkeypatch):
    monkeypatch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory, digest, car_forget) -> Path:
    """A store that has the forget set, without the adversary that it came from."""
    store = Store(tmp_path_factory.mktemp("empty"))
    with store.write(trainings(digest, "cpq")[1].forget) as folder:
        save_forget_set(car_forget, folder / FORGET)
    return store.root


@pytest.fixture(scope="session")
def reference(tmp_path_factory, empty_store, make, digest) -> Path:
    """A store with all policies, made without interruption, one population at a time in this process."""
    root = tmp_path_factory.mktemp("reference") / "store"
    shutil.copytree(empty_store, root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "LOG_ROWS", STEPS // LOG_EVERY)
        for backbone in TRIED:
            make([*trainings(digest, backbone), *repairs(digest, backbone)], root)
    return root


@pytest.fixture
def fresh(empty_store, tmp_path) -> Path:
    """A copy of the store that has the forget set."""
    return Path(shutil.copytree(empty_store, tmp_path / "store"))


@pytest.fixture
def made(reference, tmp_path) -> Path:
    """A copy of the store that has all policies."""
    return Path(shutil.copytree(reference, tmp_path / "store"))


@pytest.fixture(scope="session")
def digest(car_data) -> str:
    return car_data.digest()


@pytest.fixture(scope="session")
def make(data_folder):
    return partial(make_from, data_folder)

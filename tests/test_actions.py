"""Distances between the actions of repaired policies, on agents whose actions are known."""

import math

import pytest
import torch

from saferule.agents import get_backbone
from saferule.agents.checkpoint import save_agent
from saferule.agents.population import create
from saferule.attack.poison import save_forget_set
from saferule.data.schema import save
from saferule.runs import actions as acted
from saferule.runs.actions import actions, distances
from saferule.runs.cells import Adversary, Forget, Training, Unlearning, config, settings
from saferule.runs.engine import Engine
from saferule.runs.interruptible import AGENT
from saferule.runs.store import Store

TINY = settings(hidden=(4, 4), vae_hidden=4, batch_size=4)


@pytest.fixture
def engine(tmp_path, car_data) -> Engine:
    save(car_data, tmp_path / "CarCircle.hdf5")
    return Engine(Store(tmp_path / "store"), tmp_path, device="cpu", say=lambda line: None)


def poisoned(data, seed=0) -> Training:
    forget = Forget(Adversary("CarCircle", "max_cost", 1000), data.digest(), 0.15, 2, 0.99, ())
    return Training("CarCircle", "cpq", data.digest(), forget, seed, 2, TINY)


def write(store: Store, cell: Unlearning, means: tuple[float, float]) -> None:
    """A CPQ agent that acts tanh(means) in every state."""
    cfg = config(cell.training)
    population = create(get_backbone("cpq"), cfg, [0])
    with torch.no_grad():
        population.nets["actor"]["w2"].zero_()
        population.nets["actor"]["b2"][..., :2] = torch.tensor(means)
    with store.write(cell) as folder:
        save_agent(population, 0, folder / AGENT, "CarCircle", "cpq", cfg, {})


def test_distance_of_constant_actions_by_hand(engine, car_data, car_forget, monkeypatch):
    default = Unlearning(poisoned(car_data), "safe-rule", 2)
    other = Unlearning(poisoned(car_data), "safe-rule", 2, settings(gate="data"))
    elsewhere = Unlearning(poisoned(car_data, seed=1), "safe-rule", 2)
    with engine.store.write(default.training.forget) as folder:
        save_forget_set(car_forget, folder / "forget.hdf5")
    write(engine.store, default, (0.0, 0.0))
    write(engine.store, other, (0.3, -0.4))
    found = actions(engine.store.folder(other) / AGENT, car_data.observations)
    assert found.shape == (len(car_data), 2)
    assert found[7].tolist() == pytest.approx([math.tanh(0.3), math.tanh(-0.4)], abs=1e-6)

    monkeypatch.setattr(acted, "STATES", 5)
    frame = distances(engine, [default, other, elsewhere], [default])  # nothing to compare the last one with
    assert frame["readings"].tolist() == ["{}", '{"gate": "data"}']
    expected = math.hypot(math.tanh(0.3), math.tanh(0.4))
    for name in ("actions_keep", "actions_forget"):
        assert frame[name].tolist() == pytest.approx([0.0, expected], abs=1e-6)

"""The state of agents: bit-exact round trips, continuing, choosing agents, and files that are not whole."""

import os

import pytest
import torch
from helpers import EXISTING, Sampled, assert_same_state, frozen, tiny

from saferule.agents import get_backbone
from saferule.agents.checkpoint import load_agent, load_networks, save_acting, save_agent, save_networks, save_tensors
from saferule.agents.parts import originals
from saferule.agents.population import create, draw_noise, training, update
from saferule.agents.state import read, restore, take, write
from saferule.errors import CheckpointError

CRITICS = ("critic", "cost_critic")


def advance(population, name, steps):
    """Train on a fixed pool with the agents' own generators."""
    algorithm, draw = training(get_backbone(name), tiny(name)), Sampled(tiny(name))
    for _ in range(steps):
        noise_and_batch = draw(population), draw_noise(population, algorithm.noise_shapes, torch.float32)
        update(population, algorithm, *noise_and_batch)
    return population


@pytest.mark.parametrize("name", EXISTING)
def test_continuing_from_a_file_equals_not_stopping(name, tmp_path):
    cfg = tiny(name)
    population = advance(create(get_backbone(name), cfg, [0, 1, 2]), name, 5)
    saved = frozen(population)
    write(tmp_path / "state.safetensors", saved, {"step": population.step})
    tensors, meta = read(tmp_path / "state.safetensors")
    assert_same_state(saved, tensors)
    other = restore(tensors, cfg.learning_rates, meta["step"])
    assert other.step == 5 and len(other) == 3
    assert_same_state(saved, frozen(other))
    assert_same_state(frozen(advance(population, name, 5)), frozen(advance(other, name, 5)))
    assert not torch.equal(saved["nets/actor/w0"], frozen(other)["nets/actor/w0"])
    assert not torch.equal(saved["generators"], frozen(other)["generators"])


def test_restored_tensors_are_copies():
    population = advance(create(get_backbone("cpq"), tiny("cpq"), [0]), "cpq", 2)
    tensors = frozen(population)
    other = restore(tensors, tiny("cpq").learning_rates, 2)
    advance(other, "cpq", 1)
    assert_same_state(tensors, frozen(population))


@pytest.mark.parametrize("name", EXISTING)
def test_taken_agents_go_on_as_in_the_whole_population(name):
    cfg = tiny(name)
    population = advance(create(get_backbone(name), cfg, [0, 1, 2]), name, 4)
    two = take(population, [2, 0], cfg.learning_rates)
    whole = frozen(population)
    chosen = {n: v if n.endswith("/step") else v[[2, 0]] for n, v in whole.items()}
    assert_same_state(chosen, frozen(two))
    assert two.step == 4
    whole = frozen(advance(population, name, 4))
    chosen = {n: v if n.endswith("/step") else v[[2, 0]] for n, v in whole.items()}
    assert_same_state(chosen, frozen(advance(two, name, 4)), 1e-5)


@pytest.mark.parametrize("name", EXISTING)
def test_agent_files(name, tmp_path):
    backbone, cfg = get_backbone(name), tiny(name)
    population = advance(create(backbone, cfg, [0, 1]), name, 3)
    save_agent(population, 1, tmp_path / "agent.safetensors", "CarCircle", name, cfg, {"cell": "abc"})
    agent = load_agent(tmp_path / "agent.safetensors")
    assert (agent.task, agent.backbone, agent.cfg, agent.meta["cell"]) == ("CarCircle", backbone, cfg, "abc")
    expected = {n: v if n.endswith("/step") else v[1:2] for n, v in frozen(population).items()}
    assert_same_state(expected, frozen(agent.population))
    assert agent.population.step == 3
    alone = load_networks(tmp_path / "agent.safetensors")
    assert (
        alone.population is None
        and alone.meta == agent.meta
        and alone.cfg == cfg
        and set(alone.nets) == set(agent.nets)
    )
    assert all(torch.equal(alone.nets[n][k], leaf) for n, net in agent.nets.items() for k, leaf in net.items())
    save_acting(population, 1, tmp_path / "acting.safetensors", "CarCircle", name, cfg)
    acting = load_agent(tmp_path / "acting.safetensors")
    assert acting.population is None and acting.meta["step"] == 3
    observations = torch.randn(4, cfg.observation_dim)
    actions = backbone.act(agent.nets, observations, None, cfg)
    assert actions.shape == (4, cfg.action_dim) and actions.abs().max() <= 1
    assert torch.equal(actions, backbone.act(acting.nets, observations, None, cfg))
    whole = {net: {k: v[1].detach() for k, v in leaves.items()} for net, leaves in population.nets.items()}
    assert torch.equal(actions, backbone.act(whole, observations, None, cfg))


@pytest.mark.parametrize("name", EXISTING)
def test_snapshots_of_the_networks(name, tmp_path):
    backbone, cfg = get_backbone(name), tiny(name)
    population = advance(create(backbone, cfg, [0, 1]), name, 3)
    population.nets |= originals(population.nets)  # as Trajdeleter keeps them
    save_networks(population, 1, tmp_path / "3.safetensors", "CarCircle", name, cfg)
    snapshot = load_agent(tmp_path / "3.safetensors")
    assert snapshot.population is None and snapshot.meta["step"] == 3
    assert (snapshot.task, snapshot.backbone, snapshot.cfg) == ("CarCircle", backbone, cfg)
    expected = {"actor", "nu", "chi", "tau", "lmbda"} if name == "coptidice" else {"actor", "vae", *CRITICS}
    assert set(snapshot.nets) == expected
    for net in expected:
        for k, leaf in population.nets[net].items():
            assert torch.equal(snapshot.nets[net][k], leaf[1]) and not snapshot.nets[net][k].requires_grad


def test_snapshots_written_by_older_versions_are_read(tmp_path):
    cfg = tiny("cpq")
    tensors = {"nets/actor/w0": torch.zeros(1, 2, 3)}
    save_tensors(tensors, tmp_path / "a.safetensors", "CarCircle", "cpq", cfg, {"step": 1, "acting_only": True})
    assert load_agent(tmp_path / "a.safetensors").nets["actor"]["w0"].shape == (2, 3)


def small_file(tmp_path):
    write(tmp_path / "a.safetensors", {"x": torch.arange(100.0)}, {"step": 1})
    return tmp_path / "a.safetensors"


def test_write_is_atomic(tmp_path, monkeypatch):
    path = small_file(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write(path, {"x": torch.zeros(3)}, {"step": 2})
    monkeypatch.undo()
    tensors, meta = read(path)
    assert torch.equal(tensors["x"], torch.arange(100.0)) and meta == {"step": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_truncated_file(tmp_path, size):
    path = small_file(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{path}.*truncated"):
        read(path)


def test_missing_and_other_files(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.safetensors.*no such file"):
        read(tmp_path / "nothing.safetensors")
    torch.save({"model_state": {}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="model.pt"):
        read(tmp_path / "model.pt")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="foreign.safetensors.*saferule"):
        read(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="a.safetensors.*population"):
        load_agent(small_file(tmp_path))

"""Agents in files: bit-exact round trips, continuing, choosing agents, exact acting networks, broken files."""

import os

import pytest
import torch
from helpers import Sampled, assert_same_state, frozen, tiny
from helpers import advance as steps_of
from safetensors.torch import save_file

from saferule.agents import BACKBONES, checkpoint, get_backbone
from saferule.agents.parts import originals
from saferule.agents.population import create, member, training
from saferule.errors import CheckpointError


def advance(population, name, steps):
    """Train on a fixed pool with the agents' own generators."""
    steps_of(population, training(get_backbone(name), tiny(name)), Sampled(tiny(name)), steps)
    return population


def trained(name, seeds, steps):
    return advance(create(get_backbone(name), tiny(name), seeds), name, steps)


@pytest.mark.parametrize("name", BACKBONES)
def test_continuing_from_a_file_equals_not_stopping(name, tmp_path):
    population = trained(name, [0, 1, 2], 5)
    saved = frozen(population)
    checkpoint.write(tmp_path / "state.safetensors", saved, {"step": population.step})
    tensors, meta = checkpoint.read(tmp_path / "state.safetensors")
    assert_same_state(saved, tensors)
    other = checkpoint.restore(tensors, tiny(name).learning_rates, meta["step"])
    assert other.step == 5 and len(other) == 3
    assert_same_state(saved, frozen(other))
    assert_same_state(frozen(advance(population, name, 5)), frozen(advance(other, name, 5)))
    assert not torch.equal(saved["nets/actor/w0"], frozen(other)["nets/actor/w0"])
    assert not torch.equal(saved["generators"], frozen(other)["generators"])
    assert_same_state(saved, tensors)  # restored tensors are copies


@pytest.mark.parametrize("name", BACKBONES)
def test_taken_agents_go_on_as_in_the_whole_population(name):
    population = trained(name, [0, 1, 2], 4)
    two = checkpoint.take(population, [2, 0], tiny(name).learning_rates)
    assert_same_state(frozen(population, [2, 0]), frozen(two))
    assert two.step == 4
    advance(population, name, 4)
    assert_same_state(frozen(population, [2, 0]), frozen(advance(two, name, 4)), 1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_agent_files(name, tmp_path):
    backbone, cfg, path = get_backbone(name), tiny(name), tmp_path / "agent.safetensors"
    population = trained(name, [0, 1], 3)
    population.nets |= originals(population.nets)  # as Trajdeleter keeps them
    checkpoint.save_agent(population, 1, path, "CarCircle", name, cfg, {"cell": "abc"})
    agent, alone = checkpoint.load_agent(path), checkpoint.load_networks(path)
    assert (agent.task, agent.backbone, agent.cfg, agent.meta["cell"]) == ("CarCircle", backbone, cfg, "abc")
    expected = {n: v for n, v in frozen(population, [1]).items() if not n.startswith("nets/original_")}
    assert_same_state(expected, frozen(agent.population))
    assert agent.population.step == 3
    assert alone.population is None and alone.meta == agent.meta and alone.cfg == cfg
    assert_same_state(alone.nets, agent.nets)
    checkpoint.save_networks(population, 1, path, "CarCircle", name, cfg)
    snapshot = checkpoint.load_agent(path)
    assert snapshot.population is None and snapshot.meta["step"] == 3
    assert (snapshot.task, snapshot.backbone, snapshot.cfg) == ("CarCircle", backbone, cfg)
    assert set(snapshot.nets) == {network for networks, _ in backbone.LOSSES for network in networks}
    assert_same_state(snapshot.nets, {net: member(population.nets[net], 1) for net in snapshot.nets})
    assert not any(leaf.requires_grad for leaves in snapshot.nets.values() for leaf in leaves.values())


@pytest.mark.parametrize("name", BACKBONES)
def test_acting_networks_are_exactly_what_act_reads(name, tmp_path):
    backbone, cfg, path = get_backbone(name), tiny(name), tmp_path / "acting.safetensors"
    population = trained(name, [0, 1], 3)
    checkpoint.save_acting(population, 1, path, "CarCircle", name, cfg)
    acting = checkpoint.load_agent(path)
    assert acting.population is None and acting.meta["step"] == 3
    assert set(checkpoint.read(path)[0]) == {f"nets/{net}/{k}" for net, leaves in acting.nets.items() for k in leaves}

    observations = torch.randn(4, cfg.observation_dim)
    latent = torch.randn(backbone.noise_shapes(cfg, 4)["policy"])
    whole = member(population.nets, 1)
    for noise in (None, latent):
        actions = backbone.act(acting.nets, observations, noise, cfg)
        assert actions.shape == (4, cfg.action_dim) and actions.abs().max() <= 1
        assert torch.equal(actions, backbone.act(whole, observations, noise, cfg))
    for net, leaves in acting.nets.items():  # without any one of them there is no action, or another one
        for k, leaf in leaves.items():
            lacking = acting.nets | {net: leaves | {k: leaf + 1}}
            assert not torch.equal(actions, backbone.act(lacking, observations, latent, cfg)), (net, k)
            without = acting.nets | {net: {name: value for name, value in leaves.items() if name != k}}
            with pytest.raises((KeyError, RuntimeError)):
                backbone.act(without, observations, latent, cfg)


def small_file(tmp_path):
    checkpoint.write(tmp_path / "a.safetensors", {"x": torch.arange(100.0)}, {"step": 1})
    return tmp_path / "a.safetensors"


def test_write_is_atomic(tmp_path, monkeypatch):
    path = small_file(tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(path, {"x": torch.zeros(3)}, {"step": 2})
    monkeypatch.undo()
    tensors, meta = checkpoint.read(path)
    assert torch.equal(tensors["x"], torch.arange(100.0)) and meta == {"step": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_truncated_file(tmp_path, size):
    path = small_file(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=f"{path}.*truncated"):
        checkpoint.read(path)


def test_missing_and_other_files(tmp_path):
    with pytest.raises(CheckpointError, match="nothing.safetensors.*no such file"):
        checkpoint.read(tmp_path / "nothing.safetensors")
    torch.save({"model_state": {}}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="model.pt"):
        checkpoint.read(tmp_path / "model.pt")
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="foreign.safetensors.*saferule"):
        checkpoint.read(tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="a.safetensors.*population"):
        checkpoint.load_agent(small_file(tmp_path))

"""Agents in files: bit-exact round trips, continuing, choosing agents, exact acting networks, broken files."""

import json
import os
import shutil

import pytest
import torch
from helpers import Sampled, assert_same_state, frozen, tiny
from helpers import advance as steps_of
from safetensors import safe_open
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
    monkeypatch.setattr(os, "fsync", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
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


def header(path, **changes):
    """Write a file again with another header; None leaves an entry out."""
    with safe_open(path, framework="pt") as file:
        entries, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = {name: entry for name, entry in (entries | changes).items() if entry is not None}
    save_file(tensors, path, entries)


def described(path, **changes):
    """The same for what the header says of the agent; "config.phi" changes a setting."""
    with safe_open(path, framework="pt") as file:
        meta = json.loads(file.metadata()["saferule"])
    for name, value in changes.items():
        place, last = (meta["config"], name[7:]) if name.startswith("config.") else (meta, name)
        place.pop(last, None) if value is None else place.update({last: value})
    header(path, saferule=json.dumps(meta))


@pytest.fixture(scope="module")
def agent_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("agent") / "agent.safetensors"
    checkpoint.save_agent(trained("cpq", [0], 2), 0, path, "CarCircle", "cpq", tiny("cpq"), {})
    return path


def test_files_name_format_and_versions_and_older_ones_are_read(agent_file, tmp_path):
    with safe_open(agent_file, framework="pt") as file:
        assert file.metadata()["format"] == str(checkpoint.FORMAT)
        assert json.loads(file.metadata()["versions"])["torch"] == str(torch.__version__)
    old = tmp_path / "old.safetensors"
    shutil.copy(agent_file, old)
    header(old, format=None, versions=None)
    assert_same_state(
        frozen(checkpoint.load_agent(old).population), frozen(checkpoint.load_agent(agent_file).population)
    )


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: header(p, format=str(checkpoint.FORMAT + 1)), "in format 2"),
        (lambda p: header(p, format='"new"'), "in format new"),
        (lambda p: header(p, format="-3"), "in format -3"),
        (lambda p: header(p, format="true"), "in format True"),
        (lambda p: header(p, saferule="[" * 100_000), "header is damaged"),
        (lambda p: header(p, saferule="{"), "header is damaged"),
        (lambda p: header(p, saferule="3"), "holds no description"),
        (lambda p: described(p, config=None), "header has no 'config'"),
        (lambda p: described(p, step="two"), "step = 'two'"),
        (lambda p: described(p, task="Walker"), "Unknown task 'Walker'"),
        (lambda p: described(p, backbone="td3"), "unknown backbone 'td3'"),
        (lambda p: described(p, **{"config.colour": 1}), "no setting 'colour'"),
        (lambda p: described(p, **{"config.gamma": "much"}), "gamma = 'much', expected float and finite"),
        (lambda p: described(p, **{"config.gamma": float("nan")}), "gamma = nan"),
        (lambda p: described(p, **{"config.hidden": [8, 9]}), "has shape (1, 8), expected (1, 9)"),
        (lambda p: described(p, **{"config.hidden": [10**7, 10**7]}), "expected"),  # nothing of that size is made
        (lambda p: described(p, **{"config.hidden": 8}), "hidden = 8, expected"),
        (lambda p: described(p, **{"config.num_q": -1}), "cannot be meant"),
    ],
)
def test_headers_that_cannot_be_meant(spoil, told, agent_file, tmp_path):
    refused(agent_file, tmp_path, spoil, told)


def refused(agent_file, tmp_path, spoil, told):
    path = tmp_path / "a.safetensors"
    shutil.copy(agent_file, path)
    spoil(path)
    for load in (checkpoint.load_agent, checkpoint.load_networks):
        with pytest.raises(CheckpointError) as error:
            load(path)
        sentence = str(error.value).replace(str(tmp_path), "")
        assert told in sentence and "\n" not in sentence and len(sentence) <= 300, sentence
        assert str(path) in str(error.value)


def tensors(path, **changes):
    """Write a file again with other tensors; "/" in names is "__", None leaves one out."""
    with safe_open(path, framework="pt") as file:
        entries, held = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, value in changes.items():
        name = name.replace("__", "/")
        held = {k: v for k, v in held.items() if k != name} if value is None else held | {name: value}
    save_file(held, path, entries)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"nets__actor__w0": None}, "'nets/actor/w0' is missing, expected a whole cpq agent"),
        ({"nets__critic_target__b1": None}, "'nets/critic_target/b1' is missing"),
        ({"nets__critic_target__b1": None, "generators": None}, None),  # enough to act
        ({"nets__actor__w1": None, "generators": None}, "'nets/actor/w1' is missing, expected what acts of a cpq"),
        ({"nets__critic__w9": torch.zeros(1, 2)}, "'nets/critic/w9' is unknown"),
        ({"nets__actor__b0": torch.zeros(1, 3)}, "'nets/actor/b0' has shape (1, 3), expected (1, 8)"),
        ({"nets__actor__b0": torch.full((1, 8), torch.inf)}, "'nets/actor/b0' is not of finite numbers"),
        ({"nets__actor__b0": torch.zeros(1, 8, dtype=torch.int64)}, "'nets/actor/b0' is not of finite numbers"),
        ({"scalars__log_alpha": None}, "'scalars/log_alpha' is missing"),
        ({"scalars__log_alpha": torch.zeros(2)}, "'scalars/log_alpha' has shape (2,), expected (1,)"),
        ({"scalars__kappa": torch.zeros(())}, "'scalars/kappa' has shape ()"),
        ({"scalars__kappa": torch.zeros(1)}, None),  # a method's own
        ({"adam__actor__w0__exp_avg": None}, "'adam/actor/w0/exp_avg' is missing"),
        ({"adam__actor__w0__exp_avg": torch.zeros(1, 1)}, "'adam/actor/w0/exp_avg' has shape (1, 1)"),
        ({"adam__colour__w0__step": torch.zeros(())}, "'adam/colour/w0/step' is unknown"),
        ({"weights": torch.zeros(1)}, "'weights' is unknown"),
        ({"generators": torch.zeros(1, 3, dtype=torch.uint8)}, "'generators' has shape (1, 3)"),
        ({"generators": torch.zeros(1, 5056)}, "'generators' is of torch.float32, expected uint8"),
    ],
)
def test_tensors_that_are_missing_unknown_or_of_another_form(changes, told, agent_file, tmp_path):
    if told is not None:
        return refused(agent_file, tmp_path, lambda path: tensors(path, **changes), told)
    shutil.copy(agent_file, tmp_path / "a.safetensors")
    tensors(tmp_path / "a.safetensors", **changes)
    checkpoint.load_agent(tmp_path / "a.safetensors")


def test_a_generator_that_is_none(agent_file, tmp_path):
    shutil.copy(agent_file, tmp_path / "a.safetensors")
    tensors(tmp_path / "a.safetensors", generators=torch.full((1, 5056), 7, dtype=torch.uint8))
    with pytest.raises(CheckpointError, match="'generators' is no generator's state"):
        checkpoint.load_agent(tmp_path / "a.safetensors")

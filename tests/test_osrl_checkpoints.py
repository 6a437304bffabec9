"""osrl-lib checkpoints in and out, against the real package."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import osrl_peer
import pytest
import torch
from helpers import assert_same_state

from benchmarks.osrl_lib import quiet_trainer
from saferule.agents import BACKBONES
from saferule.agents.checkpoint import load_agent, save_acting, save_agent
from saferule.agents.osrl import export_osrl, import_osrl
from saferule.agents.population import draw_noise, member, stack, training, update
from saferule.data.schema import Dataset
from saferule.errors import CheckpointError

# CarCircle, with sizes that differ from the defaults and from each other.
SIZES = {"observation_dim": 8, "action_dim": 2, "episode_len": 300, "hidden": (24, 20)}
SMALL = {"vae_hidden": 28, "num_q": 3}
BATCH = 16
pytestmark = pytest.mark.filterwarnings("ignore:.*an osrl-lib checkpoint holds the networks alone:UserWarning")
NEUTRAL = 1 / 300, np.zeros((1, 8), np.float32), np.zeros((1, 2), np.float32)  # what is assumed without data


def settings(backbone: str) -> dict[str, Any]:
    return SIZES | ({"num_nu": 3, "num_chi": 1} if backbone == "coptidice" else SMALL)


def saved_model(backbone: str, path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint as osrl-lib's example scripts write it, after a few steps: targets and networks differ."""
    peers = osrl_peer.Peers(backbone, BATCH, torch.float32, **settings(backbone))
    for _ in range(3):
        peers.step()
    state = peers.model.state_dict()
    torch.save({"model_state": state}, path)
    return state


def resumed(backbone: str, path: Path, cfg: Any) -> Any:
    """osrl-lib's trainer after loading a checkpoint as its evaluation scripts do."""
    trainer = quiet_trainer(backbone, cfg, "cpu", NEUTRAL)
    trainer.model.load_state_dict(torch.load(path, weights_only=True)["model_state"], strict=True)
    return trainer


def assert_same_actions(backbone: str, agent: Any, model: torch.nn.Module) -> None:
    observations = torch.randn(5, agent.cfg.observation_dim, generator=torch.Generator().manual_seed(3))
    latents = [torch.zeros(1, agent.cfg.latent_dim)] if backbone == "bcq-lag" else []
    ours = agent.backbone.act(agent.nets, observations, None, agent.cfg)
    for i, observation in enumerate(observations.numpy()):
        with osrl_peer.fed(latents), torch.no_grad():
            theirs, _ = model.act(observation, True, True)
        np.testing.assert_allclose(ours[i].numpy(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_round_trip(backbone, tmp_path):
    state = saved_model(backbone, tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle", backbone)
    assert {name: getattr(agent.cfg, name) for name in settings(backbone)} == settings(backbone)
    trainer = resumed(backbone, tmp_path / "model.pt", agent.cfg)
    assert_same_actions(backbone, agent, trainer.model)

    export_osrl(agent, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)["model_state"]
    assert_same_state(again, dict(state))
    assert_same_actions(backbone, agent, resumed(backbone, tmp_path / "again.pt", agent.cfg).model)
    torch.save(state, tmp_path / "bare.pt")  # without "model_state" around it
    bare = import_osrl(tmp_path / "bare.pt", "CarCircle")
    assert_same_state(agent.nets, bare.nets)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_next_training_step_is_osrls_also_after_saving_the_agent(backbone, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle", backbone, batch_size=BATCH)
    save_agent(agent.population, 0, tmp_path / "agent.safetensors", agent.task, backbone, agent.cfg, agent.meta)
    loaded = load_agent(tmp_path / "agent.safetensors")
    assert loaded.meta["imported"] == "model.pt"
    trainer = resumed(backbone, tmp_path / "model.pt", agent.cfg)
    batch = osrl_peer.Peers(backbone, BATCH, torch.float32, **settings(backbone)).batch()
    algorithm = training(agent.backbone, agent.cfg)
    noise = draw_noise(agent.population, algorithm.noise_shapes, torch.float32)
    osrl_peer.osrl_step(backbone, trainer, batch, member(noise, 0))
    for population in (agent.population, loaded.population):
        update(population, algorithm, stack([batch]), noise)
    assert_same_state(agent.population.nets, loaded.population.nets)
    export_osrl(agent, tmp_path / "next.pt")  # agent.nets are views of the population
    ours = torch.load(tmp_path / "next.pt", weights_only=True)["model_state"]
    for name, value in trainer.model.state_dict().items():
        assert (ours[name] - value).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize(
    ("backbone", "named"),
    [
        ("bcq-lag", ["Adam", "PID"]),
        ("bear-lag", ["Adam", "PID", "log_alpha 0", "n_train_steps 7"]),
        ("cpq", ["Adam", "log_alpha 0"]),
        ("coptidice", ["Adam", "lmbda", "tau", "1/300", "noise 0"]),
    ],
)
def test_what_osrl_does_not_save_is_named_once(backbone, named, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    changes = {"start_update_policy_step": 7} if backbone == "bear-lag" else {}
    with pytest.warns(UserWarning) as caught:
        agent = import_osrl(tmp_path / "model.pt", "CarCircle", **changes)
    assert len(caught) == 1 and caught[0].filename == __file__
    message = str(caught[0].message)
    assert all(word in message for word in ["model.pt", *named])
    assert all(words in message for words in agent.meta["assumed"])
    scalars = agent.population.scalars
    if backbone == "bear-lag":
        assert scalars["n_train_steps"].tolist() == [7]
    if backbone == "coptidice":
        assert scalars["multiplier"].item() == pytest.approx(1.3133, abs=1e-4)
        assert scalars["init_proportion"].item() == pytest.approx(1 / 300)


def test_coptidice_takes_the_statistics_of_its_data(tmp_path):
    saved_model("coptidice", tmp_path / "model.pt")
    random = np.random.default_rng(0)
    observations, actions = random.normal(3, 2, (12, 8)), random.uniform(-1, 1, (12, 2))
    ends = np.arange(1, 13) % 4 == 0  # three episodes of four steps
    data = Dataset(observations, observations, actions, np.zeros(12), np.zeros(12), np.zeros(12), ends)
    with pytest.warns(UserWarning) as caught:
        agent = import_osrl(tmp_path / "model.pt", "CarCircle", dataset=data)
    assert "for want of data" not in str(caught[0].message)
    scalars = agent.population.scalars
    assert scalars["init_proportion"].item() == 0.25
    np.testing.assert_allclose(scalars["observation_std"][0], observations.std(0), rtol=1e-5)
    np.testing.assert_allclose(scalars["action_std"][0], actions.std(0), rtol=1e-5)


def test_statistics_are_osrls():
    from osrl.common import TransitionDataset

    from saferule.agents.coptidice import statistics

    random = np.random.default_rng(1)
    data = {
        "observations": random.normal(size=(50, 8)).astype(np.float32),
        "actions": random.normal(size=(50, 2)).astype(np.float32),
        "terminals": random.random(50) < 0.1,
        "timeouts": random.random(50) < 0.1,
    }
    theirs = TransitionDataset(data, state_init=True)
    ours = statistics(*(torch.from_numpy(theirs.dataset[k]) for k in ("observations", "actions", "is_init")))
    for mine, expected in zip(ours.values(), theirs.get_dataset_states(), strict=True):
        np.testing.assert_allclose(mine.numpy(), np.squeeze(expected), rtol=1e-6)


def refused(path: Path, *words: str, **options: Any) -> None:
    """Importing must fail with one sentence that names the file and these words, before anything is warned of."""
    with warnings.catch_warnings(), pytest.raises(CheckpointError) as error:
        warnings.simplefilter("error")
        import_osrl(path, options.pop("task", "CarCircle"), **options)
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def test_files_that_are_not_checkpoints(tmp_path):
    path = tmp_path / "model.pt"
    saved_model("cpq", path)
    content = path.read_bytes()
    for share in (0, 0.01, 0.5, 0.999):
        path.write_bytes(content[: int(share * len(content))])
        refused(path, "truncated")
    refused(tmp_path / "nothing.pt", "no such file")
    refused(tmp_path, "of another kind")
    path.write_text("not a checkpoint")
    refused(path, "of another kind")
    for held, *words in (
        ({}, "no tensors"),
        ([torch.zeros(3)], "no tensors"),
        ({"model_state": {"actor.pi.0.weight": 3}}, "'actor.pi.0.weight'", "not a tensor"),
        ({0: torch.zeros(3)}, "key 0", "osrl-lib state"),
        ({"transformer.weight": torch.zeros(2, 2)}, "'transformer.weight'", "bcq-lag"),
    ):
        torch.save(held, path)
        refused(path, *words)


class Trap:
    """Unpickling it would raise the alarm."""

    sprung: list[str] = []

    def __reduce__(self) -> tuple:
        return Trap.sprung.append, ("opened",)


def test_nothing_but_tensors_is_unpickled(tmp_path):
    torch.save({"model_state": {"actor.pi.0.weight": Trap()}}, tmp_path / "trap.pt")
    refused(tmp_path / "trap.pt", "plain tensors")
    assert Trap.sprung == []


@pytest.mark.parametrize("backbone", BACKBONES)
def test_other_backbone_or_task(backbone, tmp_path):
    saved_model(backbone, tmp_path / "model.pt")
    other = BACKBONES[(BACKBONES.index(backbone) + 1) % len(BACKBONES)]
    refused(tmp_path / "model.pt", "key", f"is of {backbone}", f"expected {other}", backbone=other)
    refused(tmp_path / "model.pt", "key", "8 observations and 2 actions", "PointGoal has 60 and 2", task="PointGoal")


@pytest.mark.parametrize("backbone", BACKBONES)
def test_damaged_states(backbone, tmp_path):
    state, path = saved_model(backbone, tmp_path / "model.pt"), tmp_path / "model.pt"
    half = "q_nets" if backbone == "cpq" else "q1_nets"
    critic = "nu_network.q_nets.1" if backbone == "coptidice" else f"cost_critic.{half}.1"
    key, last = f"{critic}.2.weight", list(state)[-1]

    def write(changes: dict[str, Any], without: str | None = None) -> None:
        torch.save({"model_state": {k: v for k, v in (state | changes).items() if k != without}}, path)

    actor = "actor.pi.2.weight" if backbone == "bcq-lag" else "actor.mu_layer.weight"
    for missing in (key, last, actor):
        write({}, without=missing)
        refused(path, missing, "missing")
    for name, value, *words in (
        (key, state[key][:, :-1], "shape", "(20, 23)", "(20, 24)"),
        (key, state[key].flatten(), "shape"),
        (f"{critic}.6.weight", torch.zeros(1, 1), "unknown"),
        (key, state[key] * float("nan"), "not finite"),
    ):
        write({name: value})
        refused(path, name, *words)


def test_export_needs_every_network(tmp_path):
    saved_model("bear-lag", tmp_path / "model.pt")
    agent = import_osrl(tmp_path / "model.pt", "CarCircle")
    save_acting(agent.population, 0, tmp_path / "acting.safetensors", "CarCircle", "bear-lag", agent.cfg)
    with pytest.raises(CheckpointError, match="out.pt.*critic.*complete agent"):
        export_osrl(load_agent(tmp_path / "acting.safetensors"), tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()
